// Small plots as SVG, for a page or as files of their own. Axes and text have the page's color, so
// they are readable on light and dark; series differ in color and in dashes or numbers.
#pragma once

#include <string>
#include <vector>

namespace trimpot::cli {

struct PlotLabels {
  std::string title, description;  // <title> and <desc>, for those who do not see the picture
  std::string x, y;                // with units
};

struct PlotPoint {
  double x = 0, y = 0;  // points that are not finite are left out
  std::string label;
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;
};

// A stack of parts, from the left.
struct PlotBar {
  std::string name;
  std::vector<double> parts;
};

// All return "" if there is nothing to draw. An axis whose values differ more than 20-fold is
// logarithmic.
std::string scatter_svg(const PlotLabels& labels, const std::vector<PlotPoint>& points);
std::string lines_svg(const PlotLabels& labels, const std::vector<PlotSeries>& series);
// Marks at (x, y), with y a whole number such as a layer; one color per series.
std::string marks_svg(const PlotLabels& labels, const std::vector<PlotSeries>& series);
std::string bars_svg(const PlotLabels& labels, const std::vector<std::string>& part_names,
                     const std::vector<PlotBar>& bars);

}  // namespace trimpot::cli
