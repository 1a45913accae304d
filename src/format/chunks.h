// The packed form of 16 rows x 32 columns of codes: see format/matrix.h for the planes.
#pragma once

#include <cstdint>

namespace trimpot {

// Writes 16 rows x 32 columns of codes as the `bits` planes of one chunk; row r starts at
// codes[r * row_stride].
void pack_chunk(int bits, const std::uint8_t* codes, std::int64_t row_stride, std::uint8_t* chunk);

// The code at (row, column) of a chunk.
inline int code_in_chunk(int bits, const std::uint8_t* chunk, int row, int column) {
  const int step = column / 4, byte = row * 4 + column % 4;
  if (bits == 8) return chunk[step * 64 + byte];
  if (bits == 3) {
    if (step < 6) return chunk[step % 3 * 64 + byte] >> (step / 3 * 3) & 7;
    return chunk[(step == 6 ? 0 : 128) + byte] >> 6 | (chunk[64 + byte] >> step & 1) << 2;
  }
  int code = chunk[step / 2 * 64 + byte] >> (step % 2 * 4) & 0x0f;
  if (bits == 5) code |= (chunk[256 + byte] >> step & 1) << 4;
  return code;
}

}  // namespace trimpot
