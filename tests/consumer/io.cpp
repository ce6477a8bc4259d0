// SPDX-License-Identifier: MIT

// What a consumer of the component io writes.
#include <ruvector/io/safetensors.hpp>

ruvector::Matrix<float> first_matrix(const char* path) {
  return ruvector::io::SafetensorsFile(path).tensors.at(0).matrix<float>();
}
