// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/graph_rope.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/graph/positions.hpp>

#include <numbers>
#include <string>
#include <tuple>
#include <utility>

#include "attention/attention_reference.hpp"
#include "support/laws.hpp"
#include "support/trials.hpp"

namespace laws {

/// y_i = R(Ω r_i) x_i in any precision; `at(i, c)` is coordinate c of row i.
template <class R, class T, class At>
Rows<R> rotated(const Matrix<T>& frequencies, const Matrix<T>& x, At&& at) {
  Rows<R> y = Rows<R>::of(x);
  for (Index i = 0; i < x.rows(); ++i)
    for (Index n = 0; n < frequencies.rows(); ++n) {
      R theta = 0;
      for (Index c = 0; c < frequencies.cols(); ++c) theta += R(frequencies(n, c)) * R(at(i, c));
      const R a = R(x(i, 2 * n)), b = R(x(i, 2 * n + 1));
      y(i, 2 * n) = a * std::cos(theta) - b * std::sin(theta);
      y(i, 2 * n + 1) = a * std::sin(theta) + b * std::cos(theta);
    }
  return y;
}

template <class Inner>
GraphRope<Inner> random_rope(Rng& rng) {
  using T = ScalarOf<Inner>;
  GraphRopeConfig config{.rotary_dim = 2 + 2 * rng.below(2), .coordinates = 1 + rng.below(3)};
  config.share_qk = rng.below(2) == 0;
  config.initializer = FrequencyInitializer::normal;
  GraphRope<Inner> backend(config, rng);
  backend.inner.score = random_score<T>(rng);
  return backend;
}

template <class Inner>
const auto& key_frequencies(const GraphRope<Inner>& backend) {
  return backend.key_frequencies.empty() ? backend.frequencies : backend.key_frequencies;
}

/// Without coordinates: a sequence.
template <class Inner>
struct Subject<GraphRope<Inner>> : SubjectDefaults {
  using T = ScalarOf<Inner>;

  static void fit(Shape& shape) { shape.dim = std::max(Index(4), shape.dim); }
  static GraphRope<Inner> make(Rng& rng) { return random_rope<Inner>(rng); }

  template <class R>
  static Reference<R> reference(const GraphRope<Inner>& backend, const Problem<T>& problem, Order order) {
    const Index m = problem.query.rows(), n = problem.key.rows();
    const auto q = rotated<R>(backend.frequencies, problem.query,
                              [&](Index i, Index c) { return c == 0 ? problem.mask.position(i, m, n) : 0; });
    const auto k =
        rotated<R>(key_frequencies(backend), problem.key, [&](Index j, Index c) { return c == 0 ? j : Index(0); });
    return softmax_attention<R>(backend.inner.score, problem, q, k, Rows<R>::of(problem.value), order);
  }
};

}  // namespace laws

namespace test_graph_rope {
namespace {

using namespace ruvector;
using namespace ruvector::attention;
using support::same_bits;

using Backends = std::tuple<GraphRope<ScaledDotProduct<float>>, GraphRope<ScaledDotProduct<double>>,
                            GraphRope<Flash<float>>, GraphRope<Flash<double>>>;
using DoubleBackends = std::tuple<GraphRope<ScaledDotProduct<double>>, GraphRope<Flash<double>>>;

using Float = GraphRope<Flash<float>>;
static_assert(DifferentiableAttention<Float> && PositionalAttention<Float> && PreparedAttention<Float>);
static_assert(ScoringAttention<Float>);
static_assert(PositionalAttention<MultiHead<Float>> && !EdgeAwareAttention<MultiHead<Float>>);

TEMPLATE_LIST_TEST_CASE("graph rope: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(301, support::trials(300, 50));
}
TEMPLATE_LIST_TEST_CASE("graph rope: weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(302);
}
TEMPLATE_LIST_TEST_CASE("graph rope: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(303);
}
TEMPLATE_LIST_TEST_CASE("graph rope: what is not finite stays with those who see it", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(304);
}
TEMPLATE_LIST_TEST_CASE("graph rope: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(305);
}
TEMPLATE_LIST_TEST_CASE("graph rope: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(306);
}
TEMPLATE_LIST_TEST_CASE("graph rope: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(308);
}
TEMPLATE_LIST_TEST_CASE("graph rope: a query that sees no key is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(309);
}

// --- Coordinates. ---

/// A problem with coordinates.
template <class T>
struct Placed : laws::Problem<T> {
  Matrix<T> query_at, key_at;
  Placed(const laws::Shape& shape, Index coordinates, Rng& rng)
      : laws::Problem<T>(shape, rng),
        query_at(laws::Problem<T>::random(shape.queries, coordinates, rng, 1)),
        key_at(laws::Problem<T>::random(shape.keys, coordinates, rng, 1)) {}
  [[nodiscard]] GraphPositions<T> at() const { return {.query = query_at, .key = key_at}; }
};

TEMPLATE_LIST_TEST_CASE("graph rope: scores with coordinates are rotated products", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(310);
  Workspace ws;
  for (int c = 0; c < 20; ++c) {
    TestType rope = laws::random_rope<decltype(std::declval<TestType>().inner)>(rng);
    rope.inner = {};
    const Placed<T> problem({.queries = 7, .keys = 11, .dim = 6}, rope.coordinates(), rng);
    Matrix<T> scores(7, 11);
    rope.scores(problem.input(), problem.at(), scores, ws);
    const auto q = laws::rotated<long double>(rope.frequencies, problem.query,
                                              [&](Index i, Index p) { return problem.query_at(i, p); });
    const auto k = laws::rotated<long double>(laws::key_frequencies(rope), problem.key,
                                              [&](Index i, Index p) { return problem.key_at(i, p); });
    for (Index i = 0; i < 7; ++i)
      for (Index j = 0; j < 11; ++j) {
        long double dot = 0, size = 0;
        for (Index x = 0; x < 6; ++x) dot += q(i, x) * k(j, x), size += std::fabs(q(i, x) * k(j, x));
        // Roundings of two rotations, the product and the scale; angles are rounded in double.
        REQUIRE(support::near(double(scores(i, j)), double(dot / std::sqrt(6.0L)),
                              {.absolute = 12 * double(std::numeric_limits<T>::epsilon()) * double(size)}));
      }
  }
}

/// Central differences of queries, keys, values, coordinates and parameters.
template <class A>
void check_placed_gradients(const A& backend, const Placed<double>& problem, Rng& rng) {
  Workspace ws;
  const Index m = problem.query.rows(), columns = backend.output_dim(problem.value.cols());
  const auto g = laws::Problem<double>::random(m, columns, rng, 1);
  const auto loss = [&](const A& a, const Placed<double>& x) {
    Matrix<double> value(m, columns);
    a.forward(x.input(), x.at(), AttentionOutput<double>{value}, ws);
    double sum = 0;
    for (Index i = 0; i < m; ++i)
      for (Index c = 0; c < columns; ++c) sum += value(i, c) * g(i, c);
    return sum;
  };
  typename A::Saved saved;
  Placed<double> gradient = problem;
  for (auto* matrix : {&gradient.query, &gradient.key, &gradient.value, &gradient.query_at, &gradient.key_at})
    for (double& x : matrix->span()) x = 0;
  A grad = zeros_like(backend);
  Matrix<double> value(m, columns), plain(m, columns);
  backend.forward(problem.input(), problem.at(), AttentionOutput<double>{value}, saved, ws);
  backend.forward(problem.input(), problem.at(), AttentionOutput<double>{plain}, ws);
  CHECK(same_bits(value.span(), plain.span()));
  backend.backward(problem.input(), problem.at(), saved, AttentionOutputGradient<double>{g},
                   {.query = gradient.query, .key = gradient.key, .value = gradient.value},
                   {.query = gradient.query_at, .key = gradient.key_at}, grad, ws);
  using Member = Matrix<double> Placed<double>::*;
  for (const Member member : {Member(&Placed<double>::query), Member(&Placed<double>::key),
                              Member(&Placed<double>::value), &Placed<double>::query_at, &Placed<double>::key_at}) {
    Placed<double> moved = problem;
    const auto check = train::check_gradient(
        [&](std::span<const double> x) {
          std::ranges::copy(x, (moved.*member).span().begin());
          return loss(backend, moved);
        },
        (problem.*member).span(), (gradient.*member).span());
    INFO(to_string(check));
    CHECK(check.passed);
  }
  const auto check = train::check_module_gradient([&](const A& a) { return loss(a, problem); }, backend, grad);
  INFO(to_string(check));
  CHECK(check.passed);
}

TEMPLATE_LIST_TEST_CASE("graph rope: gradients by coordinates and frequencies", "[attention]", DoubleBackends) {
  using Inner = decltype(std::declval<TestType>().inner);
  Rng rng(311);
  for (int c = 0; c < 20; ++c) {
    CAPTURE(c);
    const auto rope = laws::random_rope<Inner>(rng);
    laws::Shape shape{.queries = 1 + rng.below(9), .keys = 1 + rng.below(12), .dim = 4 + rng.below(3)};
    shape.mask.causal = rng.below(2) == 0;
    check_placed_gradients(rope, Placed<double>(shape, rope.coordinates(), rng), rng);
  }
}

TEST_CASE("graph rope: gradients of a sequence", "[attention]") {
  // Small frequencies: central differences see angles of position · step.
  Rng rng(312);
  Workspace ws;
  using A = GraphRope<Flash<double>>;
  const A rope({.rotary_dim = 4, .share_qk = false, .initializer = FrequencyInitializer::normal, .scale = 0.1}, rng);
  const laws::Problem<double> problem({.queries = 4, .keys = 6, .dim = 5, .mask = {.causal = true}}, rng);
  const auto g = laws::Problem<double>::random(4, 3, rng, 1);
  A::Saved saved;
  A grad = zeros_like(rope);
  Matrix<double> value(4, 3);
  rope.forward(problem.input(), AttentionOutput<double>{value}, saved, ws);
  rope.backward(problem.input(), saved, AttentionOutputGradient<double>{g}, {.query = {}, .key = {}, .value = {}}, grad,
                ws);
  const auto loss = [&](const A& a) {
    a.forward(problem.input(), AttentionOutput<double>{value}, ws);
    double sum = 0;
    for (Index i = 0; i < 4; ++i)
      for (Index c = 0; c < 3; ++c) sum += value(i, c) * g(i, c);
    return sum;
  };
  const auto check = train::check_module_gradient(loss, rope, grad, {.step = 1e-5});
  INFO(to_string(check));
  CHECK(check.passed);
}

TEST_CASE("graph rope: heads have frequencies of their own, and add the gradients by coordinates up", "[attention]") {
  Rng rng(313);
  const GraphRope<Flash<double>> inner({.rotary_dim = 4, .coordinates = 2, .initializer = FrequencyInitializer::normal},
                                       rng);
  MultiHead<GraphRope<Flash<double>>> layer({.dim = 8, .heads = 2, .kv_heads = 1, .value_dim = 3}, rng, inner);
  for (double& x : layer.heads[1].frequencies.span()) x = rng.normal();
  check_placed_gradients(layer, Placed<double>({.queries = 5, .keys = 7, .dim = 8, .mask = {.causal = true}}, 2, rng),
                         rng);
}

// --- What rotations keep. ---

TEMPLATE_TEST_CASE("graph rope: lengths stay, and products see differences of coordinates", "[attention]", float,
                   double) {
  using T = TestType;
  Rng rng(314);
  Workspace ws;
  for (const FrequencyInitializer initializer :
       {FrequencyInitializer::exponential, FrequencyInitializer::orthogonal, FrequencyInitializer::normal}) {
    const GraphRope<ScaledDotProduct<T>> rope({.rotary_dim = 10, .coordinates = 3, .initializer = initializer}, rng);
    Placed<T> problem({.queries = 20, .keys = 20, .dim = 12}, 3, rng);
    // Coordinates whose sum with the shift is exact.
    for (auto* at : {&problem.query_at, &problem.key_at})
      for (T& x : at->span()) x = std::round(x * 64) / 64;
    Matrix<T> scores(20, 20), shifted(20, 20), y(20, 12);
    rope.scores(problem.input(), problem.at(), scores, ws);
    rotate_rows(rope.frequencies, problem.query_at, problem.query, y.view(), ws);
    for (Index i = 0; i < 20; ++i) {
      CHECK(same_bits(y.row(i).subspan(10), problem.query.row(i).subspan(10)));
      CHECK(support::near(double(simd::dot<T>(y.row(i), y.row(i))),
                          double(simd::dot<T>(problem.query.row(i), problem.query.row(i))), support::rounding<T>(12)));
    }
    for (auto* at : {&problem.query_at, &problem.key_at})
      for (T& x : at->span()) x += 16;
    rope.scores(problem.input(), problem.at(), shifted, ws);
    // The promise: 1e-6 of the largest possible logit in float, 1e-13 in double.
    for (Index i = 0; i < 20; ++i)
      for (Index j = 0; j < 20; ++j) {
        const double most = std::sqrt(double(simd::dot<T>(problem.query.row(i), problem.query.row(i))) *
                                      double(simd::dot<T>(problem.key.row(j), problem.key.row(j))) / 12);
        REQUIRE(support::near(double(shifted(i, j)), double(scores(i, j)),
                              {.absolute = (sizeof(T) == 4 ? 1e-6 : 1e-13) * most}));
      }
  }
}

TEMPLATE_LIST_TEST_CASE("graph rope: at the origin, and with zero frequencies, it is the inner attention",
                        "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(315);
  Workspace ws;
  const TestType rope({.rotary_dim = 6, .coordinates = 2, .initializer = FrequencyInitializer::normal}, rng);
  const TestType zero({.rotary_dim = 6, .coordinates = 2, .initializer = FrequencyInitializer::zero}, rng);
  Placed<T> problem({.queries = 9, .keys = 70, .dim = 8}, 2, rng);
  Matrix<T> expected(9, 3), value(9, 3);
  rope.inner.forward(problem.input(), AttentionOutput<T>{expected}, ws);
  zero.forward(problem.input(), problem.at(), AttentionOutput<T>{value}, ws);
  CHECK(same_bits(value.span(), expected.span()));
  for (auto* at : {&problem.query_at, &problem.key_at})
    for (T& x : at->span()) x = 0;
  rope.forward(problem.input(), problem.at(), AttentionOutput<T>{value}, ws);
  CHECK(same_bits(value.span(), expected.span()));
}

TEST_CASE("graph rope: angles of any size are exact", "[attention]") {
  Rng rng(323);
  Workspace ws;
  double worst = 0;
  for (const double size : {1e-3, 1.0, 4.0, 100.0, 1e4, 4194304.0, 4194305.0, 1e9, 1e300}) {
    for (int c = 0; c < 4000; ++c) {
      double angle = rng.uniform(-size, size);
      // Every other one beside a multiple of π/2, where most digits cancel.
      if (c % 2 == 0 && size < 1e9)
        angle = std::round(angle / std::numbers::pi * 2) * std::numbers::pi / 2 + 1e-9 * rng.normal();
      const double x[] = {1, 0};
      double y[2];
      rotate_rows(MatrixView<const double>(&angle, 1, 1), MatrixView<const double>(x, 1, 1),
                  MatrixView<const double>(x, 1, 2), MatrixView<double>(y, 1, 2), ws);
      const auto exact = static_cast<long double>(angle);
      worst = std::max({worst, std::fabs(double(static_cast<long double>(y[0]) - std::cos(exact))),
                        std::fabs(double(static_cast<long double>(y[1]) - std::sin(exact)))});
    }
  }
  CAPTURE(worst);
  CHECK(worst <= 2.5e-16);
  for (const double angle : {double(INFINITY), double(NAN)}) {
    const double x[] = {1, 0};
    double y[2];
    rotate_rows(MatrixView<const double>(&angle, 1, 1), MatrixView<const double>(x, 1, 1),
                MatrixView<const double>(x, 1, 2), MatrixView<double>(y, 1, 2), ws);
    CHECK((std::isnan(y[0]) && std::isnan(y[1])));
  }
}

TEST_CASE("graph rope: on a path it is RoPE", "[attention]") {
  // Hops from the first node of a path are positions in a sequence.
  Rng rng(316);
  Workspace ws;
  const Index n = 50, d = 16;
  std::vector<Index> offsets{0};
  std::vector<std::int32_t> targets;
  for (Index i = 0; i < n; ++i) {
    if (i > 0) targets.push_back(std::int32_t(i - 1));
    if (i + 1 < n) targets.push_back(std::int32_t(i + 1));
    offsets.push_back(Index(targets.size()));
  }
  Matrix<std::int32_t> hops(n, 1);
  const std::int32_t first[] = {0};
  graph::landmark_hops<std::int32_t>(graph::CsrView<std::int32_t>(offsets, targets), first, hops);
  Matrix<double> at(n, 1), sequence(n, 1);
  for (Index i = 0; i < n; ++i) at(i, 0) = hops(i, 0);
  graph::sequence_positions<double>(sequence);
  CHECK(same_bits(at.span(), sequence.span()));

  const GraphRope<ScaledDotProduct<double>> rope({.rotary_dim = d, .base = 1e4}, rng);
  const laws::Problem<double> problem({.queries = n, .keys = n, .dim = d}, rng);
  Matrix<double> scores(n, n), in_sequence(n, n);
  rope.scores(problem.input(), {.query = at, .key = at}, scores, ws);
  rope.scores(problem.input(), in_sequence, ws);
  CHECK(same_bits(scores.span(), in_sequence.span()));
  // q·k under R((j − i) ω_n), ω_n = base^(−2n/d): Su 2021, eq. 34
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) {
      double sum = 0;
      for (Index p = 0; p < d / 2; ++p) {
        const double theta = std::pow(1e4, -2.0 * double(p) / double(d)) * double(j - i);
        const double a = problem.query(i, 2 * p), b = problem.query(i, 2 * p + 1), x = problem.key(j, 2 * p),
                     y = problem.key(j, 2 * p + 1);
        sum += std::cos(theta) * (a * x + b * y) + std::sin(theta) * (b * x - a * y);
      }
      REQUIRE(support::near(scores(i, j), sum / 4, {.absolute = 1e-13}));
    }
}

TEMPLATE_LIST_TEST_CASE("graph rope: renaming the nodes renames the rows", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  using Inner = decltype(std::declval<TestType>().inner);
  Rng rng(317);
  Workspace ws;
  const Index n = 60;
  TestType rope = laws::random_rope<Inner>(rng);
  rope.inner = {};
  Placed<T> problem({.queries = n, .keys = n, .dim = 8, .value_dim = 5}, rope.coordinates(), rng);
  Placed<T> renamed = problem;
  std::vector<Index> order(std::size_t(n), 0);
  for (Index i = 0; i < n; ++i) order[std::size_t(i)] = i;
  rng.shuffle(std::span(order));
  using Member = Matrix<T> Placed<T>::*;
  for (const Member member : {Member(&Placed<T>::query), Member(&Placed<T>::key), Member(&Placed<T>::value),
                              &Placed<T>::query_at, &Placed<T>::key_at})
    for (Index i = 0; i < n; ++i)
      std::ranges::copy((problem.*member).row(order[std::size_t(i)]), (renamed.*member).row(i).begin());
  Matrix<T> one(n, 5), other(n, 5);
  rope.forward(problem.input(), problem.at(), AttentionOutput<T>{one}, ws);
  rope.forward(renamed.input(), renamed.at(), AttentionOutput<T>{other}, ws);
  // As for any attention, keys in another order sum in another order.
  for (Index i = 0; i < n; ++i)
    REQUIRE(support::max_error(other.row(i), one.row(order[std::size_t(i)])) <=
            double(n) * 4 * double(std::numeric_limits<T>::epsilon()));
}

TEST_CASE("graph rope: rotations are isometries of the ball and commute with exp and log", "[attention]") {
  Rng rng(318);
  Workspace ws;
  const geometry::PoincareBall<double> ball(0.8);
  const Index n = 40, d = 6;
  const GraphRope<Flash<double>> rope(
      {.rotary_dim = d, .coordinates = 2, .initializer = FrequencyInitializer::normal, .scale = 3}, rng);
  Matrix<double> x(n, d), y(n, d), tangent(n, d), at_point(n, d), back(n, d), turned(n, d);
  const auto at = laws::Problem<double>::random(n, 2, rng, 1);
  Matrix<double> same(n, 2);
  for (Index i = 0; i < n; ++i) {
    for (double& v : tangent.row(i)) v = 0.8 * rng.normal();
    std::ranges::copy(at.row(0), same.row(i).begin());
    ball.exp0(tangent.row(i), x.row(i));
  }
  // One rotation for all points keeps their distances.
  rotate_rows(rope.frequencies, same, x, y.view(), ws);
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < i; ++j)
      REQUIRE(support::near(ball.distance(y.row(i), y.row(j)), ball.distance(x.row(i), x.row(j)), {.relative = 1e-12}));
  // d(R_i x, R_j y) = d(x, R_(j−i) y): rotating the pair back by r_i.
  Matrix<double> difference(n, 2);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < 2; ++c) difference(i, c) = at(i, c) - at(0, c);
  rotate_rows(rope.frequencies, at, x, y.view(), ws);
  rotate_rows(rope.frequencies, difference, x, turned.view(), ws);
  for (Index i = 1; i < n; ++i)
    REQUIRE(
        support::near(ball.distance(y.row(0), y.row(i)), ball.distance(x.row(0), turned.row(i)), {.relative = 1e-12}));
  // exp0 and log0 commute with it.
  rotate_rows(rope.frequencies, at, tangent, turned.view(), ws);
  for (Index i = 0; i < n; ++i) {
    ball.exp0(turned.row(i), at_point.row(i));
    CHECK(support::max_error(at_point.row(i), y.row(i)) < 1e-14);
    ball.log0(y.row(i), back.row(i));
    CHECK(support::max_error(back.row(i), turned.row(i)) < 1e-12);
  }
}

// --- Prepared keys. ---

TEMPLATE_LIST_TEST_CASE("graph rope: appended keys are keys, bit for bit", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  using Inner = decltype(std::declval<TestType>().inner);
  Rng rng(319);
  Workspace ws;
  const Index n = 70;
  const TestType rope = laws::random_rope<Inner>(rng);
  const Placed<T> problem({.queries = n, .keys = n, .dim = 7, .value_dim = 5, .mask = {.causal = true}},
                          rope.coordinates(), rng);
  const AttentionInput<T> in = problem.input();
  const GraphPositions<T> at = problem.at();
  Matrix<T> placed(n, 5), sequence(n, 5), row(1, 5);
  rope.forward(in, at, AttentionOutput<T>{placed}, ws);
  rope.forward(in, AttentionOutput<T>{sequence}, ws);
  typename TestType::Prepared keys_at, keys;
  rope.prepare(in.key.rows(0, 1), in.value.rows(0, 1), at.key.rows(0, 1), keys_at, ws);
  rope.prepare(in.key.rows(0, 1), in.value.rows(0, 1), keys, ws);
  for (Index i = 0; i < n; ++i) {
    if (i > 0) rope.append(in.key.rows(i, 1), in.value.rows(i, 1), at.key.rows(i, 1), keys_at, ws);
    if (i > 0) rope.append(in.key.rows(i, 1), in.value.rows(i, 1), keys, ws);
    const PreparedInput<T> query{.query = in.query.rows(i, 1), .mask = in.mask};
    rope.forward(query, at.query.rows(i, 1), keys_at, AttentionOutput<T>{row}, ws);
    REQUIRE(same_bits(row.row(0), placed.row(i)));
    rope.forward(query, keys, AttentionOutput<T>{row}, ws);
    REQUIRE(same_bits(row.row(0), sequence.row(i)));
  }

  // Neighbours of a node, picked out of the keys of a graph.
  typename TestType::Prepared neighbors;
  const Index ids[] = {30, 2, 55};
  neighbors.select(keys_at, ids);
  Placed<T> small({.queries = 1, .keys = 3, .dim = 7, .value_dim = 5}, rope.coordinates(), rng);
  for (Index j = 0; j < 3; ++j) {
    std::ranges::copy(in.key.row(ids[j]), small.key.row(j).begin());
    std::ranges::copy(in.value.row(ids[j]), small.value.row(j).begin());
    std::ranges::copy(at.key.row(ids[j]), small.key_at.row(j).begin());
  }
  Matrix<T> expected(1, 5);
  rope.forward(small.input(), small.at(), AttentionOutput<T>{expected}, ws);
  const auto look = [&] {
    rope.forward(PreparedInput<T>{.query = small.query}, small.query_at, neighbors, AttentionOutput<T>{row}, ws);
  };
  look();
  CHECK(same_bits(row.span(), expected.span()));
  CHECK(support::allocations_in(look) == 0);
}

TEST_CASE("graph rope: heads look at prepared keys with coordinates", "[attention]") {
  Rng rng(325);
  Workspace ws;
  using A = MultiHead<GraphRope<Flash<float>>>;
  const GraphRope<Flash<float>> inner({.rotary_dim = 2, .coordinates = 3, .initializer = FrequencyInitializer::normal},
                                      rng);
  const A layer({.dim = 8, .heads = 4, .kv_heads = 2, .value_dim = 5}, rng, inner);
  const Placed<float> problem({.queries = 3, .keys = 30, .dim = 8, .value_dim = 5}, 3, rng);
  Matrix<float> whole(3, 8), prepared(3, 8);
  layer.forward(problem.input(), problem.at(), AttentionOutput<float>{whole}, ws);
  A::Prepared keys;
  layer.prepare(problem.key, problem.value, keys, ws);
  layer.forward(PreparedInput<float>{.query = problem.query}, problem.at(), keys, AttentionOutput<float>{prepared}, ws);
  CHECK(same_bits(whole.span(), prepared.span()));
}

// --- Borders. ---

TEST_CASE("graph rope: what is hidden does not reach the gradient of frequencies", "[attention]") {
  using A = GraphRope<Flash<double>>;
  Rng rng(320);
  Workspace ws;
  const A rope({.rotary_dim = 4, .coordinates = 2, .initializer = FrequencyInitializer::normal}, rng);
  laws::Shape shape{.queries = 5, .keys = 9, .dim = 5};
  shape.mask.key_length = 6;
  const Placed<double> clean(shape, 2, rng);
  Placed<double> poisoned = clean;
  for (Index j = 6; j < 9; ++j) {
    for (double& x : poisoned.key.row(j)) x = std::numeric_limits<double>::quiet_NaN();
    for (double& x : poisoned.key_at.row(j)) x = std::numeric_limits<double>::quiet_NaN();
  }
  const auto gradient = [&](const Placed<double>& problem) {
    A::Saved saved;
    A grad = zeros_like(rope);
    Matrix<double> value(5, 3), ones(5, 3, 1), d_key(9, 5), d_at(9, 2);
    rope.forward(problem.input(), problem.at(), AttentionOutput<double>{value}, saved, ws);
    rope.backward(problem.input(), problem.at(), saved, AttentionOutputGradient<double>{ones},
                  {.query = {}, .key = d_key, .value = {}}, {.query = {}, .key = d_at}, grad, ws);
    for (Index j = 6; j < 9; ++j) {
      for (const double x : d_key.row(j)) CHECK(x == 0);
      for (const double x : d_at.row(j)) CHECK(x == 0);
    }
    return grad;
  };
  CHECK(same_bits(gradient(clean).frequencies.span(), gradient(poisoned).frequencies.span()));
}

TEST_CASE("graph rope: hands its generator on to the dropout inside", "[attention]") {
  using A = GraphRope<Flash<float>>;
  Rng rng(324);
  Workspace ws;
  const A rope({.rotary_dim = 4}, rng, Flash<float>(DotScore<float>(), {}, 0.5f));
  const laws::Problem<float> problem({.queries = 5, .keys = 20, .dim = 4}, rng);
  A::Saved saved;
  const auto pass = [&](std::uint64_t seed) {
    Matrix<float> value(5, 3);
    saved.rng = Rng(seed);
    rope.forward(problem.input(), AttentionOutput<float>{value}, saved, ws);
    return value;
  };
  const Matrix<float> one = pass(1);
  CHECK(same_bits(one.span(), pass(1).span()));
  CHECK(!same_bits(one.span(), pass(2).span()));
}

TEST_CASE("graph rope: how frequencies start", "[attention]") {
  Rng rng(321);
  using A = GraphRope<Flash<double>>;
  const A exponential({.rotary_dim = 8, .coordinates = 3, .base = 16}, rng);
  for (Index n = 0; n < 4; ++n)
    for (Index c = 0; c < 3; ++c) CHECK(exponential.frequencies(n, c) == (c == n % 3 ? std::pow(0.5, double(n)) : 0));
  CHECK(exponential.key_frequencies.empty());
  for (const Index p : {3, 7}) {
    const A orthogonal({.rotary_dim = 10,
                        .coordinates = p,
                        .share_qk = false,
                        .initializer = FrequencyInitializer::orthogonal,
                        .scale = 2},
                       rng);
    CHECK(!same_bits(orthogonal.frequencies.span(), orthogonal.key_frequencies.span()));
    for (const auto* omega : {&orthogonal.frequencies, &orthogonal.key_frequencies})
      for (Index a = 0; a < std::min(p, Index(5)); ++a)
        for (Index b = 0; b <= a; ++b) {
          double product = 0;
          for (Index i = 0; i < std::max(p, Index(5)); ++i)
            product += p < 5 ? (*omega)(i, a) * (*omega)(i, b) : (*omega)(a, i) * (*omega)(b, i);
          CHECK(support::near(product, a == b ? 4 : 0, {.absolute = 1e-14}));
        }
  }
  const A normal({.rotary_dim = 2000, .initializer = FrequencyInitializer::normal, .scale = 3}, rng);
  double square = 0;
  for (const double x : normal.frequencies.span()) square += x * x;
  CHECK(support::near(square / 1000, 9, {.relative = 5 * std::sqrt(2.0 / 1000)}));  // 5 σ
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("graph rope: errors name what is wrong, before anything is written", "[attention]") {
  using A = GraphRope<Flash<float>>;
  Rng rng(322);
  Workspace ws;
  const auto error = [&](const GraphRopeConfig& config) { return message_of([&] { A rope(config, rng); }); };
  CHECK_THROWS_AS(A({.rotary_dim = 3}, rng), ConfigError);
  CHECK(error({.rotary_dim = 3}) == "GraphRope: rotary_dim: expected even and > 0, got 3");
  CHECK(error({}) == "GraphRope: rotary_dim: expected even and > 0, got 0");
  CHECK(error({.rotary_dim = 2, .coordinates = 0}) == "GraphRope: coordinates: expected >= 1, got 0");
  CHECK(error({.rotary_dim = 2, .base = 0}) == "GraphRope: base: expected finite and > 0, got 0");
  CHECK(error({.rotary_dim = 2, .scale = double(INFINITY)}) == "GraphRope: scale: expected finite, got inf");

  const A rope({.rotary_dim = 6, .coordinates = 2}, rng);
  Placed<float> problem({.queries = 3, .keys = 4, .dim = 5}, 2, rng);
  Matrix<float> value(3, 3, 7);
  const auto call = [&] {
    const std::string message =
        message_of([&] { rope.forward(problem.input(), problem.at(), AttentionOutput<float>{value}, ws); });
    for (const float x : value.span()) CHECK(x == 7);
    return message;
  };
  CHECK(call() == "GraphRope: columns of query and key: expected at least 6, got 5");
  problem = Placed<float>({.queries = 3, .keys = 4, .dim = 6}, 3, rng);
  CHECK(call() == "GraphRope: coordinates of query: expected 2, got 3");
  problem = Placed<float>({.queries = 3, .keys = 4, .dim = 6}, 2, rng);
  problem.key_at = Matrix<float>(5, 2);
  CHECK(call() == "GraphRope: coordinates of key: expected 4, got 5");
}

}  // namespace
}  // namespace test_graph_rope
