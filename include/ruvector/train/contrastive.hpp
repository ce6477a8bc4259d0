// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"
#include "ruvector/train/concepts.hpp"
#include "ruvector/train/loss.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

// The losses that learn embeddings: what belongs together is drawn together, what does not is pushed apart.

namespace ruvector::inline RUVECTOR_ABI::train {

/// What a key is to a query.
enum class Pair : std::uint8_t {
  negative,  ///< does not belong to it
  positive,  ///< belongs to it
  ignored,   ///< does not count: the query itself, for example
};

/// pairs(i, j) = positive where query i and key j have the same label, else negative; ignored on the diagonal if
/// `ignore_diagonal`: there the keys are the queries. Throws ShapeError.
inline void pair_by_label(std::span<const Index> query_labels, std::span<const Index> key_labels,
                          MatrixView<Pair> pairs, bool ignore_diagonal = false) {
  nn::detail::check_matrix("pair_by_label: pairs", Index(query_labels.size()), Index(key_labels.size()), pairs);
  for (Index i = 0; i < pairs.rows(); ++i)
    for (Index j = 0; j < pairs.cols(); ++j) {
      const bool same = query_labels[std::size_t(i)] == key_labels[std::size_t(j)];
      pairs(i, j) = ignore_diagonal && i == j ? Pair::ignored : same ? Pair::positive : Pair::negative;
    }
}

/// How several positives P among keys with scores s enter the loss of a query; N are its negatives.
enum class ContrastiveForm {
  each_against_negatives,  ///< mean over p ∈ P of ln(e^s_p + Σ_N e^s) − s_p: version 1's InfoNCE
  each_against_all,        ///< mean over p ∈ P of ln Σ_P∪N e^s − s_p. Source: Khosla et al. 2020 (SupCon), eq. 2
  together,  ///< ln Σ_P∪N e^s − ln Σ_P e^s: the multi-positive softmax. Source: Miech et al. 2020, eq. 1
};

namespace detail {

/// The loss of one query: `all` and `positive` hold the scores, −∞ where the key is none of them. Adds to d_scores.
template <Real T>
class ContrastiveRow {
  using B = simd::Batch<T>;

 public:
  ContrastiveRow(std::span<const T> all, std::span<const T> positive, T positives)
      : all_(all), positive_(positive), positives_(positives) {}

  /// ln Σ_all e^s − ln Σ_P e^s, with all the keys or some of them.
  [[nodiscard]] T together(T scale, T* d_scores) const {
    const LogSumExp<T> a(all_), p(positive_);
    if (d_scores != nullptr)
      for_each([&](Index k, auto lanes, B s, B s_positive) {
        add(d_scores + k, lanes, B(scale) * (a.softmax(s) - p.softmax(s_positive)));
      });
    return (a.top - p.top) + (a.log - p.log);
  }

  [[nodiscard]] T each_against_all(T scale, T* d_scores) const {
    const LogSumExp<T> a(all_);
    const T share = 1 / positives_;
    const B none(-std::numeric_limits<T>::infinity());
    const T loss = share * sum_over_row<T>(size(), [&](Index k, auto lanes) {
                     const B s = lanes.load(positive_.data() + k, none);
                     return simd::select(s == none, B(T(0)), (B(a.top) - s) + B(a.log));
                   });
    if (d_scores != nullptr)
      for_each([&](Index k, auto lanes, B s, B s_positive) {
        const B target = simd::select(s_positive == none, B(T(0)), B(share));
        add(d_scores + k, lanes, B(scale) * (a.softmax(s) - target));
      });
    return loss;
  }

  /// `all` holds the negatives alone. ln(e^s_p + e^ν) − s_p = ln(1 + e^(ν − s_p)) with ν = ln Σ_N e^s.
  [[nodiscard]] T each_against_negatives(T scale, T* d_scores) const {
    const LogSumExp<T> n(all_);
    if (n.top == -std::numeric_limits<T>::infinity()) return 0;
    const T share = 1 / positives_;
    const B none(-std::numeric_limits<T>::infinity());
    const T loss = sum_over_row<T>(size(), [&](Index k, auto lanes) {
      const B s = lanes.load(positive_.data() + k, none);
      const B gap = (B(n.top) - s) + B(n.log);
      return simd::select(s == none, B(T(0)), simd::log1p(simd::exp(-simd::abs(gap))) + simd::max(gap, B(T(0))));
    });
    const auto pull_of = [&](B s) {
      return simd::select(s == none, B(T(0)), simd::sigmoid((B(n.top) - s) + B(n.log)));
    };
    if (d_scores != nullptr) {
      // Σ_p σ(ν − s_p)
      const T pull =
          sum_over_row<T>(size(), [&](Index k, auto lanes) { return pull_of(lanes.load(positive_.data() + k, none)); });
      for_each([&](Index k, auto lanes, B s, B s_positive) {
        add(d_scores + k, lanes, B(scale * share) * (B(pull) * n.softmax(s) - pull_of(s_positive)));
      });
    }
    return share * loss;
  }

 private:
  [[nodiscard]] Index size() const { return Index(all_.size()); }
  template <class F>
  void for_each(F&& f) const {
    const B none(-std::numeric_limits<T>::infinity());
    simd::for_each_batch<T>(size(), [&](Index k, auto lanes) {
      f(k, lanes, lanes.load(all_.data() + k, none), lanes.load(positive_.data() + k, none));
    });
  }
  template <class Lanes>
  static void add(T* p, Lanes lanes, B x) {
    lanes.store(p, lanes.load(p) + x);
  }

  std::span<const T> all_, positive_;
  T positives_;
};

}  // namespace detail

/// The loss of queries whose scores against keys are known, scores and pairs [n×m], in any of its forms. A query
/// without a positive has no loss and no weight; the others have weight 1. Adds to d_scores; scores of ignored pairs do
/// not matter, whatever they are. Throws ShapeError. O(n m), memory O(m) a worker.
template <Real T, Executor E = Serial>
LossSum contrastive(MatrixView<const T> scores, MatrixView<const Pair> pairs, MatrixView<T> d_scores,
                    ContrastiveForm form, Workspace& workspace, const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  const Index n = scores.rows(), m = scores.cols();
  nn::detail::check_matrix("contrastive: pairs", n, m, pairs);
  nn::detail::check_wanted("contrastive: d_scores", n, m, d_scores);
  const auto count = [&](Index i) { return std::ranges::count(pairs.row(i), Pair::positive); };
  const auto row = [&](Index i, T scale, Workspace& own) {
    const Index positives = count(i);
    if (positives == 0) return T(0);
    auto frame = own.frame();
    const std::span<T> all = frame.span<T>(m), positive = frame.span<T>(m);
    for (Index j = 0; j < m; ++j) {
      const Pair pair = pairs(i, j);
      const bool in_all =
          form == ContrastiveForm::each_against_negatives ? pair == Pair::negative : pair != Pair::ignored;
      all[std::size_t(j)] = in_all ? scores(i, j) : -std::numeric_limits<T>::infinity();
      positive[std::size_t(j)] = pair == Pair::positive ? scores(i, j) : -std::numeric_limits<T>::infinity();
    }
    const detail::ContrastiveRow<T> loss(all, positive, T(positives));
    T* d = detail::row_of(d_scores, i);
    switch (form) {
      case ContrastiveForm::each_against_negatives:
        return loss.each_against_negatives(scale, d);
      case ContrastiveForm::each_against_all:
        return loss.each_against_all(scale, d);
      case ContrastiveForm::together:
        break;
    }
    return loss.together(scale, d);
  };
  const double weight = detail::ordered_total(n, [&](Index i) { return count(i) > 0 ? 1 : 0; });
  return detail::reduce_rows<T>(n, weight, !d_scores.empty(), rows, workspace, row, executor);
}

/// Options of info_nce.
struct InfoNceConfig {
  double temperature = 0.07;  ///< τ > 0
  bool cosine = true;         ///< scores are cosines, 0 with a vector of zeros; else inner products
  ContrastiveForm form = ContrastiveForm::each_against_all;  ///< of several positives; with one, all are the same
};

namespace detail {

/// y_i = x_i/‖x_i‖, and 1/‖x_i‖; 0 for rows of zeros.
template <Real T, class E>
void normalize_rows(MatrixView<const T> x, MatrixView<T> y, std::span<T> inverse, Workspace& workspace, E& executor) {
  nn::for_row_ranges(
      x.rows(), workspace,
      [&](Index first, Index count, Workspace&) {
        for (Index i = first; i < first + count; ++i) {
          const T norm = std::sqrt(simd::squared_norm(x.row(i)));
          inverse[std::size_t(i)] = norm > 0 ? 1 / norm : T(0);
          std::ranges::copy(x.row(i), y.row(i).begin());
          simd::scale(inverse[std::size_t(i)], y.row(i));
        }
      },
      executor);
}

/// d_x += ∂(x/‖x‖)ᵀ d_y = (d_y − y (y·d_y))/‖x‖.
template <Real T, class E>
void normalize_rows_backward(MatrixView<const T> y, std::span<const T> inverse, MatrixView<const T> d_y,
                             MatrixView<T> d_x, Workspace& workspace, E& executor) {
  nn::for_row_ranges(
      y.rows(), workspace,
      [&](Index first, Index count, Workspace&) {
        for (Index i = first; i < first + count; ++i) {
          const T along = simd::dot<T>(y.row(i), d_y.row(i)), scale = inverse[std::size_t(i)];
          simd::axpy<T>(scale, d_y.row(i), d_x.row(i));
          simd::axpy<T>(-scale * along, y.row(i), d_x.row(i));
        }
      },
      executor);
}

}  // namespace detail

/// InfoNCE: `contrastive` of the scores s_ij = cos(q_i, k_j)/τ of queries [n×d] and keys [m×d] that all queries share,
/// with pairs [n×m]. In a batch of n pairs (q_i, k_i): pairs positive on the diagonal, negative elsewhere.
///
/// Adds to d_query [n×d] and to d_key [m×d]; sums over queries are ordered. Throws ShapeError, ConfigError.
/// O(n m d), memory O(n m). Source: van den Oord et al. 2018, eq. 4; Chen et al. 2020 (SimCLR), eq. 1.
template <Real T, Executor E = Serial>
LossSum info_nce(MatrixView<const T> query, MatrixView<const T> key, MatrixView<const Pair> pairs,
                 MatrixView<T> d_query, MatrixView<T> d_key, Workspace& workspace, const InfoNceConfig& config = {},
                 const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  const Index n = query.rows(), m = key.rows(), d = query.cols();
  check_shape("info_nce: columns of key", d, key.cols());
  nn::detail::check_matrix("info_nce: pairs", n, m, pairs);
  nn::detail::check_wanted("info_nce: d_query", n, d, d_query);
  nn::detail::check_wanted("info_nce: d_key", m, d, d_key);
  detail::check_option("info_nce: temperature", config.temperature, std::numeric_limits<double>::min(),
                       std::numeric_limits<double>::max(), "finite and > 0");
  const bool gradient = !d_query.empty() || !d_key.empty();
  auto frame = workspace.frame();
  MatrixView<const T> q = query, k = key;
  std::span<T> q_inverse, k_inverse;
  if (config.cosine) {
    const auto unit_q = frame.matrix<T>(n, d), unit_k = frame.matrix<T>(m, d);
    q_inverse = frame.span<T>(n);
    k_inverse = frame.span<T>(m);
    detail::normalize_rows<T>(query, unit_q, q_inverse, workspace, executor);
    detail::normalize_rows<T>(key, unit_k, k_inverse, workspace, executor);
    q = unit_q;
    k = unit_k;
  }
  const auto scores = frame.matrix<T>(n, m);
  const T inverse_temperature = T(1 / config.temperature);
  nn::for_row_ranges(
      n, workspace,
      [&](Index first, Index count, Workspace& own) {
        simd::gemm_transposed<T>(q.rows(first, count), k, scores.rows(first, count), own);
        for (Index i = first; i < first + count; ++i) simd::scale(inverse_temperature, scores.row(i));
      },
      executor);
  const auto d_scores = gradient ? frame.matrix<T>(n, m) : MatrixView<T>();
  for (Index i = 0; i < d_scores.rows(); ++i) std::ranges::fill(d_scores.row(i), T(0));
  const LossSum loss = contrastive<T>(scores, pairs, d_scores, config.form, workspace, rows, executor);
  if (!gradient || n == 0 || m == 0) return loss;

  for (Index i = 0; i < n; ++i) simd::scale(inverse_temperature, d_scores.row(i));
  if (!d_query.empty()) {
    const auto d_q = config.cosine ? frame.matrix<T>(n, d) : d_query;
    nn::for_row_ranges(
        n, workspace,
        [&](Index first, Index count, Workspace& own) {
          simd::gemm<T>(d_scores.rows(first, count), k, d_q.rows(first, count), own,
                        config.cosine ? simd::Product::assign : simd::Product::accumulate);
        },
        executor);
    if (config.cosine) detail::normalize_rows_backward<T>(q, q_inverse, d_q, d_query, workspace, executor);
  }
  if (!d_key.empty()) {
    const auto d_k = frame.matrix<T>(m, d);
    const std::span<T> sums(d_k.data(), std::size_t(d_k.size()));
    std::ranges::fill(sums, T(0));
    nn::add_row_sums(
        n, std::array{sums}, workspace,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace& own) {
          simd::gemm_left_transposed<T>(d_scores.rows(first, last - first), q.rows(first, last - first),
                                        MatrixView<T>(parts[0].data(), m, d), own);
        },
        executor);
    if (config.cosine)
      detail::normalize_rows_backward<T>(k, k_inverse, d_k, d_key, workspace, executor);
    else
      for (Index j = 0; j < m; ++j) simd::axpy<T>(T(1), d_k.row(j), d_key.row(j));
  }
  return loss;
}

/// Triplets: an anchor is to be nearer to its positive than to each of its negatives, by a margin,
///
///     ℓ_i = mean over its negatives n of max(0, ‖a_i − p_i‖ − ‖a_i − n‖ + margin).
///
/// anchor and positive [n×d], negative [n·k×d]: rows i·k … i·k + k − 1 are those of anchor i. Version 1's
/// LocalContrastiveLoss; with k = 1 PyTorch's TripletMarginLoss without its ε. Where a distance is 0 its gradient is 0.
/// Adds to d_anchor, d_positive, d_negative. Throws ShapeError, ConfigError. O(n k d). Source: Schroff et al. 2015.
template <Real T, Executor E = Serial>
LossSum triplet_margin(MatrixView<const T> anchor, MatrixView<const T> positive, MatrixView<const T> negative,
                       MatrixView<T> d_anchor, MatrixView<T> d_positive, MatrixView<T> d_negative, Workspace& workspace,
                       double margin = 1, const LossRows<T>& rows = {}, E&& executor = Serial{}) {
  const Index n = anchor.rows(), d = anchor.cols(), k = n == 0 ? 0 : negative.rows() / n;
  nn::detail::check_matrix("triplet_margin: positive", n, d, positive);
  nn::detail::check_matrix("triplet_margin: negative", n * k, d, negative);
  nn::detail::check_wanted("triplet_margin: d_anchor", n, d, d_anchor);
  nn::detail::check_wanted("triplet_margin: d_positive", n, d, d_positive);
  nn::detail::check_wanted("triplet_margin: d_negative", n * k, d, d_negative);
  detail::check_not_negative("triplet_margin: margin", margin);
  // ∂‖a − b‖/∂a = (a − b)/‖a − b‖
  const auto add_direction = [&](T scale, MatrixView<const T> b, Index j, Index i, T distance, MatrixView<T> d_b) {
    if (distance == 0) return;
    const T factor = scale / distance;
    if (!d_anchor.empty()) {
      simd::axpy<T>(factor, anchor.row(i), d_anchor.row(i));
      simd::axpy<T>(-factor, b.row(j), d_anchor.row(i));
    }
    if (!d_b.empty()) {
      simd::axpy<T>(factor, b.row(j), d_b.row(j));
      simd::axpy<T>(-factor, anchor.row(i), d_b.row(j));
    }
  };
  const auto row = [&](Index i, T scale, Workspace&) {
    const T near = std::sqrt(simd::squared_distance(anchor.row(i), positive.row(i)));
    T loss = 0, active = 0;
    for (Index j = i * k; j < (i + 1) * k; ++j) {
      const T far = std::sqrt(simd::squared_distance(anchor.row(i), negative.row(j)));
      const T excess = near - far + T(margin);
      if (excess <= 0) continue;
      loss += excess;
      active += 1;
      add_direction(-scale / T(k), negative, j, i, far, d_negative);
    }
    if (active > 0) add_direction(scale * active / T(k), positive, i, i, near, d_positive);
    return k == 0 ? T(0) : loss / T(k);
  };
  const bool gradient = !d_anchor.empty() || !d_positive.empty() || !d_negative.empty();
  return detail::reduce_rows<T>(n, double(n), gradient, rows, workspace, row, executor);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
