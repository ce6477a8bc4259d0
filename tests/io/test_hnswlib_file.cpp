// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/io/hnswlib_file.hpp>

#include "graph/made_up_hnsw.hpp"
#include "io/files.hpp"
#include "support/allocation_failures.hpp"
#include "support/catch.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace test_hnswlib_file {
namespace {

using namespace ruvector;
using graph::HnswLayers;
using io_files::Bytes;

const std::string golden = RUVECTOR_TEST_DATA "/index.hnswlib";

template <class V>
void put(Bytes& file, std::size_t position, V value) {
  std::memcpy(file.data() + position, &value, sizeof value);
}

// What is wrong with a file: empty if nothing.
std::string complaint(const Bytes& file, io::Limits limits = {}) {
  try {
    (void)io::read_hnswlib<float>(file, limits, "some.file");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("hnswlib_file: a file of hnswlib's says what went into the index", "[io][hnsw]") {
  const auto layers = io::read_hnswlib<float>(golden);
  REQUIRE(layers.nodes() == 24);
  REQUIRE(layers.dim() == 3);
  CHECK(layers.levels() == 3);
  CHECK(layers.level(2).nodes[layers.entry()] == 11);
  for (Index i = 0; i < 24; ++i) {
    const Index fifth = i / 5;
    CHECK(layers.ids()[std::size_t(i)] == 7 * i + 1);
    CHECK(layers.vectors()(i, 0) == float(i % 5));
    CHECK(layers.vectors()(i, 1) == float(fifth));
    CHECK(layers.vectors()(i, 2) == float(i));
    CHECK(layers.deleted()[std::size_t(i)] == (i == 3 ? 1 : 0));
  }
  CHECK(layers.parameters().max_elements == 30);
  CHECK(layers.parameters().links == 3);
  CHECK(layers.parameters().max_links == 3);
  CHECK(layers.parameters().max_links_0 == 6);
  CHECK(layers.parameters().ef_construction == 20);
  CHECK(layers.parameters().level_scale == Approx(1 / std::log(3.0)).epsilon(1e-14));

  const io::MappedFile file(golden);
  const auto view = io::view_hnswlib<float>(file.bytes());
  CHECK(made_up_hnsw::same(view, layers));
  CHECK(reinterpret_cast<const std::byte*>(view.vectors().data()) == file.bytes().data() + 96 + 28);
}

TEST_CASE("hnswlib_file: what was written is read", "[io][hnsw]") {
  const std::uint64_t seed = 1;
  CAPTURE(seed);
  Rng rng(seed);
  const io_files::Directory directory(io_files::Directory::in_memory);
  const auto first = directory / "first", second = directory / "second";
  const auto check = [&]<class T>(const HnswLayers<T>& layers) {
    io::write_hnswlib(first, layers);
    const auto again = io::read_hnswlib<T>(first);
    CHECK(made_up_hnsw::same(again, layers));
    io::write_hnswlib(second, again);
    CHECK(io_files::read(first) == io_files::read(second));
  };
  check(io::read_hnswlib<float>(golden));
  for (const Index n : {0, 1, 2, 300})
    for (const Index d : {0, 1, 5}) {
      CAPTURE(n, d);
      auto floats = made_up_hnsw::rings(made_up_hnsw::normals<float>(n, d, rng), rng);
      if (n > 2) floats.marks[2] = true;
      check(HnswLayers<float>(floats));
      check(HnswLayers<double>(made_up_hnsw::rings(made_up_hnsw::normals<double>(n, d, rng), rng)));
    }
  auto unfit = made_up_hnsw::rings(made_up_hnsw::normals<float>(3, 2, rng), rng);
  unfit.built.max_links_0 = 20001;
  CHECK_THROWS_AS(io::write_hnswlib(first, HnswLayers<float>(unfit)), ConfigError);
  CHECK_THROWS_AS(io::write_hnswlib(directory / "no/where", HnswLayers<float>()), io::FileError);
  CHECK_THROWS_AS(io::read_hnswlib<float>(directory / "nothing"), io::FileError);
}

TEST_CASE("hnswlib_file: malformed files are refused, and the message says where", "[io][hnsw]") {
  const Bytes good = io_files::read(golden);
  REQUIRE(complaint(good).empty());
  for (std::size_t size = 0; size < good.size(); ++size) {
    const Bytes cut(good.begin(), good.begin() + std::ptrdiff_t(size));
    CAPTURE(size);
    CHECK(complaint(cut).find("some.file: hnswlib index, byte ") == 0);
  }
  Bytes longer = good;
  longer.push_back(std::byte(0));
  CHECK(complaint(longer).find("byte 1456: expected the end of the file, got 1 more bytes") != std::string::npos);

  // Every number of the header, far off in both directions and by one where that makes it wrong.
  struct Field {
    std::size_t position, size;
    std::vector<std::uint64_t> wrong;
  };
  const std::uint64_t most = ~std::uint64_t(0);
  for (const Field& field : std::vector<Field>{{0, 8, {1, most}},
                                               {8, 8, {23, 0, most}},
                                               {16, 8, {23, 25, 0, most, most / 48 + 2}},
                                               {24, 8, {47, 49, 0, most}},
                                               {32, 8, {39, 41, 44, 0, most, most - 7}},
                                               {40, 8, {27, 29, 0, most}},
                                               {48, 4, {1, 3, 0, most}},
                                               {52, 4, {10, 24, most}},
                                               {56, 8, {0, 2, 4, 7, most}},
                                               {64, 8, {0, 5, 7, 20001, most}},
                                               {72, 8, {0, 4, most}},
                                               {80, 8, {0, most, std::uint64_t(1) << 63}},
                                               {88, 8, {0, most}}})
    for (const std::uint64_t value : field.wrong) {
      Bytes file = good;
      std::memcpy(file.data() + field.position, &value, field.size);
      CAPTURE(field.position, value);
      CHECK(complaint(file).find("hnswlib index, byte ") != std::string::npos);
    }
  Bytes header(96);  // an empty index with vectors of 2^62 bytes
  for (const auto& [position, value] :
       std::vector<std::pair<std::size_t, std::uint64_t>>{{24, (std::uint64_t(1) << 62) + 16},
                                                          {32, (std::uint64_t(1) << 62) + 8},
                                                          {40, 8},
                                                          {56, 1},
                                                          {64, 1},
                                                          {72, 1},
                                                          {88, 1}})
    put(header, position, value);
  put(header, 48, std::uint64_t(most));
  put(header, 80, 1.0);
  CHECK(complaint(header).find("byte 32") != std::string::npos);
  put(header, 32, std::uint64_t(16));
  put(header, 24, std::uint64_t(24));
  CHECK(complaint(header).empty());

  // A link from node 1 to itself, and too many of them; a length of link lists that is none.
  Bytes file = good;
  put(file, 96 + 48 + 4, std::uint32_t(1));
  CHECK(complaint(file).find("byte 148: expected a link from 1 to another point of level 0, got 1") !=
        std::string::npos);
  file = good;
  put(file, 96 + 48, std::uint16_t(7));
  CHECK(complaint(file).find("byte 144: expected at most 6 links, got 7") != std::string::npos);
  file = good;
  put(file, 96 + 24 * 48, std::uint32_t(15));
  CHECK(complaint(file).find("byte 1248: expected at most 2 link lists of 16 bytes, got 15 bytes") !=
        std::string::npos);

  CHECK(complaint(good, {.max_bytes = 1455}).find("1455") != std::string::npos);
  CHECK(complaint(good, {.max_items = 71}).find("byte 16: expected points of 0 to 23, got 24") != std::string::npos);
  CHECK_THROWS_AS(io::read_hnswlib<double>(good), FormatError);  // 12 bytes are no doubles
}

TEST_CASE("hnswlib_file: with any byte changed it is refused or consistent", "[io][hnsw]") {
  const Bytes good = io_files::read(golden);
  Index accepted = 0;
  for (std::size_t position = 0; position < good.size(); ++position)
    for (const int value : {0x01, 0x10, 0x80, 0xff}) {
      Bytes file = good;
      file[position] ^= std::byte(value);
      accepted += complaint(file).empty() ? 1 : 0;
    }
  CHECK(accepted > 24 * 48);  // vectors and labels may be anything (a label below 2^63 − 1)
  CHECK(accepted < Index(good.size()) * 4);
}

TEST_CASE("hnswlib_file: bytes that lie anywhere are copied, and only viewed if aligned", "[io][hnsw]") {
  const Bytes good = io_files::read(golden);
  const auto layers = io::read_hnswlib<float>(good);
  std::vector<std::byte> moved(good.size() + 8);
  for (const std::size_t offset : {1u, 2u, 3u, 5u}) {
    const std::span<std::byte> file(moved.data() + offset, good.size());
    std::ranges::copy(good, file.begin());
    CHECK(made_up_hnsw::same(io::read_hnswlib<float>(file), layers));
    CHECK_THROWS_AS(io::view_hnswlib<float>(file), ShapeError);
  }
}

// Promise P-36.
TEST_CASE("hnswlib_file: any allocation of reading and writing may fail", "[io][hnsw]") {
  const auto layers = io::read_hnswlib<float>(golden);
  const Bytes good = io_files::read(golden);
  support::check_allocation_failures(
      "read_hnswlib", [] { return HnswLayers<float>(); },
      [&](HnswLayers<float>& read) { read = io::read_hnswlib<float>(golden); },
      [](const HnswLayers<float>& read) { return read.nodes() == 0; },
      [&](const HnswLayers<float>& read) { return made_up_hnsw::same(read, layers); });
  const io_files::Directory directory(io_files::Directory::in_memory);
  const std::string path = directory / "x";
  const Bytes old(7);
  io_files::write(path, old);
  support::check_allocation_failures(
      "write_hnswlib", [&] { return io_files::write(path, old), 0; }, [&](int) { io::write_hnswlib(path, layers); },
      [&](int) { return io_files::read(path) == old && directory.files() == 1; },
      [&](int) { return io_files::read(path) == good; });
}

}  // namespace
}  // namespace test_hnswlib_file
