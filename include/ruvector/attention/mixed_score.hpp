// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/logits.hpp"
#include "ruvector/attention/positive.hpp"
#include "ruvector/attention/scores.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/simd/arch.hpp"

#include <cmath>
#include <concepts>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Options of a mixed score.
template <Real T>
struct MixedScoreConfig {
  Index first_dim = 0;      ///< columns that the first score sees; the second sees the rest
  T gate = T(0.5);          ///< initial share of the first score, in [0, 1]; 0 and 1 stay as they are
  bool query_gate = false;  ///< the gate depends on the query
  T temperature = 1;        ///< τ > 0, learnable
};

/// Two scores of two parts of a row under one softmax (dual-space attention):
///
///     logit = [g · first(q₁, k₁) + (1 − g) · second(q₂, k₂)]/τ,  g = σ(b), or per query σ(u·[LN(q₁); depth(q₂)] + b)
///
/// where depth is ‖log₀ q₂‖ for points of the ball and ‖q₂‖ otherwise. Learns τ, b and u beside what both learn.
template <Score First, Score Second>
  requires std::same_as<ScalarOf<First>, ScalarOf<Second>>
struct MixedScore {
  using Scalar = ScalarOf<First>;  ///< what it computes in
  using T = Scalar;                ///< short

  First first;              ///< sees the first columns
  Second second;            ///< sees the others
  Index first_dim = 0;      ///< how many columns the first one sees
  Positive<T> temperature;  ///< τ, learnable
  T gate_bias = 0;          ///< b, learnable; ±∞: the gate is 1 or 0
  Vector<T> gate_weight;    ///< u [first_dim + 1], learnable; empty: the gate does not depend on the query

  /// All columns to the second score, gate ½.
  MixedScore() = default;
  /// u starts at 0. Throws ConfigError unless 0 ≤ gate ≤ 1, τ > 0 and first_dim ≥ 0.
  MixedScore(First first_, Second second_, const MixedScoreConfig<T>& config)
      : first(std::move(first_)),
        second(std::move(second_)),
        first_dim(config.first_dim),
        temperature(config.temperature, "MixedScore: temperature"),
        gate_weight(config.query_gate ? config.first_dim + 1 : 0) {
    if (!(config.gate >= 0 && config.gate <= 1)) throw_config_error("MixedScore: gate", "0 to 1", double(config.gate));
    if (first_dim < 0) throw_config_error("MixedScore: first_dim", ">= 0", double(first_dim));
    gate_bias = T(std::log(double(config.gate)) - std::log1p(-double(config.gate)));
  }

  /// Names what both scores learn, the temperature and the gate.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("first", self.first...);
    visit("second", self.second...);
    visit("temperature", self.temperature...);
    visit("gate_bias", self.gate_bias...);
    visit("gate_weight", self.gate_weight...);
  }

  /// The score for rows of one width.
  struct Bound : PairScore<T> {
    using B = simd::Batch<T>;               ///< register
    using BoundA = typename First::Bound;   ///< the first
    using BoundB = typename Second::Bound;  ///< the second
    static_assert(BoundA::products == 1 && !BoundA::guarded && BoundB::products == 1);
    static constexpr int products = 2;                                               ///< one each
    static constexpr Index gate = BoundA::query_scalars + BoundB::query_scalars;     ///< its scalar
    static constexpr Index query_scalars = gate + 1;                                 ///< both, and the gate
    static constexpr Index key_scalars = BoundA::key_scalars + BoundB::key_scalars;  ///< both
    static constexpr Index tau = BoundA::parameters + BoundB::parameters;            ///< its parameter
    static constexpr Index parameters = tau + 1;                                     ///< both, and τ
    static constexpr bool guarded = BoundB::guarded;                                 ///< as the second

    /// The mean of two scores, whose options may be decided.
    template <class OfA, class OfB>
    struct Decided {
      OfA a;          ///< the first
      OfB b;          ///< the second
      T inverse_tau;  ///< 1/τ

      /// Of two scores.
      Decided(const OfA& of_a, const OfB& of_b, T inverse) : a(of_a), b(of_b), inverse_tau(inverse) {}
      /// As in Bound.
      ///@{
      [[nodiscard, gnu::always_inline]] B logit(const B* z, const B* q, const B* k) const {
        const B of_a = a.logit(z, q, k), of_b = b.logit(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
        return simd::fma(q[gate], of_a - of_b, of_b) * B(inverse_tau);
      }
      [[nodiscard, gnu::always_inline]] B rank(const B* z, const B* q, const B* k) const { return logit(z, q, k); }
      [[nodiscard]] T rank_limit(T reference) const { return reference * std::numbers::ln2_v<T> + T(softmax_margin); }
      [[nodiscard, gnu::always_inline]] B rank_weight(B rank, B reference) const {
        return simd::exp2_softmax(simd::fma(rank, B(std::numbers::log2e_v<T>), -reference));
      }
      void measure(B* z, const B* q, const B* k) const {
        b.measure(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
      }
      [[nodiscard]] simd::Mask<T> near(const B* z, const B* q, const B* k) const {
        return b.near(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
      }
      ///@}
    };

    const MixedScore* score;  ///< whose gate it is
    BoundA a;                 ///< the first
    BoundB b;                 ///< the second
    std::size_t split;        ///< columns of the first
    T temperature;            ///< τ

    /// What PairScore asks for, from that of the parts.
    ///@{

    [[nodiscard]] Index column(int p) const { return p == 0 ? a.column(0) : Index(split) + b.column(0); }
    [[nodiscard]] Index parameter_count(Index pair_parameters) const {
      return pair_parameters + 1 + score->gate_weight.size();
    }

    void query_row(std::span<const T> q, T* out) const {
      a.query_row(q.first(split), out);
      b.query_row(q.subspan(split), out + BoundA::query_scalars);
      out[gate] = gate_of(q).value;
    }
    void key_row(std::span<const T> k, T* out) const {
      a.key_row(k.first(split), out);
      b.key_row(k.subspan(split), out + BoundA::key_scalars);
    }
    void query_row_vjp(std::span<const T> q, const T* d, std::span<T> d_q, std::span<T> d_parameters) const {
      const std::span<T> d_first = d_q.empty() ? d_q : d_q.first(split),
                         d_second = d_q.empty() ? d_q : d_q.subspan(split);
      a.query_row_vjp(q.first(split), d, d_first, d_parameters);
      b.query_row_vjp(q.subspan(split), d + BoundA::query_scalars, d_second, of_second(d_parameters));
      gate_vjp(q, d[gate], d_first, d_second, d_parameters);
    }
    void key_row_vjp(std::span<const T> k, const T* d, std::span<T> d_k, std::span<T> d_parameters) const {
      a.key_row_vjp(k.first(split), d, d_k.first(split), d_parameters);
      b.key_row_vjp(k.subspan(split), d + BoundA::key_scalars, d_k.subspan(split), of_second(d_parameters));
    }

    [[nodiscard]] B logit(const B* z, const B* q, const B* k) const {
      return Decided<BoundA, BoundB>(a, b, 1 / temperature).logit(z, q, k);
    }
    template <class Partials>
    void derivative(B d_logit, const B* z, const B* q, const B* k, Partials& d) const {
      const B logit_a = a.logit(z, q, k), logit_b = second_logit(z, q, k);
      const B d_mean = d_logit * B(1 / temperature);
      d.query[gate] = d_mean * (logit_a - logit_b);
      d.parameter[tau] = -(d_mean * simd::fma(q[gate], logit_a - logit_b, logit_b)) * B(1 / temperature);
      detail::PairDerivative<BoundA, T> of_a;
      a.derivative(d_mean * q[gate], z, q, k, of_a);
      d.z[0] = of_a.z[0];
      for (Index s = 0; s < BoundA::query_scalars; ++s) d.query[s] = of_a.query[s];
      for (Index s = 0; s < BoundA::key_scalars; ++s) d.key[s] = of_a.key[s];
      for (Index p = 0; p < BoundA::parameters; ++p) d.parameter[p] = of_a.parameter[p];
      detail::PairDerivative<BoundB, T> of_b;
      b.derivative(d_mean - d_mean * q[gate], z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars, of_b);
      take(of_b, d);
    }
    void add_parameters(std::span<const T> sums, MixedScore& grad) const {
      a.add_parameters(sums.first(std::size_t(BoundA::parameters)), grad.first);
      b.add_parameters(sums.subspan(std::size_t(BoundA::parameters), std::size_t(BoundB::parameters)), grad.second);
      score->temperature.add(sums[std::size_t(tau)], grad.temperature);
      const std::span<const T> of_gate = sums.subspan(std::size_t(parameters));
      grad.gate_bias += of_gate[0];
      for (Index i = 0; i < grad.gate_weight.size(); ++i) grad.gate_weight[i] += of_gate[std::size_t(i) + 1];
    }

    // Weights in base 2: the rank is the logit.
    [[nodiscard]] bool ranked() const { return true; }
    [[nodiscard]] B rank(const B* z, const B* q, const B* k) const { return logit(z, q, k); }
    [[nodiscard]] T rank_logit(T rank) const { return rank; }
    [[nodiscard]] T rank_reference(T mu) const { return mu * std::numbers::log2e_v<T>; }
    [[nodiscard]] T rank_limit(T reference) const { return reference * std::numbers::ln2_v<T> + T(softmax_margin); }
    [[nodiscard, gnu::always_inline]] B rank_weight(B rank, B reference) const {
      return simd::exp2_softmax(simd::fma(rank, B(std::numbers::log2e_v<T>), -reference));
    }
    // With the options of both scores decided.
    template <class F>
    void decide(F&& f) const {
      if constexpr (
          requires { a.decide_logit(f); } && requires { b.decide_logit(f); })
        a.decide_logit([&](const auto& of_a) {
          b.decide_logit([&](const auto& of_b) {
            f(Decided<std::remove_cvref_t<decltype(of_a)>, std::remove_cvref_t<decltype(of_b)>>(of_a, of_b,
                                                                                                1 / temperature));
          });
        });
      else
        f(*this);
    }

    void measure(B* z, const B* q, const B* k) const requires guarded {
      b.measure(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
    }
    [[nodiscard]] simd::Mask<T> near(const B* z, const B* q, const B* k) const requires guarded {
      return b.near(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
    }
    [[nodiscard]] T exact(std::span<const T> q, std::span<const T> k) const requires guarded {
      return b.exact(q.subspan(split), k.subspan(split));
    }
    void exact_vjp(std::span<const T> q, std::span<const T> k, T d_z, std::span<T> d_q, std::span<T> d_k,
                   std::span<T> d_parameters) const requires guarded {
      b.exact_vjp(q.subspan(split), k.subspan(split), d_z, d_q.empty() ? d_q : d_q.subspan(split), d_k.subspan(split),
                  of_second(d_parameters));
    }
    template <class Partials>
    void measure_vjp(B dot, const B* q, const B* k, Partials& d) const requires guarded {
      detail::PairDerivative<BoundB, T> of_b;
      of_b.z[0] = d.z[1];
      for (Index p = 0; p < BoundB::parameters; ++p) of_b.parameter[p] = d.parameter[BoundA::parameters + p];
      b.measure_vjp(dot, q + BoundA::query_scalars, k + BoundA::key_scalars, of_b);
      take(of_b, d);
    }

    ///@}

    /// The gate of a query.
    struct Gate {
      T value;                   ///< g
      double mean;               ///< of q₁
      double inverse_deviation;  ///< of q₁
      double depth;              ///< of q₂
    };
    /// σ(u·[LN(q₁); depth] + b).
    [[nodiscard]] Gate gate_of(std::span<const T> q) const {
      constexpr double epsilon = 1e-5;
      Gate g{0, 0, 0, 0};
      double logit = double(score->gate_bias);
      if (!score->gate_weight.empty()) {
        const std::span<const T> u = score->gate_weight.span();
        for (std::size_t i = 0; i < split; ++i) g.mean += double(q[i]) / double(split);
        double variance = 0;
        for (std::size_t i = 0; i < split; ++i)
          variance += (double(q[i]) - g.mean) * (double(q[i]) - g.mean) / double(split);
        g.inverse_deviation = 1 / std::sqrt(variance + epsilon);
        g.depth = double(depth(q.subspan(split)));
        for (std::size_t i = 0; i < split; ++i) logit += double(u[i]) * (double(q[i]) - g.mean) * g.inverse_deviation;
        logit += double(u[split]) * g.depth;
      }
      g.value = T(1 / (1 + std::exp(-logit)));
      return g;
    }

   private:
    [[nodiscard]] B second_logit(const B* z, const B* q, const B* k) const {
      return b.logit(z + 1, q + BoundA::query_scalars, k + BoundA::key_scalars);
    }
    template <class Partials>
    static void take(const detail::PairDerivative<BoundB, T>& of_b, Partials& d) {
      d.z[1] = of_b.z[0];
      for (Index s = 0; s < BoundB::query_scalars; ++s) d.query[BoundA::query_scalars + s] = of_b.query[s];
      for (Index s = 0; s < BoundB::key_scalars; ++s) d.key[BoundA::key_scalars + s] = of_b.key[s];
      for (Index p = 0; p < BoundB::parameters; ++p) d.parameter[BoundA::parameters + p] = of_b.parameter[p];
    }
    [[nodiscard]] static std::span<T> of_second(std::span<T> d_parameters) {
      return d_parameters.subspan(std::size_t(BoundA::parameters), std::size_t(BoundB::parameters));
    }
    [[nodiscard]] T depth(std::span<const T> q) const {
      if constexpr (requires { b.depth(q); })
        return b.depth(q);
      else
        return std::sqrt(simd::squared_norm(q));
    }
    void gate_vjp(std::span<const T> q, T d_gate, std::span<T> d_first, std::span<T> d_second,
                  std::span<T> d_parameters) const {
      const Gate g = gate_of(q);
      const double d_logit = double(d_gate) * double(g.value) * (1 - double(g.value));
      const std::span<T> d_bias_weight = d_parameters.subspan(std::size_t(parameters));
      d_bias_weight[0] += T(d_logit);
      if (score->gate_weight.empty()) return;
      const std::span<T> d_u = d_bias_weight.subspan(1);
      const std::span<const T> u = score->gate_weight.span();
      const auto normed = [&](std::size_t i) { return (double(q[i]) - g.mean) * g.inverse_deviation; };
      double mean = 0, along = 0;  // of d_logit u, and of its product with LN(q)
      for (std::size_t i = 0; i < split; ++i) {
        d_u[i] += T(d_logit * normed(i));
        mean += d_logit * double(u[i]) / double(split);
        along += d_logit * double(u[i]) * normed(i) / double(split);
      }
      d_u[split] += T(d_logit * g.depth);
      const T d_depth = T(d_logit * double(u[split]));
      if constexpr (requires { b.depth_vjp(q, d_depth, d_second, d_parameters); })
        b.depth_vjp(q.subspan(split), d_depth, d_second, of_second(d_parameters));
      else if (!d_second.empty() && g.depth > 0)
        simd::axpy(d_depth / T(g.depth), q.subspan(split), d_second);
      if (d_first.empty()) return;
      for (std::size_t i = 0; i < split; ++i)
        d_first[i] += T((d_logit * double(u[i]) - mean - normed(i) * along) * g.inverse_deviation);
    }
  };

  /// The constants for rows of width d. Throws ShapeError where the first score wants more columns.
  [[nodiscard]] Bound bind(Index d) const {
    if (first_dim > d)
      throw_shape_error("MixedScore: columns of query", "at least " + std::to_string(first_dim), std::to_string(d));
    Bound bound{
        {}, this, first.bind(first_dim), second.bind(d - first_dim), std::size_t(first_dim), temperature.value()};
    bound.alibi_slope = bound.a.alibi_slope;
    return bound;
  }

  /// What each space adds to the logit of a pair, and the gate.
  struct Contributions {
    T first;   ///< g · first/τ
    T second;  ///< (1 − g) · second/τ
    T gate;    ///< g
  };
  /// Of query q [d] and key k [d]; their sum is the logit. O(d). Throws ShapeError where the widths differ.
  [[nodiscard]] Contributions space_contributions(std::span<const T> q, std::span<const T> k) const {
    check_shape("space_contributions: columns of key", Index(q.size()), Index(k.size()));
    const Bound bound = bind(Index(q.size()));
    const std::size_t split = bound.split;
    const T tau = temperature.value(), gate = bound.gate_of(q).value;
    return {gate * logit_of(bound.a, q.first(split), k.first(split)) / tau,
            (1 - gate) * logit_of(bound.b, q.subspan(split), k.subspan(split)) / tau, gate};
  }

 private:
  template <class BoundScore>
  [[nodiscard]] static T logit_of(const BoundScore& bound, std::span<const T> q, std::span<const T> k) {
    using B = simd::Batch<T>;
    T query[std::size_t(BoundScore::query_scalars) + 1], key[std::size_t(BoundScore::key_scalars) + 1];
    bound.query_row(q, query);
    bound.key_row(k, key);
    B z, query_registers[std::size_t(BoundScore::query_scalars) + 1],
        key_registers[std::size_t(BoundScore::key_scalars) + 1];
    for (Index s = 0; s < BoundScore::query_scalars; ++s) query_registers[s] = B(query[s]);
    for (Index s = 0; s < BoundScore::key_scalars; ++s) key_registers[s] = B(key[s]);
    if constexpr (BoundScore::guarded)
      z = B(bound.exact(q, k));
    else
      z = B(simd::dot(q, k));
    return simd::reduce_max(bound.logit(&z, query_registers, key_registers));
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
