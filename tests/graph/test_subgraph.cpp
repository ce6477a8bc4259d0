// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/graph/subgraph.hpp>

#include <algorithm>
#include <vector>

#include "graph/random_graphs.hpp"
#include "support/catch.hpp"

namespace test_subgraph {

using namespace ruvector;
using graph::CsrGraph;
using graph::CsrView;
using graph::Subgraph;

using Nodes = std::vector<std::int32_t>;

TEST_CASE("induced_subgraph: exactly the edges between its nodes, in their order", "[graph]") {
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  for (int trial = 0; trial < 40; ++trial) {
    Rng rng = Rng(seed).split(std::uint64_t(trial));
    const Index n = 1 + rng.below(20);
    const CsrGraph<> whole = random_graphs::directed(n, rng.below(4 * n), rng).graph();
    const CsrView<> view = whole.view();
    Nodes nodes;
    for (const Index node : random_graphs::permutation(n, rng))
      if (rng.below(2) == 0) nodes.push_back(std::int32_t(node));
    const Subgraph<> part = graph::induced_subgraph(view, nodes);
    CHECK(part.nodes == nodes);
    REQUIRE(part.graph.nodes() == Index(nodes.size()));
    REQUIRE(part.graph.edges() == Index(part.edges.size()));
    CHECK(part.graph.view().edge_ids().empty());
    Index e = 0;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      CHECK(part.graph.view().first_edge(Index(i)) == e);
      const Index first = view.first_edge(nodes[i]);
      for (Index k = first; k < first + view.degree(nodes[i]); ++k) {
        const auto at = std::find(nodes.begin(), nodes.end(), view.targets()[std::size_t(k)]);
        if (at == nodes.end()) continue;
        REQUIRE(e < part.graph.edges());
        CHECK(part.graph.view().targets()[std::size_t(e)] == std::int32_t(at - nodes.begin()));
        CHECK(part.edges[std::size_t(e)] == view.edge_id(k));
        ++e;
      }
    }
    CHECK(e == part.graph.edges());
  }
}

TEST_CASE("induced_subgraph: of all nodes it is the graph, of none it is empty", "[graph]") {
  Rng rng(2);
  const CsrGraph<> whole = random_graphs::directed(9, 30, rng).graph();
  Nodes nodes(9);
  std::iota(nodes.begin(), nodes.end(), 0);
  const Subgraph<> all = graph::induced_subgraph(whole.view(), nodes);
  CHECK(std::ranges::equal(all.graph.view().offsets(), whole.view().offsets()));
  CHECK(std::ranges::equal(all.graph.view().targets(), whole.view().targets()));
  CHECK(std::ranges::equal(all.edges, whole.view().edge_ids()));
  const Subgraph<> none = graph::induced_subgraph(whole.view(), {});
  CHECK(none.graph.nodes() == 0);
  CHECK(none.graph.edges() == 0);
  CHECK(graph::induced_subgraph(CsrView<>(), {}).graph.nodes() == 0);
}

TEST_CASE("induced_subgraph: nodes out of range or named twice are refused", "[graph]") {
  Rng rng(3);
  const CsrGraph<> whole = random_graphs::directed(5, 8, rng).graph();
  for (const Nodes& nodes : {Nodes{0, 5}, Nodes{-1}, Nodes{1, 2, 1}})
    CHECK_THROWS_AS(graph::induced_subgraph(whole.view(), nodes), ShapeError);
  CHECK_THROWS_AS(graph::induced_subgraph(CsrView<>(), Nodes{0}), ShapeError);
}

TEST_CASE("gather_rows: takes rows, and scatter_rows is its transpose", "[graph]") {
  Rng rng(4);
  Matrix<double> rows(6, 3), taken(4, 3), d(4, 3), sums(6, 3, 1.0);
  for (auto* matrix : {&rows, &d})
    for (double& value : matrix->span()) value = rng.normal();
  const std::vector<Index> ids{5, 0, 5, 2};
  graph::gather_rows<double>(rows, ids, taken.view());
  for (Index k = 0; k < 4; ++k) CHECK(std::ranges::equal(taken.row(k), rows.row(ids[std::size_t(k)])));
  graph::scatter_rows<double>(d, ids, sums.view());
  for (Index c = 0; c < 3; ++c) {
    CHECK(sums(5, c) == 1 + d(0, c) + d(2, c));
    CHECK(sums(0, c) == 1 + d(1, c));
    CHECK(sums(2, c) == 1 + d(3, c));
    CHECK(sums(1, c) == 1);
  }
  for (const std::vector<Index>& bad : {std::vector<Index>{0, 1, 6, 2}, {0, -1, 1, 2}, {0, 1, 2}}) {
    CHECK_THROWS_AS(graph::gather_rows<double>(rows, bad, taken.view()), ShapeError);
    CHECK_THROWS_AS(graph::scatter_rows<double>(d, bad, sums.view()), ShapeError);
  }
  CHECK_THROWS_AS(graph::gather_rows<double>(rows, ids, taken.view().cols(0, 2)), ShapeError);
  CHECK_THROWS_AS(graph::scatter_rows<double>(d.view().cols(0, 2), ids, sums.view()), ShapeError);
}

}  // namespace test_subgraph
