// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/simd/arch.hpp>
#include <ruvector/simd/batches.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/gemm.hpp>
#include <ruvector/simd/math.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/contrastive.hpp>
#include <ruvector/train/riemannian_adam.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Two tables of vectors, one for queries and one for items, that are learned so that items which belong to a query
// score highest: a "lookup dual encoder" (You et al. 2025).

namespace examples {

using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::Rng;

/// What belongs to a query: the node itself and all its ancestors, and how far above it they are.
struct Relevance {
  Adjacency items;                ///< [n] the node first, then ancestors, nearest first
  std::vector<std::int32_t> hop;  ///< along items.target: edges of the shortest way up, 0 for the node itself

  [[nodiscard]] std::span<const std::int32_t> hops(Index query) const {
    const auto first = static_cast<std::size_t>(items.first[static_cast<std::size_t>(query)]);
    return std::span(hop).subspan(first, items[query].size());
  }
};

[[nodiscard]] inline Relevance relevance(const Hierarchy& hierarchy) {
  Relevance result;
  std::vector<std::int32_t> found, hop;
  for (Index i = 0; i < hierarchy.size(); ++i) {
    found.assign(1, static_cast<std::int32_t>(i));
    hop.assign(1, 0);
    for (std::size_t next = 0; next < found.size(); ++next)
      for (const std::int32_t parent : hierarchy.parents[found[next]])
        if (std::find(found.begin(), found.end(), parent) == found.end()) {
          found.push_back(parent);
          hop.push_back(hop[next] + 1);
        }
    result.items.append(found);
    result.hop.insert(result.hop.end(), hop.begin(), hop.end());
  }
  return result;
}

/// Where vectors live and what makes two of them match.
enum class Space {
  cosine,    ///< the cosine of d numbers
  inner,     ///< the inner product of d numbers
  poincare,  ///< −distance in the Poincaré ball of dimension d, moved by Riemannian Adam
  lorentz,   ///< −distance on the hyperboloid of dimension d, moved by Adam on the space part, which gives the time
  dual,      ///< inner product of d/2 numbers − distance of d/2 on the hyperboloid
};

/// The score of all spaces: rows are [flat numbers | time, space part of a point of the hyperboloid], either may be
/// missing, and
///
///     score = q·k of the first − d of the second,  d = arcosh(h h' − x·x')
///
/// The ball is mapped to the hyperboloid, which keeps distances: that way all of them are matrix products.
struct EncoderScore {
  using Scalar = float;

  Index flat = 0;    ///< columns of the first
  Index curved = 0;  ///< columns of the second, with the time; 0 or at least 2

  void scores(MatrixView<const float> queries, MatrixView<const float> candidates, MatrixView<float> out,
              ruvector::Workspace& workspace) const {
    const ruvector::search::InnerProduct<float> product;
    if (flat > 0) product.scores(queries.cols(0, flat), candidates.cols(0, flat), out, workspace);
    if (curved == 0) return;
    auto frame = workspace.frame();
    const auto mirrored = frame.matrix<float>(queries.rows(), curved);
    mirror(queries.cols(flat, curved), mirrored);
    const auto z = frame.matrix<float>(out.rows(), out.cols());
    product.scores(mirrored, candidates.cols(flat, curved), z, workspace);
    for (Index i = 0; i < out.rows(); ++i)
      ruvector::simd::for_each_batch<float>(out.cols(), [&](Index j, auto lanes) {
        const Batch d = distance(lanes.load(z.row(i).data() + j));
        float* const to = out.row(i).data() + j;
        lanes.store(to, flat > 0 ? lanes.load(to) - d : -d);
      });
  }

  /// The score of one pair.
  [[nodiscard]] float operator()(std::span<const float> query, std::span<const float> item) const {
    const auto first = static_cast<std::size_t>(flat);
    float score = flat > 0 ? ruvector::simd::dot(query.first(first), item.first(first)) : 0.0f;
    if (curved == 0) return score;
    const auto x = query.subspan(first), y = item.subspan(first);
    const float z = ruvector::simd::dot(x.subspan(1), y.subspan(1)) - x[0] * y[0];
    const float t = std::max(least, -z - 1);
    return score - std::log1p(t + std::sqrt(t * (t + 2)));
  }

  using Batch = ruvector::simd::Batch<float>;
  /// Points nearer than this count as this near: there the derivative would grow without bound.
  static constexpr float least = 1e-4f;
  /// cosh d − 1 from z = x·x' − h h' = −cosh d.
  [[nodiscard]] static Batch separation(Batch z) { return ruvector::simd::max(Batch(least), -z - 1.0f); }
  [[nodiscard]] static Batch distance(Batch z) {
    const Batch t = separation(z);
    return ruvector::simd::log1p(t + ruvector::simd::sqrt(t * (t + 2.0f)));
  }
  /// ∂(−d)/∂z
  [[nodiscard]] static Batch slope(Batch z) {
    const Batch t = separation(z);
    return 1.0f / ruvector::simd::sqrt(t * (t + 2.0f));
  }
  /// Copies points with the sign of their times changed.
  static void mirror(MatrixView<const float> points, MatrixView<float> out) {
    for (Index i = 0; i < points.rows(); ++i) {
      std::ranges::copy(points.row(i), out.row(i).begin());
      out(i, 0) = -out(i, 0);
    }
  }
};

/// The two tables. Rows in the ball are named as such, so that Riemannian Adam moves them.
template <bool in_ball>
struct EncoderTables {
  using Scalar = float;
  Matrix<float> queries, items;  ///< [n×d]

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    if constexpr (in_ball) {
      const ruvector::geometry::PoincareBall<float> ball;
      visit.on(ball, "queries", self.queries...);
      visit.on(ball, "items", self.items...);
    } else {
      visit("queries", self.queries...);
      visit("items", self.items...);
    }
  }
};

/// From the numbers that are learned to rows for `EncoderScore`.
class Lift {
 public:
  Lift(Space space, Index dim) : space_(space), dim_(dim) {
    if (space == Space::cosine || space == Space::inner) score_.flat = dim;
    if (space == Space::poincare || space == Space::lorentz) score_.curved = dim + 1;
    if (space == Space::dual) score_ = {.flat = dim / 2, .curved = dim - dim / 2 + 1};
  }
  [[nodiscard]] const EncoderScore& score() const { return score_; }
  [[nodiscard]] Index columns() const { return score_.flat + score_.curved; }

  void operator()(std::span<const float> x, std::span<float> out) const {
    const auto flat = static_cast<std::size_t>(score_.flat);
    std::copy_n(x.begin(), flat, out.begin());
    if (space_ == Space::cosine) ruvector::simd::scale(inverse_norm(x), out);
    if (score_.curved == 0) return;
    const auto point = x.subspan(flat);
    const float square = ruvector::simd::squared_norm(point);
    const float alpha = 1 - square, factor = space_ == Space::poincare ? 2 / alpha : 1;
    out[flat] = space_ == Space::poincare ? (1 + square) / alpha : std::sqrt(1 + square);
    for (std::size_t i = 0; i < point.size(); ++i) out[flat + 1 + i] = factor * point[i];
  }
  /// Adds to d_x.
  void vjp(std::span<const float> x, std::span<const float> d_out, std::span<float> d_x) const {
    const auto flat = static_cast<std::size_t>(score_.flat);
    if (space_ == Space::cosine) {
      const float r = inverse_norm(x);
      ruvector::simd::axpy(r, d_out, d_x);
      ruvector::simd::axpy(-r * r * r * ruvector::simd::dot(x, d_out), x, d_x);
      return;
    }
    for (std::size_t i = 0; i < flat; ++i) d_x[i] += d_out[i];
    if (score_.curved == 0) return;
    const auto point = x.subspan(flat), d_space = d_out.subspan(flat + 1);
    const auto d_point = d_x.subspan(flat);
    const float square = ruvector::simd::squared_norm(point), d_time = d_out[flat];
    if (space_ == Space::poincare) {  // h = (1 + s)/α, x⃗ = 2x/α, α = 1 − s, s = ‖x‖²
      const float alpha = 1 - square;
      ruvector::simd::axpy(2 / alpha, d_space, d_point);
      ruvector::simd::axpy(4 / (alpha * alpha) * (d_time + ruvector::simd::dot(point, d_space)), point, d_point);
    } else {  // h = √(1 + ‖x⃗‖²)
      ruvector::simd::axpy(1.0f, d_space, d_point);
      ruvector::simd::axpy(d_time / std::sqrt(1 + square), point, d_point);
    }
  }
  [[nodiscard]] Matrix<float> rows(MatrixView<const float> x) const {
    Matrix<float> out(x.rows(), columns());
    for (Index i = 0; i < x.rows(); ++i) (*this)(x.row(i), out.row(i));
    return out;
  }

 private:
  [[nodiscard]] static float inverse_norm(std::span<const float> x) {
    return 1 / std::sqrt(std::max(1e-30f, ruvector::simd::squared_norm(x)));
  }
  Space space_;
  Index dim_;
  EncoderScore score_;
};

/// One part of the training.
struct EncoderStage {
  Index epochs = 20;           ///< passes over the queries
  double learning_rate = 0.1;  ///< at its beginning; falls to 0 by a half cosine
  double scale = 20;           ///< T: logits are T times scores
  Index least_hops = 0;        ///< only items that are as far above a query are learned; nearer ones are left out
  ruvector::train::ContrastiveForm form = ruvector::train::ContrastiveForm::each_against_all;
};

/// All that a training remembers.
template <bool in_ball>
struct EncoderState {
  EncoderTables<in_ball> model, first_moment, second_moment;
  Rng::State generator;
  Index stage = 0, epoch = 0, steps = 0;  ///< epochs of this stage that are done, steps of Adam
  double seconds = 0;

  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("model", self.model);
    visit("first_moment", self.first_moment);
    visit("second_moment", self.second_moment);
    visit("generator", self.generator);
    visit("stage", self.stage);
    visit("epoch", self.epoch);
    visit("steps", self.steps);
    visit("seconds", self.seconds);
  }
};

struct EncoderConfig {
  Space space = Space::cosine;
  Index dim = 32, batch = 1024, negatives = 1024;
  double spread = 1;  ///< deviation of a number at the start, times √d
  std::uint64_t seed = 1;
};

/// Learns the tables. The keys of a batch of queries are all that belongs to any of them, and `negatives` items drawn
/// uniformly, without correction for how likely each is: what does not belong to a query is its negative. Only rows of
/// the batch are moved, and only their moments ("lazy" Adam).
template <bool in_ball>
class EncoderTrainer {
 public:
  using Tables = EncoderTables<in_ball>;
  using State = EncoderState<in_ball>;
  using Optimizer = std::conditional_t<in_ball, ruvector::train::RiemannianAdam<Tables>, ruvector::train::Adam<Tables>>;
  using OptimizerConfig =
      std::conditional_t<in_ball, ruvector::train::RiemannianAdamConfig, ruvector::train::AdamConfig>;

  EncoderTrainer(const Relevance& relevance, const EncoderConfig& config)
      : relevance_(relevance),
        config_(config),
        lift_(config.space, config.dim),
        slot_(static_cast<std::size_t>(relevance.items.size()), -1) {}

  [[nodiscard]] const Lift& lift() const { return lift_; }

  [[nodiscard]] State start() const {
    const Index n = relevance_.items.size();
    const auto table = [&] { return Tables{Matrix<float>(n, config_.dim), Matrix<float>(n, config_.dim)}; };
    State state{.model = table(), .first_moment = table(), .second_moment = table(), .generator = {}};
    Rng rng = Rng(config_.seed).split(1);
    const auto deviation = static_cast<float>(config_.spread / std::sqrt(static_cast<double>(config_.dim)));
    for (auto* matrix : {&state.model.queries, &state.model.items})
      for (float& x : matrix->span()) x = deviation * rng.normal<float>();
    if constexpr (in_ball)  // few start outside
      for (auto* matrix : {&state.model.queries, &state.model.items})
        for (Index i = 0; i < n; ++i) ruvector::geometry::PoincareBall<float>().project(matrix->row(i), matrix->row(i));
    state.generator = rng.split(2).state();
    return state;
  }

  /// Goes on with the next stage, with moments of zero.
  static void next_stage(State& state) {
    for (Tables* tables : {&state.first_moment, &state.second_moment})
      ruvector::for_each_parameter([](std::string_view, std::span<float> x) { std::ranges::fill(x, 0.0f); }, *tables);
    state.steps = state.epoch = 0;
    ++state.stage;
  }

  /// One pass over the queries that have something to learn. `go_on(queries done, loss)` is asked after each batch;
  /// where it says no, nothing of the epoch counts but what has been learned. Returns whether it came to the end.
  template <class GoOn>
  bool epoch(State& state, const EncoderStage& stage, GoOn&& go_on) {
    Rng rng(state.generator);
    std::vector<std::int32_t> order;
    for (Index q = 0; q < relevance_.items.size(); ++q)
      if (relevance_.hops(q).back() >= stage.least_hops) order.push_back(static_cast<std::int32_t>(q));
    rng.shuffle(std::span(order));
    const Index total = static_cast<Index>(order.size());
    for (Index first = 0; first < total; first += config_.batch) {
      const Index count = std::min(config_.batch, total - first);
      const double part = (static_cast<double>(state.epoch) + static_cast<double>(first) / static_cast<double>(total)) /
                          static_cast<double>(stage.epochs);
      const auto queries = std::span(order).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
      const double loss = step(state, stage, queries, 0.5 * (1 + std::cos(std::numbers::pi * part)), rng);
      if (!go_on(first + count, loss)) return false;
    }
    state.generator = rng.state();
    ++state.epoch;
    return true;
  }

 private:
  using Rows = std::span<const std::int32_t>;

  static Matrix<float> gathered(const Matrix<float>& table, Rows rows) {
    Matrix<float> out(static_cast<Index>(rows.size()), table.cols());
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::ranges::copy(table.row(rows[i]), out.row(static_cast<Index>(i)).begin());
    return out;
  }
  static void scatter(const Matrix<float>& from, Rows rows, Matrix<float>& table) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::ranges::copy(from.row(static_cast<Index>(i)), table.row(rows[i]).begin());
  }
  [[nodiscard]] Tables gathered(const Tables& tables, Rows queries) const {
    return {gathered(tables.queries, queries), gathered(tables.items, keys_)};
  }
  void scatter(const Tables& from, Rows queries, Tables& tables) const {
    scatter(from.queries, queries, tables.queries);
    scatter(from.items, keys_, tables.items);
  }

  double step(State& state, const EncoderStage& stage, Rows queries, double factor, Rng& rng) {
    choose_keys(queries, stage, rng);
    Tables batch = gathered(state.model, queries);
    Tables gradient{Matrix<float>(batch.queries.rows(), config_.dim), Matrix<float>(batch.items.rows(), config_.dim)};
    const double loss = differentiate(batch, stage, gradient);
    OptimizerConfig config;
    config.learning_rate = stage.learning_rate;
    Optimizer optimizer({gathered(state.first_moment, queries), gathered(state.second_moment, queries), state.steps},
                        config);
    optimizer.step(batch, gradient, factor);
    scatter(batch, queries, state.model);
    scatter(optimizer.state().first_moment, queries, state.first_moment);
    scatter(optimizer.state().second_moment, queries, state.second_moment);
    ++state.steps;
    return loss;
  }

  void choose_keys(Rows queries, const EncoderStage& stage, Rng& rng) {
    for (const std::int32_t key : keys_) slot_[static_cast<std::size_t>(key)] = -1;
    keys_.clear();
    const auto add = [&](std::int32_t item) {
      std::int32_t& slot = slot_[static_cast<std::size_t>(item)];
      if (slot >= 0) return;
      slot = static_cast<std::int32_t>(keys_.size());
      keys_.push_back(item);
    };
    for (const std::int32_t q : queries)
      for (const std::int32_t item : relevance_.items[q]) add(item);
    for (Index i = 0; i < config_.negatives; ++i) add(static_cast<std::int32_t>(rng.below(relevance_.items.size())));

    using Pair = ruvector::train::Pair;
    const Index m = static_cast<Index>(queries.size()), n = static_cast<Index>(keys_.size());
    if (pairs_.size() < static_cast<std::size_t>(m * n)) pairs_.resize(static_cast<std::size_t>(m * n));
    std::fill_n(pairs_.begin(), m * n, Pair::negative);
    for (Index i = 0; i < m; ++i) {
      const auto items = relevance_.items[queries[std::size_t(i)]], hops = relevance_.hops(queries[std::size_t(i)]);
      for (std::size_t p = 0; p < items.size(); ++p)
        pairs_[static_cast<std::size_t>(i * n + slot_[static_cast<std::size_t>(items[p])])] =
            hops[p] >= stage.least_hops ? Pair::positive : Pair::ignored;
    }
  }

  // The loss of a batch, and its gradient: scores are products of lifted rows, and functions of them.
  double differentiate(const Tables& batch, const EncoderStage& stage, Tables& gradient) {
    namespace simd = ruvector::simd;
    const Index m = batch.queries.rows(), n = batch.items.rows();
    const EncoderScore& score = lift_.score();
    auto frame = workspace_.frame();
    const auto lifted = [&](const Matrix<float>& x) {
      const auto out = frame.matrix<float>(x.rows(), lift_.columns());
      for (Index i = 0; i < x.rows(); ++i) lift_(x.row(i), out.row(i));
      return out;
    };
    const auto q = lifted(batch.queries), k = lifted(batch.items);
    if (score.curved > 0)
      for (Index i = 0; i < m; ++i) q(i, score.flat) = -q(i, score.flat);
    const auto logits = frame.matrix<float>(m, n), d_logits = frame.matrix<float>(m, n);
    const auto z = frame.matrix<float>(score.curved > 0 ? m : 0, n);
    std::ranges::fill(std::span(d_logits.data(), std::size_t(m * n)), 0.0f);
    const auto scale = static_cast<float>(stage.scale);
    if (score.flat > 0) simd::gemm_transposed(q.cols(0, score.flat), k.cols(0, score.flat), logits, workspace_);
    if (score.curved > 0)
      simd::gemm_transposed(q.cols(score.flat, score.curved), k.cols(score.flat, score.curved), z, workspace_);
    simd::for_each_batch<float>(m * n, [&](Index i, auto lanes) {
      using B = simd::Batch<float>;
      B x = score.flat > 0 ? lanes.load(logits.data() + i) : B(0.0f);
      if (score.curved > 0) x = x - EncoderScore::distance(lanes.load(z.data() + i));
      lanes.store(logits.data() + i, scale * x);
    });

    const double loss =
        ruvector::train::contrastive<float>(logits, MatrixView<const ruvector::train::Pair>(pairs_.data(), m, n),
                                            d_logits, stage.form, workspace_)
            .mean();
    simd::for_each_batch<float>(m * n, [&](Index i, auto lanes) {
      const auto d = scale * lanes.load(d_logits.data() + i);
      lanes.store(d_logits.data() + i, d);
      if (score.curved > 0) lanes.store(z.data() + i, d * EncoderScore::slope(lanes.load(z.data() + i)));
    });
    const auto d_q = frame.matrix<float>(m, lift_.columns()), d_k = frame.matrix<float>(n, lift_.columns());
    const auto back = [&](MatrixView<float> d, Index first, Index count) {
      if (count == 0) return;
      simd::gemm(d, k.cols(first, count), d_q.cols(first, count), workspace_);
      simd::gemm_left_transposed(d, q.cols(first, count), d_k.cols(first, count), workspace_);
    };
    back(d_logits, 0, score.flat);
    back(z, score.flat, score.curved);
    for (Index i = 0; i < m; ++i) {
      if (score.curved > 0) d_q(i, score.flat) = -d_q(i, score.flat);
      lift_.vjp(batch.queries.row(i), d_q.row(i), gradient.queries.row(i));
    }
    for (Index j = 0; j < n; ++j) lift_.vjp(batch.items.row(j), d_k.row(j), gradient.items.row(j));
    return loss;
  }

  const Relevance& relevance_;
  EncoderConfig config_;
  Lift lift_;
  std::vector<std::int32_t> slot_;  // [n] where an item stands among the keys, −1: nowhere
  std::vector<std::int32_t> keys_;
  std::vector<ruvector::train::Pair> pairs_;  // [queries × keys]
  ruvector::Workspace workspace_;
};

}  // namespace examples
