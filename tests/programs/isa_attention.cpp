// SPDX-License-Identifier: MIT

// Attention of one fixed problem, forward and backward, built for several targets: see isa_attention.cmake.
//
//   isa_attention                      prints every number, in float and in double
//   isa_attention targets              prints the targets that this machine's CPU can run
//   isa_attention compare FILE FILE... succeeds if what the targets printed agrees, a scalar one first
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/scaled_dot_product.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ruvector;
using namespace ruvector::attention;

constexpr Index queries = 30, keys = 140, width = 19, value_width = 13;

// The same numbers for any T, since they are drawn as float.
template <Real T>
Matrix<T> random(Index rows, Index cols, Rng& rng, float spread) {
  Matrix<T> matrix(rows, cols);
  for (T& x : matrix.span()) x = T(spread * rng.uniform(-1.0F, 1.0F));
  return matrix;
}

using Numbers = std::vector<std::pair<const char*, std::vector<double>>>;  // by name

template <class A>
Numbers train(const Mask& rules, float spread, std::uint64_t seed) {
  using T = ScalarOf<A>;
  Rng rng(seed);
  const Matrix<T> query = random<T>(queries, width, rng, spread), key = random<T>(keys, width, rng, spread),
                  value = random<T>(keys, value_width, rng, spread), bias = random<T>(queries, keys, rng, 1),
                  g = random<T>(queries, value_width, rng, 1), g_lse = random<T>(1, queries, rng, 1);
  Matrix<std::uint8_t> allowed(1, keys);
  for (std::uint8_t& byte : allowed.span()) byte = rng.below(3) != 0;
  AttentionInput<T> in{.query = query, .key = key, .value = value, .mask = rules};
  if (rules.window_right == 0) in.mask.allowed = allowed;
  if (rules.causal) in.bias = bias;
  Matrix<T> out(queries, value_width), d_query(queries, width), d_key(keys, width), d_value(keys, value_width);
  Vector<T> lse(queries);
  const A backend;
  typename A::Saved saved;
  A grad = zeros_like(backend);
  Workspace ws;
  backend.forward(in, {out, lse}, saved, ws);
  backend.backward(in, saved, {g, g_lse.row(0)}, {d_query, d_key, d_value}, grad, ws);
  Numbers numbers;
  const auto add = [&](const char* name, std::span<const T> x) {
    numbers.emplace_back(name, std::vector<double>(x.begin(), x.end()));
  };
  add("value", out.span());
  add("lse", lse.span());
  add("d_query", d_query.span());
  add("d_key", d_key.span());
  add("d_value", d_value.span());
  std::vector<T> d_parameters;
  for_each_parameter(
      [&](std::string_view, std::span<T> x) { d_parameters.insert(d_parameters.end(), x.begin(), x.end()); }, grad);
  add("d_parameters", d_parameters);  // the last
  return numbers;
}

template <template <class> class A>
void print(const char* backend, float spread) {
  const std::pair<const char*, Mask> masks[] = {{"none", {}},
                                                {"causal", {.causal = true}},
                                                {"window", {.window_left = 50, .window_right = 0, .global_keys = 3}},
                                                {"length", {.key_length = 77}}};
  // Of parameters there are a few numbers only: their errors are looked at over several problems together.
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    for (const auto& [name, mask] : masks) {
      const Numbers single = train<A<float>>(mask, spread, seed), truth = train<A<double>>(mask, spread, seed);
      for (std::size_t n = seed == 1 ? 0 : single.size() - 1; n < single.size(); ++n)
        for (std::size_t i = 0; i < single[n].second.size(); ++i)
          std::printf("%s/%s/%s %a %a\n", backend, n + 1 == single.size() ? "all" : name, single[n].first,
                      single[n].second[i], truth[n].second[i]);
    }
}

struct Columns {
  std::vector<double> single, truth;
};

std::map<std::string, Columns> read(const char* file) {
  std::map<std::string, Columns> all;
  std::ifstream in(file);
  std::string name, single, truth;
  while (in >> name >> single >> truth) {
    all[name].single.push_back(std::strtod(single.c_str(), nullptr));
    all[name].truth.push_back(std::strtod(truth.c_str(), nullptr));
  }
  return all;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double most = a.size() == b.size() && !a.empty() ? 0 : HUGE_VAL;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    if (const double x = std::fabs(a[i] - b[i]); a[i] != b[i] && !(x <= most)) most = std::isnan(x) ? HUGE_VAL : x;
  return most;
}

// Any two differ by no more than twice the error of the first, of plain loops without registers (promise P-24), plus
// two units in the last place of the largest number; in double a thousandth of that.
bool agree(const std::string& name, const Columns& plain, const Columns& a, const Columns& b) {
  double largest = 0;
  for (const double x : plain.truth)
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  const double bound = 2 * distance(plain.single, plain.truth) + 2 * 0x1p-23 * largest,
               apart = distance(a.single, b.single), truths = distance(a.truth, b.truth);
  if (apart <= bound && truths <= 1e-3 * bound) return true;
  std::fprintf(stderr, "%s: %g apart, in double %g, bound %g", name.c_str(), apart, truths, bound);
  return false;
}

int compare(int count, char** files) {
  std::vector<std::map<std::string, Columns>> runs;
  for (int i = 0; i < count; ++i) runs.push_back(read(files[i]));
  int failures = runs[0].empty() ? 1 : 0, compared = 0;
  for (int a = 0; a < count; ++a)
    for (int b = a + 1; b < count; ++b)
      for (const auto& [name, plain] : runs[0]) {
        ++compared;
        if (agree(name, plain, runs[std::size_t(a)][name], runs[std::size_t(b)][name])) continue;
        std::fprintf(stderr, " between %s and %s\n", files[a], files[b]);
        ++failures;
      }
  std::printf("%d comparisons, %d failed\n", compared, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 3 && std::strcmp(arguments[1], "compare") == 0) return compare(count - 2, arguments + 2);
  if (count > 1) {
    std::printf("scalar;sse2%s%s\n", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? ";avx2" : "",
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") ? ";avx512" : "");
    return 0;
  }
  print<Flash>("Flash", 2.0F);
  print<ScaledDotProduct>("ScaledDotProduct", 2.0F);
  print<HyperbolicFlash>("HyperbolicFlash", 0.3F);
  return 0;
}
