// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/attention/types.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>

#include <algorithm>

namespace examples {

/// Rotary positions for graph layers, which know of edges alone: the features of the edge from i to j are r_j − r_i,
/// all that attention with rotary positions sees of r. Dot products of one query, at 0, with keys at these positions.
/// An attention of a user's own, to be put into any layer.
class RelativeRope {
 public:
  using Scalar = float;
  using Rope = ruvector::attention::GraphRope<ruvector::attention::ScaledDotProduct<float>>;
  using Input = ruvector::attention::AttentionInput<float>;
  using Output = ruvector::attention::AttentionOutput<float>;
  using Edges = ruvector::attention::EdgeFeatures<float>;
  using Saved = Rope::Saved;

  Rope rope;

  RelativeRope(const ruvector::attention::GraphRopeConfig& config, ruvector::Rng& rng) : rope(config, rng) {}

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("rope", self.rope...);
  }
  [[nodiscard]] ruvector::Index output_dim(ruvector::Index columns) const { return rope.output_dim(columns); }

  void forward(const Input& in, const Edges& edges, const Output& out, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    rope.forward(in, positions(in, edges, frame), out, ws);
  }
  void forward(const Input& in, const Edges& edges, const Output& out, Saved& saved, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    rope.forward(in, positions(in, edges, frame), out, saved, ws);
  }
  void backward(const Input& in, const Edges& edges, const Saved& saved,
                const ruvector::attention::AttentionOutputGradient<float>& d_out,
                const ruvector::attention::AttentionGradient<float>& d_in, const Edges::Gradient& d_edges,
                RelativeRope& grad, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    rope.backward(in, positions(in, edges, frame), saved, d_out, d_in, {.query = {}, .key = d_edges.features},
                  grad.rope, ws);
  }

  /// Without edges all keys are where the query is.
  ///@{
  void forward(const Input& in, const Output& out, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    forward(in, nowhere(in, frame), out, ws);
  }
  void forward(const Input& in, const Output& out, Saved& saved, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    forward(in, nowhere(in, frame), out, saved, ws);
  }
  void backward(const Input& in, const Saved& saved, const ruvector::attention::AttentionOutputGradient<float>& d_out,
                const ruvector::attention::AttentionGradient<float>& d_in, RelativeRope& grad,
                ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    backward(in, nowhere(in, frame), saved, d_out, d_in, {}, grad, ws);
  }
  ///@}

 private:
  [[nodiscard]] ruvector::MatrixView<float> zeros(ruvector::Index rows, ruvector::Workspace::Frame& frame) const {
    const auto matrix = frame.matrix<float>(rows, rope.coordinates());
    for (ruvector::Index i = 0; i < rows; ++i) std::ranges::fill(matrix.row(i), 0.0f);
    return matrix;
  }
  [[nodiscard]] Edges nowhere(const Input& in, ruvector::Workspace::Frame& frame) const {
    return {zeros(in.key.rows(), frame)};
  }
  [[nodiscard]] ruvector::attention::GraphPositions<float> positions(const Input& in, const Edges& edges,
                                                                     ruvector::Workspace::Frame& frame) const {
    ruvector::check_shape("RelativeRope: queries", 1, in.query.rows());
    return {.query = zeros(1, frame), .key = edges.features};
  }
};

}  // namespace examples
