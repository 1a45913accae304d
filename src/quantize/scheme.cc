#include "quantize/scheme.h"

#include <limits>
#include <utility>

namespace trimpot {

Status check_scheme(const Scheme& scheme, std::int64_t rows, std::int64_t columns) {
  if (scheme.bits != 3 && scheme.bits != 4 && scheme.bits != 8)
    return fail("{} bits: integers have 3, 4 or 8", scheme.bits);
  if (scheme.group_size != kWholeRow && (scheme.group_size <= 0 || scheme.group_size % 32 != 0))
    return fail(
        "a group size of {}: take a multiple of 32 (32, 64, 128, 256), or -1 for one group per row",
        scheme.group_size);
  if (rows <= 0 || columns <= 0 || rows > std::numeric_limits<std::int64_t>::max() / 8 / columns)
    return fail("a matrix of {} rows and {} columns cannot be quantized", rows, columns);
  return {};
}

GroupParameters GroupParameters::sized(const Scheme& scheme, std::int64_t rows,
                                       std::int64_t columns) {
  GroupParameters parameters{scheme, rows, columns, {}, {}, {}};
  const auto count = static_cast<std::size_t>(rows * parameters.groups());
  parameters.scales.resize(count);
  if (scheme.zeros == ZeroKind::kInteger) parameters.zeros.resize(count);
  if (scheme.zeros == ZeroKind::kOffset) parameters.offsets.resize(count);
  return parameters;
}

GroupedCodes GroupParameters::into_codes() && {
  GroupedCodes codes;
  codes.bits = scheme.bits;
  codes.zero_point = scheme.zeros == ZeroKind::kSymmetric ? 1 << (scheme.bits - 1) : 0;
  codes.rows = rows;
  codes.columns = columns;
  codes.group_size = scheme.group_columns(columns);
  codes.scales = std::move(scales);
  codes.zeros = std::move(zeros);
  codes.offsets = std::move(offsets);
  codes.codes.resize(static_cast<std::size_t>(rows * codes.view().row_bytes()));
  return codes;
}

}  // namespace trimpot
