// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>

#include <typeinfo>

// One library that uses ruvector inside. Built twice, against two versions.
extern "C" const char* RUVECTOR_ENTRY(double* result);

const char* RUVECTOR_ENTRY(double* result) {
  const ruvector::Matrix<double> matrix(3, 4, double(RUVECTOR_VERSION_PATCH));
  *result = matrix(2, 3);
  return typeid(matrix).name();
}
