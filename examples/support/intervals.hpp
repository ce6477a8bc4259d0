// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

namespace examples {

/// The mean of some runs, and half of the interval in which 95 of 100 such means lie around the true one.
struct MeanInterval {
  double mean = 0;
  double half = 0;  ///< infinite for one run
};

/// By Student's t: mean ± t_{0.975, n−1} s/√n. For differences between two ways that ran with the same seeds, give the
/// differences ("paired"): what both owe to the seed cancels.
[[nodiscard]] inline MeanInterval mean_interval(const std::vector<double>& values) {
  // t_{0.975} for 1 … 9 degrees of freedom; beyond that it falls from 2.23 to 1.96, and 2.23 is the safe side.
  static constexpr std::array t{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228};
  const auto n = static_cast<double>(values.size());
  if (values.empty()) return {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()};
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() == 1) return {mean, std::numeric_limits<double>::infinity()};
  double squares = 0;
  for (const double x : values) squares += (x - mean) * (x - mean);
  return {mean, t[std::min(values.size() - 2, t.size() - 1)] * std::sqrt(squares / (n - 1) / n)};
}

}  // namespace examples
