// SPDX-License-Identifier: MIT
#include "../examples/support/fashion_mnist.hpp"
#include "support/rows.hpp"

#include <ruvector/io/hnswlib_file.hpp>
#include <ruvector/search/hnsw_search.hpp>

#if __has_include(<hnswlib/hnswlib.h>)
#include "../examples/support/hnsw_index.hpp"

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

// Row S4 of the table of targets: search over the layers of an index of hnswlib's against hnswlib's own searchKnn, on
// the pictures of Fashion-MNIST. The index is built once (half a minute) and then read from its file. The curves of
// recall and speed are those of examples/ann_benchmarks.

namespace {

using namespace ruvector;
using Hnswlib = hnswlib::HierarchicalNSW<float>;
constexpr Index k = 10, asked = 1000;

struct Data {
  Matrix<float> queries;
  hnswlib::L2Space space{784};
  Hnswlib theirs;
  graph::HnswLayers<float> layers;
  search::HnswSearch<search::SquaredDistance<float>> ours{{}, layers};
  Workspace workspace;
  search::SearchResult<float> result;

  explicit Data(const std::string& path) : queries(pictures("t10k")), theirs(&space, built(path)) {
    // Through the file, and not from `theirs`: what was read is what is searched.
    layers = io::read_hnswlib<float>(path);
    queries = Matrix<float>(queries.view().rows(0, asked));
  }

  [[nodiscard]] static Matrix<float> pictures(const std::string& part) {
    return examples::fashion_mnist::read(examples::fashion_mnist::default_directory(), part).features<float>();
  }

  const std::string& built(const std::string& path) {
    if (std::filesystem::exists(path)) return path;
    std::printf("building %s\n", path.c_str());
    const Matrix<float> points = pictures("train");
    examples::HnswlibIndex(points, 16, 200).save(path);
    return path;
  }

  // How many of the queries get other ids from the one than from the other.
  struct Answers {
    Index others = 0;
    bool only_ties = true;
  };
  Answers answers(Index ef) {
    Answers answers;
    theirs.setEf(std::size_t(ef));
    ours.search(queries, {.k = k, .ef = ef}, result, workspace);
    for (Index i = 0; i < asked; ++i) {
      const auto found = theirs.searchKnnCloserFirst(queries.row(i).data(), k);
      bool same = true;
      for (Index p = 0; p < k; ++p) {
        const auto& [distance, label] = found[std::size_t(p)];
        if (Index(label) == result.ids(i, p)) continue;
        same = false;
        answers.only_ties = answers.only_ties && -distance == result.scores(i, p);
        std::printf("ef %td, query %td, place %td: %zu at %.9g, here %td at %.9g\n", ef, i, p, label, double(distance),
                    result.ids(i, p), double(-result.scores(i, p)));
      }
      answers.others += same ? 0 : 1;
    }
    return answers;
  }

  // `count` queries from the `next` on, and round again.
  void ask_theirs(Index& next, Index count) {
    for (Index i = 0; i < count; ++i, next = (next + 1) % asked) (void)theirs.searchKnn(queries.row(next).data(), k);
  }
  void ask_ours(Index& next, Index count, Index ef) {
    ours.search(queries.view().rows(next, count), {.k = k, .ef = ef}, result, workspace);
    next = (next + count) % asked;
  }
};

void speed(bench::Rows& rows, Data& data) {
  for (const Index ef : {16, 32, 64, 128, 256}) {
    constexpr Index at_once = 50;
    Index next_theirs = 0, next_ours = 0;
    rows.ratio(
        "S4", "hnswlib's searchKnn over ours, Fashion-MNIST, ef " + std::to_string(ef), {0.9}, bench::cpu_clock,
        [&] {
          data.theirs.setEf(std::size_t(ef));
          data.ask_theirs(next_theirs, at_once);
        },
        [&] { data.ask_ours(next_ours, at_once, ef); },
        [&] {
          const Data::Answers answers = data.answers(ef);
          return answers.others <= asked / 1000 && answers.only_ties ? 0.0 : 1.0;
        });
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::Rows rows(argc, argv);
  std::string index = (std::filesystem::path(argv[0]).parent_path() / "fashion_mnist.hnswlib").string();
  CLI::App app("Search over the layers of an HNSW index, against hnswlib.");
  app.add_option("--index", index, "file of the index, built if it is not there")->capture_default_str();
  try {
    std::vector<std::string> arguments = rows.arguments();
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  if (!rows.wanted("S4")) return rows.finish();
  Data data(index);
  speed(rows, data);
  return rows.finish();
}

#else

int main() {
  std::puts("S4 is measured against hnswlib, which is not installed (Debian and Ubuntu: apt install libhnswlib-dev)");
}

#endif
