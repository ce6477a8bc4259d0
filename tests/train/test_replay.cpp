// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/train/replay.hpp>
#include <ruvector/train/state.hpp>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace ruvector_test_replay {
namespace {

using namespace ruvector;
using train::ColumnStatistics;
using train::ReplayBuffer;
using train::ReplayConfig;

static_assert(train::Checkpointable<ReplayBuffer<float>> && train::Checkpointable<ColumnStatistics>);

// Row t is (t, noise), with tag t.
void feed(ReplayBuffer<float>& buffer, Index first, Index last, double offset = 0) {
  for (Index t = first; t < last; ++t) {
    Rng noise(std::uint64_t(t) + 1000);
    const float row[] = {float(offset + noise.normal()), float(t)};
    buffer.add(row, t);
  }
}

TEST_CASE("replay: fills up, then keeps its size", "[train][replay]") {
  ReplayBuffer<float> buffer({.capacity = 3, .dim = 2, .window = 2}, Rng(1));
  CHECK(buffer.size() == 0);
  feed(buffer, 0, 3);
  CHECK(buffer.size() == 3);
  for (Index i = 0; i < 3; ++i) {
    CHECK(buffer.tag(i) == i);
    CHECK(buffer.row(i)[1] == float(i));
  }
  feed(buffer, 3, 100);
  CHECK(buffer.size() == 3);
  CHECK(buffer.seen() == 100);
  for (Index i = 0; i < 3; ++i) CHECK(buffer.row(i)[1] == float(buffer.tag(i)));
  buffer.clear();
  CHECK(buffer.size() == 0);
  CHECK(buffer.seen() == 0);
  feed(buffer, 7, 8);
  CHECK(buffer.tag(0) == 7);
}

TEST_CASE("replay: every row that came is kept with equal probability", "[train][replay]") {
  const Index rows = 40, capacity = 10, runs = 4000;
  std::vector<Index> kept(std::size_t(rows), 0);
  for (Index run = 0; run < runs; ++run) {
    ReplayBuffer<float> buffer({.capacity = capacity, .dim = 2, .window = 1}, Rng(std::uint64_t(run)));
    feed(buffer, 0, rows);
    for (Index i = 0; i < capacity; ++i) ++kept[std::size_t(buffer.tag(i))];
  }
  double chi_square = 0;
  const double expected = double(runs) * double(capacity) / double(rows);
  for (const Index count : kept) chi_square += std::pow(double(count) - expected, 2) / expected;
  // Each row is kept or not, so the variance is 1 − ¼ of Poisson's; 39 degrees of freedom: 72.1 at one in a thousand.
  CHECK(chi_square / 0.75 < 72.1);
}

TEST_CASE("replay: statistics are those of all rows, without cancellation", "[train][replay]") {
  ColumnStatistics statistics(2);
  CHECK(statistics.deviation(0) == 0);
  Rng rng(4);
  std::vector<double> first;
  for (int i = 0; i < 1000; ++i) {
    const double row[] = {1e9 + rng.normal(), 5};
    first.push_back(row[0]);
    statistics.add<double>(row);
  }
  long double mean = 0, square = 0;
  for (const double x : first) mean += (long double)(x);
  mean /= 1000;
  for (const double x : first) square += ((long double)(x)-mean) * ((long double)(x)-mean);
  CHECK(statistics.mean()[0] == Approx(double(mean)).epsilon(1e-15));
  CHECK(statistics.deviation(0) == Approx(double(std::sqrt(square / 999))).epsilon(1e-6));
  CHECK(statistics.deviation(1) == 0);
  CHECK(statistics.count() == 1000);
}

TEST_CASE("replay: a shift of the distribution is seen, though the reservoir is in no order", "[train][replay]") {
  // Version 1 looks at the end of its reservoir, where after many rows there is nothing recent: it sees no shift.
  ReplayBuffer<float> buffer({.capacity = 50, .dim = 2, .window = 50}, Rng(6));
  feed(buffer, 0, 49);
  CHECK(buffer.shift() == 0);  // the window is not full
  ReplayBuffer<float> calm({.capacity = 50, .dim = 1, .window = 50}, Rng(6)), shifted = calm;
  Rng rng(8);
  for (int t = 0; t < 5000; ++t) {
    const float row[] = {rng.normal<float>()};
    calm.add(row, t);
    const float moved[] = {row[0] + (t >= 4950 ? 3.0f : 0.0f)};
    shifted.add(moved, t);
  }
  CHECK(calm.shift() < 0.6);  // 4 deviations of a mean of 50
  CHECK(shifted.shift() > 2);
  ReplayBuffer<float> still({.capacity = 5, .dim = 1, .window = 2}, Rng(6));
  for (int t = 0; t < 10; ++t) still.add(std::vector<float>{1.0f}, t);
  CHECK(still.shift() == 0);  // a column that does not vary says nothing
}

TEST_CASE("replay: samples are different rows, each set equally likely", "[train][replay]") {
  ReplayBuffer<float> buffer({.capacity = 6, .dim = 2, .window = 1}, Rng(1));
  Index none[2];
  Rng rng(2);
  CHECK(buffer.sample(none, rng) == 0);
  feed(buffer, 0, 5);
  Index counts[5] = {};
  std::set<std::vector<Index>> sets;
  const int runs = 5000;
  for (int run = 0; run < runs; ++run) {
    Index picked[2];
    REQUIRE(buffer.sample(picked, rng) == 2);
    REQUIRE((picked[0] < picked[1] && picked[1] < 5));
    sets.insert({picked[0], picked[1]});
    for (const Index i : picked) ++counts[i];
  }
  CHECK(sets.size() == 10);
  for (const Index count : counts) CHECK(std::abs(double(count) - runs * 0.4) < 5 * std::sqrt(runs * 0.24));
  Index many[9];
  CHECK(buffer.sample(many, rng) == 5);
}

TEST_CASE("replay: goes on from what it remembers with the same bits; rows cost no memory", "[train][replay]") {
  const ReplayConfig config{.capacity = 20, .dim = 2, .window = 7};
  ReplayBuffer<float> whole(config, Rng(3));
  feed(whole, 0, 500);
  std::vector<std::string> saved;
  train::for_each_state(
      [&](std::string_view, auto span) {
        saved.emplace_back(reinterpret_cast<const char*>(span.data()), span.size_bytes());
      },
      std::as_const(whole));
  ReplayBuffer<float> resumed(config, Rng(99));
  std::size_t k = 0;
  train::for_each_state(
      [&](std::string_view, auto span) { std::memcpy(span.data(), saved.at(k++).data(), span.size_bytes()); }, resumed);
  feed(whole, 500, 900);
  feed(resumed, 500, 900);
  CHECK(whole.shift() == resumed.shift());
  for (Index i = 0; i < 20; ++i) {
    CHECK(whole.tag(i) == resumed.tag(i));
    CHECK(support::same_bits(whole.row(i), resumed.row(i)));
  }
  CHECK(support::allocations_in([&] {
          feed(whole, 900, 1000);
          (void)whole.shift();
        }) == 0);
}

TEST_CASE("replay: what may not be is refused, and a refused row changes nothing", "[train][replay]") {
  CHECK_THROWS_AS(ReplayBuffer<float>({.capacity = 0, .dim = 2}, Rng(1)), ConfigError);
  CHECK_THROWS_AS(ReplayBuffer<float>({.dim = 2, .window = 0}, Rng(1)), ConfigError);
  CHECK_THROWS_AS(ReplayBuffer<float>({.dim = -1}, Rng(1)), ShapeError);
  CHECK_THROWS_AS(ReplayBuffer<float>({.capacity = PTRDIFF_MAX, .dim = 2}, Rng(1)), ShapeError);
  ReplayBuffer<float> buffer({.capacity = 2, .dim = 2, .window = 1}, Rng(1));
  CHECK_THROWS_AS(buffer.add(std::vector<float>{1, 2, 3}, 0), ShapeError);
  CHECK(buffer.seen() == 0);
}

}  // namespace
}  // namespace ruvector_test_replay
