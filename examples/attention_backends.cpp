// SPDX-License-Identifier: MIT
#include <ruvector/attention/any_attention.hpp>
#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/dual_space.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/gat_v2.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/linear_attention.hpp>
#include <ruvector/attention/mixture_of_experts.hpp>
#include <ruvector/attention/multi_head.hpp>
#include <ruvector/attention/softmax_state.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/nn/feature_maps.hpp>

#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

// One problem, every backend; a cache of keys that grows; keys in shards.
namespace {

using namespace ruvector;

Matrix<float> random_matrix(Index rows, Index cols, Rng& rng) {
  Matrix<float> x(rows, cols);
  for (float& element : x.span()) element = 0.3F * rng.normal<float>();
  return x;
}

double norm(MatrixView<const float> x) {
  double square = 0;
  for (Index i = 0; i < x.rows(); ++i)
    for (const float element : x.row(i)) square += double(element) * double(element);
  return std::sqrt(square);
}

void every_backend(const Matrix<float>& query, const Matrix<float>& key, const Matrix<float>& value, Rng& rng) {
  const Index d = query.cols();
  std::vector<std::pair<const char*, attention::AnyAttention<float>>> backends;
  backends.emplace_back("flash", attention::Flash<float>());
  backends.emplace_back("hyperbolic", attention::make_hyperbolic<attention::HyperbolicFlash<float>>({.beta = 2}));
  backends.emplace_back("dual space", attention::make_dual_space<attention::DualSpaceFlash<float>>(
                                          {.euclidean_dim = d / 2, .euclidean_value_dim = d / 2}));
  backends.emplace_back("linear", attention::LinearAttention<nn::EluPlusOne<float>>());
  backends.emplace_back("4 heads", attention::MultiHead<attention::Flash<float>>({.dim = d, .heads = 4}, rng));
  backends.emplace_back("GATv2", attention::GatV2<float>({.source_dim = d, .heads = 4, .channels = d / 4}, rng));

  ThreadPool pool(2);
  Workspace workspace;
  for (const auto& [name, backend] : backends) {
    Matrix<float> out(query.rows(), backend.output_dim(value.cols()));
    attention::attend(backend, {.query = query, .key = key, .value = value}, {out}, pool, workspace);
    std::printf("%-10s |output| = %.4f\n", name, norm(out));
  }
}

// A decoder sees one query at a time; its keys are kept.
void decode(const Matrix<float>& query, const Matrix<float>& key, const Matrix<float>& value) {
  const attention::Flash<float> flash;
  attention::Flash<float>::Prepared cache;
  cache.clear(key.cols(), value.cols());
  Workspace workspace;
  Matrix<float> out(query.rows(), value.cols());
  for (Index i = 0; i < query.rows(); ++i) {
    flash.append(key.view().rows(i, 1), value.view().rows(i, 1), cache, workspace);
    flash.forward({.query = query.view().rows(i, 1)}, cache, {out.view().rows(i, 1)}, workspace);
  }
  std::printf("decoded    |output| = %.4f\n", norm(out));
}

// Keys in two places: states of shards that begin at multiples of 4096 merge into the softmax over all keys.
void shards(Rng& rng) {
  const Matrix<float> query = random_matrix(3, 16, rng), key = random_matrix(10000, 16, rng);
  const attention::Flash<float> flash;
  const attention::AttentionInput<float> in{.query = query, .key = key, .value = key};
  Workspace workspace;
  attention::SoftmaxState<float> here = flash.make_state(3, 16), there = flash.make_state(3, 16);
  flash.accumulate(in.key_rows(0, 8192), 0, here, workspace);
  flash.accumulate(in.key_rows(8192, 1808), 8192, there, workspace);
  here.merge(attention::SoftmaxState<float>::from_bytes(there.to_bytes()));
  Matrix<float> merged(3, 16), whole(3, 16);
  flash.finish(here, {merged}, workspace);
  flash.forward(in, {whole}, workspace);
  std::printf("shards     the same bits: %s\n", norm(merged) == norm(whole) ? "yes" : "no");
}

}  // namespace

int main() {
  Rng rng(7);
  const Matrix<float> query = random_matrix(1000, 32, rng), key = random_matrix(1000, 32, rng),
                      value = random_matrix(1000, 32, rng);
  every_backend(query, key, value, rng);
  decode(query, key, value);
  shards(rng);
}
