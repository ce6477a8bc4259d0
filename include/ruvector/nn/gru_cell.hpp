// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/activations.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/linear.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/dot.hpp"
#include "ruvector/simd/gemm.hpp"
#include "ruvector/simd/math.hpp"

#include <algorithm>
#include <array>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

namespace detail {

// σ and tanh to 2.5 ULP, relative also near 0, at 2/5 of the cost of simd's, which are good to 0.9: what a gate takes
// is a sum of products whose roundings weigh more. 3 % of a forward and backward pass over 128 columns.
///@{
template <Real T>
[[nodiscard, gnu::always_inline]] inline simd::Batch<T> gate_sigmoid(simd::Batch<T> x) {
  return T(1) / (T(1) + simd::exp(-x));
}
template <Real T>
[[nodiscard, gnu::always_inline]] inline simd::Batch<T> gate_tanh(simd::Batch<T> x) {
  // tanh a = t/(t + 2), t = e²ᵃ − 1
  const simd::Batch<T> highest(simd::detail::MathConstants<T>::tanh_highest), a = simd::min(highest, simd::abs(x));
  const simd::Batch<T> t = expm1(a + a);
  return simd::copysign(t / (t + T(2)), x);
}
///@}

}  // namespace detail

/// What the update gate z of a GRU lets through. One convention is the other with z negated, which matters when weights
/// are taken from elsewhere.
enum class GruUpdate {
  keep,     ///< h' = (1 − z)∘n + z∘h: PyTorch, Keras
  replace,  ///< h' = (1 − z)∘h + z∘n: Cho et al. 2014 in their figure, version 1
};

/// Where the reset gate r of a GRU stands.
enum class GruReset {
  after_product,   ///< n = tanh(… + r∘(U_n h + c_n)): PyTorch, cuDNN
  before_product,  ///< n = tanh(… + U_n (r∘h) + c_n): Cho et al. 2014, version 1; one product waits for another
};

/// The shape, conventions and start of a GruCell.
struct GruConfig {
  Index input = 0;                                        ///< columns of x
  Index hidden = 0;                                       ///< columns of h
  bool bias = true;                                       ///< without: b = c = 0
  GruUpdate update = GruUpdate::keep;                     ///< version 1: replace
  GruReset reset = GruReset::after_product;               ///< version 1: before_product
  Initializer initializer = Initializer::fan_in_uniform;  ///< of each gate's two maps, as of a Linear
};

/// A gated recurrent unit: the state h [n×H] of each row takes in x [n×in],
///
///     r = σ(W_r x + b_r + U_r h + c_r)             reset
///     z = σ(W_z x + b_z + U_z h + c_z)             update
///     n = tanh(W_n x + b_n + r∘(U_n h + c_n))      candidate; or U_n (r∘h) + c_n, see GruReset
///     h' = (1 − z)∘n + z∘h                         or (1 − z)∘h + z∘n, see GruUpdate
///
/// A RecurrentCell. The tensors have the names, shapes and order of gates (r, z, n) of torch.nn.GRUCell, so its
/// state_dict() is copied as it is, into a cell with the default conventions. Source: Cho et al. 2014, eq. 5 to 8.
template <Real T>
struct GruCell {
  using Scalar = T;                          ///< what it computes in
  Matrix<T> weight_ih;                       ///< W_r, W_z, W_n below each other [3H×in]
  Matrix<T> weight_hh;                       ///< U_r, U_z, U_n [3H×H]
  Vector<T> bias_ih;                         ///< b_r, b_z, b_n [3H], or empty: none
  Vector<T> bias_hh;                         ///< c_r, c_z, c_n [3H], or empty with b
  GruUpdate update = GruUpdate::keep;        ///< what z lets through
  GruReset reset = GruReset::after_product;  ///< where r stands

  /// What `backward` needs of a forward pass.
  struct Saved {
    Matrix<T> gates;  ///< r, z, n, and U_n h + c_n or r∘h, side by side [n×4H]
  };

  /// [0×0], to be assigned.
  GruCell() = default;
  /// Starts as `config` says. Throws ShapeError for impossible sizes.
  GruCell(const GruConfig& config, Rng& rng)
      : weight_ih(checked_size("GruCell: hidden", 3, config.hidden), config.input),
        weight_hh(3 * config.hidden, config.hidden),
        bias_ih(config.bias ? 3 * config.hidden : 0),
        bias_hh(config.bias ? 3 * config.hidden : 0),
        update(config.update),
        reset(config.reset) {
    const Index H = config.hidden;
    const auto gate = [&](Vector<T>& bias, Index g) {
      return bias.empty() ? std::span<T>() : bias.span().subspan(std::size_t(g * H), std::size_t(H));
    };
    for (Index g = 0; g < 3; ++g) {
      initialize<T>(config.initializer, weight_ih.view().rows(g * H, H), gate(bias_ih, g), rng);
      initialize<T>(config.initializer, weight_hh.view().rows(g * H, H), gate(bias_hh, g), rng);
    }
  }

  /// Names W, U, b and c, as PyTorch does.
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight_ih", self.weight_ih...);
    visit("weight_hh", self.weight_hh...);
    visit("bias_ih", self.bias_ih...);
    visit("bias_hh", self.bias_hh...);
  }

  /// Columns of x.
  [[nodiscard]] Index input_dim() const { return weight_ih.cols(); }
  /// Columns of h, H.
  [[nodiscard]] Index hidden_dim() const { return weight_hh.cols(); }

  /// out = h' [n×H] for x [n×in] and h [n×H], O(n H (in + H)). out may be h; else it overlaps neither. Row i of out
  /// depends on row i of x and h alone, bit for bit. Throws ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<const T> h, MatrixView<T> out, Workspace& workspace,
               E&& executor = Serial{}) const {
    check(x, h, out);
    if (out.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace& own) {
          auto frame = own.frame();
          const auto gates = frame.template matrix<T>(std::min(count, block), 4 * hidden_dim());
          for_blocks(first, count, [&](Index i, Index rows) {
            step(x.rows(i, rows), h.rows(i, rows), out.rows(i, rows), gates.rows(0, rows), own);
          });
        },
        executor);
  }

  /// The same bits, and what `backward` needs: training mode. `saved` keeps its memory where the sizes are the same.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<const T> h, MatrixView<T> out, Saved& saved, Workspace& workspace,
               E&& executor = Serial{}) const {
    check(x, h, out);
    set_shape(saved.gates, x.rows(), 4 * hidden_dim());
    if (out.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace& own) {
          for_blocks(first, count, [&](Index i, Index rows) {
            step(x.rows(i, rows), h.rows(i, rows), out.rows(i, rows), saved.gates.view().rows(i, rows), own);
          });
        },
        executor);
  }

  /// Given g = ∂L/∂h' [n×H], and x, h and `saved` as the forward pass in training mode had and left them, with
  ///
  ///     ā_n = g∘(1 − z)∘(1 − n²),   ā_z = g∘(h − n)∘z∘(1 − z),   q = U_n h + c_n,
  ///     ā_q = ā_n∘r,   ā_r = ā_n∘q∘r∘(1 − r)
  ///
  /// adds
  ///
  ///     d_x += W_rᵀ ā_r + W_zᵀ ā_z + W_nᵀ ā_n,   d_h += g∘z + U_rᵀ ā_r + U_zᵀ ā_z + U_nᵀ ā_q,
  ///     grad.weight_ih += Σ_i (ā_r, ā_z, ā_n) xᵀ,   grad.weight_hh += Σ_i (ā_r, ā_z, ā_q) hᵀ,
  ///     grad.bias_ih += Σ_i (ā_r, ā_z, ā_n),   grad.bias_hh += Σ_i (ā_r, ā_z, ā_q).
  ///
  /// With r before the product, v = U_nᵀ ā_n takes the place of what follows it: ā_r = v∘h∘r∘(1 − r), d_h += v∘r,
  /// ā_q = ā_n and r∘h stands for h beside it. Where z replaces, z and 1 − z, h and n change places. d_x [n×in] and
  /// d_h [n×H] or empty: not wanted; they overlap nothing. The sums over rows are ordered (add_row_sums).
  /// O(n H (in + H)). Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> h, const Saved& saved, MatrixView<const T> d_out,
                MatrixView<T> d_x, MatrixView<T> d_h, GruCell& grad, Workspace& workspace,
                E&& executor = Serial{}) const {
    check(x, h, d_out);
    check_same_parameters(*this, static_cast<const GruCell&>(grad));
    detail::check_matrix("GruCell::backward: saved", x.rows(), 4 * hidden_dim(), saved.gates.view());
    detail::check_wanted("GruCell::backward: d_x", x.rows(), input_dim(), d_x);
    detail::check_wanted("GruCell::backward: d_h", x.rows(), hidden_dim(), d_h);
    if (d_out.empty()) return;
    add_row_sums(
        x.rows(), std::array{grad.weight_ih.span(), grad.weight_hh.span(), grad.bias_ih.span(), grad.bias_hh.span()},
        workspace,
        [&](const std::array<std::span<T>, 4>& parts, Index first, Index last, Workspace& own) {
          const auto of = [&](auto view) { return view.empty() ? view : view.rows(first, last - first); };
          pull_back(x.rows(first, last - first), h.rows(first, last - first),
                    saved.gates.view().rows(first, last - first), d_out.rows(first, last - first), of(d_x), of(d_h),
                    parts, own);
        },
        executor);
  }

 private:
  using Batch = simd::Batch<T>;

  static constexpr Index block = row_leaf;  // rows whose gates stay in a cache between products and gates

  template <class Range>
  static void for_blocks(Index first, Index count, Range&& range) {
    for (Index i = 0; i < count; i += block) range(first + i, std::min(block, count - i));
  }

  void check(MatrixView<const T> x, MatrixView<const T> h, MatrixView<const T> out) const {
    const Index H = hidden_dim();
    check_shape("GruCell: rows of weight_hh", checked_size("GruCell: hidden", 4, H) - H, weight_hh.rows());
    check_shape("GruCell: rows of weight_ih", 3 * H, weight_ih.rows());
    if (!bias_ih.empty() || !bias_hh.empty()) {
      check_shape("GruCell: bias_ih", 3 * H, bias_ih.size());
      check_shape("GruCell: bias_hh", 3 * H, bias_hh.size());
    }
    check_shape("GruCell: columns of x", input_dim(), x.cols());
    detail::check_matrix("GruCell: h", x.rows(), H, h);
    detail::check_matrix("GruCell: out or d_out", x.rows(), H, out);
  }

  [[nodiscard]] MatrixView<const T> candidate_weight() const {
    return weight_hh.view().rows(2 * hidden_dim(), hidden_dim());
  }
  [[nodiscard]] MatrixView<const T> gate_weights() const { return weight_hh.view().rows(0, 2 * hidden_dim()); }

  // Columns of `gates` become r, z, n and q = U_n h + c_n, or r∘h.
  void step(MatrixView<const T> x, MatrixView<const T> h, MatrixView<T> out, MatrixView<T> gates,
            Workspace& workspace) const {
    const Index H = hidden_dim();
    simd::gemm_transposed<T>(x, weight_ih, gates.cols(0, 3 * H), workspace);
    simd::gemm_transposed<T>(h, gate_weights(), gates.cols(0, 2 * H), workspace, simd::Product::accumulate);
    if (reset == GruReset::after_product) {
      simd::gemm_transposed<T>(h, candidate_weight(), gates.cols(3 * H, H), workspace);
      for (Index i = 0; i < x.rows(); ++i) {
        open_gates(gates.row(i));
        renew<GruReset::after_product>(h.row(i), gates.row(i), out.row(i));
      }
    } else {
      for (Index i = 0; i < x.rows(); ++i) {
        open_gates(gates.row(i));
        reset_state(h.row(i), gates.row(i));
      }
      simd::gemm_transposed<T>(gates.cols(3 * H, H), candidate_weight(), gates.cols(2 * H, H), workspace,
                               simd::Product::accumulate);
      for (Index i = 0; i < x.rows(); ++i) renew<GruReset::before_product>(h.row(i), gates.row(i), out.row(i));
    }
  }

  // Elements of a bias, or zeros.
  template <class Lanes>
  [[nodiscard]] static Batch element(const Vector<T>& bias, Index j, Lanes lanes) {
    return bias.empty() ? Batch(T(0)) : lanes.load(bias.data() + j);
  }

  // (r, z) = σ(W x + U h + b + c). Not in one loop with n: a core looks ahead over some hundred operations, which are
  // several rounds of one chain, as long as σ or tanh, but hardly one of three after each other.
  void open_gates(std::span<T> gates) const {
    simd::for_each_batch<T>(2 * hidden_dim(), [&](Index j, auto lanes) {
      T* at = gates.data() + j;
      lanes.store(at,
                  detail::gate_sigmoid<T>(lanes.load(at) + (element(bias_ih, j, lanes) + element(bias_hh, j, lanes))));
    });
  }

  // r∘h
  void reset_state(std::span<const T> h, std::span<T> gates) const {
    const Index H = hidden_dim();
    simd::for_each_batch<T>(H, [&](Index j, auto lanes) {
      T* at = gates.data() + j;
      lanes.store(at + 3 * H, lanes.load(at) * lanes.load(h.data() + j));
    });
  }

  // n, h' and, where r follows the product, q
  template <GruReset order>
  void renew(std::span<const T> h, std::span<T> gates, std::span<T> out) const {
    const Index H = hidden_dim();
    const bool keep = update == GruUpdate::keep;
    simd::for_each_batch<T>(H, [&](Index j, auto lanes) {
      T* at = gates.data() + j;
      const Batch b = element(bias_ih, 2 * H + j, lanes), c = element(bias_hh, 2 * H + j, lanes);
      Batch n = lanes.load(at + 2 * H);
      if constexpr (order == GruReset::after_product) {
        const Batch q = lanes.load(at + 3 * H) + c;
        lanes.store(at + 3 * H, q);
        n = simd::fma(lanes.load(at), q, n + b);
      } else {
        n = n + (b + c);
      }
      n = detail::gate_tanh(n);
      lanes.store(at + 2 * H, n);
      // h' = n + z∘(h − n), or the other way round
      const Batch past = lanes.load(h.data() + j), z = lanes.load(at + H);
      lanes.store(out.data() + j, simd::fma(z, keep ? past - n : n - past, keep ? n : past));
    });
  }

  // The gradients by what stands under σ and tanh, for a block of rows: ā_r, ā_z, ā_n and, for U_n h + c_n, ā_q.
  void pull_back(MatrixView<const T> x, MatrixView<const T> h, MatrixView<const T> gates, MatrixView<const T> d_out,
                 MatrixView<T> d_x, MatrixView<T> d_h, const std::array<std::span<T>, 4>& parts,
                 Workspace& workspace) const {
    using simd::Product;
    const Index H = hidden_dim(), rows = h.rows();
    const bool after = reset == GruReset::after_product;
    auto frame = workspace.frame();
    const auto d = frame.template matrix<T>(rows, 4 * H);
    for (Index i = 0; i < rows; ++i)
      close_gates(h.row(i), gates.row(i), d_out.row(i), d.row(i), d_h.empty() ? nullptr : d_h.row(i).data());
    if (!after) {
      // v = U_nᵀ ā_n in the place of ā_q
      simd::gemm<T>(d.cols(2 * H, H), candidate_weight(), d.cols(3 * H, H), workspace);
      for (Index i = 0; i < rows; ++i)
        close_reset(h.row(i), gates.row(i), d.row(i), d_h.empty() ? nullptr : d_h.row(i).data());
    }
    // What U_n saw, and the gradient by what it gave.
    const MatrixView<const T> seen = after ? h : gates.cols(3 * H, H), given = d.cols(after ? 3 * H : 2 * H, H);
    if (!d_x.empty()) simd::gemm<T>(d.cols(0, 3 * H), weight_ih, d_x, workspace, Product::accumulate);
    if (!d_h.empty()) {
      simd::gemm<T>(d.cols(0, 2 * H), gate_weights(), d_h, workspace, Product::accumulate);
      if (after) simd::gemm<T>(given, candidate_weight(), d_h, workspace, Product::accumulate);
    }
    simd::gemm_left_transposed<T>(d.cols(0, 3 * H), x, MatrixView<T>(parts[0].data(), 3 * H, input_dim()), workspace);
    const MatrixView<T> d_weight(parts[1].data(), 3 * H, H);
    simd::gemm_left_transposed<T>(d.cols(0, 2 * H), h, d_weight.rows(0, 2 * H), workspace);
    simd::gemm_left_transposed<T>(given, seen, d_weight.rows(2 * H, H), workspace);
    if (!bias_ih.empty()) {
      sum_rows(d.cols(0, 3 * H), parts[2]);
      std::ranges::copy(parts[2], parts[3].begin());
      sum_rows(given, parts[3].last(std::size_t(H)));
    }
  }

  static void sum_rows(MatrixView<const T> rows, std::span<T> sum) {
    std::ranges::fill(sum, T(0));
    for (Index i = 0; i < rows.rows(); ++i) simd::axpy<T>(T(1), rows.row(i), sum);
  }

  // ā_z, ā_n and what g adds to d_h by itself; ā_r and ā_q where r follows the product.
  void close_gates(std::span<const T> h, std::span<const T> gates, std::span<const T> d_out, std::span<T> d,
                   T* d_h) const {
    const Index H = hidden_dim();
    simd::for_each_batch<T>(H, [&](Index j, auto lanes) {
      const T* at = gates.data() + j;
      T* to = d.data() + j;
      const Batch g = lanes.load(d_out.data() + j), z = lanes.load(at + H), n = lanes.load(at + 2 * H);
      const Batch past = lanes.load(h.data() + j), rest = T(1) - z;
      const bool keep = update == GruUpdate::keep;
      const Batch d_n = (keep ? rest : z) * g * simd::fnma(n, n, T(1));
      lanes.store(to + H, g * (keep ? past - n : n - past) * z * rest);
      lanes.store(to + 2 * H, d_n);
      if (d_h != nullptr) lanes.store(d_h + j, simd::fma(g, keep ? z : rest, lanes.load(d_h + j)));
      if (reset != GruReset::after_product) return;
      const Batch r = lanes.load(at), q = lanes.load(at + 3 * H);
      lanes.store(to, d_n * q * r * (T(1) - r));
      lanes.store(to + 3 * H, d_n * r);
    });
  }

  // ā_r from v = U_nᵀ ā_n, and what v adds to d_h.
  void close_reset(std::span<const T> h, std::span<const T> gates, std::span<T> d, T* d_h) const {
    const Index H = hidden_dim();
    simd::for_each_batch<T>(H, [&](Index j, auto lanes) {
      T* to = d.data() + j;
      const Batch r = lanes.load(gates.data() + j), v = lanes.load(to + 3 * H);
      lanes.store(to, v * lanes.load(h.data() + j) * r * (T(1) - r));
      if (d_h != nullptr) lanes.store(d_h + j, simd::fma(v, r, lanes.load(d_h + j)));
    });
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
