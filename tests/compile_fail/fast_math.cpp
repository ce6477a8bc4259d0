// SPDX-License-Identifier: MIT
// flags: -ffast-math
// expect: -ffast-math and -ffinite-math-only break the handling of NaN and infinity
#include <ruvector/version.hpp>
#ifndef RUVECTOR_CONTROL
#include <ruvector/core/abi.hpp>
#endif
