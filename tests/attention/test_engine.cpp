// SPDX-License-Identifier: MIT
#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/simd/convert.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "support/allocation_counter.hpp"
#include "support/laws.hpp"
#include "support/near.hpp"

// What the engines do beside their sums: stored types, dropout, prepared keys, workers, memory.

namespace test_engine {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

// A backend that ignores edges or positions does not accept them.
static_assert(EdgeAwareAttention<GatV2<float>> && PositionalAttention<GraphRope<Flash<double>>>);
static_assert(!EdgeAwareAttention<Flash<float>> && !PositionalAttention<GatV2<float>>);
static_assert(PreparedAttention<MultiHead<Flash<float>>> && PreparedAttention<HyperbolicFlash<double>>);
static_assert(ScoringAttention<GatV2<double>> && !ScoringAttention<DotScore<double>>);

template <class T>
Matrix<T> random(Index rows, Index cols, Rng& rng, double spread = 1) {
  return laws::Problem<T>::random(rows, cols, rng, spread);
}

// Stored rows, what they read back as, and the scales of int8.
template <class T, class S>
struct Stored {
  Matrix<S> rows;
  Matrix<T> read;
  Vector<T> scale;

  explicit Stored(const Matrix<float>& x)
      : rows(x.rows(), x.cols()), read(x.rows(), x.cols()), scale(std::same_as<S, std::int8_t> ? x.rows() : 0) {
    for (Index i = 0; i < x.rows(); ++i) {
      if constexpr (std::same_as<S, std::int8_t>) scale[i] = T(simd::quantize(x.row(i), rows.row(i)));
      for (Index c = 0; c < x.cols(); ++c) {
        if constexpr (std::same_as<S, std::int8_t>) {
          read(i, c) = T(rows(i, c)) * scale[i];
        } else if constexpr (Real<S>) {
          rows(i, c) = S(x(i, c));
          read(i, c) = T(rows(i, c));
        } else {
          rows(i, c) = S(x(i, c));
          read(i, c) = T(float(rows(i, c)));
        }
      }
    }
  }
};

template <class A, class S>
void stored_rows_are_what_they_read_as(std::uint64_t seed) {
  using T = ScalarOf<A>;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  const A backend;
  for (const Index n : {1, 63, 64, 200, 5000}) {
    const Matrix<T> query = random<T>(7, 9, rng, 0.3);
    Matrix<float> points = random<float>(n, 9, rng, 0.3);
    for (Index j = 0; j < n; j += 3)  // some are near a query
      for (Index c = 0; c < 9; ++c) points(j, c) = float(query(j % 7, c)) + 1e-3F * rng.normal<float>();
    const Stored<T, S> key(points), value(random<float>(n, 5, rng, 0.3));
    Matrix<T> bias = random<T>(7, n, rng);
    const AttentionInput<T, S> in{.query = query,
                                  .key = key.rows,
                                  .value = value.rows,
                                  .key_scale = key.scale.span(),
                                  .value_scale = value.scale.span(),
                                  .mask = {.key_length = n - n / 10},
                                  .bias = bias};
    const AttentionInput<T> read{.query = query, .key = key.read, .value = value.read, .mask = in.mask, .bias = bias};
    Matrix<T> out(7, 5), expected(7, 5), scores(7, n), expected_scores(7, n);
    typename A::Saved saved, expected_saved;
    backend.forward(in, {out}, saved, ws);
    backend.forward(read, {expected}, expected_saved, ws);
    REQUIRE(support::same_bits(out.span(), expected.span()));
    attend(backend, in, {out}, ws);
    REQUIRE(support::same_bits(out.span(), expected.span()));
    backend.scores(in, scores, ws);
    backend.scores(read, expected_scores, ws);
    REQUIRE(support::same_bits(scores.span(), expected_scores.span()));
    const Matrix<T> g = random<T>(7, 5, rng);
    Matrix<T> d[6] = {Matrix<T>(7, 9), Matrix<T>(n, 9), Matrix<T>(n, 5),
                      Matrix<T>(7, 9), Matrix<T>(n, 9), Matrix<T>(n, 5)};
    A grad = zeros_like(backend), expected_grad = zeros_like(backend);
    backend.backward(in, saved, {g}, {d[0], d[1], d[2]}, grad, ws);
    backend.backward(read, expected_saved, {g}, {d[3], d[4], d[5]}, expected_grad, ws);
    for (int k : {0, 1, 2}) REQUIRE(support::same_bits(d[k].span(), d[k + 3].span()));
  }
}

TEST_CASE("engine: stored keys and values are what they read as, bit for bit", "[attention]") {
  stored_rows_are_what_they_read_as<Flash<float>, simd::bfloat16>(601);
  stored_rows_are_what_they_read_as<Flash<float>, simd::float16>(602);
  stored_rows_are_what_they_read_as<Flash<float>, std::int8_t>(603);
  stored_rows_are_what_they_read_as<Flash<double>, float>(604);
  stored_rows_are_what_they_read_as<Flash<double>, simd::float16>(605);
  stored_rows_are_what_they_read_as<ScaledDotProduct<float>, simd::bfloat16>(606);
  stored_rows_are_what_they_read_as<ScaledDotProduct<double>, std::int8_t>(607);
  stored_rows_are_what_they_read_as<HyperbolicFlash<float>, simd::float16>(608);
  stored_rows_are_what_they_read_as<Hyperbolic<float>, std::int8_t>(609);
}

TEST_CASE("engine: scales belong to int8 and to nothing else", "[attention]") {
  Workspace ws;
  const Matrix<float> x(3, 4);
  const Matrix<std::int8_t> small(3, 4);
  const Vector<float> scale(3, 1.0F);
  Matrix<float> out(3, 4);
  const AttentionInput<float, std::int8_t> bare{.query = x, .key = small, .value = small};
  CHECK_THROWS_AS(attend(Flash<float>(), bare, {out}, ws), ShapeError);
  CHECK_THROWS_AS(attend(Flash<float>(), {.query = x, .key = x, .value = x, .key_scale = scale.span()}, {out}, ws),
                  ShapeError);
}

using Backends = std::tuple<Flash<float>, ScaledDotProduct<float>, HyperbolicFlash<double>, Hyperbolic<float>>;

TEMPLATE_LIST_TEST_CASE("engine: keys appended one at a time are the whole, bit for bit", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(611);
  Workspace ws;
  const TestType backend;
  const Matrix<T> query = random<T>(150, 6, rng, 0.3), key = random<T>(150, 6, rng, 0.3),
                  value = random<T>(150, 4, rng, 0.3);
  Matrix<T> whole(150, 4), step(1, 4);
  Vector<T> lse(150), step_lse(1);
  attend(backend, {.query = query, .key = key, .value = value, .mask = {.causal = true}}, {whole, lse}, ws);
  typename TestType::Prepared cache;
  backend.prepare(key.view().rows(0, 20), value.view().rows(0, 20), cache, ws);
  for (Index i = 20; i < 150; ++i) {
    backend.append(key.view().rows(i, 1), value.view().rows(i, 1), cache, ws);
    backend.forward({.query = query.view().rows(i, 1)}, cache, {step, step_lse}, ws);
    REQUIRE(support::same_bits(step.row(0), whole.row(i)));
    REQUIRE(support::same_bits(step_lse[0], lse[i]));
  }
  CHECK(cache.rows() == 150);
}

TEST_CASE("engine: a cache of keys refuses rows that do not fit and keeps what it has", "[attention]") {
  KeyValueCache<float> cache, other;
  cache.clear(3, 2);
  const Matrix<float> key(2, 3, 1.0F), value(2, 2, 2.0F);
  cache.append(key, value);
  CHECK_THROWS_AS(cache.append(value, value), ShapeError);
  CHECK_THROWS_AS(cache.append(key, value.view().rows(0, 1)), ShapeError);
  const Index ids[] = {1, 2};
  other.clear(1, 1);
  CHECK_THROWS_AS(other.select(cache, ids), ShapeError);
  CHECK(cache.rows() == 2);
  CHECK(other.rows() == 0);
}

TEST_CASE("engine: dropout keeps the mean and is known again in backward", "[attention]") {
  Rng rng(621);
  Workspace ws;
  const Index n = 70;
  const Matrix<double> query = random<double>(3, 4, rng), key = random<double>(n, 4, rng),
                       value = random<double>(n, 2, rng), g = random<double>(3, 2, rng);
  const AttentionInput<double> in{.query = query, .key = key, .value = value};
  Matrix<double> plain(3, 2), out(3, 2), mean(3, 2);
  Flash<double>(DotScore<double>()).forward(in, {plain}, ws);
  const Flash<double> backend({}, {}, 0.3);
  backend.forward(in, {out}, ws);
  CHECK(support::same_bits(out.span(), plain.span()));  // not in training: nothing is dropped
  Flash<double>::Saved saved;
  saved.rng = Rng(7);
  const int trials = 20000;
  for (int t = 0; t < trials; ++t) {
    backend.forward(in, {out}, saved, ws);
    for (Index i = 0; i < 6; ++i) mean.span()[std::size_t(i)] += out.span()[std::size_t(i)] / trials;
  }
  // Var ≤ Σ w² v² p/(1−p), here below 0.2: five deviations of the mean of 20,000
  CHECK(support::max_error(mean.span(), plain.span()) < 5 * std::sqrt(0.2 / trials));

  // The same seed drops the same weights, in both engines; then the loss is smooth, and its gradient is checked.
  const Dense<DotScore<double>> dense({}, {}, 0.3);
  const auto loss = [&](const auto& a, const AttentionInput<double>& at) {
    typename std::remove_cvref_t<decltype(a)>::Saved seeded;
    seeded.rng = Rng(11);
    Matrix<double> o(3, 2);
    a.forward(at, {o}, seeded, ws);
    double sum = 0;
    for (Index i = 0; i < 6; ++i) sum += o.span()[std::size_t(i)] * g.span()[std::size_t(i)];
    return sum;
  };
  CHECK(std::fabs(loss(backend, in) - loss(dense, in)) < 1e-13);
  CHECK(std::fabs(loss(backend, in) - loss(Flash<double>(), in)) > 1e-3);
  saved.rng = Rng(11);
  backend.forward(in, {out}, saved, ws);
  Matrix<double> d_query(3, 4), d_key(n, 4), d_value(n, 2);
  Flash<double> grad = zeros_like(backend);
  backend.backward(in, saved, {g}, {d_query, d_key, d_value}, grad, ws);
  const auto check = [&](const Matrix<double>& x, const Matrix<double>& d, auto set) {
    const auto moved = [&](std::span<const double> values) {
      AttentionInput<double> at = in;
      set(at, MatrixView<const double>(values.data(), x.rows(), x.cols()));
      return loss(backend, at);
    };
    const train::GradientCheck result = train::check_gradient(moved, x.span(), d.span());
    INFO(to_string(result));
    CHECK(result.passed);
  };
  check(query, d_query, [](auto& at, MatrixView<const double> x) { at.query = x; });
  check(key, d_key, [](auto& at, MatrixView<const double> x) { at.key = x; });
  check(value, d_value, [](auto& at, MatrixView<const double> x) { at.value = x; });
  CHECK_THROWS_AS(Flash<double>({}, {}, 1.0), ConfigError);
  CHECK_THROWS_AS(Flash<double>({}, {}, -0.1), ConfigError);
}

TEMPLATE_LIST_TEST_CASE("engine: any number of workers gives the same bits", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(631);
  const TestType backend;
  const Index m = 1500, n = 300;
  const Matrix<T> query = random<T>(m, 6, rng, 0.3), key = random<T>(n, 6, rng, 0.3), value = random<T>(n, 4, rng, 0.3),
                  g = random<T>(m, 4, rng), bias = random<T>(m, n, rng);
  std::vector<AttentionInput<T>> in;
  for (const bool causal : {true, false, true})
    in.push_back({.query = query, .key = key, .value = value, .mask = {.causal = causal}, .bias = bias});
  in[1].query = in[1].query.rows(0, 700);
  in[1].bias = in[1].bias.rows(0, 700);
  in[2].mask.window_left = 20;

  struct Outcome {
    Matrix<T> value[3], d_query[3], d_key[3], d_value[3];
    Vector<T> lse[3];
    std::vector<TestType> grad;
    Outcome(const TestType& a, std::span<const AttentionInput<T>> inputs, const Matrix<T>& d_value_out, Index workers)
        : grad(3, zeros_like(a)) {
      ThreadPool pool(workers);
      Workspace ws;
      std::vector<AttentionOutput<T>> out;
      std::vector<AttentionOutputGradient<T>> d_out;
      std::vector<AttentionGradient<T>> d_in;
      std::vector<typename TestType::Saved> saved(3);
      for (std::size_t b = 0; b < 3; ++b) {
        const Index rows = inputs[b].query.rows();
        value[b] = Matrix<T>(rows, 4), lse[b] = Vector<T>(rows), d_query[b] = Matrix<T>(rows, 6);
        d_key[b] = Matrix<T>(300, 6), d_value[b] = Matrix<T>(300, 4);
        out.push_back({value[b], lse[b]});
        d_out.push_back({d_value_out.view().rows(0, rows)});
        d_in.push_back({d_query[b], d_key[b], d_value[b]});
      }
      attend(a, inputs, out, saved, pool, ws);
      attend_backward(a, inputs, saved, d_out, d_in, grad, pool, ws);
      for (std::size_t b = 0; b < 3; ++b) std::ranges::fill(value[b].span(), T(0));
      attend(a, inputs, out, pool, ws);
      if (workers % 2 == 0)
        for (std::size_t b = 0; b < 3; ++b) {  // one input alone, split by its rows
          std::ranges::fill(value[b].span(), T(0));
          attend(a, inputs[b], out[b], pool, ws);
        }
    }
  };
  const Outcome one(backend, in, g, 1);
  for (const Index workers : {2, 3, 4, 7, 16}) {
    CAPTURE(workers);
    const Outcome many(backend, in, g, workers);
    for (int b : {0, 1, 2}) {
      CHECK(support::same_bits(one.value[b].span(), many.value[b].span()));
      CHECK(support::same_bits(one.lse[b].span(), many.lse[b].span()));
      CHECK(support::same_bits(one.d_query[b].span(), many.d_query[b].span()));
      CHECK(support::same_bits(one.d_key[b].span(), many.d_key[b].span()));
      CHECK(support::same_bits(one.d_value[b].span(), many.d_value[b].span()));
      for_each_parameter(
          [](std::string_view, std::span<const T> a, std::span<const T> c) { CHECK(support::same_bits(a, c)); },
          one.grad[std::size_t(b)], many.grad[std::size_t(b)]);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("engine: nodes look at their neighbours", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(641);
  Workspace ws;
  const TestType backend;
  const Index nodes = 200;
  std::vector<std::int32_t> sources, targets;
  for (int e = 0; e < 900; ++e) {
    sources.push_back(std::int32_t(rng.below(nodes - 1)));  // the last node has no neighbours
    targets.push_back(std::int32_t(rng.below(nodes)));
  }
  const graph::CsrGraph<std::int32_t> graph(nodes, sources, targets);
  const Matrix<T> query = random<T>(nodes, 5, rng, 0.3), key = random<T>(nodes, 5, rng, 0.3),
                  value = random<T>(nodes, 3, rng, 0.3);
  const Vector<T> bias = [&] {
    Vector<T> b(900);
    for (T& x : b) x = T(rng.normal());
    return b;
  }();
  typename TestType::Prepared prepared;
  backend.prepare(key, value, prepared, ws);
  Matrix<T> out(nodes, 3), threaded(nodes, 3);
  NeighborScratch<TestType> scratch;
  attend_neighbors(backend, graph.view(), query, prepared, bias.span(), {out}, scratch, Serial{}, ws);
  ThreadPool pool(3);
  attend_neighbors(backend, graph.view(), query, prepared, bias.span(), {threaded}, scratch, pool, ws);
  CHECK(support::same_bits(out.span(), threaded.span()));
  for (Index i = 0; i < nodes; ++i) {
    const auto neighbors = graph.view().neighbors(i);
    const Index degree = Index(neighbors.size());
    Matrix<T> k(degree, 5), v(degree, 3), expected(1, 3), row_bias(1, degree);
    for (Index e = 0; e < degree; ++e) {
      std::ranges::copy(key.row(neighbors[std::size_t(e)]), k.row(e).begin());
      std::ranges::copy(value.row(neighbors[std::size_t(e)]), v.row(e).begin());
      row_bias(0, e) = bias[graph.view().first_edge(i) + e];
    }
    attend(backend, {.query = query.view().rows(i, 1), .key = k, .value = v, .bias = row_bias}, {expected}, ws);
    REQUIRE(support::same_bits(out.row(i), expected.row(0)));
  }
  CHECK_THROWS_AS(
      attend_neighbors(backend, graph.view(), query.view().rows(0, 3), prepared, {}, {out}, scratch, Serial{}, ws),
      ShapeError);
}

// Heap of a workspace, and of what a training step keeps (performance.md M1, M2).
TEST_CASE("engine: memory is that of a block, whatever the length", "[attention]") {
  if (!support::allocations_counted()) return;  // sanitizers of clang
  Rng rng(651);
  const Index d = 64, mebibyte = Index(1) << 20;
  const Matrix<float> rows = random<float>(65536, d, rng);
  for (const Index n : {1024, 4096, 16384, 65536}) {
    // Of a long sequence a window is enough: memory does not depend on what is seen.
    const MatrixView<const float> part = rows.view().rows(0, n);
    const AttentionInput<float> in{
        .query = part, .key = part, .value = part, .mask = {.causal = true, .window_left = 64}};
    Matrix<float> out(n, d);
    CAPTURE(n);
    {
      Workspace ws;
      const Index heap = support::peak_bytes_in([&] { Flash<float>().forward(in, {out}, ws); });
      CAPTURE(heap);
      CHECK(heap <= mebibyte);
      CHECK(heap > mebibyte / 64);  // the counter counts
    }
    {
      Workspace ws;
      Matrix<float> d_query(n, d), d_key(n, d), d_value(n, d);
      Flash<float> grad = zeros_like(Flash<float>());
      const Index heap = support::peak_bytes_in([&] {
        Flash<float>::Saved saved;
        Flash<float>().forward(in, {out}, saved, ws);
        Flash<float>().backward(in, saved, {out}, {d_query, d_key, d_value}, grad, ws);
      });
      CAPTURE(heap);
      CHECK(heap <= n * (d + 2) * 4 + mebibyte);
    }
  }
}

}  // namespace
}  // namespace test_engine
