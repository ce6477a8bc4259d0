// SPDX-License-Identifier: MIT
#include "examples/support/hierarchy.hpp"
#include "examples/support/wordnet.hpp"
#include "support/catch.hpp"

#include <unistd.h>
#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace test_wordnet {
namespace {

using examples::build_hierarchy;
using examples::Hierarchy;
namespace wordnet = examples::wordnet;

const std::string installed = "/usr/share/wordnet";  // Debian's wordnet-base

bool database_is_installed() {
  if (std::filesystem::exists(installed + "/data.noun")) return true;
  WARN("skipped: no WordNet in " << installed << " (package wordnet-base)");
  return false;
}

/// Two files that hold: animal ← rodent ← mouse ← Mickey Mouse (an instance), and a stone that stands alone.
struct SmallDatabase {
  std::string data =
      "  1 a licence\n"
      "00000014 05 n 02 animal 0 Beast 0 001 ~ 00000078 n 0000 | lives\n"
      "00000078 05 n 01 rodent 0 001 @ 00000014 n 0000 | gnaws\n"
      "00000134 05 n 01 mouse 0 001 @ 00000078 n 0000 | squeaks\n"
      "00000191 18 n 01 Mickey_Mouse 0 001 @i 00000134 n 0000 | talks\n"
      "00000254 17 n 01 stone 0 000 | lies\n";
  std::string index =
      "  1 a licence\n"
      "animal n 1 1 ~ 1 0 00000014  \n"
      "mickey_mouse n 1 1 @i 1 0 00000191  \n"
      "mouse n 2 1 @ 2 1 00000134 00000014  \n"
      "stone n 1 0 1 0 00000254  \n";

  SmallDatabase& replace(std::string SmallDatabase::*file, const std::string& old_text, const std::string& new_text) {
    const auto at = (this->*file).find(old_text);
    REQUIRE(at != std::string::npos);
    (this->*file).replace(at, old_text.size(), new_text);
    return *this;
  }

  wordnet::Database read() const {
    const auto directory = std::filesystem::temp_directory_path() / ("ruvector_wordnet_" + std::to_string(::getpid()));
    std::filesystem::create_directory(directory);
    std::ofstream(directory / "data.noun", std::ios::binary) << data;
    std::ofstream(directory / "index.noun", std::ios::binary) << index;
    struct Remove {
      const std::filesystem::path& path;
      ~Remove() { std::filesystem::remove_all(path); }
    } const remove{directory};
    return wordnet::read(directory.string(), "noun");
  }

  std::string error() const {
    try {
      (void)read();
    } catch (const ruvector::FormatError& error) {
      return error.what();
    }
    return "";
  }
};

const auto data = &SmallDatabase::data;
const auto index = &SmallDatabase::index;

TEST_CASE("wordnet: the closure has the published number of pairs", "[examples]") {
  if (!database_is_installed()) return;
  const auto nouns = wordnet::read(installed, "noun");
  CHECK(nouns.synsets.size() == 82115);

  const Hierarchy all = build_hierarchy(nouns);
  CHECK(all.size() == 82115);
  CHECK(all.pairs() == 743241);

  const Hierarchy mammals = build_hierarchy(nouns, "mammal");
  CHECK(mammals.size() == 1180);
  CHECK(mammals.pairs() == 6540);

  std::array<int, wordnet::relation_symbols.size()> relations{};  // as `grep -o` counts them
  for (const auto& synset : nouns.synsets)
    for (const auto& pointer : synset.pointers) ++relations[std::size_t(pointer.relation)];
  CHECK(relations == std::array{75850, 8577, 12293, 797, 9097, 4253, 1283, 1066, 2152, 2951});

  const auto verbs = wordnet::read(installed, "verb");
  CHECK(verbs.synsets.size() == 13767);
  const Hierarchy verb_hierarchy = build_hierarchy(verbs);
  CHECK(verb_hierarchy.size() == 13542);
  CHECK(verb_hierarchy.pairs() == 35079);
}

TEST_CASE("wordnet: a word leads to its senses, a sense to all that is above it", "[examples]") {
  if (!database_is_installed()) return;
  const auto nouns = wordnet::read(installed, "noun");
  const auto& whale = nouns.senses.at("whale");
  REQUIRE(whale.size() == 2);
  CHECK(nouns.synsets[std::size_t(whale[0])].words.front() == "giant");  // "a very large person" comes first
  CHECK(nouns.senses.count(wordnet::normalized("Killer whale")) == 1);

  const Hierarchy mammals = build_hierarchy(nouns, "mammal");
  const auto dog = mammals.node(nouns.senses.at("dog").front());
  const auto mammal = mammals.node(nouns.senses.at("mammal").front());
  const auto cat = mammals.node(nouns.senses.at("cat").front());
  REQUIRE(dog >= 0);
  CHECK(mammals.is_ancestor(mammal, dog));
  CHECK_FALSE(mammals.is_ancestor(dog, mammal));
  CHECK_FALSE(mammals.is_ancestor(cat, dog));
  CHECK(mammals.ancestors[mammal].empty());
  CHECK(mammals.node(whale[0]) == -1);
}

TEST_CASE("wordnet: instances count as much as kinds, and what stands alone does not", "[examples]") {
  const auto database = SmallDatabase{}.read();
  REQUIRE(database.synsets.size() == 5);
  CHECK(database.synsets[0].words == std::vector<std::string>{"animal", "beast"});
  CHECK(database.senses.at("mouse") == std::vector<std::int32_t>{2, 0});
  CHECK(database.synsets[3].gloss == "talks");
  CHECK(database.synsets[3].lexicographer_file == 18);
  REQUIRE(database.synsets[3].pointers.size() == 1);
  CHECK(database.synsets[3].pointers[0].relation == wordnet::Relation::instance_hypernym);
  CHECK(database.synsets[3].pointers[0].target == 2);

  const Hierarchy all = build_hierarchy(database);
  CHECK(all.size() == 4);
  CHECK(all.pairs() == 6);
  CHECK(all.parents.target.size() == 3);
  const Hierarchy mice = build_hierarchy(database, "Mouse");
  CHECK(mice.size() == 2);
  CHECK(mice.pairs() == 1);
  CHECK_THROWS_AS(build_hierarchy(database, "unicorn"), ruvector::ConfigError);
}

TEST_CASE("wordnet: a circle of hypernyms ends", "[examples]") {
  const auto database = SmallDatabase{}.replace(data, "~ 00000078", "@ 00000191").read();
  const Hierarchy all = build_hierarchy(database);
  CHECK(all.pairs() == 4 * 3);  // each is above each other one, and none above itself
}

TEST_CASE("wordnet: a missing database names the package and the flag", "[examples]") {
  try {
    (void)wordnet::read("/nowhere", "noun");
    FAIL("no error");
  } catch (const ruvector::FormatError& error) {
    const std::string text = error.what();
    CHECK(text.find("/nowhere/data.noun") != std::string::npos);
    CHECK(text.find("wordnet-base") != std::string::npos);
    CHECK(text.find("--wordnet") != std::string::npos);
  }
}

TEST_CASE("wordnet: a broken file is refused with its line and the reason", "[examples]") {
  struct Case {
    std::string SmallDatabase::*file;
    std::string old_text, new_text, line, reason;
  };
  const Case cases[] = {
      {data, "00000078 05", "00000079 05", "data.noun:3:", "starts at byte 78"},
      {data, "00000078 05", "0000007x 05", "data.noun:3:", "no number"},
      {data, "05 n 01 mouse", "05 v 01 mouse", "data.noun:4:", "synset type"},
      {data, "n 02 animal", "n 00 animal", "data.noun:2:", "without words"},
      {data, "n 02 animal", "n ff animal", "data.noun:2:", "lexical id is no number"},
      {data, "001 @ 00000078", "999 @ 00000078", "data.noun:4:", "pointer offset is no number"},
      {data, "001 @ 00000078 n", "001 @ 00000078 v", "data.noun:4:", "another part of speech"},
      {data, "@ 00000078", "@ 00000077", "data.noun", "no synset is"},
      {data, "0000 | gnaws", "0000 : gnaws", "data.noun:3:", "gloss"},
      {data, "0 000 | lies", "0 000", "data.noun:6:", "line ends before the |"},
      {data, "0 000 | lies\n", "0 000 | li", "data.noun:6:", "cut off"},
      {index, "mouse n 2", "mouse n 3", "index.noun:4:", "line ends before the synset offset"},
      {index, "mouse n 2", "mouse n -2", "index.noun:4:", "no number"},
      {index, "mouse n 2", "mouse v 2", "index.noun:4:", "part of speech"},
      {index, "0 00000254", "0 00000255", "index.noun:5:", "no synset at offset 255"},
      {index, "stone n 1", "animal n 1", "index.noun:5:", "occurs twice"},
  };
  for (const Case& broken : cases) {
    const std::string error = SmallDatabase{}.replace(broken.file, broken.old_text, broken.new_text).error();
    CAPTURE(broken.old_text, broken.new_text, error);
    CHECK(error.find(broken.line) != std::string::npos);
    CHECK(error.find(broken.reason) != std::string::npos);
  }
}

TEST_CASE("wordnet: a file cut off anywhere is an error or a smaller database, never a crash", "[examples]") {
  const SmallDatabase whole;
  for (const auto file : {data, index}) {
    for (std::size_t size = 0; size < (whole.*file).size(); ++size) {
      SmallDatabase cut;
      (cut.*file).resize(size);
      const std::string error = cut.error();
      CAPTURE(size, error);
      // only a cut between two lines of the index leaves nothing to complain about
      CHECK((!error.empty() || (file == index && (size == 0 || whole.index[size - 1] == '\n'))));
    }
  }
}

}  // namespace
}  // namespace test_wordnet
