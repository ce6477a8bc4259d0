// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>

#include <tuple>

#include "attention_reference.hpp"
#include "support/laws.hpp"
#include "support/trials.hpp"

namespace laws {

template <class R, Real T>
R dot_logit(const DotScore<T>& score, std::span<const T> q, std::span<const T> k) {
  R dot = 0;
  for (std::size_t i = 0; i < q.size(); ++i) dot += R(q[i]) * R(k[i]);
  dot *= score.scale ? R(*score.scale) : R(1) / std::sqrt(R(q.size()));
  if (score.softcap > 0) dot = R(score.softcap) * std::tanh(dot / R(score.softcap));
  return dot / R(score.temperature.value());
}

template <class A>
struct DotSubject : SoftmaxSubject<A> {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  static A make(Rng& rng) { return A(random_score<T>(rng)); }
  template <class R>
  static R logit(const A& backend, std::span<const T> q, std::span<const T> k) {
    return dot_logit<R, T>(backend.score, q, k);
  }
  static T alibi_slope(const A& backend) { return backend.score.alibi_slope; }
};
template <Real T>
struct Subject<Dense<DotScore<T>>> : DotSubject<Dense<DotScore<T>>> {};
template <Real T>
struct Subject<Tiled<DotScore<T>>> : DotSubject<Tiled<DotScore<T>>> {};

}  // namespace laws

namespace test_softmax_attention {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

using Backends = std::tuple<ScaledDotProduct<float>, ScaledDotProduct<double>, Flash<float>, Flash<double>>;
using DoubleBackends = std::tuple<ScaledDotProduct<double>, Flash<double>>;
using WeightBackends = Backends;

static_assert(DifferentiableAttention<ScaledDotProduct<float>> && ScoringAttention<ScaledDotProduct<double>>);
static_assert(DifferentiableAttention<Flash<float>> && DifferentiableAttention<Flash<double>>);
static_assert(!AttentionBackend<DotScore<float>> && !ScoringAttention<Matrix<float>>);

TEMPLATE_LIST_TEST_CASE("attention: agrees with the formula", "[attention][law]", Backends) {
  // 3,200 shapes in all; fewer where sanitizers make them slow.
  laws::agrees_with_the_formula<TestType>(101, support::trials(800, 100));
}
TEMPLATE_LIST_TEST_CASE("attention: weights sum to one and make the output", "[attention][law]", WeightBackends) {
  laws::weights_sum_to_one<TestType>(102);
}
TEMPLATE_LIST_TEST_CASE("attention: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(103);
}
TEMPLATE_LIST_TEST_CASE("attention: what is not finite stays with those who see it", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(104);
}
TEMPLATE_LIST_TEST_CASE("attention: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(105);
}
TEMPLATE_LIST_TEST_CASE("attention: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(106);
}
TEMPLATE_LIST_TEST_CASE("attention: the order of keys does not matter", "[attention][law]", Backends) {
  laws::keys_are_a_set<TestType>(107);
}
TEMPLATE_LIST_TEST_CASE("attention: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(108);
}
TEMPLATE_LIST_TEST_CASE("attention: a query that sees no key is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(109);
}
TEMPLATE_LIST_TEST_CASE("attention: gradients are right", "[attention][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(110, 30);
}

}  // namespace
}  // namespace test_softmax_attention
