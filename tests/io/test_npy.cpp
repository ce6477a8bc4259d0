// SPDX-License-Identifier: MIT
#include <ruvector/io/npy.hpp>

#include "support/catch.hpp"

#include <unistd.h>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <locale>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace ruvector_test_npy {
namespace {

using namespace ruvector;

using Bytes = std::vector<std::byte>;

std::string golden(const std::string& name) {
  return RUVECTOR_TEST_DATA "/npy_" + name + ".npy";
}

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / ("ruvector_npy_" + std::to_string(::getpid()) + "_" + name))
      .string();
}

Bytes bytes_of(const std::string& path) {
  io::InputFile file(path);
  Bytes bytes(static_cast<std::size_t>(file.size()));
  file.read(bytes);
  return bytes;
}

Bytes bytes_of_text(const std::string& text) {
  Bytes bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

// A version 1 file with this header and so many zero bytes behind it.
Bytes file_of(const std::string& header, std::size_t payload) {
  std::string text("\x93NUMPY\x01\x00", 8);
  text += {char(header.size() & 0xff), char(header.size() >> 8 & 0xff)};
  return bytes_of_text(text + header + std::string(payload, '\0'));
}

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no FormatError";
}

template <class T>
T element(Index i, Index j) {
  return T(10 * i + j) - (std::is_integral_v<T> ? T(7) : T(7.5));
}

template <class A, class B>
bool same_bits(const A& a, const B& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), std::size_t(a.size()) * sizeof(*a.data())) == 0);
}

TEMPLATE_TEST_CASE("npy: files of numpy are read", "[io][npy]", float, double, std::int32_t, std::int64_t) {
  using T = TestType;
  const std::string type(io::npy_type<T>().substr(1));
  for (const bool from_bytes : {false, true}) {
    const auto file = golden(type + "_matrix");
    const auto matrix = from_bytes ? io::read_npy_matrix<T>(bytes_of(file)) : io::read_npy_matrix<T>(file);
    REQUIRE(matrix.rows() == 5);
    REQUIRE(matrix.cols() == 3);
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 3; ++j) CHECK(matrix(i, j) == element<T>(i, j));
    const auto vector_file = golden(type + "_vector");
    const auto vector =
        from_bytes ? io::read_npy_vector<T>(bytes_of(vector_file)) : io::read_npy_vector<T>(vector_file);
    REQUIRE(vector.size() == 3);
    for (Index j = 0; j < 3; ++j) CHECK(vector[j] == element<T>(0, j));
  }
}

TEST_CASE("npy: versions 1 to 3 and both orders hold the same matrix", "[io][npy]") {
  const auto reference = io::read_npy_matrix<float>(golden("f4_matrix"));
  for (const char* name : {"f4_fortran", "f4_version2", "f4_version3"}) {
    CAPTURE(name);
    const auto matrix = io::read_npy_matrix<float>(golden(name));
    CHECK(matrix.rows() == 5);
    CHECK(same_bits(matrix, reference));
    CHECK(same_bits(io::read_npy_matrix<float>(bytes_of(golden(name))), reference));
  }
  CHECK(io::read_npy_matrix<float>(golden("f4_no_rows")).cols() == 3);
  CHECK(io::read_npy_matrix<float>(golden("f4_no_cols")).rows() == 3);
}

TEMPLATE_TEST_CASE("npy: our files are numpy's files byte for byte", "[io][npy]", float, double, std::int32_t,
                   std::int64_t) {
  using T = TestType;
  const std::string type(io::npy_type<T>().substr(1));
  const auto path = temporary("same_" + type);
  io::write_npy(path, io::read_npy_matrix<T>(golden(type + "_matrix")));
  CHECK(bytes_of(path) == bytes_of(golden(type + "_matrix")));
  io::write_npy(path, io::read_npy_vector<T>(golden(type + "_vector")));
  CHECK(bytes_of(path) == bytes_of(golden(type + "_vector")));
  std::filesystem::remove(path);
}

TEST_CASE("npy: a round trip keeps every bit, of views with a stride too", "[io][npy]") {
  const auto path = temporary("round");
  for (const Index rows : {Index(0), Index(1), Index(7), Index(300)})
    for (const Index cols : {Index(0), Index(1), Index(5), Index(131)}) {
      Matrix<double> wide(rows, cols + 3);
      std::mt19937_64 bits(42);
      for (double& x : wide.span()) x = std::bit_cast<double>(bits());  // NaN and infinities among them
      const MatrixView<const double> view = wide.view().cols(2, cols);
      io::write_npy(path, view);
      const auto read = io::read_npy_matrix<double>(path);
      CHECK(read.rows() == rows);
      CHECK(read.cols() == cols);
      CHECK(same_bits(read, Matrix<double>(view)));
    }
  std::filesystem::remove(path);
}

struct Grouped : std::numpunct<char> {
  char do_thousands_sep() const override { return ','; }
  std::string do_grouping() const override { return "\3"; }
  char do_decimal_point() const override { return ','; }
};

TEST_CASE("npy: the locale of the program does not matter", "[io][npy]") {
  const auto path = temporary("locale");
  io::write_npy(path, Matrix<float>(2621, 1));
  const Bytes before = bytes_of(path);
  const std::locale old = std::locale::global(std::locale(std::locale::classic(), new Grouped));
  io::write_npy(path, Matrix<float>(2621, 1));
  const Bytes after = bytes_of(path);
  const Index rows = io::read_npy_matrix<float>(path).rows();
  std::locale::global(old);
  CHECK(before == after);
  CHECK(rows == 2621);
  std::filesystem::remove(path);
}

TEST_CASE("npy: malformed files are refused, and the message says what is wrong where", "[io][npy]") {
  using Catch::Matchers::Contains;
  struct Case {
    std::string header;
    std::size_t payload;
    std::string message;
  };
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
  CHECK(io::read_npy_matrix<float>(file_of(good, 24)).rows() == 2);
  const std::string a = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  const Case cases[] = {
      {"", 0, "byte 10: expected '{', got the end of the header"},
      {good, 23, "expected 24 bytes of data for 2 x 3 <f4 from byte 70 on, got 23"},
      {good, 25, "got 25"},
      {a + "(2, 3)", 24, "expected '}', got the end of the header"},
      {a + "(2, 3)} x", 24, "nothing but blanks after the dictionary, got 'x'"},
      {a + "(2, 3)}{", 24, "nothing but blanks"},
      {a + "(6)}", 24, "expected ',' after the only dimension"},
      {a + "()}", 4, "got a scalar"},
      {a + "(,)}", 4, "expected a dimension, got ','"},
      {a + "(-2, -3)}", 24, "byte 61: expected a dimension, got '-'"},
      {a + "(+2, 3)}", 24, "expected a dimension, got '+'"},
      {a + "(02, 3)}", 24, "leading zeros"},
      {a + "(2.0, 3)}", 24, "expected ',' after the only dimension"},
      {a + "(2, 3, 1)}", 24, "expected 1 or 2 dimensions, got more"},
      {a + "(9223372036854775808, 0)}", 0, "below 2^63"},
      {a + "(99999999999999999999999999, 0)}", 0, "below 2^63"},
      {a + "(9223372036854775807, 3)}", 24, "expected at most 274877906944 items"},
      {a + "(4294967296, 4294967296)}", 0, "expected at most 274877906944 items"},  // the product wraps to 0
      {a + "(4611686018427387904, 1)}", 0, "items"},                                // times 4 bytes wraps to 0
      {a + "(9223372036854775807, 0)}", 0, "items"},                                // no elements, but rows
      {a + "(2, 3), 'shape': (2, 3)}", 24, "once each, got 'shape'"},
      {a + "(2, 3), 'extra': (2, 3)}", 24, "once each, got 'extra'"},
      {"{'descr': '<f4', 'shape': (2, 3)}", 24, "is missing"},
      {"{}", 24, "is missing"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", 24, "expected True or False, got '0'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape: (2, 3)}", 24, "a string has no end"},
      {"{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (2, 3)}", 24, "backslash"},
      {"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", 24, "got '|O'"},
      {"{'descr': '\xff\n', 'fortran_order': False, 'shape': (2, 3)}", 24, "got '\?\?'"},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}", 24, "records are not supported"},
      {"{descr: '<f4', 'fortran_order': False, 'shape': (2, 3)}", 24, "byte 11: expected a quoted string, got 'd'"},
      {"{'descr': '<f4' 'fortran_order': False, 'shape': (2, 3)}", 24, "expected '}', got '''"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.header);
    CHECK_THAT(message_of([&] { (void)io::read_npy_matrix<float>(file_of(c.header, c.payload)); }),
               Contains(c.message) && Contains("npy"));
  }
  CHECK_THAT(message_of([&] { (void)io::read_npy_matrix<double>(file_of(good, 24), {}, "x.npy"); }),
             Contains("x.npy: expected elements of type <f8, got <f4"));
  CHECK_THAT(message_of([&] { (void)io::read_npy_vector<float>(file_of(good, 24)); }), Contains("expected a vector"));
  CHECK_THAT(message_of([] { (void)io::read_npy_matrix<float>(golden("f4_vector")); }), Contains("expected a matrix"));
  for (const char* name : {"big_endian", "half", "record", "three_dims", "scalar", "object"}) {
    CAPTURE(name);
    CHECK_THAT(message_of([&] { (void)io::read_npy_matrix<float>(golden(std::string("bad_") + name)); }),
               Contains("npy header, byte"));
  }
}

TEST_CASE("npy: a long header is refused before anything is allocated", "[io][npy]") {
  // 12 bytes that ask for 4 GiB
  const Bytes tiny = bytes_of_text(std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff", 12));
  CHECK_THAT(message_of([&] { (void)io::read_npy_header(tiny); }), Catch::Matchers::Contains("at most 65536 bytes"));
  const Bytes version4 = bytes_of_text(std::string("\x93NUMPY\x04\x00\x00\x00\x00\x00", 12));
  CHECK_THAT(message_of([&] { (void)io::read_npy_header(version4); }), Catch::Matchers::Contains("got 4.0"));
}

TEST_CASE("npy: limits hold for each call", "[io][npy]") {
  const auto file = golden("f4_matrix");  // 15 items, 188 bytes
  CHECK(io::read_npy_matrix<float>(file, {.max_bytes = 188, .max_items = 15}).size() == 15);
  CHECK_THROWS_AS(io::read_npy_matrix<float>(file, {.max_items = 14}), FormatError);
  CHECK_THROWS_AS(io::read_npy_matrix<float>(file, {.max_bytes = 187}), FormatError);
  CHECK_THROWS_AS(io::read_npy_matrix<float>(bytes_of(file), {.max_items = 14}), FormatError);
}

TEST_CASE("npy: a path that is no file is a FileError with the reason", "[io][npy]") {
  using Catch::Matchers::Contains;
  const auto message = [](const std::string& path) {
    try {
      (void)io::read_npy_matrix<float>(path);
    } catch (const io::FileError& error) {
      return std::string(error.what());
    }
    return std::string("no FileError");
  };
  CHECK_THAT(message("/nowhere/x.npy"), Contains("/nowhere/x.npy: cannot open: No such file or directory"));
  CHECK_THAT(message("/dev/null"), Contains("not a regular file"));
  CHECK_THAT(message("/"), Contains("/: not a regular file"));
}

// Reads in all ways. A file that is accepted must be consistent with its own length.
bool accepted(std::span<const std::byte> file) {
  try {
    const io::NpyHeader header = io::read_npy_header(file);
    const Index element = header.type.back() - '0';
    REQUIRE(header.rows >= 0);
    REQUIRE(header.cols >= 0);
    REQUIRE((header.rows * header.cols * element == Index(file.size()) - header.data_offset));
  } catch (const FormatError&) {
    return false;
  }
  const auto try_read = [](auto&& read) {
    try {
      (void)read();
    } catch (const FormatError&) {
    }
  };
  try_read([&] { return io::read_npy_matrix<float>(file); });
  try_read([&] { return io::read_npy_matrix<double>(file); });
  try_read([&] { return io::read_npy_vector<std::int32_t>(file); });
  try_read([&] { return io::read_npy_vector<std::int64_t>(file); });
  return true;
}

TEST_CASE("npy: no truncation, bit flip or mutation crashes or reaches outside", "[io][npy]") {
  std::mt19937 random(7);
  for (const char* name : {"f4_matrix", "f8_vector", "f4_fortran", "f4_version2", "f4_version3", "i4_matrix"}) {
    CAPTURE(name);
    const Bytes good = bytes_of(golden(name));
    CHECK(accepted(good));
    for (std::size_t n = 0; n < good.size(); ++n) {
      const Bytes cut(good.begin(), good.begin() + std::ptrdiff_t(n));  // its own allocation: ASan sees a byte too far
      CHECK_FALSE(accepted(cut));
    }
    Bytes flipped = good;
    for (std::size_t i = 0; i < good.size(); ++i)
      for (int bit = 0; bit < 8; ++bit) {
        flipped[i] ^= std::byte(1 << bit);
        (void)accepted(flipped);
        flipped[i] = good[i];
      }
    const char alphabet[] = "0123456789(),: '{}<>fi48TrueFalse\n\0\xff";
    for (int trial = 0; trial < 20000; ++trial) {
      Bytes mutant = good;
      for (unsigned n = 1 + random() % 4; n > 0; --n)
        mutant[random() % 128] = std::byte(alphabet[random() % (sizeof alphabet - 1)]);
      (void)accepted(mutant);
    }
  }
}

}  // namespace
}  // namespace ruvector_test_npy
