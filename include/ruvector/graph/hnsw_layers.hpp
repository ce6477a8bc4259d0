// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/graph/csr_graph.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::graph {

/// Names a node of an HNSW index: the position of its vector.
using HnswNode = std::uint32_t;

/// How an index was built. Searching does not need it; adding points does.
struct HnswParameters {
  Index max_elements = 0;       ///< points it has room for
  Index links = 16;             ///< M: how many links a new node gets on each of its levels
  Index max_links = 16;         ///< the most links of a node on a level above 0
  Index max_links_0 = 32;       ///< the most links of a node on level 0
  Index ef_construction = 200;  ///< breadth of the search for the neighbours of a new node
  double level_scale = 0.36;    ///< 1/log M: levels are drawn from −log(uniform)·level_scale
};

/// The public members of hnswlib's HierarchicalNSW (versions 0.6.2 to 0.8) that tell what an index holds. No header of
/// hnswlib is needed here: anything that has them will do.
template <class I>
concept HnswIndexLike = requires(const I& index, HnswNode node, int level) {
  { index.cur_element_count } -> std::convertible_to<std::size_t>;       // points; their nodes are 0 … count−1
  { index.max_elements_ } -> std::convertible_to<std::size_t>;           // points it has room for
  { index.M_ } -> std::convertible_to<std::size_t>;                      // links of a new node on a level
  { index.maxM_ } -> std::convertible_to<std::size_t>;                   // most links on a level above 0
  { index.maxM0_ } -> std::convertible_to<std::size_t>;                  // most links on level 0
  { index.ef_construction_ } -> std::convertible_to<std::size_t>;        // breadth of the search for neighbours
  { index.mult_ } -> std::convertible_to<double>;                        // scale of the random levels
  { index.data_size_ } -> std::convertible_to<std::size_t>;              // bytes of a vector
  { index.enterpoint_node_ } -> std::convertible_to<HnswNode>;           // where searches start, on the top level
  { index.element_levels_[node] } -> std::convertible_to<int>;           // the highest level of a node
  { index.getDataByInternalId(node) } -> std::convertible_to<char*>;     // the vector of a node
  { index.getExternalLabel(node) } -> std::convertible_to<std::size_t>;  // the user's name for it
  { index.isMarkedDeleted(node) } -> std::convertible_to<bool>;          // passed through, never returned
  { *index.get_linklist_at_level(node, level) } -> std::convertible_to<HnswNode>;  // the links follow this word
  { index.getListCount(index.get_linklist_at_level(node, level)) } -> std::convertible_to<std::size_t>;  // how many
};

/// What HnswLayers are built from: an index in memory or in a file. Pure.
template <class S>
concept HnswSource = requires(const S& source, HnswNode node, Index i) {
  { source.nodes() } -> std::convertible_to<Index>;                // how many: they are 0 … nodes−1
  { source.parameters() } -> std::convertible_to<HnswParameters>;  // how it was built
  { source.entry() } -> std::convertible_to<HnswNode>;             // where searches start; only if there are nodes
  { source.level(node) } -> std::convertible_to<Index>;            // the highest level the node is on
  { source.label(node) } -> std::convertible_to<std::uint64_t>;    // the user's name for it
  { source.deleted(node) } -> std::convertible_to<bool>;           // passed through, never returned
  { source.degree(node, i) } -> std::convertible_to<Index>;        // how many links it has on level i
  { source.link(node, i, i) } -> std::convertible_to<HnswNode>;    // where the j-th of them leads
  { source.vector_bytes() } -> std::convertible_to<Index>;         // bytes of a vector
  {
    source.vector(node)
    } -> std::convertible_to<const std::byte*>;  // where its vector lies; rows are equally far apart
};

/// The nodes of one level and their links.
struct HnswLevel {
  CsrGraph<HnswNode> graph;  ///< links among the nodes of the level, which it numbers 0, 1, … in the order of `nodes`
  std::vector<HnswNode> nodes;  ///< [graph.nodes()] which nodes they are, ascending; on level 0 that is 0, 1, …
  std::vector<HnswNode> below;  ///< [graph.nodes()] their numbers on the level below; empty on level 0
};

namespace detail {

/// An index of hnswlib as a source.
template <HnswIndexLike I>
class HnswIndexSource {
 public:
  explicit HnswIndexSource(const I& index) : index_(index) {}

  [[nodiscard]] Index nodes() const { return number(index_.cur_element_count); }
  [[nodiscard]] HnswParameters parameters() const {
    return {.max_elements = number(index_.max_elements_),
            .links = number(index_.M_),
            .max_links = number(index_.maxM_),
            .max_links_0 = number(index_.maxM0_),
            .ef_construction = number(index_.ef_construction_),
            .level_scale = index_.mult_};
  }
  [[nodiscard]] HnswNode entry() const { return index_.enterpoint_node_; }
  [[nodiscard]] Index level(HnswNode node) const { return index_.element_levels_[node]; }
  [[nodiscard]] std::uint64_t label(HnswNode node) const { return index_.getExternalLabel(node); }
  [[nodiscard]] bool deleted(HnswNode node) const { return index_.isMarkedDeleted(node); }
  [[nodiscard]] Index degree(HnswNode node, Index level) const {
    return number(index_.getListCount(list(node, level)));
  }
  [[nodiscard]] HnswNode link(HnswNode node, Index level, Index j) const { return list(node, level)[1 + j]; }
  [[nodiscard]] Index vector_bytes() const { return number(index_.data_size_); }
  [[nodiscard]] const std::byte* vector(HnswNode node) const {
    return reinterpret_cast<const std::byte*>(index_.getDataByInternalId(node));
  }

 private:
  [[nodiscard]] auto list(HnswNode node, Index level) const {
    return index_.get_linklist_at_level(node, static_cast<int>(level));
  }
  [[nodiscard]] static Index number(std::size_t value) { return static_cast<Index>(value); }

  const I& index_;
};

}  // namespace detail

/// The layers of an HNSW index (Malkov and Yashunin 2016): on each level a graph that leads from near to near, level 0
/// over all points, each further level over a random share of those below it. Searches descend from the entry point.
///
///     const graph::HnswLayers<float> layers(index);   // of hnswlib: hnswlib::HierarchicalNSW<float>
///
/// A value: what it was built from may be gone, except for the vectors of `view`. It never changes.
template <Real T>
class HnswLayers {
 public:
  /// What a vector consists of.
  using Scalar = T;

  /// No points.
  HnswLayers() = default;

  /// Copies an index, or what a file holds (io/hnswlib_file.hpp). Throws ShapeError where it is inconsistent: a vector
  /// is no whole number of T, a link leads to no node of its level or back to its own node, a node has too many links,
  /// the entry point is not on the top level, a label does not fit an Index. O(points · d + links).
  ///@{
  template <HnswSource S>
  explicit HnswLayers(const S& source) : HnswLayers(source, LinksOnly{}) {
    vectors_ = Matrix<T>(nodes(), dim_);
    if (vectors_.empty()) return;
    for (Index i = 0; i < nodes(); ++i)
      std::memcpy(vectors_.row(i).data(), source.vector(HnswNode(i)), std::size_t(dim_) * sizeof(T));
  }
  template <HnswIndexLike I>
  explicit HnswLayers(const I& index) : HnswLayers(detail::HnswIndexSource<I>(index)) {}
  ///@}

  /// The same with the vectors left where they are, which must outlive the layers and stay there: an index must not
  /// grow. Copied vectors are searched faster: they lie closer together, and in large pages. Throws ShapeError also if
  /// they are not aligned to T.
  ///@{
  template <HnswSource S>
  [[nodiscard]] static HnswLayers view(const S& source) {
    HnswLayers layers(source, LinksOnly{});
    if (layers.nodes() == 0) return layers;
    const std::byte* first = source.vector(0);
    const Index stride = layers.nodes() > 1 ? source.vector(1) - first : source.vector_bytes();
    constexpr auto size = Index(sizeof(T));
    if (stride % size != 0 || reinterpret_cast<std::uintptr_t>(first) % alignof(T) != 0)
      throw_shape_error("HnswLayers: vectors", "aligned elements", "others: copy them");
    layers.foreign_ =
        MatrixView<const T>(reinterpret_cast<const T*>(first), layers.nodes(), layers.dim_, stride / size);
    return layers;
  }
  template <HnswIndexLike I>
  [[nodiscard]] static HnswLayers view(const I& index) {
    return view(detail::HnswIndexSource<I>(index));
  }
  ///@}

  /// Number of points.
  [[nodiscard]] Index nodes() const { return Index(ids_.size()); }
  /// Elements of a vector.
  [[nodiscard]] Index dim() const { return dim_; }
  /// [nodes × dim] the vectors, one a node.
  [[nodiscard]] MatrixView<const T> vectors() const { return foreign_.rows() > 0 ? foreign_ : vectors_.view(); }
  /// [nodes] the user's names for them: hnswlib's labels.
  [[nodiscard]] std::span<const Index> ids() const { return ids_; }
  /// [nodes] 1 where a point is passed through but never returned; empty if there is none.
  [[nodiscard]] std::span<const std::uint8_t> deleted() const { return deleted_; }

  /// Number of levels: 0 if there are no points.
  [[nodiscard]] Index levels() const { return Index(levels_.size()); }
  /// Level l, 0 ≤ l < levels.
  [[nodiscard]] const HnswLevel& level(Index l) const {
    RUVECTOR_ASSERT(0 <= l && l < levels());
    return levels_[std::size_t(l)];
  }
  /// The number, on the top level, of the node where searches start.
  [[nodiscard]] HnswNode entry() const { return entry_; }

  /// How the index was built.
  [[nodiscard]] const HnswParameters& parameters() const { return parameters_; }

 private:
  struct LinksOnly {};

  template <HnswSource S>
  HnswLayers(const S& source, LinksOnly)
      : dim_(source.vector_bytes() / Index(sizeof(T))), parameters_(source.parameters()) {
    const Index n = source.nodes();
    detail::check_node_count<HnswNode>("HnswLayers: nodes", n);
    check_shape("HnswLayers: bytes of a vector", dim_ * Index(sizeof(T)), source.vector_bytes());
    if (n == 0) return;
    read_ids(source, n);
    const HnswNode entry = source.entry();
    detail::check_indices("HnswLayers: entry point", std::span(&entry, 1), n);
    const Index top = source.level(entry);
    for (Index i = 0; i < n; ++i)
      if (source.level(HnswNode(i)) < 0 || source.level(HnswNode(i)) > top) [[unlikely]]
        detail::throw_index_error("HnswLayers: levels", i, 0, top, source.level(HnswNode(i)));

    std::vector<HnswNode> numbers(ids_.size());  // of each node on the level below, then on this one
    for (Index l = 0; l <= top; ++l) levels_.push_back(read_level(source, l, numbers));
    entry_ = numbers[entry];
  }

  template <HnswSource S>
  void read_ids(const S& source, Index n) {
    ids_.resize(std::size_t(n));
    for (Index i = 0; i < n; ++i) {
      const std::uint64_t label = source.label(HnswNode(i));
      if (label >= std::uint64_t(std::numeric_limits<Index>::max())) [[unlikely]]
        throw_shape_error("HnswLayers: labels[" + std::to_string(i) + "]", "below 2^63 - 1", std::to_string(label));
      ids_[std::size_t(i)] = Index(label);
      if (!source.deleted(HnswNode(i))) continue;
      deleted_.resize(std::size_t(n));
      deleted_[std::size_t(i)] = 1;
    }
  }

  template <HnswSource S>
  [[nodiscard]] HnswLevel read_level(const S& source, Index l, std::vector<HnswNode>& numbers) const {
    HnswLevel level;
    if (l == 0) {
      level.nodes.resize(numbers.size());
      std::iota(level.nodes.begin(), level.nodes.end(), HnswNode(0));
    } else {
      for (const HnswNode node : levels_.back().nodes)
        if (source.level(node) >= l) {
          level.nodes.push_back(node);
          level.below.push_back(numbers[node]);
        }
    }
    std::vector<Index> offsets(level.nodes.size() + 1);
    const Index most = l == 0 ? parameters_.max_links_0 : parameters_.max_links;
    for (std::size_t i = 0; i < level.nodes.size(); ++i) {
      numbers[level.nodes[i]] = HnswNode(i);
      const Index degree = source.degree(level.nodes[i], l);
      if (degree < 0 || degree > most) [[unlikely]]
        detail::throw_index_error("HnswLayers: links of nodes", Index(level.nodes[i]), 0, most, degree);
      offsets[i + 1] = offsets[i] + degree;
    }
    std::vector<HnswNode> targets(std::size_t(offsets.back()));
    for (std::size_t i = 0; i < level.nodes.size(); ++i)
      for (Index j = 0; j < offsets[i + 1] - offsets[i]; ++j)
        targets[std::size_t(offsets[i] + j)] = numbers[checked_link(source, level.nodes[i], l, j)];
    level.graph = CsrGraph<HnswNode>(std::move(offsets), std::move(targets));
    return level;
  }

  template <HnswSource S>
  [[nodiscard]] HnswNode checked_link(const S& source, HnswNode node, Index l, Index j) const {
    const HnswNode target = source.link(node, l, j);
    if (Index(target) >= nodes() || target == node || source.level(target) < l) [[unlikely]]
      throw_shape_error("HnswLayers: link " + std::to_string(j) + " of node " + std::to_string(node),
                        "another node of level " + std::to_string(l), std::to_string(target));
    return target;
  }

  Index dim_ = 0;
  Matrix<T> vectors_;            // [nodes × dim], or empty, and
  MatrixView<const T> foreign_;  // they are here
  std::vector<Index> ids_;       // [nodes]
  std::vector<std::uint8_t> deleted_;
  std::vector<HnswLevel> levels_;
  HnswNode entry_ = 0;
  HnswParameters parameters_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::graph
