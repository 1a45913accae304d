#include "quantize/optq.h"

#include <algorithm>
#include <utility>

#include "quantize/rtn.h"
#include "quantize/tile.h"

namespace trimpot {

using namespace quantize;

namespace {

// Columns between updates of the rest. The paper has 128, for GPUs; the result differs by rounding
// only. A layer of SmolLM2 takes 170 ms with 128, 75 with 64, 55 with 32 on two cores, because the
// product with the rest is an AVX-512 kernel and the columns of a block are not. Groups are
// multiples of it, so a group begins where a block does.
constexpr std::int64_t kBlock = 32;
constexpr int kStripRows =
    32;  // 6 strips of the 192 rows of k and v: two threads share them evenly
constexpr int kTiles = kStripRows / kLanes;

// What a thread needs for its strip.
struct Scratch {
  AlignedBuffer<float> rows;               // act_order: the strip with its columns in that order
  AlignedBuffer<float> tile;               // 16 rows of a block or of a whole group
  AlignedBuffer<float> errors;             // [column of the block][row of the strip]: -e
  AlignedBuffer<std::uint8_t> codes;       // [row][column], a byte each
  std::vector<LaneParameters> parameters;  // [tile][group]
};

// One call of optq(): everything that the strips share.
struct Task {
  const InverseFactor& factor;
  const Kernels& kernels;
  float* w;
  GroupParameters& parameters;  // found on the way if `dynamic`
  bool dynamic;
  std::uint8_t* packed;
  FirstFault& fault;
};

// Rounds a block of 16 rows, `tile` [count][16] (which becomes the dequantized values), and gives
// -e for each. `lanes(position)` are the parameters of the column at this position.
template <typename Lanes>
void round_block(const InverseFactor& factor, std::int64_t begin, std::int64_t count,
                 const Lanes& lanes, float* tile, float* errors, std::uint8_t* codes,
                 std::int64_t code_stride) {
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t position = begin + j;
    const float* u = factor.row(position) + begin;  // u[i] = U[begin + i][position] for i < j
    float w[kLanes], level[kLanes], value[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) w[lane] = tile[j * kLanes + lane];
    for (std::int64_t i = 0; i < j; ++i)
      for (int lane = 0; lane < kLanes; ++lane) w[lane] += errors[i * kStripRows + lane] * u[i];
    const LaneParameters& parameters = lanes(position);
    parameters.quantize(w, level, value);
    for (int lane = 0; lane < kLanes; ++lane) {
      errors[j * kStripRows + lane] = (value[lane] - w[lane]) / u[j];
      tile[j * kLanes + lane] = value[lane];
    }
    std::uint8_t* to = codes + factor.order()[position];
    for (int lane = 0; lane < kLanes; ++lane)
      to[lane * code_stride] =
          static_cast<std::uint8_t>(static_cast<int>(level[lane] - parameters.low[lane]));
  }
}

// Rows row .. end - 1, at most 32, from the first column to the last.
void quantize_strip(const Task& task, Scratch& scratch, std::int64_t row, std::int64_t end) {
  const InverseFactor& factor = task.factor;
  const std::int64_t columns = factor.columns(), robust = factor.robust();
  const Scheme& scheme = task.parameters.scheme;
  const std::int64_t each = scheme.group_columns(robust), groups = scheme.groups(robust);
  const auto order = factor.order();
  const std::int64_t rows = end - row;
  const auto tile_rows = [&](int tile) {
    return static_cast<int>(std::clamp<std::int64_t>(rows - tile * kLanes, 0, kLanes));
  };
  float* original = task.w + row * columns;
  for (std::int64_t j = 0; j < robust; ++j)
    if (factor.dead(j))
      for (std::int64_t i = 0; i < rows; ++i) original[i * columns + j] = 0;
  float* strip = original;
  if (factor.reordered()) {
    strip = scratch.rows.data();
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        strip[i * columns + j] = original[i * columns + order[j]];
  }
  if (!task.dynamic)
    for (int tile = 0; tile < kTiles; ++tile)
      for (std::int64_t group = 0; group < groups; ++group)
        scratch.parameters[tile * groups + group].load(task.parameters, row + tile * kLanes,
                                                       tile_rows(tile), group);

  for (std::int64_t begin = 0, stop; begin < robust; begin = stop) {
    const std::int64_t group = begin / each, group_end = std::min((group + 1) * each, robust);
    stop = std::min(begin + kBlock, robust);
    const std::int64_t count = stop - begin;
    for (int tile = 0; tile < kTiles; ++tile) {
      const int lanes_used = tile_rows(tile);
      const std::int64_t first_row = row + tile * kLanes;
      const float* from = strip + tile * kLanes * columns + begin;
      LaneParameters* parameters = scratch.parameters.data() + tile * groups;
      if (task.dynamic && begin == group * each) {
        float lo[kLanes], hi[kLanes];
        load_tile(from, columns, lanes_used, group_end - begin, scratch.tile.data());
        tile_range(scratch.tile.data(), group_end - begin, lo, hi);
        parameters[group].set_range(scheme, lo, hi);
        task.fault.check(parameters[group], first_row, lanes_used, group, groups);
        parameters[group].store(task.parameters, first_row, lanes_used, group);
      }
      load_tile(from, columns, lanes_used, count, scratch.tile.data());
      const auto lanes = [&](std::int64_t position) -> const LaneParameters& {
        return parameters[order[position] / each];
      };
      round_block(factor, begin, count, lanes, scratch.tile.data(),
                  scratch.errors.data() + tile * kLanes,
                  scratch.codes.data() + tile * kLanes * robust, robust);
      for (int lane = 0; lane < lanes_used; ++lane)
        for (std::int64_t j = 0; j < count; ++j)
          strip[(tile * kLanes + lane) * columns + begin + j] = scratch.tile[j * kLanes + lane];
    }
    if (stop < columns)
      task.kernels.multiply({scratch.errors.data(), 1, kStripRows},
                            {factor.row(begin) + stop, Storage::kF32, 16, factor.stride()}, rows,
                            columns - stop, count, strip + stop, columns, true);
  }
  if (factor.reordered())
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        original[i * columns + order[j]] = strip[i * columns + j];
  const std::int64_t row_bytes = (robust * scheme.bits + 7) / 8;
  for (std::int64_t i = 0; i < rows; ++i)
    pack_row(scheme.bits, {scratch.codes.data() + i * robust, static_cast<std::size_t>(robust)},
             task.packed + (row + i) * row_bytes);
}

Result<GroupedCodes> run(Compute& compute, const InverseFactor& factor, std::int64_t rows, float* w,
                         GroupParameters parameters, bool dynamic) {
  const Scheme scheme = parameters.scheme;
  const std::int64_t robust = factor.robust(), groups = scheme.groups(robust);
  const std::int64_t row_bytes = (robust * scheme.bits + 7) / 8;
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(rows * row_bytes));
  std::vector<Scratch> scratch(static_cast<std::size_t>(compute.team.size()));
  FirstFault fault;
  const Task task{factor, compute.kernels, w, parameters, dynamic, packed.data(), fault};
  const std::int64_t tile_columns = std::max(kBlock, scheme.group_columns(robust));
  compute.team.for_each(rows, kStripRows, [&](std::int64_t row, std::int64_t end, int member) {
    Scratch& own = scratch[member];
    if (own.tile.empty()) {
      if (factor.reordered()) own.rows.resize(kStripRows * factor.columns());
      own.tile.resize(tile_columns * kLanes);
      own.errors.resize(kBlock * kStripRows);
      own.codes.resize(kStripRows * robust);
      own.parameters.resize(kTiles * groups);
    }
    quantize_strip(task, own, row, end);
  });
  TRIMPOT_TRY_VOID(fault.status(scheme, robust));
  GroupedCodes result = std::move(parameters).into_codes();
  result.codes = std::move(packed);
  return result;
}

}  // namespace

Result<GroupedCodes> optq(Compute& compute, const InverseFactor& factor, std::int64_t rows,
                          float* w, const Scheme& scheme) {
  TRIMPOT_TRY_VOID(check_scheme(scheme, rows, factor.columns()));
  if (factor.reordered()) {
    const WeightView robust{w, rows, factor.robust(), factor.columns()};
    TRIMPOT_TRY(GroupParameters parameters, min_max_parameters(compute.team, robust, scheme));
    return run(compute, factor, rows, w, std::move(parameters), false);
  }
  return run(compute, factor, rows, w, GroupParameters::sized(scheme, rows, factor.robust()), true);
}

Result<GroupedCodes> optq(Compute& compute, const InverseFactor& factor, std::int64_t rows,
                          float* w, GroupParameters parameters) {
  if (parameters.rows != rows || parameters.columns != factor.robust())
    return fail("parameters for {} rows of {} columns where the matrix has {} of {}",
                parameters.rows, parameters.columns, rows, factor.robust());
  return run(compute, factor, rows, w, std::move(parameters), false);
}

}  // namespace trimpot
