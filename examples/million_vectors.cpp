// SPDX-License-Identifier: MIT
//
// Exact soft search over a million vectors, as fast as memory can be read:
//
//   million_vectors                              1,000,000 × 128, in four storages
//   million_vectors --storage int8 --rescore 50  a third of the time, ranked by the exact keys
//   million_vectors --filter bitmap              each query sees another tenth of the vectors
//
// The keys are random unit vectors in an .npy file, which is made if it is not there (interrupted, it goes on where it
// was) and mapped into memory; so are its copies in fewer bits. A query is a key with noise, so the first place is
// known. Each search is one pass over the keys that gives the ten best *and* the softmax over all of them. The bar
// shows how fast the keys go by, beside what streaming through memory reaches on this machine, and how much memory
// there is: the heap of the search stays below a megabyte, whatever the number of keys. VmHWM counts mapped pages, too.
// (Pages of a file are 4 kB: keys in a Matrix, on huge pages, are read half as fast again.)

#include "support/command_line.hpp"
#include "support/interrupt.hpp"
#include "support/progress_bar.hpp"
#include "support/text_files.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/io/mapped_file.hpp>
#include <ruvector/io/npy.hpp>
#include <ruvector/search/exact_search.hpp>
#include <ruvector/simd/convert.hpp>
#include <ruvector/simd/dot.hpp>

#include <malloc.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "bench/support/limits.hpp"

namespace {

using namespace examples;
using namespace ruvector;
namespace fs = std::filesystem;

struct Options {
  Index rows = 1'000'000, dim = 128, queries = 50, batch = 1, k = 10, rescore = 0;
  std::vector<std::string> storage = {"float", "bf16", "f16", "int8"};
  std::string filter = "none", directory = (fs::temp_directory_path() / "ruvector").string(), csv;
  float temperature = 0.06F;
  std::uint64_t seed = 1;
  Index threads = std::max(1, int(std::thread::hardware_concurrency()));
};

struct Interrupted {};  // thrown where Ctrl-C ends the making of a file

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// --- The files. ---

std::string path_of(const Options& o, const std::string& ending) {
  return (fs::path(o.directory) /
          ("keys_" + std::to_string(o.rows) + "x" + std::to_string(o.dim) + "_" + std::to_string(o.seed) + ending))
      .string();
}

// Version 1.0 of the format; numpy.load(…, mmap_mode="r") maps it, too.
std::string npy_header(const Options& o) {
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(o.rows) + ", " +
                     std::to_string(o.dim) + "), }";
  text.append((64 - (10 + text.size() + 1) % 64) % 64, ' ');
  text += '\n';
  return std::string("\x93NUMPY\x01\x00", 8) + char(text.size() & 0xff) + char(text.size() >> 8) + text;
}

// Keys first … first+count−1: each depends on the seed and its number alone.
Matrix<float> make_keys(const Options& o, Index first, Index count) {
  const Rng rng(o.seed);
  Matrix<float> keys(count, o.dim);
  for (Index i = 0; i < count; ++i) {
    Rng own = rng.split(std::uint64_t(first + i));
    const std::span<float> key = keys.row(i);
    for (float& x : key) x = own.normal<float>();
    simd::scale(1 / std::sqrt(simd::dot<float>(key, key)), key);
  }
  return keys;
}

// A block at a time into a file beside it, which gets its name when it is whole. What an interrupted run has written is
// used, whole blocks of it.
void make_file(const Options& o) {
  if (fs::exists(path_of(o, ".npy"))) return;
  fs::create_directories(o.directory);
  constexpr Index block = 4096;
  const std::string part = path_of(o, ".part"), header = npy_header(o);
  const Index row_bytes = o.dim * Index(sizeof(float)), header_bytes = Index(header.size());
  Index done = 0;
  if (fs::exists(part) && Index(fs::file_size(part)) >= header_bytes)
    done = (Index(fs::file_size(part)) - header_bytes) / (block * row_bytes) * block;
  if (done == 0) write_text(part, header);
  fs::resize_file(part, std::uintmax_t(header_bytes + done * row_bytes));
  std::ofstream file(part, std::ios::binary | std::ios::app);
  const auto start = std::chrono::steady_clock::now();
  ProgressBar bar("making " + std::to_string(o.rows) + " keys", "keys", [](const auto&) { return std::string(); });
  for (const Index first = done; done < o.rows;) {
    if (interrupted()) throw Interrupted();
    const Matrix<float> keys = make_keys(o, done, std::min(block, o.rows - done));
    const auto bytes = std::as_bytes(keys.span());
    file.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
    done += keys.rows();
    bar({done - first, o.rows - first, 0, seconds_since(start)});
  }
  file.close();
  if (!file) throw_format_error(part, "cannot be written");
  fs::rename(part, path_of(o, ".npy"));
}

// The float keys, mapped.
struct Keys {
  io::MappedFile file;
  MatrixView<const float> rows;

  explicit Keys(const Options& o) : file(path_of(o, ".npy")) {
    const io::NpyHeader header = io::read_npy_header(file.bytes(), {}, path_of(o, ".npy"));
    if (header.type != "<f4" || header.fortran_order || header.rows != o.rows || header.cols != o.dim)
      throw_format_error(path_of(o, ".npy"), "other keys: remove it");
    rows = {reinterpret_cast<const float*>(file.bytes().data() + header.data_offset), o.rows, o.dim};
  }
};

// The same keys in fewer bits, in a file of their own, mapped.
template <attention::Storage S>
struct StoredKeys {
  std::optional<io::MappedFile> file;
  Vector<float> scale;  // of int8
  search::Candidates<float, S> candidates;

  StoredKeys(const Options& o, const Keys& keys, const char* ending) {
    if constexpr (std::same_as<S, float>) {
      candidates.key = keys.rows;
    } else {
      const std::string path = path_of(o, ending), scales = path + ".scale.npy";
      if (!fs::exists(path)) write(path, scales, keys.rows);
      file.emplace(path);
      if (Index(file->bytes().size()) != o.rows * o.dim * Index(sizeof(S))) throw_format_error(path, "other keys");
      candidates.key = {reinterpret_cast<const S*>(file->bytes().data()), o.rows, o.dim};
      if constexpr (std::same_as<S, std::int8_t>) {
        scale = io::read_npy_vector<float>(scales);
        candidates.key_scale = scale.span();
      }
      candidates.exact = keys.rows;
    }
  }

 private:
  static void write(const std::string& path, const std::string& scales, MatrixView<const float> keys) {
    io::AtomicFile out(path);
    Vector<float> scale(std::same_as<S, std::int8_t> ? keys.rows() : 0);
    Vector<S> row(keys.cols());
    for (Index i = 0; i < keys.rows(); ++i) {
      if (i % 4096 == 0 && interrupted()) throw Interrupted();
      if constexpr (std::same_as<S, std::int8_t>)
        scale[i] = simd::quantize(keys.row(i), row.span());
      else
        simd::convert(keys.row(i), row.span());
      out.write(std::as_bytes(row.span()));
    }
    if (!scale.empty()) io::write_npy(scales, scale);
    out.commit();
  }
};

// --- Memory. ---

double megabytes(double bytes) {
  return bytes / 1e6;
}
double heap_now() {
  const auto info = ::mallinfo2();
  return double(info.uordblks) + double(info.hblkhd);
}
// The most that was resident, mapped pages included.
double resident_at_most() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmHWM:") return status >> word, 1024 * std::stod(word);
  return std::nan("");
}

// --- The search. ---

// What each query may see: half of the ids, another tenth for each query, or odd ids.
class Filters {
 public:
  Filters(const Options& o, Rng rng) {
    if (o.filter == "range") filters_.push_back({.last = o.rows / 2});
    if (o.filter == "predicate") filters_.push_back({.predicate = [](Index id) { return id % 2 == 1; }});
    if (o.filter != "bitmap") return;
    bits_.resize(std::size_t(o.batch), std::vector<std::uint64_t>(std::size_t((o.rows + 63) / 64)));
    for (auto& bits : bits_) {
      for (Index id = 0; id < o.rows; ++id)
        if (rng.below(10) == 0) bits[std::size_t(id / 64)] |= std::uint64_t(1) << (id % 64);
      filters_.push_back({.bitmap = bits});
    }
  }
  [[nodiscard]] std::span<const search::Filter> first(Index count) const {
    return std::span(filters_).first(std::min(filters_.size(), std::size_t(count)));
  }
  // Whether query i of a batch may see a key.
  [[nodiscard]] bool admits(Index i, Index id) const {
    return filters_.empty() || filters_[filters_.size() == 1 ? 0 : std::size_t(i)].admits(id);
  }

 private:
  std::vector<std::vector<std::uint64_t>> bits_;
  std::vector<search::Filter> filters_;
};

struct Figures {
  double seconds = 0, heap = 0;
  Index scores = 0, searched = 0, visible = 0, found = 0;  // `visible`: queries that may see their key
  search::SearchResult<float> last;
};

// What is right for one query: log-sum-exp, and the weight of the key that it was made of; in double.
struct Expected {
  double log_sum_exp, weight;
};
Expected by_definition(const Options& o, const Keys& keys, std::span<const float> query, Index key) {
  double sum = 0, own = 0;
  for (Index j = 0; j < o.rows; ++j) {
    double score = 0;
    for (Index c = 0; c < o.dim; ++c) score += double(query[std::size_t(c)]) * double(keys.rows(j, c));
    const double term = std::exp((score - 1) / double(o.temperature));
    sum += term;
    if (j == key) own = term;
  }
  return {std::log(sum) + 1 / double(o.temperature), own / sum};
}

struct Problem {
  Matrix<float> queries;
  std::vector<Index> made_of;  // the key that a query is, with noise

  Problem(const Options& o, const Keys& keys) : queries(o.queries, o.dim) {
    Rng rng = Rng(o.seed).split(std::uint64_t(-1));
    for (Index i = 0; i < o.queries; ++i) {
      made_of.push_back(rng.below(o.rows));
      for (Index c = 0; c < o.dim; ++c) queries(i, c) = keys.rows(made_of.back(), c) + 0.03F * rng.normal<float>();
    }
  }
};

template <attention::Storage S>
Figures run(const Options& o, const char* name, const StoredKeys<S>& keys, const Problem& problem,
            const Filters& filters, ThreadPool& pool, double limit) {
  const search::ExactSearch exact(search::InnerProduct<float>{}, keys.candidates);
  Figures figures;
  Workspace workspace;
  std::stop_source stop;
  // The first pass brings the pages of the file.
  exact.search(problem.queries.view().rows(0, 1), {.k = 1}, figures.last, workspace, pool);
  workspace = Workspace();
  const double heap_before = heap_now();
  const double row_bytes = double(o.dim) * double(sizeof(S)) + (std::same_as<S, std::int8_t> ? sizeof(float) : 0);
  const auto start = std::chrono::steady_clock::now();
  ProgressBar bar(name, "scores", [&](const ProgressReport& report) {
    char text[120];
    const double passes = double(report.done) / double(o.rows) / double(std::min(o.batch, o.queries));
    std::snprintf(text, sizeof text, "%.1f of %.1f GB/s  heap %.1f MB, VmHWM %.0f MB",
                  passes * double(o.rows) * row_bytes / report.seconds / 1e9, limit / 1e9, megabytes(figures.heap),
                  megabytes(resident_at_most()));
    return std::string(text);
  });
  for (Index first = 0; first < o.queries && !interrupted(); first += o.batch) {
    const Index count = std::min(o.batch, o.queries - first);
    const auto watch = [&](const ProgressReport& report) {
      pass_on_interrupt(stop);
      figures.heap = std::max(figures.heap, heap_now() - heap_before);
      bar({first * o.rows + report.done, o.queries * o.rows, report.loss, seconds_since(start)});
    };
    exact.search(problem.queries.view().rows(first, count),
                 {.k = o.k,
                  .softmax = true,
                  .temperature = o.temperature,
                  .rescore = std::same_as<S, float> ? 0 : o.rescore,
                  .filters = filters.first(count)},
                 figures.last, workspace, pool, watch, stop.get_token());
    if (figures.last.stopped) break;
    figures.searched += count;
    for (Index i = 0; i < count; ++i) {
      const Index id = problem.made_of[std::size_t(first + i)];
      figures.scores += figures.last.distance_count[i];
      figures.visible += filters.admits(i, id) ? 1 : 0;
      figures.found += filters.admits(i, id) && figures.last.ids(i, 0) == id ? 1 : 0;
    }
  }
  figures.seconds = seconds_since(start);
  return figures;
}

void print_places(const Options& o, const search::SearchResult<float>& found) {
  if (found.count.size() == 0) return;
  const Index i = found.count.size() - 1;
  std::printf("  the last query: log-sum-exp %.4f, the %d best have %.4f of the softmax over %td keys\n",
              double(found.log_sum_exp[i]), int(o.k), double(found.mass[i]), found.distance_count[i]);
  for (Index place = 0; place < found.count[i]; ++place)
    std::printf("  %2d. key %8td  score %.4f  weight %.6f\n", int(place + 1), found.ids(i, place),
                double(found.scores(i, place)), double(found.weights(i, place)));
}

// Searches in one storage and prints what came out. Returns false where a figure is not what it must be.
template <attention::Storage S>
bool search_in(const Options& o, const char* name, const char* ending, const Keys& keys, const Problem& problem,
               const Filters& filters, ThreadPool& pool, double limit) {
  const StoredKeys<S> stored(o, keys, ending);
  const Figures f = run(o, name, stored, problem, filters, pool, limit);
  if (f.searched == 0) return true;
  const double passes = std::ceil(double(f.searched) / double(o.batch));
  const double bytes = passes * double(o.rows) * (double(o.dim) * double(sizeof(S)));
  const bool whole = o.filter == "none" || o.filter == "bitmap";  // else keys are left out, or counted one by one
  char rate[64] = "";
  if (whole)
    std::snprintf(rate, sizeof rate, "%.1f GB/s, %.0f %% of streaming; ", bytes / f.seconds / 1e9,
                  100 * bytes / f.seconds / limit);
  std::printf("%-5s %7.2f ms a search; %s%.0f M scores/s; %td of %td first places right; heap %.2f MB, VmHWM %.0f MB\n",
              name, 1e3 * f.seconds / passes, rate, double(f.scores) / f.seconds / 1e6, f.found, f.visible,
              megabytes(f.heap), megabytes(resident_at_most()));
  if (!o.csv.empty()) {
    char line[240];
    std::snprintf(line, sizeof line, "%s,%td,%td,%s,%td,%td,%.6f,%.3f,%.3f,%.0f,%td,%td,%.3f", name, o.rows, o.dim,
                  o.filter.c_str(), o.batch, o.threads, f.seconds / passes, bytes / f.seconds / 1e9, limit / 1e9,
                  double(f.scores) / f.seconds, f.found, f.visible, megabytes(f.heap));
    append_csv(o.csv,
               "storage,rows,dim,filter,batch,threads,seconds,gigabytes_per_second,streaming_gigabytes_per_second,"
               "scores_per_second,first_places_right,first_places,heap_megabytes",
               line);
  }
  if (interrupted()) return true;
  print_places(o, f.last);
  bool right = f.found == f.visible;
  if (o.filter == "none" && o.k > 0) {
    const Index i = f.last.count.size() - 1;
    const Expected expected = by_definition(o, keys, problem.queries.row(o.queries - 1), problem.made_of.back());
    // Rounding of scores: ε/τ with ε = 2⁻⁹ (bf16), 2⁻¹² (f16), less for int8 with its 128 steps, and 1e-6 of float.
    const double bound = std::same_as<S, float> ? 1e-4 : 0.004 / double(o.temperature);
    const double off = std::abs(double(f.last.log_sum_exp[i]) - expected.log_sum_exp);
    const double weight_off = std::abs(double(f.last.weights(i, 0)) / expected.weight - 1);
    std::printf("  off the definition in double: log-sum-exp by %.1e, the first weight by %.1e of it\n", off,
                weight_off);
    right = right && off <= bound && weight_off <= bound;
  }
  if (!right) std::printf("  that is not what it must be\n");
  return right;
}

bool search_all(const Options& o) {
  make_file(o);
  ThreadPool pool(o.threads);
  double limit = 0;
  {
    bench::Limits limits;
    for (int i = 0; i < 4; ++i) limit = std::max(limit, limits.stream(pool));
  }
  std::ofstream("/proc/self/clear_refs") << 5;  // VmHWM begins again: what was measured with is gone
  const Keys keys(o);
  const Problem problem(o, keys);
  const Filters filters(o, Rng(o.seed).split(7));
  std::printf("%td keys of %td numbers, %td queries, %td at a time, %td threads, filter: %s; streaming %.1f GB/s\n",
              o.rows, o.dim, o.queries, o.batch, o.threads, o.filter.c_str(), limit / 1e9);
  bool right = true;
  const auto wanted = [&](const char* name) { return std::ranges::find(o.storage, name) != o.storage.end(); };
  if (wanted("float")) right &= search_in<float>(o, "float", "", keys, problem, filters, pool, limit);
  if (wanted("bf16")) right &= search_in<simd::bfloat16>(o, "bf16", ".bf16", keys, problem, filters, pool, limit);
  if (wanted("f16")) right &= search_in<simd::float16>(o, "f16", ".f16", keys, problem, filters, pool, limit);
  if (wanted("int8")) right &= search_in<std::int8_t>(o, "int8", ".int8", keys, problem, filters, pool, limit);
  return right;
}

void add_options(CLI::App& app, Options& o) {
  const auto count = CLI::Range(Index(1), Index(1) << 32);
  app.add_option("--rows", o.rows, "keys")->check(count)->capture_default_str();
  app.add_option("--dim", o.dim, "numbers a key")->check(CLI::Range(2, 1 << 16))->capture_default_str();
  app.add_option("--storage", o.storage, "what keys are searched in; those in fewer bits are made of the float ones")
      ->check(CLI::IsMember({"float", "bf16", "f16", "int8"}))
      ->capture_default_str();
  app.add_option("--queries", o.queries, "queries, each a key with noise")->check(count)->capture_default_str();
  app.add_option("--batch", o.batch, "queries searched at a time, in one pass over the keys")
      ->check(count)
      ->capture_default_str();
  app.add_option("--k", o.k, "places")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_option("--rescore", o.rescore, "so many of the best are scored again by the float keys")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--temperature", o.temperature, "of the softmax over all keys")
      ->check(CLI::Range(1e-3, 1e3))
      ->capture_default_str();
  app.add_option("--filter", o.filter,
                 "what a query may see. range: the first half of the keys; bitmap: a tenth, another one for each query "
                 "of a batch; predicate: odd keys, asked one by one")
      ->check(CLI::IsMember({"none", "range", "bitmap", "predicate"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "threads; the result is the same for any number")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--directory", o.directory, "where the keys are, or are made: 512 MB for a million in float")
      ->type_name("DIR")
      ->capture_default_str();
  app.add_option("--seed", o.seed, "seed of all random numbers")->capture_default_str();
  app.add_option("--csv", o.csv, "append a line a storage to this file")->type_name("FILE");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Exact soft search over a million vectors, memory and bandwidth shown as it goes.", "million_vectors");
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    try {
      return search_all(options) ? 0 : 1;
    } catch (const Interrupted&) {
      std::fprintf(stderr, "stopped; the next run goes on from here\n");
      return 130;
    }
  });
}
