// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <ruvector/core/eigen.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/view.hpp>

#include <Eigen/Core>
#include <concepts>
#include <span>
#include <type_traits>
#include <utility>

namespace view_test {
namespace {

using ruvector::EigenMatrix;
using ruvector::Index;
using ruvector::Matrix;
using ruvector::MatrixView;
using ruvector::ShapeError;
using ruvector::Vector;

template <class From, class T>
constexpr bool views = std::is_convertible_v<From, MatrixView<T>>;

using RowMajor = EigenMatrix<float>;
using ColumnMajor = Eigen::MatrixXf;
using Fixed = Eigen::Matrix<float, 3, 4, Eigen::RowMajor>;
using RowBlock = decltype(std::declval<RowMajor&>().middleCols(0, 1));
using ConstRowBlock = decltype(std::declval<const RowMajor&>().middleCols(0, 1));
using ColumnBlock = decltype(std::declval<ColumnMajor&>().middleCols(0, 1));
using EverySecond = Eigen::Map<RowMajor, 0, Eigen::Stride<Eigen::Dynamic, 2>>;
using AnyStride = Eigen::Map<RowMajor, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

// What becomes a view without a copy.
static_assert(views<RowMajor&, float> && views<RowMajor&, const float> && views<const RowMajor&, const float>);
static_assert(views<Fixed&, float> && views<const Fixed&, const float>);
static_assert(views<RowBlock, float> && views<RowBlock, const float> && views<ConstRowBlock, const float>);
static_assert(views<Eigen::Map<RowMajor>, float> && views<Eigen::Map<const RowMajor>, const float>);
static_assert(views<Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>, float> && views<Eigen::Ref<RowMajor>, float>);
static_assert(views<Eigen::RowVectorXf&, float> && views<EigenMatrix<double>&, double>);
static_assert(views<MatrixView<float>, const float> && views<Matrix<float>&, float> &&
              views<const Matrix<float>&, const float> && views<Matrix<float>&, const float>);
// Column-major would be read transposed.
static_assert(!views<ColumnMajor&, float> && !views<const ColumnMajor&, const float> && !views<ColumnBlock, float>);
static_assert(!views<decltype(std::declval<RowMajor&>().transpose()), float> && !views<Eigen::VectorXf&, float>);
// Rows with gaps between their elements.
static_assert(!views<EverySecond, float> && !views<AnyStride, float>);
// The elements would die with the temporary.
static_assert(!views<RowMajor, float> && !views<RowMajor, const float> && !views<const RowMajor, const float>);
static_assert(!views<Matrix<float>, float> && !views<Matrix<float>, const float> &&
              !views<const Matrix<float>, const float>);
// An expression has no elements yet.
static_assert(!views<decltype(std::declval<RowMajor&>() + std::declval<RowMajor&>()), const float>);
// const is not lost, and no other scalar is read.
static_assert(!views<const RowMajor&, float> && !views<ConstRowBlock, float> && !views<const Matrix<float>&, float>);
static_assert(!views<MatrixView<const float>, float> && !views<Eigen::Map<const RowMajor>, float>);
static_assert(!views<RowMajor&, double> && !views<RowMajor&, const double> && !views<Matrix<float>&, const double>);
static_assert(!views<MatrixView<float>, double> && !views<float*, float> && !views<int, float>);

static_assert(sizeof(MatrixView<float>) == 4 * sizeof(void*) && std::is_trivially_copyable_v<MatrixView<float>>);
static_assert(std::same_as<MatrixView<const float>::Scalar, float>);

template <class M>
concept Maps = requires(M&& m) {
  ruvector::eigen(std::forward<M>(m));
};
static_assert(Maps<Matrix<float>&> && Maps<const Matrix<float>&> && Maps<MatrixView<float>> && Maps<Vector<float>&> &&
              Maps<const Vector<float>&> && Maps<std::span<const float>>);
static_assert(!Maps<Matrix<float>> && !Maps<const Matrix<float>> && !Maps<Vector<float>> && !Maps<const Vector<float>>);

RowMajor counting(Index rows, Index cols) {
  RowMajor m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = float(i);
  return m;
}

TEST_CASE("view: reads and writes the elements of Eigen's matrices, blocks and maps in place") {
  RowMajor m = counting(4, 6);
  const MatrixView<float> whole = m;
  CHECK((whole.data() == m.data() && whole.rows() == 4 && whole.cols() == 6 && whole.stride() == 6));
  CHECK((whole.size() == 24 && whole.contiguous() && !whole.empty()));
  whole(1, 2) = -1;
  CHECK(m(1, 2) == -1);

  const MatrixView<float> block = m.block(1, 2, 3, 2);
  CHECK((block.rows() == 3 && block.cols() == 2 && block.stride() == 6 && !block.contiguous()));
  CHECK((block(0, 0) == -1 && block(2, 1) == 21 && block.row(1)[0] == 14));
  CHECK(block.data() == &m(1, 2));

  const Fixed fixed = Fixed::Constant(2);
  const MatrixView<const float> view = fixed;
  CHECK((view.rows() == 3 && view.cols() == 4 && view(2, 3) == 2));
}

TEST_CASE("view: rows and columns of views are views") {
  RowMajor m = counting(5, 8);
  const MatrixView<const float> view = m;
  const auto head = view.cols(4, 2), middle = view.rows(1, 3), both = view.rows(1, 3).cols(4, 2);
  CHECK((head.rows() == 5 && head.cols() == 2 && head(3, 1) == m(3, 5)));
  CHECK((middle.rows() == 3 && middle.cols() == 8 && middle(2, 7) == m(3, 7) && middle.contiguous()));
  CHECK((both(0, 0) == m(1, 4) && !both.contiguous() && both.rows(1, 1).contiguous()));
  CHECK((view.rows(5, 0).empty() && view.cols(8, 0).empty() && view.rows(0, 5).size() == 40));
  const MatrixView<float> none;
  CHECK((none.empty() && none.rows(0, 0).empty() && none.cols(0, 0).empty() && none.data() == nullptr));
}

TEST_CASE("view: copy writes every element, also where the rows have gaps, and refuses other shapes") {
  RowMajor from = counting(3, 4), to = RowMajor::Zero(3, 6);
  ruvector::copy(from, MatrixView<float>(to).cols(1, 4));
  CHECK(to.middleCols(1, 4) == from);
  CHECK((to.col(0).isZero() && to.col(5).isZero()));
  ruvector::copy(MatrixView<float>(to), MatrixView<float>(to));  // the same elements
  CHECK(to.middleCols(1, 4) == from);
  CHECK_THROWS_WITH(ruvector::copy(from, MatrixView<float>(to)), "copy: columns: expected 4, got 6");
  CHECK_THROWS_AS(ruvector::copy(from, MatrixView<float>(to).cols(0, 4).rows(0, 2)), ShapeError);
}

TEST_CASE("eigen: maps read and write the elements in place, whatever their stride") {
  Matrix<double> a(2, 3, 1.0), b(3, 2, 2.0), c(2, 4);
  ruvector::eigen(c.view().cols(1, 2)).noalias() = ruvector::eigen(a) * ruvector::eigen(b);
  for (Index i = 0; i < 2; ++i) CHECK((c(i, 0) == 0 && c(i, 1) == 6 && c(i, 2) == 6 && c(i, 3) == 0));
  const Matrix<double>& constant = a;
  CHECK(ruvector::eigen(constant).data() == a.data());
  Vector<double> v(3, 2.0);
  ruvector::eigen(v) *= 2;
  const Vector<double>& constant_vector = v;
  CHECK(ruvector::eigen(constant_vector).sum() == 12);
  CHECK(ruvector::eigen(std::span<const double>(v)).squaredNorm() == 48);
  CHECK(ruvector::eigen(Matrix<double>(0, 3).span()).size() == 0);
}

}  // namespace
}  // namespace view_test
