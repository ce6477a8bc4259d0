// SPDX-License-Identifier: MIT
#include <ruvector/train/contrastive.hpp>

#include "support/catch.hpp"
#include "train/loss_laws.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace ruvector_test_contrastive {
namespace {

using namespace loss_laws;
using train::ContrastiveForm;
using train::InfoNceConfig;
using train::Pair;

constexpr ContrastiveForm forms[] = {ContrastiveForm::each_against_negatives, ContrastiveForm::each_against_all,
                                     ContrastiveForm::together};

Matrix<Pair> random_pairs(Index n, Index m, Rng& rng) {
  Matrix<Pair> pairs(n, m);
  for (Pair& pair : pairs.span()) pair = Pair(rng.below(3));
  return pairs;
}

// Scores are the input: [n×d].
template <ContrastiveForm form>
struct Scores {
  template <class T>
  struct Loss {
    static constexpr double gradient_step = 1e-4;
    static constexpr Index rows_of[] = {1};
    static Problem<T> make(Index n, Index d, Rng& rng) {
      return {{normal<T>(n, d, rng, 2)}, {}, random_pairs(n, d, rng), {}};
    }
    template <class E>
    static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
      return train::contrastive<T>(p.inputs[0], p.pairs, g[0], form, ws, rows, e);
    }
  };
};

// Queries [n×d] and 7 keys that they share.
template <ContrastiveForm form, bool cosine>
struct Embeddings {
  template <class T>
  struct Loss {
    static constexpr double gradient_step = 1e-5;  // norms may be 0.1
    static constexpr Index rows_of[] = {1, 0};
    static Problem<T> make(Index n, Index d, Rng& rng) {
      Problem<T> p{{normal<T>(n, d, rng), normal<T>(7, d, rng)}, {}, random_pairs(n, 7, rng), {}};
      for (Matrix<T>& x : p.inputs)  // away from 0, where a cosine has a kink
        for (T& v : x.span()) v += v < 0 ? T(-0.25) : T(0.25);
      return p;
    }
    template <class E>
    static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
      return train::info_nce<T>(p.inputs[0], p.inputs[1], p.pairs, g[0], g[1], ws,
                                {.temperature = 0.5, .cosine = cosine, .form = form}, rows, e);
    }
  };
};

// Three negatives a row. Rows are far apart or near enough that no hinge is within a step.
template <class T>
struct Triplet {
  static constexpr double gradient_step = 1e-5;
  static constexpr Index rows_of[] = {1, 1, 3};
  static Problem<T> make(Index n, Index d, Rng& rng) {
    Problem<T> p;
    const auto distance = [](auto a, auto b) { return std::sqrt(double(simd::squared_distance<T>(a, b))); };
    do {
      p.inputs = {normal<T>(n, d, rng), normal<T>(n, d, rng), normal<T>(3 * n, d, rng)};
      bool smooth = true;
      for (Index j = 0; j < 3 * n; ++j) {
        const double near = distance(std::as_const(p.inputs[0]).row(j / 3), std::as_const(p.inputs[1]).row(j / 3)),
                     far = distance(std::as_const(p.inputs[0]).row(j / 3), std::as_const(p.inputs[2]).row(j));
        smooth = smooth && near > 0.01 && far > 0.01 && std::abs(near - far + 0.5) > 1e-3;
      }
      if (smooth || n > 20) return p;
    } while (true);
  }
  template <class E>
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws, E& e) {
    return train::triplet_margin<T>(p.inputs[0], p.inputs[1], p.inputs[2], g[0], g[1], g[2], ws, 0.5, rows, e);
  }
};

// One negative a row.
template <class T>
struct TorchTriplet {
  static constexpr Index rows_of[] = {1, 1, 1};
  static LossSum call(const Problem<T>& p, std::vector<Matrix<T>>& g, const LossRows<T>& rows, Workspace& ws,
                      Serial& e) {
    return train::triplet_margin<T>(p.inputs[0], p.inputs[1], p.inputs[2], g[0], g[1], g[2], ws, 0.75, rows, e);
  }
};

TEST_CASE("contrastive: gradients of all inputs", "[train][contrastive][gradient]") {
  gradients_are_right<Scores<ContrastiveForm::each_against_negatives>::Loss>(1);
  gradients_are_right<Scores<ContrastiveForm::each_against_all>::Loss>(2);
  gradients_are_right<Scores<ContrastiveForm::together>::Loss>(3);
  gradients_are_right<Embeddings<ContrastiveForm::each_against_negatives, true>::Loss>(4);
  gradients_are_right<Embeddings<ContrastiveForm::each_against_all, true>::Loss>(5);
  gradients_are_right<Embeddings<ContrastiveForm::together, true>::Loss>(6);
  gradients_are_right<Embeddings<ContrastiveForm::each_against_all, false>::Loss>(7);
  gradients_are_right<Triplet>(8);
}

TEMPLATE_TEST_CASE("contrastive: a row depends on itself, results not on the workers", "[train][contrastive]", float,
                   double) {
  a_row_depends_on_itself<Scores<ContrastiveForm::each_against_negatives>::Loss, TestType>(11);
  a_row_depends_on_itself<Scores<ContrastiveForm::together>::Loss, TestType>(12);
  a_row_depends_on_itself<Embeddings<ContrastiveForm::each_against_all, true>::Loss, TestType>(13);
  a_row_depends_on_itself<Embeddings<ContrastiveForm::each_against_all, false>::Loss, TestType>(14);
  a_row_depends_on_itself<Triplet, TestType>(15);
}

TEMPLATE_TEST_CASE("contrastive: NaN stays in its row, nothing is allocated, shapes are checked",
                   "[train][contrastive]", float, double) {
  using T = TestType;
  keeps_the_other_promises<Triplet, T>(21);
  keeps_the_other_promises<Scores<ContrastiveForm::each_against_all>::Loss, T>(22);
}

TEMPLATE_TEST_CASE("contrastive: agrees with PyTorch", "[train][contrastive][golden]", float, double) {
  using T = TestType;
  {
    Golden file("triplet");
    const Matrix<T> a = file.matrix<T>(7, 19), b = file.matrix<T>(7, 19), c = file.matrix<T>(7, 19);
    agrees<TorchTriplet<T>>(Problem<T>{{a, b, c}, {}, {}, {}}, file, 3);
  }
  const std::string names[] = {"negatives", "all", "together"};
  for (std::size_t f = 0; f < 3; ++f) {
    CAPTURE(names[f]);
    Golden file("info_nce_" + names[f]);
    const Matrix<double> numbers = file.matrix<double>(5, 9);
    Matrix<Pair> pairs(5, 9);
    for (std::size_t i = 0; i < 45; ++i) pairs.span()[i] = Pair(numbers.span()[i]);
    const Matrix<T> q = file.matrix<T>(5, 6), k = file.matrix<T>(9, 6);
    Matrix<T> d_q(5, 6), d_k(9, 6);
    Vector<T> losses(5);
    Workspace ws;
    const LossSum loss =
        train::info_nce<T>(q, k, pairs, d_q, d_k, ws, {.temperature = 0.25, .form = forms[f]}, {.losses = losses});
    CHECK(loss.weight == 4);
    CHECK(losses[3] == 0);
    CHECK(support::first_far(losses.span(), file.matrix<double>(1, 5).span(), golden<T>) == -1);
    CHECK(support::near(loss.mean(), file.matrix<double>(1, 1)(0, 0), golden<T>));
    CHECK(support::first_far(d_q.span(), file.matrix<double>(5, 6).span(), golden<T>) == -1);
    CHECK(support::first_far(d_k.span(), file.matrix<double>(9, 6).span(), golden<T>) == -1);
    CHECK(file.done());
  }
}

// The formula of version 1 (info_nce_loss of ruvector-gnn), in long double.
double version_1(const Matrix<double>& anchor, const Matrix<double>& keys, Index positives, double temperature) {
  const auto cosine = [&](Index j) {
    long double dot = 0, a = 0, b = 0;
    for (Index c = 0; c < anchor.cols(); ++c) {
      const long double x = (long double)(anchor(0, c)), y = (long double)(keys(j, c));
      dot += x * y;
      a += x * x;
      b += y * y;
    }
    return a == 0 || b == 0 ? 0 : dot / std::sqrt(a * b) / (long double)(temperature);
  };
  if (positives == 0) return 0;
  long double sum = 0;
  for (Index p = 0; p < positives; ++p) {
    long double total = std::exp(cosine(p));
    for (Index j = positives; j < keys.rows(); ++j) total += std::exp(cosine(j));
    sum -= cosine(p) - std::log(total);
  }
  return double(sum / (long double)(positives));
}

TEST_CASE("contrastive: InfoNCE against negatives is version 1's", "[train][contrastive][v1]") {
  Rng rng(31);
  Workspace ws;
  for (int trial = 0; trial < 20; ++trial) {
    const Index positives = trial % 4, negatives = trial % 3 == 2 ? 0 : 1 + rng.below(5);
    const Matrix<double> anchor = normal<double>(1, 6, rng);
    Matrix<double> keys = normal<double>(positives + negatives, 6, rng);
    if (keys.rows() > 1) std::ranges::fill(keys.row(keys.rows() - 1), 0.0);  // its cosine is 0
    Matrix<Pair> pairs(1, positives + negatives);
    for (Index p = 0; p < positives; ++p) pairs(0, p) = Pair::positive;
    const LossSum loss =
        train::info_nce<double>(anchor, keys, pairs, {}, {}, ws, {.form = ContrastiveForm::each_against_negatives});
    CAPTURE(trial, positives, negatives);
    CHECK(support::near(loss.mean(), version_1(anchor, keys, positives, 0.07), {.relative = 1e-12, .absolute = 1e-13}));
  }
  // The numbers of version 1's own test: one positive beside two negatives that are orthogonal.
  Matrix<double> anchor(1, 3), keys(3, 3);
  anchor(0, 0) = 1;
  keys(0, 0) = 0.9, keys(0, 1) = 0.1;
  keys(1, 1) = keys(2, 2) = 1;
  Matrix<Pair> pairs(1, 3);
  pairs(0, 0) = Pair::positive;
  for (const ContrastiveForm form : forms) {  // with one positive the forms agree
    const LossSum loss = train::info_nce<double>(anchor, keys, pairs, {}, {}, ws, {.form = form});
    CHECK(loss.sum > 0);
    CHECK(loss.sum == Approx(version_1(anchor, keys, 1, 0.07)).epsilon(1e-9));
  }
}

TEST_CASE("contrastive: triplets with several negatives are version 1's mean", "[train][contrastive][v1]") {
  Workspace ws;
  Matrix<double> anchor(1, 2), positive(1, 2), negative(3, 2);
  positive(0, 0) = 1;     // distance 1
  negative(0, 0) = 1.25;  // violates a margin of 0.5 by 0.25
  negative(1, 1) = 0.5;   // by 1
  negative(2, 1) = 40;    // far enough
  const LossSum loss = train::triplet_margin<double>(anchor, positive, negative, {}, {}, {}, ws, 0.5);
  CHECK(loss.mean() == Approx((0.25 + 1) / 3).epsilon(1e-14));
}

TEST_CASE("contrastive: what may not be is refused, nothing of zero size is a surprise", "[train][contrastive]") {
  Workspace ws;
  Rng rng(5);
  const Matrix<double> q = normal<double>(3, 4, rng), k = normal<double>(2, 4, rng), narrow(2, 3);
  const Matrix<Pair> pairs(3, 2), wrong(3, 3);
  for (const double temperature : {0.0, -1.0, double(NAN), double(INFINITY)})
    CHECK_THROWS_AS(train::info_nce<double>(q, k, pairs, {}, {}, ws, {.temperature = temperature}), ConfigError);
  CHECK_THROWS_AS(train::info_nce<double>(q, k, wrong, {}, {}, ws), ShapeError);
  CHECK_THROWS_AS(train::info_nce<double>(q, narrow, pairs, {}, {}, ws), ShapeError);
  CHECK_THROWS_AS(train::triplet_margin<double>(q, q, k, {}, {}, {}, ws), ShapeError);
  CHECK_THROWS_AS(train::triplet_margin<double>(q, q, q, {}, {}, {}, ws, -1), ConfigError);
  const Matrix<double> no_keys(0, 4);
  const Matrix<Pair> no_pairs(3, 0);
  Matrix<double> d_q(3, 4);
  CHECK(train::info_nce<double>(q, no_keys, no_pairs, d_q, {}, ws).mean() == 0);
  CHECK(std::ranges::all_of(d_q.span(), [](double g) { return g == 0; }));
}

TEST_CASE("contrastive: pairs by label", "[train][contrastive]") {
  Matrix<Pair> pairs(3, 3);
  const std::vector<Index> labels = {4, 5, 4};
  train::pair_by_label(labels, labels, pairs, true);
  const Pair expected[] = {Pair::ignored,  Pair::negative, Pair::positive, Pair::negative, Pair::ignored,
                           Pair::negative, Pair::positive, Pair::negative, Pair::ignored};
  CHECK(std::ranges::equal(pairs.span(), expected));
  train::pair_by_label(labels, labels, pairs);
  CHECK(pairs(1, 1) == Pair::positive);
  CHECK_THROWS_AS(train::pair_by_label(labels, std::vector<Index>{1}, pairs), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_contrastive
