// SPDX-License-Identifier: MIT
//
// How much memory does attention take that never holds its weights?
//
//   attention_memory                        m = n = 512 … 16384, and GATv2 on the graph of WordNet's nouns
//   attention_memory --sizes 4096 --csv F   one size, its rows appended to a table
//   attention_memory --quick                the check: at least 40 % less for 2,048 queries and keys
//
// What is measured is the peak of the heap in a forward and a backward pass, all included: inputs, outputs, the
// gradients of all of them, what is kept in between, and workspaces. Three ways to the same gradients:
//
//   naive    as it is written: P = softmax(QKᵀ/√d) [m×n] is kept, and its gradient [m×n] is formed
//   weights  attention::ScaledDotProduct that is asked for its weights [m×n]; its backward pass goes by tiles
//   tiled    attention::Flash, which holds a tile of them at a time
//
// and for GATv2 on a graph, with H heads of C channels: naive, which keeps z of all edges [edges × HC] and forms its
// gradient, and attention::GatV2, which computes z anew, on one worker and on two.
//
// Where there are few pairs of queries and keys nothing is saved: one query, or a neighbourhood of 32.

#include "../tests/support/allocation_counter.hpp"
#include "support/command_line.hpp"
#include "support/interrupt.hpp"
#include "support/supersense_data.hpp"
#include "support/text_files.hpp"
#include "support/wordnet.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/gemm.hpp>
#include <ruvector/simd/math.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace examples;
using namespace ruvector;

constexpr Index dim = 64;

struct Options {
  std::string wordnet = "/usr/share/wordnet", root, csv;
  std::vector<Index> sizes = {512, 1024, 2048, 4096, 8192, 16384};
  Index single = 1 << 20, heads = 4, channels = 16;
  std::uint64_t seed = 1;
  bool quick = false;
};

/// A problem, and room for what comes out of it.
struct Problem {
  Matrix<float> query, key, value, d_out, out, d_query, d_key, d_value;

  Problem(Index m, Index n, std::uint64_t seed)
      : query(m, dim),
        key(n, dim),
        value(n, dim),
        d_out(m, dim),
        out(m, dim),
        d_query(m, dim),
        d_key(n, dim),
        d_value(n, dim) {
    Rng rng(seed);
    for (Matrix<float>* x : {&query, &key, &value, &d_out})
      for (float& element : x->span()) element = rng.uniform(-1.0f, 1.0f);
  }
  [[nodiscard]] attention::AttentionInput<float> in() const { return {.query = query, .key = key, .value = value}; }
  [[nodiscard]] static std::ptrdiff_t bytes(Index m, Index n) {
    return std::ptrdiff_t(sizeof(float)) * 4 * (m + n) * dim;
  }
};

void naive(Problem& p) {
  Workspace workspace;
  const float scale = 1 / std::sqrt(float(dim));
  Matrix<float> weights(p.query.rows(), p.key.rows());
  // P = softmax(QKᵀ/√d),  O = PV
  simd::gemm_transposed<float>(p.query, p.key, weights, workspace);
  for (Index i = 0; i < weights.rows(); ++i) {
    const std::span<float> row = weights.row(i);
    const float top = *std::ranges::max_element(row);
    for (float& x : row) x = scale * (x - top);
    simd::exp<float>(row, row);
    float sum = 0;
    for (const float x : row) sum += x;
    for (float& x : row) x /= sum;
  }
  simd::gemm<float>(weights, p.value, p.out, workspace);
  // dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP − rowsum(P ∘ dP))/√d,  dQ = dS K,  dK = dSᵀ Q
  simd::gemm_left_transposed<float>(weights, p.d_out, p.d_value, workspace);
  Matrix<float> d_weights(weights.rows(), weights.cols());
  simd::gemm_transposed<float>(p.d_out, p.value, d_weights, workspace);
  for (Index i = 0; i < weights.rows(); ++i) {
    const std::span<const float> row = weights.row(i);
    const std::span<float> d_row = d_weights.row(i);
    const float mean = simd::dot<float>(row, d_row);
    for (std::size_t j = 0; j < row.size(); ++j) d_row[j] = scale * row[j] * (d_row[j] - mean);
  }
  simd::gemm<float>(d_weights, p.key, p.d_query, workspace);
  simd::gemm_left_transposed<float>(d_weights, p.query, p.d_key, workspace);
}

template <class Attention>
void ours(Problem& p, bool with_weights) {
  Workspace workspace;
  const Attention attention;
  Attention gradient;
  typename Attention::Saved saved;
  Matrix<float> weights;
  attention::AttentionOutput<float> out{.value = p.out};
  if (with_weights) {
    weights = Matrix<float>(p.query.rows(), p.key.rows());
    out.weights = weights;
  }
  attention.forward(p.in(), out, saved, workspace);
  attention.backward(p.in(), saved, {.value = p.d_out}, {.query = p.d_query, .key = p.d_key, .value = p.d_value},
                     gradient, workspace);
}

/// What a way took.
struct Row {
  std::string problem;
  Index queries, keys, edges;
  std::string way;
  std::ptrdiff_t bytes, own;  ///< the peak, and without inputs, outputs and their gradients
  double saved;               ///< of the naive way's peak
};

void report(std::vector<Row>& rows, const Row& row) {
  std::printf("%-18s %8td %8td %-12s %12.2f %12.2f %8.1f\n", row.problem.c_str(), row.queries, row.keys,
              row.way.c_str(), double(row.bytes) / (1 << 20), double(row.own) / (1 << 20), 100 * row.saved);
  std::fflush(stdout);
  rows.push_back(row);
}

void write_csv(const Options& options, const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    char line[200];
    std::snprintf(line, sizeof line, "%s,%td,%td,%td,%td,%s,%llu,%.3f,%.3f,%.4f", row.problem.c_str(), row.queries,
                  row.keys, row.edges, dim, row.way.c_str(), static_cast<unsigned long long>(options.seed),
                  double(row.bytes) / (1 << 20), double(row.own) / (1 << 20), row.saved);
    append_csv(options.csv, "problem,queries,keys,edges,dim,way,seed,peak_mib,own_mib,saved", line);
  }
}

/// The largest difference of the gradients of two ways, as a share of the largest gradient.
double difference(const std::array<Matrix<float>, 3>& a, const std::array<Matrix<float>, 3>& b) {
  double worst = 0;
  for (std::size_t g = 0; g < a.size(); ++g) {
    double most = 0, off = 0;
    for (std::size_t i = 0; i < a[g].span().size(); ++i) {
      most = std::max(most, std::abs(double(a[g].span()[i])));
      off = std::max(off, std::abs(double(a[g].span()[i]) - double(b[g].span()[i])));
    }
    worst = std::max(worst, off / most);
  }
  return worst;
}

/// All ways for m queries and n keys. Returns what the tiles save. Throws where gradients differ.
double compare(const Options& options, std::vector<Row>& rows, const std::string& problem, Index m, Index n) {
  std::array<Matrix<float>, 3> expected;
  double saved = 0;
  std::ptrdiff_t most = 0;
  for (const char* way : {"naive", "weights", "tiled"}) {
    std::array<Matrix<float>, 3> gradients;
    const std::ptrdiff_t peak = support::peak_bytes_in([&] {
      Problem p(m, n, options.seed);
      if (way[0] == 'n') naive(p);
      if (way[0] == 'w') ours<attention::ScaledDotProduct<float>>(p, true);
      if (way[0] == 't') ours<attention::Flash<float>>(p, false);
      gradients = {std::move(p.d_query), std::move(p.d_key), std::move(p.d_value)};
    });
    if (way[0] == 'n') {
      most = peak;
      expected = std::move(gradients);
    } else if (const double off = difference(expected, gradients); !(off < 1e-3)) {
      throw ConfigError(std::string("the gradients of ") + way + " differ by " + std::to_string(off));
    }
    saved = 1 - double(peak) / double(most);
    report(rows, {problem, m, n, 0, way, peak, peak - Problem::bytes(m, n), saved});
  }
  return saved;
}

/// GATv2 on a graph, and room for what comes out of it.
struct GraphProblem {
  graph::CsrView<> graph;
  MatrixView<const float> edges;
  attention::GatV2<float> layer, gradient;
  Matrix<float> x, d_out, out, d_x;

  GraphProblem(const Options& options, const SupersenseGraph& data, const Matrix<float>& features)
      : graph(data.graph.view()), edges(features), x(data.size(), dim) {
    Rng rng(options.seed);
    layer = attention::GatV2<float>(
        {.source_dim = dim, .edge_dim = edges.cols(), .heads = options.heads, .channels = options.channels}, rng);
    gradient = layer;
    for_each_parameter([](std::string_view, auto tensor) { std::ranges::fill(tensor, 0.0f); }, gradient);
    for (Matrix<float>* matrix : {&d_out, &out}) *matrix = Matrix<float>(x.rows(), options.heads * options.channels);
    d_x = Matrix<float>(x.rows(), dim);
    for (Matrix<float>* random : {&x, &d_out})
      for (float& element : random->span()) element = rng.uniform(-1.0f, 1.0f);
  }
  /// Of x, and of the weights of the sources and of the edges.
  [[nodiscard]] std::array<Matrix<float>, 3> gradients() && {
    return {std::move(d_x), std::move(gradient.source.weight), std::move(gradient.edge.weight)};
  }
  [[nodiscard]] std::ptrdiff_t bytes() const {
    return std::ptrdiff_t(2 * sizeof(float) * (x.span().size() + out.span().size()));
  }
};

/// ℓ_e = a · LeakyReLU(z_e), z_e = x_r[i] + x_l[j] + W_e e of the edge from i to j, α = softmax(ℓ) over the edges of a
/// node, out_i = Σ α x_l[j]; and back. z and α of all edges are kept, and their gradients formed.
void naive(GraphProblem& p) {
  Workspace workspace;
  const Index n = p.graph.nodes(), heads = p.layer.attention.rows(), channels = p.layer.attention.cols();
  const auto leaky = [&](float z) { return z > 0 ? z : float(p.layer.config().negative_slope) * z; };
  Matrix<float> left(n, heads * channels), right(n, heads * channels);
  simd::gemm_transposed<float>(p.x, p.layer.source.weight, left, workspace);
  simd::gemm_transposed<float>(p.x, p.layer.target.weight, right, workspace);
  Matrix<float> z(p.edges.rows(), heads * channels), weights(p.edges.rows(), heads);
  simd::gemm_transposed<float>(p.edges, p.layer.edge.weight, z, workspace);
  const auto for_edges = [&](Index i, auto&& f) {
    for (Index e = p.graph.first_edge(i); e < p.graph.first_edge(i) + p.graph.degree(i); ++e)
      f(p.graph.edge_id(e), Index(p.graph.targets()[std::size_t(e)]));
  };
  for (Index i = 0; i < n; ++i) {
    std::vector<float> sum(std::size_t(heads), 0.0f);
    for_edges(i, [&](Index e, Index j) {
      simd::axpy<float>(1, right.row(i), z.row(e));
      simd::axpy<float>(1, left.row(j), z.row(e));
      for (Index h = 0; h < heads; ++h) {
        float logit = 0;
        for (Index c = 0; c < channels; ++c) logit += p.layer.attention(h, c) * leaky(z(e, h * channels + c));
        weights(e, h) = std::exp(logit);  // they are small
        sum[std::size_t(h)] += weights(e, h);
      }
    });
    for_edges(i, [&](Index e, Index j) {
      for (Index h = 0; h < heads; ++h) {
        weights(e, h) /= sum[std::size_t(h)];
        for (Index c = h * channels; c < (h + 1) * channels; ++c) p.out(i, c) += weights(e, h) * left(j, c);
      }
    });
  }
  Matrix<float> d_left(n, heads * channels), d_right(n, heads * channels);
  Matrix<float> d_z(z.rows(), z.cols()), d_weights(weights.rows(), heads);
  for (Index i = 0; i < n; ++i) {
    std::vector<float> mean(std::size_t(heads), 0.0f);
    for_edges(i, [&](Index e, Index j) {
      for (Index h = 0; h < heads; ++h) {
        for (Index c = h * channels; c < (h + 1) * channels; ++c) {
          d_weights(e, h) += p.d_out(i, c) * left(j, c);
          d_left(j, c) += weights(e, h) * p.d_out(i, c);
        }
        mean[std::size_t(h)] += weights(e, h) * d_weights(e, h);
      }
    });
    for_edges(i, [&](Index e, Index j) {
      for (Index h = 0; h < heads; ++h) {
        const float d_logit = weights(e, h) * (d_weights(e, h) - mean[std::size_t(h)]);
        for (Index c = 0; c < channels; ++c) {
          const Index k = h * channels + c;
          d_z(e, k) = d_logit * p.layer.attention(h, c) * (z(e, k) > 0 ? 1 : float(p.layer.config().negative_slope));
          p.gradient.attention(h, c) += d_logit * leaky(z(e, k));
        }
      }
      simd::axpy<float>(1, d_z.row(e), d_right.row(i));
      simd::axpy<float>(1, d_z.row(e), d_left.row(j));
    });
  }
  simd::gemm<float>(d_left, p.layer.source.weight, p.d_x, workspace);
  simd::gemm<float>(d_right, p.layer.target.weight, p.d_x, workspace, simd::Product::accumulate);
  simd::gemm_left_transposed<float>(d_left, p.x, p.gradient.source.weight, workspace);
  simd::gemm_left_transposed<float>(d_right, p.x, p.gradient.target.weight, workspace);
  simd::gemm_left_transposed<float>(d_z, p.edges, p.gradient.edge.weight, workspace);
}

void ours(GraphProblem& p, Index workers) {
  Workspace workspace;
  ThreadPool threads(workers);
  attention::GatV2<float>::Saved saved;
  p.layer.forward(p.graph, p.x, p.x, {.features = p.edges}, p.out, saved, workspace, threads);
  p.layer.backward(p.graph, p.x, p.x, {.features = p.edges}, saved, p.d_out, p.d_x, p.d_x, {}, p.gradient, workspace,
                   threads);
}

/// All ways for GATv2 on a graph. Returns the least that ours saves. Throws where gradients differ.
double compare_graph(const Options& options, std::vector<Row>& rows) {
  const SupersenseGraph data = supersense_graph(wordnet::read(options.wordnet, "noun"), options.root);
  const Matrix<float> edges = edge_features(data, EdgeInfo::directed, Rng(options.seed));
  std::array<Matrix<float>, 3> expected;
  std::ptrdiff_t most = 0;
  double least_saved = 1;
  for (const char* way : {"naive", "one worker", "two workers"}) {
    std::array<Matrix<float>, 3> gradients;
    std::ptrdiff_t inputs = 0;
    const std::ptrdiff_t peak = support::peak_bytes_in([&] {
      GraphProblem p(options, data, edges);
      inputs = p.bytes();
      if (way[0] == 'n')
        naive(p);
      else
        ours(p, way[0] == 'o' ? 1 : 2);
      gradients = std::move(p).gradients();
    });
    if (way[0] == 'n') {
      most = peak;
      expected = std::move(gradients);
    } else if (const double off = difference(expected, gradients); !(off < 1e-3)) {
      throw ConfigError(std::string("the gradients of GATv2 on ") + way + " differ by " + std::to_string(off));
    }
    const double saved = 1 - double(peak) / double(most);
    report(rows, {"WordNet GATv2", data.size(), data.size(), data.graph.edges(), way, peak, peak - inputs, saved});
    if (way[0] != 'n') least_saved = std::min(least_saved, saved);
  }
  return least_saved;
}

int measure(const Options& options) {
  if (!support::allocations_counted()) {
    std::puts("attention_memory counts nothing: a sanitizer has operators new of its own");
    return 0;
  }
  std::printf("%-18s %8s %8s %-12s %12s %12s %8s\n", "", "queries", "keys", "way", "peak, MiB", "own, MiB", "saved, %");
  std::vector<Row> rows;
  bool good = true;
  for (const Index n : options.sizes) {
    if (interrupted()) return 130;
    const double saved = compare(options, rows, "attention", n, n);
    good = good && (n < 2048 || saved >= 0.4);
  }
  compare(options, rows, "neighbourhood", 1, 32);
  compare(options, rows, "one query", 1, options.single);
  if (interrupted()) return 130;
  if (!good) std::fprintf(stderr, "attention_memory: tiles save less than 40 %%\n");
  if (compare_graph(options, rows) < 0.4) {
    std::fprintf(stderr, "attention_memory: GATv2 on a graph saves less than 40 %%\n");
    good = false;
  }
  if (!options.csv.empty()) write_csv(options, rows);
  return good ? 0 : 1;
}

void add_options(CLI::App& app, Options& o) {
  app.add_option("--sizes", o.sizes, "numbers of queries and of keys")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--single", o.single, "keys that one query sees")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--wordnet", o.wordnet, "folder of the WordNet 3 database (Debian: package wordnet-base)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--root", o.root, "graph: only the first sense of this word and what is below it")->type_name("WORD");
  app.add_option("--heads", o.heads, "of GATv2")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--channels", o.channels, "of each head")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--seed", o.seed, "of the numbers, on which the memory does not depend")->capture_default_str();
  app.add_option("--csv", o.csv, "append the rows to this file")->type_name("FILE");
  app.add_flag("--quick", o.quick, "small sizes");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "The memory of attention, forward and backward, with and without holding its weights. Exit code 1 if tiles save "
      "less than 40 % from 2,048 queries and keys on.",
      "attention_memory");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    if (options.quick) {
      options.sizes = {512, 2048};
      options.single = 20000;
    }
    return measure(options);
  });
}
