// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/ewc.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/gradient_check.hpp>
#include <ruvector/train/state.hpp>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "train/optimizer_runs.hpp"
#include "train/small_net.hpp"

#include <algorithm>
#include <cmath>
#include <stop_token>
#include <vector>

namespace ruvector_test_ewc {
namespace {

using namespace ruvector;
using namespace train;
using Parts = optimizer_runs::Parts<double>;

static_assert(RegularizerFor<Ewc<Parts>, Parts> && !ObservingRegularizerFor<Ewc<Parts>, Parts>);
static_assert(ObservingRegularizerFor<SynapticIntelligence<Parts>, Parts>);
static_assert(!RegularizerFor<Ewc<Parts>, optimizer_runs::Parts<float>>);
static_assert(Checkpointable<Ewc<Parts>> && Checkpointable<SynapticIntelligence<Parts>>);

Parts random(Rng& rng, bool positive = false) {
  Parts parts;
  optimizer_runs::fill(parts, [&](Index) { return positive ? rng.uniform() : rng.normal(); });
  return parts;
}

// Three numbers, as in the tests of version 1.
template <class T>
struct Three {
  using Scalar = T;
  Vector<T> x{3};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("x", self.x...);
  }
};
template <class T>
Three<T> three(T a, T b, T c) {
  Three<T> result;
  result.x[0] = a, result.x[1] = b, result.x[2] = c;
  return result;
}

TEMPLATE_TEST_CASE("ewc: the numbers of version 1", "[train][ewc][v1]", float, double) {
  using T = TestType;
  Three<T> fisher;
  add_squared_gradient(three<T>(1, 2, 3), 1, fisher);
  CHECK(std::ranges::equal(fisher.x, three<T>(1, 4, 9).x));
  Three<T> mean;  // of two gradients
  add_squared_gradient(three<T>(1, 2, 3), 0.5, mean);
  add_squared_gradient(three<T>(3, 2, 1), 0.5, mean);
  CHECK(std::ranges::equal(mean.x, three<T>(5, 4, 5).x));

  Ewc ewc(fisher, {.lambda = 100});
  CHECK(ewc.tasks() == 0);
  CHECK(ewc.penalty(three<T>(1, 2, 3)) == 0);
  ewc.consolidate(fisher, three<T>(T(0.5), T(1), T(1.5)));
  CHECK(ewc.tasks() == 1);
  CHECK(ewc.penalty(three<T>(T(0.5), T(1), T(1.5))) == 0);
  const Three<T> up = three<T>(T(1.5), T(2), T(2.5)), down = three<T>(T(-0.5), T(0), T(0.5));
  CHECK(ewc.penalty(up) == 700);
  Three<T> gradient;
  ewc.add_gradient(up, gradient);
  CHECK(std::ranges::equal(gradient.x, three<T>(100, 400, 900).x));
  ewc.add_gradient(down, gradient);  // adds
  CHECK(std::ranges::equal(gradient.x, Three<T>{}.x));
  CHECK(ewc.penalty(three<T>(T(5.5), T(6), T(6.5))) == 25 * 700);
}

// Promise P-01.
TEST_CASE("ewc: gradients of the penalties", "[train][ewc][gradient]") {
  Rng rng(1);
  for (int trial = 0; trial < 20; ++trial) {
    const bool online = trial % 2 == 1;
    Ewc<Parts> ewc(Parts{}, {.lambda = 0.3, .online = online, .gamma = online ? 0.7 : 1.0});
    SynapticIntelligence<Parts> synaptic(random(rng), {.strength = 0.2, .damping = 0.05});
    for (int task = 0; task < trial % 4; ++task) {
      ewc.consolidate(random(rng, true), random(rng));
      synaptic.before_step(random(rng), random(rng));
      synaptic.after_step(random(rng));
      synaptic.consolidate(random(rng));
    }
    const Parts at = random(rng);
    Parts d_ewc, d_synaptic;
    ewc.add_gradient(at, d_ewc);
    synaptic.add_gradient(at, d_synaptic);
    const auto first = check_module_gradient([&](const Parts& x) { return ewc.penalty(x); }, at, d_ewc);
    const auto second = check_module_gradient([&](const Parts& x) { return synaptic.penalty(x); }, at, d_synaptic);
    INFO(to_string(first) << to_string(second));
    CHECK(first.passed);
    CHECK(second.passed);
  }
}

TEST_CASE("ewc: many tasks in two models are the sum over the tasks", "[train][ewc]") {
  Rng rng(2);
  Ewc<Parts> ewc(Parts{}, {.lambda = 3});
  std::vector<Parts> fishers, anchors;
  for (int task = 0; task < 6; ++task) {
    fishers.push_back(random(rng, true));
    anchors.push_back(random(rng));
    if (task == 2) fishers[2].scalar = 0;  // a parameter that did not matter
    ewc.consolidate(fishers.back(), anchors.back());
    const Parts at = random(rng);
    double expected = 0;
    Parts gradient, sum;
    ewc.add_gradient(at, gradient);
    for (int t = 0; t <= task; ++t) {
      for_each_parameter(
          [&](std::string_view, auto x, auto f, auto anchor, auto g) {
            for (std::size_t i = 0; i < x.size(); ++i) {
              expected += 1.5 * f[i] * (x[i] - anchor[i]) * (x[i] - anchor[i]);
              g[i] += 3 * f[i] * (x[i] - anchor[i]);
            }
          },
          at, fishers[std::size_t(t)], anchors[std::size_t(t)], sum);
    }
    CHECK(ewc.penalty(at) == Approx(expected).epsilon(1e-13));
    for_each_parameter(
        [&](std::string_view, auto actual, auto wanted) {
          CHECK(support::first_far(actual, wanted, {.relative = 1e-12, .absolute = 1e-13}) == -1);
        },
        gradient, sum);
  }
  CHECK(ewc.tasks() == 6);
}

TEST_CASE("ewc: online, older tasks fade and the latest parameters are the anchor", "[train][ewc]") {
  Ewc ewc(Three<double>{}, {.lambda = 2, .online = true, .gamma = 0.5});
  ewc.consolidate(three(8.0, 4.0, 2.0), three(1.0, 1.0, 1.0));
  ewc.consolidate(three(1.0, 1.0, 1.0), three(2.0, 0.0, 5.0));
  CHECK(std::ranges::equal(ewc.fisher().x, three(5.0, 3.0, 2.0).x));
  CHECK(std::ranges::equal(ewc.anchor().x, three(2.0, 0.0, 5.0).x));
  CHECK(ewc.penalty(three(3.0, 0.0, 5.0)) == 5);
  CHECK(ewc.penalty(ewc.anchor()) == 0);
}

using Net = small_net::Net<double>;

// The classifier of small_net, one sample at a time.
struct Likelihood {
  const small_net::Data<double>& data;

  [[nodiscard]] Index classes() const { return 3; }
  [[nodiscard]] Index label(Index sample) const { return data.labels[std::size_t(sample)]; }
  void forward(const Net& net, Index sample, std::span<double> logits, FitContext& context) const {
    auto frame = context.workspace.frame();
    const auto h = frame.matrix<double>(1, net.hidden.weight.rows());
    net.forward(data.x.view().rows(sample, 1), h, MatrixView<double>(logits.data(), 1, 3), context.workspace);
  }
  void backward(const Net& net, Index sample, std::span<const double> d_logits, Net& grad, FitContext& context) const {
    auto frame = context.workspace.frame();
    const auto h = frame.matrix<double>(1, net.hidden.weight.rows()), logits = frame.matrix<double>(1, 3);
    net.forward(data.x.view().rows(sample, 1), h, logits, context.workspace);
    net.backward(data.x.view().rows(sample, 1), h, MatrixView<const double>(d_logits.data(), 1, 3), grad,
                 context.workspace);
  }
};
static_assert(LikelihoodFor<Likelihood, Net>);

struct FisherProblem {
  Rng rng{3};
  small_net::Data<double> data{50, 4, 3, rng};
  Net net{4, 5, 3, rng};
  Likelihood likelihood{data};
  std::vector<Index> samples;

  FisherProblem() {
    for (Index i = 0; i < 50; ++i) samples.push_back(i);
  }

  // Plain loops over samples, classes and parameters, with derivatives of ln p by differences.
  [[nodiscard]] Net by_definition(bool empirical) const {
    Net fisher = zeros_like(net);
    Workspace ws;
    FitContext context{Rng(1), ws, 0};
    const auto log_p = [&](const Net& at, Index sample, Index y) {
      double logits[3];
      likelihood.forward(at, sample, logits, context);
      double sum = 0;
      for (const double x : logits) sum += std::exp(x);
      return logits[y] - std::log(sum);
    };
    for (const Index sample : samples) {
      for (Index y = 0; y < 3; ++y) {
        const double weight =
            empirical ? (y == data.labels[std::size_t(sample)] ? 1 : 0) : std::exp(log_p(net, sample, y));
        if (weight == 0) continue;
        Net moved = net;
        for_each_parameter(
            [&](std::string_view, std::span<double> x, std::span<double> f) {
              for (std::size_t i = 0; i < x.size(); ++i) {
                const double middle = x[i];
                x[i] = middle + 1e-5;
                const double above = log_p(moved, sample, y);
                x[i] = middle - 1e-5;
                const double derivative = (above - log_p(moved, sample, y)) / 2e-5;
                x[i] = middle;
                f[i] += weight * derivative * derivative / 50;
              }
            },
            moved, fisher);
      }
    }
    return fisher;
  }
};

void check_near(const Net& actual, const Net& expected, support::Tolerance tolerance) {
  for_each_parameter(
      [&](std::string_view path, auto a, auto e) {
        CAPTURE(path);
        CHECK(support::first_far(a, e, tolerance) == -1);
      },
      actual, expected);
}

TEST_CASE("ewc: the Fisher information is what its definition says", "[train][ewc]") {
  const FisherProblem p;
  for (const bool empirical : {false, true}) {
    Net fisher = zeros_like(p.net);
    const FisherConfig config{.kind = empirical ? FisherKind::empirical : FisherKind::exact, .micro_batch = 8};
    CHECK(add_fisher(p.net, p.samples, p.likelihood, fisher, Rng(1), config));
    check_near(fisher, p.by_definition(empirical), {.relative = 1e-6, .absolute = 1e-8});
    const Net once = fisher;
    CHECK(add_fisher(p.net, p.samples, p.likelihood, fisher, Rng(1), config));  // adds
    for_each_parameter(
        [](std::string_view, auto twice, auto first) {
          for (std::size_t i = 0; i < twice.size(); ++i) CHECK(twice[i] == 2 * first[i]);
        },
        fisher, once);
  }
}

TEST_CASE("ewc: sampled labels give the exact information in the mean", "[train][ewc]") {
  const FisherProblem p;
  Net exact = zeros_like(p.net), sum = zeros_like(p.net), square = zeros_like(p.net);
  (void)add_fisher(p.net, p.samples, p.likelihood, exact, Rng(1));
  const int runs = 400;
  for (int run = 0; run < runs; ++run) {
    Net one = zeros_like(p.net);
    (void)add_fisher(p.net, p.samples, p.likelihood, one, Rng(std::uint64_t(run)), {.kind = FisherKind::sampled});
    add_squared_gradient(one, 1.0 / runs, square);
    for_each_parameter([](std::string_view, auto s, auto x) { simd::axpy(1.0 / 400, x, s); }, sum, std::as_const(one));
  }
  for_each_parameter(
      [&](std::string_view, auto mean, auto second, auto expected) {
        for (std::size_t i = 0; i < mean.size(); ++i) {
          const double error = std::sqrt(std::max(0.0, second[i] - mean[i] * mean[i]) / runs);
          CHECK(std::abs(mean[i] - expected[i]) <= 5 * error + 1e-15);
        }
      },
      sum, square, exact);
}

TEST_CASE("ewc: the information has the same bits for any number of workers, and can be stopped", "[train][ewc]") {
  const FisherProblem p;
  for (const FisherKind kind : {FisherKind::exact, FisherKind::sampled, FisherKind::empirical}) {
    Net serial = zeros_like(p.net), two = zeros_like(p.net), pool = zeros_like(p.net);
    const FisherConfig config{.kind = kind, .micro_batch = 4};
    ThreadPool threads(2);
    (void)add_fisher(p.net, p.samples, p.likelihood, serial, Rng(4), config);
    (void)add_fisher(p.net, p.samples, p.likelihood, two, Rng(4), config, support::Alternating());
    (void)add_fisher(p.net, p.samples, p.likelihood, pool, Rng(4), config, threads);
    CHECK(small_net::same_bits(serial, two));
    CHECK(small_net::same_bits(serial, pool));

    std::stop_source stop;
    stop.request_stop();
    Net none = zeros_like(p.net);
    CHECK_FALSE(add_fisher(p.net, p.samples, p.likelihood, none, Rng(4), config, Serial{}, stop.get_token()));
    CHECK(small_net::same_bits(none, zeros_like(p.net)));
    CHECK(add_fisher(p.net, {}, p.likelihood, none, Rng(4), config));
    CHECK(small_net::same_bits(none, zeros_like(p.net)));
  }
}

TEST_CASE("ewc: what matters for the first task stays while the second is learned", "[train][ewc]") {
  // Two tasks on different inputs of one linear classifier: without the penalty the second overwrites the first.
  Rng rng(9);
  const small_net::Data<double> first(200, 6, 3, rng), second(200, 6, 3, rng);
  const auto loss_on = [&](const Net& net, const small_net::Data<double>& data) {
    Net grad = zeros_like(net);
    Workspace ws;
    FitContext context{Rng(1), ws, 0};
    std::vector<Index> all(200);
    for (Index i = 0; i < 200; ++i) all[std::size_t(i)] = i;
    return small_net::Objective<double>{data, 0}(net, all, grad, context).mean();
  };
  const Net start(6, 12, 3, rng);
  const auto train_on = [&](const Net& net, const small_net::Data<double>& data, auto regularizer) {
    FitState state(net, Adam(net, {.learning_rate = 0.01}), rng, Constant{}, std::move(regularizer));
    (void)fit(state, 200, small_net::Objective<double>{data, 0}, {.epochs = 40, .batch_size = 50});
    return state;
  };
  const auto learned = train_on(start, first, SynapticIntelligence(start, {.strength = 3}));
  Net fisher = zeros_like(start);
  std::vector<Index> all(200);
  for (Index i = 0; i < 200; ++i) all[std::size_t(i)] = i;
  (void)add_fisher(learned.model, all, Likelihood{first}, fisher, rng);
  Ewc<Net> ewc(start, {.lambda = 50});
  ewc.consolidate(fisher, learned.model);
  auto synaptic = learned.regularizer;
  synaptic.consolidate(learned.model);

  const double before = loss_on(learned.model, first);
  const double none = loss_on(train_on(learned.model, second, NoRegularizer{}).model, first) - before;
  const auto with_ewc = train_on(learned.model, second, ewc);
  const auto with_si = train_on(learned.model, second, synaptic);
  CAPTURE(before, none);
  CHECK(loss_on(with_ewc.model, first) - before < 0.5 * none);
  CHECK(loss_on(with_si.model, first) - before < 0.5 * none);
  CHECK(loss_on(with_ewc.model, second) < 0.5 * loss_on(learned.model, second));
}

TEST_CASE("ewc: what may not be is refused, and a refused task changes nothing", "[train][ewc]") {
  const Parts model;
  for (const double bad : {-1.0, double(NAN), double(INFINITY)}) {
    CHECK_THROWS_AS(Ewc(model, {.lambda = bad}), ConfigError);
    CHECK_THROWS_AS(Ewc(model, {.gamma = bad}), ConfigError);
    CHECK_THROWS_AS(SynapticIntelligence(model, {.strength = bad}), ConfigError);
    CHECK_THROWS_AS(SynapticIntelligence(model, {.damping = bad}), ConfigError);
  }
  CHECK_THROWS_AS(Ewc(model, {.gamma = 1.5}), ConfigError);
  CHECK_THROWS_AS(SynapticIntelligence(model, {.damping = 0}), ConfigError);
  Parts wrong;
  wrong.vector = Vector<double>(7);
  Rng rng(1);
  Ewc ewc(model);
  ewc.consolidate(random(rng, true), random(rng));
  SynapticIntelligence synaptic(model);
  const Ewc copy = ewc;
  CHECK_THROWS_AS(ewc.consolidate(wrong, model), ShapeError);
  CHECK_THROWS_AS(ewc.consolidate(model, wrong), ShapeError);
  CHECK_THROWS_AS(synaptic.consolidate(wrong), ShapeError);
  CHECK_THROWS_AS(ewc.penalty(wrong), ShapeError);
  CHECK(optimizer_runs::same_bits(ewc.fisher(), copy.fisher()));
  CHECK(optimizer_runs::same_bits(ewc.anchor(), copy.anchor()));
  CHECK(ewc.tasks() == 1);
  const FisherProblem p;
  Net fisher = zeros_like(p.net);
  CHECK_THROWS_AS(add_fisher(p.net, p.samples, p.likelihood, fisher, Rng(1), {.micro_batch = 0}), ConfigError);
}

TEST_CASE("ewc: penalties and steps allocate nothing", "[train][ewc]") {
  Rng rng(1);
  const Parts model = random(rng);
  Parts gradient;
  Ewc<Parts> ewc(model);
  SynapticIntelligence<Parts> synaptic(model);
  CHECK(support::allocations_in([&] {
          ewc.consolidate(model, model);
          (void)ewc.penalty(model);
          ewc.add_gradient(model, gradient);
          synaptic.before_step(model, gradient);
          synaptic.after_step(model);
          synaptic.consolidate(model);
          (void)synaptic.penalty(model);
          synaptic.add_gradient(model, gradient);
        }) == 0);
}

// Promise P-36. Consolidating allocates nothing, so what can fail comes before it.
TEST_CASE("ewc: any allocation may fail, and then nothing was added", "[train][ewc]") {
  const FisherProblem p;
  Net expected = zeros_like(p.net);
  (void)add_fisher(p.net, p.samples, p.likelihood, expected, Rng(1), {.micro_batch = 8});
  ThreadPool pool(2);
  const auto add = [&](auto& executor) {
    return [&](Net& fisher) {
      const Ewc<Net> ewc(p.net);
      const SynapticIntelligence<Net> synaptic(p.net);
      (void)add_fisher(p.net, p.samples, p.likelihood, fisher, Rng(1), {.micro_batch = 8}, executor);
    };
  };
  const auto make = [&] { return zeros_like(p.net); };
  const auto kept = [&](const Net& fisher) { return small_net::same_bits(fisher, zeros_like(p.net)); };
  const auto right = [&](const Net& fisher) { return small_net::same_bits(fisher, expected); };
  Serial serial;
  support::check_allocation_failures("add_fisher", make, add(serial), kept, right);
  support::check_allocation_failures("add_fisher, 2 threads", make, add(pool), kept, right);
}

}  // namespace
}  // namespace ruvector_test_ewc
