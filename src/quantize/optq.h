// OPTQ (GPTQ; Frantar et al. 2022): columns are rounded one after another, and what rounding one
// changes in the layer's output is made up for by those that come after it,
//     e_j = (w_j - w^_j) / U_jj        w_i -= e_j U_ji  for all i > j
// with the factor of hessian.h. Inside a block of 32 columns this goes column by column, the
// columns beyond it are updated once per block.
#pragma once

#include "base/result.h"
#include "format/grouped.h"
#include "kernels/ops.h"
#include "quantize/hessian.h"
#include "quantize/scheme.h"

namespace trimpot {

// Quantizes the robust columns of w [rows][factor.columns()]. Afterwards w holds the dequantized
// values of these and the updated weak columns. Columns keep their places, whatever order they were
// quantized in; the result has factor.robust() columns, and its last group may be shorter.
//
// A group's parameters are the range (rtn.h) of its weights when it is reached, with all updates so
// far. With act_order, where a group is never reached as a whole, they are found beforehand.
// Errors: those of check_scheme(), weights that are not finite or too large (row and columns).
Result<GroupedCodes> optq(Compute& compute, const InverseFactor& factor, std::int64_t rows,
                          float* w, const Scheme& scheme);

// With parameters found beforehand, for the robust columns (grid.h or rtn.h, from the original
// weights). Errors: parameters of another shape.
Result<GroupedCodes> optq(Compute& compute, const InverseFactor& factor, std::int64_t rows,
                          float* w, GroupParameters parameters);

}  // namespace trimpot
