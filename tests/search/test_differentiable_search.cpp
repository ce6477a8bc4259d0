// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/io/ruvector_json.hpp>
#include <ruvector/search/differentiable_search.hpp>
#include <ruvector/search/hierarchical.hpp>
#include <ruvector/train/gradient_check.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

namespace test_differentiable_search {
namespace {

using namespace ruvector;
using namespace ruvector::search;
using attention::Dense;
using attention::HyperbolicFlash;
using Json = nlohmann::json;

template <class T>
Matrix<T> normal(Rng& rng, Index rows, Index cols, double spread = 1) {
  Matrix<T> x(rows, cols);
  for (T& e : x.span()) e = T(spread * rng.normal());
  return x;
}

// --- version 1 ---

Json read_golden() {
  std::ifstream file(std::string(RUVECTOR_TEST_DATA) + "/ruvector_v1.json");
  return Json::parse(file);
}
template <class T>
Matrix<T> matrix_of(const Json& rows) {
  Matrix<T> matrix(Index(rows.size()), rows.empty() ? 0 : Index(rows[0].size()));
  for (Index i = 0; i < matrix.rows(); ++i)
    std::ranges::copy(rows[std::size_t(i)].get<std::vector<T>>(), matrix.row(i).begin());
  return matrix;
}

TEST_CASE("differentiable_search: agrees with @ruvector/gnn to 1e-5", "[search]") {
  const Json golden = read_golden();
  Workspace ws;
  SearchResult<float> result;
  int places = 0;
  for (const Json& call : golden.at("searches")) {
    const auto query = call.at("query").get<std::vector<float>>();
    const Matrix<float> candidates = matrix_of<float>(call.at("candidates"));
    differentiable_search<float>(query, candidates, call.at("k").get<Index>(), call.at("temperature").get<float>(),
                                 result, ws);
    const auto ids = call.at("indices").get<std::vector<Index>>();
    const auto weights = call.at("weights").get<std::vector<float>>();
    REQUIRE(result.count[0] == Index(ids.size()));
    for (std::size_t place = 0; place < ids.size(); ++place, ++places) {
      CHECK(result.ids(0, Index(place)) == ids[place]);
      CHECK(support::near(double(result.weights(0, Index(place))), double(weights[place]), {.absolute = 1e-5}));
    }
  }
  CHECK(places > 20);
}

template <class T>
void check_hierarchies() {
  const Json golden = read_golden();
  Workspace ws;
  SearchResult<T> scratch;
  double worst = 0;
  int calls = 0;
  for (const Json& call : golden.at("hierarchies")) {
    std::vector<Matrix<T>> matrices;
    for (const Json& level : call.at("embeddings")) matrices.push_back(matrix_of<T>(level));
    const std::vector<MatrixView<const T>> levels(matrices.begin(), matrices.end());
    std::vector<gnn::RuvectorLayer<T>> layers;
    for (const Json& layer : call.at("layers"))
      layers.push_back(
          io::parse_ruvector_json<T>(golden.at("layers").at(layer.get<std::size_t>()).at("json").get<std::string>()));
    const auto expected = call.at("output").get<std::vector<T>>();
    std::vector<T> out(expected.size());
    hierarchical_forward(call.at("query").get<std::vector<T>>(), levels, layers, std::span<T>(out), scratch, ws);
    for (std::size_t e = 0; e < out.size(); ++e) worst = std::max(worst, double(std::fabs(out[e] - expected[e])));
    ++calls;
  }
  CHECK(calls == 10);
  CHECK(worst <= 1e-5);
}

TEST_CASE("hierarchical_forward: agrees with @ruvector/gnn to 1e-5", "[search]") {
  check_hierarchies<float>();
  check_hierarchies<double>();
}

TEST_CASE("hierarchical_forward: widths that do not follow each other", "[search]") {
  Rng rng(1);
  Workspace ws;
  SearchResult<float> scratch;
  const std::vector<gnn::RuvectorLayer<float>> layers(2, gnn::RuvectorLayer<float>({.input = 3, .hidden = 4}, rng));
  const Matrix<float> level = normal<float>(rng, 6, 3);
  const std::vector<MatrixView<const float>> levels = {level, level};
  std::vector<float> query(3, 1.0f), out(4, 7.0f);
  CHECK_THROWS_AS(hierarchical_forward(query, levels, layers, std::span<float>(out), scratch, ws), ShapeError);
  CHECK_THROWS_AS(hierarchical_forward<float>(query, {}, layers, out, scratch, ws), ShapeError);
  CHECK(out == std::vector<float>(4, 7.0f));
}

// --- version 2 ---

// One place, weight or score at a time as the long way round gives it.
template <class A>
void check_forward(const A& backend, Index queries, Index n, Index d, Rng& rng) {
  Workspace ws;
  const Matrix<double> query = normal<double>(rng, queries, d, 0.3), key = normal<double>(rng, n, d, 0.3),
                       value = normal<double>(rng, n, d + 1, 0.3);
  Matrix<std::uint8_t> allowed(1, n);
  for (std::uint8_t& e : allowed.span()) e = rng.below(4) != 0;
  SearchInput<double> in{.query = query, .key = key, .value = value, .allowed = allowed, .k = 1 + rng.below(n + 2)};
  SearchResult<double> result;
  differentiable_search_v2(backend, in, result, ws);
  Matrix<double> scores(queries, n), out(queries, backend.output_dim(d + 1));
  std::vector<double> lse(std::size_t(queries), 0.0);
  attention::AttentionInput<double> all{.query = query, .key = key, .value = value, .mask = {.allowed = allowed}};
  backend.scores(all, scores, ws);
  backend.forward(all, {.value = out, .log_sum_exp = lse}, ws);
  for (Index i = 0; i < queries; ++i) {
    std::vector<Index> order;
    for (Index j = 0; j < n; ++j)
      if (allowed(0, j) != 0) order.push_back(j);
    std::ranges::stable_sort(order, [&](Index a, Index b) { return scores(i, a) > scores(i, b); });
    REQUIRE(result.count[i] == std::min(in.k, Index(order.size())));
    CHECK(support::near(result.log_sum_exp[i], lse[std::size_t(i)], {.relative = 4e-15, .absolute = 4e-15}));
    double mass = 0;
    for (Index place = 0; place < result.count[i]; ++place) {
      const Index id = order[std::size_t(place)];
      REQUIRE(result.ids(i, place) == id);
      CHECK(result.scores(i, place) == scores(i, id));
      const double weight = std::exp(scores(i, id) - lse[std::size_t(i)]);
      CHECK(support::near(result.weights(i, place), weight, support::rounding<double>(64)));
      mass += weight;
    }
    CHECK(support::near(result.mass[i], mass, support::rounding<double>(64)));
  }
  CHECK(support::same_bits(result.embedding.span(), out.span()));
  in.renormalize = true;
  differentiable_search_v2(backend, in, result, ws);
  for (Index i = 0; i < queries; ++i) {
    double sum = 0;
    for (const double w : result.weights.row(i)) sum += w;
    CHECK(support::near(sum, result.count[i] > 0 ? 1.0 : 0.0, support::rounding<double>(16)));
  }
}

using Dot = Dense<attention::DotScore<double>>;
using Ball = HyperbolicFlash<double>;

Ball in_ball(double curvature) {
  return attention::make_hyperbolic<Ball>({.curvature = curvature, .beta = 1.5, .input = attention::Points::tangent});
}
auto in_both(Index d) {
  return attention::make_dual_space<attention::DualSpace<double>>(
      {.euclidean_dim = d / 2, .euclidean_value_dim = d / 2, .curvature = 0.8, .gate = 0.4, .temperature = 0.7});
}

TEST_CASE("differentiable_search_v2: scores, exact weights and embedding of the attention", "[search]") {
  Rng rng(31);
  for (int trial = 0; trial < 12; ++trial) {
    const Index queries = 1 + rng.below(5), n = 1 + rng.below(90), d = 2 + rng.below(7);
    CAPTURE(trial, queries, n, d);
    check_forward(Dot(attention::DotScore<double>({.temperature = 0.3})), queries, n, d, rng);
    check_forward(in_ball(0.7), queries, n, d, rng);
    check_forward(in_both(d), queries, n, d, rng);
  }
}

template <class A>
struct Inputs {
  using Scalar = double;
  Matrix<double> query, key, value;
  A attention;

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("query", self.query...);
    visit("key", self.key...);
    visit("value", self.value...);
    visit("attention", self.attention...);
  }
};

// Gradients of a random linear function of all that is returned, by all inputs and parameters.
template <class A>
void check_gradients(const A& backend, Index queries, Index n, Index d, bool own, bool renormalize, Rng& rng) {
  const Inputs<A> inputs{normal<double>(rng, queries, d, 0.5), normal<double>(rng, n, d, 0.5),
                         own ? Matrix<double>() : normal<double>(rng, n, d, 0.5), backend};
  const Index k = 1 + rng.below(n), width = backend.output_dim(d);
  const Matrix<double> d_weights = normal<double>(rng, queries, k), d_scores = normal<double>(rng, queries, k),
                       d_embedding = normal<double>(rng, queries, width), d_lse = normal<double>(rng, 1, queries);
  Workspace ws;
  SearchSaved<A> saved;
  SearchResult<double> result;
  const auto input = [&](const Inputs<A>& x) {
    return SearchInput<double>{.query = x.query,
                               .key = x.key,
                               .value = own ? MatrixView<const double>() : x.value.view(),
                               .k = k,
                               .renormalize = renormalize};
  };
  const auto loss = [&](const Inputs<A>& x) {
    differentiable_search_v2(x.attention, input(x), result, saved, ws);
    double sum = 0;
    for (Index i = 0; i < queries; ++i) {
      for (Index place = 0; place < k; ++place)
        sum += d_weights(i, place) * result.weights(i, place) + d_scores(i, place) * result.scores(i, place);
      for (Index e = 0; e < width; ++e) sum += d_embedding(i, e) * result.embedding(i, e);
      sum += d_lse(0, i) * result.log_sum_exp[i];
    }
    return sum;
  };
  (void)loss(inputs);
  Inputs<A> grad = zeros_like(inputs);
  differentiable_search_v2_backward(
      inputs.attention, input(inputs), result, saved,
      {.weights = d_weights, .scores = d_scores, .embedding = d_embedding, .log_sum_exp = d_lse.row(0)},
      {.query = grad.query, .key = grad.key, .value = own ? MatrixView<double>() : grad.value.view()}, grad.attention,
      ws);
  const train::GradientCheck check = train::check_module_gradient(loss, inputs, grad, {.step = 2e-5});
  INFO(train::to_string(check));
  CHECK(check.passed);
}

TEST_CASE("differentiable_search_v2: gradients", "[search][gradient]") {
  Rng rng(32);
  for (int trial = 0; trial < 20; ++trial) {
    const Index queries = 1 + rng.below(3), n = 1 + rng.below(9), d = 2 + rng.below(4);
    const bool own = rng.below(2) == 0, renormalize = rng.below(2) == 0;
    CAPTURE(trial, queries, n, d, own, renormalize);
    check_gradients(Dot(attention::DotScore<double>({.temperature = 0.6})), queries, n, d, own, renormalize, rng);
    check_gradients(in_ball(0.9), queries, n, d, own, renormalize, rng);
    check_gradients(in_both(d), queries, n, d, own, renormalize, rng);
  }
}

TEST_CASE("differentiable_search_v2: a candidate with NaN is absent, a query with NaN finds nothing", "[search]") {
  Rng rng(33);
  Workspace ws;
  Matrix<float> query = normal<float>(rng, 2, 4), key = normal<float>(rng, 70, 4);
  const attention::Flash<float> backend;
  SearchResult<float> clean, result;
  Matrix<std::uint8_t> allowed(1, 70, 1);
  allowed(0, 3) = allowed(0, 66) = 0;
  differentiable_search_v2(backend, {.query = query, .key = key, .allowed = allowed, .k = 5}, clean, ws);
  key(3, 1) = key(66, 0) = std::numeric_limits<float>::quiet_NaN();
  differentiable_search_v2(backend, {.query = query, .key = key, .k = 5}, result, ws);
  CHECK(support::same_bits(clean.ids.span(), result.ids.span()));
  CHECK(support::same_bits(clean.weights.span(), result.weights.span()));
  CHECK(support::same_bits(clean.embedding.span(), result.embedding.span()));
  query(0, 0) = std::numeric_limits<float>::quiet_NaN();
  differentiable_search_v2(backend, {.query = query, .key = key, .k = 5}, result, ws);
  CHECK(result.count[0] == 0);
  CHECK(result.ids(0, 0) == -1);
  CHECK(support::same_bits(clean.ids.row(1), result.ids.row(1)));
}

TEST_CASE("differentiable_search_v2: a low temperature is the hard maximum; k beyond n and no candidates", "[search]") {
  Rng rng(34);
  Workspace ws;
  const Matrix<float> query = normal<float>(rng, 3, 6), key = normal<float>(rng, 40, 6);
  SearchResult<float> result;
  const attention::Flash<float> cold(attention::DotScore<float>({.temperature = 1e-6f}));
  differentiable_search_v2(cold, {.query = query, .key = key, .k = 50}, result, ws);
  for (Index i = 0; i < 3; ++i) {
    CHECK(result.count[i] == 40);
    CHECK(result.ids(i, 40) == -1);
    CHECK(result.weights(i, 0) == 1);
    for (Index e = 0; e < 6; ++e)
      CHECK(
          support::near(double(result.embedding(i, e)), double(key(result.ids(i, 0), e)), support::rounding<float>(2)));
  }
  differentiable_search_v2(cold, {.query = query, .key = MatrixView<const float>(), .k = 4}, result, ws);
  CHECK(result.count[2] == 0);
  CHECK(result.log_sum_exp[2] == -std::numeric_limits<float>::infinity());
}

TEST_CASE("differentiable_search_v2: hyperbolic and dual-space searches; the second call allocates nothing",
          "[search]") {
  Rng rng(35);
  Workspace ws;
  Matrix<float> query = normal<float>(rng, 2, 6, 0.1), key = normal<float>(rng, 100, 6, 0.1);
  std::ranges::copy(query.row(1), key.row(17).begin());
  SearchResult<float> result;
  const SearchInput<float> in{.query = query, .key = key, .k = 3};
  const attention::DualSpaceConfig both{.euclidean_dim = 3, .euclidean_value_dim = 3, .gate = 0.1};
  differentiable_search_hyperbolic(in, 0.5, 0.02, result, ws);
  CHECK(result.ids(1, 0) == 17);
  CHECK(result.scores(1, 0) == 0);
  CHECK(support::allocations_in([&] { differentiable_search_hyperbolic(in, 0.5, 0.02, result, ws); }) == 0);
  differentiable_search_dual_space(in, both, result, ws);
  const auto attention = attention::make_dual_space<attention::DualSpaceFlash<float>>(both);
  const auto parts = attention.score.space_contributions(query.row(1), key.row(result.ids(1, 0)));
  CHECK(support::near(double(parts.first + parts.second), double(result.scores(1, 0)), support::rounding<float>(16)));
  CHECK(support::allocations_in([&] { differentiable_search_dual_space(in, both, result, ws); }) == 0);
  CHECK_THROWS_AS(differentiable_search_hyperbolic(in, 0.0, 1.0, result, ws), ConfigError);
  CHECK_THROWS_AS(differentiable_search_hyperbolic(in, 1.0, 0.0, result, ws), ConfigError);
  CHECK_THROWS_AS(
      differentiable_search_v2(attention::Flash<float>(), {.query = query, .key = key, .k = -1}, result, ws),
      ConfigError);
  CHECK_THROWS_AS(
      differentiable_search_v2(attention::Flash<float>(), {.query = query, .key = key.view().cols(0, 5)}, result, ws),
      ShapeError);
}

TEST_CASE("search: an exact match among 10000 ranks first with the exact weight, and alone where τ → 0", "[search]") {
  const std::uint64_t seed = 37;
  CAPTURE(seed);
  Rng rng(seed);
  constexpr Index n = 10000, d = 32, match = 7654;
  const Matrix<float> key = normal<float>(rng, n, d);
  const MatrixView<const float> query = key.view().rows(match, 1);
  Workspace ws;
  SearchResult<float> soft, exact;
  for (const double temperature : {20.0, 1.0, 1e-3}) {
    CAPTURE(temperature);
    const float scale = 1 / std::sqrt(float(d));
    differentiable_search_v2(attention::Flash<float>(attention::DotScore<float>({.temperature = float(temperature)})),
                             {.query = query, .key = key, .k = 3}, soft, ws);
    ExactSearch(InnerProduct<float>{}, {.key = key, .value = key})
        .search(query, {.k = 3, .softmax = true, .temperature = float(temperature) / scale}, exact, ws);
    double inverse = 0;  // Σ e^(s_j − s_match)
    for (Index j = 0; j < n; ++j) {
      double below = 0;
      for (Index c = 0; c < d; ++c) below += double(query(0, c)) * (double(key(j, c)) - double(query(0, c)));
      inverse += std::exp(below * double(scale) / temperature);
    }
    const double weight = 1 / inverse;
    for (const SearchResult<float>* result : {&soft, &exact}) {
      CHECK(result->ids(0, 0) == match);
      CHECK(support::near(double(result->weights(0, 0)), weight, {.relative = 1e-4}));
      CHECK(result->mass[0] >= result->weights(0, 0));
      if (temperature != 1e-3) continue;
      CHECK(result->weights(0, 0) == 1);
      CHECK(result->mass[0] == 1);
      CHECK(support::same_bits(result->embedding.row(0), query.row(0)));
    }
  }
}

template <class T>
bool same(const SearchResult<T>& a, const SearchResult<T>& b) {
  return support::same_bits(a.ids.span(), b.ids.span()) && support::same_bits(a.scores.span(), b.scores.span()) &&
         support::same_bits(a.weights.span(), b.weights.span()) &&
         support::same_bits(a.log_sum_exp.span(), b.log_sum_exp.span()) &&
         support::same_bits(a.embedding.span(), b.embedding.span());
}

// A result that held a search of other sizes, and no scratch yet.
template <class T>
struct Run {
  SearchResult<T> result;
  Workspace ws = {};
  SearchSaved<Dot> saved = {};
  Matrix<T> d_query = {}, d_key = {};
  std::vector<T> out = {};

  Run() { result.resize(4, 2, true, 3); }
};

// Promise P-36.
TEST_CASE("differentiable_search: any allocation may fail, and the same call finds the same then", "[search]") {
  const std::uint64_t seed = 36;
  CAPTURE(seed);
  Rng rng(seed);
  const Matrix<float> query = normal<float>(rng, 2, 6, 0.1), key = normal<float>(rng, 100, 6, 0.1);
  const SearchInput<float> in{.query = query, .key = key, .k = 3};
  const auto sweep = [](const char* name, auto expected, const auto& call) {
    call(expected);
    support::check_allocation_failures(
        name, [] { return decltype(expected)(); }, call,
        [&](const auto& after) {
          return same(after.result, expected.result) && after.out == expected.out &&
                 support::same_bits(after.d_query.span(), expected.d_query.span()) &&
                 support::same_bits(after.d_key.span(), expected.d_key.span());
        });
  };
  sweep("differentiable_search", Run<float>(),
        [&](Run<float>& run) { differentiable_search<float>(query.row(0), key, 3, 0.5f, run.result, run.ws); });
  sweep("differentiable_search_hyperbolic", Run<float>(),
        [&](Run<float>& run) { differentiable_search_hyperbolic(in, 0.5, 0.02, run.result, run.ws); });
  sweep("differentiable_search_dual_space", Run<float>(), [&](Run<float>& run) {
    differentiable_search_dual_space(in, {.euclidean_dim = 3, .euclidean_value_dim = 3}, run.result, run.ws);
  });
  const std::vector<gnn::RuvectorLayer<float>> layers(2, gnn::RuvectorLayer<float>({.input = 6, .hidden = 6}, rng));
  const std::vector<MatrixView<const float>> levels = {key.view().rows(0, 20), key};
  sweep("hierarchical_forward", Run<float>(), [&](Run<float>& run) {
    run.out.assign(6, 0.0f);
    hierarchical_forward<float>(query.row(0), levels, layers, run.out, run.result, run.ws);
  });
  const Matrix<double> queries = normal<double>(rng, 3, 5), keys = normal<double>(rng, 70, 5),
                       d_weights = normal<double>(rng, 3, 4);
  const Dot dot;
  sweep("differentiable_search_v2 and its backward", Run<double>(), [&](Run<double>& run) {
    const SearchInput<double> input{.query = queries, .key = keys, .k = 4};
    Dot grad = zeros_like(dot);
    run.d_query = Matrix<double>(3, 5);
    run.d_key = Matrix<double>(70, 5);
    differentiable_search_v2(dot, input, run.result, run.saved, run.ws);
    differentiable_search_v2_backward(dot, input, run.result, run.saved, {.weights = d_weights},
                                      {run.d_query, run.d_key, {}, {}}, grad, run.ws);
  });
}

}  // namespace
}  // namespace test_differentiable_search
