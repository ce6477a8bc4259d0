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
// Where there are few pairs of queries and keys nothing is saved: one query, or a neighbourhood of 32.

#include "../tests/support/allocation_counter.hpp"
#include "support/supersense_data.hpp"
#include "support/text_files.hpp"
#include "support/wordnet.hpp"

#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/gemm.hpp>
#include <ruvector/simd/math.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
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
  std::printf("%-18s %8td %8td %-8s %12.2f %12.2f %8.1f\n", row.problem.c_str(), row.queries, row.keys, row.way.c_str(),
              double(row.bytes) / (1 << 20), double(row.own) / (1 << 20), 100 * row.saved);
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

/// GATv2 on a graph, of which the naive way holds E × H × C numbers and their gradient. Returns what is saved.
double compare_graph(const Options& options, std::vector<Row>& rows) {
  const SupersenseGraph data = supersense_graph(wordnet::read(options.wordnet, "noun"), options.root);
  const Matrix<float> edges = edge_features(data, EdgeInfo::directed, Rng(options.seed));
  const Index nodes = data.size(), count = data.graph.edges(), columns = options.heads * options.channels;
  const std::ptrdiff_t peak = support::peak_bytes_in([&] {
    Rng rng(options.seed);
    const attention::GatV2<float> layer(
        {.source_dim = dim, .edge_dim = edges.cols(), .heads = options.heads, .channels = options.channels}, rng);
    attention::GatV2<float> gradient = layer;
    attention::GatV2<float>::Saved saved;
    Workspace workspace;
    Matrix<float> x(nodes, dim), d_x(nodes, dim), out(nodes, columns), d_out(nodes, columns);
    for (Matrix<float>* random : {&x, &d_out})
      for (float& element : random->span()) element = rng.uniform(-1.0f, 1.0f);
    layer.forward(data.graph.view(), x, x, {.features = edges}, out, saved, workspace);
    layer.backward(data.graph.view(), x, x, {.features = edges}, saved, d_out, d_x, d_x, {}, gradient, workspace);
  });
  // x and out with their gradients; then Θ_l x and Θ_r x with theirs; then for each edge and head z, its weight, and
  // the gradients of both. Frameworks that gather the ends of the edges first hold two to four times that.
  constexpr auto size = std::ptrdiff_t(sizeof(float));
  const std::ptrdiff_t inputs = size * 2 * nodes * (dim + columns);
  const std::ptrdiff_t naive_peak = inputs + size * (4 * nodes * columns + 2 * count * (columns + options.heads));
  const double saved = 1 - double(peak) / double(naive_peak);
  const std::string problem = "WordNet GATv2";
  report(rows, {problem, nodes, nodes, count, "formula", naive_peak, naive_peak - inputs, 0});
  report(rows, {problem, nodes, nodes, count, "ours", peak, peak - inputs, saved});
  return saved;
}

int measure(const Options& options) {
  if (!support::allocations_counted()) {
    std::puts("attention_memory counts nothing: a sanitizer has operators new of its own");
    return 0;
  }
  std::printf("%-18s %8s %8s %-8s %12s %12s %8s\n", "", "queries", "keys", "way", "peak, MiB", "own, MiB", "saved, %");
  std::vector<Row> rows;
  bool good = true;
  for (const Index n : options.sizes) {
    const double saved = compare(options, rows, "attention", n, n);
    good = good && (n < 2048 || saved >= 0.4);
  }
  compare(options, rows, "neighbourhood", 1, 32);
  compare(options, rows, "one query", 1, options.single);
  if (!good) std::fprintf(stderr, "attention_memory: tiles save less than 40 %%\n");
  if (compare_graph(options, rows) <= 0) {
    std::fprintf(stderr, "attention_memory: GATv2 on a graph saves nothing\n");
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
  app.add_flag("--quick", o.quick, "small sizes and a small graph");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "The memory of attention, forward and backward, with and without holding its weights. Exit code 1 if tiles save "
      "less than 40 % from 2,048 queries and keys on.");
  add_options(app, options);
  try {
    app.parse(argc, argv);
    if (options.quick) {
      options.sizes = {512, 2048};
      options.single = 20000;
      options.root = "mammal";
    }
    return measure(options);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "attention_memory: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "attention_memory: %s\n", error.what());
    return 1;
  }
}
