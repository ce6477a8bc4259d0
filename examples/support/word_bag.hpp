// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/view.hpp>
#include <ruvector/nn/embedding.hpp>
#include <ruvector/simd/dot.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace examples {

using ruvector::Index;
using ruvector::MatrixView;

/// The words of some texts, a sparse matrix [texts×vocabulary] in compressed rows.
struct BagOfWords {
  Index vocabulary = 0;
  std::vector<Index> first{0};     ///< [texts+1] text i has the entries first[i] … first[i+1]−1
  std::vector<std::int32_t> word;  ///< of each entry, ascending in a text
  std::vector<float> weight;       ///< of each entry

  [[nodiscard]] Index texts() const { return static_cast<Index>(first.size()) - 1; }
  [[nodiscard]] std::span<const std::int32_t> words(Index i) const { return part(std::span(word), i); }
  [[nodiscard]] std::span<const float> weights(Index i) const { return part(std::span(weight), i); }

 private:
  template <class T>
  [[nodiscard]] std::span<T> part(std::span<T> all, Index i) const {
    const auto begin = static_cast<std::size_t>(first[static_cast<std::size_t>(i)]);
    return all.subspan(begin, static_cast<std::size_t>(first[static_cast<std::size_t>(i) + 1]) - begin);
  }
};

/// Runs of letters, in lower case.
[[nodiscard]] inline std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool letter = std::isalpha(byte) != 0;
    if (letter && !inside) words.emplace_back();
    if (letter) words.back() += static_cast<char>(std::tolower(byte));
    inside = letter;
  }
  return words;
}

/// Rows of length 1 (or 0) with the weights tf·ln(texts/df) of the words that stand in at least `least_texts` texts.
[[nodiscard]] inline BagOfWords tf_idf(const std::vector<std::string>& texts, Index least_texts) {
  std::unordered_map<std::string, std::int32_t> numbers;  // in the order in which words come up
  std::vector<Index> text_count;                          // of each word
  std::vector<std::vector<std::int32_t>> sorted;          // words of each text, as often as they come
  for (const std::string& text : texts) {
    auto& own = sorted.emplace_back();
    for (std::string& word : words_of(text))
      own.push_back(numbers.emplace(std::move(word), static_cast<std::int32_t>(numbers.size())).first->second);
    std::sort(own.begin(), own.end());
    text_count.resize(numbers.size());
    for (std::size_t k = 0; k < own.size(); ++k)
      if (k == 0 || own[k] != own[k - 1]) ++text_count[static_cast<std::size_t>(own[k])];
  }
  BagOfWords bag;
  std::vector<std::int32_t> column(text_count.size(), -1);
  for (std::size_t w = 0; w < column.size(); ++w)
    if (text_count[w] >= least_texts) column[w] = static_cast<std::int32_t>(bag.vocabulary++);
  for (const auto& own : sorted) {
    const std::size_t start = bag.weight.size();
    double squares = 0;
    for (auto at = own.begin(); at != own.end();) {
      const auto next = std::upper_bound(at, own.end(), *at);
      const auto count = static_cast<double>(next - at), all = static_cast<double>(texts.size());
      const auto number = static_cast<std::size_t>(*std::exchange(at, next));
      if (column[number] < 0) continue;
      const double weight = count * std::log(all / static_cast<double>(text_count[number]));
      bag.word.push_back(column[number]);
      bag.weight.push_back(static_cast<float>(weight));
      squares += weight * weight;
    }
    const float scale = squares > 0 ? static_cast<float>(1 / std::sqrt(squares)) : 0.0f;
    for (std::size_t k = start; k < bag.weight.size(); ++k) bag.weight[k] *= scale;
    bag.first.push_back(static_cast<Index>(bag.weight.size()));
  }
  return bag;
}

/// The product of two rows: the cosine of the angle between the texts.
[[nodiscard]] inline float similarity(const BagOfWords& bag, Index a, Index b) {
  float sum = 0;
  const auto words_a = bag.words(a), words_b = bag.words(b);
  for (std::size_t i = 0, j = 0; i < words_a.size() && j < words_b.size();) {
    if (words_a[i] == words_b[j]) sum += bag.weights(a)[i] * bag.weights(b)[j];
    const bool first = words_a[i] <= words_b[j], second = words_b[j] <= words_a[i];
    i += first;
    j += second;
  }
  return sum;
}

/// A linear map of bags of words, y = bag · W: a learned vector a word, summed with the weights of the words. A Module.
struct WordBag {
  using Scalar = float;
  ruvector::nn::Embedding<float> words;  ///< W [vocabulary×dim]

  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("words", self.words...);
  }

  /// y [nodes×dim] of some texts.
  void forward(const BagOfWords& bag, std::span<const std::int32_t> texts, MatrixView<float> y) const {
    for (Index i = 0; i < y.rows(); ++i) {
      std::ranges::fill(y.row(i), 0.0f);
      const auto text = static_cast<Index>(texts[static_cast<std::size_t>(i)]);
      const auto word = bag.words(text);
      for (std::size_t k = 0; k < word.size(); ++k)
        ruvector::simd::axpy<float>(bag.weights(text)[k], words.weight.row(word[k]), y.row(i));
    }
  }
  /// Adds the gradient by W to `grad`.
  void backward(const BagOfWords& bag, std::span<const std::int32_t> texts, MatrixView<const float> d_y,
                WordBag& grad) const {
    for (Index i = 0; i < d_y.rows(); ++i) {
      const auto text = static_cast<Index>(texts[static_cast<std::size_t>(i)]);
      const auto word = bag.words(text);
      for (std::size_t k = 0; k < word.size(); ++k)
        ruvector::simd::axpy<float>(bag.weights(text)[k], d_y.row(i), grad.words.weight.row(word[k]));
    }
  }
};

}  // namespace examples
