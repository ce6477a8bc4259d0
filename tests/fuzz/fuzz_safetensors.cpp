// SPDX-License-Identifier: MIT
// clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -I include tests/fuzz/fuzz_safetensors.cpp
#include <ruvector/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace {

using ruvector::Index;
using ruvector::io::SafetensorsTensor;

// Every way to look at a tensor: refused, or within its bytes.
template <class T>
void look(const SafetensorsTensor& tensor) {
  try {
    std::vector<std::byte> memory(tensor.bytes.size() + sizeof(T));
    const std::span<T> out(reinterpret_cast<T*>(memory.data()), std::size_t(tensor.size()));
    tensor.copy_to(out);
    if constexpr (!std::is_same_v<T, bool>)
      if (std::memcmp(out.data(), tensor.bytes.data(), tensor.bytes.size()) != 0) std::abort();
  } catch (const ruvector::FormatError&) {
  }
  if constexpr (!std::is_same_v<T, bool>) try {
      if (tensor.values<T>().size_bytes() != tensor.bytes.size()) std::abort();
    } catch (const ruvector::FormatError&) {
    }
}

void read(std::span<const std::byte> file, ruvector::io::Checksum checksum) {
  try {
    const auto content = ruvector::io::read_safetensors(file, {.max_bytes = 1 << 20, .max_items = 1 << 20}, checksum);
    std::size_t total = 0;
    for (const SafetensorsTensor& tensor : content.tensors) {
      if (content.find(tensor.name) != &tensor) std::abort();
      Index items = 1;
      for (const Index n : tensor.shape) items *= n;
      if (items != tensor.size()) std::abort();
      if (!tensor.bytes.empty() && (tensor.bytes.data() < file.data() || &tensor.bytes.back() > &file.back()))
        std::abort();
      total += tensor.bytes.size();
      look<double>(tensor), look<float>(tensor), look<ruvector::simd::float16>(tensor);
      look<std::int64_t>(tensor), look<std::uint8_t>(tensor), look<bool>(tensor);
    }
    if (total > file.size()) std::abort();
  } catch (const ruvector::FormatError&) {
  }
}

}  // namespace

// Any bytes: refused with a FormatError, or tensors that lie within them. Then the same as a header that has the length
// it says, so that more of them get past the first check.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  read(file, ruvector::io::Checksum::verify);
  read(file, ruvector::io::Checksum::ignore);
  if (size < 9) return 0;
  std::vector<std::byte> whole(file.begin(), file.end());
  std::size_t end = size;
  while (end > 8 && whole[end - 1] != std::byte('}')) --end;
  const std::uint64_t length = end - 8;
  std::memcpy(whole.data(), &length, 8);
  read(whole, ruvector::io::Checksum::ignore);
  return 0;
}
