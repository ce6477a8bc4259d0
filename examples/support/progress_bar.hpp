// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/progress.hpp>

#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>

namespace examples {

/// Shows on stderr how a long call goes: a bar that is repainted on a terminal, a line now and then elsewhere (in a log
/// file). To be passed where a `ruvector::Progress` is wanted, by reference: std::ref(bar).
class ProgressBar {
 public:
  /// `unit` is what is counted: "pairs". `note` is shown in place of the loss, where there is one.
  ProgressBar(std::string label, std::string unit,
              std::function<std::string(const ruvector::ProgressReport&)> note = {})
      : label_(std::move(label)),
        unit_(std::move(unit)),
        note_(std::move(note)),
        terminal_(::isatty(::fileno(stderr)) == 1) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() {
    if (painted_ && terminal_) std::fputs("\r\033[K", stderr);  // what follows takes the place of the bar
  }

  /// Repaints if the last time is long enough ago.
  void operator()(const ruvector::ProgressReport& report) {
    loss_ += report.loss;
    ++reports_;
    if (report.seconds < next_) return;
    const double rate = report.seconds > 0 ? static_cast<double>(report.done) / report.seconds : 0;
    const double left = rate > 0 ? static_cast<double>(report.total - report.done) / rate : 0;
    const double part = report.total > 0 ? static_cast<double>(report.done) / static_cast<double>(report.total) : 1;
    char loss[32];
    std::snprintf(loss, sizeof loss, "loss %.3f", loss_ / static_cast<double>(reports_));
    char figures[240];
    std::snprintf(figures, sizeof figures, "%3.0f %%  %s %s/s  %s  %s left", 100 * part, short_number(rate).c_str(),
                  unit_.c_str(), note_ ? note_(report).c_str() : loss, clock(left).c_str());
    if (terminal_) {
      std::fprintf(stderr, "\r%s %s %s\033[K", label_.c_str(), bar(part).c_str(), figures);
    } else {
      std::fprintf(stderr, "%s %s\n", label_.c_str(), figures);
    }
    std::fflush(stderr);
    painted_ = true;
    next_ = report.seconds + (terminal_ ? 0.1 : 10.0);
    loss_ = 0;
    reports_ = 0;
  }

 private:
  /// 20 cells, filled in eighths of a cell.
  [[nodiscard]] static std::string bar(double part) {
    static constexpr const char* eighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    constexpr int cells = 20;
    const int filled = std::clamp(static_cast<int>(part * cells * 8), 0, cells * 8);
    std::string result = "▕";
    for (int i = 0; i < filled / 8; ++i) result += "█";
    if (filled < cells * 8) result += eighths[filled % 8];
    for (int i = filled / 8 + 1; i < cells; ++i) result += " ";
    return result + "▏";
  }
  [[nodiscard]] static std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text,
                  value < 1e4   ? "%.0f"
                  : value < 1e6 ? "%.0fk"
                                : "%.2fM",
                  value < 1e4   ? value
                  : value < 1e6 ? value / 1e3
                                : value / 1e6);
    return text;
  }
  [[nodiscard]] static std::string clock(double seconds) {
    const auto whole = static_cast<long>(seconds + 0.5);
    char text[32];
    if (whole < 3600)
      std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
    else
      std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    return text;
  }

  std::string label_, unit_;
  std::function<std::string(const ruvector::ProgressReport&)> note_;
  bool terminal_;
  bool painted_ = false;
  double next_ = 0.1;  // seconds of the next repaint: short calls show nothing
  double loss_ = 0;    // sum since the last one
  long reports_ = 0;
};

}  // namespace examples
