// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/io/atomic_file.hpp"
#include "ruvector/io/file.hpp"
#include "ruvector/io/safetensors.hpp"
#include "ruvector/train/state.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::io {

/// What can be saved and loaded: modules, and what names its memory in `checkpoint` (optimizers, schedules,
/// regularizers, train::FitState, your own struct of them).
template <class S>
concept Savable = Module<S> || train::Checkpointable<S>;

/// How much a checkpoint may be.
struct CheckpointConfig {
  Limits limits = {};      ///< of a file to be read
  bool allow_nan = false;  ///< else a NaN in any tensor is refused, in saving and in loading
};

namespace detail {

/// The type in the file of a number: float and double, bool, and the integers by their size and sign.
template <class T>
[[nodiscard]] constexpr Dtype dtype_of_number() {
  if constexpr (std::is_same_v<T, bool> || std::is_floating_point_v<T>) return dtype_of<T>();
  constexpr bool is_signed = std::is_signed_v<T>;
  if constexpr (sizeof(T) == 1) return is_signed ? Dtype::i8 : Dtype::u8;
  if constexpr (sizeof(T) == 2) return is_signed ? Dtype::i16 : Dtype::u16;
  if constexpr (sizeof(T) == 4) return is_signed ? Dtype::i32 : Dtype::u32;
  return is_signed ? Dtype::i64 : Dtype::u64;
}

/// Calls f(path, span, shape) for all tensors of a value.
template <class F, class S>
void for_each_tensor(F&& f, S& value) {
  train::detail::StateWalk<std::remove_reference_t<F>>(f).walk(value);
}

/// Copies the elements of a tensor of the type dtype_of_number<T>().
template <class T>
void copy_numbers(const SafetensorsTensor& tensor, std::span<T> values) {
  if constexpr (std::is_same_v<T, bool>)
    tensor.copy_to(values);  // a byte may be none
  else
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
}

/// Throws FormatError if there is a NaN.
template <class T>
void check_no_nan(std::string_view source, std::string_view path, std::span<const T> values) {
  if constexpr (std::is_floating_point_v<T>) {
    const auto nan = std::find_if(values.begin(), values.end(), [](T x) { return x != x; });
    if (nan != values.end())
      throw_format_error(
          source, "tensor '" + std::string(path) + "': element " + std::to_string(nan - values.begin()) + " is NaN");
  }
}

/// What a file lacks or has too much of, against what is expected: all of it, so that one look is enough.
class CheckpointDifference {
 public:
  template <class T>
  void expect(const SafetensorsContent& file, std::string_view path, std::span<const T> values,
              std::span<const Index> shape) {
    const SafetensorsTensor* const tensor = file.find(path);
    if (values.empty() && tensor == nullptr) return;
    ++expected_;
    if (tensor == nullptr) return add("'" + std::string(path) + "' is missing");
    ++found_;
    const std::string type(dtype_name(dtype_of_number<T>()));
    if (tensor->dtype != dtype_of_number<T>() || !std::ranges::equal(tensor->shape, shape))
      add("'" + std::string(path) + "': expected " + type + ' ' + shape_text(shape) + ", got " +
          std::string(dtype_name(tensor->dtype)) + ' ' + shape_text(tensor->shape));
  }
  /// Throws FormatError unless the file has what was expected, and nothing else.
  template <class Expected>
  void check(std::string_view source, const SafetensorsContent& file, const Expected& is_expected) {
    if (Index(file.tensors.size()) > found_)
      for (const SafetensorsTensor& tensor : file.tensors)
        if (!is_expected(tensor.name)) add("'" + tensor.name + "' is not expected");
    if (problems_ > most_listed) text_ += "; and " + std::to_string(problems_ - most_listed) + " more";
    if (problems_ > 0)
      throw_format_error(source, "expected " + std::to_string(expected_) + " tensors, got " +
                                     std::to_string(file.tensors.size()) + ": " + text_);
  }

 private:
  void add(const std::string& problem) {
    if (problems_++ < most_listed) text_ += (text_.empty() ? "" : "; ") + problem;
  }

  static constexpr Index most_listed = 10;
  std::string text_;
  Index expected_ = 0, found_ = 0, problems_ = 0;
};

}  // namespace detail

/// Saves a module, or all that a training remembers, as a safetensors file: all or nothing, durable, with a checksum
/// (write_safetensors). The names of the tensors are their paths, "layers.0.attention.query.weight" of a module and
/// "optimizer.first_moment.…" before that, so a module's file is one that PyTorch reads; buffers are among them,
/// tensors without elements (a bias that is none) are not.
///
///     struct Training {
///       Model model;  train::Adam<Model> optimizer;  train::Ewc<Model> ewc;  Rng::State generator;  Index step;
///       template <class Visit, class Self> static void checkpoint(Visit&& visit, Self& self) {
///         visit("model", self.model); visit("optimizer", self.optimizer); …
///       }
///     };
///     io::save_checkpoint("run.safetensors", training);
///
/// Throws FormatError, before anything is written, for a NaN (unless allowed) and for a path that is there twice,
/// FileError. O(bytes).
template <Savable S>
void save_checkpoint(const std::string& path, const S& value, const CheckpointConfig& config = {},
                     const SafetensorsMetadata& metadata = {}) {
  std::vector<SafetensorsTensor> tensors;
  detail::for_each_tensor(
      [&]<class T>(std::string_view name, std::span<const T> values, const auto& shape) {
        if (values.empty()) return;
        if (!config.allow_nan) detail::check_no_nan(path, name, values);
        tensors.push_back(
            {std::string(name), detail::dtype_of_number<T>(), {shape.begin(), shape.end()}, std::as_bytes(values)});
      },
      value);
  write_safetensors(path, tensors, metadata);
}

/// Fills `value`, built with the options and shapes that the saved one had, from a file of save_checkpoint, or a
/// module from one that PyTorch has written with the same names. A training that goes on from it computes the same
/// bits as the one that was saved.
///
/// Strong guarantee: `value` is as it was before, if this throws FileError; FormatError for a file that
/// `read_safetensors` refuses, whose tensors are not exactly those of `value` in name, type and shape (the message
/// lists the differences), or which has a NaN (unless allowed); or std::bad_alloc. Takes memory for a second `value`.
template <Savable S>
  requires std::is_nothrow_move_assignable_v<S>
void load_checkpoint(const std::string& path, S& value, const CheckpointConfig& config = {}) {
  const SafetensorsFile file(path, config.limits);
  std::vector<std::string> names;
  detail::CheckpointDifference difference;
  detail::for_each_tensor(
      [&]<class T>(std::string_view name, std::span<const T> values, const auto& shape) {
        difference.expect<T>(file, name, values, shape);
        names.emplace_back(name);
      },
      std::as_const(value));
  std::sort(names.begin(), names.end());
  difference.check(path, file,
                   [&](const std::string& name) { return std::binary_search(names.begin(), names.end(), name); });

  S loaded = value;
  detail::for_each_tensor(
      [&]<class T>(std::string_view name, std::span<T> values, const auto&) {
        if (values.empty()) return;
        detail::copy_numbers(*file.find(name), values);
        if (!config.allow_nan) detail::check_no_nan(path, name, std::span<const T>(values));
      },
      loaded);
  value = std::move(loaded);
}

}  // namespace ruvector::inline RUVECTOR_ABI::io
