// SPDX-License-Identifier: MIT
#pragma once

#include "interrupt.hpp"

#include <ruvector/core/progress.hpp>
#include <ruvector/core/view.hpp>

#include <hnswlib/hnswlib.h>

#include <chrono>
#include <filesystem>
#include <limits>
#include <string>

namespace examples {

/// An index of hnswlib's for Euclidean distances of float vectors, with the space that it refers to.
struct HnswlibIndex {
  hnswlib::L2Space space;                  ///< squared distances
  hnswlib::HierarchicalNSW<float> search;  ///< labels are the rows of the points

  /// Over the rows of `points` [n×d], added one after the other on one thread: the same index each time. Ctrl-C leaves
  /// the rest out. For 60,000 × 784, M 16: 30 s with ef_construction 200, 70 s with 500.
  HnswlibIndex(ruvector::MatrixView<const float> points, ruvector::Index links, ruvector::Index ef_construction,
               const ruvector::Progress& progress = {})
      : space(std::size_t(points.cols())),
        search(&space, std::size_t(points.rows()), std::size_t(links), std::size_t(ef_construction)) {
    const auto start = std::chrono::steady_clock::now();
    for (ruvector::Index i = 0; i < points.rows() && !interrupted(); ++i) {
      search.addPoint(points.row(i).data(), std::size_t(i));
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      if (progress) progress({i + 1, points.rows(), std::numeric_limits<double>::quiet_NaN(), time.count()});
    }
  }
  /// From a file. Throws what hnswlib throws.
  HnswlibIndex(const std::string& path, ruvector::Index dim) : space(std::size_t(dim)), search(&space, path) {}
  HnswlibIndex(const HnswlibIndex&) = delete;
  HnswlibIndex& operator=(const HnswlibIndex&) = delete;

  /// Replaces the file, all or nothing.
  void save(const std::string& path) {
    search.saveIndex(path + ".part");
    std::filesystem::rename(path + ".part", path);
  }
};

}  // namespace examples
