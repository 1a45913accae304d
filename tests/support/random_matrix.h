// Packed matrices with random contents for the kernels' tests.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "base/half.h"
#include "format/matrix.h"
#include "support/quantizers.h"
#include "support/random.h"

namespace trimpot {

inline constexpr ElementType kBlockTypes[] = {ElementType::kQ4_0, ElementType::kQ4_1,
                                              ElementType::kQ5_0, ElementType::kQ5_1,
                                              ElementType::kQ8_0};
inline constexpr ElementType kDenseTypes[] = {ElementType::kF32, ElementType::kF16,
                                              ElementType::kBF16};

inline std::string type_name(ElementType type) { return std::string(element_type_info(type).name); }

// Bytes of rows x columns elements. Blocks: every code with the same chance, scales and offsets of
// both signs between 2^-8 and 2^-4 - or, if `extreme`, any finite f16 bits.
inline std::vector<std::byte> random_bytes(ElementType type, std::int64_t rows,
                                           std::int64_t columns, std::uint64_t seed,
                                           bool extreme = false) {
  RandomStream random(seed, static_cast<std::uint64_t>(type));
  if (element_type_info(type).block_elements == 1)
    return quantize_values(type, random.normals(rows * columns));
  const auto half = [&] {
    for (;;) {
      const auto bits = static_cast<f16>(random.bits());
      if (extreme ? is_finite(bits) : (bits & 0x7fffu) >= 0x1c00u && (bits & 0x7fffu) < 0x2c00u)
        return bits;
    }
  };
  std::vector<std::byte> out;
  for (std::int64_t block = 0; block < rows * columns / 32; ++block) {
    std::uint8_t codes[32];
    const std::int64_t most = type == ElementType::kQ8_0                                 ? 256
                              : type == ElementType::kQ5_0 || type == ElementType::kQ5_1 ? 32
                                                                                         : 16;
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.below(most));
    const f16 scale = half(), offset = half();
    append_block(type, scale, offset, codes, out);
  }
  return out;
}

inline Matrix random_matrix(ElementType type, std::int64_t rows, std::int64_t columns,
                            std::uint64_t seed, bool extreme = false) {
  auto matrix = Matrix::pack(type, rows, columns, random_bytes(type, rows, columns, seed, extreme));
  EXPECT_TRUE(matrix) << matrix.error().message;
  return std::move(*matrix);
}

}  // namespace trimpot
