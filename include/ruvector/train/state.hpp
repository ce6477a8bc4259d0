// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

// What training needs to go on, without reflection. Optimizers, schedules, regularizers and the state of fit() name
// what they remember once,
//
//   template <class Visit, class Self> static void checkpoint(Visit&& visit, Self& self) {
//     visit("first_moment", self.first_moment);            // a module: its parameters and buffers
//     visit("steps", self.steps);                          // a number, Matrix, Vector, Rng::State, or the like of this
//   }
//
// and whoever writes or reads checkpoints sees named spans of numbers, in a fixed order. Options are not among them:
// they come from the program, which builds the same objects and then fills them.

namespace ruvector::inline RUVECTOR_ABI::train {

/// A value that names what it remembers in its static member `checkpoint`.
template <class S>
concept Checkpointable = std::copyable<S> && requires(S& s, const S& saved, ruvector::detail::IgnoreParameters visit) {
  { S::checkpoint(visit, s) } -> std::same_as<void>;      // names all that a copy needs to go on with the same bits
  { S::checkpoint(visit, saved) } -> std::same_as<void>;  // the same for reading
};

namespace detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// Walks what a value remembers and hands it to f(path, span of numbers, shape). A visitor of both `parameters` and
/// `checkpoint`.
template <class F>
class StateWalk {
 public:
  explicit StateWalk(F& f) : f_(f) {}

  template <class Value>
  void operator()(std::string_view name, Value& value) {
    const std::size_t size = path_.size();
    path_.append(name);
    walk(value);
    path_.truncate(size);
  }
  template <class Value>
  void buffer(std::string_view name, Value& value) {
    (*this)(name, value);
  }
  template <class Manifold, class Value>
  void on(const Manifold&, std::string_view name, Value& value) {
    (*this)(name, value);
  }

  template <class Value>
  void walk(Value& value) {
    using Plain = std::remove_const_t<Value>;
    if constexpr (std::is_arithmetic_v<Plain>) {
      f_(path_.view(), std::span<Value>(&value, 1), std::array<Index, 0>{});
    } else if constexpr (std::is_same_v<Plain, Rng::State>) {
      f_(path_.view(), std::span(value.words.data(), value.words.size()), std::array{Index(value.words.size())});
    } else if constexpr (ruvector::detail::is_matrix<Plain>) {
      f_(path_.view(), value.span(), std::array{value.rows(), value.cols()});
    } else if constexpr (ruvector::detail::is_vector<Plain> || ruvector::detail::is_span<Plain>) {
      f_(path_.view(), std::span(value.data(), std::size_t(value.size())), std::array{Index(value.size())});
    } else if constexpr (is_optional<Plain>) {
      if (value) walk(*value);
    } else if constexpr (ruvector::detail::is_list<Plain>) {
      for (std::size_t i = 0; i < value.size(); ++i) (*this)(std::to_string(i), value[i]);
    } else if constexpr (ruvector::detail::is_tuple<Plain>) {
      std::apply([&, i = 0](auto&... values) mutable { ((*this)(std::to_string(i++), values), ...); }, value);
    } else if constexpr (Checkpointable<Plain>) {
      Plain::checkpoint(*this, value);
    } else {
      Plain::parameters(*this, value);
    }
  }

 private:
  F& f_;
  ruvector::detail::ParameterPath path_;
};

}  // namespace detail

/// Calls f(path, span) for all that a value remembers, in a fixed order: "optimizer.first_moment.weight" and a span of
/// float, double or integers (const, if the value is). Two values built alike have the same paths and
/// sizes, so writing the spans of one and reading them into the other makes it a copy. `path` is valid during the call.
template <class F, class S>
  requires Checkpointable<std::remove_const_t<S>>
void for_each_state(F&& f, S& value) {
  const auto without_shape = [&](std::string_view path, auto span, const auto&) { f(path, span); };
  detail::StateWalk<decltype(without_shape)>(without_shape).walk(value);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
