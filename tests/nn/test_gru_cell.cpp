// SPDX-License-Identifier: MIT
#include <ruvector/nn/gru_cell.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>

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

}  // namespace
}  // namespace ruvector_test_gru_cell
