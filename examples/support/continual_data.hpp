// SPDX-License-Identifier: MIT
#pragma once

#include "fashion_mnist.hpp"
#include "hierarchy.hpp"
#include "word_bag.hpp"
#include "wordnet.hpp"

#include <ruvector/core/error.hpp>
#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace examples {

/// The rows of a task, by number.
struct TaskRows {
  std::vector<Index> train, validation, test;
};

/// Tasks that come one after the other. Task t has the classes first_class[t] … first_class[t+1]−1.
struct ContinualProblem {
  std::string name;
  std::string metric;                     ///< what is measured: "accuracy"
  Index candidates = 1;                   ///< a row counts if its class is among so many with the highest logits
  std::vector<Index> hidden = {};         ///< widths of the hidden layers
  ruvector::Matrix<float> features = {};  ///< [n×d]
  std::vector<Index> labels = {};         ///< [n]
  std::vector<Index> first_class = {0};
  std::vector<TaskRows> tasks = {};

  [[nodiscard]] Index count() const { return Index(tasks.size()); }
  [[nodiscard]] Index classes() const { return first_class.back(); }
  /// The task that a class belongs to.
  [[nodiscard]] Index task_of(Index label) const {
    return std::upper_bound(first_class.begin(), first_class.end(), label) - first_class.begin() - 1;
  }
};

/// Split Fashion-MNIST: five tasks of two classes each, in the order of the labels. A sixth of the pictures to train on
/// is for validation.
[[nodiscard]] inline ContinualProblem split_fashion_mnist(const std::string& directory) {
  ContinualProblem problem{.name = "Fashion-MNIST", .metric = "accuracy", .hidden = {400, 400}};
  const auto train = fashion_mnist::read(directory, "train"), test = fashion_mnist::read(directory, "t10k");
  const Index pixels = train.pixels.cols();
  problem.features = ruvector::Matrix<float>(train.size() + test.size(), pixels);
  problem.tasks.resize(5);
  problem.first_class = {0, 2, 4, 6, 8, 10};
  for (const auto* part : {&train, &test})
    for (Index i = 0; i < part->size(); ++i) {
      const Index row = Index(problem.labels.size()), label = part->labels[std::size_t(i)];
      std::ranges::transform(part->pixels.row(i), problem.features.row(row).begin(),
                             [](std::uint8_t pixel) { return float(pixel) / 255; });
      problem.labels.push_back(label);
      TaskRows& rows = problem.tasks[std::size_t(problem.task_of(label))];
      (part == &test ? rows.test : i % 6 == 5 ? rows.validation : rows.train).push_back(row);
    }
  return problem;
}

/// Five subtrees of WordNet's nouns, one after the other: which of the concepts of a subtree stands directly above one
/// that is only known by its words and gloss? The encoder, an Mlp from tf-idf to 128 numbers, is shared by all
/// subtrees; each concept that may be the answer has a vector of its own, a row of the last layer. Answers are concepts
/// with 10 or more children. A fifth of the children is for testing, a tenth for validation, by `seed`.
[[nodiscard]] inline ContinualProblem wordnet_subtrees(const std::string& directory, std::uint64_t seed) {
  constexpr std::array roots = {"animal", "plant_life", "person", "artifact", "food"};
  constexpr Index least_children = 10, least_texts = 20;
  ContinualProblem problem{.name = "WordNet", .metric = "recall@10", .candidates = 10, .hidden = {128}};
  const auto database = wordnet::read(directory, "noun");
  std::vector<char> taken(database.synsets.size());
  std::vector<std::string> texts;
  ruvector::Rng rng(seed);
  for (const char* root : roots) {
    std::map<std::int32_t, std::vector<std::size_t>> children;  // of each parent in the subtree
    std::vector<char> inside(database.synsets.size());
    for (const std::int32_t node : build_hierarchy(database, root).synset) inside[std::size_t(node)] = 1;
    for (std::size_t i = 0; i < inside.size(); ++i) {
      const auto& above = database.synsets[i].hypernyms;
      const auto parent = std::ranges::find_if(above, [&](std::int32_t p) { return inside[std::size_t(p)] != 0; });
      if (inside[i] != 0 && taken[i] == 0 && parent != above.end()) children[*parent].push_back(i);
    }
    TaskRows rows;
    Index label = problem.first_class.back();
    for (const auto& [parent, nodes] : children) {
      if (Index(nodes.size()) < least_children) continue;
      for (const std::size_t node : nodes) {
        taken[node] = 1;
        const double part = rng.uniform();
        (part < 0.2 ? rows.test : part < 0.3 ? rows.validation : rows.train).push_back(Index(texts.size()));
        problem.labels.push_back(label);
        std::string& text = texts.emplace_back(database.synsets[node].gloss);
        for (const std::string& word : database.synsets[node].words) text += " " + word;
      }
      ++label;
    }
    if (rows.train.empty() || rows.test.empty() || rows.validation.empty())
      ruvector::throw_format_error(directory, std::string("too few concepts below ") + root);
    problem.first_class.push_back(label);
    problem.tasks.push_back(std::move(rows));
  }
  const BagOfWords bag = tf_idf(texts, least_texts);
  problem.features = ruvector::Matrix<float>(bag.texts(), bag.vocabulary);
  for (Index i = 0; i < bag.texts(); ++i)
    for (std::size_t k = 0; k < bag.words(i).size(); ++k) problem.features(i, bag.words(i)[k]) = bag.weights(i)[k];
  return problem;
}

}  // namespace examples
