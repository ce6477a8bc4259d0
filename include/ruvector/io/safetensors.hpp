// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/io/atomic_file.hpp"
#include "ruvector/io/file.hpp"
#include "ruvector/io/json.hpp"
#include "ruvector/io/mapped_file.hpp"
#include "ruvector/simd/convert.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

// safetensors, the file format of model weights: 8 bytes of length N, N bytes of JSON that name the tensors,
//
//   {"weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}, …, "__metadata__":{"key":"value"}}
//
// and the elements, little-endian, row by row, without a gap. PyTorch and JAX read and write it.

namespace ruvector::inline RUVECTOR_ABI::io {

static_assert(std::endian::native == std::endian::little, "tensors are read and written as they lie in memory");

/// The types of elements in a safetensors file. The 8-bit floats and complex numbers have no type in C++ here: their
/// bytes can be had, not their values.
enum class Dtype : std::uint8_t {
  boolean,  ///< BOOL, a byte of 0 or 1
  u8,       ///< U8
  i8,       ///< I8
  f8_e5m2,  ///< F8_E5M2
  f8_e4m3,  ///< F8_E4M3
  f8_e8m0,  ///< F8_E8M0
  i16,      ///< I16
  u16,      ///< U16
  f16,      ///< F16, IEEE binary16
  bf16,     ///< BF16, the upper half of a float
  i32,      ///< I32
  u32,      ///< U32
  f32,      ///< F32
  c64,      ///< C64, two floats
  f64,      ///< F64
  i64,      ///< I64
  u64,      ///< U64
};

/// The element types that tensors are read and written with.
template <class T>
concept SafetensorsElement = std::same_as<T, bool> || std::same_as<T, std::uint8_t> || std::same_as<T, std::int8_t> ||
    std::same_as<T, std::int16_t> || std::same_as<T, std::uint16_t> || std::same_as<T, simd::float16> ||
    std::same_as<T, simd::bfloat16> || std::same_as<T, std::int32_t> || std::same_as<T, std::uint32_t> ||
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, std::int64_t> ||
    std::same_as<T, std::uint64_t>;

namespace detail {

struct DtypeRow {
  std::string_view name;
  Index size;
};

// In the order of Dtype.
inline constexpr std::array<DtypeRow, 17> dtype_table = {{{"BOOL", 1},
                                                          {"U8", 1},
                                                          {"I8", 1},
                                                          {"F8_E5M2", 1},
                                                          {"F8_E4M3", 1},
                                                          {"F8_E8M0", 1},
                                                          {"I16", 2},
                                                          {"U16", 2},
                                                          {"F16", 2},
                                                          {"BF16", 2},
                                                          {"I32", 4},
                                                          {"U32", 4},
                                                          {"F32", 4},
                                                          {"C64", 8},
                                                          {"F64", 8},
                                                          {"I64", 8},
                                                          {"U64", 8}}};

inline constexpr std::uint64_t safetensors_longest_header = 100'000'000;
inline constexpr std::size_t safetensors_most_dims = 64;

}  // namespace detail

/// The name of a type in the file.
[[nodiscard]] constexpr std::string_view dtype_name(Dtype type) {
  return detail::dtype_table[static_cast<std::size_t>(type)].name;
}
/// Bytes of an element.
[[nodiscard]] constexpr Index dtype_size(Dtype type) {
  return detail::dtype_table[static_cast<std::size_t>(type)].size;
}
/// The type of T in the file.
template <SafetensorsElement T>
[[nodiscard]] constexpr Dtype dtype_of() {
  if constexpr (std::same_as<T, bool>) return Dtype::boolean;
  if constexpr (std::same_as<T, std::uint8_t>) return Dtype::u8;
  if constexpr (std::same_as<T, std::int8_t>) return Dtype::i8;
  if constexpr (std::same_as<T, std::int16_t>) return Dtype::i16;
  if constexpr (std::same_as<T, std::uint16_t>) return Dtype::u16;
  if constexpr (std::same_as<T, simd::float16>) return Dtype::f16;
  if constexpr (std::same_as<T, simd::bfloat16>) return Dtype::bf16;
  if constexpr (std::same_as<T, std::int32_t>) return Dtype::i32;
  if constexpr (std::same_as<T, std::uint32_t>) return Dtype::u32;
  if constexpr (std::same_as<T, float>) return Dtype::f32;
  if constexpr (std::same_as<T, double>) return Dtype::f64;
  if constexpr (std::same_as<T, std::int64_t>) return Dtype::i64;
  return Dtype::u64;
}

/// A shape as messages have it: "[2, 3]".
[[nodiscard]] inline std::string shape_text(std::span<const Index> shape) {
  std::string text = "[";
  for (const Index size : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

/// A named tensor whose elements belong to another: to a file that was read, or to the matrix that is to be written.
struct SafetensorsTensor {
  std::string name;                  ///< any UTF-8 text but "__metadata__"; data, never a path
  Dtype dtype = Dtype::f32;          ///< type of the elements
  std::vector<Index> shape;          ///< sizes, outermost first; none: a single number
  std::span<const std::byte> bytes;  ///< elements, row by row, little-endian, on any address

  /// Elements.
  [[nodiscard]] Index size() const { return Index(bytes.size()) / dtype_size(dtype); }

  /// The elements where they are. Throws FormatError if they are of another type, or not on an address for T: then
  /// copy_to serves. A byte that is no bool must not be looked at as one, so there is no such view.
  template <SafetensorsElement T>
    requires(!std::same_as<T, bool>)
  [[nodiscard]] std::span<const T> values() const {
    check_dtype<T>();
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) != 0)
      throw_format_error(name, "its elements are not aligned in memory, and can only be copied");
    return {reinterpret_cast<const T*>(bytes.data()), static_cast<std::size_t>(size())};
  }
  /// Copies the elements; to bool, every byte but 0 is true. Throws FormatError if they are of another type, ShapeError
  /// if `out` has another size.
  template <SafetensorsElement T>
  void copy_to(std::span<T> out) const {
    check_dtype<T>();
    check_shape(name, size(), Index(out.size()));
    if (bytes.empty()) return;
    if constexpr (std::same_as<T, bool>)
      std::transform(bytes.begin(), bytes.end(), out.begin(), [](std::byte b) { return b != std::byte(0); });
    else
      std::memcpy(out.data(), bytes.data(), bytes.size());
  }
  /// A copy of a tensor [rows×cols]. Throws FormatError for another type or number of dimensions.
  template <SafetensorsElement T>
  [[nodiscard]] Matrix<T> matrix() const {
    check_dtype<T>();
    check_dims(2);
    Matrix<T> out(shape[0], shape[1]);
    copy_to(out.span());
    return out;
  }
  /// A copy of a tensor [n]. Throws FormatError for another type or number of dimensions.
  template <SafetensorsElement T>
  [[nodiscard]] Vector<T> vector() const {
    check_dtype<T>();
    check_dims(1);
    Vector<T> out(shape[0]);
    copy_to(out.span());
    return out;
  }

 private:
  template <SafetensorsElement T>
  void check_dtype() const {
    if (dtype != dtype_of<T>())
      throw_format_error(name, "expected elements of type " + std::string(dtype_name(dtype_of<T>())) + ", got " +
                                   std::string(dtype_name(dtype)));
  }
  void check_dims(std::size_t dims) const {
    if (shape.size() != dims)
      throw_format_error(name, "expected " + std::to_string(dims) + " dimensions, got the shape " + shape_text(shape));
  }
};

/// A tensor to be written: a view of elements that must live until then.
///@{
template <SafetensorsElement T>
[[nodiscard]] SafetensorsTensor safetensors_tensor(std::string name, std::span<const T> values,
                                                   std::vector<Index> shape) {
  return {std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(values)};
}
template <SafetensorsElement T>
[[nodiscard]] SafetensorsTensor safetensors_tensor(std::string name, const Matrix<T>& x) {
  return safetensors_tensor<T>(std::move(name), x.span(), {x.rows(), x.cols()});
}
template <SafetensorsElement T>
[[nodiscard]] SafetensorsTensor safetensors_tensor(std::string name, const Vector<T>& x) {
  return safetensors_tensor<T>(std::move(name), x.span(), {x.size()});
}
template <SafetensorsElement T>
[[nodiscard]] SafetensorsTensor safetensors_tensor(std::string name, const T& x) {
  return safetensors_tensor<T>(std::move(name), std::span(&x, 1), {});
}
template <class T>
SafetensorsTensor safetensors_tensor(std::string name, const T&& x) = delete;  // the view would outlive it
///@}

/// Text beside the tensors. Keys that begin with "ruvector." are ours.
using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;

/// What to do with the checksum that our own files carry.
enum class Checksum {
  verify,  ///< refuse a file that does not agree with it; one without is fine. Reads the whole file.
  ignore,  ///< trust
};

/// What a safetensors file holds. The tensors are views of the bytes that were read.
struct SafetensorsContent {
  std::vector<SafetensorsTensor> tensors;  ///< by name
  SafetensorsMetadata metadata;            ///< all of "__metadata__"

  /// The tensor of this name, or null. O(log n).
  [[nodiscard]] const SafetensorsTensor* find(std::string_view name) const {
    const auto at = std::lower_bound(tensors.begin(), tensors.end(), name,
                                     [](const SafetensorsTensor& t, std::string_view n) { return t.name < n; });
    return at != tensors.end() && at->name == name ? &*at : nullptr;
  }
};

namespace detail {

// 64 bits of all bytes. Each step is a bijection of the state for a given word and of the word for a given state, so a
// change within one word of 8 bytes, a flipped bit among them, always changes the result; any other goes unnoticed once
// in 2⁶⁴.
class ByteSum {
 public:
  void add(std::span<const std::byte> bytes) {
    length_ += bytes.size();
    for (; filled_ != 0 && !bytes.empty(); bytes = bytes.subspan(1)) push(bytes[0]);
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data(), 8);
      step(word);
    }
    for (const std::byte byte : bytes) push(byte);
  }
  void add(std::string_view text) { add(std::as_bytes(std::span(text.data(), text.size()))); }

  // Sixteen hexadecimal digits; the end of what was added.
  [[nodiscard]] std::string digits() {
    step(word_);
    step(length_);
    step(0);  // the last word reaches all bits
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[state_ >> shift & 15];
    return text;
  }

 private:
  void push(std::byte byte) {
    word_ |= std::uint64_t(byte) << (8 * filled_);
    if (++filled_ < 8) return;
    step(std::exchange(word_, 0));
    filled_ = 0;
  }
  void step(std::uint64_t word) {
    state_ = (state_ ^ word) * 0x9e3779b97f4a7c15u;
    state_ ^= state_ >> 32;
  }

  std::uint64_t state_ = 0, word_ = 0, length_ = 0;
  int filled_ = 0;
};

// The checksum stands at a fixed place, so that it can cover every byte of the file but its own digits. A second key
// tells that there must be one, should the name of the first be damaged.
inline constexpr std::string_view checksum_key = "ruvector.checksum", format_key = "ruvector.format";
inline constexpr std::string_view checksum_prefix = R"({"__metadata__":{"ruvector.checksum":")";
inline constexpr std::size_t checksum_digits = 16;

// Takes the header of a safetensors file, event by event.
class SafetensorsHeader {
 public:
  struct Entry {
    SafetensorsTensor tensor;
    std::uint64_t begin = 0, end = 0;
  };
  std::vector<Entry> entries;
  SafetensorsMetadata metadata;

  explicit SafetensorsHeader(std::string_view source) : source_(source) {}

  void open_object() {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top && key_ == "__metadata__") {
      if (std::exchange(has_metadata_, true)) fail("__metadata__ is there twice");
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      entries.emplace_back();
      entries.back().tensor.name = std::move(key_);
      has_dtype_ = has_shape_ = has_offsets_ = false;
      place_ = Place::tensor;
    } else {
      fail(where() + "an object is not expected");
    }
  }
  void close_object() {
    if (place_ == Place::tensor && !(has_dtype_ && has_shape_ && has_offsets_))
      fail(where() + "dtype, shape or data_offsets is missing");
    place_ = Place::top;  // after the outermost one nothing follows
  }
  void key(std::string& name) { key_ = std::move(name); }
  void text(std::string& value) {
    if (place_ == Place::metadata) {
      if (!metadata.emplace(std::move(key_), std::move(value)).second) fail("__metadata__ has a key twice");
    } else if (place_ == Place::tensor && key_ == "dtype" && !std::exchange(has_dtype_, true)) {
      const auto* const row =
          std::find_if(dtype_table.begin(), dtype_table.end(), [&](const DtypeRow& r) { return r.name == value; });
      if (row == dtype_table.end()) fail(where() + "expected a known dtype, got '" + printable(value) + "'");
      entries.back().tensor.dtype = static_cast<Dtype>(row - dtype_table.begin());
    } else {
      fail(where() + "a string is not expected as '" + printable(key_) + "'");
    }
  }
  void open_array() {
    if (place_ == Place::tensor && key_ == "shape" && !std::exchange(has_shape_, true)) {
      place_ = Place::shape;
    } else if (place_ == Place::tensor && key_ == "data_offsets" && !std::exchange(has_offsets_, true)) {
      place_ = Place::offsets;
      offsets_ = 0;
    } else {
      fail(where() + "an array is not expected as '" + printable(key_) + "'");
    }
  }
  void close_array() {
    if (place_ == Place::offsets && offsets_ != 2) fail(where() + "expected 2 data_offsets, got fewer");
    place_ = Place::tensor;
  }
  void count(std::uint64_t value) {
    Entry* const entry = entries.empty() ? nullptr : &entries.back();
    if (place_ == Place::shape) {
      if (entry->tensor.shape.size() == safetensors_most_dims)
        fail(where() + "expected at most 64 dimensions, got more");
      if (value > std::uint64_t(PTRDIFF_MAX)) fail(where() + "expected a shape below 2^63");
      entry->tensor.shape.push_back(static_cast<Index>(value));
    } else if (place_ == Place::offsets) {
      if (offsets_ == 2) fail(where() + "expected 2 data_offsets, got more");
      (offsets_++ == 0 ? entry->begin : entry->end) = value;
    } else {
      fail(where() + "a number is not expected as '" + printable(key_) + "'");
    }
  }
  void number(double) { fail(where() + "numbers are expected without sign, point and exponent, below 2^64"); }

 private:
  enum class Place { outside, top, metadata, tensor, shape, offsets };

  [[nodiscard]] std::string where() const {
    if (place_ == Place::metadata) return "__metadata__: ";
    return entries.empty() || place_ == Place::top ? "" : "tensor '" + printable(entries.back().tensor.name) + "': ";
  }
  [[nodiscard]] static std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 60));
    for (char& c : shown)
      if (c < ' ' || c > '~') c = '?';
    return shown;
  }
  [[noreturn]] void fail(const std::string& what) const { throw_format_error(source_, "safetensors header: " + what); }

  std::string_view source_;
  Place place_ = Place::outside;
  std::string key_;
  bool has_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  int offsets_ = 0;
};

// The elements that a shape has. Throws FormatError where there are more than `limits` allows or they do not fill
// `bytes`.
inline void check_tensor(std::string_view source, const SafetensorsTensor& tensor, std::uint64_t bytes, Limits limits) {
  Index items = 1, size = 0;
  bool too_many = false;
  for (const Index n : tensor.shape) {
    too_many = too_many || n > limits.max_items || __builtin_mul_overflow(items, n, &items);
  }
  too_many = too_many || items > limits.max_items || __builtin_mul_overflow(items, dtype_size(tensor.dtype), &size);
  const auto shown = [&] { return "tensor '" + tensor.name + "' of shape " + shape_text(tensor.shape); };
  if (too_many)
    throw_format_error(source, shown() + ": expected at most " + std::to_string(limits.max_items) + " elements");
  if (std::uint64_t(size) != bytes)
    throw_format_error(source, shown() + " " + std::string(dtype_name(tensor.dtype)) + ": expected data_offsets " +
                                   std::to_string(size) + " bytes apart, got " + std::to_string(bytes));
}

// Checks all that a header can be checked for: `text` of a file with `payload` bytes of elements behind it. The entries
// come out in the order of their elements, which have to lie one behind the other, from the first byte to the last.
inline SafetensorsHeader check_safetensors_header(std::string_view source, std::string_view text, std::uint64_t payload,
                                                  Limits limits) {
  using Entry = SafetensorsHeader::Entry;
  SafetensorsHeader header(source);
  constexpr Index first = 8;
  constexpr int deepest = 3;
  parse_json_object(source, text, first, deepest, header);
  std::sort(header.entries.begin(), header.entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  std::uint64_t at = 0;
  for (const Entry& entry : header.entries) {
    if (entry.begin != at || entry.end < entry.begin || entry.end > payload)
      throw_format_error(source, "tensor '" + entry.tensor.name + "': expected data_offsets from " +
                                     std::to_string(at) + " on within " + std::to_string(payload) + " bytes, got [" +
                                     std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]");
    check_tensor(source, entry.tensor, entry.end - entry.begin, limits);
    at = entry.end;
  }
  if (at != payload)
    throw_format_error(source, "expected " + std::to_string(at) + " bytes of tensors, got " + std::to_string(payload));
  return header;
}

// The tensors by name, as views of the elements.
inline std::vector<SafetensorsTensor> place_tensors(std::string_view source,
                                                    std::vector<SafetensorsHeader::Entry> entries,
                                                    std::span<const std::byte> payload) {
  std::vector<SafetensorsTensor> tensors;
  tensors.reserve(entries.size());
  for (auto& entry : entries) {
    tensors.push_back(std::move(entry.tensor));
    if (!payload.empty()) tensors.back().bytes = payload.subspan(entry.begin, entry.end - entry.begin);
  }
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twice != tensors.end()) throw_format_error(source, "tensor '" + twice->name + "' is there twice");
  return tensors;
}

inline void verify_checksum(std::string_view source, std::span<const std::byte> file, std::string_view header,
                            const SafetensorsMetadata& metadata) {
  const auto sum = metadata.find(checksum_key), format = metadata.find(format_key);
  if (sum == metadata.end() && format == metadata.end()) return;
  const std::size_t at = checksum_prefix.size(), end = at + checksum_digits;
  if (sum == metadata.end() || format == metadata.end() || format->second != "1" || header.size() <= end ||
      !header.starts_with(checksum_prefix) || header[end] != '"' || header.substr(at, checksum_digits) != sum->second)
    throw_format_error(source, "the checksum is damaged, or the file was written again by another program");
  ByteSum bytes;
  bytes.add(file.first(8 + at));
  bytes.add(file.subspan(8 + end));
  if (bytes.digits() != sum->second) throw_format_error(source, "the file is damaged: its checksum does not agree");
}

}  // namespace detail

/// Reads a safetensors file that is in memory. Its header is checked in full before there is any view: the JSON has
/// objects, strings and numbers >= 0 where they belong and nothing else, no key twice; types are known; the tensors
/// lie one behind the other from the first byte to the last, each as long as its shape says; every size is within
/// `limits`. A checksum of ours is verified. Throws FormatError saying what is wrong and where; `name` stands for the
/// file in it. O(header), and O(file) for the checksum.
[[nodiscard]] inline SafetensorsContent read_safetensors(std::span<const std::byte> file, Limits limits = {},
                                                         Checksum checksum = Checksum::verify,
                                                         std::string_view name = "safetensors") {
  check_file_size(name, Index(file.size()), limits);
  if (file.size() < 8) throw_format_error(name, "expected 8 bytes of length, got " + std::to_string(file.size()));
  std::uint64_t length;
  std::memcpy(&length, file.data(), 8);
  const std::uint64_t longest = std::min(detail::safetensors_longest_header, std::uint64_t(file.size()) - 8);
  if (length > longest)
    throw_format_error(
        name, "expected a header of at most " + std::to_string(longest) + " bytes, got " + std::to_string(length));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, std::size_t(length));
  const auto payload = file.subspan(8 + text.size());

  detail::SafetensorsHeader header = detail::check_safetensors_header(name, text, payload.size(), limits);
  if (checksum == Checksum::verify) detail::verify_checksum(name, file, text, header.metadata);
  return {detail::place_tensors(name, std::move(header.entries), payload), std::move(header.metadata)};
}

/// A safetensors file in the address space: the tensors are views of it, and only what is looked at is read from the
/// disk (with Checksum::verify that is everything, once). Movable: the views stay valid.
class SafetensorsFile : public SafetensorsContent {
 public:
  /// Maps and checks the file at `path`. Throws FileError, FormatError.
  explicit SafetensorsFile(const std::string& path, Limits limits = {}, Checksum checksum = Checksum::verify)
      : file_(path, limits) {
    static_cast<SafetensorsContent&>(*this) = read_safetensors(file_.bytes(), limits, checksum, path);
  }

 private:
  MappedFile file_;
};

namespace detail {

// The header of a file with these tensors in this order, its checksum still zeros: without the 8 bytes of length.
inline std::string safetensors_header(std::span<const SafetensorsTensor* const> tensors,
                                      const SafetensorsMetadata& metadata) {
  std::string header = std::string(checksum_prefix) + std::string(checksum_digits, '0') + '"';
  header += ',' + json_string(format_key) + ":\"1\"";
  for (const auto& [key, value] : metadata)
    if (key != checksum_key && key != format_key) header += ',' + json_string(key) + ':' + json_string(value);
  header += '}';
  std::size_t offset = 0;
  for (const SafetensorsTensor* tensor : tensors) {
    header +=
        ',' + json_string(tensor->name) + ":{\"dtype\":\"" + std::string(dtype_name(tensor->dtype)) + "\",\"shape\":[";
    for (std::size_t i = 0; i < tensor->shape.size(); ++i) {
      if (i > 0) header += ',';
      header += std::to_string(tensor->shape[i]);
    }
    header +=
        "],\"data_offsets\":[" + std::to_string(offset) + ',' + std::to_string(offset + tensor->bytes.size()) + "]}";
    offset += tensor->bytes.size();
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

// What is written can be read.
inline void check_new_header(std::string_view source, std::string_view header,
                             std::span<const SafetensorsTensor* const> tensors) {
  std::uint64_t payload = 0;
  for (const SafetensorsTensor* tensor : tensors) payload += tensor->bytes.size();
  if (header.size() > safetensors_longest_header)
    throw_format_error(source, "a header of " + std::to_string(header.size()) + " bytes is too long");
  (void)place_tensors(source, check_safetensors_header(source, header, payload, {}).entries, {});
}

}  // namespace detail

/// Saves tensors as a safetensors file, all or nothing (AtomicFile). Wider elements come first, then names in order, so
/// every element lies on an address for its type. The metadata have a checksum of every byte of the file, by which
/// `read_safetensors` finds any damage; metadata of a file that was read may be handed back as they are. The bytes do
/// not depend on the order of `tensors` nor on the locale. Throws FormatError, before anything is written, for what
/// `read_safetensors` would refuse (names twice or not UTF-8, shapes that do not fit), FileError. `calls` are the
/// operating system's. O(bytes).
template <class Calls = PosixCalls>
void write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors,
                       const SafetensorsMetadata& metadata = {}, Calls calls = {}) {
  std::vector<const SafetensorsTensor*> order;
  for (const SafetensorsTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    const Index wide_a = dtype_size(a->dtype), wide_b = dtype_size(b->dtype);
    return wide_a != wide_b ? wide_a > wide_b : a->name < b->name;
  });
  std::string header = detail::safetensors_header(order, metadata);
  const std::uint64_t length = header.size();
  detail::check_new_header(path, header, order);
  const auto length_bytes = std::as_bytes(std::span(&length, 1));

  detail::ByteSum sum;
  const std::size_t at = detail::checksum_prefix.size();
  sum.add(length_bytes);
  sum.add(std::string_view(header).substr(0, at));
  sum.add(std::string_view(header).substr(at + detail::checksum_digits));
  for (const SafetensorsTensor* tensor : order) sum.add(tensor->bytes);
  header.replace(at, detail::checksum_digits, sum.digits());

  BasicAtomicFile<Calls> file(path, calls);
  file.write(length_bytes);
  file.write(header);
  for (const SafetensorsTensor* tensor : order) file.write(tensor->bytes);
  file.commit();
}

}  // namespace ruvector::inline RUVECTOR_ABI::io
