// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/positive.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/gru_cell.hpp"
#include "ruvector/nn/layer_norm.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// The columns of the features e of a candidate x, reached by an edge: 0 the requested score over `unit`, 1 the second
/// score over `second_unit` (0 without one), 2 ‖x‖ − ‖q‖, 3 cos(q, x), 4 the place of the edge in its list, 0 to 1,
/// 5 … 8 one of them 1: the level, 3 and above as one, 9 whether it is in the beam.
inline constexpr Index search_features = 10;

/// The shape and start of a SearchLayer.
struct SearchLayerConfig {
  Index dim = 0;           ///< columns of queries and candidates
  double unit = 1;         ///< how far scores of candidates differ: makes what is learned independent of their scale
  double second_unit = 1;  ///< the same of the second score
  double temperature = 1;  ///< τ > 0, learnable
};

/// How one level of a hierarchical search looks at its candidates, a Module. With the metric's score m_j of candidate
/// x_j and query q, the attention's logit a_j of x_j and the query's state h (h = q at first), and the features e_j,
///
///     s_j = m_j + unit·(gain·a_j + edge·e_j)                    by s the search decides where to go
///     p = softmax(s/(unit·τ)) over the beam,   h ← h + norm(cell(Σ p_j x_j, h))
///
/// Gain, edge and norm start at 0: an untrained layer goes by the metric alone and leaves the query as it is, to the
/// bit. A layer whose gain is 0 does not ask its attention, one whose norm is 0 not its cell. An EdgeAwareAttention
/// sees the features, too: its edge_dim is `search_features`.
///
/// On level 0 a search goes on to the open node that is best by s, as long as that is one of the ef best by s; and only
/// to nodes whose metric is better than what ending is worth, once there are ef,
///
///     σ = m_(ef) + unit·stop_0 + stop_1·(m_(k) − m_(ef)) + stop_2·m_(k)        m_(i): the i-th best metric so far
///
/// stop starts at 0, where with s = m this is HNSW. At (0, 1, γ) and for distances it is adaptive beam search: no open
/// node is nearer than (1 + γ) times the k-th found. So how far a search goes is learned, depends on the query, and
/// costs nothing; ef is then the most that is kept.
template <attention::ScoringAttention Attention, nn::RecurrentCell Cell = nn::GruCell<ScalarOf<Attention>>,
          nn::RowMap Norm = nn::LayerNorm<ScalarOf<Attention>>>
class SearchLayer {
 public:
  using Scalar = ScalarOf<Attention>;  ///< what it computes in
  using T = Scalar;                    ///< short

  Attention attention;                 ///< logits a of state and candidates
  T gain = 0;                          ///< of the attention
  Vector<T> edge;                      ///< [search_features] of the features
  Vector<T> stop;                      ///< [3] of the rule to end by
  attention::Positive<T> temperature;  ///< τ
  Cell cell;                           ///< dim, dim
  Norm norm;                           ///< of the new states; starts at 0
  T unit = 1;                          ///< of scores; not learned
  T second_unit = 1;                   ///< of the second score; not learned

  /// What `update` keeps for the gradient.
  struct Saved {
    Vector<T> weights;          ///< p [n]
    Matrix<T> message;          ///< Σ p_j x_j [1×d]
    Matrix<T> states;           ///< what the cell gave [1×d]
    typename Cell::Saved cell;  ///< of the cell
  };

  /// With this attention, cell and norm. Throws ConfigError, ShapeError for parts that do not fit.
  SearchLayer(const SearchLayerConfig& config, Attention with_attention, Cell with_cell, Norm with_norm)
      : attention(std::move(with_attention)),
        edge(search_features),
        stop(3),
        temperature(T(config.temperature), "SearchLayer: temperature"),
        cell(std::move(with_cell)),
        norm(std::move(with_norm)),
        unit(T(config.unit)),
        second_unit(T(config.second_unit)) {
    for (const T value : {unit, second_unit})
      if (!(value > 0) || !std::isfinite(value)) throw_config_error("SearchLayer: unit", "positive", double(value));
    check(config.dim);
    for_each_parameter([](std::string_view, auto tensor) { std::ranges::fill(tensor, T(0)); }, norm);
  }
  /// With this attention, and a cell and a norm with their defaults. Throws as above.
  SearchLayer(const SearchLayerConfig& config, Attention with_attention, Rng& rng) requires(
      std::constructible_from<Cell, nn::GruConfig, Rng&>&& std::constructible_from<Norm, nn::LayerNormConfig>)
      : SearchLayer(config, std::move(with_attention),
                    Cell(nn::GruConfig{.input = config.dim, .hidden = config.dim}, rng),
                    Norm(nn::LayerNormConfig{.dim = config.dim})) {}

  /// Names what is learned, and the units as buffers.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("attention", self.attention...);
    visit("gain", self.gain...);
    visit("edge", self.edge...);
    visit("stop", self.stop...);
    visit("temperature", self.temperature...);
    visit("cell", self.cell...);
    visit("norm", self.norm...);
    visit.buffer("unit", self.unit...);
    visit.buffer("second_unit", self.second_unit...);
  }

  /// Throws ShapeError unless the layer is one for rows of `dim` elements.
  void check(Index dim) const {
    check_shape("SearchLayer: input of the cell", dim, cell.input_dim());
    check_shape("SearchLayer: state of the cell", dim, cell.hidden_dim());
    check_shape("SearchLayer: columns of the norm", dim, norm.output_dim(dim));
    check_shape("SearchLayer: edge", search_features, edge.size());
    check_shape("SearchLayer: stop", 3, stop.size());
  }

  /// Whether s depends on feature i of a candidate: else nobody need compute it.
  [[nodiscard]] bool sees(Index feature) const { return edge[feature] != 0 || (gain != 0 && sees_features()); }
  /// Whether s is the metric's score: nothing was learned of candidates.
  [[nodiscard]] bool by_metric() const {
    return gain == 0 && std::ranges::all_of(edge.span(), [](T weight) { return weight == 0; });
  }

  /// Whether the state stays as it is: the norm has learned nothing, and gives 0.
  [[nodiscard]] bool keeps_state() const {
    bool any = false, zero = true;
    for_each_parameter(
        [&](std::string_view, auto tensor) {
          any = any || !tensor.empty();
          zero = zero && std::ranges::all_of(tensor, [](T x) { return x == 0; });
        },
        norm);
    return any && zero;
  }

  /// s [n] of candidates `key` [n×d] with these scores of the metric [n] and features [n×search_features]; −∞ where
  /// the metric says so or a number is missing. `logits` [n], if wanted, gets a. O(n d) and what the attention takes.
  void scores(std::span<const T> state, MatrixView<const T> key, std::span<const T> metric,
              MatrixView<const T> features, std::span<T> out, std::span<T> logits, Workspace& ws) const {
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    auto frame = ws.frame();
    const Index n = key.rows();
    const bool asked = gain != 0 || !logits.empty();
    const std::span<T> a = logits.empty() ? frame.template span<T>(n) : logits;
    if (asked && n > 0)
      write_logits(input({state.data(), 1, Index(state.size())}, key), features, {a.data(), 1, n}, ws);
    else
      std::ranges::fill(a, T(0));
    for (std::size_t j = 0; j < out.size(); ++j) {
      const T learned = metric[j] + unit * (gain * a[j] + simd::dot<T>(edge, features.row(Index(j))));
      out[j] = metric[j] == lowest || std::isnan(learned) ? lowest : learned;
    }
  }

  /// Given d_s = ∂L/∂s [n], and the rest as `scores` had and wrote it, adds to d_state [d] and grad. The logit of a
  /// candidate is the log-sum-exp of attention over it alone, of which the attention has the gradient; one that
  /// normalises its scores over the candidates of a call (a mixture) has none there.
  template <class AttentionSaved>
  void scores_backward(std::span<const T> state, MatrixView<const T> key, MatrixView<const T> features,
                       std::span<const T> logits, std::span<const T> d_s, std::span<T> d_state, AttentionSaved& saved,
                       SearchLayer& grad, Workspace& ws) const {
    auto frame = ws.frame();
    const Index d = key.cols(), width = attention.output_dim(d);
    const MatrixView<T> value = frame.template matrix<T>(1, width), zeros = frame.template matrix<T>(1, width);
    std::ranges::fill(zeros.row(0), T(0));
    for (std::size_t j = 0; j < d_s.size(); ++j) {
      if (d_s[j] == 0) continue;
      const T d_learned = unit * d_s[j], d_logit[] = {gain * d_learned};
      grad.gain += d_learned * logits[j];
      simd::axpy<T>(d_learned, features.row(Index(j)), grad.edge);
      if (d_logit[0] == 0) continue;
      const auto one = input({state.data(), 1, d}, key.rows(Index(j), 1));
      const attention::AttentionOutput<T> out{.value = value};
      const attention::AttentionOutputGradient<T> d_out{.value = zeros, .log_sum_exp = d_logit};
      const attention::AttentionGradient<T> d_in{.query = {d_state.data(), 1, d}, .key = {}, .value = {}};
      if constexpr (attention::EdgeAwareAttention<Attention>) {
        if (sees_features()) {
          const attention::EdgeFeatures<T> side{features.rows(Index(j), 1)};
          attention.forward(one, side, out, saved, ws);
          attention.backward(one, side, saved, d_out, d_in, {}, grad.attention, ws);
          continue;
        }
      }
      attention.forward(one, out, saved, ws);
      attention.backward(one, saved, d_out, d_in, grad.attention, ws);
    }
  }

  /// The next state [d], from s and candidates as above and how much each is in the beam, z [n] from 0 to 1:
  /// p_j = z_j e^(s_j/(unit τ))/Σ. Without any that can be weighed the state stays. `saved`, if not null, is filled.
  void update(std::span<const T> state, MatrixView<const T> key, std::span<const T> s, std::span<const T> z,
              std::span<T> out, Saved* saved, Workspace& ws) const {
    if (saved == nullptr && keeps_state()) return void(std::ranges::copy(state, out.begin()));
    auto frame = ws.frame();
    const Index d = key.cols();
    const auto row = [&](Matrix<T> Saved::*kept) {
      if (saved == nullptr) return frame.template matrix<T>(1, d);
      set_shape(saved->*kept, 1, d);
      return (saved->*kept).view();
    };
    if (saved != nullptr) set_shape(saved->weights, Index(s.size()));
    const std::span<T> p = saved == nullptr ? frame.template span<T>(Index(s.size())) : saved->weights.span();
    const MatrixView<T> message = row(&Saved::message), states = row(&Saved::states);
    const MatrixView<const T> past(state.data(), 1, d);
    std::ranges::fill(message.row(0), T(0));
    if (weigh(s, z, p))
      for (std::size_t j = 0; j < p.size(); ++j)
        if (p[j] != 0) simd::axpy<T>(p[j], key.row(Index(j)), message.row(0));
    if (saved == nullptr)
      cell.forward(message, past, states, ws);
    else
      cell.forward(message, past, states, saved->cell, ws);
    const MatrixView<T> change = frame.template matrix<T>(1, d);
    norm.forward(states, change, ws);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = state[i] + change(0, Index(i));
  }

  /// Given d_out = ∂L/∂out [d], adds to d_state [d], d_s [n], d_z [n] and grad.
  void update_backward(std::span<const T> state, MatrixView<const T> key, std::span<const T> s, std::span<const T> z,
                       const Saved& saved, std::span<const T> d_out, std::span<T> d_state, std::span<T> d_s,
                       std::span<T> d_z, SearchLayer& grad, Workspace& ws) const {
    auto frame = ws.frame();
    const Index d = key.cols();
    const MatrixView<const T> d_row(d_out.data(), 1, d), past(state.data(), 1, d);
    const MatrixView<T> d_states = frame.template matrix<T>(1, d), d_message = frame.template matrix<T>(1, d);
    std::ranges::fill(d_states.row(0), T(0));
    std::ranges::fill(d_message.row(0), T(0));
    norm.backward(saved.states, d_row, d_states, grad.norm, ws);
    cell.backward(saved.message, past, saved.cell, d_states, d_message, {d_state.data(), 1, d}, grad.cell, ws);
    for (std::size_t i = 0; i < d_out.size(); ++i) d_state[i] += d_out[i];
    // With g_j = d_message·x_j: d_x = p∘(g − Σ p g) by the logits s/(unit τ), and the same over z by z.
    const T scale = 1 / (unit * temperature.value());
    const T mean = simd::dot<T>(d_message.row(0), saved.message.row(0));
    T largest = -std::numeric_limits<T>::infinity(), sum = 0, d_temperature = 0;
    for (std::size_t j = 0; j < s.size(); ++j)
      if (z[j] > 0) largest = std::max(largest, s[j]);
    if (!std::isfinite(largest)) return;
    for (std::size_t j = 0; j < s.size(); ++j) sum += z[j] * std::exp((s[j] - largest) * scale);
    for (std::size_t j = 0; j < s.size(); ++j) {
      if (!std::isfinite(s[j])) continue;
      const T g = simd::dot<T>(d_message.row(0), key.row(Index(j))) - mean, d_logit = saved.weights[Index(j)] * g;
      d_s[j] += d_logit * scale;
      d_temperature -= d_logit * s[j] * scale;
      d_z[j] += std::exp((s[j] - largest) * scale) / sum * g;
    }
    temperature.add(d_temperature / temperature.value(), grad.temperature);
  }

 private:
  [[nodiscard]] static attention::AttentionInput<T> input(MatrixView<const T> state, MatrixView<const T> key) {
    return {.query = state, .key = key, .value = key};
  }

  [[nodiscard]] bool sees_features() const {
    if constexpr (requires { attention.sees_edges(); })
      return attention.sees_edges();
    else
      return attention::EdgeAwareAttention<Attention>;
  }

  void write_logits(const attention::AttentionInput<T>& in, MatrixView<const T> features, MatrixView<T> out,
                    Workspace& ws) const {
    if constexpr (attention::EdgeAwareAttention<Attention>) {
      if (sees_features()) return attention.scores(in, attention::EdgeFeatures<T>{features}, out, ws);
    }
    attention.scores(in, out, ws);
  }

  // p; false where nothing can be weighed. Several +∞ share.
  [[nodiscard]] bool weigh(std::span<const T> s, std::span<const T> z, std::span<T> p) const {
    const T scale = 1 / (unit * temperature.value());
    T largest = -std::numeric_limits<T>::infinity(), sum = 0;
    for (std::size_t j = 0; j < s.size(); ++j)
      if (z[j] > 0) largest = std::max(largest, s[j]);
    for (std::size_t j = 0; j < s.size(); ++j) {
      const bool finite = std::isfinite(largest);
      p[j] = z[j] > 0 ? z[j] * (finite ? std::exp((s[j] - largest) * scale) : T(s[j] == largest && largest > 0)) : T(0);
      sum += p[j];
    }
    if (!(sum > 0)) return false;
    for (T& weight : p) weight /= sum;
    return true;
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
