// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/train/miners.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

namespace ruvector_test_miners {
namespace {

using namespace ruvector;
using train::mine_negatives;
using train::Mining;
using train::MiningConfig;
using train::Pair;

constexpr Mining all[] = {Mining::random, Mining::hard, Mining::semi_hard, Mining::distance_weighted};

Matrix<double> normal(Index n, Index d, Rng& rng) {
  Matrix<double> x(n, d);
  for (double& v : x.span()) v = rng.normal();
  return x;
}

// One anchor at (1, 0), its positive at distance 0.5.
struct Scene {
  Matrix<double> anchor{1, 2}, positive{1, 2}, candidates;
  Workspace ws;

  explicit Scene(const std::vector<std::pair<double, double>>& points) : candidates(Index(points.size()), 2) {
    anchor(0, 0) = 1;
    positive(0, 0) = 1.5;
    for (Index j = 0; j < candidates.rows(); ++j) std::tie(candidates(j, 0), candidates(j, 1)) = points[std::size_t(j)];
  }
  std::vector<Index> mine(Index k, const MiningConfig& config, MatrixView<const Pair> pairs = {}, int seed = 1) {
    Matrix<Index> out(1, k);
    mine_negatives<double>(anchor, positive, candidates, pairs, out, config, Rng(std::uint64_t(seed)), ws);
    return {out.span().begin(), out.span().end()};
  }
};

TEST_CASE("miners: hard ones are the most similar, ties to the smaller number", "[train][miners][v1]") {
  Scene scene({{0, 1}, {2, 0.1}, {-1, 0}, {5, 0}, {0, 0}, {3, 0}});
  CHECK(scene.mine(6, {.mining = Mining::hard}) == std::vector<Index>{3, 5, 1, 0, 4, 2});
  CHECK(scene.mine(2, {.mining = Mining::hard}) == std::vector<Index>{3, 5});
}

TEST_CASE("miners: semi-hard ones lie between the positive and the margin, then come the hard ones",
          "[train][miners][v1]") {
  // Distances from (1, 0): 0.55, 0.4 (too near), 0.59, 0.7 (too far), 0.5 (not farther).
  Scene scene({{1, 0.55}, {1.4, 0}, {1.59, 0}, {1, 0.7}, {1.5, 0}});
  CHECK(scene.mine(5, {.mining = Mining::semi_hard}) == std::vector<Index>{0, 2, 1, 4, 3});
  CHECK(scene.mine(2, {.mining = Mining::semi_hard, .margin = 0.3}) == std::vector<Index>{0, 2});
  CHECK(scene.mine(3, {.mining = Mining::semi_hard, .margin = 0.3}) == std::vector<Index>{0, 2, 3});
}

TEST_CASE("miners: random ones are equally likely, weighted ones as the softmax says", "[train][miners][v1]") {
  Scene scene({{1, 0}, {1, 1}, {0, 1}});  // cosines 1, √½, 0
  const int runs = 20000;
  for (const Mining mining : {Mining::random, Mining::distance_weighted}) {
    std::map<std::vector<Index>, int> counts;
    for (int run = 0; run < runs; ++run) ++counts[scene.mine(2, {.mining = mining, .temperature = 0.5}, {}, run)];
    double w[3] = {1, 1, 1};
    if (mining == Mining::distance_weighted)
      for (int j = 0; j < 3; ++j) w[j] = std::exp(2 * (j == 0 ? 1 : j == 1 ? std::sqrt(0.5) : 0));
    const double total = w[0] + w[1] + w[2];
    for (Index a = 0; a < 3; ++a)
      for (Index b = 0; b < 3; ++b) {
        if (a == b) continue;
        // First a, then b among what is left.
        const double p = w[a] / total * w[b] / (total - w[a]);
        CHECK(std::abs(counts[{a, b}] / double(runs) - p) < 5 * std::sqrt(p * (1 - p) / runs));
      }
  }
}

TEST_CASE("miners: only negatives, each at most once, and none where there are too few", "[train][miners]") {
  Rng rng(3);
  Workspace ws;
  const Matrix<double> anchor = normal(40, 5, rng), positive = normal(40, 5, rng), candidates = normal(12, 5, rng);
  Matrix<Pair> pairs(40, 12);
  for (Pair& pair : pairs.span()) pair = Pair(rng.below(3));
  for (const Mining mining : all) {
    Matrix<Index> out(40, 6);
    mine_negatives<double>(anchor, positive, candidates, pairs, out, {.mining = mining}, Rng(5), ws);
    for (Index i = 0; i < 40; ++i) {
      const Index negatives = std::ranges::count(pairs.row(i), Pair::negative);
      std::vector<Index> row(out.row(i).begin(), out.row(i).end());
      for (Index c = 0; c < 6; ++c) {
        REQUIRE((row[std::size_t(c)] == train::no_candidate) == (c >= negatives));
        if (c < negatives) REQUIRE(pairs(i, row[std::size_t(c)]) == Pair::negative);
      }
      row.resize(std::size_t(std::min<Index>(6, negatives)));
      std::ranges::sort(row);
      REQUIRE(std::ranges::adjacent_find(row) == row.end());
    }
  }
}

TEST_CASE("miners: a row depends on itself and its number, nothing on the workers; nothing is allocated",
          "[train][miners]") {
  Rng rng(4);
  Workspace ws;
  const Matrix<double> anchor = normal(100, 5, rng), positive = normal(100, 5, rng), candidates = normal(60, 5, rng);
  for (const Mining mining : all) {
    Matrix<Index> out(100, 4), shared(100, 4), head(10, 4);
    mine_negatives<double>(anchor, positive, candidates, {}, out, {.mining = mining}, Rng(5), ws);
    mine_negatives<double>(anchor, positive, candidates, {}, shared, {.mining = mining}, Rng(5), ws,
                           support::Alternating());
    mine_negatives<double>(anchor.view().rows(0, 10), positive.view().rows(0, 10), candidates, {}, head,
                           {.mining = mining}, Rng(5), ws);
    CHECK(std::ranges::equal(out.span(), shared.span()));
    CHECK(std::ranges::equal(head.span(), out.span().first(40)));
    if (support::allocations_counted())
      CHECK(support::allocations_in([&] {
              mine_negatives<double>(anchor, positive, candidates, {}, out, {.mining = mining}, Rng(5), ws);
            }) == 0);
  }
}

TEST_CASE("miners: candidates of NaN come last", "[train][miners]") {
  Scene scene({{0, 1}, {double(NAN), 0}, {1, 1}, {double(NAN), 2}, {1, 0}});
  for (const Mining mining : {Mining::hard, Mining::semi_hard, Mining::distance_weighted}) {
    const std::vector<Index> mined = scene.mine(5, {.mining = mining});
    CHECK(mined[3] == 1);
    CHECK(mined[4] == 3);
  }
}

TEST_CASE("miners: what may not be is refused, nothing of zero size is a surprise", "[train][miners]") {
  Rng rng(4);
  Workspace ws;
  const Matrix<double> x = normal(3, 2, rng), wide = normal(3, 3, rng), none(0, 2);
  Matrix<Index> out(3, 2), short_out(2, 2), no_columns(3, 0), no_rows(0, 2);
  const Matrix<Pair> pairs(3, 3), wrong(2, 3);
  CHECK_THROWS_AS(mine_negatives<double>(x, wide, x, {}, out, {}, rng, ws), ShapeError);
  CHECK_THROWS_AS(mine_negatives<double>(x, x, wide, {}, out, {}, rng, ws), ShapeError);
  CHECK_THROWS_AS(mine_negatives<double>(x, x, x, wrong, out, {}, rng, ws), ShapeError);
  CHECK_THROWS_AS(mine_negatives<double>(x, x, x, {}, short_out, {}, rng, ws), ShapeError);
  CHECK_THROWS_AS(mine_negatives<double>(x, x, x, {}, out, {.margin = -1}, rng, ws), ConfigError);
  for (const double temperature : {0.0, -1.0, double(NAN)})
    CHECK_THROWS_AS(mine_negatives<double>(x, x, x, {}, out, {.temperature = temperature}, rng, ws), ConfigError);
  mine_negatives<double>(x, x, none, {}, out, {}, rng, ws);
  CHECK(std::ranges::all_of(out.span(), [](Index j) { return j == train::no_candidate; }));
  mine_negatives<double>(x, x, x, {}, no_columns, {}, rng, ws);
  mine_negatives<double>(none, none, x, {}, no_rows, {}, rng, ws);
}

}  // namespace
}  // namespace ruvector_test_miners
