// SPDX-License-Identifier: MIT
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/io/npy.hpp>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <span>
#include <string>
#include <tuple>

#include "support/catch.hpp"
#include "support/near.hpp"

// Values and gradients of PyTorch, made by tests/golden/make_attention.py.

namespace test_golden_attention {
namespace {

using namespace ruvector;
using namespace ruvector::attention;

/// 1e-5 in float, 1e-10 in double, and where the numbers of an array are larger than 10, a tenth of that of the
/// largest: a small sum of large products is no more exact than they are.
template <class T>
support::Tolerance tolerance(std::span<const double> expected) {
  const double bound = sizeof(T) == 8 ? 1e-10 : 1e-5;
  double largest = 10;
  for (const double x : expected) largest = std::max(largest, std::fabs(x));
  return {.relative = bound, .absolute = bound * largest / 10};
}

/// The arrays of a case, one after the other.
class Case {
 public:
  explicit Case(const std::string& name)
      : name_(name),
        values_(io::read_npy_vector<double>(std::string(RUVECTOR_TEST_DATA) + "/attention_" + name + ".npy")) {}
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
  ~Case() { CHECK(at_ == values_.size()); }

  /// The next [rows×cols] numbers, as inputs.
  template <class T>
  [[nodiscard]] Matrix<T> next(Index rows, Index cols) {
    Matrix<T> matrix(rows, cols);
    std::ranges::transform(take(rows * cols), matrix.span().begin(), [](double x) { return T(x); });
    return matrix;
  }
  /// Compares the next numbers with what was computed.
  template <class T>
  void check(const char* what, std::span<const T> actual) {
    INFO(name_ << ": " << what);
    const std::span<const double> expected = take(Index(actual.size()));
    CHECK(support::first_far(actual, expected, tolerance<T>(expected)) == -1);
  }
  template <class T>
  void check(const char* what, const Matrix<T>& actual) {
    check(what, actual.span());
  }

 private:
  std::span<const double> take(Index count) {
    REQUIRE(at_ + count <= values_.size());
    at_ += count;
    return values_.span().subspan(std::size_t(at_ - count), std::size_t(count));
  }

  std::string name_;
  Vector<double> values_;
  Index at_ = 0;
};

using Engines = std::tuple<Flash<float>, Flash<double>, ScaledDotProduct<float>, ScaledDotProduct<double>>;

// --- nn.MultiheadAttention ---

/// Where its tensors stand in ours.
template <class T>
struct PyTorchTensors {
  Matrix<T> in, q, k, v, out;
  Vector<T> in_bias, out_bias;

  PyTorchTensors(Case& data, Index dim, Index key_dim, Index value_dim) {
    if (key_dim == dim) {
      in = data.next<T>(3 * dim, dim);
    } else {
      q = data.next<T>(dim, dim);
      k = data.next<T>(dim, key_dim);
      v = data.next<T>(dim, value_dim);
    }
    in_bias = Vector<T>(data.next<T>(1, 3 * dim).row(0));
    out = data.next<T>(dim, dim);
    out_bias = Vector<T>(data.next<T>(1, dim).row(0));
  }
  [[nodiscard]] PyTorchMultiHead<T> views() const {
    return {.in_proj_weight = in,
            .q_proj_weight = q,
            .k_proj_weight = k,
            .v_proj_weight = v,
            .in_proj_bias = in_bias,
            .out_proj_weight = out,
            .out_proj_bias = out_bias};
  }
};

/// Runs a case of the script's `multi_head`.
template <class Inner>
void check_multi_head(const std::string& name, Index m, Index key_dim, Index value_dim, const Mask& mask) {
  using T = ScalarOf<Inner>;
  constexpr Index n = 7, dim = 8;
  Case data("multi_head_" + name);
  const auto query = data.next<T>(m, dim), key = data.next<T>(n, key_dim), value = data.next<T>(n, value_dim),
             d_out = data.next<T>(m, dim);
  const PyTorchTensors<T> tensors(data, dim, key_dim, value_dim);
  const auto layer = MultiHead<Inner>::from_pytorch(tensors.views(), 2);
  const AttentionInput<T> in{.query = query, .key = key, .value = value, .mask = mask};

  Workspace ws;
  typename MultiHead<Inner>::Saved saved;
  auto grad = zeros_like(layer);
  Matrix<T> out(m, dim), weights(m, n), d_query(m, dim), d_key(n, key_dim), d_value(n, value_dim);
  layer.forward(in, AttentionOutput<T>{.value = out, .weights = weights}, saved, ws);
  layer.backward(in, saved, AttentionOutputGradient<T>{d_out}, AttentionGradient<T>{d_query, d_key, d_value}, grad, ws);
  data.check("output", out);
  data.check("weights", weights);
  data.check("gradient by query", d_query);
  data.check("gradient by key", d_key);
  data.check("gradient by value", d_value);
  data.check("gradient by W_q", grad.query.weight);
  data.check("gradient by W_k", grad.key.weight);
  data.check("gradient by W_v", grad.value.weight);
  for (const auto* linear : {&grad.query, &grad.key, &grad.value}) data.check<T>("gradient by a bias", linear->bias);
  data.check("gradient by W_o", grad.output.weight);
  data.check<T>("gradient by b_o", grad.output.bias);
}

TEMPLATE_LIST_TEST_CASE("golden attention: PyTorch's MultiheadAttention and its gradients", "[attention][golden]",
                        Engines) {
  check_multi_head<TestType>("plain", 5, 8, 8, {});
  check_multi_head<TestType>("causal", 7, 8, 8, {.causal = true});
  Matrix<std::uint8_t> allowed(1, 7, 1);
  for (const Index j : {1, 5, 6}) allowed(0, j) = 0;
  check_multi_head<TestType>("padding", 5, 8, 8, {.allowed = allowed});
  check_multi_head<TestType>("kdim_vdim", 5, 3, 5, {});
}

TEMPLATE_LIST_TEST_CASE("golden attention: grouped queries", "[attention][golden]", Engines) {
  using T = ScalarOf<TestType>;
  constexpr Index m = 5, n = 7, dim = 8;
  Case data("grouped");
  const auto query = data.next<T>(m, dim), key = data.next<T>(n, dim), value = data.next<T>(n, dim),
             d_out = data.next<T>(m, dim);
  Rng rng(0);
  MultiHead<TestType> layer({.dim = dim, .heads = 4, .kv_heads = 2, .bias = false}, rng);
  for (auto* linear : {&layer.query, &layer.key, &layer.value, &layer.output})
    linear->weight = data.next<T>(linear->weight.rows(), linear->weight.cols());
  const AttentionInput<T> in{.query = query, .key = key, .value = value};
  Workspace ws;
  typename MultiHead<TestType>::Saved saved;
  auto grad = zeros_like(layer);
  Matrix<T> out(m, dim), d_query(m, dim), d_key(n, dim), d_value(n, dim);
  layer.forward(in, AttentionOutput<T>{out}, saved, ws);
  layer.backward(in, saved, AttentionOutputGradient<T>{d_out}, AttentionGradient<T>{d_query, d_key, d_value}, grad, ws);
  data.check("output", out);
  data.check("gradient by query", d_query);
  data.check("gradient by key", d_key);
  data.check("gradient by value", d_value);
  for (const auto* linear : {&grad.query, &grad.key, &grad.value, &grad.output})
    data.check("gradient by a weight", linear->weight);
}

// --- Scaled dot product ---

/// Runs a case of the script's `scaled_dot_product`.
template <class Engine>
void check_scaled_dot_product(const std::string& name, Index m, Index n, const Mask& mask, Index bias_rows = 0,
                              const DotScoreConfig<ScalarOf<Engine>>& config = {}) {
  using T = ScalarOf<Engine>;
  constexpr Index d = 6, width = 5;
  Case data(name);
  const auto query = data.next<T>(m, d), key = data.next<T>(n, d), value = data.next<T>(n, width),
             bias = data.next<T>(bias_rows, bias_rows == 0 ? 0 : n), d_out = data.next<T>(m, width),
             d_lse = data.next<T>(1, m);
  const AttentionInput<T> in{.query = query, .key = key, .value = value, .mask = mask, .bias = bias};
  const Engine attention{DotScore<T>(config)};
  Workspace ws;
  typename Engine::Saved saved;
  Engine grad = zeros_like(attention);
  Matrix<T> out(m, width), d_query(m, d), d_key(n, d), d_value(n, width), d_bias(bias.rows(), bias.cols());
  Vector<T> lse(m);
  attention.forward(in, AttentionOutput<T>{.value = out, .log_sum_exp = lse}, saved, ws);
  attention.backward(in, saved, AttentionOutputGradient<T>{.value = d_out, .log_sum_exp = d_lse.row(0)},
                     AttentionGradient<T>{d_query, d_key, d_value, d_bias}, grad, ws);
  data.check("output", out);
  data.check<T>("log-sum-exp", lse);
  data.check("gradient by query", d_query);
  data.check("gradient by key", d_key);
  data.check("gradient by value", d_value);
  data.check("gradient by bias", d_bias);
  for_each_parameter([&](std::string_view, std::span<const T> x) { data.check("gradient by temperature", x); },
                     std::as_const(grad));
}

TEMPLATE_LIST_TEST_CASE("golden attention: masks, biases, caps and a log-sum-exp", "[attention][golden]", Engines) {
  using T = ScalarOf<TestType>;
  check_scaled_dot_product<TestType>("causal", 5, 9, {.causal = true});
  check_scaled_dot_product<TestType>("causal_short", 9, 5, {.causal = true});
  check_scaled_dot_product<TestType>("window", 6, 11, {.window_left = 2, .window_right = 1, .global_keys = 1});
  check_scaled_dot_product<TestType>("alibi", 4, 7, {}, 0, {.alibi_slope = T(0.25)});
  check_scaled_dot_product<TestType>("softcap", 5, 8, {.causal = true}, 0, {.softcap = 2, .temperature = T(0.7)});
  check_scaled_dot_product<TestType>("bias", 4, 6, {}, 4);
  check_scaled_dot_product<TestType>("bias_row", 4, 6, {.causal = true}, 1);
  Matrix<std::uint8_t> allowed(4, 6);
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 6; ++j) allowed(i, j) = (i + 2 + j) % 3 != 0 && i + 2 != 3;
  check_scaled_dot_product<TestType>("masked_row", 4, 6, {.allowed = allowed});
}

}  // namespace
}  // namespace test_golden_attention
