// SPDX-License-Identifier: MIT
#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <tuple>
#include <vector>

#include "attention_reference.hpp"
#include "simd/guarded_memory.hpp"
#include "support/laws.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

// Promises about the weights (P-06), about what is not finite or hidden, in both directions (P-08, P-09), about where
// data lies (P-33) and about outputs that lie on inputs (P-34).

namespace test_promises {
struct AnyShape {};
}  // namespace test_promises
template <>
struct laws::Subject<test_promises::AnyShape> : SubjectDefaults {};

namespace test_promises {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

using Backends = std::tuple<ScaledDotProduct<float>, ScaledDotProduct<double>, Flash<float>, Flash<double>>;

// --- Weights ---

/// A number of one of five distributions, from mild to the ends of the range.
double draw(int distribution, Rng& rng) {
  switch (distribution) {
    case 0:
      return rng.normal();
    case 1:
      return rng.uniform(-80.0, 80.0);
    case 2:
      return std::tan(std::numbers::pi * (rng.uniform() - 0.5));  // Cauchy
    case 3:
      return rng.below(4) == 0 ? -700 * rng.uniform() : rng.normal() * 1e-3;
    default:
      return rng.below(2) == 0 ? 3e38 : -3e38;
  }
}

/// softmax(x + c) = softmax(x). Of multiples of a grid and of c one the sums are exact.
template <class A>
void weights_are_a_distribution_and_shift(std::uint64_t seed, Index rows_in_all) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  const A backend;
  constexpr Index m = 100;
  for (Index row = 0; row < rows_in_all; row += m) {
    const int distribution = int(row / m % 5);
    const double grid = distribution == 4 ? 0x1p108 : 0x1p-6, limit = distribution == 4 ? 3.1e38 : 0x1p15,
                 shift = (rng.below(2) == 0 ? 1 : -1) * grid * double(Index(1) << rng.below(14));
    const Index n = 1 + rng.below(row / m % 7 == 0 ? 150 : 20);
    const Matrix<T> nothing(m, 1), key(n, 1), value(n, 1);
    Matrix<T> bias(m, n), shifted(m, n), weights(m, n), shifted_weights(m, n);
    bool exact = true;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        bias(i, j) = T(grid * std::nearbyint(std::clamp(draw(distribution, rng), -limit, limit) / grid));
        shifted(i, j) = bias(i, j) + T(shift);
        exact = exact && shifted(i, j) - T(shift) == bias(i, j);
      }
    REQUIRE(exact);
    backend.forward({.query = nothing, .key = key, .value = value, .bias = bias}, {.value = {}, .weights = weights},
                    ws);
    backend.forward({.query = nothing, .key = key, .value = value, .bias = shifted},
                    {.value = {}, .weights = shifted_weights}, ws);
    for (Index i = 0; i < m; ++i) {
      double sum = 0;
      bool positive = true, same = true;
      for (Index j = 0; j < n; ++j) {
        const T weight = weights(i, j);
        sum += double(weight);
        positive = positive && weight >= 0;
        same = same && (weight <= T(1e-30) || support::ulp_distance(weight, shifted_weights(i, j)) <= 4);
      }
      const bool whole = std::fabs(sum - 1) <= double(n) * double(std::numeric_limits<T>::epsilon());
      if (positive && whole && same) continue;
      CAPTURE(row, i, n, distribution, shift, positive, sum, same);
      FAIL("not the weights of a softmax");
    }
  }
}

TEMPLATE_LIST_TEST_CASE("attention: weights are a distribution, and a shift of the logits does not change it",
                        "[attention][law]", Backends) {
  const Index rows = support::trials<Index>(1'000'000, 20'000);  // by all four backends
  weights_are_a_distribution_and_shift<TestType>(801, rows / 4);
}

// --- What is not finite, and what is hidden ---

/// Everything that a training step writes.
template <class T>
struct Step {
  Matrix<T> value, weights, query, key, gradient_by_value, bias;
  Vector<T> lse;

  Step(Index m, Index n, Index d, Index v, Index bias_rows)
      : value(m, v), weights(m, n), query(m, d), key(n, d), gradient_by_value(n, v), bias(bias_rows, n), lse(m) {}

  template <class A>
  Step(const A& backend, const AttentionInput<T>& in, const AttentionOutputGradient<T>& g, Workspace& ws)
      : Step(in.query.rows(), in.key.rows(), in.query.cols(), in.value.cols(), in.bias.rows()) {
    run(backend, in, {value, lse, weights}, g, {query, key, gradient_by_value, bias}, ws);
  }

  /// Forward and backward.
  template <class A>
  static void run(const A& backend, const AttentionInput<T>& in, const AttentionOutput<T>& out,
                  const AttentionOutputGradient<T>& g, const AttentionGradient<T>& d_in, Workspace& ws) {
    typename A::Saved saved;
    A grad = zeros_like(backend);
    backend.forward(in, out, saved, ws);
    backend.backward(in, saved, g, d_in, grad, ws);
  }
};

template <class T>
bool all_nan(std::span<const T> row) {
  return std::ranges::all_of(row, [](T x) { return std::isnan(x); });
}

/// NaN in one row of the queries, keys, values or gradients of the output reaches exactly what depends on it: rows that
/// see it, and the gradients of what those rows see.
template <class A>
void nan_reaches_exactly_those_who_see_it(std::uint64_t seed) {
  using T = ScalarOf<A>;
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 120; ++c) {
    const A backend(laws::random_score<T>(rng));
    const laws::Shape shape = laws::random_shape<AnyShape>(rng);
    const Index m = shape.queries, n = shape.keys;
    const laws::Problem<T> problem(shape, rng);
    const auto g = laws::Problem<T>::random(m, shape.value_dim, rng, 1);
    const Step<T> clean(backend, problem.input(), {g}, ws);

    enum { query, key, value, gradient };
    const auto place = c % 4;
    laws::Problem<T> spoiled = problem;
    Matrix<T> spoiled_g = g;
    const Index row = rng.below(place == key || place == value ? n : m), v = rng.below(shape.value_dim);
    if (place == query) spoiled.query(row, rng.below(shape.dim)) = nan;
    if (place == key) spoiled.key(row, rng.below(shape.dim)) = nan;
    if (place == value) spoiled.value(row, v) = nan;
    if (place == gradient) spoiled_g(row, v) = nan;
    const Step<T> step(backend, spoiled.input(), {spoiled_g}, ws);

    const auto hit = [&](Index i) { return place == query || place == gradient ? i == row : problem.sees(i, row); };
    const auto check = [](bool touched, std::span<const T> actual, std::span<const T> expected) {
      if (touched)
        REQUIRE(all_nan(actual));
      else
        REQUIRE(support::same_bits(actual, expected));
    };
    CAPTURE(c, int(place), row, v, m, n);
    std::vector<bool> key_hit(std::size_t(n), false);
    for (Index i = 0; i < m; ++i) {
      bool sees_any = false;
      for (Index j = 0; j < n; ++j) {
        sees_any = sees_any || problem.sees(i, j);
        if (hit(i) && problem.sees(i, j)) key_hit[std::size_t(j)] = true;
      }
      const bool touched = hit(i) && sees_any, by_weight = touched && (place == query || place == key);
      CAPTURE(i);
      check(by_weight, step.lse.span().subspan(std::size_t(i), 1), clean.lse.span().subspan(std::size_t(i), 1));
      for (Index w = 0; w < shape.value_dim; ++w)
        check(by_weight || (touched && place == value && w == v), step.value.row(i).subspan(std::size_t(w), 1),
              clean.value.row(i).subspan(std::size_t(w), 1));
      for (Index j = 0; j < n; ++j)  // of a row that is NaN the weights of hidden keys may be so, too
        if (!by_weight || problem.sees(i, j))
          check(by_weight, step.weights.row(i).subspan(std::size_t(j), 1),
                clean.weights.row(i).subspan(std::size_t(j), 1));
      check(touched, step.query.row(i), clean.query.row(i));
      for (Index j = 0; step.bias.rows() == m && m > 1 && j < n; ++j)
        check(touched && problem.sees(i, j), step.bias.row(i).subspan(std::size_t(j), 1),
              clean.bias.row(i).subspan(std::size_t(j), 1));
    }
    for (Index j = 0; j < n; ++j) {
      const bool touched = key_hit[std::size_t(j)];
      CAPTURE(j);
      check(touched, step.key.row(j), clean.key.row(j));
      const bool all = touched && (place == query || place == key);
      for (Index w = 0; w < shape.value_dim; ++w)
        check(all || (touched && place == gradient && w == v), step.gradient_by_value.row(j).subspan(std::size_t(w), 1),
              clean.gradient_by_value.row(j).subspan(std::size_t(w), 1));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("attention: NaN reaches exactly those who see it, forward and backward", "[attention][law]",
                        Backends) {
  nan_reaches_exactly_those_who_see_it<TestType>(811);
}

/// Keys that nobody sees may hold anything: all gradients have the bits they have with zeros there.
template <class A>
void hidden_keys_have_no_gradient(std::uint64_t seed) {
  using T = ScalarOf<A>;
  const T poison[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(), T(-1e38),
                      std::numeric_limits<T>::signaling_NaN()};
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  Index hidden = 0;
  for (int c = 0; c < 90; ++c) {
    const A backend(laws::random_score<T>(rng));
    laws::Shape shape = laws::random_shape<AnyShape>(rng);
    const Index m = shape.queries, n = shape.keys;
    if (c % 3 == 0) shape.mask.key_length = rng.below(n + 1);
    if (c % 3 == 1) shape.allowed = true;
    if (c % 3 == 2) shape.mask.causal = true, shape.mask.first_position = rng.below(n) - m / 2;
    laws::Problem<T> zeroed(shape, rng);
    const auto g = laws::Problem<T>::random(m, shape.value_dim, rng, 1);
    Vector<T> g_lse(m);
    for (T& x : g_lse) x = T(rng.normal());
    for (int k = 0; c % 3 == 1 && k < 5; ++k)  // for all queries
      for (Index i = 0, j = rng.below(n); i < zeroed.allowed.rows(); ++i) zeroed.allowed(i, j) = 0;
    laws::Problem<T> poisoned = zeroed;
    for (Index j = 0; j < n; ++j) {
      bool seen = false;
      for (Index i = 0; i < m; ++i) {
        seen = seen || zeroed.sees(i, j);
        if (zeroed.bias.rows() != m || m == 1 || zeroed.sees(i, j)) continue;
        zeroed.bias(i, j) = 0;
        poisoned.bias(i, j) = poison[rng.below(4)];
      }
      if (seen) continue;
      ++hidden;
      std::ranges::fill(zeroed.key.row(j), T(0));
      std::ranges::fill(zeroed.value.row(j), T(0));
      for (T& x : poisoned.key.row(j)) x = poison[rng.below(4)];
      for (T& x : poisoned.value.row(j)) x = poison[rng.below(4)];
    }
    const Step<T> expected(backend, zeroed.input(), {g, g_lse.span()}, ws),
        step(backend, poisoned.input(), {g, g_lse.span()}, ws);
    CAPTURE(c, m, n);
    REQUIRE(support::same_bits(step.value.span(), expected.value.span()));
    REQUIRE(support::same_bits(step.weights.span(), expected.weights.span()));
    REQUIRE(support::same_bits(step.query.span(), expected.query.span()));
    REQUIRE(support::same_bits(step.key.span(), expected.key.span()));
    REQUIRE(support::same_bits(step.gradient_by_value.span(), expected.gradient_by_value.span()));
    REQUIRE(support::same_bits(step.bias.span(), expected.bias.span()));
  }
  CHECK(hidden > 100);
}

TEMPLATE_LIST_TEST_CASE("attention: hidden keys may hold anything in backward, too", "[attention][law]", Backends) {
  hidden_keys_have_no_gradient<TestType>(821);
}

// --- Where data lies ---

/// A matrix between two pages that fault, with something else between its rows.
template <class T>
class Placed {
 public:
  /// The first element `offset` elements after the first page, or the last one right before the last page.
  Placed(Index rows, Index cols, Index gap, Index offset, bool at_end)
      : memory_(rows * (cols + gap) + offset),
        view_(at_end ? memory_.at_end((rows - 1) * (cols + gap) + cols) : memory_.at_begin() + offset, rows, cols,
              cols + gap) {
    std::fill_n(view_.data(), (rows - 1) * view_.stride() + cols, filler());
    for (Index i = 0; i < rows; ++i) std::ranges::fill(view_.row(i), T(0));
  }
  Placed(const Matrix<T>& x, Index gap, Index offset, bool at_end) : Placed(x.rows(), x.cols(), gap, offset, at_end) {
    for (Index i = 0; i < x.rows(); ++i) std::ranges::copy(x.row(i), view_.row(i).begin());
  }

  [[nodiscard]] MatrixView<T> view() const { return view_; }
  /// The same numbers, and nothing written between the rows.
  [[nodiscard]] bool holds(const Matrix<T>& x) const {
    for (Index i = 0; i < view_.rows(); ++i) {
      if (!support::same_bits(view_.row(i), x.row(i))) return false;
      for (const T* p = view_.row(i).data() + view_.cols(); i + 1 < view_.rows() && p != view_.row(i + 1).data(); ++p)
        if (!support::same_bits(*p, filler())) return false;
    }
    return true;
  }

 private:
  static T filler() {
    if constexpr (Real<T>)
      return std::numeric_limits<T>::quiet_NaN();
    else
      return T(1);
  }
  GuardedMemory<T> memory_;
  MatrixView<T> view_;
};

template <class A>
void it_does_not_matter_where_data_lies(std::uint64_t seed) {
  using T = ScalarOf<A>;
  static constexpr Index widths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 70};
  static constexpr Index query_counts[] = {1, 6, 25, 29}, key_counts[] = {1, 17, 63, 64, 67, 130};
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  const A backend;
  for (Index offset = 0; offset < 20; ++offset)  // of the last four data ends where it must not be read
    for (const Index d : widths) {
      const bool at_end = offset >= 16;
      const Index v = widths[rng.below(Index(std::size(widths)))], gap = 1 + 2 * rng.below(4);
      laws::Shape shape{
          .queries = query_counts[rng.below(4)], .keys = key_counts[rng.below(6)], .dim = d, .value_dim = v};
      shape.bias = shape.allowed = offset % 2 == 1;
      shape.bias_row = shape.allowed_row = rng.below(2) == 0;
      shape.mask.causal = offset % 4 >= 2;
      const Index m = shape.queries, n = shape.keys;
      const laws::Problem<T> problem(shape, rng);
      const auto g = laws::Problem<T>::random(m, v, rng, 1);
      Matrix<T> g_lse(1, m);
      for (T& x : g_lse.span()) x = T(rng.normal());
      const Step<T> expected(backend, problem.input(), {g, g_lse.span()}, ws);

      const auto place = [&](const auto& x) { return Placed(x, gap, offset, at_end); };
      const auto query = place(problem.query), key = place(problem.key), value = place(problem.value), d_out = place(g),
                 d_lse = place(g_lse), bias = place(shape.bias ? problem.bias : Matrix<T>(1, 1));
      const auto allowed = place(shape.allowed ? problem.allowed : Matrix<std::uint8_t>(1, 1));
      const auto room = [&](const Matrix<T>& x) {
        return Placed<T>(std::max(x.rows(), Index(1)), x.cols(), gap, offset, at_end);
      };
      const auto out = room(expected.value), weights = room(expected.weights), d_query = room(expected.query),
                 d_key = room(expected.key), d_value = room(expected.gradient_by_value), d_bias = room(expected.bias);
      const Placed<T> lse(1, m, gap, offset, at_end);
      AttentionInput<T> in{.query = query.view(), .key = key.view(), .value = value.view(), .mask = shape.mask};
      if (shape.bias) in.bias = bias.view();
      if (shape.allowed) in.mask.allowed = allowed.view();
      AttentionGradient<T> d_in{d_query.view(), d_key.view(), d_value.view()};
      if (shape.bias) d_in.bias = d_bias.view();
      Step<T>::run(backend, in, {out.view(), lse.view().row(0), weights.view()}, {d_out.view(), d_lse.view().row(0)},
                   d_in, ws);
      CAPTURE(at_end, offset, gap, m, n, d, v);
      REQUIRE(out.holds(expected.value));
      REQUIRE(support::same_bits(lse.view().row(0), expected.lse.span()));
      REQUIRE(weights.holds(expected.weights));
      REQUIRE(d_query.holds(expected.query));
      REQUIRE(d_key.holds(expected.key));
      REQUIRE(d_value.holds(expected.gradient_by_value));
      if (shape.bias) REQUIRE(d_bias.holds(expected.bias));
    }
}

TEMPLATE_LIST_TEST_CASE("attention: it does not matter where data lies", "[attention][law]", Backends) {
  it_does_not_matter_where_data_lies<TestType>(831);
}

// --- Outputs on inputs ---

TEMPLATE_LIST_TEST_CASE("attention: the output may take the place of the queries", "[attention][law]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(841);
  Workspace ws;
  ThreadPool pool(2);
  const TestType backend;
  for (const Index m : {1, 25, 400, 1500}) {  // a tile, a block, several tasks
    laws::Shape shape{.queries = m, .keys = 100, .dim = 21, .value_dim = 21, .bias = m < 1000};
    shape.mask.causal = m % 2 == 0;
    const laws::Problem<T> problem(shape, rng);
    Matrix<T> value(m, 21), in_place = problem.query, by_workers = problem.query;
    Vector<T> lse(m), other_lse(m);
    attend(backend, problem.input(), {value, lse}, ws);
    AttentionInput<T> in = problem.input();
    in.query = in_place;
    attend(backend, in, {in_place, other_lse}, ws);
    CAPTURE(m);
    CHECK(support::same_bits(value.span(), in_place.span()));
    CHECK(support::same_bits(lse.span(), other_lse.span()));
    in.query = by_workers;
    attend(backend, in, {by_workers, other_lse}, pool, ws);
    CHECK(support::same_bits(value.span(), by_workers.span()));
  }
}

}  // namespace
}  // namespace test_promises
