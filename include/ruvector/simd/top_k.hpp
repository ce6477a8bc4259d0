// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/simd/arch.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::simd {

/// A candidate of `TopK`: a score as an integer that orders like it, and an id.
template <Real T>
struct Ranked {
  detail::Word<T> key;  ///< larger is better; no NaN can reach a comparison
  Index id;             ///< the smaller of two ids wins a tie

  /// The better candidate comes first: a total order.
  [[nodiscard]] friend bool operator<(const Ranked& a, const Ranked& b) {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
  }
};

/// The k candidates with the largest scores, ties to the smaller id. NaN counts as absent: it is never kept. −0 equals
/// 0 and ±∞ are ordinary scores. What is kept depends on the set of candidates alone, not on their order or on how they
/// were divided among selections that are merged later.
///
/// Candidates better than the k-th best so far go to a buffer; when it is full, the k best stay (nth_element) and the
/// threshold rises. n candidates cost O(n) comparisons, vectorised, and for scores in random order about k ln(n/k)
/// more. The memory is the caller's: nothing is allocated.
template <Real T>
class TopK {
 public:
  /// Elements of the buffer for k.
  [[nodiscard]] static constexpr Index buffer_size(Index k) { return 2 * k + smallest_buffer; }

  /// Selects the k ≥ 0 best. `buffer` has at least `buffer_size(k)` elements and outlives this object.
  TopK(Index k, std::span<Ranked<T>> buffer) : buffer_(buffer.data()), capacity_(Index(buffer.size())), k_(k) {
    RUVECTOR_ASSERT(k >= 0 && Index(buffer.size()) >= buffer_size(k));
  }

  /// Offers one candidate.
  void push(T score, Index id) noexcept {
    // Written so that NaN fails the test, and that a tie with the threshold is decided by the id.
    if (!(score >= threshold_)) return;
    const Ranked<T> candidate{key_of(score), id};
    if (full_ && !(candidate < worst_)) return;
    append(candidate);
  }

  /// Offers candidates first_id, first_id + 1, … with these scores.
  void push(std::span<const T> scores, Index first_id) noexcept {
    constexpr Index width = lanes<T>;
    const Index n = Index(scores.size());
    Index i = 0;
    constexpr Index at_once = 4 * width;
    for (; i + at_once <= n; i += at_once) {
      const Batch<T> threshold(threshold_);
      const T* from = scores.data() + i;
      Mask<T> candidates[4];
      for (int v = 0; v < 4; ++v) candidates[v] = load(from + v * width) >= threshold;
      if (any((candidates[0] | candidates[1]) | (candidates[2] | candidates[3]))) [[unlikely]]
        for (int v = 0; v < 4; ++v) push_lanes(lane_bits(candidates[v]), from + v * width, first_id + i + v * width);
    }
    for (; i + width <= n; i += width) {
      const Mask<T> candidates = load(scores.data() + i) >= Batch<T>(threshold_);
      if (any(candidates)) [[unlikely]]
        push_lanes(lane_bits(candidates), scores.data() + i, first_id + i);
    }
    for (; i < n; ++i) push(scores[static_cast<std::size_t>(i)], first_id + i);
  }

  /// Offers what another selection has kept.
  void merge(const TopK& other) noexcept {
    for (Index i = 0; i < other.size_; ++i) push(score_of(other.buffer_[i].key), other.buffer_[i].id);
  }

  /// How many it keeps.
  [[nodiscard]] Index k() const { return k_; }

  /// The score below which a candidate is not kept: −∞ until k candidates are known. It lags behind the exact k-th
  /// best.
  [[nodiscard]] T threshold() const { return threshold_; }

  /// Writes the best candidates, best first, and returns their number, at most k; ids and scores beyond are −1 and −∞.
  /// Both have k elements. The selection can go on afterwards.
  Index finish(std::span<Index> ids, std::span<T> scores) noexcept {
    RUVECTOR_ASSERT(Index(ids.size()) == k_ && Index(scores.size()) == k_);
    if (size_ > k_) prune();
    std::sort(buffer_, buffer_ + size_);
    for (Index i = 0; i < k_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      ids[at] = i < size_ ? buffer_[i].id : -1;
      scores[at] = i < size_ ? score_of(buffer_[i].key) : -std::numeric_limits<T>::infinity();
    }
    return size_;
  }

 private:
  using Word = detail::Word<T>;
  static constexpr Index smallest_buffer = 64;
  static constexpr Word sign = detail::sign_bit<T>;

  // Negative numbers order backwards by their bits; flipping them, and the sign of the others, orders all. +0 joins −0.
  [[nodiscard]] static Word key_of(T score) {
    const Word bits = std::bit_cast<Word>(score + T(0));
    return (bits & sign) != 0 ? Word(~bits) : Word(bits | sign);
  }
  [[nodiscard]] static T score_of(Word key) {
    return std::bit_cast<T>((key & sign) != 0 ? Word(key ^ sign) : Word(~key));
  }

  void push_lanes(std::uint32_t candidates, const T* scores, Index first_id) noexcept {
    for (; candidates != 0; candidates &= candidates - 1) {
      const int lane = std::countr_zero(candidates);
      push(scores[lane], first_id + lane);
    }
  }

  void append(const Ranked<T>& candidate) noexcept {
    if (k_ == 0) return;
    buffer_[size_++] = candidate;
    if (size_ == capacity_) [[unlikely]]
      prune();
  }

  // Keeps the k best and raises the threshold to the worst of them; size_ > k_ > 0.
  void prune() noexcept {
    std::nth_element(buffer_, buffer_ + (k_ - 1), buffer_ + size_);
    size_ = k_;
    full_ = true;
    worst_ = buffer_[k_ - 1];
    threshold_ = score_of(worst_.key);
  }

  Ranked<T>* buffer_;
  Index capacity_;
  Index k_;
  Index size_ = 0;
  bool full_ = false;  // k candidates are known, and
  Ranked<T> worst_{};  // this is the last of them (when the buffer was pruned)
  T threshold_ = -std::numeric_limits<T>::infinity();
};

}  // namespace ruvector::inline RUVECTOR_ABI::simd
