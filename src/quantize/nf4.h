// NF4 with double quantization as bitsandbytes has it (QLoRA; Dettmers et al. 2023): blocks of 64
// weights share their largest magnitude and hold the nearest of 16 levels; these magnitudes less
// their mean are 8-bit codes of a dynamic map in blocks of 256.
//
// A block lies in one row. Where 64 divides the width these are bitsandbytes' blocks of the
// flattened matrix; elsewhere each row ends with a shorter block and bitsandbytes' differ.
// The matrix is flattened in the order of `row_places` (Nf4Codes).
#pragma once

#include "base/result.h"
#include "format/nf4.h"
#include "quantize/scheme.h"
#include "sys/thread_team.h"

namespace trimpot {

// Nearest by the midpoints between levels, the lower level at a midpoint; a block of zeros has code
// 7, level 0. The mean is rounded once from f64, while bitsandbytes sums in f32: its last bit may
// differ. Errors: weights that are not finite or exceed f16 (row, columns).
Result<Nf4Codes> quantize_nf4(ThreadTeam& team, const WeightView& w,
                              std::vector<std::int32_t> row_places = {});

}  // namespace trimpot
