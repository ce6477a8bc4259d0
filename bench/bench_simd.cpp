// SPDX-License-Identifier: MIT
#include "support/rows.hpp"

#include <ruvector/core/eigen.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/simd/convert.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/gemm.hpp>
#include <ruvector/simd/math.hpp>
#include <ruvector/simd/top_k.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

// P1, the matrix product; then throughput from the first level of cache: elements a second (items_per_second), bytes a
// second for products.

namespace bench_simd {
namespace {

namespace simd = ruvector::simd;
using ruvector::Index;

template <class T>
ruvector::Vector<T> arguments(Index n) {
  ruvector::Rng rng(1);
  ruvector::Vector<T> x(n);
  for (T& xi : x.span()) xi = rng.uniform(T(0.001), T(0.999));
  return x;
}

template <class T, void (*function)(std::type_identity_t<std::span<const T>>, std::span<T>) noexcept>
void transform(benchmark::State& state) {
  const Index n = 2048;
  const auto x = arguments<T>(n);
  auto y = arguments<T>(n);
  for (auto _ : state) {
    function(x.span(), y.span());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(transform<float, simd::exp<float>>)->Name("float exp");
BENCHMARK(transform<float, simd::exp2_softmax<float>>)->Name("float exp2_softmax");
BENCHMARK(transform<float, simd::log<float>>)->Name("float log");
BENCHMARK(transform<float, simd::tanh<float>>)->Name("float tanh");
BENCHMARK(transform<float, simd::sigmoid<float>>)->Name("float sigmoid");
BENCHMARK(transform<float, simd::asinh<float>>)->Name("float asinh");
BENCHMARK(transform<double, simd::exp<double>>)->Name("double exp");
BENCHMARK(transform<double, simd::log<double>>)->Name("double log");
BENCHMARK(transform<double, simd::log1p<double>>)->Name("double log1p");
BENCHMARK(transform<double, simd::asinh<double>>)->Name("double asinh");
BENCHMARK(transform<double, simd::atanh<double>>)->Name("double atanh");

template <class T>
void dot(benchmark::State& state) {
  const Index n = state.range(0);
  const auto a = arguments<T>(n), b = arguments<T>(n);
  for (auto _ : state) benchmark::DoNotOptimize(simd::dot(a.data(), b.data(), n));
  state.SetBytesProcessed(state.iterations() * n * 2 * Index(sizeof(T)));
}
BENCHMARK(dot<float>)->Name("float dot")->Arg(128)->Arg(4096)->Arg(1 << 22);
BENCHMARK(dot<double>)->Name("double dot")->Arg(128)->Arg(4096);

void top_k(benchmark::State& state) {
  const Index n = 1'000'000, k = state.range(0);
  const auto scores = arguments<float>(n);
  std::vector<simd::Ranked<float>> buffer(static_cast<std::size_t>(simd::TopK<float>::buffer_size(k)));
  std::vector<Index> ids(static_cast<std::size_t>(k));
  std::vector<float> best(static_cast<std::size_t>(k));
  for (auto _ : state) {
    simd::TopK<float> selection(k, buffer);
    selection.push(scores.span(), 0);
    benchmark::DoNotOptimize(selection.finish(ids, best));
  }
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(top_k)->Name("top k of a million floats")->Arg(10)->Arg(100)->Arg(1000)->Unit(benchmark::kMicrosecond);

template <class Small>
void widen(benchmark::State& state) {
  const Index n = 4096;
  auto y = arguments<float>(n);
  std::vector<Small> x(static_cast<std::size_t>(n));
  simd::convert(y.span(), std::span<Small>(x));
  for (auto _ : state) {
    simd::convert(std::span<const Small>(x), y.span());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(widen<simd::bfloat16>)->Name("bfloat16 to float");
BENCHMARK(widen<simd::float16>)->Name("float16 to float");

ruvector::Matrix<float> random_matrix(ruvector::Rng& rng, Index rows, Index cols) {
  ruvector::Matrix<float> x(rows, cols);
  for (float& xi : x.span()) xi = rng.uniform(-1.0f, 1.0f);
  return x;
}

// c = a b, [m×k] [k×n].
void product(bench::Rows& rows, Index m, Index k, Index n) {
  if (!rows.wanted("P1")) return;
  ruvector::Rng rng(1);
  const auto a = random_matrix(rng, m, k), b = random_matrix(rng, k, n);
  ruvector::Matrix<float> c(m, n);
  ruvector::Workspace workspace;
  const ruvector::EigenMatrix<float> expected =
      (ruvector::eigen(a).cast<double>() * ruvector::eigen(b).cast<double>()).cast<float>();
  const auto error = [&] { return bench::relative_error(c, expected); };
  const double flops = 2.0 * double(m) * double(n) * double(k);
  const auto size = [](Index x, Index y) { return "(" + std::to_string(x) + " x " + std::to_string(y) + ")"; };
  const std::string work = size(m, k) + size(k, n);
  rows.share(
      "P1", "gemm " + work, {0.88}, bench::Limit::fma, flops, [&] { simd::gemm(a, b, c.view(), workspace); }, error);
  rows.share(
      "P1", "Eigen " + work, {}, bench::Limit::fma, flops,
      [&] { ruvector::eigen(c).noalias() = ruvector::eigen(a) * ruvector::eigen(b); }, error);
}

}  // namespace
}  // namespace bench_simd

int main(int argc, char** argv) {
  bench::Rows rows(argc, argv);
  bench_simd::product(rows, 1024, 1024, 1024);
  bench_simd::product(rows, 4096, 64, 4096);
  if (rows.others()) {
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
  }
  return rows.finish();
}
