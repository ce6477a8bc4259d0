// SPDX-License-Identifier: MIT

#include <ruvector/core/parameters.hpp>
#include <ruvector/geometry/concepts.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "support/catch.hpp"

namespace geometry_concepts {
namespace {

using namespace ruvector::geometry;

static_assert(Manifold<Euclidean<float>> && Manifold<Euclidean<double>>);
static_assert(Manifold<PoincareBall<float>> && Manifold<PoincareBall<double>>);
static_assert(Manifold<Lorentz<float>> && Manifold<Lorentz<double>>);
static_assert(ruvector::Module<Euclidean<float>> && ruvector::Module<PoincareBall<float>> &&
              ruvector::Module<Lorentz<float>>);

/// The unit sphere, as a user would write it: nothing of the library but the concept.
struct Sphere {
  using Scalar = double;
  using In = std::span<const double>;
  using Out = std::span<double>;

  static double dot(In a, In b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  std::ptrdiff_t point_dim(std::ptrdiff_t d) const { return d + 1; }
  double distance(In x, In y) const { return std::acos(std::clamp(dot(x, y), -1.0, 1.0)); }
  bool project(In x, Out out) const {
    const double r = std::sqrt(dot(x, x));
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] / r;
    return r != 1;
  }
  void riemannian_gradient(In x, In g, Out out) const {
    const double along = dot(x, g);
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = g[i] - along * x[i];
  }
  bool exp(In x, In v, Out out) const {
    const double r = std::sqrt(dot(v, v));
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = std::cos(r) * x[i] + (r == 0 ? 0 : std::sin(r) / r * v[i]);
    return project(out, out);
  }
};
static_assert(Manifold<Sphere>);

struct NoExp : Sphere {
  bool exp(In, In, Out) const = delete;
};
struct NoDistance {
  using Scalar = double;
};
struct OfIntegers : Sphere {
  using Scalar = int;
};
static_assert(Metric<NoExp> && !Manifold<NoExp>);
static_assert(!Metric<NoDistance> && !Metric<OfIntegers> && !Metric<int>);

/// Gradient descent on the distance to a target, on any manifold.
template <Manifold M>
double descend(const M& m, std::vector<double> x, const std::vector<double>& target,
               std::vector<double> (*gradient)(const std::vector<double>&, const std::vector<double>&)) {
  std::vector<double> step(x.size());
  for (int i = 0; i < 200; ++i) {
    m.riemannian_gradient(x, gradient(x, target), step);
    for (double& v : step) v *= -0.1;
    m.exp(x, step, x);
  }
  return m.distance(x, target);
}

TEST_CASE("geometry: a manifold from outside works where ours do", "[geometry][concept]") {
  // The gradient of −x·target pulls x to the target.
  const auto pull = [](const std::vector<double>&, const std::vector<double>& target) {
    std::vector<double> g;
    for (const double t : target) g.push_back(-t);
    return g;
  };
  CHECK(descend(Sphere{}, {1, 0, 0}, {0, 0.6, 0.8}, pull) < 1e-6);
  const auto difference = [](const std::vector<double>& x, const std::vector<double>& target) {
    std::vector<double> g;
    for (std::size_t i = 0; i < x.size(); ++i) g.push_back(x[i] - target[i]);
    return g;
  };
  CHECK(descend(Euclidean<double>{}, {1, 0, 0}, {0, 0.6, 0.8}, difference) < 1e-6);
}

}  // namespace
}  // namespace geometry_concepts
