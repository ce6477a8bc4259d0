// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI {

/// Runs independent tasks. The library starts no thread by itself: parallel overloads take an executor.
template <class E>
concept Executor = requires(E& e, Index n, void (&task)(Index, Index)) {
  { e.concurrency() } -> std::convertible_to<Index>;  // workers: `worker` of a task is below it
  { e.parallel_for(n, task) } -> std::same_as<void>;  // task(index, worker) for all 0 <= index < n, in any order
};

/// The default: runs tasks one after the other, in order, on the calling thread.
struct Serial {
  /// One: the caller.
  [[nodiscard]] Index concurrency() const { return 1; }
  /// Calls task(index, 0) for 0 <= index < n in order. What a task throws arrives at the caller at once.
  template <class Task>
  void parallel_for(Index n, Task&& task) {
    for (Index i = 0; i < n; ++i) task(i, Index(0));
  }
};

namespace detail {

inline void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// How long a thread spins before it sleeps. Spinning pays where the wait is shorter than going to sleep and waking up
/// (about 50 µs together on a virtual machine) and burns a core where it is not, so the last waits decide.
struct SpinLimit {
  static constexpr int least = 32;                               // ~1 µs
  static constexpr int most = 2048;                              // ~40 µs
  static constexpr auto worth = std::chrono::microseconds(100);  // a sleep below this was not worth falling asleep
  int turns = most;                                              // 0: never spin

  void slept(std::chrono::steady_clock::duration time) {
    if (turns != 0) turns = time < worth ? most : std::max(turns / 2, least);
  }
};

/// Where threads wait for a condition on atomic variables: they spin, then sleep. After a change `notify` costs one
/// load unless somebody sleeps. (Not std::atomic::wait: libstdc++ keeps its waiters in a global table.)
class WaitingRoom {
 public:
  /// Returns when `ready()`, which may read sequentially consistent atomics only.
  template <class Condition>
  void wait(SpinLimit& spin, Condition ready) {
    for (;;) {
      int turn = 0;
      do {
        if (ready()) return;
        cpu_pause();
      } while (++turn < spin.turns);
      spin.slept(sleep(ready));
    }
  }
  /// To be called after each change that may make `ready()` true.
  void notify() {
    if (sleepers_.load() == 0) return;
    { const std::lock_guard lock(mutex_); }  // a sleeper that has just found `ready` false is now in its wait
    changed_.notify_all();
  }

 private:
  // Ends at the next `notify`, even one that came too late for `ready`: then more is probably on its way, so spin
  // again.
  template <class Condition>
  [[nodiscard]] std::chrono::steady_clock::duration sleep(Condition ready) {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    // Announced before `ready` is looked at, while the notifier looks after its change: one sees the other.
    sleepers_.fetch_add(1);
    if (!ready()) changed_.wait(lock);
    sleepers_.fetch_sub(1);
    return std::chrono::steady_clock::now() - start;
  }

  std::atomic<int> sleepers_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace detail

/// `threads` − 1 threads and the caller, who works too. Tasks are handed out one by one, so they may differ in length;
/// a task should take a microsecond or more. A call allocates nothing; between calls the threads spin for some
/// microseconds, then sleep.
///
/// Any thread may call `parallel_for` at any time: a call made while another one runs, from inside a task or from
/// another thread, runs its tasks in order on its own thread, as worker 0. So give each call a workspace of its own.
class ThreadPool {
 public:
  /// Starts the threads. Throws ConfigError unless 1 ≤ threads ≤ 65536, std::system_error where the system has no more.
  explicit ThreadPool(Index threads) : ThreadPool(Empty{}, threads) {
    // The delegated constructor is done, so if a thread cannot be started the destructor ends those that run.
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (Index worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  /// Ends the threads. No call may be running.
  ~ThreadPool() {
    state_.fetch_or(stop);
    work_.notify();
    workers_.clear();  // joins, while everything the threads look at is still alive
  }

  /// The `threads` of the constructor.
  [[nodiscard]] Index concurrency() const { return threads_; }

  /// Calls task(index, worker) once for each 0 ≤ index < n, in any order; `worker` < concurrency() is a number that no
  /// two tasks running at a time share. Returns when all have ended. If tasks throw, no further ones are started, and
  /// when the running ones have ended, the exception of the smallest index is rethrown; the pool stays usable.
  template <class Task>
  void parallel_for(Index n, Task&& task) {
    if (n <= 1 || threads_ == 1 || busy_.exchange(true, std::memory_order_acquire))
      return Serial{}.parallel_for(n, task);
    auto call = [&task](Index index, Index worker) { task(index, worker); };
    call_ = [](void* context, Index index, Index worker) { (*static_cast<decltype(call)*>(context))(index, worker); };
    context_ = &call;
    run(n);
  }

 private:
  struct Empty {};

  // One word, so that a thread joins a job or misses it in one step: [job number | stop | open | threads in the job].
  static constexpr std::uint64_t open = std::uint64_t(1) << 32;
  static constexpr std::uint64_t stop = open << 1;
  static constexpr std::uint64_t next_job = stop << 1;
  static constexpr std::uint64_t joined = open - 1;

  ThreadPool(Empty, Index threads) : threads_(threads) {
    if (threads < 1 || threads > 65536) [[unlikely]]
      throw_config_error("ThreadPool: threads", "1 to 65536", static_cast<double>(threads));
    // With more threads than cores a spinning one would keep a working one from its core.
    if (threads > static_cast<Index>(std::thread::hardware_concurrency())) caller_spin_.turns = 0;
  }

  void run(Index n) {
    tasks_ = static_cast<std::uint64_t>(n);
    next_.store(0, std::memory_order_relaxed);
    state_.store((state_.load() + next_job) | open);
    work_.notify();
    perform_tasks(0);
    // Threads that have not come by now are not waited for.
    state_.fetch_and(~open);
    left_.wait(caller_spin_, [this] { return (state_.load() & joined) == 0; });
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    busy_.store(false, std::memory_order_release);
    if (failure) std::rethrow_exception(failure);
  }

  void serve(Index worker) {
    detail::SpinLimit spin = {.turns = caller_spin_.turns};
    std::uint64_t last_job = 0;
    for (;;) {
      std::uint64_t state = 0;
      work_.wait(spin, [&] {
        state = state_.load();
        return (state & stop) || ((state & open) && state / next_job != last_job);
      });
      if (state & stop) return;
      if (!state_.compare_exchange_strong(state, state + 1)) continue;
      last_job = state / next_job;
      perform_tasks(worker);
      if (((state_.fetch_sub(1) - 1) & (open | joined)) == 0) left_.notify();
    }
  }

  void perform_tasks(Index worker) {
    for (;;) {
      const std::uint64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= tasks_) return;
      perform(static_cast<Index>(index), worker);
    }
  }

  void perform(Index index, Index worker) {
#ifdef __cpp_exceptions
    try {
      call_(context_, index, worker);
    } catch (...) {
      next_.store(tasks_, std::memory_order_relaxed);
      const std::lock_guard lock(failure_mutex_);
      if (!failure_ || index < failure_index_) {
        failure_ = std::current_exception();
        failure_index_ = index;
      }
    }
#else
    call_(context_, index, worker);
#endif
  }

  const Index threads_;
  detail::SpinLimit caller_spin_;
  std::atomic<bool> busy_ = false;

  // The job, written while no thread is in one.
  void (*call_)(void* context, Index index, Index worker) = nullptr;
  void* context_ = nullptr;
  std::uint64_t tasks_ = 0;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  [[maybe_unused]] Index failure_index_ = 0;

  alignas(detail::cache_line) std::atomic<std::uint64_t> state_ = 0;
  alignas(detail::cache_line) std::atomic<std::uint64_t> next_ = 0;  // the next task; unsigned: it runs past tasks_
  alignas(detail::cache_line) detail::WaitingRoom work_;             // threads waiting for a job
  detail::WaitingRoom left_;                                         // the caller, waiting for threads in the job
  std::vector<std::jthread> workers_;
};

}  // namespace ruvector::inline RUVECTOR_ABI
