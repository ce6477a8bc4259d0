// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/abi.hpp"

#include <concepts>
#include <cstddef>

namespace ruvector::inline RUVECTOR_ABI {

/// Every size, index and stride: signed, so that differences and backward loops are safe.
using Index = std::ptrdiff_t;

/// The scalars that arithmetic is done in. Use `double` to check gradients, `float` to run.
template <class T>
concept Real = std::same_as<T, float> || std::same_as<T, double>;

/// The scalar a module, backend or manifold computes in: its member type `Scalar`.
template <class M>
using ScalarOf = typename M::Scalar;

}  // namespace ruvector::inline RUVECTOR_ABI
