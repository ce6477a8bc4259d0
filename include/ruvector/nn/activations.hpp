// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/nn/concepts.hpp"
#include "ruvector/nn/rows.hpp"
#include "ruvector/simd/arch.hpp"
#include "ruvector/simd/batches.hpp"
#include "ruvector/simd/math.hpp"

#include <array>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::nn {

/// A function f of one number, by which a network stops being linear.
enum class Activation {
  identity,    ///< x
  relu,        ///< max(x, 0); f'(0) = 0
  leaky_relu,  ///< x for x > 0, else slope·x; f'(0) = slope
  elu,         ///< x for x > 0, else α(eˣ − 1). Source: Clevert et al. 2016
  gelu,        ///< x Φ(x), Φ the normal distribution function. Source: Hendrycks & Gimpel 2016
  gelu_tanh,   ///< x (1 + tanh(√(2/π)(x + 0.044715 x³)))/2, its approximation in GPT-2
  silu,        ///< x σ(x), also called swish. Source: Elfwing et al. 2018
  tanh,        ///< tanh x
  sigmoid,     ///< σ(x) = 1/(1 + e⁻ˣ)
};

namespace detail {

/// eˣ − 1 for x ≤ 80, accurate near 0, too; NaN where x is.
template <Real T>
[[nodiscard, gnu::always_inline]] inline simd::Batch<T> expm1(simd::Batch<T> x) {
  using C = simd::detail::MathConstants<T>;
  // eˣ − 1 = (2ⁿ − 1) + 2ⁿ q, q = eʳ − 1, x = n ln 2 + r
  x = simd::max(simd::Batch<T>(C::exp_lowest), x);
  const simd::Batch<T> n = simd::nearest(x * C::log2_e);
  const simd::Batch<T> r = simd::fnma(n, C::ln2_low, simd::fnma(n, C::ln2_high, x));
  const simd::Batch<T> q = simd::fma(simd::detail::rounded_product(r, r), simd::detail::polynomial(r, C::exp_tail), r);
  const simd::Batch<T> power = simd::ldexp(simd::Batch<T>(T(1)), n);
  return simd::fma(power, q, power - T(1));
}

/// (1 + 2z) e^(z²) erfc(z) = 1 + (1 + t) Q(t) for z ≥ 0, t = (z − K)/(z + K), with a polynomial Q: an interpolation at
/// Chebyshev nodes. Source of the form: Shepherd & Laframboise 1981.
template <Real T>
struct NormalTail;

template <>
struct NormalTail<float> {
  static constexpr float K = 2.5F, largest = 15;  // Φ(−15) is below the smallest denormal
  // to 2⁻²⁸ up to z = 11
  static constexpr std::array<float, 11> q = {0x1.0f31bep-2f,  -0x1.8c7cd4p-2f, 0x1.27162ep-2f,  -0x1.0b594p-3f,
                                              0x1.c3b9fep-6f,  0x1.546a8p-8f,   -0x1.15e73cp-8f, -0x1.333434p-13f,
                                              0x1.2c2f48p-11f, 0x1.e783f8p-16f, -0x1.7c195ap-15f};
};

template <>
struct NormalTail<double> {
  static constexpr double K = 3.5, largest = 40;
  // to 2⁻⁶¹ up to z = 29
  static constexpr std::array<double, 24> q = {
      0x1.f054cd07748ap-3,    -0x1.8788f78b0d0edp-2, 0x1.7cb9e176e7864p-2,   -0x1.18ddd5c53abbbp-2,
      0x1.46079328cbb4ep-3,   -0x1.23ae204d26de7p-4, 0x1.6ecca247233e2p-6,   -0x1.af01deb50caa3p-9,
      -0x1.e5daeab076874p-11, 0x1.476136dfa5564p-11, -0x1.f7acf99951cf3p-15, -0x1.01d2c692644cfp-14,
      0x1.398537896232dp-16,  0x1.761fb1ca0d314p-18, -0x1.b391c91f606e8p-19, -0x1.3379e45b457e7p-21,
      0x1.1a12e74a11b71p-21,  0x1.5ec396d80014ep-24, -0x1.6cf5804bc4887p-24, -0x1.1b07d58bcb5adp-26,
      0x1.b59f84633ecd2p-27,  0x1.e5a198b862131p-29, -0x1.6113cf51a3517p-30, -0x1.10663c5b9c7d6p-31};
};

/// The normal distribution at x: Φ(x) and its density φ(x), relative accuracy also where Φ is tiny.
template <Real T>
struct Normal {
  simd::Batch<T> distribution, density;

  [[gnu::always_inline]] explicit Normal(simd::Batch<T> x) {
    using Batch = simd::Batch<T>;
    using Tail = NormalTail<T>;
    const Batch a = simd::min(Batch(Tail::largest), simd::abs(x));
    // e^(−a²/2), a² = square − low
    const Batch square = simd::detail::rounded_product(a, a), low = simd::detail::residual(a, a, square);
    const Batch power = simd::exp(T(-0.5) * square), e = simd::fma(power, T(0.5) * low, power);
    // Φ(−a) = erfc(z)/2, z = a/√2
    const Batch z = a * T(0.70710678118654752440);
    const Batch t = (z - Tail::K) / (z + Tail::K), above = (z + z) / (z + Tail::K);  // 1 + t
    const Batch scaled = simd::fma(above, simd::detail::polynomial(t, Tail::q), T(1));
    const Batch half = scaled / (T(2) * (T(1) + (z + z)));
    distribution = simd::select(x < Batch(T(0)), half * e, simd::fnma(half, e, T(1)));
    density = e * T(0.39894228040143267794);  // 1/√(2π)
  }
};

/// x where it is in ±limit, else the limit of its sign: beyond, the functions below are 0 or x to the last bit, and
/// their formulas 0·∞. NaN stays.
template <Real T>
[[nodiscard]] simd::Batch<T> within(simd::Batch<T> x, T limit) {
  return simd::min(simd::Batch<T>(limit), simd::max(simd::Batch<T>(-limit), x));
}

// Each has value(x) and derivative(x).

template <Real T>
struct Identity {
  using Batch = simd::Batch<T>;
  [[nodiscard]] Batch value(Batch x) const { return x; }
  [[nodiscard]] Batch derivative(Batch) const { return T(1); }
};

template <Real T>
struct LeakyRelu {
  using Batch = simd::Batch<T>;
  T slope;  // 0: ReLU
  [[nodiscard]] Batch value(Batch x) const {
    // 0·(−∞) would be NaN.
    return slope == 0 ? simd::max(Batch(T(0)), x) : simd::select(x > Batch(T(0)), x, slope * x);
  }
  [[nodiscard]] Batch derivative(Batch x) const { return simd::select(x > Batch(T(0)), T(1), slope); }
};

template <Real T>
struct Elu {
  using Batch = simd::Batch<T>;
  T alpha;
  [[nodiscard]] Batch value(Batch x) const {
    return simd::select(x > Batch(T(0)), x, alpha * expm1(simd::min(Batch(T(0)), x)));
  }
  [[nodiscard]] Batch derivative(Batch x) const {
    return simd::select(x > Batch(T(0)), T(1), alpha * simd::exp(simd::min(Batch(T(0)), x)));
  }
};

template <Real T>
struct Gelu {
  using Batch = simd::Batch<T>;
  [[nodiscard]] Batch value(Batch x) const {
    return simd::max(Batch(-NormalTail<T>::largest), x) * Normal<T>(x).distribution;
  }
  // (x Φ(x))' = Φ(x) + x φ(x)
  [[nodiscard]] Batch derivative(Batch x) const {
    const Normal<T> normal(x);
    return simd::fma(within(x, NormalTail<T>::largest), normal.density, normal.distribution);
  }
};

// (1 + tanh u)/2 = σ(2u), which is accurate where tanh u is near −1; 2u = x (k + l x²)
template <Real T>
struct GeluTanh {
  using Batch = simd::Batch<T>;
  static constexpr T k = T(1.59576912160573071176), l = T(0.044715 * 1.59576912160573071176);  // k = 2√(2/π)
  static constexpr T largest = NormalTail<T>::largest;  // σ(2u) is 0 below −largest
  [[nodiscard]] static Batch gate(Batch x) {
    return simd::sigmoid(x * simd::fma(simd::detail::rounded_product(x, x), l, k));
  }
  [[nodiscard]] Batch value(Batch x) const { return simd::max(Batch(-largest), x) * gate(within(x, largest)); }
  [[nodiscard]] Batch derivative(Batch x) const {
    x = within(x, largest);
    const Batch s = gate(x);
    return simd::fma(x * s * (T(1) - s), simd::fma(simd::detail::rounded_product(x, x), 3 * l, k), s);
  }
};

template <Real T>
struct Silu {
  using Batch = simd::Batch<T>;
  static constexpr T largest = -simd::detail::MathConstants<T>::exp_lowest;
  [[nodiscard]] Batch value(Batch x) const { return simd::max(Batch(-largest), x) * simd::sigmoid(x); }
  [[nodiscard]] Batch derivative(Batch x) const {
    x = within(x, largest);
    const Batch s = simd::sigmoid(x);
    return s * simd::fma(x, T(1) - s, T(1));
  }
};

template <Real T>
struct Tanh {
  using Batch = simd::Batch<T>;
  [[nodiscard]] Batch value(Batch x) const { return simd::tanh(x); }
  [[nodiscard]] Batch derivative(Batch x) const {
    const Batch y = simd::tanh(x);
    return simd::fnma(y, y, T(1));
  }
};

template <Real T>
struct Sigmoid {
  using Batch = simd::Batch<T>;
  [[nodiscard]] Batch value(Batch x) const { return simd::sigmoid(x); }
  [[nodiscard]] Batch derivative(Batch x) const {
    const Batch s = simd::sigmoid(x);
    return s * (T(1) - s);
  }
};

}  // namespace detail

/// y = f(x), element by element: [n×d] → [n×d]. A RowMap without parameters.
template <Real T>
struct ActivationMap {
  using Scalar = T;                        ///< what it computes in
  Activation function = Activation::relu;  ///< f
  T slope = T(0.01);                       ///< of leaky_relu left of 0
  T alpha = T(1);                          ///< α of elu

  /// None.
  template <class Visit, class... Self>
  static void parameters(Visit&&, Self&...) {}

  /// As many as x has.
  [[nodiscard]] Index output_dim(Index input_dim) const { return input_dim; }

  /// y = f(x): [n×d] → [n×d], O(n d). y may be x. NaN where x is NaN. Errors: 1 ULP, 4 for gelu and elu. Throws
  /// ShapeError.
  template <Executor E = Serial>
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& workspace, E&& executor = Serial{}) const {
    detail::check_matrix("ActivationMap::forward: y", x.rows(), x.cols(), y);
    if (x.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace&) {
          with_function([&](auto f) {
            for (Index i = first; i < first + count; ++i) {
              const T* from = x.row(i).data();
              T* to = y.row(i).data();
              simd::for_each_batch<T>(x.cols(),
                                      [&](Index j, auto lanes) { lanes.store(to + j, f.value(lanes.load(from + j))); });
            }
          });
        },
        executor);
  }

  /// Given d_y [n×d], adds d_x += d_y∘f'(x), O(n d). d_x [n×d] or empty: not wanted. Throws ShapeError.
  template <Executor E = Serial>
  void backward(MatrixView<const T> x, MatrixView<const T> d_y, MatrixView<T> d_x, ActivationMap&, Workspace& workspace,
                E&& executor = Serial{}) const {
    detail::check_matrix("ActivationMap::backward: d_y", x.rows(), x.cols(), d_y);
    detail::check_wanted("ActivationMap::backward: d_x", x.rows(), x.cols(), d_x);
    if (d_x.empty()) return;
    for_row_ranges(
        x.rows(), workspace,
        [&](Index first, Index count, Workspace&) {
          with_function([&](auto f) {
            for (Index i = first; i < first + count; ++i) {
              const T *from = x.row(i).data(), *by = d_y.row(i).data();
              T* to = d_x.row(i).data();
              simd::for_each_batch<T>(x.cols(), [&](Index j, auto lanes) {
                const simd::Batch<T> slope_here = f.derivative(lanes.load(from + j));
                lanes.store(to + j, simd::fma(lanes.load(by + j), slope_here, lanes.load(to + j)));
              });
            }
          });
        },
        executor);
  }

 private:
  template <class Body>
  void with_function(Body&& body) const {
    switch (function) {
      case Activation::identity:
        return body(detail::Identity<T>{});
      case Activation::relu:
        return body(detail::LeakyRelu<T>{T(0)});
      case Activation::leaky_relu:
        return body(detail::LeakyRelu<T>{slope});
      case Activation::elu:
        return body(detail::Elu<T>{alpha});
      case Activation::gelu:
        return body(detail::Gelu<T>{});
      case Activation::gelu_tanh:
        return body(detail::GeluTanh<T>{});
      case Activation::silu:
        return body(detail::Silu<T>{});
      case Activation::tanh:
        return body(detail::Tanh<T>{});
      case Activation::sigmoid:
        return body(detail::Sigmoid<T>{});
    }
  }
};

}  // namespace ruvector::inline RUVECTOR_ABI::nn
