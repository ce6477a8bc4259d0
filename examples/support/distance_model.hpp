// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/nn/layer_norm.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/nn/mlp.hpp>
#include <ruvector/simd/dot.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

// A transformer whose attention turns queries and keys by the coordinates of their nodes; see graph_positions.cpp.

namespace examples {

using ruvector::Index;
using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::Rng;
using ruvector::Workspace;

/// The shape of a DistanceModel.
struct DistanceModelConfig {
  Index features = 2, dim = 32, heads = 4, blocks = 2, coordinates = 5;
  double frequencies = 3;  ///< spread of Ω at the start
};

/// Features of the nodes of a graph → blocks of attention among all nodes and of an MLP, each behind a LayerNorm and
/// added to its input → one number a node.
struct DistanceModel {
  using Scalar = float;
  using Attention =
      ruvector::attention::MultiHead<ruvector::attention::GraphRope<ruvector::attention::ScaledDotProduct<float>>>;
  using Positions = ruvector::attention::GraphPositions<float>;

  /// x + attention(norm(x)), then x + mlp(norm(x)).
  struct Block {
    using Scalar = float;
    ruvector::nn::LayerNorm<float> attention_norm, mlp_norm;
    Attention attention;
    ruvector::nn::Mlp<float> mlp;

    template <class Visit, class... Self>
    static void parameters(Visit&& visit, Self&... self) {
      visit("attention_norm", self.attention_norm...);
      visit("attention", self.attention...);
      visit("mlp_norm", self.mlp_norm...);
      visit("mlp", self.mlp...);
    }
  };

  /// What `backward` needs of a forward pass.
  struct Saved {
    struct OfBlock {
      Matrix<float> x, normed, middle, mlp_normed;  // [n×dim]
      Attention::Saved attention;
    };
    std::vector<OfBlock> blocks;
    Matrix<float> x, normed;  // of the readout
  };

  ruvector::nn::Linear<float> embedding;
  std::vector<Block> blocks;
  ruvector::nn::LayerNorm<float> norm;
  ruvector::nn::Linear<float> readout;

  DistanceModel(const DistanceModelConfig& c, Rng& rng)
      : embedding({.input = c.features, .output = c.dim}, rng),
        norm({.dim = c.dim}),
        readout({.input = c.dim, .output = 1}, rng) {
    namespace attention = ruvector::attention;
    const ruvector::nn::LayerNormConfig norm_of_block{.dim = c.dim};
    for (Index b = 0; b < c.blocks; ++b) {
      const attention::GraphRope<attention::ScaledDotProduct<float>> rope(
          {.rotary_dim = c.dim / c.heads,
           .coordinates = c.coordinates,
           .initializer = attention::FrequencyInitializer::normal,
           .scale = c.frequencies},
          rng);
      blocks.push_back({ruvector::nn::LayerNorm<float>(norm_of_block), ruvector::nn::LayerNorm<float>(norm_of_block),
                        Attention({.dim = c.dim, .heads = c.heads}, rng, rope),
                        ruvector::nn::Mlp<float>({.widths = {c.dim, 2 * c.dim, c.dim}}, rng)});
    }
  }

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("embedding", self.embedding...);
    visit("blocks", self.blocks...);
    visit("norm", self.norm...);
    visit("readout", self.readout...);
  }

  /// y [n×1] of the features [n×·] of all nodes at positions [n×p].
  void forward(MatrixView<const float> features, MatrixView<const float> positions, MatrixView<float> y, Saved& saved,
               Workspace& ws) const {
    const Index n = features.rows(), d = embedding.weight.rows();
    const Positions at{positions, positions};
    saved.blocks.resize(blocks.size());
    for (Saved::OfBlock& s : saved.blocks)
      for (Matrix<float>* kept : {&s.x, &s.normed, &s.middle, &s.mlp_normed}) set_shape(*kept, n, d);
    for (Matrix<float>* kept : {&saved.x, &saved.normed}) set_shape(*kept, n, d);
    embedding.forward(features, (blocks.empty() ? saved.x : saved.blocks[0].x).view(), ws);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      Saved::OfBlock& s = saved.blocks[b];
      const MatrixView<float> next = (b + 1 < blocks.size() ? saved.blocks[b + 1].x : saved.x).view();
      blocks[b].attention_norm.forward(s.x, s.normed.view(), ws);
      blocks[b].attention.forward({s.normed, s.normed, s.normed}, at, {s.middle.view()}, s.attention, ws);
      add(s.x, s.middle.view());
      blocks[b].mlp_norm.forward(s.middle, s.mlp_normed.view(), ws);
      blocks[b].mlp.forward(s.mlp_normed, next, ws);
      add(s.middle, next);
    }
    norm.forward(saved.x, saved.normed.view(), ws);
    readout.forward(saved.normed, y, ws);
  }

  /// Given d_y = ∂L/∂y [n×1], adds to grad.
  void backward(MatrixView<const float> features, MatrixView<const float> positions, const Saved& saved,
                MatrixView<const float> d_y, DistanceModel& grad, Workspace& ws) const {
    const Index n = features.rows(), d = embedding.weight.rows();
    const Positions at{positions, positions};
    auto frame = ws.frame();
    const auto zeros = [](MatrixView<float> matrix) {
      std::fill_n(matrix.data(), matrix.size(), 0.0f);
      return matrix;
    };
    const auto d_x = zeros(frame.matrix<float>(n, d)), d_normed = frame.matrix<float>(n, d);
    readout.backward(saved.normed, d_y, zeros(d_normed), grad.readout, ws);
    norm.backward(saved.x, d_normed, d_x, grad.norm, ws);
    for (std::size_t b = blocks.size(); b-- > 0;) {
      const Saved::OfBlock& s = saved.blocks[b];
      blocks[b].mlp.backward(s.mlp_normed, d_x, zeros(d_normed), grad.blocks[b].mlp, ws);
      blocks[b].mlp_norm.backward(s.middle, d_normed, d_x, grad.blocks[b].mlp_norm, ws);
      zeros(d_normed);
      blocks[b].attention.backward({s.normed, s.normed, s.normed}, at, s.attention, {.value = d_x},
                                   {.query = d_normed, .key = d_normed, .value = d_normed}, {},
                                   grad.blocks[b].attention, ws);
      blocks[b].attention_norm.backward(s.x, d_normed, d_x, grad.blocks[b].attention_norm, ws);
    }
    embedding.backward(features, d_x, {}, grad.embedding, ws);
  }

 private:
  static void add(const Matrix<float>& from, MatrixView<float> to) {
    for (Index i = 0; i < to.rows(); ++i) ruvector::simd::axpy<float>(1, from.row(i), to.row(i));
  }
};

}  // namespace examples
