// SPDX-License-Identifier: MIT

#include "geometry/operations.hpp"
#include "support/catch.hpp"

#include <ruvector/core/parameters.hpp>

namespace geometry_test {
namespace {
namespace gradients {

using Ball = ruvector::geometry::PoincareBall<double>;
using Hyperboloid = ruvector::geometry::Lorentz<double>;
using Flat = ruvector::geometry::Euclidean<double>;
using Vec = Values<double>;

/// d f/dt at 0 by central differences, extrapolated twice (Richardson): the error is O(h⁶). The steps are powers of
/// two, so that a coordinate moves by exactly h.
template <class F>
double derivative(F f, double h) {
  h = std::exp2(std::floor(std::log2(h)));
  const auto central = [&](double k) { return (f(k) - f(-k)) / (2 * k); };
  const double a = central(h), b = central(h / 2), c = central(h / 4);
  const double ab = b + (b - a) / 3, bc = c + (c - b) / 3;
  return bc + (bc - ab) / 15;
}

enum class Region { inside, near_origin, near_rim };

/// s‖x‖ of a point in the ball.
double radius(Region region, Rng& rng) {
  switch (region) {
    case Region::inside:
      return rng.uniform(0.1, 0.8);
    case Region::near_origin:
      return 1e-8;
    default:
      return 1 - 1e-6;
  }
}

double norm(const Vec& v) {
  double square = 0;
  for (const double x : v) square += x * x;
  return std::sqrt(square);
}

double gap(Vec a, const Vec& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return norm(a);
}

/// A point whose ball model has the given s‖x‖.
Vec point_at(const Ball& m, Index d, double r, Rng& rng) {
  Vec x(std::size_t(d), 0.0);
  for (double& v : x) v = rng.normal();
  const double scale = r / std::sqrt(m.curvature) / norm(x);
  for (double& v : x) v *= scale;
  return x;
}
Vec point_at(const Hyperboloid& m, Index d, double r, Rng& rng) {
  const Vec ball = point_at(Ball(m.curvature), d, r, rng);
  Vec x(std::size_t(d) + 1, 0.0);
  const double alpha = (1 - r) * (1 + r);
  for (std::size_t i = 0; i < ball.size(); ++i) x[i + 1] = 2 * ball[i] / alpha;
  x[0] = (1 + r * r) / (alpha * std::sqrt(m.curvature));
  return x;
}
Vec point_at(const Flat&, Index d, double r, Rng& rng) {
  Ball unit;
  return point_at(unit, d, r, rng);
}

/// The length of a step at x over which functions on the manifold change by a part of themselves.
double unit_at(const Ball& m, const Vec& x) {
  const double s = std::sqrt(m.curvature);
  return (1 - s * norm(x)) / s;
}
double unit_at(const Hyperboloid& m, const Vec&) {
  return 1 / std::sqrt(m.curvature);
}
double unit_at(const Flat&, const Vec&) {
  return 1;
}

double* curvature_of(Ball& m) {
  return &m.curvature;
}
double* curvature_of(Hyperboloid& m) {
  return &m.curvature;
}
double* curvature_of(Flat&) {
  return nullptr;
}

template <class M>
void check_operation(const Operation<M>& op, const M& m, Index d, Region region, Rng& rng) {
  typename Operation<M>::Inputs in;
  std::vector<double> steps;
  Vec first;
  double unit = 1, nearest = 1;
  const double neighbourhood = region == Region::near_origin ? 1e-8 : 1;
  const auto candidate = [&] {
    // Half of the pairs are neighbours: near the rim a random pair is always far apart.
    Vec x = point_at(m, d, radius(region, rng), rng);
    if (!first.empty() && rng.uniform() < 0.5) {
      const double scale = 0.3 * neighbourhood * unit_at(m, first) / std::sqrt(double(d));
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = first[i] + scale * rng.uniform(-1.0, 1.0);
    }
    return x;
  };
  const auto point = [&] {
    Vec x = candidate();
    // Distances have a kink at x = y, where some random points fall together for d = 1.
    while (!first.empty() && gap(first, x) < 1e-2 * neighbourhood * unit_at(m, first)) x = candidate();
    if (!first.empty()) nearest = std::min(nearest, gap(first, x));
    if (first.empty()) first = x;
    unit = std::min(unit, unit_at(m, x));
    return x;
  };
  for (const Kind kind : op.inputs) {
    const std::size_t columns = std::size_t(m.point_dim(d));
    Vec values;
    if (kind == Kind::point) values = point();
    if (kind == Kind::weights)
      for (Index j = 0; j < several; ++j) values.push_back(rng.uniform(0.1, 1.0));
    if (kind == Kind::tangent)
      for (std::size_t i = 0; i < columns; ++i)
        values.push_back(rng.normal() * (region == Region::near_origin ? 1e-8
                                         : first.empty()               ? 1.0
                                                                       : unit_at(m, first)));
    if (kind == Kind::points || kind == Kind::columns) {
      values.resize(std::size_t(several) * columns);
      for (std::size_t j = 0; j < std::size_t(several); ++j) {
        const Vec x = point();
        for (std::size_t i = 0; i < columns; ++i)
          values[kind == Kind::points ? j * columns + i : i * std::size_t(several) + j] = x[i];
      }
    }
    in.push_back(values);
  }
  for (const Kind kind : op.inputs) {
    double step = 0.01 * unit;
    if (kind == Kind::weights) step = 0.01;
    if (op.name.starts_with("distance")) step = 0.01 * std::min(unit, nearest);  // not smooth at x = y
    steps.push_back(step);
  }

  const Vec out = op.forward(m, in);
  Vec weights(out.size());
  double noise = 0;  // rounding of the outputs, which a difference quotient divides by its step
  for (std::size_t i = 0; i < out.size(); ++i) {
    weights[i] = rng.normal();
    noise += 16 * std::numeric_limits<double>::epsilon() * std::abs(weights[i] * out[i]);
  }
  const auto loss = [&](const M& at, const typename Operation<M>::Inputs& x) {
    const Vec y = op.forward(at, x);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += weights[i] * y[i];
    return sum;
  };

  typename Operation<M>::Inputs d_in;
  for (const Vec& x : in) d_in.emplace_back(x.size(), 0.0);
  M grad = ruvector::zeros_like(m);
  op.backward(m, in, weights, d_in, grad);

  for (std::size_t k = 0; k < in.size(); ++k) {
    double largest = 0;
    for (const double v : d_in[k]) largest = std::max(largest, std::abs(v));
    for (std::size_t i = 0; i < in[k].size(); ++i) {
      const double numeric = derivative(
          [&](double t) {
            auto moved = in;
            moved[k][i] += t;
            return loss(m, moved);
          },
          steps[k]);
      CAPTURE(op.name, d, k, i, int(region), numeric, noise / steps[k], d_in[k][i], largest);
      CHECK(std::abs(numeric - d_in[k][i]) <= 1e-8 + 1e-6 * largest + noise / steps[k]);
    }
  }
  if (M moved = m; double* c = curvature_of(moved)) {
    const double c0 = *c;
    const double step = 0.01 * std::min(1.0, unit) * c0;
    const double numeric = derivative([&](double t) { return *c = c0 + t, loss(moved, in); }, step);
    CAPTURE(op.name, d, int(region), numeric, noise / step, *curvature_of(grad));
    CHECK(std::abs(numeric - *curvature_of(grad)) <= 1e-8 + 1e-6 * std::abs(*curvature_of(grad)) + noise / step);
  }
}

template <class M>
M with_curvature(double c) {
  if constexpr (std::same_as<M, Flat>)
    return M{};
  else
    return M(c);
}

TEMPLATE_TEST_CASE("geometry: gradients are the derivatives of the values", "[geometry][gradient]", Ball, Hyperboloid,
                   Flat) {
  const std::uint64_t seed = 20260801;
  CAPTURE(seed);
  Rng rng(seed);
  for (const auto& op : operations<TestType>())
    for (const Region region : {Region::inside, Region::near_origin, Region::near_rim})
      for (const Index d : {1, 2, 3, 5, 10})
        for (int trial = 0; trial < 6; ++trial)
          check_operation(op, with_curvature<TestType>(std::exp(rng.uniform(-1.0, 1.0))), d, region, rng);
}

}  // namespace gradients
}  // namespace
}  // namespace geometry_test
