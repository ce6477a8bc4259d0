// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/graph/typed_graph.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

#include "graph/random_graphs.hpp"
#include "support/catch.hpp"

namespace test_typed_graph {

using namespace ruvector;
using graph::CsrView;
using graph::EdgeType;
using graph::TypedGraph;

using Nodes = std::vector<std::int32_t>;

TypedGraph<> random_typed(Index nodes, Index edges, Index types, Rng& rng) {
  const random_graphs::Edges list = random_graphs::directed(nodes, edges, rng);
  std::vector<EdgeType> edge_types;
  for (Index k = 0; k < edges; ++k) edge_types.push_back(EdgeType(rng.below(types)));
  return {nodes, list.sources, list.targets, types, edge_types};
}

TEST_CASE("TypedGraph: types stay with the ids of edges", "[graph]") {
  const Nodes sources{2, 0, 2, 1}, targets{1, 2, 0, 1};
  const std::vector<EdgeType> types{3, 1, 0, 2};
  const TypedGraph<> graph(3, sources, targets, 4, types);
  CHECK(graph.types() == 4);
  CHECK(graph.nodes() == 3);
  REQUIRE(graph.edges() == 4);
  for (Index i = 0; i < 3; ++i)
    for (Index e = graph.view().first_edge(i); e < graph.view().first_edge(i) + graph.view().degree(i); ++e) {
      const auto id = std::size_t(graph.view().edge_id(e));
      CHECK(sources[id] == i);
      CHECK(targets[id] == graph.view().targets()[std::size_t(e)]);
      CHECK(graph.edge_types()[id] == types[id]);
    }
}

TEST_CASE("TypedGraph: types out of range and lists that differ are refused", "[graph]") {
  const Nodes ends{0, 1};
  const auto make = [&](Index types, std::vector<EdgeType> edge_types) {
    return TypedGraph<>(2, ends, ends, types, edge_types);
  };
  CHECK_NOTHROW(make(2, {0, 1}));
  CHECK_THROWS_AS(make(2, {0, 2}), ShapeError);
  CHECK_THROWS_AS(make(2, {-1, 0}), ShapeError);
  CHECK_THROWS_AS(make(2, {0}), ShapeError);
  CHECK_THROWS_AS(make(-1, {0, 0}), ShapeError);
  CHECK_THROWS_AS(make(Index(1) << 40, {0, 0}), ShapeError);
  CHECK_THROWS_AS(TypedGraph<>(2, Nodes{0, 2}, ends, 1, std::vector<EdgeType>{0, 0}), ShapeError);
  CHECK_THROWS_AS(edges_of_type(make(2, {0, 1}), 2), ShapeError);
  CHECK_THROWS_AS(edges_of_type(make(2, {0, 1}), -1), ShapeError);
  CHECK(TypedGraph<>().edges() == 0);
}

TEST_CASE("with_inverses: every edge both ways, told apart by its type", "[graph]") {
  const std::uint64_t seed = 41;
  CAPTURE(seed);
  Rng rng(seed);
  const TypedGraph<> one = random_typed(12, 40, 3, rng), both = with_inverses(one);
  CHECK(both.types() == 6);
  CHECK(both.edges() == 80);
  const auto ends = [](const TypedGraph<>& graph) {
    std::vector<std::array<Index, 2>> of(std::size_t(graph.edges()));
    for (Index i = 0; i < graph.nodes(); ++i)
      for (Index e = graph.view().first_edge(i); e < graph.view().first_edge(i) + graph.view().degree(i); ++e)
        of[std::size_t(graph.view().edge_id(e))] = {i, graph.view().targets()[std::size_t(e)]};
    return of;
  };
  const auto before = ends(one), after = ends(both);
  for (std::size_t k = 0; k < 40; ++k) {
    CHECK(after[k] == before[k]);
    CHECK(after[40 + k] == std::array<Index, 2>{before[k][1], before[k][0]});
    CHECK(both.edge_types()[k] == one.edge_types()[k]);
    CHECK(both.edge_types()[40 + k] == one.edge_types()[k] + 3);
  }
  const graph::CsrGraph<> shared({0, 2}, {0, 0}, {1, 1});
  CHECK_THROWS_AS(with_inverses(TypedGraph<>(shared, 1, {0, 0})), ShapeError);
}

TEST_CASE("edges_of_type: the types share the edges out among them", "[graph]") {
  Rng rng(42);
  const TypedGraph<> whole = random_typed(10, 60, 4, rng);
  std::vector<Index> all;
  for (EdgeType type = 0; type < 4; ++type) {
    const auto part = edges_of_type(whole, type);
    CHECK(part.graph.nodes() == 10);
    const TypedGraph<> one = typed(part, whole);
    for (const EdgeType each : one.edge_types()) CHECK(each == type);
    for (Index i = 0; i < 10; ++i)
      for (Index e = part.graph.view().first_edge(i); e < part.graph.view().first_edge(i) + part.graph.view().degree(i);
           ++e) {
        Index at = 0;  // the same edge of the same node
        while (whole.view().edge_id(at) != part.edges[std::size_t(e)]) ++at;
        CHECK((at >= whole.view().first_edge(i) && at < whole.view().first_edge(i) + whole.view().degree(i)));
        CHECK(whole.view().targets()[std::size_t(at)] == part.graph.view().targets()[std::size_t(e)]);
      }
    all.insert(all.end(), part.edges.begin(), part.edges.end());
  }
  std::ranges::sort(all);
  std::vector<Index> expected(60);
  std::iota(expected.begin(), expected.end(), Index(0));
  CHECK(all == expected);
}

TEST_CASE("typed: a part of a graph keeps the types of its edges", "[graph]") {
  Rng rng(43);
  const TypedGraph<> whole = random_typed(10, 50, 5, rng);
  const auto part = graph::induced_subgraph(whole.view(), Nodes{7, 2, 5, 3, 9});
  const TypedGraph<> small = typed(part, whole);
  CHECK(small.types() == 5);
  REQUIRE(small.edges() == Index(part.edges.size()));
  CHECK(small.edges() > 0);
  for (std::size_t k = 0; k < part.edges.size(); ++k)
    CHECK(small.edge_types()[k] == whole.edge_types()[std::size_t(part.edges[k])]);
  graph::Subgraph<> wrong = part;
  wrong.edges[0] = 50;
  CHECK_THROWS_AS(typed(wrong, whole), ShapeError);
}

TEST_CASE("TypedGraph: shuffled types are as many of each, elsewhere", "[graph]") {
  Rng rng(44);
  TypedGraph<> graph = random_typed(20, 200, 4, rng);
  const std::vector<EdgeType> before(graph.edge_types().begin(), graph.edge_types().end());
  graph.shuffle_types(rng);
  std::vector<EdgeType> after(graph.edge_types().begin(), graph.edge_types().end());
  CHECK(after != before);
  CHECK(std::is_permutation(after.begin(), after.end(), before.begin()));
}

TEST_CASE("write_one_hot: one column a type, the others untouched", "[graph]") {
  const std::vector<EdgeType> types{2, 0, 1};
  Matrix<float> features(3, 5, 7.0F);
  graph::write_one_hot<float>(types, 3, features);
  for (Index e = 0; e < 3; ++e)
    for (Index c = 0; c < 5; ++c) CHECK(features(e, c) == (c >= 3 ? 7.0F : c == types[std::size_t(e)] ? 1.0F : 0.0F));
  CHECK_THROWS_AS(graph::write_one_hot<float>(types, 2, features), ShapeError);
  CHECK_THROWS_AS(graph::write_one_hot<float>(types, 6, features), ShapeError);
  CHECK_THROWS_AS(graph::write_one_hot<float>(std::span(types).first(2), 3, features), ShapeError);
}

}  // namespace test_typed_graph
