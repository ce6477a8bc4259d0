// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::io {

/// The system calls that saving a file makes. A test hands in its own to let any of them fail, or the process die.
struct PosixCalls {
  /// As POSIX has it.
  ///@{
  int open(const char* path, int flags, ::mode_t mode) { return ::open(path, flags, mode); }
  int fchmod(int file, ::mode_t mode) { return ::fchmod(file, mode); }
  ::ssize_t write(int file, const void* bytes, std::size_t count) { return ::write(file, bytes, count); }
  int fsync(int file) { return ::fsync(file); }
  int close(int file) { return ::close(file); }
  int rename(const char* from, const char* to) { return std::rename(from, to); }
  int unlink(const char* path) { return ::unlink(path); }
  ///@}
};

/// Writes a file so that its path always holds the old content or the complete new one: whatever fails, and whenever
/// the process or the machine dies.
///
///   AtomicFile file("model.npy");
///   file.write(bytes);
///   file.commit();
///
/// The bytes go to a temporary of a unique name in the same directory; commit() is fsync(file), rename,
/// fsync(directory). Without commit() nothing changes: the destructor removes the temporary. (A killed process leaves
/// `.ruvector-<process>-<number>.tmp` behind.) An existing file keeps its permissions; readers that have it open or
/// mapped keep the old content; a symbolic link is replaced, not followed. Throws FileError. Not to be used after it
/// has thrown. Source: Pillai et al. 2014, "All file systems are not created equal".
template <class Calls>
class BasicAtomicFile {
 public:
  /// Creates the temporary. Throws FileError if `path` is anything but a regular file or a free name.
  explicit BasicAtomicFile(std::string path, Calls calls = {}) : calls_(calls), path_(std::move(path)) {
    buffer_.reserve(buffer_size);
    directory_ = path_.substr(0, path_.rfind('/') + 1);  // "" where there is no slash: npos + 1 is 0
    struct ::stat old;
    const bool exists = ::stat(path_.c_str(), &old) == 0;
    if (exists && !S_ISREG(old.st_mode)) throw_file_error(path_, "cannot save over what is not a regular file", EINVAL);
    create_temporary();
    if (exists && calls_.fchmod(file_, old.st_mode & 07777) != 0) fail("cannot set the permissions of the new file");
  }
  BasicAtomicFile(const BasicAtomicFile&) = delete;
  BasicAtomicFile& operator=(const BasicAtomicFile&) = delete;
  /// Removes the temporary, unless committed.
  ~BasicAtomicFile() { discard(); }

  /// Appends bytes.
  void write(std::span<const std::byte> bytes) {
    if (buffer_.size() + bytes.size() > buffer_size) flush();
    if (bytes.size() >= buffer_size) {
      write_through(bytes);
    } else {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
  }
  /// Appends text.
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Makes the new content durable and puts it in place of the old. Call once, last. If only the last step fails, the
  /// syncing of the directory, then the new file is in place and complete, but may not survive a loss of power.
  void commit() {
    flush();
    if (retry([&] { return calls_.fsync(file_); }) != 0) fail("cannot bring to the disk");
    const int closed = calls_.close(std::exchange(file_, -1));  // never again: the number may be another's by now
    if (closed != 0 && errno != EINTR) fail("cannot close");
    const std::string where = directory_.empty() ? "." : directory_;
    directory_file_ = retry([&] { return calls_.open(where.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); });
    if (directory_file_ < 0) fail("cannot open its directory");
    if (calls_.rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot rename the new file to it");
    temporary_.clear();
    // EINVAL: a file system that has no way to do this
    if (retry([&] { return calls_.fsync(directory_file_); }) != 0 && errno != EINVAL)
      fail("is in place, but cannot bring its directory to the disk");
    discard();
  }

 private:
  static constexpr std::size_t buffer_size = std::size_t(1) << 16;

  // The file's own name is not part of it: that may be as long as names can be already.
  void create_temporary() {
    constexpr int attempts = 10000;  // names taken by other writers of this process, or left by a killed one
    for (int i = 0; i < attempts; ++i) {
      temporary_ = directory_ + ".ruvector-" + std::to_string(::getpid()) + "-" + std::to_string(i) + ".tmp";
      file_ = retry([&] { return calls_.open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
      if (file_ >= 0) return;
      if (errno != EEXIST) break;
    }
    temporary_.clear();  // not ours
    fail("cannot create a temporary file beside it");
  }

  void flush() {
    write_through(buffer_);
    buffer_.clear();
  }

  void write_through(std::span<const std::byte> bytes) {
    constexpr std::size_t most = std::size_t(1) << 30;  // Linux writes at most 2 GiB in one call
    while (!bytes.empty()) {
      errno = EIO;  // for a count of 0
      const ::ssize_t count = calls_.write(file_, bytes.data(), std::min(bytes.size(), most));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) fail("cannot write");
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

  template <class Call>
  static int retry(Call&& call) {
    while (true) {
      const int result = call();
      if (result >= 0 || errno != EINTR) return result;
    }
  }

  [[noreturn, gnu::cold, gnu::noinline]] void fail(std::string_view step) {
    const int error_number = errno;
    discard();
    throw_file_error(path_, step, error_number);
  }

  void discard() noexcept {
    if (file_ >= 0) calls_.close(std::exchange(file_, -1));
    if (directory_file_ >= 0) calls_.close(std::exchange(directory_file_, -1));
    if (!temporary_.empty()) calls_.unlink(temporary_.c_str());
    temporary_.clear();
  }

  [[no_unique_address]] Calls calls_;
  std::string path_;
  std::string directory_;  // with its slash
  std::string temporary_;  // empty: there is none
  std::vector<std::byte> buffer_;
  int file_ = -1;
  int directory_file_ = -1;
};

/// Saves a file all or nothing: `BasicAtomicFile` on the operating system's own calls.
using AtomicFile = BasicAtomicFile<PosixCalls>;

}  // namespace ruvector::inline RUVECTOR_ABI::io
