// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/train/concepts.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::train {

/// Mean and variance of the columns of rows that come one by one, in double, without cancellation. Source: Welford
/// 1962.
class ColumnStatistics {
 public:
  /// Of rows of d elements; none yet.
  explicit ColumnStatistics(Index d) : mean_(d), squares_(d) {}

  /// One row more. Throws ShapeError.
  template <Real T>
  void add(std::span<const T> row) {
    check_shape("ColumnStatistics: row", mean_.size(), Index(row.size()));
    ++count_;
    for (Index j = 0; j < mean_.size(); ++j) {
      const double x = double(row[std::size_t(j)]), apart = x - mean_[j];
      mean_[j] += apart / double(count_);
      squares_[j] += apart * (x - mean_[j]);
    }
  }
  /// Forgets all rows.
  void clear() {
    count_ = 0;
    std::ranges::fill(mean_, 0.0);
    std::ranges::fill(squares_, 0.0);
  }

  /// Number of rows.
  [[nodiscard]] Index count() const { return count_; }
  /// Mean of each column.
  [[nodiscard]] std::span<const double> mean() const { return mean_; }
  /// Standard deviation of column j, with n − 1; 0 of fewer than two rows.
  [[nodiscard]] double deviation(Index j) const { return count_ < 2 ? 0 : std::sqrt(squares_[j] / double(count_ - 1)); }

  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("count", self.count_);
    visit("mean", self.mean_);
    visit("squares", self.squares_);
  }

 private:
  Index count_ = 0;
  Vector<double> mean_, squares_;  // Σ (x − mean)²
};

/// Sizes of a ReplayBuffer.
struct ReplayConfig {
  Index capacity = 1000;  ///< rows of the reservoir, >= 1
  Index dim = 0;          ///< elements a row
  Index window = 100;     ///< the latest rows, kept apart to see shifts of their distribution, >= 1
};

/// Rows of the past to learn from again: a reservoir in which every row that ever came is with equal probability, and
/// beside it the latest rows, so that a shift of what comes can be seen (the reservoir is in no order of time). Each
/// row has a tag: its label, or where the rest of it is. Memory is taken once. Source: Vitter 1985, algorithm R.
template <Real T>
class ReplayBuffer {
 public:
  /// Empty; the generator decides which rows stay. Throws ShapeError, ConfigError.
  ReplayBuffer(const ReplayConfig& config, const Rng& rng)
      : rows_(checked(config.capacity, "ReplayBuffer: capacity"), config.dim),
        tags_(config.capacity),
        window_(checked(config.window, "ReplayBuffer: window"), config.dim),
        statistics_(config.dim),
        generator_(rng.state()) {}

  /// A new row. Throws ShapeError.
  void add(std::span<const T> row, Index tag) {
    statistics_.add(row);
    std::ranges::copy(row, window_.row((seen() - 1) % window_.rows()).begin());
    Index slot = seen() - 1;
    if (slot >= rows_.rows()) {
      Rng rng(generator_);
      slot = rng.below(seen());
      generator_ = rng.state();
      if (slot >= rows_.rows()) return;
    }
    std::ranges::copy(row, rows_.row(slot).begin());
    tags_[slot] = tag;
  }

  /// Rows in the reservoir.
  [[nodiscard]] Index size() const { return std::min(seen(), rows_.rows()); }
  /// Rows that ever came.
  [[nodiscard]] Index seen() const { return statistics_.count(); }
  /// Row i of the reservoir.
  [[nodiscard]] std::span<const T> row(Index i) const { return rows_.row(i); }
  /// Its tag.
  [[nodiscard]] Index tag(Index i) const { return tags_[i]; }
  /// Mean and variance of all rows that ever came.
  [[nodiscard]] const ColumnStatistics& statistics() const { return statistics_; }

  /// Fills `out` with different rows of the reservoir, each set of them equally likely, in increasing order. Returns
  /// how many there are: fewer than asked for only if the reservoir holds fewer. O(size). Source: Knuth, algorithm S.
  Index sample(std::span<Index> out, Rng& rng) const {
    const Index wanted = std::min(Index(out.size()), size());
    Index taken = 0;
    for (Index i = 0; taken < wanted; ++i)
      if (rng.below(size() - i) < wanted - taken) out[std::size_t(taken++)] = i;
    return wanted;
  }

  /// How far the latest rows are from all that came: the mean over columns of |mean of the window − mean|/deviation,
  /// columns that do not vary left out. 0 until the window is full. O(window·dim), no allocation.
  [[nodiscard]] double shift() const {
    if (seen() < window_.rows()) return 0;
    double sum = 0;
    Index columns = 0;
    for (Index j = 0; j < window_.cols(); ++j) {
      const double deviation = statistics_.deviation(j);
      if (deviation <= 1e-8) continue;
      double mean = 0;
      for (Index i = 0; i < window_.rows(); ++i) mean += double(window_(i, j));
      sum += std::abs(mean / double(window_.rows()) - statistics_.mean()[std::size_t(j)]) / deviation;
      ++columns;
    }
    return columns == 0 ? 0 : sum / double(columns);
  }

  /// Forgets all rows, not the generator.
  void clear() { statistics_.clear(); }

  /// Names what it remembers.
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("rows", self.rows_);
    visit("tags", self.tags_);
    visit("window", self.window_);
    visit("statistics", self.statistics_);
    visit("generator", self.generator_);
  }

 private:
  [[nodiscard]] static Index checked(Index count, const char* what) {
    if (count < 1) [[unlikely]]
      throw_config_error(what, ">= 1", double(count));
    return count;
  }

  Matrix<T> rows_;
  Vector<Index> tags_;
  Matrix<T> window_;  // row k mod window of the rows that came
  ColumnStatistics statistics_;
  Rng::State generator_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::train
