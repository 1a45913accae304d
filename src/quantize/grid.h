// Search of clipping: per row and group the range [p lo, p hi] with the least squared error of the
// weights, p = 1.00, 0.99, ... 0.50 (QEFT, section 3.1: "grid search for each group to find the
// quantization parameters that minimize the squared error of weights after truncation").
#pragma once

#include "base/result.h"
#include "quantize/scheme.h"
#include "sys/thread_team.h"

namespace trimpot {

// For each p the parameters are those of rtn.h for the range [p lo, p hi], rounded to f16 and whole
// numbers before the error is taken; the largest p wins ties. Errors are summed in f32 with
// quotients w * (1 / s) instead of w / s, which moves a code by one only where w lies within an ulp
// of the middle between two. Errors: as min_max_parameters().
Result<GroupParameters> grid_parameters(ThreadTeam& team, const WeightView& w,
                                        const Scheme& scheme);

}  // namespace trimpot
