// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// Parameters without reflection. A module names its learnable tensors once,
//
//   template <class Visit, class... Self> static void parameters(Visit&& visit, Self&... self) {
//     visit("weight", self.weight...);                     // learned: Matrix, Vector, span, scalar, or module
//     visit.buffer("omega", self.omega...);                              // saved, but not learned
//     visit.on(first_of(self...).ball, "points", self.points...);        // rows that live on a manifold
//   }
//
// and everything else follows: its gradient, Adam's moments and EWC's Fisher information are modules of the same type,
// walked in step by `for_each_parameter`.

namespace ruvector::inline RUVECTOR_ABI {

namespace detail {

/// Accepts every form of visit and does nothing: what the concept Module tries a module with.
struct IgnoreParameters {
  template <class... Tensors>
  void operator()(std::string_view, Tensors&...) const {}
  template <class... Tensors>
  void buffer(std::string_view, Tensors&...) const {}
  template <class Manifold, class... Tensors>
  void on(const Manifold&, std::string_view, Tensors&...) const {}
};

}  // namespace detail

/// A value with learnable tensors, which it names in a fixed order in its static member `parameters`.
template <class M>
concept Module = std::copyable<M> && requires(M& m, detail::IgnoreParameters visit) {
  typename M::Scalar;                                 // what it computes in
  { M::parameters(visit, m) } -> std::same_as<void>;  // names every learnable tensor, once
};

/// The first of several instances: `first_of(self...)` in a `parameters` function.
template <class First, class... Rest>
[[nodiscard]] constexpr First& first_of(First& first, Rest&...) {
  return first;
}

namespace detail {

template <class T>
inline constexpr bool is_matrix = false;
template <class T>
inline constexpr bool is_matrix<Matrix<T>> = true;
template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<Vector<T>> = true;
template <class T>
inline constexpr bool is_span = false;
template <class T>
inline constexpr bool is_span<std::span<T>> = true;
template <class T>
inline constexpr bool is_list = false;
template <class T>
inline constexpr bool is_list<std::vector<T>> = true;
template <class T, std::size_t n>
inline constexpr bool is_list<std::array<T, n>> = true;
template <class T>
inline constexpr bool is_tuple = false;
template <class... T>
inline constexpr bool is_tuple<std::tuple<T...>> = true;

template <class T>
concept Tensor = is_matrix<std::remove_const_t<T>> || is_vector<std::remove_const_t<T>> ||
    is_span<std::remove_const_t<T>> || Real<std::remove_const_t<T>>;

/// "attention.query.weight" while it is being walked. A fixed buffer: walking the parameters allocates nothing.
class ParameterPath {
 public:
  [[nodiscard]] std::string_view view() const { return {text_.data(), size_}; }
  [[nodiscard]] std::size_t size() const { return size_; }
  void truncate(std::size_t size) { size_ = size; }
  void append(std::string_view name) {
    const std::size_t dot = size_ == 0 ? 0 : 1;
    if (size_ + dot + name.size() > text_.size()) [[unlikely]]
      throw_config_error("parameter path: characters in " + std::string(view()) + "." + std::string(name),
                         "at most " + std::to_string(text_.size()), double(size_ + dot + name.size()));
    if (dot == 1) text_[size_++] = '.';
    std::copy(name.begin(), name.end(), text_.begin() + std::ptrdiff_t(size_));
    size_ += name.size();
  }

 private:
  std::array<char, 256> text_;
  std::size_t size_ = 0;
};

template <class T>
[[nodiscard]] MatrixView<T> tensor_view(T& scalar) {
  return {&scalar, 1, 1};
}
template <class T>
[[nodiscard]] MatrixView<T> tensor_view(Matrix<T>& matrix) {
  return matrix;
}
template <class T>
[[nodiscard]] MatrixView<const T> tensor_view(const Matrix<T>& matrix) {
  return matrix;
}
template <class T>
[[nodiscard]] MatrixView<T> tensor_view(Vector<T>& vector) {
  return {vector.data(), 1, vector.size()};
}
template <class T>
[[nodiscard]] MatrixView<const T> tensor_view(const Vector<T>& vector) {
  return {vector.data(), 1, vector.size()};
}
template <class T>
[[nodiscard]] MatrixView<T> tensor_view(std::span<T>& span) {
  return {span.data(), 1, static_cast<Index>(span.size())};
}

/// Walks one or more instances of a module in step and hands their tensors to f.
template <class F>
class ParameterWalk {
 public:
  explicit ParameterWalk(F& f) : f_(f) {}

  template <class First, class... Rest>
  void operator()(std::string_view name, First& first, Rest&... rest) {
    enter(name, [&] { walk(first, rest...); });
  }

  template <class First, class... Rest>
  void buffer(std::string_view name, First& first, Rest&... rest) {
    if constexpr (requires { f_.buffer(name, span_of(first), span_of(rest)...); })
      enter(name, [&] { f_.buffer(path_.view(), span_of(first), span_of(rest)...); });
  }

  template <class Manifold, Tensor First, Tensor... Rest>
  void on(const Manifold& manifold, std::string_view name, First& first, Rest&... rest) {
    enter(name, [&] {
      (check_same_shape(first, rest), ...);
      if constexpr (requires { f_.on(manifold, name, tensor_view(first), tensor_view(rest)...); })
        f_.on(manifold, path_.view(), tensor_view(first), tensor_view(rest)...);
      else
        f_(path_.view(), span_of(first), span_of(rest)...);
    });
  }

 private:
  template <class Body>
  void enter(std::string_view name, Body&& body) {
    const std::size_t size = path_.size();
    path_.append(name);
    body();
    path_.truncate(size);
  }

  template <class First, class... Rest>
  void walk(First& first, Rest&... rest) {
    using Plain = std::remove_const_t<First>;
    if constexpr (Tensor<First>) {
      (check_same_shape(first, rest), ...);
      f_(path_.view(), span_of(first), span_of(rest)...);
    } else if constexpr (is_list<Plain>) {
      (check_shape(path_.view(), Index(first.size()), Index(rest.size())), ...);
      for (std::size_t i = 0; i < first.size(); ++i) enter_number(i, [&] { walk(first[i], rest[i]...); });
    } else if constexpr (is_tuple<Plain>) {
      walk_tuple(std::make_index_sequence<std::tuple_size_v<Plain>>{}, first, rest...);
    } else {
      static_assert(Module<Plain>,
                    "a parameter is a Matrix, Vector, span, scalar, Module, or a vector, array, tuple of them");
      Plain::parameters(*this, first, rest...);
    }
  }

  template <std::size_t... i, class... Tuples>
  void walk_tuple(std::index_sequence<i...>, Tuples&... tuples) {
    (walk_element<i>(tuples...), ...);
  }
  template <std::size_t i, class... Tuples>
  void walk_element(Tuples&... tuples) {
    enter_number(i, [&] { walk(std::get<i>(tuples)...); });
  }

  template <class Body>
  void enter_number(std::size_t i, Body&& body) {
    std::array<char, 24> digits;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), i).ptr;
    enter({digits.data(), static_cast<std::size_t>(end - digits.data())}, body);
  }

  template <class A, class B>
  void check_same_shape(A& a, B& b) const {
    check_shape(path_.view(), tensor_view(a).rows(), tensor_view(b).rows());
    check_shape(path_.view(), tensor_view(a).cols(), tensor_view(b).cols());
  }

  template <class T>
  [[nodiscard]] static auto span_of(T& tensor) {
    const auto view = tensor_view(tensor);
    return std::span(view.data(), static_cast<std::size_t>(view.size()));
  }

  F& f_;
  ParameterPath path_;
};

}  // namespace detail

/// Calls `f(path, span, other_spans...)` for every learnable tensor of a module and, in step, of others of its type:
/// its gradient, an optimizer's moments, a second model. `path` ("attention.query.weight") is valid during the call.
/// Two members of f are used where it has them: `f.on(manifold, path, view, other_views...)` for rows that live on a
/// manifold (otherwise they are tensors like the rest), `f.buffer(path, span, other_spans...)` for what is saved but
/// not learned (otherwise skipped). Throws ShapeError, before f sees the tensor, where the shapes differ. Allocates
/// nothing.
template <class F, class M, class... Others>
  requires(Module<std::remove_const_t<M>> && (std::same_as<std::remove_const_t<Others>, std::remove_const_t<M>> && ...))
void for_each_parameter(F&& f, M& module, Others&... others) {
  detail::ParameterWalk<std::remove_reference_t<F>> walk(f);
  std::remove_const_t<M>::parameters(walk, module, others...);
}

/// Throws ShapeError, naming the path, unless all parameters of the modules agree in shape.
template <class M, class... Others>
  requires Module<std::remove_const_t<M>>
void check_same_parameters(M& module, Others&... others) {
  for_each_parameter([](auto&&...) {}, module, others...);
}

/// A module of the same type and shapes whose learnable tensors are zero: the start of a gradient. Buffers are copied.
template <Module M>
[[nodiscard]] M zeros_like(const M& module) {
  M zeros = module;
  for_each_parameter([](std::string_view, auto tensor) { std::fill(tensor.begin(), tensor.end(), 0); }, zeros);
  return zeros;
}

/// The number of learnable scalars.
template <Module M>
[[nodiscard]] Index parameter_count(const M& module) {
  Index count = 0;
  for_each_parameter([&](std::string_view, auto tensor) { count += Index(tensor.size()); }, module);
  return count;
}

}  // namespace ruvector::inline RUVECTOR_ABI
