// How a matrix is quantized (bits, groups, kind of zeros) and the numbers found for its groups.
// This room works on one matrix at a time and knows no model.
#pragma once

#include <cstdint>
#include <vector>

#include "base/half.h"
#include "base/result.h"
#include "format/grouped.h"

namespace trimpot {

// Rows of floats, `stride` floats apart: with weak columns last, the robust ones are a view of the
// first columns.
struct WeightView {
  const float* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;
};

enum class ZeroKind : std::uint8_t {
  kInteger,    // w = s (q - z), z a whole number per group
  kSymmetric,  // w = s (q - 2^(bits - 1)), s = max|w| / (2^(bits - 1) - 1): +-max|w| are exact
  kOffset,     // w = s q + m, m any f16
};

inline constexpr std::int64_t kWholeRow = -1;

struct Scheme {
  int bits = 4;  // 3, 4 or 8
  std::int64_t group_size =
      128;  // a multiple of 32, or kWholeRow: one group per row (channel-wise)
  ZeroKind zeros = ZeroKind::kInteger;

  // Columns per group in a matrix of `columns` columns; the last group may have fewer.
  std::int64_t group_columns(std::int64_t columns) const {
    return group_size == kWholeRow || group_size > columns ? columns : group_size;
  }
  std::int64_t groups(std::int64_t columns) const {
    const std::int64_t each = group_columns(columns);
    return (columns + each - 1) / each;
  }
};

// Platypus' base: 8 bits, one scale per row, s = max|w| / 127.
inline constexpr Scheme kInt8Scheme{8, kWholeRow, ZeroKind::kSymmetric};

// Errors: bits or a group size that no format has; a matrix without elements.
Status check_scheme(const Scheme& scheme, std::int64_t rows, std::int64_t columns);

// Scales and zeros of all groups, [rows][groups]; `zeros` with kInteger, `offsets` with kOffset.
struct GroupParameters {
  Scheme scheme;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<f16> scales;
  std::vector<f16> zeros;
  std::vector<f16> offsets;

  // With room for all groups.
  static GroupParameters sized(const Scheme& scheme, std::int64_t rows, std::int64_t columns);
  std::int64_t groups() const { return scheme.groups(columns); }
  // Codes (all 0 so far) with these parameters.
  GroupedCodes into_codes() &&;
};

}  // namespace trimpot
