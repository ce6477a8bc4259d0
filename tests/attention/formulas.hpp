// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/distance_score.hpp>
#include <ruvector/attention/midpoint.hpp>
#include <ruvector/attention/scores.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "support/laws.hpp"

// Distances, logits and means as the textbooks write them, in R: long double for the truth, T for a plain loop.

namespace formulas {

using namespace ruvector;
using namespace ruvector::attention;

template <class T>
using Ball = geometry::PoincareBall<T>;

// Distances by the textbook, in R.
template <class R, class T>
std::vector<R> ball_point(std::span<const T> x, R c, Points input) {
  std::vector<R> p(x.begin(), x.end());
  if (input == Points::on_manifold) return p;
  R norm2 = 0;
  for (const R v : p) norm2 += v * v;
  const R z = std::sqrt(c * norm2), factor = z == 0 ? R(1) : std::tanh(z) / z;
  for (R& v : p) v *= factor;
  return p;
}
template <class R>
R square(const std::vector<R>& p) {
  R sum = 0;
  for (const R v : p) sum += v * v;
  return sum;
}
template <class R>
R difference_square(const std::vector<R>& p, const std::vector<R>& q) {
  R sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += (p[i] - q[i]) * (p[i] - q[i]);
  return sum;
}

template <class R, class T>
R distance(const DistanceScore<Ball<T>>& score, std::span<const T> q, std::span<const T> k) {
  const R c = R(score.curvature.value());
  const auto x = ball_point<R>(q, c, score.input), y = ball_point<R>(k, c, score.input);
  const R product = (1 - c * square(x)) * (1 - c * square(y));
  return 2 / std::sqrt(c) * std::asinh(std::sqrt(c * difference_square(x, y) / product));
}
template <class R, class T>
R distance(const DistanceScore<geometry::Lorentz<T>>& score, std::span<const T> q, std::span<const T> k) {
  const R c = R(score.curvature.value());
  const std::vector<R> x(q.begin() + 1, q.end()), y(k.begin() + 1, k.end());
  const R x0 = std::sqrt(1 / c + square(x)), y0 = std::sqrt(1 / c + square(y));
  return 2 / std::sqrt(c) *
         std::asinh(std::sqrt(c * std::max(R(0), difference_square(x, y) - (x0 - y0) * (x0 - y0))) / 2);
}
template <class R, class T>
R distance(const DistanceScore<geometry::Euclidean<T>>&, std::span<const T> q, std::span<const T> k) {
  return std::sqrt(difference_square(std::vector<R>(q.begin(), q.end()), std::vector<R>(k.begin(), k.end())));
}
template <class R, class M, class T>
R logit(const DistanceScore<M>& score, std::span<const T> q, std::span<const T> k) {
  const R d = distance<R>(score, q, k);
  return -R(score.beta.value()) * (score.power == 1 ? d : d * d);
}
template <class R, class T>
R logit(const CosineScore<T>& score, std::span<const T> q, std::span<const T> k) {
  R dot = 0, qq = 0, kk = 0;
  for (std::size_t i = 0; i < q.size(); ++i) {
    dot += R(q[i]) * R(k[i]);
    qq += R(q[i]) * R(q[i]);
    kk += R(k[i]) * R(k[i]);
  }
  return R(score.scale.value()) * dot / std::sqrt(qq * kk);
}

// Means by the textbook: weights have the given sum.
template <class R, class T>
void mean(const Midpoint<Ball<T>>& midpoint, std::span<const R> weights, const laws::Problem<T>& problem,
          std::span<R> out) {
  const R c = R(midpoint.curvature.value());
  R t = 0;
  const auto first = std::size_t(midpoint.first_column);
  R sum = 0;
  const std::span<R> whole = out;
  out = out.subspan(first);
  for (std::size_t j = 0; j < weights.size(); ++j) {
    if (weights[j] == 0) continue;
    sum += weights[j];
    for (std::size_t i = 0; i < first; ++i) whole[i] += weights[j] * R(problem.value(Index(j), Index(i)));
    const auto x = ball_point<R>(problem.value.row(Index(j)).subspan(first), c, midpoint.values);
    const R lambda = 2 / (1 - c * square(x));
    t += weights[j] * (lambda - 1);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += weights[j] * lambda * x[i];
  }
  for (std::size_t i = 0; i < first; ++i) whole[i] /= sum;
  std::vector<R> z(out.begin(), out.end());
  for (R& v : z) v /= t;
  const R root = std::sqrt(1 - c * square(z));
  for (R& v : z) v /= 1 + root;
  const R norm = std::sqrt(c * square(z));
  const R factor = midpoint.values == Points::on_manifold || norm == 0 ? R(1) : std::atanh(norm) / norm;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = factor * z[i];
}
template <class R, class T>
void mean(const Midpoint<geometry::Lorentz<T>>& midpoint, std::span<const R> weights, const laws::Problem<T>& problem,
          std::span<R> out) {
  const R c = R(midpoint.curvature.value());
  for (std::size_t j = 0; j < weights.size(); ++j) {
    if (weights[j] == 0) continue;
    R space = 0;
    for (std::size_t i = 1; i < out.size(); ++i) {
      const R x = R(problem.value(Index(j), Index(i)));
      space += x * x;
      out[i] += weights[j] * x;
    }
    out[0] += weights[j] * std::sqrt(1 / c + space);
  }
  R inner = out[0] * out[0];
  for (std::size_t i = 1; i < out.size(); ++i) inner -= out[i] * out[i];
  for (R& x : out) x /= std::sqrt(c * inner);
}

}  // namespace formulas
