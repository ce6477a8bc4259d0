// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/error.hpp>
#include <ruvector/io/atomic_file.hpp>

#include <fstream>
#include <iterator>
#include <string>

namespace examples {

/// The whole file. Throws FormatError where it cannot be read.
[[nodiscard]] inline std::string read_text(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) ruvector::throw_format_error(path, "cannot open");
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Replaces the file, all or nothing.
inline void write_text(const std::string& path, const std::string& text) {
  ruvector::io::AtomicFile file(path);
  file.write(text);
  file.commit();
}

/// Appends a line to a CSV file, which gets the header if it is new. Throws FormatError if it has another one.
inline void append_csv(const std::string& path, const std::string& header, const std::string& line) {
  std::string text;
  if (std::ifstream(path)) text = read_text(path);
  if (text.empty()) text = header + "\n";
  if (!text.starts_with(header + "\n")) ruvector::throw_format_error(path, "does not start with \"" + header + "\"");
  if (!text.ends_with('\n')) text += '\n';
  write_text(path, text + line + "\n");
}

}  // namespace examples
