#include "quantize/rtn.h"

#include <algorithm>

#include "quantize/tile.h"
#include "sys/aligned_buffer.h"

namespace trimpot {

using namespace quantize;

Result<GroupParameters> min_max_parameters(ThreadTeam& team, const WeightView& w,
                                           const Scheme& scheme) {
  TRIMPOT_TRY_VOID(check_scheme(scheme, w.rows, w.columns));
  GroupParameters parameters = GroupParameters::sized(scheme, w.rows, w.columns);
  const std::int64_t each = scheme.group_columns(w.columns), groups = parameters.groups();
  FirstFault fault;
  team.for_each(w.rows, kLanes, [&](std::int64_t row, std::int64_t end, int) {
    AlignedBuffer<float> tile(each * kLanes);
    const int rows = static_cast<int>(end - row);
    float lo[kLanes], hi[kLanes];
    LaneParameters lanes;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = group * each, count = std::min(each, w.columns - first);
      load_tile(w.data + row * w.stride + first, w.stride, rows, count, tile.data());
      tile_range(tile.data(), count, lo, hi);
      lanes.set_range(scheme, lo, hi);
      fault.check(lanes, row, rows, group, groups);
      lanes.store(parameters, row, rows, group);
    }
  });
  TRIMPOT_TRY_VOID(fault.status(scheme, w.columns));
  return parameters;
}

GroupedCodes round_to_nearest(ThreadTeam& team, const WeightView& w, GroupParameters parameters) {
  const std::int64_t each = parameters.scheme.group_columns(w.columns);
  const std::int64_t groups = parameters.groups();
  std::vector<std::uint8_t> packed;
  const int bits = parameters.scheme.bits;
  const std::int64_t row_bytes = (w.columns * bits + 7) / 8;
  packed.resize(static_cast<std::size_t>(w.rows * row_bytes));
  team.for_each(w.rows, kLanes, [&](std::int64_t row, std::int64_t end, int) {
    AlignedBuffer<float> tile(each * kLanes);
    AlignedBuffer<std::uint8_t> codes(kLanes * w.columns);
    const int rows = static_cast<int>(end - row);
    LaneParameters lanes;
    float level[kLanes], value[kLanes];
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = group * each, count = std::min(each, w.columns - first);
      load_tile(w.data + row * w.stride + first, w.stride, rows, count, tile.data());
      lanes.load(parameters, row, rows, group);
      for (std::int64_t column = 0; column < count; ++column) {
        lanes.quantize(tile.data() + column * kLanes, level, value);
        for (int lane = 0; lane < kLanes; ++lane)
          codes[lane * w.columns + first + column] =
              static_cast<std::uint8_t>(static_cast<int>(level[lane] - lanes.low[lane]));
      }
    }
    for (int lane = 0; lane < rows; ++lane)
      pack_row(bits, {codes.data() + lane * w.columns, static_cast<std::size_t>(w.columns)},
               packed.data() + (row + lane) * row_bytes);
  });
  GroupedCodes result = std::move(parameters).into_codes();
  result.codes = std::move(packed);
  return result;
}

Result<GroupedCodes> quantize_rtn(ThreadTeam& team, const WeightView& w, const Scheme& scheme) {
  TRIMPOT_TRY(GroupParameters parameters, min_max_parameters(team, w, scheme));
  return round_to_nearest(team, w, std::move(parameters));
}

}  // namespace trimpot
