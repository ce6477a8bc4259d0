// SPDX-License-Identifier: MIT
#include <ruvector/train/losses.hpp>

#include "support/catch.hpp"
#include "train/loss_laws.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace ruvector_test_losses {
namespace {

using namespace loss_laws;

template <class T>
Matrix<T> uniform(Index n, Index d, Rng& rng, double low, double high) {
  Matrix<T> x(n, d);
  for (T& v : x.span()) v = T(rng.uniform(low, high));
  return x;
}

struct Smooth {
  static constexpr double gradient_step = 1e-4;
};

template <class T>
struct Mse : Smooth {
  static constexpr Index rows_of[] = {1, 1};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    return {{normal<T>(n, d, rng), normal<T>(n, d, rng)}, {}, {}, {}};
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::mse<T>(p.inputs[0], p.inputs[1], g[0], g[1], ws, rows, e);
  }
};

// Smoothed, with weights, and every fifth label ignored.
template <class T>
struct CrossEntropy : Smooth {
  static constexpr Index rows_of[] = {1};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    Problem<T> p{{normal<T>(n, d, rng, 2)}, {}, {}, {}};
    for (Index i = 0; i < n; ++i) p.labels.push_back(i % 5 == 3 ? -100 : rng.below(d));
    for (Index k = 0; k < d; ++k) p.side.push_back(T(rng.uniform(0.25, 2.0)));
    return p;
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::cross_entropy<T>(p.inputs[0], p.labels, g[0], ws,
                                   {.label_smoothing = T(0.125), .class_weights = p.side}, rows, e);
  }
};

template <class T>
struct SoftCrossEntropy : Smooth {
  static constexpr Index rows_of[] = {1, 1};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    Problem<T> p{{normal<T>(n, d, rng, 2), uniform<T>(n, d, rng, 0.1, 1)}, {}, {}, {}};
    for (Index k = 0; k < d; ++k) p.side.push_back(T(rng.uniform(0.25, 2.0)));
    return p;
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::soft_cross_entropy<T>(p.inputs[0], p.inputs[1], g[0], g[1], ws,
                                        {.label_smoothing = T(0.125), .class_weights = p.side}, rows, e);
  }
};

template <class T>
struct BceWithLogits : Smooth {
  static constexpr Index rows_of[] = {1, 1};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    Problem<T> p{{normal<T>(n, d, rng, 2), uniform<T>(n, d, rng, 0, 1)}, {}, {}, {}};
    for (Index k = 0; k < d; ++k) p.side.push_back(T(rng.uniform(0.25, 4.0)));
    return p;
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::bce_with_logits<T>(p.inputs[0], p.inputs[1], g[0], g[1], ws, p.side, rows, e);
  }
};

template <class T>
struct Bce {
  static constexpr double gradient_step = 1e-5;  // probabilities are 0.1 from the poles
  static constexpr Index rows_of[] = {1, 1};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    return {{uniform<T>(n, d, rng, 0.1, 0.9), uniform<T>(n, d, rng, 0, 1)}, {}, {}, {}};
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::bce<T>(p.inputs[0], p.inputs[1], g[0], g[1], ws, rows, e);
  }
};

TEST_CASE("losses: gradients of all inputs", "[train][losses][gradient]") {
  gradients_are_right<Mse>(1);
  gradients_are_right<CrossEntropy>(2);
  gradients_are_right<SoftCrossEntropy>(3);
  gradients_are_right<BceWithLogits>(4);
  gradients_are_right<Bce>(5);
}

TEMPLATE_TEST_CASE("losses: a row depends on itself, results not on the workers", "[train][losses]", float, double) {
  a_row_depends_on_itself<Mse, TestType>(11);
  a_row_depends_on_itself<CrossEntropy, TestType>(12);
  a_row_depends_on_itself<SoftCrossEntropy, TestType>(13);
  a_row_depends_on_itself<BceWithLogits, TestType>(14);
  a_row_depends_on_itself<Bce, TestType>(15);
}

TEMPLATE_TEST_CASE("losses: NaN stays in its row, nothing is allocated, shapes are checked", "[train][losses]", float,
                   double) {
  keeps_the_other_promises<Mse, TestType>(21);
  keeps_the_other_promises<CrossEntropy, TestType>(22);
  keeps_the_other_promises<SoftCrossEntropy, TestType>(23);
  keeps_the_other_promises<BceWithLogits, TestType>(24);
  keeps_the_other_promises<Bce, TestType>(25);
}

TEMPLATE_TEST_CASE("losses: agree with PyTorch", "[train][losses][golden]", float, double) {
  using T = TestType;
  constexpr Index n = 7, c = 19;
  Workspace ws;
  {
    Golden file("mse");
    const Matrix<T> p = file.matrix<T>(n, c), t = file.matrix<T>(n, c);
    agrees<Mse<T>>(Problem<T>{{p, t}, {}, {}, {}}, file, 2);
  }
  const std::pair<std::string, std::pair<double, bool>> runs[] = {
      {"plain", {0, false}}, {"smooth", {0.1, false}}, {"weighted", {0, true}}, {"smooth_weighted", {0.25, true}}};
  for (const auto& [name, options] : runs) {
    CAPTURE(name);
    Golden file("cross_entropy_" + name);
    std::vector<Index> labels;
    const Matrix<double> numbers = file.matrix<double>(1, n);
    for (const double y : numbers.span()) labels.push_back(Index(y));
    const Matrix<T> weights = file.matrix<T>(1, c), x = file.matrix<T>(n, c);
    Matrix<T> d_x(n, c);
    Vector<T> losses(n);
    const LossSum loss = train::cross_entropy<T>(
        x, labels, d_x, ws,
        {.label_smoothing = T(options.first), .class_weights = options.second ? weights.span() : std::span<const T>()},
        {.losses = losses});
    CHECK(support::first_far(losses.span(), file.matrix<double>(1, n).span(), golden<T>) == -1);
    CHECK(support::near(loss.mean(), file.matrix<double>(1, 1)(0, 0), golden<T>));
    CHECK(support::first_far(d_x.span(), file.matrix<double>(n, c).span(), golden<T>) == -1);
    CHECK(file.done());
  }
  {
    Golden file("cross_entropy_soft");
    const Matrix<T> weights = file.matrix<T>(1, c), x = file.matrix<T>(n, c), t = file.matrix<T>(n, c);
    agrees<SoftCrossEntropy<T>>(Problem<T>{{x, t}, {}, {}, {weights.span().begin(), weights.span().end()}}, file, 2);
  }
  {
    Golden file("bce_with_logits");
    const Matrix<T> omega = file.matrix<T>(1, c), x = file.matrix<T>(n, c), t = file.matrix<T>(n, c);
    agrees<BceWithLogits<T>>(Problem<T>{{x, t}, {}, {}, {omega.span().begin(), omega.span().end()}}, file, 2);
  }
  {
    Golden file("bce");
    const Matrix<T> p = file.matrix<T>(n, c), t = file.matrix<T>(n, c);
    agrees<Bce<T>>(Problem<T>{{p, t}, {}, {}, {}}, file, 1);
  }
}

TEMPLATE_TEST_CASE("losses: huge logits and probabilities of 0 and 1 are finite", "[train][losses]", float, double) {
  using T = TestType;
  Workspace ws;
  const T huge = std::numeric_limits<T>::max() / 4;
  Matrix<T> x(4, 3), d_x(4, 3), t(4, 3), d_t(4, 3);
  x(0, 0) = huge;
  x(1, 0) = -huge;
  x(2, 1) = huge;
  x(2, 2) = -huge;
  t(0, 0) = t(3, 0) = 1;
  const std::vector<Index> labels = {0, 0, 2, 1};
  Vector<T> losses(4);
  const auto finite = [](std::span<const T> values) {
    return std::ranges::all_of(values, [](T v) { return std::isfinite(v); });
  };
  (void)train::cross_entropy<T>(x, labels, d_x, ws, {}, {.losses = losses});
  CHECK(finite(losses));
  CHECK(finite(d_x.span()));
  CHECK(losses[0] == 0);
  CHECK(losses[1] == huge + T(std::log(2.0)));
  (void)train::bce_with_logits<T>(x, t, d_x, d_t, ws, {}, {.losses = losses});
  CHECK(finite(losses));
  CHECK(finite(d_x.span()));
  CHECK(finite(d_t.span()));
  const Matrix<T> p = t;  // zeros and ones, right and wrong
  Matrix<T> wrong(4, 3, T(1));
  for (std::size_t i = 0; i < 12; ++i) wrong.span()[i] -= t.span()[i];
  const LossSum right = train::bce<T>(p, t, d_x, d_t, ws), opposite = train::bce<T>(p, wrong, d_x, d_t, ws);
  CHECK(right.sum == 0);
  CHECK(opposite.mean() == 100);
  CHECK(finite(d_x.span()));
  CHECK(finite(d_t.span()));
}

TEST_CASE("losses: a small loss keeps its digits beside large logits", "[train][losses]") {
  Workspace ws;
  Matrix<float> x(1, 2);
  x(0, 0) = 20000;
  x(0, 1) = 19998;
  const LossSum loss = train::cross_entropy<float>(x, std::vector<Index>{0}, {}, ws);
  CHECK(loss.sum == Approx(std::log1p(std::exp(-2.0))).epsilon(1e-6));
}

TEST_CASE("losses: ignored labels have no loss, no gradient, no weight; wrong ones are refused", "[train][losses]") {
  Workspace ws;
  Rng rng(3);
  const Matrix<double> x = normal<double>(4, 3, rng);
  Matrix<double> d_x(4, 3);
  const std::vector<Index> ignored(4, -100);
  const LossSum nothing = train::cross_entropy<double>(x, ignored, d_x, ws);
  CHECK(nothing.sum == 0);
  CHECK(nothing.weight == 0);
  CHECK(nothing.mean() == 0);
  CHECK(std::ranges::all_of(d_x.span(), [](double g) { return g == 0; }));

  const std::vector<Index> some = {2, 7, 7, 0};
  const LossSum two = train::cross_entropy<double>(x, some, d_x, ws, {.ignore_label = 7});
  CHECK(two.weight == 2);
  CHECK(std::ranges::all_of(d_x.row(1), [](double g) { return g == 0; }));
  for (const Index bad : {-1, 3, -100}) {
    Matrix<double> untouched(4, 3);
    CHECK_THROWS_AS(
        train::cross_entropy<double>(x, std::vector<Index>{0, 1, 2, bad}, untouched, ws, {.ignore_label = 7}),
        ConfigError);
    CHECK(std::ranges::all_of(untouched.span(), [](double g) { return g == 0; }));
  }
  CHECK_THROWS_AS(train::cross_entropy<double>(x, std::vector<Index>{0, 1}, d_x, ws), ShapeError);
  CHECK_THROWS_AS(train::cross_entropy<double>(x, some, d_x, ws, {.ignore_label = 7, .label_smoothing = 1.5}),
                  ConfigError);
  const std::vector<double> weights(2, 1.0);
  CHECK_THROWS_AS(train::cross_entropy<double>(x, some, d_x, ws, {.ignore_label = 7, .class_weights = weights}),
                  ShapeError);
  CHECK_THROWS_AS(train::bce_with_logits<double>(x, x, d_x, {}, ws, weights), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_losses
