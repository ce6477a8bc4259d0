// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/io/file.hpp>

#include "support/catch.hpp"

#include <unistd.h>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <locale>
#include <span>
#include <string>
#include <vector>

// What tests of files share.
namespace io_files {

using Bytes = std::vector<std::byte>;

// An empty directory of its own for each test. In memory, where there is such a place, nobody waits for a disk: for
// tests that save hundreds of files.
struct Directory {
  enum Place { on_disk, in_memory };
  std::filesystem::path path;
  explicit Directory(Place place = on_disk) {
    const std::filesystem::path memory = "/dev/shm";
    const bool there = place == in_memory && ::access(memory.c_str(), W_OK) == 0;
    std::string name = ((there ? memory : std::filesystem::temp_directory_path()) / "ruvector_test_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path); }
  [[nodiscard]] std::string operator/(const char* name) const { return (path / name).string(); }
  [[nodiscard]] std::ptrdiff_t files() const {
    return std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator());
  }
};

inline Bytes read(const std::string& path) {
  ruvector::io::InputFile file(path);
  Bytes bytes(static_cast<std::size_t>(file.size()));
  file.read(bytes);
  return bytes;
}

// In place, as nobody should save.
inline void write(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
}

// Numbers are 2.621,5 while it lives.
class GroupedLocale {
  struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
    char do_decimal_point() const override { return ','; }
  };
  std::locale old_ = std::locale::global(std::locale(std::locale::classic(), new Grouped));

 public:
  GroupedLocale() = default;
  GroupedLocale(const GroupedLocale&) = delete;
  GroupedLocale& operator=(const GroupedLocale&) = delete;
  ~GroupedLocale() { std::locale::global(old_); }
};

}  // namespace io_files
