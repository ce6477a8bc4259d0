// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/geometry/concepts.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/transpose.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <optional>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// How well candidates match queries: larger is better. Pure, reentrant. A score depends on its two rows alone, bit for
/// bit, not on what else is in the call; NaN in a row gives NaN.
template <class S>
concept CandidateScore = std::copyable<S> && Real<ScalarOf<S>> &&
    requires(const S& score, MatrixView<const ScalarOf<S>> rows, MatrixView<ScalarOf<S>> out, Workspace& workspace) {
  { score.scores(rows, rows, out, workspace) } -> std::same_as<void>;  // out [m×n] of queries [m×d], candidates [n×d]
};

/// A score that makes something of the queries once that serves many blocks of candidates.
template <class S>
concept PreparedScore = CandidateScore<S> &&
    requires(const S& score, const typename S::Prepared& prepared, MatrixView<const ScalarOf<S>> rows,
             MatrixView<ScalarOf<S>> out, Workspace& workspace, Workspace::Frame& frame) {
  { score.prepare(rows, frame) } -> std::same_as<typename S::Prepared>;    // its memory ends with the frame
  { score.scores(prepared, rows, out, workspace) } -> std::same_as<void>;  // the same bits as from the queries
};

/// A score that takes candidates as they are stored, so that they need not be converted for few queries.
template <class Sc, class Stored>
concept StoredScore = PreparedScore<Sc> &&
    requires(const Sc& score, const typename Sc::Prepared& queries, MatrixView<const Stored> stored,
             std::span<const ScalarOf<Sc>> scale, MatrixView<ScalarOf<Sc>> out, Workspace& workspace) {
  { score.scores(queries, stored, scale, out, workspace) } -> std::same_as<void>;  // scale [n] for int8, else empty
};

/// score = q·k.
template <Real T>
struct InnerProduct {
  /// What it computes in.
  using Scalar = T;

  /// Queries, and where they are many their packed form. They are the right factor then: candidates pass by once, as
  /// they lie, and are fetched while others are multiplied. Packed themselves, they cost a fifth of the speed.
  struct Prepared {
    MatrixView<const T> queries;                      ///< [m×d]
    std::optional<simd::PackedTransposed<T>> packed;  ///< none for few
  };

  /// Packs queries if they are many. O(m d).
  [[nodiscard]] Prepared prepare(MatrixView<const T> queries, Workspace::Frame& frame) const {
    Prepared prepared{queries, std::nullopt};
    if (queries.rows() >= 2 * simd::lanes<T>) prepared.packed.emplace(queries, frame);
    return prepared;
  }

  /// out_ij = q_i·k_j, one chain of fused multiply-adds in index order. O(m n d).
  ///@{
  void scores(const Prepared& prepared, MatrixView<const T> candidates, MatrixView<T> out, Workspace& workspace) const {
    if (!prepared.packed) return simd::gemm_transposed(prepared.queries, candidates, out, workspace);
    auto frame = workspace.frame();
    const MatrixView<T> columns = frame.template matrix<T>(candidates.rows(), out.rows());
    prepared.packed->multiply(candidates, columns);
    simd::transpose(columns, out);
  }
  void scores(MatrixView<const T> queries, MatrixView<const T> candidates, MatrixView<T> out,
              Workspace& workspace) const {
    auto frame = workspace.frame();
    scores(prepare(queries, frame), candidates, out, workspace);
  }
  ///@}

  /// The same from candidates in fewer bits. Those of int8 are multiplied as integers, and their score by the scale.
  template <attention::Storage S>
    requires(!std::same_as<S, T>)
  void scores(const Prepared& prepared, MatrixView<const S> candidates, std::span<const T> scale, MatrixView<T> out,
              Workspace& workspace) const {
    const MatrixView<const T> queries = prepared.queries;
    Index j = 0;
    if constexpr (std::same_as<T, float> && !Real<S>) {
      constexpr Index whole = simd::detail::squares_at_once<T, S>;
      if (queries.rows() > 0 && queries.rows() <= simd::detail::few_rows && candidates.rows() >= whole) {
        j = candidates.rows() / whole * whole;
        simd::detail::product_once_transposed<T, S>(queries, candidates.rows(0, j), out.cols(0, j), scale.data());
      }
    }
    if (j == candidates.rows()) return;
    auto frame = workspace.frame();
    const MatrixView<T> rows = frame.template matrix<T>(candidates.rows() - j, candidates.cols());
    const T one[] = {T(1)};
    for (Index r = 0; r < rows.rows(); ++r)
      attention::detail::read_row<T, S>(candidates.rows(j + r, 1), one, 0, rows.row(r));
    scores(prepared, rows, out.cols(j, rows.rows()), workspace);
    for (Index i = 0; !scale.empty() && i < queries.rows(); ++i)
      for (Index c = j; c < candidates.rows(); ++c) out(i, c) *= scale[std::size_t(c)];
  }
};

/// score = q·k/(‖q‖‖k‖), 0 where the square of a norm is 0.
template <Real T>
struct Cosine {
  /// What it computes in.
  using Scalar = T;

  /// Queries for the inner product, and 1/‖q‖.
  struct Prepared {
    typename InnerProduct<T>::Prepared product;  ///< of the queries
    std::span<const T> inverse_norm;             ///< [m]
  };

  /// O(m d).
  [[nodiscard]] Prepared prepare(MatrixView<const T> queries, Workspace::Frame& frame) const {
    return {InnerProduct<T>().prepare(queries, frame), inverse_norms(queries, frame)};
  }

  /// out_ij = cos(q_i, k_j). O(m n d).
  ///@{
  void scores(const Prepared& prepared, MatrixView<const T> candidates, MatrixView<T> out, Workspace& workspace) const {
    InnerProduct<T>().scores(prepared.product, candidates, out, workspace);
    auto frame = workspace.frame();
    const std::span<const T> inverse = inverse_norms(candidates, frame);
    for (Index i = 0; i < out.rows(); ++i) {
      T* row = out.data() + i * out.stride();
      for (Index j = 0; j < out.cols(); ++j)
        row[j] = row[j] * prepared.inverse_norm[std::size_t(i)] * inverse[std::size_t(j)];
    }
  }
  void scores(MatrixView<const T> queries, MatrixView<const T> candidates, MatrixView<T> out,
              Workspace& workspace) const {
    auto frame = workspace.frame();
    scores(prepare(queries, frame), candidates, out, workspace);
  }
  ///@}

 private:
  [[nodiscard]] static std::span<const T> inverse_norms(MatrixView<const T> rows, Workspace::Frame& frame) {
    const std::span<T> inverse = frame.template span<T>(rows.rows());
    for (Index i = 0; i < rows.rows(); ++i) {
      const T square = simd::squared_norm(rows.row(i));
      inverse[std::size_t(i)] = square == 0 ? T(0) : 1 / std::sqrt(square);
    }
    return inverse;
  }
};

/// A metric that takes many points at a time, stored by columns.
template <class M>
concept ColumnMetric = geometry::Metric<M> &&
    requires(const M& m, std::span<const ScalarOf<M>> x, MatrixView<const ScalarOf<M>> columns,
             std::span<ScalarOf<M>> out) {
  { m.distances(x, columns, out) } -> std::same_as<void>;  // out_j = d(x, column j), the same bits at any j
};

/// score = −d(q, k): the nearest is the best. E.g. Distance(geometry::PoincareBall<float>(c)).
template <ColumnMetric M>
class Distance {
 public:
  /// What it computes in.
  using Scalar = ScalarOf<M>;

  /// By the distance of a manifold, or of any metric.
  explicit Distance(M metric) : metric_(std::move(metric)) {}

  /// out_ij = −d(q_i, k_j): the candidates are transposed once for all queries. O(m n d).
  void scores(MatrixView<const Scalar> queries, MatrixView<const Scalar> candidates, MatrixView<Scalar> out,
              Workspace& workspace) const {
    auto frame = workspace.frame();
    const auto columns = frame.template matrix<Scalar>(candidates.cols(), candidates.rows());
    simd::transpose(candidates, columns);
    for (Index i = 0; i < queries.rows(); ++i) {
      const std::span<Scalar> row = out.row(i);
      metric_.distances(queries.row(i), columns, row);
      for (Scalar& score : row) score = 0 - score;  // not -score: a distance of 0 scores 0, not −0
    }
  }

 private:
  M metric_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
