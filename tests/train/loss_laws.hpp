// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/io/npy.hpp>
#include <ruvector/train/contrastive.hpp>
#include <ruvector/train/gradient_check.hpp>
#include <ruvector/train/loss.hpp>

#include "support/allocation_counter.hpp"
#include "support/alternating.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <string>
#include <vector>

// The laws of losses. A subject is a class template over the scalar type:
//
//   static constexpr Index rows_of[]                   rows of each input for a row of the loss; 0: all rows share it
//   static Problem<T> make(Index n, Index d, Rng&)     random inputs, away from kinks
//   static LossSum call(const Problem<T>&, grads, const LossRows<T>&, Workspace&, E&)

namespace loss_laws {

using namespace ruvector;
using train::LossRows;
using train::LossSum;
using train::Reduction;

using support::trials;

template <class T>
struct Problem {
  std::vector<Matrix<T>> inputs;
  std::vector<Index> labels;
  Matrix<train::Pair> pairs;
  std::vector<T> side;
};

template <class T>
Matrix<T> normal(Index n, Index d, Rng& rng, double scale = 1) {
  Matrix<T> x(n, d);
  for (T& v : x.span()) v = T(scale * rng.normal());
  return x;
}

template <class T>
std::vector<Matrix<T>> gradients_of(const Problem<T>& problem, T start = 0) {
  std::vector<Matrix<T>> grads;
  for (const Matrix<T>& x : problem.inputs) grads.emplace_back(x.rows(), x.cols(), start);
  return grads;
}

template <class S, class T>
Problem<T> rows(const Problem<T>& problem, Index first, Index count) {
  Problem<T> part = problem;
  for (std::size_t k = 0; k < problem.inputs.size(); ++k)
    if (const Index each = S::rows_of[k]; each > 0)
      part.inputs[k] = Matrix<T>(problem.inputs[k].view().rows(first * each, count * each));
  if (!problem.labels.empty())
    part.labels.assign(problem.labels.begin() + first, problem.labels.begin() + first + count);
  if (!problem.pairs.empty()) part.pairs = Matrix<train::Pair>(problem.pairs.view().rows(first, count));
  return part;
}

// Central differences of every input, for every reduction (promise P-01).
template <template <class> class Subject>
void gradients_are_right(std::uint64_t seed) {
  using S = Subject<double>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  Serial serial;
  for (int trial = 0; trial < trials(32); ++trial) {
    const Index n = trial == 0 ? 1 : 1 + rng.below(9), d = trial < 2 ? 1 : 1 + rng.below(20);
    const Problem<double> problem = S::make(n, d, rng);
    const Reduction reduction = Reduction(trial % 3);
    Vector<double> d_losses(n);
    for (double& g : d_losses) g = rng.normal();
    CAPTURE(trial, n, d);
    const auto value = [&](const Problem<double>& p) {
      Vector<double> losses(n);
      auto none = std::vector<Matrix<double>>(p.inputs.size());
      const LossSum loss = S::call(p, none, {.reduction = reduction, .losses = losses}, ws, serial);
      if (reduction == Reduction::mean) return loss.mean();
      if (reduction == Reduction::sum) return loss.sum;
      double sum = 0;
      for (Index i = 0; i < n; ++i) sum += losses[i] * d_losses[i];
      return sum;
    };
    auto grads = gradients_of(problem);
    (void)S::call(problem, grads, {.reduction = reduction, .d_losses = d_losses}, ws, serial);
    for (std::size_t k = 0; k < grads.size(); ++k) {
      const auto moved = [&](std::span<const double> x) {
        Problem<double> other = problem;
        std::ranges::copy(x, other.inputs[k].span().begin());
        return value(other);
      };
      const auto check =
          train::check_gradient(moved, problem.inputs[k].span(), grads[k].span(), {.step = S::gradient_step});
      INFO(k << to_string(check));
      CHECK(check.passed);
    }
    // Adds, and each gradient is the same whether the others are wanted or not.
    for (std::size_t k = 0; k < grads.size(); ++k) {
      auto twice = std::vector<Matrix<double>>(grads.size());
      twice[k] = Matrix<double>(grads[k].rows(), grads[k].cols(), 0.0);
      (void)S::call(problem, twice, {.reduction = reduction, .d_losses = d_losses}, ws, serial);
      CHECK(support::same_bits(twice[k].span(), grads[k].span()));
      (void)S::call(problem, twice, {.reduction = reduction, .d_losses = d_losses}, ws, serial);
      for (double& g : twice[k].span()) g /= 2;
      CHECK(support::max_error(twice[k].span(), grads[k].span()) <= 1e-15 * 40);  // sums of parts that are at most 40
    }
  }
}

// A row depends on itself alone, and nothing on the workers (promises P-20, P-21).
template <template <class> class Subject, class T>
void a_row_depends_on_itself(std::uint64_t seed) {
  using S = Subject<T>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  Serial serial;
  for (const Index n : {1, 2, 33, 600}) {
    const Problem<T> problem = S::make(n, 19, rng);
    Vector<T> losses(n), d_losses(n), again(n);
    for (T& g : d_losses) g = T(rng.normal());
    auto grads = gradients_of(problem), parallel = gradients_of(problem);
    const LossSum whole =
        S::call(problem, grads, {.reduction = Reduction::none, .losses = losses, .d_losses = d_losses}, ws, serial);

    support::Alternating two;
    const LossSum shared =
        S::call(problem, parallel, {.reduction = Reduction::none, .losses = again, .d_losses = d_losses}, ws, two);
    CHECK(support::same_bits(whole.sum, shared.sum));
    CHECK(support::same_bits(losses, again));
    for (std::size_t k = 0; k < grads.size(); ++k) CHECK(support::same_bits(grads[k].span(), parallel[k].span()));

    for (Index first = 0; first < n; first += 1 + n / 5) {
      const Index count = std::min<Index>(n - first, 1 + first % 3);
      const Problem<T> part = rows<S>(problem, first, count);
      auto d_part = gradients_of(part);
      Vector<T> part_losses(count);
      (void)S::call(part, d_part,
                    {.reduction = Reduction::none,
                     .losses = part_losses,
                     .d_losses = d_losses.span().subspan(std::size_t(first), std::size_t(count))},
                    ws, serial);
      CHECK(support::same_bits(part_losses.span(), losses.span().subspan(std::size_t(first), std::size_t(count))));
      for (std::size_t k = 0; k < grads.size(); ++k) {
        const Index each = S::rows_of[k];
        for (Index i = 0; i < count * each; ++i)
          REQUIRE(support::same_bits(d_part[k].row(i), grads[k].row(first * each + i)));
      }
    }
  }
}

// A NaN in a row stays there; the sum of no rows is 0; the second call allocates nothing; shapes are checked.
template <template <class> class Subject, class T>
void keeps_the_other_promises(std::uint64_t seed) {
  using S = Subject<T>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  Serial serial;
  const Problem<T> problem = S::make(40, 11, rng);
  Vector<T> clean(40), losses(40);
  auto grads = gradients_of(problem), poisoned = gradients_of(problem);
  const LossSum loss = S::call(problem, grads, {.reduction = Reduction::sum, .losses = clean}, ws, serial);
  double sum = 0;
  for (const T x : clean) sum += double(x);
  CHECK(loss.sum == Approx(sum).epsilon(1e-12));
  Problem<T> hit = problem;
  const Index row = 17;
  for (T& x : hit.inputs[0].row(row * S::rows_of[0])) x = std::numeric_limits<T>::quiet_NaN();
  (void)S::call(hit, poisoned, {.reduction = Reduction::sum, .losses = losses}, ws, serial);
  CHECK(std::isnan(losses[row]));
  for (Index i = 0; i < 40; ++i) {
    if (i == row) continue;
    CHECK(support::same_bits(losses[i], clean[i]));
    for (std::size_t k = 0; k < grads.size(); ++k)
      for (Index r = 0; r < S::rows_of[k]; ++r)
        CHECK(support::same_bits(grads[k].row(i * S::rows_of[k] + r), poisoned[k].row(i * S::rows_of[k] + r)));
  }

  const Problem<T> none = rows<S>(problem, 0, 0);
  auto d_none = gradients_of(none);
  const LossSum nothing = S::call(none, d_none, {}, ws, serial);
  CHECK(nothing.sum == 0);
  CHECK(nothing.mean() == 0);

  if (support::allocations_counted())
    CHECK(support::allocations_in([&] { (void)S::call(problem, grads, {}, ws, serial); }) == 0);

  for (std::size_t k = 0; k < grads.size(); ++k) {
    auto wrong = gradients_of(problem);
    wrong[k] = Matrix<T>(wrong[k].rows(), wrong[k].cols() + 1);
    CHECK_THROWS_AS(S::call(problem, wrong, {}, ws, serial), ShapeError);
    Problem<T> bad = problem;
    bad.inputs[k] = Matrix<T>(bad.inputs[k].rows(), bad.inputs[k].cols() + 1);
    CHECK_THROWS_AS(S::call(bad, grads, {}, ws, serial), ShapeError);
  }
  Vector<T> few(39);
  CHECK_THROWS_AS(S::call(problem, grads, {.losses = few}, ws, serial), ShapeError);
  CHECK_THROWS_AS(S::call(problem, grads, {.reduction = Reduction::none, .d_losses = few}, ws, serial), ShapeError);
  CHECK_THROWS_AS(S::call(problem, grads, {.reduction = Reduction::none}, ws, serial), ShapeError);
}

// The numbers of a golden file, one after the other.
class Golden {
 public:
  explicit Golden(const std::string& name)
      : numbers_(io::read_npy_vector<double>(std::string(RUVECTOR_TEST_DATA) + "/loss_" + name + ".npy")) {}
  template <class T>
  [[nodiscard]] Matrix<T> matrix(Index rows, Index cols) {
    Matrix<T> x(rows, cols);
    for (T& v : x.span()) v = T(numbers_[at_++]);
    return x;
  }
  [[nodiscard]] bool done() const { return at_ == numbers_.size(); }

 private:
  Vector<double> numbers_;
  Index at_ = 0;
};

// Against PyTorch in double: relative to the larger of 1 and the number, as gradients next to 0 are differences.
template <class T>
inline constexpr support::Tolerance golden =
    std::same_as<T, float> ? support::Tolerance{.relative = 1e-5, .absolute = 1e-5}
                           : support::Tolerance{.relative = 1e-10, .absolute = 1e-10};

// What follows the inputs in a golden file: losses of rows, the value, gradients (not of inputs without one).
template <class S, class T>
void agrees(const Problem<T>& problem, Golden& file, std::size_t gradients) {
  Workspace ws;
  Serial serial;
  Index n = 0;
  for (std::size_t k = 0; k < problem.inputs.size(); ++k)
    if (S::rows_of[k] == 1) n = problem.inputs[k].rows();
  auto grads = gradients_of(problem);
  Vector<T> losses(n);
  const LossSum loss = S::call(problem, grads, {.losses = losses}, ws, serial);
  CHECK(support::first_far(losses.span(), file.matrix<double>(1, n).span(), golden<T>) == -1);
  CHECK(support::near(loss.mean(), file.matrix<double>(1, 1)(0, 0), golden<T>));
  for (std::size_t k = 0; k < gradients; ++k) {
    CAPTURE(k);
    CHECK(support::first_far(grads[k].span(), file.matrix<double>(grads[k].rows(), grads[k].cols()).span(),
                             golden<T>) == -1);
  }
  CHECK(file.done());
}

}  // namespace loss_laws
