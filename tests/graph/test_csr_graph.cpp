// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/graph/csr_graph.hpp>

#include "graph/random_graphs.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector_test_csr_graph {
namespace {

using namespace ruvector;
using graph::CsrGraph;
using graph::CsrView;
using random_graphs::Edges;

static_assert(graph::NodeId<std::int32_t> && graph::NodeId<std::uint32_t> && graph::NodeId<std::int64_t>);
static_assert(!graph::NodeId<std::int16_t> && !graph::NodeId<float>);
static_assert(std::is_convertible_v<const CsrGraph<>&, CsrView<>> && !std::is_convertible_v<CsrGraph<>, CsrView<>>);

constexpr std::uint64_t seed = 30;

// (source, target, id) of every edge, in the order in which they are stored.
template <class I>
std::vector<std::array<Index, 3>> edges_of(CsrView<I> g) {
  std::vector<std::array<Index, 3>> edges;
  for (Index i = 0; i < g.nodes(); ++i)
    for (Index e = 0; e < g.degree(i); ++e)
      edges.push_back({i, Index(g.neighbors(i)[std::size_t(e)]), g.edge_id(g.first_edge(i) + e)});
  return edges;
}

template <class I>
std::vector<std::array<Index, 3>> edges_of(const CsrGraph<I>& g) {
  return edges_of(g.view());
}

TEMPLATE_TEST_CASE("csr_graph: a list of edges, sorted by source, equal sources in their order", "[graph]",
                   std::int32_t, std::uint32_t, std::int64_t) {
  using I = TestType;
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 2, 7, 40})
    for (const Index edges : {0, 1, 5, 200}) {
      const Edges list = random_graphs::directed(nodes, edges, rng);
      const std::vector<I> sources(list.sources.begin(), list.sources.end());
      const std::vector<I> targets(list.targets.begin(), list.targets.end());
      const CsrGraph<I> g(nodes, sources, targets);
      CHECK(g.nodes() == nodes);
      CHECK(g.edges() == edges);
      std::vector<std::array<Index, 3>> expected;
      for (Index k = 0; k < edges; ++k)
        expected.push_back({Index(sources[std::size_t(k)]), Index(targets[std::size_t(k)]), k});
      std::ranges::stable_sort(expected, {}, [](const auto& e) { return e[0]; });
      CHECK(edges_of(g.view()) == expected);
      CHECK_NOTHROW(CsrView<I>(g.view().offsets(), g.view().targets(), g.view().edge_ids()));
      CHECK(edges_of(CsrGraph<I>(g.view())) == expected);
    }
}

TEST_CASE("csr_graph: no nodes, isolated nodes, duplicates and loops", "[graph]") {
  const CsrGraph<> none, also_none(0, {}, {});
  for (const CsrView<> view : {CsrView<>(), none.view(), also_none.view()}) {
    CHECK(view.nodes() == 0);
    CHECK(view.edges() == 0);
    CHECK(graph::transpose(view).nodes() == 0);
    CHECK(graph::with_self_loops(view).graph.edges() == 0);
  }
  const std::vector<std::int32_t> sources = {2, 0, 2, 2}, targets = {2, 1, 1, 1};
  const CsrGraph<> g(5, sources, targets);
  CHECK(edges_of(g.view()) == std::vector<std::array<Index, 3>>{{0, 1, 1}, {2, 2, 0}, {2, 1, 2}, {2, 1, 3}});
  for (const Index isolated : {1, 3, 4}) CHECK(g.view().degree(isolated) == 0);
  CsrGraph<> from = g;
  const CsrGraph<> moved = std::move(from);
  CHECK(edges_of(moved.view()) == edges_of(g.view()));
  CHECK(from.nodes() == 0);
}

TEST_CASE("csr_graph: the transposed graph has the same edges, turned, with their ids and positions", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 3, 30})
    for (const Index edges : {0, 1, 100}) {
      const CsrGraph<> g = random_graphs::directed(nodes, edges, rng).graph();
      std::vector<Index> positions(std::size_t(edges), -1);
      const CsrGraph<> t = graph::transpose(g.view(), positions);
      const auto original = edges_of(g.view()), turned = edges_of(t.view());
      REQUIRE(turned.size() == original.size());
      for (std::size_t k = 0; k < turned.size(); ++k) {
        const auto& e = original[std::size_t(positions[k])];
        CHECK(turned[k] == std::array<Index, 3>{e[1], e[0], e[2]});
        if (k > 0 && turned[k][0] == turned[k - 1][0]) CHECK(positions[k] > positions[k - 1]);
      }
      CHECK(std::set<Index>(positions.begin(), positions.end()).size() == std::size_t(edges));
      // Twice turned: the edges of a node by target, then as they were.
      auto sorted = original, twice = edges_of(graph::transpose(t.view()));
      std::ranges::stable_sort(sorted, {}, [](const auto& e) { return std::pair(e[0], e[1]); });
      CHECK(twice == sorted);
    }
}

TEST_CASE("csr_graph: loops are added where there is none, and the rest stays", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 3, 30}) {
    const CsrGraph<> g = random_graphs::directed(nodes, 3 * nodes, rng).graph();
    const auto result = graph::with_self_loops(g.view());
    auto edges = edges_of(result.graph.view());
    std::vector<std::int32_t> looped;
    for (Index i = 0; i < nodes; ++i)
      if (std::ranges::find(g.view().neighbors(i), i) == g.view().neighbors(i).end()) looped.push_back(std::int32_t(i));
    CHECK(result.looped_nodes == looped);
    for (std::size_t k = 0; k < looped.size(); ++k) {
      const CsrView<> view = result.graph.view();
      CHECK(view.neighbors(looped[k]).back() == looped[k]);
      CHECK(view.edge_id(view.first_edge(looped[k]) + view.degree(looped[k]) - 1) == g.edges() + Index(k));
    }
    std::erase_if(edges, [&](const auto& e) { return e[2] >= g.edges(); });
    CHECK(edges == edges_of(g.view()));
    const auto again = graph::with_self_loops(result.graph.view());
    CHECK(again.looped_nodes.empty());
    CHECK(edges_of(again.graph.view()) == edges_of(result.graph.view()));
  }
}

TEST_CASE("csr_graph: every wrong index is found and named", "[graph]") {
  using Ids = std::vector<Index>;
  using Nodes = std::vector<std::int32_t>;
  const auto view = [](const Ids& offsets, const Nodes& targets, const Ids& ids = {}) {
    (void)CsrView<>(offsets, targets, ids);
  };
  CHECK_NOTHROW(view({0, 2, 3}, {0, 1, 1}, {2, 0, 0}));
  CHECK_THROWS_AS(view({}, {0}), ShapeError);
  CHECK_THROWS_AS(view({1, 2, 3}, {0, 1, 1}), ShapeError);
  CHECK_THROWS_AS(view({0, 2, 2}, {0, 1, 1}), ShapeError);
  CHECK_THROWS_WITH(view({0, 4, 3}, {0, 1, 1}), "CsrView: offsets[1]: expected 0 to 3, got 4");
  CHECK_THROWS_WITH(view({0, 2, 1, 3}, {0, 1, 1}), "CsrView: offsets[2]: expected 2 to 3, got 1");
  CHECK_THROWS_WITH(view({0, -1, 3}, {0, 1, 1}), "CsrView: offsets[1]: expected 0 to 3, got -1");
  CHECK_THROWS_WITH(view({0, 2, 3}, {0, 1, 2}), "CsrView: targets[2]: expected 0 to 1, got 2");
  CHECK_THROWS_WITH(view({0, 2, 3}, {0, -1, 1}), "CsrView: targets[1]: expected 0 to 1, got -1");
  CHECK_THROWS_WITH(view({0, 2, 3}, {0, 1, 1}, {0, 1, 3}), "CsrView: edge_ids[2]: expected 0 to 2, got 3");
  CHECK_THROWS_AS(view({0, 2, 3}, {0, 1, 1}, {0, 1}), ShapeError);
  CHECK_THROWS_WITH(CsrGraph<>(Ids{0, 2, 3}, Nodes{0, 1, 2}), "CsrView: targets[2]: expected 0 to 1, got 2");

  const Nodes three = {0, 1, 1}, two = {0, 1}, bad = {0, 1, 2};
  CHECK_THROWS_AS(CsrGraph<>(2, three, two), ShapeError);
  CHECK_THROWS_WITH(CsrGraph<>(2, bad, three), "CsrGraph: sources[2]: expected 0 to 1, got 2");
  CHECK_THROWS_WITH(CsrGraph<>(2, three, bad), "CsrGraph: targets[2]: expected 0 to 1, got 2");
  CHECK_THROWS_WITH(CsrGraph<>(0, two, two), "CsrGraph: sources[0]: expected none, got 0");
  CHECK_THROWS_AS(CsrGraph<>(-1, two, two), ShapeError);
  const std::vector<std::uint32_t> large = {4294967295u};
  CHECK_THROWS_AS(CsrGraph<std::uint32_t>(2, large, large), ShapeError);
  CHECK_THROWS_AS(CsrGraph<std::int32_t>((Index(1) << 31) + 1, {}, {}), ShapeError);
  for (const Index huge : {Index(1) << 60, Index(1) << 61, std::numeric_limits<Index>::max()})
    CHECK_THROWS_AS(CsrGraph<std::int64_t>(huge, {}, {}), ShapeError);

  const CsrGraph<> g(2, three, three);
  Ids positions(2);
  CHECK_THROWS_AS(graph::transpose(g.view(), positions), ShapeError);
}

TEST_CASE("csr_graph: failing memory leaves nothing behind", "[graph]") {
  if (!support::allocations_counted()) return;
  Rng rng(seed);
  const Edges list = random_graphs::directed(20, 50, rng);
  CsrGraph<> g, t;
  CHECK(support::fail_each_allocation(
            [&] {
              g = list.graph();
              const auto loops = graph::with_self_loops(g.view());
              t = graph::transpose(loops.graph.view());
            },
            [] {}) > 0);
  CHECK(edges_of(g.view()) == edges_of(list.graph()));
  CHECK(t.edges() >= 50);
}

}  // namespace
}  // namespace ruvector_test_csr_graph
