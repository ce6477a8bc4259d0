// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/simd/arch.hpp>
#include <ruvector/simd/gemm.hpp>

#include <chrono>
#include <ctime>
#include <vector>

// What the machine gives at most, measured in the same process as the work: a share of it means something on a shared
// machine, a time does not.

namespace bench {

using ruvector::Index;

/// Seconds of real time.
[[nodiscard]] inline double wall_clock() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that this process has computed: for work on one thread, what other programs take does not count.
[[nodiscard]] inline double cpu_clock() {
  return double(std::clock()) / CLOCKS_PER_SEC;
}

/// Ten independent chains of fused multiply-adds, `steps` long: two a cycle of latency four, and a margin. Returns the
/// number of operations. In assembly, since compilers bend a loop in C++ by −60 to +10 %.
inline double fma_chains(Index steps) {
  using B = ruvector::simd::Batch<float>;
  const B one(1.0f);
  B a(0.0f), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a;
#if defined(__FMA__) && !defined(RUVECTOR_SCALAR)
  for (Index step = 0; step < steps; ++step)
    asm volatile(
        "vfmadd231ps %10, %10, %0\n vfmadd231ps %10, %10, %1\n vfmadd231ps %10, %10, %2\n vfmadd231ps %10, %10, %3\n"
        "vfmadd231ps %10, %10, %4\n vfmadd231ps %10, %10, %5\n vfmadd231ps %10, %10, %6\n vfmadd231ps %10, %10, %7\n"
        "vfmadd231ps %10, %10, %8\n vfmadd231ps %10, %10, %9\n"
        : "+v"(a.pack.data), "+v"(b.pack.data), "+v"(c.pack.data), "+v"(d.pack.data), "+v"(e.pack.data),
          "+v"(f.pack.data), "+v"(g.pack.data), "+v"(h.pack.data), "+v"(i.pack.data), "+v"(j.pack.data)
        : "v"(one.pack.data));
#else
  for (Index step = 0; step < steps; ++step)
    for (B* sum : {&a, &b, &c, &d, &e, &f, &g, &h, &i, &j}) *sum = ruvector::simd::fma(one, one, *sum);
#endif
  volatile float used = ruvector::simd::reduce_add(a + b + c + d + e + f + g + h + i + j);
  (void)used;
  return 2.0 * 10 * double(ruvector::simd::lanes<float>) * double(steps);
}

/// 256 MiB, which fit into no cache, read from end to end.
class Stream {
 public:
  /// Touches all of it.
  Stream() : buffer_(Index(1) << 26, 1.0f) {}

  /// Reads all of it. Returns the number of bytes.
  [[nodiscard]] double read() const {
    using B = ruvector::simd::Batch<float>;
    constexpr Index width = ruvector::simd::lanes<float>, at_once = 8 * width;
    B most[8] = {};
    for (Index i = 0; i < buffer_.size(); i += at_once)
      RUVECTOR_UNROLL for (Index v = 0; v < 8; ++v) most[v] =
          ruvector::simd::max(most[v], ruvector::simd::load(buffer_.data() + i + v * width));
    for (int v = 1; v < 8; ++v) most[0] = ruvector::simd::max(most[0], most[v]);
    volatile float used = ruvector::simd::reduce_max(most[0]);
    (void)used;
    return double(buffer_.size()) * sizeof(float);
  }

 private:
  ruvector::Vector<float> buffer_;
};

/// The limits of this machine, in units a second.
class Limits {
 public:
  /// One slice of fused multiply-adds, a few milliseconds: operations a second of CPU time on this thread.
  [[nodiscard]] double fma() const {
    const double start = cpu_clock();
    const double done = fma_chains(2'000'000);
    return done / (cpu_clock() - start);
  }
  /// One pass over memory: bytes a second of CPU time on this thread.
  [[nodiscard]] double stream() {
    const double start = cpu_clock();
    const double done = streams(1).front().read();
    return done / (cpu_clock() - start);
  }

  /// The same on several threads, by real time.
  ///@{
  [[nodiscard]] double fma(ruvector::ThreadPool& pool) const {
    return together(pool, [&](Index) { return fma_chains(4'000'000); });
  }
  [[nodiscard]] double stream(ruvector::ThreadPool& pool) {
    const std::vector<Stream>& own = streams(pool.concurrency());
    return together(pool, [&](Index thread) { return own[std::size_t(thread)].read(); });
  }
  ///@}

 private:
  template <class Work>
  static double together(ruvector::ThreadPool& pool, const Work& work) {
    std::vector<double> done(std::size_t(pool.concurrency()), 0.0);
    const double start = wall_clock();
    pool.parallel_for(pool.concurrency(), [&](Index i, Index) { done[std::size_t(i)] = work(i); });
    const double seconds = wall_clock() - start;
    double sum = 0;
    for (const double d : done) sum += d;
    return sum / seconds;
  }

  // First touch costs a second, so they are made when they are asked for.
  const std::vector<Stream>& streams(Index count) {
    while (Index(streams_.size()) < count) streams_.emplace_back();
    return streams_;
  }

  std::vector<Stream> streams_;
};

}  // namespace bench
