// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/dual_space.hpp"
#include "ruvector/attention/hyperbolic.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/search/exact_search.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// Version 1's soft search: the k candidates [n×d] that are most like a query [d], and
///
///     p = softmax(cos(q, c_j)/τ) over all n,
///
/// of which the result has those of the k, not summing to 1. See differentiable_search_v2 for other scores, batches,
/// embeddings and gradients. Throws ConfigError unless τ > 0 and k ≥ 0, ShapeError where the widths differ. O(n d).
/// Source: the package `@ruvector/gnn` 0.1.25, which it equals within 1e-5.
template <Real T>
void differentiable_search(std::span<const T> query, std::type_identity_t<MatrixView<const T>> candidates, Index k,
                           T temperature, SearchResult<T>& result, Workspace& ws) {
  const MatrixView<const T> one(query.data(), 1, Index(query.size()));
  const ExactSearchConfig<T> config{.k = k, .softmax = true, .temperature = temperature};
  if (candidates.rows() == 0)  // no width to agree with
    ExactSearch(Cosine<T>(), MatrixView<const T>(nullptr, 0, one.cols())).search(one, config, result, ws);
  else
    ExactSearch(Cosine<T>(), candidates).search(one, config, result, ws);
}

/// What differentiable_search_v2 reads.
template <Real T>
struct SearchInput {
  MatrixView<const T> query;                    ///< [B×d]
  MatrixView<const T> key;                      ///< [n×d] the candidates
  MatrixView<const T> value = {};               ///< [n×v] what the embedding averages; empty: the keys
  MatrixView<const std::uint8_t> allowed = {};  ///< [1×n] 0: absent; empty: all are there
  Index k = 10;                                 ///< places
  bool renormalize = false;                     ///< the weights of the k sum to 1
};

/// Gradients by what a search returned; empty: none.
template <Real T>
struct SearchResultGradient {
  MatrixView<const T> weights = {};     ///< [B×k]
  MatrixView<const T> scores = {};      ///< [B×k]
  MatrixView<const T> embedding = {};   ///< [B×columns of the embedding]
  std::span<const T> log_sum_exp = {};  ///< [B]
};

/// What differentiable_search_v2_backward needs of a search, and its scratch; owned by the caller and reused.
template <attention::DifferentiableAttention A>
struct SearchSaved {
  typename A::Saved all;  ///< of the softmax over all candidates
  typename A::Saved one;  ///< of one candidate
};

namespace detail {

/// The logits of an attention, as scores of candidates that are rows of `key`.
template <attention::ScoringAttention A>
struct AttentionScore {
  using Scalar = ScalarOf<A>;

  const A* attention;
  MatrixView<const Scalar> key, value;

  void scores(MatrixView<const Scalar> queries, MatrixView<const Scalar> candidates, MatrixView<Scalar> out,
              Workspace& ws) const {
    const Index first = (candidates.data() - key.data()) / key.stride();
    attention->scores({.query = queries, .key = candidates, .value = value.rows(first, candidates.rows())}, out, ws);
  }
};

/// The input of an attention over the candidates that are there: allowed, and without NaN.
template <Real T>
struct PresentCandidates {
  attention::AttentionInput<T> input;
  Filter filter;

  PresentCandidates(const SearchInput<T>& in, Workspace::Frame& frame) {
    const Index n = in.key.rows();
    const bool own = in.value.data() == nullptr;
    if (in.k < 0) throw_config_error("differentiable_search_v2: k", ">= 0", double(in.k));
    if (n > 0) check_shape("differentiable_search_v2: columns of key", in.query.cols(), in.key.cols());
    if (!own) check_shape("differentiable_search_v2: rows of value", n, in.value.rows());
    if (in.allowed.data() != nullptr) {
      check_shape("differentiable_search_v2: rows of allowed", 1, in.allowed.rows());
      check_shape("differentiable_search_v2: columns of allowed", n, in.allowed.cols());
    }
    const MatrixView<const T> key = n > 0 ? in.key : MatrixView<const T>(nullptr, 0, in.query.cols());
    input = {.query = in.query, .key = key, .value = own ? key : in.value};
    const std::span<std::uint64_t> bitmap = frame.template span<std::uint64_t>((n + 63) / 64);
    const std::span<std::uint8_t> present = frame.template span<std::uint8_t>(n);
    std::ranges::fill(bitmap, std::uint64_t(0));
    bool all = true;
    for (Index j = 0; j < n; ++j) {
      const bool here = (in.allowed.data() == nullptr || in.allowed(0, j) != 0) && !has_nan(in.key.row(j)) &&
                        (own || !has_nan(in.value.row(j)));
      present[std::size_t(j)] = here;
      bitmap[std::size_t(j / 64)] |= std::uint64_t(here) << (j % 64);
      all = all && here;
    }
    filter.bitmap = bitmap;
    if (!all) input.mask.allowed = MatrixView<const std::uint8_t>(present.data(), 1, n);
  }

 private:
  [[nodiscard]] static bool has_nan(std::span<const T> x) {
    return std::ranges::any_of(x, [](T e) { return std::isnan(e); });
  }
};

template <class A, class Forward>
void differentiable_search(const A& attention, const SearchInput<ScalarOf<A>>& in, SearchResult<ScalarOf<A>>& result,
                           Workspace& ws, Forward&& forward) {
  using T = ScalarOf<A>;
  auto frame = ws.frame();
  const PresentCandidates<T> present(in, frame);
  const MatrixView<const T> key = present.input.key, value = present.input.value;
  const Index queries = in.query.rows(), width = attention.output_dim(value.cols());
  const ExactSearch places(AttentionScore<A>{&attention, key, value}, key);
  // The search by itself has no embedding, and would give its memory away.
  Matrix<T> embedding = std::move(result.embedding);
  places.search(in.query, {.k = in.k, .softmax = true, .renormalize = in.renormalize, .filters = {&present.filter, 1}},
                result, ws);
  set_shape(embedding, queries, width);
  forward(present.input, attention::AttentionOutput<T>{embedding});
  result.embedding = std::move(embedding);
}

}  // namespace detail

/// Soft search under the logits s of any attention that scores:
///
///     p = softmax(s_j) over the candidates that are there,   embedding = its mean of their values,
///
/// and the k best with their scores s, exact weights p, log-sum-exp and mass Σp. Temperature, curvature, β and gate
/// are parameters of the attention, and learnable: `ScaledDotProduct`, cosine or distance scores, `HyperbolicFlash`,
/// `DualSpaceFlash`, in whose mean the embedding is. The logits must not depend on positions. A candidate with NaN
/// counts as absent, a query with NaN finds nothing and has NaN as embedding. Throws ShapeError and ConfigError.
/// O(B n (d + v)), memory O(n) bits beyond that of the attention: O(block) for a tiled one.
template <attention::ScoringAttention A>
void differentiable_search_v2(const A& attention, const SearchInput<ScalarOf<A>>& in, SearchResult<ScalarOf<A>>& result,
                              Workspace& ws) {
  detail::differentiable_search(attention, in, result, ws,
                                [&](const auto& input, const auto& out) { attention.forward(input, out, ws); });
}

/// The same, and keeps in `saved` what the backward pass needs. Training mode: the embedding has the attention's
/// dropout, the weights do not.
template <attention::ScoringAttention A>
  requires attention::DifferentiableAttention<A>
void differentiable_search_v2(const A& attention, const SearchInput<ScalarOf<A>>& in, SearchResult<ScalarOf<A>>& result,
                              SearchSaved<A>& saved, Workspace& ws) {
  detail::differentiable_search(attention, in, result, ws, [&](const auto& input, const auto& out) {
    attention.forward(input, out, saved.all, ws);
  });
}

/// Adds the gradients to d_in, by query, key and value, and to grad; empty ones are not wanted, and by keys that are
/// the values too d_in.key is both. Which candidates are found has no gradient. With p = e^(s − L) a gradient p̄ of a
/// weight is one of p·p̄ by its score and of −p·p̄ by L; and the score of one candidate is the log-sum-exp of attention
/// over it alone, so that nothing but the attention's own backward pass is needed. O(B n (d + v) + B k d).
template <attention::ScoringAttention A>
  requires attention::DifferentiableAttention<A>
void differentiable_search_v2_backward(const A& attention, const SearchInput<ScalarOf<A>>& in,
                                       const SearchResult<ScalarOf<A>>& result, SearchSaved<A>& saved,
                                       const SearchResultGradient<ScalarOf<A>>& d_result,
                                       const attention::AttentionGradient<ScalarOf<A>>& d_in, A& grad, Workspace& ws) {
  using T = ScalarOf<A>;
  auto frame = ws.frame();
  const detail::PresentCandidates<T> present(in, frame);
  const attention::AttentionInput<T>& input = present.input;
  const Index queries = in.query.rows(), k = result.ids.cols(), width = attention.output_dim(input.value.cols());
  check_shape("differentiable_search_v2: queries of the result", queries, result.ids.rows());
  const auto check = [&](const char* what, MatrixView<const T> view, Index cols) {
    if (view.data() == nullptr) return;
    check_shape(what, queries, view.rows());
    check_shape(what, cols, view.cols());
  };
  check("differentiable_search_v2: d_result.weights", d_result.weights, k);
  check("differentiable_search_v2: d_result.scores", d_result.scores, k);
  check("differentiable_search_v2: d_result.embedding", d_result.embedding, width);
  if (!d_result.log_sum_exp.empty())
    check_shape("differentiable_search_v2: d_result.log_sum_exp", queries, Index(d_result.log_sum_exp.size()));

  const bool own = in.value.data() == nullptr;
  // Keys that are values too: their gradients are added through a matrix of its own.
  attention::AttentionGradient<T> d_input{d_in.query, d_in.key, own ? MatrixView<T>() : d_in.value};
  if (own && d_in.key.data() != nullptr) {
    d_input.value = frame.template matrix<T>(in.key.rows(), in.key.cols());
    for (Index j = 0; j < in.key.rows(); ++j) std::ranges::fill(d_input.value.row(j), T(0));
  }
  const MatrixView<T> d_scores = frame.template matrix<T>(queries, k);
  const std::span<T> d_lse = frame.template span<T>(queries);
  for (Index i = 0; i < queries; ++i) {
    const std::span<const T> weights = result.weights.row(i);
    const auto count = std::size_t(result.count[i]);
    d_lse[std::size_t(i)] = d_result.log_sum_exp.empty() ? T(0) : d_result.log_sum_exp[std::size_t(i)];
    T mean = 0;
    for (std::size_t place = 0; place < count && d_result.weights.data() != nullptr; ++place)
      mean += weights[place] * d_result.weights(i, Index(place));
    if (!in.renormalize) d_lse[std::size_t(i)] -= mean;
    for (std::size_t place = 0; place < count; ++place) {
      const Index at = Index(place);
      T d = d_result.scores.data() != nullptr ? d_result.scores(i, at) : T(0);
      if (d_result.weights.data() != nullptr)
        d += weights[place] * (d_result.weights(i, at) - (in.renormalize ? mean : T(0)));
      d_scores(i, at) = d;
    }
  }

  const MatrixView<T> zeros = frame.template matrix<T>(1, width), unused = frame.template matrix<T>(1, width);
  std::ranges::fill(zeros.row(0), T(0));
  MatrixView<const T> d_embedding = d_result.embedding;
  if (d_embedding.data() == nullptr) {
    const MatrixView<T> none = frame.template matrix<T>(queries, width);
    for (Index i = 0; i < queries; ++i) std::ranges::fill(none.row(i), T(0));
    d_embedding = none;
  }
  attention.backward(input, saved.all, {.value = d_embedding, .log_sum_exp = d_lse}, d_input, grad, ws);
  for (Index i = 0; i < queries; ++i)
    for (Index place = 0; place < result.count[i]; ++place) {
      const std::span<const T> d = std::span<const T>(d_scores.row(i)).subspan(std::size_t(place), 1);
      if (d[0] == 0) continue;
      const Index j = result.ids(i, place);
      const auto row = [](auto view, Index at) { return view.data() == nullptr ? view : view.rows(at, 1); };
      const attention::AttentionInput<T> one{
          .query = input.query.rows(i, 1), .key = input.key.rows(j, 1), .value = input.value.rows(j, 1)};
      attention.forward(one, {.value = unused}, saved.one, ws);
      attention.backward(one, saved.one, {.value = zeros, .log_sum_exp = d},
                         {row(d_input.query, i), row(d_input.key, j), row(d_input.value, j)}, grad, ws);
    }
  if (own && d_in.key.data() != nullptr)
    for (Index j = 0; j < in.key.rows(); ++j) simd::axpy<T>(T(1), d_input.value.row(j), d_in.key.row(j));
}

/// differentiable_search_v2 by the distance in the ball of curvature c > 0: scores −d(q, k)/τ, points of the ball in
/// and, as embedding, their midpoint. Throws ConfigError and ShapeError.
template <Real T>
void differentiable_search_hyperbolic(const SearchInput<T>& in, double curvature, double temperature,
                                      SearchResult<T>& result, Workspace& ws) {
  detail::check_temperature(temperature);
  const auto attention = attention::make_hyperbolic<attention::HyperbolicFlash<T>>(
      {.curvature = curvature, .beta = 1 / temperature, .input = attention::Points::on_manifold});
  differentiable_search_v2(attention, in, result, ws);
}

/// differentiable_search_v2 in both spaces: rows [Euclidean | hyperbolic] as `config` says. How much each space adds
/// to a score is told by `attention.score.space_contributions(q, k)` of make_dual_space(config). Throws ConfigError and
/// ShapeError.
template <Real T>
void differentiable_search_dual_space(const SearchInput<T>& in, const attention::DualSpaceConfig& config,
                                      SearchResult<T>& result, Workspace& ws) {
  differentiable_search_v2(attention::make_dual_space<attention::DualSpaceFlash<T>>(config), in, result, ws);
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
