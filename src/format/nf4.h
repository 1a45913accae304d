// NF4 with double quantization as bitsandbytes stores it (QLoRA; Dettmers et al. 2023): a weight is
// level[code] * absmax of its block of 64; the absmax values, less their mean, are 8-bit codes of a
// dynamic map with one f32 scale per 256 of them. A block lies in one row.
//
// The blocks of 256 run across rows, so they depend on the order of rows: bitsandbytes sees that of
// PyTorch, while llama.cpp's files hold the rows of q and k as rotary pairs. `row_places` undoes
// that. (SmolLM2-135M in blocks of the file's order instead: perplexity 29.002 against 28.958.)
#pragma once

#include <array>
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
  std::vector<std::uint8_t> absmax_codes;  // [rows][blocks per row]
  std::vector<float> absmax_scales;        // per 256 of these, across rows in the order of places
  std::vector<std::int32_t> row_places;    // [rows], or empty: rows count as they lie
  float offset = 0;                        // the mean of the magnitudes

  std::int64_t row_blocks() const { return (columns + kNf4Block - 1) / kNf4Block; }
  // Block of 256 of the magnitude at `index` (row-major).
  std::size_t scale_index(std::int64_t index) const {
    if (row_places.empty()) return static_cast<std::size_t>(index / kNf4AbsmaxBlock);
    const std::int64_t place = row_places[static_cast<std::size_t>(index / row_blocks())];
    return static_cast<std::size_t>((place * row_blocks() + index % row_blocks()) /
                                    kNf4AbsmaxBlock);
  }
  // absmax of block `index` (row-major): map[code] * scale + offset, in f32.
  float absmax(std::int64_t index) const;
};

// As grouped codes: book kNf4, groups of 64, scales rounded to f16.
GroupedCodes nf4_grouped(Nf4Codes nf4);

// bitsandbytes' signed dynamic map of 8 bits (Dettmers 2015), ascending: a sign, a power of ten
// from 1e-6 to 1, and the midpoints of 1, 2, 4 ... 64 even steps between 0.1 and 1; and 0 and 1.
const std::array<float, 256>& dynamic_map();

}  // namespace trimpot
