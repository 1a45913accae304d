// Quantizes one linear layer by a recipe: columns chosen, ordered robust before weak, parameters
// searched, codes found.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "format/linear.h"
#include "format/nf4.h"
#include "kernels/ops.h"
#include "quantize/hessian.h"
#include "quantize/recipe.h"

namespace trimpot {

struct QuantizedLinear {
  GroupedCodes codes;                 // of the robust columns
  std::optional<Nf4Codes> nf4;        // instead of codes
  std::vector<f16> weak;              // [rows][k]
  std::vector<std::int32_t> columns;  // input channel of each column, weak ones last
  std::int64_t rows = 0;
  std::int64_t weak_count = 0;

  std::span<const std::int32_t> weak_columns() const {
    return std::span(columns).last(static_cast<std::size_t>(weak_count));
  }
  // For the next layers' inputs: the layer as it will run, reading channels in the original order.
  // `order` shares gathered inputs between layers that read the same columns.
  Result<Linear> linear(ColumnOrder& robust_order, ColumnOrder& weak_order) const;
};

// All channels, those in `weak` last (both ascending).
std::vector<std::int32_t> weak_last(std::span<const std::int32_t> weak, std::int64_t columns);

// lambda_j ||dW_:,j||^2 (QEFT's equation 3) with dW of rounding by the recipe's bits, groups and
// search: the top k channels. With the search of clipping instead of min-max, OWQ at 4 bits gives
// perplexity 26.17 instead of 26.25 on the default model.
Result<std::vector<std::int32_t>> costliest_columns(Compute& compute, const Recipe& recipe,
                                                    std::span<const float> w, std::int64_t rows,
                                                    std::span<const double> diagonal);

// `w` [rows][columns.size()] in the original order. `factor` is that of the Hessian in the order of
// `columns` (null: round to nearest). `row_places`: for NF4 (format/nf4.h). Errors: weights that
// cannot be quantized.
Result<QuantizedLinear> quantize_linear(Compute& compute, const Recipe& recipe,
                                        std::span<const float> w, std::int64_t rows,
                                        std::vector<std::int32_t> columns, std::int64_t weak_count,
                                        const InverseFactor* factor,
                                        std::vector<std::int32_t> row_places = {});

// Rows in another order: new row i is old row order[i].
void permute_rows(QuantizedLinear& linear, std::span<const std::int32_t> order);

}  // namespace trimpot
