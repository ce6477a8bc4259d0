// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/activations.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// The shape and start of a multilayer perceptron.
struct MlpConfig {
  std::vector<Index> widths;                              ///< columns of x, of each hidden layer, of y: two or more
  Activation activation = Activation::relu;               ///< f, between layers
  bool bias = true;                                       ///< of the linear layers
  Initializer initializer = Initializer::fan_in_uniform;  ///< of the linear layers
};

/// Linear layers with an activation between them: with h⁰ = x,
///
///     a¹ = W¹ h⁰ + b¹,  h¹ = f(a¹),  a² = W² h¹ + b²,  …,  y = aᴸ
///
/// for each row, [n×in] → [n×out]. A RowMap.
template <Real T>
struct Mlp {
  using Scalar = T;               ///< what it computes in
  std::vector<Linear<T>> layers;  ///< W and b of each layer
  ActivationMap<T> activation;    ///< f

  /// Without a layer, to be assigned.
  Mlp() = default;
  /// Starts as `config` says. Throws ShapeError for impossible sizes, ConfigError for less than two widths.
  Mlp(const MlpConfig& config, Rng& rng) : activation{.function = config.activation} {
    if (config.widths.size() < 2) [[unlikely]]
      throw_config_error("Mlp: widths", "two or more", double(config.widths.size()));
    for (std::size_t l = 0; l + 1 < config.widths.size(); ++l)
      layers.emplace_back(LinearConfig{.input = config.widths[l],
                                       .output = config.widths[l + 1],
                                       .bias = config.bias,
                                       .initializer = config.initializer},
                          rng);
  }

  /// Names W and b of each layer: layers.0.weight, layers.0.bias, …
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("layers", self.layers...);
  }

  /// Columns of y, for rows of `input_dim` elements; ShapeError where they do not fit the first layer, or layers each
  /// other, ConfigError without a layer.
  [[nodiscard]] Index output_dim(Index input_dim) const {
    if (layers.empty()) [[unlikely]]
      throw_config_error("Mlp: layers", "one or more", 0);
    for (const Linear<T>& layer : layers) input_dim = layer.output_dim(input_dim);
    return input_dim;
  }

  /// y: [n×in] → [n×out]. x and y do not overlap. O(n Σ_l W^l.size()). Throws ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& workspace, E&& executor = Serial{}) const {
    detail::check_matrix("Mlp::forward: y", x.rows(), output_dim(x.cols()), y);
    if (y.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace& own) {
          for (Index i = 0; i < count; i += block) {
            const Index rows = std::min(block, count - i);
            run(0, x.rows(first + i, rows), y.rows(first + i, rows), own);
          }
        },
        executor);
  }

  /// Given d_y [n×out], computes the hidden layers of x again and adds to d_x [n×in] (or empty: not wanted) and grad as
  /// Linear and the activation do. The sums over rows are ordered (add_row_sums). Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, Mlp& grad, Workspace& workspace,
                E&& executor = Serial{}) const {
    check_same_parameters(*this, static_cast<const Mlp&>(grad));
    detail::check_matrix("Mlp::backward: d_y", x.rows(), output_dim(x.cols()), d_y);
    detail::check_wanted("Mlp::backward: d_x", x.rows(), x.cols(), d_x);
    if (d_y.empty()) return;
    pull_back(0, x, d_y, d_x, grad, workspace, executor);
  }

 private:
  static constexpr Index block = 256;  // rows whose hidden layers stay in a cache

  // From what layer l takes to y.
  void run(std::size_t l, MatrixView<const T> h, MatrixView<T> y, Workspace& workspace) const {
    if (l + 1 == layers.size()) return layers[l].forward(h, y, workspace);
    auto frame = workspace.frame();
    const auto a = frame.template matrix<T>(h.rows(), layers[l].weight.rows());
    layers[l].forward(h, a, workspace);
    activation.forward(a, a, workspace);
    run(l + 1, a, y, workspace);
  }

  // The gradient by what layer l takes, h, and by the layers from there.
  template <class E>
  void pull_back(std::size_t l, MatrixView<const T> h, MatrixView<const T> d_y, MatrixView<T> d_h, Mlp& grad,
                 Workspace& workspace, E& executor) const {
    if (l + 1 == layers.size()) return layers[l].backward(h, d_y, d_h, grad.layers[l], workspace, executor);
    auto frame = workspace.frame();
    const auto zero = [](MatrixView<T> matrix) { std::fill_n(matrix.data(), matrix.size(), T(0)); };
    const Index rows = h.rows(), width = layers[l].weight.rows();
    const auto a = frame.template matrix<T>(rows, width), next = frame.template matrix<T>(rows, width),
               d_next = frame.template matrix<T>(rows, width);
    layers[l].forward(h, a, workspace, executor);
    activation.forward(a, next, workspace, executor);
    zero(d_next);
    pull_back(l + 1, next, d_y, d_next, grad, workspace, executor);
    const MatrixView<T> d_a = next;
    zero(d_a);
    activation.backward(a, d_next, d_a, grad.activation, workspace, executor);
    layers[l].backward(h, d_a, d_h, grad.layers[l], workspace, executor);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
