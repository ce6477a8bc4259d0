// SPDX-License-Identifier: MIT
// expect: not row-major with contiguous rows, or a temporary that owns its elements
#include <ruvector/core/view.hpp>

#include <Eigen/Core>

float first(ruvector::MatrixView<const float> x) {
  return x(0, 0);
}

#ifdef RUVECTOR_CONTROL
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
#else
using Matrix = Eigen::MatrixXf;  // column-major: a view of it would be its transpose
#endif

float use(const Matrix& m) {
  return first(m);
}
