// SPDX-License-Identifier: MIT
#include <ruvector/graph/hnsw_diagnosis.hpp>
#include <ruvector/graph/hnsw_layers.hpp>

#include "graph/made_up_hnsw.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace test_hnsw_layers {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using graph::HnswNode;
using made_up_hnsw::Hnsw;
using Nodes = std::vector<HnswNode>;

static_assert(graph::HnswSource<Hnsw<float>>);
static_assert(!graph::HnswIndexLike<Hnsw<float>>);
static_assert(!graph::HnswSource<HnswLayers<float>>);

// 0 – 1 – 2 – 3 – 4 on level 0; 1, 3 and 4 on level 1; 3 and 4 on level 2, where it starts at 4.
Hnsw<float> five() {
  Matrix<float> points(5, 3);
  for (Index i = 0; i < 15; ++i) points.span()[std::size_t(i)] = float(i * i);
  Hnsw<float> index(std::move(points));
  index.links = {{{1}}, {{0, 2}, {3}}, {{1, 3}}, {{2, 4}, {4, 1}, {4}}, {{3}, {3}, {3}}};
  index.start = 4;
  return index;
}

TEST_CASE("hnsw_layers: say what the source says, each level in its own numbers", "[graph][hnsw]") {
  auto index = five();
  index.marks[2] = true;
  const auto view = HnswLayers<float>::view(index);
  HnswLayers<float> copy(HnswLayers<float>{index});  // a value: copies and moves
  CHECK(made_up_hnsw::same(copy, view));
  CHECK(view.vectors().data() == index.points.data());
  CHECK(copy.vectors().data() != index.points.data());
  index.points = Matrix<float>();

  CHECK(copy.vectors()(4, 2) == 196);
  CHECK(std::ranges::equal(copy.ids(), std::vector<Index>{1000, 1003, 1006, 1009, 1012}));
  CHECK(std::ranges::equal(copy.deleted(), std::vector<int>{0, 0, 1, 0, 0}));
  REQUIRE(copy.levels() == 3);
  CHECK(copy.level(0).nodes == Nodes{0, 1, 2, 3, 4});
  CHECK(copy.level(1).nodes == Nodes{1, 3, 4});
  CHECK(copy.level(1).below == Nodes{1, 3, 4});
  CHECK(copy.level(2).nodes == Nodes{3, 4});
  CHECK(copy.level(2).below == Nodes{1, 2});
  CHECK(copy.entry() == 1);
  CHECK(std::ranges::equal(copy.level(0).graph.view().neighbors(3), Nodes{2, 4}));
  CHECK(std::ranges::equal(copy.level(1).graph.view().neighbors(1), Nodes{2, 0}));
  CHECK(std::ranges::equal(copy.level(2).graph.view().neighbors(0), Nodes{1}));

  const HnswLayers<float> empty(Hnsw<float>(Matrix<float>(0, 7)));
  CHECK(empty.nodes() == 0);
  CHECK(empty.dim() == 7);
  CHECK(empty.levels() == 0);
  CHECK(HnswLayers<double>().vectors().rows() == 0);
  CHECK(graph::diagnose(empty).empty());
}

TEST_CASE("hnsw_layers: what is inconsistent is refused", "[graph][hnsw]") {
  const std::vector<std::pair<const char*, std::function<void(Hnsw<float>&)>>> mistakes = {
      {"a link to nowhere", [](auto& index) { index.links[1][0][1] = 5; }},
      {"a link far away", [](auto& index) { index.links[1][0][1] = ~HnswNode(0); }},
      {"a link to itself", [](auto& index) { index.links[1][0][1] = 1; }},
      {"a link to a node that is not on the level", [](auto& index) { index.links[3][2][0] = 1; }},
      {"too many links",
       [](auto& index) {
         index.links[4][1] = {3, 3, 3, 3, 3};
       }},
      {"too many links on level 0", [](auto& index) { index.links[4][0] = Nodes(9, 3); }},
      {"no such entry point", [](auto& index) { index.start = 5; }},
      {"an entry point below the top", [](auto& index) { index.start = 1; }},
      {"half a float", [](auto& index) { index.bytes_of_vector = 10; }},
      {"a label that is no id", [](auto& index) { index.labels[3] = std::numeric_limits<std::uint64_t>::max(); }},
      {"a label too far", [](auto& index) { index.labels[0] = std::numeric_limits<Index>::max(); }},
      {"a node on no level", [](auto& index) { index.links[0].clear(); }}};
  for (const auto& [name, mistake] : mistakes) {
    auto index = five();
    CHECK_NOTHROW(HnswLayers<float>(index));
    mistake(index);
    CAPTURE(name);
    CHECK_THROWS_AS(HnswLayers<float>(index), ShapeError);
    CHECK_THROWS_AS(HnswLayers<float>::view(index), ShapeError);
  }
  CHECK_THROWS_AS(HnswLayers<double>(five()), ShapeError);  // 12 bytes
}

TEST_CASE("hnsw_layers: a diagnosis finds what searches cannot", "[graph][hnsw]") {
  auto index = five();
  const auto sound = graph::diagnose(HnswLayers<float>(index));
  REQUIRE(sound.size() == 3);
  for (const auto& level : sound) {
    CHECK(level.unreachable.empty());
    CHECK(level.no_incoming.empty());
    CHECK(level.duplicates.empty());
  }
  CHECK(sound[0].nodes == 5);
  CHECK(sound[0].links == 8);
  CHECK(sound[1].nodes == 3);
  CHECK(sound[2].links == 2);

  // Level 1: nothing leads to 1 any more. Level 0: it is entered at 3 and 4, and 3 no longer links to 2.
  index.links[3] = {{4}, {4}, {4}};
  for (Index j = 0; j < 3; ++j) {
    index.points(1, j) = index.points(4, j) = index.points(2, j);
    index.points(3, j) = index.points(0, j) = NAN;
  }
  const auto broken = graph::diagnose(HnswLayers<float>(index));
  CHECK(broken[2].unreachable.empty());
  CHECK(broken[1].unreachable == Nodes{1});
  CHECK(broken[1].no_incoming == Nodes{1});
  CHECK(broken[0].unreachable == Nodes{0, 1, 2});
  CHECK(broken[0].no_incoming.empty());
  CHECK(broken[0].duplicates == std::vector<Nodes>{{0, 3}, {1, 2, 4}});
  CHECK(broken[1].duplicates == std::vector<Nodes>{{1, 4}});
  CHECK(broken[2].duplicates.empty());
}

}  // namespace
}  // namespace test_hnsw_layers
