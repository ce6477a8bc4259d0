// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
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

/// What is saved as it is.
template <class T>
concept SavedNumber = Real<T> || std::same_as<T, Index> || std::same_as<T, std::uint64_t>;

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// Walks what a value remembers and hands it to f as spans of numbers.
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
  void walk(Value& value) {
    using Plain = std::remove_const_t<Value>;
    if constexpr (SavedNumber<Plain>)
      f_(path_.view(), std::span<Value>(&value, 1));
    else if constexpr (std::same_as<Plain, Rng::State>)
      f_(path_.view(), std::span(value.words.data(), value.words.size()));
    else if constexpr (is_optional<Plain>) {
      if (value) walk(*value);
    } else if constexpr (Checkpointable<Plain>)
      Plain::checkpoint(*this, value);
    else if constexpr (Module<Plain>)
      for_each_parameter(Tensors{*this}, value);
    else
      f_(path_.view(), value.span());
  }

 private:
  /// Puts the path of a module before those of its tensors.
  struct Tensors {
    StateWalk& walk;
    template <class T>
    void operator()(std::string_view path, std::span<T> tensor) const {
      const std::size_t size = walk.path_.size();
      walk.path_.append(path);
      walk.f_(walk.path_.view(), tensor);
      walk.path_.truncate(size);
    }
    template <class T>
    void buffer(std::string_view path, std::span<T> tensor) const {
      (*this)(path, tensor);
    }
  };

  F& f_;
  ruvector::detail::ParameterPath path_;
};

}  // namespace detail

/// Calls f(path, span) for all that a value remembers, in a fixed order: "optimizer.first_moment.weight" and a span of
/// float, double, Index or std::uint64_t (const, if the value is). Two values built alike have the same paths and
/// sizes, so writing the spans of one and reading them into the other makes it a copy. `path` is valid during the call.
template <class F, class S>
  requires Checkpointable<std::remove_const_t<S>>
void for_each_state(F&& f, S& value) {
  detail::StateWalk<std::remove_reference_t<F>> walk(f);
  walk.walk(value);
}

}  // namespace ruvector::inline RUVECTOR_ABI::train
