// SPDX-License-Identifier: MIT

// A bit of everything that the library computes, as a plain function. Compiled several times for different targets, the
// name RUVECTOR_ENTRY being different each time, and linked into one program.
#include <ruvector/ruvector.hpp>

#include <span>
#include <vector>

extern "C" int RUVECTOR_ENTRY(double* results, int capacity);

namespace {

using ruvector::Index;
using ruvector::Matrix;

constexpr Index dim = 37;
constexpr Index count = 21;

template <ruvector::Real T, class Report>
void compute(ruvector::Rng& rng, Report&& report) {
  Matrix<T> random(count, dim);
  for (T& value : random.span()) value = rng.uniform(T(-0.1), T(0.1));
  const Matrix<T>& points = random;
  Matrix<T> columns(dim, count);
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < dim; ++j) columns(j, i) = points(i, j);
  std::vector<T> out(count);

  const ruvector::geometry::PoincareBall<T> ball(T(0.7));
  ball.distances(points.row(0), columns, out);
  for (const T value : out) report(value);
  std::vector<T> image(dim);
  ball.exp(points.row(1), points.row(2), image);
  for (const T value : image) report(value);

  for (Index i = 0; i < count; ++i) report(ruvector::simd::dot(points.row(i), points.row(count - 1 - i)));
  std::vector<T> exponentials(count * dim);
  ruvector::simd::exp(points.span(), std::span(exponentials));
  for (const T value : exponentials) report(value);

#ifdef RUVECTOR_SHARED
  // Eigen's product kernels are the same symbols in every file: only hermetic objects keep their own.
  Matrix<T> gram(count, count);
  ruvector::eigen(gram).noalias() = ruvector::eigen(points) * ruvector::eigen(points).transpose();
  for (const T value : gram.span()) report(value);
#endif
}

}  // namespace

int RUVECTOR_ENTRY(double* results, int capacity) {
  int n = 0;
  const auto report = [&](auto value) {
    if (n < capacity) results[n] = double(value);
    ++n;
  };
  ruvector::Rng rng(7);
  compute<float>(rng, report);
  compute<double>(rng, report);
  return n;
}
