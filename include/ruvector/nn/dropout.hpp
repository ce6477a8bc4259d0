// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/nn/concepts.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// Drops elements at random while training, and scales the others up so that the mean stays:
///
///     y_ij = m_ij x_ij / (1 − p),   m_ij = 0 with probability p, else 1
///
/// ("inverted" dropout). In inference there is nothing to do: y = x, so there is no such call. The mask is a function
/// of one number drawn from the caller's generator and of (i, j): the same for any number of workers, and not stored.
/// Source: Srivastava et al. 2014.
class Dropout {
 public:
  /// What `backward` needs of a forward pass.
  struct Saved {
    std::uint64_t key = 0;  ///< the number the mask follows from
  };

  /// Drops nothing.
  Dropout() = default;
  /// Drops with this probability. Throws ConfigError unless 0 ≤ p < 1.
  explicit Dropout(double probability) : probability_(probability) {
    if (!(probability >= 0 && probability < 1)) [[unlikely]]
      throw_config_error("Dropout: probability", ">= 0 and < 1", probability);
  }

  /// p.
  [[nodiscard]] double probability() const { return probability_; }

  /// y [n×d] from x [n×d], which may be the same; what x holds where it is dropped does not matter, even NaN. Draws one
  /// number from `rng`, whatever p is. O(n d). Throws ShapeError.
  template <Real T, Executor E = Serial>
  void forward(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, Rng& rng, Saved& saved,
               E&& executor = Serial{}) const {
    detail::check_matrix("Dropout::forward: y", x.rows(), x.cols(), y);
    saved.key = rng.bits();
    for_each_row(
        saved, x.rows(),
        [&](Index i, Mask mask) {
          const auto from = x.row(i);
          const auto to = y.row(i);
          const T scale = kept_scale<T>();
          for (std::size_t j = 0; j < to.size(); ++j) to[j] = mask.drops(j) ? T(0) : scale * from[j];
        },
        executor);
  }

  /// Given d_y [n×d], adds d_x += m∘d_y/(1 − p) with the mask of the forward pass. O(n d). Throws ShapeError.
  template <Real T, Executor E = Serial>
  void backward(const Saved& saved, std::type_identity_t<MatrixView<const T>> d_y, MatrixView<T> d_x,
                E&& executor = Serial{}) const {
    detail::check_matrix("Dropout::backward: d_x", d_y.rows(), d_y.cols(), d_x);
    for_each_row(
        saved, d_y.rows(),
        [&](Index i, Mask mask) {
          const auto from = d_y.row(i);
          const auto to = d_x.row(i);
          const T scale = kept_scale<T>();
          for (std::size_t j = 0; j < to.size(); ++j)
            if (!mask.drops(j)) to[j] = std::fma(scale, from[j], to[j]);
        },
        executor);
  }

 private:
  /// Of a row: whether element j is dropped, from 53 bits each.
  struct Mask {
    std::uint64_t key, threshold;
    [[nodiscard]] bool drops(std::size_t j) const {
      return (ruvector::detail::mix_bits(key + (j + 1) * 0x9e3779b97f4a7c15u) >> 11) < threshold;
    }
  };

  template <Real T>
  [[nodiscard]] T kept_scale() const {
    return static_cast<T>(1 / (1 - probability_));
  }

  template <class Row, class E>
  void for_each_row(const Saved& saved, Index rows, Row&& row, E&& executor) const {
    constexpr Index block = 256;  // rows that are worth a task
    const auto threshold = static_cast<std::uint64_t>(probability_ * 0x1p53);
    executor.parallel_for((rows + block - 1) / block, [&](Index task, Index) {
      for (Index i = task * block; i < std::min(rows, (task + 1) * block); ++i)
        row(i,
            Mask{ruvector::detail::mix_bits(saved.key ^ ruvector::detail::mix_bits(std::uint64_t(i) + 1)), threshold});
    });
  }

  double probability_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
