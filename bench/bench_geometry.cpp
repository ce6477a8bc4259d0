// SPDX-License-Identifier: MIT

#include <benchmark/benchmark.h>

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

// One point against 50 others, value and gradient: the inner loop of hyperbolic training. Target: 800 ns at d = 10 in
// double on AVX-512. Arguments: dimension d, columns n.

namespace {

using namespace ruvector;

template <class M>
struct Problem {
  using T = ScalarOf<M>;
  M manifold, grad = zeros_like(manifold);
  Vector<T> x, out, d_out, d_x;
  Matrix<T> columns, d_columns;

  Problem(Index d, Index n)
      : x(manifold.point_dim(d)),
        out(n),
        d_out(n, T(0.1)),
        d_x(x.size()),
        columns(x.size(), n),
        d_columns(x.size(), n) {
    Rng rng(1);
    manifold.random_point(rng, T(0.3), x.span());
    Vector<T> y(x.size());
    for (Index j = 0; j < n; ++j) {
      manifold.random_point(rng, T(0.3), y.span());
      for (Index i = 0; i < y.size(); ++i) columns(i, j) = y[i];
    }
  }
};

template <class M>
void distances(benchmark::State& state) {
  Problem<M> p(state.range(0), state.range(1));
  for (auto _ : state) {
    p.manifold.distances(p.x, p.columns, p.out.span());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
}

template <class M>
void distances_and_gradients(benchmark::State& state) {
  Problem<M> p(state.range(0), state.range(1));
  for (auto _ : state) {
    p.manifold.distances(p.x, p.columns, p.out.span());
    p.manifold.distances_vjp(p.x, p.columns, p.d_out, p.d_x.span(), p.d_columns, p.grad, p.out);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(1));
}

void sizes(benchmark::internal::Benchmark* b) {
  for (const int d : {5, 10, 50}) b->Args({d, 50});
}

BENCHMARK_TEMPLATE(distances, geometry::PoincareBall<double>)->Apply(sizes);
BENCHMARK_TEMPLATE(distances, geometry::PoincareBall<float>)->Apply(sizes);
BENCHMARK_TEMPLATE(distances_and_gradients, geometry::PoincareBall<double>)->Apply(sizes);
BENCHMARK_TEMPLATE(distances_and_gradients, geometry::PoincareBall<float>)->Apply(sizes);
BENCHMARK_TEMPLATE(distances_and_gradients, geometry::Lorentz<double>)->Apply(sizes);
BENCHMARK_TEMPLATE(distances_and_gradients, geometry::Euclidean<double>)->Apply(sizes);

}  // namespace
