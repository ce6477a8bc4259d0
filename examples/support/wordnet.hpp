// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/error.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace examples::wordnet {

/// How one concept relates to another. The inverses are not listed: WordNet has each pointer in both directions.
enum class Relation : std::int8_t {
  hypernym,           ///< @: a dog is a kind of canine
  instance_hypernym,  ///< @i: the Rhine is an instance of a river
  member_holonym,     ///< #m: a tree is a member of a forest
  substance_holonym,  ///< #s: flour is a substance of bread
  part_holonym,       ///< #p: a wheel is a part of a car
  topic,              ///< ;c: a goal belongs to sport
  region,             ///< ;r: a bobby belongs to England
  usage,              ///< ;u: a word is slang
  antonym,            ///< !: of words, in both directions
  derivation,         ///< +: words of one root, in both directions
};
inline constexpr std::array<std::string_view, 10> relation_symbols = {"@",  "@i", "#m", "#s", "#p",
                                                                      ";c", ";r", ";u", "!",  "+"};

/// A relation to another synset.
struct Pointer {
  Relation relation;
  std::int32_t target;  ///< position in `Database::synsets`
};

/// A set of synonyms: one concept, one node of the hierarchy.
struct Synset {
  std::int32_t offset = 0;              ///< its name in the database: where its line starts in the data file
  std::vector<std::string> words;       ///< lower case, `_` for a space, the usual one first
  std::vector<std::int32_t> hypernyms;  ///< positions in `Database::synsets` of what this is a kind (@) or an
                                        ///< instance (@i) of
  std::vector<Pointer> pointers;        ///< all relations, these two too, to the same part of speech
  std::int32_t lexicographer_file = 0;  ///< the topic it was written under, 3 … 28 for nouns: noun.animal is 5
  std::string gloss;                    ///< what it means: a definition and examples
};

/// The nouns, or the verbs, of WordNet 3.
struct Database {
  char part_of_speech = 'n';                                          ///< 'n' or 'v'
  std::vector<Synset> synsets;                                        ///< by ascending offset
  std::unordered_map<std::string, std::vector<std::int32_t>> senses;  ///< word → synsets, the most frequent sense first

  /// Position of the synset at `offset`, −1 where there is none. O(log n).
  [[nodiscard]] std::int32_t find(std::int32_t offset) const {
    const auto at = std::lower_bound(synsets.begin(), synsets.end(), offset,
                                     [](const Synset& synset, std::int32_t value) { return synset.offset < value; });
    return at != synsets.end() && at->offset == offset ? static_cast<std::int32_t>(at - synsets.begin()) : -1;
  }
};

/// The form in which the database stores a word: lower case, `_` for a space.
[[nodiscard]] inline std::string normalized(std::string_view word) {
  std::string result(word);
  for (char& c : result) c = c == ' ' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

namespace detail {

/// The space-separated fields of one line; whatever is wrong is reported as "file:line: what".
class Fields {
 public:
  Fields(const std::string& file, std::int64_t line, std::string_view text)
      : file_(file), line_(line), rest_(text.substr(0, text.find_last_not_of(' ') + 1)) {}

  [[noreturn]] void fail(const std::string& what) const {
    ruvector::throw_format_error(file_ + ":" + std::to_string(line_), what);
  }
  std::string_view next(const char* what) {
    if (rest_.empty()) fail(std::string("the line ends before the ") + what);
    const std::string_view field = rest_.substr(0, rest_.find(' '));
    if (field.empty()) fail(std::string("empty field where the ") + what + " should be");
    rest_.remove_prefix(std::min(field.size() + 1, rest_.size()));
    return field;
  }
  std::int32_t number(const char* what, int base = 10) {
    const std::string_view field = next(what);
    std::int32_t value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, base);
    if (error != std::errc() || end != field.data() + field.size() || value < 0)
      fail(std::string(what) + " is no number: \"" + std::string(field) + "\"");
    return value;
  }
  /// What has not been read.
  [[nodiscard]] std::string_view rest() const { return rest_; }

 private:
  const std::string& file_;
  std::int64_t line_;
  std::string_view rest_;
};

/// Calls f(fields, offset of the line) for every line but the licence, whose lines start with two spaces.
template <class F>
void for_each_line(const std::string& file, F&& f) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream)
    ruvector::throw_format_error(file,
                                 "cannot open (Debian and Ubuntu: apt install wordnet-base; elsewhere pass the "
                                 "folder of a WordNet 3 database with --wordnet DIR)");
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  std::size_t start = 0;
  for (std::int64_t line = 1; start < text.size(); ++line) {
    const std::size_t end = text.find('\n', start);
    Fields fields(file, line, std::string_view(text).substr(start, end - start));
    if (end == std::string::npos) fields.fail("the last line has no end: the file is cut off");
    if (!fields.rest().starts_with("  ")) f(fields, start);
    start = end + 1;
  }
}

/// offset lex_filenum ss_type w_cnt (word lex_id)… p_cnt (symbol offset pos source/target)… [frames] | gloss
/// `hypernyms` and `pointers` of the result are still offsets.
[[nodiscard]] inline Synset read_synset(Fields& fields, std::size_t line_start, char part_of_speech) {
  Synset synset;
  synset.offset = fields.number("synset offset");
  if (static_cast<std::size_t>(synset.offset) != line_start)
    fields.fail("synset offset " + std::to_string(synset.offset) + " on a line that starts at byte " +
                std::to_string(line_start));
  synset.lexicographer_file = fields.number("lexicographer file number");
  if (const auto type = fields.next("synset type"); type != std::string_view(&part_of_speech, 1))
    fields.fail("synset type \"" + std::string(type) + "\" where " + part_of_speech + " is expected");
  const std::int32_t words = fields.number("word count", 16);
  if (words == 0) fields.fail("a synset without words");
  for (std::int32_t i = 0; i < words; ++i) {
    synset.words.push_back(normalized(fields.next("word")));
    fields.number("lexical id", 16);
  }
  for (std::int32_t i = fields.number("pointer count"); i > 0; --i) {
    const std::string_view symbol = fields.next("pointer symbol");
    const std::int32_t target = fields.number("pointer offset");
    const std::string_view type = fields.next("part of speech of a pointer");
    fields.number("source and target of a pointer", 16);
    const bool is_hypernym = symbol == "@" || symbol == "@i", same = type == std::string_view(&part_of_speech, 1);
    if (is_hypernym && !same) fields.fail("a hypernym of another part of speech: \"" + std::string(type) + "\"");
    const auto at = std::find(relation_symbols.begin(), relation_symbols.end(), symbol);
    if (at == relation_symbols.end() || !same) continue;
    synset.pointers.push_back({static_cast<Relation>(at - relation_symbols.begin()), target});
    if (is_hypernym) synset.hypernyms.push_back(target);
  }
  if (part_of_speech == 'v') {
    for (std::int32_t i = fields.number("frame count"); i > 0; --i) {
      if (fields.next("+ of a frame") != "+") fields.fail("a frame that does not start with +");
      fields.number("frame number");
      fields.number("word number of a frame", 16);
    }
  }
  if (fields.next("| before the gloss") != "|") fields.fail("no | where the gloss should start");
  synset.gloss = fields.rest();
  return synset;
}

/// lemma pos synset_cnt p_cnt symbol… sense_cnt tagsense_cnt offset…
inline void read_senses(Fields& fields, Database& database) {
  const std::string word(fields.next("lemma"));
  if (const auto type = fields.next("part of speech"); type != std::string_view(&database.part_of_speech, 1))
    fields.fail("part of speech \"" + std::string(type) + "\" where " + database.part_of_speech + " is expected");
  const std::int32_t synsets = fields.number("synset count");
  for (std::int32_t i = fields.number("pointer count"); i > 0; --i) fields.next("pointer symbol");
  fields.number("sense count");
  fields.number("tagged sense count");
  auto& senses = database.senses[word];
  if (!senses.empty()) fields.fail("lemma \"" + word + "\" occurs twice");
  for (std::int32_t i = 0; i < synsets; ++i) {
    const std::int32_t offset = fields.number("synset offset");
    const std::int32_t synset = database.find(offset);
    if (synset < 0) fields.fail("no synset at offset " + std::to_string(offset));
    senses.push_back(synset);
  }
}

}  // namespace detail

/// Reads `directory`/data.{noun,verb} and index.{noun,verb}, as wndb(5WN) describes them, with every field checked.
/// `part_of_speech` is "noun" or "verb". Throws FormatError "file:line: what" where a file is missing, cut off or
/// broken. The nouns take about 0.2 s.
[[nodiscard]] inline Database read(const std::string& directory, const std::string& part_of_speech) {
  Database database;
  database.part_of_speech = part_of_speech == "verb" ? 'v' : 'n';
  const std::string data = directory + "/data." + part_of_speech;
  detail::for_each_line(data, [&](detail::Fields& fields, std::size_t start) {
    database.synsets.push_back(detail::read_synset(fields, start, database.part_of_speech));
  });
  if (database.synsets.empty()) ruvector::throw_format_error(data, "holds no synset");
  for (Synset& synset : database.synsets) {
    const auto resolve = [&](std::int32_t& pointer) {
      const std::int32_t offset = std::exchange(pointer, database.find(pointer));
      if (pointer < 0)
        ruvector::throw_format_error(data, "synset " + std::to_string(synset.offset) + " points to offset " +
                                               std::to_string(offset) + ", where no synset is");
    };
    for (std::int32_t& hypernym : synset.hypernyms) resolve(hypernym);
    for (Pointer& pointer : synset.pointers) resolve(pointer.target);
  }
  detail::for_each_line(directory + "/index." + part_of_speech,
                        [&](detail::Fields& fields, std::size_t) { detail::read_senses(fields, database); });
  return database;
}

}  // namespace examples::wordnet
