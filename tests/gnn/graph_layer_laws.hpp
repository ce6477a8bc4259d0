// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/executor.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/gnn/concepts.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/train/gradient_check.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/allocation_counter.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"
#include "support/trials.hpp"

// The laws of graph layers. A layer comes as a function make(Shape, Rng&) and receives them all.

namespace graph_layer_laws {

using namespace ruvector;

using support::trials;

struct Shape {
  Index nodes = 5, edges = 12, input = 3, hidden = 4, heads = 2, edge_dim = 2;
  bool weights = true;
  double dropout = 0;
  double spread = 1;  ///< deviation of x: less, where rows are points of a ball
};

/// Small shapes, of size 1 too.
inline Shape random_shape(Rng& rng, int trial, Index least_columns = 1) {
  Shape shape;
  shape.heads = 1 + rng.below(3);
  shape.hidden = shape.heads * (least_columns + rng.below(3));
  shape.input = 1 + rng.below(4);
  shape.nodes = 1 + rng.below(5);
  shape.edges = rng.below(3 * shape.nodes);
  shape.edge_dim = rng.below(3);
  shape.weights = rng.below(4) != 0;
  if (trial == 0) shape = {.nodes = 1, .edges = 1, .input = 1, .hidden = least_columns, .heads = 1, .edge_dim = 1};
  if (trial == 1) shape.edges = 0;
  return shape;
}

template <class T>
struct Problem {
  graph::CsrGraph<> graph;
  Matrix<T> x, features;
  Vector<T> weights;

  Problem(const Shape& shape, Rng& rng)
      : x(shape.nodes, shape.input),
        features(shape.edge_dim == 0 ? 0 : shape.edges, shape.edge_dim),
        weights(shape.weights ? shape.edges : 0) {
    // Duplicates and loops occur, and edges share ids; the last of several nodes has no edges.
    std::vector<std::vector<std::int32_t>> targets(std::size_t(shape.nodes));
    for (Index e = 0; e < shape.edges; ++e)
      targets[std::size_t(rng.below(std::max(Index(1), shape.nodes - 1)))].push_back(
          std::int32_t(rng.below(shape.nodes)));
    std::vector<Index> offsets{0}, ids;
    std::vector<std::int32_t> all;
    for (const auto& list : targets) {
      all.insert(all.end(), list.begin(), list.end());
      offsets.push_back(Index(all.size()));
    }
    for (Index e = 0; e < shape.edges; ++e) ids.push_back(rng.below(shape.edges));
    graph = graph::CsrGraph<>(std::move(offsets), std::move(all), std::move(ids));
    for (T& value : x.span()) value = T(shape.spread * rng.normal());
    for (T& value : features.span()) value = T(rng.normal());
    for (T& weight : weights) weight = T(rng.uniform(0.2, 1.0));
  }
  [[nodiscard]] gnn::GraphEdges<T> edges() const { return {features, weights.span()}; }
};

/// Every weight away from its start, so that all of them matter.
template <class L>
void shake(L& layer, Rng& rng) {
  for_each_parameter(
      [&](std::string_view, auto tensor) {
        for (auto& value : tensor) value += ScalarOf<L>(0.3 * rng.normal());
      },
      layer);
}

/// Norms of rows of one to three columns turn so sharply that no difference is exact; with a large ε they do not.
template <class L>
void smooth(L& layer) {
  if constexpr (requires { layer.norm.epsilon; }) layer.norm.epsilon = ScalarOf<L>(0.25);
  if constexpr (requires { layer.layers; })
    for (auto& one : layer.layers) smooth(one);
}

template <class T>
[[nodiscard]] double weigh(const Matrix<T>& y, const Matrix<T>& upstream) {
  double sum = 0;
  for (Index i = 0; i < y.rows(); ++i)
    for (Index c = 0; c < y.cols(); ++c) sum += double(y(i, c)) * double(upstream(i, c));
  return sum;
}

template <class T>
[[nodiscard]] bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());  // no NaN in these tests
}

/// P-01: rows, features of edges, weights of edges, parameters; `wanted` of the nodes have outputs.
template <class Make>
void check_gradients(Make&& make, std::uint64_t seed, int count = 20, Index least_columns = 1, Index most_features = 2,
                     double spread = 1) {
  const train::GradientCheckConfig config{.step = 1e-5};
  for (int trial = 0; trial < trials(count); ++trial) {
    Rng rng = Rng(seed).split(std::uint64_t(trial));
    Shape shape = random_shape(rng, trial, least_columns);
    if (trial % 4 == 3) shape.dropout = 0.4;
    shape.edge_dim = std::min(shape.edge_dim, most_features);
    shape.spread = spread;
    Problem<double> problem(shape, rng);
    auto layer = make(shape, rng);
    using L = decltype(layer);
    shake(layer, rng);
    smooth(layer);
    const Index m = trial % 3 == 2 ? 1 + rng.below(shape.nodes) : shape.nodes;
    Matrix<double> y(m, shape.hidden), upstream(m, shape.hidden), d_x(shape.nodes, shape.input);
    for (double& value : upstream.span()) value = rng.normal() / std::sqrt(double(upstream.size()));
    Matrix<double> d_features(problem.features.rows(), problem.features.cols());
    Vector<double> d_weights(problem.weights.size());
    Workspace ws;
    typename L::Saved saved;
    const Rng draws(seed + 77);
    saved.rng = draws;
    L grad = zeros_like(layer);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, saved, ws);
    layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, upstream, d_x,
                   {d_features, d_weights.span()}, grad, ws);
    typename L::Saved other;
    const auto loss = [&](const L& model, const Problem<double>& at) {
      other.rng = draws;  // the same dropout
      model.forward(at.graph.view(), at.x, at.edges(), y, other, ws);
      return weigh(y, upstream);
    };
    CAPTURE(seed, trial, shape.nodes, shape.edges, shape.input, shape.hidden, shape.heads, shape.edge_dim, m);
    Problem<double> moved = problem;
    const auto check = [&](const char* what, auto&& tensor_of, std::span<const double> gradient) {
      const train::GradientCheck result = train::check_gradient(
          [&](std::span<const double> values) {
            std::copy(values.begin(), values.end(), tensor_of(moved).begin());
            return loss(layer, moved);
          },
          tensor_of(problem), gradient, config);
      INFO(what << to_string(result));
      CHECK(result.passed);
      moved = problem;
    };
    check(
        "x", [](Problem<double>& p) { return p.x.span(); }, d_x.span());
    check(
        "features", [](Problem<double>& p) { return p.features.span(); }, d_features.span());
    check(
        "weights", [](Problem<double>& p) { return p.weights.span(); }, d_weights.span());
    const train::GradientCheck result =
        train::check_module_gradient([&](const L& model) { return loss(model, problem); }, layer, grad, config);
    INFO(to_string(result));
    CHECK(result.passed);
  }
}

/// P-20, P-23: the same bits for any number of threads, in training, inference and backward, run after run.
template <class Make>
void check_threads(Make&& make, std::uint64_t seed, Index edge_dim = 3, double spread = 1) {
  Rng rng(seed);
  CAPTURE(seed);
  const Shape shape{.nodes = 300,
                    .edges = 1500,
                    .input = 5,
                    .hidden = 8,
                    .heads = 2,
                    .edge_dim = edge_dim,
                    .dropout = 0.2,
                    .spread = spread};
  Problem<float> problem(shape, rng);
  auto layer = make(shape, rng);
  using L = decltype(layer);
  shake(layer, rng);
  Matrix<float> upstream(shape.nodes, shape.hidden);
  for (float& value : upstream.span()) value = rng.normal<float>();
  struct Result {
    Matrix<float> inferred, y, d_x, d_features;
    Vector<float> d_weights;
    std::vector<float> grad;
    bool operator==(const Result& other) const {
      return same_bits<float>(inferred.span(), other.inferred.span()) && same_bits<float>(y.span(), other.y.span()) &&
             same_bits<float>(d_x.span(), other.d_x.span()) &&
             same_bits<float>(d_features.span(), other.d_features.span()) &&
             same_bits<float>(d_weights.span(), other.d_weights.span()) && grad == other.grad;
    }
  };
  const auto run = [&](auto&& executor) {
    Result r{Matrix<float>(shape.nodes, shape.hidden),
             Matrix<float>(shape.nodes, shape.hidden),
             Matrix<float>(shape.nodes, shape.input),
             Matrix<float>(shape.edge_dim == 0 ? 0 : shape.edges, shape.edge_dim),
             Vector<float>(shape.edges),
             {}};
    Workspace ws;
    typename L::Saved saved;
    saved.rng = Rng(3);
    L grad = zeros_like(layer);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), r.inferred, ws, executor);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), r.y, saved, ws, executor);
    layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, upstream, r.d_x,
                   {r.d_features, r.d_weights.span()}, grad, ws, executor);
    for_each_parameter(
        [&](std::string_view, auto tensor) { r.grad.insert(r.grad.end(), tensor.begin(), tensor.end()); }, grad);
    return r;
  };
  const Result serial = run(Serial{});
  for (const float value : serial.grad) REQUIRE(std::isfinite(value));
  for (const Index threads : {1, 2, 3, 4, 7, 16}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 2; ++repeat) CHECK((run(pool) == serial));
  }
}

/// P-21: a row depends on its edges and their ends alone, bit for bit: among fewer wanted rows, under other names, in
/// another graph, and asked for by itself; inference is training without dropout.
template <class Make>
void check_rows_alone(Make&& make, std::uint64_t seed, Index edge_dim = 2, double spread = 1) {
  Rng rng(seed);
  CAPTURE(seed);
  const Shape shape{
      .nodes = 40, .edges = 150, .input = 5, .hidden = 6, .heads = 2, .edge_dim = edge_dim, .spread = spread};
  const Problem<float> problem(shape, rng);
  auto layer = make(shape, rng);
  using L = decltype(layer);
  shake(layer, rng);
  const graph::CsrView<> graph = problem.graph;
  Workspace ws;
  Matrix<float> y(shape.nodes, shape.hidden), other(shape.nodes, shape.hidden);
  layer.forward(graph, problem.x, problem.edges(), y, ws);
  typename L::Saved saved;
  layer.forward(graph, problem.x, problem.edges(), other, saved, ws);
  CHECK(same_bits<float>(y.span(), other.span()));
  for (const Index m : {0, 1, 7, 39}) {
    Matrix<float> some(m, shape.hidden);
    layer.forward(graph, problem.x, problem.edges(), some, ws);
    CHECK(same_bits<float>(some.span(), y.span().first(std::size_t(some.size()))));
    layer.forward(graph, problem.x, problem.edges(), some, saved, ws);
    CHECK(same_bits<float>(some.span(), y.span().first(std::size_t(some.size()))));
  }
  // A graph the layer has not seen: node i alone, its neighbours behind it.
  for (Index i = 0; i < shape.nodes; ++i) {
    const Index degree = graph.degree(i);
    std::vector<Index> offsets(std::size_t(degree) + 2, degree);
    offsets[0] = 0;
    std::vector<std::int64_t> targets;
    Matrix<float> x(degree + 1, shape.input), features(degree, shape.edge_dim), out(1, shape.hidden);
    Vector<float> weights(degree);
    copy<float>(problem.x.view().rows(i, 1), x.view().rows(0, 1));
    for (Index k = 0; k < degree; ++k) {
      targets.push_back(k + 1);
      const Index id = graph.edge_id(graph.first_edge(i) + k);
      copy<float>(problem.x.view().rows(graph.neighbors(i)[std::size_t(k)], 1), x.view().rows(k + 1, 1));
      if (features.cols() > 0) copy<float>(problem.features.view().rows(id, 1), features.view().rows(k, 1));
      weights[k] = problem.weights[id];
    }
    layer.forward(graph::CsrView<std::int64_t>(offsets, targets), x, {features, weights.span()}, out, ws);
    CAPTURE(i, degree);
    CHECK(same_bits<float>(out.span(), y.row(i)));
  }
}

/// P-35: the second identical call allocates nothing.
template <class Make>
void check_allocations(Make&& make, std::uint64_t seed, Index edge_dim = 3, double spread = 1) {
  if (!support::allocations_counted()) return;
  Rng rng(seed);
  const Shape shape{.nodes = 100,
                    .edges = 400,
                    .input = 5,
                    .hidden = 8,
                    .heads = 2,
                    .edge_dim = edge_dim,
                    .dropout = 0.2,
                    .spread = spread};
  Problem<float> problem(shape, rng);
  auto layer = make(shape, rng);
  using L = decltype(layer);
  Workspace ws;
  typename L::Saved saved;
  L grad = zeros_like(layer);
  Matrix<float> y(shape.nodes, shape.hidden), d_x(shape.nodes, shape.input),
      d_features(problem.features.rows(), shape.edge_dim);
  Vector<float> d_weights(shape.edges);
  const auto run = [&] {
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, ws);
    layer.forward(problem.graph.view(), problem.x, problem.edges(), y, saved, ws);
    layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, y, d_x, {d_features, d_weights.span()},
                   grad, ws);
  };
  run();
  CHECK(support::allocations_in(run) == 0);
}

/// P-36: whichever allocation of inference, training and backward fails, the same calls with the same scratch succeed
/// then, and give the same bits.
template <class Make>
void check_allocation_failures(const char* name, Make&& make, std::uint64_t seed, Index edge_dim = 3,
                               double spread = 1) {
  Rng rng(seed);
  CAPTURE(seed);
  const Shape shape{.nodes = 100,
                    .edges = 400,
                    .input = 5,
                    .hidden = 8,
                    .heads = 2,
                    .edge_dim = edge_dim,
                    .dropout = 0.2,
                    .spread = spread};
  const Problem<float> problem(shape, rng);
  const auto layer = make(shape, rng);
  using L = std::remove_const_t<decltype(layer)>;
  struct Run {
    L grad;
    Matrix<float> inferred, y, d_x, d_features;
    Vector<float> d_weights;
    Workspace ws = {};
    typename L::Saved saved = {};

    bool operator==(const Run& other) const {
      bool same = same_bits<float>(inferred.span(), other.inferred.span()) &&
                  same_bits<float>(y.span(), other.y.span()) && same_bits<float>(d_x.span(), other.d_x.span()) &&
                  same_bits<float>(d_features.span(), other.d_features.span()) &&
                  same_bits<float>(d_weights.span(), other.d_weights.span());
      for_each_parameter([&](std::string_view, auto a, auto b) { same = same && std::ranges::equal(a, b); }, grad,
                         other.grad);
      return same;
    }
  };
  const auto start = [&] {
    return Run{zeros_like(layer),
               Matrix<float>(shape.nodes, shape.hidden),
               Matrix<float>(shape.nodes, shape.hidden),
               Matrix<float>(shape.nodes, shape.input),
               Matrix<float>(problem.features.rows(), problem.features.cols()),
               Vector<float>(shape.edges)};
  };
  const auto on = [&](auto& executor) {
    return [&](Run& r) {
      const auto view = problem.graph.view();
      r.saved.rng = Rng(3);
      for_each_parameter([](std::string_view, auto tensor) { std::ranges::fill(tensor, 0.0f); }, r.grad);
      for (const std::span<float> sum : {r.d_x.span(), r.d_features.span(), r.d_weights.span()})
        std::ranges::fill(sum, 0.0f);
      layer.forward(view, problem.x, problem.edges(), r.inferred, r.ws, executor);
      layer.forward(view, problem.x, problem.edges(), r.y, r.saved, r.ws, executor);
      layer.backward(view, problem.x, problem.edges(), r.saved, r.y, r.d_x, {r.d_features, r.d_weights.span()}, r.grad,
                     r.ws, executor);
    };
  };
  Serial serial;
  ThreadPool pool(2);
  Run expected = start();
  on(serial)(expected);
  const auto right = [&](const Run& r) { return r == expected; };
  support::check_allocation_failures(name, start, on(serial), right);
  support::check_allocation_failures(name, start, on(pool), right);
}

/// P-10, P-31: no nodes, no edges, no outputs; a node that nobody sees may hold anything.
template <class Make>
void check_empty(Make&& make, std::uint64_t seed, Index edge_dim = 2, double spread = 1) {
  Rng rng(seed);
  const Shape shape{.nodes = 4, .edges = 0, .edge_dim = edge_dim, .spread = spread};
  auto layer = make(shape, rng);
  using L = decltype(layer);
  using T = ScalarOf<L>;
  Workspace ws;
  for (const Index nodes : {0, 1, 4}) {
    CAPTURE(nodes);
    Shape own = shape;
    own.nodes = std::max(Index(1), nodes);
    const Problem<T> problem(own, rng);
    const graph::CsrGraph<> none(std::vector<Index>(nodes == 0 ? 0 : std::size_t(nodes) + 1), {});
    Matrix<T> y(nodes, shape.hidden), d_x(nodes, shape.input);
    typename L::Saved saved;
    L grad = zeros_like(layer);
    const gnn::GraphEdges<T> edges{MatrixView<const T>(nullptr, 0, shape.edge_dim)};
    const MatrixView<const T> x = problem.x.view().rows(0, nodes);
    layer.forward(none.view(), x, edges, y, ws);
    layer.forward(none.view(), x, edges, y, saved, ws);
    layer.backward(none.view(), x, edges, saved, y, d_x, {}, grad, ws);
    for (const T value : y.span()) CHECK(std::isfinite(value));
    for (const T value : d_x.span()) CHECK(std::isfinite(value));
  }
  // Node 2 is nobody's neighbour: its NaN stays in its own row.
  const graph::CsrGraph<> graph({0, 1, 3, 3}, {1, 0, 1});
  Matrix<T> x(3, shape.input), y(3, shape.hidden), clean(3, shape.hidden), features(3, edge_dim);
  for (T& value : x.span()) value = T(spread * rng.normal());
  layer.forward(graph.view(), x, {features}, clean, ws);
  x(2, 0) = std::numeric_limits<T>::quiet_NaN();
  layer.forward(graph.view(), x, {features}, y, ws);
  CHECK(same_bits<T>(y.span().first(std::size_t(2 * shape.hidden)), clean.span().first(std::size_t(2 * shape.hidden))));
  for (const T value : y.row(2)) CHECK(std::isnan(value));
}

/// P-30: what does not fit is refused before anything is written.
template <class Make>
void check_errors(Make&& make, std::uint64_t seed, Index edge_dim = 2) {
  Rng rng(seed);
  const Shape shape{.edge_dim = edge_dim};
  Problem<double> problem(shape, rng);
  auto layer = make(shape, rng);
  using L = decltype(layer);
  Workspace ws;
  typename L::Saved saved;
  L grad = zeros_like(layer);
  Matrix<double> y(shape.nodes, shape.hidden, 7), d_x(shape.nodes, shape.input, 7);
  const auto refuses = [&](MatrixView<const double> x, const gnn::GraphEdges<double>& edges, MatrixView<double> to) {
    CHECK_THROWS_AS(layer.forward(problem.graph.view(), x, edges, to, ws), ShapeError);
    CHECK_THROWS_AS(layer.forward(problem.graph.view(), x, edges, to, saved, ws), ShapeError);
    CHECK_THROWS_AS(layer.backward(problem.graph.view(), x, edges, saved, to, d_x, {}, grad, ws), ShapeError);
  };
  const Matrix<double> wide(shape.nodes, shape.input + 1), many(shape.nodes + 1, shape.input),
      long_features(shape.edges + 1, shape.edge_dim), wide_features(shape.edges, shape.edge_dim + 1);
  Matrix<double> wide_y(shape.nodes, shape.hidden + 1, 7), long_y(shape.nodes + 1, shape.hidden, 7);
  const Vector<double> short_weights(shape.edges - 1);
  refuses(wide, problem.edges(), y);
  refuses(many, problem.edges(), y);
  refuses(problem.x, problem.edges(), wide_y);
  refuses(problem.x, problem.edges(), long_y);
  refuses(problem.x, {problem.features, short_weights.span()}, y);
  refuses(problem.x, {wide_features, {}}, y);
  if (edge_dim > 0) refuses(problem.x, {long_features, {}}, y);
  layer.forward(problem.graph.view(), problem.x, problem.edges(), y, saved, ws);
  Matrix<double> wrong_d_x(shape.nodes, shape.input + 1), wrong_d_features(shape.edges, shape.edge_dim + 1),
      some(shape.nodes - 1, shape.hidden);
  Vector<double> wrong_d_weights(shape.edges + 1);
  const auto refuses_gradient = [&](MatrixView<const double> d_y, MatrixView<double> to,
                                    const gnn::GraphEdges<double>::Gradient& d_edges) {
    CHECK_THROWS_AS(layer.backward(problem.graph.view(), problem.x, problem.edges(), saved, d_y, to, d_edges, grad, ws),
                    ShapeError);
  };
  refuses_gradient(y, wrong_d_x, {});
  refuses_gradient(y, d_x, {wrong_d_features, {}});
  refuses_gradient(y, d_x, {{}, wrong_d_weights.span()});
  refuses_gradient(some, d_x, {});  // saved had another number of outputs
  for (const double value : d_x.span()) CHECK(value == 7);
  for (const double value : wide_y.span()) CHECK(value == 7);
}

}  // namespace graph_layer_laws
