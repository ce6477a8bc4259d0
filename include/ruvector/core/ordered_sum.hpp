// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Sums whose bits do not depend on who computed which part. Elements 0, 1, 2, … are cut into leaves of a fixed size by
// absolute index; a leaf is summed in index order; leaves are merged in one fixed binary tree over leaf numbers:
//
//     level 2   [0 1 2 3]         …        A node is merged from its two halves only, and an absent half adds nothing.
//     level 1   [0 1] [2 3] [4 5] …        So any set of leaves has one value, in whatever parts and order it arrived.
//     leaves     0 1   2 3   4 5  …

namespace ruvector::inline RUVECTOR_ABI {

/// Leaf size of sums over keys.
inline constexpr Index key_leaf = 4096;
/// Leaf size of sums over rows: samples, nodes, edges of a node.
inline constexpr Index row_leaf = 256;

/// How states are added: the identity and an addition that need not be associative in floating point.
template <class M, class State>
concept Monoid = requires(const M& monoid, State& state, const State& right) {
  { monoid.clear(state) } -> std::same_as<void>;  // state = identity, whatever it held before
  {
    monoid.merge(state, right)
    } -> std::same_as<void>;  // state = state ⊕ right; identity ⊕ right has the bits of right
};

/// Where an OrderedSum keeps the state of leaves first … first + 2^level − 1, or (level −1) of the begun leaf `first`.
template <class State>
struct OrderedSumSlot {
  State state{};    ///< the sum over these leaves
  Index first = 0;  ///< the number of the first leaf
  int level = 0;    ///< log₂ of the number of leaves, or −1
};

/// Slots that suffice for one contiguous range of `leaves` leaves, `total` included: O(log leaves).
[[nodiscard]] constexpr Index ordered_sum_slots(Index leaves) {
  return 2 * static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(leaves))) + 3;
}

/// A sum over any set of leaves, of which one may be incomplete: the states of the largest complete nodes of the tree.
/// `merge` unites two sums over disjoint leaves; it is exact, commutative and associative, and the empty sum is its
/// identity, so shards and threads may be united in any order.
///
/// `Storage` is a vector of slots, which grows, or a `std::span` of slots (of a Workspace frame, say), which does not:
/// then nothing allocates, and ConfigError is thrown when they do not suffice; copies of such a sum share its slots.
/// States are moved, never copied, so views of preallocated memory will do as states.
///
///     struct Plus {
///       void clear(double& sum) const { sum = 0; }
///       void merge(double& sum, const double& right) const { sum += right; }
///     };
///     OrderedSum<double, Plus> sum;
///     sum.add(0, n, [&](double& s, Index first, Index last) { for (Index i = first; i < last; ++i) s += x[i]; });
template <class State, Monoid<State> M, class Storage = std::vector<OrderedSumSlot<State>>>
class OrderedSum {
 public:
  /// The empty sum. Throws ConfigError unless leaf ≥ 1.
  explicit OrderedSum(M monoid = {}, Index leaf = key_leaf, Storage slots = {})
      : monoid_(std::move(monoid)), leaf_(leaf), slots_(std::move(slots)) {
    if (leaf < 1) [[unlikely]]
      throw_config_error("OrderedSum: leaf", ">= 1", static_cast<double>(leaf));
  }

  /// Elements a leaf.
  [[nodiscard]] Index leaf() const { return leaf_; }
  /// True if nothing was added.
  [[nodiscard]] bool empty() const { return count_ == 0; }
  /// The element with which `add` may go on in the incomplete leaf, or 0 if there is none.
  [[nodiscard]] Index open_end() const { return open_end_; }
  /// Forgets everything but the memory.
  void clear() { count_ = open_end_ = 0; }

  /// Adds elements first … last−1, at most a leaf at a time: `accumulate(state, i, j)` continues `state`, which holds
  /// the elements of this leaf before i, by i … j−1 in order. Throws ConfigError unless `first` is a multiple of the
  /// leaf size or equals open_end(), if an element has been added before, or if there would be a second incomplete
  /// leaf: then nothing was changed. If `accumulate` throws, the sum can only be cleared.
  template <std::invocable<State&, Index, Index> Accumulate>
  void add(Index first, Index last, Accumulate&& accumulate) {
    check_range(first, last);
    while (first < last) {
      const Index end = first + std::min(last - first, leaf_ - first % leaf_);
      const Index at = begin_leaf(first);
      accumulate(slot(at).state, first, end);
      if (end % leaf_ == 0) {
        slot(at).level = 0;
        open_end_ = 0;
        collapse(at);
      } else {
        open_end_ = end;
      }
      first = end;
    }
  }

  /// Adds all that `other` holds, its incomplete leaf too, which then may be continued here. Throws ConfigError if leaf
  /// sizes differ, if a leaf is in both, or if both have an incomplete one: then nothing was changed.
  void merge(const OrderedSum& other) {
    if (leaf_ != other.leaf_) [[unlikely]]
      throw_config_error("OrderedSum: leaf of a sum to merge", "equal leaf sizes", static_cast<double>(other.leaf_));
    if (open_end_ != 0 && other.open_end_ != 0) [[unlikely]]
      throw_config_error("OrderedSum: incomplete leaves", "at most one", 2);
    for (Index k = 0; k < other.count_; ++k) (void)place(other.slot(k).first, leaves(other.slot(k)));
    need(count_ + other.count_);
    for (Index k = 0; k < other.count_; ++k) {
      const Slot& from = other.slot(k);
      const Index at = insert(from.first);
      slot(at).level = from.level;
      monoid_.merge(slot(at).state, from.state);
      collapse(at);
    }
    if (other.open_end_ != 0) open_end_ = other.open_end_;
  }

  /// Calls f(state, first leaf, level) for what it is made of, in the order of keys: sums over 2^level leaves, and with
  /// level −1 over the incomplete one. For writing a sum down.
  template <class F>
  void for_each(F&& f) const {
    for (Index k = 0; k < count_; ++k) f(slot(k).state, slot(k).first, slot(k).level);
  }
  /// Whether `restore` would take this part.
  [[nodiscard]] bool can_restore(Index first, int level, Index open_end) const {
    if (level < incomplete || level > 62 || first < 0) return false;
    const Index count = Index(1) << std::max(level, 0);
    if (first % count != 0 || first > PTRDIFF_MAX / leaf_ - count) return false;
    if (level == incomplete && (open_end_ != 0 || open_end / leaf_ != first || open_end % leaf_ == 0)) return false;
    for (Index k = 0; k < count_; ++k)
      if (slot(k).first < first + count && first < slot(k).first + leaves(slot(k))) return false;
    return true;
  }
  /// Puts back a part that `for_each` gave: fill(state) is called with the identity. `open_end` matters for the
  /// incomplete leaf only. Throws ConfigError, and changes nothing, if a leaf is there already or the part is none of
  /// the tree.
  template <std::invocable<State&> Fill>
  void restore(Index first, int level, Index open_end, Fill&& fill) {
    if (!can_restore(first, level, open_end)) [[unlikely]]
      throw_config_error("OrderedSum: part to restore", "a node of the tree", static_cast<double>(first));
    const Index at = insert(first);
    fill(slot(at).state);
    slot(at).level = level;
    if (level == incomplete)
      open_end_ = open_end;
    else
      collapse(at);
  }

  /// out = the sum over everything added: the value of the tree, absent leaves left out, so it depends on nothing but
  /// the set of leaves. The sum may be continued afterwards. Not const: free slots serve as scratch. O(log n) merges.
  void total(State& out) {
    monoid_.clear(out);
    if (count_ == 0) return;
    if constexpr (growing) need(2 * count_);
    fold(0, count_, out, count_);
  }

 private:
  using Slot = OrderedSumSlot<State>;
  static_assert(std::same_as<std::remove_cvref_t<decltype(std::declval<Storage&>()[0])>, Slot>);
  static constexpr bool growing = requires(Storage s) { s.resize(1); };
  static constexpr int incomplete = -1;

  [[nodiscard]] Slot& slot(Index k) { return slots_[static_cast<std::size_t>(k)]; }
  [[nodiscard]] const Slot& slot(Index k) const { return slots_[static_cast<std::size_t>(k)]; }
  [[nodiscard]] static Index leaves(const Slot& s) { return Index(1) << std::max(s.level, 0); }

  void need(Index slots) {
    if (static_cast<Index>(slots_.size()) >= slots) return;
    if constexpr (growing)
      slots_.resize(static_cast<std::size_t>(slots));
    else
      throw_config_error("OrderedSum: slots", "at least " + std::to_string(slots), static_cast<double>(slots_.size()));
  }

  // Where a node of these leaves belongs among the slots 0 … count−1, which are sorted.
  [[nodiscard]] Index place(Index first, Index count) const {
    Index at = count_;
    while (at > 0 && slot(at - 1).first >= first) --at;
    const bool before = at > 0 && slot(at - 1).first + leaves(slot(at - 1)) > first;
    const bool after = at < count_ && first + count > slot(at).first;
    if (before || after) [[unlikely]]
      throw_config_error("OrderedSum: leaf", "each leaf once", static_cast<double>(first));
    return at;
  }

  void check_range(Index first, Index last) const {
    if (first < 0 || last < first) [[unlikely]]
      throw_shape_error("OrderedSum: range", "0 <= first <= last", std::to_string(first) + ", " + std::to_string(last));
    if (first == last) return;
    const bool continues = open_end_ != 0 && first == open_end_;
    if (first % leaf_ != 0 && !continues) [[unlikely]]
      throw_config_error("OrderedSum: first element", "a multiple of " + std::to_string(leaf_),
                         static_cast<double>(first));
    if (last % leaf_ != 0 && open_end_ != 0 && !continues) [[unlikely]]
      throw_config_error("OrderedSum: incomplete leaves", "at most one", 2);
    const Index begin = first / leaf_ + (continues ? 1 : 0);
    const Index end = (last - 1) / leaf_ + 1;
    if (begin < end) (void)place(begin, end - begin);
  }

  // The slot of the leaf that holds element `first`, begun now or before.
  [[nodiscard]] Index begin_leaf(Index first) {
    if (first % leaf_ == 0) {
      const Index at = insert(first / leaf_);
      slot(at).level = incomplete;
      return at;
    }
    Index at = 0;
    while (slot(at).level != incomplete) ++at;
    return at;
  }

  [[nodiscard]] Index insert(Index first) {
    need(count_ + 1);
    const Index at = place(first, 1);
    monoid_.clear(slot(count_).state);
    slot(count_).first = first;
    std::rotate(&slot(at), &slot(count_), &slot(count_) + 1);
    ++count_;
    return at;
  }

  // Merges the node with its sibling, their parent with its own, and so on.
  void collapse(Index at) {
    while (slot(at).level >= 0) {
      const int level = slot(at).level;
      const Index sibling = slot(at).first ^ (Index(1) << level);
      if (sibling < slot(at).first) --at;  // now `at` is the left one, if both are there
      if (at < 0 || at + 1 >= count_) return;
      Slot& left = slot(at);
      Slot& right = slot(at + 1);
      if (left.level != level || right.level != level || (left.first ^ right.first) != Index(1) << level) return;
      monoid_.merge(left.state, right.state);
      ++left.level;
      std::rotate(&right, &right + 1, &slot(count_ - 1) + 1);
      --count_;
    }
  }

  // out = the nodes lo … hi−1, of which the two halves of their smallest common ancestor are folded by themselves.
  // Scratch slots from `scratch` on; one suffices where the nodes are contiguous.
  void fold(Index lo, Index hi, State& out, Index scratch) {
    if (hi - lo == 1) {
      monoid_.clear(out);
      monoid_.merge(out, slot(lo).state);
      return;
    }
    // Neighbours part at the level of the highest bit in which they differ: the halves meet at the highest of these.
    Index middle = lo + 1;
    for (Index k = lo + 2; k < hi; ++k)
      if ((slot(k - 1).first ^ slot(k).first) > (slot(middle - 1).first ^ slot(middle).first)) middle = k;
    if (hi - middle == 1) {
      fold(lo, middle, out, scratch);
      monoid_.merge(out, slot(middle).state);
      return;
    }
    need(scratch + 1);
    fold(middle, hi, out, scratch);
    State& left = slot(scratch).state;
    fold(lo, middle, left, scratch + 1);
    monoid_.merge(left, out);
    std::swap(left, out);
  }

  M monoid_;
  Index leaf_;
  Storage slots_;  // the first count_ hold the nodes, in order; the others are free
  Index count_ = 0;
  Index open_end_ = 0;  // the element after the last of the incomplete leaf; 0: there is none
};

namespace detail {

template <class State, class Merge>
struct ValueMonoid {
  const State& identity;
  const Merge& add;
  void clear(State& state) const { state = identity; }
  void merge(State& state, const State& right) const { add(state, right); }
};

// The leaves are shared as chunks of 2^k leaves, each of which one worker sums by itself.
struct OrderedReduceShape {
  Index chunk;  // elements a chunk
  Index chunks;
  Index worker_slots;  // of one worker, and
  Index slots;         // of all: the results of the chunks, their sum, the workers

  OrderedReduceShape(Index n, Index leaf, Index concurrency) {
    if (n < 0 || leaf < 1) [[unlikely]]
      throw_config_error("ordered_reduce", "n >= 0 and leaf >= 1", static_cast<double>(n < 0 ? n : leaf));
    const Index leaves = n / leaf + (n % leaf != 0);
    const Index most = concurrency == 1 ? 1 : 4 * concurrency;  // more than one a worker, since they differ in speed
    Index size = 1;
    while (leaves / size + (leaves % size != 0) > most) size *= 2;
    chunk = size < leaves ? size * leaf : std::max(n, Index(1));  // the second cannot overflow
    chunks = leaves / size + (leaves % size != 0);
    worker_slots = ordered_sum_slots(size);
    slots = chunks + ordered_sum_slots(chunks) + concurrency * worker_slots;
  }
};

}  // namespace detail

/// The number of slots that `ordered_reduce` of n elements asks for. Throws ConfigError unless n ≥ 0 and leaf ≥ 1.
[[nodiscard]] inline Index ordered_reduce_slots(Index n, Index leaf, Index concurrency) {
  return detail::OrderedReduceShape(n, leaf, concurrency).slots;
}

/// out = the sum over elements 0 … n−1, shared among workers: the same bits for any number of them.
/// `accumulate(state, i, j, worker)` adds elements i … j−1, a whole leaf or the last, to a cleared state. The slots are
/// scratch; their states must be fit for `monoid.clear`. Throws ConfigError where there are fewer than
/// ordered_reduce_slots(n, leaf, executor.concurrency()), and what `accumulate` throws. Allocates nothing.
template <class State, Monoid<State> M, std::invocable<State&, Index, Index, Index> Accumulate, Executor E>
void ordered_reduce(Index n, Index leaf, const M& monoid, std::span<OrderedSumSlot<std::type_identity_t<State>>> slots,
                    State& out, Accumulate&& accumulate, E&& executor) {
  using Slots = std::span<OrderedSumSlot<State>>;
  const Index concurrency = executor.concurrency();
  const detail::OrderedReduceShape shape(n, leaf, concurrency);
  if (static_cast<Index>(slots.size()) < shape.slots) [[unlikely]]
    throw_config_error("ordered_reduce: slots", "at least " + std::to_string(shape.slots),
                       static_cast<double>(slots.size()));
  const auto take = [&slots](Index count) {
    const Slots taken = slots.first(static_cast<std::size_t>(count));
    slots = slots.subspan(static_cast<std::size_t>(count));
    return taken;
  };
  const Slots results = take(shape.chunks);
  const Slots top = take(ordered_sum_slots(shape.chunks));
  const auto result = [&](Index first) -> State& {
    return results[static_cast<std::size_t>(first / shape.chunk)].state;
  };

  executor.parallel_for(shape.chunks, [&](Index chunk, Index worker) {
    const auto own = slots.subspan(static_cast<std::size_t>(worker * shape.worker_slots),
                                   static_cast<std::size_t>(shape.worker_slots));
    OrderedSum<State, M, Slots> sum(monoid, leaf, own);
    const Index first = chunk * shape.chunk;
    sum.add(first, first + std::min(shape.chunk, n - first),
            [&](State& state, Index i, Index j) { accumulate(state, i, j, worker); });
    sum.total(result(first));
  });

  // A chunk is a node of the tree, so the chunks are the leaves of what is left of it.
  OrderedSum<State, M, Slots> sum(monoid, shape.chunk, top);
  sum.add(0, n, [&](State& state, Index first, Index) { std::swap(state, result(first)); });
  sum.total(out);
}

/// The sum over elements 0 … n−1 of `leaf_function(i, j)`, which returns the sum over i … j−1 as a State, at most
/// `leaf` elements at a time; `merge(left, right)` adds `right` to `left` in place. The same bits for any number of
/// workers:
///
///     const double sum = ordered_reduce(n, row_leaf, 0.0, sum_of_rows, [](double& a, double b) { a += b; }, pool);
template <std::copyable State, std::invocable<Index, Index> LeafFunction, std::invocable<State&, const State&> Merge,
          Executor E = Serial>
[[nodiscard]] State ordered_reduce(Index n, Index leaf, const State& identity, LeafFunction&& leaf_function,
                                   const Merge& merge, E&& executor = Serial{}) {
  std::vector<OrderedSumSlot<State>> slots(
      static_cast<std::size_t>(ordered_reduce_slots(n, leaf, executor.concurrency())));
  State out = identity;
  ordered_reduce(
      n, leaf, detail::ValueMonoid<State, Merge>{identity, merge}, slots, out,
      [&](State& state, Index i, Index j, Index) { state = leaf_function(i, j); }, executor);
  return out;
}

}  // namespace ruvector::inline RUVECTOR_ABI
