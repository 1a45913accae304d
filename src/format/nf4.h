// NF4 with double quantization, as bitsandbytes stores it (QLoRA: Dettmers et al. 2023, sections 3
// and appendix E). A weight is level[code] * absmax of its block of 64; the absmax values, less
// their mean, are rounded to an 8-bit floating map with one f32 scale per 256 of them.
#pragma once

#include <cstdint>
#include <vector>

#include "format/grouped.h"

namespace trimpot {

inline constexpr std::int64_t kNf4Block = 64;
inline constexpr std::int64_t kNf4AbsmaxBlock = 256;

struct Nf4Codes {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<std::uint8_t> codes;         // [rows][(columns + 1) / 2], even columns in low nibbles
  std::vector<std::uint8_t> absmax_codes;  // [rows][blocks_per_row]
  std::vector<float> absmax_scales;        // one per 256 blocks, in order
  float absmax_offset = 0;

  std::int64_t blocks_per_row() const { return (columns + kNf4Block - 1) / kNf4Block; }
  // absmax of every block, [rows][blocks_per_row], undone.
  std::vector<float> absmax() const;
  // What kernels compute with: scales rounded to f16.
  GroupedCodes grouped() const;
};

// The 256 values of the 8-bit map, ascending (bitsandbytes' signed dynamic map).
const std::vector<float>& nf4_absmax_map();

}  // namespace trimpot
