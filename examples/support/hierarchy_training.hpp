// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/progress.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/geometry/concepts.hpp>
#include <ruvector/simd/math.hpp>
#include <ruvector/train/riemannian_sgd.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <stop_token>
#include <vector>

namespace examples {

using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::Rng;

/// The recipe of Nickel & Kiela 2017; the defaults are theirs for the mammals.
struct TrainingConfig {
  Index epochs = 300;
  Index batch = 10;      ///< pairs a step
  Index negatives = 50;  ///< a pair
  ruvector::train::RiemannianSgdConfig sgd{.learning_rate = 0.3};
  Index burn_in = 20;  ///< first epochs, at `burn_in_factor` of the rate and with frequent nodes as negatives
  double burn_in_factor = 0.01;
  double last_factor = 1;         ///< after burn-in the rate falls linearly, in the last epoch to this share of it
  bool squared_distance = false;  ///< e = d² instead of e = d: better in Euclidean space, if it has room
  double curvature = 1;           ///< c, 1e-6 to 100, or its start: distances are those at curvature −c
  double curvature_rate = 0;      ///< learning rate of softplus⁻¹(c); 0: c stays as it is
  std::uint64_t seed = 1;
};

/// What a training remembers: from it, it goes on with the bits of one that was never stopped.
struct TrainingState {
  Matrix<double> points;     ///< [n×columns]
  double raw_curvature = 0;  ///< softplus⁻¹(c), where c is learned
  Index pairs = 0;           ///< done so far, in all epochs
  double seconds = 0;        ///< so far

  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("points", self.points);
    visit("raw_curvature", self.raw_curvature);
    visit("pairs", self.pairs);
    visit("seconds", self.seconds);
  }
};

/// Draws i with probability weight[i] / Σ weight in O(1). Source: Walker 1977, built as Vose 1991 does.
class WeightedSampler {
 public:
  explicit WeightedSampler(std::span<const double> weight)
      : keep_(weight.begin(), weight.end()), other_(weight.size()) {
    const double mean = std::accumulate(keep_.begin(), keep_.end(), 0.0) / static_cast<double>(keep_.size());
    std::vector<std::size_t> small, large;
    for (std::size_t i = 0; i < keep_.size(); ++i) {
      keep_[i] /= mean;
      (keep_[i] < 1 ? small : large).push_back(i);
    }
    while (!small.empty() && !large.empty()) {
      const std::size_t i = small.back(), j = large.back();
      small.pop_back();
      other_[i] = static_cast<std::int32_t>(j);
      keep_[j] -= 1 - keep_[i];
      if (keep_[j] < 1) {
        large.pop_back();
        small.push_back(j);
      }
    }
    for (const auto& rest : {small, large})  // 1 up to rounding
      for (const std::size_t i : rest) keep_[i] = 1;
  }
  std::int32_t operator()(Rng& rng) const {
    const auto i = static_cast<std::size_t>(rng.below(static_cast<Index>(keep_.size())));
    return rng.uniform() < keep_[i] ? static_cast<std::int32_t>(i) : other_[i];
  }

 private:
  std::vector<double> keep_;         // probability of i itself once the draw fell on i
  std::vector<std::int32_t> other_;  // what it is otherwise
};

/// Places the nodes of a hierarchy on a manifold such that a node is nearer to its ancestors than to anything else:
///
///     minimise −log( exp(−d(u, v)) / Σ_{w ∈ {v} ∪ N(u)} exp(−d(u, w)) ) over all pairs (u, ancestor v),
///
/// N(u) a sample of nodes that are neither u nor above u, by Riemannian stochastic gradient descent. Source: Nickel &
/// Kiela 2017, eq. 5.
///
/// The curvature −c of that space can be learned. Points stay on `manifold`, of curvature −1, of which the other one is
/// a copy that is 1/√c times as large: d_c = d/√c, ∂d_c/∂c = −d_c/(2c), and a step along the gradient is c times as
/// long.
///
/// The pairs of a batch are independent of each other: each worker writes the gradients of its pairs to buffers of
/// their own. Then every node that occurs takes one step along the mean over the batch, summed in the order of the
/// pairs. Who draws what depends on seed, epoch and pair alone. So any number of threads gives the same bits.
template <ruvector::geometry::Manifold M>
  requires(std::same_as<ruvector::ScalarOf<M>, double>)
class HierarchyTrainer {
 public:
  HierarchyTrainer(const M& manifold, const Hierarchy& hierarchy, const TrainingConfig& config)
      : manifold_(manifold),
        hierarchy_(hierarchy),
        config_(config),
        frequent_(frequencies(hierarchy)),
        raw_curvature_(std::log(std::expm1(config.curvature))),
        slot_(static_cast<std::size_t>(hierarchy.size()), -1) {}

  /// A training from these points [n×columns] on.
  [[nodiscard]] TrainingState start(Matrix<double> points) const {
    return {.points = std::move(points), .raw_curvature = std::log(std::expm1(config_.curvature))};
  }

  /// Moves `state.points` to the end of the last epoch; calls `progress` (units: pairs), where `state` may be saved,
  /// after every batch; ends early, between two batches, if asked to.
  template <ruvector::Executor E>
  void run(TrainingState& state, E& executor, const ruvector::Progress& progress, std::stop_token stop = {}) {
    const auto start = std::chrono::steady_clock::now();
    const double before = state.seconds;
    const Index workers = executor.concurrency(), pairs_of_epoch = hierarchy_.pairs();
    const MatrixView<double> points = state.points;
    raw_curvature_ = state.raw_curvature;
    fill_pairs();
    steps_.assign(static_cast<std::size_t>(config_.batch), PairStep(config_, points.cols()));
    workers_.assign(static_cast<std::size_t>(workers), Worker(manifold_, config_, points));

    ruvector::ProgressReport report{.done = 0, .total = config_.epochs * pairs_of_epoch, .loss = 0, .seconds = 0};
    for (Index epoch = 0; epoch < config_.epochs; ++epoch) {
      const bool burn_in = epoch < config_.burn_in;
      const double rate = config_.sgd.learning_rate * (burn_in ? config_.burn_in_factor : factor(epoch));
      Rng rng = Rng(config_.seed).split(static_cast<std::uint64_t>(epoch));
      rng.shuffle(std::span(pairs_));  // of the order of the epoch before
      for (Index first = state.pairs - epoch * pairs_of_epoch; first < pairs_of_epoch; first += config_.batch) {
        if (stop.stop_requested()) return;
        const Index pairs = std::min(config_.batch, pairs_of_epoch - first);
        executor.parallel_for(pairs, [&](Index i, Index worker) {
          Rng draws = rng.split(static_cast<std::uint64_t>(first + i));
          differentiate(pairs_[static_cast<std::size_t>(first + i)], burn_in, draws, points,
                        workers_[static_cast<std::size_t>(worker)], steps_[static_cast<std::size_t>(i)]);
        });
        const auto steps = std::span(steps_).first(static_cast<std::size_t>(pairs));
        executor.parallel_for(workers, [&](Index share, Index) {
          move(share, workers, rate * curvature() / static_cast<double>(pairs), steps, points);
        });
        bend(steps, config_.curvature_rate * rate / config_.sgd.learning_rate);
        state.raw_curvature = raw_curvature_;
        state.pairs += pairs;
        state.seconds = before + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        report.done = state.pairs;
        report.loss = 0;
        for (const PairStep& step : steps) report.loss += step.loss;
        report.loss /= static_cast<double>(pairs);
        report.seconds = state.seconds;
        if (progress) progress(report);
      }
    }
  }

  /// c: where it is learned, as it is now.
  [[nodiscard]] double curvature() const {
    return config_.curvature_rate > 0 ? std::log1p(std::exp(raw_curvature_)) : config_.curvature;
  }

 private:
  void fill_pairs() {
    pairs_.clear();
    for (Index u = 0; u < hierarchy_.size(); ++u)
      for (const std::int32_t v : hierarchy_.ancestors[u]) pairs_.push_back({static_cast<std::int32_t>(u), v});
  }

  /// Of the learning rate, after burn-in.
  [[nodiscard]] double factor(Index epoch) const {
    const Index steps = config_.epochs - config_.burn_in - 1;
    return steps < 1 ? 1 : 1 - (1 - config_.last_factor) * double(epoch - config_.burn_in) / double(steps);
  }

  struct Pair {
    std::int32_t node, ancestor;
  };
  /// What one pair asks of the points: the gradient of its loss by node, its ancestor and the negatives.
  struct PairStep {
    PairStep(const TrainingConfig& config, Index width)
        : others(static_cast<std::size_t>(config.negatives + 1)),
          d_node(width),
          d_others(width, config.negatives + 1) {}
    double loss = 0, d_curvature = 0;
    std::int32_t node = 0;
    Index count = 0;                   ///< how many others: 1 + negatives, or 0 where a node has no negatives
    std::vector<std::int32_t> others;  ///< the ancestor first
    ruvector::Vector<double> d_node;
    Matrix<double> d_others;  ///< [width × 1+negatives]
  };
  /// Scratch of one thread.
  struct Worker {
    Worker(const M& manifold, const TrainingConfig& config, MatrixView<const double> points)
        : d_manifold(manifold),
          unwanted(static_cast<std::size_t>(points.rows() + 63) / 64),
          others(points.cols(), config.negatives + 1),
          distance(config.negatives + 1),
          weight(config.negatives + 1),
          nodes(static_cast<std::size_t>(config.batch * (config.negatives + 2))),
          gradient(config.batch * (config.negatives + 2), points.cols()) {}
    M d_manifold;                         ///< the gradient of the manifold's own curvature, which nobody uses
    std::vector<std::uint64_t> unwanted;  ///< one bit a node: no negative of the present one
    Matrix<double> others;                ///< [width × 1+negatives] the points, by columns for the manifold's kernels
    ruvector::Vector<double> distance, weight;
    std::vector<std::int32_t> nodes;  ///< that occur in the batch
    Matrix<double> gradient;          ///< row i is that of nodes[i]
  };

  /// (1 + number of descendants)^0.75: the smoothed frequency of a node among the pairs.
  static std::vector<double> frequencies(const Hierarchy& hierarchy) {
    std::vector<double> weight(static_cast<std::size_t>(hierarchy.size()), 1);
    for (const std::int32_t ancestor : hierarchy.ancestors.target) weight[static_cast<std::size_t>(ancestor)] += 1;
    for (double& w : weight) w = std::pow(w, 0.75);
    return weight;
  }

  /// Fills `step` with the ancestor and the negatives of a pair, and has their points fetched from memory meanwhile.
  void draw(Pair pair, bool burn_in, Rng& rng, MatrixView<const double> points, Worker& worker, PairStep& step) const {
    const std::int32_t node = pair.node;
    const auto above = hierarchy_.ancestors[node];
    step.node = node;
    step.others[0] = pair.ancestor;
    step.count = 0;
    if (static_cast<Index>(above.size()) + 1 == hierarchy_.size()) return;

    const auto word = [&](std::int32_t i) -> std::uint64_t& {
      return worker.unwanted[static_cast<std::size_t>(i) / 64];
    };
    const auto bit = [](std::int32_t i) { return std::uint64_t(1) << (i % 64); };
    word(node) |= bit(node);
    for (const std::int32_t v : above) word(v) |= bit(v);
    for (step.count = 1; step.count <= config_.negatives;) {
      const auto v = burn_in ? frequent_(rng) : static_cast<std::int32_t>(rng.below(hierarchy_.size()));
      step.others[static_cast<std::size_t>(step.count)] = v;
      const double* row = points.row(v).data();
      __builtin_prefetch(row);
      __builtin_prefetch(row + points.cols() - 1);
      step.count += (word(v) & bit(v)) == 0;
    }
    word(node) &= ~bit(node);
    for (const std::int32_t v : above) word(v) &= ~bit(v);
  }

  /// The loss of one pair and its gradient: with e_j the energy (distance, or its square) of the others and p their
  /// softmax(−e), loss = e₀ + log Σ exp(−e_j) and ∂loss/∂e_j = [j = 0] − p_j.
  void differentiate(Pair pair, bool burn_in, Rng& rng, MatrixView<const double> points, Worker& worker,
                     PairStep& step) const {
    draw(pair, burn_in, rng, points, worker, step);
    step.loss = step.d_curvature = 0;
    if (step.count == 0) return;
    const auto n = static_cast<std::size_t>(step.count);
    const auto x = points.row(step.node);
    const auto others = worker.others.view().cols(0, step.count);
    for (Index j = 0; j < step.count; ++j) {
      const double* row = points.row(step.others[static_cast<std::size_t>(j)]).data();
      for (Index i = 0; i < points.cols(); ++i) others(i, j) = row[i];
    }
    const auto distance = worker.distance.span().first(n);
    const auto weight = worker.weight.span().first(n);
    manifold_.distances(x, others, distance);

    const double c = curvature(), scale = 1 / std::sqrt(c);
    const auto energy = [&](std::size_t j) {
      const double d = scale * distance[j];
      return config_.squared_distance ? d * d : d;
    };
    double least = energy(0);
    for (std::size_t j = 1; j < n; ++j) least = std::min(least, energy(j));
    for (std::size_t j = 0; j < n; ++j) weight[j] = least - energy(j);
    ruvector::simd::exp(std::span<const double>(weight), weight);
    const double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
    step.loss = energy(0) - least + std::log(sum);
    for (std::size_t j = 0; j < n; ++j)
      weight[j] =
          (double(j == 0) - weight[j] / sum) * (config_.squared_distance ? 2 * scale * distance[j] : 1.0) * scale;
    if (config_.curvature_rate > 0)
      step.d_curvature = -std::inner_product(weight.begin(), weight.end(), distance.begin(), 0.0) / (2 * c);

    std::fill(step.d_node.begin(), step.d_node.end(), 0.0);
    const auto d_others = step.d_others.view().cols(0, step.count);
    for (Index i = 0; i < d_others.rows(); ++i) std::fill_n(d_others.row(i).data(), n, 0.0);
    manifold_.distances_vjp(x, others, weight, step.d_node.span(), d_others, worker.d_manifold, distance);
  }

  /// One step of the curvature along the mean of its gradient: c = softplus(raw), at least 1e-13.
  void bend(std::span<const PairStep> steps, double rate) {
    if (config_.curvature_rate == 0) return;
    double d_curvature = 0;
    for (const PairStep& step : steps) d_curvature += step.d_curvature;
    raw_curvature_ -= rate * d_curvature / static_cast<double>(steps.size()) / (1 + std::exp(-raw_curvature_));
    raw_curvature_ = std::max(raw_curvature_, -30.0);
  }

  /// Adds up the gradients of the nodes ≡ share (mod shares) and moves each once.
  void move(Index share, Index shares, double rate, std::span<const PairStep> steps, MatrixView<double> points) {
    Worker& worker = workers_[static_cast<std::size_t>(share)];
    const Index width = points.cols();
    Index count = 0;
    const auto add = [&](std::int32_t node, const double* gradient, Index stride) {
      if (shares > 1 && node % shares != share) return;
      std::int32_t& slot = slot_[static_cast<std::size_t>(node)];
      const bool first = slot < 0;
      if (first) {
        slot = static_cast<std::int32_t>(count++);
        worker.nodes[static_cast<std::size_t>(slot)] = node;
      }
      double* sum = worker.gradient.row(slot).data();
      for (Index i = 0; i < width; ++i) sum[i] = (first ? 0.0 : sum[i]) + gradient[i * stride];
    };
    for (const PairStep& step : steps) {
      if (step.count == 0) continue;
      add(step.node, step.d_node.data(), 1);
      for (Index j = 0; j < step.count; ++j)
        add(step.others[static_cast<std::size_t>(j)], step.d_others.data() + j, step.d_others.cols());
    }
    for (Index i = 0; i < count; ++i) {
      const std::int32_t node = worker.nodes[static_cast<std::size_t>(i)];
      __builtin_prefetch(points.row(worker.nodes[static_cast<std::size_t>(std::min(i + 8, count - 1))]).data());
      ruvector::train::riemannian_sgd_step(manifold_, points.row(node), std::span<const double>(worker.gradient.row(i)),
                                           rate, config_.sgd);
      slot_[static_cast<std::size_t>(node)] = -1;
    }
  }

  M manifold_;
  const Hierarchy& hierarchy_;
  TrainingConfig config_;
  WeightedSampler frequent_;
  double raw_curvature_;            // softplus⁻¹(c)
  std::vector<Pair> pairs_;         // shuffled each epoch
  std::vector<std::int32_t> slot_;  // [n] row of a node in its worker's gradient, −1: none yet
  std::vector<PairStep> steps_;     // [batch]
  std::vector<Worker> workers_;
};

}  // namespace examples
