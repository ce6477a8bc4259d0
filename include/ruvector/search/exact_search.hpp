// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/top_k.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// Exact search: each query is scored against every candidate.
///
///   search::ExactSearch nearest{search::Distance{ball}, points};
///   nearest.search(queries, 10, result, workspace);
///
/// What is found depends on the query and the candidates alone: the same bits in any batch and with any executor.
/// Scores are compared in a total order, ties go to the smaller id. A NaN score counts as absent: a candidate with NaN
/// is never returned, a query with NaN finds nothing. Holds a view of the candidates, which must outlive it and may
/// have any stride and alignment. Const and reentrant.
template <CandidateScore S>
class ExactSearch {
 public:
  /// What it computes in.
  using Scalar = ScalarOf<S>;

  /// Searches among the rows of `candidates` [n×d].
  ExactSearch(S score, MatrixView<const Scalar> candidates) : score_(std::move(score)), candidates_(candidates) {}

  /// Finds for each query [B×d] the k best of n candidates; where k > n the places beyond stay empty. Throws ShapeError
  /// unless the widths agree, ConfigError for k < 0. O(B n d). Memory for O(B) is in `result`; the workspace holds
  /// blocks only. A second call of the same sizes allocates nothing.
  void search(MatrixView<const Scalar> queries, Index k, SearchResult<Scalar>& result, Workspace& workspace) const {
    Serial serial;
    search(queries, k, result, serial, workspace);
  }

  /// The same on several threads, which share out the queries, or the candidates where there are few queries.
  template <Executor E>
  void search(MatrixView<const Scalar> queries, Index k, SearchResult<Scalar>& result, E& executor,
              Workspace& workspace) const {
    if (k < 0) throw_config_error("ExactSearch: k", ">= 0", static_cast<double>(k));
    check_shape("ExactSearch: columns of queries", candidates_.cols(), queries.cols());
    result.resize(queries.rows(), k);
    const Index workers = executor.concurrency();
    workspace.reserve_workers(workers);
    const Index groups = blocks_of(queries.rows(), group_size);
    auto frame = workspace.frame();
    Selections selections(frame, workers, std::min(k, candidates_.rows()), std::min(queries.rows(), group_size));
    if (groups >= workers) {
      executor.parallel_for(groups, [&](Index group, Index worker) {
        const MatrixView<const Scalar> part = group_of(queries, group);
        const auto best = selections.start(worker, part.rows());
        scan(part, 0, candidates_.rows(), best, workspace.worker(worker));
        write(best, group * group_size, result);
      });
      return;
    }
    for (Index group = 0; group < groups; ++group)
      split(group_of(queries, group), group, selections, result, executor, workspace);
  }

  /// The candidates.
  [[nodiscard]] MatrixView<const Scalar> candidates() const { return candidates_; }

 private:
  using Selection = simd::TopK<Scalar>;

  // Queries that share a block of candidates once it is in the cache.
  static constexpr Index group_size = 64;
  // Bytes of a block of candidates: together with its transposed copy and its scores it stays in L2.
  static constexpr Index block_bytes = Index(1) << 17;
  static constexpr Index largest_block = 1024;

  // One selection for each worker and query of a group.
  class Selections {
   public:
    Selections(Workspace::Frame& frame, Index workers, Index k, Index queries)
        : k_(k), queries_(queries), buffer_size_(Selection::buffer_size(k)) {
      selections_ = frame.span<Selection>(checked_size("ExactSearch: selections", workers, queries));
      buffers_ = frame.span<simd::Ranked<Scalar>>(
          checked_size("ExactSearch: buffers", Index(selections_.size()), buffer_size_));
    }
    // Empty selections for the queries of a group.
    [[nodiscard]] std::span<Selection> start(Index worker, Index count) {
      for (Index i = worker * queries_; i < worker * queries_ + count; ++i)
        std::construct_at(&selections_[std::size_t(i)], k_,
                          buffers_.subspan(std::size_t(i * buffer_size_), std::size_t(buffer_size_)));
      return of(worker, count);
    }
    [[nodiscard]] std::span<Selection> of(Index worker, Index count) {
      return selections_.subspan(std::size_t(worker * queries_), std::size_t(count));
    }

   private:
    Index k_, queries_, buffer_size_;
    std::span<Selection> selections_;
    std::span<simd::Ranked<Scalar>> buffers_;
  };

  [[nodiscard]] static Index blocks_of(Index n, Index size) { return (n + size - 1) / size; }

  [[nodiscard]] static MatrixView<const Scalar> group_of(MatrixView<const Scalar> queries, Index group) {
    const Index first = group * group_size;
    return queries.rows(first, std::min(group_size, queries.rows() - first));
  }

  // Rows of a block: a multiple of all vector lengths.
  [[nodiscard]] Index block_rows() const {
    const Index row_bytes = std::max(Index(1), candidates_.cols()) * Index(sizeof(Scalar));
    return std::clamp(block_bytes / row_bytes / 64 * 64, Index(64), largest_block);
  }

  // One group, its candidates shared out. A selection does not depend on who saw which candidates.
  template <Executor E>
  void split(MatrixView<const Scalar> queries, Index group, Selections& selections, SearchResult<Scalar>& result,
             E& executor, Workspace& workspace) const {
    const Index workers = executor.concurrency(), blocks = blocks_of(candidates_.rows(), block_rows());
    const Index parts = std::min(blocks, 4 * workers);  // more than workers: they do not run equally fast
    for (Index worker = 0; worker < workers; ++worker) (void)selections.start(worker, queries.rows());
    executor.parallel_for(parts, [&](Index part, Index worker) {
      const Index first = part * blocks / parts * block_rows();
      const Index last = std::min((part + 1) * blocks / parts * block_rows(), candidates_.rows());
      scan(queries, first, last, selections.of(worker, queries.rows()), workspace.worker(worker));
    });
    const auto best = selections.of(0, queries.rows());
    for (Index worker = 1; worker < workers; ++worker) {
      const auto other = selections.of(worker, queries.rows());
      for (std::size_t i = 0; i < best.size(); ++i) best[i].merge(other[i]);
    }
    write(best, group * group_size, result);
  }

  // Offers the candidates first … last−1 to the selections of the queries.
  void scan(MatrixView<const Scalar> queries, Index first, Index last, std::span<Selection> best,
            Workspace& workspace) const {
    auto frame = workspace.frame();
    const auto tile = frame.matrix<Scalar>(queries.rows(), std::min(block_rows(), last - first));
    for (Index j = first; j < last; j += block_rows()) {
      const MatrixView<Scalar> scores = tile.cols(0, std::min(block_rows(), last - j));
      score_.scores(queries, candidates_.rows(j, scores.cols()), scores, workspace);
      for (Index i = 0; i < queries.rows(); ++i) best[std::size_t(i)].push(std::span<const Scalar>(scores.row(i)), j);
    }
  }

  void write(std::span<Selection> best, Index first, SearchResult<Scalar>& result) const {
    const auto kept = std::size_t(std::min(result.ids.cols(), candidates_.rows()));
    for (std::size_t i = 0; i < best.size(); ++i) {
      const Index query = first + Index(i);
      const auto ids = result.ids.row(query);
      const auto scores = result.scores.row(query);

      result.count[query] = best[i].finish(ids.first(kept), scores.first(kept));
      std::fill(ids.begin() + Index(kept), ids.end(), Index(-1));
      std::fill(scores.begin() + Index(kept), scores.end(), -std::numeric_limits<Scalar>::infinity());
    }
  }

  S score_;
  MatrixView<const Scalar> candidates_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
