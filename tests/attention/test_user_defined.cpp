// SPDX-License-Identifier: MIT
#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/concepts.hpp>
#include <ruvector/attention/dense.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scores.hpp>
#include <ruvector/attention/tiled.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <tuple>

#include "support/laws.hpp"
#include "support/trials.hpp"

namespace test_user_defined {

using namespace ruvector;
using namespace ruvector::attention;

// What a user writes for a new attention, here a Gaussian kernel: logit = −‖q − k‖²/(2σ²), σ learned.
template <Real T>
struct GaussianScore {
  using Scalar = T;
  Positive<T> sigma;
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("sigma", self.sigma...);
  }
  struct Bound : PairScore<T> {
    using B = simd::Batch<T>;
    static constexpr Index query_scalars = 1, key_scalars = 1, parameters = 1;
    Positive<T> sigma;
    T factor;  // 1/σ²
    void query_row(std::span<const T> q, T* out) const { *out = simd::squared_norm(q) / 2; }
    void key_row(std::span<const T> k, T* out) const { *out = simd::squared_norm(k) / 2; }
    B logit(const B* z, const B* q, const B* k) const { return (z[0] - q[0] - k[0]) * B(factor); }
    template <class Partials>
    void derivative(B d_logit, const B* z, const B* q, const B* k, Partials& d) const {
      d.z[0] = d_logit * B(factor);
      d.query[0] = d.key[0] = -d.z[0];
      d.parameter[0] = d_logit * logit(z, q, k) * B(-2 / sigma.value());
    }
    void query_row_vjp(std::span<const T> q, const T* d, std::span<T> d_q, std::span<T>) const {
      if (!d_q.empty()) simd::axpy(*d, q, d_q);
    }
    void key_row_vjp(std::span<const T> k, const T* d, std::span<T> d_k, std::span<T>) const { simd::axpy(*d, k, d_k); }
    void add_parameters(std::span<const T> sums, GaussianScore& grad) const { sigma.add(sums[0], grad.sigma); }
  };
  Bound bind(Index) const { return {{}, sigma, 1 / (sigma.value() * sigma.value())}; }
};

// A backend of a user's own: the mean of the keys that are seen, whatever the query.
template <Real T>
struct MeanAttention {
  using Scalar = T;
  Index output_dim(Index value_dim) const { return value_dim; }
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace&) const {
    for (Index i = 0; i < in.query.rows(); ++i) {
      T count = 0;
      std::ranges::fill(out.value.row(i), T(0));
      for (Index j = 0; j < in.key.rows(); ++j) {
        if (!in.mask.visible(i, in.query.rows(), in.key.rows()).contains(j)) continue;
        count += 1;
        for (Index c = 0; c < in.value.cols(); ++c) out.value(i, c) += in.value(j, c);
      }
      for (T& x : out.value.row(i)) x /= std::max(count, T(1));
    }
  }
};

template <Real T>
using Gaussian = Tiled<GaussianScore<T>>;
template <Real T>
using DenseGaussian = Dense<GaussianScore<T>>;

}  // namespace test_user_defined

namespace laws {

template <class A>
struct UserSubject : SoftmaxSubject<A> {
  using T = ScalarOf<A>;
  static constexpr bool has_weights = true;
  static constexpr double logit_error = 8 * double(std::numeric_limits<T>::epsilon());  // of norms that cancel
  static A make(Rng& rng) {
    A a;
    a.score.sigma = Positive<T>(rng.below(2) == 0 ? T(1.5) : T(0.8));
    return a;
  }
  template <class R>
  static R logit(const A& a, std::span<const T> q, std::span<const T> k) {
    R sum = 0;
    for (std::size_t i = 0; i < q.size(); ++i) sum += (R(q[i]) - R(k[i])) * (R(q[i]) - R(k[i]));
    const R sigma = R(a.score.sigma.value());
    return -sum / (2 * sigma * sigma);
  }
};
template <Real T>
struct Subject<test_user_defined::Gaussian<T>> : UserSubject<test_user_defined::Gaussian<T>> {};
template <Real T>
struct Subject<test_user_defined::DenseGaussian<T>> : UserSubject<test_user_defined::DenseGaussian<T>> {};

}  // namespace laws

namespace test_user_defined {
namespace {

using Backends = std::tuple<Gaussian<float>, Gaussian<double>, DenseGaussian<float>, DenseGaussian<double>>;
using DoubleBackends = std::tuple<Gaussian<double>, DenseGaussian<double>>;

static_assert(Score<GaussianScore<float>> && DifferentiableAttention<Gaussian<float>>);
static_assert(AttentionBackend<MeanAttention<float>> && !DifferentiableAttention<MeanAttention<float>>);
static_assert(DifferentiableAttention<MultiHead<Gaussian<double>>>);

TEMPLATE_LIST_TEST_CASE("a score of one's own: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(501, support::trials(200, 50));
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(502);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(503);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: what is not finite stays in its row", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(504);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(505);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: a row depends on itself", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(506);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: keys are a set", "[attention][law]", Backends) {
  laws::keys_are_a_set<TestType>(507);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(508);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: a blind query is silent", "[attention][law]", Backends) {
  laws::a_blind_query_is_silent<TestType>(509);
}
TEMPLATE_LIST_TEST_CASE("a score of one's own: gradients are right", "[attention][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(510, 20);
}

TEST_CASE("a backend of one's own: goes through the front door", "[attention]") {
  Workspace ws;
  Matrix<float> q(2, 3), k(3, 3), v(3, 1), out(2, 1);
  v(0, 0) = 1, v(1, 0) = 2, v(2, 0) = 6;
  attend(MeanAttention<float>(), {.query = q, .key = k, .value = v, .mask = {.causal = true}}, {out}, ws);
  CHECK(out(0, 0) == 1.5F);
  CHECK(out(1, 0) == 3.0F);
  Matrix<float> wrong(2, 2);
  CHECK_THROWS_AS(attend(MeanAttention<float>(), {q, k, v}, {wrong}, ws), ShapeError);
}

}  // namespace
}  // namespace test_user_defined
