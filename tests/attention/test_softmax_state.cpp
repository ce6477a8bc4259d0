// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/softmax_state.hpp>
#include <ruvector/core/random.hpp>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

#include "support/laws.hpp"
#include "support/near.hpp"

namespace test_softmax_state {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

// 9 queries, 21,000 keys: five leaves and a part of one.
template <class T>
laws::Problem<T> long_problem(Rng& rng, Mask mask = {}) {
  return laws::Problem<T>({.queries = 9, .keys = 21000, .dim = 5, .value_dim = 6, .bias = true, .mask = mask}, rng,
                          0.4);
}

template <class A>
struct Finished {
  Matrix<ScalarOf<A>> value;
  Vector<ScalarOf<A>> log_sum_exp;

  Finished(const A& backend, SoftmaxState<ScalarOf<A>>& state, Workspace& ws)
      : value(state.queries(), state.value_dim()), log_sum_exp(state.queries()) {
    backend.finish(state, {value, log_sum_exp}, ws);
  }
};

template <class A>
struct Whole {
  using T = ScalarOf<A>;
  Matrix<T> value;
  Vector<T> log_sum_exp;

  Whole(const A& backend, const AttentionInput<T>& in, Workspace& ws)
      : value(in.query.rows(), in.value.cols()), log_sum_exp(in.query.rows()) {
    attend(backend, in, {value, log_sum_exp}, ws);
  }
};

template <class A>
bool same(const Finished<A>& a, const Whole<A>& b) {
  return support::same_bits(a.value.span(), b.value.span()) &&
         support::same_bits(a.log_sum_exp.span(), b.log_sum_exp.span());
}

using Backends = std::tuple<Flash<float>, Flash<double>, HyperbolicFlash<float>>;

TEMPLATE_LIST_TEST_CASE("softmax state: shards merged in any order have the bits of one pass", "[attention]",
                        Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(401);
  Workspace ws;
  const TestType backend;
  const Mask masks[] = {{},
                        {.causal = true},
                        {.causal = true, .window_left = 9000, .global_keys = 5000},
                        {.key_length = 17000},
                        {.first_position = 10000}};
  for (const Mask& mask : masks) {
    const auto problem = long_problem<T>(rng, mask);
    const Whole<TestType> whole(backend, problem.input(), ws);
    for (int trial = 0; trial < 4; ++trial) {
      // Borders at leaves; some shards are empty.
      std::vector<Index> borders = {0, 21000};
      for (Index b = 0; b < 1 + rng.below(8); ++b) borders.push_back(4096 * rng.below(6));
      std::sort(borders.begin(), borders.end());
      std::vector<SoftmaxState<T>> states;
      for (std::size_t s = 0; s + 1 < borders.size(); ++s) {
        states.push_back(backend.make_state(9, 6));
        backend.accumulate(problem.input().key_rows(borders[s], borders[s + 1] - borders[s]), borders[s], states.back(),
                           ws);
      }
      rng.shuffle(std::span(states));
      while (states.size() > 1) {  // in pairs, from anywhere
        const auto at = std::size_t(rng.below(Index(states.size()) - 1));
        states[at].merge(states.back());
        states.pop_back();
      }
      CAPTURE(trial, borders.size());
      CHECK(same(Finished<TestType>(backend, states[0], ws), whole));
    }
  }
}

TEST_CASE("softmax state: keys that come in tiles are one pass", "[attention]") {
  Rng rng(402);
  Workspace ws;
  const Flash<float> backend;
  const auto problem = long_problem<float>(rng);
  const Whole<Flash<float>> whole(backend, problem.input(), ws);
  SoftmaxState<float> state = backend.make_state(9, 6);
  for (Index first = 0; first < 21000;) {
    const Index count = std::min(64 * (1 + rng.below(90)), 21000 - first);
    backend.accumulate(problem.input().key_rows(first, count), first, state, ws);
    first += count;
    CHECK(state.open_end() == (first % 4096 == 0 ? 0 : first));
  }
  CHECK(same(Finished<Flash<float>>(backend, state, ws), whole));
}

TEST_CASE("softmax state: as exact as one pass for small leaves, too", "[attention]") {
  Rng rng(403);
  Workspace ws;
  const Flash<float> backend;
  const laws::Problem<float> problem({.queries = 4, .keys = 1500, .dim = 8, .value_dim = 3}, rng);
  Matrix<double> q(4, 8), k(1500, 8), v(1500, 3), truth(4, 3);
  std::copy(problem.query.span().begin(), problem.query.span().end(), q.span().begin());
  std::copy(problem.key.span().begin(), problem.key.span().end(), k.span().begin());
  std::copy(problem.value.span().begin(), problem.value.span().end(), v.span().begin());
  attend(Flash<double>(), {q, k, v}, {truth}, ws);
  const Whole<Flash<float>> whole(backend, problem.input(), ws);
  const double one_pass = support::max_error(whole.value.span(), truth.span());
  for (const Index leaf : {64, 128, 512}) {
    SoftmaxState<float> sum(4, 3, false, leaf);
    for (Index first = 0; first < 1500; first += leaf) {
      SoftmaxState<float> part(4, 3, false, leaf);
      backend.accumulate(problem.input().key_rows(first, std::min(leaf, 1500 - first)), first, part, ws);
      sum.merge(part);
    }
    const Finished<Flash<float>> finished(backend, sum, ws);
    CHECK(support::max_error(finished.value.span(), truth.span()) <= 2 * one_pass + 2.4e-7);
  }
}

TEST_CASE("softmax state: an empty one is the identity", "[attention]") {
  Rng rng(404);
  Workspace ws;
  const Flash<float> backend;
  const auto problem = long_problem<float>(rng);
  SoftmaxState<float> state = backend.make_state(9, 6), empty = backend.make_state(9, 6);
  backend.accumulate(problem.input(), 0, state, ws);
  const Finished<Flash<float>> before(backend, state, ws);
  state.merge(empty);
  empty.merge(state);
  const Whole<Flash<float>> whole(backend, problem.input(), ws);
  CHECK(same(before, whole));
  CHECK(same(Finished<Flash<float>>(backend, state, ws), whole));
  CHECK(same(Finished<Flash<float>>(backend, empty, ws), whole));
  SoftmaxState<float> nothing = backend.make_state(9, 6);
  CHECK(nothing.empty());
  const Finished<Flash<float>> zeros(backend, nothing, ws);
  for (const float x : zeros.value.span()) CHECK(x == 0);
  for (const float x : zeros.log_sum_exp) CHECK(x == -std::numeric_limits<float>::infinity());
}

TEMPLATE_LIST_TEST_CASE("softmax state: bytes give it back, and it can be continued", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(405);
  Workspace ws;
  const TestType backend;
  const auto problem = long_problem<T>(rng);
  const Whole<TestType> whole(backend, problem.input(), ws);
  SoftmaxState<T> left = backend.make_state(9, 6), right = backend.make_state(9, 6);
  backend.accumulate(problem.input().key_rows(0, 9024), 0, left, ws);
  backend.accumulate(problem.input().key_rows(12288, 8712), 12288, right, ws);
  SoftmaxState<T> state = SoftmaxState<T>::from_bytes(left.to_bytes());
  CHECK(state.open_end() == 9024);
  CHECK(state.to_bytes() == left.to_bytes());
  backend.accumulate(problem.input().key_rows(9024, 3264), 9024, state, ws);
  state.merge(SoftmaxState<T>::from_bytes(right.to_bytes()));
  CHECK(same(Finished<TestType>(backend, state, ws), whole));
}

TEST_CASE("softmax state: other bytes are refused", "[attention]") {
  Rng rng(406);
  Workspace ws;
  const Flash<float> backend;
  const laws::Problem<float> problem({.queries = 2, .keys = 70, .dim = 3, .value_dim = 2}, rng);
  SoftmaxState<float> state = backend.make_state(2, 2);
  backend.accumulate(problem.input(), 0, state, ws);
  const std::vector<std::byte> good = state.to_bytes();
  REQUIRE_NOTHROW(SoftmaxState<float>::from_bytes(good));
  CHECK_THROWS_AS(SoftmaxState<double>::from_bytes(good), FormatError);
  for (std::size_t length = 0; length < good.size(); ++length)
    CHECK_THROWS_AS(SoftmaxState<float>::from_bytes(std::span(good).first(length)), FormatError);
  for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::vector<std::byte> flipped = good;
    flipped[bit / 8] ^= std::byte(1 << (bit % 8));
    CHECK_THROWS_AS(SoftmaxState<float>::from_bytes(flipped), FormatError);
  }
}

TEST_CASE("softmax state: what does not fit is refused and changes nothing", "[attention]") {
  Rng rng(407);
  Workspace ws;
  const Flash<float> backend;
  const auto problem = long_problem<float>(rng);
  SoftmaxState<float> state = backend.make_state(9, 6), other = backend.make_state(8, 6);
  backend.accumulate(problem.input().key_rows(0, 4160), 0, state, ws);
  const std::vector<std::byte> before = state.to_bytes();
  const auto shard = problem.input().key_rows(0, 100);
  CHECK_THROWS_AS(backend.accumulate(shard, 100, state, ws), ConfigError);   // not a leaf, not the end
  CHECK_THROWS_AS(backend.accumulate(shard, 0, state, ws), ConfigError);     // seen before
  CHECK_THROWS_AS(backend.accumulate(shard, 8192, state, ws), ConfigError);  // a second incomplete leaf
  CHECK_THROWS_AS(backend.accumulate(shard, 0, other, ws), ShapeError);
  CHECK_THROWS_AS(state.merge(other), ShapeError);
  CHECK_THROWS_AS(state.merge(SoftmaxState<float>(state)), ConfigError);
  CHECK_THROWS_AS(SoftmaxState<float>(1, 1, false, 100), ConfigError);
  CHECK(state.to_bytes() == before);
}

}  // namespace
}  // namespace test_softmax_state
