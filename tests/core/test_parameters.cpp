// SPDX-License-Identifier: MIT
#include <ruvector/core/parameters.hpp>

#include <map>
#include <string>

#include "support/catch.hpp"

namespace test_parameters {
namespace {

using namespace ruvector;

struct Circle {
  double radius = 1;
};

template <Real T>
struct Affine {
  using Scalar = T;
  Matrix<T> weight{2, 3};
  Vector<T> bias{2};
  T scale = T(1);
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight", self.weight...);
    visit("bias", self.bias...);
    visit("scale", self.scale...);
  }
};

template <Real T>
struct Model {
  using Scalar = T;
  Affine<T> encoder;
  std::vector<Affine<T>> experts{2};
  std::array<Vector<T>, 2> offsets{Vector<T>(1), Vector<T>(4)};
  std::tuple<T, Affine<T>> pair{};
  Matrix<T> omega{4, 4, T(7)};
  Circle circle{3};
  Matrix<T> points{5, 2};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("encoder", self.encoder...);
    visit("experts", self.experts...);
    visit("offsets", self.offsets...);
    visit("pair", self.pair...);
    visit.buffer("omega", self.omega...);
    visit.on(first_of(self...).circle, "points", self.points...);
  }
};

static_assert(Module<Affine<float>> && Module<Model<double>>);
static_assert(!Module<Matrix<float>> && !Module<int> && !Module<Circle>);

const std::map<std::string, Index> expected_sizes = {
    {"encoder.weight", 6},  {"encoder.bias", 2},    {"encoder.scale", 1},    {"experts.0.weight", 6},
    {"experts.0.bias", 2},  {"experts.0.scale", 1}, {"experts.1.weight", 6}, {"experts.1.bias", 2},
    {"experts.1.scale", 1}, {"offsets.0", 1},       {"offsets.1", 4},        {"pair.0", 1},
    {"pair.1.weight", 6},   {"pair.1.bias", 2},     {"pair.1.scale", 1},     {"points", 10}};

TEST_CASE("parameters: every learnable tensor is visited once, under its path, in a fixed order", "[core]") {
  Model<double> model;
  std::vector<std::string> order;
  std::map<std::string, Index> sizes;
  for_each_parameter(
      [&](std::string_view path, std::span<double> tensor) {
        order.emplace_back(path);
        CHECK(sizes.emplace(path, Index(tensor.size())).second);
      },
      model);
  CHECK(sizes == expected_sizes);
  CHECK(order.front() == "encoder.weight");
  CHECK(order.back() == "points");
  Index count = 0;
  for (const auto& [path, size] : expected_sizes) count += size;
  CHECK(parameter_count(model) == count);
}

TEST_CASE("parameters: several instances are walked in step, const ones too", "[core]") {
  Model<float> model;
  const Model<float> gradient = [] {
    Model<float> ones;
    for_each_parameter([](std::string_view, std::span<float> x) { std::fill(x.begin(), x.end(), 1.0f); }, ones);
    return ones;
  }();
  for_each_parameter(
      [](std::string_view, std::span<float> x, std::span<const float> g) {
        for (std::size_t i = 0; i < x.size(); ++i) x[i] -= 0.5f * g[i];
      },
      model, gradient);
  CHECK(model.encoder.weight(1, 2) == -0.5f);
  CHECK(model.experts[1].scale == 0.5f);
  CHECK(std::get<1>(model.pair).bias[1] == -0.5f);
  CHECK(model.points(4, 1) == -0.5f);
  CHECK(model.omega(0, 0) == 7.0f);
}

struct Recorder {
  std::vector<std::string> tensors, buffers, manifolds;
  double radius = 0;
  void operator()(std::string_view path, std::span<const double>) { tensors.emplace_back(path); }
  void buffer(std::string_view path, std::span<const double> tensor) {
    buffers.emplace_back(path);
    CHECK(tensor.size() == 16);
  }
  void on(const Circle& circle, std::string_view path, MatrixView<const double> points) {
    manifolds.emplace_back(path);
    radius = circle.radius;
    CHECK(points.rows() == 5);
  }
};

TEST_CASE("parameters: buffers and rows on a manifold reach a visitor that asks for them", "[core]") {
  const Model<double> model;
  Recorder recorder;
  for_each_parameter(recorder, model);
  CHECK(recorder.tensors.size() == expected_sizes.size() - 1);
  CHECK(recorder.buffers == std::vector<std::string>{"omega"});
  CHECK(recorder.manifolds == std::vector<std::string>{"points"});
  CHECK(recorder.radius == 3);
}

TEST_CASE("parameters: zeros_like clears what is learned and keeps buffers", "[core]") {
  Model<double> model;
  model.encoder.weight(0, 0) = 2;
  const Model<double> zeros = zeros_like(model);
  for_each_parameter(
      [](std::string_view, std::span<const double> x) {
        for (const double value : x) CHECK(value == 0);
      },
      zeros);
  CHECK(zeros.omega(3, 3) == 7);
  CHECK(model.encoder.weight(0, 0) == 2);
}

TEST_CASE("parameters: instances of other shapes are refused by path", "[core]") {
  Model<double> model;
  Model<double> other;
  other.experts[1].bias = Vector<double>(3);
  CHECK_THROWS_WITH(check_same_parameters(model, other), "experts.1.bias: expected 2, got 3");
  other = model;
  other.experts.resize(1);
  CHECK_THROWS_WITH(check_same_parameters(model, other), "experts: expected 2, got 1");
  other = model;
  other.points = Matrix<double>(2, 5);  // as many elements, another shape
  CHECK_THROWS_AS(check_same_parameters(model, other), ShapeError);
}

}  // namespace
}  // namespace test_parameters
