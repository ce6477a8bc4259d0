// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/scores.hpp>

#include "support/laws.hpp"

// The formulas of wrappers, which change queries, keys and values before a softmax sees them, in any precision.

namespace laws {

/// A matrix of R, for precisions that `Matrix` has not.
template <class R>
struct Rows {
  Index rows = 0, cols = 0;
  std::vector<R> data = std::vector<R>(std::size_t(rows * cols), R(0));

  R& operator()(Index i, Index j) { return data[std::size_t(i * cols + j)]; }
  const R& operator()(Index i, Index j) const { return data[std::size_t(i * cols + j)]; }

  template <class T>
  static Rows of(const Matrix<T>& matrix) {
    return {matrix.rows(), matrix.cols(), std::vector<R>(matrix.span().begin(), matrix.span().end())};
  }
  [[nodiscard]] Rows columns(Index first, Index count) const {
    Rows part{rows, count};
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < count; ++j) part(i, j) = (*this)(i, first + j);
    return part;
  }
};

/// Σ f(i) over 0 … n−1, in index order or in reverse.
template <class R, class F>
R sum(Index n, bool reverse, F&& f) {
  R total = 0;
  for (Index step = 0; step < n; ++step) total += f(reverse ? n - 1 - step : step);
  return total;
}

/// softmax(score(q, k) + bias − ALiBi) v with the rules and the bias of a problem, written down.
template <class R, class T>
Reference<R> softmax_attention(const DotScore<T>& score, const Problem<T>& problem, const Rows<R>& q, const Rows<R>& k,
                               const Rows<R>& v, Order order) {
  constexpr R infinity = std::numeric_limits<R>::infinity();
  Reference<R> result{std::vector<R>(std::size_t(q.rows * v.cols), R(0)),
                      std::vector<R>(std::size_t(q.rows), -infinity)};
  for (Index i = 0; i < q.rows; ++i) {
    std::vector<R> x(std::size_t(k.rows), -infinity);
    R top = -infinity;
    for (Index j = 0; j < k.rows; ++j) {
      if (!problem.sees(i, j)) continue;
      R logit = sum<R>(q.cols, order.reverse_dims, [&](Index c) { return q(i, c) * k(j, c); });
      logit *= score.scale ? R(*score.scale) : R(1) / std::sqrt(R(q.cols));
      if (score.softcap > 0) logit = R(score.softcap) * std::tanh(logit / R(score.softcap));
      logit /= R(score.temperature.value());
      logit -= R(score.alibi_slope) * R(std::abs(problem.mask.position(i, q.rows, k.rows) - j));
      if (!problem.bias.empty()) logit += R(problem.bias(problem.bias.rows() == 1 ? 0 : i, j));
      x[std::size_t(j)] = logit;
      top = std::max(top, logit);
    }
    if (top == -infinity) continue;
    for (R& logit : x) logit = std::exp(logit - top);
    const R total = sum<R>(k.rows, order.reverse_keys, [&](Index j) { return x[std::size_t(j)]; });
    for (Index c = 0; c < v.cols; ++c)
      result.value[std::size_t(i * v.cols + c)] =
          sum<R>(k.rows, order.reverse_keys,
                 [&](Index j) { return x[std::size_t(j)] > 0 ? x[std::size_t(j)] * v(j, c) : R(0); }) /
          total;
    result.log_sum_exp[std::size_t(i)] = top + std::log(total);
  }
  return result;
}

/// A DotScore with random options.
template <Real T>
DotScore<T> random_score(Rng& rng) {
  DotScoreConfig<T> config;
  if (rng.below(3) == 0) config.scale = T(0.3);
  if (rng.below(3) == 0) config.softcap = T(2);
  if (rng.below(3) == 0) config.temperature = T(0.7);
  if (rng.below(4) == 0) config.alibi_slope = T(0.125);
  return DotScore<T>(config);
}

}  // namespace laws
