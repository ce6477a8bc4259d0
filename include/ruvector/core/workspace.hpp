// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI {

/// What a caller may want to know after a call, beside its result.
struct Diagnostics {
  Index projected_points = 0;  ///< points that were on or over the boundary of the ball and were moved inside
};

/// Scratch memory: a bump arena, 64-byte aligned, reused from call to call (fresh memory costs far more than the
/// arithmetic done on it). The second identical call of any function that takes a workspace allocates nothing.
/// One a thread: `worker(i)` is a workspace of its own for worker i of an executor. Not copyable.
class Workspace {
 public:
  /// A scope of temporaries: what is taken from it is given back when it ends. Frames nest like the calls they serve.
  class Frame {
   public:
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    /// Gives back what was taken from this frame.
    ~Frame() {
      workspace_.block_ = block_;
      workspace_.used_ = used_;
    }
    /// [n] uninitialised elements.
    template <class T>
    [[nodiscard]] std::span<T> span(Index n) {
      static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
      const Index bytes = checked_size("Workspace: span", n, 1, Index(sizeof(T))) * Index(sizeof(T));
      return {static_cast<T*>(workspace_.take(bytes)), static_cast<std::size_t>(n)};
    }
    /// [rows×cols] uninitialised elements, contiguous.
    template <class T>
    [[nodiscard]] MatrixView<T> matrix(Index rows, Index cols) {
      const Index n = checked_size("Workspace: matrix", rows, cols, Index(sizeof(T)));
      return {span<T>(n).data(), rows, cols};
    }

   private:
    friend class Workspace;
    explicit Frame(Workspace& workspace) : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {}
    Workspace& workspace_;
    std::size_t block_;
    Index used_;
  };

  /// Empty: memory comes with the first use.
  Workspace() = default;
  /// Takes over the memory. No frame may be open.
  ///@{
  Workspace(Workspace&&) = default;
  Workspace& operator=(Workspace&&) = default;
  ///@}

  /// Opens a scope of temporaries.
  [[nodiscard]] Frame frame() { return Frame(*this); }

  /// The workspace of worker i. Call `reserve_workers` before sharing this object among threads. Throws ConfigError
  /// unless 0 ≤ i < 65536.
  [[nodiscard]] Workspace& worker(Index i) {
    if (i < 0 || i >= most_workers) [[unlikely]]
      throw_config_error("Workspace: worker", "0 to 65535", static_cast<double>(i));
    reserve_workers(i + 1);
    return *workers_[static_cast<std::size_t>(i)];
  }
  /// Makes sure that `worker(0…count−1)` exist, so that threads only look them up. Throws ConfigError if count > 65536.
  void reserve_workers(Index count) {
    if (count > most_workers) [[unlikely]]
      throw_config_error("Workspace: workers", "at most 65536", static_cast<double>(count));
    while (static_cast<Index>(workers_.size()) < count) workers_.push_back(std::make_unique<Workspace>());
  }

  /// What the calls with this workspace have counted. Workers have their own.
  [[nodiscard]] Diagnostics& diagnostics() { return diagnostics_; }

  /// Bytes held, workers included.
  [[nodiscard]] Index capacity() const {
    Index bytes = 0;
    for (const Block& block : blocks_) bytes += block.size;
    for (const auto& worker : workers_) bytes += worker->capacity();
    return bytes;
  }

 private:
  static constexpr Index most_workers = 65536;  // as ThreadPool allows

  struct Block {
    std::unique_ptr<std::byte[], detail::AlignedDelete> memory;
    Index size;
  };

  [[nodiscard]] void* take(Index bytes) {
    constexpr Index line = Index(detail::cache_line);
    if (bytes > PTRDIFF_MAX - line) [[unlikely]]
      throw_shape_error("Workspace", "bytes below 2^63", std::to_string(bytes));
    bytes = (bytes + line - 1) / line * line;
    while (block_ < blocks_.size() && blocks_[block_].size - used_ < bytes) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) grow(bytes);
    void* memory = blocks_[block_].memory.get() + used_;
    used_ += bytes;
    return memory;
  }

  // Small requests share blocks, large ones get their own, so that hardly more is held than was asked for.
  [[gnu::cold, gnu::noinline]] void grow(Index bytes) {
    constexpr Index smallest = Index(1) << 12, largest = Index(1) << 15;
    const Index size = std::max(bytes, blocks_.empty() ? smallest : std::min(largest, 2 * blocks_.back().size));
    blocks_.push_back({detail::aligned_array<std::byte>(size), size});
  }

  std::vector<Block> blocks_;
  std::size_t block_ = 0;  // the block being filled, and
  Index used_ = 0;         // its bytes in use
  std::vector<std::unique_ptr<Workspace>> workers_;
  Diagnostics diagnostics_;
};

}  // namespace ruvector::inline RUVECTOR_ABI
