// SPDX-License-Identifier: MIT

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/geometry/concepts.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "support/catch.hpp"

namespace geometry_laws {
namespace {

using namespace ruvector;
using namespace ruvector::geometry;

template <class T>
using Vec = std::vector<T>;

constexpr std::uint64_t seed = 20260804;

template <class M>
M random_manifold(Rng& rng) {
  if constexpr (requires { M(ScalarOf<M>(1)); })
    return M(static_cast<ScalarOf<M>>(std::exp(rng.uniform(-1.0, 1.0))));
  else
    return M{};
}

template <class M>
double curvature_of(const M& m) {
  if constexpr (requires { m.curvature; })
    return double(m.curvature);
  else
    return 1;
}

template <class M>
Vec<ScalarOf<M>> random_point(const M& m, Index d, double deviation, Rng& rng) {
  Vec<ScalarOf<M>> x(std::size_t(m.point_dim(d)));
  m.random_point(rng, static_cast<ScalarOf<M>>(deviation), x);
  return x;
}

template <class T>
double gap(const Vec<T>& a, const Vec<T>& b) {
  double square = 0;
  for (std::size_t i = 0; i < a.size(); ++i) square += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
  return std::sqrt(square);
}

template <class T>
double norm(const Vec<T>& a) {
  return gap(a, Vec<T>(a.size()));
}

#define GEOMETRY_LAWS_MANIFOLDS \
  PoincareBall<float>, PoincareBall<double>, Lorentz<float>, Lorentz<double>, Euclidean<float>, Euclidean<double>

TEMPLATE_TEST_CASE("geometry: distance is a metric", "[geometry][law]", GEOMETRY_LAWS_MANIFOLDS) {
  using T = ScalarOf<TestType>;
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 2000; ++trial) {
    const TestType m = random_manifold<TestType>(rng);
    const Index d = 1 + rng.below(12);
    const double deviation = std::exp(rng.uniform(-8.0, 1.0));
    const auto x = random_point(m, d, deviation, rng), y = random_point(m, d, deviation, rng),
               z = random_point(m, d, deviation, rng);
    CHECK(m.distance(x, y) == m.distance(y, x));
    CHECK(m.distance(x, x) == 0);
    CHECK(m.distance(x, y) > 0);
    const T sum = m.distance(x, y) + m.distance(y, z);
    CHECK(m.distance(x, z) <= sum * (1 + 8 * std::numeric_limits<T>::epsilon()));
  }
}

TEMPLATE_TEST_CASE("geometry: exp and log are inverse, near and far", "[geometry][law]", PoincareBall<double>,
                   Lorentz<double>, Euclidean<double>) {
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 2000; ++trial) {
    const TestType m = random_manifold<TestType>(rng);
    const Index d = 1 + rng.below(8);
    const auto x = random_point(m, d, 0.5, rng), y = random_point(m, d, 0.5, rng);
    Vec<double> v(x.size()), back(x.size());
    m.log(x, y, v);
    m.exp(x, v, back);
    // A coordinate that is known to eps is known to eps e^r in the metric, r from the origin; a direction known to eps
    // leads eps sinh(r) astray, r along the way.
    Vec<double> origin(x.size());
    m.origin(origin);
    const double c = curvature_of(m), s = std::sqrt(c), eps = std::numeric_limits<double>::epsilon();
    const double farthest = s * std::max({m.distance(x, y), m.distance(origin, x), m.distance(origin, y)});
    CHECK(m.distance(back, y) <= 16 * eps * std::exp(farthest) / s);
    if (farthest < 3) CHECK(gap(back, y) <= 64 * eps * (1 / s + norm(y)));
    CHECK(std::abs(m.norm(x, v) - m.distance(x, y)) <= 1e-13 * m.distance(x, y));
    m.log0(x, v);
    m.exp0(v, back);
    CHECK(m.distance(back, x) <= 16 * eps * std::exp(s * m.distance(origin, x)) / s);
  }
}

TEST_CASE("geometry: exp and log are inverse near the rim of the ball", "[geometry][law]") {
  CAPTURE(seed);
  Rng rng(seed);
  const PoincareBall<double> m;
  for (int k = 1; k <= 9; ++k) {
    for (int trial = 0; trial < 200; ++trial) {
      const double alpha = std::pow(10.0, -k);
      Vec<double> x(3), v(3), y(3), w(3), back(3);
      for (double& t : x) t = rng.normal();
      const double scale = (1 - alpha) / norm(x);
      for (double& t : x) t *= scale;
      for (double& t : v) t = alpha * rng.normal();  // a step of about 1
      m.exp(x, v, y);
      m.log(x, y, w);
      m.exp(x, w, back);
      CAPTURE(k);
      CHECK(gap(back, y) <= 1e-15);
      // 1 − ‖y‖² is known to 1e-16, which is a relative 1e-16/α: so is what it says of v.
      CHECK(gap(w, v) <= 1e-14 * norm(v) / alpha);
    }
  }
}

TEST_CASE("geometry: Moebius translation is an isometry and transport too", "[geometry][law]") {
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 2000; ++trial) {
    const auto m = random_manifold<PoincareBall<double>>(rng);
    const Index d = 1 + rng.below(8);
    const auto a = random_point(m, d, 0.5, rng), x = random_point(m, d, 0.5, rng), y = random_point(m, d, 0.5, rng);
    Vec<double> ax(x.size()), ay(x.size()), minus = a, back(x.size());
    m.add(a, x, ax);
    m.add(a, y, ay);
    CHECK(std::abs(m.distance(ax, ay) - m.distance(x, y)) <= 1e-12 * (1 + m.distance(ax, ay)));
    for (double& t : minus) t = -t;
    m.add(minus, ax, back);  // left cancellation
    CHECK(gap(back, x) <= 1e-13);
  }
}

TEMPLATE_TEST_CASE("geometry: transport keeps lengths and angles, and returns", "[geometry][law]", PoincareBall<double>,
                   Lorentz<double>, Euclidean<double>) {
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 2000; ++trial) {
    const TestType m = random_manifold<TestType>(rng);
    const Index d = 1 + rng.below(8);
    const auto x = random_point(m, d, 0.5, rng), y = random_point(m, d, 0.5, rng), p = random_point(m, d, 0.5, rng),
               q = random_point(m, d, 0.5, rng);
    Vec<double> u(x.size()), v(x.size()), tu(x.size()), tv(x.size()), back(x.size()), to_y(x.size()), to_x(x.size());
    m.log(x, p, u);
    m.log(x, q, v);
    m.transport(x, y, u, tu);
    m.transport(x, y, v, tv);
    const double size = m.norm(x, u) * m.norm(x, v);
    CHECK(std::abs(m.inner(y, tu, tv) - m.inner(x, u, v)) <= 1e-12 * size);
    m.transport(y, x, tu, back);
    CHECK(gap(back, u) <= 1e-12 * (1 + norm(u)));
    // The velocity of the geodesic stays its velocity: the end looks back with the opposite of what the start saw.
    m.log(x, y, to_y);
    m.log(y, x, to_x);
    m.transport(x, y, to_y, tv);
    for (std::size_t i = 0; i < tv.size(); ++i) tv[i] += to_x[i];
    CHECK(norm(tv) <= 1e-12 * (1 + norm(to_x)));
  }
}

TEST_CASE("geometry: as c goes to 0 the ball is Euclidean, twice as large", "[geometry][law]") {
  CAPTURE(seed);
  Rng rng(seed);
  for (double c = 1; c >= 1e-30; c /= 10) {
    const PoincareBall<double> m(c);
    const auto x = random_point(Euclidean<double>{}, 4, 0.1, rng), y = random_point(Euclidean<double>{}, 4, 0.1, rng);
    const double flat = 2 * gap(x, y);
    CAPTURE(c);
    CHECK(std::abs(m.distance(x, y) - flat) <= (1e-15 + c) * flat);
  }
}

/// The point of the hyperboloid that is x in the ball.
Vec<double> lift(double c, const Vec<double>& x) {
  double square = 0;
  for (const double t : x) square += t * t;
  Vec<double> X = {(1 + c * square) / (std::sqrt(c) * (1 - c * square))};
  for (const double t : x) X.push_back(2 * t / (1 - c * square));
  return X;
}

TEST_CASE("geometry: ball and hyperboloid are the same space", "[geometry][law]") {
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int trial = 0; trial < 1000; ++trial) {
    const auto ball = random_manifold<PoincareBall<double>>(rng);
    const double c = ball.curvature;
    const Lorentz<double> hyperboloid(c);
    const Index d = 1 + rng.below(6), n = 1 + rng.below(5);
    const auto x = random_point(ball, d, 0.5, rng), y = random_point(ball, d, 0.5, rng);
    CHECK(std::abs(hyperboloid.distance(lift(c, x), lift(c, y)) - ball.distance(x, y)) <=
          1e-13 * (1 + ball.distance(x, y)));

    Matrix<double> points(n, d), lifted(n, d + 1);
    Vec<double> weights, mid(x.size()), centroid(x.size() + 1), n_sum(x.size());
    double einstein = 0;
    for (Index j = 0; j < n; ++j) {
      const auto p = random_point(ball, d, 0.5, rng);
      std::copy(p.begin(), p.end(), points.row(j).begin());
      const auto P = lift(c, p);
      std::copy(P.begin(), P.end(), lifted.row(j).begin());
      weights.push_back(rng.uniform(0.1, 1.0));
      // Einstein midpoint: Klein coordinates 2x/(1 + c‖x‖²) with Lorentz factors
      const double alpha = 2 / ball.conformal_factor(p), klein = 1 / (2 - alpha), gamma = (2 - alpha) / alpha;
      einstein += weights.back() * gamma;
      for (std::size_t i = 0; i < p.size(); ++i) n_sum[i] += weights.back() * gamma * 2 * p[i] * klein;
    }
    ball.midpoint(weights, points, mid, ws);
    hyperboloid.midpoint(weights, lifted, centroid, ws);
    CHECK(gap(lift(c, mid), centroid) <= 1e-12 * norm(centroid));
    double square = 0;
    for (double& t : n_sum) {
      t /= einstein;
      square += t * t;
    }
    for (double& t : n_sum) t /= 1 + std::sqrt(1 - c * square);
    CHECK(gap(mid, n_sum) <= 1e-13);
  }
}

TEMPLATE_TEST_CASE("geometry: the midpoint of one point, near the rim, is that point", "[geometry][law]",
                   PoincareBall<double>, Lorentz<double>) {
  const TestType m;
  Rng rng(seed);
  Workspace ws;
  for (const double deviation : {1e-3, 1.0, 4.0, 8.0}) {
    const auto x = random_point(m, 3, deviation, rng);
    Matrix<double> points(3, Index(x.size()));
    for (Index j = 0; j < 3; ++j) std::copy(x.begin(), x.end(), points.row(j).begin());
    Vec<double> out(x.size());
    m.midpoint(Vec<double>{0.5, 0, 2}, points, out, ws);
    CHECK(gap(out, x) <= 1e-15 * norm(x));
    m.midpoint(Vec<double>{0, 0, 0}, points, out, ws);
    Vec<double> origin(x.size());
    m.origin(origin);
    CHECK(out == origin);
  }
}

TEMPLATE_TEST_CASE("geometry: a point over the rim is its projection, and is counted", "[geometry][law]",
                   PoincareBall<float>, PoincareBall<double>, Lorentz<float>, Lorentz<double>) {
  using T = ScalarOf<TestType>;
  CAPTURE(seed);
  Rng rng(seed);
  for (int trial = 0; trial < 500; ++trial) {
    const TestType m = random_manifold<TestType>(rng);
    const Index d = 1 + rng.below(40);
    Vec<T> x(std::size_t(m.point_dim(d))), p(x.size()), pp(x.size());
    for (T& t : x) t = static_cast<T>(rng.normal() * 1e15);
    const auto y = random_point(m, d, 0.5, rng);
    CHECK(m.project(x, p));
    CHECK_FALSE(m.project(p, pp));
    CHECK(std::memcmp(p.data(), pp.data(), p.size() * sizeof(T)) == 0);
    CHECK_FALSE(m.project(y, pp));
    // A float p is rounded toward the origin, by up to 2⁻²³: α = 2⁻²³ becomes 3·2⁻²³ at most. A double p by 2⁻⁴⁸.
    const double bound = sizeof(T) == 4 ? std::log(3.0) : 1e-2;
    CHECK(std::abs(double(m.distance(x, y) - m.distance(p, y))) * std::sqrt(double(m.curvature)) <= bound);
    CHECK(m.project(p, pp, T(1e-3)));
    Vec<T> origin(x.size());
    m.origin(origin);
    const double reach = double(m.distance(origin, pp)) * std::sqrt(double(m.curvature));
    CHECK(std::abs(reach - std::log(2e3)) <= 1e-2);
    Matrix<T> rows(2, Index(x.size()));
    std::copy(x.begin(), x.end(), rows.row(0).begin());
    std::copy(y.begin(), y.end(), rows.row(1).begin());
    Workspace ws;
    m.midpoint(Vec<T>{1, 1}, rows, pp, ws);
    CHECK(ws.diagnostics().projected_points == 1);
  }
}

TEMPLATE_TEST_CASE("geometry: a column's distance and gradient do not depend on its place", "[geometry][law]",
                   GEOMETRY_LAWS_MANIFOLDS) {
  using T = ScalarOf<TestType>;
  CAPTURE(seed);
  Rng rng(seed);
  for (const Index d : {1, 2, 3, 5, 10, 33}) {
    const TestType m = random_manifold<TestType>(rng);
    const Index rows = m.point_dim(d), n = 300;
    const auto x = random_point(m, d, 0.5, rng);
    Matrix<T> columns(rows, n), gradients(rows, n);
    for (Index j = 0; j < n; ++j) {
      auto y = random_point(m, d, 0.5, rng);
      if (j % 7 == 0) y = x;
      if (j == 40)
        for (T& t : y) t *= T(1e9);  // over the rim
      for (Index i = 0; i < rows; ++i) columns(i, j) = y[std::size_t(i)];
    }
    Vec<T> out(static_cast<std::size_t>(n)), d_out(static_cast<std::size_t>(n)), d_x(static_cast<std::size_t>(rows));
    for (T& g : d_out) g = static_cast<T>(rng.normal());
    TestType grad = zeros_like(m);
    m.distances(x, columns, out);
    m.distances_vjp(x, columns, d_out, d_x, gradients, grad);
    for (Index j = 0; j < n; j += 1 + j / 20) {
      for (const Index place : {0, 1, 3, 7, 8, 13}) {
        // The same column at another place of a shorter matrix with a stride, among zeros.
        Matrix<T> other(rows, 20), d_other(rows, 20);
        for (Index i = 0; i < rows; ++i) other(i, place + 2) = columns(i, j);
        const MatrixView<T> window = other.view().cols(2, place + 1), d_window = d_other.view().cols(2, place + 1);
        Vec<T> o(static_cast<std::size_t>(place) + 1), g(o.size()), unused(d_x.size());
        g.back() = d_out[std::size_t(j)];
        m.distances(x, MatrixView<const T>(window), o);
        m.distances_vjp(x, MatrixView<const T>(window), g, unused, d_window, grad);
        CAPTURE(d, j, place);
        CHECK(o.back() == out[std::size_t(j)]);
        bool same = true;
        for (Index i = 0; i < rows; ++i) same = same && d_window(i, place) == gradients(i, j);
        CHECK(same);
        CHECK(other(0, place + 3) == 0);  // nothing past the window was written
        CHECK(d_other(rows - 1, place + 3) == 0);
      }
    }
  }
}

TEMPLATE_TEST_CASE("geometry: many distances at a time are the single ones", "[geometry][law]",
                   GEOMETRY_LAWS_MANIFOLDS) {
  using T = ScalarOf<TestType>;
  CAPTURE(seed);
  Rng rng(seed);
  for (const Index n : {0, 1, 7, 50, 129, 300}) {
    const TestType m = random_manifold<TestType>(rng);
    const Index d = 1 + rng.below(12), rows = m.point_dim(d);
    auto x = random_point(m, d, 0.5, rng);
    if (n == 7)
      for (T& t : x) t *= T(1e9);  // over the rim
    Matrix<T> columns(rows, n), d_columns(rows, n, T(1));
    Vec<T> out(static_cast<std::size_t>(n)), d_out(static_cast<std::size_t>(n)),
        d_x(static_cast<std::size_t>(rows), T(1)), expected_x = d_x;
    TestType grad = zeros_like(m), with_distances = zeros_like(m), expected = zeros_like(m);
    for (Index j = 0; j < n; ++j) {
      auto y = random_point(m, d, 0.5, rng);
      if (j % 5 == 4)
        for (T& t : y) t *= T(1e9);
      for (Index i = 0; i < rows; ++i) columns(i, j) = y[std::size_t(i)];
      d_out[std::size_t(j)] = static_cast<T>(rng.normal());
    }
    m.distances(x, columns, out);
    m.distances_vjp(x, columns, d_out, d_x, d_columns, grad);
    m.distances_vjp(x, columns, d_out, {}, {}, with_distances, out);
    const double tolerance = 64 * double(std::numeric_limits<T>::epsilon());
    for (Index j = 0; j < n; ++j) {
      Vec<T> y(static_cast<std::size_t>(rows)), d_y(static_cast<std::size_t>(rows), T(1));
      for (Index i = 0; i < rows; ++i) y[std::size_t(i)] = columns(i, j);
      const double single = double(m.distance(x, y));
      // At the rim α itself is known to 1e-16/α only.
      const double rim = 1e-3;
      CHECK(std::abs(double(out[std::size_t(j)]) - single) <= tolerance * single + (single > 8 ? rim : 0));
      m.distance_vjp(x, y, d_out[std::size_t(j)], expected_x, d_y, expected);
      double size = 1;
      for (const T v : d_y) size = std::max(size, std::abs(double(v)));
      for (Index i = 0; i < rows; ++i)
        CHECK(std::abs(double(d_columns(i, j) - d_y[std::size_t(i)])) <= (tolerance + (single > 8 ? rim : 0)) * size);
    }
    double size = 1;
    for (const T v : expected_x) size = std::max(size, std::abs(double(v)));
    CHECK(gap(d_x, expected_x) <= (double(n) * tolerance + 1e-3) * size);
    if constexpr (requires { m.curvature; }) {
      const double c = double(expected.curvature), bound = (double(n) * tolerance + 1e-3) * (1 + std::abs(c));
      CHECK(std::abs(double(grad.curvature) - c) <= bound);
      CHECK(std::abs(double(with_distances.curvature) - c) <= bound);
    }
  }
}

TEMPLATE_TEST_CASE("geometry: the gradient of the distance is 0 where both points are one", "[geometry][law]",
                   GEOMETRY_LAWS_MANIFOLDS) {
  using T = ScalarOf<TestType>;
  Rng rng(seed);
  const TestType m = random_manifold<TestType>(rng);
  const auto x = random_point(m, 3, 0.5, rng);
  Vec<T> d_x(x.size()), d_y(x.size());
  TestType grad = zeros_like(m);
  m.distance_vjp(x, x, T(1), d_x, d_y, grad);
  m.distances_vjp(x, MatrixView<const T>(x.data(), Index(x.size()), 1), Vec<T>{1}, d_x,
                  MatrixView<T>(d_y.data(), Index(x.size()), 1), grad);
  CHECK(norm(d_x) == 0);
  CHECK(norm(d_y) == 0);
}

TEMPLATE_TEST_CASE("geometry: NaN in, NaN out", "[geometry][law]", GEOMETRY_LAWS_MANIFOLDS) {
  using T = ScalarOf<TestType>;
  Rng rng(seed);
  const TestType m = random_manifold<TestType>(rng);
  const auto y = random_point(m, 3, 0.5, rng);
  auto x = y;
  x.back() = std::numeric_limits<T>::quiet_NaN();
  Vec<T> out(x.size()), one(1);
  CHECK(std::isnan(m.distance(x, y)));
  CHECK(std::isnan(m.distance(y, x)));
  m.distances(y, MatrixView<const T>(x.data(), Index(x.size()), 1), one);
  CHECK(std::isnan(one[0]));
  m.distances(x, MatrixView<const T>(y.data(), Index(x.size()), 1), one);
  CHECK(std::isnan(one[0]));
  m.project(x, out);
  CHECK(std::isnan(out.back()));
  m.exp(x, y, out);
  CHECK(std::isnan(out.back()));
  m.log(y, x, out);
  CHECK(std::isnan(out.back()));
  Workspace ws;
  Matrix<T> rows(2, Index(x.size()));
  std::copy(y.begin(), y.end(), rows.row(0).begin());
  std::copy(x.begin(), x.end(), rows.row(1).begin());
  m.midpoint(Vec<T>{1, 1}, rows, out, ws);
  CHECK(std::isnan(out.back()));
}

TEST_CASE("geometry: what does not fit is refused", "[geometry]") {
  CHECK_THROWS_AS(PoincareBall<float>(0), ConfigError);
  CHECK_THROWS_AS(PoincareBall<double>(-1), ConfigError);
  CHECK_THROWS_AS(Lorentz<double>(std::numeric_limits<double>::infinity()), ConfigError);
  CHECK_THROWS_AS(Lorentz<float>(std::numeric_limits<float>::quiet_NaN()), ConfigError);
  const Vec<double> x = {0.1, 0.2, 0.3}, y = {0.1, 0.2};
  Vec<double> out(3), d_y(2);
  PoincareBall<double> m, grad;
  CHECK_THROWS_AS(m.distance(x, y), ShapeError);
  CHECK_THROWS_AS(m.exp(x, x, d_y), ShapeError);
  CHECK_THROWS_AS(m.distance_vjp(x, x, 1, out, d_y, grad), ShapeError);
  CHECK_THROWS_AS(m.distances(x, MatrixView<const double>(x.data(), 1, 3), out), ShapeError);
  CHECK_THROWS_AS(m.project(x, out, 0.0), ConfigError);
  CHECK_THROWS_AS(Lorentz<double>().distance({}, {}), ShapeError);
  CHECK_THROWS_AS(Euclidean<double>().distance(x, y), ShapeError);
  m.curvature = -1;  // an optimizer went too far
  CHECK_THROWS_AS(m.distance(x, x), ConfigError);
  CHECK(PoincareBall<double>().distance({}, {}) == 0);
}

}  // namespace
}  // namespace geometry_laws
