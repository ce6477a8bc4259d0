// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/ewc.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/schedule.hpp>
#include <ruvector/train/sgd.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/trials.hpp"
#include "train/small_net.hpp"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

namespace ruvector_test_fit {
namespace {

using namespace ruvector;
using namespace train;
using small_net::Data;
using small_net::same_bits;
using Net = small_net::Net<float>;
using Objective = small_net::Objective<float>;
using State = FitState<Net, Adam<Net>, BurnIn<ReduceOnPlateau>, SynapticIntelligence<Net>>;

static_assert(train::Objective<Objective, Net>);
static_assert(!train::Objective<Objective, small_net::Net<double>>);
static_assert(Checkpointable<State>);
static_assert(RegularizerFor<NoRegularizer, Net> && !ObservingRegularizerFor<NoRegularizer, Net>);

// 70 samples in batches of 16 (the last of 6), so that nothing fits evenly.
struct Problem {
  Rng rng{7};
  Data<float> data{70, 5, 3, rng};
  Objective objective{data};
  FitConfig config{.epochs = 4, .batch_size = 16, .micro_batch = 4, .max_gradient_norm = 1};

  [[nodiscard]] State start() const {
    Rng own(11);
    Net net(5, 6, 3, own);
    State state(net, Adam(net, {.learning_rate = 0.02, .amsgrad = true}), own,
                BurnIn<ReduceOnPlateau>{.steps = 1, .factor = 0.1, .next = ReduceOnPlateau({.patience = 2})},
                SynapticIntelligence<Net>(net));
    return state;
  }
};

// Everything a state remembers, byte by byte.
std::string bytes(const State& state) {
  std::string all;
  for_each_state(
      [&](std::string_view path, auto span) {
        all += path;
        all.append(reinterpret_cast<const char*>(span.data()), span.size_bytes());
      },
      state);
  return all;
}

TEST_CASE("fit: learns, and the loss says so", "[train][fit]") {
  Problem p;
  State state = p.start();
  std::vector<EpochReport> epochs;
  p.config.epochs = 60;
  const FitResult result =
      fit(state, 70, p.objective, p.config,
          {.validate = {}, .epoch = [&](const EpochReport& e) { epochs.push_back(e); }, .checkpoint = {}});
  CHECK(result.end == FitEnd::finished);
  CHECK(result.steps == 60 * 5);
  REQUIRE(epochs.size() == 60);
  CHECK(epochs.front().epoch == 0);
  CHECK(epochs.front().factor == 0.1);
  CHECK(epochs.back().loss < 0.1 * epochs.front().loss);
  CHECK(result.loss == epochs.back().loss);
  CHECK(state.epoch == 60);
}

// Promises P-20 and P-23.
TEST_CASE("fit: one seed, one result: again, and with any number of workers", "[train][fit]") {
  Problem p;
  State serial = p.start();
  (void)fit(serial, 70, p.objective, p.config);
  const std::string expected = bytes(serial);
  ThreadPool one(1), two(2), three(3);
  const auto check = [&](auto&& executor) {
    State state = p.start();
    (void)fit(state, 70, p.objective, p.config, {}, executor);
    return bytes(state) == expected;
  };
  CHECK(check(one));
  CHECK(check(three));
  CHECK(check(support::Alternating()));
  const int repeats = support::trials(250, 60);
  int equal = 0;
  for (int i = 0; i < repeats; ++i) equal += check(two) ? 1 : 0;
  CHECK(equal == repeats);
}

TEST_CASE("fit: another seed, another order, another result", "[train][fit]") {
  Problem p;
  State a = p.start(), b = p.start();
  b.generator = Rng(12).state();
  (void)fit(a, 70, p.objective, p.config);
  (void)fit(b, 70, p.objective, p.config);
  CHECK_FALSE(same_bits(a.model, b.model));
}

// Promise P-15: 1000 steps; at step 500, in the middle of an epoch, all that is remembered goes through memory.
TEST_CASE("fit: goes on from its state with the same bits", "[train][fit]") {
  Problem p;
  p.config.epochs = 200;
  State whole = p.start();
  std::vector<std::vector<char>> saved;
  const auto save = [&](const State& state) {
    if (state.steps != 502) return;
    for_each_state(
        [&](std::string_view, auto span) {
          const auto* first = reinterpret_cast<const char*>(span.data());
          saved.emplace_back(first, first + span.size_bytes());
        },
        state);
  };
  FitHooks<State> hooks;
  hooks.validate = [](const State& state) { return state.epoch_loss / state.epoch_weight; };
  hooks.checkpoint = save;
  p.config.checkpoint_every = 1;
  (void)fit(whole, 70, p.objective, p.config, hooks);
  CHECK(whole.steps == 1000);

  State resumed = p.start();
  std::size_t k = 0;
  for_each_state(
      [&](std::string_view, auto span) {
        REQUIRE(saved.at(k).size() == span.size_bytes());
        std::memcpy(span.data(), saved[k].data(), span.size_bytes());
        ++k;
      },
      resumed);
  CHECK(k == saved.size());
  CHECK(resumed.steps == 502);
  CHECK(resumed.position == 32);
  hooks.checkpoint = {};
  (void)fit(resumed, 70, p.objective, p.config, hooks);
  CHECK(bytes(resumed) == bytes(whole));
}

// Promise P-27: the step a stop falls into is not done, and nothing is lost.
TEST_CASE("fit: stops within a call of the objective, and goes on", "[train][fit]") {
  Problem p;
  p.config.epochs = 2;
  State whole = p.start();
  (void)fit(whole, 70, p.objective, p.config);
  ThreadPool pool(2);
  Index cancelled = 0;
  for (Index at = 1; at <= 2 * (4 * 4 + 2); ++at) {
    for (const bool parallel : {false, true}) {
      State state = p.start();
      std::stop_source stop;
      std::atomic<Index> calls = 0, late = 0;
      const auto objective = [&](const Net& net, std::span<const Index> samples, Net& grad, FitContext& context) {
        if (++calls == at) stop.request_stop();
        if (calls > at + 1) ++late;  // one may run beside the one that stops
        return p.objective(net, samples, grad, context);
      };
      const FitResult result = parallel ? fit(state, 70, objective, p.config, {}, pool, {}, stop.get_token())
                                        : fit(state, 70, objective, p.config, {}, Serial{}, {}, stop.get_token());
      REQUIRE(result.end == FitEnd::cancelled);
      REQUIRE(late == 0);
      const Index epoch = (at - 1) / 18, batch = (at - 1) % 18 / 4;  // 4 calls a batch, 2 for the last
      REQUIRE(state.steps == 5 * epoch + batch);
      REQUIRE(state.position == (batch == 0 && epoch == 1 ? 0 : 16 * batch));
      (void)fit(state, 70, p.objective, p.config);
      REQUIRE(bytes(state) == bytes(whole));
      ++cancelled;
    }
  }
  CHECK(cancelled == 72);
}

TEST_CASE("fit: what an objective or a hook throws leaves a state that goes on", "[train][fit]") {
  Problem p;
  p.config.epochs = 2;
  State whole = p.start();
  (void)fit(whole, 70, p.objective, p.config);
  State state = p.start();
  Index calls = 0;
  const auto objective = [&](const Net& net, std::span<const Index> samples, Net& grad, FitContext& context) {
    if (++calls % 7 == 0) throw std::runtime_error("no");
    return p.objective(net, samples, grad, context);
  };
  FitHooks<State> hooks;
  Index validations = 0, epochs = 0;
  hooks.validate = [&](const State& s) {
    if (++validations == 1) throw std::runtime_error("no");
    return s.epoch_loss / s.epoch_weight;
  };
  hooks.epoch = [&](const EpochReport&) {
    if (++epochs == 1) throw std::runtime_error("no");
  };
  hooks.checkpoint = [&](const State&) { throw std::runtime_error("no"); };
  int thrown = 0;
  for (bool done = false; !done;) {
    try {
      (void)fit(state, 70, objective, p.config, hooks);
      done = true;
    } catch (const std::runtime_error&) {
      REQUIRE(++thrown < 100);
    }
  }
  CHECK(thrown >= 8);
  CHECK(bytes(state) == bytes(whole));
}

// Promise P-36.
TEST_CASE("fit: every allocation may fail", "[train][fit]") {
  if (!support::allocations_counted()) return;  // sanitizers of clang
  Problem p;
  p.config.epochs = 1;
  State whole = p.start();
  (void)fit(whole, 70, p.objective, p.config);
  const std::string expected = bytes(whole);
  State state = p.start();
  const State start = state;
  std::ptrdiff_t equal = 0, failed = 0;
  const std::ptrdiff_t points = support::fail_each_allocation(
      [&] {
        state = start;  // allocates nothing: shapes agree
        (void)fit(state, 70, p.objective, p.config);
      },
      [&] {
        ++failed;
        (void)fit(state, 70, p.objective, p.config);  // goes on from wherever it was
        equal += bytes(state) == expected ? 1 : 0;
      });
  INFO("allocations that failed: " << points);
  CHECK(points > 20);
  CHECK(equal == failed);
}

// Promise P-35.
TEST_CASE("fit: steps allocate nothing", "[train][fit]") {
  if (!support::allocations_counted()) return;
  Problem p;
  const auto allocations = [&](Index epochs) {
    State state = p.start();
    p.config.epochs = epochs;
    return support::allocations_in([&] { (void)fit(state, 70, p.objective, p.config); });
  };
  const auto once = allocations(1);
  CHECK(allocations(7) == once);
}

TEST_CASE("fit: gradients of micro-batches add up to that of the batch", "[train][fit]") {
  Problem p;
  p.objective.noise = 0;
  p.data.labels[3] = -100;  // ignored: has no weight, wherever it falls
  Rng rng(5);
  const Net net(5, 6, 3, rng);
  const auto trained = [&](Index micro_batch) {
    FitState state(net, Sgd(net, {.learning_rate = 0.1}), rng);
    (void)fit(state, 70, p.objective, {.epochs = 3, .batch_size = 70, .micro_batch = micro_batch});
    return state.model;
  };
  const Net whole = trained(70);
  for (const Index micro_batch : {1, 7, 32}) {
    const Net parts = trained(micro_batch);
    for (std::size_t i = 0; i < whole.hidden.weight.span().size(); ++i)
      CHECK(double(parts.hidden.weight.span()[i]) == Approx(double(whole.hidden.weight.span()[i])).margin(1e-6));
  }
  // By hand: the mean over the 69 labels that count.
  Net hand = net, grad = zeros_like(net);
  Workspace ws;
  FitContext context{Rng(1), ws, 0};
  std::vector<Index> all;
  for (Index i = 0; i < 70; ++i) all.push_back(i);
  const LossSum loss = p.objective(net, all, grad, context);
  CHECK(loss.weight == 69);
  FitState state(net, Sgd(net, {.learning_rate = 0.1}), rng);
  (void)fit(state, 70, p.objective, {.epochs = 1, .batch_size = 70, .micro_batch = 70, .shuffle = false});
  for (std::size_t i = 0; i < grad.hidden.weight.span().size(); ++i)
    CHECK(double(state.model.hidden.weight.span()[i]) ==
          Approx(double(net.hidden.weight.span()[i]) - 0.1 / 69 * double(grad.hidden.weight.span()[i])).margin(1e-7));
}

// A model of one number, whose gradient is whatever the test says.
struct Number {
  using Scalar = double;
  double x = 0;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("x", self.x...);
  }
};

TEST_CASE("fit: every sample once an epoch, in a new order unless told otherwise", "[train][fit]") {
  for (const bool shuffle : {false, true}) {
    for (const bool drop_last : {false, true}) {
      FitState state(Number{}, Sgd(Number{}), Rng(3));
      std::vector<Index> seen;
      const auto objective = [&](const Number&, std::span<const Index> samples, Number&, FitContext&) {
        seen.insert(seen.end(), samples.begin(), samples.end());
        return LossSum{1, 1};
      };
      (void)fit(state, 23, objective,
                {.epochs = 2, .batch_size = 5, .micro_batch = 3, .shuffle = shuffle, .drop_last = drop_last});
      const std::size_t used = drop_last ? 20 : 23;
      REQUIRE(seen.size() == 2 * used);
      std::vector<Index> first(seen.begin(), seen.begin() + std::ptrdiff_t(used)),
          second(seen.begin() + std::ptrdiff_t(used), seen.end());
      CHECK((first == second) == !shuffle);
      CHECK(std::ranges::is_sorted(first) == !shuffle);
      for (auto* epoch : {&first, &second}) {
        std::ranges::sort(*epoch);
        CHECK(std::ranges::adjacent_find(*epoch) == epoch->end());
      }
    }
  }
}

TEST_CASE("fit: early stopping, the best model, the plateau, hooks in order", "[train][fit]") {
  const double metrics[] = {5, 4, 4, 3, 3, 3.5, 3, 2};
  FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1}), Rng(3), ReduceOnPlateau({.decay = 0.5, .patience = 2}));
  using S = decltype(state);
  const auto objective = [](const Number&, std::span<const Index> samples, Number& grad, FitContext&) {
    grad.x -= double(samples.size());  // x grows by the factor every step
    return LossSum{double(samples.size()), double(samples.size())};
  };
  FitHooks<S> hooks;
  std::vector<EpochReport> epochs;
  Index checkpoints = 0;
  hooks.validate = [&](const S& s) { return metrics[s.epoch]; };
  hooks.epoch = [&](const EpochReport& e) {
    CHECK(checkpoints == e.epoch);
    epochs.push_back(e);
  };
  hooks.checkpoint = [&](const S& s) { CHECK(s.epoch == ++checkpoints); };
  const FitConfig config{.epochs = 8, .batch_size = 10, .patience = 3};
  const FitResult result = fit(state, 10, objective, config, hooks);
  CHECK(result.end == FitEnd::early_stopped);
  CHECK(result.metric == 3);
  CHECK(result.loss == 1);
  REQUIRE(epochs.size() == 7);
  const bool better[] = {true, true, false, true, false, false, false};
  const double factors[] = {1, 1, 1, 1, 1, 1, 0.5};
  for (std::size_t e = 0; e < 7; ++e) {
    CHECK(epochs[e].better == better[e]);
    CHECK(epochs[e].metric == metrics[e]);
    CHECK(epochs[e].factor == factors[e]);
  }
  CHECK(state.best.x == 4);
  CHECK(state.model.x == 6.5);
  CHECK(checkpoints == 7);
  CHECK(fit(state, 10, objective, config, hooks).end == FitEnd::early_stopped);  // it stays so
  CHECK(state.model.x == 6.5);
}

TEST_CASE("fit: progress counts batches, checkpoints come every so many steps, schedules may count steps",
          "[train][fit]") {
  struct Halving {
    double operator()(Index step) const { return std::pow(0.5, double(step)); }
  };
  FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1}), Rng(3), Halving{});
  using S = decltype(state);
  const auto objective = [](const Number&, std::span<const Index> samples, Number& grad, FitContext&) {
    grad.x -= double(samples.size());
    return LossSum{2 * double(samples.size()), double(samples.size())};
  };
  Index last = 0, saved = 0;
  double seconds = 0;
  const Progress progress = [&](const ProgressReport& report) {
    CHECK(report.done == last + 1);
    CHECK(report.total == 6);
    CHECK(report.loss == 2);
    CHECK(report.seconds >= seconds);
    last = report.done;
    seconds = report.seconds;
  };
  FitHooks<S> hooks;
  hooks.checkpoint = [&](const S& s) { CHECK(s.steps == 2 * ++saved); };
  (void)fit(state, 5, objective,
            {.epochs = 2, .batch_size = 2, .micro_batch = 1, .schedule_by_epoch = false, .checkpoint_every = 2}, hooks,
            Serial{}, progress);
  CHECK(last == 6);
  CHECK(saved == 3);
  CHECK(state.model.x == 2 - std::pow(0.5, 5));
}

TEST_CASE("fit: a step that is not finite is not done", "[train][fit]") {
  for (const int kind : {0, 1}) {
    FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1}), Rng(3));
    Index calls = 0;
    const auto objective = [&](const Number&, std::span<const Index>, Number& grad, FitContext&) {
      const bool bad = ++calls == 4;
      grad.x -= bad && kind == 0 ? double(NAN) : 1.0;
      return LossSum{bad && kind == 1 ? double(INFINITY) : 1.0, 1};
    };
    const FitResult result = fit(state, 10, objective, {.epochs = 1, .batch_size = 1});
    CHECK(result.end == FitEnd::diverged);
    CHECK(state.model.x == 3);
    CHECK(state.steps == 3);
    CHECK(state.position == 3);
  }
}

TEST_CASE("fit: a batch without weight is passed over", "[train][fit]") {
  FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1, .momentum = 0.9}), Rng(3));
  const auto objective = [&](const Number&, std::span<const Index>, Number&, FitContext&) { return LossSum{}; };
  const FitResult result = fit(state, 10, objective, {.epochs = 2, .batch_size = 4});
  CHECK(result.end == FitEnd::finished);
  CHECK(result.loss == 0);
  CHECK(state.model.x == 0);
  CHECK(state.steps == 0);
}

TEST_CASE("fit: clips the gradient, with the penalty's in it", "[train][fit]") {
  const auto objective = [](const Number&, std::span<const Index>, Number& grad, FitContext&) {
    grad.x += 100;
    return LossSum{1, 1};
  };
  const auto moved = [&](const FitConfig& config) {
    FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1}), Rng(3));
    (void)fit(state, 1, objective, config);
    return state.model.x;
  };
  CHECK(moved({}) == -100);
  CHECK(moved({.max_gradient_norm = 2}) == Approx(-2).epsilon(1e-14));
  CHECK(moved({.max_gradient_value = 3}) == -3);
  CHECK(moved({.max_gradient_norm = 4, .max_gradient_value = 3}) == -3);

  Ewc<Number> ewc(Number{}, {.lambda = 2});
  ewc.consolidate(Number{.x = 10}, Number{.x = 7});
  FitState state(Number{}, Sgd(Number{}, {.learning_rate = 1}), Rng(3), Constant{}, ewc);
  (void)fit(state, 1, objective);
  CHECK(state.model.x == -(100 - 2 * 10 * 7.0));
}

TEST_CASE("fit: a regularizer that observes sees the gradient of the loss alone, and every step", "[train][fit]") {
  SynapticIntelligence<Number> synaptic(Number{}, {.strength = 1, .damping = 1});
  synaptic.consolidate(Number{});
  FitState state(Number{}, Sgd(Number{}, {.learning_rate = 0.5}), Rng(3), Constant{}, synaptic);
  const auto objective = [](const Number& model, std::span<const Index>, Number& grad, FitContext&) {
    grad.x += model.x - 2;  // ½ (x − 2)²
    return LossSum{1, 1};
  };
  (void)fit(state, 1, objective, {.epochs = 3});
  // x: 0, 1, 1.5, 1.75; −g Δx: 2·1, 1·0.5, 0.5·0.25
  CHECK(state.model.x == 1.75);
  state.regularizer.consolidate(state.model);
  CHECK(state.regularizer.importance().x == Approx(2.625 / (1.75 * 1.75 + 1)).epsilon(1e-14));
}

TEST_CASE("fit: options out of range are refused before anything changes", "[train][fit]") {
  FitState state(Number{}, Sgd(Number{}), Rng(3));
  const auto objective = [](const Number&, std::span<const Index>, Number&, FitContext&) { return LossSum{1, 1}; };
  CHECK_THROWS_AS(fit(state, 0, objective), ConfigError);
  CHECK_THROWS_AS(fit(state, -1, objective), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.epochs = -1}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.batch_size = 0}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.micro_batch = 0}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.drop_last = true}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.max_gradient_norm = -1}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.max_gradient_value = double(NAN)}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.patience = -1}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.least_improvement = -1}), ConfigError);
  CHECK_THROWS_AS(fit(state, 5, objective, {.checkpoint_every = -1}), ConfigError);
  CHECK(fit(state, 5, objective, {.epochs = 0}).end == FitEnd::finished);
  state.position = 6;
  CHECK_THROWS_AS(fit(state, 5, objective), ConfigError);
  CHECK(state.steps == 0);
}

}  // namespace
}  // namespace ruvector_test_fit
