#include "quantize/layer_quantizer.h"

#include <algorithm>
#include <numeric>

#include "quantize/columns.h"
#include "quantize/grid.h"
#include "quantize/nf4.h"
#include "quantize/optq.h"
#include "quantize/rtn.h"

namespace trimpot {
namespace {

template <typename T>
void permute(std::vector<T>& values, std::int64_t rows, std::span<const std::int32_t> order) {
  if (values.empty()) return;
  const auto width = static_cast<std::int64_t>(values.size()) / rows;
  std::vector<T> moved(values.size());
  for (std::int64_t row = 0; row < rows; ++row)
    std::copy_n(values.begin() + order[static_cast<std::size_t>(row)] * width, width,
                moved.begin() + row * width);
  values = std::move(moved);
}

}  // namespace

Result<Linear> QuantizedLinear::linear(ColumnOrder& robust_order, ColumnOrder& weak_order) const {
  Linear linear;
  linear.columns = static_cast<std::int64_t>(columns.size());
  if (nf4) {
    TRIMPOT_TRY(linear.weight, Matrix::pack_groups(nf4_grouped(*nf4).view()));
  } else {
    TRIMPOT_TRY(linear.weight, Matrix::pack_groups(codes.view()));
  }
  if (weak_count == 0) return linear;
  TRIMPOT_TRY(linear.weak,
              Matrix::pack(ElementType::kF16, rows, weak_count, std::as_bytes(std::span(weak))));
  const auto robust = static_cast<std::size_t>(linear.columns - weak_count);
  const std::vector<std::int32_t> first(columns.begin(),
                                        columns.begin() + static_cast<std::ptrdiff_t>(robust));
  const auto last = weak_columns();
  if (!weak_order ||
      !std::equal(last.begin(), last.end(), weak_order->begin(), weak_order->end()) ||
      first != *robust_order) {
    robust_order = std::make_shared<const std::vector<std::int32_t>>(first);
    weak_order = std::make_shared<const std::vector<std::int32_t>>(last.begin(), last.end());
  }
  linear.weight_columns = robust_order;
  linear.weak_columns = weak_order;
  return linear;
}

std::vector<std::int32_t> weak_last(std::span<const std::int32_t> weak, std::int64_t columns) {
  std::vector<bool> is_weak(static_cast<std::size_t>(columns));
  for (const std::int32_t column : weak) is_weak[static_cast<std::size_t>(column)] = true;
  std::vector<std::int32_t> order;
  for (const bool pass : {false, true})
    for (std::int32_t column = 0; column < columns; ++column)
      if (is_weak[static_cast<std::size_t>(column)] == pass) order.push_back(column);
  return order;
}

Result<std::vector<std::int32_t>> costliest_columns(Compute& compute, const Recipe& recipe,
                                                    std::span<const float> w, std::int64_t rows,
                                                    std::span<const double> diagonal) {
  const auto columns = static_cast<std::int64_t>(diagonal.size());
  const WeightView view{w.data(), rows, columns, columns};
  GroupParameters parameters;
  if (recipe.search == Search::kGrid) {
    TRIMPOT_TRY(parameters, grid_parameters(compute.team, view, recipe.scheme));
  } else {
    TRIMPOT_TRY(parameters, min_max_parameters(compute.team, view, recipe.scheme));
  }
  const std::vector<double> errors = column_errors(compute.team, view, parameters);
  return top_columns(column_costs(diagonal, errors), recipe.weak_columns);
}

Result<QuantizedLinear> quantize_linear(Compute& compute, const Recipe& recipe,
                                        std::span<const float> w, std::int64_t rows,
                                        std::vector<std::int32_t> columns, std::int64_t weak_count,
                                        const InverseFactor* factor,
                                        std::vector<std::int32_t> row_places) {
  const auto width = static_cast<std::int64_t>(columns.size());
  const std::int64_t robust = width - weak_count;
  QuantizedLinear result;
  result.rows = rows;
  result.weak_count = weak_count;
  std::vector<float> ordered(w.size());
  compute.team.for_each(rows, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t c = 0; c < width; ++c)
        ordered[static_cast<std::size_t>(row * width + c)] =
            w[static_cast<std::size_t>(row * width + columns[static_cast<std::size_t>(c)])];
  });
  result.columns = std::move(columns);
  const WeightView view{ordered.data(), rows, robust, width};
  if (recipe.target == Target::kNf4) {
    TRIMPOT_TRY(result.nf4, quantize_nf4(compute.team, view, std::move(row_places)));
    return result;
  }
  if (factor != nullptr && recipe.search == Search::kMinMax) {
    TRIMPOT_TRY(result.codes, optq(compute, *factor, rows, ordered.data(), recipe.scheme));
  } else {
    GroupParameters parameters;
    if (recipe.search == Search::kGrid) {
      TRIMPOT_TRY(parameters, grid_parameters(compute.team, view, recipe.scheme));
    } else {
      TRIMPOT_TRY(parameters, min_max_parameters(compute.team, view, recipe.scheme));
    }
    if (factor != nullptr) {
      TRIMPOT_TRY(result.codes,
                  optq(compute, *factor, rows, ordered.data(), std::move(parameters)));
    } else {
      result.codes = round_to_nearest(compute.team, view, std::move(parameters));
    }
  }
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t c = robust; c < width; ++c)
      result.weak.push_back(f32_to_f16(ordered[static_cast<std::size_t>(row * width + c)]));
  return result;
}

void permute_rows(QuantizedLinear& linear, std::span<const std::int32_t> order) {
  permute(linear.codes.codes, linear.rows, order);
  permute(linear.codes.scales, linear.rows, order);
  permute(linear.codes.zeros, linear.rows, order);
  permute(linear.codes.offsets, linear.rows, order);
  permute(linear.weak, linear.rows, order);
}

}  // namespace trimpot
