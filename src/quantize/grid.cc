#include "quantize/grid.h"

#include <algorithm>
#include <limits>

#include "quantize/tile.h"
#include "sys/aligned_buffer.h"

namespace trimpot {

using namespace quantize;

namespace {

constexpr int kFactors = 51;
constexpr int kHalf = 8;  // lanes per pass: their constants and sums fit into 16 registers of SSE

// Squared errors of 8 lanes, of those that start at `tile` and in `lanes` at `from`.
void squared_errors(const LaneParameters& lanes, int from, const float* tile, std::int64_t columns,
                    float* errors) {
  float inverse[kHalf], scale[kHalf], low[kHalf], high[kHalf], sum[kHalf] = {};
  for (int lane = 0; lane < kHalf; ++lane) {
    inverse[lane] = 1.0f / lanes.divisor[from + lane];
    scale[lane] = lanes.scale[from + lane];
    low[lane] = lanes.low[from + lane];
    high[lane] = lanes.high[from + lane];
  }
  const float* w = tile + from;
  for (std::int64_t column = 0; column < columns; ++column, w += kLanes)
    for (int lane = 0; lane < kHalf; ++lane) {
      const float level = round_even(clamp(w[lane] * inverse[lane], low[lane], high[lane]));
      const float error = scale[lane] * level - w[lane];
      sum[lane] += error * error;
    }
  for (int lane = 0; lane < kHalf; ++lane) errors[from + lane] = sum[lane];
}

// The same with offsets.
void squared_errors_offset(const LaneParameters& lanes, const float* tile, std::int64_t columns,
                           float* errors) {
  float inverse[kLanes], sum[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) inverse[lane] = 1.0f / lanes.divisor[lane];
  for (std::int64_t column = 0; column < columns; ++column)
    for (int lane = 0; lane < kLanes; ++lane) {
      const float w = tile[column * kLanes + lane] - lanes.offset[lane];
      const float level = round_even(clamp(w * inverse[lane], lanes.low[lane], lanes.high[lane]));
      const float error = lanes.scale[lane] * level - w;
      sum[lane] += error * error;
    }
  std::copy_n(sum, kLanes, errors);
}

// The best parameters of one group of 16 rows.
LaneParameters search(const Scheme& scheme, const float* tile, std::int64_t columns) {
  float lo[kLanes], hi[kLanes], errors[kLanes], least[kLanes];
  tile_range(tile, columns, lo, hi);
  std::fill_n(least, kLanes, std::numeric_limits<float>::infinity());
  LaneParameters best;
  best.set_range(scheme, lo, hi);
  for (int step = 0; step < kFactors; ++step) {
    const float factor = static_cast<float>(100 - step) / 100.0f;
    float clipped_lo[kLanes], clipped_hi[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      clipped_lo[lane] = factor * lo[lane];
      clipped_hi[lane] = factor * hi[lane];
    }
    LaneParameters lanes;
    lanes.set_range(scheme, clipped_lo, clipped_hi);
    if (scheme.zeros == ZeroKind::kOffset) {
      squared_errors_offset(lanes, tile, columns, errors);
    } else {
      squared_errors(lanes, 0, tile, columns, errors);
      squared_errors(lanes, kHalf, tile, columns, errors);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool better = errors[lane] < least[lane];
      least[lane] = better ? errors[lane] : least[lane];
      best.scale[lane] = better ? lanes.scale[lane] : best.scale[lane];
      best.divisor[lane] = better ? lanes.divisor[lane] : best.divisor[lane];
      best.low[lane] = better ? lanes.low[lane] : best.low[lane];
      best.high[lane] = better ? lanes.high[lane] : best.high[lane];
      best.offset[lane] = better ? lanes.offset[lane] : best.offset[lane];
    }
  }
  return best;
}

}  // namespace

Result<GroupParameters> grid_parameters(ThreadTeam& team, const WeightView& w,
                                        const Scheme& scheme) {
  TRIMPOT_TRY_VOID(check_scheme(scheme, w.rows, w.columns));
  GroupParameters parameters = GroupParameters::sized(scheme, w.rows, w.columns);
  const std::int64_t each = scheme.group_columns(w.columns), groups = parameters.groups();
  FirstFault fault;
  team.for_each(w.rows, kLanes, [&](std::int64_t row, std::int64_t end, int) {
    AlignedBuffer<float> tile(each * kLanes);
    const int rows = static_cast<int>(end - row);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = group * each, count = std::min(each, w.columns - first);
      load_tile(w.data + row * w.stride + first, w.stride, rows, count, tile.data());
      const LaneParameters best = search(scheme, tile.data(), count);
      fault.check(best, row, rows, group, groups);
      best.store(parameters, row, rows, group);
    }
  });
  TRIMPOT_TRY_VOID(fault.status(scheme, w.columns));
  return parameters;
}

}  // namespace trimpot
