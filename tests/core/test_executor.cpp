// SPDX-License-Identifier: MIT
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/ordered_sum.hpp>
#include <ruvector/core/random.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace executor_test {
namespace {

using ruvector::ConfigError;
using ruvector::Index;
using ruvector::Matrix;
using ruvector::Rng;
using ruvector::Serial;
using ruvector::ThreadPool;

// A user's own executor needs these two members and nothing else.
struct Backwards {
  int concurrency() const { return 1; }
  void parallel_for(Index n, auto&& task) {
    while (n-- > 0) task(n, Index(0));
  }
};
struct WithoutConcurrency {
  void parallel_for(Index, auto&&) {}
};

static_assert(ruvector::Executor<Serial> && ruvector::Executor<ThreadPool> && ruvector::Executor<Backwards>);
static_assert(!ruvector::Executor<WithoutConcurrency> && !ruvector::Executor<int>);
static_assert(!std::copyable<ThreadPool> && !std::movable<ThreadPool>);

const Index thread_counts[] = {1, 2, 3, 4, 7, 16};

struct Plus {
  void clear(double& sum) const { sum = 0; }
  void merge(double& sum, double right) const { sum += right; }
};

// Only what a test needs to know which task threw.
struct Thrown {
  Index index;
};

TEST_CASE("executor: Serial runs the tasks in order") {
  std::vector<Index> order;
  Serial{}.parallel_for(5, [&](Index i, Index worker) { order.push_back(10 * i + worker); });
  CHECK(order == std::vector<Index>{0, 10, 20, 30, 40});
  CHECK_THROWS_AS(Serial{}.parallel_for(3, [](Index i, Index) { throw Thrown{i}; }), Thrown);
}

TEST_CASE("executor: every index runs once, on a worker that is below the concurrency and not shared") {
  for (const Index threads : thread_counts) {
    ThreadPool pool(threads);
    CHECK(pool.concurrency() == threads);
    for (const Index n : {Index(-1), Index(0), Index(1), Index(2), Index(3), Index(17), Index(1000)}) {
      CAPTURE(threads, n);
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(std::max<Index>(n, 0)));
      std::vector<std::atomic<int>> on_worker(static_cast<std::size_t>(threads));
      std::atomic<int> shared = 0;
      pool.parallel_for(n, [&](Index i, Index worker) {
        if (on_worker.at(static_cast<std::size_t>(worker)).fetch_add(1) != 0) ++shared;
        ++runs.at(static_cast<std::size_t>(i));
        on_worker[static_cast<std::size_t>(worker)].fetch_sub(1);
      });
      CHECK(shared == 0);
      CHECK(std::all_of(runs.begin(), runs.end(), [](const auto& count) { return count == 1; }));
    }
  }
}

TEST_CASE("executor: tasks that wait for each other run at the same time") {
  ThreadPool pool(3);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::atomic<int> arrived = 0;
    pool.parallel_for(3, [&](Index, Index) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
    CHECK(arrived == 3);
    // Long enough for the threads to fall asleep: the next call has to wake them.
    if (repeat % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_CASE("executor: what the k-th task throws arrives at the caller, for all k, and the pool goes on") {
  constexpr Index n = 40;
  for (const Index threads : thread_counts) {
    ThreadPool pool(threads);
    for (Index k = 0; k < n; ++k) {
      CAPTURE(threads, k);
      std::atomic<Index> started = 0;
      Index caught = -1;
      try {
        pool.parallel_for(n, [&](Index i, Index) {
          ++started;
          if (i == k) throw Thrown{i};
        });
      } catch (const Thrown& thrown) {
        caught = thrown.index;
      }
      CHECK(caught == k);
      CHECK(started > k);
      std::atomic<Index> sum = 0;
      pool.parallel_for(n, [&](Index i, Index) { sum += i; });
      CHECK(sum == n * (n - 1) / 2);
    }
  }
}

TEST_CASE("executor: after an exception no further task is started, and running ones are waited for") {
  ThreadPool pool(2);
  constexpr Index n = 1'000'000'000;  // would take minutes
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::atomic<bool> slow_began = false, slow_ended = false;
    bool ended_first = false;
    try {
      pool.parallel_for(n, [&](Index i, Index) {
        if (i == 1) {
          slow_began = true;
          std::this_thread::sleep_for(std::chrono::microseconds(200));
          slow_ended = true;
        } else if (i == 0) {
          while (!slow_began) std::this_thread::yield();
          throw Thrown{i};
        }
      });
    } catch (const Thrown&) {
      ended_first = slow_ended;
    }
    CHECK(ended_first);
  }
}

TEST_CASE("executor: of several exceptions the one of the smallest index arrives") {
  for (const Index threads : {2, 3, 7}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 100; ++repeat) {
      std::atomic<Index> waiting = 0;
      Index caught = -1;
      try {
        pool.parallel_for(threads, [&](Index i, Index) {
          ++waiting;  // all throw, none before all have begun
          while (waiting < threads) std::this_thread::yield();
          throw Thrown{i};
        });
      } catch (const Thrown& thrown) {
        caught = thrown.index;
      }
      CAPTURE(threads);
      CHECK(caught == 0);
    }
  }
}

TEST_CASE("executor: nested calls run, and their exceptions arrive") {
  ThreadPool pool(3);
  std::atomic<Index> sum = 0;
  pool.parallel_for(8, [&](Index i, Index) {
    pool.parallel_for(8, [&](Index j, Index worker) {
      pool.parallel_for(3, [&](Index k, Index) { sum += 100 * i + 10 * j + k; });
      if (worker != 0) sum += 1'000'000;
    });
  });
  CHECK(sum == 3 * 8 * (100 * 28) + 3 * 8 * (10 * 28) + 64 * 3);
  CHECK_THROWS_AS(
      pool.parallel_for(8, [&](Index, Index) { pool.parallel_for(8, [](Index j, Index) { throw Thrown{j}; }); }),
      Thrown);
}

TEST_CASE("executor: several threads may call at a time") {
  ThreadPool pool(3);
  std::atomic<Index> sum = 0, caught = 0;
  {
    std::vector<std::jthread> callers;
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&] {
        for (int repeat = 0; repeat < 200; ++repeat) {
          pool.parallel_for(10, [&](Index i, Index) { sum += i; });
          try {
            pool.parallel_for(4, [](Index i, Index) {
              if (i == 2) throw Thrown{i};
            });
          } catch (const Thrown&) {
            ++caught;
          }
        }
      });
  }
  CHECK(sum == 4 * 200 * 45);
  CHECK(caught == 4 * 200);
}

TEST_CASE("executor: a pool may end before its threads have begun, or while they sleep") {
  for (int repeat = 0; repeat < 100; ++repeat) ThreadPool pool(4);
  for (int repeat = 0; repeat < 3; ++repeat) {
    ThreadPool pool(4);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_CASE("executor: a task may be passed by name, const or moved") {
  static constexpr auto name = [](Index, Index) {};
  void (&function)(Index, Index) = *+name;
  ThreadPool pool(2);
  pool.parallel_for(2, function);
  pool.parallel_for(2, name);
  pool.parallel_for(2, [only = std::make_unique<int>(1)](Index, Index) mutable { (void)only; });
}

TEST_CASE("executor: a thread count outside 1 … 65536 is a ConfigError") {
  for (const Index threads :
       {Index(0), Index(-1), Index(65537), Index(1) << 31, Index(1) << 32, Index(PTRDIFF_MAX), Index(PTRDIFF_MIN)}) {
    CAPTURE(threads);
    CHECK_THROWS_AS(ThreadPool(threads), ConfigError);
  }
  CHECK_THROWS_WITH(ThreadPool(0), "ThreadPool: threads: expected 1 to 65536, got 0");
}

TEST_CASE("executor: a call allocates nothing") {
  ThreadPool pool(3);
  std::atomic<Index> sum = 0;
  const auto call = [&] { pool.parallel_for(100, [&](Index i, Index) { sum += i; }); };
  CHECK(support::allocations_in([&] {
          for (int repeat = 0; repeat < 100; ++repeat) call();
        }) == 0);
}

TEST_CASE("executor: a pool that cannot be built leaves nothing behind") {
  const auto points = support::fail_each_allocation(
      [] {
        ThreadPool pool(4);
        pool.parallel_for(4, [](Index, Index) {});
      },
      [] {});
  CAPTURE(points);
  if (support::allocations_counted()) CHECK(points >= 4);  // the list and something for each thread
}

TEST_CASE("executor: const functions of core may run on shared objects at the same time") {
  Matrix<double> matrix(20, 30, 1.5);
  const Matrix<double>& shared = matrix;
  const Rng rng(7);
  using Sum = ruvector::OrderedSum<double, Plus>;
  Sum part;
  part.add(0, 10000, [](double& sum, Index i, Index j) { sum += double(j - i); });
  const Sum& shared_part = part;
  ThreadPool pool(16);
  std::atomic<Index> wrong = 0;
  pool.parallel_for(400, [&](Index i, Index) {
    const Matrix<double> copy = shared;
    Rng own = rng.split(static_cast<std::uint64_t>(i));
    Sum sum;
    sum.merge(shared_part);
    double total = 0;
    sum.total(total);
    const bool right = copy(3, 4) == shared(3, 4) && shared.row(2)[0] == 1.5 && shared.view().cols(1, 2).rows() == 20 &&
                       own.state() == rng.split(static_cast<std::uint64_t>(i)).state() && total == 10000 &&
                       shared_part.open_end() == 10000 && pool.concurrency() == 16;
    if (!right) ++wrong;
  });
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace executor_test
