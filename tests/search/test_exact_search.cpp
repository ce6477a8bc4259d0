// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/exact_search.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

namespace ruvector_test_exact_search {
namespace {

using namespace ruvector;
using geometry::Euclidean;
using geometry::Lorentz;
using geometry::PoincareBall;
using search::Cosine;
using search::Distance;
using search::ExactSearch;
using search::InnerProduct;
using search::SearchResult;

template <class T>
bool same(const SearchResult<T>& a, const SearchResult<T>& b) {
  return support::same_bits(a.ids.span(), b.ids.span()) && support::same_bits(a.scores.span(), b.scores.span()) &&
         support::same_bits(a.count.span(), b.count.span());
}

// Places of equal score go to the smaller id; NaN is absent.
template <class T>
void check_brute_force(MatrixView<const T> scores, Index k, const SearchResult<T>& result) {
  for (Index i = 0; i < scores.rows(); ++i) {
    std::vector<Index> order;
    for (Index j = 0; j < scores.cols(); ++j)
      if (!std::isnan(scores(i, j))) order.push_back(j);
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return scores(i, a) > scores(i, b); });
    const Index count = std::min(k, Index(order.size()));
    REQUIRE(result.count[i] == count);
    for (Index p = 0; p < k; ++p) {
      const Index id = p < count ? order[std::size_t(p)] : -1;
      const T score = id < 0 ? -std::numeric_limits<T>::infinity() : scores(i, id);
      if (result.ids(i, p) != id || !(result.scores(i, p) == score)) {
        CAPTURE(i, p, id, score, result.ids(i, p), result.scores(i, p));
        FAIL("not what sorting finds");
      }
    }
  }
}

// Small integers: products and sums are exact, and ties are many.
template <class T>
Matrix<T> integers(Index rows, Index cols, Rng& rng) {
  Matrix<T> x(rows, cols);
  for (T& v : x.span()) v = T(rng.below(7)) - 3;
  return x;
}
template <class T>
Matrix<T> normals(Index rows, Index cols, Rng& rng, double deviation = 1) {
  Matrix<T> x(rows, cols);
  for (T& v : x.span()) v = T(deviation * rng.normal());
  return x;
}

// Every score with points that it makes sense for.
template <class S>
struct Problem;
template <class T>
struct Problem<InnerProduct<T>> {
  static InnerProduct<T> score() { return {}; }
  static Matrix<T> points(Index n, Index d, Rng& rng) { return normals<T>(n, d, rng); }
};
template <class T>
struct Problem<Cosine<T>> {
  static Cosine<T> score() { return {}; }
  static Matrix<T> points(Index n, Index d, Rng& rng) { return normals<T>(n, d, rng); }
};
template <class M>
struct Problem<Distance<M>> {
  static Distance<M> score() { return Distance<M>(M()); }
  static Matrix<ScalarOf<M>> points(Index n, Index d, Rng& rng) {
    auto x = normals<ScalarOf<M>>(n, d, rng, 0.2);
    for (Index i = 0; i < n; ++i) (void)M().project(x.row(i), x.row(i));
    return x;
  }
};

using Scores = std::tuple<InnerProduct<float>, InnerProduct<double>, Cosine<float>, Cosine<double>,
                          Distance<Euclidean<float>>, Distance<Euclidean<double>>, Distance<PoincareBall<float>>,
                          Distance<PoincareBall<double>>, Distance<Lorentz<float>>, Distance<Lorentz<double>>>;

TEMPLATE_TEST_CASE("exact_search: is exact, against brute force in double on 1000 problems", "[search][exact_search]",
                   float, double) {
  using T = TestType;
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  SearchResult<T> result;
  for (int problem = 0; problem < support::trials(1000, 200); ++problem) {
    const Index n = rng.below(problem % 50 == 0 ? 5000 : 300), d = rng.below(20), k = rng.below(40);
    const Index batch = rng.below(6);
    const auto candidates = integers<T>(n, d, rng), queries = integers<T>(batch, d, rng);
    CAPTURE(problem, n, d, k, batch);
    Matrix<T> products(batch, n), distances(batch, n);
    for (Index i = 0; i < batch; ++i)
      for (Index j = 0; j < n; ++j) {
        double product = 0, square = 0;
        for (Index p = 0; p < d; ++p) {
          product += double(queries(i, p)) * double(candidates(j, p));
          square += std::pow(double(queries(i, p)) - double(candidates(j, p)), 2);
        }
        products(i, j) = T(product);
        distances(i, j) = T(-std::sqrt(square));
      }
    ExactSearch(InnerProduct<T>{}, candidates).search(queries, k, result, workspace);
    check_brute_force<T>(products, k, result);
    ExactSearch(Distance{Euclidean<T>{}}, candidates).search(queries, k, result, workspace);
    check_brute_force<T>(distances, k, result);
  }
}

TEMPLATE_LIST_TEST_CASE("exact_search: finds what sorting the scores of single pairs finds", "[search][exact_search]",
                        Scores) {
  using T = ScalarOf<TestType>;
  const std::uint64_t seed = 2;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  for (const Index n : {Index(1), Index(63), Index(64), Index(65), support::trials<Index>(1000, 130),
                        support::trials<Index>(2500, 400)})
    for (const Index d : {1, 2, 3, 16, 17, 130}) {
      if (n * d > 100000) continue;
      CAPTURE(n, d);
      const auto score = Problem<TestType>::score();
      const auto candidates = Problem<TestType>::points(n, d, rng), queries = Problem<TestType>::points(3, d, rng);
      Matrix<T> pairs(3, n);
      for (Index i = 0; i < 3; ++i)
        for (Index j = 0; j < n; ++j)
          score.scores(queries.view().rows(i, 1), candidates.view().rows(j, 1), pairs.view().rows(i, 1).cols(j, 1),
                       workspace);
      SearchResult<T> result;
      ExactSearch(score, candidates).search(queries, 10, result, workspace);
      check_brute_force<T>(pairs, 10, result);
    }
}

TEMPLATE_TEST_CASE("exact_search: scores are distances, negated, and cosines", "[search][exact_search]", float,
                   double) {
  using T = TestType;
  const std::uint64_t seed = 3;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  SearchResult<T> result;
  const auto check = [&](const auto& manifold) {
    using M = std::remove_cvref_t<decltype(manifold)>;
    const auto points = Problem<Distance<M>>::points(200, 5, rng);
    ExactSearch(Distance(manifold), points).search(points, 4, result, workspace);
    for (Index i = 0; i < 200; ++i) {
      CHECK(result.ids(i, 0) == i);
      CHECK(std::abs(double(result.scores(i, 0))) < 1e-15);
      CHECK_FALSE((result.scores(i, 0) == 0 && std::signbit(result.scores(i, 0))));  // 0, not −0
      for (Index p = 1; p < 4; ++p)
        CHECK(double(-result.scores(i, p)) ==
              Approx(double(manifold.distance(points.row(i), points.row(result.ids(i, p)))))
                  .epsilon(std::same_as<T, float> ? 1e-5 : 1e-12));
    }
  };
  check(Euclidean<T>());
  check(PoincareBall<T>());
  check(Lorentz<T>());

  Matrix<T> candidates(4, 2);
  candidates(1, 0) = 3, candidates(2, 1) = -2, candidates(3, 0) = T(0.5), candidates(3, 1) = T(0.5);
  Matrix<T> query(1, 2);
  query(0, 0) = 7;
  ExactSearch(Cosine<T>{}, candidates).search(query, 4, result, workspace);
  CHECK(result.ids(0, 0) == 1);
  CHECK(double(result.scores(0, 0)) == Approx(1).epsilon(1e-6));
  CHECK(result.ids(0, 1) == 3);
  CHECK(double(result.scores(0, 1)) == Approx(std::sqrt(0.5)).epsilon(1e-6));
  CHECK(result.ids(0, 2) == 0);  // the zero vector scores 0, and so does what is at right angles
  CHECK(result.ids(0, 3) == 2);
  CHECK(result.scores(0, 2) == 0);
}

TEMPLATE_LIST_TEST_CASE("exact_search: a query finds the same bits alone, in any batch, with any threads",
                        "[search][exact_search]", Scores) {
  using T = ScalarOf<TestType>;
  const std::uint64_t seed = 4;
  CAPTURE(seed);
  Rng rng(seed);
  const Index n = support::trials<Index>(2100, 300), d = 7, k = 12;
  const auto candidates = Problem<TestType>::points(n, d, rng), queries = Problem<TestType>::points(257, d, rng);
  const ExactSearch exact(Problem<TestType>::score(), candidates);
  Workspace workspace;
  SearchResult<T> all;
  exact.search(queries, k, all, workspace);
  const auto check = [&](Index first, Index count, auto& executor) {
    SearchResult<T> part;
    exact.search(queries.view().rows(first, count), {.k = k}, part, workspace, executor);
    bool equal = true;
    for (Index i = 0; i < count; ++i)
      equal = equal && support::same_bits(part.ids.row(i), all.ids.row(first + i)) &&
              support::same_bits(part.scores.row(i), all.scores.row(first + i)) &&
              part.count[i] == all.count[first + i];
    CAPTURE(first, count, executor.concurrency());
    CHECK(equal);
  };
  Serial serial;
  for (Index i = 0; i < 257; i += 16) check(i, 1, serial);
  for (const Index count : {2, 3, 5, 63, 64, 65, 128, 200, 256}) check((257 - count) / 2, count, serial);
  for (const Index threads : {1, 2, 3, 4, 7, 16}) {
    ThreadPool pool(threads);
    for (const Index count : {1, 2, 64, 257}) check(257 - count, count, pool);
  }
}

TEST_CASE("exact_search: NaN is never found and finds nothing; infinities are numbers", "[search][exact_search]") {
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  const float nan = NAN, infinity = INFINITY;
  auto candidates = normals<float>(100, 3, rng, 0.2);
  auto queries = normals<float>(5, 3, rng, 0.2);
  Workspace workspace;
  SearchResult<float> clean, result;
  const auto check = [&](const auto& score) {
    auto broken = candidates;
    for (Index j = 0; j < 100; j += 3) broken(j, 1 + j % 2) = nan;  // the time of the hyperboloid is not looked at
    Matrix<float> left(66, 3);
    for (Index j = 0; j < 66; ++j)
      for (Index p = 0; p < 3; ++p) left(j, p) = candidates(j / 2 * 3 + 1 + j % 2, p);
    ExactSearch(score, left).search(queries, 80, clean, workspace);
    auto asked = queries;
    asked(2, 1) = nan;
    ExactSearch(score, broken).search(asked, 80, result, workspace);
    for (Index i = 0; i < 5; ++i) {
      REQUIRE(result.count[i] == (i == 2 ? 0 : 66));
      for (Index p = 0; p < 80; ++p) {
        const Index expected = i == 2 || p >= 66 ? -1 : clean.ids(i, p) / 2 * 3 + 1 + clean.ids(i, p) % 2;
        CHECK(result.ids(i, p) == expected);
        if (i != 2) CHECK(support::same_bits(result.scores(i, p), clean.scores(i, p)));
        if (expected == -1) CHECK(result.scores(i, p) == -infinity);
      }
    }
  };
  check(InnerProduct<float>{});
  check(Cosine<float>{});
  check(Distance{Euclidean<float>{}});
  check(Distance{PoincareBall<float>{}});
  check(Distance{Lorentz<float>{}});

  Matrix<float> far(3, 1);
  far(0, 0) = -infinity, far(1, 0) = 1, far(2, 0) = infinity;
  Matrix<float> one(1, 1, 1.0f);
  ExactSearch(InnerProduct<float>{}, far).search(one, 3, result, workspace);
  CHECK(result.ids(0, 0) == 2);
  CHECK(result.ids(0, 1) == 1);
  CHECK(result.ids(0, 2) == 0);  // −∞ was found: it counts
  CHECK(result.count[0] == 3);
}

TEST_CASE("exact_search: empty inputs and any k have a defined result", "[search][exact_search]") {
  Workspace workspace;
  SearchResult<double> result;
  for (const Index n : {0, 1, 3})
    for (const Index batch : {0, 1, 2, 65})
      for (const Index d : {0, 1, 4})
        for (const Index k : {0, 1, 2, 3, 4, 10}) {
          CAPTURE(n, batch, d, k);
          const Matrix<double> candidates(n, d, 1.0), queries(batch, d, 1.0);
          const auto check = [&](const auto& score, double expected) {
            ThreadPool pool(2);
            for (const bool threads : {false, true}) {
              if (threads)
                ExactSearch(score, candidates).search(queries, {.k = k}, result, workspace, pool);
              else
                ExactSearch(score, candidates).search(queries, k, result, workspace);
              REQUIRE(result.ids.rows() == batch);
              REQUIRE(result.ids.cols() == k);
              REQUIRE(result.scores.rows() == batch);
              REQUIRE(result.count.size() == batch);
              for (Index i = 0; i < batch; ++i) {
                CHECK(result.count[i] == std::min(n, k));
                for (Index p = 0; p < k; ++p) {
                  CHECK(result.ids(i, p) == (p < n ? p : -1));  // all are equal: by id
                  CHECK(result.scores(i, p) == (p < n ? expected : -std::numeric_limits<double>::infinity()));
                }
              }
            }
          };
          check(InnerProduct<double>{}, double(d));
          check(Distance{Euclidean<double>{}}, 0.0);
        }
}

TEST_CASE("exact_search: what does not fit is refused before anything is done", "[search][exact_search]") {
  const Matrix<float> candidates(5, 3), queries(2, 3), narrow(2, 2);
  Workspace workspace;
  SearchResult<float> result;
  const ExactSearch exact(InnerProduct<float>{}, candidates);
  CHECK_THROWS_AS(exact.search(narrow, 1, result, workspace), ShapeError);
  CHECK_THROWS_AS(exact.search(queries, -1, result, workspace), ConfigError);
  for (const Index huge : {PTRDIFF_MAX, PTRDIFF_MAX / 2 + 1, PTRDIFF_MAX / 8})
    CHECK_THROWS_AS(exact.search(queries, huge, result, workspace), ShapeError);
  CHECK(result.ids.size() == 0);
}

TEMPLATE_LIST_TEST_CASE("exact_search: views with a stride and without alignment give the same bits",
                        "[search][exact_search]", Scores) {
  using T = ScalarOf<TestType>;
  const std::uint64_t seed = 6;
  CAPTURE(seed);
  Rng rng(seed);
  const Index n = 1100, d = 5;
  const auto candidates = Problem<TestType>::points(n, d, rng), queries = Problem<TestType>::points(70, d, rng);
  Workspace workspace;
  SearchResult<T> expected, result;
  ExactSearch(Problem<TestType>::score(), candidates).search(queries, 6, expected, workspace);
  for (const Index offset : {1, 2, 3, 7}) {
    // Exactly as much memory as is needed, so that a sanitizer sees each element too far.
    const Index stride = d + offset;
    std::vector<T> memory(std::size_t(offset + (n - 1) * stride + d), std::numeric_limits<T>::quiet_NaN());
    const MatrixView<T> moved(memory.data() + offset, n, d, stride);
    copy<T>(candidates, moved);
    ExactSearch(Problem<TestType>::score(), moved).search(queries, 6, result, workspace);
    CHECK(same(result, expected));
    std::vector<T> asked(std::size_t(offset + 69 * stride + d), std::numeric_limits<T>::quiet_NaN());
    const MatrixView<T> moved_queries(asked.data() + offset, 70, d, stride);
    copy<T>(queries, moved_queries);
    ExactSearch(Problem<TestType>::score(), moved).search(moved_queries, 6, result, workspace);
    CHECK(same(result, expected));
  }
}

TEMPLATE_LIST_TEST_CASE("exact_search: the second call allocates nothing", "[search][exact_search]", Scores) {
  using T = ScalarOf<TestType>;
  Rng rng(7);
  const auto candidates = Problem<TestType>::points(3000, 8, rng), queries = Problem<TestType>::points(70, 8, rng);
  const ExactSearch exact(Problem<TestType>::score(), candidates);
  Workspace workspace;
  SearchResult<T> result;
  support::Alternating pool;  // on threads, which worker does what would differ from call to call
  const auto few = queries.view().rows(0, 3);
  const auto call = [&] {
    exact.search(queries, {.k = 10}, result, workspace, pool);
    exact.search(queries, 10, result, workspace);
  };
  const auto call_few = [&] { exact.search(few, {.k = 10}, result, workspace, pool); };
  call();
  CHECK(support::allocations_in(call) == 0);
  call_few();
  CHECK(support::allocations_in(call_few) == 0);
}

TEST_CASE("exact_search: whichever allocation fails, a retry finds the same", "[search][exact_search]") {
  Rng rng(8);
  const auto candidates = normals<float>(3000, 8, rng), queries = normals<float>(70, 8, rng);
  const ExactSearch exact(InnerProduct<float>{}, candidates);
  SearchResult<float> expected;
  {
    Workspace workspace;
    exact.search(queries, 10, expected, workspace);
  }
  const auto points = support::fail_each_allocation(
      [&] {
        Workspace workspace;
        SearchResult<float> result;
        exact.search(queries, 10, result, workspace);
      },
      [&] {
        Workspace workspace;
        SearchResult<float> result;
        exact.search(queries, 10, result, workspace);
        CHECK(same(result, expected));
      });
  INFO("allocations that failed: " << points);
  if (support::allocations_counted()) CHECK(points > 0);
}

TEST_CASE("exact_search: a result can be reused for another size", "[search][exact_search]") {
  Rng rng(9);
  const auto candidates = normals<float>(50, 4, rng), queries = normals<float>(6, 4, rng);
  const ExactSearch exact(Distance{Euclidean<float>{}}, candidates);
  Workspace workspace;
  SearchResult<float> reused;
  for (const auto& [batch, k] : {std::pair<Index, Index>{6, 5}, {2, 15}, {6, 5}, {5, 6}, {0, 3}, {3, 0}, {6, 60}}) {
    SearchResult<float> fresh;
    exact.search(queries.view().rows(0, batch), k, fresh, workspace);
    exact.search(queries.view().rows(0, batch), k, reused, workspace);
    CHECK(same(fresh, reused));
  }
}

// A score from outside: the number of coordinates in which two rows agree.
struct Agreement {
  using Scalar = float;
  void scores(MatrixView<const float> queries, MatrixView<const float> candidates, MatrixView<float> out,
              Workspace&) const {
    for (Index i = 0; i < queries.rows(); ++i)
      for (Index j = 0; j < candidates.rows(); ++j) {
        out(i, j) = 0;
        for (Index p = 0; p < queries.cols(); ++p) out(i, j) += queries(i, p) == candidates(j, p) ? 1.0f : 0.0f;
      }
  }
};
static_assert(search::CandidateScore<Agreement>);
static_assert(!search::CandidateScore<Euclidean<float>>);
static_assert(!search::ColumnMetric<Agreement>);

TEST_CASE("exact_search: takes a score of the user's", "[search][exact_search]") {
  Rng rng(10);
  const auto candidates = integers<float>(40, 6, rng);
  Workspace workspace;
  SearchResult<float> result;
  ExactSearch(Agreement{}, candidates).search(candidates, 3, result, workspace);
  for (Index i = 0; i < 40; ++i) {
    CHECK(result.ids(i, 0) <= i);
    CHECK(result.scores(i, 0) == 6);
  }
}

}  // namespace
}  // namespace ruvector_test_exact_search
