// SPDX-License-Identifier: MIT
// expect: the view would outlive the matrix
#include <ruvector/core/matrix.hpp>

ruvector::Matrix<float> make() {
  return {2, 3};
}

float use() {
#ifdef RUVECTOR_CONTROL
  const ruvector::Matrix<float> m = make();
  const ruvector::MatrixView<const float> view = m;
#else
  const ruvector::MatrixView<const float> view = make();  // would dangle
#endif
  return view(0, 0);
}
