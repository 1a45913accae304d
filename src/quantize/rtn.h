// Round to nearest: each weight by itself, with the range of its group.
//
// Per row and group, in f32, rounding to nearest with ties to even:
//     lo = min(w, 0)    hi = max(w, 0)    s = f16((hi - lo) / (2^b - 1))
//     z = clamp(round(-lo / s), 0, 2^b - 1)      q = clamp(round(w / s) + z, 0, 2^b - 1)
// The rounded s is what z and q are computed with. Symmetric: z = 2^(b-1) and
// s = f16(max|w| / (2^(b-1) - 1)). Offsets: m = f16(lo), q = clamp(round((w - m) / s), 0, 2^b - 1).
// A group of zeros gets s = 0 and q = z, which dequantizes to 0.
#pragma once

#include "base/result.h"
#include "format/grouped.h"
#include "quantize/scheme.h"
#include "sys/thread_team.h"

namespace trimpot {

// Errors: check_scheme()'s; weights that are not finite, or whose scale exceeds f16 (row, columns).
Result<GroupParameters> min_max_parameters(ThreadTeam& team, const WeightView& w,
                                           const Scheme& scheme);

// Rounds with parameters found before, for these rows and columns.
GroupedCodes round_to_nearest(ThreadTeam& team, const WeightView& w, GroupParameters parameters);

// min_max_parameters(), then round_to_nearest().
Result<GroupedCodes> quantize_rtn(ThreadTeam& team, const WeightView& w, const Scheme& scheme);

}  // namespace trimpot
