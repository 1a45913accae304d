// How a linear layer's input columns rank by sensitivity to quantization and by gradient (QEFT,
// Figure 5 and Section 4): the columns worth keeping in f16 are the ones worth tuning.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops.h"
#include "model/forward.h"
#include "quantize/scheme.h"

namespace trimpot {

// By input channel, in the original order of a model that was not reordered.
struct ColumnStudy {
  std::vector<double> sensitivity;  // lambda_j ||dW_:,j||^2, eq. 3: dW of min-max rounding
  std::vector<double> gradient;     // ||dL/dW_:,j||^2, L the mean loss of the text
};

// One pass forward and backward over windows of one text. Errors: layer `linear` has no weights in
// plain numbers, or does not exist; a loss that is not finite; none at all.
Result<ColumnStudy> study_columns(Compute& compute, const Model& model,
                                  std::span<const std::vector<TokenId>> windows, std::size_t linear,
                                  const Scheme& scheme);

}  // namespace trimpot
