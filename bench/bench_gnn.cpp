// SPDX-License-Identifier: MIT
#include "support/peer.hpp"
#include "support/rows.hpp"

#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/ruvector_layer.hpp>
#include <ruvector/gnn/ruvector_layer_v2.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/nn/gru_cell.hpp>
#include <ruvector/search/hierarchical.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// Rows G1 to G4 of the table of targets, on one thread. With --torch PYTHON rows G1 and G3 are also measured in turns
// with gnn_torch.py in PyTorch, with --node FOLDER row G4, and S5 of version 1's search, with gnn_node.mjs and the
// @ruvector/gnn installed there.

namespace {

using namespace ruvector;
using bench::Limit;
using bench::Peer;
using bench::Rows;

template <class T>
Matrix<T> random_matrix(Rng& rng, Index rows, Index cols) {
  Matrix<T> x(rows, cols);
  for (T& xi : x.span()) xi = rng.normal<T>();
  return x;
}

// The same numbers in double, for a reference.
Matrix<double> exact(const Matrix<float>& x) {
  Matrix<double> y(x.rows(), x.cols());
  std::ranges::copy(x.span(), y.data());
  return y;
}
template <Module To, Module From>
void copy_parameters(const From& from, To& to) {
  std::vector<double> values;
  for_each_parameter([&](std::string_view, auto t) { values.insert(values.end(), t.begin(), t.end()); }, from);
  auto next = values.begin();
  for_each_parameter(
      [&](std::string_view, auto t) {
        for (auto& x : t) x = *next++;
      },
      to);
}

// The relative error that all but one row in a hundred stay below: where an argument of LeakyReLU rounds to the other
// side of 0, the gradients of two nodes differ.
double common_error(const Matrix<float>& x, const Matrix<double>& reference) {
  std::vector<double> errors;
  for (Index i = 0; i < x.rows(); ++i) errors.push_back(bench::relative_error(x.row(i), reference.row(i)));
  const auto last = errors.begin() + std::ptrdiff_t(errors.size() * 99 / 100);
  std::ranges::nth_element(errors, last);
  return *last;
}

// Where rows are measured and printed, and PyTorch and Node, if they take part.
struct Program {
  Rows& rows;
  Peer* torch;
  Peer* node;

  // How many times longer PyTorch takes for its row `name`.
  template <class Run, class Error>
  void against_torch(std::string_view id, const std::string& name, double target, Run&& run, Error&& error) const {
    if (torch == nullptr) return;
    const std::string row = std::string(id) + " " + name;
    rows.ratio(
        id, "PyTorch against this, " + name, {target}, bench::wall_clock, [&] { (void)torch->ask(row); }, run, error);
  }
};

// GATv2 on a random graph, and its gradients.
template <class T>
struct Graph {
  attention::GatV2<T> layer, grad;
  graph::CsrGraph<> graph;
  Matrix<T> x, d_out, out, d_x;
  typename attention::GatV2<T>::Saved saved;

  void forward(Workspace& ws) { layer.forward(graph.view(), x, x, {}, out, ws); }
  void forward_backward(Workspace& ws) {
    layer.forward(graph.view(), x, x, {}, out, saved, ws);
    layer.backward(graph.view(), x, x, {}, saved, d_out, d_x, d_x, {}, grad, ws);
  }
};

void gat(const Program& program) {
  if (!program.rows.wanted("G1")) return;
  constexpr Index nodes = 10'000, edges = 160'000, inputs = 64, heads = 8, channels = 8;
  const attention::GatV2Config config{.source_dim = inputs, .heads = heads, .channels = channels};
  Rng rng(1);
  std::vector<std::int32_t> sources, targets;
  for (Index e = 0; e < edges; ++e) {
    sources.push_back(std::int32_t(rng.below(nodes)));
    targets.push_back(std::int32_t(rng.below(nodes)));
  }
  const attention::GatV2<float> layer(config, rng);
  Graph<float> graph{layer,
                     zeros_like(layer),
                     graph::CsrGraph<>(nodes, sources, targets),
                     random_matrix<float>(rng, nodes, inputs),
                     random_matrix<float>(rng, nodes, heads * channels),
                     Matrix<float>(nodes, heads * channels),
                     Matrix<float>(nodes, inputs),
                     {}};
  Graph<double> reference{attention::GatV2<double>(config, rng),
                          attention::GatV2<double>(config, rng),
                          graph.graph,
                          exact(graph.x),
                          exact(graph.d_out),
                          Matrix<double>(nodes, heads * channels),
                          Matrix<double>(nodes, inputs),
                          {}};
  copy_parameters(layer, reference.layer);
  Workspace ws;
  reference.forward_backward(ws);
  const auto forward = [&] { graph.forward(ws); };
  const auto forward_error = [&] { return bench::relative_error(graph.out.span(), reference.out.span()); };
  // Gradients are added to what is there: the error is that of one run.
  const auto both = [&] { graph.forward_backward(ws); };
  const auto both_error = [&] {
    std::ranges::fill(graph.d_x.span(), 0.0f);
    both();
    return std::max(forward_error(), common_error(graph.d_x, reference.d_x));
  };
  const std::string work = "GATv2 10k nodes, 160k edges, 64 to 8x8, ";
  program.rows.time("G1", work + "forward", 4, 220e9, forward, forward_error);
  program.rows.time("G1", work + "forward and backward", 14, 220e9, both, both_error);
  program.against_torch("G1", "forward", 8, forward, forward_error);
  program.against_torch("G1", "forward and backward", 8, both, both_error);
}

// A recurrent cell and its gradients.
template <class T>
struct Cell {
  nn::GruCell<T> cell, grad;
  Matrix<T> x, h, d_out, out, d_x, d_h;
  typename nn::GruCell<T>::Saved saved;

  void forward(Workspace& ws) { cell.forward(x, h, out, ws); }
  void forward_backward(Workspace& ws) {
    cell.forward(x, h, out, saved, ws);
    cell.backward(x, h, saved, d_out, d_x, d_h, grad, ws);
  }
};

void gru(const Program& program) {
  if (!program.rows.wanted("G3")) return;
  constexpr Index n = 10'000, d = 128;
  Rng rng(1);
  const nn::GruCell<float> weights({.input = d, .hidden = d}, rng);
  Cell<float> cell{weights,
                   zeros_like(weights),
                   random_matrix<float>(rng, n, d),
                   random_matrix<float>(rng, n, d),
                   random_matrix<float>(rng, n, d),
                   Matrix<float>(n, d),
                   Matrix<float>(n, d),
                   Matrix<float>(n, d),
                   {}};
  const nn::GruCell<double> shape({.input = d, .hidden = d}, rng);
  Cell<double> reference{shape,
                         zeros_like(shape),
                         exact(cell.x),
                         exact(cell.h),
                         exact(cell.d_out),
                         Matrix<double>(n, d),
                         Matrix<double>(n, d),
                         Matrix<double>(n, d),
                         {}};
  copy_parameters(weights, reference.cell);
  Workspace ws;
  reference.forward_backward(ws);
  const auto forward = [&] { cell.forward(ws); };
  const auto forward_error = [&] { return bench::relative_error(cell.out.span(), reference.out.span()); };
  const auto both = [&] { cell.forward_backward(ws); };
  const auto both_error = [&] {
    std::ranges::fill(cell.d_x.span(), 0.0f);
    std::ranges::fill(cell.d_h.span(), 0.0f);
    cell.grad = zeros_like(weights);
    both();
    return std::max({forward_error(), bench::relative_error(cell.d_x.span(), reference.d_x.span()),
                     bench::relative_error(cell.d_h.span(), reference.d_h.span()),
                     bench::relative_error(cell.grad.weight_ih.span(), reference.grad.weight_ih.span()),
                     bench::relative_error(cell.grad.weight_hh.span(), reference.grad.weight_hh.span())});
  };
  const double products = 2.0 * double(n) * 3 * double(d) * double(d + d);  // forward; twice as many backward
  program.rows.share("G3", "GRU 10k x 128, forward", {}, Limit::fma, products, forward, forward_error);
  program.rows.share("G3", "GRU 10k x 128, forward and backward", {0.75}, Limit::fma, 3 * products, both, both_error);
  program.against_torch("G3", "forward", 1.2, forward, forward_error);
  program.against_torch("G3", "forward and backward", 1.2, both, both_error);
}

// A layer of message passing on a random graph, and its gradients.
template <class T>
struct Layer {
  using Model = gnn::RuvectorLayerV2<attention::AnyAttention<T>>;
  Model layer, grad;
  graph::CsrGraph<> graph;
  Matrix<T> x, d_out, out, d_x;
  typename Model::Saved saved;

  void forward(Workspace& ws) { layer.forward(graph.view(), x, {}, out, ws); }
  void forward_backward(Workspace& ws) {
    layer.forward(graph.view(), x, {}, out, saved, ws);
    layer.backward(graph.view(), x, {}, saved, d_out, d_x, {}, grad, ws);
  }
};

void layer_v2(const Program& program) {
  if (!program.rows.wanted("G2")) return;
  constexpr Index nodes = 10'000, degree = 16, d = 128;
  const gnn::LayerConfig config{.input = d, .hidden = d, .heads = 4};
  Rng rng(1);
  std::vector<std::int32_t> sources, targets;
  for (Index e = 0; e < nodes * degree; ++e) {
    sources.push_back(std::int32_t(e / degree));
    targets.push_back(std::int32_t(rng.below(nodes)));
  }
  const auto weights = Layer<float>::Model::with_heads(config, attention::ScaledDotProduct<float>(), rng);
  Layer<float> layer{weights,
                     zeros_like(weights),
                     graph::CsrGraph<>(nodes, sources, targets),
                     random_matrix<float>(rng, nodes, d),
                     random_matrix<float>(rng, nodes, d),
                     Matrix<float>(nodes, d),
                     Matrix<float>(nodes, d),
                     {}};
  const auto shape = Layer<double>::Model::with_heads(config, attention::ScaledDotProduct<double>(), rng);
  Layer<double> reference{shape,
                          zeros_like(shape),
                          layer.graph,
                          exact(layer.x),
                          exact(layer.d_out),
                          Matrix<double>(nodes, d),
                          Matrix<double>(nodes, d),
                          {}};
  copy_parameters(weights, reference.layer);
  Workspace ws;
  reference.forward_backward(ws);
  const auto forward = [&] { layer.forward(ws); };
  const auto forward_error = [&] { return bench::relative_error(layer.out.span(), reference.out.span()); };
  const auto both = [&] { layer.forward_backward(ws); };
  const auto both_error = [&] {
    std::ranges::fill(layer.d_x.span(), 0.0f);
    layer.grad = zeros_like(weights);
    both();
    return std::max({forward_error(), bench::relative_error(layer.d_x.span(), reference.d_x.span()),
                     bench::relative_error(layer.grad.message.weight.span(), reference.grad.message.weight.span())});
  };
  // The message, q, k, v and o, the combination and six products of the cell; q·k and P·v of every edge. Backward has
  // twice as many, and q·k again.
  const double of_nodes = 2.0 * 12 * double(nodes) * double(d) * double(d),
               of_edges = 2.0 * 2 * double(nodes * degree) * double(d);
  const std::string work = "RuvectorLayerV2 10k nodes, degree 16, 128 to 128, 4 heads, ";
  program.rows.share("G2", work + "forward", {0.55}, Limit::fma, of_nodes + of_edges, forward, forward_error);
  program.rows.share("G2", work + "forward and backward", {}, Limit::fma, 3 * of_nodes + 3.5 * of_edges, both,
                     both_error);
}

// The layer of version 1, one node at a time.
void layer_v1(const Program& program) {
  if (!program.rows.wanted("G4") || program.node == nullptr) return;
  constexpr Index input = 128, hidden = 256, neighbors = 32;
  constexpr int calls = 20;  // a run, as in gnn_node.mjs: the way to and fro is not what is measured
  const gnn::RuvectorLayerConfig config{.input = input, .hidden = hidden, .heads = 4, .dropout = 0.1};
  Rng rng(1);
  const gnn::RuvectorLayer<float> layer(config, rng);
  gnn::RuvectorLayer<double> reference(config, rng);
  copy_parameters(layer, reference);
  const Matrix<float> node = random_matrix<float>(rng, 1, input), rows = random_matrix<float>(rng, neighbors, input);
  const std::vector<float> weights(neighbors, 1.0f);
  const std::vector<double> exact_weights(neighbors, 1.0);
  std::vector<float> out(hidden);
  std::vector<double> exact_out(hidden);
  Workspace ws;
  const Matrix<double> exact_node = exact(node), exact_rows = exact(rows);
  reference.forward(exact_node.row(0), exact_rows, exact_weights, exact_out, ws);
  program.rows.ratio(
      "G4", "@ruvector/gnn against this, version 1's layer 128 to 256, 32 neighbours", {8}, bench::wall_clock,
      [&] { (void)program.node->ask("G4"); },
      [&] {
        for (int i = 0; i < calls; ++i) layer.forward(node.row(0), rows, weights, out, ws);
      },
      [&] { return bench::relative_error(std::span<const float>(out), std::span<const double>(exact_out)); });
}

// Version 1's search over three levels.
void search_v1(const Program& program) {
  if (!program.rows.wanted("S5") || program.node == nullptr) return;
  constexpr Index width = 128;
  const gnn::RuvectorLayerConfig config{.input = width, .hidden = width, .heads = 4, .dropout = 0.1};
  Rng rng(1);
  std::vector<gnn::RuvectorLayer<float>> layers;
  std::vector<gnn::RuvectorLayer<double>> reference;
  std::vector<Matrix<float>> matrices;
  std::vector<Matrix<double>> exact_matrices;
  for (const Index n : {100, 1000, 10000}) {
    layers.emplace_back(config, rng);
    reference.emplace_back(config, rng);
    copy_parameters(layers.back(), reference.back());
    matrices.push_back(random_matrix<float>(rng, n, width));
    exact_matrices.push_back(exact(matrices.back()));
  }
  const std::vector<MatrixView<const float>> levels(matrices.begin(), matrices.end());
  const std::vector<MatrixView<const double>> exact_levels(exact_matrices.begin(), exact_matrices.end());
  const Matrix<float> query = random_matrix<float>(rng, 1, width);
  const Matrix<double> exact_query = exact(query);
  std::vector<float> out(width);
  std::vector<double> exact_out(width);
  Workspace ws;
  search::SearchResult<float> scratch;
  search::SearchResult<double> exact_scratch;
  search::hierarchical_forward(exact_query.row(0), exact_levels, reference, std::span<double>(exact_out), exact_scratch,
                               ws);
  program.rows.ratio(
      "S5", "@ruvector/gnn against this, hierarchical_forward, 100/1k/10k x 128", {10}, bench::wall_clock,
      [&] { (void)program.node->ask("S5"); },
      [&] { search::hierarchical_forward(query.row(0), levels, layers, std::span<float>(out), scratch, ws); },
      [&] { return bench::relative_error(std::span<const float>(out), std::span<const double>(exact_out)); });
}

}  // namespace

int main(int argc, char** argv) {
  Rows rows(argc, argv);
  CLI::App app;
  std::string python, packages, script = RUVECTOR_BENCH_DIR "/gnn_torch.py";
  app.add_option("--torch", python, "path of a Python that has PyTorch");
  app.add_option("--node", packages, "folder in which npm has installed @ruvector/gnn");
  try {
    app.parse(std::vector<std::string>(rows.arguments()));
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  std::unique_ptr<Peer> torch;
  if (!python.empty()) torch = std::make_unique<Peer>(std::vector<std::string>{python, script, "--serve"});
  std::unique_ptr<Peer> node;
  if (!packages.empty())
    node = std::make_unique<Peer>(
        std::vector<std::string>{"node", RUVECTOR_BENCH_DIR "/gnn_node.mjs", packages, "--serve"});
  const Program program{rows, torch.get(), node.get()};
  gat(program);
  layer_v2(program);
  gru(program);
  layer_v1(program);
  search_v1(program);
  return rows.finish();
}
