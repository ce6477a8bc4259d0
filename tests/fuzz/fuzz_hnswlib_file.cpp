// SPDX-License-Identifier: MIT
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I include tests/fuzz/fuzz_hnswlib_file.cpp
#include <ruvector/graph/hnsw_diagnosis.hpp>
#include <ruvector/io/hnswlib_file.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

// Any bytes: refused with a FormatError, or loaded as layers that fit them and that can be walked.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto read = [&]<class T>(T) {
    try {
      const auto layers = ruvector::io::read_hnswlib<T>(file, {.max_bytes = 1 << 20});
      if (std::size_t(layers.vectors().rows() * layers.vectors().cols()) * sizeof(T) > size) std::abort();
      if (ruvector::graph::diagnose(layers).size() != std::size_t(layers.levels())) std::abort();
    } catch (const ruvector::FormatError&) {
    }
  };
  read(float());
  read(double());
  return 0;
}
