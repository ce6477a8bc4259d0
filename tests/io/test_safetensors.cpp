// SPDX-License-Identifier: MIT
#include <ruvector/io/safetensors.hpp>

#include "io/files.hpp"
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"
#include "support/trials.hpp"

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace ruvector_test_safetensors {
namespace {

using namespace ruvector;
using io::Checksum;
using io::Dtype;
using io::SafetensorsTensor;
using io_files::Bytes;

template <class T>
struct Named {
  using Type = T;
  const char* name;
};

// Every type that has values, by its name in the golden files.
template <class Body>
void for_each_type(Body&& body) {
  body(Named<double>{"f64"}), body(Named<float>{"f32"}), body(Named<simd::float16>{"f16"});
  body(Named<simd::bfloat16>{"bf16"}), body(Named<std::int64_t>{"i64"}), body(Named<std::int32_t>{"i32"});
  body(Named<std::int16_t>{"i16"}), body(Named<std::int8_t>{"i8"}), body(Named<std::uint64_t>{"u64"});
  body(Named<std::uint32_t>{"u32"}), body(Named<std::uint16_t>{"u16"}), body(Named<std::uint8_t>{"u8"});
  body(Named<bool>{"bool"});
}

// Element i of every tensor of tests/golden/make_safetensors.py.
template <class T>
T element(int i) {
  const int value = 7 * i - 3;
  if constexpr (std::same_as<T, bool>)
    return value % 2 == 0;
  else if constexpr (std::is_class_v<T>)
    return T(float(value));
  else
    return T(value);
}

const std::map<std::string, std::vector<Index>> shapes = {
    {"matrix", {3, 5}}, {"vector", {7}}, {"scalar", {}}, {"empty", {0, 4}}, {"cube", {2, 1, 3}}};

Bytes golden(const std::string& name) {
  return io_files::read(RUVECTOR_TEST_DATA "/safetensors_" + name);
}

// A file with this header, and so many bytes behind it.
Bytes file_of(const std::string& header, std::size_t payload = 24) {
  Bytes file(8 + header.size() + payload);
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  return file;
}

void write(const std::string& path, std::vector<SafetensorsTensor> tensors, const io::SafetensorsMetadata& text = {}) {
  io::write_safetensors(path, tensors, text);
}

TEST_CASE("safetensors: files of others are read, every type and shape, mapped and from memory", "[io][safetensors]") {
  const Bytes bytes = golden("types.safetensors");
  const io::SafetensorsContent memory = io::read_safetensors(bytes);
  const io::SafetensorsFile mapped(RUVECTOR_TEST_DATA "/safetensors_types.safetensors");
  for (const io::SafetensorsContent* content : {&memory, static_cast<const io::SafetensorsContent*>(&mapped)}) {
    CHECK(content->tensors.size() == 13 * 5 + 1);
    CHECK(content->metadata == io::SafetensorsMetadata{{"format", "pt"}});
    for_each_type([&](auto type) {
      using T = typename decltype(type)::Type;
      for (const auto& [kind, shape] : shapes) {
        CAPTURE(type.name, kind);
        const SafetensorsTensor* tensor = content->find(std::string(type.name) + "." + kind);
        REQUIRE(tensor != nullptr);
        CHECK(tensor->dtype == io::dtype_of<T>());
        CHECK(tensor->shape == shape);
        const auto count = std::size_t(tensor->size());
        const auto values = std::make_unique<T[]>(count);
        tensor->copy_to(std::span<T>(values.get(), count));
        for (std::size_t i = 0; i < count; ++i) {
          const T expected = element<T>(int(i));
          CHECK(std::memcmp(&values[i], &expected, sizeof(T)) == 0);
        }
      }
    });
    CHECK(content->find("größe/../\"quoted\"\\\t")->bytes[0] == std::byte(4));
    CHECK(content->find("f32.matrix")->matrix<float>()(2, 4) == 95);
    CHECK(content->find("i64.vector")->vector<std::int64_t>()[6] == 39);
    CHECK(content->find("f32") == nullptr);
    CHECK(content->find("zzz") == nullptr);
  }
}

// The tensors of the golden files, and what they look at.
struct Example {
  std::vector<std::unique_ptr<Bytes>> memory;
  std::vector<SafetensorsTensor> tensors;

  template <class T>
  void add(std::string name, const std::vector<Index>& shape) {
    std::size_t count = 1;
    for (const Index n : shape) count *= std::size_t(n);
    memory.push_back(std::make_unique<Bytes>(count * sizeof(T)));
    for (std::size_t i = 0; i < count; ++i) {
      const T value = element<T>(int(i));
      std::memcpy(memory.back()->data() + i * sizeof(T), &value, sizeof(T));
    }
    tensors.push_back({std::move(name), io::dtype_of<T>(), shape, *memory.back()});
  }
  Example() {
    for_each_type([&](auto type) {
      for (const auto& [kind, shape] : shapes) add<typename decltype(type)::Type>(type.name + ("." + kind), shape);
    });
    add<std::uint8_t>("größe/../\"quoted\"\\\t", {1});
    *memory.back() = {std::byte(4)};
  }
};

TEST_CASE("safetensors: what is written is known to the byte, whatever the order and the locale", "[io][safetensors]") {
  const io_files::Directory directory;
  Example example;
  const io::SafetensorsMetadata metadata = {{"epoch", "3"}, {"näme", "a\nb"}};
  const auto path = directory / "x";
  const Bytes expected = golden("ours.safetensors");
  io::write_safetensors(path, example.tensors, metadata);
  CHECK((io_files::read(path) == expected));

  const io_files::GroupedLocale locale;
  std::reverse(example.tensors.begin(), example.tensors.end());
  io::write_safetensors(path, example.tensors, metadata);
  CHECK((io_files::read(path) == expected));

  // Written, read, written again.
  const io::SafetensorsFile file(path);
  io::write_safetensors(path, file.tensors, file.metadata);  // over the file that is mapped
  CHECK((io_files::read(path) == expected));
  CHECK(file.find("f64.matrix")->values<double>()[14] == 95);
}

TEST_CASE("safetensors: a round trip keeps every bit, also of nothing and of ten thousand tensors",
          "[io][safetensors]") {
  const io_files::Directory directory;
  const auto path = directory / "x";
  write(path, {});
  CHECK(io::SafetensorsFile(path).tensors.empty());

  std::vector<SafetensorsTensor> tensors;
  Vector<std::uint64_t> random(10000);
  std::mt19937_64 bits(42);
  for (auto& x : random) x = bits();  // NaN among them
  const auto bytes = std::as_bytes(random.span());
  for (Index i = 0; i < 10000; ++i) {
    const auto type = static_cast<Dtype>(i % 17);
    const Index count = i % 5, size = io::dtype_size(type);
    tensors.push_back({"layer." + std::to_string(i),
                       type,
                       {count, 1},
                       bytes.subspan(std::size_t(i % 1000), std::size_t(count * size))});
  }
  io::write_safetensors(path, tensors);
  const io::SafetensorsFile file(path);
  REQUIRE(file.tensors.size() == 10000);
  bool same = true;
  for (const SafetensorsTensor& expected : tensors) {
    const SafetensorsTensor* tensor = file.find(expected.name);
    REQUIRE(tensor != nullptr);
    same = same && tensor->dtype == expected.dtype && tensor->shape == expected.shape &&
           support::same_bits(tensor->bytes, expected.bytes);
    same = same &&
           reinterpret_cast<std::uintptr_t>(tensor->bytes.data()) % std::size_t(io::dtype_size(tensor->dtype)) == 0;
  }
  CHECK(same);
}

TEST_CASE("safetensors: matrices, vectors and numbers are tensors", "[io][safetensors]") {
  const io_files::Directory directory;
  const Matrix<float> matrix(2, 3, 1.5f);
  const Vector<std::int64_t> vector(4, 7);
  const double number = 0.25;
  write(directory / "x", {io::safetensors_tensor("m", matrix), io::safetensors_tensor("v", vector),
                          io::safetensors_tensor("n", number)});
  io::SafetensorsFile file(directory / "x");
  const io::SafetensorsFile moved = std::move(file);
  CHECK(moved.find("m")->values<float>()[5] == 1.5f);
  CHECK(moved.find("m")->matrix<float>().cols() == 3);
  CHECK(moved.find("v")->vector<std::int64_t>()[3] == 7);
  CHECK(moved.find("n")->shape.empty());
  CHECK(moved.find("n")->values<double>()[0] == 0.25);

  using Catch::Matchers::Equals;
  const SafetensorsTensor m = *moved.find("m");
  CHECK_THROWS_WITH((void)m.values<double>(), Equals("m: expected elements of type F64, got F32"));
  CHECK_THROWS_WITH((void)m.vector<float>(), Equals("m: expected 1 dimensions, got the shape [2, 3]"));
  Vector<float> five(5);
  CHECK_THROWS_AS(m.copy_to(five.span()), ShapeError);
  const SafetensorsTensor odd{"odd", Dtype::f32, {5}, std::as_bytes(matrix.span()).subspan(1, 20)};
  CHECK_THROWS_WITH((void)odd.values<float>(),
                    Equals("odd: its elements are not aligned in memory, and can only be copied"));
  odd.copy_to(five.span());
  CHECK(std::memcmp(five.data(), odd.bytes.data(), 20) == 0);
}

TEST_CASE("safetensors: malformed files are refused, and the message says what is wrong where", "[io][safetensors]") {
  using Catch::Matchers::Contains;
  const std::string a = R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})";
  CHECK(io::read_safetensors(file_of(a + "}")).tensors.size() == 1);
  CHECK(io::read_safetensors(file_of(a + "}   ")).tensors.size() == 1);
  const std::pair<std::string, std::string> cases[] = {
      {"", "byte 8: expected '{'"},
      {" " + a + "}", "byte 8: expected '{'"},
      {"\xef\xbb\xbf" + a + "}", "byte 8: expected '{'"},
      {"[]", "byte 8: expected '{'"},
      {a, "byte 64: malformed JSON"},
      {a + "}\n", "byte 65: expected '}' at the end"},
      {a + "}}", "byte 65: malformed JSON"},
      {a + "} {}", "byte 66: malformed JSON"},
      {a + std::string("}\0}", 3), "byte 65: malformed JSON"},
      {a + ",}", "malformed JSON"},
      {"{}", "expected 0 bytes of tensors, got 24"},
      {a + R"(,"a":{"dtype":"F32","shape":[0],"data_offsets":[24,24]}})", "tensor 'a' is there twice"},
      {a + R"(,"__metadata__":{"k":"v","k":"w"}})", "__metadata__ has a key twice"},
      {a + R"(,"__metadata__":{},"__metadata__":{}})", "__metadata__ is there twice"},
      {a + R"(,"__metadata__":{"k":1}})", "__metadata__: a number is not expected as 'k'"},
      {a + R"(,"__metadata__":{"k":{}}})", "__metadata__: an object is not expected"},
      {a + R"(,"__metadata__":null})", "null is not expected"},
      {a + R"(,"__metadata__":"x"})", "a string is not expected as '__metadata__'"},
      {a + R"(,"b":[]})", "an array is not expected as 'b'"},
      {a + R"(,"b":{}})", "tensor 'b': dtype, shape or data_offsets is missing"},
      {a + R"(,"b":{"shape":[[[[]]]]}})", "at most 3 levels"},
      {a + R"(,"b":{"shape":[[]]}})", "at most 3 levels"},
      {a + R"(,"b":{"shape":{}}})", "tensor 'b': an object is not expected"},
      {a + R"(,"b":{"shape":true}})", "true and false are not expected"},
      {a + R"(,"b":{"shape":[1],"shape":[1]}})", "tensor 'b': an array is not expected as 'shape'"},
      {a + R"(,"b":{"dtype":"F32","dtype":"F32"}})", "tensor 'b': a string is not expected as 'dtype'"},
      {a + R"(,"b":{"offset":1}})", "tensor 'b': a number is not expected as 'offset'"},
      {a + R"(,"b":{"dtype":"f32"}})", "tensor 'b': expected a known dtype, got 'f32'"},
      {a + R"(,"b":{"dtype":"F4"}})", "expected a known dtype, got 'F4'"},
      {a + R"(,"b":{"shape":[1.0]}})", "numbers are expected without sign"},
      {a + R"(,"b":{"shape":[-1]}})", "numbers are expected without sign"},
      {a + R"(,"b":{"shape":[-0]}})", "numbers are expected without sign"},
      {a + R"(,"b":{"shape":[01]}})", "malformed JSON"},
      {a + R"(,"b":{"shape":[18446744073709551616]}})", "numbers are expected without sign"},
      {a + R"(,"b":{"shape":[1e309]}})", "malformed JSON"},
      {a + R"(,"b":{"shape":[NaN]}})", "malformed JSON"},
      {a + R"(,"b":{"shape":[9223372036854775808]}})", "tensor 'b': expected a shape below 2^63"},
      {a + R"(,"b":{"data_offsets":[24]}})", "tensor 'b': expected 2 data_offsets, got fewer"},
      {a + R"(,"b":{"data_offsets":[24,24,24]}})", "tensor 'b': expected 2 data_offsets, got more"},
      {a + R"(,"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"c":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})",
       "tensor 'c': expected data_offsets from 24 on within 24 bytes, got [8, 8]"},  // overlaps
      {R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[4,24]}})", "from 0 on within 24 bytes, got [4, 24]"},
      {R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}})", "expected 20 bytes of tensors, got 24"},
      {R"({"a":{"dtype":"F32","shape":[7],"data_offsets":[0,28]}})", "within 24 bytes, got [0, 28]"},
      {R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[24,0]}})", "got [24, 0]"},
      {R"({"a":{"dtype":"F32","shape":[5],"data_offsets":[0,24]}})",
       "tensor 'a' of shape [5] F32: expected data_offsets 20 bytes apart, got 24"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", "expected at most 274877906944"},
      {R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", "expected at most 274877906944"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775807,0],"data_offsets":[0,0]}})", "expected at most 274877906944"},
      {"{\"\xff\":{}}", "malformed JSON"},
      {R"({"\ud800":{}})", "malformed JSON"},
      {"{\"\n\":{}}", "malformed JSON"},
      {R"({"a":{"dtype":"U8","shape":[)" +
           [] {
             std::string ones = "24";
             for (int i = 0; i < 64; ++i) ones += ",1";
             return ones;
           }() +
           R"(],"data_offsets":[0,24]}})",
       "tensor 'a': expected at most 64 dimensions, got more"},
      {"{\"a\":" + std::string(100000, '[') + "}", "an array is not expected as 'a'"},
  };
  for (const auto& [header, message] : cases) {
    CAPTURE(header.substr(0, 200));
    CHECK_THROWS_WITH(io::read_safetensors(file_of(header), {}, Checksum::verify, "x.st"),
                      Contains("x.st: ") && Contains(message));
    CHECK_THROWS_AS(io::read_safetensors(file_of(header)), FormatError);
  }
}

TEST_CASE("safetensors: lengths are checked before anything is allocated", "[io][safetensors]") {
  using Catch::Matchers::Contains;
  for (std::size_t n = 0; n < 8; ++n)
    CHECK_THROWS_WITH(io::read_safetensors(Bytes(n)), Contains("expected 8 bytes of length"));
  for (const std::uint64_t length : {std::uint64_t(1), std::uint64_t(100'000'001), ~std::uint64_t(0)}) {
    Bytes file(8);
    std::memcpy(file.data(), &length, 8);
    CHECK_THROWS_WITH(io::read_safetensors(file), Contains("expected a header of at most 0 bytes"));
  }
  Bytes long_header(8 + 100'000'001);
  const std::uint64_t length = 100'000'001;
  std::memcpy(long_header.data(), &length, 8);
  CHECK_THROWS_WITH(io::read_safetensors(long_header), Contains("at most 100000000 bytes, got 100000001"));
}

TEST_CASE("safetensors: limits hold for each call", "[io][safetensors]") {
  const std::string path = RUVECTOR_TEST_DATA "/safetensors_types.safetensors";
  const Bytes bytes = io_files::read(path);
  const auto size = Index(bytes.size());
  CHECK(io::read_safetensors(bytes, {.max_bytes = size, .max_items = 15}).tensors.size() == 66);
  CHECK_THROWS_AS(io::read_safetensors(bytes, {.max_bytes = size - 1}), FormatError);
  CHECK_THROWS_AS(io::read_safetensors(bytes, {.max_items = 14}), FormatError);
  CHECK_THROWS_AS(io::SafetensorsFile(path, {.max_bytes = size - 1}), FormatError);
  CHECK_THROWS_AS(io::SafetensorsFile(path, {.max_items = 14}), FormatError);
  CHECK_THROWS_AS(io::SafetensorsFile("/nowhere/x"), io::FileError);
  CHECK_THROWS_AS(io::SafetensorsFile("/dev/null"), io::FileError);
}

TEST_CASE("safetensors: what could not be read is not written", "[io][safetensors]") {
  const io_files::Directory directory;
  const Vector<float> x(6);
  const auto path = directory / "x";
  using Tensors = std::vector<SafetensorsTensor>;
  const auto tensor = [&](std::string name, std::vector<Index> shape) {
    return io::safetensors_tensor<float>(std::move(name), x.span(), std::move(shape));
  };
  for (const Tensors& tensors :
       {Tensors{tensor("a", {6}), tensor("a", {6})}, Tensors{tensor("__metadata__", {6})}, Tensors{tensor("a", {5})},
        Tensors{tensor("a", {-1, -6})}, Tensors{tensor("\xff", {6})}, Tensors{tensor("a", std::vector<Index>(65, 1))},
        Tensors{tensor("a", {Index(1) << 62, 4})}})
    CHECK_THROWS_AS(write(path, tensors), FormatError);
  CHECK_THROWS_AS(write(path, {}, {{"key", "\xff"}}), FormatError);
  CHECK(directory.files() == 0);
}

TEST_CASE("safetensors: names are data, not paths", "[io][safetensors]") {
  const io_files::Directory directory;
  const Vector<float> x(1, 5.0f);
  std::vector<SafetensorsTensor> tensors;
  for (const char* name : {"../../etc/passwd", "/etc/passwd", "a/b", "", ".", "C:\\x", "%s%n", "\x01", "x\u2028y"})
    tensors.push_back(io::safetensors_tensor(name, x));
  write(directory / "x", tensors);
  const io::SafetensorsFile file(directory / "x");
  for (const SafetensorsTensor& tensor : tensors) CHECK(file.find(tensor.name)->values<float>()[0] == 5);
  CHECK(directory.files() == 1);
}

TEST_CASE("safetensors: every flipped bit of a file of ours is found, and of another's harmless", "[io][safetensors]") {
  const io_files::Directory directory;
  Matrix<float> matrix(2, 3, 0.5f);
  const Vector<std::int64_t> steps(1, 12);
  write(directory / "x", {io::safetensors_tensor("weight", matrix), io::safetensors_tensor("steps", steps)},
        {{"a \u00e9", "\x01"}});
  Bytes ours = io_files::read(directory / "x"), others = golden("types.safetensors");
  CHECK(io::read_safetensors(ours).tensors.size() == 2);
  int found = 0, accepted = 0;
  for (Bytes* file : {&ours, &others})
    for (std::size_t i = 0; i < file->size(); ++i)
      for (int bit = 0; bit < 8; ++bit) {
        const Bytes copy = [&] {  // its own allocation: ASan sees a byte too far
          Bytes flipped = *file;
          flipped[i] ^= std::byte(1 << bit);
          return flipped;
        }();
        try {
          const auto content = io::read_safetensors(copy);
          ++accepted;
          for (const SafetensorsTensor& tensor : content.tensors) {
            const auto* begin = tensor.bytes.data();
            REQUIRE((begin >= copy.data() && begin + tensor.bytes.size() <= copy.data() + copy.size()));
          }
          REQUIRE(file == &others);
        } catch (const FormatError&) {
          found += file == &ours;
        }
        if (file == &others && i > 600) i += 30;  // a sample of its bulk
      }
  CHECK(found == int(8 * ours.size()));
  CHECK(accepted > 0);
}

TEST_CASE("safetensors: a checksum can be ignored, and metadata cannot feign one", "[io][safetensors]") {
  using Catch::Matchers::Contains;
  Bytes file = golden("ours.safetensors");
  file.back() ^= std::byte(1);
  CHECK_THROWS_WITH(io::read_safetensors(file), Contains("the file is damaged"));
  CHECK(io::read_safetensors(file, {}, Checksum::ignore).tensors.size() == 66);
  for (const char* metadata : {R"("ruvector.checksum":"0123456789abcdef")", R"("ruvector.format":"1")",
                               R"("ruvector.checksum":"0123456789abcdef","ruvector.format":"1")",
                               R"("ruvector.format":"1","ruvector.checksum":"0123456789abcdef")",
                               R"("ruvector.checksum":"0","ruvector.format":"1")"}) {
    const Bytes feigned = file_of(std::string("{\"__metadata__\":{") + metadata + "}}", 0);
    CHECK_THROWS_WITH(io::read_safetensors(feigned), Contains("checksum") || Contains("damaged"));
    CHECK(io::read_safetensors(feigned, {}, Checksum::ignore).tensors.empty());
  }
}

// The generator of make_safetensors.py.
struct SplitMix {
  std::uint64_t state;
  std::size_t below(std::size_t n) {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % n;
  }
};

Bytes mutant(std::uint64_t number) {
  static const std::string bases[] = {
      R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})",
      "{\"__metadata__\":{\"k\":\"v\",\"\xc3\xa9\":\"\\u00e9\"},\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_"
      "offsets\":[0,12]},\"b\":{\"dtype\":\"U8\",\"shape\":[12],\"data_offsets\":[12,24]}}   ",
      "{ \"a\" : {\"shape\":[], \"dtype\":\"F64\", \"data_offsets\":[16,24]},\n\"b\":{\"dtype\":\"I64\",\"shape\":[2,1,"
      "1],\"data_offsets\":[0,16]},\"c\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[16,16]}}",
      R"({"a":{"dtype":"BOOL","shape":[10],"data_offsets":[0,10]},"aa":{"dtype":"I8","shape":[14],"data_offsets":[10,24]}})",
  };
  static const std::string pieces[] = {"0",
                                       "1",
                                       "2",
                                       "4",
                                       "9",
                                       "-",
                                       ".",
                                       "e",
                                       "E1",
                                       "\"",
                                       "\\",
                                       "{",
                                       "}",
                                       "[",
                                       "]",
                                       ",",
                                       ":",
                                       " ",
                                       "\n",
                                       "\t",
                                       std::string(1, '\0'),
                                       "\x01",
                                       "\x7f",
                                       "\x80",
                                       "\xc3\xa9",
                                       "\xff",
                                       "\xef\xbb\xbf",
                                       "a",
                                       "b",
                                       "null",
                                       "true",
                                       "NaN",
                                       "1e309",
                                       "99999999999999999999",
                                       "18446744073709551616",
                                       "9223372036854775808",
                                       "F32",
                                       "U8",
                                       "__metadata__",
                                       "\\u0061",
                                       "\\ud800",
                                       "\\ud83d\\ude00",
                                       "[[[",
                                       "\"a\":",
                                       ",0",
                                       "/*x*/",
                                       "[]",
                                       "{}"};
  SplitMix random{number};
  std::string text = bases[random.below(std::size(bases))];
  for (std::size_t edits = 1 + random.below(3); edits > 0 && !text.empty(); --edits) {
    const std::size_t kind = random.below(8), at = random.below(text.size());
    if (kind == 0) {
      text.replace(at, 1, pieces[random.below(std::size(pieces))]);
    } else if (kind == 1) {
      text.insert(at, pieces[random.below(std::size(pieces))]);
    } else if (kind == 2) {
      text.erase(at, 1 + random.below(3));
    } else if (kind == 3) {
      const std::size_t start = random.below(text.size());
      text.insert(at, text.substr(start, 1 + random.below(60)));
    } else {
      text.insert(at, 1, " \n\t "[random.below(4)]);
    }
  }
  const int offsets[] = {0, 0, 0, 0, 0, 0, -1, 1};
  const std::uint64_t length = text.size() + std::uint64_t(std::int64_t(offsets[random.below(8)]));
  Bytes file = file_of(text);
  std::memcpy(file.data(), &length, 8);
  return file;
}

TEST_CASE("safetensors: 100,000 mutated headers are judged as an independent reader does", "[io][safetensors]") {
  const Bytes verdicts = golden("verdicts.bin");
  REQUIRE(verdicts.size() == 12500);
  const std::size_t count = support::trials<std::size_t>(100000);
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Bytes file = mutant(i);
    bool valid = true;
    try {
      (void)io::read_safetensors(file);
    } catch (const FormatError&) {
      valid = false;
    }
    accepted += valid;
    const bool expected = (verdicts[i / 8] >> (i % 8) & std::byte(1)) == std::byte(1);
    if (valid != expected) {
      CAPTURE(i, valid, std::string(reinterpret_cast<const char*>(file.data()) + 8, file.size() - 32));
      CHECK(valid == expected);
    }
  }
  CHECK(accepted > count / 20);
}

TEST_CASE("safetensors: no truncation crashes or reaches outside", "[io][safetensors]") {
  const Bytes good = golden("ours.safetensors");
  for (std::size_t n = 0; n < good.size(); ++n) {
    const Bytes cut(good.begin(), good.begin() + std::ptrdiff_t(n));
    CHECK_THROWS_AS(io::read_safetensors(cut), FormatError);
  }
}

TEST_CASE("safetensors: reading takes memory for the header, not for what it claims", "[io][safetensors]") {
  if (!support::allocations_counted()) return;
  // Many tensors of nothing, and many dimensions: the most objects for the fewest characters.
  std::string many = "{", deep = many;
  for (int i = 0; i < 20000; ++i)
    many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  for (int i = 0; i < 2000; ++i) {
    deep += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","data_offsets":[0,0],"shape":[0)";
    for (int k = 0; k < 63; ++k) deep += ",0";
    deep += "]}";
  }
  for (const std::string& header : {many + "}", deep + "}"}) {
    const Bytes file = file_of(header, 0);
    const std::ptrdiff_t peak = support::peak_bytes_in([&] { (void)io::read_safetensors(file); });
    CAPTURE(peak, file.size(), double(peak) / double(file.size()));
    CHECK(peak <= 10 * std::ptrdiff_t(file.size()));
  }
  const io_files::Directory directory;
  const Vector<float> big(1 << 20);
  write(directory / "x", {io::safetensors_tensor("x", big)});
  CHECK(support::peak_bytes_in([&] { (void)io::SafetensorsFile(directory / "x"); }) < 20000);
}

TEST_CASE("safetensors: any allocation of writing and reading may fail", "[io][safetensors]") {
  const io_files::Directory directory;
  const auto path = directory / "x";
  const Matrix<float> old(1, 1, 1.0f), fresh(40, 50, 2.0f);
  write(path, {io::safetensors_tensor("w", old)});
  const Bytes before = io_files::read(path);
  const std::vector<SafetensorsTensor> tensors = {io::safetensors_tensor("w", fresh), io::safetensors_tensor("o", old)};
  io::write_safetensors(directory / "y", tensors);
  const Bytes complete = io_files::read(directory / "y");
  bool first_round = true;
  const auto points = support::fail_each_allocation(
      [&] {
        io::write_safetensors(path, tensors);
        first_round = false;
      },
      [&] {
        CHECK((io_files::read(path) == (first_round ? before : complete)));
        CHECK(directory.files() == 2);
      });
  CHECK(io::SafetensorsFile(path).find("w")->matrix<float>()(39, 49) == 2);
  const auto reading = support::fail_each_allocation([&] { (void)io::SafetensorsFile(path); }, [] {});
  INFO("allocations that failed: " << points << " and " << reading);
  if (support::allocations_counted()) CHECK((points > 10 && reading > 10));
}

}  // namespace
}  // namespace ruvector_test_safetensors
