// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/mixture_of_experts.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/train/adam.hpp>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "support/laws.hpp"

namespace test_mixture_of_experts {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

constexpr Index router_dim = 6;
constexpr double temperatures[] = {1, 0.5, 2};

template <Real T>
using Three = MixtureOfExperts<NoisyTopKRouter<T>, ScaledDotProduct<T>, Flash<T>, Flash<T>>;
template <Real T>
using List = MixtureOfExpertsList<NoisyTopKRouter<T>, Flash<T>>;

template <template <class> class Mixture, Real T>
Mixture<T> mixture(const NoisyTopKRouterConfig& config, Rng& rng) {
  const auto score = [](int e) { return DotScore<T>({.temperature = T(temperatures[e])}); };
  if constexpr (requires(Mixture<T> m) { m.experts.size(); })
    return {NoisyTopKRouter<T>(config, rng), {Flash<T>(score(0)), Flash<T>(score(1)), Flash<T>(score(2))}};
  else
    return {NoisyTopKRouter<T>(config, rng), {ScaledDotProduct<T>(score(0)), Flash<T>(score(1)), Flash<T>(score(2))}};
}

/// All experts for all rows, so that no route changes when parameters move.
struct Everyone : Three<double> {};
/// The same by gates that do not sum to 1 if one is left out.
struct EveryoneOfList : List<double> {};

}  // namespace
}  // namespace test_mixture_of_experts

namespace laws {

namespace moe = test_mixture_of_experts;

template <class A>
struct MixtureSubject : SubjectDefaults {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  static void fit(Shape& shape) { shape.dim = moe::router_dim; }

  // Output of a softmax attention with this temperature, for query i.
  template <class R>
  static std::vector<R> expert(const Problem<T>& problem, Index i, R temperature, Order order) {
    const Index n = problem.key.rows(), d = problem.key.cols(), v = problem.value.cols();
    std::vector<R> weights(std::size_t(n), 0), out(std::size_t(v), 0);
    R top = -std::numeric_limits<R>::infinity(), sum = 0;
    for (Index j = 0; j < n; ++j) {
      R dot = 0;
      for (Index s = 0; s < d; ++s) {
        const Index c = order.reverse_dims ? d - 1 - s : s;
        dot += R(problem.query(i, c)) * R(problem.key(j, c));
      }
      dot /= std::sqrt(R(d)) * temperature;
      if (!problem.bias.empty()) dot += R(problem.bias(problem.bias.rows() == 1 ? 0 : i, j));
      weights[std::size_t(j)] = dot;
      if (problem.sees(i, j)) top = std::max(top, dot);
    }
    for (Index s = 0; s < n; ++s) {
      const Index j = order.reverse_keys ? n - 1 - s : s;
      if (!problem.sees(i, j)) continue;
      const R w = std::exp(weights[std::size_t(j)] - top);
      sum += w;
      for (Index c = 0; c < v; ++c) out[std::size_t(c)] += w * R(problem.value(j, c));
    }
    for (R& x : out) x /= sum;
    return out;
  }

  template <class R>
  static Reference<R> reference(const A& backend, const Problem<T>& problem, Order order) {
    const Index m = problem.query.rows(), v = problem.value.cols(), experts = backend.router.experts();
    constexpr R infinity = std::numeric_limits<R>::infinity();
    Reference<R> result{std::vector<R>(std::size_t(m * v), R(0)), std::vector<R>(std::size_t(m), -infinity)};
    for (Index i = 0; i < m; ++i) {
      bool sees_any = false;
      for (Index j = 0; j < problem.key.rows(); ++j) sees_any = sees_any || problem.sees(i, j);
      if (!sees_any) continue;
      std::vector<std::pair<R, Index>> logits;
      R all = 0, gates = 0;
      for (Index e = 0; e < experts; ++e) {
        R dot = 0;
        for (Index s = 0; s < moe::router_dim; ++s) {
          const Index c = order.reverse_dims ? moe::router_dim - 1 - s : s;
          dot += R(backend.router.gate.weight(e, c)) * R(problem.query(i, c));
        }
        logits.emplace_back(-dot, e);
        all += std::exp(dot);
      }
      std::ranges::sort(logits);
      logits.resize(std::size_t(backend.router.choices()));
      R chosen = 0;
      for (const auto& [logit, e] : logits) chosen += std::exp(-logit);
      for (const auto& [logit, e] : logits) {
        const bool of_chosen = backend.router.config().gates == GateMode::chosen;
        const R gate = std::exp(-logit) / (of_chosen ? chosen : all);
        const std::vector<R> out = expert<R>(problem, i, R(moe::temperatures[e]), order);
        for (Index c = 0; c < v; ++c) result.value[std::size_t(i * v + c)] += gate * out[std::size_t(c)];
        gates += gate;
      }
      result.log_sum_exp[std::size_t(i)] = std::log(gates);
    }
    return result;
  }
};

template <Real T>
struct Subject<moe::Three<T>> : MixtureSubject<moe::Three<T>> {
  static moe::Three<T> make(Rng& rng) {
    return moe::mixture<moe::Three, T>({.dim = moe::router_dim, .experts = 3, .choices = 2}, rng);
  }
};
template <Real T>
struct Subject<moe::List<T>> : MixtureSubject<moe::List<T>> {
  static moe::List<T> make(Rng& rng) {
    return moe::mixture<moe::List, T>(
        {.dim = moe::router_dim, .experts = 3, .choices = 1 + rng.below(2), .gates = GateMode::all}, rng);
  }
};
template <>
struct Subject<moe::Everyone> : MixtureSubject<moe::Everyone> {
  static moe::Everyone make(Rng& rng) {
    return {moe::mixture<moe::Three, double>(
        {.dim = moe::router_dim, .experts = 3, .choices = 3, .noise = false, .balance = 0, .z = 0}, rng)};
  }
};
template <>
struct Subject<moe::EveryoneOfList> : MixtureSubject<moe::EveryoneOfList> {
  static moe::EveryoneOfList make(Rng& rng) {
    return {moe::mixture<moe::List, double>({.dim = moe::router_dim,
                                             .experts = 3,
                                             .choices = 3,
                                             .gates = GateMode::all,
                                             .noise = false,
                                             .balance = 0,
                                             .z = 0},
                                            rng)};
  }
};

}  // namespace laws

namespace test_mixture_of_experts {
namespace {

using Backends = std::tuple<Three<float>, Three<double>, List<float>, List<double>>;
using SummingBackends = std::tuple<Three<float>, Three<double>>;
using SmoothBackends = std::tuple<Everyone, EveryoneOfList>;

static_assert(Router<NoisyTopKRouter<float>> && !Router<nn::Linear<float>>);
static_assert(DifferentiableAttention<Three<float>> && ScoringAttention<List<double>>);

TEMPLATE_LIST_TEST_CASE("mixture of experts: agrees with the formula", "[moe][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(301, 60);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: a hidden key is never touched", "[moe][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(303);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: what is not finite stays with those who see it", "[moe][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(304);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: a row depends on itself, bit for bit", "[moe][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(306);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: the order of keys does not matter", "[moe][law]", Backends) {
  laws::keys_are_a_set<TestType>(307);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: the second call allocates nothing", "[moe][law]", SmoothBackends) {
  laws::the_second_call_allocates_nothing<TestType>(308);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: a query that sees no key is silent", "[moe][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(309);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: gradients are right", "[moe][law]", SmoothBackends) {
  laws::gradients_are_right<TestType>(310, 15);
}
TEMPLATE_LIST_TEST_CASE("mixture of experts: weights sum to one and make the output", "[moe][law]", SummingBackends) {
  laws::weights_sum_to_one<TestType>(311);
}

TEST_CASE("mixture of experts: scores are the logarithms of weights", "[moe]") {
  Rng rng(312);
  Workspace ws;
  const auto backend = laws::Subject<List<double>>::make(rng);
  const laws::Problem<double> problem({.queries = 20, .keys = 30, .dim = router_dim, .mask = {.causal = true}}, rng);
  const laws::Result<double> result(backend, problem.input(), ws, true);
  Matrix<double> scores(20, 30);
  backend.scores(problem.input(), scores, ws);
  for (Index i = 0; i < 20; ++i) {
    double sum = 0;
    for (Index j = 0; j < 30; ++j) {
      CHECK(support::near(std::exp(scores(i, j)), result.weights(i, j), support::rounding<double>(16)));
      sum += std::exp(scores(i, j));
    }
    CHECK(support::near(std::log(sum), result.log_sum_exp[i], {.absolute = 1e-14}));
  }
}

/// A mixture, its problem, and the loss of a trainer: a linear function of all outputs + what the router adds.
struct Trained {
  List<double> backend;
  laws::Problem<double> problem;
  Matrix<double> g;
  Vector<double> g_lse;

  double loss(const List<double>& at, const AttentionInput<double>& in, List<double>::Saved& saved) const {
    Workspace ws;
    Matrix<double> value(g.rows(), g.cols());
    Vector<double> lse(g.rows());
    saved.rng = Rng(5);
    at.forward(in, {.value = value, .log_sum_exp = lse}, saved, ws);
    double sum = saved.auxiliary_loss;
    for (Index i = 0; i < g.rows(); ++i) {
      if (std::isfinite(lse[i])) sum += lse[i] * g_lse[i];
      sum += simd::dot<double>(value.row(i), g.row(i));
    }
    return sum;
  }

  /// How far logits are from another route.
  double margin(const List<double>::Saved& saved) const {
    double least = 1;
    for (Index i = 0; i < g.rows(); ++i) {
      std::vector<double> p(saved.probability.row(i).begin(), saved.probability.row(i).end());
      std::ranges::sort(p, std::greater{});
      for (std::size_t e = 0; e + 1 < p.size(); ++e) least = std::min(least, std::log(p[e] / p[e + 1]));
    }
    return least;
  }
};

TEST_CASE("mixture of experts: gradients are right for a fixed route, with all losses of the router", "[moe]") {
  Rng rng(313);
  Workspace ws;
  int checked = 0;
  for (int c = 0; c < 400 && checked < 24; ++c) {
    NoisyTopKRouterConfig config{.dim = router_dim, .experts = 3, .balance = 0.3, .z = 0.2, .importance = 0.1};
    config.choices = 1 + checked % 2;
    config.gates = config.choices == 1 || checked % 3 == 0 ? GateMode::all : GateMode::chosen;
    config.noise = checked % 5 < 3;
    config.overflow = Overflow(checked % 3);
    config.capacity_factor = 0.7;
    const Index m = 7;
    laws::Shape shape{.queries = m, .keys = 9, .dim = router_dim, .bias = checked % 2 == 0};
    shape.mask = {.causal = true, .window_left = 4};
    Trained t{mixture<List, double>(config, rng), laws::Problem<double>(shape, rng),
              laws::Problem<double>::random(m, shape.value_dim, rng, 1), Vector<double>(m)};
    if (config.noise)
      for (double& w : t.backend.router.noise.weight.span()) w = 0.3 * rng.normal();
    for (double& x : t.g_lse) x = rng.normal();
    const AttentionInput<double> in = t.problem.input();
    List<double>::Saved saved, other;
    t.loss(t.backend, in, saved);
    if (t.margin(saved) < 5e-3) continue;
    ++checked;
    Matrix<double> d_query(m, router_dim), d_key(9, router_dim), d_value(9, shape.value_dim),
        d_bias(t.problem.bias.rows(), t.problem.bias.cols());
    List<double> grad = zeros_like(t.backend);
    t.backend.backward(in, saved, {t.g, t.g_lse}, {d_query, d_key, d_value, d_bias}, grad, ws);
    CAPTURE(c, checked, config.choices, int(config.gates), config.noise, int(config.overflow));
    const auto check = [&](const Matrix<double>& x, const Matrix<double>& gradient,
                           MatrixView<const double> AttentionInput<double>::*member) {
      const auto result = train::check_gradient(
          [&](std::span<const double> values) {
            AttentionInput<double> moved = in;
            moved.*member = MatrixView<const double>(values.data(), x.rows(), x.cols());
            return t.loss(t.backend, moved, other);
          },
          x.span(), gradient.span());
      INFO(to_string(result));
      CHECK(result.passed);
    };
    check(t.problem.query, d_query, &AttentionInput<double>::query);
    check(t.problem.key, d_key, &AttentionInput<double>::key);
    check(t.problem.value, d_value, &AttentionInput<double>::value);
    if (shape.bias) check(t.problem.bias, d_bias, &AttentionInput<double>::bias);
    const auto parameters =
        train::check_module_gradient([&](const List<double>& a) { return t.loss(a, in, other); }, t.backend, grad);
    INFO(to_string(parameters));
    CHECK(parameters.passed);
  }
  CHECK(checked == 24);
}

TEST_CASE("router: the balance loss is its factor where experts are used alike", "[moe]") {
  Rng rng(314);
  Workspace ws;
  const Index n = 4;
  for (const Index k : {1, 2}) {
    NoisyTopKRouter<double> router(
        {.dim = n, .experts = n, .choices = k, .gates = GateMode::all, .noise = false, .balance = 0.25, .z = 0}, rng);
    Matrix<double> x(n, n);
    for (Index i = 0; i < n; ++i)
      for (Index e = 0; e < n; ++e) {
        router.gate.weight(e, i) = 0;
        x(i, e) = double((i + e) % n);  // each row prefers another expert
      }
    for (Index e = 0; e < n; ++e) router.gate.weight(e, e) = 1;
    const std::vector<std::uint8_t> active(std::size_t(n), 1);
    auto frame = ws.frame();
    auto routing = Routing<double>::in_frame(frame, n, n, k);
    Workspace scratch;
    router.route(x, active, nullptr, routing, scratch);
    CHECK(support::near(routing.auxiliary_loss, 0.25, support::rounding<double>(16)));
    for (const Index rows : routing.assigned) CHECK(rows == k);
    // Everybody to one expert: worse.
    for (Index e = 0; e < n; ++e) router.gate.weight(0, e) = 10;
    router.route(x, active, nullptr, routing, scratch);
    CHECK(routing.auxiliary_loss > 0.3);
  }
}

TEST_CASE("router: the gradient of the balance loss moves a skewed router towards balance", "[moe]") {
  Rng rng(315);
  Workspace ws;
  const Index m = 256, n = 4, d = 8;
  NoisyTopKRouter<double> router(
      {.dim = d, .experts = n, .choices = 1, .gates = GateMode::all, .noise = false, .balance = 1, .z = 0}, rng);
  for (double& w : router.gate.weight.row(2)) w += 0.4;
  auto x = laws::Problem<double>::random(m, d, rng, 1);
  for (double& e : x.span()) e += 0.5;
  const std::vector<std::uint8_t> active(std::size_t(m), 1);
  const Matrix<double> d_gate(m, 1);
  auto frame = ws.frame();
  auto routing = Routing<double>::in_frame(frame, m, n, 1);
  Workspace scratch;
  train::Adam adam(router, {.learning_rate = 0.02});
  Index first = 0;
  double first_loss = 0;
  for (int step = 0; step < 200; ++step) {
    router.route(x, active, nullptr, routing, scratch);
    if (step == 0) first = *std::ranges::max_element(routing.assigned), first_loss = routing.auxiliary_loss;
    auto grad = zeros_like(router);
    router.backward(x, routing, d_gate, {}, grad, scratch);
    adam.step(router, grad);
  }
  CHECK(first > m / 2);
  CHECK(first_loss > 1.2);
  CHECK(*std::ranges::max_element(routing.assigned) < m * 2 / n);
  CHECK(routing.auxiliary_loss < 1.05);
}

TEST_CASE("router: limited room, by dropping and by next choices", "[moe]") {
  Rng rng(316);
  Workspace ws;
  const Index m = 10, n = 4;
  Matrix<double> x(m, 1, 1);
  const auto run = [&](Overflow overflow, Index k, auto&& check) {
    NoisyTopKRouter<double> router({.dim = 1,
                                    .experts = n,
                                    .choices = k,
                                    .gates = GateMode::all,
                                    .noise = false,
                                    .overflow = overflow,
                                    .capacity_factor = 1},
                                   rng);
    for (Index e = 0; e < n; ++e) router.gate.weight(e, 0) = double(n - e);  // all rows want 0, then 1, …
    const std::vector<std::uint8_t> active(std::size_t(m), 1);
    auto frame = ws.frame();
    auto routing = Routing<double>::in_frame(frame, m, n, k);
    Workspace scratch;
    router.route(x, active, nullptr, routing, scratch);
    CHECK(routing.chosen[0] == m);
    check(routing);
  };
  run(Overflow::none, 1, [&](const Routing<double>& r) {
    CHECK(r.assigned[0] == m);
    CHECK(r.dropped == 0);
  });
  run(Overflow::drop, 1, [&](const Routing<double>& r) {
    CHECK(r.assigned[0] == 3);  // ⌈10/4⌉
    CHECK(r.dropped == 7);
    for (Index i = 0; i < m; ++i) CHECK((r.kept(i, 0) != 0) == (i < 3));
  });
  run(Overflow::next_choice, 1, [&](const Routing<double>& r) {
    for (Index i = 0; i < m; ++i) CHECK(r.expert(i, 0) == i / 3);
    CHECK(r.dropped == 0);
  });
  run(Overflow::drop, 2, [&](const Routing<double>& r) {
    CHECK(r.assigned[0] == 5);
    CHECK(r.assigned[1] == 5);
    CHECK(r.dropped == 10);
  });
  run(Overflow::next_choice, 2, [&](const Routing<double>& r) {
    for (Index e = 0; e < n; ++e) CHECK(r.assigned[std::size_t(e)] == 5);
    for (Index i = 0; i < m; ++i) CHECK(r.expert(i, 0) != r.expert(i, 1));
    CHECK(r.dropped == 0);
  });
}

TEST_CASE("router: equal logits go to smaller numbers, and NaN comes last", "[moe]") {
  Rng rng(317);
  Workspace ws;
  NoisyTopKRouter<float> router({.dim = 1, .experts = 4, .choices = 2, .noise = false}, rng);
  for (float& w : router.gate.weight.span()) w = 1;
  const Matrix<float> x(1, 1, 1);
  const std::uint8_t active[] = {1};
  auto frame = ws.frame();
  auto routing = Routing<float>::in_frame(frame, 1, 4, 2);
  Workspace scratch;
  router.route(x, active, nullptr, routing, scratch);
  CHECK((routing.expert(0, 0) == 0 && routing.expert(0, 1) == 1));
  router.gate.weight(0, 0) = std::numeric_limits<float>::quiet_NaN();
  router.route(x, active, nullptr, routing, scratch);
  CHECK((routing.expert(0, 0) == 1 && routing.expert(0, 1) == 2));
}

TEST_CASE("router: options out of range are refused", "[moe]") {
  Rng rng(318);
  const auto refused = [&](const NoisyTopKRouterConfig& config) {
    CHECK_THROWS_AS(NoisyTopKRouter<float>(config, rng), ConfigError);
  };
  refused({.dim = 0, .experts = 2});
  refused({.dim = 1, .experts = 0});
  refused({.dim = 1, .experts = 2, .choices = 3});
  refused({.dim = 1, .experts = 2, .choices = 1});  // its gate would be 1, with gradient 0
  refused({.dim = 1, .experts = 2, .choices = 0, .gates = GateMode::all});
  refused({.dim = 1, .experts = 2, .balance = -1});
  refused({.dim = 1, .experts = 2, .capacity_factor = std::numeric_limits<double>::quiet_NaN()});
}

/// Counts the rows that it computes.
struct Counting : Flash<float> {
  Index* rows = nullptr;
  void forward(const AttentionInput<float>& in, const AttentionOutput<float>& out, Workspace& ws) const {
    *rows += in.query.rows();
    Flash<float>::forward(in, out, ws);
  }
};
static_assert(AttentionBackend<Counting>);

TEST_CASE("mixture of experts: experts compute the rows routed to them and no others", "[moe]") {
  const Overflow overflow = GENERATE(Overflow::none, Overflow::drop, Overflow::next_choice);
  Rng rng(319);
  Workspace ws;
  Index rows[3] = {};
  MixtureOfExpertsList<NoisyTopKRouter<float>, Counting> backend{
      NoisyTopKRouter<float>(
          {.dim = router_dim, .experts = 3, .choices = 2, .overflow = overflow, .capacity_factor = 0.8}, rng),
      std::vector<Counting>(3)};
  for (std::size_t e = 0; e < 3; ++e) backend.experts[e].rows = &rows[e];
  const laws::Problem<float> problem({.queries = 40, .keys = 20, .dim = router_dim}, rng);
  Matrix<float> value(40, 3);
  backend.forward(problem.input(), {.value = value}, ws);

  const std::vector<std::uint8_t> active(40, 1);
  auto frame = ws.frame();
  auto routing = Routing<float>::in_frame(frame, 40, 3, 2);
  Workspace scratch;
  backend.router.route(problem.query, active, nullptr, routing, scratch);
  CHECK(rows[0] + rows[1] + rows[2] == 80 - routing.dropped);
  CHECK((routing.dropped > 0) == (overflow != Overflow::none));
  for (std::size_t e = 0; e < 3; ++e) CHECK(rows[e] == routing.assigned[e]);
}

TEST_CASE("mixture of experts: noise is drawn in training alone, and again from the same seed", "[moe]") {
  Rng rng(320);
  Workspace ws;
  const bool dropout = GENERATE(false, true);  // of the experts, in place of the router's noise
  auto backend = mixture<List, float>({.dim = router_dim, .experts = 3, .noise = !dropout}, rng);
  for (Flash<float>& expert : backend.experts) expert.dropout = dropout ? 0.3f : 0.0f;
  const laws::Problem<float> problem({.queries = 50, .keys = 10, .dim = router_dim}, rng);
  Matrix<float> a(50, 3), b(50, 3);
  List<float>::Saved saved;
  const auto train = [&](Matrix<float>& value) { backend.forward(problem.input(), {.value = value}, saved, ws); };
  const auto infer = [&](Matrix<float>& value) { backend.forward(problem.input(), {.value = value}, ws); };
  infer(a), infer(b);
  CHECK(support::same_bits(a.span(), b.span()));
  saved.rng = Rng(1), train(a);
  CHECK(!support::same_bits(a.span(), b.span()));
  train(b);
  CHECK(!support::same_bits(a.span(), b.span()));
  saved.rng = Rng(1), train(b);
  CHECK(support::same_bits(a.span(), b.span()));
}

TEST_CASE("mixture of experts: one choice trains where gates are those of all experts", "[moe]") {
  // Two clusters of queries want the key with the largest and the smallest product: experts of opposite scale.
  Rng rng(321);
  Workspace ws;
  const Index m = 64, d = 4;
  List<double> backend{
      NoisyTopKRouter<double>(
          {.dim = d, .experts = 2, .choices = 1, .gates = GateMode::all, .balance = 1e-2, .z = 1e-3}, rng),
      {Flash<double>(DotScore<double>({.scale = 4.0})), Flash<double>(DotScore<double>({.scale = -4.0}))}};
  auto query = laws::Problem<double>::random(m, d, rng, 1);
  for (Index i = 0; i < m; ++i) query(i, 0) = i % 2 == 0 ? 2 : -2;
  const auto key = laws::Problem<double>::random(8, d, rng, 1), value = laws::Problem<double>::random(8, 2, rng, 1);
  const AttentionInput<double> in{.query = query, .key = key, .value = value};
  Matrix<double> wanted(m, 2), out(m, 2), d_value(m, 2);
  for (Index e = 0; e < 2; ++e) {
    Matrix<double> all(m, 2);
    backend.experts[std::size_t(e)].forward(in, {.value = all}, ws);
    for (Index i = e; i < m; i += 2) std::ranges::copy(all.row(i), wanted.row(i).begin());
  }
  train::Adam adam(backend, {.learning_rate = 0.05});
  List<double>::Saved saved;
  double first = 0, last = 0;
  for (int step = 0; step < 150; ++step) {
    backend.forward(in, {.value = out}, saved, ws);
    double loss = 0;
    for (Index i = 0; i < m; ++i)
      for (Index c = 0; c < 2; ++c) {
        d_value(i, c) = 2 * (out(i, c) - wanted(i, c)) / double(m);
        loss += (out(i, c) - wanted(i, c)) * (out(i, c) - wanted(i, c)) / double(m);
      }
    if (step == 0) first = loss;
    last = loss;
    auto grad = zeros_like(backend);
    backend.backward(in, saved, {.value = d_value}, {{}, {}, {}}, grad, ws);
    adam.step(backend, grad);
  }
  CAPTURE(first, last);
  CHECK(last < first / 10);
  backend.forward(in, {.value = out}, ws);
  CHECK(saved.assigned[0] == m / 2);
}

}  // namespace
}  // namespace test_mixture_of_experts
