// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/gnn/linear_expert.hpp>
#include <ruvector/train/gradient_check.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"

namespace test_linear_expert {

using namespace ruvector;
using attention::AttentionInput;
using gnn::LinearExpert;

static_assert(attention::DifferentiableAttention<LinearExpert<float>>);

struct Problem {
  Matrix<double> query, key, value, bias;
  Problem(Index m, Index n, Index d, Index v, Rng& rng) : query(m, d), key(n, d), value(n, v), bias(1, n) {
    for (auto* matrix : {&query, &key, &value, &bias})
      for (double& x : matrix->span()) x = rng.normal();
  }
  [[nodiscard]] AttentionInput<double> input() const {
    return {.query = query, .key = key, .value = value, .bias = bias};
  }
};

TEST_CASE("LinearExpert: weights are products of features times e^bias", "[gnn]") {
  Rng rng(81);
  const Problem problem(3, 7, 4, 5, rng);
  const LinearExpert<double> expert;
  Workspace ws;
  Matrix<double> out(3, 5);
  expert.forward(problem.input(), {.value = out}, ws);
  const auto phi = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  for (Index i = 0; i < 3; ++i) {
    std::vector<double> sum(5);
    double total = 0;
    for (Index j = 0; j < 7; ++j) {
      double weight = 0;
      for (Index c = 0; c < 4; ++c) weight += phi(problem.query(i, c)) * phi(problem.key(j, c));
      weight *= std::exp(problem.bias(0, j));
      total += weight;
      for (Index c = 0; c < 5; ++c) sum[std::size_t(c)] += weight * problem.value(j, c);
    }
    for (Index c = 0; c < 5; ++c) CHECK(std::abs(out(i, c) - sum[std::size_t(c)] / total) < 1e-12);
  }
  // What is added to all biases does not matter, however much, and without bias it is linear attention.
  Problem moved = problem;
  for (double& b : moved.bias.span()) b += 1000;
  Matrix<double> same(3, 5), plain(3, 5), linear(3, 5);
  expert.forward(moved.input(), {.value = same}, ws);
  for (Index i = 0; i < 3; ++i)
    for (Index c = 0; c < 5; ++c) CHECK(std::abs(same(i, c) - out(i, c)) < 1e-12);
  AttentionInput<double> without = problem.input();
  without.bias = {};
  expert.forward(without, {.value = plain}, ws);
  attention::LinearAttention<nn::EluPlusOne<double>>().forward(without, {.value = linear}, ws);
  CHECK(std::equal(plain.span().begin(), plain.span().end(), linear.span().begin()));
}

TEST_CASE("LinearExpert: gradients", "[gnn]") {
  const std::uint64_t seed = 82;
  CAPTURE(seed);
  for (int trial = 0; trial < 20; ++trial) {
    CAPTURE(trial);
    Rng rng = Rng(seed).split(std::uint64_t(trial));
    const Problem problem(1 + rng.below(3), 1 + rng.below(5), 1 + rng.below(4), 1 + rng.below(4), rng);
    LinearExpert<double> expert, grad;
    expert.attention.epsilon = 0;
    typename LinearExpert<double>::Saved saved;
    Workspace ws;
    Problem d = problem;
    for (auto* matrix : {&d.query, &d.key, &d.value, &d.bias}) std::ranges::fill(matrix->span(), 0.0);
    Matrix<double> out(problem.query.rows(), problem.value.cols()), upstream = out;
    for (double& g : upstream.span()) g = rng.normal();
    expert.forward(problem.input(), {.value = out}, saved, ws);
    expert.backward(problem.input(), saved, {upstream}, {d.query, d.key, d.value, d.bias}, grad, ws);
    Problem moved = problem;
    const auto check = [&](Matrix<double> Problem::*which) {
      const auto result = train::check_gradient(
          [&](std::span<const double> x) {
            std::ranges::copy(x, (moved.*which).data());
            expert.forward(moved.input(), {.value = out}, ws);
            double loss = 0;
            for (Index k = 0; k < out.size(); ++k) loss += out.span()[std::size_t(k)] * upstream.span()[std::size_t(k)];
            return loss;
          },
          (problem.*which).span(), (d.*which).span());
      INFO(to_string(result));
      CHECK(result.passed);
      moved = problem;
    };
    check(&Problem::query);
    check(&Problem::key);
    check(&Problem::value);
    check(&Problem::bias);
  }
}

TEST_CASE("LinearExpert: one bias for all queries, and no other output", "[gnn]") {
  Rng rng(83);
  const Problem problem(2, 3, 2, 2, rng);
  const LinearExpert<double> expert;
  Workspace ws;
  Matrix<double> out(2, 2), bias(2, 3), weights(2, 3);
  AttentionInput<double> in = problem.input();
  CHECK_THROWS_AS(expert.forward(in, {.value = out, .weights = weights}, ws), ConfigError);
  in.bias = bias;
  CHECK_THROWS_AS(expert.forward(in, {.value = out}, ws), ConfigError);
  in.bias = bias.view().cols(0, 2);
  CHECK_THROWS_AS(expert.forward(in, {.value = out}, ws), ShapeError);
}

}  // namespace test_linear_expert
