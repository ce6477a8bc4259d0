// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#if !defined(__unix__) && !defined(__APPLE__)
#error "ruvector/io needs POSIX file calls; a version for Windows does not exist yet"
#endif

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::io {

/// How much a reader may take in; given with each call, since what is sane depends on the caller.
struct Limits {
  Index max_bytes = Index(1) << 40;  ///< size of the file
  Index max_items =
      Index(1) << 38;  ///< elements of an array; also bounds each dimension, which matters where another is 0
};

/// A file that the operating system would not open, read or write. The message has the path, the step and the reason
/// ("x.npy: cannot open: No such file or directory"). A file that was read but holds nonsense is a FormatError.
class FileError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws FileError "path: step: text of the error number".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_file_error(std::string_view path, std::string_view step,
                                                                    int error_number) {
  ruvector::detail::raise<FileError>(
      "FileError", std::string(path) + ": " + std::string(step) + ": " + std::generic_category().message(error_number));
}

/// Throws FormatError if a file of `size` bytes is longer than the limits allow.
inline void check_file_size(std::string_view path, Index size, Limits limits) {
  if (size > limits.max_bytes) [[unlikely]]
    throw_format_error(path,
                       "expected at most " + std::to_string(limits.max_bytes) + " bytes, got " + std::to_string(size));
}

/// A regular file open for reading. Throws FileError where it does not exist, is no regular file
/// (a directory, a pipe: they have no size to check lengths against), or cannot be read.
class InputFile {
 public:
  /// Opens the file.
  explicit InputFile(std::string path) : path_(std::move(path)) {
    do file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    while (file_ < 0 && errno == EINTR);
    if (file_ < 0) throw_file_error(path_, "cannot open", errno);
    struct ::stat status;
    const int error = ::fstat(file_, &status) != 0 ? errno : S_ISREG(status.st_mode) ? 0 : EINVAL;
    if (error != 0) {
      ::close(file_);
      throw_file_error(path_, "not a regular file", error);
    }
    size_ = static_cast<Index>(status.st_size);
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() { ::close(file_); }

  /// The path it was opened by.
  [[nodiscard]] const std::string& path() const { return path_; }
  /// Bytes in the file when it was opened.
  [[nodiscard]] Index size() const { return size_; }
  /// The number that the operating system knows it by.
  [[nodiscard]] int descriptor() const { return file_; }

  /// Goes to a position, in bytes from the start.
  void seek(Index position) {
    if (::lseek(file_, position, SEEK_SET) < 0) throw_file_error(path_, "cannot seek", errno);
  }
  /// Fills `bytes` from the current position. Throws FormatError if the file ends before.
  void read(std::span<std::byte> bytes) {
    constexpr std::size_t most = std::size_t(1) << 30;  // Linux reads at most 2 GiB in one call
    while (!bytes.empty()) {
      const ::ssize_t count = ::read(file_, bytes.data(), std::min(bytes.size(), most));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw_file_error(path_, "cannot read", errno);
      if (count == 0) throw_format_error(path_, "the file ended early: it became shorter while it was read");
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

 private:
  std::string path_;
  int file_ = -1;
  Index size_ = 0;
};

}  // namespace ruvector::inline RUVECTOR_ABI::io
