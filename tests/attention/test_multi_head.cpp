// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>

#include <string>
#include <tuple>

#include "attention/attention_reference.hpp"
#include "support/alternating.hpp"
#include "support/laws.hpp"
#include "support/trials.hpp"

namespace laws {

template <class Inner>
struct Subject<MultiHead<Inner>> : SubjectDefaults {
  using T = ScalarOf<Inner>;
  static constexpr bool has_log_sum_exp = false;
  static constexpr bool weights_average_values = false;  // but projections of them
  static constexpr Index dim = 8, value_dim = 5;

  static void fit(Shape& shape) {
    shape.dim = dim;
    shape.value_dim = value_dim;
  }

  static MultiHead<Inner> make(Rng& rng) {
    MultiHeadConfig config{.dim = 12, .query_dim = dim, .key_dim = dim, .value_dim = value_dim};
    config.heads = Index(1) << rng.below(3);
    config.kv_heads = Index(1) << rng.below(3);
    config.kv_heads = std::min(config.kv_heads, config.heads);
    if (rng.below(2) == 0) config.head_dim = 1 + rng.below(5);
    if (rng.below(2) == 0) config.value_head_dim = 1 + rng.below(5);
    config.output = rng.below(3) != 0;
    config.bias = rng.below(3) != 0;
    MultiHead<Inner> backend(config, rng);
    for (Inner& head : backend.heads) head.score = random_score<T>(rng);
    if (rng.below(4) == 0) backend.set_alibi_slopes();
    // Flatter logits: the error of central differences, h² f‴/6, stays below their bound.
    for (auto* linear : {&backend.query, &backend.key})
      for (T& w : linear->weight.span()) w *= T(0.5);
    for (auto* linear : {&backend.query, &backend.key, &backend.value, &backend.output})
      for (T& b : linear->bias) b = T(0.3 * rng.normal());
    return backend;
  }

  template <class R>
  static Rows<R> project(const nn::Linear<T>& linear, const Rows<R>& x, Order order) {
    Rows<R> y{x.rows, linear.weight.rows()};
    for (Index i = 0; i < y.rows; ++i)
      for (Index j = 0; j < y.cols; ++j)
        y(i, j) = (linear.bias.empty() ? R(0) : R(linear.bias[j])) +
                  sum<R>(x.cols, order.reverse_dims, [&](Index c) { return x(i, c) * R(linear.weight(j, c)); });
    return y;
  }

  template <class R>
  static Reference<R> reference(const MultiHead<Inner>& backend, const Problem<T>& problem, Order order) {
    const Index H = Index(backend.heads.size()), m = problem.query.rows();
    const Index width = backend.query.weight.rows() / H, value_width = backend.value.weight.rows() / backend.kv_heads();
    const auto q = project<R>(backend.query, Rows<R>::of(problem.query), order),
               k = project<R>(backend.key, Rows<R>::of(problem.key), order),
               v = project<R>(backend.value, Rows<R>::of(problem.value), order);
    Rows<R> concat{m, H * value_width};
    std::vector<bool> sees(std::size_t(m), false);
    for (Index h = 0; h < H; ++h) {
      const Index g = h / (H / backend.kv_heads());
      const auto head =
          softmax_attention<R>(backend.heads[std::size_t(h)].score, problem, q.columns(h * width, width),
                               k.columns(g * width, width), v.columns(g * value_width, value_width), order);
      for (Index i = 0; i < m; ++i) {
        sees[std::size_t(i)] = std::isfinite(head.log_sum_exp[std::size_t(i)]);
        for (Index c = 0; c < value_width; ++c)
          concat(i, h * value_width + c) = head.value[std::size_t(i * value_width + c)];
      }
    }
    Rows<R> y = backend.output.weight.empty() ? concat : project<R>(backend.output, concat, order);
    for (Index i = 0; i < m; ++i)
      for (Index c = 0; c < y.cols; ++c)
        if (!sees[std::size_t(i)]) y(i, c) = 0;
    return {y.data, {}};
  }
};

}  // namespace laws

namespace test_multi_head {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

using Backends = std::tuple<MultiHead<ScaledDotProduct<float>>, MultiHead<ScaledDotProduct<double>>,
                            MultiHead<Flash<float>>, MultiHead<Flash<double>>>;
using DoubleBackends = std::tuple<MultiHead<ScaledDotProduct<double>>, MultiHead<Flash<double>>>;

static_assert(DifferentiableAttention<MultiHead<Flash<float>>> && PreparedAttention<MultiHead<Flash<float>>>);
static_assert(!PositionalAttention<MultiHead<Flash<float>>> && !EdgeAwareAttention<MultiHead<Flash<float>>>);

TEMPLATE_LIST_TEST_CASE("multi-head: agrees with the formula", "[attention][law]", Backends) {
  laws::agrees_with_the_formula<TestType>(201, support::trials(300, 50));
}
TEMPLATE_LIST_TEST_CASE("multi-head: average weights sum to one", "[attention][law]", Backends) {
  laws::weights_sum_to_one<TestType>(202);
}
TEMPLATE_LIST_TEST_CASE("multi-head: a hidden key is never touched", "[attention][law]", Backends) {
  laws::a_hidden_key_is_never_touched<TestType>(203);
}
TEMPLATE_LIST_TEST_CASE("multi-head: what is not finite stays with those who see it", "[attention][law]", Backends) {
  laws::nan_stays_in_its_row<TestType>(204);
}
TEMPLATE_LIST_TEST_CASE("multi-head: huge logits are safe", "[attention][law]", Backends) {
  laws::huge_logits_are_safe<TestType>(205);
}
TEMPLATE_LIST_TEST_CASE("multi-head: a row depends on itself, bit for bit", "[attention][law]", Backends) {
  laws::a_row_depends_on_itself<TestType>(206);
}
TEMPLATE_LIST_TEST_CASE("multi-head: the second call allocates nothing", "[attention][law]", Backends) {
  laws::the_second_call_allocates_nothing<TestType>(208);
}
TEMPLATE_LIST_TEST_CASE("multi-head: a query that sees no key is silent", "[attention][law]", Backends) {
  for (const std::uint64_t seed : {209u, 219u, 229u, 239u}) laws::a_blind_query_is_silent<TestType>(seed);
}
TEMPLATE_LIST_TEST_CASE("multi-head: gradients are right", "[attention][law]", DoubleBackends) {
  laws::gradients_are_right<TestType>(210, 30);
}

// --- What the laws do not know. ---

using support::same_bits;

/// A layer, its inputs and everything that a forward and a backward call give.
template <class A>
struct Pass {
  using T = ScalarOf<A>;
  Matrix<T> out, weights, d_query, d_key, d_value, d_bias;
  A grad;

  template <class E = Serial>
  Pass(const A& layer, const AttentionInput<T>& in, MatrixView<const T> d_out, bool bias, E&& executor = Serial{})
      : out(in.query.rows(), layer.output_dim(in.value.cols())),
        d_query(in.query.rows(), in.query.cols()),
        d_key(in.key.rows(), in.key.cols()),
        d_value(in.value.rows(), in.value.cols()),
        d_bias(bias ? in.bias.rows() : 0, bias ? in.bias.cols() : 0),
        grad(zeros_like(layer)) {
    Workspace ws;
    typename A::Saved saved;
    layer.forward(in, AttentionOutput<T>{out}, saved, ws, executor);
    layer.backward(in, saved, AttentionOutputGradient<T>{d_out}, AttentionGradient<T>{d_query, d_key, d_value, d_bias},
                   grad, ws, executor);
  }

  [[nodiscard]] bool operator==(const Pass& other) const {
    bool same = same_bits(out.span(), other.out.span()) && same_bits(d_query.span(), other.d_query.span()) &&
                same_bits(d_key.span(), other.d_key.span()) && same_bits(d_value.span(), other.d_value.span()) &&
                same_bits(d_bias.span(), other.d_bias.span());
    for_each_parameter([&](std::string_view, auto a, auto b) { same = same && same_bits(a, b); }, grad, other.grad);
    return same;
  }
};

template <class T>
struct Data {
  Matrix<T> query, key, value, bias, d_out;
  Data(Rng& rng, Index m, Index n, Index dim, Index key_dim, Index value_dim, Index output_dim)
      : query(laws::Problem<T>::random(m, dim, rng, 1)),
        key(laws::Problem<T>::random(n, key_dim, rng, 1)),
        value(laws::Problem<T>::random(n, value_dim, rng, 1)),
        bias(laws::Problem<T>::random(m, n, rng, 1)),
        d_out(laws::Problem<T>::random(m, output_dim, rng, 1)) {}
  [[nodiscard]] AttentionInput<T> input() const { return {.query = query, .key = key, .value = value}; }
};

TEMPLATE_LIST_TEST_CASE("multi-head: is a loop over heads, bit for bit", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(221);
  Workspace ws;
  const Index m = 37, n = 90, H = 4;
  TestType layer({.dim = 24, .heads = H, .key_dim = 10, .value_dim = 7, .value_head_dim = 5}, rng);
  layer.set_alibi_slopes();
  CHECK(layer.heads[0].score.alibi_slope == T(0.25));
  CHECK(layer.heads[3].score.alibi_slope == T(1) / 256);
  const Data<T> data(rng, m, n, 24, 10, 7, 24);
  AttentionInput<T> in = data.input();
  in.mask.causal = true;
  in.bias = data.bias;

  Matrix<T> q(m, 24), k(n, 24), v(n, 20), concat(m, 20), expected(m, 24), out(m, 24);
  layer.query.forward(in.query, q, ws);
  layer.key.forward(in.key, k, ws);
  layer.value.forward(in.value, v, ws);
  for (Index h = 0; h < H; ++h) {
    const Matrix<T> head_q(q.view().cols(6 * h, 6)), head_k(k.view().cols(6 * h, 6)), head_v(v.view().cols(5 * h, 5));
    AttentionInput<T> head = in;
    head.query = head_q, head.key = head_k, head.value = head_v;
    layer.heads[std::size_t(h)].forward(head, AttentionOutput<T>{concat.view().cols(5 * h, 5)}, ws);
  }
  layer.output.forward(concat, expected, ws);
  layer.forward(in, AttentionOutput<T>{out}, ws);
  CHECK(same_bits(out.span(), expected.span()));
}

TEMPLATE_LIST_TEST_CASE("multi-head: heads of a group share keys and values", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(222);
  const MultiHeadConfig config{.dim = 24, .heads = 6, .kv_heads = 2};
  const TestType grouped(config, rng);
  TestType repeated({.dim = 24, .heads = 6}, rng);
  repeated.query = grouped.query;
  repeated.output = grouped.output;
  for (Index h = 0; h < 6; ++h)
    for (Index r = 0; r < 4; ++r)
      for (Index c = 0; c < 24; ++c) {
        repeated.key.weight(4 * h + r, c) = grouped.key.weight(4 * (h / 3) + r, c);
        repeated.value.weight(4 * h + r, c) = grouped.value.weight(4 * (h / 3) + r, c);
      }
  const Data<T> data(rng, 20, 30, 24, 24, 24, 24);
  const Pass<TestType> one(grouped, data.input(), data.d_out, false), other(repeated, data.input(), data.d_out, false);
  CHECK(same_bits(one.out.span(), other.out.span()));
  CHECK(same_bits(one.d_query.span(), other.d_query.span()));
  const double rounding = 100 * double(std::numeric_limits<T>::epsilon());
  CHECK(support::max_error(one.d_key.span(), other.d_key.span()) < rounding);
  CHECK(support::max_error(one.d_value.span(), other.d_value.span()) < rounding);
  for (Index r = 0; r < 8; ++r)
    for (Index c = 0; c < 24; ++c) {
      T key = 0, value = 0;
      for (Index h = r / 4 * 3; h < r / 4 * 3 + 3; ++h) {
        key += other.grad.key.weight(4 * h + r % 4, c);
        value += other.grad.value.weight(4 * h + r % 4, c);
      }
      REQUIRE(support::near(double(one.grad.key.weight(r, c)), double(key), {.relative = 0, .absolute = rounding}));
      REQUIRE(support::near(double(one.grad.value.weight(r, c)), double(value), {.relative = 0, .absolute = rounding}));
    }
}

TEMPLATE_LIST_TEST_CASE("multi-head: the number of threads changes no bit", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(223);
  TestType layer({.dim = 24, .heads = 6, .kv_heads = 3, .key_dim = 9, .value_dim = 11}, rng);
  const Data<T> data(rng, 300, 530, 24, 9, 11, 24);  // more than a block of rows in every weight's sum
  AttentionInput<T> in = data.input();
  in.mask.causal = true;
  in.bias = data.bias;
  ThreadPool pool(3);
  for (const bool bias : {false, true}) {
    const Pass<TestType> serial(layer, in, data.d_out, bias);
    CHECK(serial == Pass<TestType>(layer, in, data.d_out, bias, support::Alternating{}));
    CHECK(serial == Pass<TestType>(layer, in, data.d_out, bias, pool));
  }
  Workspace ws;
  Matrix<T> one(300, 24), two(300, 24);
  layer.forward(in, AttentionOutput<T>{one}, ws);
  layer.forward(in, AttentionOutput<T>{two}, ws, pool);
  CHECK(same_bits(one.span(), two.span()));
}

TEMPLATE_LIST_TEST_CASE("multi-head: appended keys are keys, bit for bit", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(224);
  Workspace ws;
  const Index n = 70;
  const TestType layer({.dim = 12, .heads = 4, .kv_heads = 2, .key_dim = 7, .value_dim = 9}, rng);
  const Data<T> data(rng, n, n, 12, 7, 9, 12);
  Matrix<T> whole(n, 12), row(1, 12);
  AttentionInput<T> in = data.input();
  in.mask.causal = true;
  layer.forward(in, AttentionOutput<T>{whole}, ws);

  typename TestType::Prepared prepared, picked;
  layer.prepare(in.key.rows(0, 0), in.value.rows(0, 0), prepared, ws);
  for (Index i = 0; i < n; ++i) {
    layer.append(in.key.rows(i, 1), in.value.rows(i, 1), prepared, ws);
    layer.forward(PreparedInput<T>{.query = in.query.rows(i, 1), .mask = in.mask}, prepared, AttentionOutput<T>{row},
                  ws);
    REQUIRE(same_bits(row.row(0), whole.row(i)));
  }
  CHECK(prepared.rows() == n);

  layer.prepare(in.key.rows(0, 5), in.value.rows(0, 5), prepared, ws);
  const Index ids[] = {4, 1, 1};
  picked.select(prepared, ids);
  Matrix<T> key(3, 7), value(3, 9), expected(1, 12);
  for (Index j = 0; j < 3; ++j) {
    std::ranges::copy(in.key.row(ids[j]), key.row(j).begin());
    std::ranges::copy(in.value.row(ids[j]), value.row(j).begin());
  }
  layer.forward(AttentionInput<T>{.query = in.query.rows(0, 1), .key = key, .value = value},
                AttentionOutput<T>{expected}, ws);
  const auto decode = [&] {
    layer.forward(PreparedInput<T>{.query = in.query.rows(0, 1)}, picked, AttentionOutput<T>{row}, ws);
  };
  decode();
  CHECK(same_bits(row.span(), expected.span()));
  CHECK(support::allocations_in(decode) == 0);
}

TEMPLATE_LIST_TEST_CASE("multi-head: what is hidden does not reach the gradients of weights", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(225);
  const TestType layer({.dim = 8, .heads = 2}, rng);
  Data<T> clean(rng, 6, 9, 8, 8, 8, 8);
  for (T& x : clean.query.row(0)) x = 0;
  for (Index j = 7; j < 9; ++j)
    for (Index c = 0; c < 8; ++c) clean.key(j, c) = clean.value(j, c) = 0;
  Data<T> poisoned = clean;
  for (T& x : poisoned.query.row(0)) x = std::numeric_limits<T>::quiet_NaN();
  for (T& x : poisoned.d_out.row(0)) x = std::numeric_limits<T>::infinity();
  for (Index j = 7; j < 9; ++j)
    for (Index c = 0; c < 8; ++c) poisoned.key(j, c) = poisoned.value(j, c) = std::numeric_limits<T>::quiet_NaN();
  Matrix<std::uint8_t> allowed(6, 9, 1);
  for (auto& byte : allowed.row(0)) byte = 0;
  const auto pass = [&](const Data<T>& data) {
    AttentionInput<T> in = data.input();
    in.mask.key_length = 7;
    in.mask.allowed = allowed;
    return Pass<TestType>(layer, in, data.d_out, false);
  };
  const Pass<TestType> expected = pass(clean);
  CHECK(expected == pass(poisoned));
  for (const T x : expected.out.row(0)) CHECK(x == 0);

  // Hidden by the bias alone.
  clean.bias = Matrix<T>(1, 9);
  for (T& x : clean.bias.span()) x = -std::numeric_limits<T>::infinity();
  AttentionInput<T> in = clean.input();
  in.bias = clean.bias;
  const Pass<TestType> blind(layer, in, clean.d_out, false);
  for (const T x : blind.out.span()) CHECK(x == 0);
  for (const T x : blind.grad.output.bias) CHECK(x == 0);
}

TEMPLATE_LIST_TEST_CASE("multi-head: heads that are 0 by chance do not make a query blind", "[attention]", Backends) {
  using T = ScalarOf<TestType>;
  Rng rng(226);
  TestType layer({.dim = 8, .heads = 2}, rng);
  for (T& w : layer.value.weight.span()) w = 0;
  for (T& b : layer.output.bias) b = T(rng.normal());
  const Data<T> data(rng, 3, 5, 8, 8, 8, 8);
  const Pass<TestType> pass(layer, data.input(), data.d_out, false);
  for (Index i = 0; i < 3; ++i) CHECK(same_bits(pass.out.row(i), layer.output.bias.span()));
  for (Index c = 0; c < 8; ++c)
    CHECK(pass.grad.output.bias[c] == data.d_out(0, c) + data.d_out(1, c) + data.d_out(2, c));
}

TEST_CASE("multi-head: heads drop weights of their own, the same for any executor", "[attention]") {
  using A = MultiHead<Flash<double>>;
  Rng rng(230);
  Workspace ws;
  A layer({.dim = 8, .heads = 2, .kv_heads = 1, .output = false}, rng, Flash<double>(DotScore<double>(), {}, 0.5));
  for (Index r = 0; r < 4; ++r) std::ranges::copy(layer.query.weight.row(r), layer.query.weight.row(4 + r).begin());
  const Data<double> data(rng, 5, 9, 8, 8, 8, 8);
  A::Saved saved;
  Matrix<double> one(5, 8), again(5, 8), d_key(9, 8);
  const auto run = [&](std::uint64_t seed, Matrix<double>& out, const Matrix<double>& key, auto&& executor) {
    saved.rng = Rng(seed);
    AttentionInput<double> in = data.input();
    in.key = key;
    layer.forward(in, AttentionOutput<double>{out}, saved, ws, executor);
  };
  run(1, one, data.key, Serial{});
  run(1, again, data.key, support::Alternating{});
  CHECK(same_bits(one.span(), again.span()));
  CHECK(!same_bits(Matrix<double>(one.view().cols(0, 4)).span(), Matrix<double>(one.view().cols(4, 4)).span()));
  layer.forward(data.input(), AttentionOutput<double>{again}, saved, ws);
  CHECK(!same_bits(one.span(), again.span()));  // the next pass drops others

  run(1, one, data.key, Serial{});
  A grad = zeros_like(layer);
  layer.backward(data.input(), saved, AttentionOutputGradient<double>{data.d_out},
                 AttentionGradient<double>{.query = {}, .key = d_key, .value = {}}, grad, ws);
  Matrix<double> moved = data.key;
  const auto loss = [&](std::span<const double> x) {
    std::ranges::copy(x, moved.span().begin());
    run(1, again, moved, Serial{});
    double sum = 0;
    for (Index i = 0; i < 5; ++i) sum += simd::dot<double>(again.row(i), data.d_out.row(i));
    return sum;
  };
  const auto check = train::check_gradient(loss, data.key.span(), d_key.span());
  INFO(to_string(check));
  CHECK(check.passed);
}

TEST_CASE("multi-head: self-attention adds its gradients up in one matrix", "[attention]") {
  Rng rng(227);
  Workspace ws;
  const MultiHead<Flash<double>> layer({.dim = 8, .heads = 2}, rng);
  const Data<double> data(rng, 11, 11, 8, 8, 8, 8);
  const AttentionInput<double> in{.query = data.query, .key = data.query, .value = data.query};
  const Pass<MultiHead<Flash<double>>> apart(layer, in, data.d_out, false);
  MultiHead<Flash<double>>::Saved saved;
  Matrix<double> out(11, 8), d_x(11, 8);
  auto grad = zeros_like(layer);
  layer.forward(in, AttentionOutput<double>{out}, saved, ws);
  layer.backward(in, saved, AttentionOutputGradient<double>{data.d_out}, AttentionGradient<double>{d_x, d_x, d_x}, grad,
                 ws);
  for (Index i = 0; i < 11; ++i)
    for (Index c = 0; c < 8; ++c)
      CHECK(
          support::near(d_x(i, c), apart.d_query(i, c) + apart.d_key(i, c) + apart.d_value(i, c), {.absolute = 1e-14}));
}

TEST_CASE("multi-head: one head hands out its log-sum-exp, and takes its gradient", "[attention]") {
  using A = MultiHead<Flash<double>>;
  Rng rng(228);
  Workspace ws;
  const A layer({.dim = 6}, rng);
  const Data<double> data(rng, 4, 7, 6, 6, 6, 6);
  const Vector<double> d_lse(4, 1);
  Vector<double> lse(4);
  Matrix<double> out(4, 6), zero(4, 6), d_query(4, 6);
  A::Saved saved;
  A grad = zeros_like(layer);
  layer.forward(data.input(), AttentionOutput<double>{.value = out, .log_sum_exp = lse}, saved, ws);
  layer.backward(data.input(), saved, {.value = zero, .log_sum_exp = d_lse},
                 AttentionGradient<double>{.query = d_query, .key = {}, .value = {}}, grad, ws);
  const auto loss = [&](std::span<const double> x) {
    AttentionInput<double> in = data.input();
    in.query = MatrixView<const double>(x.data(), 4, 6);
    layer.forward(in, AttentionOutput<double>{.value = {}, .log_sum_exp = lse}, ws);
    return lse[0] + lse[1] + lse[2] + lse[3];
  };
  const auto check = train::check_gradient(loss, data.query.span(), d_query.span());
  INFO(to_string(check));
  CHECK(check.passed);
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

TEST_CASE("multi-head: errors name what is wrong, before anything is written", "[attention]") {
  using A = MultiHead<Flash<float>>;
  Rng rng(229);
  Workspace ws;
  const auto error = [&](const MultiHeadConfig& config) { return message_of([&] { A layer(config, rng); }); };
  CHECK_THROWS_AS(A({.dim = 10, .heads = 4}, rng), ConfigError);
  CHECK(error({.dim = 10, .heads = 4}) == "MultiHead: dim: expected a multiple of 4, got 10");
  CHECK(error({.dim = 12, .heads = 4, .kv_heads = 3}) == "MultiHead: heads: expected a multiple of 3, got 4");
  CHECK(error({}) == "MultiHead: dim: expected >= 1, got 0");
  CHECK(error({.dim = 4, .heads = 0}) == "MultiHead: heads: expected >= 1, got 0");
  CHECK(error({.dim = 4, .key_dim = -1}) == "MultiHead: key_dim: expected >= 1, got -1");
  CHECK(error({.dim = 10, .heads = 4, .head_dim = 3, .value_head_dim = 2}) == "");

  const A layer({.dim = 12, .heads = 4, .key_dim = 5}, rng);
  const Data<float> data(rng, 3, 6, 12, 5, 12, 12);
  Matrix<float> out(3, 12, 7), narrow(3, 11);
  Vector<float> lse(3);
  const auto call = [&](auto change) {
    AttentionInput<float> in = data.input();
    AttentionOutput<float> to{out};
    change(in, to);
    const std::string message = message_of([&] { layer.forward(in, to, ws); });
    for (const float x : out.span()) CHECK(x == 7);
    return message;
  };
  CHECK(call([&](auto& in, auto&) { in.query = narrow; }) == "MultiHead: columns of query: expected 12, got 11");
  CHECK(call([&](auto& in, auto&) { in.key = in.value; }) == "MultiHead: columns of key: expected 5, got 12");
  CHECK(call([&](auto& in, auto&) { in.value = in.value.rows(0, 5); }) ==
        "attention: rows of value: expected 6, got 5");
  CHECK(call([&](auto&, auto& to) { to.value = narrow; }) == "attention: output value: expected 12, got 11");
  CHECK(call([&](auto&, auto& to) { to.log_sum_exp = lse; }) ==
        "MultiHead: heads, for a log_sum_exp: expected 1, got 4");

  A::Prepared prepared;
  CHECK(message_of([&] { layer.append(data.key, data.value, prepared, ws); }) ==
        "MultiHead: columns of prepared keys: expected 12, got 0");
  layer.prepare(data.key, data.value, prepared, ws);
  CHECK(message_of([&] { layer.append(data.key, data.key, prepared, ws); }) ==
        "MultiHead: columns of value: expected 12, got 5");
  CHECK(prepared.rows() == 6);

  A::Saved saved;
  A grad = zeros_like(layer);
  CHECK(message_of([&] {
          layer.backward(data.input(), saved, {.value = data.d_out}, {.query = {}, .key = {}, .value = {}}, grad, ws);
        }) == "MultiHead: saved query: expected 3, got 0");
}

TEST_CASE("multi-head: keys of another width go through the front door", "[attention]") {
  Rng rng(71);
  Workspace ws;
  const MultiHead<Flash<float>> backend({.dim = 6, .heads = 2, .key_dim = 4, .value_dim = 3}, rng);
  const Matrix<float> query(5, 6, 0.5F), key(7, 4, 0.25F), value(7, 3, 1.0F);
  Matrix<float> out(5, backend.output_dim(3)), direct = out;
  attend(backend, {.query = query, .key = key, .value = value}, {out}, ws);
  backend.forward({.query = query, .key = key, .value = value}, {direct}, ws);
  CHECK(support::same_bits(out.span(), direct.span()));
  CHECK_THROWS_AS(attend(backend, {.query = query, .key = query, .value = value}, {out}, ws), ShapeError);
  CHECK_THROWS_AS(attend(Flash<float>(), {.query = query, .key = key, .value = key}, {out}, ws), ShapeError);
}

}  // namespace
}  // namespace test_multi_head
