// SPDX-License-Identifier: MIT
#include <ruvector/nn/gru_cell.hpp>

#include "nn/golden.hpp"
#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace ruvector_test_gru_cell {
namespace {

using namespace ruvector;
using nn::GruCell;
using nn::GruReset;
using nn::GruUpdate;
using row_map_laws::random_matrix;
using row_map_laws::same_parameters;

static_assert(nn::RecurrentCell<GruCell<float>> && nn::RecurrentCell<GruCell<double>>);

constexpr std::uint64_t seed = 40;

// Parameters in ±1/2 at these sizes: no gate is shut.
template <class T>
GruCell<T> random_cell(const nn::GruConfig& config, Rng& rng) {
  GruCell<T> cell(config, rng);
  for_each_parameter(
      [&](std::string_view, auto tensor) {
        for (T& w : tensor) w = rng.uniform(T(-0.5), T(0.5));
      },
      cell);
  return cell;
}

/// All combinations of conventions.
template <class F>
void for_each_convention(F&& f) {
  for (const GruUpdate update : {GruUpdate::keep, GruUpdate::replace})
    for (const GruReset reset : {GruReset::after_product, GruReset::before_product})
      for (const bool bias : {true, false}) f(nn::GruConfig{.bias = bias, .update = update, .reset = reset});
}

/// What goes in, and ∂L/∂h'.
template <class T>
struct Problem {
  Matrix<T> x, h, d_out;
  Problem(Index n, Index in, Index hidden, Rng& rng)
      : x(random_matrix<T>(n, in, rng)), h(random_matrix<T>(n, hidden, rng)), d_out(random_matrix<T>(n, hidden, rng)) {}
};

/// Values and gradients of one call.
template <nn::RecurrentCell C>
struct Run {
  using T = ScalarOf<C>;
  Matrix<T> out, d_x, d_h;
  C grad;

  template <Executor E = Serial>
  Run(const C& cell, MatrixView<const T> x, MatrixView<const T> h, MatrixView<const T> d_out, Workspace& ws,
      E&& executor = Serial{}, T start = 0)
      : out(h.rows(), h.cols(), T(NAN)),
        d_x(x.rows(), x.cols(), start),
        d_h(h.rows(), h.cols(), start),
        grad(zeros_like(cell)) {
    for_each_parameter([&](std::string_view, auto t) { std::ranges::fill(t, start); }, grad);
    typename C::Saved saved;
    cell.forward(x, h, out, saved, ws, executor);
    cell.backward(x, h, saved, d_out, d_x, d_h, grad, ws, executor);
  }
  template <Executor E = Serial>
  Run(const C& cell, const Problem<T>& problem, Workspace& ws, E&& executor = Serial{}, T start = 0)
      : Run(cell, problem.x, problem.h, problem.d_out, ws, executor, start) {}
};

template <nn::RecurrentCell C>
void check_gradients(const C& cell, const Problem<double>& problem) {
  Workspace ws;
  const auto loss = [&](const C& at, MatrixView<const double> x, MatrixView<const double> h) {
    Matrix<double> out(h.rows(), h.cols());
    at.forward(x, h, out, ws);
    double sum = 0;
    for (Index i = 0; i < out.size(); ++i) sum += problem.d_out.data()[i] * out.data()[i];
    return sum;
  };
  const Run<C> run(cell, problem, ws);
  const auto by_x = train::check_gradient(
      [&](std::span<const double> moved) {
        return loss(cell, {moved.data(), problem.x.rows(), problem.x.cols()}, problem.h);
      },
      problem.x.span(), run.d_x.span());
  INFO("by x " << train::to_string(by_x));
  CHECK(by_x.passed);
  const auto by_h = train::check_gradient(
      [&](std::span<const double> moved) {
        return loss(cell, problem.x, {moved.data(), problem.h.rows(), problem.h.cols()});
      },
      problem.h.span(), run.d_h.span());
  INFO("by h " << train::to_string(by_h));
  CHECK(by_h.passed);
  const auto by_parameters =
      train::check_module_gradient([&](const C& moved) { return loss(moved, problem.x, problem.h); }, cell, run.grad);
  INFO("by " << train::to_string(by_parameters));
  CHECK(by_parameters.passed);
}

TEST_CASE("gru_cell: gradients of inputs, states and parameters", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for_each_convention([&](nn::GruConfig config) {
    for (const Index n : {0, 1, 3})
      for (const Index in : {0, 1, 5})
        for (const Index hidden : {0, 1, 2, 9}) {
          CAPTURE(int(config.update), int(config.reset), config.bias, n, in, hidden);
          config.input = in;
          config.hidden = hidden;
          check_gradients(random_cell<double>(config, rng), Problem<double>(n, in, hidden, rng));
        }
  });
}

TEMPLATE_TEST_CASE("gru_cell: agrees with PyTorch, forward and backward", "[nn][golden]", float, double) {
  using T = TestType;
  constexpr Index n = 6, in = 7, hidden = 19;  // of tests/golden/make_gru_cell.py
  for (const GruUpdate update : {GruUpdate::keep, GruUpdate::replace})
    for (const GruReset reset : {GruReset::after_product, GruReset::before_product}) {
      const std::string name = std::string(update == GruUpdate::keep ? "keep" : "replace") +
                               (reset == GruReset::after_product ? "_after" : "_before");
      CAPTURE(name);
      Rng rng(seed);
      golden::Tensors given("gru_cell_in"), expected("gru_cell_" + name);
      const auto x = given.matrix<T>(n, in), h = given.matrix<T>(n, hidden), d_out = given.matrix<T>(n, hidden);
      GruCell<T> cell({.input = in, .hidden = hidden, .update = update, .reset = reset}, rng);
      given.read(cell);
      CHECK(given.finished());
      Workspace ws;
      const Run<GruCell<T>> run(cell, x, h, d_out, ws);
      expected.check("h'", run.out.span());
      expected.check("d_x", run.d_x.span());
      expected.check("d_h", run.d_h.span());
      expected.check(run.grad);
      CHECK(expected.finished());
    }
}

TEST_CASE("gru_cell: gradients are added to what is there, and empty ones are not wanted", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  for_each_convention([&](nn::GruConfig config) {
    config.input = 5;
    config.hidden = 11;
    const auto cell = random_cell<double>(config, rng);
    const Problem<double> problem(4, 5, 11, rng);
    Workspace ws;
    const Run<GruCell<double>> from_zero(cell, problem, ws), from_eight(cell, problem, ws, Serial{}, 8);
    const auto added = [](auto a, auto b) {
      for (std::size_t i = 0; i < a.size(); ++i)
        if (!support::near(b[i], a[i] + 8, {.absolute = 1e-12})) return false;
      return true;
    };
    CHECK(added(from_zero.d_x.span(), from_eight.d_x.span()));
    CHECK(added(from_zero.d_h.span(), from_eight.d_h.span()));
    for_each_parameter([&](std::string_view, auto a, auto b) { CHECK(added(a, b)); }, from_zero.grad, from_eight.grad);

    GruCell<double>::Saved saved;
    Matrix<double> out(4, 11), d_x(4, 5), d_h(4, 11);
    cell.forward(problem.x, problem.h, out, saved, ws);
    GruCell<double> grad = zeros_like(cell);
    cell.backward(problem.x, problem.h, saved, problem.d_out, {}, {}, grad, ws);
    CHECK(same_parameters(grad, from_zero.grad));
    cell.backward(problem.x, problem.h, saved, problem.d_out, d_x, {}, grad, ws);
    cell.backward(problem.x, problem.h, saved, problem.d_out, {}, d_h, grad, ws);
    CHECK(support::same_bits(d_x.span(), from_zero.d_x.span()));
    CHECK(support::same_bits(d_h.span(), from_zero.d_h.span()));
  });
}

TEST_CASE("gru_cell: rows do not depend on their batch, mode, place or workers", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  for_each_convention([&](nn::GruConfig config) {
    config.input = 13;
    config.hidden = 21;
    const auto cell = random_cell<float>(config, rng);
    for (const Index n : {1, 255, 257, 600}) {
      CAPTURE(int(config.update), int(config.reset), config.bias, n);
      const Problem<float> problem(n, 13, 21, rng);
      const auto& [x, h, d_out] = problem;
      const Run<GruCell<float>> whole(cell, problem, ws);
      for (const Index threads : {2, 3, 7}) {
        ThreadPool pool(threads);
        const Run<GruCell<float>> run(cell, problem, ws, pool);
        CHECK(support::same_bits(run.out.span(), whole.out.span()));
        CHECK(support::same_bits(run.d_x.span(), whole.d_x.span()));
        CHECK(support::same_bits(run.d_h.span(), whole.d_h.span()));
        CHECK(same_parameters(run.grad, whole.grad));
      }
      bool same = true;
      for (const Index size : {Index(1), Index(2), Index(7), Index(97), Index(256)})
        for (Index first = 0; first + size <= n; first += size + n / 5 + 1) {
          const Run<GruCell<float>> part(cell, x.view().rows(first, size), h.view().rows(first, size),
                                         d_out.view().rows(first, size), ws);
          for (Index i = 0; i < size; ++i)
            same = same && support::same_bits(part.out.row(i), whole.out.row(first + i)) &&
                   support::same_bits(part.d_x.row(i), whole.d_x.row(first + i)) &&
                   support::same_bits(part.d_h.row(i), whole.d_h.row(first + i));
        }
      CHECK(same);

      // Inference, on strided rows, in place.
      Matrix<float> wide_x(n, 16, NAN), wide_h(n, 27, 7);
      copy<float>(x, wide_x.view().cols(1, 13));
      copy<float>(h, wide_h.view().cols(2, 21));
      const auto state = wide_h.view().cols(2, 21);
      cell.forward(wide_x.view().cols(1, 13), state, state, ws);
      for (Index i = 0; i < n; ++i) {
        same = same && support::same_bits(state.row(i), whole.out.row(i));
        for (const Index j : {0, 1, 23, 26}) same = same && wide_h(i, j) == 7;
      }
      CHECK(same);
    }
  });
}

// Where a gradient of weights is a sum over shards of whole blocks, it is the sum over all, bit for bit (as in
// row_map_laws::check_shards), since both go through add_row_sums; here that all rows count.
TEST_CASE("gru_cell: the gradient of many rows is the sum of theirs", "[nn]") {
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  for_each_convention([&](nn::GruConfig config) {
    config.input = 3;
    config.hidden = 4;
    const auto cell = random_cell<double>(config, rng);
    const Problem<double> problem(1000, 3, 4, rng);
    const Run<GruCell<double>> whole(cell, problem, ws);
    GruCell<double> sum = zeros_like(cell);
    for (Index i = 0; i < 1000; ++i) {
      const Run<GruCell<double>> row(cell, problem.x.view().rows(i, 1), problem.h.view().rows(i, 1),
                                     problem.d_out.view().rows(i, 1), ws);
      for_each_parameter(
          [](std::string_view, auto a, auto b) {
            for (std::size_t k = 0; k < a.size(); ++k) a[k] += b[k];
          },
          sum, row.grad);
    }
    for_each_parameter([](std::string_view, auto a, auto b) { CHECK(support::max_error(a, b) <= 1e-12); }, sum,
                       whole.grad);
  });
}

TEST_CASE("gru_cell: memory comes from the workspace, and may fail", "[nn][law]") {
  Rng rng(seed);
  for_each_convention([&](nn::GruConfig config) {
    config.input = 6;
    config.hidden = 9;
    const auto cell = random_cell<float>(config, rng);
    const Problem<float> problem(700, 6, 9, rng);
    Matrix<float> out(700, 9), d_x(700, 6), d_h(700, 9);
    GruCell<float> grad = zeros_like(cell);
    GruCell<float>::Saved saved;
    support::Alternating pool;  // on threads, which worker does what would differ from call to call
    Workspace ws;
    const auto call = [&](Workspace& memory) {
      cell.forward(problem.x, problem.h, out, memory);
      cell.forward(problem.x, problem.h, out, memory, pool);
      cell.forward(problem.x, problem.h, out, saved, memory, pool);
      cell.backward(problem.x, problem.h, saved, problem.d_out, d_x, d_h, grad, memory, pool);
      cell.forward(problem.x, problem.h, out, saved, memory);
      cell.backward(problem.x, problem.h, saved, problem.d_out, d_x, d_h, grad, memory);
    };
    call(ws);
    CHECK(support::allocations_in([&] { call(ws); }) == 0);

    if (!support::allocations_counted()) return;
    const Run<GruCell<float>> expected(cell, problem, ws);
    const auto failures = support::fail_each_allocation(
        [&] {
          Workspace fresh;
          GruCell<float>::Saved own;
          std::ranges::fill(d_x.span(), 0.f);
          std::ranges::fill(d_h.span(), 0.f);
          for_each_parameter([](std::string_view, auto t) { std::ranges::fill(t, 0.f); }, grad);
          cell.forward(problem.x, problem.h, out, own, fresh);
          cell.backward(problem.x, problem.h, own, problem.d_out, d_x, d_h, grad, fresh);
        },
        [] {});
    CHECK(failures > 0);
    CHECK(support::same_bits(out.span(), expected.out.span()));
    CHECK(support::same_bits(d_x.span(), expected.d_x.span()));
    CHECK(support::same_bits(d_h.span(), expected.d_h.span()));
    CHECK(same_parameters(grad, expected.grad));
  });
}

TEST_CASE("gru_cell: NaN stays in its row, and huge numbers shut gates", "[nn][law]") {
  Rng rng(seed);
  Workspace ws;
  for_each_convention([&](nn::GruConfig config) {
    config.input = 5;
    config.hidden = 18;
    const auto cell = random_cell<float>(config, rng);
    Problem<float> problem(9, 5, 18, rng);
    const Run<GruCell<float>> clean(cell, problem, ws);
    problem.x(4, 4) = NAN;
    const Run<GruCell<float>> run(cell, problem, ws);
    for (Index i = 0; i < 9; ++i) {
      if (i == 4) {
        CHECK(std::ranges::all_of(run.out.row(i), [](float v) { return std::isnan(v); }));
      } else {
        CHECK(support::same_bits(run.out.row(i), clean.out.row(i)));
        CHECK(support::same_bits(run.d_x.row(i), clean.d_x.row(i)));
        CHECK(support::same_bits(run.d_h.row(i), clean.d_h.row(i)));
      }
    }
    for (float& v : problem.x.row(4)) v = 1e30f;
    const Run<GruCell<float>> shut(cell, problem, ws);
    const auto finite = [](float v) { return std::isfinite(v); };
    CHECK(std::ranges::all_of(shut.out.span(), finite));
    CHECK(std::ranges::all_of(shut.d_x.row(4), [](float v) { return v == 0; }));
  });
}

TEST_CASE("gru_cell: a new cell is PyTorch's, or version 1's, as its options say", "[nn]") {
  Rng rng(seed);
  const GruCell<double> cell({.input = 4, .hidden = 25}, rng);
  CHECK(cell.update == GruUpdate::keep);
  CHECK(cell.reset == GruReset::after_product);
  CHECK(cell.input_dim() == 4);
  CHECK(cell.hidden_dim() == 25);
  std::vector<std::string> names;
  for_each_parameter([&](std::string_view path, auto) { names.emplace_back(path); }, cell);
  CHECK(names == std::vector<std::string>{"weight_ih", "weight_hh", "bias_ih", "bias_hh"});
  const auto largest = [](auto tensor) {
    double most = 0;
    for (const double w : tensor) most = std::max(most, std::abs(w));
    return most;
  };
  CHECK(largest(cell.weight_hh.span()) == Approx(0.2).epsilon(0.01));
  CHECK(largest(cell.bias_hh.span()) == Approx(0.2).epsilon(0.1));
  CHECK(largest(cell.weight_ih.span()) == Approx(0.5).epsilon(0.05));
  const GruCell<double> old({.input = 40,
                             .hidden = 60,
                             .update = GruUpdate::replace,
                             .reset = GruReset::before_product,
                             .initializer = nn::Initializer::xavier_normal},
                            rng);
  CHECK(largest(old.bias_ih.span()) == 0);
  double square = 0;
  for (const double w : old.weight_ih.span()) square += w * w;
  CHECK(square / double(old.weight_ih.size()) == Approx(2.0 / 100).epsilon(0.1));  // N(0, 2/(in + out)) for each gate
}

TEST_CASE("gru_cell: shapes that do not fit are refused", "[nn]") {
  Rng rng(seed);
  Workspace ws;
  const GruCell<float> cell({.input = 3, .hidden = 2}, rng);
  GruCell<float> grad = zeros_like(cell), other({.input = 3, .hidden = 2, .bias = false}, rng);
  GruCell<float>::Saved saved, none;
  Matrix<float> x(4, 3), h(4, 2), out(4, 2);
  cell.forward(x, h, out, saved, ws);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  const Index huge = Index(1) << 61;
  CHECK_THROWS_AS(cell.forward(fake(4, 2), h, out, ws), ShapeError);
  CHECK_THROWS_AS(cell.forward(fake(huge, 3), h, out, ws), ShapeError);
  CHECK_THROWS_AS(cell.forward(x, fake(4, 3), out, ws), ShapeError);
  CHECK_THROWS_AS(cell.forward(x, fake(3, 2), out, ws), ShapeError);
  CHECK_THROWS_AS(cell.forward(x, h, fake(5, 2), ws), ShapeError);
  CHECK_THROWS_AS(cell.forward(x, h, fake(4, 1), saved, ws), ShapeError);
  CHECK_THROWS_AS(cell.backward(x, h, none, out, {}, {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(cell.backward(x, h, saved, fake(4, 3), {}, {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(cell.backward(x, h, saved, out, fake(4, 2), {}, grad, ws), ShapeError);
  CHECK_THROWS_AS(cell.backward(x, h, saved, out, {}, fake(4, 3), grad, ws), ShapeError);
  CHECK_THROWS_AS(cell.backward(x, h, saved, out, {}, {}, other, ws), ShapeError);
  for (const Index hidden : {Index(-1), huge, std::numeric_limits<Index>::max() / 2, (Index(1) << 62) / 3 + 1})
    CHECK_THROWS_AS(GruCell<float>({.input = 3, .hidden = hidden}, rng), ShapeError);
  CHECK_THROWS_AS(GruCell<float>({.input = -1, .hidden = 2}, rng), ShapeError);
  for (const int what : {0, 1, 2, 3}) {
    GruCell<float> broken = cell;
    if (what == 0) broken.weight_ih = Matrix<float>(5, 3);
    if (what == 1) broken.weight_hh = Matrix<float>(5, 2);
    if (what == 2) broken.bias_ih = Vector<float>();
    if (what == 3) broken.bias_hh = Vector<float>(5);
    CAPTURE(what);
    CHECK_THROWS_AS(broken.forward(x, h, out, ws), ShapeError);
  }
}

TEMPLATE_TEST_CASE("gru_cell: gates open within 3 ULP, also near 0, and are shut at infinity", "[nn]", float, double) {
  using T = TestType;
  using Better = std::conditional_t<sizeof(T) == 4, double, long double>;
  using Batch = simd::Batch<T>;
  const auto lane = [](Batch x) {
    T lanes[simd::lanes<T>];
    simd::store(lanes, x);
    return lanes[0];
  };
  Rng rng(seed);
  CAPTURE(seed);
  double sigmoid_error = 0, tanh_error = 0;
  for (int i = 0; i < 100'000; ++i) {
    const T size = std::exp2(rng.uniform(T(-30), T(4.2)));  // below, σ(−x) becomes denormal in float
    const T x = rng.below(2) == 0 ? size : -size;
    const Better exact = Better(x);
    sigmoid_error = std::max(sigmoid_error, support::ulp_error(lane(nn::detail::gate_sigmoid(Batch(x))),
                                                               Better(1) / (1 + std::exp(-exact))));
    tanh_error = std::max(tanh_error, support::ulp_error(lane(nn::detail::gate_tanh(Batch(x))), std::tanh(exact)));
  }
  CHECK(sigmoid_error <= 3);
  CHECK(tanh_error <= 3);
  constexpr T infinity = std::numeric_limits<T>::infinity(), most = std::numeric_limits<T>::max();
  for (const T huge : {most, infinity}) {
    CHECK(lane(nn::detail::gate_sigmoid(Batch(huge))) == 1);
    CHECK(lane(nn::detail::gate_sigmoid(Batch(-huge))) == 0);
    CHECK(lane(nn::detail::gate_tanh(Batch(huge))) == 1);
    CHECK(lane(nn::detail::gate_tanh(Batch(-huge))) == -1);
  }
  CHECK(support::same_bits(lane(nn::detail::gate_tanh(Batch(T(-0.0)))), T(-0.0)));
  CHECK(std::isnan(lane(nn::detail::gate_sigmoid(Batch(T(NAN))))));
  CHECK(std::isnan(lane(nn::detail::gate_tanh(Batch(T(NAN))))));
}

}  // namespace
}  // namespace ruvector_test_gru_cell
