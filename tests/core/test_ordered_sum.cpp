// SPDX-License-Identifier: MIT
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <ruvector/core/ordered_sum.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ordered_sum_test {
namespace {

using ruvector::ConfigError;
using ruvector::Index;
using ruvector::ordered_reduce;
using ruvector::OrderedSum;
using ruvector::OrderedSumSlot;
using ruvector::Rng;
using ruvector::Serial;
using ruvector::ThreadPool;

struct Plus {
  void clear(double& sum) const { sum = 0; }
  void merge(double& sum, double right) const { sum += right; }
};
static_assert(ruvector::Monoid<Plus, double> && !ruvector::Monoid<Plus, std::vector<double>>);

// A state that owns memory: sums of several columns.
struct VectorPlus {
  std::size_t size = 3;
  void clear(std::vector<double>& sum) const { sum.assign(size, 0); }
  void merge(std::vector<double>& sum, const std::vector<double>& right) const {
    for (std::size_t i = 0; i < size; ++i) sum[i] += right[i];
  }
};

// The state of an online softmax: the largest logit, Σ exp(logit − largest), and the weighted sum of one value.
struct Softmax {
  double largest, mass, value;
};
struct SoftmaxMerge {
  void clear(Softmax& s) const { s = {-std::numeric_limits<double>::infinity(), 0, 0}; }
  void merge(Softmax& s, const Softmax& right) const {
    const double largest = std::max(s.largest, right.largest);
    if (std::isinf(largest)) return;
    const double a = std::exp(s.largest - largest), b = std::exp(right.largest - largest);
    s = {largest, s.mass * a + right.mass * b, s.value * a + right.value * b};
  }
};

// The state is the formula by which it came about, so that a change of order shows, not only a change of bits.
struct Formula {
  void clear(std::string& s) const { s.clear(); }
  void merge(std::string& s, const std::string& right) const {
    if (!s.empty() && !right.empty())
      s = "(" + s + right + ")";
    else
      s += right;
  }
};

// Values of very different sizes: the order of a sum shows in its bits.
std::vector<double> random_values(Index n, Rng& rng) {
  std::vector<double> x(static_cast<std::size_t>(n));
  for (double& value : x) value = rng.normal() * std::exp(5 * rng.normal());
  return x;
}

auto adder(const std::vector<double>& x) {
  return [&x](double& sum, Index i, Index j) {
    for (; i < j; ++i) sum += x[static_cast<std::size_t>(i)];
  };
}

template <class State, class M, class Storage>
State total_of(OrderedSum<State, M, Storage>& sum) {
  State total{};
  sum.total(total);
  return total;
}

TEST_CASE("ordered sum: the tree is merged from halves, absent leaves left out") {
  const auto formula = [](std::vector<std::pair<Index, Index>> parts) {
    OrderedSum<std::string, Formula> sum({}, 1);
    for (const auto& [first, last] : parts)
      sum.add(first, last, [](std::string& s, Index i, Index) { s += static_cast<char>('a' + i); });
    return total_of(sum);
  };
  CHECK(formula({}) == "");
  CHECK(formula({{0, 1}}) == "a");
  CHECK(formula({{0, 8}}) == "(((ab)(cd))((ef)(gh)))");
  CHECK(formula({{0, 7}}) == "(((ab)(cd))((ef)g))");
  CHECK(formula({{0, 5}}) == "(((ab)(cd))e)");
  CHECK(formula({{3, 7}}) == "(d((ef)g))");
  CHECK(formula({{1, 2}, {3, 4}, {4, 5}, {6, 7}}) == "((bd)(eg))");
  CHECK(formula({{6, 7}, {4, 5}, {3, 4}, {1, 2}}) == "((bd)(eg))");
}

TEST_CASE("ordered sum: within a leaf, elements are added in order, in any pieces") {
  Rng rng(1);
  const auto x = random_values(1000, rng);
  OrderedSum<double, Plus> whole({}, 64), pieces({}, 64);
  whole.add(0, 1000, adder(x));
  for (Index first = 0; first < 1000;) {
    const Index last = std::min<Index>(1000, first + rng.below(40));
    pieces.add(first, last, adder(x));
    CHECK(pieces.open_end() == (last % 64 == 0 ? 0 : last));
    first = last;
    double partial = 0;  // a total in between changes nothing
    pieces.total(partial);
  }
  CHECK(support::same_bits(total_of(whole), total_of(pieces)));
}

// Cuts 0 … leaves into `count` ranges, some of them empty, and adds each to a sum of its own.
template <class Sum, class Add>
std::vector<Sum> random_parts(const Sum& empty, Index n, Index count, const Add& add, Rng& rng) {
  const Index leaf = empty.leaf();
  std::vector<Index> borders = {0, (n + leaf - 1) / leaf};
  for (Index k = 1; k < count; ++k) borders.push_back(rng.below(borders[1] + 1));
  std::sort(borders.begin(), borders.end());
  std::vector<Sum> parts;
  for (std::size_t k = 0; k + 1 < borders.size(); ++k) {
    parts.push_back(empty);
    parts.back().add(std::min(n, borders[k] * leaf), std::min(n, borders[k + 1] * leaf), add);
  }
  return parts;
}

// Merges random pairs until one is left.
template <class Sum>
Sum merge_all(std::vector<Sum> parts, Rng& rng) {
  while (parts.size() > 1) {
    rng.shuffle(std::span(parts));
    parts[parts.size() - 2].merge(parts.back());
    parts.pop_back();
  }
  return parts[0];
}

TEST_CASE("ordered sum: any partition at leaf borders, merged in any order, gives the same bits") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    CAPTURE(seed);
    const Index leaf = 1 + rng.below(20), n = rng.below(1500), count = 1 + rng.below(64);
    const auto x = random_values(n, rng);

    const OrderedSum<double, Plus> empty({}, leaf);
    auto whole = empty;
    whole.add(0, n, adder(x));
    auto merged = merge_all(random_parts(empty, n, count, adder(x), rng), rng);
    CHECK(support::same_bits(total_of(whole), total_of(merged)));

    const auto columns = [&x](std::vector<double>& sum, Index i, Index j) {
      for (; i < j; ++i)
        for (std::size_t c = 0; c < 3; ++c) sum[c] += x[static_cast<std::size_t>(i)] / double(c + 1);
    };
    const OrderedSum<std::vector<double>, VectorPlus> no_columns({}, leaf);
    auto whole_columns = no_columns;
    whole_columns.add(0, n, columns);
    auto merged_columns = merge_all(random_parts(no_columns, n, count, columns, rng), rng);
    CHECK(support::same_bits(total_of(whole_columns), total_of(merged_columns)));

    const auto softmax = [&x](Softmax& s, Index i, Index j) {
      for (; i < j; ++i) SoftmaxMerge{}.merge(s, {x[static_cast<std::size_t>(i)], 1, double(i)});
    };
    const OrderedSum<Softmax, SoftmaxMerge> no_softmax({}, leaf);
    auto whole_softmax = no_softmax;
    whole_softmax.add(0, n, softmax);
    auto merged_softmax = merge_all(random_parts(no_softmax, n, count, softmax, rng), rng);
    const auto a = total_of(whole_softmax);
    const auto b = total_of(merged_softmax);
    CHECK((support::same_bits(a.largest, b.largest) && support::same_bits(a.mass, b.mass) &&
           support::same_bits(a.value, b.value)));
  }
}

TEST_CASE("ordered sum: the total of any set of leaves depends on the set only") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Rng rng(seed);
    CAPTURE(seed);
    const auto x = random_values(200, rng);
    std::vector<Index> leaves;
    for (Index leaf = 0; leaf < 100; ++leaf)
      if (rng.below(3) != 0) leaves.push_back(leaf);
    const OrderedSum<double, Plus> empty({}, 2);
    auto forward = empty;
    for (const Index leaf : leaves) forward.add(2 * leaf, 2 * leaf + 2, adder(x));
    std::vector<OrderedSum<double, Plus>> parts;
    for (const Index leaf : leaves) {
      parts.push_back(empty);
      parts.back().add(2 * leaf, 2 * leaf + 2, adder(x));
    }
    auto merged = merge_all(parts, rng);
    CHECK(support::same_bits(total_of(forward), total_of(merged)));
  }
}

TEST_CASE("ordered sum: the empty sum is the identity, and a total may be continued") {
  Rng rng(3);
  const auto x = random_values(500, rng);
  OrderedSum<double, Plus> sum({}, 16), other({}, 16);
  CHECK(sum.empty());
  CHECK(total_of(sum) == 0);
  sum.merge(other);
  CHECK(sum.empty());
  sum.add(0, 100, adder(x));
  const double before = total_of(sum);
  sum.merge(other);
  CHECK(support::same_bits(total_of(sum), before));
  other.merge(sum);
  CHECK(support::same_bits(total_of(other), before));
  CHECK(other.open_end() == 100);
  other.add(100, 500, adder(x));
  sum.clear();
  sum.add(0, 500, adder(x));
  CHECK(support::same_bits(total_of(sum), total_of(other)));
}

TEST_CASE("ordered sum: leaves that overlap, do not start on the grid, or are incomplete twice are errors") {
  Rng rng(4);
  const auto x = random_values(1000, rng);
  OrderedSum<double, Plus> sum({}, 10);
  sum.add(100, 200, adder(x));
  sum.add(300, 305, adder(x));
  const double before = total_of(sum);
  const auto refuses = [&](Index first, Index last) {
    CAPTURE(first, last);
    CHECK_THROWS_AS(sum.add(first, last, adder(x)), ConfigError);
    CHECK(support::same_bits(total_of(sum), before));
    CHECK(sum.open_end() == 305);
  };
  refuses(1, 10);     // not a multiple
  refuses(304, 310);  // nor the end of the open leaf
  refuses(100, 110);
  refuses(150, 160);
  refuses(90, 110);
  refuses(0, 1000);
  refuses(300, 310);
  CHECK_THROWS_AS(sum.add(0, 5, adder(x)), ConfigError);
  CHECK_THROWS_AS(sum.add(-10, 0, adder(x)), ruvector::ShapeError);
  CHECK_THROWS_AS(sum.add(20, 10, adder(x)), ruvector::ShapeError);

  OrderedSum<double, Plus> part({}, 10), open({}, 10), other_leaf({}, 20);
  part.add(190, 210, adder(x));
  open.add(400, 403, adder(x));
  CHECK_THROWS_AS(sum.merge(part), ConfigError);
  CHECK_THROWS_AS(sum.merge(open), ConfigError);
  CHECK_THROWS_AS(sum.merge(other_leaf), ConfigError);
  CHECK_THROWS_AS(sum.merge(sum), ConfigError);
  CHECK(support::same_bits(total_of(sum), before));
  CHECK_THROWS_AS((OrderedSum<double, Plus>({}, 0)), ConfigError);
}

TEST_CASE("ordered sum: slots grow with the logarithm, and a span of slots is never outgrown in silence") {
  using Slot = OrderedSumSlot<double>;
  Rng rng(5);
  const auto x = random_values(5000, rng);
  for (const Index n : {1, 2, 3, 100, 1023, 1024, 1025, 5000}) {
    for (const Index first : {Index(0), std::min<Index>(n, 777)}) {
      CAPTURE(n, first);
      std::vector<Slot> slots(static_cast<std::size_t>(ruvector::ordered_sum_slots(n - first)));
      OrderedSum<double, Plus, std::span<Slot>> bounded({}, 1, slots);
      OrderedSum<double, Plus> growing({}, 1);
      double a = 0, b = 0;
      CHECK(support::allocations_in([&] {
              bounded.add(first, n, adder(x));
              bounded.total(a);
            }) == 0);
      growing.add(first, n, adder(x));
      growing.total(b);
      CHECK(support::same_bits(a, b));
    }
  }
  CHECK(ruvector::ordered_sum_slots(Index(1) << 40) == 85);
  std::vector<Slot> few(2);
  OrderedSum<double, Plus, std::span<Slot>> sum({}, 1, few);
  CHECK_THROWS_AS(sum.add(0, 100, adder(x)), ConfigError);
}

TEST_CASE("ordered sum: after the first use nothing allocates, states with memory of their own included") {
  OrderedSum<std::vector<double>, VectorPlus> sum({}, 8);
  std::vector<double> total;
  const auto use = [&] {
    sum.clear();
    sum.add(0, 1001, [](std::vector<double>& s, Index i, Index j) { s[0] += double(j - i); });
    sum.total(total);
  };
  use();
  CHECK(support::allocations_in(use) == 0);
  CHECK(total[0] == 1001);
}

TEST_CASE("ordered reduce: the same bits for any number of threads") {
  Rng rng(6);
  for (const Index n : {0, 1, 255, 256, 257, 4096, 20000, 100003}) {
    const auto x = random_values(n, rng);
    const auto leaf_sum = [&x](Index i, Index j) {
      double sum = 0;
      adder(x)(sum, i, j);
      return sum;
    };
    const auto plus = [](double& a, double b) { a += b; };
    OrderedSum<double, Plus> tree({}, ruvector::row_leaf);
    tree.add(0, n, adder(x));
    const double expected = total_of(tree);
    CAPTURE(n);
    CHECK(support::same_bits(ordered_reduce(n, ruvector::row_leaf, 0.0, leaf_sum, plus), expected));
    for (const Index threads : {1, 2, 3, 4, 7, 16}) {
      ThreadPool pool(threads);
      CAPTURE(threads);
      CHECK(support::same_bits(ordered_reduce(n, ruvector::row_leaf, 0.0, leaf_sum, plus, pool), expected));
    }
  }
}

TEST_CASE("ordered reduce: in memory of a workspace nothing allocates, and states may be views of it") {
  using Slot = OrderedSumSlot<std::span<double>>;
  struct SpanPlus {
    void clear(std::span<double> sum) const { std::fill(sum.begin(), sum.end(), 0.0); }
    void merge(std::span<double> sum, std::span<const double> right) const {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
    }
  };
  ruvector::Workspace workspace;
  ThreadPool pool(3);
  static constexpr Index n = 10007, leaf = 16, width = 5;
  std::vector<double> out(width);
  const auto use = [&] {
    auto frame = workspace.frame();
    auto slots = frame.span<Slot>(ruvector::ordered_reduce_slots(n, leaf, pool.concurrency()));
    for (Slot& slot : slots) slot = {frame.span<double>(width)};
    std::span<double> total = frame.span<double>(width);
    ordered_reduce(
        n, leaf, SpanPlus{}, slots, total,
        [](std::span<double> sum, Index i, Index j, Index) {
          for (; i < j; ++i)
            for (Index c = 0; c < width; ++c) sum[static_cast<std::size_t>(c)] += 1.0 / double(i + c + 1);
        },
        pool);
    std::copy(total.begin(), total.end(), out.begin());
    CHECK_THROWS_AS(ordered_reduce(
                        n, leaf, SpanPlus{}, slots.first(slots.size() - 1), total,
                        [](std::span<double>, Index, Index, Index) {}, pool),
                    ConfigError);
  };
  use();
  const auto first = out;
  for (std::size_t c = 0; c < width; ++c) {
    long double expected = 0;
    for (Index i = 0; i < n; ++i) expected += 1.0L / static_cast<long double>(i + static_cast<Index>(c) + 1);
    CHECK(support::near(out[c], static_cast<double>(expected), support::rounding<double>(16 + 10 + 1)));
  }
  const auto quiet = [&] {
    auto frame = workspace.frame();
    auto slots = frame.span<Slot>(ruvector::ordered_reduce_slots(n, leaf, pool.concurrency()));
    for (Slot& slot : slots) slot = {frame.span<double>(width)};
    std::span<double> total = frame.span<double>(width);
    ordered_reduce(
        n, leaf, SpanPlus{}, slots, total, [](std::span<double>, Index, Index, Index) {}, pool);
  };
  quiet();
  CHECK(support::allocations_in(quiet) == 0);
}

TEST_CASE("ordered reduce: arguments out of range and exceptions of leaves arrive") {
  ThreadPool pool(2);
  const auto one = [](Index, Index) { return 1.0; };
  const auto plus = [](double& a, double b) { a += b; };
  CHECK_THROWS_AS(ordered_reduce(-1, 256, 0.0, one, plus, pool), ConfigError);
  CHECK_THROWS_AS(ordered_reduce(10, 0, 0.0, one, plus, pool), ConfigError);
  CHECK_THROWS_AS(
      ordered_reduce(
          10000, 16, 0.0, [](Index i, Index) { return i == 512 ? throw std::runtime_error("leaf") : 1.0; }, plus, pool),
      std::runtime_error);
  // A leaf as large as all there is: no size overflows.
  CHECK(ordered_reduce(PTRDIFF_MAX, PTRDIFF_MAX, 0.0, one, plus, pool) == 1);
  CHECK(ordered_reduce(PTRDIFF_MAX, PTRDIFF_MAX / 100, 0.0, one, plus, pool) == 101);
  CHECK(ordered_reduce(PTRDIFF_MAX, PTRDIFF_MAX / 100, 0.0, one, plus) == 101);
}

TEST_CASE("ordered sum: the error grows with the depth of the tree, not with the number of leaves") {
  Rng rng(8);
  constexpr Index n = 1 << 20;
  std::vector<double> x(n);
  for (double& value : x) value = rng.uniform();
  long double expected = 0;
  for (const double value : x) expected += static_cast<long double>(value);
  const auto leaf_sum = [&x](Index i, Index j) {
    double sum = 0;
    adder(x)(sum, i, j);
    return sum;
  };
  const double sum = ordered_reduce(n, 256, 0.0, leaf_sum, [](double& a, double b) { a += b; });
  // Positive terms: 255 roundings in a leaf, 12 levels.
  CHECK(support::near(sum, static_cast<double>(expected), support::rounding<double>(255 + 12)));
  double chain = 0;
  adder(x)(chain, 0, n);
  const auto error = [&](double value) {
    return std::fabs(static_cast<double>(static_cast<long double>(value) - expected));
  };
  CHECK(error(sum) < error(chain));
}

}  // namespace
}  // namespace ordered_sum_test
