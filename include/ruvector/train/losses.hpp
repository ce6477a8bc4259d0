// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/loss.hpp"

#include <algorithm>
#include <span>

// The losses of regression and classification, with the meaning they have in PyTorch: the mean of the first and the
// last two is over all elements (the weight of a row is its number of columns), that of cross-entropy over rows.

namespace ruvector::inline RUVECTOR_ABI::train {

/// Squared error, ℓ_i = Σ_j (p_ij − t_ij)². Given prediction and target [n×d], adds ∂L/∂p to d_prediction and ∂L/∂t to
/// d_target. Throws ShapeError. O(n d).
template <Real T, Executor E = Serial>
LossSum mse(MatrixView<const T> prediction, MatrixView<const T> target, MatrixView<T> d_prediction,
            MatrixView<T> d_target, Workspace& workspace, const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  using B = simd::Batch<T>;
  const Index n = prediction.rows(), d = prediction.cols();
  nn::detail::check_matrix("mse: target", n, d, target);
  nn::detail::check_wanted("mse: d_prediction", n, d, d_prediction);
  nn::detail::check_wanted("mse: d_target", n, d, d_target);
  const auto row = [&](Index i, T scale, Workspace&) {
    const T* p = prediction.row(i).data();
    const T* t = target.row(i).data();
    T* d_p = detail::row_of(d_prediction, i);
    T* d_t = detail::row_of(d_target, i);
    return detail::sum_over_row<T>(d, [&](Index j, auto lanes) {
      const B difference = lanes.load(p + j) - lanes.load(t + j);
      const B gradient = B(2 * scale) * difference;
      detail::add_to(detail::shifted(d_p, j), lanes, gradient);
      detail::add_to(detail::shifted(d_t, j), lanes, -gradient);
      return difference * difference;
    });
  };
  return detail::reduce_rows<T>(n, double(n) * double(d), !d_prediction.empty() || !d_target.empty(), rows, workspace,
                                row, executor);
}

/// Options of cross_entropy.
template <Real T>
struct CrossEntropyConfig {
  Index ignore_label = -100;              ///< rows with it have no loss, no gradient and no weight
  T label_smoothing = 0;                  ///< ε, 0 to 1: so much of the target is spread over all classes
  std::span<const T> class_weights = {};  ///< [c], w; empty: 1
};

namespace detail {

template <Real T>
void check_cross_entropy(Index classes, const CrossEntropyConfig<T>& config) {
  check_option("cross_entropy: label_smoothing", double(config.label_smoothing), 0, 1, "0 to 1");
  if (!config.class_weights.empty())
    check_shape("cross_entropy: class_weights", classes, Index(config.class_weights.size()));
}

}  // namespace detail

/// Cross-entropy of the softmax of logits [n×c] against labels [n],
///
///     ℓ_i = −(1 − ε) w_y ln p_iy − ε/c Σ_k w_k ln p_ik,   p = softmax(logits),   y = labels_i,   weight of a row: w_y.
///
/// Adds ∂L/∂logits to d_logits. Finite for all finite logits. Throws ShapeError; ConfigError for a label that is
/// neither 0 … c−1 nor ignored, before anything is written. O(n c).
template <Real T, Executor E = Serial>
LossSum cross_entropy(MatrixView<const T> logits, std::span<const Index> labels, MatrixView<T> d_logits,
                      Workspace& workspace, const CrossEntropyConfig<T>& config = {}, const LossRows<T>& rows = {},
                      E&& executor = Serial{}) {
  using B = simd::Batch<T>;
  const Index n = logits.rows(), c = logits.cols();
  check_shape("cross_entropy: labels", n, Index(labels.size()));
  nn::detail::check_wanted("cross_entropy: d_logits", n, c, d_logits);
  detail::check_cross_entropy(c, config);
  for (const Index y : labels)
    if (y != config.ignore_label && !(0 <= y && y < c)) [[unlikely]]
      throw_config_error("cross_entropy: label", "0 to classes - 1, or ignore_label", double(y));

  const std::span<const T> w = config.class_weights;
  const T smooth = c == 0 ? T(0) : config.label_smoothing / T(c), sharp = 1 - config.label_smoothing;
  const T all = w.empty() ? T(c) : simd::sum(w);
  const auto weight_of = [&](Index i) {
    const Index y = labels[std::size_t(i)];
    return y == config.ignore_label ? T(0) : w.empty() ? T(1) : w[std::size_t(y)];
  };
  const auto row = [&](Index i, T scale, Workspace&) {
    const Index y = labels[std::size_t(i)];
    if (y == config.ignore_label) return T(0);
    const T* x = logits.row(i).data();
    const detail::LogSumExp<T> total(logits.row(i));
    const T target = sharp * weight_of(i);
    T loss = target * total.above(x[y]);
    if (smooth > 0)
      loss += smooth * detail::sum_over_row<T>(c, [&](Index k, auto lanes) {
                const B above = (B(total.top) - lanes.load(x + k)) + B(total.log);
                return w.empty() ? above : lanes.load(w.data() + k) * above;
              });
    // ∂ℓ/∂x_k = ((1 − ε) w_y + ε/c Σ w) p_k − (1 − ε) w_y [k = y] − ε/c w_k
    if (T* d_x = detail::row_of(d_logits, i)) {
      const B mass(scale * (target + smooth * all)), spread(scale * smooth);
      simd::for_each_batch<T>(c, [&](Index k, auto lanes) {
        const B even = w.empty() ? spread : spread * lanes.load(w.data() + k);
        lanes.store(d_x + k, lanes.load(d_x + k) + simd::fma(mass, total.softmax(lanes.load(x + k)), -even));
      });
      d_x[y] -= scale * target;
    }
    return loss;
  };
  const double weight = detail::ordered_total(n, weight_of);
  return detail::reduce_rows<T>(n, weight, !d_logits.empty(), rows, workspace, row, executor);
}

/// Cross-entropy against distributions over classes, target [n×c] with rows that sum to 1: of a teacher, say,
///
///     ℓ_i = −Σ_k w_k ((1 − ε) t_ik + ε/c) ln p_ik,   weight of a row: 1.
///
/// Adds to d_logits and to d_target. Throws ShapeError, ConfigError. O(n c).
template <Real T, Executor E = Serial>
LossSum soft_cross_entropy(MatrixView<const T> logits, MatrixView<const T> target, MatrixView<T> d_logits,
                           MatrixView<T> d_target, Workspace& workspace, const CrossEntropyConfig<T>& config = {},
                           const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  using B = simd::Batch<T>;
  const Index n = logits.rows(), c = logits.cols();
  nn::detail::check_matrix("soft_cross_entropy: target", n, c, target);
  nn::detail::check_wanted("soft_cross_entropy: d_logits", n, c, d_logits);
  nn::detail::check_wanted("soft_cross_entropy: d_target", n, c, d_target);
  detail::check_cross_entropy(c, config);
  const std::span<const T> w = config.class_weights;
  const T smooth = c == 0 ? T(0) : config.label_smoothing / T(c), sharp = 1 - config.label_smoothing;
  const auto row = [&](Index i, T scale, Workspace&) {
    const T* x = logits.row(i).data();
    const T* t = target.row(i).data();
    const detail::LogSumExp<T> total(logits.row(i));
    const auto weight = [&](Index k, auto lanes) { return w.empty() ? B(T(1)) : lanes.load(w.data() + k); };
    const auto share = [&](Index k, auto lanes) {
      return weight(k, lanes) * simd::fma(B(sharp), lanes.load(t + k), B(smooth));
    };
    T* d_t = detail::row_of(d_target, i);
    const T loss = detail::sum_over_row<T>(c, [&](Index k, auto lanes) {
      const B above = (B(total.top) - lanes.load(x + k)) + B(total.log), part = share(k, lanes);
      detail::add_to(detail::shifted(d_t, k), lanes, B(scale * sharp) * weight(k, lanes) * above);
      return simd::select(part == B(T(0)), B(T(0)), part * above);  // a class that cannot be: 0·∞ is 0
    });
    // ∂ℓ/∂x_k = p_k Σ_j s_j − s_k with the shares s
    if (T* d_x = detail::row_of(d_logits, i)) {
      const T mass = detail::sum_over_row<T>(c, share);
      simd::for_each_batch<T>(c, [&](Index k, auto lanes) {
        const B gradient = simd::fma(B(mass), total.softmax(lanes.load(x + k)), -share(k, lanes));
        lanes.store(d_x + k, simd::fma(B(scale), gradient, lanes.load(d_x + k)));
      });
    }
    return loss;
  };
  return detail::reduce_rows<T>(n, double(n), !d_logits.empty() || !d_target.empty(), rows, workspace, row, executor);
}

/// Binary cross-entropy of logits [n×d] against targets [n×d] in 0 … 1, by element,
///
///     ℓ = −ω t ln σ(x) − (1 − t) ln(1 − σ(x)),   ω = positive_weight_j  ([d], or empty: 1),
///
/// without ever forming σ(x), so finite for all finite logits. Adds to d_logits and to d_target. Throws ShapeError.
template <Real T, Executor E = Serial>
LossSum bce_with_logits(MatrixView<const T> logits, MatrixView<const T> target, MatrixView<T> d_logits,
                        MatrixView<T> d_target, Workspace& workspace, std::span<const T> positive_weight = {},
                        const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  using B = simd::Batch<T>;
  const Index n = logits.rows(), d = logits.cols();
  nn::detail::check_matrix("bce_with_logits: target", n, d, target);
  nn::detail::check_wanted("bce_with_logits: d_logits", n, d, d_logits);
  nn::detail::check_wanted("bce_with_logits: d_target", n, d, d_target);
  if (!positive_weight.empty()) check_shape("bce_with_logits: positive_weight", d, Index(positive_weight.size()));
  const auto row = [&](Index i, T scale, Workspace&) {
    T* d_x = detail::row_of(d_logits, i);
    T* d_t = detail::row_of(d_target, i);
    return detail::sum_over_row<T>(d, [&](Index j, auto lanes) {
      const B x = lanes.load(logits.row(i).data() + j), t = lanes.load(target.row(i).data() + j);
      const B omega = positive_weight.empty() ? B(T(1)) : lanes.load(positive_weight.data() + j);
      // −ln σ(x) = s(−x) and −ln(1 − σ(x)) = x + s(−x), with s(−x) = ln(1 + e^−|x|) + max(−x, 0)
      const B soft = simd::log1p(simd::exp(-simd::abs(x))) + simd::max(-x, B(T(0)));
      const B mass = simd::fma(omega - B(T(1)), t, B(T(1)));
      const B rest = B(T(1)) - t;
      detail::add_to(detail::shifted(d_x, j), lanes, B(scale) * simd::fnma(mass, simd::sigmoid(-x), rest));
      detail::add_to(detail::shifted(d_t, j), lanes, B(scale) * simd::fma(omega - B(T(1)), soft, -x));
      return simd::fma(mass, soft, rest * x);
    });
  };
  return detail::reduce_rows<T>(n, double(n) * double(d), !d_logits.empty() || !d_target.empty(), rows, workspace, row,
                                executor);
}

/// Binary cross-entropy of probabilities [n×d] against targets [n×d] in 0 … 1, ℓ = −t ln p − (1 − t) ln(1 − p) by
/// element, with logarithms of at least −100 and ∂ℓ/∂p = (p − t)/max(p(1 − p), 10⁻¹²): finite at 0 and 1, as in
/// PyTorch. Prefer bce_with_logits, which loses nothing there. Adds to d_probability and to d_target. Throws
/// ShapeError.
template <Real T, Executor E = Serial>
LossSum bce(MatrixView<const T> probability, MatrixView<const T> target, MatrixView<T> d_probability,
            MatrixView<T> d_target, Workspace& workspace, const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  using B = simd::Batch<T>;
  const Index n = probability.rows(), d = probability.cols();
  nn::detail::check_matrix("bce: target", n, d, target);
  nn::detail::check_wanted("bce: d_probability", n, d, d_probability);
  nn::detail::check_wanted("bce: d_target", n, d, d_target);
  const auto row = [&](Index i, T scale, Workspace&) {
    T* d_p = detail::row_of(d_probability, i);
    T* d_t = detail::row_of(d_target, i);
    return detail::sum_over_row<T>(d, [&](Index j, auto lanes) {
      const B p = lanes.load(probability.row(i).data() + j), t = lanes.load(target.row(i).data() + j);
      const B least(T(-100)), one(T(1));
      // The second argument of max is the one that may be NaN: then so is the maximum.
      const B yes = simd::max(least, simd::log(p)), no = simd::max(least, simd::log1p(-p));
      const B gradient = (p - t) / simd::max(B(T(1e-12f)), p * (one - p));
      detail::add_to(detail::shifted(d_p, j), lanes, B(scale) * gradient);
      detail::add_to(detail::shifted(d_t, j), lanes, B(scale) * (no - yes));
      return -simd::fma(t, yes, (one - t) * no);
    });
  };
  return detail::reduce_rows<T>(n, double(n) * double(d), !d_probability.empty() || !d_target.empty(), rows, workspace,
                                row, executor);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
