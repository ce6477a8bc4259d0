// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/error.hpp>
#include <ruvector/core/matrix.hpp>

#include <zlib.h>
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace examples::fashion_mnist {

using ruvector::Index;

/// Pictures of clothes, 28×28 grey values, in ten classes (Xiao et al. 2017, "Fashion-MNIST: a novel image dataset").
struct Images {
  static constexpr Index side = 28;     ///< rows and columns of a picture
  static constexpr Index classes = 10;  ///< T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, boot
  ruvector::Matrix<std::uint8_t> pixels;  ///< [n×784], a picture a row, 0 is background
  std::vector<std::uint8_t> labels;       ///< [n], below `classes`

  /// The number of pictures.
  [[nodiscard]] Index size() const { return pixels.rows(); }

  /// The pictures as numbers, each pixel times `scale`: 1 for the distances of nearest-neighbour benchmarks, 1/255 for
  /// networks. [n×784]
  template <ruvector::Real T>
  [[nodiscard]] ruvector::Matrix<T> features(T scale = 1) const {
    ruvector::Matrix<T> x(pixels.rows(), pixels.cols());
    std::transform(pixels.span().begin(), pixels.span().end(), x.span().begin(),
                   [scale](std::uint8_t pixel) { return scale * T(pixel); });
    return x;
  }
};

namespace detail {

/// A file in IDX format, packed by gzip or not: a magic number that names the element type and the dimensions, their
/// sizes as 32-bit big-endian numbers, then the elements.
class IdxFile {
 public:
  explicit IdxFile(std::string path) : path_(std::move(path)), file_(::gzopen(path_.c_str(), "rb")) {
    if (!file_)
      fail(
          "cannot open (Debian and Ubuntu: apt install dataset-fashion-mnist; elsewhere name the folder of the four "
          "files of Fashion-MNIST in the option --fashion-mnist or in the environment's RUVECTOR_FASHION_MNIST)");
  }

  [[noreturn]] void fail(const std::string& what) const { ruvector::throw_format_error(path_, what); }

  /// A number of the header; `what` stands for it in messages.
  std::uint32_t number(const char* what) {
    std::array<std::uint8_t, 4> bytes{};
    read(bytes, what);
    return std::uint32_t(bytes[0]) << 24 | std::uint32_t(bytes[1]) << 16 | std::uint32_t(bytes[2]) << 8 | bytes[3];
  }
  /// A number of the header that can only be one.
  void expect(const char* what, std::uint32_t expected) {
    if (const std::uint32_t actual = number(what); actual != expected)
      fail(std::string(what) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual));
  }
  /// How many items follow. The bound keeps a damaged number from asking for the whole memory.
  Index count() {
    constexpr std::uint32_t most = 1'000'000;
    const std::uint32_t items = number("number of items");
    if (items == 0 || items > most)
      fail("number of items: expected 1 to " + std::to_string(most) + ", got " + std::to_string(items));
    return Index(items);
  }
  void read(std::span<std::uint8_t> bytes, const char* what) {
    constexpr std::size_t most = std::size_t(1) << 30;  // gzread counts in unsigned int, and answers in int
    while (!bytes.empty()) {
      const int got = ::gzread(file_.get(), bytes.data(), static_cast<unsigned>(std::min(bytes.size(), most)));
      if (got < 0) fail(std::string(what) + ": " + message());
      if (got == 0) fail(std::string("the file ends within the ") + what);
      bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
  }
  /// Nothing may follow; only here does zlib compare its checksum.
  void end() {
    std::uint8_t byte = 0;
    const int got = ::gzread(file_.get(), &byte, 1);
    if (got > 0) fail("there are bytes after the last item");
    if (int code = Z_OK; got < 0 || (::gzerror(file_.get(), &code), code != Z_OK)) fail(message());
  }

 private:
  [[nodiscard]] std::string message() const {
    int code = Z_OK;
    const char* text = ::gzerror(file_.get(), &code);
    return text != nullptr && *text != '\0' ? text : "zlib error " + std::to_string(code);
  }

  struct Close {
    void operator()(gzFile file) const noexcept { ::gzclose_r(file); }
  };
  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
};

/// The packed file if it is there, else the plain one.
[[nodiscard]] inline std::string find_file(const std::string& directory, const std::string& name) {
  const std::string plain = directory + "/" + name;
  return std::filesystem::exists(plain) ? plain : plain + ".gz";
}

}  // namespace detail

/// Where the data set is: the environment's RUVECTOR_FASHION_MNIST, else where Debian's package puts it.
[[nodiscard]] inline std::string default_directory() {
  const char* named = std::getenv("RUVECTOR_FASHION_MNIST");
  return named != nullptr && *named != '\0' ? named : "/usr/share/datasets/fashion-mnist";
}

/// Reads `directory`/`part`-{images-idx3,labels-idx1}-ubyte[.gz]; `part` is "train" (60,000 pictures) or "t10k" (the
/// 10,000 of the test). Every size and label is checked. Throws FormatError "file: what" where a file is missing, cut
/// off or not of this kind. 0.3 s for the 60,000.
[[nodiscard]] inline Images read(const std::string& directory, const std::string& part) {
  constexpr std::uint32_t bytes_of_3_dimensions = 0x803, bytes_of_1_dimension = 0x801;
  Images images;
  detail::IdxFile pictures(detail::find_file(directory, part + "-images-idx3-ubyte"));
  pictures.expect("magic number", bytes_of_3_dimensions);
  const Index n = pictures.count();
  pictures.expect("rows of a picture", Images::side);
  pictures.expect("columns of a picture", Images::side);
  images.pixels = ruvector::Matrix<std::uint8_t>(n, Images::side * Images::side);
  pictures.read(images.pixels.span(), "pictures");
  pictures.end();

  detail::IdxFile labels(detail::find_file(directory, part + "-labels-idx1-ubyte"));
  labels.expect("magic number", bytes_of_1_dimension);
  labels.expect("number of labels", static_cast<std::uint32_t>(n));
  images.labels.resize(static_cast<std::size_t>(n));
  labels.read(images.labels, "labels");
  labels.end();
  if (const auto wrong =
          std::find_if(images.labels.begin(), images.labels.end(), [](auto y) { return y >= Images::classes; });
      wrong != images.labels.end())
    labels.fail("label " + std::to_string(wrong - images.labels.begin()) + ": expected 0 to 9, got " +
                std::to_string(*wrong));
  return images;
}

}  // namespace examples::fashion_mnist
