// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/attention/dense.hpp>
#include <ruvector/attention/scores.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/simd/dot.hpp>
#include <ruvector/simd/math.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace examples {

using ruvector::Index;

/// logit = LeakyReLU(a_q·q + a_k·k), the score of the first graph attention networks (Veličković et al. 2018, eq. 3).
/// It grows with a_k·k whatever the query: all queries rank the keys alike, "static attention" (Brody et al. 2022).
/// Written outside the library, it runs in every engine of it, forward and backward.
template <ruvector::Real T>
struct StaticScore {
  using Scalar = T;
  ruvector::Vector<T> query;  ///< a_q [d]
  ruvector::Vector<T> key;    ///< a_k [d]

  StaticScore() = default;
  /// Starts as GatV2 does (Glorot).
  StaticScore(Index d, ruvector::Rng& rng) : query(d), key(d) {
    for (ruvector::Vector<T>* a : {&query, &key})
      ruvector::nn::initialize<T>(ruvector::nn::Initializer::xavier_uniform, {a->data(), 1, d}, {}, rng);
  }

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("query", self.query...);
    visit("key", self.key...);
  }

  /// The score for rows of one width. The scalar of a row is its product with a.
  struct Bound : ruvector::attention::PairScore<T> {
    using B = ruvector::simd::Batch<T>;
    static constexpr Index query_scalars = 1, key_scalars = 1;

    const StaticScore* score = nullptr;

    [[nodiscard]] Index parameter_count(Index pair_parameters) const {
      return pair_parameters + score->query.size() + score->key.size();
    }
    void query_row(std::span<const T> q, T* out) const { *out = ruvector::simd::dot<T>(score->query, q); }
    void key_row(std::span<const T> k, T* out) const { *out = ruvector::simd::dot<T>(score->key, k); }
    void query_row_vjp(std::span<const T> q, const T* d, std::span<T> d_q, std::span<T> d_parameters) const {
      if (!d_q.empty()) ruvector::simd::axpy<T>(*d, score->query, d_q);
      ruvector::simd::axpy(*d, q, d_parameters.first(q.size()));
    }
    void key_row_vjp(std::span<const T> k, const T* d, std::span<T> d_k, std::span<T> d_parameters) const {
      if (!d_k.empty()) ruvector::simd::axpy<T>(*d, score->key, d_k);
      ruvector::simd::axpy(*d, k, d_parameters.last(k.size()));
    }
    [[nodiscard]] B logit(const B*, const B* q, const B* k) const {
      const B z = q[0] + k[0];
      return ruvector::simd::max(z, B(slope) * z);
    }
    template <class Partials>
    void derivative(B d_logit, const B*, const B* q, const B* k, Partials& d) const {
      d.z[0] = B(T(0));
      d.query[0] = d.key[0] = ruvector::simd::select(q[0] + k[0] > B(T(0)), d_logit, B(slope) * d_logit);
    }
    void add_parameters(std::span<const T> sums, StaticScore& grad) const {
      ruvector::simd::axpy(T(1), sums.first(grad.query.span().size()), grad.query.span());
      ruvector::simd::axpy(T(1), sums.last(grad.key.span().size()), grad.key.span());
    }

   private:
    static constexpr T slope = T(0.2);
  };

  [[nodiscard]] Bound bind(Index) const {
    Bound bound{};
    bound.score = this;
    return bound;
  }
};

/// Options of StaticGraphAttention.
struct StaticGraphAttentionConfig {
  Index input = 0;             ///< columns of the features of nodes
  Index heads = 1;             ///< heads side by side
  Index channels = 0;          ///< columns a head
  bool share_weights = false;  ///< one projection for queries and keys
  bool bias = true;            ///< of projections and output
};

/// Attention with keys of one ranking, head by head, in the form of GatV2:
///
///     x_l = Θ_l x_source + b_l,   x_r = Θ_r x_target + b_r
///     out_i = Σ_j softmax_j(LeakyReLU(a_q·x_r[i] + a_k·x_l[j])) x_l[j] + b
///
/// so that it differs from it in the place of LeakyReLU alone.
template <ruvector::Real T>
struct StaticGraphAttention {
  using Scalar = T;
  using Head = ruvector::attention::Dense<StaticScore<T>>;

  ruvector::nn::Linear<T> source, target;  ///< the latter is empty with share_weights
  std::vector<Head> heads;
  ruvector::Vector<T> bias;

  StaticGraphAttention() = default;
  StaticGraphAttention(const StaticGraphAttentionConfig& config, ruvector::Rng& rng) {
    const Index columns = config.heads * config.channels;
    const ruvector::nn::LinearConfig linear{.input = config.input,
                                            .output = columns,
                                            .bias = config.bias,
                                            .initializer = ruvector::nn::Initializer::xavier_uniform};
    source = ruvector::nn::Linear<T>(linear, rng);
    if (!config.share_weights) target = ruvector::nn::Linear<T>(linear, rng);
    for (Index h = 0; h < config.heads; ++h) heads.emplace_back(StaticScore<T>(config.channels, rng));
    if (config.bias) bias = ruvector::Vector<T>(columns);
  }

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("source", self.source...);
    visit("target", self.target...);
    visit("heads", self.heads...);
    visit("bias", self.bias...);
  }

  /// What backward needs of a forward pass.
  struct Saved {
    ruvector::Matrix<T> query, key;             ///< x_r, x_l
    std::vector<typename Head::Saved> softmax;  ///< graph after graph, head after head
  };

  /// Some graphs side by side, each of `targets` targets that all see all of its `sources` sources, and nothing else.
  struct Blocks {
    Index targets, sources;
  };

  /// x_target [graphs·targets × input], x_source [graphs·sources × input] → out [graphs·targets × heads·channels].
  void forward(const Blocks& blocks, ruvector::MatrixView<const T> x_target, ruvector::MatrixView<const T> x_source,
               ruvector::MatrixView<T> out, Saved& saved, ruvector::Workspace& ws) const {
    const Index columns = source.weight.rows(), graphs = x_target.rows() / blocks.targets;
    const auto fit = [&](ruvector::Matrix<T>& x, Index rows) {
      if (x.rows() != rows || x.cols() != columns) x = ruvector::Matrix<T>(rows, columns);
    };
    fit(saved.query, x_target.rows());
    fit(saved.key, x_source.rows());
    saved.softmax.resize(std::size_t(graphs) * heads.size());
    target_map(*this).forward(x_target, saved.query, ws);
    source.forward(x_source, saved.key, ws);
    for_each_head(blocks, graphs,
                  [&](const Head& head, std::size_t h, std::size_t number, auto&& targets, auto&& sources) {
                    const auto y = targets(out);
                    head.forward(input(targets, sources, saved), {.value = y}, saved.softmax[number], ws);
                    for (Index i = 0; i < y.rows() && !bias.empty(); ++i)
                      ruvector::simd::axpy<T>(
                          T(1), bias.span().subspan(h * std::size_t(y.cols()), std::size_t(y.cols())), y.row(i));
                  });
  }

  /// Adds the gradients by x_target, x_source and the weights.
  void backward(const Blocks& blocks, ruvector::MatrixView<const T> x_target, ruvector::MatrixView<const T> x_source,
                const Saved& saved, ruvector::MatrixView<const T> d_out, ruvector::MatrixView<T> d_target,
                ruvector::MatrixView<T> d_source, StaticGraphAttention& grad, ruvector::Workspace& ws) const {
    auto frame = ws.frame();
    const auto zeros = [&](const ruvector::Matrix<T>& like) {
      const auto x = frame.matrix<T>(like.rows(), like.cols());
      std::fill_n(x.data(), x.size(), T(0));
      return x;
    };
    const auto d_query = zeros(saved.query), d_key = zeros(saved.key);
    for_each_head(blocks, x_target.rows() / blocks.targets,
                  [&](const Head& head, std::size_t h, std::size_t number, auto&& targets, auto&& sources) {
                    head.backward(input(targets, sources, saved), saved.softmax[number], {.value = targets(d_out)},
                                  {.query = targets(d_query), .key = sources(d_key), .value = sources(d_key)},
                                  grad.heads[h], ws);
                  });
    for (Index i = 0; i < d_out.rows() && !bias.empty(); ++i) ruvector::simd::axpy<T>(T(1), d_out.row(i), grad.bias);
    target_map(*this).backward(x_target, d_query, d_target, target_map(grad), ws);
    source.backward(x_source, d_key, d_source, grad.source, ws);
  }

 private:
  template <class Self>
  static auto& target_map(Self& self) {
    return self.target.weight.empty() ? self.source : self.target;
  }
  /// Calls f(head, its number, number of head and graph, how to get its part of a matrix over all targets, sources).
  template <class F>
  void for_each_head(const Blocks& blocks, Index graphs, F&& f) const {
    const Index channels = heads.empty() ? 0 : source.weight.rows() / Index(heads.size());
    for (Index g = 0; g < graphs; ++g)
      for (std::size_t h = 0; h < heads.size(); ++h) {
        const auto part = [&](Index rows) {
          return [=]<class U>(ruvector::MatrixView<U> all) {
            return all.rows(g * rows, rows).cols(Index(h) * channels, channels);
          };
        };
        f(heads[h], h, std::size_t(g) * heads.size() + h, part(blocks.targets), part(blocks.sources));
      }
  }
  template <class Targets, class Sources>
  static ruvector::attention::AttentionInput<T> input(const Targets& targets, const Sources& sources,
                                                      const Saved& saved) {
    const auto key = sources(saved.key.view());
    return {.query = targets(saved.query.view()), .key = key, .value = key};
  }
};

}  // namespace examples
