// SPDX-License-Identifier: MIT
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/exact_search.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace {

using namespace ruvector;

template <class T>
Matrix<T> random_points(Index n, Index d) {
  Rng rng(1);
  Matrix<T> x(n, d);
  for (T& v : x.span()) v = rng.uniform(T(-0.1), T(0.1));
  return x;
}

// What memory gives on this machine now: the limit of a single query.
void stream(benchmark::State& state) {
  const auto x = random_points<float>(state.range(0), 128);
  for (auto _ : state) {
    constexpr Index width = simd::lanes<float>;
    simd::Batch<float> sum[8] = {};
    for (Index i = 0; i + 8 * width <= x.size(); i += 8 * width)
      for (Index v = 0; v < 8; ++v) sum[v] = simd::max(sum[v], simd::load(x.data() + i + v * width));
    for (Index v = 1; v < 8; ++v) sum[0] = simd::max(sum[0], sum[v]);
    benchmark::DoNotOptimize(simd::reduce_max(sum[0]));
  }
  state.SetBytesProcessed(state.iterations() * x.size() * Index(sizeof(float)));
}

// n candidates of d columns, a batch of queries, `threads` threads; "items" are queries, "bytes" candidates scanned.
template <class S>
void exact(benchmark::State& state, S score) {
  using T = ScalarOf<S>;
  const Index n = state.range(0), d = state.range(1), batch = state.range(2), k = state.range(3);
  const auto candidates = random_points<T>(n, d), queries = random_points<T>(batch, d);
  const search::ExactSearch search(std::move(score), candidates);
  Workspace workspace;
  search::SearchResult<T> result;
  ThreadPool pool(state.range(4));
  for (auto _ : state) {
    search.search(queries, k, result, pool, workspace);
    benchmark::DoNotOptimize(result.ids.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * batch);
  state.SetBytesProcessed(state.iterations() * n * d * Index(sizeof(T)));
}

// Nouns of WordNet in 10 dimensions; a million vectors of 128.
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "d", "batch", "k", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const std::int64_t threads : {1, 2})
    for (const std::int64_t batch : {1, 64}) {
      b->Args({82115, 10, batch, 10, threads});
      b->Args({1000000, 128, batch, 10, threads});
    }
  b->Args({1000000, 128, 64, 1000, 1});
}

BENCHMARK(stream)->Arg(1000000)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(exact, inner_product, search::InnerProduct<float>{})->Apply(sizes);
BENCHMARK_CAPTURE(exact, cosine, search::Cosine<float>{})->Apply(sizes);
BENCHMARK_CAPTURE(exact, euclidean, search::Distance{geometry::Euclidean<float>()})->Apply(sizes);
BENCHMARK_CAPTURE(exact, poincare, search::Distance{geometry::PoincareBall<float>()})->Apply(sizes);
BENCHMARK_CAPTURE(exact, lorentz, search::Distance{geometry::Lorentz<float>()})->Apply(sizes);
BENCHMARK_CAPTURE(exact, poincare_double, search::Distance{geometry::PoincareBall<double>()})->Apply(sizes);

}  // namespace
