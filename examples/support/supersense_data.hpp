// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"
#include "word_bag.hpp"
#include "wordnet.hpp"

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/view.hpp>
#include <ruvector/graph/positions.hpp>
#include <ruvector/graph/spectral_positions.hpp>
#include <ruvector/graph/typed_graph.hpp>

#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace examples {

using ruvector::Matrix;
using ruvector::Rng;

/// What a node knows of itself.
enum class NodeInfo {
  glosses,  ///< the words of its definition and examples, and its own words
  lemmas,   ///< its own words
  labels,   ///< its class if the model learns from it; a model is always asked about nodes that do not know theirs
  none,     ///< nothing: only the graph tells nodes apart
};

/// What is known about an edge.
enum class EdgeInfo {
  none,      ///< that it is there
  scalar,    ///< a number: 1 − the cosine of the glosses at its ends
  typed,     ///< its relation
  shuffled,  ///< the relation of an edge drawn at random: as many of each, at the wrong places
  directed,  ///< its relation, and in which direction it leads
};

/// The nouns as a graph whose nodes have one of 26 classes, the topics under which lexicographers wrote them.
struct SupersenseGraph {
  static constexpr Index classes = 26;
  static constexpr Index relations = static_cast<Index>(wordnet::relation_symbols.size());

  Hierarchy hierarchy;                  ///< its nodes are those of the graph
  ruvector::graph::TypedGraph<> graph;  ///< both directions of every relation; type = relation (+ relations)
  std::vector<Index> labels;            ///< [nodes] 0 … 25
  BagOfWords glosses, lemmas;           ///< of the nodes

  [[nodiscard]] Index size() const { return hierarchy.size(); }
};

namespace detail {

[[nodiscard]] inline ruvector::graph::TypedGraph<> relations_between(const wordnet::Database& database,
                                                                     const Hierarchy& hierarchy) {
  using Type = ruvector::graph::EdgeType;
  std::set<std::tuple<std::int32_t, std::int32_t, Type>> edges;  // several words of two synsets may be related
  for (std::int32_t node = 0; node < hierarchy.size(); ++node) {
    const auto position = static_cast<std::size_t>(hierarchy.synset[static_cast<std::size_t>(node)]);
    for (const wordnet::Pointer& pointer : database.synsets[position].pointers) {
      const std::int32_t target = hierarchy.node(pointer.target);
      const bool listed_twice =
          pointer.relation == wordnet::Relation::antonym || pointer.relation == wordnet::Relation::derivation;
      if (target >= 0 && !(listed_twice && target < node))
        edges.emplace(node, target, static_cast<Type>(pointer.relation));
    }
  }
  std::vector<std::int32_t> sources, targets;
  std::vector<Type> types;
  for (const auto& [source, target, type] : edges) {
    sources.push_back(source);
    targets.push_back(target);
    types.push_back(type);
  }
  return with_inverses(
      ruvector::graph::TypedGraph<>(hierarchy.size(), sources, targets, SupersenseGraph::relations, types));
}

}  // namespace detail

/// The nouns, or those below the first sense of `root`.
[[nodiscard]] inline SupersenseGraph supersense_graph(const wordnet::Database& database, const std::string& root) {
  SupersenseGraph result;
  result.hierarchy = build_hierarchy(database, root);
  result.graph = detail::relations_between(database, result.hierarchy);
  std::vector<std::string> lemmas, glosses;
  for (const std::int32_t position : result.hierarchy.synset) {
    const wordnet::Synset& synset = database.synsets[static_cast<std::size_t>(position)];
    constexpr std::int32_t first_noun_file = 3;
    result.labels.push_back(synset.lexicographer_file - first_noun_file);
    std::string& own = lemmas.emplace_back();
    for (const std::string& word : synset.words) own += word + " ";
    glosses.push_back(own + synset.gloss);
  }
  constexpr Index least_texts = 5;
  result.lemmas = tf_idf(lemmas, least_texts);
  result.glosses = tf_idf(glosses, least_texts);
  return result;
}

/// What the nodes know of themselves, where the model learns from `training`.
[[nodiscard]] inline BagOfWords node_features(const SupersenseGraph& data, NodeInfo info,
                                              const std::vector<std::int32_t>& training) {
  if (info == NodeInfo::glosses) return data.glosses;
  if (info == NodeInfo::lemmas) return data.lemmas;
  BagOfWords bag;
  bag.vocabulary = SupersenseGraph::classes;
  std::vector<char> known(static_cast<std::size_t>(data.size()), 0);
  if (info == NodeInfo::labels)
    for (const std::int32_t node : training) known[static_cast<std::size_t>(node)] = 1;
  for (std::size_t v = 0; v < known.size(); ++v) {
    if (known[v]) {
      bag.word.push_back(static_cast<std::int32_t>(data.labels[v]));
      bag.weight.push_back(1);
    }
    bag.first.push_back(static_cast<Index>(bag.word.size()));
  }
  return bag;
}

/// Features of all edges, [edges × 2·relations] whatever is known, so that all models have as many parameters.
[[nodiscard]] inline Matrix<float> edge_features(const SupersenseGraph& data, EdgeInfo info, Rng rng) {
  const auto view = data.graph.view();
  constexpr Index relations = SupersenseGraph::relations;
  Matrix<float> features(data.graph.edges(), 2 * relations);
  std::vector<ruvector::graph::EdgeType> types(data.graph.edge_types().begin(), data.graph.edge_types().end());
  const std::size_t half = types.size() / 2;  // behind them are their inverses
  switch (info) {
    case EdgeInfo::none:
    case EdgeInfo::scalar:
      for (Index i = 0; i < data.size(); ++i)
        for (Index e = view.first_edge(i); e < view.first_edge(i) + view.degree(i); ++e) {
          const Index id = view.edge_id(e);
          features(id, 0) = 1;
          if (info == EdgeInfo::scalar)
            features(id, 1) = 1 - similarity(data.glosses, i, view.targets()[static_cast<std::size_t>(e)]);
        }
      return features;
    case EdgeInfo::shuffled:
      rng.shuffle(std::span(types).first(half));
      std::copy_n(types.begin(), half, types.begin() + static_cast<std::ptrdiff_t>(half));
      break;
    case EdgeInfo::typed:
      for (auto& type : types) type %= static_cast<ruvector::graph::EdgeType>(relations);
      break;
    case EdgeInfo::directed:
      break;
  }
  ruvector::graph::write_one_hot<float>(types, 2 * relations, features);
  return features;
}

/// Coordinates of the nodes, for rotary positions.
enum class PositionInfo { none, random, rwpe, landmark, spectral };

/// r_j − r_i of all edges, [edges × coordinates]; zeros for none.
[[nodiscard]] inline Matrix<float> relative_positions(const SupersenseGraph& data, PositionInfo info, Index coordinates,
                                                      Rng rng) {
  const auto view = data.graph.view();
  Matrix<float> positions(data.size(), coordinates);
  switch (info) {
    case PositionInfo::none:
      break;
    case PositionInfo::random:
      for (float& x : positions.span()) x = rng.uniform(-1.0f, 1.0f);
      break;
    case PositionInfo::rwpe:
      ruvector::graph::rwpe_positions<std::int32_t, float>(view, positions.view());
      break;
    case PositionInfo::landmark: {
      std::vector<std::int32_t> landmarks;
      for (Index l = 0; l < coordinates; ++l) landmarks.push_back(static_cast<std::int32_t>(rng.below(data.size())));
      ruvector::graph::landmark_positions<std::int32_t, float>(view, landmarks, positions.view());
      break;
    }
    case PositionInfo::spectral:
      ruvector::graph::spectral_positions<std::int32_t, float>(view, positions.view(), {.tolerance = 1e-5});
      break;
  }
  Matrix<float> features(data.graph.edges(), coordinates);
  for (Index i = 0; i < data.size(); ++i)
    for (Index e = view.first_edge(i); e < view.first_edge(i) + view.degree(i); ++e)
      for (Index c = 0; c < coordinates; ++c)
        features(view.edge_id(e), c) = positions(view.targets()[static_cast<std::size_t>(e)], c) - positions(i, c);
  return features;
}

/// Which nodes a model learns from, is chosen by, and is judged by.
struct Split {
  std::vector<std::int32_t> training, validation, test;
};

/// The synset at `depth` below which a node stands: on the shortest way to the top, by its first hypernym there; −1 for
/// nodes above it.
[[nodiscard]] inline std::vector<std::int32_t> subtrees_at(const Hierarchy& hierarchy, Index depth) {
  const auto n = static_cast<std::size_t>(hierarchy.size());
  std::vector<Index> depths(n, -1);
  std::vector<std::int32_t> subtree(n, -1);
  for (Index level = 0, entered = 1; entered > 0; ++level) {
    entered = 0;
    for (std::size_t v = 0; v < n; ++v) {
      if (depths[v] >= 0) continue;
      const auto parents = hierarchy.parents[static_cast<Index>(v)];
      const auto above = std::find_if(parents.begin(), parents.end(), [&](std::int32_t parent) {
        return depths[static_cast<std::size_t>(parent)] == level - 1;
      });
      if (level == 0 ? !parents.empty() : above == parents.end()) continue;
      depths[v] = level;
      if (level == depth) subtree[v] = static_cast<std::int32_t>(v);
      if (level > depth) subtree[v] = subtree[static_cast<std::size_t>(*above)];
      ++entered;
    }
  }
  return subtree;
}

/// Draws the nodes: tests on a fifth of them, validates on a tenth, learns from the share `labels`. With
/// `whole_subtrees` those below a synset at depth 4 stay together, so that a node of the test has no relatives nearby
/// from which the model has learned; the parts are then about as large.
[[nodiscard]] inline Split split_nodes(const Hierarchy& hierarchy, bool whole_subtrees, double labels, Rng rng) {
  const auto n = hierarchy.size();
  std::vector<std::vector<std::int32_t>> groups;
  Split split;
  std::vector<std::int32_t>& rest = split.training;
  if (whole_subtrees) {
    constexpr Index depth = 4;
    const std::vector<std::int32_t> subtree = subtrees_at(hierarchy, depth);
    std::vector<std::vector<std::int32_t>> by_root(static_cast<std::size_t>(n));
    for (std::int32_t v = 0; v < n; ++v) {
      const std::int32_t top = subtree[static_cast<std::size_t>(v)];
      (top < 0 ? rest : by_root[static_cast<std::size_t>(top)]).push_back(v);
    }
    for (auto& group : by_root)
      if (!group.empty()) groups.push_back(std::move(group));
  } else {
    for (std::int32_t v = 0; v < n; ++v) groups.push_back({v});
  }
  rng.shuffle(std::span(groups));
  for (const auto& group : groups) {
    const auto size_of = [](const auto& nodes) { return static_cast<Index>(nodes.size()); };
    auto& part = size_of(split.test) < n / 5          ? split.test
                 : size_of(split.validation) < n / 10 ? split.validation
                                                      : rest;
    part.insert(part.end(), group.begin(), group.end());
  }
  rng.shuffle(std::span(rest));
  const auto wanted = static_cast<std::size_t>(labels * static_cast<double>(n));
  rest.resize(std::clamp<std::size_t>(wanted, 1, rest.size()));
  rng.shuffle(std::span(split.validation));  // so that the first of them speak for all
  return split;
}

/// All that a model is trained and judged on.
struct SupersenseProblem {
  const SupersenseGraph& data;
  NodeInfo node_info;
  Split split;
  BagOfWords nodes;     ///< what they know
  Matrix<float> edges;  ///< of edges: edge_features or relative_positions

  /// Keeps a reference to `graph`.
  SupersenseProblem(const SupersenseGraph& graph, NodeInfo about_nodes, Matrix<float> about_edges, bool whole_subtrees,
                    double labels, const Rng& rng)
      : data(graph),
        node_info(about_nodes),
        split(split_nodes(graph.hierarchy, whole_subtrees, labels, rng.split(0))),
        nodes(node_features(graph, about_nodes, split.training)),
        edges(std::move(about_edges)) {}

  [[nodiscard]] Index label(std::int32_t node) const { return data.labels[static_cast<std::size_t>(node)]; }
};

}  // namespace examples
