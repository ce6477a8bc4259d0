// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"
#include "text_files.hpp"
#include "wordnet.hpp"

#include <ruvector/core/error.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/io/npy.hpp>

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

}  // namespace examples
