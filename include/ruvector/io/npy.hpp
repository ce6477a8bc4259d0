// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/io/atomic_file.hpp"
#include "ruvector/io/file.hpp"

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace ruvector::inline RUVECTOR_ABI::io {

static_assert(std::endian::native == std::endian::little, "npy files are read and written as they lie in memory");

/// The elements that .npy files are read and written with.
template <class T>
concept NpyElement =
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, std::int32_t> || std::same_as<T, std::int64_t>;

/// What the header of an .npy file says.
struct NpyHeader {
  std::string type;            ///< numpy's name: "<f4", "<f8", "<i4" or "<i8"
  bool fortran_order = false;  ///< columns are contiguous, not rows
  Index dims = 0;              ///< 1 or 2
  Index rows = 0;              ///< elements of a vector, rows of a matrix
  Index cols = 1;              ///< 1 for a vector
  Index data_offset = 0;       ///< bytes before the first element
};

/// numpy's name of an element type.
template <NpyElement T>
[[nodiscard]] constexpr std::string_view npy_type() {
  if constexpr (std::same_as<T, float>) return "<f4";
  if constexpr (std::same_as<T, double>) return "<f8";
  if constexpr (std::same_as<T, std::int32_t>) return "<i4";
  return "<i8";
}

namespace detail {

inline constexpr Index npy_longest_header = Index(1) << 16;
inline constexpr Index npy_longest_preamble = npy_longest_header + 12;  // magic 6, version 2, length 2 or 4
inline constexpr std::string_view npy_magic = "\x93NUMPY";

// Reads the dictionary of the header, {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, token by token.
class NpyHeaderParser {
 public:
  // `first`: position of `text` in the file, for messages.
  NpyHeaderParser(std::string_view source, std::string_view text, Index first)
      : source_(source), text_(text), first_(first) {}

  NpyHeader parse() {
    bool has_type = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !std::exchange(has_type, true)) {
        element_type();
      } else if (key == "fortran_order" && !std::exchange(has_order, true)) {
        header_.fortran_order = boolean();
      } else if (key == "shape" && !std::exchange(has_shape, true)) {
        shape();
      } else {
        fail("expected the keys 'descr', 'fortran_order' and 'shape' once each, got '" + printable(key) + "'");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    if (!(has_type && has_order && has_shape)) fail("a key of 'descr', 'fortran_order' and 'shape' is missing");
    skip_blanks();
    if (at_ != text_.size()) fail("expected nothing but blanks after the dictionary, got " + here());
    return header_;
  }

 private:
  void element_type() {
    skip_blanks();
    if (at_ < text_.size() && text_[at_] == '[') fail("records are not supported, only <f4, <f8, <i4 and <i8");
    const std::string_view type = string();
    if (type != "<f4" && type != "<f8" && type != "<i4" && type != "<i8")
      fail("expected an element type of <f4, <f8, <i4 and <i8, got '" + printable(type) + "'");
    header_.type = type;
  }

  void shape() {
    expect('(');
    Index* const sizes[] = {&header_.rows, &header_.cols};
    while (!accept(')')) {
      if (header_.dims == 2) fail("expected 1 or 2 dimensions, got more");
      *sizes[header_.dims++] = integer();
      if (!accept(',')) {
        if (header_.dims == 1) fail("expected ',' after the only dimension: (3) is no tuple, (3,) is");
        expect(')');
        break;
      }
    }
    if (header_.dims == 0) fail("expected 1 or 2 dimensions, got a scalar");
  }

  Index integer() {
    skip_blanks();
    const std::size_t start = at_;
    Index value = 0;
    for (; at_ < text_.size() && '0' <= text_[at_] && text_[at_] <= '9'; ++at_) {
      if (__builtin_mul_overflow(value, Index(10), &value) ||
          __builtin_add_overflow(value, Index(text_[at_] - '0'), &value))
        fail("expected a dimension below 2^63");
    }
    if (at_ == start) fail("expected a dimension, got " + here());
    if (text_[start] == '0' && at_ - start > 1) fail("expected a dimension without leading zeros");
    return value;
  }

  bool boolean() {
    skip_blanks();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) == word) {
        at_ += word.size();
        return value;
      }
    }
    fail("expected True or False, got " + here());
  }

  std::string_view string() {
    skip_blanks();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') fail("expected a quoted string, got " + here());
    const std::size_t start = ++at_;
    const std::size_t end = text_.find(quote, start);
    if (end == std::string_view::npos) fail("a string has no end");
    const std::string_view value = text_.substr(start, end - start);
    if (value.find('\\') != std::string_view::npos) fail("a string has a backslash");
    at_ = end + 1;
    return value;
  }

  bool accept(char wanted) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) fail(std::string("expected '") + wanted + "', got " + here());
  }

  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  [[nodiscard]] std::string here() const {
    return at_ == text_.size() ? "the end of the header" : "'" + printable(text_.substr(at_, 1)) + "'";
  }

  [[nodiscard]] static std::string printable(std::string_view text) {
    std::string shown(text.substr(0, 40));
    for (char& c : shown)
      if (c < ' ' || c > '~') c = '?';
    return shown;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw_format_error(source_, "npy header, byte " + std::to_string(first_ + Index(at_)) + ": " + what);
  }

  std::string_view source_;
  std::string_view text_;
  Index first_;
  std::size_t at_ = 0;
  NpyHeader header_;
};

// The text of the header, which starts at `first` of a file of `size` bytes that begins with `preamble`.
inline std::string_view npy_header_text(std::string_view source, std::string_view preamble, Index size) {
  if (preamble.substr(0, npy_magic.size()) != npy_magic)
    throw_format_error(source, "byte 0: expected the npy signature \\x93NUMPY");
  const auto byte = [&](std::size_t i) { return std::size_t(static_cast<unsigned char>(preamble[i])); };
  if (preamble.size() < 10) throw_format_error(source, "the file ends within the 10 bytes of its npy signature");
  const std::size_t version = byte(6);
  if (version < 1 || version > 3 || byte(7) != 0)
    throw_format_error(source, "byte 6: expected npy version 1.0, 2.0 or 3.0, got " + std::to_string(version) + "." +
                                   std::to_string(byte(7)));
  const std::size_t first = version == 1 ? 10 : 12;
  if (preamble.size() < first) throw_format_error(source, "the file ends within the 12 bytes of its npy signature");
  const std::size_t length = byte(8) | byte(9) << 8 | (version == 1 ? std::size_t(0) : byte(10) << 16 | byte(11) << 24);
  if (length > std::size_t(npy_longest_header))
    throw_format_error(source, "byte 8: expected a header of at most 65536 bytes, got " + std::to_string(length));
  if (length > std::size_t(size) - first)
    throw_format_error(source, "byte 8: a header of " + std::to_string(length) + " bytes does not fit in a file of " +
                                   std::to_string(size));
  return preamble.substr(first, length);
}

// `preamble`: the first bytes of a file of `size` bytes, as many as a header can take.
inline NpyHeader parse_npy_header(std::string_view source, std::span<const std::byte> preamble, Index size,
                                  Limits limits) {
  check_file_size(source, size, limits);
  const std::string_view bytes(reinterpret_cast<const char*>(preamble.data()), preamble.size());
  const std::string_view text = npy_header_text(source, bytes, size);
  const Index first = text.data() - bytes.data();
  NpyHeader header = NpyHeaderParser(source, text, first).parse();
  header.data_offset = first + Index(text.size());

  const Index element = header.type.back() - '0';
  Index items = 0, payload = 0;
  const bool too_many = __builtin_mul_overflow(header.rows, header.cols, &items) ||
                        __builtin_mul_overflow(items, element, &payload) ||
                        std::max({items, header.rows, header.cols}) > limits.max_items;
  const std::string shape = std::to_string(header.rows) + " x " + std::to_string(header.cols);
  if (too_many)
    throw_format_error(source, "expected at most " + std::to_string(limits.max_items) + " items, got " + shape);
  if (payload != size - header.data_offset)
    throw_format_error(source, "expected " + std::to_string(payload) + " bytes of data for " + shape + " " +
                                   header.type + " from byte " + std::to_string(header.data_offset) + " on, got " +
                                   std::to_string(size - header.data_offset));
  return header;
}

template <NpyElement T>
void check_npy_type(std::string_view source, const NpyHeader& header, Index dims) {
  if (header.dims != dims)
    throw_format_error(source, dims == 1 ? "expected a vector, got a matrix" : "expected a matrix, got a vector");
  if (header.type != npy_type<T>())
    throw_format_error(source,
                       "expected elements of type " + std::string(npy_type<T>()) + ", got " + std::string(header.type));
}

// The matrix of a header, its elements brought by read(bytes).
template <NpyElement T, class Read>
Matrix<T> npy_matrix(const NpyHeader& header, Read&& read) {
  if (!header.fortran_order) {
    Matrix<T> rows(header.rows, header.cols);
    read(std::as_writable_bytes(rows.span()));
    return rows;
  }
  Matrix<T> columns(header.cols, header.rows);
  read(std::as_writable_bytes(columns.span()));
  Matrix<T> rows(header.rows, header.cols);
  for (Index j = 0; j < columns.rows(); ++j)
    for (Index i = 0; i < columns.cols(); ++i) rows(i, j) = columns(j, i);
  return rows;
}

template <NpyElement T, class Read>
Vector<T> npy_vector(const NpyHeader& header, Read&& read) {
  Vector<T> values(header.rows);
  read(std::as_writable_bytes(values.span()));
  return values;
}

// Reads the elements out of the bytes of a file.
inline auto npy_bytes_reader(std::span<const std::byte> file, const NpyHeader& header) {
  return [payload = file.subspan(std::size_t(header.data_offset))](std::span<std::byte> out) {
    if (!out.empty()) std::memcpy(out.data(), payload.data(), out.size());
  };
}

// Signature, version and header, padded so that the elements start at a multiple of 64 bytes. Written digit by digit:
// streams would follow the locale of the program ("2,621").
template <NpyElement T>
std::string npy_preamble(const std::string& shape) {
  std::string header =
      "{'descr': '" + std::string(npy_type<T>()) + "', 'fortran_order': False, 'shape': " + shape + ", }";
  constexpr std::size_t signature = 10, alignment = 64;
  const std::size_t end = signature + header.size() + 1;
  header.append((alignment - end % alignment) % alignment, ' ');
  header += '\n';
  std::string preamble(npy_magic);
  preamble += {'\1', '\0', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return preamble + header;
}

}  // namespace detail

/// Reads what the first bytes of an .npy file (format versions 1 to 3) say, and checks it against the rest: the
/// element type is one of `NpyElement`, there are 1 or 2 dimensions, their product is within `limits`, and exactly so
/// many bytes follow. Throws FormatError naming what is wrong and at which byte; `name` stands for the file in it.
[[nodiscard]] inline NpyHeader read_npy_header(std::span<const std::byte> file, Limits limits = {},
                                               std::string_view name = "npy") {
  return detail::parse_npy_header(name, file, static_cast<Index>(file.size()), limits);
}

/// The header of the file at `path`, checked against its size. Throws FormatError, FileError.
[[nodiscard]] inline NpyHeader read_npy_header(InputFile& file, Limits limits = {}) {
  std::string preamble(static_cast<std::size_t>(std::min(file.size(), detail::npy_longest_preamble)), '\0');
  file.read(std::as_writable_bytes(std::span(preamble)));
  NpyHeader header = detail::parse_npy_header(file.path(), std::as_bytes(std::span(preamble)), file.size(), limits);
  file.seek(header.data_offset);
  return header;
}

/// The matrix in the bytes of an .npy file. Columns-first ("Fortran") files are transposed. Nothing is converted: the
/// file must hold elements of type T. Throws FormatError as read_npy_header does. Memory is allocated only after the
/// header has been found to agree with the size of the file. O(rows·cols).
template <NpyElement T>
[[nodiscard]] Matrix<T> read_npy_matrix(std::span<const std::byte> file, Limits limits = {},
                                        std::string_view name = "npy") {
  const NpyHeader header = read_npy_header(file, limits, name);
  detail::check_npy_type<T>(name, header, 2);
  return detail::npy_matrix<T>(header, detail::npy_bytes_reader(file, header));
}

/// The vector in the bytes of an .npy file; otherwise as read_npy_matrix.
template <NpyElement T>
[[nodiscard]] Vector<T> read_npy_vector(std::span<const std::byte> file, Limits limits = {},
                                        std::string_view name = "npy") {
  const NpyHeader header = read_npy_header(file, limits, name);
  detail::check_npy_type<T>(name, header, 1);
  return detail::npy_vector<T>(header, detail::npy_bytes_reader(file, header));
}

/// The matrix in the .npy file at `path`, read straight into its place. Throws FileError, FormatError.
template <NpyElement T>
[[nodiscard]] Matrix<T> read_npy_matrix(const std::string& path, Limits limits = {}) {
  InputFile file(path);
  const NpyHeader header = read_npy_header(file, limits);
  detail::check_npy_type<T>(path, header, 2);
  return detail::npy_matrix<T>(header, [&](std::span<std::byte> out) { file.read(out); });
}

/// The vector in the .npy file at `path`, read straight into its place. Throws FileError, FormatError.
template <NpyElement T>
[[nodiscard]] Vector<T> read_npy_vector(const std::string& path, Limits limits = {}) {
  InputFile file(path);
  const NpyHeader header = read_npy_header(file, limits);
  detail::check_npy_type<T>(path, header, 1);
  return detail::npy_vector<T>(header, [&](std::span<std::byte> out) { file.read(out); });
}

/// Saves a matrix as .npy (version 1.0, rows first), all or nothing (AtomicFile). numpy.load reads it. Throws
/// FileError. The name of T is needed where x is not a Matrix: `write_npy<float>(path, eigen_matrix)`.
template <NpyElement T>
void write_npy(const std::string& path, MatrixView<const T> x) {
  AtomicFile file(path);
  file.write(detail::npy_preamble<T>("(" + std::to_string(x.rows()) + ", " + std::to_string(x.cols()) + ")"));
  for (Index i = 0; i < x.rows() && x.cols() > 0; ++i) file.write(std::as_bytes(x.row(i)));
  file.commit();
}
/// Saves a matrix as .npy.
template <NpyElement T>
void write_npy(const std::string& path, const Matrix<T>& x) {
  write_npy<T>(path, x.view());
}
/// Saves a vector as .npy.
template <NpyElement T>
void write_npy(const std::string& path, std::span<const T> x) {
  AtomicFile file(path);
  file.write(detail::npy_preamble<T>("(" + std::to_string(x.size()) + ",)"));
  file.write(std::as_bytes(x));
  file.commit();
}
/// Saves a vector as .npy.
template <NpyElement T>
void write_npy(const std::string& path, const Vector<T>& x) {
  write_npy<T>(path, x.span());
}

}  // namespace ruvector::inline RUVECTOR_ABI::io
