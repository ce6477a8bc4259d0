// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/io/mapped_file.hpp>
#include <ruvector/search/diameter_bound.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/simd/convert.hpp>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
#include <stop_token>
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
         support::same_bits(a.count.span(), b.count.span()) &&
         support::same_bits(a.distance_count.span(), b.distance_count.span()) &&
         support::same_bits(a.weights.span(), b.weights.span()) &&
         support::same_bits(a.log_sum_exp.span(), b.log_sum_exp.span()) &&
         support::same_bits(a.mass.span(), b.mass.span()) && support::same_bits(a.embedding.span(), b.embedding.span());
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

// Candidates of small integers, so that scores are exact in every storage, a few of them NaN in key and value.
template <class S>
struct Stored {
  Matrix<float> key, value, exact;  // as they read back; the exact keys differ by 1 somewhere
  Matrix<S> stored_key, stored_value;
  Vector<float> key_scale, value_scale;

  Stored(Index n, Index d, Index v, Rng& rng)
      : key(integers<float>(n, d, rng)), value(integers<float>(n, v, rng)), stored_key(n, d), stored_value(n, v) {
    constexpr bool scaled = std::same_as<S, std::int8_t>;
    if constexpr (scaled) key_scale = value_scale = Vector<float>(n, 0.5f);
    const auto store = [&](Matrix<float>& from, Matrix<S>& to, Vector<float>& scale) {
      for (Index j = 0; j < n; ++j)
        for (Index c = 0; c < from.cols(); ++c)
          if constexpr (scaled)
            to(j, c) = static_cast<S>(from(j, c)), from(j, c) *= scale[j];
          else
            to(j, c) = S(from(j, c));
    };
    store(key, stored_key, key_scale);
    store(value, stored_value, value_scale);
    exact = key;
    for (Index j = 0; d > 0 && j < n; ++j) exact(j, rng.below(d)) += 1;
    for (Index j = 0; j < n; ++j) {
      if (rng.below(20) != 0 || d == 0) continue;
      if (rng.below(2) == 0) exact(j, 0) = NAN;
      key(j, 0) = NAN;
      if constexpr (scaled) {
        key_scale[j] = value_scale[j] = NAN;
      } else {
        stored_key(j, d - 1) = S(NAN);
        if (v > 0) stored_value(j, 0) = S(NAN);
      }
    }
  }
  [[nodiscard]] search::Candidates<float, S> view() const {
    return {.key = stored_key,
            .value = stored_value,
            .key_scale = key_scale.span(),
            .value_scale = value_scale.span(),
            .exact = exact,
            .value_diameter = 100};
  }
};

// Everything that a search finds for one query, from the definition, in double.
template <class S>
void check_query(const Stored<S>& data, std::span<const float> query, const search::ExactSearchConfig<float>& config,
                 const search::Filter& filter, const SearchResult<float>& result, Index i) {
  const auto product = [&](const Matrix<float>& keys, Index j) {
    double sum = 0;
    for (Index c = 0; c < keys.cols(); ++c) sum += double(query[std::size_t(c)]) * double(keys(j, c));
    return sum;
  };
  std::vector<std::pair<double, Index>> seen;  // score, id
  Index admitted = 0;
  for (Index j = 0; j < data.key.rows(); ++j) {
    if (!filter.admits(j)) continue;
    ++admitted;
    if (const double score = product(data.key, j); !std::isnan(score)) seen.emplace_back(score, j);
  }
  const auto better = [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  };
  std::sort(seen.begin(), seen.end(), better);
  const auto kept = std::min(seen.size(), std::size_t(std::max(config.k, config.rescore)));
  if (config.rescore > 0) {
    for (std::size_t p = 0; p < kept; ++p) seen[p].first = product(data.exact, seen[p].second);
    const auto gone = std::remove_if(seen.begin(), seen.begin() + std::ptrdiff_t(kept),
                                     [](const auto& s) { return std::isnan(s.first); });
    std::sort(seen.begin(), gone, better);
    seen.erase(gone, seen.begin() + std::ptrdiff_t(kept));
  }
  const auto found = std::min(std::size_t(config.k), config.rescore > 0 ? std::min(kept, seen.size()) : seen.size());
  double top = -std::numeric_limits<double>::infinity(), sum = 0, mass = 0;
  for (const auto& [score, id] : seen) top = std::max(top, score / double(config.temperature));
  for (const auto& [score, id] : seen) sum += std::exp(score / double(config.temperature) - top);
  const auto weight = [&](double score) { return std::exp(score / double(config.temperature) - top) / sum; };

  REQUIRE(result.distance_count[i] == admitted);
  REQUIRE(result.count[i] <= config.k);
  if (config.rescore == 0) REQUIRE(result.count[i] == Index(found));
  for (std::size_t p = 0; p < std::size_t(result.count[i]); ++p) {
    REQUIRE(result.ids(i, Index(p)) == seen[p].second);
    REQUIRE(double(result.scores(i, Index(p))) == seen[p].first);
    mass += weight(seen[p].first);
  }
  for (Index p = result.count[i]; p < config.k; ++p) {
    REQUIRE(result.ids(i, p) == -1);
    REQUIRE(result.scores(i, p) == -INFINITY);
    if (config.softmax) REQUIRE(result.weights(i, p) == 0);
  }
  if (!config.softmax) return;
  const double log_sum_exp = top + std::log(sum);  // −∞ where nothing was seen
  constexpr double rounding = 2e-5;                // 4096 terms in chains of 256, and what a re-scored sum gives up
  CHECK(support::near(double(result.log_sum_exp[i]), log_sum_exp, {.relative = 1e-5, .absolute = rounding}));
  CHECK(support::near(double(result.mass[i]), mass, {.relative = rounding, .absolute = rounding}));
  for (Index p = 0; p < result.count[i]; ++p)
    CHECK(support::near(double(result.weights(i, p)),
                        weight(seen[std::size_t(p)].first) / (config.renormalize ? mass : 1),
                        {.relative = 1e-4, .absolute = rounding}));
  for (Index c = 0; c < data.value.cols(); ++c) {
    double mean = 0;
    for (const auto& [score, id] : seen) mean += weight(score) * double(data.value(id, c));
    CHECK(support::near(double(result.embedding(i, c)), mean, {.relative = 1e-4, .absolute = 3 * rounding}));
  }
  if (data.value.cols() > 0)
    CHECK(support::near(double(result.error_bound[i]), seen.empty() ? 0 : (1 - mass) * 100, {.absolute = 1e-2}));
}

TEMPLATE_TEST_CASE("exact_search: all options together find what the definition says, in any batch and on any threads",
                   "[search][exact_search]", float, simd::bfloat16, simd::float16, std::int8_t) {
  const std::uint64_t seed = 20;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  ThreadPool pool(3);
  for (int problem = 0; problem < support::trials(120, 30); ++problem) {
    const Index n = problem % 10 == 0 ? 4090 + rng.below(5000) : rng.below(300), d = rng.below(150),
                v = rng.below(2) * rng.below(20), batch = 1 + rng.below(problem % 3 == 0 ? 70 : 6);
    Stored<TestType> data(n, d, v, rng);
    const auto queries = integers<float>(batch, d, rng);
    std::vector<search::Filter> filters(rng.below(2) == 0 ? 0 : rng.below(2) == 0 ? 1 : std::size_t(batch));
    Matrix<std::uint64_t> bits(Index(filters.size()), (n + 63) / 64);
    for (std::size_t f = 0; f < filters.size(); ++f) {
      const Index rule = rng.below(8);  // a set of rules
      if (rule & 1) filters[f].first = rng.below(n + 1), filters[f].last = rng.below(n + 10);
      if (rule & 2 && n > 0) {
        for (auto& word : bits.row(Index(f))) word = rng.bits() | (rng.below(3) == 0 ? rng.bits() : 0);
        filters[f].bitmap = bits.row(Index(f));
      }
      if (rule & 4) filters[f].predicate = [f](Index id) { return (id + Index(f)) % 3 != 0; };
    }
    const search::ExactSearchConfig<float> config{.k = rng.below(20),
                                                  .softmax = rng.below(4) != 0,
                                                  .temperature = float(std::exp(rng.uniform(0.0, 5.0))),
                                                  .renormalize = rng.below(2) == 0,
                                                  .rescore = std::max(Index(0), rng.below(80) - 40),
                                                  .filters = filters};
    CAPTURE(problem, n, d, v, batch, config.k, config.softmax, config.temperature, config.rescore, filters.size());
    const ExactSearch exact(InnerProduct<float>{}, data.view());
    SearchResult<float> result, again;
    exact.search(queries, config, result, workspace);
    CHECK_FALSE(result.stopped);
    for (Index i = 0; i < std::min(batch, Index(6)); ++i)
      check_query(data, queries.row(i), config,
                  filters.empty() ? search::Filter() : filters[filters.size() == 1 ? 0 : std::size_t(i)], result, i);
    exact.search(queries, config, again, workspace, pool);
    CHECK(same(result, again));
    for (const Index first : {Index(0), batch / 2}) {
      const Index count = first == 0 ? 1 : batch - first;
      search::ExactSearchConfig<float> part = config;
      if (filters.size() > 1) part.filters = part.filters.subspan(std::size_t(first), std::size_t(count));
      exact.search(queries.view().rows(first, count), part, again, workspace);
      bool equal = true;
      for (Index i = 0; i < count; ++i)
        equal = equal && support::same_bits(again.ids.row(i), result.ids.row(first + i)) &&
                support::same_bits(again.scores.row(i), result.scores.row(first + i)) &&
                (!config.softmax ||
                 (support::same_bits(again.weights.row(i), result.weights.row(first + i)) &&
                  again.log_sum_exp[i] == result.log_sum_exp[first + i] &&
                  (v == 0 || support::same_bits(again.embedding.row(i), result.embedding.row(first + i)))));
      CHECK(equal);
    }
  }
}

TEST_CASE("exact_search: shards, in any order, give the bits of one search", "[search][exact_search]") {
  const std::uint64_t seed = 21;
  CAPTURE(seed);
  Rng rng(seed);
  const Index n = 6 * key_leaf + 77, d = 5, v = 3;
  const auto keys = normals<float>(n, d, rng), values = normals<float>(n, v, rng);
  const auto queries = normals<float>(66, d, rng);
  Workspace workspace;
  const search::Filter filter{.predicate = [](Index id) { return id % 7 != 3; }};
  const search::ExactSearchConfig<float> config{.k = 9, .softmax = true, .temperature = 0.7f, .filters = {&filter, 1}};
  SearchResult<float> whole, merged;
  ExactSearch(InnerProduct<float>{}, search::Candidates<float>{.key = keys, .value = values})
      .search(queries, config, whole, workspace);
  for (int trial = 0; trial < 9; ++trial) {
    std::vector<Index> cuts{0, n};
    for (Index shard = 0; shard < trial; ++shard) cuts.push_back(rng.below(7) * key_leaf);
    std::sort(cuts.begin(), cuts.end());
    std::vector<search::SearchState<float>> states;
    for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
      const Index first = cuts[s], count = cuts[s + 1] - first;
      const ExactSearch shard(
          InnerProduct<float>{},
          search::Candidates<float>{.key = keys.view().rows(first, count), .value = values.view().rows(first, count)});
      states.push_back(shard.make_state(66, config));
      shard.accumulate(queries, config, first, states.back(), workspace);
    }
    while (states.size() > 1) {
      const auto from = std::size_t(rng.below(Index(states.size()) - 1));
      states.back().merge(states[from]);
      states.erase(states.begin() + std::ptrdiff_t(from));
    }
    states.back().finish(merged);
    CHECK(same(whole, merged));
  }
  auto state = search::SearchState<float>(66, 9, 0.7f, v);
  const ExactSearch all(InnerProduct<float>{}, search::Candidates<float>{.key = keys, .value = values});
  CHECK_THROWS_AS(all.accumulate(queries, config, 64, state, workspace), ConfigError);
  CHECK_THROWS_AS(state.merge(search::SearchState<float>(66, 9, 0.8f, v)), ConfigError);
  CHECK_THROWS_AS(state.merge(search::SearchState<float>(66, 8, 0.7f, v)), ShapeError);
}

TEST_CASE("exact_search: a stop, a deadline and an exception end it, and what was seen is exact",
          "[search][exact_search]") {
  Rng rng(22);
  const Index n = 5 * key_leaf;
  const auto keys = normals<float>(n, 3, rng), queries = normals<float>(2, 3, rng);
  Workspace workspace;
  SearchResult<float> result, expected;
  const ExactSearch exact(InnerProduct<float>{}, keys);
  search::ExactSearchConfig<float> config{.k = 5, .softmax = true};
  for (const Index leaves : {1, 3, 5}) {
    std::stop_source stop;
    Index reports = 0;
    const auto progress = [&](const ProgressReport& report) {
      CHECK(report.total == 2 * n);
      CHECK(report.done == 2 * key_leaf * ++reports);
      if (reports == leaves) stop.request_stop();
    };
    exact.search(queries, config, result, workspace, Serial{}, progress, stop.get_token());
    CHECK(result.stopped == (leaves < 5));
    CHECK(result.distance_count[0] == leaves * key_leaf);
    ExactSearch(InnerProduct<float>{}, keys.view().rows(0, leaves * key_leaf))
        .search(queries, config, expected, workspace);
    CHECK(same(result, expected));
  }
  config.deadline = std::chrono::steady_clock::now();
  ThreadPool pool(2);
  exact.search(queries, config, result, workspace, pool);
  CHECK(result.stopped);
  CHECK(result.count[1] == 0);
  CHECK(result.ids(1, 0) == -1);
  CHECK(result.log_sum_exp[1] == -INFINITY);
  config.deadline = std::chrono::steady_clock::now() + std::chrono::hours(1);
  exact.search(queries, config, result, workspace, pool);
  CHECK_FALSE(result.stopped);
  CHECK(result.distance_count[1] == n);
  const Progress failing = [](const ProgressReport&) { throw std::runtime_error("enough"); };
  CHECK_THROWS_AS(exact.search(queries, config, result, workspace, Serial{}, failing), std::runtime_error);
}

TEST_CASE("exact_search: the mean over some candidates is as near as their mass says", "[search][exact_search]") {
  const std::uint64_t seed = 23;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  SearchResult<double> all, some;
  const Index subsets = 1000, v = 3;
  for (int problem = 0; problem < support::trials(100, 10); ++problem) {
    const Index n = 1 + rng.below(40);
    const auto keys = normals<double>(n, 4, rng), values = normals<double>(n, v, rng);
    const auto one = normals<double>(1, 4, rng);
    const double diameter = search::diameter_bound<double>(values);
    double farthest = 0;
    for (Index a = 0; a < n; ++a)
      for (Index b = 0; b < a; ++b)
        farthest = std::max(farthest, std::sqrt(simd::squared_distance<double>(values.row(a), values.row(b))));
    CHECK(diameter >= farthest);
    CHECK(diameter <= 1.0001 * std::sqrt(3.0) * farthest + 1e-12);
    const ExactSearch exact(InnerProduct<double>{},
                            search::Candidates<double>{.key = keys, .value = values, .value_diameter = farthest});
    exact.search(one, {.k = 5, .softmax = true, .renormalize = true}, all, workspace);
    Vector<double> best(v);
    for (Index p = 0; p < all.count[0]; ++p)
      for (Index c = 0; c < v; ++c) best[c] += all.weights(0, p) * values(all.ids(0, p), c);
    const auto distance = [&](std::span<const double> mean) {
      return std::sqrt(simd::squared_distance<double>(all.embedding.row(0), mean));
    };
    CHECK(distance(best.span()) <= all.error_bound[0] + 1e-12 * farthest);
    CHECK(all.error_bound[0] <= (1 - all.mass[0]) * farthest);

    std::vector<std::uint64_t> bits(std::size_t(subsets), 0);
    std::vector<search::Filter> filters(bits.size());
    Matrix<double> queries(subsets, 4);
    for (std::size_t s = 0; s < bits.size(); ++s) {
      bits[s] = rng.bits() & (rng.below(2) == 0 ? rng.bits() : ~std::uint64_t(0));
      filters[s].bitmap = {&bits[s], 1};
      std::ranges::copy(one.row(0), queries.row(Index(s)).begin());
    }
    exact.search(queries, {.k = 0, .softmax = true, .filters = filters}, some, workspace);
    bool held = true;
    for (Index s = 0; s < subsets; ++s) {
      const double mass = std::exp(some.log_sum_exp[s] - all.log_sum_exp[0]);
      if (mass > 0) held = held && distance(some.embedding.row(s)) <= (1 - mass) * farthest + 1e-12 * (1 + farthest);
    }
    CHECK(held);
  }
}

TEST_CASE("exact_search: keys in a mapped file are not copied, and the heap does not grow with them",
          "[search][exact_search]") {
  Rng rng(24);
  const auto keys = normals<float>(5000, 4, rng), query = normals<float>(1, 4, rng);
  const auto path = (std::filesystem::temp_directory_path() / "ruvector_test_exact_search.bin").string();
  const auto peak = [&](Index n, SearchResult<float>& result) {
    {
      std::ofstream file(path, std::ios::binary);
      file.write(reinterpret_cast<const char*>(keys.data()), std::streamsize(keys.size() * Index(sizeof(float))));
    }
    std::filesystem::resize_file(path, std::uintmax_t(n * 4) * sizeof(float));  // zeros, which take no room
    const io::MappedFile file(path);
    const MatrixView<const float> view(reinterpret_cast<const float*>(file.bytes().data()), n, 4);
    Workspace workspace;
    return support::peak_bytes_in([&] {
      ExactSearch(InnerProduct<float>{}, search::Candidates<float>{.key = view, .value = view})
          .search(query, {.k = 10, .softmax = true}, result, workspace);
    });
  };
  SearchResult<float> mapped, held;
  Workspace workspace;
  (void)peak(5000, mapped);
  ExactSearch(InnerProduct<float>{}, search::Candidates<float>{.key = keys, .value = keys})
      .search(query, {.k = 10, .softmax = true}, held, workspace);
  CHECK(same(mapped, held));
  const auto small = peak(100'000, mapped), large = peak(support::trials<Index>(10'000'000, 1'000'000), mapped);
  CHECK(large - small <= 1 << 20);
  CHECK(support::same_bits(mapped.ids.span(), held.ids.span()));
  std::filesystem::remove(path);
}

TEST_CASE("exact_search: arguments that do not fit are refused by name", "[search][exact_search]") {
  const Matrix<float> keys(5, 3), queries(2, 3), values(4, 2);
  const Matrix<std::int8_t> bytes(5, 3);
  Workspace workspace;
  SearchResult<float> result;
  using search::Candidates;
  CHECK_THROWS_AS(ExactSearch(InnerProduct<float>{}, Candidates<float>{.key = keys, .value = values}), ShapeError);
  CHECK_THROWS_AS(ExactSearch(InnerProduct<float>{}, Candidates<float>{.key = keys, .exact = values}), ShapeError);
  CHECK_THROWS_AS(ExactSearch(InnerProduct<float>{}, Candidates<float, std::int8_t>{.key = bytes}), ShapeError);
  const ExactSearch exact(InnerProduct<float>{}, keys);
  const std::vector<search::Filter> three(3);
  const std::uint64_t words[2] = {};
  const search::Filter wide{.bitmap = words};
  for (const float temperature : {0.0f, -1.0f, INFINITY, NAN, 1e-40f})
    CHECK_THROWS_AS(exact.search(queries, {.temperature = temperature}, result, workspace), ConfigError);
  CHECK_THROWS_AS(exact.search(queries, {.rescore = 5}, result, workspace), ConfigError);
  CHECK_THROWS_AS(exact.search(queries, {.filters = three}, result, workspace), ShapeError);
  CHECK_THROWS_AS(exact.search(queries, {.filters = {&wide, 1}}, result, workspace), ShapeError);
  CHECK(result.ids.size() == 0);
}

TEST_CASE("exact_search: whichever allocation fails, a retry finds the same", "[search][exact_search]") {
  Rng rng(8);
  const Stored<std::int8_t> data(3000, 8, 4, rng);
  const auto queries = integers<float>(70, 8, rng);
  const ExactSearch exact(InnerProduct<float>{}, data.view());
  const search::Filter filter{.first = 10, .last = 2900};
  const search::ExactSearchConfig<float> config{.k = 10, .softmax = true, .rescore = 30, .filters = {&filter, 1}};
  SearchResult<float> expected;
  Workspace warm;
  support::Alternating pool;
  exact.search(queries, config, expected, warm);
  // The result held another search, all of whose sizes differ.
  struct Run {
    SearchResult<float> result;
    Workspace workspace = {};
  };
  const auto make = [&] {
    Run run;
    run.result.resize(3, 2, true, 1);
    return run;
  };
  support::check_allocation_failures(
      "ExactSearch::search", make, [&](Run& run) { exact.search(queries, config, run.result, run.workspace); },
      [&](const Run& run) { return same(run.result, expected); });
  support::check_allocation_failures(
      "ExactSearch::search, 2 workers", make,
      [&](Run& run) { exact.search(queries, config, run.result, run.workspace, pool); },
      [&](const Run& run) { return same(run.result, expected); });

  // A shard that failed begins again with a new state; finishing can be repeated.
  search::ExactSearchConfig<float> plain = config;
  plain.rescore = 0;
  const ExactSearch unvalued(InnerProduct<float>{}, data.exact);
  unvalued.search(queries, plain, expected, warm);
  support::check_allocation_failures(
      "ExactSearch::make_state, accumulate", make,
      [&](Run& run) {
        auto state = unvalued.make_state(70, plain);
        unvalued.accumulate(queries, plain, 0, state, run.workspace);
        state.finish(run.result);
      },
      [&](const Run& run) { return same(run.result, expected); });
  struct Open {
    search::SearchState<float> state;
    SearchResult<float> result = {};
  };
  support::check_allocation_failures(
      "SearchState::finish",
      [&] {
        Open open{unvalued.make_state(70, plain)};
        unvalued.accumulate(queries, plain, 0, open.state, warm);
        return open;
      },
      [](Open& open) { open.state.finish(open.result); },
      [&](const Open& open) { return same(open.result, expected); });
  SearchResult<float> result;
  const auto call = [&] {
    exact.search(queries, config, result, warm, pool);
    exact.search(queries, config, result, warm);
  };
  call();
  CHECK(support::allocations_in(call) == 0);
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
