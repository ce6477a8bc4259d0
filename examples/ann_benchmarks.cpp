// SPDX-License-Identifier: MIT#include <CLI/CLI.hpp>

//
// Recall against queries a second, as ann-benchmarks measures them: Fashion-MNIST, 60,000 × 784, Euclidean, k = 10, one
// thread, one query at a time.
//
//   ann_benchmarks --csv FILE --svg FILE       the whole: 10,000 queries
//   ann_benchmarks --indexes DIR --links 8,16  indexes are built once, a minute each, and kept in DIR
//   ann_benchmarks --quick                     few points and queries: the check
//
// hnswlib's own searchKnn and search::HnswSearch walk over the same index, in turns of a few queries, so that both meet
// the same conditions. End points are exact: search::ExactSearch over floats, and over int8 with the best scored again,
// and FAISS's flat index where it is installed. The cost is CPU time, of all threads if there should be more.
//
// A place counts where the true distance of what was returned is at most that of the tenth neighbour and 0.001
// (Aumüller, Bernhardsson & Faithfull 2020, "ANN-Benchmarks").

#include "support/command_line.hpp"
#include "support/fashion_mnist.hpp"
#include "support/interrupt.hpp"
#include "support/progress_bar.hpp"
#include "support/svg.hpp"
#include "support/text_files.hpp"

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/geometry/euclidean.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/search/hnsw_search.hpp>
#include <ruvector/search/neighbor_scores.hpp>
#include <ruvector/search/scores.hpp>
#include <ruvector/simd/convert.hpp>

#if __has_include(<hnswlib/hnswlib.h>)
#include "support/hnsw_index.hpp"

#ifdef RUVECTOR_BENCH_FAISS
#include <faiss/IndexFlat.h>
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <memory>
#include <queue>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace examples;
using namespace ruvector;

constexpr Index k = 10;

struct Options {
  std::string fashion_mnist = fashion_mnist::default_directory(), indexes, csv, svg;
  std::vector<Index> links = {16}, ef = {10, 20, 40, 80, 120, 200, 400, 600, 800};
  Index points = 60000, queries = 10000, exact_queries = 200, ef_construction = 500, rescore = 100;
  std::uint64_t seed = 1;
  bool quick = false;
};

/// A point of a curve, or an end point: then links and ef are 0.
struct Point {
  std::string program;
  Index links = 0, ef = 0, queries = 0, at_once = 1;
  double recall = 0, rate = 0, distances = 0;  ///< distances: a query; 0 where the program does not count them
};

/// The pictures, and from which distance on a place no longer counts.
struct Problem {
  Matrix<float> points, queries;
  std::vector<double> limit;

  explicit Problem(const Options& options) {
    points = pictures(options, "train", options.points);
    const Matrix<float> all = pictures(options, "t10k", 10000);
    std::vector<Index> order(std::size_t(all.rows()));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = Index(i);
    if (options.queries < all.rows()) Rng(options.seed).shuffle(std::span(order));
    queries = Matrix<float>(options.queries, all.cols());
    for (Index i = 0; i < queries.rows(); ++i)
      std::ranges::copy(all.row(order[std::size_t(i)]), queries.row(i).begin());
    Workspace workspace;
    search::SearchResult<float> truth;
    search::ExactSearch(search::SquaredDistance<float>{}, points).search(queries, k, truth, workspace);
    for (Index i = 0; i < queries.rows(); ++i) limit.push_back(distance(i, truth.ids(i, k - 1)) + 1e-3);
  }

  static Matrix<float> pictures(const Options& options, const char* part, Index count) {
    return Matrix<float>(fashion_mnist::read(options.fashion_mnist, part).features<float>().view().rows(0, count));
  }
  [[nodiscard]] double distance(Index query, Index id) const {
    double squares = 0;
    for (Index c = 0; c < points.cols(); ++c) {
      const double difference = double(queries(query, c)) - double(points(id, c));
      squares += difference * difference;
    }
    return std::sqrt(squares);
  }
  /// Whether what was returned for a query is near enough. An id of −1: nothing was.
  [[nodiscard]] bool good(Index query, Index id) const {
    return id >= 0 && distance(query, id) <= limit[std::size_t(query)];
  }
};

/// A program that answers queries, one turn after the other.
struct Contestant {
  std::function<void(Index first, Index count)> answer;  ///< what is timed
  std::function<Index(Index query, Index place)> id;     ///< of the last turn; queries count from its first
  std::function<double(Index query)> distances = [](Index) { return 0.0; };
};

[[nodiscard]] double cpu_seconds() {
  return double(std::clock()) / CLOCKS_PER_SEC;
}

/// All answer the first `count` queries, in turns of `turn`; who begins changes. Sets recall, rate and distances.
void compete(const Problem& problem, const std::vector<Contestant>& contestants, Index count, Index turn,
             std::vector<Point>& points) {
  std::vector<double> seconds(contestants.size());
  for (const Contestant& contestant : contestants) contestant.answer(0, std::min(turn, count));  // not timed
  for (Index first = 0; first < count && !interrupted(); first += turn) {
    const Index here = std::min(turn, count - first);
    for (std::size_t c = 0; c < contestants.size(); ++c) {
      const std::size_t at = (c + std::size_t(first / turn)) % contestants.size();
      const Contestant& contestant = contestants[at];
      const double start = cpu_seconds();
      contestant.answer(first, here);
      seconds[at] += cpu_seconds() - start;
      for (Index i = 0; i < here; ++i) {
        for (Index p = 0; p < k; ++p) points[at].recall += problem.good(first + i, contestant.id(i, p)) ? 1 : 0;
        points[at].distances += contestant.distances(i);
      }
    }
  }
  for (std::size_t c = 0; c < points.size(); ++c) {
    points[c].queries = count;
    points[c].recall /= double(count * k);
    points[c].distances /= double(count);
    points[c].rate = double(count) / seconds[c];
  }
}

/// One of our searches, which is given one query at a time, or a whole turn at once.
template <class Search, class Config>
Contestant ours(const Problem& problem, const Search& search, const Config& config, Index at_once) {
  // What it keeps from turn to turn.
  struct State {
    Workspace workspace;
    std::vector<search::SearchResult<float>> results;
  };
  const auto state = std::make_shared<State>();
  Contestant contestant;
  contestant.answer = [&problem, &search, config, at_once, state](Index first, Index count) {
    state->results.resize(std::size_t((count + at_once - 1) / at_once));
    for (Index i = 0; i < count; i += at_once)
      search.search(problem.queries.view().rows(first + i, std::min(at_once, count - i)), config,
                    state->results[std::size_t(i / at_once)], state->workspace);
  };
  contestant.id = [at_once, state](Index query, Index place) {
    return state->results[std::size_t(query / at_once)].ids(query % at_once, place);
  };
  contestant.distances = [at_once, state](Index query) {
    return double(state->results[std::size_t(query / at_once)].distance_count[query % at_once]);
  };
  return contestant;
}

Contestant hnswlibs(const Problem& problem, const HnswlibIndex& index) {
  using Found = std::priority_queue<std::pair<float, hnswlib::labeltype>>;
  const auto found = std::make_shared<std::vector<Found>>();
  Contestant contestant;
  contestant.answer = [&problem, &index, found](Index first, Index count) {
    found->resize(std::size_t(count));
    for (Index i = 0; i < count; ++i)
      (*found)[std::size_t(i)] = index.search.searchKnn(problem.queries.row(first + i).data(), std::size_t(k));
  };
  contestant.id = [found](Index query, Index) {  // the farthest first, each once
    Found& own = (*found)[std::size_t(query)];
    if (own.empty()) return Index(-1);
    const auto id = Index(own.top().second);
    own.pop();
    return id;
  };
  return contestant;
}

/// The curves over one index.
std::vector<Point> curves(const Problem& problem, const Options& options, Index links) {
  const auto build = [&] {
    ProgressBar bar("index, M " + std::to_string(links), "points", [](const ProgressReport&) { return std::string(); });
    return HnswlibIndex(problem.points, links, options.ef_construction, std::ref(bar));
  };
  std::string file;
  if (!options.indexes.empty()) {
    file = options.indexes + "/fashion_mnist-" + std::to_string(options.points) + "-" + std::to_string(links) + "-" +
           std::to_string(options.ef_construction) + ".hnswlib";
    if (!std::filesystem::exists(file)) {
      HnswlibIndex built = build();
      if (!interrupted()) built.save(file);
    }
  }
  if (interrupted()) return {};
  HnswlibIndex index = file.empty() ? build() : HnswlibIndex(file, problem.points.cols());
  const graph::HnswLayers<float> layers(index.search);
  const search::HnswSearch search(search::SquaredDistance<float>{}, layers);
  std::vector<Point> points;
  std::printf("\nM %td, ef_construction %td, %td queries\n%6s %10s %10s %10s %12s %12s %7s\n", links,
              options.ef_construction, problem.queries.rows(), "ef", "distances", "recall", "hnswlib's", "queries/s",
              "hnswlib's", "ratio");
  for (const Index ef : options.ef) {
    constexpr Index turn = 50;
    index.search.setEf(std::size_t(ef));
    std::vector<Point> pair = {{"ruvector", links, ef}, {"hnswlib", links, ef}};
    compete(problem, {ours(problem, search, search::HnswSearchConfig{.k = k, .ef = ef}, 1), hnswlibs(problem, index)},
            problem.queries.rows(), turn, pair);
    if (interrupted()) return {};
    std::printf("%6td %10.0f %10.4f %10.4f %12.0f %12.0f %7.2f\n", ef, pair[0].distances, pair[0].recall,
                pair[1].recall, pair[0].rate, pair[1].rate, pair[0].rate / pair[1].rate);
    std::fflush(stdout);
    points.insert(points.end(), pair.begin(), pair.end());
  }
  return points;
}

#ifdef RUVECTOR_BENCH_FAISS
Contestant faiss_flat(const Problem& problem, const faiss::IndexFlatL2& index, Index at_once) {
  const auto ids = std::make_shared<std::vector<faiss::Index::idx_t>>();
  const auto squares = std::make_shared<std::vector<float>>();
  Contestant contestant;
  contestant.answer = [&problem, &index, at_once, ids, squares](Index first, Index count) {
    ids->resize(std::size_t(count * k));
    squares->resize(ids->size());
    for (Index i = 0; i < count; i += at_once)
      index.search(std::min(at_once, count - i), problem.queries.row(first + i).data(), k, squares->data() + i * k,
                   ids->data() + i * k);
  };
  contestant.id = [ids](Index query, Index place) { return Index((*ids)[std::size_t(query * k + place)]); };
  contestant.distances = [&problem](Index) { return double(problem.points.rows()); };
  return contestant;
}
#endif

/// The end points: what finds every neighbour.
std::vector<Point> end_points(const Problem& problem, const Options& options) {
  Matrix<std::int8_t> small(problem.points.rows(), problem.points.cols());
  Vector<float> scale(small.rows());
  for (Index j = 0; j < small.rows(); ++j) scale[j] = simd::quantize(problem.points.row(j), small.row(j));
  const search::Distance score{geometry::Euclidean<float>()};
  const search::ExactSearch floats(score, problem.points);
  const search::ExactSearch bytes(
      score, search::Candidates<float, std::int8_t>{.key = small, .key_scale = scale.span(), .exact = problem.points});
#ifdef RUVECTOR_BENCH_FAISS
  omp_set_num_threads(1);
  faiss::IndexFlatL2 flat{int(problem.points.cols())};
  flat.add(faiss::Index::idx_t(problem.points.rows()), problem.points.data());
#endif
  std::printf("\nexact\n%-24s %8s %10s %12s\n", "", "at once", "recall", "queries/s");
  std::vector<Point> all;
  const auto measure = [&](Index count, Index at_once, Index turn) {
    const search::ExactSearchConfig<float> plain{.k = k}, again{.k = k, .rescore = options.rescore};
    std::vector<Contestant> contestants = {ours(problem, floats, plain, at_once), ours(problem, bytes, again, at_once)};
    std::vector<Point> points = {{"ruvector exact"}, {"ruvector exact int8"}};
#ifdef RUVECTOR_BENCH_FAISS
    contestants.push_back(faiss_flat(problem, flat, at_once));
    points.push_back({"faiss flat"});
#endif
    compete(problem, contestants, count, turn, points);
    if (interrupted()) return;
    for (Point& point : points) {
      point.at_once = at_once;
      std::printf("%-24s %8td %10.4f %12.1f\n", point.program.c_str(), at_once, point.recall, point.rate);
    }
    all.insert(all.end(), points.begin(), points.end());
  };
  const Index few = std::min(options.exact_queries, problem.queries.rows());
  measure(few, 1, std::min(few, Index(10)));
  const Index many = std::min(Index(1000), problem.queries.rows());
  measure(many, many, many);
  return all;
}

void write_csv(const Options& options, const std::vector<Point>& points) {
  for (const Point& p : points) {
    char line[200];
    std::snprintf(line, sizeof line, "fashion,%td,%td,%llu,%s,%td,%td,%td,%td,%.5f,%.1f,%.1f", options.points,
                  p.queries, static_cast<unsigned long long>(options.seed), p.program.c_str(), p.links,
                  p.links > 0 ? options.ef_construction : 0, p.ef, p.at_once, p.recall, p.rate, p.distances);
    append_csv(options.csv,
               "data,points,queries,seed,program,links,ef_construction,ef,at_once,recall_at_10,queries_per_second,"
               "distances",
               line);
  }
}

/// Recall to the right, towards 1 ever wider; queries a second upwards, in powers of ten.
std::string draw(const Options& options, const std::vector<Point>& points) {
  Svg svg(820, 480,
          "text{font:13px sans-serif;fill:#333}.grid{stroke:#e4e4e4}.curve{stroke-width:2;stroke-linecap:round}");
  svg.rectangle(0, 0, 820, 480, "fill=\"white\"");
  double least = 1e9, most = 1;
  for (const Point& p : points) {
    least = std::min(least, p.rate);
    most = std::max(most, p.rate);
  }
  const double bottom = std::log10(least) - 0.1, top = std::log10(most) + 0.1;
  const auto x = [](double recall) {
    return 70 + 480 * (-std::log10(1 - std::clamp(recall, 0.6, 0.9999)) - 0.4) / 3.6;
  };
  const auto y = [&](double rate) { return 420 - 360 * (std::log10(rate) - bottom) / (top - bottom); };
  svg.text(70, 28, "Fashion-MNIST, Euclidean: queries a second on one thread by recall@10", "style=\"font-size:16px\"");
  for (const char* label : {"0.7", "0.9", "0.97", "0.99", "0.997", "0.999", "0.9999"}) {
    const double at = x(std::stod(label));
    svg.line(at, 60, at, 420, "class=\"grid\"");
    svg.text(at, 440, label, "text-anchor=\"middle\"");
  }
  for (double decade = 1; decade < most * 2; decade *= 10)
    for (const double step : {1.0, 2.0, 5.0})
      if (const double rate = decade * step; rate >= least && rate <= most) {
        svg.line(70, y(rate), 550, y(rate), "class=\"grid\"");
        svg.text(62, y(rate) + 4, Svg::number(rate), "text-anchor=\"end\"");
      }
  double row = 70;
  const auto legend = [&](const std::string& colour, const std::string& words) {
    svg.text(568, row, words, "style=\"fill:" + colour + "\"");
    row += 18;
  };
  for (const Index links : options.links)
    for (const bool of_hnswlib : {true, false}) {
      const double shade = 0.45 + 0.2 * double(std::ranges::find(options.links, links) - options.links.begin());
      const std::string colour = oklch(std::min(shade, 0.8), of_hnswlib ? 0.02 : 0.17, of_hnswlib ? 250 : 25);
      const Point* last = nullptr;
      for (const Point& p : points) {
        if (p.links != links || (p.program == "hnswlib") != of_hnswlib) continue;
        if (last != nullptr)
          svg.line(x(last->recall), y(last->rate), x(p.recall), y(p.rate), "class=\"curve\" stroke=\"" + colour + "\"");
        svg.circle(x(p.recall), y(p.rate), 3, "fill=\"" + colour + "\"");
        last = &p;
      }
      legend(colour, std::string(of_hnswlib ? "hnswlib" : "ruvector") + ", M " + std::to_string(links));
    }
  double hue = 110;
  for (const Point& p : points) {
    if (p.links > 0) continue;
    const std::string colour = oklch(0.6, 0.13, hue);
    svg.circle(x(p.recall), y(p.rate), 5, "fill=\"" + colour + "\"");
    legend(colour, p.program + (p.at_once > 1 ? ", " + std::to_string(p.at_once) + " at once" : ""));
    hue += 50;
  }
  return svg.str();
}

/// Whether the recalls are what they should be: in an interval at each end of the curve, the same for both programs,
/// and all where the search is exact.
bool as_expected(const std::vector<Point>& points) {
  bool good = true;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Point& p = points[i];
    // Of 3,000 points with M 4: what ef 10 misses, ef 160 nearly always finds.
    const double lowest = p.ef == 0 ? 1 : p.ef == 10 ? 0.80 : 0.985, highest = p.ef == 10 ? 0.93 : 1;
    const double other = p.program == "hnswlib" ? points[i - 1].recall : p.recall;
    if (p.recall >= lowest && p.recall <= highest && std::abs(p.recall - other) <= 1e-3) continue;
    std::fprintf(stderr, "ann_benchmarks: %s, ef %td: recall %.4f, expected %.3f to %.3f, as of the other\n",
                 p.program.c_str(), p.ef, p.recall, lowest, highest);
    good = false;
  }
  return good;
}

int measure(const Options& options) {
  const Problem problem(options);
  std::vector<Point> points;
  for (const Index links : options.links) {
    const std::vector<Point> more = curves(problem, options, links);
    points.insert(points.end(), more.begin(), more.end());
  }
  if (!interrupted()) {
    const std::vector<Point> more = end_points(problem, options);
    points.insert(points.end(), more.begin(), more.end());
  }
  if (interrupted()) return 130;
  if (!options.csv.empty()) write_csv(options, points);
  if (!options.svg.empty()) write_text(options.svg, draw(options, points));
  return options.quick && !as_expected(points) ? 1 : 0;
}

void add_options(CLI::App& app, Options& o) {
  app.add_option("--fashion-mnist", o.fashion_mnist,
                 "folder of Fashion-MNIST (Debian: package dataset-fashion-mnist; or set RUVECTOR_FASHION_MNIST)")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--indexes", o.indexes, "folder where indexes are kept (default: built each time)")->type_name("DIR");
  app.add_option("--points", o.points, "pictures that are searched")
      ->check(CLI::Range(100, 60000))
      ->capture_default_str();
  app.add_option("--queries", o.queries, "pictures that are searched for, drawn at random if not all 10,000")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--exact-queries", o.exact_queries, "the first of them, for exact search of one at a time")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--links", o.links, "M of the indexes: one curve each")
      ->delimiter(',')
      ->check(CLI::Range(2, 100))
      ->capture_default_str();
  app.add_option("--ef-construction", o.ef_construction, "of the indexes")
      ->check(CLI::Range(1, 2000))
      ->capture_default_str();
  app.add_option("--ef", o.ef, "points of a curve")->delimiter(',')->check(CLI::Range(1, 60000))->capture_default_str();
  app.add_option("--rescore", o.rescore, "of the best by int8, those that are scored again")
      ->check(CLI::Range(10, 60000))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of the queries that are drawn")->capture_default_str();
  app.add_option("--csv", o.csv, "append the points to this file")->type_name("FILE");
  app.add_option("--svg", o.svg, "draw the curves to this file")->type_name("FILE");
  app.add_flag("--quick", o.quick, "few points and queries, exit code 1 if a recall is not what it should be");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Recall against queries a second on Fashion-MNIST, ours, hnswlib's and of exact search.",
               "ann_benchmarks");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    if (options.quick) {
      options.points = 3000;
      options.queries = options.exact_queries = 200;
      options.links = {4};
      options.ef_construction = 100;
      options.ef = {10, 160};
    }
    return measure(options);
  });
}

#else

#include <cstdio>

int main() {
  std::puts("ann_benchmarks needs hnswlib (Debian and Ubuntu: apt install libhnswlib-dev)");
}

#endif
