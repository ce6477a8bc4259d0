// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/graph/hnsw_layers.hpp"
#include "ruvector/io/atomic_file.hpp"
#include "ruvector/io/file.hpp"
#include "ruvector/io/mapped_file.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

// The format of hnswlib's saveIndex, versions 0.6.2 to 0.8, as a 64-bit machine writes it:
//
//   byte  0  u64  0, the offset of a node's links on level 0 within its block
//         8  u64  points that the index has room for
//        16  u64  points
//        24  u64  bytes of a block
//        32  u64  offset of the label within a block
//        40  u64  offset of the vector within a block
//        48  i32  top level; −1 without points
//        52  u32  entry point; 2^32 − 1 without points
//        56  u64  most links above level 0
//        64  u64  most links on level 0
//        72  u64  M
//        80  f64  scale of the random levels
//        88  u64  breadth of the search for neighbours
//        96  a block a point: u16 number of links, u8 deleted, u8 unused, u32 links[most links on level 0], vector, u64
//            label; then for each point u32 bytes, and so many bytes of link lists from level 1 up:
//            u16 number of links, u16 unused, u32 links[most links above level 0]

namespace ruvector::inline RUVECTOR_ABI::io {

static_assert(std::endian::native == std::endian::little,
              "files of hnswlib are read and written as they lie in memory");

namespace detail {

inline constexpr Index hnswlib_header_size = 96;
inline constexpr Index hnswlib_most_levels = 64;    // beyond 2^64 points
inline constexpr Index hnswlib_most_links = 20000;  // hnswlib allows M = 10000
inline constexpr std::uint32_t hnswlib_no_entry = std::uint32_t(-1);

// The bytes of an index file, checked: a graph::HnswSource. Whatever they are, no byte outside of them is read, and
// what is allocated is at most 9 bytes a point.
class HnswlibFile {
 public:
  HnswlibFile(std::span<const std::byte> file, Index element_size, Limits limits, std::string_view name)
      : bytes_(file.data()), size_(Index(file.size())), name_(name) {
    check_file_size(name, size_, limits);
    if (size_ < hnswlib_header_size) fail(size_, "the end of a header of 96 bytes", "the end of the file");
    read_links_and_sizes(element_size, limits);
    read_counts(limits, element_size);
    read_levels();
    for (Index i = 0; i < nodes_; ++i) {
      const auto node = graph::HnswNode(i);
      (void)number(block(node) + label_offset_, "label", 0, std::numeric_limits<Index>::max() - 1);
      for (Index l = 0; l <= level(node); ++l) check_links(node, l);
    }
  }

  [[nodiscard]] Index nodes() const { return nodes_; }
  [[nodiscard]] graph::HnswParameters parameters() const { return parameters_; }
  [[nodiscard]] graph::HnswNode entry() const { return at<std::uint32_t>(52); }
  [[nodiscard]] Index level(graph::HnswNode node) const { return levels_[node]; }
  [[nodiscard]] std::uint64_t label(graph::HnswNode node) const {
    return at<std::uint64_t>(block(node) + label_offset_);
  }
  [[nodiscard]] bool deleted(graph::HnswNode node) const { return (at<std::uint8_t>(block(node) + 2) & 1) != 0; }
  [[nodiscard]] Index degree(graph::HnswNode node, Index l) const { return at<std::uint16_t>(list(node, l)); }
  [[nodiscard]] graph::HnswNode link(graph::HnswNode node, Index l, Index j) const {
    return at<std::uint32_t>(list(node, l) + 4 + 4 * j);
  }
  [[nodiscard]] Index vector_bytes() const { return label_offset_ - data_offset_; }
  [[nodiscard]] const std::byte* vector(graph::HnswNode node) const { return bytes_ + block(node) + data_offset_; }

 private:
  template <class V>
  [[nodiscard]] V at(Index position) const {
    RUVECTOR_ASSERT(0 <= position && position + Index(sizeof(V)) <= size_);
    V value;
    std::memcpy(&value, bytes_ + position, sizeof(V));
    return value;
  }

  [[noreturn, gnu::cold, gnu::noinline]] void fail(Index position, std::string_view expected,
                                                   std::string_view actual) const {
    throw_format_error(name_, "hnswlib index, byte " + std::to_string(position) + ": expected " +
                                  std::string(expected) + ", got " + std::string(actual));
  }

  // The u64 at a position, which is one of low … high.
  [[nodiscard]] Index number(Index position, std::string_view what, Index low, Index high) const {
    const auto value = at<std::uint64_t>(position);
    if (value < std::uint64_t(low) || value > std::uint64_t(high)) [[unlikely]]
      fail(position,
           std::string(what) + " of " + std::to_string(low) + (high == low ? "" : " to " + std::to_string(high)),
           std::to_string(value));
    return Index(value);
  }

  void read_links_and_sizes(Index element_size, Limits limits) {
    (void)number(0, "offset of links", 0, 0);
    parameters_.max_links_0 = number(64, "most links on level 0", 1, hnswlib_most_links);
    parameters_.max_links = number(56, "most links above level 0", 1, parameters_.max_links_0);
    parameters_.links = number(72, "links of a new point", 1, parameters_.max_links);
    parameters_.ef_construction = number(88, "breadth of construction", 1, std::numeric_limits<std::int32_t>::max());
    parameters_.level_scale = at<double>(80);
    if (!(parameters_.level_scale > 0)) fail(80, "scale of levels above 0", std::to_string(parameters_.level_scale));
    const Index links = 4 + 4 * parameters_.max_links_0;
    data_offset_ = number(40, "offset of vectors", links, links);
    const Index largest = std::clamp(limits.max_bytes, data_offset_, Index(1) << 60);
    label_offset_ = number(32, "offset of labels", data_offset_, largest);
    if (vector_bytes() % element_size != 0)
      fail(32, "vectors of elements of " + std::to_string(element_size) + " bytes",
           std::to_string(vector_bytes()) + " bytes");
    block_size_ = number(24, "bytes of a block", label_offset_ + 8, label_offset_ + 8);
  }

  void read_counts(Limits limits, Index element_size) {
    const Index dim = std::max(Index(1), vector_bytes() / element_size);
    const Index most =
        std::min({(size_ - hnswlib_header_size) / block_size_, Index(hnswlib_no_entry) - 1, limits.max_items / dim});
    nodes_ = number(16, "points", 0, most);
    parameters_.max_elements = number(8, "room for points", nodes_, std::numeric_limits<Index>::max());
  }

  void read_levels() {
    const Index top = at<std::int32_t>(48), list_size = 4 + 4 * parameters_.max_links;
    levels_.resize(std::size_t(nodes_));
    upper_.resize(std::size_t(nodes_));
    Index position = hnswlib_header_size + nodes_ * block_size_;
    for (std::size_t i = 0; i < levels_.size(); ++i) {
      if (size_ - position < 4) fail(position, "the length of link lists", "the end of the file");
      const Index bytes = at<std::uint32_t>(position), levels = bytes / list_size;
      if (bytes % list_size != 0 || levels > std::min(top, hnswlib_most_levels))
        fail(position, "at most " + std::to_string(top) + " link lists of " + std::to_string(list_size) + " bytes",
             std::to_string(bytes) + " bytes");
      position += 4;
      if (bytes > size_ - position)
        fail(position, std::to_string(bytes) + " bytes of link lists", std::to_string(size_ - position));
      levels_[i] = std::uint8_t(levels);
      upper_[i] = position;
      position += bytes;
    }
    if (position != size_) fail(position, "the end of the file", std::to_string(size_ - position) + " more bytes");
    check_entry(top);
  }

  void check_entry(Index top) const {
    if (nodes_ == 0) {
      if (top != -1) fail(48, "top level -1 without points", std::to_string(top));
      if (entry() != hnswlib_no_entry) fail(52, "no entry point without points", std::to_string(entry()));
      return;
    }
    if (Index(entry()) >= nodes_) fail(52, "an entry point below " + std::to_string(nodes_), std::to_string(entry()));
    if (level(entry()) != top)
      fail(48, "the level of the entry point, " + std::to_string(level(entry())), std::to_string(top));
  }

  void check_links(graph::HnswNode node, Index l) const {
    const Index position = list(node, l), most = l == 0 ? parameters_.max_links_0 : parameters_.max_links;
    if (degree(node, l) > most)
      fail(position, "at most " + std::to_string(most) + " links", std::to_string(degree(node, l)));
    for (Index j = 0; j < degree(node, l); ++j) {
      const graph::HnswNode target = link(node, l, j);
      if (Index(target) >= nodes_ || target == node || level(target) < l)
        fail(position + 4 + 4 * j,
             "a link from " + std::to_string(node) + " to another point of level " + std::to_string(l),
             std::to_string(target));
    }
  }

  [[nodiscard]] Index block(graph::HnswNode node) const { return hnswlib_header_size + Index(node) * block_size_; }
  [[nodiscard]] Index list(graph::HnswNode node, Index l) const {
    return l == 0 ? block(node) : upper_[node] + (l - 1) * (4 + 4 * parameters_.max_links);
  }

  const std::byte* bytes_;
  Index size_;
  std::string_view name_;
  graph::HnswParameters parameters_;
  Index nodes_ = 0, block_size_ = 0, label_offset_ = 0, data_offset_ = 0;
  std::vector<std::uint8_t> levels_;  // of each point, and
  std::vector<Index> upper_;          // where its link lists above level 0 lie
};

// The numbers of a file as bytes, one after the other.
class HnswlibBuffer {
 public:
  template <class V>
  void put(V value) {
    static_assert(std::is_arithmetic_v<V>);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof value);
  }
  // A list of links: those of node i of a level, as nodes, and zeros up to `most`.
  void put_links(const graph::HnswLevel& level, Index i, Index most, bool deleted) {
    const std::span<const graph::HnswNode> links = level.graph.view().neighbors(i);
    put(std::uint32_t(links.size()) | std::uint32_t(deleted) << 16);
    for (const graph::HnswNode target : links) put(level.nodes[target]);
    for (Index j = Index(links.size()); j < most; ++j) put(std::uint32_t(0));
  }
  void write(AtomicFile& file) {
    file.write(bytes_);
    bytes_.clear();
  }

 private:
  std::vector<std::byte> bytes_;
};

template <Real T>
void put_hnswlib_header(const graph::HnswLayers<T>& layers, HnswlibBuffer& out) {
  const graph::HnswParameters& parameters = layers.parameters();
  const auto links = std::uint64_t(4 + 4 * parameters.max_links_0);
  const std::uint64_t label = links + std::uint64_t(layers.dim()) * sizeof(T);
  const bool empty = layers.nodes() == 0;
  for (const std::uint64_t value : {std::uint64_t(0), std::uint64_t(std::max(parameters.max_elements, layers.nodes())),
                                    std::uint64_t(layers.nodes()), label + 8, label, links})
    out.put(value);
  out.put(std::int32_t(layers.levels() - 1));
  out.put(empty ? hnswlib_no_entry : layers.level(layers.levels() - 1).nodes[layers.entry()]);
  for (const Index value : {parameters.max_links, parameters.max_links_0, parameters.links}) out.put(value);
  out.put(parameters.level_scale);
  out.put(parameters.ef_construction);
}

}  // namespace detail

/// The index in the bytes of a file that hnswlib's saveIndex wrote, for vectors of T (float for hnswlib's L2Space and
/// InnerProductSpace; the file does not name the space). Everything is checked before it is used: sizes, counts,
/// levels, the entry point and every link; `name` stands for the file in messages. Throws FormatError with position,
/// expected and actual value. Memory is at most 4 × the size of the file. O(size).
template <Real T>
[[nodiscard]] graph::HnswLayers<T> read_hnswlib(std::span<const std::byte> file, Limits limits = {},
                                                std::string_view name = "hnswlib") {
  return graph::HnswLayers<T>(detail::HnswlibFile(file, Index(sizeof(T)), limits, name));
}

/// The index in the file at `path`. Throws FileError, FormatError.
template <Real T>
[[nodiscard]] graph::HnswLayers<T> read_hnswlib(const std::string& path, Limits limits = {}) {
  return read_hnswlib<T>(MappedFile(path, limits).bytes(), limits, path);
}

/// The same with the vectors left in the bytes, e.g. of a MappedFile, which must outlive the layers. Throws ShapeError
/// also if the bytes are not aligned to T.
template <Real T>
[[nodiscard]] graph::HnswLayers<T> view_hnswlib(std::span<const std::byte> file, Limits limits = {},
                                                std::string_view name = "hnswlib") {
  return graph::HnswLayers<T>::view(detail::HnswlibFile(file, Index(sizeof(T)), limits, name));
}

/// Saves an index so that hnswlib's loadIndex takes it, atomically. Throws ConfigError where its parameters do not fit
/// the format, FileError. O(size).
template <Real T>
void write_hnswlib(const std::string& path, const graph::HnswLayers<T>& layers) {
  if (layers.parameters().max_links_0 < 1 || layers.parameters().max_links_0 > detail::hnswlib_most_links)
    throw_config_error("write_hnswlib: max_links_0", "1 to 20000", double(layers.parameters().max_links_0));
  AtomicFile file(path);
  detail::HnswlibBuffer out;
  detail::put_hnswlib_header(layers, out);
  const Index n = layers.nodes(), most = layers.parameters().max_links;
  std::vector<Index> height(static_cast<std::size_t>(n));  // the highest level of each point
  for (Index l = 1; l < layers.levels(); ++l)
    for (const graph::HnswNode node : layers.level(l).nodes) height[node] = l;
  for (Index i = 0; i < n; ++i) {
    out.put_links(layers.level(0), i, layers.parameters().max_links_0,
                  !layers.deleted().empty() && layers.deleted()[std::size_t(i)] != 0);
    out.write(file);
    file.write(std::as_bytes(layers.vectors().row(i)));
    out.put(layers.ids()[std::size_t(i)]);
  }
  std::vector<Index> next(static_cast<std::size_t>(layers.levels()));  // position among the nodes of each level
  for (Index i = 0; i < n; ++i) {
    const Index top = height[std::size_t(i)];
    out.put(std::uint32_t(top * (4 + 4 * most)));
    for (Index l = 1; l <= top; ++l) out.put_links(layers.level(l), next[std::size_t(l)]++, most, false);
    out.write(file);
  }
  out.write(file);
  file.commit();
}

}  // namespace ruvector::inline RUVECTOR_ABI::io
