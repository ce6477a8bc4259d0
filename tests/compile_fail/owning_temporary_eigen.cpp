// SPDX-License-Identifier: MIT
// expect: not row-major with contiguous rows, or a temporary that owns its elements
#include <ruvector/core/eigen.hpp>

ruvector::EigenMatrix<float> make() {
  return ruvector::EigenMatrix<float>::Zero(2, 3);
}

float use() {
#ifdef RUVECTOR_CONTROL
  const ruvector::EigenMatrix<float> m = make();
  const ruvector::MatrixView<const float> view = m;
#else
  const ruvector::MatrixView<const float> view = make();  // would dangle
#endif
  return view(0, 0);
}
