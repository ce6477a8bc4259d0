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
namespace {

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
  std::vector<R> value, log_sum_exp;  // of the first head
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

}  // namespace
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

}  // namespace
}  // namespace test_gat_v2
