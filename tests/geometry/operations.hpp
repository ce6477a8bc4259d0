// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <functional>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <span>
#include <string>
#include <vector>

// Every operation of a manifold in one form, so that one law can run over all of them.

namespace geometry_test {

using ruvector::Index;
using ruvector::MatrixView;
using ruvector::Rng;

template <class T>
using Values = std::vector<T>;

enum class Kind { point, tangent, weights, points, columns };  // points: rows, columns: columns of 3 points

inline constexpr Index several = 3;

/// outputs = forward(inputs); backward adds the gradients of d_out · outputs.
template <class M>
struct Operation {
  using T = ruvector::ScalarOf<M>;
  using Inputs = std::vector<Values<T>>;
  std::string name;
  std::vector<Kind> inputs;
  bool gives_points;
  std::function<Values<T>(const M&, const Inputs&)> forward;
  std::function<void(const M&, const Inputs&, const Values<T>&, Inputs&, M&)> backward;
};

template <class M>
std::vector<Operation<M>> operations() {
  using T = ruvector::ScalarOf<M>;
  using In = const std::vector<Values<T>>&;
  using Out = const Values<T>&;
  using D = std::vector<Values<T>>&;
  constexpr auto point = Kind::point, tangent = Kind::tangent, weights = Kind::weights, points = Kind::points;
  const auto rows = [](auto& v) { return MatrixView(v.data(), several, Index(v.size()) / several); };
  const auto const_rows = [](const Values<T>& v) {
    return MatrixView<const T>(v.data(), several, Index(v.size()) / several);
  };
  const auto columns = [](auto& v) { return MatrixView(v.data(), Index(v.size()) / several, several); };
  const auto const_columns = [](const Values<T>& v) {
    return MatrixView<const T>(v.data(), Index(v.size()) / several, several);
  };
  std::vector<Operation<M>> list = {
      {"distance",
       {point, point},
       false,
       [](const M& m, In a) { return Values<T>{m.distance(a[0], a[1])}; },
       [](const M& m, In a, Out g, D d, M& grad) { m.distance_vjp(a[0], a[1], g[0], d[0], d[1], grad); }},
      {"distances",
       {point, Kind::columns},
       false,
       [=](const M& m, In a) {
         Values<T> out(a[1].size() / a[0].size());
         m.distances(a[0], const_columns(a[1]), out);
         return out;
       },
       [=](const M& m, In a, Out g, D d, M& grad) {
         m.distances_vjp(a[0], const_columns(a[1]), g, d[0], columns(d[1]), grad);
       }},
      {"project",
       {point},
       true,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.project(a[0], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.project_vjp(a[0], g, d[0], grad); }},
      {"inner",
       {point, tangent, tangent},
       false,
       [](const M& m, In a) { return Values<T>{m.inner(a[0], a[1], a[2])}; },
       [](const M& m, In a, Out g, D d, M& grad) { m.inner_vjp(a[0], a[1], a[2], g[0], d[0], d[1], d[2], grad); }},
      {"riemannian_gradient",
       {point, tangent},
       false,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.riemannian_gradient(a[0], a[1], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.riemannian_gradient_vjp(a[0], a[1], g, d[0], d[1], grad); }},
      {"exp",
       {point, tangent},
       true,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.exp(a[0], a[1], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.exp_vjp(a[0], a[1], g, d[0], d[1], grad); }},
      {"log",
       {point, point},
       false,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.log(a[0], a[1], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.log_vjp(a[0], a[1], g, d[0], d[1], grad); }},
      {"exp0",
       {tangent},
       true,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.exp0(a[0], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.exp0_vjp(a[0], g, d[0], grad); }},
      {"log0",
       {point},
       false,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.log0(a[0], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.log0_vjp(a[0], g, d[0], grad); }},
      {"transport",
       {point, point, tangent},
       false,
       [](const M& m, In a) {
         Values<T> out(a[0].size());
         m.transport(a[0], a[1], a[2], out);
         return out;
       },
       [](const M& m, In a, Out g, D d, M& grad) { m.transport_vjp(a[0], a[1], a[2], g, d[0], d[1], d[2], grad); }},
      {"midpoint",
       {weights, points},
       true,
       [=](const M& m, In a) {
         ruvector::Workspace ws;
         Values<T> out(a[1].size() / several);
         m.midpoint(a[0], const_rows(a[1]), out, ws);
         return out;
       },
       [=](const M& m, In a, Out g, D d, M& grad) {
         ruvector::Workspace ws;
         m.midpoint_vjp(a[0], const_rows(a[1]), g, d[0], rows(d[1]), grad, ws);
       }},
  };
  if constexpr (requires(const M& m, std::span<T> x) { m.add(x, x, x); }) {
    list.push_back({"add",
                    {point, point},
                    true,
                    [](const M& m, In a) {
                      Values<T> out(a[0].size());
                      m.add(a[0], a[1], out);
                      return out;
                    },
                    [](const M& m, In a, Out g, D d, M& grad) { m.add_vjp(a[0], a[1], g, d[0], d[1], grad); }});
    list.push_back({"conformal_factor",
                    {point},
                    false,
                    [](const M& m, In a) { return Values<T>{m.conformal_factor(a[0])}; },
                    [](const M& m, In a, Out g, D d, M& grad) { m.conformal_factor_vjp(a[0], g[0], d[0], grad); }});
  }
  return list;
}

}  // namespace geometry_test
