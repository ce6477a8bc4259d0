// SPDX-License-Identifier: MIT
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/io/npy.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "graph/random_graphs.hpp"
#include "support/alternating.hpp"
#include "support/laws.hpp"

namespace test_gat_v2 {

using namespace ruvector;
using namespace ruvector::attention;
using laws::Order;
using laws::Problem;

static_assert(DifferentiableAttention<GatV2<float>> && DifferentiableAttention<GatV2<double>>);
static_assert(EdgeAwareAttention<GatV2<float>> && ScoringAttention<GatV2<float>>);
static_assert(!PositionalAttention<GatV2<float>>);

// --- The formula, edge by edge. ---

template <class T>
struct Edge {
  Index target, source;
  std::vector<T> features = {};
  T bias = 0;
};

template <class R>
struct Naive {
  std::vector<R> value, log_sum_exp;                    // the second of the first head
  R nearest_kink = std::numeric_limits<R>::infinity();  // min |z|
};

/// Attention alone, without residual and b.
template <class R, class T>
Naive<R> naive(const GatV2<T>& a, MatrixView<const T> query, MatrixView<const T> key, MatrixView<const T> value,
               std::vector<Edge<T>> edges, Order order = {}) {
  const GatV2Config& config = a.config();
  const Index heads = config.heads, channels = config.channels, columns = heads * channels;
  const auto dot = [&](auto x, auto y, R sum) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t k = order.reverse_dims ? x.size() - 1 - i : i;
      sum += R(x[k]) * R(y[k]);
    }
    return sum;
  };
  const auto project = [&](const nn::Linear<T>& linear, std::span<const T> x) {
    std::vector<R> y(std::size_t(columns), R(0));
    for (Index r = 0; r < columns; ++r)
      y[std::size_t(r)] = dot(linear.weight.row(r), x, linear.bias.empty() ? R(0) : R(linear.bias[r]));
    return y;
  };
  if (order.reverse_keys) std::ranges::reverse(edges);
  const Index width = config.concat ? columns : channels;
  constexpr R infinity = std::numeric_limits<R>::infinity();
  Naive<R> result{std::vector<R>(std::size_t(query.rows() * width), R(0)),
                  std::vector<R>(std::size_t(query.rows()), -infinity)};
  std::vector<std::vector<R>> x_l, x_v;
  for (Index j = 0; j < key.rows(); ++j) {
    x_l.push_back(project(a.source, key.row(j)));
    x_v.push_back(project(a.source, value.row(j)));
  }
  for (Index i = 0; i < query.rows(); ++i) {
    const std::vector<R> x_r = project(config.share_weights ? a.source : a.target, query.row(i));
    for (Index h = 0; h < heads; ++h) {
      std::vector<R> terms, sums(std::size_t(channels), R(0));
      R top = -infinity, sum = 0;
      const auto by_edge = [&](auto visit) {
        for (const Edge<T>& edge : edges) {
          if (edge.target != i) continue;
          const std::vector<R> e =
              edge.features.empty() ? std::vector<R>(std::size_t(columns), R(0)) : project(a.edge, edge.features);
          visit(edge, e);
        }
      };
      by_edge([&](const Edge<T>& edge, const std::vector<R>& e) {
        std::vector<R> bent;
        for (Index c = h * channels; c < (h + 1) * channels; ++c) {
          const R z = x_r[std::size_t(c)] + x_l[std::size_t(edge.source)][std::size_t(c)] + e[std::size_t(c)];
          result.nearest_kink = std::min(result.nearest_kink, std::abs(z));
          bent.push_back(z > 0 ? z : R(T(config.negative_slope)) * z);
        }
        terms.push_back(dot(a.attention.row(h), bent, R(0)) + R(edge.bias));
        top = std::max(top, terms.back());
      });
      if (terms.empty()) continue;
      for (R& x : terms) sum += x = std::exp(x - top);
      std::size_t k = 0;
      by_edge([&](const Edge<T>& edge, const std::vector<R>& e) {
        for (Index c = 0; c < channels; ++c) {
          const auto at = std::size_t(h * channels + c);
          const R v = x_v[std::size_t(edge.source)][at] + (config.edge_in_value ? e[at] : R(0));
          sums[std::size_t(c)] += terms[k] * v;
        }
        ++k;
      });
      if (h == 0) result.log_sum_exp[std::size_t(i)] = top + std::log(sum);
      for (Index c = 0; c < channels; ++c)
        result.value[std::size_t(i * width + (config.concat ? h * channels + c : c))] +=
            sums[std::size_t(c)] / sum / (config.concat ? R(1) : R(heads));
    }
  }
  return result;
}

template <class T>
void randomize(GatV2<T>& a, Rng& rng, double spread = 0.5) {
  for_each_parameter(
      [&](std::string_view, std::span<T> x) {
        for (T& w : x) w = T(spread * rng.normal());
      },
      a);
}

// --- What the laws are asked of. ---

constexpr Index law_dim = 6;

template <class T>
GatV2<T> random_backend(Rng& rng) {
  GatV2<T> a({.source_dim = law_dim,
              .heads = 1 + rng.below(5),
              .channels = 1 + rng.below(9),
              .concat = rng.below(2) == 0,
              .share_weights = rng.below(3) == 0,
              .bias = rng.below(3) != 0,
              .output_bias = false},
             rng);
  randomize(a, rng);
  return a;
}

/// No z comes near the kink of LeakyReLU, where there is no derivative to compare with: x_r is far from 0, up or down.
/// So the logits are linear and their softmax does not depend on the query: gradients by that are checked further down.
template <class T>
void keep_off_the_kink(GatV2<T>& a) {
  nn::Linear<T>& shifted = a.config().share_weights ? a.source : a.target;
  for (Index c = 0; c < shifted.bias.size(); ++c) shifted.bias[c] = c % 3 == 0 ? T(-25) : T(25);
  if (a.config().share_weights) return;
  for (T& b : a.source.bias) b /= 4;
}

/// One head of the values themselves: Θ_l = 1.
template <class T>
struct OneHead : GatV2<T> {
  explicit OneHead(Rng& rng)
      : GatV2<T>({.source_dim = law_dim, .channels = law_dim, .bias = false, .output_bias = false}, rng) {
    randomize<T>(*this, rng);
    for (Index i = 0; i < law_dim; ++i)
      for (Index j = 0; j < law_dim; ++j) this->source.weight(i, j) = i == j ? 1 : 0;
  }
};

template <bool one_head>
struct Smooth : GatV2<double> {
  explicit Smooth(Rng& rng)
      : GatV2<double>({.source_dim = law_dim,
                       .heads = one_head ? 1 : 2 + rng.below(3),
                       .channels = 1 + rng.below(5),
                       .concat = rng.below(2) == 0,
                       .share_weights = rng.below(3) == 0,
                       .output_bias = false},
                      rng) {
    randomize<double>(*this, rng);
    keep_off_the_kink<double>(*this);
    if (config().share_weights)  // twice the shift
      for (double& b : source.bias) b /= 2;
  }
};

template <class A>
struct GatSubject : laws::SubjectDefaults {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  static constexpr bool has_log_sum_exp = false;
  static constexpr bool weights_average_values = false;

  static void fit(laws::Shape& shape) { shape.dim = shape.value_dim = law_dim; }

  template <class R>
  static laws::Reference<R> reference(const A& a, const Problem<T>& problem, Order order) {
    std::vector<Edge<T>> edges;
    for (Index i = 0; i < problem.query.rows(); ++i)
      for (Index j = 0; j < problem.key.rows(); ++j)
        if (problem.sees(i, j))
          edges.push_back({i, j, {}, problem.bias.empty() ? T(0) : problem.bias(problem.bias.rows() == 1 ? 0 : i, j)});
    auto result = naive<R, T>(a, problem.query, problem.key, problem.value, std::move(edges), order);
    return {std::move(result.value), std::move(result.log_sum_exp)};
  }
};

using Backends = std::tuple<GatV2<float>, GatV2<double>, OneHead<float>, OneHead<double>>;
using ValueBackends = std::tuple<OneHead<float>, OneHead<double>>;
using SmoothBackends = std::tuple<Smooth<true>, Smooth<false>>;

}  // namespace test_gat_v2

namespace laws {

template <Real T>
struct Subject<GatV2<T>> : test_gat_v2::GatSubject<GatV2<T>> {
  static GatV2<T> make(Rng& rng) { return test_gat_v2::random_backend<T>(rng); }
};
template <Real T>
struct Subject<test_gat_v2::OneHead<T>> : test_gat_v2::GatSubject<test_gat_v2::OneHead<T>> {
  static constexpr bool has_log_sum_exp = true;
  static constexpr bool weights_average_values = true;
  static test_gat_v2::OneHead<T> make(Rng& rng) { return test_gat_v2::OneHead<T>(rng); }
};
template <bool one_head>
struct Subject<test_gat_v2::Smooth<one_head>> : test_gat_v2::GatSubject<test_gat_v2::Smooth<one_head>> {
  static constexpr bool has_log_sum_exp = one_head;
  static test_gat_v2::Smooth<one_head> make(Rng& rng) { return test_gat_v2::Smooth<one_head>(rng); }
};

}  // namespace laws

namespace test_gat_v2 {
namespace {

TEMPLATE_LIST_TEST_CASE("gat_v2: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(201, 100);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(202);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(203);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: what is not finite stays with those who see it", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(204);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: huge logits are safe", "[attention][law]", ValueBackends) {
  laws::huge_logits_are_safe<TestType>(205);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(206);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: the order of keys does not matter", "[attention][law]", Backends) {
  laws::keys_are_a_set<TestType>(207);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(208);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: a query that sees no key is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(209);
}
TEMPLATE_LIST_TEST_CASE("gat_v2: gradients are right", "[attention][law]", SmoothBackends) {
  laws::gradients_are_right<TestType>(210, 30);
}

// --- Graphs. ---

// The gradient of loss() by x, which it looks at.
template <class Loss>
void check_moving(Matrix<double>& x, const Matrix<double>& gradient, const char* name, Loss&& loss) {
  const Matrix<double> start = x;
  const auto result = train::check_gradient(
      [&](std::span<const double> values) {
        std::ranges::copy(values, x.data());
        return loss();
      },
      start.span(), gradient.span());
  x = start;
  INFO(name << to_string(result));
  CHECK(result.passed);
}

template <class T>
Matrix<T> random_matrix(Index rows, Index cols, Rng& rng) {
  return Problem<T>::random(rows, cols, rng, 1);
}

/// The gradients by everything.
template <class T>
struct Gradients {
  Matrix<T> source, target, edges;
  GatV2<T> weights;

  [[nodiscard]] bool operator==(const Gradients& other) const {
    bool same = support::same_bits(source.span(), other.source.span()) &&
                support::same_bits(target.span(), other.target.span()) &&
                support::same_bits(edges.span(), other.edges.span());
    for_each_parameter([&](std::string_view, auto x, auto y) { same = same && support::same_bits(x, y); }, weights,
                       other.weights);
    return same;
  }
};

template <class T>
struct GraphProblem {
  GatV2<T> a;
  graph::CsrGraph<> graph;
  Matrix<T> x_source, x_target, features, d_out;

  GraphProblem(const GatV2Config& config, Index nodes, Index edge_count, Rng& rng, bool shared_features = false)
      : a(config, rng) {
    randomize(a, rng);
    auto list = random_graphs::directed(nodes, edge_count, rng);
    for (Index k = 0; k < edge_count; ++k)  // the last node has no edges and nobody looks at the first
      if (list.sources[std::size_t(k)] == nodes - 1 || list.targets[std::size_t(k)] == 0)
        list.sources[std::size_t(k)] = 0, list.targets[std::size_t(k)] = std::int32_t(nodes - 1);
    graph = list.graph();
    if (shared_features) {
      const graph::CsrView<> view = graph.view();
      std::vector<Index> ids(std::size_t(edge_count), 0);
      for (Index& id : ids) id = rng.below(edge_count);
      graph = graph::CsrGraph<>(std::vector<Index>(view.offsets().begin(), view.offsets().end()),
                                std::vector<std::int32_t>(view.targets().begin(), view.targets().end()), ids);
    }
    x_source = random_matrix<T>(nodes, config.source_dim, rng);
    x_target = random_matrix<T>(nodes, config.target_dim.value_or(config.source_dim), rng);
    features = random_matrix<T>(config.edge_dim > 0 ? edge_count : 0, config.edge_dim, rng);
    d_out = random_matrix<T>(nodes, a.output_dim(config.source_dim), rng);
  }

  [[nodiscard]] EdgeFeatures<T> edges() const { return {features}; }

  template <class E = Serial>
  [[nodiscard]] Matrix<T> forward(Workspace& ws, E&& executor = Serial{}) const {
    Matrix<T> out(d_out.rows(), d_out.cols(), T(NAN));
    a.forward(graph.view(), x_source, x_target, edges(), out, ws, executor);
    return out;
  }
  template <class E = Serial>
  [[nodiscard]] Matrix<T> train(typename GatV2<T>::Saved& saved, Workspace& ws, E&& executor = Serial{}) const {
    Matrix<T> out(d_out.rows(), d_out.cols(), T(NAN));
    a.forward(graph.view(), x_source, x_target, edges(), out, saved, ws, executor);
    return out;
  }
  template <class E = Serial>
  [[nodiscard]] Gradients<T> backward(const typename GatV2<T>::Saved& saved, Workspace& ws,
                                      E&& executor = Serial{}) const {
    Gradients<T> d{Matrix<T>(x_source.rows(), x_source.cols()), Matrix<T>(x_target.rows(), x_target.cols()),
                   Matrix<T>(features.rows(), features.cols()), zeros_like(a)};
    a.backward(graph.view(), x_source, x_target, edges(), saved, d_out, d.source, d.target, {d.edges}, d.weights, ws,
               executor);
    return d;
  }

  /// The edges after loops were added, as the configuration says.
  [[nodiscard]] std::vector<Edge<T>> edge_list() const {
    const graph::CsrView<> view = graph.view();
    const GatV2Config& config = a.config();
    std::vector<Edge<T>> list;
    for (Index i = 0; i < view.nodes(); ++i) {
      std::vector<T> mean(std::size_t(config.edge_dim), T(config.loops == AddedLoops::mean ? 0 : config.loop_feature));
      std::vector<Edge<T>> own;
      for (Index e = view.first_edge(i); e < view.first_edge(i) + view.degree(i); ++e) {
        const Index j = view.targets()[std::size_t(e)];
        if (config.loops != AddedLoops::none && j == i) continue;
        own.push_back({i, j, {}});
        if (config.edge_dim > 0) {
          const auto row = features.row(view.edge_id(e));
          own.back().features.assign(row.begin(), row.end());
        }
      }
      if (config.loops == AddedLoops::mean)
        for (const Edge<T>& edge : own)
          for (std::size_t f = 0; f < mean.size(); ++f) mean[f] += edge.features[f] / T(own.size());
      if (config.loops != AddedLoops::none) own.push_back({i, i, mean});
      list.insert(list.end(), own.begin(), own.end());
    }
    return list;
  }
  [[nodiscard]] Naive<double> attention() const {
    return naive<double, T>(a, x_target, x_source, x_source, edge_list());
  }
  /// residual + b of node i, column c.
  [[nodiscard]] double rest(Index i, Index c) const {
    double sum = a.bias.empty() ? 0 : double(a.bias[c]);
    if (a.config().residual == Residual::identity) sum += double(x_target(i, c));
    if (a.config().residual == Residual::linear)
      for (Index k = 0; k < x_target.cols(); ++k) sum += double(a.residual.weight(c, k)) * double(x_target(i, k));
    return sum;
  }
};

/// Every option, and heads and channels on both sides of a register.
GatV2Config random_config(Rng& rng, Index most_heads = 40) {
  static constexpr Index sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 40};
  const auto size = [&](Index most) {
    for (;;)
      if (const Index n = sizes[rng.below(Index(std::size(sizes)))]; n <= most) return n;
  };
  GatV2Config config{.source_dim = 1 + rng.below(6), .heads = size(most_heads), .channels = size(most_heads)};
  config.target_dim = 1 + rng.below(6);
  config.edge_dim = rng.below(2) * (1 + rng.below(5));
  config.concat = rng.below(2) == 0;
  config.share_weights = rng.below(3) == 0;
  config.edge_in_value = config.edge_dim > 0 && rng.below(2) == 0;
  config.bias = rng.below(3) != 0;
  config.output_bias = rng.below(3) != 0;
  config.residual = Residual(rng.below(3));
  config.loops = AddedLoops(rng.below(3));
  config.loop_feature = 0.75;
  config.negative_slope = rng.below(4) == 0 ? 0.01 : 0.2;
  if (config.residual == Residual::identity)
    config.target_dim = config.concat ? config.heads * config.channels : config.channels;
  if (config.share_weights) config.source_dim = *config.target_dim;
  return config;
}

TEMPLATE_TEST_CASE("gat_v2: over a graph it is the formula, edge by edge", "[attention]", float, double) {
  using T = TestType;
  constexpr std::uint64_t seed = 220;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 150; ++c) {
    const GatV2Config config = random_config(rng);
    const GraphProblem<T> problem(config, 2 + rng.below(12), rng.below(3) == 0 ? 200 : rng.below(30), rng,
                                  rng.below(3) == 0);
    const Matrix<T> out = problem.forward(ws);
    const Naive<double> expected = problem.attention();
    double worst = 0, scale = 1;
    for (Index i = 0; i < out.rows(); ++i)
      for (Index k = 0; k < out.cols(); ++k) {
        const double value = expected.value[std::size_t(i * out.cols() + k)] + problem.rest(i, k);
        worst = std::max(worst, std::isfinite(out(i, k)) ? std::abs(double(out(i, k)) - value) : 1e9);
        scale = std::max(scale, std::abs(value));
      }
    // Logits are sums of up to 40 products; their error is one of the weights.
    CAPTURE(c, config.heads, config.channels, config.edge_dim, int(config.loops), scale);
    CHECK(worst <= 400 * double(std::numeric_limits<T>::epsilon()) * scale);
  }
}

TEMPLATE_TEST_CASE("gat_v2: a graph and the dense input that shows the same agree, bit for bit", "[attention]", float,
                   double) {
  using T = TestType;
  constexpr std::uint64_t seed = 221;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 60; ++c) {
    GatV2Config config = random_config(rng);
    config.loops = AddedLoops::none;
    config.source_dim = *config.target_dim;
    const Index n = 1 + rng.below(90);
    Matrix<std::uint8_t> allowed(n, n);
    std::vector<std::int32_t> sources, targets;
    Matrix<T> pairs(config.edge_dim > 0 ? n * n : 0, config.edge_dim);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j)
        if (rng.below(3) == 0) {
          allowed(i, j) = 1;
          sources.push_back(std::int32_t(i));
          targets.push_back(std::int32_t(j));
        }
    GraphProblem<T> problem(config, n, 0, rng);
    problem.graph = graph::CsrGraph<>(n, sources, targets);
    problem.features = random_matrix<T>(config.edge_dim > 0 ? Index(sources.size()) : 0, config.edge_dim, rng);
    for (Index e = 0; e < problem.features.rows(); ++e)
      std::ranges::copy(problem.features.row(e),
                        pairs.row(sources[std::size_t(e)] * n + targets[std::size_t(e)]).begin());
    const AttentionInput<T> in{
        .query = problem.x_target, .key = problem.x_source, .value = problem.x_source, .mask = {.allowed = allowed}};
    typename GatV2<T>::Saved saved, dense_saved;
    const Matrix<T> out = problem.train(saved, ws);
    Matrix<T> dense(out.rows(), out.cols());
    problem.a.forward(in, EdgeFeatures<T>{pairs}, AttentionOutput<T>{dense}, dense_saved, ws);
    CAPTURE(c, n);
    REQUIRE(support::same_bits(out.span(), dense.span()));

    const Gradients<T> d = problem.backward(saved, ws);
    Matrix<T> d_query(n, in.query.cols()), d_key(n, in.key.cols()), d_pairs(pairs.rows(), pairs.cols());
    GatV2<T> grad = zeros_like(problem.a);
    problem.a.backward(in, EdgeFeatures<T>{pairs}, dense_saved, AttentionOutputGradient<T>{problem.d_out},
                       AttentionGradient<T>{d_query, d_key, d_key}, {d_pairs}, grad, ws);
    // Key and value gradients of one matrix are sums apart here: that is the only difference.
    const support::Tolerance sums{.relative = 0, .absolute = 1e5 * double(std::numeric_limits<T>::epsilon())};
    CHECK(support::same_bits(d_query.span(), d.target.span()));
    CHECK(support::first_far(d_key.span(), d.source.span(), sums) == -1);
    CHECK(support::same_bits(grad.attention.span(), d.weights.attention.span()));
    CHECK(support::first_far(grad.source.weight.span(), d.weights.source.weight.span(), sums) == -1);
    bool same = true;
    for (Index e = 0; e < problem.features.rows(); ++e)
      same = same &&
             support::same_bits(d_pairs.row(sources[std::size_t(e)] * n + targets[std::size_t(e)]), d.edges.row(e));
    CHECK(same);
  }
}

/// Far enough from the kink that no step of the differences crosses it, by drawing again.
template <class Draw>
auto draw_off_the_kink(Draw&& draw) {
  for (;;)
    if (auto problem = draw(); problem.attention().nearest_kink > 3e-3) return problem;
}

TEST_CASE("gat_v2: gradients over a graph are right", "[attention][gradient]") {
  constexpr std::uint64_t seed = 222;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 60; ++c) {
    GatV2Config config = random_config(rng, 5);
    config.dropout = rng.below(3) == 0 ? 0.4 : 0;
    const bool shared = rng.below(3) == 0;
    const GraphProblem<double> problem =
        draw_off_the_kink([&] { return GraphProblem<double>(config, 2 + rng.below(4), rng.below(12), rng, shared); });
    typename GatV2<double>::Saved saved;
    const auto loss = [&](const GraphProblem<double>& at) {
      saved.rng = Rng(seed + std::uint64_t(c));
      const Matrix<double> out = at.train(saved, ws);
      double sum = 0;
      for (Index k = 0; k < out.size(); ++k) sum += out.data()[k] * problem.d_out.data()[k];
      return sum;
    };
    (void)loss(problem);
    const Gradients<double> d = problem.backward(saved, ws);
    GraphProblem<double> moved = problem;
    const auto check = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
      check_moving(x, gradient, name, [&] { return loss(moved); });
    };
    CAPTURE(c, config.heads, config.channels, config.edge_dim, int(config.loops), int(config.residual), config.dropout,
            config.share_weights, config.edge_in_value, shared);
    check(moved.x_source, d.source, "source");
    check(moved.x_target, d.target, "target");
    check(moved.features, d.edges, "edges");
    const auto weights = train::check_module_gradient(
        [&](const GatV2<double>& a) {
          moved.a = a;
          return loss(moved);
        },
        problem.a, d.weights);
    INFO(to_string(weights));
    CHECK(weights.passed);
  }
}

/// A dense problem with edges.
struct DenseProblem : Problem<double> {
  GatV2<double> a;
  Matrix<double> edges;

  DenseProblem(const GatV2Config& config, const laws::Shape& shape, Rng& rng)
      : Problem<double>(shape, rng),
        a(config, rng),
        edges(random_matrix<double>(config.edge_dim > 0 ? shape.queries * shape.keys : 0, config.edge_dim, rng)) {
    randomize(a, rng);
  }
  [[nodiscard]] Naive<double> attention() const {
    std::vector<Edge<double>> list;
    for (Index i = 0; i < query.rows(); ++i)
      for (Index j = 0; j < key.rows(); ++j) {
        if (!sees(i, j)) continue;
        list.push_back({i, j, {}, bias.empty() ? 0 : bias(bias.rows() == 1 ? 0 : i, j)});
        if (edges.empty()) continue;
        const auto row = edges.row(i * key.rows() + j);
        list.back().features.assign(row.begin(), row.end());
      }
    return naive<double, double>(a, query, key, value, std::move(list));
  }
};

TEST_CASE("gat_v2: gradients of the dense form are right, edges and log_sum_exp too", "[attention][gradient]") {
  constexpr std::uint64_t seed = 223;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 60; ++c) {
    GatV2Config config = random_config(rng, 4);
    config.source_dim = *config.target_dim;
    const bool one_head = config.heads == 1;
    const DenseProblem problem = draw_off_the_kink([&] {
      laws::Shape shape{.queries = 1 + rng.below(4), .keys = 1 + rng.below(5), .dim = config.source_dim};
      shape.value_dim = shape.dim;
      shape.bias = rng.below(2) == 0;
      shape.bias_row = rng.below(2) == 0;
      shape.allowed = rng.below(2) == 0;
      shape.mask.causal = rng.below(3) == 0;
      return DenseProblem(config, shape, rng);
    });
    const Index m = problem.query.rows();
    const auto g = random_matrix<double>(m, problem.a.output_dim(config.source_dim), rng);
    Vector<double> lse(one_head ? m : 0), g_lse(one_head ? m : 0);
    for (double& x : g_lse) x = rng.normal();
    Matrix<double> out(m, g.cols());
    GatV2<double>::Saved saved;
    const auto loss = [&](const DenseProblem& at) {
      at.a.forward(at.input(), EdgeFeatures<double>{at.edges}, AttentionOutput<double>{out, lse}, saved, ws);
      double sum = 0;
      for (Index k = 0; k < out.size(); ++k) sum += out.data()[k] * g.data()[k];
      for (Index i = 0; i < lse.size(); ++i) sum += std::isfinite(lse[i]) ? lse[i] * g_lse[i] : 0;
      return sum;
    };
    (void)loss(problem);
    Matrix<double> d_query(m, problem.query.cols()), d_key(problem.key.rows(), problem.key.cols()),
        d_value(problem.value.rows(), problem.value.cols()), d_bias(problem.bias.rows(), problem.bias.cols()),
        d_edges(problem.edges.rows(), problem.edges.cols());
    GatV2<double> grad = zeros_like(problem.a);
    problem.a.backward(problem.input(), EdgeFeatures<double>{problem.edges}, saved,
                       AttentionOutputGradient<double>{g, g_lse},
                       AttentionGradient<double>{d_query, d_key, d_value, d_bias}, {d_edges}, grad, ws);
    DenseProblem moved = problem;
    const auto check = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
      check_moving(x, gradient, name, [&] { return loss(moved); });
    };
    CAPTURE(c, config.heads, config.channels, config.edge_dim, config.edge_in_value);
    check(moved.query, d_query, "query");
    check(moved.key, d_key, "key");
    check(moved.value, d_value, "value");
    check(moved.bias, d_bias, "bias");
    check(moved.edges, d_edges, "edges");
    const auto weights = train::check_module_gradient(
        [&](const GatV2<double>& a) {
          moved.a = a;
          return loss(moved);
        },
        problem.a, grad);
    INFO(to_string(weights));
    CHECK(weights.passed);
  }
}

TEST_CASE("gat_v2: the order of a node's edges does not matter, however many they are", "[attention]") {
  constexpr std::uint64_t seed = 232;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (const Index edge_count : {1, 63, 64, 65, 128, 129, 300}) {
    GatV2Config config{.source_dim = 4, .edge_dim = 3, .heads = 3, .channels = 5, .edge_in_value = true};
    config.loops = edge_count % 2 == 0 ? AddedLoops::none : AddedLoops::mean;
    GraphProblem<double> problem(config, 2, edge_count, rng);
    std::vector<std::int32_t> sources(std::size_t(edge_count), 0), targets(std::size_t(edge_count), 1);
    problem.graph = graph::CsrGraph<>(2, sources, targets);
    GraphProblem<double> reversed = problem;
    for (Index e = 0; e < edge_count; ++e)
      std::ranges::copy(problem.features.row(e), reversed.features.row(edge_count - 1 - e).begin());
    GatV2<double>::Saved saved, other_saved;
    const Matrix<double> out = problem.train(saved, ws), other_out = reversed.train(other_saved, ws);
    const support::Tolerance sums{.absolute = 1e-11};
    CHECK(support::first_far(out.span(), other_out.span(), sums) == -1);
    for (const bool alternating : {false, true}) {
      support::Alternating two;
      const auto d = alternating ? problem.backward(saved, ws, two) : problem.backward(saved, ws);
      auto other = alternating ? reversed.backward(other_saved, ws, two) : reversed.backward(other_saved, ws);
      CAPTURE(edge_count, alternating);
      CHECK(support::first_far(d.source.span(), other.source.span(), sums) == -1);
      CHECK(support::first_far(d.target.span(), other.target.span(), sums) == -1);
      for (Index e = 0; e < edge_count; ++e)
        CHECK(support::first_far(d.edges.row(e), other.edges.row(edge_count - 1 - e), sums) == -1);
      for_each_parameter([&](std::string_view, auto x, auto y) { CHECK(support::first_far(x, y, sums) == -1); },
                         d.weights, std::as_const(other.weights));
    }
  }
}

TEMPLATE_TEST_CASE("gat_v2: the same bits for any number of workers", "[attention][law]", float, double) {
  using T = TestType;
  constexpr std::uint64_t seed = 224;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (int c = 0; c < 12; ++c) {
    GatV2Config config = random_config(rng, 17);
    config.dropout = rng.below(2) == 0 ? 0.3 : 0;
    const GraphProblem<T> problem(config, 300 + rng.below(500), 4000, rng, rng.below(4) == 0);
    typename GatV2<T>::Saved saved;
    const Matrix<T> out = problem.forward(ws), trained = problem.train(saved, ws);
    const Gradients<T> d = problem.backward(saved, ws);
    const auto check = [&](auto&& executor) {
      Workspace own;
      typename GatV2<T>::Saved again;
      CHECK(support::same_bits(problem.forward(own, executor).span(), out.span()));
      CHECK(support::same_bits(problem.train(again, own, executor).span(), trained.span()));
      CHECK(problem.backward(again, own, executor) == d);
    };
    CAPTURE(c, config.heads, config.channels, config.edge_dim, config.dropout);
    check(support::Alternating{});
    for (const Index threads : {1, 2, 3, 7}) {
      CAPTURE(threads);
      check(ThreadPool(threads));
    }
  }
}

TEST_CASE("gat_v2: over a graph the second call allocates nothing", "[attention][law]") {
  if (!support::allocations_counted()) return;
  Rng rng(225);
  for (const bool shared : {false, true}) {
    const GraphProblem<float> problem({.source_dim = 16,
                                       .edge_dim = 3,
                                       .heads = 4,
                                       .channels = 8,
                                       .residual = Residual::linear,
                                       .loops = AddedLoops::mean,
                                       .dropout = 0.1},
                                      700, 5000, rng, shared);
    const auto check = [&](auto executor) {
      Workspace ws;
      GatV2<float>::Saved saved;
      Matrix<float> out(700, 32), d_source(700, 16), d_target(700, 16), d_edges(5000, 3);
      GatV2<float> grad = zeros_like(problem.a);
      const auto call = [&] {
        problem.a.forward(problem.graph.view(), problem.x_source, problem.x_target, problem.edges(), out, saved, ws,
                          executor);
        problem.a.backward(problem.graph.view(), problem.x_source, problem.x_target, problem.edges(), saved,
                           problem.d_out, d_source, d_target, {d_edges}, grad, ws, executor);
      };
      CHECK(support::allocations_in(call) > 0);
      call();
      CHECK(support::allocations_in(call) == 0);
    };
    check(Serial{});
    check(support::Alternating{});
  }
}

TEST_CASE("gat_v2: a node without edges has residual and bias alone, and sends nothing else back", "[attention]") {
  Rng rng(226);
  Workspace ws;
  for (const Residual residual : {Residual::none, Residual::linear, Residual::identity}) {
    GraphProblem<float> problem({.source_dim = 8, .edge_dim = 2, .heads = 2, .channels = 4, .residual = residual}, 5, 0,
                                rng);
    problem.graph = graph::CsrGraph<>(5, std::vector<std::int32_t>{}, std::vector<std::int32_t>{});
    GatV2<float>::Saved saved;
    const Matrix<float> out = problem.train(saved, ws);
    const Gradients<float> d = problem.backward(saved, ws);
    for (Index i = 0; i < 5; ++i)
      for (Index c = 0; c < 8; ++c)
        CHECK(support::near(double(out(i, c)), problem.rest(i, c), {.relative = 1e-6, .absolute = 1e-6}));
    for_each_parameter(
        [&](std::string_view path, std::span<const float> x) {
          const bool rest = path == "bias" || path == "residual.weight";
          for (const float g : x) CHECK((rest || g == 0));
        },
        std::as_const(d.weights));
    for (const float g : d.source.span()) CHECK(g == 0);
    for (Index k = 0; k < d.target.size(); ++k) {
      if (residual == Residual::none) CHECK(d.target.data()[k] == 0);
      if (residual == Residual::identity) CHECK(d.target.data()[k] == problem.d_out.data()[k]);
    }
  }
}

TEST_CASE("gat_v2: no node and no feature are sizes, too", "[attention]") {
  Rng rng(233);
  Workspace ws;
  const graph::CsrGraph<> none;
  Matrix<float> nothing(0, 4), out(0, 6);
  const GatV2<float> a({.source_dim = 4, .heads = 2, .channels = 3, .residual = Residual::linear}, rng);
  GatV2<float>::Saved saved;
  GatV2<float> grad = zeros_like(a);
  a.forward(none.view(), nothing, nothing, {}, out, saved, ws);
  a.backward(none.view(), nothing, nothing, {}, saved, out, nothing, nothing, {}, grad, ws);
  for_each_parameter(
      [](std::string_view, std::span<const float> x) {
        for (const float g : x) CHECK(g == 0);
      },
      std::as_const(grad));

  // Without features of nodes the edges decide.
  for (const bool bias : {false, true}) {
    const GraphProblem<float> problem(
        {.source_dim = 0, .edge_dim = 2, .heads = 2, .channels = 3, .edge_in_value = true, .bias = bias}, 4, 9, rng);
    const Matrix<float> value = problem.train(saved, ws);
    const Naive<double> expected = problem.attention();
    for (Index i = 0; i < 4; ++i)
      for (Index c = 0; c < 6; ++c)
        CHECK(support::near(double(value(i, c)), expected.value[std::size_t(6 * i + c)] + problem.rest(i, c),
                            {.absolute = 1e-5}));
    CHECK(problem.backward(saved, ws).weights.attention.size() == 6);
  }
}

TEST_CASE("gat_v2: what nobody sees does not reach the gradients", "[attention]") {
  // Key 3, query 1 (which sees nothing) and the edges between those who do not see each other hold NaN.
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  Rng rng(227);
  Workspace ws;
  GatV2<float> a({.source_dim = 5, .edge_dim = 2, .heads = 3, .channels = 4, .edge_in_value = true}, rng);
  const Index m = 3, n = 5;
  Matrix<std::uint8_t> allowed(m, n, 1);
  for (Index i = 0; i < m; ++i) allowed(i, 3) = 0;
  for (Index j = 0; j < n; ++j) allowed(1, j) = 0;
  allowed(2, 0) = 0;
  const auto query = random_matrix<float>(m, 5, rng), key = random_matrix<float>(n, 5, rng),
             value = random_matrix<float>(n, 5, rng), edges = random_matrix<float>(m * n, 2, rng),
             d_out = random_matrix<float>(m, 12, rng);
  const auto gradients = [&](float hidden) {
    Matrix<float> q = query, k = key, v = value, e = edges;
    std::ranges::fill(q.row(1), hidden);
    std::ranges::fill(k.row(3), hidden);
    std::ranges::fill(v.row(3), hidden);
    for (Index pair = 0; pair < m * n; ++pair)
      if (allowed(pair / n, pair % n) == 0) std::ranges::fill(e.row(pair), hidden);
    const AttentionInput<float> in{.query = q, .key = k, .value = v, .mask = {.allowed = allowed}};
    GatV2<float>::Saved saved;
    Matrix<float> out(m, 12), d_query(m, 5), d_key(n, 5), d_value(n, 5), d_edges(m * n, 2);
    GatV2<float> grad = zeros_like(a);
    a.forward(in, EdgeFeatures<float>{e}, AttentionOutput<float>{out}, saved, ws);
    a.backward(in, EdgeFeatures<float>{e}, saved, AttentionOutputGradient<float>{d_out},
               AttentionGradient<float>{d_query, d_key, d_value}, {d_edges}, grad, ws);
    std::vector<float> all(out.span().begin(), out.span().end());
    for (const Matrix<float>* d : {&d_query, &d_key, &d_value, &d_edges})
      all.insert(all.end(), d->span().begin(), d->span().end());
    for_each_parameter([&](std::string_view, std::span<const float> x) { all.insert(all.end(), x.begin(), x.end()); },
                       std::as_const(grad));
    return all;
  };
  CHECK(support::same_bits(gradients(0), gradients(nan)));
}

TEST_CASE("gat_v2: dropout is a matter of training, and of saved.rng alone", "[attention]") {
  Rng rng(228);
  Workspace ws;
  GatV2Config config{.source_dim = 4, .heads = 4, .channels = 3, .output_bias = false};
  const GraphProblem<double> plain(config, 40, 400, rng);
  config.dropout = 0.25;
  GraphProblem<double> problem = plain;
  problem.a = GatV2<double>(config, rng);
  for_each_parameter([](std::string_view, auto to, auto from) { std::ranges::copy(from, to.begin()); }, problem.a,
                     plain.a);
  const Matrix<double> expected = plain.forward(ws);
  CHECK(support::same_bits(problem.forward(ws).span(), expected.span()));

  GatV2<double>::Saved one, two;
  one.rng = two.rng = Rng(5);
  const Matrix<double> first = problem.train(one, ws), second = problem.train(one, ws);
  CHECK(support::same_bits(problem.train(two, ws).span(), first.span()));
  CHECK(support::same_bits(problem.train(two, ws).span(), second.span()));
  CHECK_FALSE(support::same_bits(first.span(), second.span()));

  // The mean over many draws is the value without dropout; 6 standard errors.
  constexpr int draws = 4000;
  Matrix<double> sum(expected.rows(), expected.cols()), squares(expected.rows(), expected.cols());
  for (int k = 0; k < draws; ++k) {
    const Matrix<double> out = problem.train(one, ws);
    for (Index e = 0; e < out.size(); ++e) {
      const double difference = out.data()[e] - expected.data()[e];
      sum.data()[e] += difference;
      squares.data()[e] += difference * difference;
    }
  }
  bool unbiased = true, moved = false;
  for (Index e = 0; e < sum.size(); ++e) {
    unbiased = unbiased && std::abs(sum.data()[e]) <= 6 * std::sqrt(squares.data()[e]) + 1e-12;
    moved = moved || squares.data()[e] > 0;
  }
  CHECK(unbiased);
  CHECK(moved);
}

TEMPLATE_TEST_CASE("gat_v2: scores are logits whose softmax is the weights", "[attention]", float, double) {
  using T = TestType;
  constexpr std::uint64_t seed = 229;
  CAPTURE(seed);
  Rng rng(seed);
  Workspace ws;
  for (const Index heads : {1, 2, 5, 20}) {
    GatV2<T> a({.source_dim = 4, .edge_dim = 2, .heads = heads, .channels = 3}, rng);
    randomize(a, rng, 1);
    laws::Shape shape{.queries = 6, .keys = 11, .dim = 4, .value_dim = 4, .bias = true, .allowed = true};
    shape.mask.causal = true;
    shape.mask.key_length = 9;
    const Problem<T> problem(shape, rng);
    const auto edges = random_matrix<T>(66, 2, rng);
    Matrix<T> scores(6, 11, T(NAN)), weights(6, 11, T(NAN));
    a.scores(problem.input(), EdgeFeatures<T>{edges}, scores, ws);
    a.forward(problem.input(), EdgeFeatures<T>{edges}, AttentionOutput<T>{.value = {}, .weights = weights}, ws);
    for (Index i = 0; i < 6; ++i) {
      double sum = 0;
      for (const T s : scores.row(i)) sum += std::exp(double(s));
      for (Index j = 0; j < 11; ++j) {
        const double expected = problem.sees(i, j) ? std::exp(double(scores(i, j))) / sum : 0;
        CHECK(support::near(double(weights(i, j)), expected,
                            {.relative = 100 * double(std::numeric_limits<T>::epsilon())}));
        if (!problem.sees(i, j)) CHECK(scores(i, j) == -std::numeric_limits<T>::infinity());
      }
      if (heads > 1) CHECK((sum == 0 || std::abs(sum - 1) < 1e-4));
    }
    if (heads > 1) continue;
    Vector<T> lse(6);
    a.forward(problem.input(), EdgeFeatures<T>{edges}, AttentionOutput<T>{.value = {}, .log_sum_exp = lse}, ws);
    for (Index i = 0; i < 6; ++i) {
      double sum = 0;
      for (const T s : scores.row(i)) sum += std::exp(double(s));
      CHECK(support::near(double(lse[i]), std::log(sum), {.absolute = 1e-5}));
    }
  }
}

TEST_CASE("gat_v2: far keys keep their order in the scores of several heads", "[attention]") {
  // All but the first weight round to 0, their logarithms do not.
  Rng rng(230);
  Workspace ws;
  GatV2<float> a({.source_dim = 1, .heads = 2, .channels = 1, .bias = false}, rng);
  for_each_parameter([](std::string_view, std::span<float> x) { std::ranges::fill(x, 1.f); }, a);
  Matrix<float> query(1, 1, 1000.f), key(4, 1), scores(1, 4);
  for (Index j = 0; j < 4; ++j) key(j, 0) = -200.f * float(j);
  a.scores({.query = query, .key = key, .value = key}, scores, ws);
  for (Index j = 1; j < 4; ++j) CHECK(scores(0, j) == scores(0, 0) - 200.f * float(j));
}

// --- Against others. ---

/// Tensors that stand in a file one after the other.
struct Tensors {
  Vector<double> numbers;
  Index next = 0;

  explicit Tensors(const std::string& name)
      : numbers(io::read_npy_vector<double>(std::string(RUVECTOR_TEST_DATA) + "/gat_v2_" + name + ".npy")) {}
  [[nodiscard]] std::span<const double> take(Index count) {
    next += count;
    return numbers.span().subspan(std::size_t(next - count), std::size_t(count));
  }
  template <class To>
  void read(To&& to) {
    const auto from = take(Index(std::size(to)));
    std::ranges::transform(from, std::begin(to),
                           [](double x) { return static_cast<std::decay_t<decltype(to[0])>>(x); });
  }
};

template <class T>
constexpr double golden_bound = sizeof(T) == 4 ? 1e-5 : 1e-10;

template <class T>
bool golden(Tensors& expected, std::span<const T> actual) {
  const auto values = expected.take(Index(actual.size()));
  double scale = 1;
  for (const double x : values) scale = std::max(scale, std::abs(x));
  return support::first_far(actual, values, {.absolute = golden_bound<T> * scale}) == -1;
}

TEMPLATE_TEST_CASE("gat_v2: over a graph it agrees with PyTorch, values and gradients", "[attention][golden]", float,
                   double) {
  using T = TestType;
  Rng rng(0);
  GraphProblem<T> problem({.source_dim = 6,
                           .target_dim = 4,
                           .edge_dim = 3,
                           .heads = 3,
                           .channels = 5,
                           .residual = Residual::linear,
                           .loops = AddedLoops::mean},
                          8, 13, rng);
  problem.graph = graph::CsrGraph<>(8, std::vector<std::int32_t>{0, 0, 0, 1, 2, 2, 3, 5, 5, 5, 5, 6, 7},
                                    std::vector<std::int32_t>{5, 5, 1, 0, 2, 3, 7, 0, 6, 7, 1, 6, 2});
  Tensors in("graph_in"), expected("graph_out");
  GatV2<T>& a = problem.a;
  const auto tensors = [](auto& x, auto& y, auto& e, auto& model) {
    return std::array{x.span(),
                      y.span(),
                      e.span(),
                      model.source.weight.span(),
                      model.source.bias.span(),
                      model.target.weight.span(),
                      model.target.bias.span(),
                      model.edge.weight.span(),
                      model.attention.span(),
                      model.residual.weight.span(),
                      model.bias.span()};
  };
  for (const std::span<T> tensor : tensors(problem.x_source, problem.x_target, problem.features, a)) in.read(tensor);
  in.read(problem.d_out.span());
  REQUIRE(in.next == in.numbers.size());
  Workspace ws;
  typename GatV2<T>::Saved saved;
  CHECK(golden<T>(expected, problem.train(saved, ws).span()));
  Gradients<T> d = problem.backward(saved, ws);
  for (const std::span<T> gradient : tensors(d.source, d.target, d.edges, d.weights)) {
    CAPTURE(expected.next);
    CHECK(golden<T>(expected, gradient));
  }
  CHECK(expected.next == expected.numbers.size());
}

TEMPLATE_TEST_CASE("gat_v2: the dense form agrees with PyTorch, values and gradients", "[attention][golden]", float,
                   double) {
  using T = TestType;
  Rng rng(0);
  const Index m = 6, n = 7, d = 5;
  GatV2<T> a({.source_dim = d,
              .edge_dim = 2,
              .heads = 2,
              .channels = 9,
              .concat = false,
              .share_weights = true,
              .edge_in_value = true,
              .output_bias = false},
             rng);
  Matrix<T> query(m, d), key(n, d), value(n, d), edges(m * n, 2), bias(m, n), d_out(m, 9), out(m, 9);
  Matrix<std::uint8_t> allowed(m, n);
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) allowed(i, j) = (3 * i + 5 * j) % 4 != 0 && i != 2;
  Tensors in("dense_in"), expected("dense_out");
  for (Matrix<T>* x : {&query, &key, &value, &edges, &bias, &a.source.weight}) in.read(x->span());
  in.read(a.source.bias.span());
  for (Matrix<T>* x : {&a.edge.weight, &a.attention, &d_out}) in.read(x->span());
  REQUIRE(in.next == in.numbers.size());
  const AttentionInput<T> input{.query = query, .key = key, .value = value, .mask = {.allowed = allowed}, .bias = bias};
  Workspace ws;
  typename GatV2<T>::Saved saved;
  a.forward(input, EdgeFeatures<T>{edges}, AttentionOutput<T>{out}, saved, ws);
  Matrix<T> d_query(m, d), d_key(n, d), d_value(n, d), d_edges(m * n, 2), d_bias(m, n);
  GatV2<T> grad = zeros_like(a);
  a.backward(input, EdgeFeatures<T>{edges}, saved, AttentionOutputGradient<T>{d_out},
             AttentionGradient<T>{d_query, d_key, d_value, d_bias}, {d_edges}, grad, ws);
  for (const Matrix<T>* x : {&out, &d_query, &d_key, &d_value, &d_edges, &d_bias, &grad.source.weight}) {
    CAPTURE(expected.next);
    CHECK(golden<T>(expected, x->span()));
  }
  CHECK(golden<T>(expected, grad.source.bias.span()));
  CHECK(golden<T>(expected, grad.edge.weight.span()));
  CHECK(golden<T>(expected, grad.attention.span()));
  CHECK(expected.next == expected.numbers.size());
}

// --- Dynamic attention. ---

/// GAT (Veličković 2018), one head: ℓ_ij = LeakyReLU(a_r·x_i + a_l·x_j), what some call GATv2.
struct GatV1 {
  std::vector<double> query_weights, key_weights;

  [[nodiscard]] Matrix<double> scores(const Matrix<double>& query, const Matrix<double>& key) const {
    Matrix<double> logits(query.rows(), key.rows());
    for (Index i = 0; i < query.rows(); ++i)
      for (Index j = 0; j < key.rows(); ++j) {
        double z = 0;
        for (Index c = 0; c < query.cols(); ++c)
          z += query_weights[std::size_t(c)] * query(i, c) + key_weights[std::size_t(c)] * key(j, c);
        logits(i, j) = z > 0 ? z : 0.2 * z;
      }
    return logits;
  }
};

std::vector<Index> ranking(std::span<const double> scores) {
  std::vector<Index> order(scores.size());
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = Index(j);
  std::ranges::stable_sort(order, [&](Index a, Index b) { return scores[std::size_t(a)] > scores[std::size_t(b)]; });
  return order;
}

/// Queries whose ranking of the keys differs from the first query's.
Index dissenters(const Matrix<double>& scores) {
  Index count = 0;
  for (Index i = 1; i < scores.rows(); ++i) count += ranking(scores.row(i)) != ranking(scores.row(0));
  return count;
}

TEST_CASE("gat_v2: the ranking of keys depends on the query, in GAT it does not", "[attention]") {
  Rng rng(231);
  Workspace ws;
  const auto query = random_matrix<double>(20, 6, rng), key = random_matrix<double>(12, 6, rng);
  GatV1 gat;
  for (Index c = 0; c < 6; ++c) {
    gat.query_weights.push_back(rng.normal());
    gat.key_weights.push_back(rng.normal());
  }
  CHECK(dissenters(gat.scores(query, key)) == 0);

  GatV2<double> a({.source_dim = 6, .channels = 8}, rng);
  randomize(a, rng);
  Matrix<double> scores(20, 12);
  a.scores({.query = query, .key = key, .value = key}, scores, ws);
  CHECK(dissenters(scores) >= 15);

  // Every query finds its own key: |x| = LeakyReLU(x) + LeakyReLU(−x) up to a factor, so that a score can be −|q − k|.
  constexpr Index n = 10;
  GatV2<double> dictionary({.source_dim = 1, .channels = 2, .bias = false, .negative_slope = 0}, rng);
  for (Index c = 0; c < 2; ++c) {
    dictionary.source.weight(c, 0) = c == 0 ? -1 : 1;
    dictionary.target.weight(c, 0) = c == 0 ? 1 : -1;
    dictionary.attention(0, c) = -1;
  }
  Matrix<double> word(n, 1), found(n, n);
  for (Index j = 0; j < n; ++j) word(j, 0) = double(j);
  dictionary.scores({.query = word, .key = word, .value = word}, found, ws);
  for (Index i = 0; i < n; ++i) CHECK(ranking(found.row(i))[0] == i);
}

// --- The front door. ---

TEST_CASE("gat_v2: tensors have the names that are documented", "[attention]") {
  Rng rng(0);
  const GatV2<float> a(
      {.source_dim = 3, .edge_dim = 2, .heads = 2, .channels = 4, .concat = false, .residual = Residual::linear}, rng);
  std::string names;
  for_each_parameter(
      [&](std::string_view path, auto x) { names += std::string(path) + " " + std::to_string(x.size()) + "\n"; }, a);
  CHECK(names ==
        "source.weight 24\nsource.bias 8\ntarget.weight 24\ntarget.bias 8\nedge.weight 16\nedge.bias 0\n"
        "attention 8\nresidual.weight 12\nresidual.bias 0\nbias 4\n");
  CHECK(a.config().heads == 2);
  CHECK(a.output_dim(3) == 4);
}

TEST_CASE("gat_v2: options outside their range are refused", "[attention]") {
  Rng rng(0);
  static constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const GatV2Config good{.source_dim = 4, .heads = 2, .channels = 3};
  CHECK_NOTHROW(GatV2<float>(good, rng));
  CHECK_NOTHROW(GatV2<float>({.source_dim = 0, .channels = 1}, rng));
  const auto refused = [&](auto change) {
    GatV2Config config = good;
    change(config);
    CHECK_THROWS_AS(GatV2<float>(config, rng), ConfigError);
  };
  refused([](GatV2Config& c) { c.source_dim = -1; });
  refused([](GatV2Config& c) { c.target_dim = -1; });
  refused([](GatV2Config& c) { c.edge_dim = -1; });
  refused([](GatV2Config& c) { c.heads = 0; });
  refused([](GatV2Config& c) { c.channels = 0; });
  refused([](GatV2Config& c) { c.negative_slope = -0.1; });
  refused([](GatV2Config& c) { c.negative_slope = 1.1; });
  refused([](GatV2Config& c) { c.negative_slope = nan; });
  refused([](GatV2Config& c) { c.dropout = 1; });
  refused([](GatV2Config& c) { c.dropout = -0.1; });
  refused([](GatV2Config& c) { c.dropout = nan; });
  refused([](GatV2Config& c) { c.loop_feature = nan; });
  refused([](GatV2Config& c) { c.edge_in_value = true; });
  refused([](GatV2Config& c) { c.residual = Residual::identity; });
  refused([](GatV2Config& c) { c.target_dim = 5, c.share_weights = true; });
  GatV2Config huge = good;
  huge.heads = huge.channels = Index(1) << 40;
  CHECK_THROWS_AS(GatV2<float>(huge, rng), ShapeError);
  try {
    GatV2<float>({.source_dim = 4, .heads = 0, .channels = 3}, rng);
  } catch (const ConfigError& error) {
    CHECK(std::string(error.what()) == "GatV2: heads: expected >= 1, got 0");
  }
}

TEST_CASE("gat_v2: dense inputs that do not fit are refused", "[attention]") {
  Rng rng(0);
  Workspace ws;
  const GatV2<float> plain({.source_dim = 4, .heads = 2, .channels = 3}, rng);
  const GatV2<float> edged({.source_dim = 4, .edge_dim = 2, .channels = 3}, rng);
  const GatV2<float> bipartite({.source_dim = 4, .target_dim = 5, .channels = 3}, rng);
  Matrix<float> x(5, 4), narrow(5, 3), out(5, 6), wrong(5, 5), edges(25, 2), few(24, 2), wide(25, 3), d(5, 4);
  Vector<float> lse(5);
  const AttentionInput<float> in{.query = x, .key = x, .value = x};
  const AttentionOutput<float> good{out};
  GatV2<float>::Saved saved, other;
  GatV2<float> grad = zeros_like(plain);
  plain.forward(in, good, saved, ws);

  CHECK_THROWS_AS(plain.output_dim(3), ShapeError);
  CHECK_THROWS_AS(plain.forward({.query = narrow, .key = narrow, .value = narrow}, good, ws), ShapeError);
  CHECK_THROWS_AS(plain.forward({.query = x, .key = x, .value = narrow}, good, ws), ShapeError);
  CHECK_THROWS_AS(plain.forward(in, AttentionOutput<float>{wrong}, ws), ShapeError);
  CHECK_THROWS_AS(plain.forward(in, AttentionOutput<float>{.value = out, .log_sum_exp = lse}, ws), ConfigError);
  CHECK_THROWS_AS(plain.forward(in, EdgeFeatures<float>{edges}, good, ws), ShapeError);
  CHECK_THROWS_AS(bipartite.forward(in, AttentionOutput<float>{}, ws), ShapeError);
  CHECK_THROWS_AS(edged.forward(in, AttentionOutput<float>{}, ws), ConfigError);
  CHECK_THROWS_AS(edged.forward(in, AttentionOutput<float>{}, saved, ws), ConfigError);
  CHECK_THROWS_AS(edged.scores(in, wrong, ws), ConfigError);
  CHECK_THROWS_AS(edged.forward(in, EdgeFeatures<float>{}, AttentionOutput<float>{}, ws), ShapeError);
  CHECK_THROWS_AS(edged.forward(in, EdgeFeatures<float>{few}, AttentionOutput<float>{}, ws), ShapeError);
  CHECK_THROWS_AS(edged.forward(in, EdgeFeatures<float>{wide}, AttentionOutput<float>{}, ws), ShapeError);
  CHECK_THROWS_AS(plain.scores(in, out, ws), ShapeError);

  const AttentionOutputGradient<float> d_out{out};
  const AttentionGradient<float> d_in{d, d, d};
  CHECK_NOTHROW(plain.backward(in, saved, d_out, d_in, grad, ws));
  CHECK_THROWS_AS(plain.backward(in, other, d_out, d_in, grad, ws), ShapeError);
  CHECK_THROWS_AS(plain.backward(in, saved, {wrong}, d_in, grad, ws), ShapeError);
  CHECK_THROWS_AS(plain.backward(in, saved, {out, lse}, d_in, grad, ws), ConfigError);
  CHECK_THROWS_AS(plain.backward(in, saved, d_out, {narrow, d, d}, grad, ws), ShapeError);
  GatV2<float> empty;
  CHECK_THROWS_AS(plain.backward(in, saved, d_out, d_in, empty, ws), ShapeError);
  CHECK_THROWS_AS(empty.forward(in, good, ws), ShapeError);
  GatV2<float> edged_grad = zeros_like(edged);
  CHECK_THROWS_AS(edged.backward(in, saved, d_out, d_in, edged_grad, ws), ConfigError);
  GatV2<float> broken = plain;
  broken.attention = Matrix<float>(3, 2);
  CHECK_THROWS_AS(broken.forward(in, good, ws), ShapeError);
  broken = plain;
  broken.target.bias = Vector<float>(5);
  CHECK_THROWS_AS(broken.forward(in, good, ws), ShapeError);
}

TEST_CASE("gat_v2: graphs that do not fit are refused", "[attention]") {
  Rng rng(0);
  Workspace ws;
  const GraphProblem<float> p({.source_dim = 4, .target_dim = 3, .edge_dim = 2, .channels = 5}, 6, 9, rng);
  const graph::CsrView<> graph = p.graph.view();
  Matrix<float> out(6, 5), rows(5, 4), cols(6, 5), few(8, 2), d_out(5, 5);
  GatV2<float>::Saved saved, other;
  (void)p.train(saved, ws);
  GatV2<float> grad = zeros_like(p.a);
  CHECK_THROWS_AS(p.a.forward(graph, rows, p.x_target, p.edges(), out, ws), ShapeError);
  CHECK_THROWS_AS(p.a.forward(graph, cols, p.x_target, p.edges(), out, ws), ShapeError);
  CHECK_THROWS_AS(p.a.forward(graph, p.x_source, p.x_source, p.edges(), out, ws), ShapeError);
  CHECK_THROWS_AS(p.a.forward(graph, p.x_source, p.x_target, {few}, out, ws), ShapeError);
  CHECK_THROWS_AS(p.a.forward(graph, p.x_source, p.x_target, {}, out, ws), ShapeError);
  CHECK_THROWS_AS(p.a.forward(graph, p.x_source, p.x_target, p.edges(), rows, ws), ShapeError);
  const auto backward = [&](const GatV2<float>::Saved& s, const Matrix<float>& g, MatrixView<float> d_source,
                            MatrixView<float> d_target, MatrixView<float> d_edges) {
    p.a.backward(graph, p.x_source, p.x_target, p.edges(), s, g, d_source, d_target, {d_edges}, grad, ws);
  };
  CHECK_NOTHROW(backward(saved, p.d_out, {}, {}, {}));
  CHECK_THROWS_AS(backward(other, p.d_out, {}, {}, {}), ShapeError);
  CHECK_THROWS_AS(backward(saved, d_out, {}, {}, {}), ShapeError);
  CHECK_THROWS_AS(backward(saved, p.d_out, rows, {}, {}), ShapeError);
  CHECK_THROWS_AS(backward(saved, p.d_out, {}, rows, {}), ShapeError);
  CHECK_THROWS_AS(backward(saved, p.d_out, {}, {}, few), ShapeError);
}

}  // namespace
}  // namespace test_gat_v2
