// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <tuple>
#include <type_traits>

#include "attention_reference.hpp"
#include "support/laws.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// How exact gradients are: no worse than the formulas written down as plain loops (promise P-02), also where numbers
// are denormal or the processor flushes those to zero (promise P-11).

namespace test_gradient_errors {
struct AnyShape {};
}  // namespace test_gradient_errors
template <>
struct laws::Subject<test_gradient_errors::AnyShape> : SubjectDefaults {};

namespace test_gradient_errors {
namespace {

using namespace ruvector;
using namespace ruvector::attention;
using laws::Rows;

/// Gradients, and the largest term of their sums: rounding is relative to that, also where terms cancel. The two parts
/// of dP − D count one by one, since for a query with one key they are equal.
template <class R>
struct Gradients {
  Rows<R> out, query, key, value, bias;
  R query_term = 0, key_term = 0, value_term = 0, bias_term = 0;
};

/// The backward pass of softmax attention, row by row (Dao 2022, appendix B). D is summed in an order of its own.
template <class R, class T>
Gradients<R> formula(const DotScore<T>& score, const laws::Problem<T>& problem, const Matrix<T>& g,
                     std::type_identity_t<std::span<const T>> g_lse, laws::Order order) {
  const auto q = Rows<R>::of(problem.query), k = Rows<R>::of(problem.key), v = Rows<R>::of(problem.value),
             d_out = Rows<R>::of(g);
  const Index m = q.rows, n = k.rows;
  const R scale = score.scale ? R(*score.scale) : R(1) / std::sqrt(R(q.cols)), cap = R(score.softcap),
          tau = R(score.temperature.value());
  Rows<R> weights{m, n}, d_logits{m, n}, d_dots{m, n};
  Gradients<R> d{{m, v.cols}, {m, q.cols}, {n, k.cols}, {n, v.cols}, {problem.bias.rows(), problem.bias.cols()}};
  for (Index i = 0; i < m; ++i) {
    R top = -std::numeric_limits<R>::infinity();
    for (Index j = 0; j < n; ++j) {
      if (!problem.sees(i, j)) continue;
      const R dot = scale * laws::sum<R>(q.cols, order.reverse_dims, [&](Index c) { return q(i, c) * k(j, c); });
      const R t = cap > 0 ? std::tanh(dot / cap) : R(0);
      R logit =
          (cap > 0 ? cap * t : dot) / tau - R(score.alibi_slope) * R(std::abs(problem.mask.position(i, m, n) - j));
      if (!problem.bias.empty()) logit += R(problem.bias(problem.bias.rows() == 1 ? 0 : i, j));
      weights(i, j) = logit;
      d_dots(i, j) = (1 - t * t) * scale / tau;
      top = std::max(top, logit);
    }
    const auto over_keys = [&](auto&& f) {
      return laws::sum<R>(n, order.reverse_keys, [&](Index j) { return problem.sees(i, j) ? f(j) : R(0); });
    };
    const R total = over_keys([&](Index j) { return weights(i, j) = std::exp(weights(i, j) - top); });
    for (Index j = 0; j < n; ++j)
      if (problem.sees(i, j)) weights(i, j) /= total;
    for (Index c = 0; c < v.cols; ++c) d.out(i, c) = over_keys([&](Index j) { return weights(i, j) * v(j, c); });
    const R delta = laws::sum<R>(v.cols, order.reverse_keys, [&](Index c) { return d_out(i, c) * d.out(i, c); }) -
                    (g_lse.empty() ? R(0) : R(g_lse[std::size_t(i)]));
    for (Index j = 0; j < n; ++j) {
      if (!problem.sees(i, j)) continue;
      const R d_weight = laws::sum<R>(v.cols, order.reverse_dims, [&](Index c) { return d_out(i, c) * v(j, c); });
      const R term = weights(i, j) * (std::fabs(d_weight) + std::fabs(delta)), at_dot = term * std::fabs(d_dots(i, j));
      d.bias_term = std::max(d.bias_term, term);
      for (Index c = 0; c < q.cols; ++c) {
        d.query_term = std::max(d.query_term, at_dot * std::fabs(k(j, c)));
        d.key_term = std::max(d.key_term, at_dot * std::fabs(q(i, c)));
      }
      for (Index c = 0; c < v.cols; ++c) d.value_term = std::max(d.value_term, weights(i, j) * std::fabs(d_out(i, c)));
      d_logits(i, j) = weights(i, j) * (d_weight - delta);
      d_dots(i, j) *= d_logits(i, j);
    }
  }
  // dV = Pᵀ G, dQ = dS K, dK = dSᵀ Q, dBias = dL
  const auto over_queries = [&](auto&& f) { return laws::sum<R>(m, order.reverse_keys, f); };
  for (Index c = 0; c < q.cols; ++c) {
    for (Index i = 0; i < m; ++i)
      d.query(i, c) = laws::sum<R>(n, order.reverse_keys, [&](Index j) { return d_dots(i, j) * k(j, c); });
    for (Index j = 0; j < n; ++j) d.key(j, c) = over_queries([&](Index i) { return d_dots(i, j) * q(i, c); });
  }
  for (Index j = 0; j < n; ++j) {
    for (Index c = 0; c < v.cols; ++c)
      d.value(j, c) = over_queries([&](Index i) { return weights(i, j) * d_out(i, c); });
    if (d.bias.rows == 1)
      d.bias(0, j) = over_queries([&](Index i) { return d_logits(i, j); });
    else
      for (Index i = 0; i < d.bias.rows; ++i) d.bias(i, j) = d_logits(i, j);
  }
  return d;
}

template <class T>
struct Step {
  Matrix<T> value, query, key, gradient_by_value, bias;

  template <class A>
  Step(const A& backend, const laws::Problem<T>& problem, const Matrix<T>& g, std::span<const T> g_lse, Workspace& ws)
      : value(g.rows(), g.cols()),
        query(problem.query.rows(), problem.query.cols()),
        key(problem.key.rows(), problem.key.cols()),
        gradient_by_value(problem.value.rows(), problem.value.cols()),
        bias(problem.bias.rows(), problem.bias.cols()) {
    typename A::Saved saved;
    A grad = zeros_like(backend);
    backend.forward(problem.input(), AttentionOutput<T>{value}, saved, ws);
    backend.backward(problem.input(), saved, AttentionOutputGradient<T>{g, g_lse},
                     AttentionGradient<T>{query, key, gradient_by_value, bias}, grad, ws);
  }
};

/// One of three elements becomes a denormal number.
template <class T>
void sprinkle_denormals(Matrix<T>& matrix, Rng& rng) {
  for (T& x : matrix.span())
    if (rng.below(3) == 0) x *= std::numeric_limits<T>::min() / 4;
}

/// f() in a processor mode in which denormal numbers are zeros, as operands and as results.
template <class F>
[[gnu::noinline]] auto with_denormals_flushed(F&& f) {
#if defined(__x86_64__)
  struct Mode {
    unsigned before = _mm_getcsr();
    Mode() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON | 0x40); }  // 0x40: denormals are zeros
    Mode(const Mode&) = delete;
    Mode& operator=(const Mode&) = delete;
    ~Mode() { _mm_setcsr(before); }
  };
  const Mode mode;
#endif
  return f();
}

struct Numbers {
  bool denormals = false;  ///< among the inputs
  bool flushed = false;    ///< by the processor, to zero
};

/// The error is at most twice that of plain loops in the same precision, the worst of four orders, plus two units in
/// the last place of the largest term; where denormal numbers may be flushed, plus what that takes off a sum.
template <class A>
void as_exact_as_the_formula(std::uint64_t seed, Index cases, Numbers numbers) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (Index c = 0; c < cases; ++c) {
    const A backend(laws::random_score<T>(rng));
    const laws::Shape shape = laws::random_shape<AnyShape>(rng);
    laws::Problem<T> problem(shape, rng);
    auto g = laws::Problem<T>::random(shape.queries, shape.value_dim, rng, 1);
    Vector<T> g_lse(rng.below(2) == 0 ? shape.queries : 0);
    for (T& x : g_lse) x = T(rng.normal());
    if (numbers.denormals)  // among the weights, too
      for (T& x : problem.bias.span()) x *= T(-std::log(std::numeric_limits<T>::min())) / 2;
    if (numbers.denormals)
      for (Matrix<T>* matrix : {&problem.query, &problem.key, &problem.value, &problem.bias, &g})
        sprinkle_denormals(*matrix, rng);
    const auto run = [&] { return Step<T>(backend, problem, g, g_lse.span(), ws); };
    const Step<T> step = numbers.flushed ? with_denormals_flushed(run) : run();
    const auto truth = formula<long double>(backend.score, problem, g, g_lse.span(), {});
    double plain_error[5] = {};
    for (const laws::Order order :
         {laws::Order{false, false}, laws::Order{true, false}, laws::Order{false, true}, laws::Order{true, true}}) {
      const auto plain = formula<T>(backend.score, problem, g, g_lse.span(), order);
      const auto grow = [&](int which, const Rows<T>& rows, const Rows<long double>& expected) {
        plain_error[which] = std::max(plain_error[which], support::max_error(rows.data, expected.data));
      };
      grow(0, plain.query, truth.query);
      grow(1, plain.key, truth.key);
      grow(2, plain.value, truth.value);
      grow(3, plain.bias, truth.bias);
      grow(4, plain.out, truth.out);
    }
    const double terms = double(shape.queries + shape.keys + shape.dim + shape.value_dim),
                 lost = numbers.denormals || numbers.flushed ? 16 * terms * double(std::numeric_limits<T>::min()) : 0;
    const auto check = [&](const char* what, int which, const Matrix<T>& rows, const Rows<long double>& expected,
                           long double largest) {
      for (const long double x : expected.data) largest = std::max(largest, std::fabs(x));
      const double ulp = double(std::numeric_limits<T>::epsilon());
      CAPTURE(what, c, shape.queries, shape.keys, shape.dim, shape.value_dim, plain_error[which], double(largest));
      REQUIRE(support::max_error(rows.span(), expected.data) <=
              2 * plain_error[which] + 2 * ulp * double(largest) + lost);
    };
    long double largest_value = 0;
    for (const T x : problem.value.span())
      largest_value = std::max(largest_value, std::fabs(static_cast<long double>(x)));
    check("gradient by query", 0, step.query, truth.query, truth.query_term);
    check("gradient by key", 1, step.key, truth.key, truth.key_term);
    check("gradient by value", 2, step.gradient_by_value, truth.value, truth.value_term);
    check("gradient by bias", 3, step.bias, truth.bias, truth.bias_term);
    check("output", 4, step.value, truth.out, largest_value);
  }
}

/// Fewer where sanitizers make them slow.
Index shapes() {
  return support::trials(200, 40);
}

using Backends = std::tuple<ScaledDotProduct<float>, ScaledDotProduct<double>, Flash<float>, Flash<double>>;

TEMPLATE_LIST_TEST_CASE("attention: gradients are as exact as the formula", "[attention][law]", Backends) {
  as_exact_as_the_formula<TestType>(701, shapes(), {});
}
TEMPLATE_LIST_TEST_CASE("attention: denormal numbers are numbers", "[attention][law]", Backends) {
  as_exact_as_the_formula<TestType>(702, shapes() / 4, {.denormals = true});
}
TEMPLATE_LIST_TEST_CASE("attention: a processor that flushes denormals changes nothing else", "[attention][law]",
                        Backends) {
  as_exact_as_the_formula<TestType>(703, shapes() / 4, {.flushed = true});
  as_exact_as_the_formula<TestType>(704, shapes() / 4, {.denormals = true, .flushed = true});
}

}  // namespace
}  // namespace test_gradient_errors
