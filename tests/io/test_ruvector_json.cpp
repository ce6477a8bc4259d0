// SPDX-License-Identifier: MIT
#include <ruvector/io/ruvector_json.hpp>

#include "io/files.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ruvector_test_ruvector_json {
namespace {

using namespace ruvector;
using Catch::Matchers::Contains;
using Layer = gnn::RuvectorLayer<float>;

// The layers that the package has written, and what it computes with them (tests/golden/make_ruvector_v1.mjs).
const nlohmann::json& golden() {
  static const nlohmann::json file = [] {
    const auto bytes = io_files::read(RUVECTOR_TEST_DATA "/ruvector_v1.json");
    return nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data()),
                                 reinterpret_cast<const char*>(bytes.data()) + bytes.size());
  }();
  return file;
}

std::string text_of(std::size_t layer) {
  return golden()["layers"][layer]["json"].get<std::string>();
}

bool same(const Layer& a, const Layer& b) {
  bool same = a.dropout == b.dropout && a.norm.epsilon == b.norm.epsilon;
  for_each_parameter([&](std::string_view, auto x, auto y) { same = same && support::same_bits(x, y); }, a, b);
  return same;
}

TEST_CASE("ruvector_json: layers of @ruvector/gnn load and compute what they compute there", "[io][ruvector_json]") {
  const auto& layers = golden()["layers"];
  REQUIRE(layers.size() == 20);
  Workspace ws;
  for (const auto& item : layers) {
    const auto layer = io::parse_ruvector_json<float>(item["json"].get<std::string>());
    const Index input = item["input"], hidden = item["hidden"];
    CAPTURE(input, hidden);
    CHECK(layer.input_dim() == input);
    CHECK(Index(layer.attention.heads.size()) == item["heads"].get<Index>());
    CHECK(layer.dropout == item["dropout"].get<double>());
    for (const auto& c : item["cases"]) {
      const auto node = c["node"].get<std::vector<float>>(), weights = c["edge_weights"].get<std::vector<float>>();
      Matrix<float> neighbors(Index(c["neighbors"].size()), input);
      for (Index i = 0; i < neighbors.rows(); ++i)
        for (Index j = 0; j < input; ++j) neighbors(i, j) = c["neighbors"][std::size_t(i)][std::size_t(j)];
      Vector<float> out(hidden);
      layer.forward(node, neighbors, weights, out.span(), ws);
      CHECK(support::max_error(out.span(), c["output"].get<std::vector<float>>()) <= 1e-5);
    }
  }
}

TEMPLATE_TEST_CASE("ruvector_json: a round trip keeps every number", "[io][ruvector_json]", float, double) {
  using T = TestType;
  const io_files::Directory directory;
  for (std::size_t i = 0; i < 20; ++i) {
    CAPTURE(i);
    const std::string text = text_of(i);
    const auto layer = io::parse_ruvector_json<T>(text);
    const std::string ours = io::to_ruvector_json(layer);
    CHECK(io::to_ruvector_json(io::parse_ruvector_json<T>(ours)) == ours);
    // As JSON it is the same document.
    const auto theirs = nlohmann::json::parse(text).flatten(), flat = nlohmann::json::parse(ours).flatten();
    CHECK(flat.size() == theirs.size());
    double worst = 0;
    for (const auto& [path, value] : flat.items())
      worst = std::max(worst, std::abs(value.template get<double>() - theirs.at(path).template get<double>()));
    CHECK(worst <= 1e-6);

    io::write_ruvector_json(directory / "x", layer);
    const auto read = io::read_ruvector_json<T>(directory / "x");
    CHECK(io::to_ruvector_json(read) == ours);
  }
}

TEST_CASE("ruvector_json: numbers of every size, in any locale", "[io][ruvector_json]") {
  const io_files::GroupedLocale locale;
  Rng rng(1);
  Layer layer({.input = 3, .hidden = 2, .heads = 1, .dropout = 0.25}, rng);
  const float values[] = {1e-45f, 3.4028235e38f, -0.0f, 1234567.9f, 0.1f, -1e-7f};
  std::copy(std::begin(values), std::end(values), layer.message.weight.data());
  const std::string text = io::to_ruvector_json(layer);
  CHECK_THAT(text, Contains("[2,3]") && Contains("1234567.9"));
  const Layer read = io::parse_ruvector_json<float>(text);
  CHECK(same(read, layer));
  layer.norm.beta[1] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(io::to_ruvector_json(layer), FormatError);
  layer.norm.beta[1] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(io::to_ruvector_json(layer), FormatError);
}

TEST_CASE("ruvector_json: a layer that version 1 cannot be is not written", "[io][ruvector_json]") {
  Rng rng(1);
  const Layer layer({.input = 3, .hidden = 2}, rng);
  Layer other = layer;
  other.cell.update = nn::GruUpdate::keep;
  CHECK_THROWS_AS(io::to_ruvector_json(other), ConfigError);
  other = layer;
  other.cell.reset = nn::GruReset::after_product;
  CHECK_THROWS_AS(io::to_ruvector_json(other), ConfigError);
  other = layer;
  other.message.bias = Vector<float>();
  CHECK_THROWS_AS(io::to_ruvector_json(other), ShapeError);
  other = layer;
  other.norm.beta = Vector<float>(3);
  CHECK_THROWS_AS(io::to_ruvector_json(other), ShapeError);
}

// The text of a small layer with one replacement.
std::string with(const std::string& from, const std::string& to) {
  std::string text = text_of(2);  // [1×1]
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST_CASE("ruvector_json: malformed layers are refused, and the message says what is wrong", "[io][ruvector_json]") {
  CHECK(io::parse_ruvector_json<float>(text_of(2)).input_dim() == 1);
  const std::string weights = R"("weights":{"v":1,"dim":[1,1],"data":[)";
  const std::pair<std::string, std::string> cases[] = {
      {"", "expected '{'"},
      {"[]", "expected '{'"},
      {"{}", "w_msg.weights.v is missing"},
      {text_of(2) + "x", "expected '}'"},
      {with("\"w_msg\"", "\"w_message\""), "'w_message' is not expected"},
      {with("\"w_msg\"", "\"w_agg\""), "w_agg is there twice"},
      {with("\"w_msg\"", "\"w\""), "'w' is not expected"},
      {with("\"w_msg\"", "\"\""), "'' is not expected"},
      {with("\"dropout\":0.0", "\"dropout\":1.5"), "dropout: expected 0 to 1"},
      {with("\"dropout\":0.0", "\"dropout\":-0.5"), "dropout: expected 0 to 1"},
      {with("\"dropout\":0.0", "\"dropout\":\"0\""), "dropout: a string is not expected"},
      {with("\"dropout\":0.0", "\"dropout\":null"), "null is not expected"},
      {with("\"dropout\":0.0", "\"dropout\":[0]"), "dropout: an array is not expected"},
      {with("\"dropout\":0.0", "\"dropout\":{}"), "dropout is missing"},
      {with("\"dropout\":0.0", "\"dropout\":0,\"dropout\":0"), "dropout is there twice"},
      {with("\"num_heads\":1", "\"num_heads\":0"), "expected num_heads * head_dim = 1"},
      {with("\"num_heads\":1", "\"num_heads\":2"), "expected num_heads * head_dim = 1"},
      {with("\"num_heads\":1", "\"num_heads\":1.5"), "attention.num_heads: expected whole numbers"},
      {with("\"num_heads\":1", "\"num_heads\":1e300"), "attention.num_heads: expected whole numbers"},
      {with("\"head_dim\":1", "\"head_dim\":2"), "expected num_heads * head_dim = 1"},
      {with("\"eps\":0.00001", "\"eps\":0"), "norm.eps: expected more than 0"},
      {with("\"eps\":0.00001", "\"eps\":-1e-5"), "norm.eps: expected more than 0"},
      {with("\"v\":1", "\"v\":2"), "w_msg.weights.v: expected 1"},
      {with("\"v\":1,", ""), "w_msg.weights.v is missing"},
      {with("\"dim\":[1,1]", "\"dim\":[1]"), "w_msg.weights.dim: expected 2 sizes, got 1"},
      {with("\"dim\":[1,1]", "\"dim\":1"), "w_msg.weights.dim: a number is not expected"},
      {with("\"dim\":[1,1]", "\"dim\":[[1],1]"), "w_msg.weights.dim: an array is not expected"},
      {with("\"dim\":[1,1]", "\"dim\":[{},1]"), "w_msg.weights.dim: an object is not expected"},
      {with("\"dim\":[1,1]", "\"dim\":[0,0]"), "w_msg.weights.data: expected as many numbers as dim says, got 1"},
      {with("\"dim\":[1,1]", "\"dim\":[-1,-1]"), "w_msg.weights.dim: expected whole numbers >= 0"},
      {with("\"dim\":[1,1]", "\"dim\":[4294967296,4294967296]"), "expected as many numbers as dim says"},
      {with("\"dim\":[1,1]", "\"dim\":[18446744073709551615,1]"), "expected whole numbers >= 0"},
      {with("\"dim\":[1,1],\"data\":[", "\"dim\":[2,1],\"data\":[0,"), "expected num_heads * head_dim = 2"},
      {with(weights, R"("weights":{"v":1,"dim":[1,2],"data":[0,)"), ""},
      {with("\"w_agg\":{" + weights, "\"w_agg\":{\"weights\":{\"v\":1,\"dim\":[1,2],\"data\":[0,"),
       "w_agg.weights.dim: expected [1, 1]"},
      {with("\"gamma\":{\"v\":1,\"dim\":[1],\"data\":[", "\"gamma\":{\"v\":1,\"dim\":[2],\"data\":[0,"),
       "norm.gamma.dim: expected [1]"},
      {with("\"data\":[", "\"data\":[1e39,"), "expected as many numbers as dim says, got 2"},
      {with("\"data\":[", "\"data\":[1e400,"), "malformed JSON"},
      {with("\"data\":[", "\"data\":[NaN,"), "malformed JSON"},
      {with("\"data\":[", "\"data\":[[[[[["), "an array is not expected"},
      {std::string(100, '{') + "}", "malformed JSON"},
  };
  for (const auto& [text, message] : cases) {
    if (message.empty()) {
      CHECK(io::parse_ruvector_json<float>(text).input_dim() == 2);  // an input of two columns is fine
      continue;
    }
    CAPTURE(text.substr(0, 300));
    CHECK_THROWS_WITH(io::parse_ruvector_json<float>(text, {}, "x.json"), Contains("x.json: ") && Contains(message));
    CHECK_THROWS_AS(io::parse_ruvector_json<float>(text), FormatError);
  }
  // In range for double, not for float.
  std::string huge = text_of(2);
  const std::size_t first = huge.find("\"data\":[") + 8;
  huge.replace(first, huge.find(']', first) - first, "1e39");
  CHECK_THROWS_WITH(io::parse_ruvector_json<float>(huge), Contains("w_msg.weights: a number is out of range"));
  CHECK(io::parse_ruvector_json<double>(huge).message.weight(0, 0) == 1e39);

  CHECK_THROWS_AS(io::parse_ruvector_json<float>(text_of(0), {.max_items = 63}), FormatError);
  CHECK_NOTHROW(io::parse_ruvector_json<float>(text_of(0), {.max_items = 64}));
  CHECK_THROWS_AS(io::parse_ruvector_json<float>(text_of(0), {.max_bytes = 100}), FormatError);
  CHECK_THROWS_AS(io::read_ruvector_json<float>("/nowhere/x"), io::FileError);
}

TEST_CASE("ruvector_json: no truncation, bit flip or mutation crashes", "[io][ruvector_json]") {
  const std::string good = text_of(2);
  const auto attempt = [](const std::string& text) {
    try {
      const Layer layer = io::parse_ruvector_json<float>(text);
      REQUIRE(std::size_t(parameter_count(layer)) <= text.size());
    } catch (const FormatError&) {
    }
  };
  for (std::size_t n = 0; n < good.size(); ++n)
    CHECK_THROWS_AS(io::parse_ruvector_json<float>(good.substr(0, n)), FormatError);
  for (std::size_t bit = 0; bit < 8 * good.size(); bit += 7) {
    std::string flipped = good;
    flipped[bit / 8] = char(flipped[bit / 8] ^ 1 << bit % 8);
    attempt(flipped);
  }
  const unsigned seed = 3;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int trial = 0; trial < 1000; ++trial) {
    std::string mutant = good;
    const std::size_t at = random() % good.size(), from = random() % good.size();
    mutant.insert(at, good.substr(from, random() % 80));
    if (trial % 2 == 0) mutant.erase(random() % mutant.size(), random() % 40);
    attempt(mutant);
  }
}

TEST_CASE("ruvector_json: any allocation may fail, and memory is bounded by the text", "[io][ruvector_json]") {
  const std::string text = text_of(0);
  const Layer expected = io::parse_ruvector_json<float>(text);
  bool right = false;
  const auto points =
      support::fail_each_allocation([&] { right = same(io::parse_ruvector_json<float>(text), expected); }, [] {});
  CHECK(right);
  INFO("allocations that failed: " << points);
  if (!support::allocations_counted()) return;
  CHECK(points > 100);
  // A text that claims much and has little: refused before memory is taken.
  const std::string claim = with("\"dim\":[1,1]", "\"dim\":[1000000,1000000]");
  const auto peak = support::peak_bytes_in([&] {
    try {
      (void)io::parse_ruvector_json<float>(claim);
    } catch (const FormatError&) {
    }
  });
  CHECK(peak < 100000);
}

}  // namespace
}  // namespace ruvector_test_ruvector_json
