// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/ordered_sum.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/nn/concepts.hpp>
#include <ruvector/train/gradient_check.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <span>
#include <vector>

// The laws of RowMap. A test of a map draws maps and inputs of several shapes and calls each law.
namespace row_map_laws {

using namespace ruvector;

template <class T>
Matrix<T> random_matrix(Index rows, Index cols, Rng& rng) {
  Matrix<T> matrix(rows, cols);
  for (T& x : matrix.span()) x = rng.uniform(T(-1), T(1));
  return matrix;
}

/// Parameters between 1/2 and 3/2, so that none is special.
template <Module M>
void randomize(M& module, Rng& rng) {
  for_each_parameter(
      [&](std::string_view, auto tensor) {
        for (auto& x : tensor) x = rng.uniform(ScalarOf<M>(0.5), ScalarOf<M>(1.5));
      },
      module);
}

template <Module M>
bool same_parameters(const M& a, const M& b) {
  bool same = true;
  for_each_parameter([&](std::string_view, auto x, auto y) { same = same && support::same_bits(x, y); }, a, b);
  return same;
}

/// Values and gradients of one call.
template <nn::RowMap M>
struct Run {
  Matrix<ScalarOf<M>> y, d_x;
  M grad;

  /// `d_x` and `grad` start at `start` everywhere.
  template <Executor E = Serial>
  Run(const M& map, MatrixView<const ScalarOf<M>> x, MatrixView<const ScalarOf<M>> d_y, Workspace& ws,
      E&& executor = Serial{}, ScalarOf<M> start = 0)
      : y(x.rows(), map.output_dim(x.cols()), ScalarOf<M>(NAN)), d_x(x.rows(), x.cols(), start), grad(zeros_like(map)) {
    for_each_parameter([&](std::string_view, auto t) { std::ranges::fill(t, start); }, grad);
    map.forward(x, y, ws, executor);
    map.backward(x, d_y, d_x, grad, ws, executor);
  }
};

/// Σ_ij c_ij y_ij has the gradient that backward(d_y = c) claims.
template <nn::RowMap M>
void check_gradients(const M& map, const Matrix<double>& x, Rng& rng) {
  Workspace ws;
  const auto c = random_matrix<double>(x.rows(), map.output_dim(x.cols()), rng);
  const auto loss = [&](const M& at, MatrixView<const double> input) {
    Matrix<double> y(c.rows(), c.cols());
    at.forward(input, y, ws);
    double sum = 0;
    for (Index i = 0; i < y.size(); ++i) sum += c.data()[i] * y.data()[i];
    return sum;
  };
  const Run<M> run(map, x, c, ws);
  const auto by_x = train::check_gradient(
      [&](std::span<const double> moved) {
        return loss(map, {moved.data(), x.rows(), x.cols()});
      },
      x.span(), run.d_x.span());
  INFO("by x " << train::to_string(by_x));
  CHECK(by_x.passed);
  const auto by_parameters =
      train::check_module_gradient([&](const M& moved) { return loss(moved, x); }, map, run.grad);
  INFO("by " << train::to_string(by_parameters));
  CHECK(by_parameters.passed);
}

/// Gradients are added to what is there, and an empty d_x is not wanted.
template <nn::RowMap M>
void check_accumulation(const M& map, const Matrix<double>& x, Rng& rng) {
  Workspace ws;
  const auto d_y = random_matrix<double>(x.rows(), map.output_dim(x.cols()), rng);
  const Run<M> from_zero(map, x, d_y, ws), from_eight(map, x, d_y, ws, Serial{}, 8);
  const auto added = [](auto a, auto b) {
    for (std::size_t i = 0; i < a.size(); ++i)
      if (!support::near(b[i], a[i] + 8, {.absolute = 1e-12})) return false;
    return true;
  };
  CHECK(added(from_zero.d_x.span(), from_eight.d_x.span()));
  for_each_parameter([&](std::string_view, auto a, auto b) { CHECK(added(a, b)); }, from_zero.grad, from_eight.grad);
  M grad = zeros_like(map);
  map.backward(x, d_y, {}, grad, ws);
  CHECK(same_parameters(grad, from_zero.grad));
}

/// Row i of a batch has the bits of the single call, whatever stands beside it and however far rows are apart.
template <nn::RowMap M>
void check_batches(const M& map, const Matrix<ScalarOf<M>>& x, Rng& rng) {
  using T = ScalarOf<M>;
  Workspace ws;
  const Index out = map.output_dim(x.cols());
  const auto d_y = random_matrix<T>(x.rows(), out, rng);
  const Run<M> whole(map, x, d_y, ws);
  bool same = true;
  for (const Index size : {Index(1), Index(2), Index(7), Index(97), Index(256)})
    for (Index first = 0; first + size <= x.rows(); first += size + size / 2 + 1) {
      const Run<M> part(map, x.view().rows(first, size), d_y.view().rows(first, size), ws);
      for (Index i = 0; i < size; ++i)
        same = same && support::same_bits(part.y.row(i), whole.y.row(first + i)) &&
               support::same_bits(part.d_x.row(i), whole.d_x.row(first + i));
    }
  CHECK(same);

  Matrix<T> wide_x(x.rows(), x.cols() + 3, T(NAN)), wide_y(x.rows(), out + 5, T(7));
  copy<T>(x, wide_x.view().cols(1, x.cols()));
  map.forward(wide_x.view().cols(1, x.cols()), wide_y.view().cols(2, out), ws);
  for (Index i = 0; i < x.rows(); ++i) {
    same = same && support::same_bits(whole.y.row(i), wide_y.view().cols(2, out).row(i));
    for (const Index j : {Index(0), Index(1), out + 2, out + 3, out + 4}) same = same && wide_y(i, j) == T(7);
  }
  CHECK(same);
}

/// The same bits for any number of workers.
template <nn::RowMap M>
void check_threads(const M& map, const Matrix<ScalarOf<M>>& x, Rng& rng) {
  Workspace ws;
  const auto d_y = random_matrix<ScalarOf<M>>(x.rows(), map.output_dim(x.cols()), rng);
  const Run<M> serial(map, x, d_y, ws);
  for (const Index threads : {1, 2, 3, 4, 7, 16}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    const Run<M> run(map, x, d_y, ws, pool);
    CHECK(support::same_bits(run.y.span(), serial.y.span()));
    CHECK(support::same_bits(run.d_x.span(), serial.d_x.span()));
    CHECK(same_parameters(run.grad, serial.grad));
  }
}

struct AddModules {
  template <class M>
  void clear(M& sum) const {
    sum = zeros_like(sum);
  }
  template <class M>
  void merge(M& sum, const M& right) const {
    for_each_parameter(
        [](std::string_view, auto a, auto b) {
          for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
        },
        sum, right);
  }
};

/// A batch that is split into shards at multiples of 256 rows has the parameter gradient of the whole, bit for bit, if
/// the shards are summed by the same tree.
template <nn::RowMap M>
void check_shards(const M& map, const Matrix<ScalarOf<M>>& x, Rng& rng) {
  using T = ScalarOf<M>;
  Workspace ws;
  const auto d_y = random_matrix<T>(x.rows(), map.output_dim(x.cols()), rng);
  const Run<M> whole(map, x, d_y, ws);
  for (const Index blocks : {1, 2, 3, 5}) {
    using Sum = OrderedSum<M, AddModules>;
    std::vector<OrderedSumSlot<M>> slots(64, {zeros_like(map)});
    Sum sum({}, row_leaf, slots);
    for (Index last = x.rows(), first; last > 0; last = first) {  // from the end
      first = (last - 1) / (blocks * row_leaf) * blocks * row_leaf;
      Sum shard({}, row_leaf, slots);
      shard.add(first, last, [&](M& grad, Index i, Index j) {
        map.backward(x.view().rows(i, j - i), d_y.view().rows(i, j - i), {}, grad, ws);
      });
      sum.merge(shard);
    }
    M grad = zeros_like(map);
    sum.total(grad);
    CHECK(same_parameters(grad, whole.grad));
  }
}

/// The second identical call allocates nothing.
template <nn::RowMap M>
void check_no_allocation(const M& map, const Matrix<ScalarOf<M>>& x, Rng& rng) {
  using T = ScalarOf<M>;
  const auto d_y = random_matrix<T>(x.rows(), map.output_dim(x.cols()), rng);
  Matrix<T> y(d_y.rows(), d_y.cols()), d_x(x.rows(), x.cols());
  M grad = zeros_like(map);
  support::Alternating pool;  // on threads, which worker does what would differ from call to call
  Workspace ws;
  const auto call = [&] {
    map.forward(x, y, ws);
    map.backward(x, d_y, d_x, grad, ws);
    map.forward(x, y, ws, pool);
    map.backward(x, d_y, d_x, grad, ws, pool);
  };
  call();
  CHECK(support::allocations_in([&] { call(); }) == 0);
  Workspace serial;
  map.backward(x, d_y, d_x, grad, serial);
  CHECK(support::allocations_in([&] { map.backward(x, d_y, d_x, grad, serial); }) == 0);
}

/// NaN in a row makes that row NaN and changes no bit of the others.
template <nn::RowMap M>
void check_nan_stays(const M& map, Matrix<ScalarOf<M>> x, Rng& rng) {
  using T = ScalarOf<M>;
  Workspace ws;
  const auto d_y = random_matrix<T>(x.rows(), map.output_dim(x.cols()), rng);
  const Run<M> clean(map, x, d_y, ws);
  const Index bad = x.rows() / 2;
  x(bad, x.cols() - 1) = T(NAN);
  const Run<M> run(map, x, d_y, ws);
  for (Index i = 0; i < x.rows(); ++i) {
    if (i == bad)
      CHECK(std::ranges::all_of(run.y.row(i), [](T v) { return std::isnan(v); }));
    else
      CHECK((support::same_bits(run.y.row(i), clean.y.row(i)) && support::same_bits(run.d_x.row(i), clean.d_x.row(i))));
  }
}

/// If memory fails, the inputs and outputs are not lost, and the next call has the same bits.
template <nn::RowMap M>
void check_failing_memory(const M& map, const Matrix<ScalarOf<M>>& x, Rng& rng) {
  using T = ScalarOf<M>;
  if (!support::allocations_counted()) return;
  const auto d_y = random_matrix<T>(x.rows(), map.output_dim(x.cols()), rng);
  Workspace ws;
  const Run<M> expected(map, x, d_y, ws);
  Matrix<T> y(d_y.rows(), d_y.cols()), d_x(x.rows(), x.cols());
  M grad = zeros_like(map);
  ThreadPool pool(2);
  const auto failures = support::fail_each_allocation(
      [&] {
        Workspace fresh;
        std::ranges::fill(d_x.span(), T(0));
        for_each_parameter([](std::string_view, auto t) { std::ranges::fill(t, T(0)); }, grad);
        map.forward(x, y, fresh, pool);
        map.backward(x, d_y, d_x, grad, fresh, pool);
      },
      [] {});
  CHECK(failures > 0);
  CHECK(support::same_bits(y.span(), expected.y.span()));
  CHECK(support::same_bits(d_x.span(), expected.d_x.span()));
  CHECK(same_parameters(grad, expected.grad));
}

}  // namespace row_map_laws
