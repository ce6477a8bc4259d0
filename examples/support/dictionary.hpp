// SPDX-License-Identifier: MIT
#pragma once

#include "static_attention.hpp"

#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/nn/embedding.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/train/losses.hpp>
#include <ruvector/train/objective.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

// DictionaryLookup (Brody, Alon & Yahav 2022, §4.1); see dictionary_lookup.cpp.

namespace examples {

using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::Rng;
using ruvector::Workspace;

/// How graphs for testing differ from those for training.
enum class Split {
  graphs,  ///< they are others
  pairs,   ///< each has a (key, value) pair that is in no graph for training
};

/// The permutations, and which of them are for training.
class Dictionary {
 public:
  Dictionary(Index k, Split kind, Rng& rng) : k_(k) {
    constexpr Index most = 32'000;
    std::vector<std::int32_t> order(static_cast<std::size_t>(k));
    std::iota(order.begin(), order.end(), 0);
    if (std::tgamma(double(k + 1)) <= double(most)) {
      do values_.insert(values_.end(), order.begin(), order.end());
      while (std::next_permutation(order.begin(), order.end()));
    } else {
      for (Index g = 0; g < most; ++g) {
        rng.shuffle(std::span(order));
        values_.insert(values_.end(), order.begin(), order.end());
      }
    }
    if (kind == Split::pairs)
      split_pairs(rng);
    else
      split_graphs(rng);
  }

  [[nodiscard]] Index k() const { return k_; }
  /// Value of each key in a graph. [k]
  [[nodiscard]] std::span<const std::int32_t> values(Index graph) const {
    return std::span(values_).subspan(std::size_t(graph * k_), std::size_t(k_));
  }
  /// Graphs by number.
  ///@{
  [[nodiscard]] const std::vector<Index>& train() const { return train_; }
  [[nodiscard]] const std::vector<Index>& test() const { return test_; }
  ///@}

 private:
  void split_graphs(Rng& rng) {
    test_.resize(values_.size() / std::size_t(k_));
    std::iota(test_.begin(), test_.end(), Index(0));
    rng.shuffle(std::span(test_));
    train_.assign(test_.begin() + Index(test_.size()) / 5, test_.end());
    test_.resize(test_.size() / 5);
  }
  // Graphs with a pair that is not to be trained on are for testing.
  void split_pairs(Rng& rng) {
    std::vector<std::int32_t> pairs(std::size_t(k_ * k_));
    std::iota(pairs.begin(), pairs.end(), 0);
    rng.shuffle(std::span(pairs));
    std::vector<char> unseen(pairs.size());
    const auto seen = std::size_t(std::pow(0.8, 1 / double(k_)) * double(pairs.size()));
    for (std::size_t p = seen; p < pairs.size(); ++p) unseen[std::size_t(pairs[p])] = 1;
    for (Index g = 0; g * k_ < Index(values_.size()); ++g) {
      bool is_test = false;
      for (Index key = 0; key < k_; ++key) is_test |= unseen[std::size_t(key * k_ + values(g)[std::size_t(key)])] != 0;
      (is_test ? test_ : train_).push_back(g);
    }
  }

  Index k_;
  std::vector<std::int32_t> values_;
  std::vector<Index> train_, test_;
};

/// GATv2 over all graphs of a batch as one graph. Nodes: the queries of all graphs, then their value nodes.
struct DynamicLayer {
  using Scalar = float;
  ruvector::attention::GatV2<float> attention;

  DynamicLayer(const ruvector::attention::GatV2Config& config, Rng& rng) : attention(config, rng) {}

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("attention", self.attention...);
  }

  struct Saved {
    ruvector::attention::GatV2<float>::Saved softmax;
    ruvector::graph::CsrGraph<std::int32_t> graph;
  };

  /// x [2·graphs·k × dim] → out [graphs·k × dim].
  void forward(Index k, MatrixView<const float> x, MatrixView<float> out, Saved& saved, Workspace& ws) const {
    if (saved.graph.nodes() != x.rows()) saved.graph = disjoint_graphs(x.rows() / (2 * k), k);
    auto frame = ws.frame();
    const auto all = frame.matrix<float>(x.rows(), out.cols());
    attention.forward(saved.graph.view(), x, x, {}, all, saved.softmax, ws);
    ruvector::copy<float>(all.rows(0, out.rows()), out);
  }
  void backward(Index, MatrixView<const float> x, const Saved& saved, MatrixView<const float> d_out,
                MatrixView<float> d_x, DynamicLayer& grad, Workspace& ws) const {
    auto frame = ws.frame();
    const auto d_all = frame.matrix<float>(x.rows(), d_out.cols());
    ruvector::copy<float>(d_out, d_all.rows(0, d_out.rows()));
    const auto of_values = d_all.rows(d_out.rows(), d_all.rows() - d_out.rows());
    std::fill_n(of_values.data(), of_values.size(), 0.0F);
    attention.backward(saved.graph.view(), x, x, {}, saved.softmax, d_all, d_x, d_x, {}, grad.attention, ws);
  }

 private:
  static ruvector::graph::CsrGraph<std::int32_t> disjoint_graphs(Index graphs, Index k) {
    std::vector<Index> offsets(std::size_t(2 * graphs * k) + 1, graphs * k * k);
    std::vector<std::int32_t> targets;
    for (Index query = 0; query < graphs * k; ++query) {
      offsets[std::size_t(query)] = query * k;
      for (Index j = 0; j < k; ++j) targets.push_back(std::int32_t(graphs * k + query / k * k + j));
    }
    return {std::move(offsets), std::move(targets)};
  }
};

/// The same with static attention.
struct StaticLayer {
  using Scalar = float;
  StaticGraphAttention<float> attention;

  StaticLayer(const StaticGraphAttentionConfig& config, Rng& rng) : attention(config, rng) {}

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("attention", self.attention...);
  }

  using Saved = StaticGraphAttention<float>::Saved;

  void forward(Index k, MatrixView<const float> x, MatrixView<float> out, Saved& saved, Workspace& ws) const {
    attention.forward({k, k}, x.rows(0, out.rows()), x.rows(out.rows(), out.rows()), out, saved, ws);
  }
  void backward(Index k, MatrixView<const float> x, const Saved& saved, MatrixView<const float> d_out,
                MatrixView<float> d_x, StaticLayer& grad, Workspace& ws) const {
    const Index n = d_out.rows();
    attention.backward({k, k}, x.rows(0, n), x.rows(n, n), saved, d_out, d_x.rows(0, n), d_x.rows(n, n), grad.attention,
                       ws);
  }
};

/// x = ReLU(K[key] + V[value]); logits = W attention(x). Value k is "none", that of queries.
template <class Layer>
struct LookupModel {
  using Scalar = float;
  ruvector::nn::Embedding<float> keys, values;
  Layer layer;
  ruvector::nn::Linear<float> classifier;

  LookupModel(Index k, Index dim, Layer attention, Rng& rng)
      : keys({.count = k, .dim = dim}, rng),
        values({.count = k + 1, .dim = dim}, rng),
        layer(std::move(attention)),
        classifier({.input = dim, .output = k, .bias = false}, rng) {}

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("keys", self.keys...);
    visit("values", self.values...);
    visit("layer", self.layer...);
    visit("classifier", self.classifier...);
  }
};

/// Cross-entropy of the answers to all queries of some graphs, and how many are right.
template <class Layer>
class LookupObjective {
 public:
  using Model = LookupModel<Layer>;

  /// For that many workers.
  LookupObjective(const Dictionary& data, Index workers) : data_(data), saved_(std::size_t(workers)) {}

  /// Adds the gradient of the sum of the losses.
  ruvector::train::LossSum operator()(const Model& model, std::span<const Index> graphs, Model& gradient,
                                      ruvector::train::FitContext& context) {
    auto& saved = saved_[std::size_t(context.worker)];
    Workspace& ws = context.workspace;
    auto frame = ws.frame();
    const Batch batch(data_, graphs, frame);
    const Index n = batch.queries(), dim = model.classifier.input_dim();
    const auto x = frame.template matrix<float>(2 * n, dim), out = frame.template matrix<float>(n, dim),
               logits = frame.template matrix<float>(n, data_.k());
    batch.embed(model, x, ws);
    model.layer.forward(data_.k(), x, out, saved, ws);
    model.classifier.forward(out, logits, ws);

    const auto d_logits = zeros(frame, n, data_.k()), d_out = zeros(frame, n, dim), d_x = zeros(frame, 2 * n, dim);
    const auto loss = ruvector::train::cross_entropy<float>(logits, batch.labels, d_logits, ws, {},
                                                            {.reduction = ruvector::train::Reduction::sum});
    model.classifier.backward(out, d_logits, d_out, gradient.classifier, ws);
    model.layer.backward(data_.k(), x, saved, d_out, d_x, gradient.layer, ws);
    for (Index i = 0; i < x.size(); ++i)
      if (x.data()[i] == 0) d_x.data()[i] = 0;  // ReLU
    model.keys.backward(std::span<const std::int32_t>(batch.keys), d_x, gradient.keys);
    model.values.backward(std::span<const std::int32_t>(batch.values), d_x, gradient.values);
    return loss;
  }

  /// The part of all queries of some graphs whose answer is right.
  template <ruvector::Executor E>
  [[nodiscard]] double accuracy(const Model& model, std::span<const Index> graphs, E& executor) {
    constexpr Index at_once = 64;
    Workspace workspace;
    workspace.reserve_workers(executor.concurrency());
    std::atomic<Index> right = 0;
    executor.parallel_for((Index(graphs.size()) + at_once - 1) / at_once, [&](Index task, Index worker) {
      const auto first = std::size_t(task * at_once);
      right += count_right(model, graphs.subspan(first, std::min(std::size_t(at_once), graphs.size() - first)),
                           saved_[std::size_t(worker)], workspace.worker(worker));
    });
    return double(right) / double(Index(graphs.size()) * data_.k());
  }

 private:
  using Frame = Workspace::Frame;

  // What identifies the nodes of some graphs, all queries before all value nodes.
  struct Batch {
    std::span<std::int32_t> keys, values;  // [2n]
    std::span<Index> labels;               // [n]

    Batch(const Dictionary& data, std::span<const Index> graphs, Frame& frame) {
      const Index k = data.k(), n = Index(graphs.size()) * k;
      keys = frame.span<std::int32_t>(2 * n);
      values = frame.span<std::int32_t>(2 * n);
      labels = frame.span<Index>(n);
      for (Index i = 0; i < n; ++i) {
        const auto query = std::size_t(i), value = std::size_t(n + i);
        labels[query] = data.values(graphs[std::size_t(i / k)])[std::size_t(i % k)];
        keys[query] = keys[value] = std::int32_t(i % k);
        values[query] = std::int32_t(k);
        values[value] = std::int32_t(labels[query]);
      }
    }
    [[nodiscard]] Index queries() const { return Index(labels.size()); }

    void embed(const Model& model, MatrixView<float> x, Workspace& ws) const {
      auto frame = ws.frame();
      const auto of_value = frame.template matrix<float>(x.rows(), x.cols());
      model.keys.forward(std::span<const std::int32_t>(keys), x);
      model.values.forward(std::span<const std::int32_t>(values), of_value);
      for (Index i = 0; i < x.size(); ++i) x.data()[i] = std::max(0.0F, x.data()[i] + of_value.data()[i]);
    }
  };

  [[nodiscard]] Index count_right(const Model& model, std::span<const Index> graphs, typename Layer::Saved& saved,
                                  Workspace& ws) const {
    auto frame = ws.frame();
    const Batch batch(data_, graphs, frame);
    const Index n = batch.queries(), dim = model.classifier.input_dim();
    const auto x = frame.template matrix<float>(2 * n, dim), out = frame.template matrix<float>(n, dim),
               logits = frame.template matrix<float>(n, data_.k());
    batch.embed(model, x, ws);
    model.layer.forward(data_.k(), x, out, saved, ws);
    model.classifier.forward(out, logits, ws);
    Index right = 0;
    for (Index i = 0; i < n; ++i)
      right += std::ranges::max_element(logits.row(i)) - logits.row(i).begin() == batch.labels[std::size_t(i)];
    return right;
  }

  static MatrixView<float> zeros(Frame& frame, Index rows, Index cols) {
    const auto x = frame.template matrix<float>(rows, cols);
    std::fill_n(x.data(), x.size(), 0.0F);
    return x;
  }

  const Dictionary& data_;
  std::vector<typename Layer::Saved> saved_;  // of a worker
};

}  // namespace examples
