// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/nn/dropout.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>

namespace ruvector_test_dropout {
namespace {

using namespace ruvector;
using nn::Dropout;
using row_map_laws::random_matrix;

constexpr std::uint64_t seed = 44;

TEST_CASE("dropout: keeps the share it should, scaled so that the mean stays, in every row and column", "[nn]") {
  CAPTURE(seed);
  for (const double p : {0.0, 0.1, 0.5, 0.9}) {
    CAPTURE(p);
    Rng rng(seed);
    constexpr Index n = 1000, dim = 300;
    const Matrix<double> x(n, dim, 3);
    Matrix<double> y(n, dim);
    Dropout::Saved saved;
    Dropout(p).forward<double>(x, y, rng, saved);
    const auto share = [&](auto&& at, Index count) {
      Index dropped = 0;
      for (Index k = 0; k < count; ++k) {
        const double v = at(k);
        CHECK((v == 0 || support::near(v, 3 / (1 - p), {.relative = 1e-15})));
        dropped += v == 0 ? 1 : 0;
      }
      // Five standard deviations.
      return std::abs(double(dropped) / double(count) - p) <= 5 * std::sqrt(p * (1 - p) / double(count));
    };
    CHECK(share([&](Index k) { return y.data()[k]; }, 20'000));
    for (const Index fixed : {0, 1, 255, 256, 299}) {
      CHECK(share([&](Index k) { return y(fixed, k); }, dim));
      CHECK(share([&](Index k) { return y(k, fixed); }, n));
    }
  }
}

TEST_CASE("dropout: other calls and rows drop other elements, one seed the same ones", "[nn]") {
  Rng rng(seed), again(seed);
  const Matrix<float> x(320, 40, 1);
  Matrix<float> a(320, 40), b(320, 40), c(320, 40);
  Dropout::Saved saved;
  const Dropout dropout(0.5);
  dropout.forward<float>(x, a, rng, saved);
  dropout.forward<float>(x, b, rng, saved);
  dropout.forward<float>(x, c, again, saved);
  CHECK(support::same_bits(a.span(), c.span()));
  const auto agreement = [](auto p, auto q) {
    double same = 0;
    for (std::size_t k = 0; k < p.size(); ++k) same += p[k] == q[k] ? 1 : 0;
    return same / double(p.size());
  };
  CHECK(agreement(a.span(), b.span()) == Approx(0.5).margin(0.05));
  // The next element, the next row, and the same row of another task.
  for (const std::size_t apart : {1u, 40u, 40u * 256u}) {
    const std::size_t count = a.span().size() - apart;
    CHECK(agreement(a.span().first(count), a.span().last(count)) == Approx(0.5).margin(0.05));
  }
}

TEMPLATE_TEST_CASE("dropout: backward goes where forward went, and adds", "[nn][gradient]", float, double) {
  using T = TestType;
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index n : {0, 1, 300})
    for (const Index dim : {0, 1, 37}) {
      const auto x = random_matrix<T>(n, dim, rng), d_y = random_matrix<T>(n, dim, rng);
      Matrix<T> y(n, dim, T(NAN)), d_x(n, dim, 8);
      Dropout::Saved saved;
      const Dropout dropout(0.4);
      dropout.forward<T>(x, y, rng, saved);
      dropout.backward<T>(saved, d_y, d_x);
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < dim; ++j) {
          const double slope = y(i, j) == 0 ? 0 : double(y(i, j)) / double(x(i, j));  // y is linear in x
          CHECK(support::near(double(d_x(i, j)), 8 + slope * double(d_y(i, j)),
                              {.relative = 4 * double(std::numeric_limits<T>::epsilon())}));
        }
    }
}

TEST_CASE("dropout: the same bits for any number of workers, in place, in strided rows, without allocation",
          "[nn][law]") {
  Rng rng(seed);
  const auto x = random_matrix<float>(700, 19, rng), d_y = random_matrix<float>(700, 19, rng);
  Matrix<float> y(700, 19), d_x(700, 19);
  const Dropout dropout(0.3);
  Dropout::Saved saved;
  const Rng start = rng;
  dropout.forward<float>(x, y, rng, saved);
  dropout.backward<float>(saved, d_y, d_x);
  for (const Index threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Rng same = start;
    Matrix<float> wide(700, 25, 7), d(700, 19);
    copy<float>(x, wide.view().cols(3, 19));
    Dropout::Saved own;
    dropout.forward<float>(wide.view().cols(3, 19), wide.view().cols(3, 19), same, own, pool);
    dropout.backward<float>(own, d_y, d.view(), pool);
    bool equal = support::same_bits(d.span(), d_x.span());
    for (Index i = 0; i < 700; ++i)
      equal =
          equal && support::same_bits(wide.view().cols(3, 19).row(i), y.row(i)) && wide(i, 2) == 7 && wide(i, 22) == 7;
    CHECK(equal);
  }
  CHECK(support::allocations_in([&] {
          dropout.forward<float>(x, y, rng, saved);
          dropout.backward<float>(saved, d_y, d_x);
        }) == 0);
}

TEST_CASE("dropout: what is dropped does not matter, what is kept does", "[nn]") {
  Rng rng(seed);
  const Matrix<float> x(10, 50, NAN);
  Matrix<float> y(10, 50);
  Dropout::Saved saved;
  Dropout(0.5).forward<float>(x, y, rng, saved);
  Index zero = 0;
  for (const float v : y.span()) {
    CHECK((v == 0 || std::isnan(v)));
    zero += v == 0 ? 1 : 0;
  }
  CHECK(zero > 200);
  CHECK(zero < 300);
}

TEST_CASE("dropout: shapes and options that do not fit are refused", "[nn]") {
  Rng rng(seed);
  Dropout::Saved saved;
  Matrix<float> x(4, 3), y(4, 2);
  CHECK_THROWS_AS(Dropout(0.5).forward<float>(x, y, rng, saved), ShapeError);
  CHECK_THROWS_AS(Dropout(0.5).backward<float>(saved, x, y), ShapeError);
  for (const double bad : {1.0, -0.1, 2.0, double(NAN)}) CHECK_THROWS_AS(Dropout(bad), ConfigError);
}

}  // namespace
}  // namespace ruvector_test_dropout
