#include "quantize/columns.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/tile.h"
#include "sys/aligned_buffer.h"

namespace trimpot {

using namespace quantize;

std::vector<double> column_errors(ThreadTeam& team, const WeightView& w,
                                  const GroupParameters& parameters) {
  // A thread has 32 columns, which lie in one group, and all their rows: no sum is split.
  constexpr std::int64_t kChunk = 32;
  const std::int64_t each = parameters.scheme.group_columns(w.columns);
  std::vector<double> errors(static_cast<std::size_t>(w.columns));
  team.for_each(w.columns, kChunk, [&](std::int64_t begin, std::int64_t end, int) {
    alignas(64) float tile[kChunk * kLanes];
    LaneParameters lanes;
    float level[kLanes], value[kLanes];
    for (std::int64_t row = 0; row < w.rows; row += kLanes) {
      const int rows = static_cast<int>(std::min<std::int64_t>(kLanes, w.rows - row));
      load_tile(w.data + row * w.stride + begin, w.stride, rows, end - begin, tile);
      lanes.load(parameters, row, rows, begin / each);
      for (std::int64_t column = begin; column < end; ++column) {
        const float* from = tile + (column - begin) * kLanes;
        lanes.quantize(from, level, value);
        double sum = 0;
        for (int lane = 0; lane < rows; ++lane) {
          const double difference =
              static_cast<double>(from[lane]) - static_cast<double>(value[lane]);
          sum += difference * difference;
        }
        errors[static_cast<std::size_t>(column)] += sum;
      }
    }
  });
  return errors;
}

std::vector<double> column_costs(std::span<const double> diagonal, std::span<const double> errors) {
  std::vector<double> costs(errors.begin(), errors.end());
  for (std::size_t j = 0; j < costs.size(); ++j) costs[j] *= diagonal[j];
  return costs;
}

Result<std::vector<std::int32_t>> top_columns(std::span<const double> values, std::int64_t count) {
  const auto columns = static_cast<std::int64_t>(values.size());
  if (count < 0 || count > columns)
    return fail("{} weak columns of a matrix that has {}: take fewer", count, columns);
  for (std::int64_t j = 0; j < columns; ++j)
    if (!std::isfinite(values[static_cast<std::size_t>(j)]))
      return fail("the sensitivity of input column {} is not a finite number", j);
  std::vector<std::int32_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  const auto higher = [&](std::int32_t a, std::int32_t b) {
    const double x = values[static_cast<std::size_t>(a)], y = values[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + count, order.end(), higher);
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

Result<std::vector<std::int32_t>> global_columns(std::span<const std::vector<double>> diagonals,
                                                 std::int64_t count) {
  if (diagonals.empty()) return fail("no layer to choose weak columns by");
  std::vector<double> sums(diagonals[0].size());
  for (const std::vector<double>& diagonal : diagonals) {
    if (diagonal.size() != sums.size())
      return fail("layers with inputs of {} and {} columns cannot share weak columns", sums.size(),
                  diagonal.size());
    TRIMPOT_TRY(const std::vector<std::int32_t> top, top_columns(diagonal, count));
    const double mean = std::accumulate(diagonal.begin(), diagonal.end(), 0.0) /
                        static_cast<double>(diagonal.size());
    if (!(mean > 0)) return fail("all inputs of a layer are 0: take other calibration text");
    for (const std::int32_t column : top)
      sums[static_cast<std::size_t>(column)] += diagonal[static_cast<std::size_t>(column)] / mean;
  }
  return top_columns(sums, count);
}

}  // namespace trimpot
