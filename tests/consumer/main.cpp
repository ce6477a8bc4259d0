// SPDX-License-Identifier: MIT

// What a consumer writes: the library beside Eigen. Compiled as the consumer compiles, with the library's target alone.
#include <ruvector/ruvector.hpp>

#include <Eigen/Core>
#include <cstdio>

#if defined(__AVX__)
#error "an instruction set leaked from the library into its consumer"
#endif

int main() {
  const Eigen::Matrix<float, 2, 3, Eigen::RowMajor> matrix{{1, 2, 3}, {4, 5, 6}};
  const ruvector::MatrixView<const float> view = matrix;
  const bool right = view(1, 2) == 6.0F && ruvector::eigen(view).sum() == 21.0F;
  std::puts(right ? "consumer works" : "consumer is wrong");
  return right ? 0 : 1;
}
