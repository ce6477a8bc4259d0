// SPDX-License-Identifier: MIT
#pragma once

#include "svg.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

namespace examples {

/// Values at x = 1, 2, …
struct Curve {
  std::string name;
  std::vector<double> values;
};

/// Curves that share their axes.
struct Panel {
  std::string title;
  std::vector<Curve> curves;
};

/// Panels side by side, with a y axis from 0 to 1 in each: how accuracies grow.
[[nodiscard]] inline std::string draw_curves(const std::string& title, const std::string& x_label,
                                             const std::vector<Panel>& panels) {
  constexpr double width = 400, height = 300, left = 56, top = 72, bottom = 50, legend = 104;
  const double step = left + width + legend;
  Svg svg(step * static_cast<double>(panels.size()) + 10, top + height + bottom,
          "text{font:13px sans-serif;fill:#333}.title{font-size:17px;font-weight:bold}.panel{font-weight:bold}"
          ".grid{stroke:#e4e4e4}.curve{stroke-width:2;stroke-linecap:round}");
  svg.rectangle(0, 0, step * static_cast<double>(panels.size()) + 10, top + height + bottom, "fill=\"white\"");
  svg.text(left, 28, title, "class=\"title\"");
  for (std::size_t p = 0; p < panels.size(); ++p) {
    const double x0 = step * static_cast<double>(p) + left;
    svg.text(x0, top - 16, panels[p].title, "class=\"panel\"");
    for (int tick = 0; tick <= 5; ++tick) {
      const double y = top + height * (1 - tick / 5.0);
      svg.line(x0, y, x0 + width, y, "class=\"grid\"");
      svg.text(x0 - 8, y + 4, Svg::number(tick / 5.0), "text-anchor=\"end\"");
    }
    std::size_t last = 2;
    for (const Curve& curve : panels[p].curves) last = std::max(last, curve.values.size());
    const auto x_of = [&](std::size_t i) {
      return x0 + width * static_cast<double>(i) / static_cast<double>(last - 1);
    };
    const auto y_of = [&](double value) { return top + height * (1 - std::clamp(value, 0.0, 1.0)); };
    for (const std::size_t i : {std::size_t(0), last - 1})
      svg.text(x_of(i), top + height + 18, std::to_string(i + 1), "text-anchor=\"middle\"");
    svg.text(x0 + width / 2, top + height + 36, x_label, "text-anchor=\"middle\"");

    // Names stand at the ends of their curves, pushed apart where these are close.
    std::vector<std::size_t> order;
    for (std::size_t c = 0; c < panels[p].curves.size(); ++c)
      if (!panels[p].curves[c].values.empty()) order.push_back(c);
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return panels[p].curves[a].values.back() > panels[p].curves[b].values.back();
    });
    double next = top;
    for (const std::size_t c : order) {
      const Curve& curve = panels[p].curves[c];
      const std::string colour = oklch(0.6, 0.15, 360.0 * static_cast<double>(c) / static_cast<double>(order.size()));
      for (std::size_t i = 1; i < curve.values.size(); ++i)
        svg.line(x_of(i - 1), y_of(curve.values[i - 1]), x_of(i), y_of(curve.values[i]),
                 "class=\"curve\" stroke=\"" + colour + "\"");
      const double y = std::max(next, y_of(curve.values.back()));
      char value[16];
      std::snprintf(value, sizeof value, " %.3f", curve.values.back());
      svg.text(x0 + width + 6, y + 4, curve.name + value, "style=\"fill:" + colour + "\"");
      next = y + 15;
    }
  }
  return svg.str();
}

}  // namespace examples
