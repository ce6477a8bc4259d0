// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"

#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

/// Checks an invariant inside the library; arguments of users are checked at the front door instead. Off with NDEBUG.
#define RUVECTOR_ASSERT(condition) assert(condition)

namespace ruvector::inline RUVECTOR_ABI {

/// Sizes that do not fit together. The message names the argument, the expected and the actual value.
class ShapeError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// An option outside its range, or options that exclude each other. The message has the allowed and the actual value.
class ConfigError : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// A file or byte sequence that does not hold what it should. The message says what was wrong and where.
class FormatError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

/// Throws. Without exceptions it calls `RUVECTOR_ERROR_HANDLER(kind, message)` if that macro is defined (the same in
/// every file of the program), then prints the message and aborts.
template <class Error>
[[noreturn, gnu::cold, gnu::noinline]] void raise([[maybe_unused]] const char* kind, const std::string& message) {
#ifdef __cpp_exceptions
  throw Error(message);
#else
#ifdef RUVECTOR_ERROR_HANDLER
  RUVECTOR_ERROR_HANDLER(kind, message.c_str());
#endif
  std::fputs((std::string("ruvector: ") + kind + ": " + message + "\n").c_str(), stderr);
  std::abort();
#endif
}

}  // namespace detail

/// Throws ShapeError "what: expected E, got A".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_shape_error(std::string_view what, Index expected,
                                                                     Index actual) {
  detail::raise<ShapeError>(
      "ShapeError", std::string(what) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual));
}

/// Throws ShapeError "what: expected E, got A" where the expectation needs words ("at most 2^63 bytes").
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_shape_error(std::string_view what, std::string_view expected,
                                                                     std::string_view actual) {
  detail::raise<ShapeError>("ShapeError",
                            std::string(what) + ": expected " + std::string(expected) + ", got " + std::string(actual));
}

/// Throws ConfigError "what: expected E, got A".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_config_error(std::string_view what, std::string_view expected,
                                                                      double actual) {
  char number[32];
  std::snprintf(number, sizeof number, "%.9g", actual);
  detail::raise<ConfigError>("ConfigError",
                             std::string(what) + ": expected " + std::string(expected) + ", got " + number);
}

/// Throws FormatError "source: what".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_format_error(std::string_view source, std::string_view what) {
  detail::raise<FormatError>("FormatError", std::string(source) + ": " + std::string(what));
}

/// Throws ShapeError unless both sizes are equal.
inline void check_shape(std::string_view what, Index expected, Index actual) {
  if (expected != actual) [[unlikely]]
    throw_shape_error(what, expected, actual);
}

/// The number of elements of a rows × cols array. Throws ShapeError where a size is negative or the bytes of
/// `element_size` each would not fit in an Index (which also rules out a product that wraps around to a small number).
[[nodiscard]] inline Index checked_size(std::string_view what, Index rows, Index cols, Index element_size = 1) {
  if (rows < 0) [[unlikely]]
    throw_shape_error(what, "rows >= 0", std::to_string(rows));
  if (cols < 0) [[unlikely]]
    throw_shape_error(what, "columns >= 0", std::to_string(cols));
  Index size = 0;
  Index bytes = 0;
  if (__builtin_mul_overflow(rows, cols, &size) || __builtin_mul_overflow(size, element_size, &bytes)) [[unlikely]] {
    throw_shape_error(what, "rows * columns * " + std::to_string(element_size) + " bytes below 2^63",
                      std::to_string(rows) + " x " + std::to_string(cols));
  }
  return size;
}

}  // namespace ruvector::inline RUVECTOR_ABI
