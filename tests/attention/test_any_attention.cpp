// SPDX-License-Identifier: MIT
#include <ruvector/attention/any_attention.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/attention/linear_attention.hpp>
#include <ruvector/attention/mixture_of_experts.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/riemannian_sgd.hpp>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "support/laws.hpp"

namespace laws {

/// Holds one of the softmax engines.
template <Real T>
struct Subject<AnyAttention<T>> : SoftmaxSubject<AnyAttention<T>> {
  static AnyAttention<T> make(Rng& rng) {
    if (rng.below(2) == 0) return ScaledDotProduct<T>();
    return Flash<T>();
  }
  template <class R>
  static R logit(const AnyAttention<T>&, std::span<const T> q, std::span<const T> k) {
    R dot = 0;
    for (std::size_t i = 0; i < q.size(); ++i) dot += R(q[i]) * R(k[i]);
    return dot / std::sqrt(R(q.size()));
  }
};

}  // namespace laws

namespace test_any_attention {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

constexpr Index dim = 6;

template <Real T>
using Mixture = MixtureOfExpertsList<NoisyTopKRouter<T>, AnyAttention<T>>;

/// Experts of three kinds, as a layer configured at run time has them.
template <Real T>
Mixture<T> mixture(Rng& rng) {
  return {NoisyTopKRouter<T>({.dim = dim, .experts = 3, .choices = 2}, rng),
          {ScaledDotProduct<T>(), Flash<T>(DotScore<T>({.scale = T(0.2)})), LinearAttention<nn::EluPlusOne<T>>()}};
}

}  // namespace
}  // namespace test_any_attention

namespace laws {

template <Real T>
struct Subject<test_any_attention::Mixture<T>> : SubjectDefaults {
  static void fit(Shape& shape) {
    shape.dim = test_any_attention::dim;
    shape.bias = false;
    shape.allowed_row = true;
    shape.mask.window_left = shape.mask.window_right = Mask::unlimited;
  }
  static test_any_attention::Mixture<T> make(Rng& rng) { return test_any_attention::mixture<T>(rng); }
};

}  // namespace laws

namespace test_any_attention {
namespace {

using Backends = std::tuple<AnyAttention<float>, AnyAttention<double>>;
using Mixtures = std::tuple<Mixture<float>, Mixture<double>>;
using DoubleBackends = std::tuple<AnyAttention<double>>;

static_assert(DifferentiableAttention<AnyAttention<float>> && ScoringAttention<AnyAttention<double>>);
static_assert(EdgeAwareAttention<AnyAttention<float>> && PositionalAttention<AnyAttention<float>>);
static_assert(PreparedAttention<AnyAttention<double>> &&
              PreparedAttention<MixtureOfExpertsList<NoisyTopKRouter<float>, AnyAttention<float>>>);
static_assert(std::convertible_to<Flash<float>, AnyAttention<float>>);
static_assert(!std::convertible_to<Flash<double>, AnyAttention<float>> &&
              !std::convertible_to<Matrix<float>, AnyAttention<float>>);

TEMPLATE_LIST_TEST_CASE("any attention: agrees with the formula", "[any][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(401, 60);
}
TEMPLATE_LIST_TEST_CASE("any attention: a hidden key is never touched", "[any][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(403);
}
TEMPLATE_LIST_TEST_CASE("any attention: what is not finite stays with those who see it", "[any][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(404);
}
TEMPLATE_LIST_TEST_CASE("any attention: huge logits are safe", "[any][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(405);
}
TEMPLATE_LIST_TEST_CASE("any attention: a row depends on itself, bit for bit", "[any][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(406);
}
TEMPLATE_LIST_TEST_CASE("any attention: the second call allocates nothing", "[any][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(408);
}
TEMPLATE_LIST_TEST_CASE("any attention: a query that sees no key is silent", "[any][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(409);
}
TEMPLATE_LIST_TEST_CASE("any attention: gradients are right", "[any][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(410, 8);
}

TEMPLATE_LIST_TEST_CASE("any attention: a mixture of kinds keeps the laws", "[any][law]", Mixtures) {
  laws::a_hidden_key_is_never_touched<TestType>(420);
  laws::nan_stays_in_its_row<TestType>(421);
  laws::a_row_depends_on_itself<TestType>(422);
  laws::keys_are_a_set<TestType>(423);
  laws::a_blind_query_is_silent<TestType>(424);
}

/// Calls body(backend) for backends of many kinds.
template <class Body>
void for_each_backend(Rng& rng, Body&& body) {
  body(ScaledDotProduct<float>(DotScore<float>({.temperature = 0.7f})));
  body(Flash<float>(DotScore<float>({.softcap = 2}), {}, 0.3f));
  body(LinearAttention<>());
  body(LinearAttention<nn::FavorPlus<float>>{nn::FavorPlus<float>({.dim = dim, .features = 11}, rng)});
  body(MultiHead<Flash<float>>({.dim = dim, .heads = 2}, rng));
  body(MultiHead<AnyAttention<float>>({.dim = dim, .heads = 2}, rng, Flash<float>()));
  body(GatV2<float>({.source_dim = dim, .heads = 2, .channels = 3}, rng));
  body(GraphRope<Flash<float>>({.rotary_dim = 4}, rng));
  body(mixture<float>(rng));
}

/// Everything that training computes.
struct Pass {
  Matrix<float> value, d_query, d_key, d_value;
  std::vector<float> d_parameters;
  std::vector<std::string> paths;

  template <class A>
  Pass(const A& backend, const AttentionInput<float>& in) {
    const Index m = in.query.rows(), n = in.key.rows();
    value = Matrix<float>(m, backend.output_dim(in.value.cols()));
    d_query = Matrix<float>(m, in.query.cols());
    d_key = Matrix<float>(n, in.key.cols());
    d_value = Matrix<float>(n, in.value.cols());
    Workspace ws;
    typename A::Saved saved;
    if constexpr (requires { saved.rng = Rng(3); }) saved.rng = Rng(3);
    A grad = zeros_like(backend);
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second pass draws other numbers, and reuses `saved`
      backend.forward(in, {.value = value}, saved, ws);
      backend.backward(in, saved, {.value = value}, {d_query, d_key, d_value}, grad, ws);
    }
    for_each_parameter(
        [&](std::string_view path, std::span<const float> x) {
          paths.emplace_back(path);
          d_parameters.insert(d_parameters.end(), x.begin(), x.end());
        },
        std::as_const(grad));
  }
};

TEST_CASE("any attention: what it holds computes the same bits", "[any]") {
  Rng rng(411);
  Workspace ws;
  const laws::Problem<float> problem(
      {.queries = 30, .keys = 30, .dim = dim, .value_dim = dim, .mask = {.causal = true}}, rng);
  const AttentionInput<float> in = problem.input();
  for_each_backend(rng, [&]<class A>(const A& backend) {
    const AnyAttention<float> any = backend;
    REQUIRE(any.template get_if<A>() != nullptr);
    CHECK(any.output_dim(dim) == backend.output_dim(dim));
    CHECK(any.trains());
    CHECK(any.has_scores() == ScoringAttention<A>);
    CHECK(any.sees_edges() == EdgeAwareAttention<A>);
    CHECK(any.sees_positions() == PositionalAttention<A>);
    Matrix<float> a(30, any.output_dim(dim)), b = a;
    backend.forward(in, {.value = a}, ws);
    any.forward(in, {.value = b}, ws);
    CHECK(support::same_bits(a.span(), b.span()));
    const Pass of_backend(backend, in), of_any(any, in);
    CHECK(support::same_bits(of_backend.value.span(), of_any.value.span()));
    CHECK(support::same_bits(of_backend.d_query.span(), of_any.d_query.span()));
    CHECK(support::same_bits(of_backend.d_key.span(), of_any.d_key.span()));
    CHECK(support::same_bits(of_backend.d_value.span(), of_any.d_value.span()));
    CHECK(support::same_bits(of_backend.d_parameters, of_any.d_parameters));
    CHECK(of_backend.paths == of_any.paths);
    if constexpr (ScoringAttention<A>) {
      Matrix<float> x(30, 30), y(30, 30);
      backend.scores(in, x, ws);
      any.scores(in, y, ws);
      CHECK(support::same_bits(x.span(), y.span()));
    }
  });
}

TEST_CASE("any attention: edges and positions reach those who see them", "[any]") {
  Rng rng(412);
  Workspace ws;
  const Index m = 5, n = 7;
  const laws::Problem<float> problem({.queries = m, .keys = n, .dim = dim, .value_dim = dim}, rng);
  const AttentionInput<float> in = problem.input();
  const auto features = laws::Problem<float>::random(m * n, 2, rng, 1), at = laws::Problem<float>::random(n, 1, rng, 1);
  const auto check = [&]<class A, class Side>(const A& backend, const Side& side, auto make_gradient) {
    const AnyAttention<float> any = backend;
    const Index columns = backend.output_dim(dim);
    const auto pass = [&]<class B>(const B& b) {
      Matrix<float> value(m, columns), trained(m, columns), d_query(m, dim), scores(m, n), d_features(m * n, 2),
          d_at(n, 1);
      typename B::Saved saved;
      B grad = zeros_like(b);
      b.forward(in, side, {.value = value}, ws);
      b.scores(in, side, scores, ws);
      b.forward(in, side, {.value = trained}, saved, ws);
      b.backward(in, side, saved, {.value = value}, {.query = d_query, .key = {}, .value = {}},
                 make_gradient(d_features, d_at), grad, ws);
      return std::vector{value, trained, d_query, scores, d_features, d_at};
    };
    const auto a = pass(backend), b = pass(any);
    for (std::size_t k = 0; k < a.size(); ++k) CHECK(support::same_bits(a[k].span(), b[k].span()));
    CHECK(parameter_count(any) == parameter_count(backend));
  };
  check(GatV2<float>({.source_dim = dim, .edge_dim = 2, .channels = 4}, rng), EdgeFeatures<float>{features},
        [](Matrix<float>& d_features, Matrix<float>&) { return EdgeFeatures<float>::Gradient{d_features}; });
  check(GraphRope<Flash<float>>({.rotary_dim = 4}, rng), GraphPositions<float>{at.view().rows(0, m), at},
        [&](Matrix<float>&, Matrix<float>& d_at) {
          return GraphPositions<float>::Gradient{d_at.view().rows(0, m), {}};
        });
}

TEST_CASE("any attention: prepared keys give the same bits, whole, grown and picked", "[any]") {
  Rng rng(417);
  Workspace ws;
  const laws::Problem<float> problem({.queries = 9, .keys = 9, .dim = dim, .value_dim = dim, .mask = {.causal = true}},
                                     rng);
  const AttentionInput<float> in = problem.input();
  AnyAttention<float>::Prepared prepared, copy, picked;  // one after the other for all backends
  for_each_backend(rng, [&](const AnyAttention<float>& any) {
    Matrix<float> expected(9, any.output_dim(dim)), value = expected;
    any.forward(in, {.value = expected}, ws);
    any.prepare(in.key.rows(0, 4), in.value.rows(0, 4), prepared, ws);
    copy = prepared;
    any.append(in.key.rows(4, 5), in.value.rows(4, 5), prepared, ws);
    CHECK((copy.rows() == 4 && prepared.rows() == 9));
    any.forward({.query = in.query, .mask = in.mask}, prepared, {.value = value}, ws);
    CHECK(support::same_bits(value.span(), expected.span()));
    const Index ids[] = {2, 3, 4};
    picked.select(prepared, ids);
    any.forward({.query = in.query}, picked, {.value = value}, ws);
    any.forward({.query = in.query, .key = in.key.rows(2, 3), .value = in.value.rows(2, 3)}, {.value = expected}, ws);
    if (!any.sees_positions())  // picked keys keep theirs
      CHECK(support::same_bits(value.span(), expected.span()));
    CHECK(support::allocations_in([&] { any.prepare(in.key, in.value, prepared, ws); }) <= 8);
    CHECK(support::allocations_in([&] { any.prepare(in.key, in.value, prepared, ws); }) == 0);
  });
}

TEST_CASE("any attention: copies are independent, moves leave nothing behind", "[any]") {
  Rng rng(413);
  AnyAttention<float> a = MultiHead<Flash<float>>({.dim = dim, .heads = 2}, rng);
  const auto weight = [](AnyAttention<float>& any) -> float& {
    return any.get_if<MultiHead<Flash<float>>>()->query.weight(0, 0);
  };
  AnyAttention<float> b = a, c;
  c = a;
  const float before = weight(a);
  weight(b) = 7;
  weight(c) = 8;
  CHECK(weight(a) == before);
  CHECK(weight(b) == 7);
  c = std::move(b);
  CHECK(weight(c) == 7);
  const AnyAttention<float>& itself = c;
  c = itself;
  CHECK(weight(c) == 7);
  c = Flash<float>();
  CHECK(c.get_if<MultiHead<Flash<float>>>() == nullptr);
  CHECK(c.get_if<Flash<float>>() != nullptr);
}

TEST_CASE("any attention: trains as what it holds, step by step", "[any]") {
  Rng rng(414);
  const laws::Problem<float> problem({.queries = 12, .keys = 12, .dim = dim, .value_dim = dim}, rng);
  const auto wanted = laws::Problem<float>::random(12, dim, rng, 1);
  const MultiHead<Flash<float>> start({.dim = dim, .heads = 2}, rng);
  const auto train = [&]<class A>(A model) {
    Workspace ws;
    typename A::Saved saved;
    train::Adam adam(model, {.learning_rate = 0.01});
    std::vector<double> losses;
    for (int step = 0; step < 60; ++step) {
      Matrix<float> value(12, dim), d_value(12, dim);
      model.forward(problem.input(), {.value = value}, saved, ws);
      double loss = 0;
      for (Index i = 0; i < value.size(); ++i) {
        const float error = value.span()[std::size_t(i)] - wanted.span()[std::size_t(i)];
        loss += double(error) * double(error);
        d_value.span()[std::size_t(i)] = 2 * error;
      }
      losses.push_back(loss);
      auto grad = zeros_like(model);
      model.backward(problem.input(), saved, {.value = d_value}, {{}, {}, {}}, grad, ws);
      if (step % 2 == 0)
        adam.step(model, grad);
      else
        train::RiemannianSgd({.learning_rate = 0.001}).step(model, grad);
    }
    return losses;
  };
  const auto losses = train(start);
  CHECK(losses.back() < losses.front() / 2);
  CHECK(train(AnyAttention<float>(start)) == losses);
  // A mixture of kinds, deeper: gradients arrive at parameters inside of parameters.
  const auto of_mixture =
      train(AnyAttention<float>(MultiHead<Mixture<float>>({.dim = dim, .head_dim = dim}, rng, mixture<float>(rng))));
  CHECK(of_mixture.back() < of_mixture.front());
}

TEST_CASE("any attention: buffers are named, and walks of several instances match their tensors", "[any]") {
  Rng rng(415);
  struct Buffers {
    std::vector<std::string> learned, saved;
    void operator()(std::string_view path, std::span<float>, std::span<const float>) { learned.emplace_back(path); }
    void buffer(std::string_view path, std::span<float> a, std::span<const float> b) {
      CHECK(support::same_bits(a, b));
      CHECK(a.data() != b.data());
      saved.emplace_back(path);
    }
  } buffers;
  AnyAttention<float> a = LinearAttention<nn::FavorPlus<float>>{nn::FavorPlus<float>({.dim = 4, .features = 8}, rng)};
  const AnyAttention<float> b = a;
  for_each_parameter(buffers, a, b);
  CHECK(buffers.learned.empty());
  CHECK(buffers.saved == std::vector<std::string>{"map.omega"});
  const AnyAttention<float> other = Flash<float>();
  CHECK_THROWS_AS(for_each_parameter(buffers, a, other), ConfigError);
  AnyAttention<float> small = MultiHead<Flash<float>>({.dim = 4}, rng);
  const AnyAttention<float> large = MultiHead<Flash<float>>({.dim = 6}, rng);
  CHECK_THROWS_AS(for_each_parameter(buffers, small, large), ShapeError);
}

/// Attends, and nothing else.
struct Plain {
  using Scalar = float;
  Index output_dim(Index value_dim) const { return value_dim; }
  void forward(const AttentionInput<float>& in, const AttentionOutput<float>& out, Workspace& ws) const {
    Flash<float>().forward(in, out, ws);
  }
};

TEST_CASE("any attention: what the backend does not offer is refused, by name", "[any]") {
  Rng rng(416);
  Workspace ws;
  const laws::Problem<float> problem({.queries = 3, .keys = 3, .dim = dim}, rng);
  const AttentionInput<float> in = problem.input();
  Matrix<float> value(3, 3);
  const AttentionOutput<float> out{.value = value};
  AnyAttention<float>::Saved saved;
  const AnyAttention<float> plain = Plain(), flash = Flash<float>(), none;
  AnyAttention<float> grad = flash, plain_grad = plain;
  CHECK_FALSE(plain.trains());
  CHECK_FALSE(plain.has_scores());
  plain.forward(in, out, ws);
  const auto refused = [](const char* what, auto&& call) {
    try {
      call();
      FAIL("not refused: " << what);
    } catch (const ConfigError& error) {
      INFO(error.what());
      CHECK(std::string(error.what()).find(what) != std::string::npos);
    }
  };
  refused("DifferentiableAttention", [&] { plain.forward(in, out, saved, ws); });
  refused("DifferentiableAttention", [&] { plain.backward(in, saved, {.value = value}, {}, plain_grad, ws); });
  refused("ScoringAttention", [&] { plain.scores(in, value, ws); });
  refused("EdgeAwareAttention", [&] { flash.forward(in, EdgeFeatures<float>{}, out, ws); });
  refused("EdgeAwareAttention", [&] { flash.forward(in, EdgeFeatures<float>{}, out, saved, ws); });
  refused("EdgeAwareAttention", [&] { flash.scores(in, EdgeFeatures<float>{}, value, ws); });
  refused("PositionalAttention", [&] { flash.forward(in, GraphPositions<float>{}, out, ws); });
  refused("PositionalAttention",
          [&] { flash.backward(in, GraphPositions<float>{}, saved, {.value = value}, {}, {}, grad, ws); });
  refused("saved", [&] { flash.backward(in, saved, {.value = value}, {}, grad, ws); });
  flash.forward(in, out, saved, ws);
  refused("gradient", [&] { flash.backward(in, saved, {.value = value}, {}, plain_grad, ws); });
  AttentionInput<float> narrow = in;
  narrow.key = in.key.cols(0, 2);
  CHECK_THROWS_AS(attend(plain, narrow, out, ws), ShapeError);  // but not where widths may differ
  attend(AnyAttention<float>(GatV2<float>({.source_dim = 3, .target_dim = dim, .channels = 3}, rng)),
         AttentionInput<float>{.query = in.query, .key = in.value, .value = in.value}, out, ws);
  refused("backend", [&] { none.forward(in, out, ws); });
  AnyAttention<float>::Prepared prepared, unprepared;
  plain.prepare(in.key, in.value, prepared, ws);
  plain.append(in.key, in.value, prepared, ws);
  plain.forward(PreparedInput<float>{.query = in.query}, prepared, out, ws);
  const AnyAttention<float> linear = LinearAttention<nn::FavorPlus<float>>{{{.dim = dim, .features = 4}, rng}};
  linear.prepare(in.key, in.value, prepared, ws);
  refused("prepared", [&] {
    AnyAttention<float>(MultiHead<Flash<float>>({.dim = dim}, rng)).append(in.key, in.value, unprepared, ws);
  });
  refused("prepared", [&] { flash.forward(PreparedInput<float>{.query = in.query}, unprepared, out, ws); });
  refused("backend", [&] { (void)parameter_count(none); });
}

}  // namespace
}  // namespace test_any_attention
