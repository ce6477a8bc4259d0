// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/dense.hpp"
#include "ruvector/attention/distance_score.hpp"
#include "ruvector/attention/midpoint.hpp"
#include "ruvector/attention/mixed_score.hpp"
#include "ruvector/attention/tiled.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/geometry/poincare_ball.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Attention in a flat and a hyperbolic space at once: rows are [q_E | q_H], values [v_E | v_H], and the output is
/// [Σ P v_E | midpoint of v_H] with one softmax P of g q_E·k_E/√d_E − (1 − g) β d(q_H, k_H)^ρ, divided by τ.
template <Real T>
using DualSpace =
    Dense<MixedScore<DotScore<T>, DistanceScore<geometry::PoincareBall<T>>>, Midpoint<geometry::PoincareBall<T>>>;

/// The same in tiles, for long sequences: memory O(block).
template <Real T>
using DualSpaceFlash =
    Tiled<MixedScore<DotScore<T>, DistanceScore<geometry::PoincareBall<T>>>, Midpoint<geometry::PoincareBall<T>>>;

/// Options of dual-space attention.
struct DualSpaceConfig {
  Index euclidean_dim = 0;           ///< columns of q_E and k_E
  Index euclidean_value_dim = 0;     ///< columns of v_E
  double curvature = 1;              ///< c > 0, learnable; for scores and values separately
  double beta = 1;                   ///< β > 0, learnable; `calibrate_beta` gives both spaces the same spread
  int power = 1;                     ///< ρ, 1 or 2
  std::optional<double> scale = {};  ///< of q_E·k_E; default 1/√d_E
  double gate = 0.5;                 ///< initial share of the flat space, 0 to 1
  bool query_gate = false;           ///< the gate depends on the query
  double temperature = 1;            ///< τ > 0, learnable
  Points input = Points::tangent;    ///< what the hyperbolic columns are
  double dropout = 0;                ///< on the weights, in training
};

/// `DualSpace<T>` or `DualSpaceFlash<T>` with these options. Throws ConfigError.
template <class Attention>
[[nodiscard]] Attention make_dual_space(const DualSpaceConfig& config) {
  using T = ScalarOf<Attention>;
  using Hyperbolic = DistanceScore<geometry::PoincareBall<T>>;
  DotScoreConfig<T> dot;
  if (config.scale) dot.scale = T(*config.scale);
  const MixedScoreConfig<T> mixed{.first_dim = config.euclidean_dim,
                                  .gate = T(config.gate),
                                  .query_gate = config.query_gate,
                                  .temperature = T(config.temperature)};
  const MidpointConfig<T> midpoint{
      .curvature = T(config.curvature), .values = config.input, .first_column = config.euclidean_value_dim};
  return Attention(
      decltype(Attention::score)(
          DotScore<T>(dot),
          Hyperbolic(
              {.beta = T(config.beta), .power = config.power, .curvature = T(config.curvature), .input = config.input}),
          mixed),
      decltype(Attention::mean)(midpoint), T(config.dropout));
}

/// Sets β so that over all pairs of these queries [m×d] and keys [n×d] the deviation of β d^ρ is that of q_E·k_E/√d_E:
/// otherwise the space with the wider spread decides alone from the first step. Changes nothing where either is 0.
/// O(m n d): a few hundred rows are enough. Throws ShapeError where the widths differ.
template <class Attention>
void calibrate_beta(Attention& attention, std::type_identity_t<MatrixView<const ScalarOf<Attention>>> query,
                    std::type_identity_t<MatrixView<const ScalarOf<Attention>>> key) {
  using T = ScalarOf<Attention>;
  check_shape("calibrate_beta: columns of key", query.cols(), key.cols());
  auto score = attention.score;
  score.temperature = Positive<T>();
  score.gate_weight = Vector<T>();
  score.gate_bias = 0;
  struct Moments {
    double sum = 0, square = 0, count = 0;
    void add(double x) { sum += x, square += x * x, count += 1; }
    [[nodiscard]] double deviation() const {
      return std::sqrt(std::max(0.0, square / count - sum / count * (sum / count)));
    }
  } flat, curved;
  for (Index i = 0; i < query.rows(); ++i)
    for (Index j = 0; j < key.rows(); ++j) {
      const auto parts = score.space_contributions(query.row(i), key.row(j));
      flat.add(double(parts.first));
      curved.add(double(parts.second));
    }
  if (flat.count == 0 || !(flat.deviation() > 0) || !(curved.deviation() > 0)) return;
  const double beta = double(score.second.beta.value()) * flat.deviation() / curved.deviation();
  attention.score.second.beta = Positive<T>(T(beta), "calibrate_beta: beta");
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention
