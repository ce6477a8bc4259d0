// SPDX-License-Identifier: MIT
#include <ruvector/nn/embedding.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace ruvector_test_embedding {
namespace {

using namespace ruvector;
using nn::Embedding;
using row_map_laws::random_matrix;
using row_map_laws::same_parameters;

static_assert(Module<Embedding<float>> && Module<Embedding<double>>);

constexpr std::uint64_t seed = 45;

std::vector<std::int32_t> random_ids(Index n, Index count, Rng& rng) {
  std::vector<std::int32_t> ids;
  for (Index i = 0; i < n; ++i) ids.push_back(std::int32_t(rng.below(count)));
  return ids;
}

template <class I>
std::span<const I> as_span(const std::vector<I>& ids) {
  return ids;
}

TEST_CASE("embedding: gradients of the rows", "[nn][gradient]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index n : {0, 1, 2, 9})
    for (const Index count : {1, 4})
      for (const Index dim : {0, 1, 3, 70}) {
        CAPTURE(n, count, dim);
        const Embedding<double> embedding({.count = count, .dim = dim}, rng);
        const auto ids = random_ids(n, count, rng);
        const auto d_y = random_matrix<double>(n, dim, rng);
        const auto loss = [&](const Embedding<double>& at) {
          Matrix<double> y(n, dim);
          at.forward(as_span(ids), y.view());
          double sum = 0;
          for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * d_y.data()[i];
          return sum;
        };
        Embedding<double> grad = zeros_like(embedding), more = zeros_like(embedding);
        embedding.backward(as_span(ids), d_y.view(), grad);
        const auto check = train::check_module_gradient(loss, embedding, grad);
        INFO(train::to_string(check));
        CHECK(check.passed);
        for (double& v : more.weight.span()) v = 8;
        embedding.backward(as_span(ids), d_y.view(), more);
        for (Index i = 0; i < grad.weight.size(); ++i)
          CHECK(support::near(more.weight.data()[i], 8 + grad.weight.data()[i], {.absolute = 1e-12}));
      }
}

TEST_CASE("embedding: rows by id, in ids of any type", "[nn]") {
  Rng rng(seed);
  const Embedding<float> embedding({.count = 7, .dim = 5, .sigma = 0.1}, rng);
  const std::vector<Index> wide = {6, 0, 6, 3};
  const std::vector<std::uint8_t> narrow = {6, 0, 6, 3};
  Matrix<float> y(4, 5), z(4, 5);
  embedding.forward(as_span(wide), y.view());
  embedding.forward(as_span(narrow), z.view());
  for (std::size_t i = 0; i < 4; ++i) CHECK(support::same_bits(y.row(Index(i)), embedding.weight.row(wide[i])));
  CHECK(support::same_bits(y.span(), z.span()));
  const Embedding<double> large({.count = 100, .dim = 100, .sigma = 2}, rng);
  double square = 0;
  for (const double w : large.weight.span()) square += w * w;
  CHECK(square / 1e4 == Approx(4).epsilon(0.1));
}

TEST_CASE("embedding: sums in index order for any number of workers, without allocation", "[nn][law]") {
  Rng rng(seed);
  CAPTURE(seed);
  const Embedding<float> embedding({.count = 20, .dim = 200}, rng);
  const auto ids = random_ids(900, 20, rng);
  const auto d_y = random_matrix<float>(900, 200, rng);
  Matrix<float> y(900, 200);
  Embedding<float> grad = zeros_like(embedding), plain = zeros_like(embedding);
  embedding.forward(as_span(ids), y.view());
  embedding.backward(as_span(ids), d_y.view(), grad);
  for (Index i = 0; i < 900; ++i)
    for (Index j = 0; j < 200; ++j) plain.weight(ids[std::size_t(i)], j) += d_y(i, j);
  CHECK(same_parameters(grad, plain));
  for (const Index threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    Matrix<float> other(900, 200);
    Embedding<float> sum = zeros_like(embedding);
    embedding.forward(as_span(ids), other.view(), pool);
    embedding.backward(as_span(ids), d_y.view(), sum, pool);
    CHECK(support::same_bits(other.span(), y.span()));
    CHECK(same_parameters(sum, grad));
  }
  CHECK(support::allocations_in([&] {
          embedding.forward(as_span(ids), y.view());
          embedding.backward(as_span(ids), d_y.view(), grad);
        }) == 0);
}

TEST_CASE("embedding: ids and shapes that do not fit are refused before anything is written", "[nn]") {
  Rng rng(seed);
  const Embedding<float> embedding({.count = 3, .dim = 2}, rng);
  Embedding<float> grad = zeros_like(embedding), other({.count = 4, .dim = 2}, rng);
  const Embedding<float> zero = grad;
  Matrix<float> y(2, 2, 7), wrong(2, 3);
  const std::vector<Index> good = {0, 2}, high = {0, 3}, low = {0, -1};
  const std::vector<std::uint64_t> huge = {0, std::numeric_limits<std::uint64_t>::max()};
  CHECK_THROWS_AS(embedding.forward(as_span(high), y.view()), ShapeError);
  CHECK_THROWS_WITH(embedding.forward(as_span(low), y.view()), "Embedding: ids[1]: expected 0 to 2, got -1");
  CHECK_THROWS_AS(embedding.forward(as_span(huge), y.view()), ShapeError);
  CHECK_THROWS_AS(embedding.backward(as_span(high), MatrixView<const float>(y), grad), ShapeError);
  CHECK(same_parameters(grad, zero));
  for (const float v : y.span()) CHECK(v == 7);
  CHECK_THROWS_AS(embedding.forward(as_span(good), wrong.view()), ShapeError);
  CHECK_THROWS_AS(embedding.forward(as_span(good), y.view().rows(0, 1)), ShapeError);
  CHECK_THROWS_AS(embedding.backward(as_span(good), MatrixView<const float>(y), other), ShapeError);
  CHECK_THROWS_AS(Embedding<float>({.count = -1, .dim = 2}, rng), ShapeError);
  CHECK_THROWS_AS(Embedding<float>({.count = Index(1) << 32, .dim = Index(1) << 32}, rng), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_embedding
