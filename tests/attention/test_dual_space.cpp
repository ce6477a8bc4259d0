// SPDX-License-Identifier: MIT
#include <ruvector/attention/dual_space.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <tuple>

#include "formulas.hpp"
#include "support/laws.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

namespace laws {

template <class A>
struct DualSubject : SoftmaxSubject<A> {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true, weights_average_values = false;
  static constexpr double logit_error = 0x1p10 * double(std::numeric_limits<T>::epsilon());
  static constexpr double gradient_step = 5e-6;  // LN of few columns bends sharply
  static constexpr Index flat = 6, flat_values = 2;
  static void fit(Shape& shape) {
    shape.spread = 0.1;
    shape.dim = std::max(shape.dim, flat + 4);
    shape.value_dim = std::max(shape.value_dim, flat_values + 1);
  }
  static A make(Rng& rng) {
    A a = make_dual_space<A>({.euclidean_dim = flat,
                              .euclidean_value_dim = flat_values,
                              .curvature = 0.8,
                              .beta = rng.below(2) == 0 ? 1.0 : 2.0,
                              .power = 1 + int(rng.below(2)),
                              .scale = rng.below(2) == 0 ? std::optional<double>() : 30.0,
                              .gate = 0.3,
                              .query_gate = rng.below(2) == 0,
                              .temperature = rng.below(2) == 0 ? 1.0 : 0.5,
                              .input = rng.below(2) == 0 ? Points::tangent : Points::on_manifold});
    for (T& u : a.score.gate_weight) u = T(rng.normal());
    return a;
  }
  template <class R>
  static R gate(const A& a, std::span<const T> q) {
    R logit = R(a.score.gate_bias);
    if (!a.score.gate_weight.empty()) {
      R mean = 0, variance = 0, norm = 0;
      for (std::size_t i = 0; i < flat; ++i) mean += R(q[i]) / R(flat);
      for (std::size_t i = 0; i < flat; ++i) variance += (R(q[i]) - mean) * (R(q[i]) - mean) / R(flat);
      for (std::size_t i = 0; i < flat; ++i)
        logit += R(a.score.gate_weight[Index(i)]) * (R(q[i]) - mean) / std::sqrt(variance + R(1e-5L));
      for (std::size_t i = flat; i < q.size(); ++i) norm += R(q[i]) * R(q[i]);
      norm = std::sqrt(norm);
      const R s = std::sqrt(R(a.score.second.curvature.value()));
      if (a.score.second.input == Points::on_manifold) norm = std::atanh(s * norm) / s;
      logit += R(a.score.gate_weight[flat]) * norm;
    }
    return 1 / (1 + std::exp(-logit));
  }
  template <class R>
  static R logit(const A& a, std::span<const T> q, std::span<const T> k) {
    R dot = 0;
    for (std::size_t i = 0; i < flat; ++i) dot += R(q[i]) * R(k[i]);
    dot *= a.score.first.scale ? R(*a.score.first.scale) : 1 / std::sqrt(R(flat));
    const R g = gate<R>(a, q);
    return (g * dot + (1 - g) * formulas::logit<R>(a.score.second, q.subspan(flat), k.subspan(flat))) /
           R(a.score.temperature.value());
  }
  // Coordinates must keep their order here: they belong to two spaces.
  template <class R>
  static Reference<R> reference(const A& a, const Problem<T>& problem, Order order) {
    order.reverse_dims = false;
    return SoftmaxSubject<A>::template reference<R>(a, problem, order);
  }
  template <class R>
  static void mean(const A& a, std::span<const R> weights, R, const Problem<T>& problem, bool, std::span<R> out) {
    formulas::mean<R>(a.mean, weights, problem, out);
  }
};
template <Real T>
struct Subject<DualSpace<T>> : DualSubject<DualSpace<T>> {};
template <Real T>
struct Subject<DualSpaceFlash<T>> : DualSubject<DualSpaceFlash<T>> {};

}  // namespace laws

namespace test_dual_space {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

using Backends = std::tuple<DualSpace<float>, DualSpace<double>, DualSpaceFlash<float>, DualSpaceFlash<double>>;
using DoubleBackends = std::tuple<DualSpace<double>, DualSpaceFlash<double>>;

TEMPLATE_LIST_TEST_CASE("dual space: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(301, support::trials(200, 50));
}
TEMPLATE_LIST_TEST_CASE("dual space: weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(302);
}
TEMPLATE_LIST_TEST_CASE("dual space: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(303);
}
TEMPLATE_LIST_TEST_CASE("dual space: what is not finite stays with those who see it", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(304);
}
TEMPLATE_LIST_TEST_CASE("dual space: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(305);
}
TEMPLATE_LIST_TEST_CASE("dual space: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(306);
}
TEMPLATE_LIST_TEST_CASE("dual space: the order of keys does not matter", "[attention][law]", Backends) {
  laws::keys_are_a_set<TestType>(307);
}
TEMPLATE_LIST_TEST_CASE("dual space: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(308);
}
TEMPLATE_LIST_TEST_CASE("dual space: a query that sees no key is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(309);
}
TEMPLATE_LIST_TEST_CASE("dual space: gradients are right", "[attention][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(310, 20);
}

using Dual = DualSpaceFlash<double>;

Matrix<double> columns(const Matrix<double>& x, Index first, Index count) {
  return Matrix<double>(x.view().cols(first, count));
}
double largest_difference(MatrixView<const double> a, MatrixView<const double> b) {
  double largest = 0;
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) largest = std::max(largest, std::fabs(a(i, j) - b(i, j)));
  return largest;
}

TEST_CASE("dual space: with the gate at one it is scaled dot-product attention", "[attention]") {
  Rng rng(311);
  Workspace ws;
  const laws::Problem<double> problem({.queries = 7, .keys = 90, .dim = 10, .value_dim = 8}, rng, 0.2);
  const Dual dual = make_dual_space<Dual>({.euclidean_dim = 6, .euclidean_value_dim = 5, .gate = 1});
  Matrix<double> out(7, 8), expected(7, 5);
  attend(dual, problem.input(), {out}, ws);
  const Matrix<double> q = columns(problem.query, 0, 6), k = columns(problem.key, 0, 6),
                       v = columns(problem.value, 0, 5);
  attend(ScaledDotProduct<double>(), {q, k, v}, {expected}, ws);
  CHECK(largest_difference(out.view().cols(0, 5), expected) < 1e-14);
}

TEST_CASE("dual space: with no curvature and the gate at zero it is a Gaussian kernel", "[attention]") {
  Rng rng(312);
  Workspace ws;
  const double sigma = 0.3;
  const laws::Problem<double> problem({.queries = 5, .keys = 40, .dim = 4, .value_dim = 2}, rng, 0.2);
  // d → 2‖x − y‖, so β d² = ‖x − y‖²/(2σ²)
  const Dual dual = make_dual_space<Dual>({.euclidean_dim = 0,
                                           .euclidean_value_dim = 2,
                                           .curvature = 1e-9,
                                           .beta = 1 / (8 * sigma * sigma),
                                           .power = 2,
                                           .gate = 0,
                                           .input = Points::on_manifold});
  Matrix<double> out(5, 2);
  attend(dual, problem.input(), {out}, ws);
  for (Index i = 0; i < 5; ++i) {
    double sum = 0, mean[2] = {0, 0};
    for (Index j = 0; j < 40; ++j) {
      double square = 0;
      for (Index c = 0; c < 4; ++c) square += std::pow(problem.query(i, c) - problem.key(j, c), 2);
      const double weight = std::exp(-square / (2 * sigma * sigma));
      sum += weight;
      for (Index c = 0; c < 2; ++c) mean[c] += weight * problem.value(j, c);
    }
    for (Index c = 0; c < 2; ++c) CHECK(std::fabs(out(i, c) - mean[c] / sum) < 1e-7);
  }
}

TEST_CASE("dual space: all weight on one key gives that key's value in both spaces", "[attention]") {
  Rng rng(313);
  Workspace ws;
  for (const Points input : {Points::tangent, Points::on_manifold}) {
    const laws::Problem<double> problem({.queries = 3, .keys = 9, .dim = 6, .value_dim = 6}, rng, 0.2);
    Matrix<double> bias(1, 9, -1e9), value = problem.value, out(3, 6);
    for (double& x : value.span()) x *= 0.2;
    bias(0, 4) = 0;
    const Dual dual =
        make_dual_space<Dual>({.euclidean_dim = 3, .euclidean_value_dim = 3, .curvature = 0.7, .input = input});
    attend(dual, {.query = problem.query, .key = problem.key, .value = value, .bias = bias}, {out}, ws);
    for (Index i = 0; i < 3; ++i)
      for (Index c = 0; c < 6; ++c) CHECK(std::fabs(out(i, c) - value(4, c)) < 1e-12);
  }
}

TEST_CASE("dual space: a rotation of the hyperbolic columns rotates the output", "[attention]") {
  Rng rng(314);
  Workspace ws;
  const laws::Problem<double> problem({.queries = 6, .keys = 80, .dim = 5, .value_dim = 5}, rng, 0.2);
  Matrix<double> value = problem.value, out(6, 5), rotated_out(6, 5);
  for (double& x : value.span()) x *= 0.2;
  const auto rotated = [](Matrix<double> x) {  // of the last two columns, by 0.7
    for (Index i = 0; i < x.rows(); ++i) {
      const double a = x(i, 3), b = x(i, 4);
      x(i, 3) = std::cos(0.7) * a - std::sin(0.7) * b;
      x(i, 4) = std::sin(0.7) * a + std::cos(0.7) * b;
    }
    return x;
  };
  const Dual dual = make_dual_space<Dual>({.euclidean_dim = 3, .euclidean_value_dim = 3});
  const Matrix<double> q = rotated(problem.query), k = rotated(problem.key), v = rotated(value);
  attend(dual, {problem.query, problem.key, value}, {out}, ws);
  attend(dual, {q, k, v}, {rotated_out}, ws);
  const Matrix<double> expected = rotated(out);
  CHECK(largest_difference(expected, rotated_out) < 1e-13);
}

TEST_CASE("dual space: the contributions of the spaces sum to the logit", "[attention]") {
  Rng rng(315);
  Workspace ws;
  Dual dual = make_dual_space<Dual>(
      {.euclidean_dim = 3, .euclidean_value_dim = 2, .beta = 2, .query_gate = true, .temperature = 0.7});
  for (double& u : dual.score.gate_weight) u = rng.normal();
  const laws::Problem<double> problem({.queries = 4, .keys = 70, .dim = 8, .value_dim = 4}, rng, 0.3);
  Matrix<double> scores(4, 70);
  dual.scores(problem.input(), scores, ws);
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 70; ++j) {
      const auto parts = dual.score.space_contributions(problem.query.row(i), problem.key.row(j));
      CHECK(std::fabs(parts.first + parts.second - scores(i, j)) < 1e-12);
      CHECK((parts.gate > 0 && parts.gate < 1));
    }
}

TEST_CASE("dual space: calibrated, both spaces have the same spread", "[attention]") {
  Rng rng(316);
  const laws::Problem<double> problem({.queries = 40, .keys = 50, .dim = 8, .value_dim = 4}, rng, 0.5);
  Dual dual = make_dual_space<Dual>({.euclidean_dim = 4, .euclidean_value_dim = 2, .beta = 5});
  calibrate_beta(dual, problem.query, problem.key);
  double sum[2] = {0, 0}, square[2] = {0, 0};
  for (Index i = 0; i < 40; ++i)
    for (Index j = 0; j < 50; ++j) {
      const auto parts = dual.score.space_contributions(problem.query.row(i), problem.key.row(j));
      const double x[2] = {parts.first, parts.second};
      for (int s : {0, 1}) sum[s] += x[s] / 2000, square[s] += x[s] * x[s] / 2000;
    }
  const double flat = std::sqrt(square[0] - sum[0] * sum[0]), curved = std::sqrt(square[1] - sum[1] * sum[1]);
  CHECK(std::fabs(flat / curved - 1) < 1e-9);
}

TEST_CASE("dual space: impossible options are refused", "[attention]") {
  CHECK_THROWS_AS(make_dual_space<Dual>({.gate = 1.5}), ConfigError);
  CHECK_THROWS_AS(make_dual_space<Dual>({.curvature = 0}), ConfigError);
  CHECK_THROWS_AS(make_dual_space<Dual>({.power = 3}), ConfigError);
  CHECK_THROWS_AS(make_dual_space<Dual>({.dropout = 1}), ConfigError);
  Workspace ws;
  const Matrix<double> x(2, 4);
  Matrix<double> out(2, 4);
  CHECK_THROWS_AS(attend(make_dual_space<Dual>({.euclidean_dim = 5}), {x, x, x}, {out}, ws), ShapeError);
}

}  // namespace
}  // namespace test_dual_space
