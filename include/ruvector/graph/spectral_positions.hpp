// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/eigen.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/geometry/poincare_ball.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

// Coordinates of nodes that are eigenvectors; the others are in graph/positions.hpp.

namespace ruvector::inline RUVECTOR_ABI::graph {

namespace detail {

/// S = D^(−1/2) A D^(−1/2) of the nodes that have edges; an edge counts half for each of its directions.
class NormalizedAdjacency {
 public:
  template <NodeId I>
  explicit NormalizedAdjacency(CsrView<I> graph) : place_(static_cast<std::size_t>(graph.nodes()), -1) {
    const auto for_each_end = [&](auto f) {
      for (Index i = 0; i < graph.nodes(); ++i)
        for (const I j : graph.neighbors(i)) {
          f(i, static_cast<Index>(j));
          f(static_cast<Index>(j), i);
        }
    };
    Index count = 0;
    for_each_end([&](Index i, Index) {
      if (Index& p = place_[static_cast<std::size_t>(i)]; p < 0) p = count++;
    });
    first_.assign(static_cast<std::size_t>(count) + 1, 0);
    const auto place = [&](Index i) { return static_cast<std::size_t>(place_[static_cast<std::size_t>(i)]); };
    for_each_end([&](Index i, Index) { ++first_[place(i) + 1]; });
    for (std::size_t p = 1; p < first_.size(); ++p) first_[p] += first_[p - 1];
    std::vector<Index> next = first_;
    target_.resize(static_cast<std::size_t>(first_.back()));
    for_each_end(
        [&](Index i, Index j) { target_[static_cast<std::size_t>(next[place(i)]++)] = static_cast<Index>(place(j)); });
    for (Index i = 0; i < count; ++i) root_.push_back(std::sqrt(static_cast<double>(degree(i))));
    find_components();
  }

  /// Nodes that have edges.
  [[nodiscard]] Index size() const { return static_cast<Index>(first_.size()) - 1; }
  /// As many eigenvalues are 1.
  [[nodiscard]] Index components() const { return components_; }
  /// The row of a node, or −1.
  [[nodiscard]] Index place(Index node) const { return place_[static_cast<std::size_t>(node)]; }

  /// S as a matrix.
  [[nodiscard]] EigenMatrix<double> dense() const {
    EigenMatrix<double> matrix = EigenMatrix<double>::Zero(size(), size());
    for (Index i = 0; i < size(); ++i) for_each_neighbor(i, [&](Index j, double weight) { matrix(i, j) += weight; });
    return matrix;
  }

  /// y = a S x + b y.
  void multiply(double a, const EigenMatrix<double>& x, double b, EigenMatrix<double>& y) const {
    Eigen::RowVectorXd sum(x.cols());
    for (Index i = 0; i < size(); ++i) {
      sum.setZero();
      for_each_neighbor(i, [&](Index j, double weight) { sum += weight * x.row(j); });
      y.row(i) = a * sum + b * y.row(i);
    }
  }
  /// Makes columns orthogonal to the eigenvectors of eigenvalue 1: √d on each component.
  void remove_trivial(EigenMatrix<double>& x) const {
    EigenMatrix<double> share = EigenMatrix<double>::Zero(components_, x.cols());
    for (Index i = 0; i < size(); ++i) share.row(component_of(i)) += root(i) * x.row(i);
    for (Index c = 0; c < components_; ++c) share.row(c) /= volume_[static_cast<std::size_t>(c)];
    for (Index i = 0; i < size(); ++i) x.row(i) -= root(i) * share.row(component_of(i));
  }

 private:
  [[nodiscard]] Index degree(Index i) const {
    return first_[static_cast<std::size_t>(i) + 1] - first_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] double root(Index i) const { return root_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] Index component_of(Index i) const { return component_[static_cast<std::size_t>(i)]; }
  template <class F>
  void for_each_neighbor(Index i, F f) const {
    for (Index e = first_[static_cast<std::size_t>(i)]; e < first_[static_cast<std::size_t>(i) + 1]; ++e) {
      const Index j = target_[static_cast<std::size_t>(e)];
      f(j, 1 / (root(i) * root(j)));
    }
  }
  void find_components() {
    component_.assign(static_cast<std::size_t>(size()), -1);
    std::vector<Index> queue;
    for (Index start = 0; start < size(); ++start) {
      if (component_of(start) >= 0) continue;
      double volume = 0;
      queue.assign(1, start);
      component_[static_cast<std::size_t>(start)] = components_;
      for (std::size_t k = 0; k < queue.size(); ++k) {
        volume += static_cast<double>(degree(queue[k]));
        for_each_neighbor(queue[k], [&](Index j, double) {
          if (component_of(j) >= 0) return;
          component_[static_cast<std::size_t>(j)] = components_;
          queue.push_back(j);
        });
      }
      volume_.push_back(volume);
      ++components_;
    }
  }

  std::vector<Index> place_;           // of each node among those with edges, or −1
  std::vector<Index> first_, target_;  // edges to both sides, by place
  std::vector<Index> component_;       // by place
  std::vector<double> root_;           // √d, by place
  std::vector<double> volume_;         // of a component: the sum of its degrees
  Index components_ = 0;
};

/// Columns: the m eigenvectors of S with the largest eigenvalues below 1, from all of them.
[[nodiscard]] inline EigenMatrix<double> dense_spectrum(const NormalizedAdjacency& adjacency, Index m) {
  const Eigen::SelfAdjointEigenSolver<EigenMatrix<double>> solver(adjacency.dense());
  RUVECTOR_ASSERT(solver.info() == Eigen::Success);
  return solver.eigenvectors().leftCols(adjacency.size() - adjacency.components()).rightCols(m).rowwise().reverse();
}

/// The same from some vectors, which polynomials of S turn towards them: Chebyshev's, which stay within ±1 on [−1, a],
/// a the least of the Ritz values, and grow fastest above. Until ‖S x − θ x‖ <= tolerance for all. Source: Zhou, Saad,
/// Tiago & Chelikowsky 2006. Throws ConfigError after too many products, where eigenvalues are closer than that.
[[nodiscard]] inline EigenMatrix<double> filtered_spectrum(const NormalizedAdjacency& adjacency, Index m,
                                                           double tolerance) {
  constexpr Index most_products = 20000;
  const Index n = adjacency.size(), block = std::min(n - adjacency.components(), m + std::max(Index(4), m / 2));
  EigenMatrix<double> x(n, block), image = EigenMatrix<double>::Zero(n, block), before;
  Rng rng(1);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = rng.normal();
  for (Index products = 0;; ++products) {
    adjacency.remove_trivial(x);
    const Eigen::HouseholderQR<EigenMatrix<double>> qr(x);
    x.setIdentity();
    x.applyOnTheLeft(qr.householderQ());
    adjacency.multiply(1, x, 0, image);
    const EigenMatrix<double> projected = x.transpose() * image;
    const Eigen::SelfAdjointEigenSolver<EigenMatrix<double>> ritz((projected + projected.transpose()) / 2);
    const EigenMatrix<double> turn = ritz.eigenvectors().rowwise().reverse();
    const Eigen::VectorXd values = ritz.eigenvalues().reverse();
    x *= turn;
    image *= turn;
    const double residual = (image - x * values.asDiagonal()).leftCols(m).colwise().norm().maxCoeff();
    if (residual <= tolerance) return x.leftCols(m);
    if (products > most_products)
      throw_config_error("spectral_positions: residual, for eigenvalues that are too close", "at most tolerance",
                         residual);
    // T_k((S − c)/e) of such a degree that even eigenvalues near 1 do not make all columns alike.
    const double least = std::clamp(values(block - 1), -0.99, 0.999999), c = (least - 1) / 2, e = (least + 1) / 2;
    const auto degree = static_cast<Index>(std::clamp(14 / std::acosh((1 - c) / e), 2.0, 400.0));
    before = x;
    x = (image - c * x) / e;
    for (Index k = 1; k < degree; ++k, ++products) {
      before *= -1;
      // before = 2/e (S − c) x − before
      adjacency.multiply(2 / e, x, 1, before);
      before -= 2 * c / e * x;
      adjacency.remove_trivial(before);  // of what rounding brought in: nothing grows faster
      std::swap(before, x);
    }
  }
}

}  // namespace detail

/// How `spectral_positions` finds eigenvectors.
struct SpectralConfig {
  Index dense_limit = 2048;  ///< up to so many nodes exactly, by O(n²) memory and O(n³) time, about 5 s
  double tolerance = 1e-7;   ///< beyond, ‖L x − λ x‖ of what is returned, ‖x‖ = 1
};

/// The m eigenvectors of L = I − D^(−1/2) A D^(−1/2) with the lowest eigenvalues above 0, ascending, each scaled so
/// that its largest |r| is 1: [n×m]. Edges count without direction, A = (A + Aᵀ)/2, duplicates by their number. Each
/// connected component has one eigenvalue 0, whose vector tells nothing and is left out. Nodes without edges, and
/// columns beyond the last eigenvector, are 0. The sign of a column is arbitrary, and so is the basis where eigenvalues
/// coincide; in training flip signs at random. Large graphs take O(m (n + edges)) a product with A, and some hundred to
/// a thousand products, the more the closer eigenvalues are. Throws ShapeError, and ConfigError where eigenvalues are
/// so close that 20,000 products do not tell them apart. Source: Dwivedi & Bresson 2021.
template <NodeId I, Real T>
void spectral_positions(CsrView<I> graph, MatrixView<T> out, const SpectralConfig& config = {}) {
  check_shape("spectral_positions: rows", graph.nodes(), out.rows());
  const detail::NormalizedAdjacency adjacency(graph);
  const Index m = std::min(out.cols(), adjacency.size() - adjacency.components());
  EigenMatrix<double> vectors;
  if (m > 0)
    vectors = graph.nodes() <= config.dense_limit ? detail::dense_spectrum(adjacency, m)
                                                  : detail::filtered_spectrum(adjacency, m, config.tolerance);
  for (Index i = 0; i < out.rows(); ++i) std::ranges::fill(out.row(i), T(0));
  for (Index k = 0; k < m; ++k) {
    Index largest = 0;
    vectors.col(k).cwiseAbs().maxCoeff(&largest);
    for (Index i = 0; i < out.rows(); ++i)
      if (const Index p = adjacency.place(i); p >= 0) out(i, k) = static_cast<T>(vectors(p, k) / vectors(largest, k));
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
