// SPDX-License-Identifier: MIT
#include "../tests/support/allocation_counter.hpp"
#include "support/rows.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/io/mapped_file.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/simd/convert.hpp>

#ifdef RUVECTOR_BENCH_HNSWLIB
#include <hnswlib/hnswlib.h>
#endif
#ifdef RUVECTOR_BENCH_FAISS
#include <faiss/IndexFlat.h>
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <queue>
#include <string>
#include <utility>
#include <vector>

// The rows of search in the table of targets, on random vectors of 128 dimensions unless they say otherwise.

namespace {

using namespace ruvector;
using bench::Limit;
using bench::Rows;
using search::Candidates;
using search::ExactSearch;
using search::InnerProduct;

constexpr Index dim = 128;

Matrix<float> random_points(Index n, Index d, std::uint64_t seed) {
  Rng rng(seed);
  Matrix<float> x(n, d);
  for (float& v : x.span()) v = rng.uniform(-1.0f, 1.0f);
  return x;
}

// The candidates of S1 to S3 and what was found among them.
struct Million {
  Matrix<float> keys, queries = random_points(64, dim, 2);
  Workspace workspace;
  search::SearchResult<float> result;

  explicit Million(Index n) : keys(random_points(n, dim, 1)) {}

  [[nodiscard]] MatrixView<const float> first(Index count) const { return queries.view().rows(0, count); }

  template <class Search>
  void run(const Search& search, Index batch, Index k) {
    search.search(first(batch), {.k = k, .softmax = true}, result, workspace);
  }

  // The largest relative error of scores, weights and log-sum-exp of one query, from the definition. `rounding`: what
  // the storage makes of a score.
  [[nodiscard]] double error(Index query, double rounding = 0) const {
    std::vector<double> scores(std::size_t(keys.rows()));
    double top = -INFINITY, sum = 0;
    for (Index j = 0; j < keys.rows(); ++j) {
      double& score = scores[std::size_t(j)] = 0;
      for (Index c = 0; c < dim; ++c) score += double(queries(query, c)) * double(keys(j, c));
      top = std::max(top, score);
    }
    for (const double score : scores) sum += std::exp(score - top);
    const double log_sum_exp = top + std::log(sum);
    double worst = std::abs(double(result.log_sum_exp[query]) - log_sum_exp) / log_sum_exp;
    for (Index p = 0; p < result.ids.cols(); ++p) {
      const double score = scores[std::size_t(result.ids(query, p))], weight = std::exp(score - log_sum_exp);
      worst = std::max(worst, std::abs(double(result.scores(query, p)) - score) / top);
      worst = std::max(worst, std::abs(double(result.weights(query, p)) - weight) / (1 + 20 * weight));
    }
    std::nth_element(scores.begin(), scores.begin() + result.ids.cols() - 1, scores.end(), std::greater<>());
    const double last = scores[std::size_t(result.ids.cols() - 1)];
    worst = std::max(worst, std::abs(double(result.scores(query, result.ids.cols() - 1)) - last) / top);
    return std::max(0.0, worst - rounding);
  }
};

void one_query(Rows& rows, Million& data) {
  const ExactSearch search(InnerProduct<float>{}, data.keys);
  const std::string work = "one query, 1M x 128 floats, k = 10, softmax";
  const auto run = [&] { data.run(search, 1, 10); };
  const auto error = [&] { return data.error(0); };
  rows.share("S1", work, {0.85}, Limit::stream, double(data.keys.size()) * sizeof(float), run, error);
#ifdef RUVECTOR_BENCH_HNSWLIB
  if (rows.wanted("S1")) {
    hnswlib::InnerProductSpace space{std::size_t(dim)};
    hnswlib::BruteforceSearch<float> peer(&space, std::size_t(data.keys.rows()));
    for (Index j = 0; j < data.keys.rows(); ++j) peer.addPoint(data.keys.row(j).data(), std::size_t(j));
    rows.ratio(
        "S1", "the same: hnswlib brute force, without softmax / ours", {1.2}, bench::cpu_clock,
        [&] { (void)peer.searchKnn(data.queries.data(), 10); }, run, error);
  }
#endif
#ifdef RUVECTOR_BENCH_FAISS
  if (rows.wanted("S1")) {
    omp_set_num_threads(1);
    faiss::IndexFlatIP peer(int{dim});
    peer.add(faiss::Index::idx_t(data.keys.rows()), data.keys.data());
    std::vector<float> scores(10);
    std::vector<faiss::Index::idx_t> ids(10);
    rows.ratio(
        "S1", "the same: FAISS flat, without softmax / ours", {2}, bench::cpu_clock,
        [&] { peer.search(1, data.queries.data(), 10, scores.data(), ids.data()); }, run, error);
  }
#endif
  ThreadPool two(2);
  rows.ratio(
      "S1", "the same: one thread / two", {}, bench::wall_clock, run,
      [&] { search.search(data.first(1), {.k = 10, .softmax = true}, data.result, data.workspace, two); }, error);
}

template <class Stored>
void stored(Rows& rows, Million& data, const char* what, double target, double rounding) {
  if (!rows.wanted("S2")) return;
  Matrix<Stored> keys(data.keys.rows(), dim);
  Vector<float> scale(std::same_as<Stored, std::int8_t> ? keys.rows() : 0);
  for (Index j = 0; j < keys.rows(); ++j) {
    if constexpr (std::same_as<Stored, std::int8_t>)
      scale[j] = simd::quantize(data.keys.row(j), keys.row(j));
    else
      simd::convert(data.keys.row(j), keys.row(j));
  }
  const ExactSearch floats(InnerProduct<float>{}, data.keys);
  const ExactSearch search(InnerProduct<float>{}, Candidates<float, Stored>{.key = keys, .key_scale = scale.span()});
  rows.ratio(
      "S2", std::string("S1: keys of float / of ") + what, {target}, bench::cpu_clock, [&] { data.run(floats, 1, 10); },
      [&] { data.run(search, 1, 10); }, [&] { return data.error(0, rounding); });
}

void batch(Rows& rows, Million& data) {
  const ExactSearch search(InnerProduct<float>{}, data.keys);
  const auto error = [&] { return std::max(data.error(0), data.error(63)); };
  rows.share(
      "S3", "64 queries, 1M x 128 floats, k = 10, softmax", {0.75}, Limit::fma, 2.0 * 64 * double(data.keys.size()),
      [&] { data.run(search, 64, 10); }, error);
  rows.ratio(
      "S3", "the same: k = 1000 / k = 10", {1.5, true}, bench::cpu_clock, [&] { data.run(search, 64, 1000); },
      [&] { data.run(search, 64, 10); }, error);
}

// The peak of the heap in a search over keys in a file, which is mapped.
double mapped_peak(Index n, Index d) {
  const auto path = std::filesystem::temp_directory_path() / "ruvector_bench_search.bin";
  { std::ofstream file(path, std::ios::binary); }
  std::filesystem::resize_file(path, std::uintmax_t(n * d) * sizeof(float));  // zeros, which take no room
  const auto query = random_points(1, d, 3);
  const io::MappedFile file(path.string());
  const MatrixView<const float> keys(reinterpret_cast<const float*>(file.bytes().data()), n, d);
  const auto peak = support::peak_bytes_in([&] {
    Workspace workspace;
    search::SearchResult<float> result;
    ExactSearch(InnerProduct<float>{}, Candidates<float>{.key = keys, .value = keys})
        .search(query, {.k = 10, .softmax = true}, result, workspace);
  });
  std::filesystem::remove(path);
  return double(peak);
}

void mapped(Rows& rows) {
  if (!rows.wanted("M3")) return;
  const double small = mapped_peak(100'000, 16), large = mapped_peak(10'000'000, 16);
  rows.figure("M3", "mapped keys and values, n = 1e5 -> 1e7: growth of the heap", {1, true},
              (large - small) / (1 << 20), "MiB", large / 1000, "kB at 1e7");
}

// How fast the other scores are, for which there is no target.
template <class S>
void score(Rows& rows, const char* what, S score) {
  using T = ScalarOf<S>;
  constexpr Index n = 100'000;
  Rng rng(4);
  Matrix<T> points(n, dim);
  for (T& x : points.span()) x = rng.uniform(T(-0.05), T(0.05));
  const ExactSearch search(std::move(score), points);
  Workspace workspace;
  search::SearchResult<T> result;
  for (const Index queries : {1, 64})
    rows.share(
        "S0", std::string(what) + ", " + std::to_string(queries) + " of 100k x 128", {}, Limit::stream,
        double(points.size()) * sizeof(T),
        [&] { search.search(points.view().rows(0, queries), 10, result, workspace); },
        [&] { return result.ids(queries - 1, 0) == queries - 1 ? 0.0 : 1.0; });
}

}  // namespace

int main(int argc, char** argv) {
  Rows rows(argc, argv);
  if (rows.wanted("S1") || rows.wanted("S2") || rows.wanted("S3")) {
    Million data(1'000'000);
    one_query(rows, data);
    stored<simd::bfloat16>(rows, data, "bfloat16", 1.8, 0x1p-8);
    stored<simd::float16>(rows, data, "float16", 0, 0x1p-11);
    stored<std::int8_t>(rows, data, "int8", 2.4, 0x1p-7);
    batch(rows, data);
  }
  mapped(rows);
  if (rows.wanted("S0")) {
    score(rows, "cosine", search::Cosine<float>{});
    score(rows, "Euclidean", search::Distance{geometry::Euclidean<float>()});
    score(rows, "Poincaré", search::Distance{geometry::PoincareBall<float>()});
    score(rows, "Lorentz", search::Distance{geometry::Lorentz<float>()});
  }
  return rows.finish();
}
