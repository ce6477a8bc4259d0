// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/means.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"

#include <algorithm>
#include <concepts>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention::detail {

/// Value rows as they are summed: of type T, and lifted.
template <class Mean, Storage S>
class Values {
 public:
  using T = ScalarOf<Mean>;            ///< what it computes in
  using Bound = typename Mean::Bound;  ///< the mean for this width
  static constexpr bool copies = Bound::lifts || !std::same_as<S, T>;

  /// With room for `capacity` rows at a time.
  Values(const Mean& mean, const AttentionInput<T, S>& in, Workspace::Frame& frame, Index capacity = tile_keys)
      : in_(in),
        bound_(mean.bind(in.value.cols())),
        lifted_(frame.template matrix<T>(copies ? capacity : 0, in.value.cols())),
        masses_(frame.template span<T>(Bound::has_mass ? capacity + tile_keys : 0)) {}

  [[nodiscard]] const Bound& bound() const { return bound_; }

  /// Lifted rows begin … begin+count−1, valid until the next call, and with them masses().
  [[nodiscard]] MatrixView<const T> rows(Index begin, Index count) const {
    if constexpr (!copies) {
      return in_.value.rows(begin, count);
    } else {
      for (Index j = 0; j < count; ++j) {
        read_row<T, S>(in_.value, in_.value_scale, begin + j, lifted_.row(j));
        if constexpr (Bound::lifts) {
          T mass = 0;
          bound_.lift(lifted_.row(j), lifted_.row(j), mass);
          if constexpr (Bound::has_mass) masses_[std::size_t(j)] = mass;
        }
      }
      if constexpr (Bound::has_mass) std::fill_n(masses_.data() + count, tile_keys - count % tile_keys, T(0));
      return lifted_.rows(0, count);
    }
  }
  /// Of the last rows(), zero up to the end of the tile; null where the mean has none.
  [[nodiscard]] const T* masses() const { return Bound::has_mass ? masses_.data() : nullptr; }

 private:
  const AttentionInput<T, S>& in_;
  const Bound bound_;
  MatrixView<T> lifted_;
  std::span<T> masses_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention::detail
