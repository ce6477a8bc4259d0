// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace ruvector::inline RUVECTOR_ABI::train {

/// How a gradient is checked.
struct GradientCheckConfig {
  double step = 1e-4;                ///< h; near the rim of a ball 1e-4·min(1 − c‖x‖², ‖x − y‖, 1)
  double relative_tolerance = 1e-6;  ///< of the error as `GradientCheck::worst` measures it
  double absolute_tolerance = 1e-8;  ///< errors below it pass: rounding, where the gradient is almost 0
};

/// The worst element of a gradient.
struct GradientCheck {
  bool passed = true;  ///< worst <= relative_tolerance
  double worst = 0;  ///< |analytic − numeric| / max(|analytic|, |numeric|, absolute/relative tolerance); ∞ for NaN
  std::string path;  ///< of the parameter it is in; empty for a flat span
  Index index = -1;  ///< its position there, row by row; −1: nothing was checked
  double analytic = 0;  ///< as claimed there
  double numeric = 0;   ///< as measured there
  Index checked = 0;    ///< how many elements were compared
};

/// "weight[3]: analytic 0.5, numeric 0.25, relative error 0.5 (of 12 elements, worst)", for messages of tests.
[[nodiscard]] inline std::string to_string(const GradientCheck& check) {
  char numbers[160];
  std::snprintf(numbers, sizeof numbers, "[%td]: analytic %.17g, numeric %.17g, relative error %.3g (worst of %td)",
                check.index, check.analytic, check.numeric, check.worst, check.checked);
  return check.path + numbers;
}

namespace detail {

/// Compares one element after the other and keeps the worst.
class GradientComparison {
 public:
  explicit GradientComparison(const GradientCheckConfig& config) : config_(config) {
    check_positive("gradient check: step", config.step);
    check_positive("gradient check: relative_tolerance", config.relative_tolerance);
    check_positive("gradient check: absolute_tolerance", config.absolute_tolerance);
  }

  /// Compares all of `gradient` with the differences of loss(), which depends on `x`; `x` is left as it was.
  template <class Loss>
  void compare(std::string_view path, std::span<double> x, std::span<const double> gradient, Loss&& loss) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double middle = x[i];
      // The step is what is left of h after rounding.
      const double above = middle + config_.step, below = middle - config_.step;
      x[i] = above;
      const double loss_above = loss();
      x[i] = below;
      const double loss_below = loss();
      x[i] = middle;
      add(path, static_cast<Index>(i), gradient[i], (loss_above - loss_below) / (above - below));
    }
  }

  [[nodiscard]] const GradientCheck& result() const { return result_; }

 private:
  static void check_positive(std::string_view what, double value) {
    if (!(value > 0 && value <= std::numeric_limits<double>::max())) [[unlikely]]
      throw_config_error(what, "finite and > 0", value);
  }

  void add(std::string_view path, Index index, double analytic, double numeric) {
    const double scale =
        std::max({std::abs(analytic), std::abs(numeric), config_.absolute_tolerance / config_.relative_tolerance});
    double error = std::abs(analytic - numeric) / scale;
    if (!(error <= std::numeric_limits<double>::max())) error = std::numeric_limits<double>::infinity();  // NaN, too
    ++result_.checked;
    if (result_.index >= 0 && error <= result_.worst) return;
    result_.worst = error;
    result_.path = path;
    result_.index = index;
    result_.analytic = analytic;
    result_.numeric = numeric;
    result_.passed = error <= config_.relative_tolerance;
  }

  GradientCheckConfig config_;
  GradientCheck result_;
};

}  // namespace detail

/// Compares the gradient [n] that is claimed for f at x [n] with central differences,
///
///     ∂f/∂x_i ≈ (f(x + h e_i) − f(x − h e_i)) / 2h,   error O(h²) + 1e-16 |f| / h.
///
/// f takes a std::span<const double> and must be smooth within h of x; scale it to about 1. NaN and infinity, in f or
/// in the gradient, never pass. Throws ShapeError, ConfigError. 2n calls of f.
template <class F>
  requires std::is_invocable_r_v<double, F&, std::span<const double>>
[[nodiscard]] GradientCheck check_gradient(F&& f, std::span<const double> x, std::span<const double> gradient,
                                           const GradientCheckConfig& config = {}) {
  check_shape("check_gradient: gradient", static_cast<Index>(x.size()), static_cast<Index>(gradient.size()));
  detail::GradientComparison comparison(config);
  Vector<double> moved(x);
  comparison.compare("", moved.span(), gradient,
                     [&] { return static_cast<double>(f(std::span<const double>(moved.span()))); });
  return comparison.result();
}

/// The same for every learnable parameter of a module: `loss(module)` is the function, `gradient` a module of the same
/// type. Works for every Module in double, yours included. Points on a manifold are moved in the coordinates that they
/// are stored in. Throws ShapeError, ConfigError. 2 parameter_count(module) calls of `loss`.
template <Module M, class Loss>
  requires(std::same_as<ScalarOf<M>, double>&& std::is_invocable_r_v<double, Loss&, const M&>)
[[nodiscard]] GradientCheck check_module_gradient(Loss&& loss, const M& module, const M& gradient,
                                                  const GradientCheckConfig& config = {}) {
  detail::GradientComparison comparison(config);
  M moved = module;
  for_each_parameter(
      [&](std::string_view path, std::span<double> x, std::span<const double> claimed) {
        comparison.compare(path, x, claimed, [&] { return static_cast<double>(loss(std::as_const(moved))); });
      },
      moved, gradient);
  return comparison.result();
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
