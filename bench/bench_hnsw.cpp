// SPDX-License-Identifier: MIT
#include "../examples/support/fashion_mnist.hpp"
#include "../examples/support/svg.hpp"
#include "support/rows.hpp"

#include <ruvector/io/atomic_file.hpp>
#include <ruvector/io/hnswlib_file.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/search/hnsw_search.hpp>

#if __has_include(<hnswlib/hnswlib.h>)
#include <hnswlib/hnswlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

// Row S4 of the table of targets: search over the layers of an index of hnswlib's against hnswlib's own searchKnn, on
// the pictures of Fashion-MNIST. The index is built once (half a minute) and then read from its file.

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
    Hnswlib index(&space, std::size_t(points.rows()), 16, 200);
    for (Index i = 0; i < points.rows(); ++i) index.addPoint(points.row(i).data(), std::size_t(i));
    index.saveIndex(path + ".part");
    std::filesystem::rename(path + ".part", path);
    return path;
  }

  // The answers of both to all queries: distances, and how many queries got other ids.
  struct Answers {
    Matrix<double> theirs = Matrix<double>(asked, k), ours = theirs;
    Index others = 0, evaluations = 0;
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
        answers.theirs(i, p) = std::sqrt(double(distance));
        answers.ours(i, p) = std::sqrt(-double(result.scores(i, p)));
        if (Index(label) == result.ids(i, p)) continue;
        same = false;
        answers.only_ties = answers.only_ties && -distance == result.scores(i, p);
        std::printf("ef %td, query %td, place %td: %zu at %.9g, here %td at %.9g\n", ef, i, p, label, double(distance),
                    result.ids(i, p), double(-result.scores(i, p)));
      }
      answers.others += same ? 0 : 1;
      answers.evaluations += result.distance_count[i];
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

// A point of the curve of recall and speed.
struct Point {
  bool of_hnswlib;
  Index ef;
  double recall, rate, evaluations;
};

// The share of the places with a distance of at most that of the k-th nearest and 0.001 (ann-benchmarks).
double recall(const Matrix<double>& found, const search::SearchResult<float>& truth) {
  Index good = 0;
  for (Index i = 0; i < asked; ++i)
    for (const double distance : found.row(i)) good += distance <= std::sqrt(-double(truth.scores(i, k - 1))) + 1e-3;
  return double(good) / double(asked * k);
}

template <class Run>
double seconds(Run&& run) {
  const double start = bench::cpu_clock();
  run();
  return bench::cpu_clock() - start;
}

std::vector<Point> curve(Data& data) {
  Workspace workspace;
  search::SearchResult<float> truth;
  const Matrix<float> points = Data::pictures("train");
  search::ExactSearch(search::SquaredDistance<float>{}, points).search(data.queries, k, truth, workspace);
  std::vector<Point> points_of_curve;
  std::printf("%8s %9s %9s %14s %14s\n", "ef", "recall", "distances", "hnswlib, 1/s", "ours, 1/s");
  for (const Index ef : {10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 400}) {
    const Data::Answers answers = data.answers(ef);
    std::vector<double> theirs, ours;
    Index next = 0;
    for (int round = 0; round < 5; ++round) {
      theirs.push_back(double(asked) / seconds([&] { data.ask_theirs(next, asked); }));
      ours.push_back(double(asked) / seconds([&] { data.ask_ours(next, asked, ef); }));
    }
    for (auto* rates : {&theirs, &ours}) std::ranges::nth_element(*rates, rates->begin() + 2);
    const double evaluations = double(answers.evaluations) / double(asked);
    // hnswlib looks twice at the node where it enters level 0.
    points_of_curve.push_back({true, ef, recall(answers.theirs, truth), theirs[2], evaluations + 1});
    points_of_curve.push_back({false, ef, recall(answers.ours, truth), ours[2], evaluations});
    std::printf("%8td %9.4f %9.0f %14.0f %14.0f\n", ef, points_of_curve.back().recall, evaluations, theirs[2], ours[2]);
  }
  return points_of_curve;
}

void save(const std::string& path, const std::string& text) {
  io::AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string csv(const std::vector<Point>& points) {
  std::string text = "program,ef,recall_at_10,queries_per_second,distances\n";
  char line[128];
  for (const Point& p : points) {
    std::snprintf(line, sizeof line, "%s,%td,%.4f,%.0f,%.1f\n", p.of_hnswlib ? "hnswlib" : "ruvector", p.ef, p.recall,
                  p.rate, p.evaluations);
    text += line;
  }
  return text;
}

// Recall to the right, towards 1 ever wider; queries a second upwards, in powers of ten.
std::string svg(const std::vector<Point>& points) {
  examples::Svg picture(640, 420,
                        "text{font:13px sans-serif;fill:#444}line{stroke:#ddd}.a{stroke:#888;fill:#888}"
                        ".b{stroke:#c33;fill:#c33}.a text{fill:#666;stroke:none}.b text{fill:#c33;stroke:none}");
  const auto x = [](double r) { return 70 + 540 * (-std::log10(1 - std::min(r, 0.9999)) - 0.4) / 3.6; };
  const auto y = [](double rate) { return 370 - 320 * (std::log10(rate) - 2.6) / 1.9; };
  for (const auto& [r, label] :
       {std::pair{0.7, "0.7"}, {0.9, "0.9"}, {0.97, "0.97"}, {0.99, "0.99"}, {0.997, "0.997"}, {0.999, "0.999"}}) {
    picture.line(x(r), 50, x(r), 370, "");
    picture.text(x(r), 390, label, "text-anchor=\"middle\"");
  }
  for (const auto& [rate, label] :
       {std::pair{500.0, "500"}, {1e3, "1,000"}, {2e3, "2,000"}, {5e3, "5,000"}, {1e4, "10,000"}, {2e4, "20,000"}}) {
    picture.line(70, y(rate), 610, y(rate), "");
    picture.text(62, y(rate) + 4, label, "text-anchor=\"end\"");
  }
  picture.text(70, 24, "Fashion-MNIST, 60,000 x 784, Euclidean: queries a second on one thread by recall@10", "");
  for (const bool of_hnswlib : {true, false}) {
    picture.begin_group(of_hnswlib ? "class=\"a\"" : "class=\"b\"");
    const Point* last = nullptr;
    for (const Point& p : points) {
      if (p.of_hnswlib != of_hnswlib) continue;
      if (last)
        picture.line(x(last->recall), y(last->rate), x(p.recall), y(p.rate), "style=\"stroke:inherit;stroke-width:2\"");
      picture.circle(x(p.recall), y(p.rate), 3, "");
      last = &p;
    }
    picture.text(610, of_hnswlib ? 60 : 78, of_hnswlib ? "hnswlib" : "ruvector, same index and ef",
                 "text-anchor=\"end\"");
    picture.end_group();
  }
  return picture.str();
}

}  // namespace

int main(int argc, char** argv) {
  bench::Rows rows(argc, argv);
  std::string index = (std::filesystem::path(argv[0]).parent_path() / "fashion_mnist.hnswlib").string(), table, drawing;
  CLI::App app("Search over the layers of an HNSW index, against hnswlib.");
  app.add_option("--index", index, "file of the index, built if it is not there")->capture_default_str();
  app.add_option("--csv", table, "writes the curve of recall and speed as a table");
  app.add_option("--svg", drawing, "draws it");
  try {
    std::vector<std::string> arguments = rows.arguments();
    app.parse(arguments);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  if (!rows.wanted("S4")) return rows.finish();
  Data data(index);
  speed(rows, data);
  if (!table.empty() || !drawing.empty()) {
    const std::vector<Point> points = curve(data);
    if (!table.empty()) save(table, csv(points));
    if (!drawing.empty()) save(drawing, svg(points));
  }
  return rows.finish();
}

#else

int main() {
  std::puts("S4 is measured against hnswlib, which is not installed (Debian and Ubuntu: apt install libhnswlib-dev)");
}

#endif
