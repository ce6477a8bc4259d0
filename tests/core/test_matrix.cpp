// SPDX-License-Identifier: MIT
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <ruvector/core/matrix.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace matrix_test {
namespace {

using ruvector::Index;
using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::ShapeError;
using ruvector::Vector;
using support::same_bits;

static_assert(std::copyable<Matrix<float>> && std::copyable<Vector<double>>);
static_assert(std::is_nothrow_move_constructible_v<Matrix<float>> && std::is_nothrow_move_assignable_v<Matrix<float>>);
static_assert(std::is_nothrow_move_constructible_v<Vector<float>> && std::is_nothrow_move_assignable_v<Vector<float>>);
static_assert(!std::convertible_to<MatrixView<const float>, Matrix<float>>);  // a copy is asked for, never implied
static_assert(!std::convertible_to<std::span<const float>, Vector<float>> &&
              !std::convertible_to<Index, Vector<float>>);
static_assert(std::convertible_to<Vector<float>&, std::span<float>> &&
              std::convertible_to<const Vector<float>&, std::span<const float>> &&
              !std::convertible_to<const Vector<float>&, std::span<float>>);

Matrix<float> counting(Index rows, Index cols) {
  Matrix<float> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.span()[static_cast<std::size_t>(i)] = float(i);
  return m;
}
template <class T>
bool aligned(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
}

TEST_CASE("matrix: new elements are zero or the fill, rows are contiguous, the start is aligned") {
  for (const Index rows : {0, 1, 3, 17})
    for (const Index cols : {0, 1, 5, 64}) {
      CAPTURE(rows, cols);
      const Matrix<float> zero(rows, cols);
      const Matrix<double> filled(rows, cols, 2.5);
      CHECK((zero.rows() == rows && zero.cols() == cols && zero.size() == rows * cols));
      CHECK(zero.empty() == (rows * cols == 0));
      CHECK((aligned(zero.data()) && aligned(filled.data())));
      CHECK(std::all_of(zero.span().begin(), zero.span().end(), [](float x) { return x == 0; }));
      CHECK(std::all_of(filled.span().begin(), filled.span().end(), [](double x) { return x == 2.5; }));
      CHECK((zero.view().stride() == cols && zero.view().data() == zero.data()));
    }
  const Matrix<float> m = counting(3, 4);
  CHECK((m(2, 1) == 9 && m.row(1)[3] == 7 && m.row(2).size() == 4 && m.span().size() == 12));
}

TEST_CASE("matrix: copies are independent") {
  Matrix<float> a = counting(3, 4);
  Matrix<float> b = a;
  b(0, 0) = 100;
  CHECK(a(0, 0) == 0);
  a = b;
  b(0, 0) = -1;
  CHECK(a(0, 0) == 100);
  const Matrix<float> c(a.view().cols(1, 2));  // from a view with gaps
  CHECK((c.rows() == 3 && c.cols() == 2 && c(2, 1) == a(2, 2) && c.view().contiguous()));
  Vector<float> v(3, 1.0f), w = v;
  w[1] = 5;
  CHECK((v[1] == 1 && w[1] == 5 && v.size() == 3));
  const Vector<float> from_span(std::span<const float>(a.row(1)));
  CHECK((from_span.size() == 4 && from_span[2] == a(1, 2) && aligned(from_span.data())));
}

TEST_CASE("matrix: assignment takes over the shape, and keeps the memory where the sizes agree") {
  Matrix<float> a = counting(3, 4);
  const float* memory = a.data();
  a = counting(2, 6);
  CHECK((a.rows() == 2 && a.cols() == 6));
  const Matrix<float> source = counting(4, 3);
  memory = a.data();
  a = source;
  CHECK((a.data() == memory && a.rows() == 4 && a.cols() == 3 && same_bits(a.span(), source.span())));
  a = Matrix<float>(5, 5, 1.0f);
  CHECK((a.rows() == 5 && a.span()[24] == 1));
  Matrix<float>& self = a;
  a = self;
  CHECK((a.rows() == 5 && a(4, 4) == 1));
  a = std::move(self);
  CHECK((a.rows() == 5 && a(4, 4) == 1));
}

TEST_CASE("matrix: what was moved from is empty and can be used again") {
  Matrix<float> a = counting(3, 4);
  const float* memory = a.data();
  Matrix<float> b = std::move(a);
  CHECK((b.data() == memory && b.rows() == 3));
  CHECK((a.empty() && a.rows() == 0 && a.cols() == 0 && a.data() == nullptr));
  a = b;
  CHECK(same_bits(a.span(), b.span()));
  b = std::move(a);
  CHECK((a.empty() && b(2, 3) == 11));
  Vector<float> v(3, 1.0f), w = std::move(v);
  CHECK((v.empty() && w.size() == 3));
}

TEST_CASE("matrix: swapping exchanges the memory") {
  Matrix<float> a = counting(2, 2), b = counting(3, 3);
  const float *pa = a.data(), *pb = b.data();
  std::swap(a, b);
  CHECK((a.data() == pb && b.data() == pa && a.rows() == 3));
}

// Sizes whose product, or its bytes, does not fit: 2³¹, 2³² and 2⁶³ and what wraps around to zero or to a small number.
TEST_CASE("matrix: impossible shapes are errors before anything is allocated") {
  const Index big = std::numeric_limits<Index>::max();
  const Index p31 = Index(1) << 31, p32 = Index(1) << 32, p62 = Index(1) << 62;
  const std::pair<Index, Index> shapes[] = {
      {p31, p31},     {p32, p32},    {p32, p31},     {p31 + 1, p32}, {p62, 4},          {4, p62}, {p62, 8},
      {big, big},     {big, 2},      {2, big},       {big, 1},       {1, big},          {p62, 1}, {1, p62},
      {p31, p32 - 1}, {-1, 1},       {1, -1},        {-1, -1},       {-p32, -p32},      {0, -1},  {-1, 0},
      {p62 / 2, 1},   {-big - 1, 1}, {-big - 1, -1}, {1, -big - 1},  {p32 + 1, p32 - 1}};
  for (const auto& [rows, cols] : shapes) {
    CAPTURE(rows, cols);
    CHECK_THROWS_AS(Matrix<float>(rows, cols), ShapeError);
    CHECK_THROWS_AS(Matrix<double>(rows, cols), ShapeError);
    if (rows > 0 && cols > 0) {
      float element = 0;
      CHECK_THROWS_AS(Matrix<float>(MatrixView<const float>(&element, rows, cols)), ShapeError);
    }
  }
  for (const Index n : {p62, big, Index(-1), -big - 1, p62 / 2}) CHECK_THROWS_AS(Vector<float>(n), ShapeError);
  CHECK_THROWS_WITH(Matrix<float>(p32, p32),
                    "Matrix: expected rows * columns * 4 bytes below 2^63, got 4294967296 x 4294967296");
  // No elements is no problem, however long the other side.
  CHECK((Matrix<float>(big, 0).empty() && Matrix<float>(0, big).empty()));
}

TEST_CASE("matrix: when memory runs out, the target of an assignment is as it was") {
  const Matrix<float> source = counting(30, 40), before = counting(3, 4);
  Matrix<float> target = before;
  const float* memory = target.data();
  const auto points = support::fail_each_allocation(
      [&] {
        Matrix<float> copy = source;
        Matrix<float> from_view(source.view());
        target = Matrix<float>(3, 4);
        target = before;
        memory = target.data();
        target = source;
        target = before;
        memory = target.data();
      },
      [&] {
        const bool old = same_bits(target.span(), before.span()) && target.rows() == 3 && target.data() == memory;
        const bool zero = target.rows() == 3 && target(2, 3) == 0;  // between two assignments
        const bool whole = same_bits(target.span(), source.span()) && target.rows() == 30;
        CHECK((old || zero || whole));
        target = before;
        memory = target.data();
      });
  if (support::allocations_counted()) CHECK(points == 5);
  CHECK(same_bits(target.span(), before.span()));
}

TEST_CASE(
    "matrix: a shape that it has costs nothing and keeps all; another one is new zeros; an impossible one is refused") {
  Matrix<float> x(3, 4, 7.0f);
  Vector<float> y(3, 7.0f);
  const float *const x_memory = x.data(), *const y_memory = y.data();
  set_shape(x, 3, 4);
  set_shape(y, 3);
  CHECK((x.data() == x_memory && x(2, 3) == 7));
  CHECK((y.data() == y_memory && y[2] == 7));
  CHECK_THROWS_AS(set_shape(x, -1, 4), ShapeError);
  CHECK_THROWS_AS(set_shape(y, -1), ShapeError);
  CHECK((x.data() == x_memory && x(2, 3) == 7 && y.data() == y_memory));
  set_shape(x, 4, 3);  // as many elements
  set_shape(y, 2);
  CHECK((x.rows() == 4 && x.cols() == 3 && x(0, 0) == 0 && x(3, 2) == 0));
  CHECK((y.size() == 2 && y[0] == 0));
}

}  // namespace
}  // namespace matrix_test
