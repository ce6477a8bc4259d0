// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/dot.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// The shape and start of multi-head attention. A width that is 0 follows from the others.
struct MultiHeadConfig {
  Index dim = 0;             ///< E: columns of the output
  Index heads = 1;           ///< H
  Index kv_heads = 0;        ///< H/kv_heads heads after each other share keys and values (grouped queries); 0: H
  Index query_dim = 0;       ///< columns of query; 0: E
  Index key_dim = 0;         ///< columns of key; 0: E
  Index value_dim = 0;       ///< columns of value; 0: E
  Index head_dim = 0;        ///< columns of a head's queries and keys; 0: E/H
  Index value_head_dim = 0;  ///< columns of a head's values; 0: E/H
  bool bias = true;          ///< of all projections
  bool output = true;        ///< without: the heads side by side, without W_o
  nn::Initializer initializer = nn::Initializer::xavier_uniform;  ///< of all projections
};

/// The tensors of PyTorch's nn.MultiheadAttention under their names there. Either in_proj_weight or the three apart,
/// which PyTorch has where kdim or vdim differ from E.
template <Real T>
struct PyTorchMultiHead {
  MatrixView<const T> in_proj_weight = {};   ///< [3E×E]: W_q, W_k, W_v
  MatrixView<const T> q_proj_weight = {};    ///< [E×E]
  MatrixView<const T> k_proj_weight = {};    ///< [E×kdim]
  MatrixView<const T> v_proj_weight = {};    ///< [E×vdim]
  std::span<const T> in_proj_bias = {};      ///< [3E], or empty: none
  MatrixView<const T> out_proj_weight = {};  ///< [E×E]
  std::span<const T> out_proj_bias = {};     ///< [E], or empty: none
};

/// H attentions side by side, each on a projection of its own (Vaswani 2017, §3.2.2):
///
///     Q = X_q W_qᵀ + b_q,  K = X_k W_kᵀ + b_k,  V = X_v W_vᵀ + b_v,  O_h = head_h(Q_h, K_g, V_g),  Y = [O_1 … O_H]
///     W_oᵀ + b_o
///
/// Head h has columns h·w … of Q, and those of group g = h/(H/kv_heads) of K and V (Ainslie 2023). Rows are projected
/// once; mask and bias hold for all heads; weights on request are the average over heads. A query that sees no key
/// yields 0, not b_o. Inner attentions are one a head, so their parameters are.
///
/// The overloads with an executor run heads at a time, and give the same bits for any number of threads.
template <DifferentiableAttention Inner>
class MultiHead {
 public:
  using Scalar = ScalarOf<Inner>;              ///< what it computes in
  static constexpr bool projects_keys = true;  ///< queries and keys may differ in width
  using T = Scalar;                            ///< short

  nn::Linear<T> query;       ///< W_q [H·head_dim × query_dim]
  nn::Linear<T> key;         ///< W_k [kv_heads·head_dim × key_dim]
  nn::Linear<T> value;       ///< W_v [kv_heads·value_head_dim × value_dim]
  nn::Linear<T> output;      ///< W_o [E × H·columns of a head], or [0×0]: none
  std::vector<Inner> heads;  ///< [H]

  /// Starts as `config` says, every head as a copy of `inner`. Throws ConfigError for sizes below 1, and for heads that
  /// do not divide what is divided by them.
  MultiHead(const MultiHeadConfig& config, Rng& rng, const Inner& inner = Inner()) {
    check_positive("MultiHead: dim", config.dim);
    check_positive("MultiHead: heads", config.heads);
    kv_heads_ = config.kv_heads == 0 ? config.heads : config.kv_heads;
    check_positive("MultiHead: kv_heads", kv_heads_);
    check_divides("MultiHead: heads", kv_heads_, config.heads);
    const auto share = [&](Index width) {
      if (width == 0) check_divides("MultiHead: dim", config.heads, config.dim);
      return width == 0 ? config.dim / config.heads : width;
    };
    const Index head_dim = share(config.head_dim), value_head_dim = share(config.value_head_dim);
    const auto linear = [&](const char* what, Index input, Index columns) {
      if (input == 0) input = config.dim;
      check_positive(what, input);
      check_positive("MultiHead: columns of a head", columns);
      return nn::Linear<T>({.input = input, .output = columns, .bias = config.bias, .initializer = config.initializer},
                           rng);
    };
    query = linear("MultiHead: query_dim", config.query_dim, config.heads * head_dim);
    key = linear("MultiHead: key_dim", config.key_dim, kv_heads_ * head_dim);
    value = linear("MultiHead: value_dim", config.value_dim, kv_heads_ * value_head_dim);
    heads.assign(std::size_t(config.heads), inner);
    if (config.output) output = linear("MultiHead: heads", concat_dim(), config.dim);
  }

  /// The layer that computes what PyTorch's nn.MultiheadAttention with these tensors does in evaluation. Throws
  /// ConfigError, ShapeError where they do not fit together.
  [[nodiscard]] static MultiHead from_pytorch(const PyTorchMultiHead<T>& tensors, Index head_count,
                                              const Inner& inner = Inner()) {
    const bool together = tensors.q_proj_weight.empty();
    if (together == tensors.in_proj_weight.empty())
      throw_config_error("from_pytorch", "in_proj_weight, or q_proj_weight, k_proj_weight and v_proj_weight",
                         together ? 0 : 2);
    const Index dim = tensors.out_proj_weight.rows();
    if (together) detail::check_size("from_pytorch: in_proj_weight", tensors.in_proj_weight, 3 * dim, dim);
    const auto weight = [&](MatrixView<const T> apart, Index part) {
      return together ? tensors.in_proj_weight.rows(part * dim, dim) : apart;
    };
    const MatrixView<const T> q = weight(tensors.q_proj_weight, 0), k = weight(tensors.k_proj_weight, 1),
                              v = weight(tensors.v_proj_weight, 2);
    const bool bias = !tensors.in_proj_bias.empty();
    Rng unused(0);
    MultiHead result({.dim = dim,
                      .heads = head_count,
                      .key_dim = k.cols(),
                      .value_dim = v.cols(),
                      .bias = bias,
                      .initializer = nn::Initializer::zero},
                     unused, inner);
    copy<T>(q, result.query.weight.view());
    copy<T>(k, result.key.weight.view());
    copy<T>(v, result.value.weight.view());
    copy<T>(tensors.out_proj_weight, result.output.weight.view());
    check_shape("from_pytorch: in_proj_bias", bias ? 3 * dim : 0, Index(tensors.in_proj_bias.size()));
    check_shape("from_pytorch: out_proj_bias", bias ? dim : 0, Index(tensors.out_proj_bias.size()));
    for (Index i = 0; i < (bias ? dim : 0); ++i) {
      result.query.bias[i] = tensors.in_proj_bias[std::size_t(i)];
      result.key.bias[i] = tensors.in_proj_bias[std::size_t(dim + i)];
      result.value.bias[i] = tensors.in_proj_bias[std::size_t(2 * dim + i)];
      result.output.bias[i] = tensors.out_proj_bias[std::size_t(i)];
    }
    return result;
  }

  /// Head h of H = 1 … H gets slope 2^(−8h/H), as ALiBi has it (Press 2022).
  void set_alibi_slopes() requires requires(Inner& head) { head.score.alibi_slope = T(0); }
  {
    for (std::size_t h = 0; h < heads.size(); ++h)
      heads[h].score.alibi_slope = T(std::exp2(-8 * double(h + 1) / double(heads.size())));
  }

  /// Names the projections and the heads.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("query", self.query...);
    visit("key", self.key...);
    visit("value", self.value...);
    visit("output", self.output...);
    visit("heads", self.heads...);
  }

  /// Heads of keys and values.
  [[nodiscard]] Index kv_heads() const { return kv_heads_; }
  /// Columns of a head's queries and keys.
  [[nodiscard]] Index head_dim() const { return query.weight.rows() / Index(heads.size()); }
  /// Columns of a head's values.
  [[nodiscard]] Index value_head_dim() const { return value.weight.rows() / kv_heads_; }
  /// Columns of the output. Throws ShapeError unless values are as wide as W_v expects.
  [[nodiscard]] Index output_dim(Index value_dim) const {
    check_shape("MultiHead: columns of value", value.input_dim(), value_dim);
    return mixes() ? output.weight.rows() : concat_dim();
  }

  /// What `backward` needs of a forward pass; owned by the caller and reused.
  struct Saved {
    Matrix<T> query;                           ///< projected, [m × H·head_dim]
    Matrix<T> key;                             ///< projected, [n × kv_heads·head_dim]
    Matrix<T> value;                           ///< projected, [n × kv_heads·value_head_dim]
    Matrix<T> concat;                          ///< heads side by side, where W_o follows
    std::vector<typename Inner::Saved> heads;  ///< [H]
    Rng rng{0};                                ///< for dropout; seeded by the caller, and seeds the heads'
  };

  /// Keys and values projected, kv heads side by side, before a head sees them: heads that turn keys by their positions
  /// in a sequence count the rows that are there, also after `select`; give them coordinates instead.
  using Prepared = KeyValueCache<T>;

  /// Writes what is wanted of `out`; `log_sum_exp` only if there is one head. Wanted weights are averaged, which takes
  /// the heads one after the other. O((m + n) E² + m n E). Throws ShapeError and ConfigError before anything is
  /// written.
  template <Executor E = Serial>
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws,
               E&& executor = Serial{}) const {
    infer(in, out, ws, executor,
          [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
            heads[h].forward(head, to, own);
          });
  }
  /// The same with information for every head: coordinates, edges.
  template <class Side>
    requires AttentionWith<Inner, Side>
  void forward(const AttentionInput<T>& in, const Side& side, const AttentionOutput<T>& out, Workspace& ws) const {
    Serial serial;
    infer(in, out, ws, serial,
          [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
            heads[h].forward(head, side, to, own);
          });
  }

  /// The same in training: also keeps in `saved` what `backward` needs.
  template <Executor E = Serial>
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws,
               E&& executor = Serial{}) const {
    train(in, out, saved, ws, executor,
          [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
            heads[h].forward(head, to, saved.heads[h], own);
          });
  }
  /// The same with information for every head.
  template <class Side>
    requires AttentionWith<Inner, Side>
  void forward(const AttentionInput<T>& in, const Side& side, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    Serial serial;
    train(in, out, saved, ws, serial,
          [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
            heads[h].forward(head, side, to, saved.heads[h], own);
          });
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those by projections and heads to `grad`. Query, key
  /// and value of `d_in` may be one matrix, which self-attention adds up in. Groups of heads that share keys run at a
  /// time; all heads one after the other where the bias, which they share, wants its gradient. Throws ShapeError and
  /// ConfigError before anything is added.
  template <Executor E = Serial>
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, MultiHead& grad, Workspace& ws, E&& executor = Serial{}) const {
    const auto head_backward = [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutputGradient<T>& d_to,
                                   const AttentionGradient<T>& d_head, Workspace& own) {
      heads[h].backward(head, saved.heads[h], d_to, d_head, grad.heads[h], own);
    };
    Serial serial;
    if (d_in.bias.data() != nullptr)
      differentiate(in, saved, d_out, d_in, grad, ws, executor, serial, head_backward);
    else
      differentiate(in, saved, d_out, d_in, grad, ws, executor, executor, head_backward);
  }
  /// The same with information for every head, and its gradient.
  template <class Side>
    requires AttentionWith<Inner, Side>
  void backward(const AttentionInput<T>& in, const Side& side, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename Side::Gradient& d_side, MultiHead& grad, Workspace& ws) const {
    Serial serial;
    differentiate(in, saved, d_out, d_in, grad, ws, serial, serial,
                  [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutputGradient<T>& d_to,
                      const AttentionGradient<T>& d_head, Workspace& own) {
                    heads[h].backward(head, side, saved.heads[h], d_to, d_head, d_side, grad.heads[h], own);
                  });
  }

  /// Projects keys [n×key_dim] and values [n×value_dim] once for many calls. Throws ShapeError.
  void prepare(MatrixView<const T> keys, MatrixView<const T> values, Prepared& prepared, Workspace& ws) const {
    check_pairs(keys, values);
    prepared.clear(key.weight.rows(), value.weight.rows());
    append(keys, values, prepared, ws);
  }
  /// Adds keys and values behind those that are there. Throws ShapeError, and changes nothing.
  void append(MatrixView<const T> keys, MatrixView<const T> values, Prepared& prepared, Workspace& ws) const {
    check_pairs(keys, values);
    check_prepared(prepared);
    prepared.extend(keys.rows());
    key.forward(keys, prepared.new_key(keys.rows()), ws);
    value.forward(values, prepared.new_value(keys.rows()), ws);
  }
  /// `forward` over prepared keys, to the bit. Throws as it does.
  template <Executor E = Serial>
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out, Workspace& ws,
               E&& executor = Serial{}) const {
    look_up(in, prepared, out, ws, executor,
            [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
              heads[h].forward(head, to, own);
            });
  }
  /// The same with information for every head, about these queries and the prepared keys.
  template <class Side>
    requires AttentionWith<Inner, Side>
  void forward(const PreparedInput<T>& in, const Side& side, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    Serial serial;
    look_up(in, prepared, out, ws, serial,
            [&](std::size_t h, const AttentionInput<T>& head, const AttentionOutput<T>& to, Workspace& own) {
              heads[h].forward(head, side, to, own);
            });
  }

 private:
  static void check_positive(const char* what, Index size) {
    if (size < 1) throw_config_error(what, ">= 1", double(size));
  }
  static void check_divides(const char* what, Index divisor, Index size) {
    if (size % divisor != 0) throw_config_error(what, "a multiple of " + std::to_string(divisor), double(size));
  }
  // The front door.
  void check_widths(const AttentionInput<T>& in) const {
    check_shape("MultiHead: columns of query", query.input_dim(), in.query.cols());
    check_shape("MultiHead: columns of key", key.input_dim(), in.key.cols());
    check_shape("MultiHead: columns of value", value.input_dim(), in.value.cols());
  }
  void check(const AttentionInput<T>& in, const AttentionOutput<T>& out) const {
    check_rows(in);
    check_output(in, out, output_dim(value.input_dim()));
    if (!out.log_sum_exp.empty()) check_single_head();
  }
  void check_single_head() const {
    if (heads.size() != 1) throw_config_error("MultiHead: heads, for a log_sum_exp", "1", double(heads.size()));
  }
  void check_pairs(MatrixView<const T> keys, MatrixView<const T> values) const {
    check_shape("MultiHead: columns of key", key.input_dim(), keys.cols());
    check_shape("MultiHead: columns of value", value.input_dim(), values.cols());
    check_shape("MultiHead: rows of value", keys.rows(), values.rows());
  }
  void check_prepared(const Prepared& prepared) const {
    check_shape("MultiHead: columns of prepared keys", key.weight.rows(), prepared.key().cols());
    check_shape("MultiHead: columns of prepared values", value.weight.rows(), prepared.value().cols());
  }

  [[nodiscard]] bool mixes() const { return !output.weight.empty(); }
  // Columns of a head, and of all side by side.
  [[nodiscard]] Index head_output_dim() const { return heads.front().output_dim(value_head_dim()); }
  [[nodiscard]] Index concat_dim() const { return Index(heads.size()) * head_output_dim(); }

  // The columns of one head out of those of all, or nothing of what is not wanted.
  template <class U>
  [[nodiscard]] static MatrixView<U> part(MatrixView<U> rows, Index h, Index width) {
    return rows.cols() == 0 ? rows : rows.cols(h * width, width);
  }
  [[nodiscard]] Index group(Index h) const { return h / (Index(heads.size()) / kv_heads_); }
  [[nodiscard]] AttentionInput<T> head_input(const AttentionInput<T>& projected, Index h) const {
    return {.query = part(projected.query, h, head_dim()),
            .key = part(projected.key, group(h), head_dim()),
            .value = part(projected.value, group(h), value_head_dim()),
            .mask = projected.mask,
            .bias = projected.bias};
  }

  template <class E>
  [[nodiscard]] AttentionInput<T> project(const AttentionInput<T>& in, MatrixView<T> q, MatrixView<T> k,
                                          MatrixView<T> v, Workspace& ws, E& executor) const {
    query.forward(in.query, q, ws, executor);
    key.forward(in.key, k, ws, executor);
    value.forward(in.value, v, ws, executor);
    return {.query = q, .key = k, .value = v, .mask = in.mask, .bias = in.bias};
  }

  template <class E, class Forward>
  void infer(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws, E& executor,
             Forward&& head_forward) const {
    check_widths(in);
    check(in, out);
    const Index m = in.query.rows(), n = in.key.rows();
    auto frame = ws.frame();
    const MatrixView<T> q = frame.matrix<T>(m, query.weight.rows()), k = frame.matrix<T>(n, key.weight.rows()),
                        v = frame.matrix<T>(n, value.weight.rows());
    evaluate(project(in, q, k, v, ws, executor), out, ws, executor, head_forward);
  }
  template <class E, class Forward>
  void look_up(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out, Workspace& ws,
               E& executor, Forward&& head_forward) const {
    check_prepared(prepared);
    check_shape("MultiHead: columns of query", query.input_dim(), in.query.cols());
    AttentionInput<T> projected{
        .query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias};
    check(projected, out);
    auto frame = ws.frame();
    const MatrixView<T> rows = frame.matrix<T>(in.query.rows(), query.weight.rows());
    query.forward(in.query, rows, ws, executor);
    projected.query = rows;
    evaluate(projected, out, ws, executor, head_forward);
  }
  template <class E, class Forward>
  void evaluate(const AttentionInput<T>& projected, const AttentionOutput<T>& out, Workspace& ws, E& executor,
                Forward&& head_forward) const {
    auto frame = ws.frame();
    MatrixView<T> concat;
    if (mixes() && out.value.data() != nullptr) concat = frame.matrix<T>(out.value.rows(), concat_dim());
    run(projected, out, concat, ws, executor, head_forward);
  }

  template <class E, class Forward>
  void train(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws, E& executor,
             Forward&& head_forward) const {
    check_widths(in);
    check(in, out);
    const Index m = in.query.rows(), n = in.key.rows();
    set_shape(saved.query, m, query.weight.rows());
    set_shape(saved.key, n, key.weight.rows());
    set_shape(saved.value, n, value.weight.rows());
    set_shape(saved.concat, mixes() ? m : 0, concat_dim());
    saved.heads.resize(heads.size());
    if constexpr (requires(typename Inner::Saved & head) { head.rng; }) {
      const Rng pass(saved.rng.bits());
      for (std::size_t h = 0; h < heads.size(); ++h) saved.heads[h].rng = pass.split(h);
    }
    run(project(in, saved.query, saved.key, saved.value, ws, executor), out, saved.concat, ws, executor, head_forward);
  }

  // `concat`: where the heads go if W_o follows.
  template <class E, class Forward>
  void run(const AttentionInput<T>& projected, const AttentionOutput<T>& out, MatrixView<T> concat, Workspace& ws,
           E& executor, Forward&& head_forward) const {
    const AttentionOutput<T> to{.value = mixes() ? concat : out.value, .log_sum_exp = out.log_sum_exp};
    if (out.weights.data() != nullptr) {
      average_weights(projected, to, out.weights, ws, head_forward);
    } else {
      ws.reserve_workers(executor.concurrency());
      executor.parallel_for(Index(heads.size()), [&](Index h, Index worker) {
        run_head(projected, to, h, nn::detail::workspace_of(ws, executor, worker), head_forward);
      });
    }
    if (!mixes() || out.value.data() == nullptr) return;
    output.forward(concat, out.value, ws, executor);
    for (Index i = 0; i < concat.rows(); ++i)
      if (blind(projected, concat, i)) std::ranges::fill(out.value.row(i), T(0));
  }
  template <class Forward>
  void run_head(const AttentionInput<T>& projected, AttentionOutput<T> to, Index h, Workspace& ws,
                Forward&& head_forward) const {
    to.value = part(to.value, h, head_output_dim());
    head_forward(std::size_t(h), head_input(projected, h), to, ws);
  }
  // weights = Σ_h weights_h / H, summed in the order of the heads.
  template <class Forward>
  void average_weights(const AttentionInput<T>& projected, AttentionOutput<T> to, MatrixView<T> weights, Workspace& ws,
                       Forward&& head_forward) const {
    auto frame = ws.frame();
    to.weights = frame.matrix<T>(weights.rows(), weights.cols());
    const T share = T(1) / T(heads.size());
    for (Index h = 0; h < Index(heads.size()); ++h) {
      run_head(projected, to, h, ws, head_forward);
      for (Index i = 0; i < weights.rows(); ++i) {
        if (h == 0) std::ranges::fill(weights.row(i), T(0));
        simd::axpy(share, to.weights.row(i), weights.row(i));
      }
    }
  }

  // Whether query i sees no key. Its heads are 0 then, which they may also be by chance.
  [[nodiscard]] static bool blind(const AttentionInput<T>& in, MatrixView<const T> concat, Index i) {
    if (!zero(concat.row(i))) return false;
    const VisibleKeys visible = in.mask.visible(i, in.query.rows(), in.key.rows());
    for (Index j = 0; j < in.key.rows(); ++j) {
      const bool hidden =
          !visible.contains(j) || (in.mask.dense() && in.mask.allowed_row(i)[j] == 0) ||
          (!in.bias.empty() && in.bias(in.bias.rows() == 1 ? 0 : i, j) == -std::numeric_limits<T>::infinity());
      if (!hidden) return false;
    }
    return true;
  }
  [[nodiscard]] static bool zero(std::span<const T> row) {
    return std::ranges::all_of(row, [](T x) { return x == 0; });
  }

  template <class E, class HeadsExecutor, class Backward>
  void differentiate(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                     const AttentionGradient<T>& d_in, MultiHead& grad, Workspace& ws, E& executor,
                     HeadsExecutor& heads_executor, Backward&& head_backward) const {
    check_backward(in, saved, d_out, d_in, grad);
    const Index m = in.query.rows(), n = in.key.rows(), count = Index(heads.size());
    const AttentionInput<T> projected{
        .query = saved.query, .key = saved.key, .value = saved.value, .mask = in.mask, .bias = in.bias};
    auto frame = ws.frame();
    const auto zeros = [&frame](Index rows, Index cols) {
      const MatrixView<T> matrix = frame.matrix<T>(rows, cols);
      std::fill_n(matrix.data(), matrix.size(), T(0));
      return matrix;
    };
    MatrixView<const T> d_concat = d_out.value;
    if (mixes()) {
      const MatrixView<T> d_value = frame.matrix<T>(m, d_out.value.cols()), sum = zeros(m, concat_dim());
      copy<T>(d_out.value, d_value);
      for (Index i = 0; i < m; ++i)
        if (blind(projected, saved.concat, i)) std::ranges::fill(d_value.row(i), T(0));
      output.backward(saved.concat, d_value, sum, grad.output, ws, executor);
      d_concat = sum;
    }
    const MatrixView<T> d_query = zeros(m, query.weight.rows()), d_key = zeros(n, key.weight.rows()),
                        d_value = zeros(n, value.weight.rows());
    ws.reserve_workers(heads_executor.concurrency());
    heads_executor.parallel_for(kv_heads_, [&](Index g, Index worker) {
      const Index width = head_dim(), value_width = value_head_dim(), columns = head_output_dim();
      for (Index h = g * (count / kv_heads_); group(h) == g; ++h)
        head_backward(std::size_t(h), head_input(projected, h),
                      {.value = part(d_concat, h, columns), .log_sum_exp = d_out.log_sum_exp},
                      {.query = part(d_query, h, width),
                       .key = part(d_key, g, width),
                       .value = part(d_value, g, value_width),
                       .bias = d_in.bias},
                      nn::detail::workspace_of(ws, heads_executor, worker));
    });
    project_back(query, in.query, d_query, d_in.query, grad.query, ws, executor);
    project_back(key, in.key, d_key, d_in.key, grad.key, ws, executor);
    project_back(value, in.value, d_value, d_in.value, grad.value, ws, executor);
  }

  void check_backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                      const AttentionGradient<T>& d_in, const MultiHead& grad) const {
    check_widths(in);
    check(in, {});
    check_gradient(in, d_out, d_in, output_dim(in.value.cols()));
    check_same_parameters(*this, grad);
    if (!d_out.log_sum_exp.empty()) check_single_head();
    detail::check_size("MultiHead: saved query", saved.query.view(), in.query.rows(), query.weight.rows());
    detail::check_size("MultiHead: saved key", saved.key.view(), in.key.rows(), key.weight.rows());
    detail::check_size("MultiHead: saved value", saved.value.view(), in.key.rows(), value.weight.rows());
    detail::check_size("MultiHead: saved concat", saved.concat.view(), mixes() ? in.query.rows() : 0, concat_dim());
    check_shape("MultiHead: saved heads", Index(heads.size()), Index(saved.heads.size()));
  }

  // The gradient through a projection. A row whose gradient is 0 may be hidden and hold anything, NaN too, which must
  // not reach the weight: 0 · NaN.
  template <class E>
  static void project_back(const nn::Linear<T>& linear, MatrixView<const T> x, MatrixView<const T> d_y,
                           MatrixView<T> d_x, nn::Linear<T>& grad, Workspace& ws, E& executor) {
    auto frame = ws.frame();
    const MatrixView<T> rows = frame.matrix<T>(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      if (zero(d_y.row(i)))
        std::ranges::fill(rows.row(i), T(0));
      else
        std::ranges::copy(x.row(i), rows.row(i).begin());
    }
    linear.backward(rows, d_y, d_x, grad, ws, executor);
  }

  Index kv_heads_ = 1;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
