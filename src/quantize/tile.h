// Sixteen rows side by side, the unit in which this room computes: element (row, column) of a tile
// lies at [column * 16 + row], so that loops over the lanes become vectors without any intrinsics,
// groups of every width are whole, and no sum crosses lanes. Internal to src/quantize.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "quantize/scheme.h"

namespace trimpot::quantize {

inline constexpr int kLanes = 16;

// The nearest whole number, ties to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves no bits for
// fractions. (std::nearbyint is a call on machines without SSE4.1.)
[[gnu::always_inline]] inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// NaN becomes `low`.
[[gnu::always_inline]] inline float clamp(float x, float low, float high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

// What quantizing one group of 16 rows needs. With level = q - z (kOffset: q):
//     level = clamp(round((w - offset) / divisor), low, high)      w = scale * level + offset
// which is clamp(round(w / s) + z, 0, 2^b - 1) - z exactly, because low and high are whole numbers.
// The divisor is the scale, but 1 where that is 0 (all weights 0, or below f16's smallest number):
// such groups get level 0, so q = z, and dequantize to 0.
struct LaneParameters {
  alignas(64) float scale[kLanes];
  alignas(64) float divisor[kLanes];
  alignas(64) float low[kLanes];
  alignas(64) float high[kLanes];
  alignas(64) float offset[kLanes];

  // From the range [lo, hi] of each row's group, lo <= 0 <= hi: rtn.h has the formulas.
  void set_range(const Scheme& scheme, const float* lo, const float* hi);
  // Rows row .. row + rows - 1 (at most 16) of `parameters`; the other lanes are zeros.
  void load(const GroupParameters& parameters, std::int64_t row, int rows, std::int64_t group);
  void store(GroupParameters& parameters, std::int64_t row, int rows, std::int64_t group) const;

  // The level of 16 weights and the code's distance from it: q = level - low.
  [[gnu::always_inline]] void quantize(const float* w, float* level, float* value) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float steps = (w[lane] - offset[lane]) / divisor[lane];
      level[lane] = round_even(clamp(steps, low[lane], high[lane]));
      value[lane] = scale[lane] * level[lane] + offset[lane];
    }
  }
};

// Copies `rows` (at most 16) rows of `columns` weights into tile order; missing rows become zeros.
void load_tile(const float* w, std::int64_t stride, int rows, std::int64_t columns, float* tile);

// The range of each lane, widened to hold 0; NaN in `hi` where a weight is not finite.
void tile_range(const float* tile, std::int64_t columns, float* lo, float* hi);

// The first (row, group) whose weights cannot be quantized, whichever thread finds it.
class FirstFault {
 public:
  // Notes a fault of the lowest of `rows` lanes whose scale or offset is not finite.
  void check(const LaneParameters& lanes, std::int64_t row, int rows, std::int64_t group,
             std::int64_t groups);
  Status status(const Scheme& scheme, std::int64_t columns) const;

 private:
  std::atomic<std::int64_t> first_{std::numeric_limits<std::int64_t>::max()};
};

}  // namespace trimpot::quantize
