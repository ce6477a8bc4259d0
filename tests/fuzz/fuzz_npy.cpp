// SPDX-License-Identifier: MIT
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I include tests/fuzz/fuzz_npy.cpp
#include <ruvector/io/npy.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

// Any bytes: refused with a FormatError, or loaded with a shape that fits them.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const ruvector::io::Limits limits{.max_bytes = 1 << 20, .max_items = 1 << 20};
  const auto read = [&]<class T>(T) {
    try {
      const auto x = ruvector::io::read_npy_matrix<T>(file, limits);
      if (std::size_t(x.size()) * sizeof(T) > size) std::abort();
    } catch (const ruvector::FormatError&) {
    }
    try {
      const auto x = ruvector::io::read_npy_vector<T>(file, limits);
      if (std::size_t(x.size()) * sizeof(T) > size) std::abort();
    } catch (const ruvector::FormatError&) {
    }
  };
  read(float());
  read(double());
  read(std::int32_t());
  read(std::int64_t());
  return 0;
}
