// SPDX-License-Identifier: MIT
#include <ruvector/nn/concepts.hpp>
#include <ruvector/nn/rows.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"

#include <array>
#include <atomic>
#include <span>
#include <vector>

namespace ruvector_test_nn_concepts {
namespace {

using namespace ruvector;
using namespace row_map_laws;

// A user's own map: y = s ∘ x with a learned scale a column.
template <class T>
struct Scale {
  using Scalar = T;
  Vector<T> factor;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("factor", self.factor...);
  }
  [[nodiscard]] Index output_dim(Index input_dim) const {
    check_shape("Scale", factor.size(), input_dim);
    return input_dim;
  }
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws, E&& executor = Serial{}) const {
    nn::for_row_ranges(
        x.rows(), ws,
        [&](Index first, Index count, Workspace&) {
          for (Index i = first; i < first + count; ++i)
            for (Index j = 0; j < x.cols(); ++j) y(i, j) = factor[j] * x(i, j);
        },
        executor);
  }
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, Scale& grad, Workspace& ws,
                E&& executor = Serial{}) const {
    nn::add_row_sums(
        x.rows(), std::array{grad.factor.span()}, ws,
        [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace&) {
          std::ranges::fill(parts[0], T(0));
          for (Index i = first; i < last; ++i)
            for (Index j = 0; j < x.cols(); ++j) {
              parts[0][std::size_t(j)] += x(i, j) * d_y(i, j);
              if (!d_x.empty()) d_x(i, j) += factor[j] * d_y(i, j);
            }
        },
        executor);
  }
};

template <class T>
struct NoBackward {
  using Scalar = T;
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}
  [[nodiscard]] Index output_dim(Index d) const { return d; }
  void forward(MatrixView<const T>, MatrixView<T>, Workspace&) const {}
};

template <class T>
struct ForwardNotConst : Scale<T> {
  void forward(MatrixView<const T>, MatrixView<T>, Workspace&) {}
};

static_assert(nn::RowMap<Scale<double>> && nn::RowMap<Scale<float>>);
static_assert(!nn::RowMap<NoBackward<double>> && !nn::RowMap<ForwardNotConst<double>> && !nn::RowMap<double>);
static_assert(!nn::FeatureMap<Scale<double>>);

TEST_CASE("nn concepts: a map from outside obeys the laws", "[nn][law]") {
  constexpr std::uint64_t seed = 23;
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index dim : {0, 1, 5}) {
    Scale<double> map{Vector<double>(dim)};
    randomize(map, rng);
    for (const Index n : {0, 1, 4}) check_gradients(map, random_matrix<double>(n, dim, rng), rng);
    for (const Index n : {0, 1, 256, 257, 2000}) {
      CAPTURE(n, dim);
      const auto x = random_matrix<double>(n, dim, rng);
      check_accumulation(map, x, rng);
      check_threads(map, x, rng);
      check_shards(map, x, rng);
    }
  }
}

TEST_CASE("nn rows: ranges cover every row once, sums see whole blocks", "[nn]") {
  Workspace ws;
  for (const Index threads : {1, 2, 5})
    for (const Index rows : {0, 1, 31, 32, 33, 255, 256, 257, 5000}) {
      CAPTURE(threads, rows);
      ThreadPool pool(threads);
      std::vector<std::atomic<int>> seen(std::size_t(rows) + 1);
      nn::for_row_ranges(
          rows, ws,
          [&](Index first, Index count, Workspace&) {
            for (Index i = first; i < first + count; ++i) ++seen[std::size_t(i)];
          },
          pool);
      CHECK(std::count_if(seen.begin(), seen.end(), [](const auto& c) { return c == 1; }) == rows);

      std::vector<double> sum(2, 100);
      std::atomic<bool> whole = true;
      nn::add_row_sums(
          rows, std::array{std::span(sum).first(1), std::span(sum).last(1)}, ws,
          [&](const std::array<std::span<double>, 2>& parts, Index first, Index last, Workspace&) {
            whole = whole && first % 256 == 0 && last == std::min(rows, first + 256);
            parts[0][0] = parts[1][0] = 0;
            for (Index i = first; i < last; ++i) {
              parts[0][0] += 1;
              parts[1][0] += double(i);
            }
          },
          pool);
      CHECK(whole);
      CHECK(sum[0] == 100 + double(rows));
      CHECK(sum[1] == 100 + double(rows) * double(rows - 1) / 2);
    }
}

}  // namespace
}  // namespace ruvector_test_nn_concepts
