// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/io/file.hpp"

#include <sys/mman.h>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::io {

/// A file in the address space: its bytes are read from the disk when they are looked at, and shared with all who map
/// it. A file that is replaced, as AtomicFile does it, stays as it was; one that is cut short in place ends the process
/// (SIGBUS). Movable: the bytes stay where they are.
class MappedFile {
 public:
  /// Maps the file. Throws FileError where InputFile does, FormatError if it is longer than limits.max_bytes.
  explicit MappedFile(const std::string& path, Limits limits = {}) {
    const InputFile file(path);
    check_file_size(path, file.size(), limits);
    if (file.size() == 0) return;  // cannot be mapped
    size_ = static_cast<std::size_t>(file.size());
    void* const memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (memory == MAP_FAILED) throw_file_error(path, "cannot map", errno);
    data_ = static_cast<const std::byte*>(memory);
  }
  /// Takes over the mapping; the other is left empty.
  ///@{
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ///@}
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  /// The whole file; starts at a page.
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::io
