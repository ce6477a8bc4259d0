// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/dense.hpp"
#include "ruvector/attention/scores.hpp"

namespace ruvector::inline RUVECTOR_ABI::attention {

/// softmax(Q Kᵀ/√d + bias) V with the weights at hand: for small neighbourhoods and for looking at weights. `Flash` is
/// the same function for long sequences. (Vaswani 2017, eq. 1)
template <Real T>
using ScaledDotProduct = Dense<DotScore<T>>;

}  // namespace ruvector::inline RUVECTOR_ABI::attention
