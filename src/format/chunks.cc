#include "format/chunks.h"

#include <cstring>

#include "format/matrix.h"

namespace trimpot {

void pack_chunk(int bits, const std::uint8_t* codes, std::int64_t row_stride, std::uint8_t* chunk) {
  for (int row = 0; row < kTileRows; ++row) {
    const std::uint8_t* from = codes + row * row_stride;
    std::uint8_t* to = chunk + row * 4;
    if (bits == 8) {
      for (int step = 0; step < 8; ++step) std::memcpy(to + step * 64, from + step * 4, 4);
      continue;
    }
    std::uint32_t four[8];  // the bytes of each step
    std::memcpy(four, from, sizeof four);
    if (bits == 3) {
      std::uint32_t planes[3];
      for (int plane = 0; plane < 3; ++plane)
        planes[plane] = (four[plane] & 0x07070707u) | (four[plane + 3] & 0x07070707u) << 3;
      planes[0] |= (four[6] & 0x03030303u) << 6;
      planes[2] |= (four[7] & 0x03030303u) << 6;
      planes[1] |= (four[6] & 0x04040404u) << 4 | (four[7] & 0x04040404u) << 5;
      for (int plane = 0; plane < 3; ++plane) std::memcpy(to + plane * 64, &planes[plane], 4);
      continue;
    }
    for (int plane = 0; plane < 4; ++plane) {
      const std::uint32_t both =
          (four[2 * plane] & 0x0f0f0f0fu) | (four[2 * plane + 1] & 0x0f0f0f0fu) << 4;
      std::memcpy(to + plane * 64, &both, 4);
    }
    if (bits == 5) {
      std::uint32_t fifth = 0;
      for (int step = 0; step < 8; ++step) fifth |= (four[step] >> 4 & 0x01010101u) << step;
      std::memcpy(to + 256, &fifth, 4);
    }
  }
}

}  // namespace trimpot
