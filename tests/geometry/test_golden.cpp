// SPDX-License-Identifier: MIT

#include <ruvector/core/workspace.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"

// Values of tests/golden/make_geometry.py: textbook formulas at 60 digits, for the very inputs given here.

namespace geometry_golden {
namespace {

using ruvector::Index;
using ruvector::MatrixView;
using ruvector::geometry::Lorentz;
using ruvector::geometry::PoincareBall;

struct Case {
  std::string name;
  std::size_t d;
  double c;
  std::vector<double> numbers;
};

std::vector<Case> read(const std::string& file) {
  std::ifstream in(std::string(RUVECTOR_TEST_DATA) + "/" + file);
  std::vector<Case> cases;
  for (std::string text; std::getline(in, text);) {
    std::istringstream line(text);
    Case one;
    line >> one.name >> one.d;
    std::string number;
    line >> number;
    one.c = std::strtod(number.c_str(), nullptr);
    while (line >> number) one.numbers.push_back(std::strtod(number.c_str(), nullptr));
    cases.push_back(one);
  }
  REQUIRE(cases.size() > 50);
  return cases;
}

/// Elements first … first + n − 1 in T, after `front` zeros.
template <class T>
std::vector<T> part(const Case& one, std::size_t first, std::size_t n, std::size_t front = 0) {
  std::vector<T> values(front + n);
  for (std::size_t i = 0; i < n; ++i) values[front + i] = static_cast<T>(one.numbers[first + i]);
  return values;
}

/// The larger of both; NaN if either is NaN, which no bound accepts.
double worse(double a, double b) {
  return a >= b ? a : b <= a || a != a ? a : b;
}

/// The largest relative error of distance and distances over the golden values, by their length.
template <class M>
std::vector<double> errors_by_length(const std::string& name) {
  using T = ruvector::ScalarOf<M>;
  const std::size_t front = name == "lorentz" ? 1 : 0;
  std::vector<double> worst(40, 0.0);
  for (const Case& one : read("geometry_distances.txt")) {
    if (one.name != name) continue;
    const M m(static_cast<T>(one.c));
    const std::vector<T> x = part<T>(one, 0, one.d, front), y = part<T>(one, one.d, one.d, front);
    const double expected = one.numbers.back();
    std::vector<T> many(1);
    m.distances(x, MatrixView<const T>(y.data(), Index(y.size()), 1), many);
    double& cell = worst[std::size_t(expected * std::sqrt(one.c))];
    for (const T actual : {m.distance(x, y), m.distance(y, x), many[0]})
      cell = worse(cell, std::abs(double(actual) - expected) / expected);
  }
  return worst;
}

TEMPLATE_TEST_CASE("geometry: distances of float points near the rim are exact to 1e-5", "[geometry][golden]", float,
                   double) {
  const auto ball = errors_by_length<PoincareBall<TestType>>("ball");
  const auto lorentz = errors_by_length<Lorentz<TestType>>("lorentz");
  std::printf("largest relative error of distances in %s, points at 1 - 10^-k, k = 1...7\n   s d     ball  lorentz\n",
              sizeof(TestType) == 4 ? "float" : "double");
  for (std::size_t i = 0; i < ball.size(); ++i) {
    if (ball[i] != 0 || lorentz[i] != 0) std::printf("%2zu-%2zu  %7.1e  %7.1e\n", i, i + 1, ball[i], lorentz[i]);
    // All arithmetic is in double: a float result carries its own rounding, a double one what α lost, 1e-16/α.
    const double bound = sizeof(TestType) == 4 ? 1e-7 : 1e-8;
    CAPTURE(i);
    CHECK(ball[i] <= bound);
    CHECK(lorentz[i] <= bound);
  }
}

void check_close(std::span<const double> actual, std::span<const double> expected) {
  REQUIRE(actual.size() == expected.size());
  double size = 1e-3;
  for (const double v : expected) size = std::max(size, std::abs(v));
  for (std::size_t i = 0; i < actual.size(); ++i) CHECK(std::abs(actual[i] - expected[i]) <= 1e-13 * size);
}

TEST_CASE("geometry: operations agree with the textbook formulas at 60 digits", "[geometry][golden]") {
  ruvector::Workspace ws;
  for (const Case& one : read("geometry_operations.txt")) {
    CAPTURE(one.name, one.d, one.c);
    const bool lorentz = one.name.starts_with("lorentz");
    const std::size_t d = one.d, front = lorentz ? 1 : 0, columns = d + front;
    const auto first = part<double>(one, 0, d, front), second = part<double>(one, d, d, front);
    std::vector<double> out(columns);
    const auto run = [&](const auto& m) {
      const std::string op = lorentz ? one.name.substr(8) : one.name;
      if (op == "exp") m.exp(first, second, out);
      if (op == "log") m.log(first, second, out);
      if (op == "transport") m.transport(first, second, part<double>(one, 2 * d, d, front), out);
      if (op == "midpoint") {
        std::vector<double> rows;
        for (std::size_t j = 0; j < 3; ++j) {
          const auto row = part<double>(one, 3 + j * d, d, front);
          rows.insert(rows.end(), row.begin(), row.end());
        }
        m.midpoint(part<double>(one, 0, 3), MatrixView<const double>(rows.data(), 3, Index(columns)), out, ws);
      }
      if constexpr (requires { m.add(first, second, out); })
        if (op == "add") m.add(first, second, out);
    };
    lorentz ? run(Lorentz<double>(one.c)) : run(PoincareBall<double>(one.c));
    check_close(out, part<double>(one, one.numbers.size() - columns, columns));
  }
}

}  // namespace
}  // namespace geometry_golden
