#include "optim/clip.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trimpot {

double chunk_sum_of_squares(std::span<const float> chunk) {
  constexpr std::size_t kLanes = 8;
  double lanes[kLanes] = {};
  const float* data = chunk.data();
  const std::size_t whole = chunk.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = data[i + lane];
      lanes[lane] += value * value;
    }
  for (std::size_t i = whole; i < chunk.size(); ++i)
    lanes[i - whole] += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

double sum_of_squares(std::span<const float> values) {
  double sum = 0.0;
  for (std::size_t begin = 0; begin < values.size(); begin += kNormChunk)
    sum += chunk_sum_of_squares(values.subspan(begin, std::min(kNormChunk, values.size() - begin)));
  return sum;
}

float clip_factor(double norm, double max_norm) {
  if (!(max_norm > 0.0)) return 1.0f;
  if (std::isnan(norm)) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6)));
}

}  // namespace trimpot
