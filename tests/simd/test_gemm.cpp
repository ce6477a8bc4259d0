// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/simd/gemm.hpp>
#include <ruvector/simd/transpose.hpp>

#include <cmath>

#include "support/catch.hpp"
#include "support/trials.hpp"

namespace test_gemm {
namespace {

using namespace ruvector;

template <class T>
Matrix<T> random_matrix(Index rows, Index cols, Rng& rng) {
  Matrix<T> matrix(rows, cols);
  for (T& x : matrix.span()) x = rng.uniform(T(-1), T(1));
  return matrix;
}

template <class T>
Matrix<T> transposed(const Matrix<T>& a) {
  Matrix<T> b(a.cols(), a.rows());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) b(j, i) = a(i, j);
  return b;
}

constexpr Index sizes[] = {0, 1, 2, 3, 5, 6, 7, 15, 16, 17, 31, 63, 64, 65, 97, 130};

// |c − Σ a b| ≤ k ε Σ |a b| bounds any order of summation with or without fma (Higham 2002, §3.1).
template <class T>
void check_product(const Matrix<T>& c, const Matrix<T>& a, const Matrix<T>& b, T start) {
  const double eps = double(std::numeric_limits<T>::epsilon()) / 2;
  for (Index i = 0; i < c.rows(); ++i) {
    for (Index j = 0; j < c.cols(); ++j) {
      long double sum = static_cast<long double>(start);
      double magnitude = std::fabs(double(start));
      for (Index p = 0; p < a.cols(); ++p) {
        sum += static_cast<long double>(a(i, p)) * static_cast<long double>(b(p, j));
        magnitude += std::fabs(double(a(i, p)) * double(b(p, j)));
      }
      const double error = std::fabs(double(static_cast<long double>(c(i, j)) - sum));
      if (!(error <= double(a.cols() + 2) * eps * magnitude)) {
        CAPTURE(i, j, c.rows(), c.cols(), a.cols(), error);
        FAIL("beyond the rounding bound");
      }
    }
  }
}

TEMPLATE_TEST_CASE("gemm: plain and transposed products agree with the sum of products for every shape", "[simd]",
                   float, double) {
  Rng rng(11);
  Workspace workspace;
  Index products = 0;
  for (const Index m : sizes) {
    for (const Index n : sizes) {
      for (const Index k : {Index(0), Index(1), Index(3), Index(64), support::trials<Index>(400, 193)}) {
        const auto a = random_matrix<TestType>(m, k, rng);
        const auto b = random_matrix<TestType>(k, n, rng);
        Matrix<TestType> c(m, n, TestType(9));
        simd::gemm<TestType>(a, b, c, workspace);
        check_product(c, a, b, TestType(0));
        Matrix<TestType> same(m, n, TestType(9));
        simd::gemm_transposed<TestType>(a, transposed(b).view(), same, workspace);
        CHECK(std::equal(c.span().begin(), c.span().end(), same.span().begin()));
        std::ranges::fill(same.span(), TestType(9));
        auto frame = workspace.frame();
        simd::PackedTransposed<TestType>(transposed(b).view(), frame).multiply(a, same);
        CHECK(std::equal(c.span().begin(), c.span().end(), same.span().begin()));
        simd::gemm_left_transposed<TestType>(transposed(a).view(), b, same, workspace);
        CHECK(std::equal(c.span().begin(), c.span().end(), same.span().begin()));
        std::ranges::fill(c.span(), TestType(0.75));
        simd::gemm<TestType>(a, b, c, workspace, simd::Product::accumulate);
        check_product(c, a, b, TestType(0.75));
        ++products;
      }
    }
  }
  CHECK(products == Index(std::size(sizes) * std::size(sizes) * 5));
}

TEMPLATE_TEST_CASE("gemm: a row does not depend on the rows and columns beside it", "[simd]", float, double) {
  Rng rng(12);
  Workspace workspace;
  const auto a = random_matrix<TestType>(40, 300, rng);
  const auto b = random_matrix<TestType>(300, 90, rng);
  Matrix<TestType> whole(40, 90);
  simd::gemm<TestType>(a, b, whole, workspace);
  for (Index first = 0; first < 40; first += 3) {
    for (Index rows = 1; first + rows <= 40; rows += 8) {
      for (Index column = 0; column < 90; column += 11) {
        const Index cols = std::min(Index(7), 90 - column);
        Matrix<TestType> part(rows, cols);
        simd::gemm<TestType>(a.view().rows(first, rows), b.view().cols(column, cols), part, workspace);
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < cols; ++j) REQUIRE(part(i, j) == whole(first + i, column + j));
      }
    }
  }
}

TEMPLATE_TEST_CASE("gemm: writes its block of a larger matrix and nothing beside it", "[simd]", float, double) {
  Rng rng(13);
  Workspace workspace;
  const auto a = random_matrix<TestType>(13, 21, rng);
  const auto b = random_matrix<TestType>(21, 37, rng);
  Matrix<TestType> large(20, 50, TestType(5));
  simd::gemm<TestType>(a, b, large.view().rows(2, 13).cols(4, 37), workspace);
  Matrix<TestType> c(13, 37);
  simd::gemm<TestType>(a, b, c, workspace);
  for (Index i = 0; i < 20; ++i) {
    for (Index j = 0; j < 50; ++j) {
      const bool inside = i >= 2 && i < 15 && j >= 4 && j < 41;
      REQUIRE(large(i, j) == (inside ? c(i - 2, j - 4) : TestType(5)));
    }
  }
}

TEST_CASE("gemm: a packed factor of several blocks serves any rows of the left one", "[simd]") {
  Rng rng(13);
  Workspace workspace;
  const auto a = random_matrix<float>(23, 401, rng), b = random_matrix<float>(1001, 401, rng);
  Matrix<float> whole(23, 1001), parts(23, 1001);
  simd::gemm_transposed<float>(a, b, whole, workspace);
  auto frame = workspace.frame();
  const simd::PackedTransposed<float> packed(b, frame);
  packed.multiply(a.view().rows(0, 9), parts.view().rows(0, 9));
  packed.multiply(a.view().rows(9, 14), parts.view().rows(9, 14));
  CHECK(std::ranges::equal(whole.span(), parts.span()));
  CHECK_THROWS_AS(packed.multiply(a, parts.view().cols(0, 1000)), ShapeError);
  CHECK_THROWS_AS(packed.multiply(a.view().cols(0, 400), parts), ShapeError);
}

TEST_CASE("gemm: sizes that do not fit are refused by name, and nothing is written", "[simd]") {
  Workspace workspace;
  const Matrix<float> a(2, 3), b(4, 5);
  Matrix<float> c(2, 5, 1.0f);
  CHECK_THROWS_WITH(simd::gemm<float>(a, b, c, workspace), "gemm: rows of b: expected 3, got 4");
  CHECK_THROWS_AS(simd::gemm_transposed<float>(a, b, c, workspace), ShapeError);
  CHECK_THROWS_AS(simd::gemm_left_transposed<float>(a, b, c, workspace), ShapeError);
  CHECK(c(1, 4) == 1.0f);
}

TEMPLATE_TEST_CASE("transpose: element (i, j) moves to (j, i), in views too", "[simd]", float, double) {
  Rng rng(14);
  for (const Index m : sizes) {
    for (const Index n : sizes) {
      const auto a = random_matrix<TestType>(m, n, rng);
      Matrix<TestType> large(n + 2, m + 3, TestType(7));
      simd::transpose<TestType>(a, large.view().rows(1, n).cols(2, m));
      for (Index i = 0; i < n + 2; ++i) {
        for (Index j = 0; j < m + 3; ++j) {
          const bool inside = i >= 1 && i < n + 1 && j >= 2 && j < m + 2;
          REQUIRE(large(i, j) == (inside ? a(j - 2, i - 1) : TestType(7)));
        }
      }
    }
  }
  Matrix<TestType> wrong(2, 2);
  CHECK_THROWS_AS(simd::transpose<TestType>(random_matrix<TestType>(2, 3, rng).view(), wrong.view()), ShapeError);
}

}  // namespace
}  // namespace test_gemm
