// SPDX-License-Identifier: MIT
#pragma once

#include "hierarchy.hpp"
#include "svg.hpp"
#include "wordnet.hpp"

#include <ruvector/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace examples {

/// What stands beside the disk.
struct DiskPictureText {
  std::string title;
  std::vector<std::string> lines;  ///< below the title
};

/// Draws a hierarchy that was embedded in the Poincaré disk (c = 1): links to direct hypernyms as geodesics, depth as
/// colour, the number of descendants as size, labels where there is room for them.
class DiskPicture {
 public:
  DiskPicture(const wordnet::Database& database, const Hierarchy& hierarchy, ruvector::MatrixView<const double> points)
      : database_(database), hierarchy_(hierarchy), nodes_(static_cast<std::size_t>(hierarchy.size())) {
    measure();
    place(points);
  }

  [[nodiscard]] std::string draw(const DiskPictureText& text) {
    Svg svg(width, height, style());
    svg.rectangle(0, 0, width, height, "class=\"paper\"");
    svg.circle(centre_x, centre_y, radius, "class=\"disk\"");
    draw_links(svg);
    draw_nodes(svg);
    draw_labels(svg);
    draw_text(svg, text);
    draw_legend(svg);
    return svg.str();
  }

 private:
  static constexpr double width = 1600, height = 1200, centre_x = 990, centre_y = 600, radius = 560;
  static constexpr double margin = 56;
  static constexpr double outermost = 0.985;  // where the farthest node is drawn

  struct Node {
    std::complex<double> at;  ///< in the unit disk
    int depth = 0;            ///< links to the top
    int descendants = 0;
    double size = 0;  ///< radius of the dot
  };
  struct Box {
    double x, y, width, height;
    [[nodiscard]] bool overlaps(const Box& o) const {
      return x < o.x + o.width && o.x < x + width && y < o.y + o.height && o.y < y + height;
    }
  };

  Node& node(std::int32_t i) { return nodes_[static_cast<std::size_t>(i)]; }
  static double screen_x(const Node& n) { return centre_x + radius * n.at.real(); }
  static double screen_y(const Node& n) { return centre_y - radius * n.at.imag(); }

  /// Descendants, depths (by the shortest way up) and what follows from them.
  void measure() {
    for (const std::int32_t ancestor : hierarchy_.ancestors.target) ++node(ancestor).descendants;
    // a node has more ancestors than each of its parents, so in this order parents come first
    order_.resize(nodes_.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
      return hierarchy_.ancestors[a].size() < hierarchy_.ancestors[b].size();
    });
    for (const std::int32_t i : order_) {
      node(i).size = 1.6 + 1.25 * std::log1p(node(i).descendants);
      if (hierarchy_.parents[i].empty()) continue;
      node(i).depth = 1 << 20;
      for (const std::int32_t parent : hierarchy_.parents[i])
        node(i).depth = std::min(node(i).depth, node(parent).depth + 1);
      deepest_ = std::max(deepest_, node(i).depth);
    }
    by_importance_ = order_;
    std::stable_sort(by_importance_.begin(), by_importance_.end(),
                     [&](std::int32_t a, std::int32_t b) { return node(a).descendants > node(b).descendants; });
  }

  /// Moves the top of the hierarchy to the centre, by an isometry, and shortens all distances from there by one factor:
  /// at their full length nearly all nodes would lie within a pixel of the rim.
  void place(ruvector::MatrixView<const double> points) {
    const auto point = [&](std::int32_t i) { return std::complex<double>(points(i, 0), points(i, 1)); };
    const std::complex<double> top = point(by_importance_.front());
    double farthest = 0;
    for (const std::int32_t i : order_) {
      const std::complex<double> z = (point(i) - top) / (1.0 - std::conj(top) * point(i));
      node(i).at = std::abs(z) == 0 ? z : z / std::abs(z) * 2.0 * std::atanh(std::abs(z));  // distance and direction
      farthest = std::max(farthest, std::abs(node(i).at));
    }
    scale_ = farthest == 0 ? 1 : std::min(1.0, 2 * std::atanh(outermost) / farthest);
    for (Node& n : nodes_) {
      const double distance = std::abs(n.at);
      if (distance != 0) n.at *= std::tanh(scale_ * distance / 2) / distance;
    }
  }

  [[nodiscard]] std::string colour(int depth) const {
    const double t = deepest_ == 0 ? 0.0 : static_cast<double>(depth) / deepest_;
    return oklch(0.52 + 0.20 * t, 0.15, 285 - 245 * t);  // violet, blue, green, amber, red-orange
  }

  /// The geodesic from p to q is part of the circle that meets the rim at right angles: its centre m has
  /// m·p = (1 + |p|²)/2 and m·q = (1 + |q|²)/2, its radius is √(|m|² − 1).
  void draw_link(Svg& svg, const Node& a, const Node& b, const std::string& attributes) const {
    const std::complex<double> p = a.at, q = b.at;
    const double determinant = p.real() * q.imag() - p.imag() * q.real();
    if (std::abs(determinant) < 1e-4)
      return svg.line(screen_x(a), screen_y(a), screen_x(b), screen_y(b), attributes);  // nearly a diameter
    const double u = (1 + std::norm(p)) / 2, v = (1 + std::norm(q)) / 2;
    const std::complex<double> m((u * q.imag() - v * p.imag()) / determinant,
                                 (v * p.real() - u * q.real()) / determinant);
    const double side = ((q - p) * std::conj(m - p)).imag();  // > 0: the centre is to the right of p → q
    svg.arc(screen_x(a), screen_y(a), screen_x(b), screen_y(b), radius * std::sqrt(std::norm(m) - 1), side > 0,
            attributes);
  }

  void draw_links(Svg& svg) {
    svg.begin_group("class=\"links\"");
    for (auto i = order_.rbegin(); i != order_.rend(); ++i) {
      for (const std::int32_t parent : hierarchy_.parents[*i]) {
        const double stroke = 0.7 + 0.28 * std::log1p(node(*i).descendants);
        draw_link(svg, node(parent), node(*i),
                  "stroke=\"" + colour(node(*i).depth) + "\" stroke-width=\"" + Svg::number(stroke) + "\"");
      }
    }
    svg.end_group();
  }

  void draw_nodes(Svg& svg) {
    svg.begin_group("class=\"nodes\"");
    for (auto i = order_.rbegin(); i != order_.rend(); ++i) {
      const Node& n = node(*i);
      svg.circle(screen_x(n), screen_y(n), n.size, "fill=\"" + colour(n.depth) + "\"");
    }
    svg.end_group();
  }

  /// A guess that fits the usual sans-serif fonts, a little too wide rather than too narrow.
  [[nodiscard]] static double text_width(const std::string& words, double size) {
    double em = 0;
    for (const char c : words)
      em += std::string("fijlt .,'-").find(c) != std::string::npos ? 0.34 : c == 'm' || c == 'w' ? 0.88 : 0.6;
    return em * size;
  }

  /// Greedily, the most important first: beside its dot, where it covers no other label and no large dot, and as few
  /// small ones as possible; otherwise it is left out.
  void draw_labels(Svg& svg) {
    std::vector<Box> taken;
    for (const std::int32_t i : by_importance_) {
      const Node& n = node(i);
      if (n.size > 4) taken.push_back({screen_x(n) - n.size, screen_y(n) - n.size, 2 * n.size, 2 * n.size});
    }
    svg.begin_group("class=\"labels\"");
    std::size_t labels = 0;
    for (const std::int32_t i : by_importance_) {
      if (labels == most_labels || node(i).descendants == 0) break;
      const double size = std::clamp(11 + 2.1 * std::log1p(node(i).descendants), 13.0, 24.0);
      const std::string words = name(i);
      const bool bold = size > 18;
      const double w = text_width(words, size) * (bold ? 1.15 : 1.0), x = screen_x(node(i)), y = screen_y(node(i)),
                   r = node(i).size + 4;
      const Box places[] = {{x + r, y - size / 2, w, size},
                            {x - r - w, y - size / 2, w, size},
                            {x - w / 2, y - r - size, w, size},
                            {x - w / 2, y + r, w, size},
                            {x + r * 0.7, y - r * 0.7 - size, w, size},
                            {x + r * 0.7, y + r * 0.7, w, size},
                            {x - r * 0.7 - w, y - r * 0.7 - size, w, size},
                            {x - r * 0.7 - w, y + r * 0.7, w, size}};
      const Box* best = nullptr;
      int fewest = most_covered;
      for (const Box& place : places) {
        if (!inside(place)) continue;
        if (std::any_of(taken.begin(), taken.end(), [&](const Box& other) { return place.overlaps(other); })) continue;
        const auto covered = static_cast<int>(std::count_if(nodes_.begin(), nodes_.end(), [&](const Node& other) {
          return place.overlaps({screen_x(other) - 1, screen_y(other) - 1, 2, 2});
        }));
        if (covered < fewest) {
          fewest = covered;
          best = &place;
        }
      }
      if (best == nullptr) continue;
      taken.push_back({best->x - 4, best->y - 1, best->width + 8, best->height + 2});
      svg.text(best->x + best->width / 2, best->y + 0.8 * size, words,
               "font-size=\"" + Svg::number(size) + "\"" + (bold ? " font-weight=\"600\"" : ""));
      ++labels;
    }
    svg.end_group();
  }
  static constexpr std::size_t most_labels = 110;
  static constexpr int most_covered = 3;

  [[nodiscard]] static bool inside(const Box& box) {
    return box.x > margin && box.x + box.width < width - 10 && box.y > 10 && box.y + box.height < height - 10;
  }
  [[nodiscard]] std::string name(std::int32_t i) const {
    const auto position = static_cast<std::size_t>(hierarchy_.synset[static_cast<std::size_t>(i)]);
    std::string words = database_.synsets[position].words.front();
    std::replace(words.begin(), words.end(), '_', ' ');
    return words;
  }

  void draw_text(Svg& svg, const DiskPictureText& text) const {
    double y = margin + 34;
    svg.text(margin, y, text.title, "class=\"title\"");
    y += 12;
    for (const std::string& words : text.lines) svg.text(margin, y += 27, words, "class=\"note\"");
  }

  void draw_legend(Svg& svg) const {
    constexpr double bottom = height - margin;
    svg.text(margin, bottom - 118, "links to the top", "class=\"note\"");
    for (int depth = 0; depth <= deepest_; ++depth) {
      const double x = margin + 10 + 27 * depth;
      svg.circle(x, bottom - 92, 9, "fill=\"" + colour(depth) + "\"");
      svg.text(x, bottom - 66, std::to_string(depth), "class=\"small\" text-anchor=\"middle\"");
    }
    svg.text(margin, bottom - 26, "Each line is a hypernym link, drawn as a geodesic.", "class=\"small\"");
    svg.text(margin, bottom - 6, "Distances from the centre are drawn at " + Svg::number(scale_) + " of their length.",
             "class=\"small\"");
  }

  [[nodiscard]] static std::string style() {
    return "text{font-family:Inter,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif}"
           ".paper{fill:#fff}.disk{fill:#f7f8fa;stroke:#c3c9d1;stroke-width:1.5}"
           ".links{fill:none;stroke-opacity:.5;stroke-linecap:round}"
           ".nodes{stroke:#fff;stroke-width:.6}"
           ".labels{text-anchor:middle;fill:#1b1f24;stroke:#f7f8fa;stroke-width:3.2;stroke-opacity:.85;"
           "stroke-linejoin:round;paint-order:stroke}"
           ".title{font-size:38px;font-weight:700;fill:#1b1f24}.note{font-size:19px;fill:#424a53}"
           ".small{font-size:15px;fill:#6b7480}"
           "@media(prefers-color-scheme:dark){.paper{fill:#0d1117}.disk{fill:#151b23;stroke:#3d444d}"
           ".nodes{stroke:#151b23}.labels{fill:#f0f3f6;stroke:#151b23}.title{fill:#f0f3f6}.note{fill:#c9d1d9}"
           ".small{fill:#9198a1}}";
  }

  const wordnet::Database& database_;
  const Hierarchy& hierarchy_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> order_;          // parents first
  std::vector<std::int32_t> by_importance_;  // most descendants first
  int deepest_ = 0;
  double scale_ = 1;  // drawn / true distance from the centre
};

}  // namespace examples
