// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/simd/top_k.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

namespace test_top_k {
namespace {

namespace simd = ruvector::simd;
using ruvector::Index;

template <class T>
struct Found {
  std::vector<Index> ids;
  std::vector<T> scores;
  Index count = 0;
  friend bool operator==(const Found&, const Found&) = default;
};

template <class T>
class Selection {
 public:
  explicit Selection(Index k)
      : k_(k), buffer_(static_cast<std::size_t>(simd::TopK<T>::buffer_size(k))), best(k, buffer_) {}
  Found<T> found() {
    Found<T> f{std::vector<Index>(static_cast<std::size_t>(k_)), std::vector<T>(static_cast<std::size_t>(k_))};
    f.count = best.finish(f.ids, f.scores);
    return f;
  }

 private:
  Index k_;
  std::vector<simd::Ranked<T>> buffer_;

 public:
  simd::TopK<T> best;
};

/// By sorting everything, without a NaN.
template <class T>
Found<T> sorted(const std::vector<T>& scores, Index k) {
  std::vector<Index> order;
  for (std::size_t i = 0; i < scores.size(); ++i)
    if (!std::isnan(scores[i])) order.push_back(Index(i));
  const auto score = [&](Index i) { return scores[static_cast<std::size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](Index i, Index j) { return score(i) > score(j); });
  Found<T> f;
  f.count = std::min(k, Index(order.size()));
  for (Index i = 0; i < k; ++i) {
    const Index id = i < f.count ? order[static_cast<std::size_t>(i)] : -1;
    f.ids.push_back(id);
    f.scores.push_back(id < 0 ? -std::numeric_limits<T>::infinity() : score(id));
  }
  return f;
}

/// Scores of every kind: few distinct values (ties), NaN, infinities, zeros of both signs, rising, falling.
template <class T>
std::vector<T> scores(ruvector::Rng& rng, Index n, int kind) {
  std::vector<T> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const T u = rng.uniform(T(-1), T(1));
    switch (kind) {
      case 0:
        x[i] = u;
        break;
      case 1:
        x[i] = std::round(3 * u);
        break;
      case 2:
        x[i] = rng.below(3) == 0 ? std::numeric_limits<T>::quiet_NaN() * (u > 0 ? T(1) : T(-1)) : u;
        break;
      case 3:
        x[i] = rng.below(4) == 0 ? std::copysign(std::numeric_limits<T>::infinity(), u) : u;
        break;
      case 4:
        x[i] = static_cast<T>(i);
        break;
      case 5:
        x[i] = -static_cast<T>(i);
        break;
      case 6:
        x[i] = std::copysign(T(0), u);
        break;
      default:
        x[i] = std::numeric_limits<T>::quiet_NaN();
        break;
    }
  }
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("TopK: the same as sorting everything", "[simd]", float, double) {
  constexpr std::uint64_t seed = 60;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (int kind = 0; kind < 8; ++kind) {
    for (const Index n : {0, 1, 7, 100, 3000}) {
      for (const Index k : {0, 1, 10, 99, 1000, 5000}) {
        CAPTURE(kind, n, k);
        const std::vector<TestType> x = scores<TestType>(rng, n, kind);
        Selection<TestType> selection(k);
        selection.best.push(x, 0);
        CHECK(selection.found() == sorted(x, k));
      }
    }
  }
}

TEMPLATE_TEST_CASE("TopK: any partition, any order and any merging select the same", "[simd]", float, double) {
  constexpr std::uint64_t seed = 61;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  for (int trial = 0; trial < 200; ++trial) {
    const int kind = trial % 8;
    const Index n = rng.below(2000), k = rng.below(60);
    CAPTURE(trial, n, k);
    const std::vector<TestType> x = scores<TestType>(rng, n, kind);
    const Found<TestType> expected = sorted(x, k);

    // Parts of random sizes, as a range each, merged in random order.
    std::vector<Selection<TestType>> parts;
    parts.reserve(64);
    for (Index first = 0; first < n && parts.size() < 63;) {
      const Index size = parts.size() == 62 ? n - first : std::min(n - first, 1 + rng.below(200));
      parts.emplace_back(k);
      parts.back().best.push(std::span<const TestType>(x).subspan(std::size_t(first), std::size_t(size)), first);
      first += size;
    }
    Selection<TestType> whole(k);
    std::vector<std::size_t> order(parts.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    rng.shuffle(std::span<std::size_t>(order));
    for (const std::size_t part : order) whole.best.merge(parts[part].best);
    CHECK(whole.found() == expected);

    // One by one, in random order.
    std::vector<Index> ids(x.size());
    std::iota(ids.begin(), ids.end(), Index(0));
    rng.shuffle(std::span<Index>(ids));
    Selection<TestType> single(k);
    for (const Index id : ids) single.best.push(x[static_cast<std::size_t>(id)], id);
    CHECK(single.found() == expected);
  }
}

TEST_CASE("TopK: goes on after it was read, and lives in a workspace", "[simd]") {
  ruvector::Workspace ws;
  auto frame = ws.frame();
  simd::TopK<float> best(2, frame.span<simd::Ranked<float>>(simd::TopK<float>::buffer_size(2)));
  std::vector<Index> ids(2);
  std::vector<float> found(2);
  best.push(1.0f, 7);
  CHECK(best.finish(ids, found) == 1);
  CHECK(ids == std::vector<Index>{7, -1});
  CHECK(found == std::vector<float>{1, -std::numeric_limits<float>::infinity()});
  best.push(3.0f, 9);
  best.push(2.0f, 4);
  CHECK(best.finish(ids, found) == 2);
  CHECK(ids == std::vector<Index>{9, 4});
}

}  // namespace test_top_k
