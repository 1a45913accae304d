// The loss of a run as a picture.
#pragma once

#include <string>
#include <vector>

namespace trimpot {

struct CurvePoint {
  double step;
  double loss;  // points that are not finite are left out
};

struct LossCurve {
  std::string title;
  std::vector<CurvePoint> training;    // steps in rising order
  std::vector<CurvePoint> validation;  // the same
};

// A self-contained SVG, 720 x 420: axes with ticks and labels, the training loss faint with a
// smoothed line over it, validation as dots joined by a line, a legend, a white background of its
// own. At most about 1500 training points are drawn, means of neighbours beyond that. Any text in
// the title is fine.
std::string loss_curve_svg(const LossCurve& curve);

}  // namespace trimpot
