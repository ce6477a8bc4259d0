// SPDX-License-Identifier: MIT
// expect: Manifold
// expect: riemannian_gradient
#include <ruvector/geometry/concepts.hpp>
#include <ruvector/geometry/euclidean.hpp>

// A metric that forgot the gradient.
struct Taxicab {
  using Scalar = double;
  using Index = ruvector::Index;
  using Point = std::span<const double>;
  Index point_dim(Index d) const { return d; }
  double distance(Point x, Point y) const { return x[0] - y[0]; }
  bool project(Point x, std::span<double> out) const { return x[0] == out[0]; }
  bool exp(Point x, Point v, std::span<double> out) const { return x[0] + v[0] == out[0]; }
};

template <ruvector::geometry::Manifold M>
struct Model {
  M manifold;
};

#ifdef RUVECTOR_CONTROL
Model<ruvector::geometry::Euclidean<double>> model;
#else
Model<Taxicab> model;
#endif
