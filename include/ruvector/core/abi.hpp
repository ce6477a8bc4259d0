// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/version.hpp"

// RUVECTOR_ABI names the inline namespace that holds everything. It spells the version and each compiler setting that
// changes the code of a header-only SIMD library, so that files compiled for different targets never merge at link
// time.
//
//   namespace ruvector::inline RUVECTOR_ABI::geometry { ... }
//
// Read a tag as  v<version>_<instruction set>_<one digit a macro below>_<assertions><exceptions>.

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "ruvector: -ffast-math and -ffinite-math-only break the handling of NaN and infinity; compile without them"
#endif

#define RUVECTOR_CONCAT_(a, b, c, d, e, f, g, h) a##b##c##d##e##f##g##h
#define RUVECTOR_CONCAT(a, b, c, d, e, f, g, h) RUVECTOR_CONCAT_(a, b, c, d, e, f, g, h)

// RUVECTOR_FLAG(M) is the token 1 if M is a macro defined as 1, else 0.
#define RUVECTOR_FLAG_COMMA_1 0,
#define RUVECTOR_FLAG_SECOND(ignored, value, ...) value
#define RUVECTOR_FLAG_PICK(comma_or_junk) RUVECTOR_FLAG_SECOND(comma_or_junk 1, 0, 0)
#define RUVECTOR_FLAG_PASTE(value) RUVECTOR_FLAG_PICK(RUVECTOR_FLAG_COMMA_##value)
#define RUVECTOR_FLAG(macro) RUVECTOR_FLAG_PASTE(macro)

#if defined(RUVECTOR_SCALAR)
#define RUVECTOR_ABI_TARGET scalar
#elif defined(__AVX512F__)
#define RUVECTOR_ABI_TARGET avx512
#elif defined(__AVX2__)
#define RUVECTOR_ABI_TARGET avx2
#elif defined(__AVX__)
#define RUVECTOR_ABI_TARGET avx
#elif defined(__SSE2__)
#define RUVECTOR_ABI_TARGET sse
#elif defined(__ARM_NEON)
#define RUVECTOR_ABI_TARGET neon
#else
#define RUVECTOR_ABI_TARGET other
#endif

#if defined(__x86_64__) || defined(__i386__)
#define RUVECTOR_ABI_ISA                                                                                       \
  RUVECTOR_CONCAT(                                                                                             \
      RUVECTOR_CONCAT(RUVECTOR_FLAG(__SSE3__), RUVECTOR_FLAG(__SSSE3__), RUVECTOR_FLAG(__SSE4_1__),            \
                      RUVECTOR_FLAG(__SSE4_2__), RUVECTOR_FLAG(__POPCNT__), RUVECTOR_FLAG(__LZCNT__),          \
                      RUVECTOR_FLAG(__BMI__), RUVECTOR_FLAG(__BMI2__)),                                        \
      RUVECTOR_CONCAT(RUVECTOR_FLAG(__AVX__), RUVECTOR_FLAG(__F16C__), RUVECTOR_FLAG(__FMA__),                 \
                      RUVECTOR_FLAG(__FMA4__), RUVECTOR_FLAG(__XOP__), RUVECTOR_FLAG(__AVX2__),                \
                      RUVECTOR_FLAG(__AVXVNNI__), RUVECTOR_FLAG(__MOVBE__)),                                   \
      RUVECTOR_CONCAT(RUVECTOR_FLAG(__AVX512F__), RUVECTOR_FLAG(__AVX512CD__), RUVECTOR_FLAG(__AVX512BW__),    \
                      RUVECTOR_FLAG(__AVX512DQ__), RUVECTOR_FLAG(__AVX512VL__), RUVECTOR_FLAG(__AVX512IFMA__), \
                      RUVECTOR_FLAG(__AVX512VBMI__), RUVECTOR_FLAG(__AVX512VBMI2__)),                          \
      RUVECTOR_CONCAT(RUVECTOR_FLAG(__AVX512VNNI__), RUVECTOR_FLAG(__AVX512BITALG__),                          \
                      RUVECTOR_FLAG(__AVX512VPOPCNTDQ__), RUVECTOR_FLAG(__AVX512BF16__),                       \
                      RUVECTOR_FLAG(__AVX512FP16__), RUVECTOR_FLAG(__SSE2__), RUVECTOR_FLAG(__GFNI__), ),      \
      , , , )
#else
#define RUVECTOR_ABI_ISA                                                                                         \
  RUVECTOR_CONCAT(RUVECTOR_FLAG(__ARM_NEON), RUVECTOR_FLAG(__ARM_FEATURE_FMA), RUVECTOR_FLAG(__ARM_FEATURE_SVE), \
                  RUVECTOR_FLAG(__ARM_FEATURE_SVE2), RUVECTOR_FLAG(__ARM_FEATURE_DOTPROD),                       \
                  RUVECTOR_FLAG(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC), RUVECTOR_FLAG(__ARM_FEATURE_BF16),        \
                  RUVECTOR_FLAG(__wasm_simd128__))
#endif

#ifdef NDEBUG
#define RUVECTOR_ABI_ASSERTIONS release
#else
#define RUVECTOR_ABI_ASSERTIONS debug
#endif

#ifdef __cpp_exceptions
#define RUVECTOR_ABI_EXCEPTIONS
#else
#define RUVECTOR_ABI_EXCEPTIONS _noexcept
#endif

#define RUVECTOR_ABI_VERSION \
  RUVECTOR_CONCAT(v, RUVECTOR_VERSION_MAJOR, _, RUVECTOR_VERSION_MINOR, _, RUVECTOR_VERSION_PATCH, , )

#define RUVECTOR_ABI                                                                                              \
  RUVECTOR_CONCAT(RUVECTOR_ABI_VERSION, _, RUVECTOR_ABI_TARGET, _x, RUVECTOR_ABI_ISA, _, RUVECTOR_ABI_ASSERTIONS, \
                  RUVECTOR_ABI_EXCEPTIONS)
