// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// The only file that includes nlohmann_json (2 s of compile time). Its parser reports what it sees, event by event, so
// that nothing is built that a reader does not ask for, and duplicate keys are seen.

namespace ruvector::inline RUVECTOR_ABI::io::detail {

/// Hands the events of a parser on to a handler, and refuses what no format of ours holds.
template <class Handler>
class JsonEvents {
 public:
  JsonEvents(std::string_view source, Index first, int deepest, Handler& handler)
      : source_(source), first_(first), deepest_(deepest), handler_(handler) {}

  bool null() { return fail("null is not expected"); }
  bool boolean(bool) { return fail("true and false are not expected"); }
  bool binary(nlohmann::json::binary_t&) { return fail("binary values are not expected"); }
  bool number_integer(std::int64_t value) {  // the negative ones
    handler_.number(double(value));
    return true;
  }
  bool number_unsigned(std::uint64_t value) {
    handler_.count(value);
    return true;
  }
  bool number_float(double value, const std::string&) {
    handler_.number(value);
    return true;
  }
  bool string(std::string& value) {
    handler_.text(value);
    return true;
  }
  bool key(std::string& value) {
    handler_.key(value);
    return true;
  }
  bool start_object(std::size_t) {
    enter();
    handler_.open_object();
    return true;
  }
  bool end_object() {
    --depth_;
    handler_.close_object();
    return true;
  }
  bool start_array(std::size_t) {
    enter();
    handler_.open_array();
    return true;
  }
  bool end_array() {
    --depth_;
    handler_.close_array();
    return true;
  }
  template <class Exception>
  bool parse_error(std::size_t position, const std::string&, const Exception&) {
    return fail("byte " + std::to_string(first_ + Index(position) - 1) + ": malformed JSON");
  }

 private:
  void enter() {
    if (++depth_ > deepest_) fail("expected at most " + std::to_string(deepest_) + " levels of nesting, got more");
  }
  [[noreturn]] bool fail(const std::string& what) const { throw_format_error(source_, what); }

  std::string_view source_;
  Index first_;
  int deepest_;
  int depth_ = 0;
  Handler& handler_;
};

/// Parses a JSON object in UTF-8, which has to fill `text` to its end but for spaces, and reports to
///
///   handler.open_object(), .key(std::string&), .close_object(), .open_array(), .close_array(),
///   handler.text(std::string&), .count(std::uint64_t) for numbers without sign, point and exponent, .number(double)
///
/// Throws FormatError for malformed text, for null and booleans, and below `deepest` levels. `first` is the position
/// of `text` in the file, for messages. Numbers are read alike whatever the locale.
template <class Handler>
void parse_json_object(std::string_view source, std::string_view text, Index first, int deepest, Handler& handler) {
  if (text.empty() || text.front() != '{')
    throw_format_error(source, "byte " + std::to_string(first) + ": expected '{' at the start of the JSON");
  text = text.substr(0, text.find_last_not_of(' ') + 1);
  // The parser takes a zero for the end of the text, and white space of all kinds after it.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos)
    throw_format_error(source, "byte " + std::to_string(first + Index(zero)) + ": malformed JSON");
  if (text.back() != '}')
    throw_format_error(
        source, "byte " + std::to_string(first + Index(text.size()) - 1) + ": expected '}' at the end of the JSON");
  JsonEvents<Handler> events(source, first, deepest, handler);
  (void)nlohmann::json::sax_parse(text.begin(), text.end(), &events);
}

/// A string as JSON has it, in quotes. Bytes beyond ASCII stay as they are.
[[nodiscard]] inline std::string json_string(std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      quoted += {'\\', 'u', '0', '0', hex[std::size_t(c) >> 4], hex[std::size_t(c) & 15]};
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace ruvector::inline RUVECTOR_ABI::io::detail
