// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/feature_maps.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

// The order of every sum over keys. Keys are cut into chunks of 64 by absolute index. A query that sees the first e
// keys gets those of the ⌊e/64⌋ complete chunks from their sums S = Σ φ(k) vᵀ and z = Σ φ(k) (chunks in order within
// leaves of 4096, leaves in the fixed tree of core/ordered_sum.hpp), and the e mod 64 keys behind them one by one, as
// weights. So it makes no difference whether the keys come all at once or one after the other.

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// Keys that are summed together.
inline constexpr Index linear_chunk = 64;
/// Queries worked on at a time.
inline constexpr Index linear_rows = 128;

/// e^(x−top), where −∞ − −∞ counts as 0.
template <Real T>
[[nodiscard]] T exp_difference(T x, T top) {
  return x == top ? T(1) : simd::reduce_max(simd::exp(simd::Batch<T>(x - top)));
}

/// Σ over some keys, times e^−reference: with Products = MatrixView and Features = std::span in scratch memory.
template <Real T, class Products = MatrixView<T>, class Features = std::span<T>>
struct FeatureSum {
  T reference = -std::numeric_limits<T>::infinity();  ///< μ, the largest log scale among the keys
  Products products = {};                             ///< S = Σ φ(k) vᵀ [M×v]
  Features features = {};                             ///< z = Σ φ(k) [M]

  /// Multiplies the sums.
  void rescale(T factor) {
    if (factor == T(1)) return;
    simd::scale(factor, products.data(), products.size());
    simd::scale(factor, features.data(), Index(features.size()));
  }
};

/// Sums that own their memory.
template <Real T>
using OwnFeatureSum = FeatureSum<T, Matrix<T>, Vector<T>>;

/// How such sums are added; `allocate(sum)` gives a new one its memory.
template <class Allocate>
struct FeatureSumMonoid {
  Allocate allocate;

  template <class Sum>
  void clear(Sum& sum) const {
    if (sum.products.data() == nullptr && sum.features.data() == nullptr) allocate(sum);
    using T = std::remove_cvref_t<decltype(sum.reference)>;
    sum.reference = -std::numeric_limits<T>::infinity();
    std::fill_n(sum.products.data(), sum.products.size(), T(0));
    std::fill_n(sum.features.data(), sum.features.size(), T(0));
  }
  template <class Sum>
  void merge(Sum& left, const Sum& right) const {
    const auto top = std::max(left.reference, right.reference);
    const auto its = exp_difference(right.reference, top);
    left.rescale(exp_difference(left.reference, top));
    simd::axpy(its, right.products.data(), left.products.data(), right.products.size());
    simd::axpy(its, right.features.data(), left.features.data(), Index(right.features.size()));
    left.reference = top;
  }
};

/// Memory of a workspace frame, or of its own.
///@{
template <Real T>
struct FrameSums {
  Workspace::Frame* frame;
  Index features, value_dim;
  void operator()(FeatureSum<T>& sum) const {
    sum.products = frame->matrix<T>(features, value_dim);
    sum.features = frame->span<T>(features);
  }
};
template <Real T>
struct OwnSums {
  Index features, value_dim;
  void operator()(OwnFeatureSum<T>& sum) const {
    Matrix<T> products(features, value_dim);  // both or neither, should memory run out
    sum.features = Vector<T>(features);
    sum.products = std::move(products);
  }
};
///@}

/// Up to 64 keys that follow each other.
template <Real T>
struct KeyFeatures {
  MatrixView<T> phi;             ///< φ(k) times e^−log_scale [c×M]; zeros where hidden
  MatrixView<const T> value;     ///< [c×v]; zeros where hidden
  std::span<const T> log_scale;  ///< [64]; −∞ where hidden, and from c on
};

/// log_scale of hidden and absent keys.
template <Real T>
inline constexpr T hidden_scale = -std::numeric_limits<T>::infinity();

/// sum += the keys. Brings keys.phi to the scale of the sum.
template <Real T, class Sum>
void add_keys(Sum& sum, const KeyFeatures<T>& keys, Workspace& ws) {
  T top = sum.reference;  // NaN does not count: it spoils sums by itself
  for (Index j = 0; j < keys.phi.rows(); ++j) top = std::max(top, keys.log_scale[std::size_t(j)]);
  sum.rescale(exp_difference(sum.reference, top));
  sum.reference = top;
  for (Index j = 0; j < keys.phi.rows(); ++j) {
    const T factor = exp_difference(keys.log_scale[std::size_t(j)], top);
    if (factor != T(1)) simd::scale(factor, keys.phi.row(j));
    simd::axpy(T(1), keys.phi.row(j).data(), sum.features.data(), keys.phi.cols());
  }
  const MatrixView<T> products(sum.products.data(), keys.phi.cols(), keys.value.cols());
  simd::gemm_left_transposed<T>(keys.phi, keys.value, products, ws, simd::Product::accumulate);
}

/// references[t] = the largest log scale among those summed and the first t keys: [65].
template <Real T>
[[nodiscard]] std::array<T, linear_chunk + 1> running_references(T summed, std::span<const T> log_scale) {
  std::array<T, linear_chunk + 1> references;
  references[0] = summed;
  for (std::size_t j = 0; j < std::size_t(linear_chunk); ++j) references[j + 1] = std::max(references[j], log_scale[j]);
  return references;
}

/// row ← row ∘ e^(log_scale − reference) for the first `seen` of 64 keys, 0 for the others.
template <Real T>
void scale_seen(std::span<T> row, std::span<const T> log_scale, T reference, Index seen) {
  using B = simd::Batch<T>;
  for (Index j = 0; j < linear_chunk; j += simd::lanes<T>) {
    T* p = row.data() + j;
    if (seen <= j) {
      simd::store(p, B(T(0)));
      continue;
    }
    const B scale = simd::load(log_scale.data() + j), top(reference);
    const B factor = simd::select(scale == top, B(T(1)), simd::exp(scale - top));
    const B product = simd::select(scale == B(hidden_scale<T>), B(T(0)), simd::load(p) * factor);
    simd::store(p, simd::select(simd::first_lanes<T>(seen - j), product, B(T(0))));
  }
}

/// c (+)= a b, where row i of a is 0 from seen(i) on and b may hold what is not finite: it reaches only rows that see
/// it.
template <Real T, class Seen>
void add_seen(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> c, Workspace& ws, Seen&& seen) {
  bool finite = true;
  for (Index j = 0; j < b.rows() && finite; ++j) {
    const std::span<const T> row = b.row(j);
    finite = std::ranges::all_of(row, [](T x) { return std::abs(x) <= std::numeric_limits<T>::max(); });
  }
  if (finite) return simd::gemm<T>(a.cols(0, b.rows()), b, c, ws, simd::Product::accumulate);
  for (Index i = 0; i < a.rows(); ++i)
    simd::gemm<T>(a.rows(i, 1).cols(0, seen(i)), b.rows(0, seen(i)), c.rows(i, 1), ws, simd::Product::accumulate);
}

/// What queries with features phi [r×M] see: the sum of complete chunks, and the first seen(i) keys of the chunk
/// behind them.
///
///     reference = μ_i,   numerator = Σ_j w_ij v_j [r×v],   denominator = Σ_j w_ij [r],   w_ij = φ(q_i)·φ(k_j) e^−μ_i
///
/// `weights` [r×64] is scratch.
template <Real T, class Sum, class Seen>
void sum_seen(MatrixView<const T> phi, const Sum& summed, const KeyFeatures<T>& keys, Seen&& seen,
              MatrixView<T> weights, MatrixView<T> numerator, std::span<T> reference, std::span<T> denominator,
              Workspace& ws) {
  const MatrixView<const T> products(summed.products.data(), phi.cols(), numerator.cols());
  const auto references = running_references(summed.reference, keys.log_scale);
  simd::gemm<T>(phi, products, numerator, ws);
  simd::gemm_transposed<T>(phi, keys.phi, weights.cols(0, keys.phi.rows()), ws);
  for (Index i = 0; i < phi.rows(); ++i) {
    const T top = references[std::size_t(seen(i))], factor = exp_difference(summed.reference, top);
    scale_seen(weights.row(i), keys.log_scale, top, seen(i));
    if (factor != T(1)) simd::scale(factor, numerator.row(i));
    const T dot = simd::dot(phi.row(i).data(), summed.features.data(), phi.cols());
    reference[std::size_t(i)] = top;
    denominator[std::size_t(i)] = std::fma(factor, dot, simd::sum<T>(weights.row(i)));
  }
  add_seen<T>(weights, keys.value, numerator, ws, seen);
}

/// The map of keys whose features were computed before: rows are [φ | log scale].
struct PreparedFeatures {
  /// M
  [[nodiscard]] Index output_dim(Index columns) const { return columns - 1; }
  template <Real T>
  void forward(MatrixView<const T> x, MatrixView<T> phi, std::span<T> log_scale, Workspace&) const {
    copy<T>(x.cols(0, phi.cols()), phi);
    for (Index j = 0; j < x.rows(); ++j) log_scale[std::size_t(j)] = x(j, phi.cols());
  }
};

/// out = numerator/(denominator + ε), 0 where nothing was seen. (+ 0: absent keys must not turn −0 into 0.)
template <Real T>
void divide_row(std::span<const T> numerator, T denominator, T epsilon, std::span<T> out) {
  const T sum = denominator + epsilon;
  for (std::size_t c = 0; c < out.size(); ++c) out[c] = sum == T(0) ? T(0) : (numerator[c] + T(0)) / sum;
}

/// Which keys the queries of a call see: the first ones, but for hidden ones, and query by query not fewer.
struct PrefixRows {
  Index rows;      ///< m
  Index keys;      ///< that exist
  Index position;  ///< of query 0
  bool causal;     ///< query i sees as many keys as its position says; else all
  Index sighted;   ///< the first query that sees a key
  Index seen;      ///< keys that the last query sees, hidden ones counted

  PrefixRows(const Mask& mask, Index m, Index n)
      : rows(m), keys(mask.keys(n)), position(mask.position(0, m, n)), causal(mask.causal) {
    Index first = 0;  // the first key that is not hidden
    while (mask.dense() && first < keys && mask.allowed_row(0)[first] == 0) ++first;
    sighted = first >= keys ? m : causal ? std::clamp(first - position, Index(0), m) : 0;
    seen = sighted == m ? 0 : end(m - 1);
  }

  /// Query i sees keys 0 … end(i)−1, hidden ones apart.
  [[nodiscard]] Index end(Index i) const { return causal ? std::clamp(position + i + 1, Index(0), keys) : keys; }
  /// Chunks of keys, of which the last one may be empty.
  [[nodiscard]] Index chunks() const { return seen / linear_chunk + 1; }
  /// The first query for which all chunks before this one are complete. Its keys end in this chunk, or later.
  [[nodiscard]] Index first_row(Index chunk) const {
    if (chunk == chunks()) return rows;
    return std::max(sighted, causal ? std::clamp(chunk * linear_chunk - 1 - position, Index(0), rows) : 0);
  }
  /// Keys of this chunk.
  [[nodiscard]] Index chunk_keys(Index chunk) const { return std::min(linear_chunk, seen - chunk * linear_chunk); }
};

}  // namespace detail

/// The sums that linear attention keeps of its keys: O(M v) numbers, whatever the number of keys. Shards and threads
/// sum their own keys; `merge` unites them, in any order with the same bits. `LinearAttention::append` adds keys.
template <Real T>
class LinearAttentionState {
 public:
  /// No keys yet, for keys `first`, first+1, … with this many features (`map.output_dim`) and values of this width.
  /// Sums are made in leaves of `leaf` keys. Throws ConfigError unless leaf is a multiple of 64 and first one of leaf.
  LinearAttentionState(Index features, Index value_dim, Index first = 0, Index leaf = key_leaf)
      : sum_(Monoid{{features, value_dim}}, leaf),
        phi_(detail::linear_chunk, features),
        value_(detail::linear_chunk, value_dim),
        log_scale_(detail::linear_chunk, detail::hidden_scale<T>),
        next_(first) {
    if (leaf % detail::linear_chunk != 0) [[unlikely]]
      throw_config_error("LinearAttentionState: leaf", "a multiple of 64", double(leaf));
    if (first < 0 || first % leaf != 0) [[unlikely]]
      throw_config_error("LinearAttentionState: first key", "a multiple of the leaf", double(first));
    sum_.total(total_);
  }

  /// M, features of a key.
  [[nodiscard]] Index features() const { return phi_.cols(); }
  /// v, columns of a value.
  [[nodiscard]] Index value_dim() const { return value_.cols(); }
  /// The number of the key that is added next.
  [[nodiscard]] Index next() const { return next_; }

  /// Adds the keys of another state, which goes on where the one with an incomplete leaf would, or the later one.
  /// Throws ShapeError for other sizes, ConfigError if a key may be in both or both have an incomplete leaf: then
  /// nothing has changed. O(M v log n).
  void merge(const LinearAttentionState& other) {
    check_shape("LinearAttentionState: features", features(), other.features());
    check_shape("LinearAttentionState: columns of value", value_dim(), other.value_dim());
    const bool its_end = other.sum_.open_end() != 0 || (sum_.open_end() == 0 && other.next_ > next_);
    sum_.merge(other.sum_);
    if (its_end) {
      phi_ = other.phi_;
      value_ = other.value_;
      log_scale_ = other.log_scale_;
      next_ = other.next_;
    }
    sum_.total(total_);
  }

 private:
  template <nn::FeatureMap>
  friend class LinearAttention;
  using Monoid = detail::FeatureSumMonoid<detail::OwnSums<T>>;
  using Sum = detail::OwnFeatureSum<T>;

  // The keys behind the complete chunks, φ included.
  [[nodiscard]] Index pending() const { return next_ % detail::linear_chunk; }

  // Keys next … next+count−1 of one chunk, whose rows of phi_, value_ and log_scale_ are written.
  [[nodiscard]] bool add(Index count, Workspace& ws) {
    const Index end = next_ + count;
    const bool complete = end % detail::linear_chunk == 0;
    sum_.add(next_, end, [&](Sum& sum, Index, Index) {
      if (complete) detail::add_keys<T>(sum, {phi_, value_, log_scale_.span()}, ws);
    });
    if (complete) std::ranges::fill(log_scale_, detail::hidden_scale<T>);
    next_ = end;
    return complete;
  }

  OrderedSum<Sum, Monoid> sum_;  // complete chunks, and
  Sum total_;                    // all of it
  Matrix<T> phi_, value_;        // [64×M], [64×v]: the chunk that is being filled
  Vector<T> log_scale_;          // [64]
  Index next_;
};

/// Attention whose weights are inner products of features, so that keys are summed once instead of being compared with
/// every query:
///
///     o_i = φ(q_i)ᵀ S / (φ(q_i)ᵀ z + ε),   S = Σ_j φ(k_j) v_jᵀ [M×v],   z = Σ_j φ(k_j) [M],
///
/// over the keys that query i sees: O((m + n) M v) time, causal or not. Expect it to be poor at picking single keys.
/// Sources: Katharopoulos et al. 2020, eq. 5–12; Choromanski et al. 2021.
///
/// Masks: causal, key_length, first_position, and `allowed` [1×n]. Windows, bytes for each query, and bias are a
/// ConfigError: no sum over all keys can express them.
///
/// Where the map factors a scale out of its features (FavorPlus), the scales of the keys that a query sees are
/// measured from the largest, μ_i, as softmax does, so nothing overflows and a hidden key is an absent one. ε is
/// measured on the same scale, and the gradient takes that scale for a constant, which is off by a relative
/// ε/(denominator); with ε = 0 the gradient is exact.
template <nn::FeatureMap Map = nn::EluPlusOne<float>>
class LinearAttention {
 public:
  using Scalar = ScalarOf<Map>;  ///< what it computes in
  using T = Scalar;              ///< short

  Map map;              ///< φ
  T epsilon = T(1e-6);  ///< ε

  /// What `backward` needs of a forward pass: m (v + 2) numbers, owned by the caller and reused.
  struct Saved {
    Vector<T> reference;    ///< [m], μ
    Vector<T> denominator;  ///< [m], without ε
    Matrix<T> value;        ///< [m×v], the output

    /// Keeps the memory where the sizes are the same.
    void resize(Index m, Index value_dim) {
      set_shape(reference, m);
      set_shape(denominator, m);
      set_shape(value, m, value_dim);
    }
  };

  /// Columns of the output for values of this width.
  [[nodiscard]] Index output_dim(Index value_dim) const { return value_dim; }

  /// Writes what is wanted of `out`; log_sum_exp is log Σ_j φ(q_i)·φ(k_j), without ε; weights are
  /// φ(q_i)·φ(k_j)/(φ(q_i)·z + ε) and cost O(m n M). Throws ShapeError and ConfigError before anything is written.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    check(in);
    check_output(in, out, output_dim(in.value.cols()));
    infer(in, map, out, ws);
  }

  /// The same in training: also keeps in `saved` what `backward` needs.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    check(in);
    check_output(in, out, output_dim(in.value.cols()));
    saved.resize(in.query.rows(), output_dim(in.value.cols()));
    run(in, map, out, saved.value, saved.reference.span(), saved.denominator.span(), ws);
  }

  /// Adds the gradients by query, key and value to `d_in`, those by the map's parameters to `grad`. With g = G/(den +
  /// ε) and e = −g·o + d_lse/den, row by row:
  ///
  ///     d_φ(q_i) = S g_i + e_i z                         S, z over the keys that query i sees: prefix sums
  ///     d_φ(k_j) = S̄ v_j + z̄,   d_v_j = S̄ᵀ φ(k_j)        S̄ = Σ φ(q_i) g_iᵀ, z̄ = Σ e_i φ(q_i) over the queries that see
  ///                                                      key j: suffix sums
  ///
  /// The sums are made again, chunk by chunk, rather than stored; those of the map's parameters in the order of the
  /// chunks. O((m + n) M v). Throws ShapeError and ConfigError before anything is added.
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, LinearAttention& grad, Workspace& ws) const {
    check(in);
    check_gradient(in, d_out, d_in, output_dim(in.value.cols()));
    detail::check_size("LinearAttention: saved output", saved.value.view(), in.query.rows(), in.value.cols());
    auto frame = ws.frame();
    const Index m = in.query.rows();
    const Upstream upstream{frame.template matrix<T>(m, in.value.cols()), frame.template span<T>(m),
                            saved.reference.span()};
    differentiate_quotient(saved, d_out, upstream);
    if (d_in.query.data() != nullptr || parameter_count(map) > 0) add_query_gradient(in, upstream, d_in, grad, ws);
    if (d_in.key.data() != nullptr || d_in.value.data() != nullptr || parameter_count(map) > 0)
      add_key_gradient(in, upstream, d_in, grad, ws);
  }

  /// scores [m×n] = log φ(q_i)·φ(k_j), −∞ where masked. O(m n M). Throws ShapeError and ConfigError.
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    check(in);
    detail::check_size("attention: scores", scores, in.query.rows(), in.key.rows());
    for_each_pair(in, map, scores, detail::hidden_scale<T>, ws,
                  [](std::span<T> row, std::span<const T> log_scale, Index, T query_scale) {
                    simd::log<T>(row, row);
                    for (std::size_t j = 0; j < row.size(); ++j) row[j] += log_scale[j] + query_scale;
                  });
  }

  /// An empty state for this map: keys of width `key_dim`, from key `first` on.
  [[nodiscard]] LinearAttentionState<T> state(Index key_dim, Index value_dim, Index first = 0,
                                              Index leaf = key_leaf) const {
    return LinearAttentionState<T>(map.output_dim(key_dim), value_dim, first, leaf);
  }

  /// Adds keys [c×d] and values [c×v] behind those of a state. O(c M v). Throws ShapeError, and ConfigError where the
  /// state meets a leaf that another one brought in: then it is of no more use.
  void append(MatrixView<const T> key, MatrixView<const T> value, LinearAttentionState<T>& state, Workspace& ws) const {
    check_shape("LinearAttention: features of the state", map.output_dim(key.cols()), state.features());
    check_shape("LinearAttention: rows of value", key.rows(), value.rows());
    check_shape("LinearAttention: columns of value", state.value_dim(), value.cols());
    bool complete = false;
    for (Index j = 0, count; j < key.rows(); j += count) {
      const Index at = state.pending();
      count = std::min(detail::linear_chunk - at, key.rows() - j);
      map.forward(key.rows(j, count), state.phi_.view().rows(at, count),
                  state.log_scale_.span().subspan(std::size_t(at), std::size_t(count)), ws);
      copy<T>(value.rows(j, count), state.value_.view().rows(at, count));
      complete = state.add(count, ws) || complete;
    }
    if (complete) state.sum_.total(state.total_);
  }

  /// Queries [m×d] that see all keys of a state. `out.weights` cannot be had: the keys are gone. The same bits as
  /// `forward` over these keys. O(m M v). Throws ShapeError and ConfigError.
  void forward(MatrixView<const T> query, const LinearAttentionState<T>& state, const AttentionOutput<T>& out,
               Workspace& ws) const {
    const Index m = query.rows(), v = state.value_dim();
    check_shape("LinearAttention: features of the state", map.output_dim(query.cols()), state.features());
    if (out.value.data() != nullptr) detail::check_size("attention: output value", out.value, m, v);
    if (!out.log_sum_exp.empty()) check_shape("attention: output log_sum_exp", m, Index(out.log_sum_exp.size()));
    if (out.weights.data() != nullptr) [[unlikely]]
      throw_config_error("LinearAttention: rows of weights over a state", "0", double(out.weights.rows()));
    auto frame = ws.frame();
    const Block block(frame, state.features(), v);
    const auto reference = frame.template span<T>(m), denominator = frame.template span<T>(m);
    const Index pending = state.pending();
    // phi is only read: the chunk is not added to a sum.
    const detail::KeyFeatures<T> keys{{const_cast<T*>(state.phi_.data()), pending, state.features()},
                                      state.value_.view().rows(0, pending),
                                      state.log_scale_.span()};
    for (Index i = 0; i < m; i += detail::linear_rows)
      answer(
          query, i, std::min(detail::linear_rows, m - i), state.total_, keys, [&](Index) { return pending; }, block,
          out, {}, reference, denominator, ws);
  }

  /// Appends one key [1×d] and value [1×v], and answers one query [1×d] that sees them and all before: a step of
  /// recurrent decoding, O(M v). The same bits as that row of a causal `forward` over all keys.
  void step(MatrixView<const T> query, MatrixView<const T> key, MatrixView<const T> value,
            LinearAttentionState<T>& state, const AttentionOutput<T>& out, Workspace& ws) const {
    append(key, value, state, ws);
    forward(query, state, out, ws);
  }

  /// Features of keys [φ | log scale], and values.
  using Prepared = KeyValueCache<T>;

  /// Computes the features of keys [n×d] once for many calls: O(n d M) less for each. Where the queries see all keys
  /// that there are, a state does more. Throws ShapeError.
  void prepare(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    prepared.clear(map.output_dim(key.cols()) + 1, value.cols());
    append(key, value, prepared, ws);
  }
  /// Adds keys and values behind those that are there. Throws ShapeError, and changes nothing.
  void append(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    const Index features = map.output_dim(key.cols()), n = key.rows();
    check_shape("LinearAttention: columns of prepared keys", features + 1, prepared.key().cols());
    check_shape("LinearAttention: columns of prepared values", prepared.value().cols(), value.cols());
    check_shape("LinearAttention: rows of value", n, value.rows());
    auto frame = ws.frame();
    const auto log_scale = frame.template span<T>(n);
    prepared.extend(n);
    map.forward(key, prepared.new_key(n).cols(0, features), log_scale, ws);
    for (Index j = 0; j < n; ++j) prepared.new_key(n)(j, features) = log_scale[std::size_t(j)];
    copy<T>(value, prepared.new_value(n));
  }
  /// `forward` over prepared keys, to the bit. Throws as it does.
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    check_shape("LinearAttention: columns of prepared keys", map.output_dim(in.query.cols()) + 1,
                prepared.key().cols());
    const AttentionInput<T> all{
        .query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias};
    check_rows(all);
    check_rules(all);
    check_output(all, out, output_dim(all.value.cols()));
    infer(all, detail::PreparedFeatures{}, out, ws);
  }

  /// Names the map's parameters.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("map", self.map...);
  }

 private:
  using Sum = detail::FeatureSum<T>;
  using Monoid = detail::FeatureSumMonoid<detail::FrameSums<T>>;
  using Keys = detail::KeyFeatures<T>;
  using Rows = detail::PrefixRows;
  static constexpr Index chunk_size = detail::linear_chunk;

  // Scratch for a block of queries.
  struct Block {
    MatrixView<T> phi, weights, value;
    std::span<T> log_scale;

    Block(Workspace::Frame& frame, Index features, Index value_dim)
        : phi(frame.matrix<T>(detail::linear_rows, features)),
          weights(frame.matrix<T>(detail::linear_rows, chunk_size)),
          value(frame.matrix<T>(detail::linear_rows, value_dim)),
          log_scale(frame.span<T>(detail::linear_rows)) {}
  };

  // Scratch for a chunk of keys.
  struct Chunk {
    MatrixView<T> phi, key, value;
    std::span<T> log_scale;

    Chunk(Workspace::Frame& frame, Index features, const AttentionInput<T>& in)
        : phi(frame.matrix<T>(chunk_size, features)),
          key(frame.matrix<T>(chunk_size, in.key.cols())),
          value(frame.matrix<T>(chunk_size, in.value.cols())),
          log_scale(frame.span<T>(chunk_size)) {}
  };

  // A chunk that was read; where keys are hidden, key and value are copies with zeros in their place.
  struct ReadChunk {
    MatrixView<const T> key;
    Keys keys;
  };

  // Gradients by numerators and denominators.
  struct Upstream {
    MatrixView<T> value;           // g = G/den [m×v]
    std::span<T> sum;              // e [m]
    std::span<const T> reference;  // μ [m]
  };

  void check(const AttentionInput<T>& in) const {
    check_input(in);
    (void)map.output_dim(in.query.cols());
    check_rules(in);
  }
  static void check_rules(const AttentionInput<T>& in) {
    constexpr std::string_view unlimited = "unlimited: sums over all keys cannot express windows";
    if (in.mask.window_left != Mask::unlimited)
      throw_config_error("LinearAttention: window_left", unlimited, double(in.mask.window_left));
    if (in.mask.window_right != Mask::unlimited)
      throw_config_error("LinearAttention: window_right", unlimited, double(in.mask.window_right));
    if (in.mask.dense() && in.mask.allowed.rows() != 1)
      throw_config_error("LinearAttention: rows of allowed",
                         "1: sums over all keys cannot express a mask for each query", double(in.mask.allowed.rows()));
    if (in.bias.rows() != 0 || in.bias.cols() != 0)
      throw_config_error("LinearAttention: rows of bias", "0: sums over all keys cannot express a bias",
                         double(in.bias.rows()));
  }

  // `key_map` is the map, or PreparedFeatures.
  template <class KeyMap>
  [[nodiscard]] static ReadChunk read_chunk(const AttentionInput<T>& in, const KeyMap& key_map, const Rows& rows,
                                            Index number, const Chunk& scratch, Workspace& ws) {
    const Index first = number * chunk_size, count = rows.chunk_keys(number);
    const auto hidden = [&](Index j) { return in.mask.dense() && in.mask.allowed_row(0)[first + j] == 0; };
    ReadChunk chunk{in.key.rows(first, count), {scratch.phi.rows(0, count), in.value.rows(first, count), {}}};
    if (in.mask.dense()) {
      const auto copy_seen = [&](MatrixView<const T>& from, MatrixView<T> to) {
        for (Index j = 0; j < count; ++j) {
          if (hidden(j))
            std::ranges::fill(to.row(j), T(0));
          else
            std::ranges::copy(from.row(j), to.row(j).begin());
        }
        from = to.rows(0, count);
      };
      copy_seen(chunk.key, scratch.key);
      copy_seen(chunk.keys.value, scratch.value);
    }
    std::ranges::fill(scratch.log_scale, detail::hidden_scale<T>);
    key_map.forward(chunk.key, chunk.keys.phi, scratch.log_scale.first(std::size_t(count)), ws);
    for (Index j = 0; j < count; ++j) {
      if (!hidden(j)) continue;
      std::ranges::fill(chunk.keys.phi.row(j), T(0));
      scratch.log_scale[std::size_t(j)] = detail::hidden_scale<T>;
    }
    chunk.keys.log_scale = scratch.log_scale;
    return chunk;
  }

  // Calls body(number, chunk, sum of the chunks before) for every chunk, in order; the sum is there only if queries
  // end in the chunk. The body may not change the chunk.
  template <class KeyMap, class Body>
  static void for_each_prefix(const AttentionInput<T>& in, const KeyMap& key_map, const Rows& rows, Workspace& ws,
                              Body&& body) {
    auto frame = ws.frame();
    const Index features = key_map.output_dim(in.key.cols());
    const Chunk scratch(frame, features, in);
    std::array<OrderedSumSlot<Sum>, 132> slots{};  // enough for 2^63 keys
    OrderedSum<Sum, Monoid, std::span<OrderedSumSlot<Sum>>> sum(Monoid{{&frame, features, in.value.cols()}}, key_leaf,
                                                                slots);
    Sum total;
    for (Index number = 0; number < rows.chunks(); ++number) {
      const ReadChunk chunk = read_chunk(in, key_map, rows, number, scratch, ws);
      if (rows.first_row(number) < rows.first_row(number + 1)) {
        sum.total(total);
        body(number, chunk, total);
      }
      if (chunk.key.rows() == chunk_size)
        sum.add(number * chunk_size, (number + 1) * chunk_size,
                [&](Sum& state, Index, Index) { detail::add_keys<T>(state, chunk.keys, ws); });
    }
  }

  // Calls body(first, count, seen) for the queries whose keys end in a chunk, block by block; query first + i sees the
  // first seen(i) keys of the chunk.
  template <class Body>
  static void for_each_block(const Rows& rows, Index number, Body&& body) {
    const Index end = rows.first_row(number + 1);
    for (Index i = rows.first_row(number); i < end; i += detail::linear_rows)
      body(i, std::min(detail::linear_rows, end - i),
           [&rows, i, number](Index r) { return rows.end(i + r) - number * chunk_size; });
  }

  template <class KeyMap>
  void infer(const AttentionInput<T>& in, const KeyMap& key_map, const AttentionOutput<T>& out, Workspace& ws) const {
    auto frame = ws.frame();
    const Index m = in.query.rows();
    run(in, key_map, out, {}, frame.template span<T>(m), frame.template span<T>(m), ws);
  }

  template <class KeyMap>
  void run(const AttentionInput<T>& in, const KeyMap& key_map, const AttentionOutput<T>& out, MatrixView<T> saved_value,
           std::span<T> reference, std::span<T> denominator, Workspace& ws) const {
    const Rows rows(in.mask, in.query.rows(), in.key.rows());
    write_blind(rows, out, saved_value, reference, denominator);
    if (rows.sighted == rows.rows) return;
    auto frame = ws.frame();
    const Block block(frame, key_map.output_dim(in.key.cols()), in.value.cols());
    for_each_prefix(in, key_map, rows, ws, [&](Index number, const ReadChunk& chunk, const Sum& sum) {
      for_each_block(rows, number, [&](Index first, Index count, auto seen) {
        answer(in.query, first, count, sum, chunk.keys, seen, block, out, saved_value, reference, denominator, ws);
      });
    });
    if (out.weights.data() != nullptr) write_weights(in, key_map, out.weights, reference, denominator, ws);
  }

  static void write_blind(const Rows& rows, const AttentionOutput<T>& out, MatrixView<T> saved_value,
                          std::span<T> reference, std::span<T> denominator) {
    for (Index i = 0; i < rows.sighted; ++i) {
      if (out.value.data() != nullptr) std::ranges::fill(out.value.row(i), T(0));
      if (!out.log_sum_exp.empty()) out.log_sum_exp[std::size_t(i)] = -std::numeric_limits<T>::infinity();
      if (out.weights.data() != nullptr) std::ranges::fill(out.weights.row(i), T(0));
      if (saved_value.data() != nullptr) std::ranges::fill(saved_value.row(i), T(0));
      reference[std::size_t(i)] = denominator[std::size_t(i)] = T(0);
    }
  }

  // Queries first … first+count−1.
  template <class AnySum, class Seen>
  void answer(MatrixView<const T> query, Index first, Index count, const AnySum& sum, const Keys& keys, Seen&& seen,
              const Block& block, const AttentionOutput<T>& out, MatrixView<T> saved_value, std::span<T> reference,
              std::span<T> denominator, Workspace& ws) const {
    const MatrixView<T> phi = block.phi.rows(0, count), value = block.value.rows(0, count);
    const std::span<T> den = denominator.subspan(std::size_t(first), std::size_t(count)),
                       top = reference.subspan(std::size_t(first), std::size_t(count));
    map.forward(query.rows(first, count), phi, block.log_scale.first(std::size_t(count)), ws);
    detail::sum_seen<T>(phi, sum, keys, seen, block.weights.rows(0, count), value, top, den, ws);
    for (Index r = 0; r < count; ++r) {
      const std::size_t at = std::size_t(r);
      if (!out.log_sum_exp.empty())
        out.log_sum_exp[std::size_t(first + r)] = std::log(den[at]) + top[at] + block.log_scale[at];
      if (out.value.data() != nullptr) detail::divide_row<T>(value.row(r), den[at], epsilon, out.value.row(first + r));
      if (saved_value.data() != nullptr)
        detail::divide_row<T>(value.row(r), den[at], epsilon, saved_value.row(first + r));
    }
  }

  // matrix(i, j) = φ(q_i)·φ(k_j), without scales, for the keys that query i sees, else `hidden`; then
  // body(row of seen keys of a chunk, log scales of the keys, i, log scale of the query).
  template <class KeyMap, class Body>
  void for_each_pair(const AttentionInput<T>& in, const KeyMap& key_map, MatrixView<T> matrix, T hidden, Workspace& ws,
                     Body&& body) const {
    const Rows rows(in.mask, in.query.rows(), in.key.rows());
    auto frame = ws.frame();
    const Index features = key_map.output_dim(in.key.cols());
    const Block block(frame, features, 0);
    const Chunk scratch(frame, features, in);
    for (Index i = 0; i < rows.rows; ++i) std::ranges::fill(matrix.row(i), hidden);
    for (Index i = rows.sighted; i < rows.rows; i += detail::linear_rows) {
      const Index count = std::min(detail::linear_rows, rows.rows - i);
      const MatrixView<T> phi = block.phi.rows(0, count), dots = block.weights.rows(0, count);
      map.forward(in.query.rows(i, count), phi, block.log_scale.first(std::size_t(count)), ws);
      for (Index number = 0; number < rows.chunks(); ++number) {
        const Keys keys = read_chunk(in, key_map, rows, number, scratch, ws).keys;
        simd::gemm_transposed<T>(phi, keys.phi, dots.cols(0, keys.phi.rows()), ws);
        for (Index r = 0; r < count; ++r) {
          const Index seen = std::clamp(rows.end(i + r) - number * chunk_size, Index(0), keys.phi.rows());
          const std::span<T> row = dots.row(r).first(std::size_t(seen));
          body(row, keys.log_scale, i + r, block.log_scale[std::size_t(r)]);
          for (std::size_t j = 0; j < row.size(); ++j)
            if (keys.log_scale[j] != detail::hidden_scale<T>) matrix(i + r, number * chunk_size + Index(j)) = row[j];
        }
      }
    }
  }

  template <class KeyMap>
  void write_weights(const AttentionInput<T>& in, const KeyMap& key_map, MatrixView<T> weights,
                     std::span<const T> reference, std::span<const T> denominator, Workspace& ws) const {
    for_each_pair(in, key_map, weights, T(0), ws, [&](std::span<T> row, std::span<const T> log_scale, Index i, T) {
      for (std::size_t j = 0; j < row.size(); ++j)
        row[j] *= detail::exp_difference(log_scale[j], reference[std::size_t(i)]);
      detail::divide_row<T>(row, denominator[std::size_t(i)], epsilon, row);
    });
  }

  // g = G/(den + ε), e = −(G·o)/(den + ε) + d_lse/den; 0 where nothing was seen.
  void differentiate_quotient(const Saved& saved, const AttentionOutputGradient<T>& d_out,
                              const Upstream& upstream) const {
    for (Index i = 0; i < saved.value.rows(); ++i) {
      const T den = saved.denominator[i];
      detail::divide_row<T>(d_out.value.row(i), den, den == T(0) ? T(0) : epsilon, upstream.value.row(i));
      T& e = upstream.sum[std::size_t(i)] = -simd::dot<T>(upstream.value.row(i), saved.value.row(i));
      if (!d_out.log_sum_exp.empty() && den != T(0)) e += d_out.log_sum_exp[std::size_t(i)] / den;
    }
  }

  // weights(i, j) ← ∂L/∂w_ij · e^(log_scale_j − μ_i) = (g_i·v_j + e_i) e^(log_scale_j − μ_i), 0 for keys not seen.
  template <class Seen>
  static void differentiate_weights(const Upstream& upstream, Index first, const Keys& keys, Seen&& seen,
                                    MatrixView<T> weights, Workspace& ws) {
    simd::gemm_transposed<T>(upstream.value.rows(first, weights.rows()), keys.value, weights.cols(0, keys.value.rows()),
                             ws);
    for (Index r = 0; r < weights.rows(); ++r) {
      const std::size_t i = std::size_t(first + r);
      for (T& w : weights.row(r)) w += upstream.sum[i];
      detail::scale_seen(weights.row(r), keys.log_scale, upstream.reference[i], seen(r));
    }
  }

  // d_φ(q_i) = S g_i + e_i z, over the keys that query i sees.
  void add_query_gradient(const AttentionInput<T>& in, const Upstream& upstream, const AttentionGradient<T>& d_in,
                          LinearAttention& grad, Workspace& ws) const {
    const Rows rows(in.mask, in.query.rows(), in.key.rows());
    if (rows.sighted == rows.rows) return;
    auto frame = ws.frame();
    const Index features = map.output_dim(in.key.cols());
    const Block block(frame, features, 0);
    const MatrixView<T> d_phi_rows = frame.template matrix<T>(detail::linear_rows, features);
    for_each_prefix(in, map, rows, ws, [&](Index number, const ReadChunk& chunk, const Sum& sum) {
      for_each_block(rows, number, [&](Index first, Index count, auto seen) {
        const MatrixView<T> d_phi = d_phi_rows.rows(0, count), weights = block.weights.rows(0, count);
        simd::gemm_transposed<T>(upstream.value.rows(first, count), sum.products, d_phi, ws);
        for (Index r = 0; r < count; ++r) {
          const std::size_t i = std::size_t(first + r);
          simd::axpy<T>(upstream.sum[i], sum.features, d_phi.row(r));
          simd::scale(detail::exp_difference(sum.reference, upstream.reference[i]), d_phi.row(r));
        }
        differentiate_weights(upstream, first, chunk.keys, seen, weights, ws);
        simd::gemm<T>(weights.cols(0, chunk.keys.phi.rows()), chunk.keys.phi, d_phi, ws, simd::Product::accumulate);
        add_map_gradient(in.query.rows(first, count), block, d_phi, rows_of(d_in.query, first, count), grad, ws);
      });
    });
  }

  // d_x += the gradient of φ by its input, for a block of queries, whose φ is computed again.
  void add_map_gradient(MatrixView<const T> x, const Block& block, MatrixView<const T> d_phi, MatrixView<T> d_x,
                        LinearAttention& grad, Workspace& ws) const {
    const MatrixView<T> phi = block.phi.rows(0, x.rows());
    map.forward(x, phi, block.log_scale.first(std::size_t(x.rows())), ws);
    map.backward(x, phi, d_phi, d_x, grad.map, ws);
  }

  // d_φ(k_j) = S̄ v_j + z̄, d_v_j = S̄ᵀ φ(k_j), over the queries that see key j. `suffix` is over the queries that see
  // whole chunks from here on, times e^reference for the smallest of their μ, so that no factor exceeds 1.
  void add_key_gradient(const AttentionInput<T>& in, const Upstream& upstream, const AttentionGradient<T>& d_in,
                        LinearAttention& grad, Workspace& ws) const {
    const Rows rows(in.mask, in.query.rows(), in.key.rows());
    if (rows.sighted == rows.rows) return;
    auto frame = ws.frame();
    const Index features = map.output_dim(in.key.cols()), v = in.value.cols();
    const Block block(frame, features, 0);
    const Chunk scratch(frame, features, in);
    const MatrixView<T> d_phi_rows = frame.template matrix<T>(chunk_size, features),
                        d_value_rows = frame.template matrix<T>(chunk_size, v);
    Sum suffix;
    const Monoid monoid{{&frame, features, v}};
    monoid.clear(suffix);
    suffix.reference = std::numeric_limits<T>::infinity();
    for (Index number = rows.chunks() - 1; number >= 0; --number) {
      const ReadChunk chunk = read_chunk(in, map, rows, number, scratch, ws);
      const Index count = chunk.key.rows(), at = number * chunk_size;
      const MatrixView<T> d_phi = d_phi_rows.rows(0, count), d_value = d_value_rows.rows(0, count);
      differentiate_suffix(suffix, chunk.keys, d_phi, d_value, ws);
      for_each_block(rows, number, [&](Index first, Index block_rows, auto seen) {
        add_block(in, upstream, first, chunk.keys, seen, block.phi.rows(0, block_rows),
                  block.weights.rows(0, block_rows), block.log_scale, d_phi, d_value, suffix, ws);
      });
      map.backward(chunk.key, chunk.keys.phi, d_phi, rows_of(d_in.key, at, count), grad.map, ws);
      if (d_in.value.data() == nullptr) continue;
      for (Index j = 0; j < count; ++j) simd::axpy<T>(T(1), d_value.row(j), d_in.value.row(at + j));
    }
  }

  // What queries that see the whole chunk send to its keys and values.
  static void differentiate_suffix(const Sum& suffix, const Keys& keys, MatrixView<T> d_phi, MatrixView<T> d_value,
                                   Workspace& ws) {
    simd::gemm_transposed<T>(keys.value, suffix.products, d_phi, ws);
    simd::gemm<T>(keys.phi, suffix.products, d_value, ws);
    for (Index j = 0; j < keys.phi.rows(); ++j) {
      const T factor = detail::exp_difference(keys.log_scale[std::size_t(j)], suffix.reference);
      simd::axpy<T>(T(1), suffix.features, d_phi.row(j));
      simd::scale(factor, d_phi.row(j));
      simd::scale(factor, d_value.row(j));
    }
  }

  // What queries that see a part of the chunk send to its keys and values; then they join the suffix.
  template <class Seen>
  void add_block(const AttentionInput<T>& in, const Upstream& upstream, Index first, const Keys& keys, Seen&& seen,
                 MatrixView<T> phi, MatrixView<T> weights, std::span<T> log_scale, MatrixView<T> d_phi,
                 MatrixView<T> d_value, Sum& suffix, Workspace& ws) const {
    constexpr auto accumulate = simd::Product::accumulate;
    const Index rows = phi.rows(), count = keys.phi.rows();
    const MatrixView<const T> g = upstream.value.rows(first, rows);
    map.forward(in.query.rows(first, rows), phi, log_scale.first(std::size_t(rows)), ws);
    differentiate_weights(upstream, first, keys, seen, weights, ws);
    simd::gemm_left_transposed<T>(weights.cols(0, count), phi, d_phi, ws, accumulate);
    simd::gemm_transposed<T>(phi, keys.phi, weights.cols(0, count), ws);
    for (Index r = 0; r < rows; ++r)
      detail::scale_seen(weights.row(r), keys.log_scale, upstream.reference[std::size_t(first + r)], seen(r));
    simd::gemm_left_transposed<T>(weights.cols(0, count), g, d_value, ws, accumulate);

    const T least = std::min(suffix.reference, upstream.reference[std::size_t(first)]);  // μ grows with the query
    suffix.rescale(detail::exp_difference(least, suffix.reference));
    suffix.reference = least;
    for (Index r = 0; r < rows; ++r) {
      const std::size_t i = std::size_t(first + r);
      simd::scale(detail::exp_difference(least, upstream.reference[i]), phi.row(r));
      simd::axpy<T>(upstream.sum[i], phi.row(r), suffix.features);
    }
    simd::gemm_left_transposed<T>(phi, g, suffix.products, ws, accumulate);
  }

  [[nodiscard]] static MatrixView<T> rows_of(MatrixView<T> matrix, Index first, Index count) {
    return matrix.data() == nullptr ? matrix : matrix.rows(first, count);
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
