// SPDX-License-Identifier: MIT
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I include tests/fuzz/fuzz_ruvector_json.cpp
#include <ruvector/io/ruvector_json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

// Any text: refused with a FormatError, or a layer that is written and read again as it is.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto layer = ruvector::io::parse_ruvector_json<float>(text, {.max_bytes = 1 << 20, .max_items = 1 << 20});
    if (std::size_t(ruvector::parameter_count(layer)) > size) std::abort();
    const std::string written = ruvector::io::to_ruvector_json(layer);
    if (ruvector::io::to_ruvector_json(ruvector::io::parse_ruvector_json<float>(written)) != written) std::abort();
  } catch (const ruvector::FormatError&) {
  }
  return 0;
}
