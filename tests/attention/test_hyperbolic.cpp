// SPDX-License-Identifier: MIT
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/means.hpp>
#include <ruvector/attention/scores.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/geometry/lorentz.hpp>
#include <ruvector/geometry/poincare_ball.hpp>

#include <cmath>
#include <span>
#include <tuple>
#include <vector>

#include "formulas.hpp"
#include "support/laws.hpp"
#include "support/trials.hpp"

namespace test_hyperbolic {

using namespace ruvector;
using namespace ruvector::attention;
using namespace formulas;

template <class M>
DistanceScore<M> random_score(Rng& rng, Points input) {
  using T = ScalarOf<M>;
  static constexpr T betas[] = {T(0.7), T(1), T(2), T(0.25)};
  return DistanceScore<M>({.beta = betas[rng.below(4)],
                           .power = 1 + int(rng.below(2)),
                           .curvature = rng.below(2) == 0 ? T(1) : T(0.5),
                           .input = input});
}

// The score and the mean decide: the engine is the same code.
template <class A, class M>
struct DistanceSubject : laws::SoftmaxSubject<A> {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  // Of pairs that are just not near: 2¹⁰ times the rounding of the products.
  static constexpr double logit_error = 0x1p10 * double(std::numeric_limits<T>::epsilon());
  // In a few dimensions, too, no two points meet.
  static constexpr double gradient_step = 1e-5;
  static void fit(laws::Shape& shape) { shape.dim = std::max(shape.dim, Index(4)); }
  template <class R>
  static R logit(const A& backend, std::span<const T> q, std::span<const T> k) {
    return formulas::logit<R>(backend.score, q, k);
  }
};
template <class A, class M>
struct MidpointSubject : DistanceSubject<A, M> {
  using T = ScalarOf<A>;
  static constexpr bool weights_average_values = false;
  template <class R>
  static void mean(const A& backend, std::span<const R> weights, R sum, const laws::Problem<T>& problem, bool,
                   std::span<R> out) {
    formulas::mean<R>(backend.mean, weights, problem, out);
    (void)sum;
  }
};

}  // namespace test_hyperbolic

namespace laws {

template <class A>
struct BallSubject : test_hyperbolic::MidpointSubject<A, geometry::PoincareBall<ScalarOf<A>>> {
  static A make(Rng& rng) {
    const Points input = rng.below(2) == 0 ? Points::tangent : Points::on_manifold;
    return A(test_hyperbolic::random_score<geometry::PoincareBall<ScalarOf<A>>>(rng, input),
             decltype(A::mean)({.curvature = ScalarOf<A>(0.8), .values = input, .first_column = 0}));
  }
  static void fit(Shape& shape) {
    shape.spread = 0.1;
    shape.dim = std::max(shape.dim, Index(4));
  }
};
template <Real T>
struct Subject<Hyperbolic<T>> : BallSubject<Hyperbolic<T>> {};
template <Real T>
struct Subject<HyperbolicFlash<T>> : BallSubject<HyperbolicFlash<T>> {};

template <Real T>
using LorentzFlash = Tiled<DistanceScore<geometry::Lorentz<T>>, Midpoint<geometry::Lorentz<T>>>;
template <Real T>
struct Subject<LorentzFlash<T>> : test_hyperbolic::MidpointSubject<LorentzFlash<T>, geometry::Lorentz<T>> {
  static constexpr Index first_column = 1;
  static LorentzFlash<T> make(Rng& rng) {
    return LorentzFlash<T>(test_hyperbolic::random_score<geometry::Lorentz<T>>(rng, Points::on_manifold));
  }
  static void fit(Shape& shape) {
    shape.spread = 0.3;
    shape.dim = std::max(shape.dim, Index(5));
    shape.value_dim = std::max(shape.value_dim, Index(2));
  }
};

template <Real T>
using GaussianFlash = Tiled<DistanceScore<geometry::Euclidean<T>>>;
template <Real T>
struct Subject<GaussianFlash<T>> : test_hyperbolic::DistanceSubject<GaussianFlash<T>, geometry::Euclidean<T>> {
  static GaussianFlash<T> make(Rng& rng) {
    return GaussianFlash<T>(test_hyperbolic::random_score<geometry::Euclidean<T>>(rng, Points::on_manifold));
  }
};
template <Real T>
using CosineDense = Dense<CosineScore<T>>;
template <Real T>
struct Subject<CosineDense<T>> : test_hyperbolic::DistanceSubject<CosineDense<T>, void> {
  static constexpr double logit_error = 4 * double(std::numeric_limits<T>::epsilon());
  static CosineDense<T> make(Rng& rng) { return CosineDense<T>(CosineScore<T>(rng.below(2) == 0 ? T(10) : T(3))); }
};

}  // namespace laws

namespace test_hyperbolic {
namespace {

using Backends = std::tuple<Hyperbolic<float>, Hyperbolic<double>, HyperbolicFlash<float>, HyperbolicFlash<double>,
                            laws::LorentzFlash<float>, laws::LorentzFlash<double>, laws::GaussianFlash<float>,
                            laws::GaussianFlash<double>, laws::CosineDense<float>, laws::CosineDense<double>>;
using DoubleBackends = std::tuple<Hyperbolic<double>, HyperbolicFlash<double>, laws::LorentzFlash<double>,
                                  laws::GaussianFlash<double>, laws::CosineDense<double>>;

static_assert(Score<DistanceScore<Ball<float>>> && Score<CosineScore<double>> && !Score<Ball<float>>);
static_assert(Mean<Midpoint<Ball<float>>> && Mean<WeightedSum<double>> && !Mean<Ball<float>>);
static_assert(DifferentiableAttention<HyperbolicFlash<float>> && PreparedAttention<Hyperbolic<double>>);
static_assert(ScoringAttention<HyperbolicFlash<float>>);

TEMPLATE_LIST_TEST_CASE("attention by distance: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(201, support::trials(200, 50));
}
TEMPLATE_LIST_TEST_CASE("attention by distance: weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(202);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(203);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: what is not finite stays with those who see it", "[attention][law]",
                        Backends) {
  laws::nan_stays_in_its_row<TestType>(204);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(205);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(206);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: the order of keys does not matter", "[attention][law]", Backends) {
  laws::keys_are_a_set<TestType>(207);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(208);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: a query that sees no key is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(209);
}
TEMPLATE_LIST_TEST_CASE("attention by distance: gradients are right", "[attention][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(210, 20);
}

// A float point of the ball at 1 − 10⁻ᵏ of the radius.
std::vector<float> near_the_rim(int k, std::span<const double> direction) {
  double norm = 0;
  for (const double x : direction) norm += x * x;
  const double radius = (1 - std::pow(10.0, -k)) / std::sqrt(norm);
  std::vector<float> point;
  for (const double x : direction) point.push_back(float(radius * x));
  return point;
}

TEST_CASE("attention by distance: in float it is right near the rim, too", "[attention]") {
  Rng rng(211);
  Workspace ws;
  const Index d = 16, n = 200;
  const HyperbolicFlash<float> backend = make_hyperbolic<HyperbolicFlash<float>>({.input = Points::on_manifold});
  for (const int k : {1, 2, 3, 4}) {
    double worst = 0, worst_backward = 0, worst_gradient = 0;
    for (int trial = 0; trial < 20; ++trial) {
      std::vector<double> direction(16), other(16);
      for (double& x : direction) x = rng.normal();
      Matrix<float> query(1, d), key(n, d), value(n, 2);
      std::ranges::copy(near_the_rim(k, direction), query.row(0).begin());
      for (Index j = 0; j < n; ++j) {
        // Far ones in any direction; near ones within angles down to a hundredth of the distance from the rim.
        const double spread = j % 2 == 0 ? 1 : std::pow(10.0, -k - 2 + 3 * rng.uniform());
        for (std::size_t i = 0; i < 16; ++i) other[i] = direction[i] * double(j % 2) + spread * rng.normal();
        std::ranges::copy(near_the_rim(k, other), key.row(j).begin());
      }
      Matrix<float> scores(1, n);
      backend.scores({query, key, value}, scores, ws);
      for (Index j = 0; j < n; ++j) {
        const double truth = double(distance<long double, float>(backend.score, query.row(0), key.row(j)));
        const double bound = 2e-3 + 1e-4 * truth;
        worst = std::max(worst, std::fabs(-double(scores(0, j)) - truth) / bound);

        // With one key the weight is 1, so the gradient of the log-sum-exp by β is −d, as backward sees it.
        const AttentionInput<float> one{query, key.view().rows(j, 1), value.view().rows(j, 1)};
        HyperbolicFlash<float>::Saved saved;
        HyperbolicFlash<float> grad = zeros_like(backend);
        Matrix<float> out(1, 2), zero(1, 2), d_query(1, d), d_key(1, d);
        const Vector<float> d_lse(1, 1.0F);
        backend.forward(one, {out}, saved, ws);
        backend.backward(one, saved, {zero, d_lse.span()}, {d_query, d_key, {}}, grad, ws);
        const double beta_slope = -std::expm1(-double(backend.score.beta.value()));
        worst_backward = std::max(worst_backward, std::fabs(-double(grad.score.beta.raw) / beta_slope - truth) / bound);

        const geometry::PoincareBall<double> ball;
        geometry::PoincareBall<double> unused;
        const std::vector<double> q(query.row(0).begin(), query.row(0).end()), x(key.row(j).begin(), key.row(j).end());
        std::vector<double> g_query(16), g_key(16);
        ball.distance_vjp(q, x, -1.0, g_query, g_key, unused);
        double error = 0, size = 0;
        for (std::size_t i = 0; i < 16; ++i) {
          error += std::pow(double(d_query(0, Index(i))) - g_query[i], 2) +
                   std::pow(double(d_key(0, Index(i))) - g_key[i], 2);
          size += g_query[i] * g_query[i] + g_key[i] * g_key[i];
        }
        worst_gradient = std::max(worst_gradient, std::sqrt(error / size));
      }
    }
    CAPTURE(k, worst, worst_backward, worst_gradient);
    CHECK(worst <= 1);
    CHECK(worst_backward <= 1);
    CHECK(worst_gradient <= 2e-3);
  }
}

}  // namespace
}  // namespace test_hyperbolic
