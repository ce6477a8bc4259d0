// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/graph/spectral_positions.hpp>

#include "graph/random_graphs.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

namespace ruvector_test_spectral_positions {
namespace {

using namespace ruvector;
using graph::CsrGraph;
using random_graphs::difference;
using random_graphs::Edges;

constexpr std::uint64_t seed = 32;

double largest(const Matrix<double>& r, Index column) {
  double most = 0;
  for (Index i = 0; i < r.rows(); ++i) most = std::max(most, std::fabs(r(i, column)));
  return most;
}

// A path has the eigenvectors √d_i cos(π k i/(n − 1)) with eigenvalues 1 − cos(π k/(n − 1)) (Chung 1997, example 1.4).
TEST_CASE("spectral_positions: a path gives cosines", "[graph]") {
  for (const Index nodes : {2, 3, 10, 50}) {
    CAPTURE(nodes);
    const CsrGraph<> g = random_graphs::path(nodes).graph();
    const Index columns = std::min(nodes - 1, Index(5));
    Matrix<double> r(nodes, columns), expected(nodes, columns);
    graph::spectral_positions(g.view(), r.view());
    for (Index k = 0; k < columns; ++k) {
      for (Index i = 0; i < nodes; ++i)
        expected(i, k) = (i == 0 || i == nodes - 1 ? 1 : std::numbers::sqrt2) *
                         std::cos(std::numbers::pi * double((k + 1) * i) / double(nodes - 1));
      const double scale = largest(expected, k);
      for (Index i = 0; i < nodes; ++i) expected(i, k) /= scale;
      CHECK(largest(r, k) == 1);
    }
    std::vector<Index> same(static_cast<std::size_t>(nodes));
    std::iota(same.begin(), same.end(), Index(0));
    CHECK(difference(expected, r, same, true) <= 1e-10);
  }
}

TEST_CASE("spectral_positions: columns are eigenvectors of the normalised Laplacian, lowest first", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 25;
  const Edges edges = random_graphs::directed(nodes, 60, rng);
  const CsrGraph<> g = edges.graph();
  Matrix<double> weight(nodes, nodes), r(nodes, nodes);
  std::vector<double> degree(nodes);
  for (std::size_t e = 0; e < edges.sources.size(); ++e) {
    weight(edges.sources[e], edges.targets[e]) += 0.5;
    weight(edges.targets[e], edges.sources[e]) += 0.5;
  }
  for (Index i = 0; i < nodes; ++i)
    for (const double w : weight.row(i)) degree[std::size_t(i)] += w;
  graph::spectral_positions(g.view(), r.view());
  double before = 0;
  Index columns = 0;
  for (Index k = 0; k < nodes && largest(r, k) > 0; ++k, ++columns) {
    std::vector<double> image(nodes);
    double square = 0, product = 0, worst = 0;
    for (Index i = 0; i < nodes; ++i) {
      if (degree[std::size_t(i)] == 0) continue;
      double& at = image[std::size_t(i)] = r(i, k);
      for (Index j = 0; j < nodes; ++j)
        if (degree[std::size_t(j)] > 0)
          at -= weight(i, j) * r(j, k) / std::sqrt(degree[std::size_t(i)] * degree[std::size_t(j)]);
      square += r(i, k) * r(i, k);
      product += r(i, k) * at;
    }
    const double eigenvalue = product / square;
    for (Index i = 0; i < nodes; ++i) worst = std::max(worst, std::fabs(image[std::size_t(i)] - eigenvalue * r(i, k)));
    CHECK(worst <= 1e-12);
    CHECK(eigenvalue >= before - 1e-12);
    CHECK(eigenvalue > 1e-6);
    before = eigenvalue;
  }
  CHECK(columns >= nodes / 2);
}

TEST_CASE("spectral_positions: renaming the nodes permutes the rows, up to signs", "[graph][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 40;
  const Edges edges = random_graphs::connected(nodes, 30, rng);
  const auto renamed = random_graphs::permutation(nodes, rng);
  Matrix<double> a(nodes, 4), b(nodes, 4);
  const CsrGraph<> g = edges.graph(), other = edges.permuted(renamed).graph();
  graph::spectral_positions(g.view(), a.view());
  graph::spectral_positions(other.view(), b.view());
  CHECK(difference(a, b, renamed, true) <= 1e-10);
  // A column does not depend on how many are asked for.
  Matrix<double> two(nodes, 2);
  graph::spectral_positions(g.view(), two.view());
  for (Index i = 0; i < nodes; ++i) CHECK(std::ranges::equal(two.row(i), a.view().cols(0, 2).row(i)));
}

TEST_CASE("spectral_positions: components, isolated nodes, small and large graphs", "[graph]") {
  // Two paths of three nodes and a node alone: eigenvalues 0, 1, 2 each, the zeros left out.
  Edges edges{7, {}, {}};
  for (const Index start : {0, 4}) {
    edges.add_both(start, start + 1);
    edges.add_both(start + 1, start + 2);
  }
  const CsrGraph<> g = edges.graph();
  Matrix<double> r(7, 6, 9);
  graph::spectral_positions(g.view(), r.view());
  for (Index k = 0; k < 6; ++k) {
    CHECK(r(3, k) == 0);
    CHECK(largest(r, k) == (k < 4 ? 1 : 0));
    // Orthogonal to √d on each component, as the vectors of eigenvalue 0 are not.
    for (const Index start : {0, 4})
      CHECK(std::fabs(r(start, k) + std::numbers::sqrt2 * r(start + 1, k) + r(start + 2, k)) <= 1e-14);
  }
  for (const Index nodes : {0, 1, 2}) {
    const CsrGraph<> no_edges(nodes, {}, {});
    Matrix<double> zero(nodes, 3, 9);
    graph::spectral_positions(no_edges.view(), zero.view());
    CHECK(std::ranges::all_of(zero.span(), [](double v) { return v == 0; }));
  }
  Matrix<double> wrong(6, 2);
  CHECK_THROWS_AS(graph::spectral_positions(g.view(), wrong.view()), ShapeError);
}

// What the columns must be, whoever finds them: eigenvectors of L = I − S within `tolerance`, ascending, each
// orthogonal to those before it. Returns the eigenvalues.
std::vector<double> check_eigenvectors(const CsrGraph<>& g, const Matrix<double>& r, double tolerance) {
  std::vector<double> degree(std::size_t(g.nodes())), eigenvalues;
  const auto view = g.view();
  const auto for_ends = [&](auto f) {
    for (Index i = 0; i < g.nodes(); ++i)
      for (const std::int32_t j : view.neighbors(i))
        f(std::size_t(i), std::size_t(j)), f(std::size_t(j), std::size_t(i));
  };
  for_ends([&](std::size_t i, std::size_t) { ++degree[i]; });
  for (Index k = 0; k < r.cols(); ++k) {
    std::vector<double> image(degree.size());
    for_ends([&](std::size_t i, std::size_t j) { image[i] -= r(Index(j), k) / std::sqrt(degree[i] * degree[j]); });
    double square = 0, product = 0, off = 0;
    for (std::size_t i = 0; i < image.size(); ++i) {
      const double x = r(Index(i), k);
      image[i] += x;
      square += x * x;
      product += x * image[i];
    }
    eigenvalues.push_back(product / square);
    for (std::size_t i = 0; i < image.size(); ++i)
      off += std::pow(image[i] - eigenvalues.back() * r(Index(i), k), 2) / square;
    CHECK(std::sqrt(off) <= tolerance);
    CHECK(largest(r, k) == 1);
    if (k > 0) CHECK(eigenvalues[std::size_t(k)] >= eigenvalues[std::size_t(k) - 1] - tolerance);
    for (Index before = 0; before < k; ++before) {
      double both = 0, other = 0;
      for (Index i = 0; i < r.rows(); ++i) both += r(i, k) * r(i, before), other += r(i, before) * r(i, before);
      CHECK(std::fabs(both) <= 1e-10 * std::sqrt(square * other));
    }
  }
  return eigenvalues;
}

TEST_CASE("spectral_positions: filtered polynomials find what the dense solver finds", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 300, columns = 6;
  const graph::SpectralConfig filtered{.dense_limit = 0, .tolerance = 1e-9};
  // Connected; in parts, some of them single; with eigenvalues that coincide (a star of paths); nothing but pairs, with
  // −1 alone below 1; the same and a path of four.
  std::vector<Edges> all{random_graphs::connected(nodes, 60, rng), random_graphs::directed(nodes, 250, rng),
                         Edges{nodes, {}, {}}, Edges{nodes, {}, {}}, Edges{nodes, {}, {}}};
  for (Index i = 1; i < nodes; ++i) all[2].add_both(i, i % 30 == 1 ? 0 : i - 1);
  for (Index i = 0; i < nodes; i += 2)
    for (Edges* pairs : {&all[3], &all[4]}) pairs->add_both(i, i + 1);
  all[4].add_both(1, 2);
  for (const Edges& edges : all) {
    const CsrGraph<> g = edges.graph();
    Matrix<double> dense(nodes, columns), r(nodes, columns);
    graph::spectral_positions(g.view(), dense.view());
    graph::spectral_positions(g.view(), r.view(), filtered);
    const auto expected = check_eigenvectors(g, dense, 1e-12), found = check_eigenvectors(g, r, 1e-9);
    for (std::size_t k = 0; k < found.size(); ++k) CHECK(std::fabs(found[k] - expected[k]) <= 1e-9);
  }
}

TEST_CASE("spectral_positions: large graphs", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 2100, columns = 3;  // more than the dense solver is asked for
  const CsrGraph<> g = random_graphs::connected(nodes, 4000, rng).graph();
  Matrix<double> r(nodes, columns);
  graph::spectral_positions(g.view(), r.view());
  for (const double eigenvalue : check_eigenvectors(g, r, 1e-7)) CHECK(eigenvalue > 1e-3);
}

TEST_CASE("spectral_positions: eigenvalues that are close, or too close", "[graph]") {
  // Those of a long path are 1 − cos(π k/(n − 1)).
  constexpr Index nodes = 400, columns = 3;
  const CsrGraph<> g = random_graphs::path(nodes).graph();
  Matrix<double> r(nodes, columns);
  graph::spectral_positions(g.view(), r.view(), {.dense_limit = 0});
  const auto found = check_eigenvectors(g, r, 1e-7);
  for (Index k = 0; k < columns; ++k)
    CHECK(std::fabs(found[std::size_t(k)] - (1 - std::cos(std::numbers::pi * double(k + 1) / double(nodes - 1)))) <=
          1e-9);
  const CsrGraph<> small = random_graphs::path(30).graph();
  Matrix<double> untouched(30, 1);
  untouched(0, 0) = 7;
  CHECK_THROWS_AS(graph::spectral_positions(small.view(), untouched.view(), {.dense_limit = 0, .tolerance = 0}),
                  ConfigError);
  CHECK(untouched(0, 0) == 7);
}

TEST_CASE("tangent_positions: distances in the tangent space survive, the widest direction comes first", "[graph]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index nodes = 30, dim = 4;
  const geometry::PoincareBall<double> ball(0.7);
  Matrix<double> points(nodes, dim), tangent(nodes, dim), r(nodes, dim + 1, 9);
  for (Index i = 0; i < nodes; ++i) {
    for (Index j = 0; j < dim; ++j) tangent(i, j) = rng.normal() * double(dim - j) / 4;
    ball.exp0(tangent.row(i), points.row(i));
  }
  graph::tangent_positions(ball, points, r.view());
  double worst = 0;
  for (Index i = 0; i < nodes; ++i)
    for (Index j = 0; j < nodes; ++j) {
      double before = 0, after = 0;
      for (Index k = 0; k < dim; ++k) {
        before += (tangent(i, k) - tangent(j, k)) * (tangent(i, k) - tangent(j, k));
        after += (r(i, k) - r(j, k)) * (r(i, k) - r(j, k));
      }
      worst = std::max(worst, std::fabs(before - after));
    }
  CHECK(worst <= 1e-10);
  double last = std::numeric_limits<double>::infinity();
  for (Index k = 0; k < dim; ++k) {
    double variance = 0;
    for (Index i = 0; i < nodes; ++i) variance += r(i, k) * r(i, k);
    CHECK(variance <= last);
    last = variance;
  }
  CHECK(largest(r, dim) == 0);  // there are no more than dim

  const auto renamed = random_graphs::permutation(nodes, rng);
  Matrix<double> moved(nodes, dim), other(nodes, dim + 1);
  for (Index i = 0; i < nodes; ++i) std::ranges::copy(points.row(i), moved.row(renamed[std::size_t(i)]).begin());
  graph::tangent_positions(ball, moved, other.view());
  CHECK(difference(r, other, renamed, true) <= 1e-12);

  Matrix<double> none(0, 2), wrong(nodes + 1, 2);
  CHECK_NOTHROW(graph::tangent_positions(ball, points.view().rows(0, 0), none.view()));
  CHECK_THROWS_AS(graph::tangent_positions(ball, points, wrong.view()), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_spectral_positions
