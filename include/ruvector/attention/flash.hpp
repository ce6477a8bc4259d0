// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/tiled.hpp"

namespace ruvector::inline RUVECTOR_ABI::attention {

/// softmax(Q Kᵀ/√d + bias) V without ever holding the m×n weights, at the speed of the matrix product: for sequences
/// from a hundred to millions of keys. (Dao 2022)
template <Real T>
using Flash = Tiled<DotScore<T>>;

}  // namespace ruvector::inline RUVECTOR_ABI::attention
