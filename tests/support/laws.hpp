// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/concepts.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/train/gradient_check.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

// The laws of attention. A backend adds one line to a list of types and receives them all; what a law needs of a
// backend beside the concepts is `Subject<A>`, derived from `SubjectDefaults`:
//
//   static A make(Rng&)                       one with random options
//   static void fit(Shape&)                   drops from a random problem what the backend does not accept
//   reference<R>(backend, problem, order)     the formula, in R: long double for the truth, T for what a plain loop
//                                             would reach. `SoftmaxSubject` writes it down for a softmax of logits.

namespace laws {

using namespace ruvector;
using namespace ruvector::attention;

using support::trials;

/// Sizes and rules of a random problem.
struct Shape {
  Index queries = 5, keys = 9, dim = 4, value_dim = 3;
  bool bias = false, bias_row = false, allowed = false, allowed_row = false;
  Mask mask = {};
  double spread = 1;  ///< standard deviation of queries, keys and values
};

/// What is true of most backends; a subject overrides the rest.
struct SubjectDefaults {
  static constexpr bool has_log_sum_exp = true;         ///< on request
  static constexpr bool has_weights = false;            ///< on request
  static constexpr bool weights_average_values = true;  ///< the output is weights · value
  static constexpr bool weights_are_positive = true;    ///< and sum to 1
  static constexpr Index first_column = 0;              ///< columns before it are not looked at
  static constexpr double logit_error = 0;       ///< relative, beside that of a plain loop: where a score says so
  static constexpr double gradient_step = 1e-4;  ///< of central differences: 1e-4 times the distance of a kink
  static void fit(Shape&) {}
};

template <class A>
struct Subject;

/// The order of sums: over keys and over coordinates in index order or in reverse, which gives other roundings.
struct Order {
  bool reverse_keys = false, reverse_dims = false;
};

/// Output and log-sum-exp by the formula.
template <class R>
struct Reference {
  std::vector<R> value, log_sum_exp;
  R largest_term = 0;  // of the terms that a log-sum-exp is summed from, where they are larger than it
};

/// Inputs that own their memory.
template <class T>
struct Problem {
  Matrix<T> query, key, value, bias;
  Matrix<std::uint8_t> allowed;
  Mask mask;

  Problem(const Shape& shape, Rng& rng, double spread = 1)
      : query(random(shape.queries, shape.dim, rng, spread * shape.spread)),
        key(random(shape.keys, shape.dim, rng, spread * shape.spread)),
        value(random(shape.keys, shape.value_dim, rng, shape.spread)),
        mask(shape.mask) {
    if (shape.bias) bias = random(shape.bias_row ? 1 : shape.queries, shape.keys, rng, 1);
    if (!shape.allowed) return;
    allowed = Matrix<std::uint8_t>(shape.allowed_row ? 1 : shape.queries, shape.keys);
    for (auto& byte : allowed.span()) byte = std::uint8_t(rng.below(3) != 0 ? 1 + rng.below(255) : 0);
  }

  [[nodiscard]] AttentionInput<T> input() const {
    AttentionInput<T> in{.query = query, .key = key, .value = value, .mask = mask, .bias = bias};
    if (!allowed.empty()) in.mask.allowed = allowed;
    return in;
  }
  [[nodiscard]] bool sees(Index i, Index j) const {
    return input().mask.visible(i, query.rows(), key.rows()).contains(j) &&
           (allowed.empty() || allowed(allowed.rows() == 1 ? 0 : i, j) != 0);
  }

  static Matrix<T> random(Index rows, Index cols, Rng& rng, double spread) {
    Matrix<T> matrix(rows, cols);
    for (T& x : matrix.span()) x = T(spread * rng.normal());
    return matrix;
  }
};

/// Everything a backend can be asked for.
template <class T>
struct Result {
  Matrix<T> value, weights;
  Vector<T> log_sum_exp;

  template <class A>
  Result(const A& backend, const AttentionInput<T>& in, Workspace& ws, bool with_weights = false)
      : value(in.query.rows(), backend.output_dim(in.value.cols())),
        log_sum_exp(Subject<A>::has_log_sum_exp ? in.query.rows() : 0) {
    if (with_weights) weights = Matrix<T>(in.query.rows(), in.key.rows());
    attend(backend, in, AttentionOutput<T>{value, log_sum_exp, weights}, ws);
  }
};

/// A subject that averages values by the softmax of logits. The derived one gives
///
///   logit<R>(backend, q, k)         of a pair, before bias and ALiBi
///   alibi_slope(backend)            0 unless it says otherwise
///   mean<R>(backend, weights, sum, …)         of value rows by weights with this sum; default: their weighted sum
template <class A>
struct SoftmaxSubject : SubjectDefaults {
  using T = ScalarOf<A>;

  static T alibi_slope(const A&) { return 0; }

  template <class R>
  static void mean(const A&, std::span<const R> weights, R sum, const Problem<T>& problem, bool reverse_keys,
                   std::span<R> out) {
    const Index n = Index(weights.size());
    for (Index step = 0; step < n; ++step) {
      const Index j = reverse_keys ? n - 1 - step : step;
      if (weights[std::size_t(j)] > 0)
        for (std::size_t c = 0; c < out.size(); ++c) out[c] += weights[std::size_t(j)] * R(problem.value(j, Index(c)));
    }
    for (R& x : out) x /= sum;
  }

  template <class R>
  static Reference<R> reference(const A& backend, const Problem<T>& problem, Order order) {
    const auto row = [&](const Matrix<T>& matrix, Index i) {
      std::vector<T> values(matrix.row(i).begin(), matrix.row(i).end());
      if (order.reverse_dims) std::ranges::reverse(values);
      return values;
    };
    const Index m = problem.query.rows(), n = problem.key.rows(), v = backend.output_dim(problem.value.cols());
    constexpr R infinity = std::numeric_limits<R>::infinity();
    Reference<R> result{std::vector<R>(std::size_t(m * v), R(0)), std::vector<R>(std::size_t(m), -infinity)};
    for (Index i = 0; i < m; ++i) {
      const std::vector<T> q = row(problem.query, i);
      std::vector<R> weights(std::size_t(n), -infinity);
      R top = -infinity;
      for (Index j = 0; j < n; ++j) {
        if (!problem.sees(i, j)) continue;
        R& x = weights[std::size_t(j)];
        const std::vector<T> k = row(problem.key, j);
        x = Subject<A>::template logit<R>(backend, q, k);
        x -= R(Subject<A>::alibi_slope(backend)) * R(std::abs(problem.mask.position(i, m, n) - j));
        if (!problem.bias.empty()) x += R(problem.bias(problem.bias.rows() == 1 ? 0 : i, j));
        top = std::max(top, x);
      }
      if (top == -infinity) continue;
      R sum = 0;
      for (Index step = 0; step < n; ++step) {
        R& x = weights[std::size_t(order.reverse_keys ? n - 1 - step : step)];
        sum += x = std::exp(x - top);
      }
      const std::span<R> out(result.value.data() + i * v, std::size_t(v));
      Subject<A>::template mean<R>(backend, weights, sum, problem, order.reverse_keys, out);
      result.log_sum_exp[std::size_t(i)] = top + std::log(sum);
    }
    return result;
  }
};

/// A shape without what the backend does not take.
template <class A>
Shape fitted(Shape shape) {
  Subject<A>::fit(shape);
  return shape;
}

/// Queries, keys and rules that hit the borders of registers, tiles and blocks, as far as the backend takes them.
template <class A>
Shape random_shape(Rng& rng) {
  static constexpr Index sizes[] = {1,  2,  3,  5,  7,  8,  15,  16,  17,  23,  24,
                                    25, 31, 63, 64, 65, 67, 127, 128, 129, 131, 200};
  const auto size = [&] { return sizes[rng.below(Index(std::size(sizes)))]; };
  Shape shape{.queries = size(), .keys = size(), .dim = 1 + rng.below(40), .value_dim = 1 + rng.below(40)};
  shape.bias = rng.below(3) == 0;
  shape.bias_row = rng.below(2) == 0;
  shape.allowed = rng.below(4) == 0;
  shape.allowed_row = rng.below(2) == 0;
  shape.mask.causal = rng.below(3) == 0;
  if (rng.below(3) == 0) shape.mask.window_left = rng.below(shape.keys + 2);
  if (rng.below(4) == 0) shape.mask.window_right = rng.below(shape.keys + 2);
  if (rng.below(4) == 0) shape.mask.global_keys = rng.below(4);
  if (rng.below(4) == 0) shape.mask.key_length = rng.below(shape.keys + 1);
  if (rng.below(6) == 0) shape.mask.first_position = rng.below(shape.keys + 4) - 2;
  Subject<A>::fit(shape);
  return shape;
}

/// The error is at most twice that of a plain loop in the same precision, plus two units in the last place of the
/// largest value, and of the largest term of a log-sum-exp: a sum is as exact as what it sums, also where that cancels
/// (promise P-02).
template <class A>
void agrees_with_the_formula(std::uint64_t seed, Index cases) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (Index c = 0; c < cases; ++c) {
    const A backend = Subject<A>::make(rng);
    const Problem<T> problem(random_shape<A>(rng), rng);
    const Result<T> result(backend, problem.input(), ws);
    const auto truth = Subject<A>::template reference<long double>(backend, problem, Order{});
    double plain_error = 0, scale = 0, lse_error = 0, lse_scale = 1 + double(truth.largest_term);
    // The worst of four orders: with few outputs one order may be exact by luck.
    for (const Order order : {Order{false, false}, Order{true, false}, Order{false, true}, Order{true, true}}) {
      const auto plain = Subject<A>::template reference<T>(backend, problem, order);
      plain_error = std::max(plain_error, support::max_error(plain.value, truth.value));
      for (std::size_t i = 0; i < truth.log_sum_exp.size(); ++i)
        if (std::isfinite(truth.log_sum_exp[i]))
          lse_error = std::max(
              lse_error, std::fabs(double(truth.log_sum_exp[i] - static_cast<long double>(plain.log_sum_exp[i]))));
    }
    for (const T x : problem.value.span()) scale = std::max(scale, std::fabs(double(x)));
    for (const long double x : truth.log_sum_exp)
      if (std::isfinite(x)) lse_scale = std::max(lse_scale, 1 + std::fabs(double(x)));
    // An error e of the logits is one of 2e in the weights.
    double logit_error = 0;
    for (const long double x : truth.log_sum_exp)
      if (std::isfinite(x)) logit_error = std::max(logit_error, Subject<A>::logit_error * (20 + std::fabs(double(x))));
    plain_error += logit_error * scale;
    lse_error += logit_error;
    const double ulp = double(std::numeric_limits<T>::epsilon());
    CAPTURE(c, problem.query.rows(), problem.key.rows(), problem.query.cols());
    REQUIRE(support::max_error(result.value.span(), truth.value) <= 2 * plain_error + 2 * ulp * scale);
    for (Index i = 0; i < result.log_sum_exp.size(); ++i)
      REQUIRE(support::near(double(result.log_sum_exp[i]), double(truth.log_sum_exp[std::size_t(i)]),
                            {.absolute = 2 * lse_error + 2 * ulp * lse_scale}));
  }
}

/// Weights are not negative and sum to 1, or to 0 for a query that sees no key, and they make the output.
template <class A>
void weights_sum_to_one(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < trials(50); ++c) {
    const A backend = Subject<A>::make(rng);
    const Problem<T> problem(random_shape<A>(rng), rng, 3);
    const Result<T> result(backend, problem.input(), ws, true);
    const double eps = double(std::numeric_limits<T>::epsilon()) * double(problem.key.rows() + 4);
    for (Index i = 0; i < problem.query.rows(); ++i) {
      double sum = 0;
      bool sees = false;
      for (Index j = 0; j < problem.key.rows(); ++j) {
        if (Subject<A>::weights_are_positive) REQUIRE(result.weights(i, j) >= 0);
        REQUIRE((problem.sees(i, j) || result.weights(i, j) == 0));
        sees = sees || problem.sees(i, j);
        sum += double(result.weights(i, j));
      }
      REQUIRE(std::fabs(sum - (sees ? 1 : 0)) <= eps);
      for (Index v = 0; Subject<A>::weights_average_values && v < problem.value.cols(); ++v) {
        double mean = 0, magnitude = 0;
        for (Index j = 0; j < problem.key.rows(); ++j) {
          mean += double(result.weights(i, j)) * double(problem.value(j, v));
          magnitude += std::fabs(double(result.weights(i, j)) * double(problem.value(j, v)));
        }
        REQUIRE(std::fabs(mean - double(result.value(i, v))) <= eps * (magnitude + 1e-300));
      }
    }
  }
}

/// What is hidden may hold anything: the output has the bits it has with zeros there (promise P-09).
template <class A>
void a_hidden_key_is_never_touched(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  const T poison[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(), T(-1e38),
                      std::numeric_limits<T>::signaling_NaN()};
  for (int c = 0; c < trials(60); ++c) {
    const A backend = Subject<A>::make(rng);
    Shape shape = random_shape<A>(rng);
    shape.mask.key_length = rng.below(shape.keys + 1);
    Problem<T> problem(shape, rng), poisoned = problem;
    for (Index j = 0; j < shape.keys; ++j) {
      bool seen = false;
      for (Index i = 0; i < shape.queries; ++i) seen = seen || problem.sees(i, j);
      for (Index i = 0; i < shape.queries; ++i)
        if (shape.bias && !shape.bias_row && !problem.sees(i, j)) {
          problem.bias(i, j) = 0;
          poisoned.bias(i, j) = poison[rng.below(4)];
        }
      if (seen) continue;
      for (T& x : problem.key.row(j)) x = 0;
      for (T& x : problem.value.row(j)) x = 0;
      for (T& x : poisoned.key.row(j)) x = poison[rng.below(4)];
      for (T& x : poisoned.value.row(j)) x = poison[rng.below(4)];
    }
    const Result<T> clean(backend, problem.input(), ws), result(backend, poisoned.input(), ws);
    REQUIRE(support::same_bits(clean.value.span(), result.value.span()));
    REQUIRE(support::same_bits(clean.log_sum_exp.span(), result.log_sum_exp.span()));
  }
}

/// A value that is not finite reaches exactly the queries that see it.
template <class A>
void nan_stays_in_its_row(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < trials(60); ++c) {
    const A backend = Subject<A>::make(rng);
    const Shape shape = random_shape<A>(rng);
    const Problem<T> problem(shape, rng);
    const Result<T> clean(backend, problem.input(), ws);
    Problem<T> spoiled = problem;
    const Index row = rng.below(shape.queries), key = rng.below(shape.keys);
    const bool in_query = rng.below(2) == 0;
    if (in_query)
      spoiled.query(row, Subject<A>::first_column + rng.below(shape.dim - Subject<A>::first_column)) =
          std::numeric_limits<T>::quiet_NaN();
    else
      spoiled.value(key, Subject<A>::first_column) = std::numeric_limits<T>::quiet_NaN();
    const Result<T> result(backend, spoiled.input(), ws);
    for (Index i = 0; i < shape.queries; ++i) {
      bool sees_any = false;
      for (Index j = 0; j < shape.keys; ++j) sees_any = sees_any || problem.sees(i, j);
      const bool hit = in_query ? i == row && sees_any : problem.sees(i, key);
      if (hit)
        REQUIRE(std::isnan(result.value(i, Subject<A>::first_column)));
      else
        REQUIRE(support::same_bits(clean.value.row(i), result.value.row(i)));
    }
  }
}

/// Logits up to the largest number, and infinite ones, order the weights as they should (promise P-07).
template <class A>
void huge_logits_are_safe(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  constexpr T infinity = std::numeric_limits<T>::infinity(), huge = std::numeric_limits<T>::max() / 4;
  for (const Index n : {2, 5, 64, 100}) {
    for (const T top : {T(1e4), huge, infinity}) {
      const A backend = Subject<A>::make(rng);
      Problem<T> problem(fitted<A>({.queries = 3, .keys = n, .bias = true}), rng);
      if (problem.bias.empty()) return;
      for (T& x : problem.bias.span()) x = -huge;
      const Index one = rng.below(n), two = (one + 1) % n;
      problem.bias(0, one) = top;
      problem.bias(1, one) = problem.bias(1, two) = top;
      for (Index j = 0; j < n; ++j) problem.bias(2, j) = -infinity;
      const Result<T> result(backend, problem.input(), ws);
      CAPTURE(n, double(top));
      for (Index v = 0; v < result.value.cols(); ++v) {
        CHECK(result.value(2, v) == 0);
        if (!Subject<A>::weights_average_values) {
          CHECK(std::isfinite(result.value(0, v)));
          CHECK(std::isfinite(result.value(1, v)));
          continue;
        }
        CHECK(support::near(double(result.value(0, v)), double(problem.value(one, v)), support::rounding<T>()));
        if (top >= huge)  // smaller ones do not drown the difference of the scores
          CHECK(support::near(double(result.value(1, v)), double(problem.value(one, v) + problem.value(two, v)) / 2,
                              {.absolute = 1e-6}));
      }
      if (!result.log_sum_exp.empty()) CHECK(result.log_sum_exp[2] == -infinity);
    }
  }
}

/// A row alone has the bits it has in a batch, wherever it stands (promise P-21).
template <class A>
void a_row_depends_on_itself(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (const Index m : {1, 6, 24, 25, 97, 257, 400}) {
    const A backend = Subject<A>::make(rng);
    Shape shape{.queries = m, .keys = 150, .dim = 19, .value_dim = 21, .bias = true};
    shape.mask = {.causal = true, .window_left = 40, .key_length = 131};
    const Problem<T> problem(fitted<A>(shape), rng);
    const Result<T> whole(backend, problem.input(), ws);
    for (Index first = 0; first < m; first += 1 + m / 7) {
      for (const Index count : {Index(1), Index(5), m - first}) {
        if (first + count > m) continue;
        const Result<T> part(backend, problem.input().query_rows(first, count), ws);
        for (Index i = 0; i < count; ++i) {
          REQUIRE(support::same_bits(part.value.row(i), whole.value.row(first + i)));
          if (!part.log_sum_exp.empty()) REQUIRE(support::same_bits(part.log_sum_exp[i], whole.log_sum_exp[first + i]));
        }
      }
    }
  }
}

/// The order of the keys does not matter, but for rounding.
template <class A>
void keys_are_a_set(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < trials(20); ++c) {
    const A backend = Subject<A>::make(rng);
    const Problem<T> problem(fitted<A>({.queries = 9, .keys = 130, .dim = 8, .value_dim = 5}), rng);
    if constexpr (requires { Subject<A>::alibi_slope(backend); })
      if (Subject<A>::alibi_slope(backend) != 0) continue;
    Problem<T> shuffled = problem;
    std::vector<Index> order(130);
    for (Index j = 0; j < 130; ++j) order[std::size_t(j)] = j;
    rng.shuffle(std::span(order));
    for (Index j = 0; j < 130; ++j) {
      std::ranges::copy(problem.key.row(order[std::size_t(j)]), shuffled.key.row(j).begin());
      std::ranges::copy(problem.value.row(order[std::size_t(j)]), shuffled.value.row(j).begin());
    }
    const Result<T> result(backend, problem.input(), ws), other(backend, shuffled.input(), ws);
    const double bound = 130 * double(std::numeric_limits<T>::epsilon()) * 4;
    REQUIRE(support::max_error(result.value.span(), other.value.span()) <= bound);
  }
}

/// The second identical call allocates nothing (promise P-35).
template <class A>
void the_second_call_allocates_nothing(std::uint64_t seed) {
  using T = ScalarOf<A>;
  if (!support::allocations_counted()) return;  // sanitizers of clang
  Rng rng(seed);
  const A backend = Subject<A>::make(rng);
  const Shape shape = fitted<A>({.queries = 50, .keys = 5000, .dim = 16, .value_dim = 16, .bias = true});
  const Problem<T> problem(shape, rng);
  const AttentionInput<T> in = problem.input();
  Matrix<T> value(shape.queries, backend.output_dim(shape.value_dim)), d_query(shape.queries, shape.dim),
      d_key(shape.keys, shape.dim), d_value(shape.keys, shape.value_dim);
  Workspace ws;
  typename A::Saved saved;
  A grad = zeros_like(backend);
  const auto call = [&] {
    backend.forward(in, AttentionOutput<T>{value}, saved, ws);
    backend.backward(in, saved, AttentionOutputGradient<T>{value}, AttentionGradient<T>{d_query, d_key, d_value}, grad,
                     ws);
  };
  CHECK(support::allocations_in(call) > 0);
  CHECK(support::allocations_in(call) == 0);
}

/// A query that sees no key: zeros, −∞, and nothing flows back (promise P-10).
template <class A>
void a_blind_query_is_silent(std::uint64_t seed) {
  using T = ScalarOf<A>;
  Rng rng(seed);
  const A backend = Subject<A>::make(rng);
  for (const Index keys : {0, 7, 70}) {
    Shape shape{.queries = 4, .keys = keys};
    shape.mask.key_length = 0;
    Subject<A>::fit(shape);
    const Problem<T> problem(shape, rng);
    Workspace ws;
    typename A::Saved saved;
    const Index columns = backend.output_dim(shape.value_dim), lse_rows = Subject<A>::has_log_sum_exp ? 4 : 0;
    Matrix<T> value(4, columns, T(7)), ones(4, columns, T(1)), d_query(4, shape.dim), d_key(keys, shape.dim),
        d_value(keys, shape.value_dim);
    Vector<T> lse(lse_rows), d_lse(lse_rows, T(1));
    A grad = zeros_like(backend);
    backend.forward(problem.input(), AttentionOutput<T>{value, lse}, saved, ws);
    backend.backward(problem.input(), saved, AttentionOutputGradient<T>{ones, d_lse},
                     AttentionGradient<T>{d_query, d_key, d_value}, grad, ws);
    for (const T x : value.span()) CHECK(x == 0);
    for (const T x : lse) CHECK(x == -std::numeric_limits<T>::infinity());
    for (const Matrix<T>* gradient : {&d_query, &d_key, &d_value})
      for (const T x : gradient->span()) CHECK(x == 0);
    for_each_parameter(
        [](std::string_view, std::span<T> x) {
          for (const T g : x) CHECK(g == 0);
        },
        grad);
  }
}

/// Central differences of all inputs and parameters (promise P-01), with every rule of masks and with a gradient of the
/// log-sum-exp.
template <class A>
void gradients_are_right(std::uint64_t seed, Index cases) {
  static_assert(std::same_as<ScalarOf<A>, double>);
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (Index c = 0; c < trials(int(cases)); ++c) {
    const A backend = Subject<A>::make(rng);
    Shape shape = random_shape<A>(rng);
    shape.queries = 1 + shape.queries % 40;
    shape.keys = 1 + shape.keys % 150;
    shape.dim = 1 + shape.dim % 6;
    shape.value_dim = 1 + shape.value_dim % 5;
    Subject<A>::fit(shape);
    shape.mask.key_length = shape.mask.key_length == Mask::unlimited ? Mask::unlimited : shape.keys / 2;
    const Problem<double> problem(shape, rng);
    const auto g = Problem<double>::random(shape.queries, backend.output_dim(shape.value_dim), rng, 1);
    Vector<double> g_lse(shape.queries);
    for (double& x : g_lse) x = rng.normal();
    if (!Subject<A>::has_log_sum_exp) g_lse = Vector<double>();
    const auto loss = [&](const A& a, const AttentionInput<double>& in) {
      const Result<double> result(a, in, ws);
      double sum = 0;
      for (Index i = 0; i < in.query.rows(); ++i) {
        if (!g_lse.empty() && std::isfinite(result.log_sum_exp[i])) sum += result.log_sum_exp[i] * g_lse[i];
        for (Index v = 0; v < g.cols(); ++v) sum += result.value(i, v) * g(i, v);
      }
      return sum;
    };
    const AttentionInput<double> in = problem.input();
    typename A::Saved saved;
    Matrix<double> value(shape.queries, g.cols()), d_query(problem.query.rows(), problem.query.cols()),
        d_key(problem.key.rows(), problem.key.cols()), d_value(problem.value.rows(), problem.value.cols()),
        d_bias(problem.bias.rows(), problem.bias.cols());
    A grad = zeros_like(backend);
    backend.forward(in, AttentionOutput<double>{value}, saved, ws);
    backend.backward(in, saved, AttentionOutputGradient<double>{g, g_lse},
                     AttentionGradient<double>{d_query, d_key, d_value, d_bias}, grad, ws);
    const auto check = [&](const Matrix<double>& x, const Matrix<double>& gradient, auto set) {
      const auto moved = [&](std::span<const double> values) {
        AttentionInput<double> other = in;
        set(other, MatrixView<const double>(values.data(), x.rows(), x.cols()));
        return loss(backend, other);
      };
      const train::GradientCheck result =
          train::check_gradient(moved, x.span(), gradient.span(), {.step = Subject<A>::gradient_step});
      INFO(to_string(result));
      CHECK(result.passed);
    };
    CAPTURE(c, shape.queries, shape.keys);
    check(problem.query, d_query, [](auto& i, MatrixView<const double> x) { i.query = x; });
    check(problem.key, d_key, [](auto& i, MatrixView<const double> x) { i.key = x; });
    check(problem.value, d_value, [](auto& i, MatrixView<const double> x) { i.value = x; });
    if (shape.bias) check(problem.bias, d_bias, [](auto& i, MatrixView<const double> x) { i.bias = x; });
    const auto parameters = train::check_module_gradient([&](const A& a) { return loss(a, in); }, backend, grad);
    INFO(to_string(parameters));
    CHECK(parameters.passed);
  }
}

}  // namespace laws
