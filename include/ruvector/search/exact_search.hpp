// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/softmax.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/progress.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/search/filter.hpp"
#include "ruvector/search/scores.hpp"
#include "ruvector/search/search_state.hpp"
#include "ruvector/search/types.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/top_k.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// What is searched, as it is stored: views, which must outlive the search, of any alignment; of a file mapped into
/// memory, for instance. Nothing is copied. int8 comes with a scale a row.
template <Real T, attention::Storage S = T>
struct Candidates {
  MatrixView<const S> key;                                ///< [n×d]
  MatrixView<const S> value = {};                         ///< [n×v], for the embedding; empty: none
  std::span<const T> key_scale = {};                      ///< [n] for int8, else empty
  std::span<const T> value_scale = {};                    ///< the same for values
  MatrixView<const T> exact = {};                         ///< [n×d] the keys unrounded, to score some of them again
  T value_diameter = std::numeric_limits<T>::infinity();  ///< no two values are further apart; `diameter_bound`
};

/// What a call of `ExactSearch` looks for.
template <Real T>
struct ExactSearchConfig {
  Index k = 10;                          ///< places
  bool softmax = false;                  ///< weights, log-sum-exp and mass too, and the embedding of values
  T temperature = 1;                     ///< τ > 0: p = softmax(s/τ)
  bool renormalize = false;              ///< the weights of the k sum to 1
  Index rescore = 0;                     ///< this many of the best are scored again by `Candidates::exact`
  std::span<const Filter> filters = {};  ///< none, one for all queries, or one each
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();  ///< stops then
};

namespace detail {

/// The queries as a score wants them.
template <CandidateScore S>
[[nodiscard]] auto prepare(const S& score, MatrixView<const ScalarOf<S>> queries, Workspace::Frame& frame) {
  if constexpr (PreparedScore<S>)
    return score.prepare(queries, frame);
  else
    return queries;
}

/// When a call has to end, and who is told how far it has come.
class Watch {
 public:
  Watch(const Progress& progress, const std::stop_token& stop, std::chrono::steady_clock::time_point deadline,
        Index total)
      : progress_(progress), stop_(stop), deadline_(deadline), total_(total) {}

  /// Whether to end now.
  [[nodiscard]] bool stopped() {
    if (stopped_.load(std::memory_order_relaxed)) return true;
    constexpr auto never = std::chrono::steady_clock::time_point::max();
    const bool now = stop_.stop_requested() || (deadline_ != never && std::chrono::steady_clock::now() >= deadline_);
    if (now) stopped_.store(true, std::memory_order_relaxed);
    return now;
  }
  /// Counts work that is done, and reports it if this is the thread of the call.
  void add(Index work) {
    const Index done = done_.fetch_add(work, std::memory_order_relaxed) + work;
    if (progress_ && std::this_thread::get_id() == caller_) report(done);
  }
  /// The last report, unless it was made. Returns whether the call was stopped.
  bool finish() {
    const Index done = done_.load();
    if (progress_ && reported_ != done) report(done);
    return stopped_.load();
  }

 private:
  void report(Index done) {
    reported_ = done;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    progress_({done, total_, std::numeric_limits<double>::quiet_NaN(), seconds.count()});
  }

  const Progress& progress_;
  const std::stop_token& stop_;
  const std::chrono::steady_clock::time_point deadline_, start_ = std::chrono::steady_clock::now();
  const std::thread::id caller_ = std::this_thread::get_id();
  const Index total_;
  std::atomic<bool> stopped_ = false;
  std::atomic<Index> done_ = 0;
  Index reported_ = -1;
};

/// One selection for each worker and query of a group.
template <Real T>
class Selections {
 public:
  Selections(Workspace::Frame& frame, Index workers, Index k, Index queries)
      : queries_(queries),
        buffer_size_(simd::TopK<T>::buffer_size(k)),
        best_(frame.span<simd::TopK<T>>(checked_size("ExactSearch: selections", workers, queries))),
        buffers_(frame.span<simd::Ranked<T>>(checked_size("ExactSearch: buffers", Index(best_.size()), buffer_size_))),
        seen_(frame.span<Index>(Index(best_.size()))) {
    for (std::size_t i = 0; i < best_.size(); ++i) {
      restart(Index(i), k);
      seen_[i] = 0;
    }
  }
  /// Selection i becomes an empty one for k, at most that of the constructor.
  void restart(Index i, Index k) {
    std::construct_at(&best_[std::size_t(i)], k,
                      buffers_.subspan(std::size_t(i * buffer_size_), std::size_t(buffer_size_)));
  }
  [[nodiscard]] Findings<T> of(Index worker, const attention::detail::BlockState<T>& sums) const {
    const auto first = std::size_t(worker * queries_), count = std::size_t(queries_);
    return {best_.subspan(first, count), seen_.subspan(first, count), sums};
  }
  /// Adds what the other workers have found to worker 0. It does not depend on who saw which candidates.
  void unite() {
    for (std::size_t i = std::size_t(queries_); i < best_.size(); ++i) {
      best_[i % std::size_t(queries_)].merge(best_[i]);
      seen_[i % std::size_t(queries_)] += seen_[i];
    }
  }

 private:
  Index queries_, buffer_size_;
  std::span<simd::TopK<T>> best_;
  std::span<simd::Ranked<T>> buffers_;
  std::span<Index> seen_;
};

}  // namespace detail

/// Exact search: each query is scored against every candidate, in one pass.
///
///   search::ExactSearch nearest{search::Distance{ball}, points};
///   nearest.search(queries, {.k = 10, .softmax = true, .temperature = 0.1f}, result, workspace);
///
/// gives the k best and, in the same pass, the softmax over all n candidates: its weights at the k, log-sum-exp, and
/// the mean of all values. What is found depends on the query and the candidates alone: the same bits in any batch,
/// with any executor, and from shards (`accumulate`). Scores are compared in a total order, ties go to the smaller id.
/// A NaN score counts as absent: a candidate with NaN is never returned and has no weight, a query with NaN finds
/// nothing. Memory O(B k) in the result, and in the workspace O(block + workers·k + v log n). Const and reentrant.
template <CandidateScore S, attention::Storage Stored = ScalarOf<S>>
class ExactSearch {
 public:
  /// What it computes in.
  using Scalar = ScalarOf<S>;

  /// Searches among the rows of `candidates` [n×d].
  ExactSearch(S score, MatrixView<const Scalar> candidates)
      : ExactSearch(std::move(score), Candidates<Scalar, Stored>{.key = candidates}) {}

  /// Searches among candidates in any storage, with values. Throws ShapeError unless their sizes fit.
  ExactSearch(S score, Candidates<Scalar, Stored> candidates)
      : score_(std::move(score)), candidates_(std::move(candidates)) {
    constexpr bool scaled = std::same_as<Stored, std::int8_t>;
    const Index n = candidates_.key.rows();
    const bool valued = candidates_.value.data() != nullptr || candidates_.value.rows() != 0;
    if (valued) check_shape("ExactSearch: rows of value", n, candidates_.value.rows());
    check_shape("ExactSearch: key_scale", scaled ? n : 0, Index(candidates_.key_scale.size()));
    check_shape("ExactSearch: value_scale", scaled && valued ? n : 0, Index(candidates_.value_scale.size()));
    if (candidates_.exact.empty()) return;
    check_shape("ExactSearch: rows of exact", n, candidates_.exact.rows());
    check_shape("ExactSearch: columns of exact", candidates_.key.cols(), candidates_.exact.cols());
  }

  /// The candidates.
  [[nodiscard]] const Candidates<Scalar, Stored>& candidates() const { return candidates_; }

  /// Finds for each query [B×d] the k best of n candidates, on several threads if the executor has them; where k > n
  /// the places beyond stay empty. O(B n (d + v)). A second call of the same sizes allocates nothing.
  ///
  /// After a stop or at the deadline the call ends within a block of candidates and `result.stopped` is set: then the
  /// result is exact over the candidates that were seen, `distance_count` of them. Progress counts pairs of a query and
  /// a candidate.
  ///
  /// With `rescore`, the best candidates by the stored keys get the scores of the exact ones, are ordered by them, and
  /// enter the softmax with them. Where these differ by δ, log-sum-exp is then right to about 1e-6 e^(δ/τ).
  ///
  /// Throws ShapeError unless the widths and the filters fit, ConfigError for k < 0, for a temperature that is not
  /// positive and finite, and for `rescore` without exact keys or below 0.
  template <Executor E = Serial>
  void search(MatrixView<const Scalar> queries, const ExactSearchConfig<Scalar>& config, SearchResult<Scalar>& result,
              Workspace& workspace, E&& executor = Serial{}, const Progress& progress = {},
              const std::stop_token& stop = {}) const {
    check(queries, config, 0);
    result.resize(queries.rows(), config.k, config.softmax, candidates_.value.cols());
    const Index workers = executor.concurrency(), groups = (queries.rows() + group_size - 1) / group_size;
    if (workers > 1) workspace.reserve_workers(workers);
    detail::Watch watch(progress, stop, config.deadline, queries.rows() * candidates_.key.rows());
    // Groups are shared out where there are enough of them, else the candidates of each.
    if (workers > 1 && groups >= workers)
      executor.parallel_for(groups, [&](Index group, Index worker) {
        Serial alone;
        search_group(queries, group, config, result, watch, alone, workspace.worker(worker));
      });
    else
      for (Index group = 0; group < groups; ++group)
        search_group(queries, group, config, result, watch, executor, workspace);
    result.stopped = watch.finish();
  }

  /// The k best and nothing else.
  void search(MatrixView<const Scalar> queries, Index k, SearchResult<Scalar>& result, Workspace& workspace) const {
    search(queries, {.k = k}, result, workspace);
  }

  /// An empty state for searching shards.
  [[nodiscard]] SearchState<Scalar> make_state(Index queries, const ExactSearchConfig<Scalar>& config) const {
    return SearchState<Scalar>(queries, config.k, config.temperature, candidates_.value.cols());
  }

  /// Adds these candidates, a shard that starts at id first_id of a larger set, to what the queries have found:
  /// filters and results have the ids of the larger set. Of the config, the filters are looked at. Throws ConfigError
  /// unless first_id is a multiple of 4096 or goes on where the state is incomplete, then at a multiple of 64; and
  /// where `rescore` is set. ShapeError where sizes do not fit. After std::bad_alloc the state has some of the
  /// candidates and is of no more use.
  void accumulate(MatrixView<const Scalar> queries, const ExactSearchConfig<Scalar>& config, Index first_id,
                  SearchState<Scalar>& state, Workspace& workspace) const {
    check(queries, config, first_id);
    check_shape("ExactSearch: queries of the state", state.queries(), queries.rows());
    check_shape("ExactSearch: columns of value of the state", state.value_dim(), candidates_.value.cols());
    if (config.rescore != 0) throw_config_error("ExactSearch: rescore of a shard", "0", double(config.rescore));
    ExactSearchConfig<Scalar> softly = config;
    softly.softmax = true;
    softly.temperature = state.temperature();
    const Progress silent;
    const std::stop_token endless;
    detail::Watch watch(silent, endless, config.deadline.max(), 0);
    state.add(first_id, candidates_.key.rows(), [&](const detail::Findings<Scalar>& found, Index begin, Index end) {
      for (Index i = 0; i < queries.rows(); i += group_size) {
        const Index count = std::min(group_size, queries.rows() - i);
        scan(Task{queries.rows(i, count), softly, i, first_id, watch}, begin, end,
             {found.best.subspan(std::size_t(i), std::size_t(count)),
              found.seen.subspan(std::size_t(i), std::size_t(count)), found.sums.rows(i, count)},
             workspace);
      }
    });
  }

 private:
  using T = Scalar;
  using Sums = attention::detail::BlockState<T>;

  // A group of queries and what is asked of them.
  struct Task {
    MatrixView<const T> queries;
    const ExactSearchConfig<T>& config;
    Index first_query, first_id;
    detail::Watch& watch;

    [[nodiscard]] const Filter& filter(Index i) const {
      return config.filters[config.filters.size() == 1 ? 0 : std::size_t(first_query + i)];
    }
  };

  // Queries that share a block of candidates once it is in the cache.
  static constexpr Index group_size = 64;
  // Bytes of a block of candidates: with its scores it stays in L2.
  static constexpr Index block_bytes = Index(1) << 18;
  static constexpr Index largest_block = 512;
  static constexpr Index tile = attention::detail::tile_keys;
  static_assert(tile == 64, "a word of a filter");

  [[nodiscard]] bool rescorable() const { return !candidates_.exact.empty() || candidates_.key.empty(); }

  void check(MatrixView<const T> queries, const ExactSearchConfig<T>& config, Index first_id) const {
    check_shape("ExactSearch: columns of queries", candidates_.key.cols(), queries.cols());
    if (config.k < 0) throw_config_error("ExactSearch: k", ">= 0", double(config.k));
    detail::check_temperature(config.temperature);
    if (config.rescore < 0 || (config.rescore > 0 && !rescorable()))
      throw_config_error("ExactSearch: rescore", rescorable() ? ">= 0" : "0 without exact keys",
                         double(config.rescore));
    const Index filters = Index(config.filters.size());
    if (filters > 1) check_shape("ExactSearch: filters", queries.rows(), filters);
    for (const Filter& filter : config.filters) filter.check(first_id + candidates_.key.rows());
  }

  [[nodiscard]] MatrixView<const T> exact_row(Index id) const {
    return candidates_.exact.empty() ? MatrixView<const T>(nullptr, 1, 0) : candidates_.exact.rows(id, 1);
  }

  // Rows of a block, whole tiles.
  [[nodiscard]] Index block_rows() const {
    const Index row_bytes = std::max(Index(1), candidates_.key.cols()) * Index(sizeof(T));
    return std::clamp(block_bytes / row_bytes / tile * tile, tile, largest_block);
  }

  template <Executor E>
  void search_group(MatrixView<const T> queries, Index group, const ExactSearchConfig<T>& config,
                    SearchResult<T>& result, detail::Watch& watch, E& executor, Workspace& workspace) const {
    const Index first = group * group_size, m = std::min(group_size, queries.rows() - first);
    const Index n = candidates_.key.rows(), workers = executor.concurrency();
    const Task task{queries.rows(first, m), config, first, 0, watch};
    auto frame = workspace.frame();
    detail::Selections<T> selections(frame, workers, std::min(std::max(config.k, config.rescore), n), m);
    const attention::detail::BlockMonoid<T> monoid{frame, config.softmax ? m : 0, candidates_.value.cols(), false};
    const auto slots = frame.template span<OrderedSumSlot<Sums>>(ordered_reduce_slots(n, key_leaf, workers));
    for (auto& slot : slots) {
      std::construct_at(&slot);
      if (workers > 1) monoid.clear(slot.state);  // memory of the frame is not for many at a time
    }
    Sums total;
    ordered_reduce(
        n, key_leaf, monoid, slots, total,
        [&](const Sums& sums, Index begin, Index end, Index worker) {
          scan(task, begin, end, selections.of(worker, sums), workers > 1 ? workspace.worker(worker) : workspace);
        },
        executor);
    selections.unite();
    const detail::Findings<T> found = selections.of(0, total);
    const detail::Writing<T> writing{
        {1 / config.temperature}, config.softmax, config.renormalize, candidates_.value_diameter};
    for (Index i = 0; i < m; ++i) {
      if (config.rescore > 0) rescore(task, i, writing.logits, selections, found, workspace);
      writing.write(found, i, first + i, result);
    }
  }

  // Adds candidates begin … end−1, of one leaf, to what was found.
  void scan(const Task& task, Index begin, Index end, const detail::Findings<T>& found, Workspace& workspace) const {
    const Index m = task.queries.rows(), most = block_rows(), words = most / tile;
    auto frame = workspace.frame();
    const auto queries = detail::prepare(score_, task.queries, frame);
    // One line more than a block: rows a power of two apart would share few sets of the cache.
    const MatrixView<T> block = frame.template matrix<T>(m, most + 16);
    const auto admitted = frame.template matrix<std::uint64_t>(std::min(m, Index(task.config.filters.size())), words);
    for (Index j = begin; j < end && !task.watch.stopped(); j += most) {
      const Index count = std::min(most, end - j);
      if (!admit(task, j, count, admitted, found.seen)) continue;
      const MatrixView<T> scores = block.cols(0, count);
      score_rows(queries, j, scores, workspace);
      for (Index i = 0; i < m; ++i) {
        if (!admitted.empty()) hide(admitted.row(admitted.rows() == 1 ? 0 : i), scores.row(i));
        found.best[std::size_t(i)].push(std::span<const T>(scores.row(i)), task.first_id + j);
      }
      if (task.config.softmax) weigh(task.config, j, count, block, found.sums, workspace);
    }
    task.watch.add((end - begin) * m);
  }

  // Which of `count` candidates from row j on each query may see, and how many; false: none.
  static bool admit(const Task& task, Index j, Index count, MatrixView<std::uint64_t> admitted, std::span<Index> seen) {
    if (admitted.empty()) {
      for (Index& s : seen) s += count;
      return true;
    }
    bool any = false;
    for (Index i = 0; i < admitted.rows(); ++i) {
      Index bits = 0;
      for (Index t = 0; t * tile < count; ++t) {
        const std::uint64_t word = task.filter(i).word(task.first_id + j + t * tile, std::min(tile, count - t * tile));
        admitted(i, t) = word;
        bits += std::popcount(word);
      }
      any = any || bits > 0;
      if (admitted.rows() == 1)
        for (Index& s : seen) s += bits;
      else
        seen[std::size_t(i)] += bits;
    }
    return any;
  }

  // Scores of candidates that are not admitted become NaN: absent.
  static void hide(std::span<const std::uint64_t> admitted, std::span<T> scores) {
    for (Index t = 0; t * tile < Index(scores.size()); ++t) {
      const Index count = std::min(tile, Index(scores.size()) - t * tile);
      for (Index j = 0; admitted[std::size_t(t)] != ~std::uint64_t(0) && j < count; ++j)
        if (((admitted[std::size_t(t)] >> j) & 1) == 0)
          scores[std::size_t(t * tile + j)] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  // Scores of candidates j … as they are stored, or converted.
  template <class Queries>
  void score_rows(const Queries& queries, Index j, MatrixView<T> scores, Workspace& workspace) const {
    const Index count = scores.cols();
    if constexpr (!std::same_as<Stored, T> && StoredScore<S, Stored>) {
      const auto scale = candidates_.key_scale;
      score_.scores(queries, candidates_.key.rows(j, count),
                    scale.empty() ? scale : scale.subspan(std::size_t(j), std::size_t(count)), scores, workspace);
    } else {
      auto frame = workspace.frame();
      const MatrixView<T> room = frame.template matrix<T>(std::same_as<Stored, T> ? 0 : count, candidates_.key.cols());
      score_.scores(queries,
                    attention::detail::read_rows<T, Stored>(candidates_.key, candidates_.key_scale, j, count, room),
                    scores, workspace);
    }
  }

  // Adds the scores of `count` candidates from row j on to the softmax; the block has whole tiles.
  void weigh(const ExactSearchConfig<T>& config, Index j, Index count, MatrixView<T> block, const Sums& sums,
             Workspace& workspace) const {
    const detail::ScoreLogits<T> logits{1 / config.temperature};
    auto frame = workspace.frame();
    const auto room = frame.template matrix<T>(std::same_as<Stored, T> ? 0 : tile, candidates_.value.cols());
    for (Index t = 0; t < count; t += tile) {
      const MatrixView<T> weights = block.cols(t, tile);
      const Index keys = std::min(tile, count - t);
      for (Index i = 0; keys < tile && i < block.rows(); ++i)
        std::fill(weights.row(i).begin() + keys, weights.row(i).end(), std::numeric_limits<T>::quiet_NaN());
      attention::detail::weigh_rows(logits, 0, block.rows(), 0, true, weights, static_cast<const T*>(nullptr),
                                    static_cast<const T*>(nullptr), sums, 0,
                                    static_cast<const attention::detail::Dropout<T>*>(nullptr));
      if (candidates_.value.cols() == 0) continue;
      add_values(weights.cols(0, keys),
                 attention::detail::read_rows<T, Stored>(candidates_.value, candidates_.value_scale, j + t, keys, room),
                 sums.value);
    }
  }

  // out += weights · values; what has no weight is not looked at, whatever is stored there.
  static void add_values(MatrixView<const T> weights, MatrixView<const T> values, MatrixView<T> out) {
    const simd::detail::LeftFactor<T> left{weights.data(), weights.stride(), 1};
    if (!attention::detail::all_finite(values)) {
      for (Index i = 0; i < out.rows(); ++i)
        for (Index j = 0; j < values.rows(); ++j)
          if (weights(i, j) != 0) simd::axpy(weights(i, j), values.row(j), out.row(i));
    } else if (out.rows() <= simd::detail::few_rows) {
      simd::detail::product_once<T>(left, values, out, simd::Product::accumulate);
    } else {
      simd::detail::product_in_place<T>(left, values, out, simd::Product::accumulate);
    }
  }

  // The best of query i get the scores of the exact keys, in the selection and in the softmax.
  void rescore(const Task& task, Index i, const detail::ScoreLogits<T>& logits, detail::Selections<T>& selections,
               const detail::Findings<T>& found, Workspace& workspace) const {
    simd::TopK<T>& best = found.best[std::size_t(i)];
    auto frame = workspace.frame();
    const auto ids = frame.template span<Index>(best.k());
    const auto stored = frame.template span<T>(best.k()), exact = frame.template span<T>(best.k());
    const auto count = std::size_t(best.finish(ids, stored));
    for (std::size_t p = 0; p < count; ++p)
      score_.scores(task.queries.rows(i, 1), exact_row(ids[p]), MatrixView<T>(&exact[p], 1, 1), workspace);
    selections.restart(i, std::min(task.config.k, best.k()));
    for (std::size_t p = 0; p < count; ++p) best.push(exact[p], ids[p]);
    if (task.config.softmax)
      replace(ids.first(count), stored, exact, i, logits.inverse_temperature, found.sums, workspace);
  }

  // Replaces the terms of some candidates in the sums of query i: sum += (e^(exact/τ−μ) − e^(stored/τ−μ)) (1, v_j).
  void replace(std::span<const Index> ids, std::span<const T> stored, std::span<const T> exact, Index i,
               T inverse_temperature, const Sums& sums, Workspace& workspace) const {
    using attention::detail::exp_of;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    T top = sums.mu(i);
    for (std::size_t p = 0; p < ids.size(); ++p) top = std::max(top, exact[p] * inverse_temperature);  // not NaN
    if (!std::isfinite(top)) return;  // ∞ has all the weight already, −∞ none
    if (top > sums.mu(i)) {
      if (sums.mu(i) != -infinity) sums.rescale(i, exp_of(sums.mu(i) - top));
      sums.mu(i) = top;
    }
    auto frame = workspace.frame();
    const auto room = frame.template matrix<T>(std::same_as<Stored, T> ? 0 : 1, candidates_.value.cols());
    const auto term = [&](T score) { return score == score ? exp_of(score * inverse_temperature - top) : T(0); };
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const T change = term(exact[p]) - term(stored[p]);
      sums.sum_row(i)[0] += change;
      if (candidates_.value.cols() == 0 || change == 0) continue;
      const auto value =
          attention::detail::read_rows<T, Stored>(candidates_.value, candidates_.value_scale, ids[p], 1, room);
      simd::axpy(change, value.row(0), sums.value.row(i));
    }
  }

  S score_;
  Candidates<Scalar, Stored> candidates_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
