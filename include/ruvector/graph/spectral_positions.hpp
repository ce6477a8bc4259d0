// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/eigen.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/geometry/poincare_ball.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

// Coordinates of nodes that are eigenvectors; the others are in graph/positions.hpp.

namespace ruvector::inline RUVECTOR_ABI::graph {

/// The most nodes that `spectral_positions` takes: its solver needs O(n²) memory and O(n³) time, about 5 s there.
inline constexpr Index spectral_positions_limit = 2048;

namespace detail {

/// The edges without their direction, each half as heavy: (A + Aᵀ)/2 of the nodes that have any.
struct UndirectedGraph {
  std::vector<Index> place;  // of each node among those with edges, or −1
  EigenMatrix<double> weight;
  Index components = 0;

  template <NodeId I>
  explicit UndirectedGraph(CsrView<I> graph) : place(static_cast<std::size_t>(graph.nodes()), -1) {
    Index count = 0;
    for_each_edge(graph, [&](Index i, Index j) {
      for (const Index node : {i, j})
        if (Index& p = place[static_cast<std::size_t>(node)]; p < 0) p = count++;
    });
    weight.setZero(count, count);
    std::vector<Index> parent(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) parent[static_cast<std::size_t>(i)] = i;
    const auto root = [&](Index i) {
      while (parent[static_cast<std::size_t>(i)] != i) {
        Index& up = parent[static_cast<std::size_t>(i)];
        i = up = parent[static_cast<std::size_t>(up)];
      }
      return i;
    };
    components = count;
    for_each_edge(graph, [&](Index i, Index j) {
      const Index a = place[static_cast<std::size_t>(i)], b = place[static_cast<std::size_t>(j)];
      weight(a, b) += 0.5;
      weight(b, a) += 0.5;
      const Index root_a = root(a), root_b = root(b);
      if (root_a == root_b) return;
      parent[static_cast<std::size_t>(root_a)] = root_b;
      --components;
    });
  }

 private:
  template <NodeId I, class F>
  static void for_each_edge(CsrView<I> graph, F f) {
    for (Index i = 0; i < graph.nodes(); ++i)
      for (const I j : graph.neighbors(i)) f(i, static_cast<Index>(j));
  }
};

}  // namespace detail

/// The m eigenvectors of I − D^(−1/2) A D^(−1/2) with the lowest eigenvalues above 0, ascending, each scaled so that
/// its largest |r| is 1: [n×m]. Edges count without direction, A = (A + Aᵀ)/2, duplicates by their number. Each
/// connected component has one eigenvalue 0, whose vector tells nothing and is left out. Nodes without edges, and
/// columns beyond the last eigenvector, are 0. The sign of a column is arbitrary, and so is the basis where eigenvalues
/// coincide; in training flip signs at random. Throws ShapeError, ConfigError for more than `spectral_positions_limit`
/// nodes. O(n³). Source: Dwivedi & Bresson 2021.
template <NodeId I, Real T>
void spectral_positions(CsrView<I> graph, MatrixView<T> out) {
  check_shape("spectral_positions: rows", graph.nodes(), out.rows());
  if (graph.nodes() > spectral_positions_limit) [[unlikely]]
    throw_config_error("spectral_positions: nodes", "at most 2048", static_cast<double>(graph.nodes()));
  for (Index i = 0; i < out.rows(); ++i) std::ranges::fill(out.row(i), T(0));
  const detail::UndirectedGraph undirected(graph);
  const Index count = undirected.weight.rows();
  if (count == 0) return;
  const Eigen::VectorXd inverse_root = undirected.weight.rowwise().sum().cwiseSqrt().cwiseInverse();
  EigenMatrix<double> laplacian = EigenMatrix<double>::Identity(count, count);
  laplacian.noalias() -= inverse_root.asDiagonal() * undirected.weight * inverse_root.asDiagonal();
  const Eigen::SelfAdjointEigenSolver<EigenMatrix<double>> solver(laplacian);
  RUVECTOR_ASSERT(solver.info() == Eigen::Success);
  const EigenMatrix<double>& vectors = solver.eigenvectors();  // columns, ascending
  for (Index k = 0; k < std::min(out.cols(), count - undirected.components); ++k) {
    const Index column = undirected.components + k;
    Index largest = 0;
    vectors.col(column).cwiseAbs().maxCoeff(&largest);
    for (Index i = 0; i < out.rows(); ++i)
      if (const Index p = undirected.place[static_cast<std::size_t>(i)]; p >= 0)
        out(i, k) = static_cast<T>(vectors(p, column) / vectors(largest, column));
  }
}

/// The first m principal coordinates of log_0(x), in the units of tangent vectors: for points of a hierarchy in the
/// ball [n×d], depth and branch: [n×m]. Columns beyond the d-th are 0. The sign of a column is arbitrary, and so is the
/// basis where variances coincide. Throws ShapeError. O(n d² + d³).
template <Real T>
void tangent_positions(const geometry::PoincareBall<T>& ball, std::type_identity_t<MatrixView<const T>> points,
                       MatrixView<T> out) {
  check_shape("tangent_positions: rows", points.rows(), out.rows());
  for (Index i = 0; i < out.rows(); ++i) std::ranges::fill(out.row(i), T(0));
  if (points.empty()) return;
  Matrix<T> tangent(points.rows(), points.cols());
  for (Index i = 0; i < points.rows(); ++i) ball.log0(points.row(i), tangent.row(i));
  EigenMatrix<double> centred = eigen(tangent).template cast<double>();
  const Eigen::RowVectorXd mean = centred.colwise().mean();
  centred.rowwise() -= mean;
  EigenMatrix<double> covariance(points.cols(), points.cols());
  covariance.noalias() = centred.transpose() * centred;
  const Eigen::SelfAdjointEigenSolver<EigenMatrix<double>> solver(covariance);
  RUVECTOR_ASSERT(solver.info() == Eigen::Success);
  for (Index k = 0; k < std::min(out.cols(), points.cols()); ++k) {
    const Eigen::VectorXd coordinate = centred * solver.eigenvectors().col(points.cols() - 1 - k);
    for (Index i = 0; i < out.rows(); ++i) out(i, k) = static_cast<T>(coordinate(i));
  }
}

}  // namespace ruvector::inline RUVECTOR_ABI::graph
