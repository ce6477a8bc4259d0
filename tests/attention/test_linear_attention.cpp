// SPDX-License-Identifier: MIT
#include <ruvector/attention/linear_attention.hpp>

#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "support/laws.hpp"

namespace test_linear_attention {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

/// A map from outside of the library, with parameters and a scale: φ_j(x) = e^(a_j x_j), scale max_j a_j x_j.
template <Real T>
struct Exponentials {
  using Scalar = T;
  Vector<T> a;

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("a", self.a...);
  }
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("Exponentials", a.size(), input_dim);
    return input_dim;
  }
  void forward(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, Workspace&) const {
    for (Index i = 0; i < x.rows(); ++i) {
      T top = -std::numeric_limits<T>::infinity();
      for (Index j = 0; j < x.cols(); ++j) top = std::max(top, a[j] * x(i, j));
      for (Index j = 0; j < x.cols(); ++j) phi(i, j) = std::exp(a[j] * x(i, j) - top);
      log_scale[std::size_t(i)] = top;
    }
  }
  void backward(MatrixView<const T> x, MatrixView<const T> phi, MatrixView<const T> d_phi, MatrixView<T> d_x,
                Exponentials& grad, Workspace&) const {
    for (Index i = 0; i < x.rows(); ++i)
      for (Index j = 0; j < x.cols(); ++j) {
        grad.a[j] += d_phi(i, j) * phi(i, j) * x(i, j);
        if (d_x.data() != nullptr) d_x(i, j) += d_phi(i, j) * phi(i, j) * a[j];
      }
  }
};

template <Real T>
using Elu = LinearAttention<nn::EluPlusOne<T>>;
template <Real T>
using Relu = LinearAttention<nn::Relu<T>>;
template <Real T>
using Favor = LinearAttention<nn::FavorPlus<T>>;

/// Without ε, whose scale the gradient takes for a constant.
struct ExactFavor : Favor<double> {};
struct ExactExponentials : LinearAttention<Exponentials<double>> {};

constexpr Index favor_dim = 6;

}  // namespace
}  // namespace test_linear_attention

namespace laws {

namespace linear = test_linear_attention;

/// φ(x) e^log_scale, in R.
template <class R>
struct Features {
  std::vector<R> phi;
  R log_scale = 0, largest_term = 0;  // of the scale
};

template <class R, Real T>
Features<R> features_of(const nn::EluPlusOne<T>&, const std::vector<T>& x, bool) {
  Features<R> features;
  for (const T e : x) features.phi.push_back(e > 0 ? R(e) + 1 : std::exp(R(e)));
  return features;
}
template <class R, Real T>
Features<R> features_of(const nn::Relu<T>&, const std::vector<T>& x, bool) {
  Features<R> features;
  for (const T e : x) features.phi.push_back(std::max(R(e), R(0)));
  return features;
}
template <class R, Real T>
Features<R> features_of(const nn::FavorPlus<T>& map, const std::vector<T>& x, bool reverse) {
  const std::size_t d = x.size();
  const R scale = 1 / std::sqrt(std::sqrt(R(d)));
  Features<R> features;
  R square = 0;
  for (std::size_t s = 0; s < d; ++s) {
    const R e = scale * R(x[reverse ? d - 1 - s : s]);
    square += e * e;
  }
  for (Index m = 0; m < map.omega.rows(); ++m) {
    R dot = 0;
    for (std::size_t s = 0; s < d; ++s) {
      const std::size_t at = reverse ? d - 1 - s : s;
      dot += R(map.omega(m, Index(at))) * R(x[at]);
    }
    features.phi.push_back(scale * dot);
  }
  const R top = *std::ranges::max_element(features.phi);
  for (R& p : features.phi) p = std::exp(p - top) / std::sqrt(R(map.omega.rows()));
  features.log_scale = top - square / 2;
  features.largest_term = std::max(std::fabs(top), square / 2);
  return features;
}

template <class A>
struct LinearSubject : SubjectDefaults {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  static constexpr bool fixed_dim = false;

  static void fit(Shape& shape) {
    shape.bias = false;
    shape.allowed_row = true;
    shape.mask.window_left = shape.mask.window_right = Mask::unlimited;
    if (Subject<A>::fixed_dim) shape.dim = linear::favor_dim;
  }

  template <class R>
  static Reference<R> reference(const A& backend, const Problem<T>& problem, Order order) {
    const Index m = problem.query.rows(), n = problem.key.rows(), v = problem.value.cols();
    constexpr R infinity = std::numeric_limits<R>::infinity();
    Reference<R> result{std::vector<R>(std::size_t(m * v), R(0)), std::vector<R>(std::size_t(m), -infinity)};
    const auto features = [&](const Matrix<T>& matrix, Index i) {
      std::vector<T> x;
      for (const T element : matrix.row(i)) x.push_back(element);
      return features_of<R>(backend.map, x, order.reverse_dims);
    };
    std::vector<Features<R>> keys;
    for (Index j = 0; j < n; ++j) {
      keys.push_back(features(problem.key, j));
      result.largest_term = std::max(result.largest_term, keys.back().largest_term);
    }
    for (Index i = 0; i < m; ++i) {
      const Features<R> q = features(problem.query, i);
      R top = -infinity, sum = 0;
      for (Index j = 0; j < n; ++j)
        if (problem.sees(i, j)) top = std::max(top, keys[std::size_t(j)].log_scale);
      if (top == -infinity) continue;
      const std::span<R> out(result.value.data() + i * v, std::size_t(v));
      for (Index step = 0; step < n; ++step) {
        const Index j = order.reverse_keys ? n - 1 - step : step;
        if (!problem.sees(i, j)) continue;
        const Features<R>& k = keys[std::size_t(j)];
        R w = 0;
        for (std::size_t s = 0; s < q.phi.size(); ++s) {
          const std::size_t f = order.reverse_dims ? q.phi.size() - 1 - s : s;
          w += q.phi[f] * k.phi[f];
        }
        w *= std::exp(k.log_scale - top);
        sum += w;
        for (std::size_t c = 0; c < out.size(); ++c) out[c] += w * R(problem.value(j, Index(c)));
      }
      for (R& x : out) x /= sum + R(backend.epsilon);
      result.log_sum_exp[std::size_t(i)] = std::log(sum) + top + q.log_scale;
      result.largest_term = std::max({result.largest_term, std::fabs(std::log(sum)), q.largest_term});
    }
    return result;
  }
};

template <Real T>
struct Subject<LinearAttention<nn::EluPlusOne<T>>> : LinearSubject<LinearAttention<nn::EluPlusOne<T>>> {
  static LinearAttention<nn::EluPlusOne<T>> make(Rng&) { return {}; }
};
template <Real T>
struct Subject<LinearAttention<nn::Relu<T>>> : LinearSubject<LinearAttention<nn::Relu<T>>> {
  static LinearAttention<nn::Relu<T>> make(Rng&) { return {}; }
};
template <Real T>
struct Subject<LinearAttention<nn::FavorPlus<T>>> : LinearSubject<LinearAttention<nn::FavorPlus<T>>> {
  static constexpr bool fixed_dim = true;
  static LinearAttention<nn::FavorPlus<T>> make(Rng& rng) {
    return {nn::FavorPlus<T>({.dim = linear::favor_dim, .features = 21}, rng)};
  }
};
template <>
struct Subject<linear::ExactFavor> : LinearSubject<linear::ExactFavor> {
  static constexpr bool fixed_dim = true;
  static linear::ExactFavor make(Rng& rng) { return {{nn::FavorPlus<double>({.dim = 6, .features = 21}, rng), 0}}; }
};
template <>
struct Subject<linear::ExactExponentials> : LinearSubject<linear::ExactExponentials> {
  static constexpr bool fixed_dim = true;
  static linear::ExactExponentials make(Rng& rng) {
    Vector<double> a(linear::favor_dim);
    for (double& x : a) x = rng.uniform(0.5, 1.5);
    return {{{a}, 0}};
  }
};

}  // namespace laws

namespace test_linear_attention {
namespace {

using Backends = std::tuple<Elu<float>, Elu<double>, Relu<float>, Relu<double>, Favor<float>, Favor<double>>;
using SmoothBackends = std::tuple<ExactFavor, ExactExponentials>;

static_assert(DifferentiableAttention<Elu<float>> && ScoringAttention<Relu<double>> &&
              DifferentiableAttention<Favor<float>> && PreparedAttention<Favor<float>> &&
              nn::FeatureMap<Exponentials<double>>);
static_assert(std::same_as<LinearAttention<>, Elu<float>>);

TEMPLATE_LIST_TEST_CASE("linear attention: agrees with the formula", "[linear][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(201, 150);
}
TEMPLATE_LIST_TEST_CASE("linear attention: a hidden key is never touched", "[linear][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(203);
}
TEMPLATE_LIST_TEST_CASE("linear attention: what is not finite stays with those who see it", "[linear][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(204);
}
TEMPLATE_LIST_TEST_CASE("linear attention: a row depends on itself, bit for bit", "[linear][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(206);
}
TEMPLATE_LIST_TEST_CASE("linear attention: the order of keys does not matter", "[linear][law]", Backends) {
  laws::keys_are_a_set<TestType>(207);
}
TEMPLATE_LIST_TEST_CASE("linear attention: the second call allocates nothing", "[linear][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(208);
}
TEMPLATE_LIST_TEST_CASE("linear attention: a query that sees no key is silent", "[linear][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(209);
}
TEMPLATE_LIST_TEST_CASE("linear attention: gradients are right", "[linear][law]", SmoothBackends) {
  laws::gradients_are_right<TestType>(210, 30);
}

using Kinked = std::tuple<Elu<double>, Relu<double>>;

// φ of these maps, or its second derivative, jumps at 0, where differences are worth nothing: so |x| >= 0.05.
TEMPLATE_LIST_TEST_CASE("linear attention: gradients are right beside kinks", "[linear][law]", Kinked) {
  Rng rng(211);
  Workspace ws;
  const TestType backend;
  for (int c = 0; c < 20; ++c) {
    laws::Shape shape = laws::random_shape<TestType>(rng);
    shape.queries = 1 + shape.queries % 40;
    shape.keys = 1 + shape.keys % 150;
    shape.dim = 8 + shape.dim % 6;  // few queries without a feature in common with the keys
    shape.value_dim = 1 + shape.value_dim % 5;
    if (shape.mask.key_length != Mask::unlimited) shape.mask.key_length = shape.keys / 2;
    laws::Problem<double> problem(shape, rng);
    for (Matrix<double>* matrix : {&problem.query, &problem.key})
      for (double& x : matrix->span()) x += x < 0 ? -0.05 : 0.05;
    const auto g = laws::Problem<double>::random(shape.queries, shape.value_dim, rng, 1);
    const auto loss = [&](const AttentionInput<double>& in) {
      const laws::Result<double> result(backend, in, ws);
      double sum = 0;
      for (Index i = 0; i < g.rows(); ++i)
        for (Index v = 0; v < g.cols(); ++v) sum += result.value(i, v) * g(i, v);
      return sum;
    };
    const AttentionInput<double> in = problem.input();
    Matrix<double> value(shape.queries, shape.value_dim), d_query(shape.queries, shape.dim),
        d_key(shape.keys, shape.dim), d_value(shape.keys, shape.value_dim);
    typename TestType::Saved saved;
    TestType grad;
    backend.forward(in, {.value = value}, saved, ws);
    backend.backward(in, saved, {.value = g}, {d_query, d_key, d_value}, grad, ws);
    const auto check = [&](const Matrix<double>& x, const Matrix<double>& gradient,
                           MatrixView<const double> AttentionInput<double>::*member) {
      const auto result = train::check_gradient(
          [&](std::span<const double> values) {
            AttentionInput<double> other = in;
            other.*member = MatrixView<const double>(values.data(), x.rows(), x.cols());
            return loss(other);
          },
          x.span(), gradient.span());
      INFO(to_string(result));
      CHECK(result.passed);
    };
    CAPTURE(c, shape.queries, shape.keys, shape.dim);
    check(problem.query, d_query, &AttentionInput<double>::query);
    check(problem.key, d_key, &AttentionInput<double>::key);
    check(problem.value, d_value, &AttentionInput<double>::value);
  }
}

TEMPLATE_LIST_TEST_CASE("linear attention: weights and scores are the quadratic form of the same thing", "[linear]",
                        Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(212);
  Workspace ws;
  for (int c = 0; c < 40; ++c) {
    const TestType backend = laws::Subject<TestType>::make(rng);
    const laws::Problem<T> problem(laws::random_shape<TestType>(rng), rng);
    const Index m = problem.query.rows(), n = problem.key.rows();
    const laws::Result<T> result(backend, problem.input(), ws, true);
    Matrix<T> scores(m, n);
    backend.scores(problem.input(), scores, ws);
    const double eps = double(std::numeric_limits<T>::epsilon()) * double(n + problem.query.cols() + 30) * 4;
    for (Index i = 0; i < m; ++i) {
      double exp_sum = 0, weight_sum = 0;
      std::vector<double> mean(std::size_t(problem.value.cols()));
      const double lse = double(result.log_sum_exp[i]);
      for (Index j = 0; j < n; ++j) {
        if (!problem.sees(i, j)) {
          REQUIRE(result.weights(i, j) == 0);
          REQUIRE(scores(i, j) == -std::numeric_limits<T>::infinity());
          continue;
        }
        REQUIRE(result.weights(i, j) >= 0);
        weight_sum += double(result.weights(i, j));
        if (std::isfinite(lse)) exp_sum += std::exp(double(scores(i, j)) - lse);
        for (Index v = 0; v < problem.value.cols(); ++v)
          mean[std::size_t(v)] += double(result.weights(i, j)) * double(problem.value(j, v));
      }
      if (std::isfinite(lse)) REQUIRE(std::fabs(exp_sum - 1) <= eps * (1 + std::fabs(lse)));
      REQUIRE(weight_sum <= 1 + eps);
      for (Index v = 0; v < problem.value.cols(); ++v)
        REQUIRE(std::fabs(mean[std::size_t(v)] - double(result.value(i, v))) <= eps * 4);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("linear attention: one key after the other gives the bits of the causal whole", "[linear]",
                        Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(213);
  Workspace ws;
  const TestType backend = laws::Subject<TestType>::make(rng);
  const Index n = 3 * 128 + 37, d = favor_dim, v = 5;
  const laws::Problem<T> problem({.queries = n, .keys = n, .dim = d, .value_dim = v, .mask = {.causal = true}}, rng, 2);
  const laws::Result<T> whole(backend, problem.input(), ws);
  auto state = backend.state(d, v);
  Matrix<T> value(1, v);
  Vector<T> lse(1);
  for (Index i = 0; i < n; ++i) {
    backend.step(problem.query.view().rows(i, 1), problem.key.view().rows(i, 1), problem.value.view().rows(i, 1), state,
                 {.value = value, .log_sum_exp = lse}, ws);
    CAPTURE(i);
    REQUIRE(support::same_bits(value.row(0), whole.value.row(i)));
    REQUIRE(support::same_bits(lse[0], whole.log_sum_exp[i]));
  }
  CHECK(state.next() == n);
}

TEMPLATE_LIST_TEST_CASE("linear attention: steps cross leaves, and appended keys are those of the whole", "[linear]",
                        Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(214);
  Workspace ws;
  const TestType backend = laws::Subject<TestType>::make(rng);
  const Index n = 2 * key_leaf + 200, d = favor_dim, v = 3;
  const laws::Problem<T> problem({.queries = n, .keys = n, .dim = d, .value_dim = v, .mask = {.causal = true}}, rng);
  const laws::Result<T> whole(backend, problem.input(), ws);
  auto state = backend.state(d, v);
  Matrix<T> value(1, v);
  for (Index at = 0, count = 1; at + 1 < n; at += count) {
    count = std::min(n - 1 - at, Index(1) + rng.below(900));
    backend.append(problem.key.view().rows(at, count), problem.value.view().rows(at, count), state, ws);
    backend.forward(problem.query.view().rows(at + count - 1, 1), state, {.value = value}, ws);
    REQUIRE(support::same_bits(value.row(0), whole.value.row(at + count - 1)));
  }
}

TEMPLATE_LIST_TEST_CASE("linear attention: prepared keys give the same bits, whole, grown and picked", "[linear]",
                        Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(219);
  Workspace ws;
  for (int c = 0; c < 20; ++c) {
    const TestType backend = laws::Subject<TestType>::make(rng);
    const laws::Problem<T> problem(laws::random_shape<TestType>(rng), rng);
    const AttentionInput<T> in = problem.input();
    const Index m = in.query.rows(), n = in.key.rows(), half = n / 2;
    typename TestType::Prepared prepared, picked;
    backend.prepare(in.key.rows(0, half), in.value.rows(0, half), prepared, ws);
    backend.append(in.key.rows(half, n - half), in.value.rows(half, n - half), prepared, ws);
    CHECK(prepared.rows() == n);
    const laws::Result<T> expected(backend, in, ws, true);
    Matrix<T> value(m, in.value.cols()), weights(m, n);
    Vector<T> lse(m);
    backend.forward(PreparedInput<T>{.query = in.query, .mask = in.mask}, prepared, {value, lse, weights}, ws);
    REQUIRE(support::same_bits(value.span(), expected.value.span()));
    REQUIRE(support::same_bits(weights.span(), expected.weights.span()));
    REQUIRE(support::same_bits(lse.span(), expected.log_sum_exp.span()));

    const std::vector<Index> ids{n - 1, 0, n / 2};
    Matrix<T> key(3, in.key.cols()), values(3, in.value.cols()), of_picked(m, in.value.cols());
    for (Index j = 0; j < 3; ++j) {
      std::ranges::copy(in.key.row(ids[std::size_t(j)]), key.row(j).begin());
      std::ranges::copy(in.value.row(ids[std::size_t(j)]), values.row(j).begin());
    }
    picked.select(prepared, ids);
    backend.forward(PreparedInput<T>{.query = in.query}, picked, {.value = of_picked}, ws);
    backend.forward({.query = in.query, .key = key, .value = values}, {.value = value}, ws);
    REQUIRE(support::same_bits(value.span(), of_picked.span()));
  }
}

TEMPLATE_LIST_TEST_CASE("linear attention: shards merge in any order to the bits of the whole", "[linear]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(215);
  Workspace ws;
  for (int c = 0; c < 10; ++c) {
    const TestType backend = laws::Subject<TestType>::make(rng);
    const Index leaf = 128, n = 1 + rng.below(9 * leaf), d = favor_dim, v = 4, m = 7;
    const laws::Problem<T> problem({.queries = m, .keys = n, .dim = d, .value_dim = v}, rng);
    const auto rows = [](const Matrix<T>& matrix, Index first, Index count) {
      return matrix.view().rows(first, count);
    };
    auto whole = backend.state(d, v, 0, leaf);
    backend.append(problem.key, problem.value, whole, ws);
    Matrix<T> expected(m, v), value(m, v);
    backend.forward(problem.query, whole, {.value = expected}, ws);

    std::vector<LinearAttentionState<T>> shards;
    for (Index first = 0; first < n;) {
      const Index count = std::min(n - first, leaf * (1 + rng.below(3)));
      shards.push_back(backend.state(d, v, first, leaf));
      backend.append(rows(problem.key, first, count), rows(problem.value, first, count), shards.back(), ws);
      first += count;
    }
    rng.shuffle(std::span(shards));
    LinearAttentionState<T> merged = backend.state(d, v, 0, leaf);
    for (const auto& shard : shards) merged.merge(shard);
    CHECK(merged.next() == n);
    backend.forward(problem.query, merged, {.value = value}, ws);
    REQUIRE(support::same_bits(value.span(), expected.span()));

    // The merged state goes on where the whole does.
    for (auto* state : {&whole, &merged}) backend.append(problem.key, problem.value, *state, ws);
    backend.forward(problem.query, whole, {.value = expected}, ws);
    backend.forward(problem.query, merged, {.value = value}, ws);
    REQUIRE(support::same_bits(value.span(), expected.span()));
  }
}

TEST_CASE("linear attention: states that cannot be merged are refused", "[linear]") {
  const Elu<float> backend;
  Workspace ws;
  const Matrix<float> key(100, 3), value(100, 2), short_value(99, 2);
  auto a = backend.state(3, 2, 0, 64), b = backend.state(3, 2, 0, 64), c = backend.state(3, 2, 128, 64);
  for (auto* state : {&a, &b, &c}) backend.append(key, value, *state, ws);
  CHECK_THROWS_AS(a.merge(b), ConfigError);                               // the same keys
  CHECK_THROWS_AS(a.merge(c), ConfigError);                               // two incomplete leaves
  CHECK_THROWS_AS(a.merge(backend.state(4, 2, 256, 64)), ShapeError);     // other features
  CHECK_THROWS_AS(a.merge(backend.state(3, 2, 4096, 128)), ConfigError);  // other leaves
  CHECK_THROWS_AS(backend.state(3, 2, 100), ConfigError);                 // not at a leaf's border
  CHECK_THROWS_AS(backend.state(3, 2, 0, 100), ConfigError);              // not whole chunks
  CHECK_THROWS_AS(backend.append(key, short_value, a, ws), ShapeError);
  CHECK(a.next() == 100);
}

TEST_CASE("linear attention: what sums over all keys cannot express is refused", "[linear]") {
  const Elu<double> backend;
  Workspace ws;
  Rng rng(216);
  const auto refused = [&](const laws::Shape& shape) {
    const laws::Problem<double> problem(shape, rng);
    Matrix<double> value(shape.queries, shape.value_dim);
    CHECK_THROWS_AS(backend.forward(problem.input(), {.value = value}, ws), ConfigError);
    CHECK_THROWS_AS(backend.scores(problem.input(), value, ws), ConfigError);
  };
  refused({.bias = true});
  refused({.bias = true, .bias_row = true});
  refused({.allowed = true});
  refused({.mask = {.window_left = 3}});
  refused({.mask = {.window_right = 3}});
}

TEST_CASE("linear attention: the zero of an absent key has no sign", "[linear]") {
  // The first product rounds to −0, to which the whole adds 0 · 1 for the key that query 0 does not see.
  const Elu<double> backend;
  Workspace ws;
  const Matrix<double> x(2, 1, -3);
  Matrix<double> value(2, 1, 1), whole(2, 1), step(1, 1);
  value(0, 0) = -std::numeric_limits<double>::denorm_min();
  backend.forward({.query = x, .key = x, .value = value, .mask = {.causal = true}}, {.value = whole}, ws);
  auto state = backend.state(1, 1);
  const MatrixView<const double> row = x.view().rows(0, 1);
  backend.step(row, row, value.view().rows(0, 1), state, {.value = step}, ws);
  CHECK(support::same_bits(step(0, 0), whole(0, 0)));
}

TEST_CASE("linear attention: a factor that all keys share changes no bit", "[linear]") {
  // φ(k + c) = e^c φ(k): far out of the range of doubles, but for the log scale.
  LinearAttention<Exponentials<double>> backend{{Vector<double>(favor_dim, 1.0)}, 0};
  Rng rng(218);
  Workspace ws;
  laws::Problem<double> problem({.queries = 200, .keys = 200, .dim = favor_dim, .mask = {.causal = true}}, rng);
  for (double& x : problem.key.span()) x = std::round(x * 0x1p20) * 0x1p-20;  // so that + c is exact
  laws::Problem<double> shifted = problem;
  for (double& x : shifted.key.span()) x += 1024;
  const auto gradient = [&](const AttentionInput<double>& in) {
    Matrix<double> value(200, 3), d(600, favor_dim), d_value(200, 3);
    LinearAttention<Exponentials<double>>::Saved saved;
    auto grad = zeros_like(backend);
    backend.forward(in, {.value = value}, saved, ws);
    backend.backward(in, saved, {.value = value}, {d.view().rows(0, 200), d.view().rows(200, 200), d_value}, grad, ws);
    return std::array{value, d, d_value};
  };
  const auto here = gradient(problem.input()), there = gradient(shifted.input());
  for (std::size_t k = 0; k < 3; ++k) CHECK(support::same_bits(here[k].span(), there[k].span()));
}

TEST_CASE("linear attention: FAVOR+ approaches the softmax kernel as 1/sqrt(features)", "[linear]") {
  Rng rng(217);
  Workspace ws;
  const Index d = 16, pairs = 16;
  const laws::Problem<double> problem({.queries = pairs, .keys = pairs, .dim = d}, rng, 0.7);
  std::vector<double> log_features, log_error;
  for (const Index features : {64, 256, 1024}) {
    double square = 0, mean = 0;
    const int seeds = 100;
    for (int s = 0; s < seeds; ++s) {
      const Favor<double> backend{nn::FavorPlus<double>({.dim = d, .features = features}, rng)};
      Matrix<double> scores(pairs, pairs);
      backend.scores(problem.input(), scores, ws);
      for (Index i = 0; i < pairs; ++i)
        for (Index j = 0; j < pairs; ++j) {
          const double dot = simd::dot<double>(problem.query.row(i), problem.key.row(j)) / std::sqrt(double(d));
          const double error = std::exp(scores(i, j) - dot) - 1;
          mean += error / double(pairs * pairs * seeds);
          square += error * error / double(pairs * pairs * seeds);
        }
    }
    CAPTURE(features, mean, square);
    // Unbiased: within five standard errors of pairs that share ω, so that only seeds count as independent.
    CHECK(std::fabs(mean) <= 5 * std::sqrt(square / seeds));
    log_features.push_back(std::log(double(features)));
    log_error.push_back(std::log(square) / 2);
  }
  const double slope = (log_error[2] - log_error[0]) / (log_features[2] - log_features[0]);
  CAPTURE(log_error, slope);
  CHECK(slope >= -0.58);
  CHECK(slope <= -0.42);
}

}  // namespace
}  // namespace test_linear_attention
