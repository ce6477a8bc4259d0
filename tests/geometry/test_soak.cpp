// SPDX-License-Identifier: MIT

#include <ruvector/core/parameters.hpp>

#include <cstdio>
#include <cstdlib>

#include "geometry/operations.hpp"
#include "support/catch.hpp"

// P-12: no operation and no gradient is ever NaN or infinite, and points stay strictly inside the ball, for any points
// one can write down. RUVECTOR_SOAK is the number of trials (1e6 by default, 1e8 before a release).

namespace geometry_test {
namespace {
namespace soak {

using ruvector::Real;
using ruvector::geometry::Lorentz;
using ruvector::geometry::PoincareBall;

template <Real T>
double curvature_of(const PoincareBall<T>& m) {
  return double(m.curvature);
}
template <Real T>
double curvature_of(const Lorentz<T>& m) {
  return double(m.curvature);
}

/// Some s‖x‖: inside, close to the rim, on it, outside, zero, tiny.
double some_radius(Rng& rng, int digits) {
  switch (rng.below(8)) {
    case 0:
      return 0;
    case 1:
      return 1;
    case 2:
      return 1 + rng.uniform();
    case 3:
      return std::exp2(rng.uniform(0.0, 60.0));
    case 4:
      return std::exp2(-rng.uniform(0.0, 60.0));
    case 5:
      return rng.uniform();
    default:
      return 1 - std::exp2(-double(1 + rng.below(digits)));
  }
}

template <class T>
Values<T> some_vector(Index d, double length, Rng& rng) {
  std::vector<double> v(std::size_t(d), 0.0);
  double square = 0;
  for (double& x : v) {
    x = rng.below(8) == 0 ? 0 : rng.uniform(-1.0, 1.0);
    square += x * x;
  }
  if (square == 0) square = v[0] = 1;
  Values<T> out;
  for (const double x : v) out.push_back(static_cast<T>(x / std::sqrt(square) * length));
  return out;
}

template <class T>
bool all_finite(const Values<T>& v) {
  return std::all_of(v.begin(), v.end(), [](T x) { return std::isfinite(x); });
}

template <class M>
std::string failure(const Operation<M>& op, const M& m, Index d, Rng& rng) {
  using T = ruvector::ScalarOf<M>;
  constexpr int digits = sizeof(T) == 4 ? 24 : 53;
  const double c = curvature_of(m), s = std::sqrt(c);
  const Index columns = m.point_dim(d);
  Values<T> first;
  const auto point = [&] {
    Values<T> x = some_vector<T>(columns, some_radius(rng, digits) / s, rng);
    const Index relation = first.empty() ? 9 : rng.below(5);
    if (relation <= 1) x = first;
    if (relation == 1)
      for (T& v : x) v = -v;
    if (relation == 2)  // neighbours
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::nextafter(first[i], x[i]);
    if (first.empty()) first = x;
    return x;
  };
  typename Operation<M>::Inputs in, d_in;
  for (const Kind kind : op.inputs) {
    Values<T> values;
    if (kind == Kind::point) values = point();
    if (kind == Kind::weights)
      for (Index j = 0; j < several; ++j) values.push_back(rng.below(4) == 0 ? T(0) : static_cast<T>(rng.uniform()));
    if (kind == Kind::tangent) values = some_vector<T>(columns, std::exp2(rng.uniform(-30.0, 10.0)) / s, rng);
    if (kind == Kind::points || kind == Kind::columns) {
      values.resize(std::size_t(several * columns));
      for (std::size_t j = 0; j < std::size_t(several); ++j) {
        const Values<T> x = point();
        for (std::size_t i = 0; i < x.size(); ++i)
          values[kind == Kind::points ? j * x.size() + i : i * std::size_t(several) + j] = x[i];
      }
    }
    d_in.emplace_back(values.size());
    in.push_back(std::move(values));
  }
  const Values<T> out = op.forward(m, in);
  if (!all_finite(out)) return "value";
  if constexpr (std::same_as<M, PoincareBall<T>>) {
    if (op.gives_points) {
      long double square = 0;
      for (const T v : out) square += static_cast<long double>(v) * static_cast<long double>(v);
      if (!(static_cast<long double>(m.curvature) * square < 1)) return "not inside";
    }
  }
  Values<T> d_out(out.size());
  for (T& g : d_out) g = static_cast<T>(rng.uniform(-1.0, 1.0));
  M grad = ruvector::zeros_like(m);
  op.backward(m, in, d_out, d_in, grad);
  for (const auto& d_x : d_in)
    if (!all_finite(d_x)) return "gradient";
  if (!std::isfinite(curvature_of(grad))) return "gradient by c";
  return {};
}

TEMPLATE_TEST_CASE("geometry: nothing is ever NaN, and points stay inside", "[geometry][soak]", PoincareBall<float>,
                   PoincareBall<double>, Lorentz<float>, Lorentz<double>) {
  const char* const wanted = std::getenv("RUVECTOR_SOAK");
  const Index trials = Index(wanted != nullptr ? std::strtod(wanted, nullptr) : 1e6) / 4;
  const std::uint64_t seed = 20260803;
  CAPTURE(seed);
  Rng rng(seed);
  const auto all = operations<TestType>();
  using T = ruvector::ScalarOf<TestType>;
  Index failures = 0;
  for (Index trial = 0; trial < trials; ++trial) {
    const auto& op = all[std::size_t(trial) % all.size()];
    const TestType m(static_cast<T>(std::pow(10.0, rng.uniform(-6.0, 6.0))));
    const Index d = rng.below(4) == 0 ? 1 + rng.below(128) : 1 + rng.below(12);
    const std::string what = failure(op, m, d, rng);
    if (what.empty()) continue;
    CAPTURE(op.name, trial, d, m.curvature);
    if (++failures <= 20) CHECK(what == "");
  }
  CHECK(failures == 0);
}

}  // namespace soak
}  // namespace
}  // namespace geometry_test
