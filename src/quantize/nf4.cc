#include "quantize/nf4.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "quantize/tile.h"

namespace trimpot {

using namespace quantize;

namespace {

// bitsandbytes multiplies with the reciprocal and keeps it finite for blocks of zeros.
float reciprocal(float absmax) { return 1.0f / std::max(absmax, 1e-38f); }

std::array<float, 15> midpoints() {
  std::array<float, 15> middle;
  const auto levels = nf4_levels();
  for (std::size_t i = 0; i < 15; ++i) middle[i] = (levels[i] + levels[i + 1]) / 2.0f;
  return middle;
}

// Magnitudes [blocks] to 8 bits.
void quantize_absmax(const std::vector<float>& absmax, Nf4Codes& result) {
  const auto count = static_cast<std::int64_t>(absmax.size());
  double sum = 0;
  for (const float value : absmax) sum += static_cast<double>(value);
  result.offset = static_cast<float>(sum / static_cast<double>(count));
  const std::array<float, 256>& map = dynamic_map();
  std::array<float, 255> middle;
  for (std::size_t i = 0; i < middle.size(); ++i) middle[i] = (map[i] + map[i + 1]) / 2.0f;
  result.absmax_codes.resize(absmax.size());
  result.absmax_scales.resize(
      static_cast<std::size_t>((count + kNf4AbsmaxBlock - 1) / kNf4AbsmaxBlock));
  for (std::int64_t i = 0; i < count; ++i) {
    float& most = result.absmax_scales[result.scale_index(i)];
    most = std::max(most, std::fabs(absmax[i] - result.offset));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const float most = result.absmax_scales[result.scale_index(i)];
    const float share = clamp((absmax[i] - result.offset) * reciprocal(most), -1.0f, 1.0f);
    result.absmax_codes[i] = static_cast<std::uint8_t>(
        std::lower_bound(middle.begin(), middle.end(), share) - middle.begin());
  }
}

// One block of 16 rows: magnitudes, and codes into [row][column].
void quantize_block(const float* tile, std::int64_t columns, const std::array<float, 15>& middle,
                    float* absmax, std::uint8_t* codes, std::int64_t code_stride) {
  float lo[kLanes], hi[kLanes], inverse[kLanes];
  tile_range(tile, columns, lo, hi);
  for (int lane = 0; lane < kLanes; ++lane) {
    absmax[lane] = -lo[lane] > hi[lane] ? -lo[lane] : hi[lane];
    if (!(hi[lane] == hi[lane])) absmax[lane] = hi[lane];  // NaN: not finite
    inverse[lane] = reciprocal(absmax[lane]);
  }
  for (std::int64_t column = 0; column < columns; ++column) {
    float level[kLanes] = {};
    for (const float bound : middle)
      for (int lane = 0; lane < kLanes; ++lane)
        level[lane] += tile[column * kLanes + lane] * inverse[lane] > bound ? 1.0f : 0.0f;
    for (int lane = 0; lane < kLanes; ++lane)
      codes[lane * code_stride + column] = static_cast<std::uint8_t>(static_cast<int>(level[lane]));
  }
}

}  // namespace

Result<Nf4Codes> quantize_nf4(ThreadTeam& team, const WeightView& w,
                              std::vector<std::int32_t> row_places) {
  const Scheme scheme{4, kNf4Block, ZeroKind::kSymmetric};  // for checks and messages only
  TRIMPOT_TRY_VOID(check_scheme(scheme, w.rows, w.columns));
  Nf4Codes result;
  result.rows = w.rows;
  result.columns = w.columns;
  result.row_places = std::move(row_places);
  const std::int64_t blocks = result.row_blocks(), row_bytes = (w.columns + 1) / 2;
  std::vector<float> absmax(static_cast<std::size_t>(w.rows * blocks));
  result.codes.resize(static_cast<std::size_t>(w.rows * row_bytes));
  const std::array<float, 15> middle = midpoints();
  FirstFault fault;
  team.for_each(w.rows, kLanes, [&](std::int64_t row, std::int64_t end, int) {
    alignas(64) float tile[kNf4Block * kLanes];
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(kLanes * w.columns));
    const int rows = static_cast<int>(end - row);
    LaneParameters lanes{};
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = block * kNf4Block, count = std::min(kNf4Block, w.columns - first);
      float most[kLanes];
      load_tile(w.data + row * w.stride + first, w.stride, rows, count, tile);
      quantize_block(tile, count, middle, most, codes.data() + first, w.columns);
      for (int lane = 0; lane < rows; ++lane) {
        absmax[(row + lane) * blocks + block] = most[lane];
        lanes.scale[lane] = f16_to_f32(f32_to_f16(most[lane]));
      }
      fault.check(lanes, row, rows, block, blocks);
    }
    for (int lane = 0; lane < rows; ++lane)
      pack_row(4, {codes.data() + lane * w.columns, static_cast<std::size_t>(w.columns)},
               result.codes.data() + (row + lane) * row_bytes);
  });
  TRIMPOT_TRY_VOID(fault.status(scheme, w.columns));
  quantize_absmax(absmax, result);
  return result;
}

}  // namespace trimpot
