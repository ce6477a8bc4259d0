// SPDX-License-Identifier: MIT
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/io/checkpoint.hpp>
#include <ruvector/nn/feature_maps.hpp>
#include <ruvector/nn/gru_cell.hpp>
#include <ruvector/nn/layer_norm.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/ewc.hpp>
#include <ruvector/train/fit.hpp>
#include <ruvector/train/riemannian_adam.hpp>
#include <ruvector/train/riemannian_sgd.hpp>
#include <ruvector/train/schedule.hpp>
#include <ruvector/train/sgd.hpp>

#include "io/files.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ruvector_test_checkpoint {
namespace {

using namespace ruvector;
using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

// A bit of everything: nested modules, a list, a tuple, a number, a buffer, points on a manifold, a bias that is none.
template <Real T>
struct Net {
  using Scalar = T;
  std::vector<nn::Linear<T>> layers;
  nn::LayerNorm<T> norm;
  std::tuple<T, Vector<T>> pair{T(0.5), Vector<T>(3, T(2))};
  nn::FavorPlus<T> features;
  geometry::PoincareBall<T> ball{};
  Matrix<T> points;

  explicit Net(Rng rng, Index width = 4) : norm(nn::LayerNormConfig{.dim = width}), points(6, 2) {
    layers.emplace_back(nn::LinearConfig{.input = 3, .output = width}, rng);
    layers.emplace_back(nn::LinearConfig{.input = width, .output = 1, .bias = false}, rng);
    features = nn::FavorPlus<T>({.dim = 2, .features = 5}, rng);
    for (T& x : points.span()) x = rng.uniform(T(-0.3), T(0.3));
  }
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("layers", self.layers...);
    visit("norm", self.norm...);
    visit("pair", self.pair...);
    visit("features", self.features...);
    visit.on(first_of(self...).ball, "points", self.points...);
  }
};

// All that a training remembers: the model, an optimizer, two regularizers, a generator, numbers.
template <class O>
struct Training {
  using M = Net<typename O::Scalar>;
  M model;
  typename O::template Of<M> optimizer;
  train::Ewc<M> ewc{model};
  Rng::State generator;
  Index step = 0;
  bool warm = true;
  std::uint64_t seen = 1;

  explicit Training(std::uint64_t seed)
      : model(Rng(seed)), optimizer(O::make(model)), generator(Rng(seed + 1).state()) {}
  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("model", self.model);
    visit("optimizer", self.optimizer);
    visit("ewc", self.ewc);
    visit("generator", self.generator);
    visit("step", self.step);
    visit("warm", self.warm);
    visit("seen", self.seen);
  }

  // A gradient that depends on the model, the generator and the penalty; a new task half way.
  void run(Index until) {
    Rng rng(generator);
    for (; step < until; ++step) {
      M gradient = zeros_like(model);
      for_each_parameter(
          [&](std::string_view, auto g, auto x) {
            for (std::size_t i = 0; i < g.size(); ++i)
              g[i] = x[i] * typename O::Scalar(0.1) + typename O::Scalar(rng.normal());
          },
          gradient, std::as_const(model));
      ewc.add_gradient(model, gradient);
      if (step == 300) ewc.consolidate(squares(gradient), model);
      optimizer.step(model, gradient, 1 / (1 + 0.01 * double(step)));
      warm = step < 400;
      seen = seen * 3 + 1;
    }
    generator = rng.state();
  }
  static M squares(M x) {
    for_each_parameter(
        [](std::string_view, auto values) {
          for (auto& v : values) v *= v;
        },
        x);
    return x;
  }
};

template <Real T>
struct UseAdam {
  using Scalar = T;
  template <class M>
  using Of = train::Adam<M>;
  template <class M>
  static Of<M> make(const M& model) {
    return Of<M>(model, {.learning_rate = 0.01, .weight_decay = 0.1, .decoupled_weight_decay = true, .amsgrad = true});
  }
};
template <Real T>
struct UseSgd {
  using Scalar = T;
  template <class M>
  using Of = train::Sgd<M>;
  template <class M>
  static Of<M> make(const M& model) {
    return Of<M>(model, {.learning_rate = 0.01, .momentum = 0.9, .nesterov = true});
  }
};
template <Real T>
struct UseRiemannianAdam {
  using Scalar = T;
  template <class M>
  using Of = train::RiemannianAdam<M>;
  template <class M>
  static Of<M> make(const M& model) {
    return Of<M>(model, {.learning_rate = 0.01});
  }
};

template <class S>
std::string bits_of(const S& value) {
  std::string bits;
  io::detail::for_each_tensor(
      [&](std::string_view path, auto values, const auto&) {
        bits += path;
        bits.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
      },
      value);
  return bits;
}

TEMPLATE_TEST_CASE("checkpoint: a training goes on from a file with the same bits", "[io][checkpoint]", UseAdam<float>,
                   UseAdam<double>, UseSgd<float>, UseRiemannianAdam<float>, UseRiemannianAdam<double>) {
  const io_files::Directory directory;
  Training<TestType> training(1);
  training.run(500);
  io::save_checkpoint(directory / "x", training);
  Training<TestType> resumed(77);  // same options and shapes, another start
  REQUIRE(bits_of(resumed) != bits_of(training));
  io::load_checkpoint(directory / "x", resumed);
  CHECK(bits_of(resumed) == bits_of(training));
  CHECK(resumed.warm == false);
  CHECK(resumed.ewc.tasks() == 1);
  training.run(1000);
  resumed.run(1000);
  CHECK(bits_of(resumed) == bits_of(training));
}

TEST_CASE("checkpoint: fit goes on from the file that its hook wrote, with the same bits", "[io][checkpoint]") {
  const io_files::Directory directory;
  using M = nn::Linear<float>;
  const auto make = [](std::uint64_t seed) {
    Rng rng(seed);
    M model({.input = 8, .output = 1}, rng);
    train::Adam<M> adam(model, {.learning_rate = 0.01});
    return train::FitState(model, adam, rng, train::ReduceOnPlateau({.patience = 1}), train::Ewc<M>(model));
  };
  Matrix<float> x(250, 8);
  Rng data(3);
  for (float& value : x.span()) value = float(data.normal());
  const auto objective = [&](const M& model, std::span<const Index> samples, M& gradient, train::FitContext& context) {
    double loss = 0;
    for (const Index i : samples) {
      float error = model.bias[0] - x(i, 0) + 0.1f * float(context.rng.normal());
      for (Index j = 0; j < 8; ++j) error += model.weight(0, j) * x(i, j);
      for (Index j = 0; j < 8; ++j) gradient.weight(0, j) += error * x(i, j);
      gradient.bias[0] += error;
      loss += 0.5 * double(error) * double(error);
    }
    return train::LossSum{loss, double(samples.size())};
  };
  train::FitConfig config{.epochs = 20, .batch_size = 64, .micro_batch = 16};
  auto whole = make(1);
  fit(whole, 250, objective, config);

  auto first = make(1);
  train::FitHooks<decltype(first)> hooks;
  hooks.checkpoint = [&](const auto& state) { io::save_checkpoint(directory / "x", state); };
  config.checkpoint_every = 7;
  config.epochs = 11;
  fit(first, 250, objective, config, hooks);

  auto resumed = make(2);
  io::load_checkpoint(directory / "x", resumed);
  CHECK(resumed.steps == 42);
  config.epochs = 20;
  fit(resumed, 250, objective, config);
  CHECK(bits_of(resumed) == bits_of(whole));
}

TEST_CASE("checkpoint: names are the paths, shapes those of the tensors", "[io][checkpoint]") {
  const io_files::Directory directory;
  const Training<UseAdam<float>> training(1);
  io::save_checkpoint(directory / "model", training.model);
  io::save_checkpoint(directory / "all", training, {}, {{"note", "first"}});
  const io::SafetensorsFile model(directory / "model"), all(directory / "all");
  CHECK(all.metadata.find("note")->second == "first");
  const std::pair<const char*, std::vector<Index>> expected[] = {{"layers.0.weight", {4, 3}},
                                                                 {"layers.0.bias", {4}},
                                                                 {"layers.1.weight", {1, 4}},
                                                                 {"norm.gamma", {4}},
                                                                 {"norm.beta", {4}},
                                                                 {"pair.0", {}},
                                                                 {"pair.1", {3}},
                                                                 {"features.omega", {5, 2}},
                                                                 {"points", {6, 2}}};
  CHECK(model.tensors.size() == std::size(expected));  // layers.1.bias has no elements
  for (const auto& [name, shape] : expected)
    for (const auto& [file, prefix] :
         {std::pair(&model, ""), std::pair(&all, "model."), std::pair(&all, "optimizer.second_moment.")}) {
      CAPTURE(prefix, name);
      const io::SafetensorsTensor* tensor = file->find(prefix + std::string(name));
      REQUIRE(tensor != nullptr);
      CHECK(tensor->shape == shape);
      CHECK(tensor->dtype == io::Dtype::f32);
    }
  CHECK(all.find("step")->dtype == io::Dtype::i64);
  CHECK(all.find("generator")->dtype == io::Dtype::u64);
  CHECK(all.find("generator")->shape == std::vector<Index>{4});
  CHECK(all.find("warm")->dtype == io::Dtype::boolean);
  CHECK(all.find("optimizer.steps")->shape.empty());

  // Everything that for_each_parameter names is there.
  for_each_parameter(
      [&](std::string_view path, std::span<const float> values) {
        if (values.empty()) return;
        const io::SafetensorsTensor* tensor = model.find(path);
        REQUIRE(tensor != nullptr);
        CHECK(support::same_bits(tensor->values<float>(), values));
      },
      training.model);
}

struct TorchModel {
  using Scalar = float;
  nn::Linear<float> linear;
  nn::GruCell<float> cell;
  explicit TorchModel(Rng rng) : linear({.input = 5, .output = 4}, rng), cell({.input = 4, .hidden = 3}, rng) {}
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("linear", self.linear...);
    visit("cell", self.cell...);
  }
};

TEST_CASE("checkpoint: weights of PyTorch load, and compute what they compute there", "[io][checkpoint]") {
  TorchModel model{Rng(5)};
  io::load_checkpoint(RUVECTOR_TEST_DATA "/checkpoint_torch.safetensors", model);
  const io::SafetensorsFile data(RUVECTOR_TEST_DATA "/checkpoint_torch_io.safetensors");
  const auto x = data.find("x")->matrix<float>(), h = data.find("h")->matrix<float>();
  Matrix<float> y(6, 4), out(6, 3);
  Workspace ws;
  model.linear.forward(x, y, ws);
  model.cell.forward(y, h, out, ws);
  CHECK(support::first_far(out.span(), data.find("out")->values<float>(), {.relative = 1e-5, .absolute = 1e-6}) == -1);

  // What PyTorch's file has, ours has: as written by the same model, the tensors are the same.
  const io_files::Directory directory;
  io::save_checkpoint(directory / "x", model);
  const io::SafetensorsFile ours(directory / "x"), theirs(RUVECTOR_TEST_DATA "/checkpoint_torch.safetensors");
  REQUIRE(ours.tensors.size() == theirs.tensors.size());
  for (std::size_t i = 0; i < ours.tensors.size(); ++i) {
    CHECK(ours.tensors[i].name == theirs.tensors[i].name);
    CHECK(ours.tensors[i].shape == theirs.tensors[i].shape);
    CHECK(support::same_bits(ours.tensors[i].bytes, theirs.tensors[i].bytes));
  }
}

TEST_CASE("checkpoint: what does not fit is refused with all differences, and changes nothing", "[io][checkpoint]") {
  const io_files::Directory directory;
  const auto path = directory / "x";
  using Model = Net<float>;
  const Model wide(Rng(1), 5);
  Model model(Rng(2));
  const std::string before = bits_of(model);
  const auto check = [&](const std::string& message) {
    CHECK_THROWS_WITH(io::load_checkpoint(path, model), Contains(path + ": ") && Contains(message));
    CHECK_THROWS_AS(io::load_checkpoint(path, model), FormatError);
    CHECK(bits_of(model) == before);
  };
  io::save_checkpoint(path, wide);
  check(
      "expected 9 tensors, got 9: 'layers.0.weight': expected F32 [4, 3], got F32 [5, 3]; 'layers.0.bias': expected "
      "F32 "
      "[4], got F32 [5]; 'layers.1.weight': expected F32 [1, 4], got F32 [1, 5]; 'norm.gamma'");
  io::save_checkpoint(path, Net<double>(Rng(1)));
  check("'pair.0': expected F32 [], got F64 []");
  io::save_checkpoint(path, model.layers[0]);
  check("expected 9 tensors, got 2: 'layers.0.weight' is missing; 'layers.0.bias' is missing");
  check("; and 1 more");  // nine missing, two too many, ten shown
  Model more = model;
  more.layers[1].bias = Vector<float>(1);
  io::save_checkpoint(path, more);
  check("'layers.1.bias': expected F32 [0], got F32 [1]");
  std::swap(model, more);
  io::save_checkpoint(path, more);
  CHECK_THROWS_WITH(io::load_checkpoint(path, model),
                    Contains("expected 10 tensors, got 9: 'layers.1.bias' is missing"));
  std::swap(model, more);

  CHECK_THROWS_AS(io::load_checkpoint("/nowhere/x", model), io::FileError);
  io::save_checkpoint(path, Model(Rng(1)));
  CHECK_THROWS_AS(io::load_checkpoint(path, model, {.limits = {.max_items = 11}}), FormatError);
  CHECK_THROWS_AS(io::load_checkpoint(path, model, {.limits = {.max_bytes = 100}}), FormatError);
  CHECK(bits_of(model) == before);

  // Every damaged bit is found.
  io_files::Bytes bytes = io_files::read(path);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); bit += 37) {
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    io_files::write(path, bytes);
    CHECK_THROWS_AS(io::load_checkpoint(path, model), FormatError);
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
  }
  CHECK(bits_of(model) == before);
}

TEST_CASE("checkpoint: a NaN is refused in saving and in loading, unless it is allowed", "[io][checkpoint]") {
  const io_files::Directory directory;
  const auto path = directory / "x";
  Rng rng(1);
  nn::Linear<double> model({.input = 3, .output = 2}, rng), other = model;
  io::save_checkpoint(path, model);
  const auto good = io_files::read(path);
  model.weight(1, 0) = std::numeric_limits<double>::quiet_NaN();
  model.weight(0, 0) = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(io::save_checkpoint(path, model), Equals(path + ": tensor 'weight': element 3 is NaN"));
  CHECK((io_files::read(path) == good));  // the last good one is still there
  io::save_checkpoint(path, model, {.allow_nan = true});
  const std::string before = bits_of(other);
  CHECK_THROWS_WITH(io::load_checkpoint(path, other), Equals(path + ": tensor 'weight': element 3 is NaN"));
  CHECK(bits_of(other) == before);
  io::load_checkpoint(path, other, {.allow_nan = true});
  CHECK(bits_of(other) == bits_of(model));
}

TEST_CASE("checkpoint: a byte that is no bool is true", "[io][checkpoint]") {
  const io_files::Directory directory;
  Training<UseSgd<float>> training(1);
  io::save_checkpoint(directory / "x", training);
  const io::SafetensorsFile file(directory / "x");
  std::vector<io::SafetensorsTensor> tensors = file.tensors;
  const std::byte two[] = {std::byte(2)};
  for (io::SafetensorsTensor& tensor : tensors)
    if (tensor.name == "warm") tensor.bytes = two;
  io::write_safetensors(directory / "x", tensors);
  training.warm = false;
  io::load_checkpoint(directory / "x", training);
  CHECK(training.warm);
}

struct Twins {
  using Scalar = float;
  Vector<float> a{2}, b{2};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("same", self.a...);
    visit("same", self.b...);
  }
};

TEST_CASE("checkpoint: a path that is there twice is refused", "[io][checkpoint]") {
  const io_files::Directory directory;
  CHECK_THROWS_WITH(io::save_checkpoint(directory / "x", Twins()), Contains("tensor 'same' is there twice"));
  CHECK(directory.files() == 0);
}

TEST_CASE("checkpoint: any allocation of saving and loading may fail", "[io][checkpoint]") {
  const io_files::Directory directory(io_files::Directory::in_memory);
  const auto path = directory / "x";
  Training<UseAdam<float>> training(1), other(2);
  io::save_checkpoint(path, training);
  const auto old = io_files::read(path);
  training.run(3);
  io::save_checkpoint(directory / "y", training);
  const auto complete = io_files::read(directory / "y");
  bool saved = false;
  const auto saving = support::fail_each_allocation(
      [&] {
        io::save_checkpoint(path, training);
        saved = true;
      },
      [&] {
        CHECK((io_files::read(path) == (saved ? complete : old)));
        CHECK(directory.files() == 2);
      });
  CHECK((io_files::read(path) == complete));

  const std::string before = bits_of(other);
  const Training<UseAdam<float>> untouched = other;
  const auto loading = support::fail_each_allocation(
      [&] {
        Training<UseAdam<float>> into = untouched;
        io::load_checkpoint(path, into);
        std::swap(into, other);
      },
      [&] { CHECK((bits_of(other) == before || bits_of(other) == bits_of(training))); });
  CHECK(bits_of(other) == bits_of(training));
  INFO("allocations that failed: " << saving << " in saving, " << loading << " in loading");
  if (support::allocations_counted()) CHECK((saving > 10 && loading > 10));
}

}  // namespace
}  // namespace ruvector_test_checkpoint
