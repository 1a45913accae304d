#include "cli/compare/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/markup.h"
#include "cli/compare/table.h"

namespace trimpot::cli {
namespace {

constexpr double kLeft = 70, kTop = 34, kPlotWidth = 470, kPlotHeight = 300;
constexpr double kRight = kLeft + kPlotWidth, kBottom = kTop + kPlotHeight;
constexpr double kLegend = kRight + 18, kWidth = 860;
// Told apart by people who see few colors, too; of middle lightness, for light and dark pages.
constexpr std::array<const char*, 7> kColors{"#4477aa", "#ee6677", "#228833", "#aa8800",
                                             "#3399bb", "#aa3377", "#888888"};
constexpr std::array<const char*, 4> kDashes{"", "7 3", "2 3", "8 3 2 3"};

const char* color(std::size_t index) { return kColors[index % kColors.size()]; }
const char* dash(std::size_t index) { return kDashes[index / kColors.size() % kDashes.size()]; }

bool drawable(const PlotPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

// Where values lie between 0 and 1 of an axis, and its ticks.
class Axis {
 public:
  // `whole`: layers, channels, steps: no ticks between whole numbers, no logarithm.
  Axis(double low, double high, bool whole) {
    log_ = !whole && low > 0 && high > 20 * low;
    if (log_) {
      low_ = std::log10(low) - 0.05;
      high_ = std::log10(high) + 0.05;
      for (double power = std::floor(low_); power <= high_; ++power)
        for (const double step : {1.0, 2.0, 5.0}) add_tick(step * std::pow(10.0, power));
      return;
    }
    const double margin = whole ? 0.0 : 0.06 * (high - low);
    low_ = low - margin;
    high_ = high + margin;
    if (low >= 0) low_ = std::max(0.0, low_);
    if (!(high_ > low_)) {
      low_ -= std::max(1.0, std::abs(low) * 0.1);
      high_ += std::max(1.0, std::abs(high) * 0.1);
    }
    const double rough = (high_ - low_) / 6;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    double tick = 10 * power;
    for (const double step : {5.0, 2.0, 1.0})
      if (step * power >= rough) tick = step * power;
    if (whole) tick = std::max(1.0, tick);
    for (double i = std::ceil(low_ / tick); i * tick <= high_; ++i) add_tick(i * tick);
  }
  double at(double value) const {
    return ((log_ ? std::log10(value) : value) - low_) / (high_ - low_);
  }
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  void add_tick(double value) {
    const double position = at(value);
    if (position >= -1e-9 && position <= 1 + 1e-9) ticks_.push_back(value);
  }
  bool log_ = false;
  double low_ = 0, high_ = 1;
  std::vector<double> ticks_;
};

struct Frame {
  Axis x, y;
  double at_x(double value) const { return kLeft + x.at(value) * kPlotWidth; }
  double at_y(double value) const { return kBottom - y.at(value) * kPlotHeight; }
};

Frame make_frame(const std::vector<PlotSeries>& series, bool whole_x, bool whole_y) {
  double low_x = 0, high_x = 0, low_y = 0, high_y = 0;
  bool first = true;
  for (const PlotSeries& line : series)
    for (const PlotPoint& point : line.points) {
      if (!drawable(point)) continue;
      low_x = first ? point.x : std::min(low_x, point.x);
      high_x = first ? point.x : std::max(high_x, point.x);
      low_y = first ? point.y : std::min(low_y, point.y);
      high_y = first ? point.y : std::max(high_y, point.y);
      first = false;
    }
  return {Axis(low_x, high_x, whole_x), Axis(low_y, high_y, whole_y)};
}

bool has_points(const std::vector<PlotSeries>& series) {
  return std::any_of(series.begin(), series.end(), [](const PlotSeries& line) {
    return std::any_of(line.points.begin(), line.points.end(), drawable);
  });
}

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     escape_markup(text));
}

std::string start(const PlotLabels& labels, double height) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1:.0f}\" width=\"{0}\" "
      "height=\"{1:.0f}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\" "
      "fill=\"currentColor\" color=\"#555\">\n<title>{2}</title>\n<desc>{3}</desc>\n"
      "<text x=\"{4}\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{2}</text>\n",
      kWidth, height, escape_markup(labels.title), escape_markup(labels.description), kLeft);
}

std::string x_ticks(const Axis& axis) {
  std::string svg;
  for (const double tick : axis.ticks()) {
    const double x = kLeft + axis.at(tick) * kPlotWidth;
    svg += fmt::format("<path d=\"M{:.1f} {}V{}\" stroke=\"currentColor\"/>\n", x, kBottom,
                       kBottom + 5);
    svg += text_at(x, kBottom + 19, "middle", fmt::format("{:.6g}", tick));
  }
  return svg;
}

std::string draw_axes(const PlotLabels& labels, const Frame& frame) {
  std::string svg =
      fmt::format("<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"currentColor\"/>\n", kLeft,
                  kTop, kBottom, kRight);
  for (const double tick : frame.y.ticks()) {
    const double y = frame.at_y(tick);
    svg +=
        fmt::format("<path d=\"M{} {:.1f}H{}\" stroke=\"currentColor\" stroke-opacity=\"0.2\"/>\n",
                    kLeft, y, kRight);
    svg += text_at(kLeft - 7, y + 4, "end", fmt::format("{:.6g}", tick));
  }
  svg += x_ticks(frame.x);
  svg += text_at((kLeft + kRight) / 2, kBottom + 38, "middle", labels.x);
  svg += fmt::format(
      "<text transform=\"translate(15 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
      (kTop + kBottom) / 2, escape_markup(labels.y));
  return svg;
}

double height_for(std::size_t legend_lines) {
  return std::max(kBottom + 48, kTop + 20 + 18 * static_cast<double>(legend_lines));
}

double legend_y(std::size_t index) { return kTop + 12 + 18 * static_cast<double>(index); }

}  // namespace

std::string scatter_svg(const PlotLabels& labels, const std::vector<PlotPoint>& points) {
  std::vector<PlotSeries> all(1);
  for (const PlotPoint& point : points)
    if (drawable(point)) all[0].points.push_back(point);
  if (all[0].points.empty()) return "";
  const Frame frame = make_frame(all, false, false);
  std::string svg = start(labels, height_for(all[0].points.size()));
  svg += draw_axes(labels, frame);
  // Numbers, since names would cover each other.
  for (std::size_t i = 0; i < all[0].points.size(); ++i) {
    const PlotPoint& point = all[0].points[i];
    const auto numbered = [&](double x, double y) {
      return fmt::format(
          "<circle cx=\"{0:.1f}\" cy=\"{1:.1f}\" r=\"9\" fill=\"{2}\"/>"
          "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\" font-size=\"10\" "
          "fill=\"#fff\">{4}</text>",
          x, y, color(i), y + 3.5, i + 1);
    };
    svg += fmt::format("<g><title>{}: {:.4g}, {:.4g}</title>{}</g>\n", escape_markup(point.label),
                       point.x, point.y, numbered(frame.at_x(point.x), frame.at_y(point.y)));
    svg += numbered(kLegend + 9, legend_y(i) - 4) + "\n";
    svg += text_at(kLegend + 24, legend_y(i), "start", point.label);
  }
  return svg + "</svg>\n";
}

std::string lines_svg(const PlotLabels& labels, const std::vector<PlotSeries>& series) {
  if (!has_points(series)) return "";
  const Frame frame = make_frame(series, true, false);
  std::string svg = start(labels, height_for(series.size()));
  svg += draw_axes(labels, frame);
  for (std::size_t i = 0; i < series.size(); ++i) {
    std::string coordinates;
    for (const PlotPoint& point : series[i].points)
      if (drawable(point))
        coordinates += fmt::format("{}{:.1f},{:.1f}", coordinates.empty() ? "" : " ",
                                   frame.at_x(point.x), frame.at_y(point.y));
    const std::string style =
        fmt::format("fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"",
                    color(i), *dash(i) == '\0' ? "none" : dash(i));
    svg += fmt::format("<polyline {} points=\"{}\"><title>{}</title></polyline>\n", style,
                       coordinates, escape_markup(series[i].name));
    svg += fmt::format("<path {} d=\"M{} {}h28\"/>\n", style, kLegend, legend_y(i) - 4);
    svg += text_at(kLegend + 36, legend_y(i), "start", series[i].name);
  }
  return svg + "</svg>\n";
}

std::string marks_svg(const PlotLabels& labels, const std::vector<PlotSeries>& series) {
  if (!has_points(series)) return "";
  const Frame frame = make_frame(series, true, true);
  std::string svg = start(labels, height_for(series.size()));
  svg += draw_axes(labels, frame);
  for (std::size_t i = 0; i < series.size(); ++i) {
    // Series above each other in a layer's band, so that none hides another.
    const double shift =
        4.0 * (static_cast<double>(i) - static_cast<double>(series.size() - 1) / 2);
    std::string path;
    for (const PlotPoint& point : series[i].points)
      if (drawable(point))
        path +=
            fmt::format("M{:.1f} {:.1f}v4", frame.at_x(point.x), frame.at_y(point.y) + shift - 2);
    svg += fmt::format(
        "<path d=\"{}\" stroke=\"{}\" stroke-width=\"2\" fill=\"none\"><title>{}</title></path>\n",
        path, color(i), escape_markup(series[i].name));
    svg += fmt::format("<path d=\"M{} {}h20\" stroke=\"{}\" stroke-width=\"4\"/>\n", kLegend,
                       legend_y(i) - 4, color(i));
    svg += text_at(kLegend + 28, legend_y(i), "start", series[i].name);
  }
  return svg + "</svg>\n";
}

std::string bars_svg(const PlotLabels& labels, const std::vector<std::string>& part_names,
                     const std::vector<PlotBar>& bars) {
  if (bars.empty()) return "";
  double most = 0;
  for (const PlotBar& bar : bars) {
    double sum = 0;
    for (const double part : bar.parts) sum += std::max(0.0, part);
    most = std::max(most, sum);
  }
  if (!(most > 0) || !std::isfinite(most)) return "";
  const Axis axis(0, most, true);
  std::string svg = start(labels, height_for(part_names.size()));
  svg += fmt::format("<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"currentColor\"/>\n",
                     kLeft, kTop, kBottom, kRight);
  svg += x_ticks(axis) + text_at((kLeft + kRight) / 2, kBottom + 38, "middle", labels.x);
  const double band = kPlotHeight / static_cast<double>(bars.size());
  for (std::size_t i = 0; i < bars.size(); ++i) {
    const double top = kTop + band * static_cast<double>(i) + std::min(16.0, band * 0.45);
    svg += text_at(kLeft + 4, top - 3, "start", bars[i].name);
    double sum = 0;
    for (std::size_t part = 0; part < bars[i].parts.size(); ++part) {
      const double value = std::max(0.0, bars[i].parts[part]);
      svg += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\">"
          "<title>{}, {}: {:.4g}</title></rect>\n",
          kLeft + sum / most * kPlotWidth, top, value / most * kPlotWidth, band * 0.4, color(part),
          escape_markup(bars[i].name), escape_markup(part_names[part]), value);
      sum += value;
    }
  }
  for (std::size_t part = 0; part < part_names.size(); ++part) {
    svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"12\" fill=\"{}\"/>\n",
                       kLegend, legend_y(part) - 10, color(part));
    svg += text_at(kLegend + 22, legend_y(part), "start", part_names[part]);
  }
  return svg + "</svg>\n";
}

}  // namespace trimpot::cli
