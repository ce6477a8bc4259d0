// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// Which experts the rows of a batch go to: views of memory that the caller owns, m rows, N experts, k choices a row.
template <Real T>
struct Routing {
  MatrixView<Index> expert;       ///< [m×k], different ones in a row; −1: the row takes no part
  MatrixView<T> gate;             ///< [m×k], factor of the expert's output
  MatrixView<std::uint8_t> kept;  ///< [m×k], 0: the expert had no room, and nobody takes its place
  MatrixView<T> probability;      ///< [m×N], softmax of the logits of all experts
  MatrixView<T> noise;            ///< [m×N], what the logits' noise was drawn as; unused unless `noisy`
  std::span<T> log_sum_exp;       ///< [m], of the logits of all experts
  std::span<T> importance;        ///< [N], sums of gates
  std::span<Index> chosen;        ///< [N], rows that chose the expert
  std::span<Index> assigned;      ///< [N], rows that it had room for
  Index rows = 0;                 ///< that take part
  Index dropped = 0;              ///< choices that no expert had room for
  T auxiliary_loss = 0;           ///< what the router adds to the loss
  bool noisy = false;             ///< whether `noise` was used

  /// In scratch memory.
  [[nodiscard]] static Routing in_frame(Workspace::Frame& frame, Index m, Index experts, Index choices) {
    return {.expert = frame.matrix<Index>(m, choices),
            .gate = frame.matrix<T>(m, choices),
            .kept = frame.matrix<std::uint8_t>(m, choices),
            .probability = frame.matrix<T>(m, experts),
            .noise = frame.matrix<T>(m, experts),
            .log_sum_exp = frame.span<T>(m),
            .importance = frame.span<T>(experts),
            .chosen = frame.span<Index>(experts),
            .assigned = frame.span<Index>(experts)};
  }
};

/// Sends rows to experts. Const and reentrant; without a generator, in inference, a row's experts depend on that row
/// alone unless experts have limited room.
template <class R>
concept Router = Module<R> && Real<ScalarOf<R>> &&
    requires(const R& router, MatrixView<const ScalarOf<R>> x, std::span<const std::uint8_t> active, Rng* rng,
             Routing<ScalarOf<R>>& routing, const Routing<ScalarOf<R>>& saved, MatrixView<const ScalarOf<R>> d_gate,
             MatrixView<ScalarOf<R>> d_x, R& grad, Workspace& ws) {
  { router.experts() } -> std::convertible_to<Index>;                   // N
  { router.choices() } -> std::convertible_to<Index>;                   // k
  { router.route(x, active, rng, routing, ws) } -> std::same_as<void>;  // for rows with active[i] != 0; rng: training
  { router.backward(x, saved, d_gate, d_x, grad, ws) } -> std::same_as<void>;  // adds to d_x (empty: not wanted), grad
};

/// What the gates of the chosen experts T are.
enum class GateMode {
  chosen,  ///< softmax over the logits of T: they sum to 1, so there must be two or more
  all,     ///< softmax over all logits, of which those of T are taken as they are: one suffices
};

/// What happens to a choice whose expert has no room left.
enum class Overflow {
  none,         ///< experts have room for all
  drop,         ///< it is lost: the row goes without
  next_choice,  ///< the row goes to its best expert that has room, or without if there is none
};

/// Options of NoisyTopKRouter.
struct NoisyTopKRouterConfig {
  Index dim = 0;                       ///< d, columns of x
  Index experts = 0;                   ///< N
  Index choices = 2;                   ///< k
  GateMode gates = GateMode::chosen;   ///< how chosen experts are weighed
  bool noise = true;                   ///< learned noise on the logits in training
  Overflow overflow = Overflow::none;  ///< whether experts have limited room
  double capacity_factor = 1.25;       ///< then an expert has room for ⌈capacity_factor · rows · k / N⌉ rows
  double balance = 1e-2;               ///< a, of the loss that is least when experts are used alike
  double z = 1e-3;                     ///< b, of the loss that keeps logits small
  double importance = 0;               ///< of the loss CV² of the sums of gates
};

/// Chooses the k experts with the largest logits (Shazeer et al. 2017, §2.1):
///
///     H = x W_gᵀ (+ ε ∘ softplus(x W_nᵀ) in training, ε ~ N(0, 1)),   p = softmax(H),   T = the k largest of H
///     g = softmax(H over T) or p over T
///
/// and adds to the loss, over the B rows that take part, with f_e = (choices of e)/(B k), P_e = mean of p_e,
/// I_e = Σ g_e:
///
///     a N Σ_e f_e P_e  (= a where experts are used alike; Fedus et al. 2022, eq. 4)
///     + b/B Σ (log Σ_e exp H_e)²  (Zoph et al. 2022, eq. 5)  +  importance · Var(I)/Mean(I)²  (Shazeer, eq. 7)
///
/// f counts choices before room runs out, and has no gradient. First choices get room before second ones, rows in their
/// order. Balance is a means of using hardware well: where the best mix of experts is skewed, it costs quality.
template <Real T>
class NoisyTopKRouter {
 public:
  using Scalar = T;  ///< what it computes in

  nn::Linear<T> gate;   ///< W_g [N×d]
  nn::Linear<T> noise;  ///< W_n [N×d], or [0×0]: none

  /// Starts W_g at U(±1/√d) and W_n at 0. Throws ConfigError for options out of range.
  NoisyTopKRouter(const NoisyTopKRouterConfig& config, Rng& rng) : config_(config) {
    check_at_least("NoisyTopKRouter: dim", 1, config.dim);
    check_at_least("NoisyTopKRouter: experts", 1, config.experts);
    check_at_least("NoisyTopKRouter: choices", config.gates == GateMode::chosen ? 2 : 1, config.choices);
    if (config.choices > config.experts) [[unlikely]]
      throw_config_error("NoisyTopKRouter: choices", "at most " + std::to_string(config.experts),
                         double(config.choices));
    check_finite("NoisyTopKRouter: capacity_factor", config.capacity_factor);
    check_finite("NoisyTopKRouter: balance", config.balance);
    check_finite("NoisyTopKRouter: z", config.z);
    check_finite("NoisyTopKRouter: importance", config.importance);
    gate = nn::Linear<T>({.input = config.dim, .output = config.experts, .bias = false}, rng);
    if (config.noise)
      noise = nn::Linear<T>(
          {.input = config.dim, .output = config.experts, .bias = false, .initializer = nn::Initializer::zero}, rng);
  }

  /// The options.
  [[nodiscard]] const NoisyTopKRouterConfig& config() const { return config_; }
  /// N.
  [[nodiscard]] Index experts() const { return config_.experts; }
  /// k.
  [[nodiscard]] Index choices() const { return config_.choices; }

  /// Names W_g and W_n.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("gate", self.gate...);
    visit("noise", self.noise...);
  }

  /// Writes `routing` for rows x [m×d] with active[i] ≠ 0. Noise is drawn row by row if there is a generator. Equal
  /// logits: the smaller number first; NaN last. O(m N (d + k)). Throws ShapeError.
  void route(MatrixView<const T> x, std::span<const std::uint8_t> active, Rng* rng, Routing<T>& routing,
             Workspace& ws) const {
    const Index m = x.rows();
    check_shape("NoisyTopKRouter: active", m, Index(active.size()));
    const MatrixView<T> logits = routing.probability;
    gate.forward(x, logits, ws);
    routing.noisy = rng != nullptr && !noise.weight.empty();
    if (routing.noisy) add_noise(x, *rng, routing, ws);
    routing.rows = 0;
    std::ranges::fill(routing.chosen, Index(0));
    for (Index i = 0; i < m; ++i) {
      const bool takes_part = active[std::size_t(i)] != 0;
      routing.rows += takes_part ? 1 : 0;
      std::ranges::fill(routing.expert.row(i), Index(-1));
      std::ranges::fill(routing.kept.row(i), std::uint8_t(takes_part ? 1 : 0));
      for (Index s = 0; takes_part && s < choices(); ++s) {
        const Index e = best(logits.row(i), routing.expert.row(i), [](Index) { return true; });
        routing.expert(i, s) = e;
        ++routing.chosen[std::size_t(e)];
      }
    }
    limit(routing);
    for (Index i = 0; i < m; ++i) weigh(routing, i);
    add_losses(routing, ws);
  }

  /// Given ∂L/∂gate [m×k], adds to d_x [m×d] (empty: not wanted) and grad, the auxiliary losses included:
  ///
  ///     d_H_e = g_e (d_g_e − Σ_T g d_g), e ∈ T,   or   p_e ([e ∈ T] d_g_e − Σ_T p d_g)
  ///           + (a N/B) p_e (f_e − Σ_f f p) + (2b/B) (log Σ exp H) p_e
  ///
  /// where d_g_e includes importance · 2/(N μ²)(I_e − M₂/μ), μ = mean I, M₂ = mean I². O(m N d). Throws ShapeError.
  void backward(MatrixView<const T> x, const Routing<T>& routing, MatrixView<const T> d_gate, MatrixView<T> d_x,
                NoisyTopKRouter& grad, Workspace& ws) const {
    const Index m = x.rows(), n = experts();
    if (m == 0) return;
    auto frame = ws.frame();
    const MatrixView<T> d_logits = frame.matrix<T>(m, n);
    const std::span<T> d_importance = frame.span<T>(n);
    differentiate_importance(routing, d_importance);
    for (Index i = 0; i < m; ++i) differentiate_row(routing, i, d_gate.row(i), d_importance, d_logits.row(i));
    gate.backward(x, d_logits, d_x, grad.gate, ws);
    if (!routing.noisy) return;
    // H = … + ε ∘ softplus(u), so d_u = d_H ∘ ε ∘ σ(u).
    const MatrixView<T> d_noise = frame.matrix<T>(m, n);
    noise.forward(x, d_noise, ws);
    for (Index i = 0; i < m; ++i) {
      simd::sigmoid<T>(d_noise.row(i), d_noise.row(i));
      for (Index e = 0; e < n; ++e) d_noise(i, e) *= d_logits(i, e) * routing.noise(i, e);
    }
    noise.backward(x, d_noise, d_x, grad.noise, ws);
  }

 private:
  static void check_at_least(std::string_view what, Index least, Index value) {
    if (value < least) [[unlikely]]
      throw_config_error(what, "at least " + std::to_string(least), double(value));
  }
  static void check_finite(std::string_view what, double value) {
    if (!(value >= 0 && value <= std::numeric_limits<double>::max())) [[unlikely]]
      throw_config_error(what, "finite and >= 0", value);
  }

  void add_noise(MatrixView<const T> x, Rng& rng, const Routing<T>& routing, Workspace& ws) const {
    auto frame = ws.frame();
    const MatrixView<T> spread = frame.matrix<T>(x.rows(), experts());
    noise.forward(x, spread, ws);
    const Rng rows(rng.bits());
    for (Index i = 0; i < x.rows(); ++i) {
      Rng row = rows.split(std::uint64_t(i));
      for (Index e = 0; e < experts(); ++e) {
        routing.noise(i, e) = row.normal<T>();
        const T u = spread(i, e), softplus = std::max(u, T(0)) + std::log1p(std::exp(-std::abs(u)));
        routing.probability(i, e) += routing.noise(i, e) * softplus;
      }
    }
  }

  // The expert with the largest logit that is not taken and fits, or −1.
  template <class Fits>
  [[nodiscard]] static Index best(std::span<const T> logits, std::span<const Index> taken, Fits&& fits) {
    Index found = -1;
    for (Index e = 0; e < Index(logits.size()); ++e) {
      if (!fits(e) || std::ranges::find(taken, e) != taken.end()) continue;
      const bool number = !std::isnan(logits[std::size_t(e)]);
      if (found < 0 || logits[std::size_t(e)] > logits[std::size_t(found)] ||
          (number && std::isnan(logits[std::size_t(found)])))
        found = e;
    }
    return found;
  }

  // Sends choices elsewhere, or nowhere, where there is no room.
  void limit(Routing<T>& routing) const {
    std::ranges::fill(routing.assigned, Index(0));
    routing.dropped = 0;
    const double fair = double(routing.rows) * double(choices()) / double(experts());
    const Index room = config_.overflow == Overflow::none ? std::numeric_limits<Index>::max()
                                                          : Index(std::ceil(config_.capacity_factor * fair));
    const auto fits = [&](Index e) { return routing.assigned[std::size_t(e)] < room; };
    for (Index s = 0; s < choices(); ++s)
      for (Index i = 0; i < routing.expert.rows(); ++i) {
        if (routing.kept(i, s) == 0) continue;
        Index e = routing.expert(i, s);
        if (!fits(e)) {
          e = config_.overflow == Overflow::next_choice ? best(routing.probability.row(i), routing.expert.row(i), fits)
                                                        : -1;
          if (e >= 0) routing.expert(i, s) = e;
        }
        if (e >= 0) {
          ++routing.assigned[std::size_t(e)];
        } else {
          routing.kept(i, s) = 0;
          ++routing.dropped;
        }
      }
  }

  // Gates, then logits → probabilities.
  void weigh(const Routing<T>& routing, Index i) const {
    const std::span<T> logits = routing.probability.row(i), gates = routing.gate.row(i);
    const std::span<const Index> chosen = routing.expert.row(i);
    std::ranges::fill(gates, T(0));
    if (chosen[0] < 0) return;
    for (std::size_t s = 0; s < gates.size(); ++s) gates[s] = logits[std::size_t(chosen[s])];
    (void)softmax(gates);
    routing.log_sum_exp[std::size_t(i)] = softmax(logits);
    if (config_.gates == GateMode::all)
      for (std::size_t s = 0; s < gates.size(); ++s) gates[s] = logits[std::size_t(chosen[s])];
  }

  // x ← softmax(x); returns log Σ eˣ.
  static T softmax(std::span<T> x) {
    const T top = *std::ranges::max_element(x);
    T sum = 0;
    for (T& e : x) sum += e = std::exp(e - top);
    for (T& e : x) e /= sum;
    return top + std::log(sum);
  }

  [[nodiscard]] T chosen_share(const Routing<T>& routing, Index e) const {
    return T(double(routing.chosen[std::size_t(e)]) / (double(routing.rows) * double(choices())));
  }

  void add_losses(Routing<T>& routing, Workspace& ws) const {
    auto frame = ws.frame();
    const std::span<T> probability = frame.span<T>(experts()), square = frame.span<T>(1);
    std::ranges::fill(probability, T(0));
    std::ranges::fill(routing.importance, T(0));
    square[0] = 0;
    nn::add_row_sums(routing.expert.rows(), std::array{probability, routing.importance, square}, ws,
                     [&](const std::array<std::span<T>, 3>& parts, Index first, Index last, Workspace&) {
                       for (const std::span<T> part : parts) std::ranges::fill(part, T(0));
                       for (Index i = first; i < last; ++i) {
                         if (routing.expert(i, 0) < 0) continue;
                         simd::axpy<T>(T(1), routing.probability.row(i), parts[0]);
                         for (Index s = 0; s < choices(); ++s)
                           parts[1][std::size_t(routing.expert(i, s))] += routing.gate(i, s);
                         const T log_sum = routing.log_sum_exp[std::size_t(i)];
                         parts[2][0] += log_sum * log_sum;
                       }
                     });
    routing.auxiliary_loss = 0;
    if (routing.rows == 0) return;
    const T rows = T(routing.rows), n = T(experts());
    T balance = 0;
    for (Index e = 0; e < experts(); ++e) balance += chosen_share(routing, e) * probability[std::size_t(e)] / rows;
    const auto [mean, mean_square] = importance_moments(routing);
    routing.auxiliary_loss = T(config_.balance) * n * balance + T(config_.z) * square[0] / rows +
                             T(config_.importance) * (mean_square / (mean * mean) - T(1));
  }

  [[nodiscard]] std::pair<T, T> importance_moments(const Routing<T>& routing) const {
    const T n = T(experts());
    return {simd::sum<T>(routing.importance) / n, simd::squared_norm<T>(routing.importance) / n};
  }

  void differentiate_importance(const Routing<T>& routing, std::span<T> d_importance) const {
    const auto [mean, mean_square] = importance_moments(routing);
    for (std::size_t e = 0; e < d_importance.size(); ++e)
      d_importance[e] = config_.importance == 0 ? T(0)
                                                : T(config_.importance) * T(2) / (T(experts()) * mean * mean) *
                                                      (routing.importance[e] - mean_square / mean);
  }

  void differentiate_row(const Routing<T>& routing, Index i, std::span<const T> d_gate, std::span<const T> d_importance,
                         std::span<T> d_logits) const {
    const std::span<const Index> chosen = routing.expert.row(i);
    const std::span<const T> gates = routing.gate.row(i), p = routing.probability.row(i);
    std::ranges::fill(d_logits, T(0));
    if (chosen[0] < 0) return;
    const auto d = [&](std::size_t s) { return d_gate[s] + d_importance[std::size_t(chosen[s])]; };
    T mean = 0, shares = 0;
    for (std::size_t s = 0; s < chosen.size(); ++s) mean += gates[s] * d(s);
    for (std::size_t e = 0; e < p.size(); ++e) shares += chosen_share(routing, Index(e)) * p[e];
    for (std::size_t s = 0; s < chosen.size(); ++s)
      d_logits[std::size_t(chosen[s])] += gates[s] * (config_.gates == GateMode::chosen ? d(s) - mean : d(s));
    const T rows = T(routing.rows), balance = T(config_.balance) * T(experts()) / rows,
            z = T(2) * T(config_.z) / rows * routing.log_sum_exp[std::size_t(i)];
    for (std::size_t e = 0; e < p.size(); ++e) {
      const T all = config_.gates == GateMode::all ? mean : T(0);
      d_logits[e] += p[e] * (balance * (chosen_share(routing, Index(e)) - shares) + z - all);
    }
  }

  NoisyTopKRouterConfig config_;
};

namespace detail {

/// Of an expert that cannot be trained.
struct NothingSaved {};

template <class A>
struct SavedOfExpert {
  using Type = NothingSaved;
};
template <DifferentiableAttention A>
struct SavedOfExpert<A> {
  using Type = typename A::Saved;
};

/// What a collection of experts is: one saved pass for each run of rows.
template <class Experts>
struct ExpertList;
template <class... A>
struct ExpertList<std::tuple<A...>> {
  using Saved = std::tuple<std::vector<typename SavedOfExpert<A>::Type>...>;
  using Scalar = ScalarOf<std::tuple_element_t<0, std::tuple<A...>>>;
  static constexpr bool attend = (AttentionBackend<A> && ...) && (std::same_as<ScalarOf<A>, Scalar> && ...);
  static constexpr bool train = (DifferentiableAttention<A> && ...);
};
template <class A>
struct ExpertList<std::vector<A>> {
  using Saved = std::vector<std::vector<typename SavedOfExpert<A>::Type>>;
  using Scalar = ScalarOf<A>;
  static constexpr bool attend = AttentionBackend<A>;
  static constexpr bool train = DifferentiableAttention<A>;
};

/// Calls f(e, list[e], others[e]…) for tuples or vectors of one length.
template <class F, class... A, class... Others>
void for_each_expert(F&& f, const std::tuple<A...>& experts, Others&... others) {
  const auto visit = [&]<std::size_t e>(std::integral_constant<std::size_t, e>) {
    f(Index(e), std::get<e>(experts), std::get<e>(others)...);
  };
  [&]<std::size_t... e>(std::index_sequence<e...>) {
    (visit(std::integral_constant<std::size_t, e>{}), ...);
  }
  (std::index_sequence_for<A...>{});
}
template <class F, class A, class... Others>
void for_each_expert(F&& f, const std::vector<A>& experts, Others&... others) {
  for (std::size_t e = 0; e < experts.size(); ++e) f(Index(e), experts[e], others[e]...);
}

/// Queries first … first+count−1 went to this expert; its outputs are rows `output` … of a list of outputs.
struct ExpertRun {
  Index expert, first, count, output;
};

}  // namespace detail

/// Attention by experts, of which each query sees those that a router sends it to:
///
///     y_i = Σ_{e ∈ T(i)} g_ie E_e(q_i, K, V)                                                       (Shazeer et al.
///     2017)
///
/// `Experts` is a std::tuple of backends or a std::vector of one kind; use the aliases MixtureOfExperts and
/// MixtureOfExpertsList. Experts have one scalar and one output_dim. The router sees the query rows; a query that sees
/// no key takes no part. An expert computes the rows that come to it and no others, in runs of neighbouring queries, so
/// that masks keep their meaning: what an expert does once a call (packing keys, summing them), it does once a run.
///
/// A trainer minimises its loss + saved.auxiliary_loss, whose gradient `backward` adds by itself.
template <Router R, class Experts>
  requires(detail::ExpertList<Experts>::attend&& std::same_as<ScalarOf<R>, ScalarOf<detail::ExpertList<Experts>>>)
class BasicMixtureOfExperts {
 public:
  using Scalar = ScalarOf<R>;  ///< what it computes in
  using T = Scalar;            ///< short

  R router;         ///< sends queries to experts
  Experts experts;  ///< [N]

  /// What `backward` needs of a forward pass, and what it was like; owned by the caller, reused, and seeded
  /// (`saved.rng`) for the router's noise and the experts' dropout.
  struct Saved {
    Rng rng{0};                                           ///< what the next forward pass draws from
    T auxiliary_loss = 0;                                 ///< of the router: to be added to the loss
    Index dropped = 0;                                    ///< choices that no expert had room for
    Vector<Index> assigned;                               ///< [N], rows that went to each expert
    Vector<Index> chosen;                                 ///< [N], rows that chose it
    Matrix<Index> expert;                                 ///< as in Routing
    Matrix<T> gate;                                       ///< as in Routing
    Matrix<std::uint8_t> kept;                            ///< as in Routing
    Matrix<T> probability;                                ///< as in Routing
    Matrix<T> noise;                                      ///< as in Routing
    Vector<T> log_sum_exp;                                ///< as in Routing
    Vector<T> importance;                                 ///< as in Routing
    Index rows = 0;                                       ///< as in Routing
    bool noisy = false;                                   ///< as in Routing
    Matrix<T> output;                                     ///< outputs of the experts, run by run [m·k × output_dim]
    std::vector<detail::ExpertRun> runs;                  ///< which those are
    typename detail::ExpertList<Experts>::Saved experts;  ///< one for each run

    /// The routing, in this memory. (Not const inside: a router writes to what it later reads.)
    [[nodiscard]] Routing<T> routing() const {
      const auto view = []<class U>(const Matrix<U>& matrix) {
        return MatrixView<U>(const_cast<U*>(matrix.data()), matrix.rows(), matrix.cols());
      };
      const auto span = []<class U>(const Vector<U>& vector) {
        return std::span<U>(const_cast<U*>(vector.data()), std::size_t(vector.size()));
      };
      return {view(expert),      view(gate),       view(kept),   view(probability), view(noise),
              span(log_sum_exp), span(importance), span(chosen), span(assigned),    rows,
              dropped,           auxiliary_loss,   noisy};
    }
  };

  /// Columns of the output for values of this width. Throws ConfigError where experts differ.
  [[nodiscard]] Index output_dim(Index value_dim) const {
    Index columns = -1;
    detail::for_each_expert(
        [&](Index e, const auto& expert) {
          const Index own = expert.output_dim(value_dim);
          if (e > 0 && own != columns) [[unlikely]]
            throw_config_error("MixtureOfExperts: columns of an expert's output", std::to_string(columns), double(own));
          columns = own;
        },
        experts);
    return columns;
  }

  /// Writes what is wanted of `out`: weights are Σ_e g_e (weights of expert e), log_sum_exp is the logarithm of their
  /// sum over keys, log Σ_e g_e. Throws ShapeError and ConfigError, as the experts do.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    check(in, out);
    auto frame = ws.frame();
    Routing<T> routing = Routing<T>::in_frame(frame, in.query.rows(), router.experts(), router.choices());
    route(in, nullptr, routing, ws);
    start(out, routing);
    const MatrixView<T> rows = frame.matrix<T>(in.query.rows(), output_dim(in.value.cols())),
                        weights = weight_rows(out, frame);
    detail::for_each_expert(
        [&](Index e, const auto& expert) {
          for_each_run(routing, e, [&](Index first, Index count) {
            const AttentionOutput<T> to{.value = rows.rows(0, count), .weights = first_rows(weights, count)};
            expert.forward(in.query_rows(first, count), to, ws);
            add_run(routing, e, first, to, out);
          });
        },
        experts);
  }

  /// The same in training: with noise, drawn from saved.rng, and keeps in `saved` what `backward` needs.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const
      requires(detail::ExpertList<Experts>::train) {
    check(in, out);
    resize(saved, in.query.rows(), output_dim(in.value.cols()));
    auto frame = ws.frame();
    Routing<T> routing = saved.routing();
    route(in, &saved.rng, routing, ws);
    saved.rows = routing.rows;
    saved.dropped = routing.dropped;
    saved.auxiliary_loss = routing.auxiliary_loss;
    saved.noisy = routing.noisy;
    start(out, routing);
    saved.runs.clear();
    const MatrixView<T> weights = weight_rows(out, frame);
    Index output = 0;
    const Rng experts_rng(saved.rng.bits());
    detail::for_each_expert(
        [&](Index e, const auto& expert, auto& runs) {
          std::size_t run = 0;
          for_each_run(routing, e, [&](Index first, Index count) {
            if (runs.size() == run) runs.emplace_back();
            auto& own = runs[run++];
            if constexpr (requires { own.rng = experts_rng; }) own.rng = experts_rng.split(saved.runs.size());
            const AttentionOutput<T> to{.value = saved.output.view().rows(output, count),
                                        .weights = first_rows(weights, count)};
            expert.forward(in.query_rows(first, count), to, own, ws);
            add_run(routing, e, first, to, out);
            saved.runs.push_back({e, first, count, output});
            output += count;
          });
        },
        experts, saved.experts);
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those of router and experts to `grad`, the auxiliary
  /// loss included. Throws as the experts do.
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, BasicMixtureOfExperts& grad, Workspace& ws) const
      requires(detail::ExpertList<Experts>::train) {
    check_input(in);
    check_gradient(in, d_out, d_in, output_dim(in.value.cols()));
    check_shape("MixtureOfExperts: rows of the saved routing", in.query.rows(), saved.expert.rows());
    auto frame = ws.frame();
    const Routing<T> routing = saved.routing();
    const MatrixView<T> d_gate = frame.matrix<T>(in.query.rows(), router.choices());
    start_gates(routing, d_out, d_gate);
    const MatrixView<T> scaled = frame.matrix<T>(in.query.rows(), saved.output.cols());
    auto run = saved.runs.begin();
    detail::for_each_expert(
        [&](Index e, const auto& expert, const auto& runs, auto& d_expert) {
          for (std::size_t k = 0; run != saved.runs.end() && run->expert == e; ++run, ++k) {
            for (Index r = 0; r < run->count; ++r) {  // d_g = G·E, d_E = g G
              const Index i = run->first + r, s = slot(routing, i, e);
              d_gate(i, s) += simd::dot<T>(d_out.value.row(i), saved.output.row(run->output + r));
              std::ranges::copy(d_out.value.row(i), scaled.row(r).begin());
              simd::scale(routing.gate(i, s), scaled.row(r));
            }
            expert.backward(in.query_rows(run->first, run->count), runs[k], {.value = scaled.rows(0, run->count)},
                            rows_of(d_in, in.query.rows(), run->first, run->count), d_expert, ws);
          }
        },
        experts, saved.experts, grad.experts);
    router.backward(in.query, routing, d_gate, d_in.query, grad.router, ws);
  }

  /// scores [m×n] = log Σ_e g_e (weights of expert e), −∞ where masked. Throws as `forward`.
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    check_input(in);
    detail::check_size("attention: scores", scores, in.query.rows(), in.key.rows());
    if (scores.empty()) return;
    forward(in, {.value = {}, .weights = scores}, ws);
    for (Index i = 0; i < scores.rows(); ++i) simd::log<T>(scores.row(i), scores.row(i));
  }

  /// Keys and values as they are: which expert wants them how, queries decide.
  using Prepared = KeyValueCache<T>;

  /// Copies keys and values; see PreparedAttention.
  ///@{
  void prepare(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    prepared.clear(key.cols(), value.cols());
    append(key, value, prepared, ws);
  }
  void append(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace&) const {
    prepared.append(key, value);
  }
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    forward({.query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias},
            out, ws);
  }
  ///@}

  /// Names the router and the experts.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("router", self.router...);
    visit("experts", self.experts...);
  }

 private:
  void check(const AttentionInput<T>& in, const AttentionOutput<T>& out) const {
    check_input(in);
    Index count = 0;
    detail::for_each_expert([&](Index, const auto&) { ++count; }, experts);
    check_shape("MixtureOfExperts: experts", router.experts(), count);
    check_output(in, out, output_dim(in.value.cols()));
  }

  static void resize(Saved& saved, Index m, Index columns, Index experts, Index choices) {
    set_shape(saved.expert, m, choices);
    set_shape(saved.gate, m, choices);
    set_shape(saved.kept, m, choices);
    set_shape(saved.probability, m, experts);
    set_shape(saved.noise, m, experts);
    set_shape(saved.log_sum_exp, m);
    set_shape(saved.importance, experts);
    set_shape(saved.chosen, experts);
    set_shape(saved.assigned, experts);
    set_shape(saved.output, m * choices, columns);
  }
  void resize(Saved& saved, Index m, Index columns) const {
    resize(saved, m, columns, router.experts(), router.choices());
    if constexpr (requires { saved.experts.resize(1); }) saved.experts.resize(experts.size());
  }

  void route(const AttentionInput<T>& in, Rng* rng, Routing<T>& routing, Workspace& ws) const {
    const Index m = in.query.rows(), n = in.key.rows();
    auto frame = ws.frame();
    const std::span<std::uint8_t> active = frame.span<std::uint8_t>(m);
    for (Index i = 0; i < m; ++i) active[std::size_t(i)] = sees_any(in.mask, i, m, n) ? 1 : 0;
    router.route(in.query, active, rng, routing, ws);
  }

  [[nodiscard]] static bool sees_any(const Mask& mask, Index i, Index m, Index n) {
    const VisibleKeys keys = mask.visible(i, m, n);
    if (!mask.dense()) return keys.globals > 0 || keys.first < keys.last;
    const auto in_range = [&](Index first, Index last) {
      const std::uint8_t* allowed = mask.allowed_row(i);
      return first < last && std::any_of(allowed + first, allowed + last, [](std::uint8_t byte) { return byte != 0; });
    };
    return in_range(0, keys.globals) || in_range(keys.first, keys.last);
  }

  // Calls body(first, count) for neighbouring queries that go to expert e.
  template <class Body>
  static void for_each_run(const Routing<T>& routing, Index e, Body&& body) {
    const Index m = routing.expert.rows();
    for (Index i = 0; i < m; ++i) {
      Index count = 0;
      while (i + count < m && slot(routing, i + count, e) >= 0) ++count;
      if (count > 0) body(i, count);
      i += count;
    }
  }

  // Which choice of row i expert e is, or −1 if it does not get the row.
  [[nodiscard]] static Index slot(const Routing<T>& routing, Index i, Index e) {
    for (Index s = 0; s < routing.expert.cols(); ++s)
      if (routing.expert(i, s) == e && routing.kept(i, s) != 0) return s;
    return -1;
  }

  [[nodiscard]] static T gate_sum(const Routing<T>& routing, Index i) {
    T sum = 0;
    for (Index s = 0; s < routing.gate.cols(); ++s)
      if (routing.kept(i, s) != 0) sum += routing.gate(i, s);
    return sum;
  }

  static void start(const AttentionOutput<T>& out, const Routing<T>& routing) {
    for (Index i = 0; i < routing.expert.rows(); ++i) {
      if (out.value.data() != nullptr) std::ranges::fill(out.value.row(i), T(0));
      if (out.weights.data() != nullptr) std::ranges::fill(out.weights.row(i), T(0));
      if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(i)] = std::log(gate_sum(routing, i));
    }
  }

  // Scratch for the weights of the longest run, if they are wanted.
  [[nodiscard]] static MatrixView<T> weight_rows(const AttentionOutput<T>& out, Workspace::Frame& frame) {
    if (out.weights.data() == nullptr) return {};
    return frame.matrix<T>(out.weights.rows(), out.weights.cols());
  }
  [[nodiscard]] static MatrixView<T> first_rows(MatrixView<T> matrix, Index count) {
    return matrix.data() == nullptr ? matrix : matrix.rows(0, count);
  }

  static void add_run(const Routing<T>& routing, Index e, Index first, const AttentionOutput<T>& run,
                      const AttentionOutput<T>& out) {
    for (Index r = 0; r < run.value.rows(); ++r) {
      const T gate = routing.gate(first + r, slot(routing, first + r, e));
      if (out.value.data() != nullptr) simd::axpy<T>(gate, run.value.row(r), out.value.row(first + r));
      if (out.weights.data() != nullptr) simd::axpy<T>(gate, run.weights.row(r), out.weights.row(first + r));
    }
  }

  // d_g of log Σ g.
  static void start_gates(const Routing<T>& routing, const AttentionOutputGradient<T>& d_out, MatrixView<T> d_gate) {
    for (Index i = 0; i < d_gate.rows(); ++i) {
      std::ranges::fill(d_gate.row(i), T(0));
      const T sum = gate_sum(routing, i);
      if (d_out.log_sum_exp.empty() || sum == T(0)) continue;
      for (Index s = 0; s < d_gate.cols(); ++s)
        if (routing.kept(i, s) != 0) d_gate(i, s) = d_out.log_sum_exp[std::size_t(i)] / sum;
    }
  }

  [[nodiscard]] static AttentionGradient<T> rows_of(AttentionGradient<T> d_in, Index m, Index first, Index count) {
    if (d_in.query.data() != nullptr) d_in.query = d_in.query.rows(first, count);
    if (d_in.bias.data() != nullptr && d_in.bias.rows() == m) d_in.bias = d_in.bias.rows(first, count);
    return d_in;
  }
};

/// A mixture of different kinds of attention, known at compile time.
template <Router R, AttentionBackend... Experts>
using MixtureOfExperts = BasicMixtureOfExperts<R, std::tuple<Experts...>>;

/// A mixture of any number of experts of one kind; with AnyAttention, of any kinds.
template <Router R, AttentionBackend Expert>
using MixtureOfExpertsList = BasicMixtureOfExperts<R, std::vector<Expert>>;

}  // namespace ruvector::inline RUVECTOR_ABI::attention
