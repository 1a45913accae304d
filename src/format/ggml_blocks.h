// ggml's block types of 32 elements: where codes, scale (d) and offset (m) lie in a block.
// Facts from llama.cpp's ggml/src/ggml-common.h and ggml-quants.c.
//   Q4_0 18 bytes: d, 16 x nibbles           w = d (q - 8)       low nibbles are elements 0..15,
//   Q4_1 20 bytes: d, m, 16 x nibbles        w = d q + m         high nibbles 16..31
//   Q5_0 22 bytes: d, 4 x high bits, nibbles w = d (q - 16)      bit j of the u32 is element j's
//   Q5_1 24 bytes: d, m, 4 x high bits, nibbles w = d q + m      fifth bit
//   Q8_0 34 bytes: d, 32 x int8              w = d q             stored here as q + 128
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "tensor/element_type.h"

namespace trimpot {

struct BlockFormat {
  int bits;
  int zero_point;
  int scale_offset;   // bytes from the start of the block to d
  int offset_offset;  // to m, -1: none
  int high_offset;    // to the fifth bits, -1: none
  int codes_offset;
  int bytes;
};

inline constexpr int kBlockElements = 32;

// bits = 0 for types without blocks.
constexpr BlockFormat block_format(ElementType type) {
  switch (type) {
    case ElementType::kQ4_0:
      return {4, 8, 0, -1, -1, 2, 18};
    case ElementType::kQ4_1:
      return {4, 0, 0, 2, -1, 4, 20};
    case ElementType::kQ5_0:
      return {5, 16, 0, -1, 2, 6, 22};
    case ElementType::kQ5_1:
      return {5, 0, 0, 2, 4, 8, 24};
    case ElementType::kQ8_0:
      return {8, 128, 0, -1, -1, 2, 34};
    default:
      return {0, 0, 0, -1, -1, 0, 0};
  }
}
static_assert(block_format(ElementType::kQ4_1).bytes ==
              element_type_info(ElementType::kQ4_1).block_bytes);
static_assert(block_format(ElementType::kQ5_0).bytes ==
              element_type_info(ElementType::kQ5_0).block_bytes);

inline f16 block_f16(const std::byte* block, int offset) {
  f16 value;
  std::memcpy(&value, block + offset, sizeof value);
  return value;
}

// The 32 unsigned codes of a block.
inline void unpack_block(const BlockFormat& format, const std::byte* block, std::uint8_t* codes) {
  const auto* packed = reinterpret_cast<const std::uint8_t*>(block) + format.codes_offset;
  if (format.bits == 8) {
    for (int j = 0; j < 32; ++j) codes[j] = packed[j] ^ 0x80u;  // int8 q -> u8 q + 128
    return;
  }
  for (int j = 0; j < 16; ++j) {
    codes[j] = packed[j] & 0x0fu;
    codes[j + 16] = packed[j] >> 4;
  }
  if (format.high_offset < 0) return;
  std::uint32_t high;
  std::memcpy(&high, block + format.high_offset, sizeof high);
  for (int j = 0; j < 32; ++j) codes[j] |= static_cast<std::uint8_t>((high >> j & 1u) << 4);
}

}  // namespace trimpot
