#include "quantize/tile.h"

#include <algorithm>
#include <cmath>

namespace trimpot::quantize {
namespace {

float through_f16(float value) { return f16_to_f32(f32_to_f16(value)); }

}  // namespace

void LaneParameters::set_range(const Scheme& scheme, const float* lo, const float* hi) {
  const auto top = static_cast<float>((1 << scheme.bits) - 1);
  const auto middle = static_cast<float>(1 << (scheme.bits - 1));
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool symmetric = scheme.zeros == ZeroKind::kSymmetric;
    // !(a < b) instead of max: a range that is NaN must stay so, to be refused.
    const float most = !(hi[lane] < -lo[lane]) ? hi[lane] : -lo[lane];
    const float step = symmetric ? most / (middle - 1.0f) : (hi[lane] - lo[lane]) / top;
    scale[lane] = through_f16(step);
    divisor[lane] = scale[lane] == 0.0f ? 1.0f : scale[lane];
    float zero = 0;
    offset[lane] = 0;
    if (symmetric)
      zero = middle;
    else if (scheme.zeros == ZeroKind::kInteger)
      zero = round_even(clamp(-lo[lane] / divisor[lane], 0.0f, top));
    else
      offset[lane] = through_f16(lo[lane]);
    low[lane] = -zero;
    high[lane] = top - zero;
  }
}

void LaneParameters::load(const GroupParameters& parameters, std::int64_t row, int rows,
                          std::int64_t group) {
  const Scheme& scheme = parameters.scheme;
  const auto top = static_cast<float>((1 << scheme.bits) - 1);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto index = static_cast<std::size_t>((row + lane) * parameters.groups() + group);
    const bool inside = lane < rows;
    scale[lane] = inside ? f16_to_f32(parameters.scales[index]) : 0.0f;
    divisor[lane] = scale[lane] == 0.0f ? 1.0f : scale[lane];
    float zero = 0;
    offset[lane] = 0;
    if (scheme.zeros == ZeroKind::kSymmetric)
      zero = static_cast<float>(1 << (scheme.bits - 1));
    else if (scheme.zeros == ZeroKind::kInteger)
      zero = inside ? f16_to_f32(parameters.zeros[index]) : 0.0f;
    else
      offset[lane] = inside ? f16_to_f32(parameters.offsets[index]) : 0.0f;
    low[lane] = -zero;
    high[lane] = top - zero;
  }
}

void LaneParameters::store(GroupParameters& parameters, std::int64_t row, int rows,
                           std::int64_t group) const {
  for (int lane = 0; lane < rows; ++lane) {
    const auto index = static_cast<std::size_t>((row + lane) * parameters.groups() + group);
    parameters.scales[index] = f32_to_f16(scale[lane]);
    // 0 - low, not -low: a zero is +0.
    if (parameters.scheme.zeros == ZeroKind::kInteger)
      parameters.zeros[index] = f32_to_f16(0.0f - low[lane]);
    if (parameters.scheme.zeros == ZeroKind::kOffset)
      parameters.offsets[index] = f32_to_f16(offset[lane]);
  }
}

void load_tile(const float* w, std::int64_t stride, int rows, std::int64_t columns, float* tile) {
  if (rows < kLanes) std::fill_n(tile, columns * kLanes, 0.0f);
  // Four rows by four columns at a time: one load and one store per four elements.
  std::int64_t column = 0;
  for (; rows == kLanes && column + 4 <= columns; column += 4)
    for (int row = 0; row < kLanes; row += 4) {
      float block[4][4];
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) block[i][j] = w[(row + i) * stride + column + j];
      for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i) tile[(column + j) * kLanes + row + i] = block[i][j];
    }
  for (; column < columns; ++column)
    for (int row = 0; row < rows; ++row) tile[column * kLanes + row] = w[row * stride + column];
}

void tile_range(const float* tile, std::int64_t columns, float* lo, float* hi) {
  float least[kLanes] = {}, most[kLanes] = {}, finite[kLanes] = {};
  for (std::int64_t column = 0; column < columns; ++column)
    for (int lane = 0; lane < kLanes; ++lane) {
      const float w = tile[column * kLanes + lane];
      least[lane] = w < least[lane] ? w : least[lane];
      most[lane] = w > most[lane] ? w : most[lane];
      finite[lane] += w * 0.0f;  // NaN once w is infinite or NaN, else 0
    }
  for (int lane = 0; lane < kLanes; ++lane) {
    lo[lane] = least[lane];
    hi[lane] = most[lane] + finite[lane];
  }
}

void FirstFault::check(const LaneParameters& lanes, std::int64_t row, int rows, std::int64_t group,
                       std::int64_t groups) {
  for (int lane = 0; lane < rows; ++lane) {
    if (std::isfinite(lanes.scale[lane]) && std::isfinite(lanes.offset[lane])) continue;
    const std::int64_t place = (row + lane) * groups + group;
    std::int64_t known = first_.load(std::memory_order_relaxed);
    while (place < known &&
           !first_.compare_exchange_weak(known, place, std::memory_order_relaxed)) {
    }
    return;
  }
}

Status FirstFault::status(const Scheme& scheme, std::int64_t columns) const {
  const std::int64_t place = first_.load(std::memory_order_relaxed);
  if (place == std::numeric_limits<std::int64_t>::max()) return {};
  const std::int64_t each = scheme.group_columns(columns), group = place % scheme.groups(columns);
  return fail(
      "row {}, columns {} to {}: weights that are not finite or too large for f16 scales; check "
      "the input file",
      place / scheme.groups(columns), group * each, std::min(columns, (group + 1) * each) - 1);
}

}  // namespace trimpot::quantize
