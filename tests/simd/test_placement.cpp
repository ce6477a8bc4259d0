// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/simd/convert.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/math.hpp>
#include <ruvector/simd/top_k.hpp>

#include "simd/guarded_memory.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

// P-33: a kernel gives the same bits wherever its operands lie, and touches nothing beside them. Pointers are aligned
// to their element; nothing is promised below that.

namespace test_placement {
namespace {

namespace simd = ruvector::simd;
using ruvector::Index;

constexpr Index longest = 257;

/// Reads a and b [n], writes y [n]; returns all the bytes it made.
template <class In, class Out>
struct Kernel {
  const char* name;
  std::vector<unsigned char> (*run)(const In* a, const In* b, Out* y, Index n);
};

template <class X>
std::vector<unsigned char> bytes_of(const X* x, Index n) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(n) * sizeof(X));
  if (n > 0) std::memcpy(bytes.data(), x, bytes.size());
  return bytes;
}
template <class T>
std::span<T> span_of(T* p, Index n) {
  return {p, static_cast<std::size_t>(n)};
}

template <class T>
std::vector<Kernel<T, T>> real_kernels() {
#define RUVECTOR_TEST_SUM(function, ...)               \
  {                                                    \
#function, [](const T* a, const T* b, T*, Index n) { \
     static_cast<void>(b);                            \
     const T sum = simd::function(__VA_ARGS__, n);    \
     return bytes_of(&sum, 1);                        \
   } \
  }
#define RUVECTOR_TEST_TRANSFORM(function)                        \
  {                                                              \
#function, [](const T* a, const T*, T* y, Index n) {           \
     simd::function(std::span<const T>(span_of(a, n)), span_of(y, n)); \
     return bytes_of(y, n);                                       \
   } \
  }
  return {RUVECTOR_TEST_SUM(dot, a, b),
          RUVECTOR_TEST_SUM(squared_distance, a, b),
          RUVECTOR_TEST_SUM(squared_norm, a),
          RUVECTOR_TEST_SUM(sum, a),
          {"axpy",
           [](const T* a, const T* b, T* y, Index n) {
             std::copy(b, b + n, y);
             simd::axpy(T(0.3), a, y, n);
             return bytes_of(y, n);
           }},
          {"scale",
           [](const T* a, const T*, T* y, Index n) {
             std::copy(a, a + n, y);
             simd::scale(T(0.3), y, n);
             return bytes_of(y, n);
           }},
          RUVECTOR_TEST_TRANSFORM(exp),
          RUVECTOR_TEST_TRANSFORM(exp2_softmax),
          RUVECTOR_TEST_TRANSFORM(log),
          RUVECTOR_TEST_TRANSFORM(log1p),
          RUVECTOR_TEST_TRANSFORM(tanh),
          RUVECTOR_TEST_TRANSFORM(sigmoid),
          RUVECTOR_TEST_TRANSFORM(asinh),
          RUVECTOR_TEST_TRANSFORM(atanh),
          {"TopK", [](const T* a, const T*, T*, Index n) {
             std::vector<simd::Ranked<T>> buffer(static_cast<std::size_t>(simd::TopK<T>::buffer_size(10)));
             simd::TopK<T> best(10, buffer);
             best.push(span_of(a, n), 0);
             std::vector<Index> ids(10);
             std::vector<T> scores(10);
             best.finish(ids, scores);
             return bytes_of(ids.data(), 10);
           }}};
#undef RUVECTOR_TEST_SUM
#undef RUVECTOR_TEST_TRANSFORM
}

template <class In, class Out>
Kernel<In, Out> conversion(const char* name) {
  return {name, [](const In* a, const In*, Out* y, Index n) {
            simd::convert(std::span<const In>(span_of(a, n)), span_of(y, n));
            return bytes_of(y, n);
          }};
}

template <class In, class Out, class Make>
void check_placements(const std::vector<Kernel<In, Out>>& kernels, Make make) {
  std::vector<In> a(longest + 64), b(longest + 64);
  std::vector<Out> y(longest + 64);
  const GuardedMemory<In> guarded_a(longest), guarded_b(longest);
  const GuardedMemory<Out> guarded_y(longest);
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = make();
    b[i] = make();
  }
  for (const Kernel<In, Out>& kernel : kernels) {
    for (Index n = 0; n <= longest; ++n) {
      CAPTURE(kernel.name, n);
      const std::vector<unsigned char> expected = kernel.run(a.data(), b.data(), y.data(), n);
      // Before the guard every length is another offset from the 64-byte grid.
      In* a_end = guarded_a.at_end(n);
      In* b_end = guarded_b.at_end(n);
      std::copy(a.begin(), a.begin() + n, a_end);
      std::copy(b.begin(), b.begin() + n, b_end);
      const bool end = kernel.run(a_end, b_end, guarded_y.at_end(n), n) == expected;
      std::copy(a.begin(), a.begin() + n, guarded_a.at_begin());
      std::copy(b.begin(), b.begin() + n, guarded_b.at_begin());
      const bool begin = kernel.run(guarded_a.at_begin(), guarded_b.at_begin(), guarded_y.at_begin(), n) == expected;
      // Operands that are offset against each other.
      const Index shift = n % 63 + 1;
      std::vector<In> moved(a.size() + 64);
      std::copy(a.begin(), a.begin() + n, moved.begin() + shift);
      const bool inside = kernel.run(moved.data() + shift, b.data(), y.data() + n % 3, n) == expected;
      CHECK((end && begin && inside));
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("placement: results do not depend on where the operands lie", "[simd]", float, double) {
  constexpr std::uint64_t seed = 50;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  check_placements(real_kernels<TestType>(), [&] { return rng.uniform(TestType(-0.999), TestType(0.999)); });
}

TEST_CASE("placement: conversions do not depend on where the operands lie", "[simd]") {
  constexpr std::uint64_t seed = 51;
  CAPTURE(seed);
  ruvector::Rng rng(seed);
  const auto number = [&] { return rng.uniform(-10.0f, 10.0f); };
  check_placements<float, simd::bfloat16>({conversion<float, simd::bfloat16>("bfloat16")}, number);
  check_placements<float, simd::float16>({conversion<float, simd::float16>("float16")}, number);
  check_placements<simd::bfloat16, float>({conversion<simd::bfloat16, float>("bfloat16 to float")},
                                          [&] { return simd::bfloat16(number()); });
  check_placements<simd::float16, float>({conversion<simd::float16, float>("float16 to float")},
                                         [&] { return simd::float16(number()); });
  check_placements<float, std::int8_t>({{"quantize",
                                         [](const float* a, const float*, std::int8_t* y, Index n) {
                                           const float scale = simd::quantize(span_of(a, n), span_of(y, n));
                                           auto bytes = bytes_of(y, n);
                                           const auto more = bytes_of(&scale, 1);
                                           bytes.insert(bytes.end(), more.begin(), more.end());
                                           return bytes;
                                         }}},
                                       number);
  check_placements<std::int8_t, float>({{"dequantize",
                                         [](const std::int8_t* a, const std::int8_t*, float* y, Index n) {
                                           simd::dequantize(span_of(a, n), 0.1f, span_of(y, n));
                                           return bytes_of(y, n);
                                         }}},
                                       [&] { return static_cast<std::int8_t>(rng.below(255) - 127); });
}

}  // namespace test_placement
