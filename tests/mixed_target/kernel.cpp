// SPDX-License-Identifier: MIT

// A bit of everything that the library computes, as a plain function. Compiled several times for different targets, the
// name RUVECTOR_ENTRY being different each time, and linked into one program.
#include <ruvector/ruvector.hpp>

#include <vector>

extern "C" int RUVECTOR_ENTRY(double* results, int capacity);

int RUVECTOR_ENTRY(double* results, int capacity) {
  int count = 0;
  const auto report = [&](double value) {
    if (count < capacity) results[count] = value;
    ++count;
  };
  ruvector::Rng rng(7);

  ruvector::Matrix<float> a(5, 37);
  for (float& value : a.span()) value = rng.uniform(-2.0F, 2.0F);
  for (const float value : a.span()) report(value);
  return count;
}
