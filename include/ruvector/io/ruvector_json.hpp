// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/gnn/ruvector_layer.hpp"
#include "ruvector/io/atomic_file.hpp"
#include "ruvector/io/file.hpp"
#include "ruvector/io/json.hpp"
#include "ruvector/io/mapped_file.hpp"
#include "ruvector/nn/gru_cell.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The layer of version 1 as the Node package @ruvector/gnn writes it with toJson() and reads it with fromJson():
//
//   {"w_msg":{"weights":{"v":1,"dim":[hidden,input],"data":[…]},"bias":{"v":1,"dim":[hidden],"data":[…]}},"w_agg":…,
//    "w_update":{"w_z":…,"u_z":…,"w_r":…,"u_r":…,"w_h":…,"u_h":…},
//    "attention":{"num_heads":2,"head_dim":4,"q_linear":…,"k_linear":…,"v_linear":…,"out_linear":…},
//    "norm":{"gamma":…,"beta":…,"eps":0.00001},"dropout":0.1}

namespace ruvector::inline RUVECTOR_ABI::io {

namespace detail {

// A tensor of the file and its place in a layer: `count` rows or elements from `first` on, of a matrix or a vector.
// f(name, matrix part) for weights, f(name, vector part) for the rest; in the file's order.
template <class Layer, class F>
void for_each_ruvector_tensor(Layer& layer, F&& f) {
  const auto linear = [&](const std::string& name, auto& weight, auto& bias, Index part, Index parts) {
    const Index rows = weight.rows() / parts;
    f(name + ".weights", weight.view().rows(part * rows, rows));
    f(name + ".bias", bias.span().subspan(std::size_t(part * rows), std::size_t(rows)));
  };
  const auto whole = [&](const std::string& name, auto& l) { linear(name, l.weight, l.bias, 0, 1); };
  whole("w_msg", layer.message);
  whole("w_agg", layer.aggregate);
  auto& cell = layer.cell;  // its parts are r, z, n
  const std::pair<const char*, Index> gates[] = {{"z", 1}, {"r", 0}, {"h", 2}};
  for (const auto& [gate, part] : gates) {
    linear(std::string("w_update.w_") + gate, cell.weight_ih, cell.bias_ih, part, 3);
    linear(std::string("w_update.u_") + gate, cell.weight_hh, cell.bias_hh, part, 3);
  }
  whole("attention.q_linear", layer.attention.query);
  whole("attention.k_linear", layer.attention.key);
  whole("attention.v_linear", layer.attention.value);
  whole("attention.out_linear", layer.attention.output);
  f("norm.gamma", layer.norm.gamma.span());
  f("norm.beta", layer.norm.beta.span());
}

// Takes the JSON of a layer, event by event: lists of numbers by their path. What has no place is refused at once.
class RuvectorJson {
 public:
  RuvectorJson(std::string_view source, Limits limits) : source_(source), limits_(limits) {
    const auto tensor = [&](const std::string& name) {
      for (const char* part : {".v", ".dim", ".data"}) leaves_[name + part];
    };
    for (const char* linear :
         {"w_msg", "w_agg", "w_update.w_z", "w_update.u_z", "w_update.w_r", "w_update.u_r", "w_update.w_h",
          "w_update.u_h", "attention.q_linear", "attention.k_linear", "attention.v_linear", "attention.out_linear"}) {
      tensor(linear + std::string(".weights"));
      tensor(linear + std::string(".bias"));
    }
    for (const char* vector : {"norm.gamma", "norm.beta"}) tensor(vector);
    for (const char* scalar : {"attention.num_heads", "attention.head_dim", "norm.eps", "dropout"}) leaves_[scalar];
  }

  void open_object() {
    if (std::exchange(started_, true)) {
      if (in_list_) fail(path_ + ": an object is not expected");
      prefixes_.push_back(prefix_.size());
      prefix_ = path_ + '.';
      leaf_ = nullptr;
    }
  }
  void close_object() {
    if (prefixes_.empty()) return;  // the outermost
    prefix_.resize(prefixes_.back());
    prefixes_.pop_back();
  }
  void key(std::string& name) {
    path_ = prefix_ + name;
    const auto at = leaves_.lower_bound(path_);
    const bool is_leaf = at != leaves_.end() && at->first == path_;
    if (!is_leaf && (at == leaves_.end() || !at->first.starts_with(path_ + '.')))
      fail("'" + printable(path_) + "' is not expected");
    if (!seen_.insert(path_).second) fail(path_ + " is there twice");
    leaf_ = is_leaf ? &at->second : nullptr;
  }
  void open_array() {
    if (leaf_ == nullptr || in_list_ || !is_list()) fail(path_ + ": an array is not expected");
    in_list_ = true;
  }
  void close_array() { in_list_ = false; }
  void count(std::uint64_t value) { number(double(value)); }
  void number(double value) {
    if (leaf_ == nullptr || in_list_ != is_list()) fail(path_ + ": a number is not expected");
    if (Index(leaf_->size()) >= limits_.max_items)
      fail(path_ + ": expected at most " + std::to_string(limits_.max_items) + " numbers, got more");
    leaf_->push_back(value);
  }
  void text(std::string&) { fail(path_ + ": a string is not expected"); }

  // The number at a path.
  [[nodiscard]] double scalar(const std::string& path) const {
    const std::vector<double>& values = leaves_.find(path)->second;
    if (values.size() != 1) fail(path + " is missing");
    return values[0];
  }
  // The number at a path, if it is a size.
  [[nodiscard]] Index size(const std::string& path) const { return checked_integer(path, scalar(path)); }
  // The sizes [rows, cols] or [n] of a tensor, whose data are so many.
  [[nodiscard]] std::vector<Index> shape(const std::string& tensor, std::size_t dims) const {
    if (scalar(tensor + ".v") != 1) fail(tensor + ".v: expected 1");
    const std::vector<double>& dim = leaves_.find(tensor + ".dim")->second;
    if (dim.size() != dims)
      fail(tensor + ".dim: expected " + std::to_string(dims) + " sizes, got " + std::to_string(dim.size()));
    std::vector<Index> sizes;
    Index items = 1;
    bool overflow = false;
    for (const double size : dim) {
      sizes.push_back(checked_integer(tensor + ".dim", size));
      overflow = __builtin_mul_overflow(items, sizes.back(), &items) || overflow;
    }
    if (overflow || items != Index(data(tensor).size()))
      fail(tensor + ".data: expected as many numbers as dim says, got " + std::to_string(data(tensor).size()));
    return sizes;
  }
  [[nodiscard]] const std::vector<double>& data(const std::string& tensor) const {
    return leaves_.find(tensor + ".data")->second;
  }
  [[noreturn]] void fail(const std::string& what) const { throw_format_error(source_, "ruvector layer: " + what); }

 private:
  [[nodiscard]] bool is_list() const { return path_.ends_with(".dim") || path_.ends_with(".data"); }
  [[nodiscard]] Index checked_integer(const std::string& path, double value) const {
    if (!(value >= 0 && value <= 0x1p53 && value == std::floor(value))) fail(path + ": expected whole numbers >= 0");
    return static_cast<Index>(value);
  }
  [[nodiscard]] static std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 60));
    for (char& c : shown)
      if (c < ' ' || c > '~') c = '?';
    return shown;
  }

  std::string_view source_;
  Limits limits_;
  std::map<std::string, std::vector<double>, std::less<>> leaves_;  // all that there may be
  std::set<std::string, std::less<>> seen_;                         // keys
  std::string prefix_, path_;
  std::vector<std::size_t> prefixes_;  // lengths
  std::vector<double>* leaf_ = nullptr;
  bool started_ = false, in_list_ = false;
};

// x as a T. Throws FormatError if it is out of range, NaN and infinities among them.
template <Real T>
[[nodiscard]] T checked_real(const RuvectorJson& json, const std::string& path, double x) {
  constexpr T largest = std::numeric_limits<T>::max();
  // The shortest decimal of the largest float, 3.4028235e38, is larger than it, and rounds to it.
  constexpr double half_way = std::same_as<T, float> ? 0x1.ffffffp127 : double(largest);
  if (!(std::fabs(x) <= half_way)) json.fail(path + ": a number is out of range");
  if (std::fabs(x) > double(largest)) return x < 0 ? -largest : largest;
  return static_cast<T>(x);
}

// The shortest decimal that reads back as the same number; with a point, as "-0" would be the integer 0.
template <Real T>
void append_number(std::string& text, T x) {
  if (!std::isfinite(x)) throw_format_error("ruvector layer", "a number that is not finite cannot be written as JSON");
  char digits[32];
  const std::string_view shortest(digits, std::size_t(std::to_chars(digits, digits + sizeof digits, x).ptr - digits));
  text += shortest;
  if (shortest.find_first_of(".e") == std::string_view::npos) text += ".0";
}

}  // namespace detail

/// The layer that `@ruvector/gnn` has written with toJson(): all weights, the number of heads, ε and the dropout.
/// Checked in full before a layer is made: every tensor is there once, with as many numbers as its sizes say, and the
/// sizes fit together; nothing else is there. Throws FormatError saying what is wrong; `name` stands for the text in
/// it. O(bytes). Source: the package's version 0.1.25.
template <Real T>
[[nodiscard]] gnn::RuvectorLayer<T> parse_ruvector_json(std::string_view text, Limits limits = {},
                                                        std::string_view name = "ruvector_json") {
  check_file_size(name, Index(text.size()), limits);
  detail::RuvectorJson json(name, limits);
  constexpr int deepest = 5;
  detail::parse_json_object(name, text, 0, deepest, json);

  const std::vector<Index> message = json.shape("w_msg.weights", 2);
  const Index hidden = message[0], input = message[1], heads = json.size("attention.num_heads");
  if (hidden < 1 || input < 1) json.fail("w_msg.weights.dim: expected sizes >= 1");
  if (heads < 1 || heads > hidden || hidden % heads != 0 || json.size("attention.head_dim") != hidden / heads)
    json.fail("attention: expected num_heads * head_dim = " + std::to_string(hidden));
  const double dropout = json.scalar("dropout"), epsilon = json.scalar("norm.eps");
  if (!(dropout >= 0 && dropout <= 1)) json.fail("dropout: expected 0 to 1");
  if (!(epsilon > 0 && epsilon <= 1)) json.fail("norm.eps: expected more than 0, at most 1");
  // Before memory is taken for what the message's sizes ask for.
  for (const char* matrix :
       {"w_agg", "w_update.w_z", "w_update.u_z", "w_update.w_r", "w_update.u_r", "w_update.w_h", "w_update.u_h",
        "attention.q_linear", "attention.k_linear", "attention.v_linear", "attention.out_linear"}) {
    const std::string path = matrix + std::string(".weights");
    if (json.shape(path, 2) != std::vector<Index>{hidden, hidden})
      json.fail(path + ".dim: expected [" + std::to_string(hidden) + ", " + std::to_string(hidden) + "]");
  }

  Rng rng(0);
  gnn::RuvectorLayer<T> layer({.input = input, .hidden = hidden, .heads = heads, .dropout = dropout}, rng);
  layer.norm.epsilon = static_cast<T>(epsilon);
  detail::for_each_ruvector_tensor(layer, [&]<class View>(const std::string& path, const View& out) {
    const std::vector<double>& data = json.data(path);
    std::size_t k = 0;
    if constexpr (requires { out.rows(); }) {
      for (Index i = 0; i < out.rows(); ++i)
        for (T& x : out.row(i)) x = detail::checked_real<T>(json, path, data[k++]);
    } else {
      if (json.shape(path, 1)[0] != Index(out.size()))
        json.fail(path + ".dim: expected [" + std::to_string(out.size()) + "]");
      for (T& x : out) x = detail::checked_real<T>(json, path, data[k++]);
    }
  });
  return layer;
}

/// The layer in a file that holds what toJson() returns. Throws FileError, FormatError.
template <Real T>
[[nodiscard]] gnn::RuvectorLayer<T> read_ruvector_json(const std::string& path, Limits limits = {}) {
  const MappedFile file(path, limits);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  return parse_ruvector_json<T>(text, limits, path);
}

/// A layer as JSON that `@ruvector/gnn` reads with fromJson(). Numbers have the fewest digits that read back the same,
/// in any locale. Throws FormatError for a number that is not finite, ConfigError for a GRU of other conventions than
/// version 1's, ShapeError where the sizes do not fit together. O(weights).
template <Real T>
[[nodiscard]] std::string to_ruvector_json(const gnn::RuvectorLayer<T>& layer) {
  const Index input = layer.input_dim(), hidden = layer.output_dim(input), heads = Index(layer.attention.heads.size());
  if (layer.cell.update != nn::GruUpdate::replace || layer.cell.reset != nn::GruReset::before_product)
    throw_config_error("to_ruvector_json: the GRU's conventions", "those of version 1", 0);
  Rng rng(0);
  const gnn::RuvectorLayer<T> expected({.input = input, .hidden = hidden, .heads = heads, .dropout = layer.dropout},
                                       rng);
  check_same_parameters(expected, layer);

  std::map<std::string, std::string> tensors;
  detail::for_each_ruvector_tensor(layer, [&]<class View>(const std::string& path, const View& values) {
    std::string dim = std::to_string(hidden), data;
    const auto append = [&](std::span<const T> row) {
      for (const T x : row) {
        if (!data.empty()) data += ',';
        detail::append_number(data, x);
      }
    };
    if constexpr (requires { values.rows(); }) {
      dim += ',' + std::to_string(values.cols());
      for (Index i = 0; i < values.rows(); ++i) append(values.row(i));
    } else {
      append(values);
    }
    tensors[path] = "{\"v\":1,\"dim\":[" + dim + "],\"data\":[" + data + "]}";
  });
  const auto linear = [&](const std::string& path, const std::string& key) {
    return '"' + key + "\":{\"weights\":" + tensors[path + key + ".weights"] +
           ",\"bias\":" + tensors[path + key + ".bias"] + '}';
  };
  std::string text = '{' + linear("", "w_msg") + ',' + linear("", "w_agg") + ",\"w_update\":{";
  text += linear("w_update.", "w_z");
  for (const char* key : {"u_z", "w_r", "u_r", "w_h", "u_h"}) text += ',' + linear("w_update.", key);
  text += "},\"attention\":{\"num_heads\":" + std::to_string(heads) + ",\"head_dim\":" + std::to_string(hidden / heads);
  for (const char* key : {"q_linear", "k_linear", "v_linear", "out_linear"}) text += ',' + linear("attention.", key);
  text += "},\"norm\":{\"gamma\":" + tensors["norm.gamma"] + ",\"beta\":" + tensors["norm.beta"] + ",\"eps\":";
  detail::append_number(text, layer.norm.epsilon);
  text += "},\"dropout\":";
  detail::append_number(text, layer.dropout);
  return text + '}';
}

/// Saves what to_ruvector_json returns, all or nothing (AtomicFile). Throws what it throws, and FileError.
template <Real T>
void write_ruvector_json(const std::string& path, const gnn::RuvectorLayer<T>& layer) {
  const std::string text = to_ruvector_json(layer);
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace ruvector::inline RUVECTOR_ABI::io
