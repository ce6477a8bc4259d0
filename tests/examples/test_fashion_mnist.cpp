// SPDX-License-Identifier: MIT
#include "examples/support/fashion_mnist.hpp"
#include "support/catch.hpp"

#include <unistd.h>
#include <zlib.h>
#include <array>
#include <filesystem>
#include <fstream>
#include <string>

namespace test_fashion_mnist {
namespace {

namespace fashion_mnist = examples::fashion_mnist;
using Catch::Matchers::Contains;
using ruvector::FormatError;
using namespace std::string_literals;

/// Two pictures: all pixels of the first are 1, those of the second 200; labels 3 and 9.
struct SmallSet {
  std::string images =
      "\0\0\x08\x03\0\0\0\x02\0\0\0\x1c\0\0\0\x1c"s + std::string(784, '\1') + std::string(784, '\xc8');
  std::string labels = "\0\0\x08\x01\0\0\0\x02\x03\x09"s;
  bool packed = true;
  std::size_t cut = 0;  ///< bytes that the packed pictures lack

  fashion_mnist::Images read() const {
    const auto directory = std::filesystem::temp_directory_path() / ("ruvector_fashion_" + std::to_string(::getpid()));
    std::filesystem::create_directory(directory);
    struct Remove {
      const std::filesystem::path& path;
      ~Remove() { std::filesystem::remove_all(path); }
    } const remove{directory};
    const std::string suffix = packed ? ".gz" : "";
    const std::string image_file = (directory / ("train-images-idx3-ubyte" + suffix)).string();
    write(image_file, images);
    write((directory / ("train-labels-idx1-ubyte" + suffix)).string(), labels);
    if (cut > 0) std::filesystem::resize_file(image_file, std::filesystem::file_size(image_file) - cut);
    return fashion_mnist::read(directory.string(), "train");
  }

 private:
  void write(const std::string& path, const std::string& bytes) const {
    gzFile file = ::gzopen(path.c_str(), packed ? "wb" : "wbT");  // T: as it is
    REQUIRE(::gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())) == static_cast<int>(bytes.size()));
    REQUIRE(::gzclose(file) == Z_OK);
  }
};

TEST_CASE("fashion_mnist: a small set is read, packed or not") {
  for (const bool packed : {true, false}) {
    SmallSet set;
    set.packed = packed;
    const auto images = set.read();
    REQUIRE(images.size() == 2);
    CHECK((images.pixels(0, 783) == 1 && images.pixels(1, 0) == 200));
    CHECK(images.labels == std::vector<std::uint8_t>{3, 9});
    CHECK(images.features<double>(0.5)(1, 5) == 100);
  }
}

TEST_CASE("fashion_mnist: damage is refused, and named") {
  const auto damaged = [](auto&& damage) {
    SmallSet set;
    damage(set);
    return set;
  };
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.images[3] = 1; }).read(), Contains("magic number: expected 2051"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.images[4] = 1; }).read(), Contains("number of items"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.images[7] = 3; }).read(), Contains("ends within the pictures"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.images[11] = 27; }).read(), Contains("rows of a picture: expected 28"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.images += 'x'; }).read(), Contains("after the last item"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.labels[7] = 1; }).read(), Contains("number of labels: expected 2"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.labels[9] = 10; }).read(),
                    Contains("label 1: expected 0 to 9, got 10"));
  CHECK_THROWS_WITH(damaged([](SmallSet& s) { s.labels.pop_back(); }).read(), Contains("ends within the labels"));
  CHECK_THROWS_AS(damaged([](SmallSet& s) { s.cut = 20; }).read(), FormatError);  // data are missing
  CHECK_THROWS_AS(damaged([](SmallSet& s) { s.cut = 6; }).read(), FormatError);   // only the checksum is missing
  CHECK_THROWS_WITH(fashion_mnist::read("/nowhere", "train"), Contains("apt install dataset-fashion-mnist"));
}

TEST_CASE("fashion_mnist: the real set") {
  const std::string directory = fashion_mnist::default_directory();
  if (!std::filesystem::exists(directory)) {
    WARN("skipped: no Fashion-MNIST in " << directory << " (package dataset-fashion-mnist)");
    return;
  }
  const auto test = fashion_mnist::read(directory, "t10k");
  std::array<int, 10> count{};
  for (const auto label : test.labels) ++count[label];
  CHECK(test.size() == 10000);
  CHECK(count == std::array<int, 10>{1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000});
}

}  // namespace
}  // namespace test_fashion_mnist
