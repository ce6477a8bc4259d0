// SPDX-License-Identifier: MIT
#include <ruvector/attention/any_attention.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/filter.hpp>
#include <ruvector/search/hierarchical_v2.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/search_attention.hpp>
#include <ruvector/simd/dot.hpp>

#include "graph/made_up_hnsw.hpp"
#include "search/near_hnsw.hpp"
#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace test_hierarchical_v2 {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using made_up_hnsw::normals;
using search::hierarchical_forward_v2;
using search::SearchConfig;
using search::SearchResult;
using search::SquaredDistance;

using Dot = attention::ScaledDotProduct<float>;
using Any = attention::AnyAttention<float>;
using Layer = search::SearchLayer<Dot>;
using AnyLayer = search::SearchLayer<Any>;

constexpr float infinity = std::numeric_limits<float>::infinity();

static_assert(Module<Layer> && Module<AnyLayer>);

template <class L>
std::vector<L> untrained(Index count, Index d, Rng& rng) {
  std::vector<L> layers;
  for (Index l = 0; l < count; ++l) layers.push_back(L({.dim = d, .unit = 2}, Dot(), rng));
  return layers;
}

// As if they had learned something.
template <class L>
std::vector<L> trained(Index count, Index d, Rng rng) {
  std::vector<L> layers = untrained<L>(count, d, rng);
  for (L& layer : layers) {
    for_each_parameter(
        [&](std::string_view, std::span<float> x) {
          for (float& v : x) v += 0.2f * rng.normal<float>();
        },
        layer);
    layer.stop[0] = layer.stop[1] = 0.1f;
  }
  return layers;
}

template <class T>
[[nodiscard]] bool same(const SearchResult<T>& a, const SearchResult<T>& b) {
  return support::same_bits(a.ids.span(), b.ids.span()) && support::same_bits(a.scores.span(), b.scores.span()) &&
         support::same_bits(a.count.span(), b.count.span());
}

TEST_CASE("hierarchical_forward_v2: an untrained model finds what plain search finds, 200 of 200",
          "[search][hierarchical]") {
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(near_hnsw::build(normals<float>(1000, 8, rng), 12, rng));
  REQUIRE(layers.levels() > 2);
  const auto queries = normals<float>(200, 8, rng);
  const auto gnn = untrained<Layer>(2, 8, rng);
  Workspace workspace;
  SearchResult<float> found, plain, exact;
  const search::HnswSearch hnsw(SquaredDistance<float>{}, layers);
  for (const Index ef : {1, 10, 64}) {
    CAPTURE(ef);
    hnsw.search(queries, {.k = 10, .ef = ef}, plain, workspace);
    const SearchConfig config{.k = 10, .ef = ef, .beam = 1};
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, found, workspace);
    CHECK(same(found, plain));
    // What it compares it compares once, above level 0, too.
    for (Index i = 0; i < 200; ++i) CHECK(found.distance_count[i] <= plain.distance_count[i]);
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span<const Layer>(), config, found,
                            workspace);
    CHECK(same(found, plain));
  }
  search::ExactSearch(SquaredDistance<float>{}, layers.vectors()).search(queries, 1, exact, workspace);
  hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), {.k = 1, .ef = 300}, found,
                          workspace);
  Index right = 0;
  for (Index i = 0; i < 200; ++i) right += layers.ids()[std::size_t(exact.ids(i, 0))] == found.ids(i, 0) ? 1 : 0;
  CHECK(right == 200);
  // The state is the query, to the bit.
  hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), {.state = true, .trace = true},
                          found, workspace);
  CHECK(support::same_bits(found.state.span(), queries.span()));
  REQUIRE(found.trace.size() == 200);
  CHECK(found.trace[7].front().level == layers.levels() - 1);
  CHECK(found.trace[7].back().level == 0);
}

TEST_CASE("hierarchical_forward_v2: over matrices an exact match among 10000 is first, with the exact weight",
          "[search][hierarchical]") {
  const std::uint64_t seed = 2;
  CAPTURE(seed);
  Rng rng(seed);
  const auto top = normals<float>(40, 16, rng), bottom = normals<float>(10000, 16, rng);
  Matrix<float> queries(3, 16);
  for (Index i = 0; i < 3; ++i) std::ranges::copy(bottom.row(4321 + i), queries.row(i).begin());
  const std::vector<MatrixView<const float>> levels = {top, MatrixView<const float>(nullptr, 0, 0), bottom};
  Workspace workspace;
  SearchResult<float> found, exact;
  const SearchConfig config{.temperature = 0.5f, .k = 10, .softmax = true, .state = true};
  const search::Cosine<float> cosine;
  search::ExactSearch(cosine, search::Candidates<float>{.key = bottom, .value = bottom})
      .search(queries, {.k = 10, .softmax = true, .temperature = 0.5f}, exact, workspace);
  for (const bool learned : {false, true}) {
    const auto gnn = learned ? trained<Layer>(3, 16, rng) : untrained<Layer>(3, 16, rng);
    hierarchical_forward_v2(cosine, queries, levels, std::span(gnn), config, found, workspace);
    CHECK(same(found, exact));
    CHECK(support::same_bits(found.weights.span(), exact.weights.span()));
    CHECK(support::same_bits(found.embedding.span(), exact.embedding.span()));
    CHECK(support::same_bits(found.state.span(), queries.span()) == !learned);
    for (Index i = 0; i < 3; ++i) {
      CHECK(found.distance_count[i] == 10040 + (learned ? 40 : 0));
      CHECK(found.ids(i, 0) == 4321 + i);
      double sum = 0;
      for (Index j = 0; j < 10000; ++j)
        sum += std::exp((double(simd::dot<float>(queries.row(i), bottom.row(j))) /
                             std::sqrt(double(simd::squared_norm<float>(queries.row(i))) *
                                       double(simd::squared_norm<float>(bottom.row(j)))) -
                         1) /
                        0.5);
      CHECK(double(found.weights(i, 0)) == Approx(1 / sum).epsilon(1e-5));
    }
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

TEST_CASE("hierarchical_forward_v2: what is learned steers the way; what is returned has its true score",
          "[search][hierarchical]") {
  const std::uint64_t seed = 3;
  CAPTURE(seed);
  Rng rng(seed);
  auto index = near_hnsw::build(normals<float>(600, 6, rng), 8, rng);
  for (std::size_t i = 0; i < 600; i += 5) index.marks[i] = true;
  const HnswLayers<float> layers(index);
  const auto queries = normals<float>(40, 6, rng);
  const auto gnn = trained<Layer>(2, 6, rng);
  std::vector<AnyLayer> any;
  for (const Layer& layer : gnn) {
    any.push_back(AnyLayer({.dim = 6, .unit = 2}, Dot(), rng));
    for_each_parameter([](std::string_view, std::span<float> to) { std::ranges::fill(to, 0.0f); }, any.back());
    any.back().attention = Any(layer.attention);
    any.back().gain = layer.gain;
    any.back().edge = layer.edge;
    any.back().stop = layer.stop;
    any.back().temperature = layer.temperature;
    any.back().cell = layer.cell;
    any.back().norm = layer.norm;
  }
  Workspace workspace;
  SearchResult<float> found, other, plain;
  const search::Filter filter{.first = 1000, .last = 2500};
  const SearchConfig config{.k = 5, .ef = 20, .beam = 3, .state = true, .filters = {&filter, 1}};
  Index asked = 0;
  // Another metric than those from which a cosine follows, and a second space: four scores a candidate.
  using Ball = search::Distance<geometry::PoincareBall<float>>;
  const search::TwoSpaces<Counting, Ball> score{Counting{&asked}, Ball{geometry::PoincareBall<float>{}}};
  hierarchical_forward_v2(score, queries, layers, std::span(gnn), config, found, workspace);
  Index counted = 0;
  for (const Index count : found.distance_count) counted += count;
  CHECK(counted >= 4 * asked);  // nodes of a beam are weighed again
  CHECK(counted < 5 * asked);
  // What no layer sees is not computed.
  auto blind = gnn;
  for (Layer& layer : blind) layer.gain = layer.edge[1] = layer.edge[3] = 0;
  asked = counted = 0;
  hierarchical_forward_v2(score, queries, layers, std::span(blind), config, other, workspace);
  for (const Index count : other.distance_count) counted += count;
  CHECK(counted == asked);
  blind[0].edge[3] = 0.1f;
  asked = counted = 0;
  hierarchical_forward_v2(score, queries, layers, std::span(blind), config, other, workspace);
  for (const Index count : other.distance_count) counted += count;
  CHECK(counted == 2 * asked);
  for (Index i = 0; i < 40; ++i)
    for (Index p = 0; p < found.count[i]; ++p) {
      const Index node = (found.ids(i, p) - 1000) / 3;
      CHECK(node % 5 != 0);
      CHECK(found.ids(i, p) < 2500);
      CHECK(found.scores(i, p) == -simd::squared_distance<float>(queries.row(i), layers.vectors().row(node)));
      if (p > 0) CHECK(found.scores(i, p) <= found.scores(i, p - 1));
    }
  hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, found, workspace);
  search::HnswSearch(SquaredDistance<float>{}, layers)
      .search(queries, {.k = 5, .ef = 20, .filters = config.filters}, plain, workspace);
  CHECK_FALSE(support::same_bits(found.distance_count.span(), plain.distance_count.span()));
  CHECK_FALSE(support::same_bits(found.state.span(), queries.span()));

  const auto check_same = [&](auto span, auto&& executor) {
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, span, config, other, workspace, executor);
    CHECK(same(other, found));
    CHECK(support::same_bits(other.distance_count.span(), found.distance_count.span()));
    CHECK(support::same_bits(other.state.span(), found.state.span()));
  };
  check_same(std::span(any), Serial{});
  check_same(std::span(gnn), ThreadPool(3));
  for (Index i = 0; i < 40; i += 7) {
    hierarchical_forward_v2(SquaredDistance<float>{}, queries.view().rows(i, 1), layers, std::span(gnn), config, other,
                            workspace);
    CHECK(support::same_bits(other.ids.row(0), found.ids.row(i)));
    CHECK(support::same_bits(other.state.row(0), found.state.row(i)));
  }
  support::Alternating pool;
  const auto call = [&] {
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, other, workspace, pool);
  };
  call();
  CHECK(support::allocations_in(call) == 0);

  // Ending earlier is learned by one number.
  auto early = untrained<Layer>(1, 6, rng);
  const SearchConfig far{.k = 5, .ef = 40};
  hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(early), far, other, workspace);
  early[0].stop[0] = 0.5f;
  hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(early), far, found, workspace);
  Index less = 0;
  for (Index i = 0; i < 40; ++i) less += other.distance_count[i] - found.distance_count[i];
  CHECK(less > 400);
}

TEST_CASE("hierarchical_forward_v2: every attention mode searches, and changes nothing until it is trained",
          "[search][hierarchical]") {
  using search::AttentionMode;
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(near_hnsw::build(normals<float>(300, 6, rng, 0.3f), 6, rng));
  const auto queries = normals<float>(20, 6, rng, 0.3f);
  Workspace workspace;
  SearchResult<float> found, plain;
  search::HnswSearch(SquaredDistance<float>{}, layers).search(queries, {.k = 5, .ef = 10}, plain, workspace);
  for (const bool flash : {false, true})
    for (const AttentionMode mode :
         {AttentionMode::standard, AttentionMode::hyperbolic, AttentionMode::dual_space, AttentionMode::edge_featured,
          AttentionMode::moe, AttentionMode::flash, AttentionMode::linear}) {
      CAPTURE(int(mode), flash);
      const SearchConfig config{.attention_mode = mode, .use_flash = flash, .k = 5, .ef = 10, .beam = 1};
      if (flash &&
          (mode == AttentionMode::edge_featured || mode == AttentionMode::moe || mode == AttentionMode::linear)) {
        CHECK_THROWS_AS(search::make_search_attention<float>(config, 6, rng), ConfigError);
        continue;
      }
      std::vector<AnyLayer> gnn = {AnyLayer({.dim = 6}, search::make_search_attention<float>(config, 6, rng), rng)};
      hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, found, workspace);
      CHECK(same(found, plain));
      gnn[0].gain = 1;
      hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, found, workspace);
      CHECK_FALSE(support::same_bits(found.distance_count.span(), plain.distance_count.span()));
      for (Index i = 0; i < 20; ++i) CHECK(found.count[i] == 5);
    }
}

TEST_CASE("hierarchical_forward_v2: empty inputs, NaN and any k have a defined result; the rest is refused",
          "[search][hierarchical]") {
  Rng rng(4);
  Workspace workspace;
  SearchResult<float> result;
  for (const Index n : {0, 1, 3})
    for (const Index batch : {0, 1, 4})
      for (const Index k : {0, 1, 5}) {
        CAPTURE(n, batch, k);
        const Matrix<float> points(n, 2, 1.0f), queries(batch, 2, 1.0f);
        const HnswLayers<float> layers(made_up_hnsw::rings(Matrix<float>(points), rng));
        const auto gnn = trained<Layer>(2, 2, rng);
        const SearchConfig config{.k = k, .ef = 3};
        const std::vector<MatrixView<const float>> levels = {points, points};
        for (int form = 0; form < 3; ++form) {
          CAPTURE(form);
          if (form == 0)
            hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn), config, result,
                                    workspace);
          else
            hierarchical_forward_v2(SquaredDistance<float>{}, queries, form == 1 ? levels : decltype(levels){},
                                    std::span(gnn), config, result, workspace);
          REQUIRE(result.ids.rows() == batch);
          REQUIRE(result.ids.cols() == k);
          const Index there = form == 2 ? 0 : std::min(n, k);
          for (Index i = 0; i < batch; ++i) {
            CHECK(result.count[i] == there);
            for (Index p = 0; p < k; ++p) {
              CHECK(result.ids(i, p) == (p < there ? (form == 0 ? 1000 + 3 * p : p) : -1));
              CHECK(result.scores(i, p) == (p < there ? 0.0f : -infinity));
            }
          }
        }
      }

  auto index = made_up_hnsw::rings(normals<float>(200, 4, rng), rng);
  for (Index i = 0; i < 200; i += 3) index.points(i, i % 4) = NAN;
  const HnswLayers<float> layers(index);
  auto queries = normals<float>(3, 4, rng);
  queries(1, 2) = NAN;
  const auto gnn = untrained<Layer>(2, 4, rng);
  const auto search = [&](const SearchConfig& config, MatrixView<const float> of) {
    hierarchical_forward_v2(SquaredDistance<float>{}, of, layers, std::span(gnn), config, result, workspace);
  };
  search({.k = 200, .ef = 200}, queries);
  for (const Index i : {0, 2}) {
    CHECK(result.count[i] == 200 - 67);
    for (Index p = 0; p < result.count[i]; ++p) CHECK(std::isfinite(result.scores(i, p)));
  }
  CHECK(result.count[1] == 0);
  CHECK(result.ids(1, 0) == -1);

  const Matrix<float> narrow(2, 3);
  CHECK_THROWS_AS(search({}, narrow), ShapeError);
  CHECK_THROWS_AS(search({.k = -1}, queries), ConfigError);
  CHECK_THROWS_AS(search({.ef = 0}, queries), ConfigError);
  CHECK_THROWS_AS(search({.beam = 0}, queries), ConfigError);
  CHECK_THROWS_AS(search({.rounds = 0}, queries), ConfigError);
  CHECK_THROWS_AS(search({.softmax = true}, queries), ConfigError);
  const auto wide = untrained<Layer>(1, 5, rng);
  CHECK_THROWS_WITH(
      hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(wide), {}, result, workspace),
      "SearchLayer: input of the cell: expected 4, got 5");
  CHECK_THROWS_AS(Layer({.dim = 4, .unit = 0}, Dot(), rng), ConfigError);
}

// A result that held a search of other sizes, and no scratch yet.
struct Run {
  SearchResult<float> result;
  Workspace workspace = {};
  Run() { result.resize(4, 2, true, 3); }
};

// Promise P-36.
TEST_CASE("hierarchical_forward_v2: any allocation may fail, and the same call finds the same then",
          "[search][hierarchical]") {
  const std::uint64_t seed = 36;
  CAPTURE(seed);
  Rng rng(seed);
  const HnswLayers<float> layers(near_hnsw::build(normals<float>(150, 6, rng), 5, rng));
  const auto queries = normals<float>(2, 6, rng);
  const auto gnn = trained<Layer>(2, 6, rng);
  const std::vector<MatrixView<const float>> levels = {layers.vectors().rows(0, 30), layers.vectors()};
  const auto sweep = [](const char* name, const auto& call) {
    Run expected;
    call(expected);
    support::check_allocation_failures(
        name, [] { return Run(); }, call,
        [&](const Run& run) {
          return same(run.result, expected.result) &&
                 support::same_bits(run.result.state.span(), expected.result.state.span());
        });
  };
  sweep("hierarchical_forward_v2 of an index", [&](Run& run) {
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, layers, std::span(gnn),
                            {.k = 5, .ef = 10, .beam = 2, .state = true, .trace = true}, run.result, run.workspace);
  });
  sweep("hierarchical_forward_v2 of matrices", [&](Run& run) {
    hierarchical_forward_v2(SquaredDistance<float>{}, queries, levels, std::span(gnn),
                            {.k = 5, .softmax = true, .state = true}, run.result, run.workspace);
  });
}

}  // namespace
}  // namespace test_hierarchical_v2
