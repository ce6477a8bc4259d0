// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"
#include "wordnet.hpp"

#include <ruvector/core/error.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/io/atomic_file.hpp>
#include <ruvector/io/npy.hpp>

#include <fstream>
#include <iterator>
#include <string>

namespace examples {

/// x.npy → x.ids.txt
[[nodiscard]] inline std::string ids_path(const std::string& npy_path) {
  return (npy_path.ends_with(".npy") ? npy_path.substr(0, npy_path.size() - 4) : npy_path) + ".ids.txt";
}

/// The synset offsets of the nodes, one a line: which row is which concept.
[[nodiscard]] inline std::string ids_text(const wordnet::Database& database, const Hierarchy& hierarchy) {
  std::string text;
  for (const std::int32_t position : hierarchy.synset)
    text += std::to_string(database.synsets[static_cast<std::size_t>(position)].offset) + "\n";
  return text;
}

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

/// Saves points [n×columns] as .npy, and beside them which row is which synset.
inline void save_embedding(const std::string& path, const wordnet::Database& database, const Hierarchy& hierarchy,
                           const ruvector::Matrix<double>& points) {
  write_text(ids_path(path), ids_text(database, hierarchy));
  ruvector::io::write_npy(path, points);
}

/// Loads what `save_embedding` saved. Throws FormatError unless it belongs to this hierarchy.
[[nodiscard]] inline ruvector::Matrix<double> load_embedding(const std::string& path, const wordnet::Database& database,
                                                             const Hierarchy& hierarchy) {
  if (read_text(ids_path(path)) != ids_text(database, hierarchy))
    ruvector::throw_format_error(ids_path(path), "holds other synsets than this hierarchy (--pos, --root, --wordnet)");
  ruvector::Matrix<double> points = ruvector::io::read_npy_matrix<double>(path);
  if (points.rows() != hierarchy.size() || points.cols() < 1)
    ruvector::throw_format_error(path, "has " + std::to_string(points.rows()) + " rows where the hierarchy has " +
                                           std::to_string(hierarchy.size()) + " nodes");
  return points;
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
