// SPDX-License-Identifier: MIT
#pragma once

#include "wordnet.hpp"

#include <ruvector/core/error.hpp>
#include <ruvector/core/random.hpp>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace examples {

using ruvector::Index;

/// Lists of nodes, one a node, in one array.
struct Adjacency {
  std::vector<std::int64_t> first{0};  ///< [n+1] list i is target[first[i]] … target[first[i+1]−1]
  std::vector<std::int32_t> target;

  [[nodiscard]] Index size() const { return static_cast<Index>(first.size()) - 1; }
  [[nodiscard]] std::span<const std::int32_t> operator[](Index i) const {
    const auto at = static_cast<std::size_t>(i);
    return std::span(target).subspan(static_cast<std::size_t>(first[at]),
                                     static_cast<std::size_t>(first[at + 1] - first[at]));
  }
  /// Appends the list of the next node.
  void append(std::span<const std::int32_t> list) {
    target.insert(target.end(), list.begin(), list.end());
    first.push_back(static_cast<std::int64_t>(target.size()));
  }
};

/// What is a kind of what: the nodes, their direct hypernyms and all their ancestors (the transitive closure).
struct Hierarchy {
  std::vector<std::int32_t> synset;  ///< [n] node → position in the database, ascending
  Adjacency parents;                 ///< [n] direct hypernyms, @ and @i
  Adjacency ancestors;               ///< [n] everything above a node, ascending, without the node itself

  [[nodiscard]] Index size() const { return static_cast<Index>(synset.size()); }
  /// Number of (node, ancestor) pairs: what an embedding learns.
  [[nodiscard]] Index pairs() const { return static_cast<Index>(ancestors.target.size()); }
  /// The node of a position in the database, −1 where it has none.
  [[nodiscard]] std::int32_t node(std::int32_t position) const {
    const auto at = std::lower_bound(synset.begin(), synset.end(), position);
    return at != synset.end() && *at == position ? static_cast<std::int32_t>(at - synset.begin()) : -1;
  }
  [[nodiscard]] bool is_ancestor(std::int32_t above, std::int32_t below) const {
    const auto list = ancestors[below];
    return std::binary_search(list.begin(), list.end(), above);
  }
};

namespace detail {

/// Everything that can be reached from `start` by `next`, ascending, without `start`.
[[nodiscard]] inline std::vector<std::int32_t> reachable(std::int32_t start, const Adjacency& next) {
  std::vector<std::int32_t> found{start};
  for (std::size_t i = 0; i < found.size(); ++i) {
    for (const std::int32_t node : next[found[i]])
      if (std::find(found.begin(), found.end(), node) == found.end()) found.push_back(node);  // lists of at most 40
  }
  found.erase(found.begin());
  std::sort(found.begin(), found.end());
  return found;
}

/// The synsets that count where `root` is given: the first sense of that word and everything below it.
[[nodiscard]] inline std::vector<char> subtree(const wordnet::Database& database, const std::string& root) {
  const std::string word = wordnet::normalized(root);
  const auto senses = database.senses.find(word);
  if (senses == database.senses.end())
    throw ruvector::ConfigError(std::string("--root: no ") + (database.part_of_speech == 'v' ? "verb" : "noun") +
                                " \"" + root + "\" in the database");
  const std::int32_t top = senses->second.front();
  Adjacency parents;
  for (const wordnet::Synset& synset : database.synsets) parents.append(synset.hypernyms);

  std::vector<char> in(database.synsets.size(), 0);
  for (std::size_t i = 0; i < in.size(); ++i) {
    const auto above = reachable(static_cast<std::int32_t>(i), parents);
    in[i] = static_cast<std::int32_t>(i) == top || std::binary_search(above.begin(), above.end(), top);
    // Nickel & Kiela 2017 leave two concepts that cut across the taxonomy, by teeth and by sex, out of their mammals:
    // 1,180 nodes and 6,540 pairs remain.
    const std::string& name = database.synsets[i].words.front();
    if (word == "mammal" && (name == "tusker" || name == "female_mammal")) in[i] = 0;
  }
  return in;
}

/// The synsets that count where the whole is wanted: those that are above or below another one.
[[nodiscard]] inline std::vector<char> related(const wordnet::Database& database) {
  std::vector<char> in(database.synsets.size(), 0);
  for (std::size_t i = 0; i < in.size(); ++i) {
    for (const std::int32_t hypernym : database.synsets[i].hypernyms)
      in[i] = in[static_cast<std::size_t>(hypernym)] = 1;
  }
  return in;
}

}  // namespace detail

/// The hierarchy of the whole database, or (`root` a word) of the first sense of that word and everything below it.
/// Throws ConfigError where the database does not have the word.
[[nodiscard]] inline Hierarchy build_hierarchy(const wordnet::Database& database, const std::string& root = "") {
  const std::vector<char> in = root.empty() ? detail::related(database) : detail::subtree(database, root);
  Hierarchy result;
  for (std::size_t i = 0; i < in.size(); ++i)
    if (in[i]) result.synset.push_back(static_cast<std::int32_t>(i));

  std::vector<std::int32_t> parents;
  for (const std::int32_t position : result.synset) {
    parents.clear();
    for (const std::int32_t hypernym : database.synsets[static_cast<std::size_t>(position)].hypernyms)
      if (const std::int32_t node = result.node(hypernym); node >= 0) parents.push_back(node);
    result.parents.append(parents);
  }
  for (Index i = 0; i < result.size(); ++i)
    result.ancestors.append(detail::reachable(static_cast<std::int32_t>(i), result.parents));
  return result;
}

/// Takes a share of the (node, ancestor) pairs out of the hierarchy, at random, and returns them; each node keeps one
/// pair at least. The parents stay.
[[nodiscard]] inline Adjacency hold_out(Hierarchy& hierarchy, double share, ruvector::Rng rng) {
  Adjacency rest, held_out;
  std::vector<std::int32_t> kept, taken;
  for (Index i = 0; i < hierarchy.size(); ++i) {
    kept.clear();
    taken.clear();
    for (const std::int32_t v : hierarchy.ancestors[i]) (rng.uniform() < share ? taken : kept).push_back(v);
    if (kept.empty()) std::swap(kept, taken);
    rest.append(kept);
    held_out.append(taken);
  }
  hierarchy.ancestors = std::move(rest);
  return held_out;
}

}  // namespace examples
