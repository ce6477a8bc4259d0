// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/version.hpp"

// RUVECTOR_ABI names the inline namespace that holds everything. It spells the version and each compiler setting that
// changes the code of a header-only SIMD library, so that files compiled for different targets never merge at link
// time.
//
//   namespace ruvector::inline RUVECTOR_ABI::geometry { ... }
//
// Read a tag as  v<version>_<instruction set>_x<a hexadecimal digit for four macros below>_<assertions><exceptions>.

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

// RUVECTOR_FLAGS(a, b, c, d) is the hexadecimal digit of four flags: short tags make readable messages.
#define RUVECTOR_HEX_0000 0
#define RUVECTOR_HEX_0001 1
#define RUVECTOR_HEX_0010 2
#define RUVECTOR_HEX_0011 3
#define RUVECTOR_HEX_0100 4
#define RUVECTOR_HEX_0101 5
#define RUVECTOR_HEX_0110 6
#define RUVECTOR_HEX_0111 7
#define RUVECTOR_HEX_1000 8
#define RUVECTOR_HEX_1001 9
#define RUVECTOR_HEX_1010 A
#define RUVECTOR_HEX_1011 B
#define RUVECTOR_HEX_1100 C
#define RUVECTOR_HEX_1101 D
#define RUVECTOR_HEX_1110 E
#define RUVECTOR_HEX_1111 F
#define RUVECTOR_FLAGS(a, b, c, d) \
  RUVECTOR_CONCAT(RUVECTOR_HEX_, RUVECTOR_FLAG(a), RUVECTOR_FLAG(b), RUVECTOR_FLAG(c), RUVECTOR_FLAG(d), , , )

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
#define RUVECTOR_ABI_ISA                                                                             \
  RUVECTOR_CONCAT(RUVECTOR_FLAGS(__SSE2__, __SSE3__, __SSSE3__, __SSE4_1__),                         \
                  RUVECTOR_FLAGS(__SSE4_2__, __POPCNT__, __LZCNT__, __MOVBE__),                      \
                  RUVECTOR_FLAGS(__BMI__, __BMI2__, __FMA4__, __XOP__),                              \
                  RUVECTOR_FLAGS(__AVX__, __F16C__, __FMA__, __AVX2__),                              \
                  RUVECTOR_FLAGS(__AVXVNNI__, __GFNI__, __AVX512F__, __AVX512CD__),                  \
                  RUVECTOR_FLAGS(__AVX512BW__, __AVX512DQ__, __AVX512VL__, __AVX512IFMA__),          \
                  RUVECTOR_FLAGS(__AVX512VBMI__, __AVX512VBMI2__, __AVX512VNNI__, __AVX512BITALG__), \
                  RUVECTOR_FLAGS(__AVX512VPOPCNTDQ__, __AVX512BF16__, __AVX512FP16__, __AVX512VP2INTERSECT__))
#else
#define RUVECTOR_ABI_ISA                                                                                          \
  RUVECTOR_CONCAT(RUVECTOR_FLAGS(__ARM_NEON, __ARM_FEATURE_FMA, __ARM_FEATURE_SVE, __ARM_FEATURE_SVE2),           \
                  RUVECTOR_FLAGS(__ARM_FEATURE_DOTPROD, __ARM_FEATURE_FP16_VECTOR_ARITHMETIC, __ARM_FEATURE_BF16, \
                                 __wasm_simd128__),                                                               \
                  , , , , , )
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
