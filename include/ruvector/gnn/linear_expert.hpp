// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/linear_attention.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/feature_maps.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::gnn {

/// Linear attention for neighbourhoods: one bias a key, the same for all queries, which LinearAttention itself cannot
/// take. With its weights p_ij = φ(q_i)·φ(k_j)/(Σ φ(q_i)·φ(k) + ε) and factors f_j = exp(bias_j − max bias),
///
///     o_i = Σ_j p_ij f_j v_j / Σ_j p_ij f_j
///
/// are two sums over the same keys: values [f_j v_j | f_j], one column more. Without bias it is LinearAttention.
/// Only `value` is offered as output. Source: Katharopoulos et al. 2020.
template <Real T>
class LinearExpert {
 public:
  using Scalar = T;  ///< what it computes in

  attention::LinearAttention<nn::EluPlusOne<T>> attention;  ///< without the bias

  /// What `backward` needs of a forward pass.
  struct Saved {
    typename attention::LinearAttention<nn::EluPlusOne<T>>::Saved attention;  ///< of the two sums
    Matrix<T> sums;                                                           ///< [m×(v+1)]
  };

  /// Names what the feature map has.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("attention", self.attention...);
  }

  /// Columns of the output for values of this width.
  [[nodiscard]] Index output_dim(Index value_dim) const { return value_dim; }

  /// Writes out.value. O((m + n) d v). Throws ShapeError, ConfigError before anything is written.
  ///@{
  void forward(const attention::AttentionInput<T>& in, const attention::AttentionOutput<T>& out, Workspace& ws) const {
    check(in, out);
    if (in.bias.empty()) return attention.forward(in, out, ws);
    auto frame = ws.frame();
    const auto weighted = weigh(in, frame);
    const auto sums = frame.matrix<T>(in.query.rows(), in.value.cols() + 1);
    attention.forward(weighted, {.value = sums}, ws);
    divide(sums, out.value);
  }
  void forward(const attention::AttentionInput<T>& in, const attention::AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    check(in, out);
    if (in.bias.empty()) return attention.forward(in, out, saved.attention, ws);
    auto frame = ws.frame();
    const auto weighted = weigh(in, frame);
    set_shape(saved.sums, in.query.rows(), in.value.cols() + 1);
    attention.forward(weighted, {.value = saved.sums}, saved.attention, ws);
    divide(saved.sums, out.value);
  }
  ///@}

  /// Adds the gradients by query, key, value and bias to `d_in`, those of the map to `grad`. With o = s/t and
  /// u_j = ∂L/∂[f v | f]_j: d_s = G/t, d_t = −G·o/t, d_v_j = f_j u_j, d_bias_j = f_j u_j·[v_j | 1]. Throws as forward.
  void backward(const attention::AttentionInput<T>& in, const Saved& saved,
                const attention::AttentionOutputGradient<T>& d_out, const attention::AttentionGradient<T>& d_in,
                LinearExpert& grad, Workspace& ws) const {
    if (in.bias.empty()) return attention.backward(in, saved.attention, d_out, d_in, grad.attention, ws);
    check(in, {});
    attention::check_gradient(in, d_out, d_in, in.value.cols());
    const Index m = in.query.rows(), n = in.key.rows(), v = in.value.cols();
    attention::detail::check_size("LinearExpert: saved sums", saved.sums.view(), m, v + 1);
    auto frame = ws.frame();
    const auto weighted = weigh(in, frame);
    const auto d_sums = frame.matrix<T>(m, v + 1), d_weighted = frame.matrix<T>(n, v + 1);
    for (Index i = 0; i < m; ++i) {
      const T total = saved.sums(i, v);
      const bool sees = total != 0;  // NaN does
      T along = 0;
      for (Index c = 0; c < v; ++c) {
        d_sums(i, c) = sees ? d_out.value(i, c) / total : T(0);
        along += d_sums(i, c) * saved.sums(i, c);
      }
      d_sums(i, v) = sees ? -along / total : T(0);
    }
    for (Index j = 0; j < n; ++j) std::ranges::fill(d_weighted.row(j), T(0));
    attention.backward(weighted, saved.attention, {.value = d_sums},
                       {.query = d_in.query, .key = d_in.key, .value = d_weighted}, grad.attention, ws);
    for (Index j = 0; j < n; ++j) {
      const T factor = weighted.value(j, v);
      const std::span<const T> u = d_weighted.row(j).first(std::size_t(v));
      if (d_in.bias.data() != nullptr)
        d_in.bias(0, j) += factor * (simd::dot<T>(u, in.value.row(j)) + d_weighted(j, v));
      if (d_in.value.data() != nullptr) simd::axpy<T>(factor, u, d_in.value.row(j));
    }
  }

 private:
  static void check(const attention::AttentionInput<T>& in, const attention::AttentionOutput<T>& out) {
    attention::check_input(in);
    attention::check_output(in, out, in.value.cols());
    if (in.bias.empty()) return;
    if (in.bias.rows() != 1) throw_config_error("LinearExpert: rows of bias", "1", double(in.bias.rows()));
    if (!out.log_sum_exp.empty() || out.weights.data() != nullptr)
      throw_config_error("LinearExpert: outputs with a bias", "value", 2);
  }

  // The input without its bias, with values [f v | f].
  [[nodiscard]] static attention::AttentionInput<T> weigh(const attention::AttentionInput<T>& in,
                                                          Workspace::Frame& frame) {
    const Index v = in.value.cols();
    const auto value = frame.template matrix<T>(in.value.rows(), v + 1);
    T top = in.bias(0, 0);
    for (const T b : in.bias.row(0)) top = std::max(top, b);
    for (Index j = 0; j < value.rows(); ++j) {
      const T factor = std::exp(in.bias(0, j) - top);
      for (Index c = 0; c < v; ++c) value(j, c) = factor * in.value(j, c);
      value(j, v) = factor;
    }
    attention::AttentionInput<T> weighted = in;
    weighted.value = value;
    weighted.bias = {};
    return weighted;
  }

  // A query that sees nothing has sums of 0, and the output 0.
  static void divide(MatrixView<const T> sums, MatrixView<T> out) {
    if (out.data() == nullptr) return;
    for (Index i = 0; i < out.rows(); ++i)
      for (Index c = 0; c < out.cols(); ++c)
        out(i, c) = sums(i, out.cols()) == 0 ? T(0) : sums(i, c) / sums(i, out.cols());
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::gnn
