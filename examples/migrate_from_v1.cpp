// SPDX-License-Identifier: MIT
#include <ruvector/attention/any_attention.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/scores.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/gnn/ruvector_layer.hpp>
#include <ruvector/gnn/ruvector_layer_v2.hpp>
#include <ruvector/gnn/stack.hpp>
#include <ruvector/graph/csr_graph.hpp>
#include <ruvector/io/ruvector_json.hpp>
#include <ruvector/search/differentiable_search.hpp>
#include <ruvector/search/hierarchical.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/losses.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <utility>
#include <vector>

// From version 1 (ruvector-gnn, @ruvector/gnn) to this library: each old call, what it gives, the new one, and that
// what the README says about them is so.
namespace {

using namespace ruvector;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

Matrix<float> random_matrix(Index rows, Index cols, Rng& rng) {
  Matrix<float> x(rows, cols);
  for (float& element : x.span()) element = rng.normal<float>();
  return x;
}

// Layers that version 1 has written give what they gave there, and are written so that it reads them.
void the_same_layer(Rng& rng) {
  const gnn::RuvectorLayer<float> stored({.input = 4, .hidden = 8, .heads = 2, .dropout = 0.1}, rng);
  const std::string json = io::to_ruvector_json(stored);
  const Matrix<float> neighbors = random_matrix(3, 4, rng);
  const float node[] = {1, 2, 3, 4}, edge_weights[] = {0.5F, 1, 0.2F};
  const auto layer = io::parse_ruvector_json<float>(json);  // what toJson() returned
  Vector<float> out(8);
  Workspace workspace;  // scratch, reused from call to call
  layer.forward(node, neighbors, edge_weights, out, workspace);
  Vector<float> again(8);
  stored.forward(node, neighbors, edge_weights, again, workspace);
  for (Index i = 0; i < 8; ++i) expect(out[i] == again[i], "a layer reads back as it was written");
  std::printf("layer(4, 8, 2, 0.1) of JSON: %d characters, out[0] = %.4f\n", int(json.size()), double(out[0]));
}

// An exact match among 10,000 candidates.
void search_one_level(Rng& rng) {
  const Matrix<float> candidates = random_matrix(10000, 64, rng);
  const std::span<const float> query = candidates.row(1234);
  Workspace workspace;
  search::SearchResult<float> found;
  search::differentiable_search<float>(query, candidates, 5, 1.0F, found, workspace);
  std::printf("version 1: candidate %td first, weight %.5f\n", found.ids(0, 0), double(found.weights(0, 0)));
  expect(found.ids(0, 0) == 1234 && found.weights(0, 0) < 0.0003F, "version 1 finds it and hardly weighs it");

  const MatrixView<const float> queries(query.data(), 1, 64);
  const attention::Flash<float> logits(attention::DotScore<float>({.temperature = 0.1F}));  // q·k/(√d τ)
  search::differentiable_search_v2(logits, {.query = queries, .key = candidates, .k = 5}, found, workspace);
  std::printf("version 2: candidate %td first, score %.1f, weight %.5f; the five have %.5f of all\n", found.ids(0, 0),
              double(found.scores(0, 0)), double(found.weights(0, 0)), double(found.mass[0]));
  expect(found.ids(0, 0) == 1234 && found.weights(0, 0) > 0.99F, "version 2 gives it the weight");
}

// Two levels with layers that nobody has trained.
void search_levels(Rng& rng) {
  const Matrix<float> coarse = random_matrix(20, 8, rng), fine = random_matrix(500, 8, rng);
  const std::vector<MatrixView<const float>> levels = {coarse, fine};
  Workspace workspace;
  search::SearchResult<float> found;
  std::vector<float> out(8);
  const std::vector<gnn::RuvectorLayer<float>> layers(2, gnn::RuvectorLayer<float>({.input = 8, .hidden = 8}, rng));
  int kept = 0;
  for (Index i = 0; i < 200; ++i) {
    search::hierarchical_forward<float>(fine.row(i), levels, layers, out, found, workspace);
    search::differentiable_search<float>(out, fine, 1, 1.0F, found, workspace);
    kept += found.ids(0, 0) == i ? 1 : 0;
  }
  std::printf("version 1, untrained: %d of 200 queries are still nearest to themselves\n", kept);
  expect(kept <= 20, "untrained layers of version 1 destroy the query");
}

// Layers that can be trained, and are nothing until then.
void layers_that_learn(Rng& rng) {
  using Layer = gnn::RuvectorLayerV2<attention::AnyAttention<float>>;
  const graph::CsrGraph<> graph({0, 2, 4, 6, 8, 10, 12}, {1, 2, 0, 2, 0, 1, 4, 5, 3, 5, 3, 4});  // two triangles
  const Matrix<float> x = random_matrix(6, 8, rng), target = random_matrix(6, 8, rng);
  std::vector<Layer> layers;
  for (int l = 0; l < 2; ++l)
    layers.push_back(Layer::with_hyperbolic({.input = 8, .hidden = 8, .heads = 2, .skip = gnn::Skip::from_identity},
                                            {.curvature = 0.5}, rng));
  gnn::Stack<Layer> stack(std::move(layers));  // gives back its input until it is trained
  Workspace workspace;
  Matrix<float> y(6, 8);
  stack.forward(graph.view(), x, {}, y, workspace);
  for (Index i = 0; i < y.size(); ++i)
    expect(y.span()[std::size_t(i)] == x.span()[std::size_t(i)], "it is the identity");

  train::Adam adam(stack, {.learning_rate = 0.01});
  gnn::Stack<Layer>::Saved saved;
  double first = 0, last = 0;
  for (int step = 0; step < 200; ++step) {
    gnn::Stack<Layer> gradient = zeros_like(stack);
    Matrix<float> d_y(6, 8);
    stack.forward(graph.view(), x, {}, y, saved, workspace);
    last = train::mse<float>(y, target, d_y, {}, workspace).mean();
    if (step == 0) first = last;
    stack.backward(graph.view(), x, {}, saved, d_y, {}, {}, gradient, workspace);
    adam.step(stack, gradient);
  }
  std::printf("two hyperbolic layers learn: loss %.3f, then %.3f\n", first, last);
  expect(last < 0.5 * first, "layers learn");
}

// exp0 goes out and log0 comes back, to rounding; version 1's were no inverses.
void geometry_that_inverts() {
  const geometry::PoincareBall<double> ball(1.0);
  const double tangent[] = {0.3, -1.2, 2.0};
  double point[3], back[3];
  ball.exp0(tangent, point);
  ball.log0(point, back);
  double worst = 0;
  for (int i = 0; i < 3; ++i) worst = std::fmax(worst, std::abs(back[i] - tangent[i]));
  std::printf("log0(exp0(v)) misses v by %.0e\n", worst);
  expect(worst < 1e-14, "exp and log are inverses");
}

}  // namespace

int main() {
  Rng rng(1);
  the_same_layer(rng);
  search_one_level(rng);
  search_levels(rng);
  layers_that_learn(rng);
  geometry_that_inverts();
}
