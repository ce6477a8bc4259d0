// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/positive.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/attention/tangent.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/geometry/euclidean.hpp"
#include "ruvector/geometry/lorentz.hpp"
#include "ruvector/geometry/poincare_ball.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numbers>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// Pairs closer than this, measured in the squares of their norms, are computed from differences: the product of two
/// floats near the rim leaves nothing of their distance.
inline constexpr double near_pairs = 0x1p-10;

/// x ≥ 0, where rounding made it negative, and not so far that E = e^(√c d) overflows; NaN stays.
template <Real T>
[[nodiscard]] simd::Batch<T> in_reach(simd::Batch<T> x) {
  using B = simd::Batch<T>;
  constexpr T farthest = std::same_as<T, float> ? T(1e18) : T(1e150);
  return simd::max(B(T(0)), simd::min(B(farthest), x));
}

/// How far two points are apart, as a number t that products give: t = scalars − product. Here t = ‖q − k‖².
template <class Manifold>
struct Separation;

template <Real T>
struct Separation<geometry::Euclidean<T>> {
  using B = simd::Batch<T>;              ///< register
  static constexpr Index scalars = 1;    ///< ‖x‖²
  static constexpr bool curved = false;  ///< no curvature

  Separation(T, Points) {}
  [[nodiscard]] Index column() const { return 0; }
  void row(std::span<const T> x, T* out) const { *out = simd::squared_norm(x); }
  void row_vjp(std::span<const T> x, const T* d, std::span<T> d_x, T&) const {
    if (!d_x.empty()) simd::axpy(2 * *d, x, d_x);
  }
  [[nodiscard]] B measure(B dot, const B* q, const B* k) const {
    return simd::max(B(T(0)), simd::fnma(B(T(2)), dot, q[0] + k[0]));
  }
  void measure_vjp(B d_t, B, const B*, const B*, B& d_dot, B* d_q, B* d_k, B&) const {
    d_dot = d_t * B(T(-2));
    d_q[0] = d_k[0] = d_t;
  }
  [[nodiscard]] simd::Mask<T> near(B t, const B* q, const B* k) const { return t < (q[0] + k[0]) * B(T(near_pairs)); }
  [[nodiscard]] T exact(std::span<const T> q, std::span<const T> k) const { return simd::squared_distance(q, k); }
  void exact_vjp(std::span<const T> q, std::span<const T> k, T d_t, std::span<T> d_q, std::span<T> d_k, T&) const {
    for (std::size_t c = 0; c < q.size(); ++c) {
      const T step = 2 * d_t * (q[c] - k[c]);
      if (!d_q.empty()) d_q[c] += step;
      d_k[c] -= step;
    }
  }
};

/// In the ball cosh(√c d) = 1 + t with t = 2cδ/(αβ), δ = ‖q − k‖², so with A = 1/α and a = 2c‖x‖²A of each row
///
///     t = a_q B_k + A_q b_k − f_q f_k (x_q·x_k),  f = 2√c A scale, where the point is scale · x.
template <Real T>
struct Separation<geometry::PoincareBall<T>> {
  using B = simd::Batch<T>;             ///< register
  static constexpr Index scalars = 3;   ///< A, a, f
  static constexpr bool curved = true;  ///< has a curvature

  T curvature;
  double root;  // √c
  Points input;

  Separation(T c, Points points) : curvature(c), root(std::sqrt(double(c))), input(points) {}
  [[nodiscard]] Index column() const { return 0; }

  void row(std::span<const T> x, T* out) const {
    const BallRow p(x, double(curvature), input);
    out[0] = T(p.inverse_alpha);
    out[1] = T(2 * double(curvature) * p.square * p.inverse_alpha);
    out[2] = T(2 * root * p.inverse_alpha * p.scale);
  }
  // With s = ‖p‖²: ∂A/∂s = cA², ∂a/∂s = 2cA², ∂A/∂c = sA², ∂a/∂c = 2sA², at a given scale.
  void row_vjp(std::span<const T> x, const T* d, std::span<T> d_x, T& d_curvature) const {
    const double c = double(curvature);
    const BallRow p(x, c, input);
    const double d_a = double(d[0]) + 2 * double(d[1]) + 2 * root * p.scale * double(d[2]);
    const double A = p.inverse_alpha;
    double d_c = p.scale * A * double(d[2]) / root;
    double d_square = 0;
    if (!p.moved) {  // on the rim A and a are constant
      d_square = c * A * A * d_a;
      d_c += p.square * A * A * d_a;
    }
    p.vjp(x, d_square, 2 * root * A * double(d[2]), d_x, d_c);
    d_curvature += T(d_c);
  }

  [[nodiscard]] B measure(B dot, const B* q, const B* k) const {
    return in_reach(simd::fnma(q[2] * k[2], dot, simd::fma(q[1], k[0], q[0] * k[1])));
  }
  void measure_vjp(B d_t, B dot, const B* q, const B* k, B& d_dot, B* d_q, B* d_k, B&) const {
    d_dot = -(d_t * (q[2] * k[2]));
    d_q[0] = d_t * k[1];
    d_q[1] = d_t * k[0];
    d_q[2] = -(d_t * k[2] * dot);
    d_k[0] = d_t * q[1];
    d_k[1] = d_t * q[0];
    d_k[2] = -(d_t * q[2] * dot);
  }
  // t < 2⁻¹⁰ · 2c(‖q‖² + ‖k‖²)AB, where the norms are those of the points.
  [[nodiscard]] simd::Mask<T> near(B t, const B* q, const B* k) const {
    return t < simd::fma(q[1], k[0], q[0] * k[1]) * B(T(near_pairs));
  }

  [[nodiscard]] T exact(std::span<const T> q, std::span<const T> k) const {
    const double c = double(curvature);
    const BallRow x(q, c, input), y(k, c, input);
    return T(2 * c * x.inverse_alpha * y.inverse_alpha * squared_distance(q, x.scale, k, y.scale));
  }
  void exact_vjp(std::span<const T> q, std::span<const T> k, T d_t, std::span<T> d_q, std::span<T> d_k,
                 T& d_curvature) const {
    const double c = double(curvature);
    const BallRow x(q, c, input), y(k, c, input);
    const double delta = squared_distance(q, x.scale, k, y.scale);
    const double per_delta = 2 * x.inverse_alpha * y.inverse_alpha * double(d_t), d_delta = c * per_delta;
    double d_c = delta * per_delta;
    const auto one = [&](std::span<const T> from, const BallRow& p, std::span<const T> to, const BallRow& other,
                         std::span<T> d_from) {
      // By A of this row, and by the point: 2 d_delta (p − other).
      const double d_A = 2 * c * delta * other.inverse_alpha * double(d_t);
      double d_square = 0;
      if (!p.moved) {
        d_square = c * p.inverse_alpha * p.inverse_alpha * d_A;
        d_c += p.square * p.inverse_alpha * p.inverse_alpha * d_A;
      }
      double radial = 0;  // x · gradient by the point
      for (std::size_t i = 0; i < from.size(); ++i) {
        const double step = 2 * d_delta * (p.scale * double(from[i]) - other.scale * double(to[i]));
        radial += step * double(from[i]);
        if (!d_from.empty()) d_from[i] = T(double(d_from[i]) + p.scale * step);
      }
      p.vjp(from, d_square, radial, d_from, d_c);
    };
    one(q, x, k, y, d_q);
    one(k, y, q, x, d_k);
    d_curvature += T(d_c);
  }

 private:
  [[nodiscard]] static double squared_distance(std::span<const T> x, double sx, std::span<const T> y, double sy) {
    return geometry::detail::sum(Index(x.size()), [&](Index i) {
      const double difference = sy * double(y[std::size_t(i)]) - sx * double(x[std::size_t(i)]);
      return difference * difference;
    });
  }
};

/// On the hyperboloid cosh(√c d) = 1 + t with t = h_q h_k − 1 − c x⃗_q·x⃗_k, h = √(1 + c‖x⃗‖²): the time of a point is
/// taken from its space part.
template <Real T>
struct Separation<geometry::Lorentz<T>> {
  using B = simd::Batch<T>;             ///< register
  static constexpr Index scalars = 1;   ///< h
  static constexpr bool curved = true;  ///< has a curvature

  T curvature;

  Separation(T c, Points) : curvature(c) {}
  [[nodiscard]] Index column() const { return 1; }

  void row(std::span<const T> x, T* out) const { *out = T(time(x)); }
  void row_vjp(std::span<const T> x, const T* d, std::span<T> d_x, T& d_curvature) const {
    const double h = time(x);
    if (!d_x.empty()) simd::axpy(T(double(*d) * double(curvature) / h), x.subspan(1), d_x.subspan(1));
    d_curvature += T(double(*d) * (h * h - 1) / (2 * double(curvature) * h));
  }
  [[nodiscard]] B measure(B dot, const B* q, const B* k) const {
    return in_reach(simd::fnma(B(curvature), dot, simd::fma(q[0], k[0], B(T(-1)))));
  }
  void measure_vjp(B d_t, B dot, const B* q, const B* k, B& d_dot, B* d_q, B* d_k, B& d_curvature) const {
    d_curvature = simd::fnma(d_t, dot, d_curvature);
    d_dot = -(d_t * B(curvature));
    d_q[0] = d_t * k[0];
    d_k[0] = d_t * q[0];
  }
  [[nodiscard]] simd::Mask<T> near(B t, const B* q, const B* k) const { return t < (q[0] * k[0]) * B(T(near_pairs)); }

  // t = c(‖Δ‖² − b²)/2 with Δ = q⃗ − k⃗ and the difference of the times b = Δ·(q⃗ + k⃗)/(q₀ + k₀), where √c x₀ = h.
  [[nodiscard]] T exact(std::span<const T> q, std::span<const T> k) const { return T(parts(q, k).t); }
  void exact_vjp(std::span<const T> q, std::span<const T> k, T d_t, std::span<T> d_q, std::span<T> d_k,
                 T& d_curvature) const {
    const double c = double(curvature), root = std::sqrt(c);
    const Parts p = parts(q, k);
    for (std::size_t i = 1; i < q.size(); ++i) {
      const double difference = double(q[i]) - double(k[i]);
      if (!d_q.empty()) d_q[i] += T(double(d_t) * c * (difference - p.b * root * double(q[i]) / p.hq));
      d_k[i] -= T(double(d_t) * c * (difference - p.b * root * double(k[i]) / p.hk));
    }
    d_curvature += T(double(d_t) * (p.t / c - p.b * p.b / (2 * p.hq * p.hk)));
  }

 private:
  struct Parts {
    double hq, hk, b, t;
  };
  [[nodiscard]] double time(std::span<const T> x) const {
    const std::span<const T> space = x.subspan(1);
    return std::sqrt(std::fma(double(curvature), geometry::detail::dot(space, space), 1.0));
  }
  [[nodiscard]] Parts parts(std::span<const T> q, std::span<const T> k) const {
    const double c = double(curvature), hq = time(q), hk = time(k);
    double square = 0, product = 0;
    for (std::size_t i = 1; i < q.size(); ++i) {
      const double difference = double(q[i]) - double(k[i]);
      square += difference * difference;
      product += difference * (double(q[i]) + double(k[i]));
    }
    const double b = std::sqrt(c) * product / (hq + hk);
    return {hq, hk, b, std::max(0.0, c * (square - b * b) / 2)};
  }
};

}  // namespace detail

/// Options of a distance score.
template <Real T>
struct DistanceScoreConfig {
  T beta = 1;                          ///< β > 0, learnable
  int power = 1;                       ///< ρ, 1 or 2
  T curvature = 1;                     ///< c > 0, learnable; of a hyperbolic manifold
  Points input = Points::on_manifold;  ///< what rows are; `tangent` for the ball only
};

/// logit = −β d(q, k)^ρ, ρ ∈ {1, 2}, on a manifold: hyperbolic attention (Gulcehre 2019, eq. 2), Gaussian kernels. Runs
/// at the speed of the product q·k; near pairs are computed from differences, so |Δd| ≤ 2e-3 + 1e-4·d in float also
/// near the rim. A row of Lorentz is [d+1], time first; its time is taken from the space part.
template <class Manifold>
  requires std::same_as<Manifold, geometry::Euclidean<ScalarOf<Manifold>>> ||
      std::same_as<Manifold, geometry::PoincareBall<ScalarOf<Manifold>>> ||
      std::same_as<Manifold, geometry::Lorentz<ScalarOf<Manifold>>>
struct DistanceScore {
  using Scalar = ScalarOf<Manifold>;                  ///< what it computes in
  using T = Scalar;                                   ///< short
  using Separation = detail::Separation<Manifold>;    ///< t of a pair
  static constexpr bool curved = Separation::curved;  ///< whether there is a curvature to learn

  Positive<T> beta;                    ///< β, learnable
  Positive<T> curvature;               ///< c, learnable
  int power = 1;                       ///< ρ
  Points input = Points::on_manifold;  ///< what rows are

  /// −d.
  DistanceScore() = default;
  /// Throws ConfigError unless β and c are finite and positive, ρ is 1 or 2, and the input fits the manifold.
  explicit DistanceScore(const DistanceScoreConfig<T>& config)
      : beta(config.beta, "DistanceScore: beta"),
        curvature(config.curvature, "DistanceScore: curvature"),
        power(config.power),
        input(config.input) {
    if (power != 1 && power != 2) throw_config_error("DistanceScore: power", "1 or 2", double(power));
    if (input == Points::tangent && !std::same_as<Manifold, geometry::PoincareBall<T>>)
      throw_config_error("DistanceScore: input", "on_manifold, except for the ball", double(int(input)));
  }

  /// Names β and the curvature.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("beta", self.beta...);
    if constexpr (curved) visit("curvature", self.curvature...);
  }

  /// The score for rows of one width.
  struct Bound : PairScore<T> {
    using B = simd::Batch<T>;                                    ///< register
    static constexpr Index query_scalars = Separation::scalars;  ///< see Separation
    static constexpr Index key_scalars = Separation::scalars;    ///< see Separation
    static constexpr Index parameters = curved ? 2 : 1;          ///< β, c
    static constexpr bool guarded = true;                        ///< near pairs from differences

    Separation separation;            ///< t of a pair
    Positive<T> beta_parameter;       ///< β as it is learned
    Positive<T> curvature_parameter;  ///< c as it is learned
    T beta;                           ///< β
    T curvature;                      ///< c, 1 in flat space
    int power;                        ///< ρ
    T exponent;                       ///< p = β/√c
    T inverse_exponent;               ///< 1/p
    T limit;                          ///< of ranks, for softmax_margin
    int integer = 0;                  ///< p, if it is a small integer

    /// The constants.
    explicit Bound(const DistanceScore& score)
        : separation(score.curvature.value(), score.input),
          beta_parameter(score.beta),
          curvature_parameter(score.curvature),
          beta(score.beta.value()),
          curvature(curved ? score.curvature.value() : T(1)),
          power(score.power) {
      const double p = double(beta) / std::sqrt(double(curvature)), nearest = std::round(p);
      constexpr double same = 2 * double(std::numeric_limits<T>::epsilon()), most = 8;
      if (curved && power == 1 && nearest >= 1 && nearest <= most && std::fabs(p - nearest) <= same * nearest)
        integer = int(nearest);
      exponent = T(integer > 0 ? nearest : p);
      inverse_exponent = 1 / exponent;
      limit = T(integer > 0 ? std::exp(-softmax_margin / p) : softmax_margin / (p * std::numbers::ln2));
    }

    /// What PairScore asks for: scalars of rows, t from products, or exactly for pairs that are near.
    ///@{
    [[nodiscard]] Index column(int) const { return separation.column(); }
    void query_row(std::span<const T> q, T* out) const { separation.row(q, out); }
    void key_row(std::span<const T> k, T* out) const { separation.row(k, out); }
    void query_row_vjp(std::span<const T> q, const T* d, std::span<T> d_q, std::span<T> d_parameters) const {
      T unused = 0;
      separation.row_vjp(q, d, d_q, curved ? d_parameters[1] : unused);
    }
    void key_row_vjp(std::span<const T> k, const T* d, std::span<T> d_k, std::span<T> d_parameters) const {
      query_row_vjp(k, d, d_k, d_parameters);
    }
    void measure(B* z, const B* q, const B* k) const { z[0] = separation.measure(z[0], q, k); }
    [[nodiscard]] simd::Mask<T> near(const B* z, const B* q, const B* k) const { return separation.near(z[0], q, k); }
    [[nodiscard]] T exact(std::span<const T> q, std::span<const T> k) const { return separation.exact(q, k); }
    void exact_vjp(std::span<const T> q, std::span<const T> k, T d_z, std::span<T> d_q, std::span<T> d_k,
                   std::span<T> d_parameters) const {
      T unused = 0;
      separation.exact_vjp(q, k, d_z, d_q, d_k, curved ? d_parameters[1] : unused);
    }
    template <class Partials>
    void measure_vjp(B dot, const B* q, const B* k, Partials& d) const {
      const B d_t = d.z[0];
      separation.measure_vjp(d_t, dot, q, k, d.z[0], d.query, d.key, d.parameter[1]);
    }

    ///@}

    /// d(0, x) of a row, half of it in the ball: ‖log₀ x‖. How deep in a hierarchy a point lies. (√c = 1 in flat
    /// space.)
    [[nodiscard]] T depth(std::span<const T> x) const {
      const double norm = std::sqrt(geometry::detail::dot(x, x)), s = std::sqrt(double(curvature));
      if constexpr (std::same_as<Manifold, geometry::PoincareBall<T>>)
        if (separation.input == Points::on_manifold) {
          constexpr double reach = 1 - double(geometry::boundary_margin<T>);
          return T(std::atanh(std::min(s * norm, reach)) / s);
        }
      return T(norm);
    }
    /// Adds its gradient to d_x and, by c, to d_parameters.
    void depth_vjp(std::span<const T> x, T d_depth, std::span<T> d_x, std::span<T> d_parameters) const {
      const double norm = std::sqrt(geometry::detail::dot(x, x)), c = double(curvature), s = std::sqrt(c);
      double slope = 1;
      if constexpr (std::same_as<Manifold, geometry::PoincareBall<T>>)
        if (separation.input == Points::on_manifold) {
          constexpr double reach = 1 - double(geometry::boundary_margin<T>);
          const bool inside = s * norm <= reach;
          slope = inside ? 1 / (1 - c * norm * norm) : 0;
          d_parameters[1] += T(double(d_depth) * (slope * norm - double(depth(x))) / (2 * c));
        }
      if (norm == 0 || d_x.empty()) return;
      for (std::size_t i = 0; i < x.size(); ++i) d_x[i] += T(double(d_depth) * slope / norm * double(x[i]));
    }

    /// −β d^ρ, with d = (1/√c) ln(1 + t + √(t(t + 2))), or √t in flat space.
    [[nodiscard]] B logit(const B* z, const B*, const B*) const {
      if constexpr (!curved) return B(-beta) * (power == 1 ? simd::sqrt(z[0]) : z[0]);
      if (power == 1) return Logarithms(*this).logit(z, nullptr, nullptr);
      const B d = distance(z[0]);
      return B(-beta) * (d * d);
    }
    /// By t, β and c (at this t: d ∝ 1/√c). The derivative of d by t is infinite at 0; there it counts as 0.
    template <class Partials>
    void derivative(B d_logit, const B* z, const B*, const B*, Partials& d) const {
      const B t = z[0], zero(T(0));
      if constexpr (!curved) {
        const B root = simd::sqrt(t);
        d.parameter[0] = -(d_logit * (power == 1 ? root : t));
        d.z[0] = B(-beta) * d_logit * (power == 1 ? simd::select(t == zero, zero, B(T(0.5)) / root) : B(T(1)));
      } else {
        const B length = distance(t), root = simd::sqrt(t * (t + B(T(2))));
        const B inverse_root_c(1 / std::sqrt(curvature));
        const B by_t = simd::select(t == zero, zero, inverse_root_c / root);
        const B raised = power == 1 ? length : length * length;
        d.parameter[0] = -(d_logit * raised);
        d.parameter[1] = d_logit * raised * B(beta * T(power) / (2 * curvature));
        if (power == 1) {
          d.z[0] = B(-beta) * d_logit * by_t;
        } else {  // d/√(t(t+2)) → 1/√c at 0
          const B slope = simd::select(t == zero, inverse_root_c * inverse_root_c, length * by_t);
          d.z[0] = B(-2 * beta) * d_logit * slope;
        }
      }
    }
    /// Adds the gradients by β and c.
    void add_parameters(std::span<const T> sums, DistanceScore& grad) const {
      beta_parameter.add(sums[0], grad.beta);
      if constexpr (curved) curvature_parameter.add(sums[1], grad.curvature);
    }

    /// With E = e^(√c d) and p = β/√c the weights are 2^(−p log₂E − μ log₂e), or (E_μ/E)^p without a logarithm where p
    /// is a small integer. The rank is −log₂E, or −E.
    ///@{
    [[nodiscard]] bool ranked() const { return curved && power == 1; }
    [[nodiscard]] B rank(const B* z, const B* q, const B* k) const {
      return integer > 0 ? Powers<0>(*this).rank(z, q, k) : Logarithms(*this).rank(z, q, k);
    }
    [[nodiscard]] T rank_logit(T rank) const {
      return integer > 0 ? -exponent * std::log(-rank) : exponent * std::numbers::ln2_v<T> * rank;
    }
    [[nodiscard]] T rank_reference(T mu) const {
      return integer > 0 ? std::exp(-mu / exponent) : mu * std::numbers::log2e_v<T>;
    }
    [[nodiscard]] T rank_limit(T reference) const {
      return integer > 0 ? Powers<0>(*this).rank_limit(reference) : Logarithms(*this).rank_limit(reference);
    }
    [[nodiscard]] B rank_weight(B rank, B reference) const {
      return integer > 0 ? Powers<0>(*this).rank_weight(rank, reference)
                         : Logarithms(*this).rank_weight(rank, reference);
    }
    /// Calls f with what tiles need of the score, its options decided; `decide_logit` where the logit is one of
    /// several.
    template <class F>
    void decide_logit(F&& f) const {
      if constexpr (curved)
        if (power == 1) return f(Logarithms(*this));
      f(*this);
    }
    template <class F>
    void decide(F&& f) const {
      if (integer == 0) return f(Logarithms(*this));
      if (integer == 1) return f(Powers<1>(*this));
      if (integer == 2) return f(Powers<2>(*this));
      f(Powers<0>(*this));
    }
    ///@}

    /// Ranks −log₂E.
    struct Logarithms {
      Separation separation;  ///< t of a pair
      T exponent;             ///< p
      T inverse_exponent;     ///< 1/p
      T limit;                ///< of ranks
      T factor;               ///< β ln 2/√c

      /// Of a score with ρ = 1.
      explicit Logarithms(const Bound& bound)
          : separation(bound.separation),
            exponent(bound.exponent),
            inverse_exponent(bound.inverse_exponent),
            limit(bound.limit),
            factor(bound.exponent * std::numbers::ln2_v<T>) {}
      /// As in Bound.
      ///@{
      void measure(B* z, const B* q, const B* k) const { z[0] = separation.measure(z[0], q, k); }
      [[nodiscard]] simd::Mask<T> near(const B* z, const B* q, const B* k) const { return separation.near(z[0], q, k); }
      [[nodiscard]] B logit(const B* z, const B* q, const B* k) const {
        return simd::detail::rounded_product(B(factor), rank(z, q, k));
      }
      [[nodiscard]] B rank(const B* z, const B*, const B*) const { return -simd::log2_above_one(exponential(z[0])); }
      [[nodiscard]] T rank_limit(T reference) const { return reference * inverse_exponent + limit; }
      [[nodiscard]] B rank_weight(B rank, B reference) const {
        return simd::exp2_softmax(simd::fma(rank, B(exponent), -reference));
      }
      ///@}
    };

    /// Ranks −E, for p = `power`, or for any p with `power` = 0.
    template <int power>
    struct Powers {
      Separation separation;  ///< t of a pair
      int integer;            ///< p
      T limit;                ///< of ranks

      /// Of a score with ρ = 1 and this p.
      explicit Powers(const Bound& bound)
          : separation(bound.separation), integer(power > 0 ? power : bound.integer), limit(bound.limit) {}
      /// As in Bound.
      ///@{
      void measure(B* z, const B* q, const B* k) const { z[0] = separation.measure(z[0], q, k); }
      [[nodiscard]] simd::Mask<T> near(const B* z, const B* q, const B* k) const { return separation.near(z[0], q, k); }
      [[nodiscard]] B rank(const B* z, const B*, const B*) const { return -exponential(z[0]); }
      [[nodiscard]] T rank_limit(T reference) const { return -reference * limit; }
      [[nodiscard]] B rank_weight(B rank, B reference) const {
        const B base = -reference / rank;
        B weight = base;
        for (int p = 1; p < (power > 0 ? power : integer); ++p) weight = weight * base;
        return weight;
      }
      ///@}
    };

   private:
    [[nodiscard]] static B exponential(B t) { return t + simd::sqrt(t * (t + B(T(2)))) + B(T(1)); }
    [[nodiscard]] B distance(B t) const {
      if (power == 1) return B(std::numbers::ln2_v<T> / std::sqrt(curvature)) * simd::log2_above_one(exponential(t));
      return B(1 / std::sqrt(curvature)) * simd::log1p(t + simd::sqrt(t * (t + B(T(2)))));
    }
  };

  /// The constants.
  [[nodiscard]] Bound bind(Index) const { return Bound(*this); }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
