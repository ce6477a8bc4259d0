// SPDX-License-Identifier: MIT
// expect: Manifold
// expect: Taxicab
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/train/riemannian_sgd.hpp>

#include <span>

// A metric that one cannot move in.
struct Taxicab {
  using Scalar = double;
  ruvector::Index point_dim(ruvector::Index d) const { return d; }
  double distance(std::span<const double> x, std::span<const double> y) const { return x[0] - y[0]; }
};

void step(std::span<double> x, std::span<const double> gradient) {
#ifdef RUVECTOR_CONTROL
  ruvector::train::riemannian_sgd_step(ruvector::geometry::Euclidean<double>(), x, gradient, 0.1);
#else
  ruvector::train::riemannian_sgd_step(Taxicab(), x, gradient, 0.1);
#endif
}
