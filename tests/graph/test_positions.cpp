// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/graph/positions.hpp>

#include "graph/random_graphs.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace ruvector_test_positions {
namespace {

using namespace ruvector;
using graph::CsrGraph;
using graph::unreachable;
using random_graphs::difference;
using random_graphs::Edges;

constexpr std::uint64_t seed = 31;

TEST_CASE("positions: a sequence counts", "[graph]") {
  Matrix<float> r(4, 1), wide(4, 2);
  graph::sequence_positions<float>(r, 7);
  for (Index i = 0; i < 4; ++i) CHECK(r(i, 0) == float(7 + i));
  CHECK_THROWS_AS(graph::sequence_positions<float>(wide), ShapeError);
}

// Hops from every node to every other, by Floyd and Warshall.
Matrix<std::int32_t> all_hops(const Edges& edges) {
  Matrix<std::int32_t> hops(edges.nodes, edges.nodes, unreachable);
  for (Index i = 0; i < edges.nodes; ++i) hops(i, i) = 0;
  for (std::size_t e = 0; e < edges.sources.size(); ++e)
    if (edges.sources[e] != edges.targets[e]) hops(edges.sources[e], edges.targets[e]) = 1;
  for (Index k = 0; k < edges.nodes; ++k)
    for (Index i = 0; i < edges.nodes; ++i)
      for (Index j = 0; j < edges.nodes; ++j)
        if (hops(i, k) != unreachable && hops(k, j) != unreachable) {
          const std::int32_t through = hops(i, k) + hops(k, j);
          if (hops(i, j) == unreachable || through < hops(i, j)) hops(i, j) = through;
        }
  return hops;
}

TEST_CASE("positions: hops to landmarks are shortest paths along the edges", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 2, 10, 40}) {
    const Edges edges = random_graphs::directed(nodes, nodes * 3 / 2, rng);
    const auto expected = all_hops(edges);
    std::vector<std::int32_t> landmarks = {0, std::int32_t(nodes / 2), std::int32_t(nodes - 1)};
    Matrix<std::int32_t> hops(nodes, 3, 99);
    const CsrGraph<> g = edges.graph();
    graph::landmark_hops<std::int32_t>(g, landmarks, hops);
    bool same = true;
    for (Index i = 0; i < nodes; ++i)
      for (Index l = 0; l < 3; ++l) same = same && hops(i, l) == expected(i, landmarks[std::size_t(l)]);
    CHECK(same);
  }
}

TEST_CASE("positions: a node that is inserted gets the hops that a search of the whole graph would give", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 5, 30})
    for (const Index links : {0, 1, 4}) {
      CAPTURE(nodes, links);
      Edges edges = random_graphs::directed(nodes, nodes, rng);
      const std::vector<std::int32_t> landmarks = {0, std::int32_t(nodes - 1)};
      Matrix<std::int32_t> hops(nodes, 2), grown(nodes + 1, 2);
      const CsrGraph<> g = edges.graph();
      graph::landmark_hops<std::int32_t>(g, landmarks, hops);
      std::vector<std::int32_t> neighbors, row(2, 99);
      for (Index k = 0; k < links; ++k) neighbors.push_back(std::int32_t(rng.below(nodes)));
      graph::inserted_hops<std::int32_t>(hops, neighbors, row);
      for (const std::int32_t to : neighbors) edges.add(nodes, to);
      ++edges.nodes;
      const CsrGraph<> larger = edges.graph();
      graph::landmark_hops<std::int32_t>(larger, landmarks, grown);
      CHECK(std::ranges::equal(grown.row(nodes), row));
    }
}

TEST_CASE("positions: landmark coordinates are 0 at the landmark, 1 at the farthest, and 1 where there is no path",
          "[graph]") {
  Edges edges = random_graphs::path(5);
  const std::vector<std::int32_t> landmarks = {0};
  Matrix<double> r(5, 1), apart(7, 1);
  const CsrGraph<> path = edges.graph();
  graph::landmark_positions(path.view(), landmarks, r.view());
  for (Index i = 0; i < 5; ++i) CHECK(r(i, 0) == Approx(std::log1p(double(i)) / std::log1p(4.0)).margin(1e-15));
  edges.nodes = 7;  // two more nodes, alone: one hop beyond the farthest
  const CsrGraph<> g = edges.graph();
  graph::landmark_positions(g.view(), landmarks, apart.view());
  for (Index i = 0; i < 5; ++i) CHECK(apart(i, 0) == Approx(std::log1p(double(i)) / std::log1p(5.0)).margin(1e-15));
  CHECK(apart(5, 0) == 1);
  CHECK(apart(6, 0) == 1);
}

TEST_CASE("positions: random walks come back as the powers of P say, for any number of workers", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index nodes : {1, 2, 6, 25}) {
    CAPTURE(nodes);
    const Edges edges = random_graphs::directed(nodes, 2 * nodes, rng);  // some nodes have no edge
    const CsrGraph<> g = edges.graph();
    constexpr Index steps = 6;
    Matrix<double> r(nodes, steps, 9), p(nodes, nodes), power(nodes, nodes);
    graph::rwpe_positions(g.view(), r.view());
    for (Index i = 0; i < nodes; ++i) {
      power(i, i) = 1;
      for (const std::int32_t to : g.view().neighbors(i)) p(i, to) += 1 / double(g.view().degree(i));
    }
    double worst = 0;
    for (Index t = 0; t < steps; ++t) {
      Matrix<double> product(nodes, nodes);
      for (Index i = 0; i < nodes; ++i)
        for (Index k = 0; k < nodes; ++k)
          for (Index j = 0; j < nodes; ++j) product(i, j) += power(i, k) * p(k, j);
      power = product;
      for (Index i = 0; i < nodes; ++i) worst = std::max(worst, std::fabs(r(i, t) - power(i, i)));
    }
    CHECK(worst <= 1e-14);
    for (const Index threads : {2, 3, 7}) {
      Matrix<double> shared(nodes, steps);
      ThreadPool pool(threads);
      graph::rwpe_positions(g.view(), shared.view(), pool);
      CHECK(support::same_bits(shared.span(), r.span()));
    }
  }
}

TEST_CASE("positions: renaming the nodes permutes the rows", "[graph][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 30;
  const Edges edges = random_graphs::directed(nodes, 70, rng);
  const auto renamed = random_graphs::permutation(nodes, rng);
  const CsrGraph<> g = edges.graph(), other = edges.permuted(renamed).graph();
  const std::vector<std::int32_t> landmarks = {3, 17};
  const std::vector<std::int32_t> renamed_landmarks = {std::int32_t(renamed[3]), std::int32_t(renamed[17])};
  Matrix<double> a(nodes, 2), b(nodes, 2);
  graph::landmark_positions(g.view(), landmarks, a.view());
  graph::landmark_positions(other.view(), renamed_landmarks, b.view());
  CHECK(difference(a, b, renamed) == 0);
  graph::rwpe_positions(g.view(), a.view());
  graph::rwpe_positions(other.view(), b.view());
  CHECK(difference(a, b, renamed) <= 1e-15);
  Matrix<double> c(nodes, 1), d(nodes, 1);
  graph::hop_bucket_positions(g.view(), 3, 20, c.view());
  graph::hop_bucket_positions(other.view(), renamed[3], 20, d.view());
  CHECK(difference(c, d, renamed) == 0);
}

TEST_CASE("positions: hop_bucket is version 1's map, jump included", "[graph][compat]") {
  const Index expected[][2] = {{0, 0},   {1, 1},   {8, 8},     {9, 12},    {16, 12},   {17, 13},
                               {32, 13}, {33, 14}, {1024, 18}, {4096, 20}, {4097, 20}, {Index(1) << 40, 20}};
  for (const auto& [hops, bucket] : expected) {
    CAPTURE(hops);
    CHECK(graph::hop_bucket(hops, 20) == bucket);
  }
  CHECK(graph::hop_bucket(std::numeric_limits<Index>::max(), 1000) == 8 + 63);
  CHECK(graph::hop_bucket(unreachable, 20) == 20);
  CHECK(graph::hop_bucket(100, 8) == 8);
  CHECK_THROWS_AS(graph::hop_bucket(1, 7), ConfigError);
}

TEST_CASE("positions: hop buckets count from the query, so they are not relative between keys", "[graph][compat]") {
  const CsrGraph<> g = random_graphs::path(20).graph();
  Matrix<double> from_first(20, 1), from_second(20, 1);
  graph::hop_bucket_positions(g.view(), 0, 20, from_first.view());
  graph::hop_bucket_positions(g.view(), 1, 20, from_second.view());
  for (Index i = 0; i < 20; ++i) CHECK(from_first(i, 0) == double(graph::hop_bucket(i, 20)));
  // Coordinates would differ by the same amount for all keys.
  CHECK(from_first(9, 0) - from_first(8, 0) != from_second(9, 0) - from_second(8, 0));
}

TEST_CASE("positions: what does not fit is refused, nothing is fine", "[graph]") {
  const CsrGraph<> g = random_graphs::path(3).graph(), none;
  Matrix<double> r(3, 2), wrong(2, 2), empty(0, 2), column(3, 1), nothing;
  Matrix<std::int32_t> hops(3, 2), one_column(3, 1);
  const std::vector<std::int32_t> two = {0, 2}, outside = {0, 3};
  std::vector<std::int32_t> row(2);
  CHECK_THROWS_AS(graph::rwpe_positions(g.view(), wrong.view()), ShapeError);
  CHECK_THROWS_AS(graph::landmark_hops<std::int32_t>(g, two, one_column), ShapeError);
  CHECK_THROWS_AS(graph::landmark_hops<std::int32_t>(g, outside, hops), ShapeError);
  CHECK_THROWS_AS(graph::inserted_hops<std::int32_t>(hops, outside, row), ShapeError);
  CHECK_THROWS_AS(graph::inserted_hops<std::int32_t>(hops, two, std::span(row).first(1)), ShapeError);
  CHECK_THROWS_AS(graph::landmark_positions<double>(hops, 0, r.view()), ConfigError);
  CHECK_THROWS_AS(graph::landmark_positions<double>(hops, 3, wrong.view()), ShapeError);
  CHECK_THROWS_AS(graph::hop_bucket_positions(g.view(), 3, 20, column.view()), ShapeError);
  CHECK_THROWS_AS(graph::hop_bucket_positions(g.view(), 0, 20, r.view()), ShapeError);
  CHECK_NOTHROW(graph::rwpe_positions(none.view(), empty.view()));
  CHECK_NOTHROW(graph::landmark_positions(none.view(), {}, nothing.view()));
  CHECK(graph::farthest_hops({}) == 1);
}

}  // namespace
}  // namespace ruvector_test_positions
