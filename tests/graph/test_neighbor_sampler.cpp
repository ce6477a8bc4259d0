// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/graph/neighbor_sampler.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "graph/random_graphs.hpp"
#include "support/catch.hpp"

namespace test_neighbor_sampler {

using namespace ruvector;
using graph::CsrGraph;
using graph::CsrView;
using graph::NeighborSampler;
using graph::Subgraph;

using Nodes = std::vector<std::int32_t>;

// Position of an edge in the whole, by its id.
Index position(CsrView<> graph, Index id) {
  for (Index e = 0; e < graph.edges(); ++e)
    if (graph.edge_id(e) == id) return e;
  return -1;
}

TEST_CASE("sample_without_replacement: different, ascending, and each set alike", "[graph]") {
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  std::vector<Index> drawn;
  for (Index n = 0; n < 12; ++n)
    for (Index k = 0; k < 14; ++k) {
      graph::sample_without_replacement(n, k, rng, drawn);
      REQUIRE(Index(drawn.size()) == std::min(n, k));
      for (std::size_t i = 0; i < drawn.size(); ++i) {
        CHECK((0 <= drawn[i] && drawn[i] < n));
        if (i > 0) CHECK(drawn[i - 1] < drawn[i]);
      }
    }
  // 10 sets of 3 of 5: within 5 deviations of 2000 each.
  std::map<std::vector<Index>, int> counts;
  for (int trial = 0; trial < 20000; ++trial) {
    graph::sample_without_replacement(5, 3, rng, drawn);
    ++counts[drawn];
  }
  CHECK(counts.size() == 10);
  for (const auto& [set, count] : counts) CHECK(std::abs(count - 2000) < 5 * std::sqrt(20000 * 0.1 * 0.9));
}

TEST_CASE("NeighborSampler: seeds first, no more edges than asked for, all of them in the graph", "[graph]") {
  const std::uint64_t seed = 6;
  CAPTURE(seed);
  for (int trial = 0; trial < 30; ++trial) {
    Rng rng = Rng(seed).split(std::uint64_t(trial));
    const Index n = 1 + rng.below(30);
    const CsrGraph<> whole = random_graphs::directed(n, rng.below(6 * n), rng).graph();
    const CsrView<> view = whole.view();
    const std::vector<Index> fan_outs{rng.below(4), rng.below(4)};
    NeighborSampler<> sampler(view, fan_outs);
    for (int batch = 0; batch < 3; ++batch) {  // what a batch left behind must not matter
      Nodes seeds;
      for (const Index node : random_graphs::permutation(n, rng))
        if (rng.below(3) == 0) seeds.push_back(std::int32_t(node));
      const Subgraph<> part = sampler.sample(seeds, rng);
      REQUIRE(part.nodes.size() >= seeds.size());
      CHECK(std::equal(seeds.begin(), seeds.end(), part.nodes.begin()));
      CHECK(std::set<std::int32_t>(part.nodes.begin(), part.nodes.end()).size() == part.nodes.size());
      REQUIRE(part.graph.nodes() == Index(part.nodes.size()));
      REQUIRE(part.graph.edges() == Index(part.edges.size()));
      // Steps from the seeds, in the part.
      std::vector<int> step(part.nodes.size(), 99);
      for (std::size_t i = 0; i < seeds.size(); ++i) step[i] = 0;
      for (Index i = 0; i < part.graph.nodes(); ++i)
        for (const std::int32_t j : part.graph.view().neighbors(i))
          step[std::size_t(j)] = std::min(step[std::size_t(j)], step[std::size_t(i)] + 1);
      for (Index i = 0; i < part.graph.nodes(); ++i) {
        const std::int32_t node = part.nodes[std::size_t(i)];
        const int h = step[std::size_t(i)];
        REQUIRE(h <= 2);
        const Index most = h < 2 ? std::min(fan_outs[std::size_t(h)], view.degree(node)) : 0;
        CHECK(part.graph.view().degree(i) == most);
        Index before = -1;
        for (Index e = part.graph.view().first_edge(i); e < part.graph.view().first_edge(i) + most; ++e) {
          const Index at = position(view, part.edges[std::size_t(e)]);
          CHECK(at > before);  // in their order, each once
          before = at;
          CHECK((at >= view.first_edge(node) && at < view.first_edge(node) + view.degree(node)));
          CHECK(part.nodes[std::size_t(part.graph.view().targets()[std::size_t(e)])] ==
                view.targets()[std::size_t(at)]);
        }
      }
    }
  }
}

TEST_CASE("NeighborSampler: the same seed gives the same, another one does not", "[graph]") {
  Rng rng(7);
  const CsrGraph<> whole = random_graphs::directed(200, 4000, rng).graph();
  const Nodes seeds{3, 1, 4, 15, 92};
  const auto run = [&](std::uint64_t seed, const Nodes& from) {
    NeighborSampler<> sampler(whole.view(), {5, 5});
    Rng own(seed);
    return sampler.sample(from, own);
  };
  const Subgraph<> a = run(8, seeds), b = run(8, seeds), c = run(9, seeds);
  CHECK(a.nodes == b.nodes);
  CHECK(a.edges == b.edges);
  CHECK(a.edges != c.edges);
  // What is drawn for a seed does not depend on the others.
  const Subgraph<> alone = run(8, {4});
  const auto row = [](const Subgraph<>& part, Index i) {
    const Index first = part.graph.view().first_edge(i);
    return std::vector<Index>(part.edges.begin() + first, part.edges.begin() + first + part.graph.view().degree(i));
  };
  CHECK(row(alone, 0) == row(a, 2));
}

TEST_CASE("NeighborSampler: all edges on demand, none without steps", "[graph]") {
  Rng rng(10);
  const CsrGraph<> whole = random_graphs::connected(30, 20, rng).graph();
  const Nodes seeds{7};
  NeighborSampler<> everything(whole.view(), std::vector<Index>(40, NeighborSampler<>::all)), nothing(whole.view(), {});
  const Subgraph<> all = everything.sample(seeds, rng);
  CHECK(all.graph.nodes() == 30);
  CHECK(all.graph.edges() == whole.edges());
  const Subgraph<> none = nothing.sample(seeds, rng);
  CHECK(none.nodes == seeds);
  CHECK(none.graph.edges() == 0);
  CHECK(everything.sample({}, rng).graph.nodes() == 0);
}

TEST_CASE("NeighborSampler: bad seeds and fan-outs are refused, and leave it as it was", "[graph]") {
  Rng rng(11);
  const CsrGraph<> whole = random_graphs::directed(5, 12, rng).graph();
  CHECK_THROWS_AS(NeighborSampler<>(whole.view(), {-2}), ConfigError);
  NeighborSampler<> sampler(whole.view(), {2});
  for (const Nodes& seeds : {Nodes{0, 5}, Nodes{-1}, Nodes{1, 1}})
    CHECK_THROWS_AS(sampler.sample(seeds, rng), ShapeError);
  CHECK(sampler.sample(Nodes{1, 2}, rng).nodes[1] == 2);
}

TEST_CASE("SeedBatches: every seed once an epoch, in another order", "[graph]") {
  Rng rng(12);
  for (const Index count : {0, 1, 7, 8, 9, 24}) {
    Nodes seeds(static_cast<std::size_t>(count));
    std::iota(seeds.begin(), seeds.end(), 100);
    graph::SeedBatches<> batches(seeds, 8);
    for (int epoch = 0; epoch < 3; ++epoch) {
      if (epoch > 0) batches.shuffle(rng);
      Nodes all;
      for (Index b = 0; b < batches.count(); ++b) {
        const auto batch = batches.batch(b);
        CHECK(Index(batch.size()) == (b + 1 < batches.count() ? 8 : count - 8 * b));
        all.insert(all.end(), batch.begin(), batch.end());
      }
      if (epoch == 0) CHECK(all == seeds);
      if (epoch > 0 && count == 24) CHECK(all != seeds);
      std::ranges::sort(all);
      CHECK(all == seeds);
    }
    CHECK_THROWS_AS(batches.batch(batches.count()), ShapeError);
    CHECK_THROWS_AS(batches.batch(-1), ShapeError);
  }
  CHECK_THROWS_AS(graph::SeedBatches<>({1}, 0), ConfigError);
}

}  // namespace test_neighbor_sampler
