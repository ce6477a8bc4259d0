// SPDX-License-Identifier: MIT
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/train/adam.hpp>
#include <ruvector/train/riemannian_sgd.hpp>
#include <ruvector/train/sgd.hpp>
#include <ruvector/train/state.hpp>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector_test_state {
namespace {

using namespace ruvector;

// A module with a buffer.
struct Layer {
  using Scalar = float;
  Matrix<float> weight{2, 3};
  Vector<float> omega{4};
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("weight", self.weight...);
    visit.buffer("omega", self.omega...);
  }
};

// Everything that can be remembered.
struct Memory {
  Layer layer;
  Rng::State generator = Rng(5).state();
  Index steps = 3;
  std::uint64_t key = 4;
  double loss = 0.5;
  Vector<Index> tags{2};
  std::optional<Layer> some = Layer{}, none;
  train::Adam<Layer> adam{Layer{}};

  template <class Visit, class Self>
  static void checkpoint(Visit&& visit, Self& self) {
    visit("layer", self.layer);
    visit("generator", self.generator);
    visit("steps", self.steps);
    visit("key", self.key);
    visit("loss", self.loss);
    visit("tags", self.tags);
    visit("some", self.some);
    visit("none", self.none);
    visit("adam", self.adam);
  }
};

static_assert(train::Checkpointable<Memory>);
static_assert(!train::Checkpointable<Layer>);
static_assert(train::Checkpointable<train::Sgd<Layer>> && train::Checkpointable<train::RiemannianSgd>);

TEST_CASE("state: all that is remembered has a path and a size, in order", "[train][state]") {
  const Memory memory;
  std::vector<std::pair<std::string, std::size_t>> walked;
  train::for_each_state([&](std::string_view path, auto span) { walked.emplace_back(path, span.size_bytes()); },
                        memory);
  const std::vector<std::pair<std::string, std::size_t>> expected = {{"layer.weight", 24},
                                                                     {"layer.omega", 16},
                                                                     {"generator", 32},
                                                                     {"steps", 8},
                                                                     {"key", 8},
                                                                     {"loss", 8},
                                                                     {"tags", 16},
                                                                     {"some.weight", 24},
                                                                     {"some.omega", 16},
                                                                     {"adam.first_moment.weight", 24},
                                                                     {"adam.first_moment.omega", 16},
                                                                     {"adam.second_moment.weight", 24},
                                                                     {"adam.second_moment.omega", 16},
                                                                     {"adam.steps", 8}};
  CHECK(walked == expected);
}

TEST_CASE("state: a value is read through const spans and written through others", "[train][state]") {
  Memory memory;
  train::for_each_state(
      []<class T>(std::string_view path, std::span<T> span) {
        static_assert(!std::is_const_v<T>);
        if (path == "steps") span[0] = T(9);
        if (path == "layer.weight") span[5] = T(2);
      },
      memory);
  CHECK(memory.steps == 9);
  CHECK(memory.layer.weight(1, 2) == 2);
  train::for_each_state([]<class T>(std::string_view, std::span<T>) { static_assert(std::is_const_v<T>); },
                        std::as_const(memory));
}

TEST_CASE("state: the walk allocates nothing", "[train][state]") {
  const Memory memory;
  std::size_t size = 0;
  CHECK(support::allocations_in(
            [&] { train::for_each_state([&](std::string_view, auto span) { size += span.size(); }, memory); }) == 0);
  CHECK(size > 0);
}

}  // namespace
}  // namespace ruvector_test_state
