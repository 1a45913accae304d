#include "tune/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/markup.h"

namespace trimpot {
namespace {

constexpr double kWidth = 720, kHeight = 420;
constexpr double kLeft = 64, kRight = 20, kTop = 44, kBottom = 52;
constexpr std::string_view kTrainingColor = "#2166ac", kValidationColor = "#d95f02";

std::vector<CurvePoint> drawable(const std::vector<CurvePoint>& points) {
  std::vector<CurvePoint> result;
  for (const CurvePoint& p : points)
    if (std::isfinite(p.loss) && std::isfinite(p.step)) result.push_back(p);
  return result;
}

std::vector<CurvePoint> thinned(const std::vector<CurvePoint>& points, std::size_t most) {
  if (points.size() <= most) return points;
  const std::size_t group = (points.size() - 1) / most + 1;
  std::vector<CurvePoint> result;
  for (std::size_t begin = 0; begin < points.size(); begin += group) {
    const std::size_t end = std::min(begin + group, points.size());
    CurvePoint mean{0.0, 0.0};
    for (std::size_t i = begin; i < end; ++i) {
      mean.step += points[i].step / static_cast<double>(end - begin);
      mean.loss += points[i].loss / static_cast<double>(end - begin);
    }
    result.push_back(mean);
  }
  return result;
}

// An exponential mean with a window of about a thirtieth of the run; its start is corrected as
// Adam's moments are, so that it does not hang on the first point.
std::vector<CurvePoint> smoothed(const std::vector<CurvePoint>& points) {
  const double keep = 1.0 - 1.0 / std::max(1.0, static_cast<double>(points.size()) / 30.0);
  double mean = 0.0, weight = 0.0;
  std::vector<CurvePoint> result;
  for (const CurvePoint& p : points) {
    mean = keep * mean + (1.0 - keep) * p.loss;
    weight = keep * weight + (1.0 - keep);
    result.push_back({p.step, mean / weight});
  }
  return result;
}

// One axis: the range of its ticks, which covers the data.
struct Axis {
  double low, high, tick;
  int decimals;
};

Axis make_axis(double low, double high, bool whole) {
  if (!(high > low)) {
    const double pad = std::max(std::abs(low) * 0.05, whole ? 1.0 : 1e-3);
    high = low + pad;
    low = std::max(0.0, low - pad);
  }
  const double rough = (high - low) / 6.0;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double tick = 10.0 * power;
  for (const double step : {1.0, 2.0, 5.0})
    if (step * power >= rough) {
      tick = step * power;
      break;
    }
  if (whole) tick = std::max(1.0, tick);
  const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(tick) + 1e-9)), 0, 12);
  return {std::floor(low / tick + 1e-9) * tick, std::ceil(high / tick - 1e-9) * tick, tick,
          decimals};
}

struct Plot {
  Axis x, y;
  double at_x(double step) const {
    return kLeft + (step - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  }
  double at_y(double loss) const {
    return kHeight - kBottom - (loss - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  }
  std::string line(const std::vector<CurvePoint>& points, std::string_view style) const {
    if (points.empty()) return "";
    std::string coordinates;
    for (const CurvePoint& p : points)
      coordinates += fmt::format("{:.1f},{:.1f} ", at_x(p.step), at_y(p.loss));
    coordinates.pop_back();
    return fmt::format("<polyline fill=\"none\" {} points=\"{}\"/>\n", style, coordinates);
  }
};

std::string draw_axes(const Plot& plot) {
  std::string svg;
  const double bottom = kHeight - kBottom;
  const auto count = [](const Axis& axis) {
    return static_cast<int>(std::lround((axis.high - axis.low) / axis.tick));
  };
  for (int i = 0; i <= count(plot.y); ++i) {
    const double value = plot.y.low + i * plot.y.tick;
    const double y = plot.at_y(value);
    svg += fmt::format("<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n",
                       kLeft, y, kWidth - kRight, y);
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.{}f}</text>\n",
                       kLeft - 8, y + 4, value, plot.y.decimals);
  }
  for (int i = 0; i <= count(plot.x); ++i) {
    const double value = plot.x.low + i * plot.x.tick;
    const double x = plot.at_x(value);
    svg += fmt::format("<line x1=\"{:.1f}\" y1=\"{}\" x2=\"{:.1f}\" y2=\"{}\" stroke=\"#333\"/>\n",
                       x, bottom, x, bottom + 5);
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.{}f}</text>\n", x,
                       bottom + 20, value, plot.x.decimals);
  }
  svg += fmt::format("<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"#333\"/>\n", kLeft, kTop,
                     bottom, kWidth - kRight);
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 10);
  svg += fmt::format(
      "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">"
      "loss</text>\n",
      (kTop + bottom) / 2);
  return svg;
}

}  // namespace

std::string loss_curve_svg(const LossCurve& curve) {
  const std::vector<CurvePoint> training = thinned(drawable(curve.training), 1500);
  const std::vector<CurvePoint> validation = thinned(drawable(curve.validation), 200);
  double low_x = 0.0, high_x = 1.0, low_y = 0.0, high_y = 1.0;
  bool first = true;
  for (const std::vector<CurvePoint>* points : {&training, &validation})
    for (const CurvePoint& p : *points) {
      high_x = first ? p.step : std::max(high_x, p.step);
      low_y = first ? p.loss : std::min(low_y, p.loss);
      high_y = first ? p.loss : std::max(high_y, p.loss);
      first = false;
    }
  Plot plot{make_axis(low_x, high_x, true), make_axis(low_y, high_y, false)};

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"{2}\" y=\"24\" font-size=\"15\">{3}</text>\n",
      kWidth, kHeight, kLeft, escape_markup(curve.title));
  svg += draw_axes(plot);
  svg += plot.line(training, fmt::format("stroke=\"{}\" stroke-opacity=\"0.3\"", kTrainingColor));
  svg += plot.line(smoothed(training),
                   fmt::format("stroke=\"{}\" stroke-width=\"2\"", kTrainingColor));
  svg += plot.line(validation, fmt::format("stroke=\"{}\"", kValidationColor));
  for (const CurvePoint& p : validation)
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n",
                       plot.at_x(p.step), plot.at_y(p.loss), kValidationColor);
  // The upper right is empty in a loss curve that falls.
  double y = kTop + 14;
  const auto legend = [&](std::string_view color, std::string_view text) {
    svg += fmt::format(
        "<path d=\"M{0} {1}h24\" stroke=\"{2}\" stroke-width=\"3\"/>\n"
        "<text x=\"{3}\" y=\"{4}\">{5}</text>\n",
        kWidth - kRight - 150, y - 4, color, kWidth - kRight - 118, y, text);
    y += 18;
  };
  if (!training.empty()) legend(kTrainingColor, "training, smoothed");
  if (!validation.empty()) legend(kValidationColor, "validation");
  return svg + "</svg>\n";
}

}  // namespace trimpot
