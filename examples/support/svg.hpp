// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <numbers>
#include <string>
#include <string_view>

namespace examples {

/// Writes a picture as text, element by element, in the order of painting. Coordinates are pixels, y downwards.
class Svg {
 public:
  /// `style` is CSS: what elements of a class look like.
  Svg(double width, double height, const std::string& style) {
    text_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + number(width) + " " + number(height) +
            "\" width=\"" + number(width) + "\" height=\"" + number(height) + "\">\n<style>" + style + "</style>\n";
  }

  /// `attributes` of all these: any more, such as `class="edge" stroke="#123456"`.
  void circle(double x, double y, double radius, const std::string& attributes) {
    element("circle", {{"cx", x}, {"cy", y}, {"r", radius}}, attributes);
  }
  void rectangle(double x, double y, double width, double height, const std::string& attributes) {
    element("rect", {{"x", x}, {"y", y}, {"width", width}, {"height", height}}, attributes);
  }
  void line(double x1, double y1, double x2, double y2, const std::string& attributes) {
    element("line", {{"x1", x1}, {"y1", y1}, {"x2", x2}, {"y2", y2}}, attributes);
  }
  /// The shorter arc of a circle of this radius from one point to another, to the right or to the left of the chord.
  void arc(double x1, double y1, double x2, double y2, double radius, bool clockwise, const std::string& attributes) {
    text_ += "<path d=\"M" + number(x1) + " " + number(y1) + "A" + number(radius) + " " + number(radius) + " 0 0 " +
             (clockwise ? "1 " : "0 ") + number(x2) + " " + number(y2) + "\" " + attributes + "/>\n";
  }
  /// One line of text that starts at (x, y), or ends or is centred there with `text-anchor`.
  void text(double x, double y, std::string_view words, const std::string& attributes) {
    text_ += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + attributes + ">" + escaped(words) + "</text>\n";
  }
  /// Opens a group of elements with common attributes, until `end_group`.
  void begin_group(const std::string& attributes) { text_ += "<g " + attributes + ">\n"; }
  void end_group() { text_ += "</g>\n"; }

  /// The finished file.
  [[nodiscard]] std::string str() const { return text_ + "</svg>\n"; }

  /// At most two decimals, and a point whatever the locale.
  [[nodiscard]] static std::string number(double value) {
    const auto hundredths = static_cast<long long>(std::llround(value * 100));
    const long long whole = std::abs(hundredths) / 100, rest = std::abs(hundredths) % 100;
    std::string result = (hundredths < 0 ? "-" : "") + std::to_string(whole);
    if (rest != 0) result += (rest < 10 ? ".0" : ".") + std::to_string(rest % 10 == 0 ? rest / 10 : rest);
    return result;
  }

 private:
  struct Attribute {
    const char* name;
    double value;
  };
  void element(const char* name, std::initializer_list<Attribute> numbers, const std::string& attributes) {
    text_ += std::string("<") + name;
    for (const Attribute& a : numbers) text_ += std::string(" ") + a.name + "=\"" + number(a.value) + "\"";
    text_ += " " + attributes + "/>\n";
  }
  [[nodiscard]] static std::string escaped(std::string_view words) {
    std::string result;
    for (const char c : words) {
      if (c == '&')
        result += "&amp;";
      else if (c == '<')
        result += "&lt;";
      else
        result += c;
    }
    return result;
  }

  std::string text_;
};

/// A colour by lightness, chroma and hue (degrees) as "#rrggbb": equal steps look equal. Source: Ottosson 2020, OKLab.
[[nodiscard]] inline std::string oklch(double lightness, double chroma, double hue) {
  const double a = chroma * std::cos(hue * std::numbers::pi / 180), b = chroma * std::sin(hue * std::numbers::pi / 180);
  const auto cube = [](double x) { return x * x * x; };
  const double l = cube(lightness + 0.3963377774 * a + 0.2158037573 * b);
  const double m = cube(lightness - 0.1055613458 * a - 0.0638541728 * b);
  const double s = cube(lightness - 0.0894841775 * a - 1.2914855480 * b);
  const std::array<double, 3> linear = {4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
                                        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
                                        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s};
  std::string result = "#";
  for (const double value : linear) {
    const double x = std::clamp(value, 0.0, 1.0);
    const double gamma = x <= 0.0031308 ? 12.92 * x : 1.055 * std::pow(x, 1 / 2.4) - 0.055;
    char digits[8];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(std::lround(255 * gamma)) & 255u);
    result += digits;
  }
  return result;
}

}  // namespace examples
