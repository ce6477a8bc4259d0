// SPDX-License-Identifier: MIT
#pragma once

#include "relative_rope.hpp"
#include "supersense_data.hpp"
#include "word_bag.hpp"

#include <ruvector/attention/any_attention.hpp>
#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/gnn/ruvector_layer_v2.hpp>
#include <ruvector/gnn/stack.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/graph/neighbor_sampler.hpp>
#include <ruvector/graph/subgraph.hpp>
#include <ruvector/nn/dropout.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/train/loss.hpp>
#include <ruvector/train/losses.hpp>
#include <ruvector/train/objective.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace examples {

using ruvector::Workspace;

/// The shape of a SupersenseModel.
struct SupersenseConfig {
  Index dim = 32, heads = 4;
  double dropout = 0.3;
  bool edge_in_value = false;
  Index coordinates = 0;  ///< of relative positions, which are then the features of edges; 0: GATv2
};

/// A sum of word vectors → two layers of messages along the edges (GATv2, or dot products that are turned by relative
/// positions) → a linear classifier.
struct SupersenseModel {
  using Scalar = float;
  using Layer = ruvector::gnn::RuvectorLayerV2<ruvector::attention::AnyAttention<float>>;

  WordBag words;
  ruvector::gnn::Stack<Layer> layers;
  ruvector::nn::Linear<float> classifier;
  ruvector::nn::Dropout dropout;  // of the sums of word vectors

  SupersenseModel(const SupersenseConfig& config, Index vocabulary, Rng& rng)
      : words{{{.count = vocabulary, .dim = config.dim, .sigma = 0.3}, rng}},
        layers({layer(config, rng), layer(config, rng)}),
        classifier({.input = config.dim, .output = SupersenseGraph::classes}, rng),
        dropout(config.dropout) {}

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("words", self.words...);
    visit("layers", self.layers...);
    visit("classifier", self.classifier...);
  }

  [[nodiscard]] Index dim() const { return layers.input_dim(); }

 private:
  static Layer layer(const SupersenseConfig& config, Rng& rng) {
    ruvector::gnn::LayerConfig options{.input = config.dim,
                                       .hidden = config.dim,
                                       .heads = config.heads,
                                       .dropout = config.dropout,
                                       .edge_dim = 2 * SupersenseGraph::relations,
                                       .skip = ruvector::gnn::Skip::sum};
    if (config.coordinates == 0)
      return Layer::with_edge_featured(options, {.edge_in_value = config.edge_in_value}, rng);
    options.edge_dim = config.coordinates;
    return Layer::with_heads(options,
                             RelativeRope({.rotary_dim = config.dim / config.heads,
                                           .coordinates = config.coordinates,
                                           .initializer = ruvector::attention::FrequencyInitializer::normal,
                                           .scale = 3},
                                          rng),
                             rng);
  }
};

/// The loss of the model for nodes whose labels are known, an Objective of fit(): a mini-batch is these nodes and what
/// is near them, drawn anew each time. They do not know their own labels, even where their neighbours know theirs.
class SupersenseObjective {
 public:
  /// Keeps a reference. Samples are positions in problem.split.training.
  SupersenseObjective(const SupersenseProblem& problem, Index fan_out, Index workers) : problem_(problem) {
    for (Index w = 0; w < workers; ++w) workers_.emplace_back(problem.data.graph.view(), fan_out);
  }

  ruvector::train::LossSum operator()(const SupersenseModel& model, std::span<const Index> samples,
                                      SupersenseModel& gradient, ruvector::train::FitContext& context) {
    Worker& own = workers_[static_cast<std::size_t>(context.worker)];
    own.seeds.clear();
    own.labels.clear();
    for (const Index k : samples) {
      own.seeds.push_back(problem_.split.training[static_cast<std::size_t>(k)]);
      own.labels.push_back(problem_.label(own.seeds.back()));
    }
    const auto part = own.sampler.sample(own.seeds, context.rng);
    const auto m = static_cast<Index>(samples.size());
    // What nodes know, and which of them: the first ones are the seeds.
    const Index first = problem_.node_info == NodeInfo::labels ? m : 0;
    const auto known = std::span(part.nodes).subspan(static_cast<std::size_t>(first));

    Workspace& ws = context.workspace;
    auto frame = ws.frame();
    const auto zeros = [&](Index rows, Index columns) {
      const auto view = frame.matrix<float>(rows, columns);
      std::fill_n(view.data(), view.size(), 0.0f);
      return view;
    };
    const auto features = frame.matrix<float>(part.graph.edges(), problem_.edges.cols());
    ruvector::graph::gather_rows<float>(problem_.edges, part.edges, features);
    const auto x = zeros(part.graph.nodes(), model.dim()), y = frame.matrix<float>(m, model.dim()),
               logits = frame.matrix<float>(m, SupersenseGraph::classes);
    ruvector::nn::Dropout::Saved dropped;
    model.words.forward(problem_.nodes, known, x.rows(first, x.rows() - first));
    model.dropout.forward<float>(x, x, context.rng, dropped);
    own.saved.rng = context.rng;
    model.layers.forward(part.graph.view(), x, {.features = features}, y, own.saved, ws);
    model.classifier.forward(y, logits, ws);

    const auto d_logits = zeros(m, logits.cols()), d_y = zeros(m, y.cols()), d_x = zeros(x.rows(), x.cols()),
               d_words = zeros(x.rows(), x.cols());
    const auto loss = ruvector::train::cross_entropy<float>(logits, own.labels, d_logits, ws, {},
                                                            {.reduction = ruvector::train::Reduction::sum});
    model.classifier.backward(y, d_logits, d_y, gradient.classifier, ws);
    model.layers.backward(part.graph.view(), x, {.features = features}, own.saved, d_y, d_x, {}, gradient.layers, ws);
    model.dropout.backward<float>(dropped, d_x, d_words);
    model.words.backward(problem_.nodes, known, d_words.rows(first, x.rows() - first), gradient.words);
    return loss;
  }

 private:
  struct Worker {
    ruvector::graph::NeighborSampler<> sampler;
    ruvector::gnn::Stack<SupersenseModel::Layer>::Saved saved;
    std::vector<std::int32_t> seeds;
    std::vector<Index> labels;

    Worker(ruvector::graph::CsrView<> graph, Index fan_out) : sampler(graph, {fan_out, fan_out}) {}
  };

  const SupersenseProblem& problem_;
  std::vector<Worker> workers_;
};

/// The share of some nodes whose class the model finds, from all their neighbours.
template <ruvector::Executor E>
[[nodiscard]] double accuracy(const SupersenseModel& model, const SupersenseProblem& problem,
                              std::span<const std::int32_t> nodes, Workspace& ws, E& executor) {
  using Sampler = ruvector::graph::NeighborSampler<>;
  Rng unused(0);  // nothing is drawn where all neighbours are taken
  const auto part = Sampler(problem.data.graph.view(), {Sampler::all, Sampler::all}).sample(nodes, unused);
  auto frame = ws.frame();
  const auto m = static_cast<Index>(nodes.size());
  const auto x = frame.matrix<float>(part.graph.nodes(), model.dim()), y = frame.matrix<float>(m, model.dim()),
             features = frame.matrix<float>(part.graph.edges(), problem.edges.cols()),
             logits = frame.matrix<float>(m, SupersenseGraph::classes);
  model.words.forward(problem.nodes, part.nodes, x);
  ruvector::graph::gather_rows<float>(problem.edges, part.edges, features);
  model.layers.forward(part.graph.view(), x, {.features = features}, y, ws, executor);
  model.classifier.forward(y, logits, ws, executor);
  Index right = 0;
  for (Index i = 0; i < m; ++i) {
    const auto row = logits.row(i);
    right +=
        std::max_element(row.begin(), row.end()) - row.begin() == problem.label(nodes[static_cast<std::size_t>(i)]);
  }
  return static_cast<double>(right) / static_cast<double>(m);
}

}  // namespace examples
