// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// How the frequencies Ω [rotary_dim/2 × p] start.
enum class FrequencyInitializer {
  zero,         ///< no rotation until it is learned: the model without positions
  exponential,  ///< Ω_n,(n mod p) = base^(−2n/rotary_dim), else 0: RoPE where p = 1 (Su 2021)
  orthogonal,   ///< scale · orthonormal columns (rows, where there are fewer rows)
  normal,       ///< N(0, scale²): E[q·k after rotation] falls with the distance of the nodes (Reid 2025, WIRE)
};

/// The shape and start of rotary positions.
struct GraphRopeConfig {
  Index rotary_dim = 0;   ///< how many columns turn, the first ones: even and > 0
  Index coordinates = 1;  ///< p
  bool share_qk = true;   ///< keys turn by the frequencies of queries, not by their own
  FrequencyInitializer initializer = FrequencyInitializer::exponential;  ///< of Ω
  double base = 100;  ///< of exponential, > 0: 100 for coordinates up to about 1, 10⁴ for positions in a sequence
  double scale = 1;   ///< of orthogonal and normal
};

namespace detail {

/// cos θ and sin θ of a register of angles, within 2.5e-16. θ = kπ/2 + r, |r| ≤ π/4, and Taylor's series in r, whose
/// next term is below 3e-18. (One call of std::sin and std::cos a pair takes a third of the time of attention to a
/// thousand keys.)
inline void cosine_sine(simd::Batch<double> theta, simd::Batch<double>& cosine, simd::Batch<double>& sine) {
  using B = simd::Batch<double>;
  // π/2 in three parts, the first two of 30 bits: their products with k < 2²² are exact on every target.
  constexpr double high = 0x1.921fb54p+0, middle = 0x1.10b46118p-30, low = 0x1.313198a2e0370p-61;
  const B k = simd::nearest(theta * B(0x1.45f306dc9c883p-1));
  const B r = simd::fnma(k, B(low), simd::fnma(k, B(middle), simd::fnma(k, B(high), theta)));
  const B z = r * r;
  B s(1 / 355687428096000.), c(1 / 20922789888000.);  // 17!, 16!, then the factorials below
  RUVECTOR_UNROLL for (const double factor : {1307674368000., 6227020800., 39916800., 362880., 5040., 120., 6.}) s =
      simd::fnma(s, z, B(1 / factor));
  RUVECTOR_UNROLL for (const double factor : {87178291200., 479001600., 3628800., 40320., 720., 24., 2.}) c =
      simd::fnma(c, z, B(1 / factor));
  s = simd::fnma(r * z, s, r);
  c = simd::fnma(z, c, B(1.0));
  const B quadrant = simd::fnma(simd::floor(k * B(0.25)), B(4.0), k);
  const simd::Mask<double> odd = (quadrant == B(1.0)) | (quadrant == B(3.0));
  const B first = simd::select(odd, s, c), second = simd::select(odd, c, s);
  cosine = simd::select((quadrant == B(1.0)) | (quadrant == B(2.0)), -first, first);
  sine = simd::select(quadrant >= B(2.0), -second, second);
}

/// The same for n angles, a multiple of the lanes, of any size.
inline void cosine_sine(const double* theta, Index n, double* cosine, double* sine) {
  constexpr double largest = 0x1p22;  // beyond it, and for what is not finite, one by one
  for (Index i = 0; i < n; i += simd::lanes<double>) {
    const simd::Batch<double> angle = simd::load(theta + i);
    simd::Batch<double> c, s;
    cosine_sine(angle, c, s);
    simd::store(cosine + i, c);
    simd::store(sine + i, s);
    if (simd::all(simd::abs(angle) <= simd::Batch<double>(largest))) continue;
    for (Index j = i; j < i + simd::lanes<double>; ++j) {
      if (std::fabs(theta[j]) <= largest) continue;
      cosine[j] = std::cos(theta[j]);
      sine[j] = std::sin(theta[j]);
    }
  }
}

/// turns [rows × 2·pairs]: cos θ_n, sin θ_n side by side, θ_n = Ω_n·r. In double, since an error of θ is one of the
/// logit, and positions of a sequence are large.
template <Real T>
void write_turns(MatrixView<const T> frequencies, MatrixView<const T> positions, MatrixView<T> turns, Workspace& ws) {
  constexpr Index width = simd::lanes<double>;
  const Index pairs = frequencies.rows(), padded = (pairs + width - 1) / width * width;
  auto frame = ws.frame();
  const MatrixView<double> transposed = frame.matrix<double>(frequencies.cols(), padded);
  for (Index c = 0; c < frequencies.cols(); ++c)
    for (Index n = 0; n < padded; ++n) transposed(c, n) = n < pairs ? double(frequencies(n, c)) : 0;
  const std::span<double> theta = frame.span<double>(padded), cosine = frame.span<double>(padded),
                          sine = frame.span<double>(padded);
  for (Index i = 0; i < turns.rows(); ++i) {
    std::ranges::fill(theta, 0.0);
    for (Index c = 0; c < positions.cols(); ++c) simd::axpy(double(positions(i, c)), transposed.row(c), theta);
    cosine_sine(theta.data(), padded, cosine.data(), sine.data());
    for (Index n = 0; n < pairs; ++n) {
      turns(i, 2 * n) = T(cosine[std::size_t(n)]);
      turns(i, 2 * n + 1) = T(sine[std::size_t(n)]);
    }
  }
}

/// y = R(θ) x pair by pair, the other columns as they are. y may be x.
template <Real T>
void rotate_by(MatrixView<const T> turns, MatrixView<const T> x, MatrixView<T> y) {
  for (Index i = 0; i < x.rows(); ++i) {
    const T *turn = turns.row(i).data(), *from = x.row(i).data();
    T* to = y.row(i).data();
    for (Index c = 0; c < turns.cols(); c += 2) {
      const T cosine = turn[c], sine = turn[c + 1], a = from[c], b = from[c + 1];
      to[c] = cosine * a - sine * b;
      to[c + 1] = sine * a + cosine * b;
    }
    std::copy(from + turns.cols(), from + x.cols(), to + turns.cols());
  }
}

}  // namespace detail

/// y_i = R(Ω r_i) x_i: columns (2n, 2n+1) of row i turn by the angle Ω_n·r_i, columns from 2·rows of Ω on stay. x, y
/// [m×d], which may be the same; positions r [m×p], frequencies Ω [pairs×p]. Lengths stay, and x_i·x_j depends on
/// r_i − r_j alone; it commutes with exp₀ and log₀ of the ball, whose distances it keeps. Throws ShapeError. O(m d).
template <Real T>
void rotate_rows(MatrixView<const std::type_identity_t<T>> frequencies,
                 MatrixView<const std::type_identity_t<T>> positions, MatrixView<const std::type_identity_t<T>> x,
                 MatrixView<T> y, Workspace& ws) {
  detail::check_size("rotate_rows: positions", positions, x.rows(), frequencies.cols());
  detail::check_size("rotate_rows: y", y, x.rows(), x.cols());
  if (x.cols() < 2 * frequencies.rows())
    throw_shape_error("rotate_rows: columns of x", "at least " + std::to_string(2 * frequencies.rows()),
                      std::to_string(x.cols()));
  auto frame = ws.frame();
  const MatrixView<T> turns = frame.matrix<T>(x.rows(), 2 * frequencies.rows());
  detail::write_turns<T>(frequencies, positions, turns, ws);
  detail::rotate_by<T>(turns, x, y);
}

/// Rotary positions for whatever attention: queries and keys turn in pairs of columns before it sees them, values do
/// not,
///
///     q'_i = R(Ω r_i) q_i,  k'_j = R(Ω r_j) k_j,  θ_n = Ω_n·r for columns (2n, 2n+1)
///
/// so a score that sees inner products or distances of rows sees r_i − r_j alone. Coordinates r [rows×p] come as
/// `GraphPositions` (graph/positions.hpp makes some) or, without them, are positions in a sequence: (j, 0, …) for key j
/// and (Mask::position, 0, …) for a query, which with p = 1 and exponential frequencies is RoPE (Su 2021). Ω is
/// learned. Source: Reid 2025 (WIRE, arXiv 2509.22259).
template <DifferentiableAttention Inner>
class GraphRope {
 public:
  using Scalar = ScalarOf<Inner>;  ///< what it computes in
  using T = Scalar;                ///< short

  Inner inner;                ///< sees rotated queries and keys
  Matrix<T> frequencies;      ///< Ω [rotary_dim/2 × p]
  Matrix<T> key_frequencies;  ///< that of the keys, or [0×0]: the same

  /// Starts as `config` says. Throws ConfigError unless rotary_dim is even and > 0, coordinates > 0, base and scale are
  /// finite and base > 0.
  explicit GraphRope(const GraphRopeConfig& config, Rng& rng, const Inner& inner_attention = Inner())
      : inner(inner_attention) {
    if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0)
      throw_config_error("GraphRope: rotary_dim", "even and > 0", double(config.rotary_dim));
    if (config.coordinates < 1) throw_config_error("GraphRope: coordinates", ">= 1", double(config.coordinates));
    if (!(config.base > 0) || !std::isfinite(config.base))
      throw_config_error("GraphRope: base", "finite and > 0", config.base);
    if (!std::isfinite(config.scale)) throw_config_error("GraphRope: scale", "finite", config.scale);
    frequencies = start(config, rng);
    if (!config.share_qk) key_frequencies = start(config, rng);
  }

  /// Names the parameters of the inner attention and Ω.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("inner", self.inner...);
    visit("frequencies", self.frequencies...);
    visit("key_frequencies", self.key_frequencies...);
  }

  /// Columns of queries and keys that turn.
  [[nodiscard]] Index rotary_dim() const { return 2 * frequencies.rows(); }
  /// p.
  [[nodiscard]] Index coordinates() const { return frequencies.cols(); }
  /// As the inner attention.
  [[nodiscard]] Index output_dim(Index columns) const { return inner.output_dim(columns); }

  /// What `backward` needs of a forward pass; owned by the caller and reused.
  struct Saved {
    Matrix<T> query_turns;        ///< cos and sin, [m×rotary_dim]
    Matrix<T> key_turns;          ///< cos and sin, [n×rotary_dim]
    typename Inner::Saved inner;  ///< of the inner attention
    Rng rng{0};                   ///< for dropout; seeded by the caller, and seeds the inner attention's
  };

  /// Rotated keys and their values.
  using Prepared = KeyValueCache<T>;

  /// As the inner attention, over rotated queries and keys. O((m + n) d) more. Throws ShapeError and ConfigError before
  /// anything is written.
  void forward(const AttentionInput<T>& in, const GraphPositions<T>& at, const AttentionOutput<T>& out,
               Workspace& ws) const {
    check(in, at, out);
    auto frame = ws.frame();
    inner.forward(rotated(in, at, frame, ws), out, ws);
  }
  /// The same in a sequence.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    auto frame = ws.frame();
    forward(in, sequence(in, frame), out, ws);
  }

  /// The same in training: also keeps in `saved` what `backward` needs.
  void forward(const AttentionInput<T>& in, const GraphPositions<T>& at, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    check(in, at, out);
    resize(saved.query_turns, in.query.rows());
    resize(saved.key_turns, in.key.rows());
    if constexpr (requires { saved.inner.rng; }) saved.inner.rng = Rng(saved.rng.bits());
    detail::write_turns<T>(frequencies, at.query, saved.query_turns.view(), ws);
    detail::write_turns<T>(of_keys(), at.key, saved.key_turns.view(), ws);
    auto frame = ws.frame();
    inner.forward(turned(in, saved.query_turns, saved.key_turns, frame), out, saved.inner, ws);
  }
  /// The same in a sequence.
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    auto frame = ws.frame();
    forward(in, sequence(in, frame), out, saved, ws);
  }

  /// Adds the gradients by query, key, value and bias to `d_in`, those by the coordinates to `d_at`, those by Ω and the
  /// inner attention's parameters to `grad`: with Y the rotated rows and θ̄_n = ȳ_{2n+1} y_{2n} − ȳ_{2n} y_{2n+1},
  ///
  ///     x̄ = R(−θ) ȳ,  Ω̄_n = Σ_i θ̄_in r_i,  r̄_i = Ωᵀ θ̄_i
  ///
  /// Throws ShapeError before anything is added.
  void backward(const AttentionInput<T>& in, const GraphPositions<T>& at, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename GraphPositions<T>::Gradient& d_at, GraphRope& grad, Workspace& ws) const {
    check_backward(in, at, saved, d_out, d_in, d_at, grad);
    auto frame = ws.frame();
    const AttentionInput<T> y = turned(in, saved.query_turns, saved.key_turns, frame);
    const auto zeros = [&](MatrixView<const T> like) {
      const MatrixView<T> matrix = frame.matrix<T>(like.rows(), like.cols());
      std::fill_n(matrix.data(), matrix.size(), T(0));
      return matrix;
    };
    const MatrixView<T> d_query = zeros(in.query), d_key = zeros(in.key);
    inner.backward(y, saved.inner, d_out, {.query = d_query, .key = d_key, .value = d_in.value, .bias = d_in.bias},
                   grad.inner, ws);
    turn_back(frequencies, at.query, saved.query_turns, y.query, d_query, d_in.query, d_at.query, grad.frequencies, ws);
    turn_back(of_keys(), at.key, saved.key_turns, y.key, d_key, d_in.key, d_at.key,
              key_frequencies.empty() ? grad.frequencies : grad.key_frequencies, ws);
  }
  /// The same in a sequence.
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, GraphRope& grad, Workspace& ws) const {
    auto frame = ws.frame();
    backward(in, sequence(in, frame), saved, d_out, d_in, {}, grad, ws);
  }

  /// scores [m×n] = the logits before the softmax of the inner attention.
  void scores(const AttentionInput<T>& in, const GraphPositions<T>& at, MatrixView<T> scores,
              Workspace& ws) const requires ScoringAttention<Inner> {
    check(in, at, {});
    auto frame = ws.frame();
    inner.scores(rotated(in, at, frame, ws), scores, ws);
  }
  /// The same in a sequence.
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const requires ScoringAttention<Inner> {
    auto frame = ws.frame();
    this->scores(in, sequence(in, frame), scores, ws);
  }

  /// Rotates keys [n×d] at coordinates [n×p] once for many calls. Throws ShapeError.
  void prepare(MatrixView<const T> key, MatrixView<const T> value, MatrixView<const T> at, Prepared& prepared,
               Workspace& ws) const {
    check_keys(key, value, at);
    prepared.clear(key.cols(), value.cols());
    append(key, value, at, prepared, ws);
  }
  /// The same from the start of a sequence.
  void prepare(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    auto frame = ws.frame();
    prepare(key, value, numbered(key.rows(), 0, frame), prepared, ws);
  }
  /// Adds keys behind those that are there. Throws ShapeError, and changes nothing.
  void append(MatrixView<const T> key, MatrixView<const T> value, MatrixView<const T> at, Prepared& prepared,
              Workspace& ws) const {
    check_keys(key, value, at);
    prepared.append(key, value);
    rotate_rows(of_keys(), at, key, prepared.new_key(key.rows()), ws);
  }
  /// The same with the next positions of a sequence.
  void append(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    auto frame = ws.frame();
    append(key, value, numbered(key.rows(), prepared.rows(), frame), prepared, ws);
  }
  /// `forward` of queries at coordinates [m×p] over prepared keys, to the bit. Throws as it does.
  void forward(const PreparedInput<T>& in, MatrixView<const T> at, const Prepared& prepared,
               const AttentionOutput<T>& out, Workspace& ws) const {
    AttentionInput<T> rows = over(in, prepared);
    check_input(rows);
    check_output(rows, out, output_dim(rows.value.cols()));
    check_rows("GraphRope: coordinates of query", rows.query, at);
    auto frame = ws.frame();
    const MatrixView<T> query = frame.matrix<T>(in.query.rows(), in.query.cols());
    rotate_rows(frequencies, at, in.query, query, ws);
    rows.query = query;
    inner.forward(rows, out, ws);
  }
  /// The same in a sequence.
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    auto frame = ws.frame();
    forward(in, sequence(over(in, prepared), frame).query, prepared, out, ws);
  }

 private:
  [[nodiscard]] static Matrix<T> start(const GraphRopeConfig& config, Rng& rng) {
    const Index pairs = config.rotary_dim / 2, p = config.coordinates;
    Matrix<T> omega(pairs, p);
    switch (config.initializer) {
      case FrequencyInitializer::zero:
        break;
      case FrequencyInitializer::exponential:
        for (Index n = 0; n < pairs; ++n) omega(n, n % p) = T(std::pow(config.base, -double(n) / double(pairs)));
        break;
      case FrequencyInitializer::orthogonal: {
        const Matrix<double> basis = orthonormal_rows(std::min(pairs, p), std::max(pairs, p), rng);
        for (Index n = 0; n < pairs; ++n)
          for (Index c = 0; c < p; ++c) omega(n, c) = T(config.scale * (pairs < p ? basis(n, c) : basis(c, n)));
        break;
      }
      case FrequencyInitializer::normal:
        for (T& w : omega.span()) w = T(config.scale * rng.normal());
    }
    return omega;
  }
  // Gram–Schmidt, each row twice: once leaves what rounding brought in.
  [[nodiscard]] static Matrix<double> orthonormal_rows(Index rows, Index cols, Rng& rng) {
    Matrix<double> basis(rows, cols);
    for (double& x : basis.span()) x = rng.normal();
    for (Index i = 0; i < rows; ++i) {
      const std::span<double> row = basis.row(i);
      for (int round = 0; round < 2; ++round)
        for (Index j = 0; j < i; ++j) simd::axpy(-simd::dot<double>(row, basis.row(j)), basis.row(j), row);
      const double length = std::sqrt(simd::dot<double>(row, row));
      for (double& x : row) x /= length;
    }
    return basis;
  }

  [[nodiscard]] const Matrix<T>& of_keys() const { return key_frequencies.empty() ? frequencies : key_frequencies; }

  void resize(Matrix<T>& turns, Index rows) const { set_shape(turns, rows, rotary_dim()); }

  void check_rows(const char* what, MatrixView<const T> rows, MatrixView<const T> at) const {
    detail::check_size(what, at, rows.rows(), coordinates());
    if (rows.cols() < rotary_dim())
      throw_shape_error("GraphRope: columns of query and key", "at least " + std::to_string(rotary_dim()),
                        std::to_string(rows.cols()));
  }
  void check_keys(MatrixView<const T> key, MatrixView<const T> value, MatrixView<const T> at) const {
    check_rows("GraphRope: coordinates of key", key, at);
    check_shape("GraphRope: rows of value", key.rows(), value.rows());
  }
  void check(const AttentionInput<T>& in, const GraphPositions<T>& at, const AttentionOutput<T>& out) const {
    check_input(in);
    check_output(in, out, output_dim(in.value.cols()));
    check_rows("GraphRope: coordinates of query", in.query, at.query);
    check_rows("GraphRope: coordinates of key", in.key, at.key);
  }
  void check_backward(const AttentionInput<T>& in, const GraphPositions<T>& at, const Saved& saved,
                      const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                      const typename GraphPositions<T>::Gradient& d_at, const GraphRope& grad) const {
    check(in, at, {});
    check_gradient(in, d_out, d_in, output_dim(in.value.cols()));
    check_same_parameters(*this, grad);
    detail::check_size("GraphRope: saved query", saved.query_turns.view(), in.query.rows(), rotary_dim());
    detail::check_size("GraphRope: saved key", saved.key_turns.view(), in.key.rows(), rotary_dim());
    if (d_at.query.data() != nullptr)
      detail::check_size("GraphRope: gradient by coordinates of query", d_at.query, at.query.rows(), coordinates());
    if (d_at.key.data() != nullptr)
      detail::check_size("GraphRope: gradient by coordinates of key", d_at.key, at.key.rows(), coordinates());
  }

  // Coordinates (first, 0, …), (first + 1, 0, …), …
  [[nodiscard]] MatrixView<T> numbered(Index rows, Index first, Workspace::Frame& frame) const {
    const MatrixView<T> at = frame.matrix<T>(rows, coordinates());
    std::fill_n(at.data(), at.size(), T(0));
    for (Index i = 0; i < rows; ++i) at(i, 0) = T(first + i);
    return at;
  }
  [[nodiscard]] GraphPositions<T> sequence(const AttentionInput<T>& in, Workspace::Frame& frame) const {
    const Index m = in.query.rows(), n = in.key.rows();
    return {.query = numbered(m, in.mask.position(0, m, n), frame), .key = numbered(n, 0, frame)};
  }
  [[nodiscard]] static AttentionInput<T> over(const PreparedInput<T>& in, const Prepared& prepared) {
    return {.query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias};
  }

  // The input with queries and keys turned.
  [[nodiscard]] static AttentionInput<T> turned(AttentionInput<T> in, MatrixView<const T> query_turns,
                                                MatrixView<const T> key_turns, Workspace::Frame& frame) {
    const MatrixView<T> query = frame.matrix<T>(in.query.rows(), in.query.cols()),
                        key = frame.matrix<T>(in.key.rows(), in.key.cols());
    detail::rotate_by<T>(query_turns, in.query, query);
    detail::rotate_by<T>(key_turns, in.key, key);
    in.query = query;
    in.key = key;
    return in;
  }
  [[nodiscard]] AttentionInput<T> rotated(const AttentionInput<T>& in, const GraphPositions<T>& at,
                                          Workspace::Frame& frame, Workspace& ws) const {
    const MatrixView<T> query_turns = frame.matrix<T>(in.query.rows(), rotary_dim()),
                        key_turns = frame.matrix<T>(in.key.rows(), rotary_dim());
    detail::write_turns<T>(frequencies, at.query, query_turns, ws);
    detail::write_turns<T>(of_keys(), at.key, key_turns, ws);
    return turned(in, query_turns, key_turns, frame);
  }

  // From d_y to d_x, d_at and d_omega, each an addition.
  static void turn_back(MatrixView<const T> omega, MatrixView<const T> at, MatrixView<const T> turns,
                        MatrixView<const T> y, MatrixView<const T> d_y, MatrixView<T> d_x, MatrixView<T> d_at,
                        Matrix<T>& d_omega, Workspace& ws) {
    auto frame = ws.frame();
    const MatrixView<T> d_theta = frame.matrix<T>(y.rows(), omega.rows()), seen = frame.matrix<T>(at.rows(), at.cols());
    for (Index i = 0; i < y.rows(); ++i) {
      if (zero(d_y.row(i))) {  // may be hidden and hold anything, NaN too, which must not reach Ω: 0 · NaN
        std::ranges::fill(d_theta.row(i), T(0));
        std::ranges::fill(seen.row(i), T(0));
        continue;
      }
      std::ranges::copy(at.row(i), seen.row(i).begin());
      differentiate_angles(y.row(i), d_y.row(i), d_theta.row(i));
      if (d_x.data() != nullptr) add_turned_back(turns.row(i), d_y.row(i), d_x.row(i));
    }
    // θ = r Ωᵀ
    if (d_at.data() != nullptr) simd::gemm<T>(d_theta, omega, d_at, ws, simd::Product::accumulate);
    nn::add_row_sums(y.rows(), std::array{d_omega.span()}, ws,
                     [&](const std::array<std::span<T>, 1>& parts, Index first, Index last, Workspace& own) {
                       simd::gemm_left_transposed<T>(d_theta.rows(first, last - first), seen.rows(first, last - first),
                                                     MatrixView<T>(parts[0].data(), omega.rows(), omega.cols()), own);
                     });
  }
  // θ̄_n = ȳ_{2n+1} y_{2n} − ȳ_{2n} y_{2n+1}
  static void differentiate_angles(std::span<const T> y, std::span<const T> d_y, std::span<T> d_theta) {
    for (std::size_t n = 0; n < d_theta.size(); ++n) d_theta[n] = d_y[2 * n + 1] * y[2 * n] - d_y[2 * n] * y[2 * n + 1];
  }
  // d_x += R(−θ) d_y
  static void add_turned_back(std::span<const T> turn, std::span<const T> d_y, std::span<T> d_x) {
    for (std::size_t c = 0; c < turn.size(); c += 2) {
      d_x[c] += turn[c] * d_y[c] + turn[c + 1] * d_y[c + 1];
      d_x[c + 1] += turn[c] * d_y[c + 1] - turn[c + 1] * d_y[c];
    }
    for (std::size_t c = turn.size(); c < d_y.size(); ++c) d_x[c] += d_y[c];
  }
  [[nodiscard]] static bool zero(std::span<const T> row) {
    return std::ranges::all_of(row, [](T x) { return x == 0; });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
