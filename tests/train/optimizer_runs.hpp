// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/parameters.hpp>
#include <ruvector/io/npy.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstring>
#include <string>

// The runs of tests/golden/make_optimizers.py: the same start, the same gradients.
namespace optimizer_runs {

using ruvector::Index;
using ruvector::Matrix;

inline constexpr Index checkpoints[] = {1, 2, 3, 10, 100, 1000};
inline constexpr Index size = 24;

// Tensors of several shapes, 24 numbers in all.
template <class T>
struct Parts {
  using Scalar = T;
  Matrix<T> matrix{3, 5};
  ruvector::Vector<T> vector = ruvector::Vector<T>(8);
  T scalar = 0;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("matrix", self.matrix...);
    visit("vector", self.vector...);
    visit("scalar", self.scalar...);
  }
};

// Points on a manifold, 24 numbers in all, and one that is not.
template <class G>
struct Points {
  using Scalar = ruvector::ScalarOf<G>;
  G manifold;
  Matrix<Scalar> points{8, 3};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit.on(ruvector::first_of(self...).manifold, "points", self.points...);
  }
};

template <class M, class Value>
void fill(M& model, Value value) {
  Index i = 0;
  ruvector::for_each_parameter(
      [&](std::string_view, auto tensor) {
        for (auto& x : tensor) x = static_cast<ruvector::ScalarOf<M>>(value(i++));
      },
      model);
}

inline double start(Index i) {
  return double(i + 1) / 16;
}

inline double gradient(Index t, Index i) {
  const double scales[] = {0.01, 0.1, 1, 10};
  return scales[i % 4] * (double((7919 * t + 104729 * i) % 2003) / 1001 - 1);
}

template <class M>
M gradient_at(const M& model, Index t) {
  M result = model;
  fill(result, [&](Index i) { return gradient(t, i); });
  return result;
}

template <class A, class B>
bool same_bits(const A& a, const B& b) {
  bool same = true;
  ruvector::for_each_parameter(
      [&](std::string_view, auto x, auto y) { same = same && std::memcmp(x.data(), y.data(), x.size_bytes()) == 0; }, a,
      b);
  return same;
}

// Runs 1000 steps, and returns the largest |x − golden| / max(1, |golden|) over all checkpoints.
template <class M, class O>
double worst_error(M& model, O& optimizer, const std::string& golden) {
  const auto expected = ruvector::io::read_npy_matrix<double>(RUVECTOR_TEST_DATA "/optimizer_" + golden + ".npy");
  double worst = 0;
  Index row = 0;
  for (Index t = 1; t <= 1000; ++t) {
    optimizer.step(model, gradient_at(model, t));
    if (t != checkpoints[row]) continue;
    Index i = 0;
    ruvector::for_each_parameter(
        [&](std::string_view, auto tensor) {
          for (const auto x : tensor) {
            const double e = expected(row, i++);
            const double error = std::abs(double(x) - e) / std::max(1.0, std::abs(e));
            if (!(error <= worst)) worst = error;
          }
        },
        model);
    REQUIRE(i == expected.cols());
    ++row;
  }
  REQUIRE(row == expected.rows());
  return worst;
}

// Both are held against PyTorch in double: its AdamW in float is off by 2.3e-5 itself, since it rounds 1 − η w.
template <class T>
inline constexpr double tolerance = std::same_as<T, float> ? 1e-5 : 1e-12;

// The laws that every optimizer keeps, on a model that is ready to go.
template <class M, class Make>
void check_laws(const M& model, const M& wrong_shape, Make make) {
  using ruvector::ConfigError;
  using ruvector::ShapeError;
  // A refused step changes nothing, neither model nor optimizer.
  M a = model, b = model;
  auto touched = make(model), fresh = make(model);
  CHECK_THROWS_AS(touched.step(a, wrong_shape), ShapeError);
  M wrong = wrong_shape;
  CHECK_THROWS_AS(touched.step(wrong, gradient_at(model, 1)), ShapeError);
  for (const double factor : {-1.0, double(NAN), double(INFINITY)})
    CHECK_THROWS_AS(touched.step(a, gradient_at(model, 1), factor), ConfigError);
  CHECK(same_bits(a, model));
  for (Index t = 1; t <= 5; ++t) {
    touched.step(a, gradient_at(a, t));
    fresh.step(b, gradient_at(b, t));
  }
  CHECK(same_bits(a, b));
  CHECK_FALSE(same_bits(a, model));

  // An optimizer is a value: a copy goes on with the same bits.
  auto copy = fresh;
  M c = b;
  for (Index t = 6; t <= 10; ++t) {
    fresh.step(b, gradient_at(b, t));
    copy.step(c, gradient_at(c, t));
  }
  CHECK(same_bits(b, c));

  // The factor multiplies the learning rate: 0 stands still.
  const M before = b;
  fresh.step(b, gradient_at(b, 11), 0);
  CHECK(same_bits(b, before));
}

}  // namespace optimizer_runs
