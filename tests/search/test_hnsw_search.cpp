// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/filter.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/simd/dot.hpp>

#include "graph/made_up_hnsw.hpp"
#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

// Against hnswlib itself, where it is installed. In this file alone: its header defines functions that are not inline.
// Without its vector code, which looks beyond the ends of lists for what to prefetch.
#if __has_include(<hnswlib/hnswlib.h>)
#define RUVECTOR_TEST_HNSWLIB
#include <ruvector/graph/hnsw_diagnosis.hpp>
#include <ruvector/io/hnswlib_file.hpp>
#include "io/files.hpp"

#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
// Its lists have a lock each, taken in the order of their links: a cycle to the sanitizer. Our own locks, those of
// core/executor.hpp, are looked at in the tests of that folder.
extern "C" const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() {
  return "detect_deadlocks=0";
}
#endif
#endif
#endif

namespace test_hnsw_search {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using graph::HnswNode;
using made_up_hnsw::normals;
using search::HnswSearch;
using search::HnswSearchConfig;
using search::SearchResult;
using search::SquaredDistance;

constexpr float infinity = std::numeric_limits<float>::infinity();

static_assert(search::NeighborScore<SquaredDistance<float>>);
static_assert(!search::NeighborScore<search::Cosine<float>>);

template <class T>
[[nodiscard]] bool same(const SearchResult<T>& a, const SearchResult<T>& b) {
  return support::same_bits(a.ids.span(), b.ids.span()) && support::same_bits(a.scores.span(), b.scores.span()) &&
         support::same_bits(a.count.span(), b.count.span());
}

TEMPLATE_TEST_CASE("hnsw_search: with ef = n it finds what sorting all scores finds, under any score", "[search][hnsw]",
                   float, double) {
  using T = TestType;
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace workspace;
  SearchResult<T> found;
  const auto check = [&](const auto& score, Index n, Index d) {
    auto index = made_up_hnsw::rings(normals<T>(n, d, rng, T(0.1)), rng);
    const HnswLayers<T> layers(index);
    const auto queries = normals<T>(9, d, rng, T(0.1));
    Matrix<T> all(9, n);
    score.scores(queries, index.points, all, workspace);
    for (const Index k : {Index(1), Index(10), n + 2}) {
      CAPTURE(n, d, k);
      HnswSearch(score, layers).search(queries, {.k = k, .ef = n}, found, workspace);
      for (Index i = 0; i < 9; ++i) {
        std::vector<std::pair<T, Index>> order;
        for (Index j = 0; j < n; ++j) order.emplace_back(-all(i, j), 1000 + 3 * j);
        std::ranges::sort(order);
        REQUIRE(found.count[i] == std::min(n, k));
        CHECK(found.distance_count[i] >= n);
        bool equal = true;
        for (Index p = 0; p < k; ++p)
          equal = equal && found.ids(i, p) == (p < n ? order[std::size_t(p)].second : -1) &&
                  found.scores(i, p) == (p < n ? -order[std::size_t(p)].first : -std::numeric_limits<T>::infinity());
        CHECK(equal);
      }
    }
  };
  const Index sizes[][2] = {{1, 3}, {2, 1}, {70, 5}, {300, 17}, {300, 40}};
  for (const auto& [n, d] : sizes) {
    check(SquaredDistance<T>{}, n, d);
    check(search::InnerProduct<T>{}, n, d);
    check(search::Cosine<T>{}, n, d);
    check(search::Distance{geometry::PoincareBall<T>{}}, n, d);
  }
}

// Counts what it is asked for.
struct Counting {
  using Scalar = float;
  Index* asked;
  void scores(MatrixView<const float> queries, MatrixView<const float> candidates, MatrixView<float> out,
              Workspace& workspace) const {
    *asked += candidates.rows();
    SquaredDistance<float>{}.scores(queries, candidates, out, workspace);
  }
};

TEST_CASE("hnsw_search: evaluations are counted, and few are needed", "[search][hnsw]") {
  const std::uint64_t seed = 2;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(made_up_hnsw::rings(normals<float>(2000, 8, rng), rng));
  const auto queries = normals<float>(20, 8, rng);
  Workspace workspace;
  SearchResult<float> result, expected;
  Index asked = 0;
  HnswSearch(Counting{&asked}, layers).search(queries, {.k = 5, .ef = 20}, result, workspace);
  Index counted = 0;
  for (const Index count : result.distance_count) counted += count;
  CHECK(counted == asked);
  CHECK(counted < 20 * 1000);
  HnswSearch(SquaredDistance<float>{}, layers).search(queries, {.k = 5, .ef = 20}, expected, workspace);
  CHECK(same(result, expected));
  CHECK(result.distance_count[3] == expected.distance_count[3]);
}

TEST_CASE("hnsw_search: filters and deleted points are passed through, not returned", "[search][hnsw]") {
  const std::uint64_t seed = 3;
  CAPTURE(seed);
  Rng rng(seed);
  auto index = made_up_hnsw::rings(normals<float>(400, 6, rng), rng);
  for (std::size_t i = 0; i < 400; ++i) index.labels[i] = 399 - i;
  for (std::size_t i = 0; i < 400; i += 4) index.marks[i] = true;
  const HnswLayers<float> layers(index);
  const auto queries = normals<float>(12, 6, rng);
  const HnswSearch nearest(SquaredDistance<float>{}, layers);
  Workspace workspace;
  SearchResult<float> result;
  std::vector<std::uint64_t> bitmap(7, 0x5555555555555555u);
  std::vector<search::Filter> filters(12);
  for (Index i = 0; i < 12; ++i) filters[std::size_t(i)].first = 30 * i;
  filters[5].bitmap = bitmap;
  filters[7].predicate = [](Index id) { return id % 10 == 7; };
  filters[8].last = 3;  // nothing: it starts at 240
  nearest.search(queries, {.k = 300, .ef = 400, .filters = filters}, result, workspace);
  for (Index i = 0; i < 12; ++i) {
    std::vector<std::pair<float, Index>> expected;
    for (Index id = 0; id < 400; ++id)
      if (filters[std::size_t(i)].admits(id) && (399 - id) % 4 != 0)
        expected.emplace_back(simd::squared_distance<float>(queries.row(i), index.points.row(399 - id)), id);
    std::ranges::sort(expected);
    if (expected.size() > 300) expected.resize(300);
    CAPTURE(i);
    REQUIRE(result.count[i] == Index(expected.size()));
    for (std::size_t p = 0; p < 300; ++p) {
      CHECK(result.ids.row(i)[p] == (p < expected.size() ? expected[p].second : -1));
      CHECK(result.scores.row(i)[p] == (p < expected.size() ? -expected[p].first : -infinity));
    }
  }
  CHECK(result.count[8] == 0);
  filters[5].bitmap = std::span(bitmap).first(6);
  CHECK_THROWS_AS(nearest.search(queries, {.filters = std::span(&filters[5], 1)}, result, workspace), ShapeError);
  CHECK_THROWS_AS(nearest.search(queries, {.filters = std::span(filters).first(2)}, result, workspace), ShapeError);
}

TEST_CASE("hnsw_search: NaN is never found and finds nothing, but does not block the way", "[search][hnsw]") {
  const std::uint64_t seed = 4;
  CAPTURE(seed);
  Rng rng(seed);
  auto index = made_up_hnsw::rings(normals<float>(200, 4, rng), rng);
  Index absent = 0;
  for (Index i = 0; i < 200; i += 3, ++absent) index.points(i, i % 4) = NAN;
  for (Index j = 0; j < 4; ++j) index.points(Index(index.start), j) = NAN;
  absent += index.start % 3 == 0 ? 0 : 1;
  index.points(10, 1) = infinity;  // the farthest, but there
  const HnswLayers<float> layers(index);
  auto queries = normals<float>(3, 4, rng);
  queries(1, 2) = NAN;
  Workspace workspace;
  SearchResult<float> result;
  HnswSearch(SquaredDistance<float>{}, layers).search(queries, {.k = 200, .ef = 200}, result, workspace);
  for (const Index i : {0, 2}) {
    REQUIRE(result.count[i] == 200 - absent);
    CHECK(result.ids(i, 199 - absent) == 1030);
    CHECK(result.scores(i, 199 - absent) == -infinity);
    for (Index p = 0; p < 200 - absent; ++p) CHECK_FALSE(std::isnan(result.scores(i, p)));
  }
  CHECK(result.count[1] == 0);
  CHECK(result.ids(1, 0) == -1);
}

TEST_CASE("hnsw_search: empty inputs and any k have a defined result; the rest is refused", "[search][hnsw]") {
  Rng rng(5);
  Workspace workspace;
  SearchResult<double> result;
  for (const Index n : {0, 1, 3})
    for (const Index batch : {0, 1, 4})
      for (const Index d : {0, 2})
        for (const Index k : {0, 1, 5}) {
          CAPTURE(n, batch, d, k);
          const HnswLayers<double> layers(made_up_hnsw::rings(Matrix<double>(n, d, 1.0), rng));
          const Matrix<double> queries(batch, d, 1.0);
          HnswSearch(SquaredDistance<double>{}, layers).search(queries, {.k = k, .ef = 3}, result, workspace);
          REQUIRE(result.ids.rows() == batch);
          REQUIRE(result.ids.cols() == k);
          for (Index i = 0; i < batch; ++i) {
            CHECK(result.count[i] == std::min(n, k));
            for (Index p = 0; p < k; ++p) {
              CHECK(result.ids(i, p) == (p < n ? 1000 + 3 * p : -1));
              CHECK(result.scores(i, p) == (p < n ? 0.0 : -std::numeric_limits<double>::infinity()));
            }
          }
        }
  const HnswLayers<float> layers(made_up_hnsw::rings(normals<float>(5, 3, rng), rng));
  const HnswSearch nearest(SquaredDistance<float>{}, layers);
  SearchResult<float> untouched;
  const Matrix<float> queries(2, 3), narrow(2, 2);
  CHECK_THROWS_AS(nearest.search(narrow, {}, untouched, workspace), ShapeError);
  CHECK_THROWS_AS(nearest.search(queries, {.k = -1}, untouched, workspace), ConfigError);
  CHECK_THROWS_AS(nearest.search(queries, {.ef = 0}, untouched, workspace), ConfigError);
  CHECK_THROWS_AS(nearest.search(queries, {.k = PTRDIFF_MAX}, untouched, workspace), ShapeError);
  CHECK(untouched.ids.size() == 0);
}

TEST_CASE("hnsw_search: a query finds the same alone, in any batch, on any threads, in a view", "[search][hnsw]") {
  const std::uint64_t seed = 6;
  CAPTURE(seed);
  Rng rng(seed);
  const auto index = made_up_hnsw::rings(normals<float>(1500, 19, rng), rng);
  const HnswLayers<float> layers(index), view = HnswLayers<float>::view(index);
  const auto queries = normals<float>(60, 19, rng);
  Workspace workspace;
  SearchResult<float> all, part;
  const HnswSearchConfig config{.k = 7, .ef = 30};
  const HnswSearch nearest(SquaredDistance<float>{}, layers);
  nearest.search(queries, config, all, workspace);
  for (const Index threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    nearest.search(queries, config, part, workspace, pool);
    CHECK(same(part, all));
  }
  HnswSearch(SquaredDistance<float>{}, view).search(queries, config, part, workspace);
  CHECK(same(part, all));
  for (Index i = 0; i < 60; i += 7) {
    nearest.search(queries.view().rows(i, 1), config, part, workspace);
    CHECK(support::same_bits(part.ids.row(0), all.ids.row(i)));
    CHECK(support::same_bits(part.scores.row(0), all.scores.row(i)));
  }
}

TEST_CASE("hnsw_search: the second call allocates nothing; whichever allocation fails, a retry finds the same",
          "[search][hnsw]") {
  const std::uint64_t seed = 7;
  CAPTURE(seed);
  Rng rng(seed);
  const auto index = made_up_hnsw::rings(normals<float>(3000, 4, rng), rng);
  const HnswLayers<float> layers(index);
  const auto queries = normals<float>(9, 4, rng);
  const HnswSearchConfig config{.k = 5, .ef = 1500};  // more nodes are open than a walk starts with room for
  SearchResult<float> expected;
  Workspace workspace;
  const HnswSearch nearest(SquaredDistance<float>{}, layers);
  const HnswSearch hyperbolic(search::Distance{geometry::PoincareBall<float>{}}, layers);
  support::Alternating pool;
  const auto call = [&] {
    hyperbolic.search(queries, config, expected, workspace, pool);
    nearest.search(queries, config, expected, workspace, pool);
  };
  call();
  CHECK(support::allocations_in(call) == 0);

  struct Run {
    SearchResult<float> result = {};
    Workspace workspace = {};
  };
  support::check_allocation_failures(
      "HnswSearch::search", [] { return Run(); },
      [&](Run& run) { nearest.search(queries, config, run.result, run.workspace); },
      [&](const Run& run) { return same(run.result, expected); });
  support::check_allocation_failures(
      "HnswLayers", [] { return HnswLayers<float>(); },
      [&](HnswLayers<float>& built) { built = HnswLayers<float>(index); },
      [](const HnswLayers<float>& built) { return built.nodes() == 0; },
      [&](const HnswLayers<float>& built) { return made_up_hnsw::same(built, layers); });
}

#ifdef RUVECTOR_TEST_HNSWLIB

using Hnswlib = hnswlib::HierarchicalNSW<float>;
static_assert(graph::HnswIndexLike<Hnswlib>);

// Points of whole numbers below 512, so that all distances are exact and ties are ties; every twentieth is there twice.
Matrix<float> whole(Index n, Index d, Rng& rng) {
  Matrix<float> x(n, d);
  for (float& v : x.span()) v = float(rng.below(512));
  for (Index i = 19; i < n; i += 20) std::ranges::copy(x.row(i - 7), x.row(i).begin());
  return x;
}

struct Real {
  Matrix<float> points;
  hnswlib::L2Space l2;
  hnswlib::InnerProductSpace inner_product;
  Hnswlib index;

  Real(Index n, Index d, Rng& rng, bool by_distance = true)
      : points(whole(n, d, rng)),
        l2(std::size_t(d)),
        inner_product(std::size_t(d)),
        index(by_distance ? static_cast<hnswlib::SpaceInterface<float>*>(&l2) : &inner_product, std::size_t(n), 8, 60) {
    for (Index i = 0; i < n; ++i) index.addPoint(points.row(i).data(), std::size_t(5 * i + 2));
  }
};

// Each query finds what searchKnn finds: scores are equal, and ids differ only among equal scores.
template <class S>
void check_same_as_hnswlib(const Hnswlib& index, const S& score, const HnswLayers<float>& layers,
                           MatrixView<const float> queries, HnswSearchConfig config, float offset) {
  Workspace workspace;
  SearchResult<float> found;
  HnswSearch(score, layers).search(queries, config, found, workspace);
  Index ties = 0;
  for (Index i = 0; i < queries.rows(); ++i) {
    const auto theirs = index.searchKnnCloserFirst(queries.row(i).data(), std::size_t(config.k));
    REQUIRE(found.count[i] == Index(theirs.size()));
    for (Index p = 0; p < Index(theirs.size()); ++p) {
      const auto& [distance, label] = theirs[std::size_t(p)];
      CHECK(offset - found.scores(i, p) == distance);
      if (found.ids(i, p) == Index(label)) continue;
      ++ties;
      CHECK(found.scores(i, p) == found.scores(i, config.k - 1));  // of equal ones in the last places any may stay
    }
  }
  CHECK(ties <= queries.rows() / 10);
}

TEST_CASE("hnsw_search: layers of hnswlib's index are the index", "[search][hnsw]") {
  const std::uint64_t seed = 8;
  CAPTURE(seed);
  Rng rng(seed);
  Real real(2000, 20, rng);
  real.index.markDelete(5 * 77 + 2);
  const HnswLayers<float> layers(real.index), view = HnswLayers<float>::view(real.index);
  REQUIRE(layers.nodes() == 2000);
  CHECK(layers.levels() == real.index.maxlevel_ + 1);
  CHECK(layers.level(layers.levels() - 1).nodes[layers.entry()] == real.index.enterpoint_node_);
  CHECK(made_up_hnsw::same(layers, view));
  CHECK(view.vectors().data() == reinterpret_cast<const float*>(real.index.getDataByInternalId(0)));
  Index lists = 0;
  bool equal = true;
  for (Index l = 0; l < layers.levels(); ++l) {
    const graph::HnswLevel& level = layers.level(l);
    for (std::size_t i = 0; i < level.nodes.size(); ++i, ++lists) {
      auto* const list = real.index.get_linklist_at_level(level.nodes[i], int(l));
      const auto neighbors = level.graph.view().neighbors(Index(i));
      equal = equal && neighbors.size() == real.index.getListCount(list);
      for (std::size_t j = 0; equal && j < neighbors.size(); ++j) equal = level.nodes[neighbors[j]] == list[1 + j];
      if (l > 0) equal = equal && layers.level(l - 1).nodes[level.below[i]] == level.nodes[i];
    }
  }
  CHECK(equal);
  for (std::size_t i = 0; i < 2000; ++i) {
    lists -= real.index.element_levels_[i] + 1;
    equal = equal && layers.ids()[i] == Index(5 * i + 2) && layers.deleted()[i] == (i == 77 ? 1 : 0) &&
            std::ranges::equal(layers.vectors().row(Index(i)), real.points.row(Index(i)));
  }
  CHECK(equal);
  CHECK(lists == 0);  // all of them were looked at
  const auto diagnosis = graph::diagnose(layers);
  CHECK(diagnosis[0].unreachable.size() < 20);
  CHECK(diagnosis[0].duplicates.size() == 100);
}

TEST_CASE("hnsw_search: finds what hnswlib's searchKnn finds", "[search][hnsw]") {
  const std::uint64_t seed = 9;
  CAPTURE(seed);
  Rng rng(seed);
  const auto queries = whole(100, 20, rng);
  Real by_distance(2000, 20, rng), by_product(1000, 20, rng, false);
  const HnswLayers<float> far(by_distance.index), aligned(by_product.index);
  for (const HnswSearchConfig config : {HnswSearchConfig{.k = 1, .ef = 1}, HnswSearchConfig{.k = 10, .ef = 10},
                                        HnswSearchConfig{.k = 10, .ef = 100}, HnswSearchConfig{.k = 60, .ef = 5}}) {
    CAPTURE(config.k, config.ef);
    by_distance.index.setEf(std::size_t(config.ef));
    by_product.index.setEf(std::size_t(config.ef));
    check_same_as_hnswlib(by_distance.index, SquaredDistance<float>{}, far, queries, config, 0);
    check_same_as_hnswlib(by_product.index, search::InnerProduct<float>{}, aligned, queries, config, 1);
  }
  for (Index i = 0; i < 2000; i += 3) by_distance.index.markDelete(std::size_t(5 * i + 2));
  check_same_as_hnswlib(by_distance.index, SquaredDistance<float>{}, HnswLayers<float>(by_distance.index), queries,
                        {.k = 10, .ef = 5}, 0);
}

TEST_CASE("hnsw_search: hnswlib reads our files, and we read its", "[search][hnsw]") {
  const std::uint64_t seed = 10;
  CAPTURE(seed);
  Rng rng(seed);
  const io_files::Directory directory(io_files::Directory::in_memory);
  const auto theirs = directory / "theirs", ours = directory / "ours";
  for (const Index n : {0, 1, 700}) {
    CAPTURE(n);
    Real real(n, 12, rng);
    if (n > 1) real.index.markDelete(5 * 33 + 2);
    const HnswLayers<float> layers(real.index);
    real.index.saveIndex(theirs);
    CHECK(made_up_hnsw::same(io::read_hnswlib<float>(theirs), layers));
    io::write_hnswlib(ours, layers);
    if (n == 0) continue;  // hnswlib refuses its own file of an index without points
    const Hnswlib again(&real.l2, ours);
    CHECK(made_up_hnsw::same(HnswLayers<float>(again), layers));
    const auto queries = whole(20, 12, rng);
    for (Index i = 0; i < 20; ++i)
      CHECK(again.searchKnnCloserFirst(queries.row(i).data(), 5) ==
            real.index.searchKnnCloserFirst(queries.row(i).data(), 5));
  }
}

#endif

}  // namespace
}  // namespace test_hnsw_search
