// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/io/npy.hpp>

#include "support/catch.hpp"
#include "support/near.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

// Golden data of layers: files of tensors one after the other, written in double by the scripts of tests/golden.
namespace golden {

using namespace ruvector;

/// Bound on the error of what PyTorch computed, relative to the largest number of a tensor or 1.
template <class T>
constexpr double bound = sizeof(T) == 4 ? 1e-5 : 1e-10;

/// Takes tensors from the front of a file.
class Tensors {
 public:
  explicit Tensors(const std::string& name)
      : numbers_(io::read_npy_vector<double>(std::string(RUVECTOR_TEST_DATA) + "/" + name + ".npy")) {}

  [[nodiscard]] std::span<const double> take(Index count) {
    next_ += count;
    return numbers_.span().subspan(std::size_t(next_ - count), std::size_t(count));
  }
  template <class T>
  [[nodiscard]] Matrix<T> matrix(Index rows, Index cols) {
    Matrix<T> to(rows, cols);
    read(to.span());
    return to;
  }
  template <class T>
  void read(std::span<T> to) {
    std::ranges::transform(take(Index(to.size())), to.begin(), [](double x) { return static_cast<T>(x); });
  }
  template <Module M>
  void read(M& module) {
    for_each_parameter([&](std::string_view, auto tensor) { read(tensor); }, module);
  }

  /// Checks that the next tensor is `actual`.
  template <class T>
  void check(std::string_view what, std::span<T> actual) {
    const auto expected = take(Index(actual.size()));
    double size = 1;
    for (const double x : expected) size = std::max(size, std::abs(x));
    INFO(what);
    CHECK(support::max_error(actual, expected) <= bound<std::remove_const_t<T>> * size);
  }
  /// The same for all parameters of a module.
  template <Module M>
  void check(const M& module) {
    for_each_parameter([&](std::string_view path, auto tensor) { check(path, tensor); }, module);
  }

  /// Nothing is left over.
  [[nodiscard]] bool finished() const { return next_ == numbers_.size(); }

 private:
  Vector<double> numbers_;
  Index next_ = 0;
};

}  // namespace golden
