// SPDX-License-Identifier: MIT
#pragma once

#include "limits.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

// Rows of the table of targets, each measured as a ratio to something that ran next to it.

namespace bench {

/// What a rate is compared with.
enum class Limit {
  fma,     ///< the peak of fused multiply-adds on one thread
  stream,  ///< the bandwidth of memory on one thread
};

/// A target: a ratio of at least, or at most, this; 0: none, the row is only printed.
struct Target {
  double ratio = 0;      ///< the bound
  bool at_most = false;  ///< which side of it is good
};

/// Measures and prints rows:
///
///     Rows rows(argc, argv);
///     if (rows.wanted("F1"))
///       rows.share("F1", "forward, d = 64", {0.87}, Limit::fma, 4.0 * m * n * d, [&] { … }, [&] { return error; });
///     return rows.finish();
///
/// --csv appends a line a row to a file: what bench/experiments/results/speeds.csv is made of.
class Rows {
 public:
  /// Reads --quick, --only, --rows, --csv; what it does not know stays in `arguments()`.
  Rows(int argc, char** argv) : program_(std::filesystem::path(argv[0]).filename().string()) {
    CLI::App app("Measures rows of the table of targets.");
    std::string csv;
    app.allow_extras();
    app.add_flag("--quick", quick_, "fewer rounds");
    app.add_flag("--rows", rows_only_, "rows only, no other benchmarks");
    app.add_option("--only", only_, "these rows, by id");
    app.add_option("--like", like_, "rows whose description contains this text");
    app.add_option("--csv", csv, "append the rows to this file");
    app.add_option("--seed", run_, "number of this run in that file");
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      std::exit(app.exit(e));
    }
    arguments_ = app.remaining_for_passthrough();
    if (!csv.empty()) {
      const bool is_new = !std::filesystem::exists(csv);
      csv_.open(csv, std::ios::app);
      if (is_new) csv_ << "program,id,work,seed,measured,unit,target,here,here_unit\n";
      if (!csv_) {
        std::fprintf(stderr, "%s: cannot write %s\n", program_.c_str(), csv.c_str());
        std::exit(2);
      }
    }
    ruvector::ThreadPool two(2);
    std::printf("limits: %.1f GFLOP/s, two threads %.1f; ", best([&] { return limits_.fma(); }) / 1e9,
                best([&] { return limits_.fma(two); }) / 1e9);
    std::printf("%.1f GB/s, two threads %.1f\n", best([&] { return limits_.stream(); }) / 1e9,
                best([&] { return limits_.stream(two); }) / 1e9);
    std::printf("%-4s %-58s %8s %9s\n", "id", "work", "target", "measured");
  }

  /// Whether a row is asked for.
  [[nodiscard]] bool wanted(std::string_view id) const {
    return only_.empty() || std::ranges::find(only_, id) != only_.end();
  }
  /// Whether the program shall run its other benchmarks.
  [[nodiscard]] bool others() const { return !quick_ && !rows_only_ && only_.empty(); }
  /// What was not for us, the last first.
  [[nodiscard]] const std::vector<std::string>& arguments() const { return arguments_; }

  /// A rate as a share of a limit: `run()` does `amount` operations, or reads as many bytes, on this thread; `error()`
  /// is the relative error of what it computed.
  template <class Run, class Error>
  void share(std::string_view id, const std::string& work, Target target, Limit limit, double amount, Run&& run,
             Error&& error) {
    if (!selected(id, work) || !right(id, work, run, error)) return;
    std::vector<double> ratios, rates;
    rounds(slice_of(run, cpu_clock), [&](Index times) {
      const double most = limit == Limit::fma ? limits_.fma() : limits_.stream();
      rates.push_back(amount * double(times) / seconds(run, times, cpu_clock));
      ratios.push_back(rates.back() / most);
    });
    print(id, work, target, median(ratios), "%", median(rates) / 1e9, limit == Limit::fma ? "GFLOP/s" : "GB/s");
  }

  /// A time of `run()` on this thread, scaled to a machine with this peak of fused multiply-adds: at most `target`
  /// milliseconds.
  template <class Run, class Error>
  void time(std::string_view id, const std::string& work, double target, double peak, Run&& run, Error&& error) {
    if (!selected(id, work) || !right(id, work, run, error)) return;
    std::vector<double> scaled, times_here;
    rounds(slice_of(run, cpu_clock), [&](Index times) {
      const double most = limits_.fma();
      times_here.push_back(seconds(run, times, cpu_clock) / double(times));
      scaled.push_back(times_here.back() * most / peak * 1e3);
    });
    print(id, work, {target, true}, median(scaled), "ms", median(times_here) * 1e3, "ms here");
  }

  /// How many times longer `slow()` takes than `fast()`: by the time of this thread (cpu_clock), or by real time where
  /// several work (wall_clock).
  template <class Clock, class Slow, class Fast, class Error>
  void ratio(std::string_view id, const std::string& work, Target target, const Clock& clock, Slow&& slow, Fast&& fast,
             Error&& error) {
    if (!selected(id, work) || !right(id, work, fast, error)) return;
    std::vector<double> ratios, times_of_fast;
    const Index slow_times = slice_of(slow, clock);
    rounds(slice_of(fast, clock), [&](Index times) {
      const double one = seconds(slow, slow_times, clock) / double(slow_times);
      times_of_fast.push_back(seconds(fast, times, clock) / double(times));
      ratios.push_back(one / times_of_fast.back());
    });
    print(id, work, target, median(ratios), "x", median(times_of_fast) * 1e3, "ms");
  }

  /// A figure that was found otherwise, with another one beside it.
  void figure(std::string_view id, const std::string& work, Target target, double value, std::string_view unit,
              double here, std::string_view here_unit) {
    print(id, work, target, value, unit, here, here_unit);
  }

  /// What `main` returns: 1 if a result was wrong.
  [[nodiscard]] int finish() const { return wrong_ ? 1 : 0; }

 private:
  static constexpr double tolerance = 1e-4;
  static constexpr double slice = 5e-3;  // seconds of one measurement: below what a scheduler gives away at a time

  [[nodiscard]] bool selected(std::string_view id, const std::string& work) const {
    return wanted(id) && work.find(like_) != std::string::npos;
  }

  template <class Run, class Error>
  bool right(std::string_view id, const std::string& work, Run& run, Error& error) {
    run();
    const double e = error();
    if (e < tolerance) return true;
    std::printf("%-4.*s %-58s wrong: relative error %.1e\n", int(id.size()), id.data(), work.c_str(), e);
    wrong_ = true;
    return false;
  }

  template <class Run, class Clock>
  static double seconds(Run& run, Index times, const Clock& clock) {
    const double start = clock();
    for (Index i = 0; i < times; ++i) run();
    return clock() - start;
  }

  // Runs that fill a slice.
  template <class Run, class Clock>
  static Index slice_of(Run& run, const Clock& clock) {
    return std::max(Index(1), Index(std::ceil(slice / seconds(run, 1, clock))));
  }

  template <class Round>
  void rounds(Index times, Round&& round) const {
    const double start = wall_clock();
    const int least = quick_ ? 5 : 9, most = quick_ ? 25 : 99;
    const double enough = quick_ ? 0.5 : 2.0;  // seconds
    for (int i = 0; i < least || (i < most && wall_clock() - start < enough); ++i) round(times);
  }

  template <class Rate>
  static double best(Rate&& rate) {
    double most = 0;
    for (int i = 0; i < 5; ++i) most = std::max(most, rate());
    return most;
  }

  static double median(std::vector<double> x) {
    const auto middle = x.begin() + std::ptrdiff_t(x.size() / 2);
    std::ranges::nth_element(x, middle);
    return *middle;
  }

  void print(std::string_view id, const std::string& work, Target target, double measured, std::string_view unit,
             double here, std::string_view here_unit) {
    char bound[16] = "-", value[16];  // of the target: none
    const char* verdict = "";
    const auto text = [&](char(&to)[16], double x) {
      std::snprintf(to, sizeof to, unit == "%" ? "%.1f %s" : "%.2f %s", unit == "%" ? 100 * x : x, unit.data());
    };
    text(value, measured);
    if (target.ratio != 0) {
      text(bound, target.ratio);
      verdict = (target.at_most ? measured <= target.ratio : measured >= target.ratio) ? "met" : "missed";
    }
    std::printf("%-4.*s %-58s %8s %9s  %-6s  %7.2f %s\n", int(id.size()), id.data(), work.c_str(), bound, value,
                verdict, here, here_unit.data());
    if (csv_.is_open())
      csv_ << program_ << ',' << id << ",\"" << work << "\"," << run_ << ',' << measured << ',' << unit << ','
           << (target.ratio == 0 ? ""
               : target.at_most  ? "<= "
                                 : ">= ")
           << bound << ',' << here << ',' << here_unit << std::endl;
  }

  Limits limits_;
  bool quick_ = false, rows_only_ = false, wrong_ = false;
  std::vector<std::string> only_, arguments_;
  std::string like_, program_;
  std::ofstream csv_;
  int run_ = 1;
};

/// max |x − reference| / max |reference| over two ranges of the same length.
template <class X, class Reference>
[[nodiscard]] double relative_error(const X& x, const Reference& reference) {
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < std::size_t(reference.size()); ++i) {
    const double expected = double(reference.data()[i]), e = std::abs(double(x.data()[i]) - expected);
    if (!(e <= error)) error = e;  // NaN stays
    largest = std::max(largest, std::abs(expected));
  }
  return error / largest;
}

}  // namespace bench
