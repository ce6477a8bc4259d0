// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// The shape of an Embedding.
struct EmbeddingConfig {
  Index count = 0;   ///< things that have a row: ids are 0 … count−1
  Index dim = 0;     ///< columns of a row
  double sigma = 1;  ///< rows start as N(0, σ²); PyTorch's default is 1
};

/// A learned row for each of a number of things, words or nodes: y_i = weight[ids_i]. A Module.
template <Real T>
struct Embedding {
  using Scalar = T;  ///< what it computes in
  Matrix<T> weight;  ///< [count×dim]

  /// [0×0], to be assigned.
  Embedding() = default;
  /// Starts as `config` says. Throws ShapeError for impossible sizes.
  Embedding(const EmbeddingConfig& config, Rng& rng) : weight(config.count, config.dim) {
    for (T& w : weight.span()) w = static_cast<T>(config.sigma * rng.normal());
  }

  /// Names the rows.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight", self.weight...);
  }

  /// Columns of a row.
  [[nodiscard]] Index output_dim() const { return weight.cols(); }

  /// y_i = weight[ids_i]: ids [n] → [n×dim], O(n dim). An id may come several times. Throws ShapeError, also for an id
  /// that is not in 0 … count−1, before anything is written.
  template <std::integral I, Executor E = Serial>
  void forward(std::span<const I> ids, MatrixView<T> y, E&& executor = Serial{}) const {
    check(ids, "Embedding::forward: y", y);
    constexpr Index block = 256;  // rows that are worth a task
    executor.parallel_for((y.rows() + block - 1) / block, [&](Index task, Index) {
      for (Index i = task * block; i < std::min(y.rows(), (task + 1) * block); ++i)
        std::ranges::copy(weight.row(Index(ids[std::size_t(i)])), y.row(i).begin());
    });
  }

  /// Given d_y [n×dim], adds grad.weight[ids_i] += d_y_i, i in order: the same bits for any number of workers, who
  /// share the columns. O(n dim). Throws ShapeError before anything is added.
  template <std::integral I, Executor E = Serial>
  void backward(std::span<const I> ids, MatrixView<const T> d_y, Embedding& grad, E&& executor = Serial{}) const {
    check_same_parameters(*this, static_cast<const Embedding&>(grad));
    check(ids, "Embedding::backward: d_y", d_y);
    constexpr Index block = 64;  // columns of a task: whole cache lines
    const Index dim = weight.cols();
    executor.parallel_for((dim + block - 1) / block, [&](Index task, Index) {
      const Index first = task * block, count = std::min(block, dim - first);
      for (Index i = 0; i < d_y.rows(); ++i)
        simd::axpy(T(1), d_y.row(i).data() + first, grad.weight.row(Index(ids[std::size_t(i)])).data() + first, count);
    });
  }

 private:
  template <class I, class U>
  void check(std::span<const I> ids, std::string_view what, MatrixView<U> rows) const {
    detail::check_matrix(what, Index(ids.size()), weight.cols(), rows);
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (std::cmp_less(ids[i], 0) || std::cmp_greater_equal(ids[i], weight.rows())) [[unlikely]]
        throw_shape_error("Embedding: ids[" + std::to_string(i) + "]", "0 to " + std::to_string(weight.rows() - 1),
                          std::to_string(ids[i]));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
