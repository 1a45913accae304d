// What a tuned group's numbers become, for the 16 rows of a tile side by side, so that conversions
// and divisions are vectors. With w = s (q - z), learned values and the base's alone decide:
//   s' = the learned scale,  m' = f16(s' (m / s))   or   f16(-s' z') where zero-points are learned
// Formats that store zeros instead of offsets m keep z, or store z' itself. Groups whose scale is
// zero stay as they are, and so do, where zero-points are learned, those whose z is beyond +-32768:
// f16 would not hold it.
#pragma once

#include <cstddef>

#include "base/half.h"
#include "format/matrix.h"
#include "kernels/kernels.h"

namespace trimpot {

// For widen_f16() and narrow_f16() of many numbers: the CPU's instructions take a fifth of the time
// of base/half.h, and give the same bits. Found once: asking a virtual CPU what it has takes long.
const Kernels& converters();

// One group of a tile's 16 rows, in packed order.
struct GroupLanes {
  const f16* scales;
  const f16* centres;  // null: the format has none
  bool is_zero;        // centres are zeros, not offsets
};
// From those of a whole matrix; `index` is a multiple of 16.
GroupLanes lanes_at(const GroupLanes& all, std::size_t index);

// The rule above for `count` lanes, those of whole groups that lie one after the other. `zeros`
// null: zero-points are not learned. `to_centres` is not looked at where the base has none. Returns
// whether all results are finite.
bool commit_lanes(const GroupLanes& base, std::size_t count, const f16* scales, const f16* zeros,
                  f16* to_scales, f16* to_centres);
// Rows in packed order from those of a file: row[0..15] are `groups` numbers each (null: a row
// beyond the matrix's, which becomes zeros), `to` is [groups][16].
void pack_groups(const f16* const (&row)[kTileRows], std::int64_t groups, f16* to);
// f16(s theta)
void scale_lanes(const f16* base, const float* factors, f16* out);
// z' = f16(z + shift); 0 where the group stays as it is.
void shift_lanes(const GroupLanes& base, const float* shifts, f16* out);

// The kernel's gradients of one group of 16 rows into those of the master values. With offsets:
//   d theta = s d_scale + m d_offset     s, m at theta = 1 (m at the current zero-point)
// With zeros (d_scale is that of z = 0): d theta = s (d_scale - z d_offset). Both: d z = -s'
// d_offset. Null: `zeros` (z') not learned; d_offset not there; d_theta or d_zero not wanted.
void add_lane_gradients(const GroupLanes& base, const f16* scales, const f16* zeros,
                        const float* d_scale, const float* d_offset, float* d_theta, float* d_zero);

}  // namespace trimpot
