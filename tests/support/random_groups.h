// Grouped codes with random contents, and all formats of packed matrices that kernels have.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "support/random_matrix.h"

namespace trimpot {

enum class GroupKind {
  kConstant,  // zero_point 2^(bits - 1), or an odd one for every other seed
  kZeros,     // whole numbers 0 .. 2^bits - 1, as quantizers make them
  kTuned,     // zeros that are any numbers, also outside of the codes
  kOffsets,
  kNf4,  // bits must be 4
};
inline constexpr GroupKind kGroupKinds[] = {GroupKind::kConstant, GroupKind::kZeros,
                                            GroupKind::kTuned, GroupKind::kOffsets,
                                            GroupKind::kNf4};

// Every code with the same chance; scales and offsets of both signs between 2^-8 and 2^-4 - or, if
// `extreme`, scales of any finite f16 bits.
inline GroupedCodes random_groups(int bits, std::int64_t rows, std::int64_t columns,
                                  std::int64_t group_size, GroupKind kind, std::uint64_t seed,
                                  bool extreme = false) {
  RandomStream random(seed, static_cast<std::uint64_t>(bits * 8 + static_cast<int>(kind)));
  GroupedCodes out;
  out.bits = bits;
  out.rows = rows;
  out.columns = columns;
  out.group_size = group_size;
  if (kind == GroupKind::kNf4) out.book = CodeBook::kNf4;
  if (kind == GroupKind::kConstant)
    out.zero_point = seed % 2 != 0 ? 1 << (bits - 1) : (1 << bits) - 1;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(columns));
  out.codes.resize(static_cast<std::size_t>(rows * out.view().row_bytes()));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.below(1 << bits));
    pack_row(bits, codes, out.codes.data() + row * out.view().row_bytes());
  }
  const auto half = [&](unsigned low, unsigned high) {  // bits of the magnitude in [low, high)
    const auto magnitude = low + static_cast<unsigned>(random.below(high - low));
    return static_cast<f16>(magnitude | static_cast<unsigned>(random.below(2)) << 15);
  };
  for (std::int64_t i = 0; i < rows * out.view().groups(); ++i) {
    out.scales.push_back(extreme ? half(0, 0x7c00) : half(0x1c00, 0x2c00));
    if (kind == GroupKind::kOffsets) out.offsets.push_back(half(0x1c00, 0x2c00));
    if (kind == GroupKind::kZeros)
      out.zeros.push_back(f32_to_f16(static_cast<float>(random.below(1 << bits))));
    if (kind == GroupKind::kTuned) out.zeros.push_back(half(0, 0x5000));  // below 32
  }
  return out;
}

// A format that kernels have, with a maker of random matrices.
struct MatrixFormat {
  std::string name;
  std::int64_t column_unit;  // columns are a multiple of it
  std::function<Matrix(std::int64_t rows, std::int64_t columns, std::uint64_t seed, bool extreme)>
      make;
};

inline std::vector<MatrixFormat> all_formats() {
  std::vector<MatrixFormat> formats;
  for (const ElementType type : kBlockTypes)
    formats.push_back(
        {std::string(type_name(type)), 32,
         [=](std::int64_t rows, std::int64_t columns, std::uint64_t seed, bool extreme) {
           return random_matrix(type, rows, columns, seed, extreme);
         }});
  constexpr const char* kNames[] = {"constant", "zeros", "tuned zeros", "offsets", "nf4"};
  for (const int bits : {3, 4, 5, 8})
    for (const GroupKind kind : kGroupKinds) {
      if (kind == GroupKind::kNf4 && bits != 4) continue;
      // A chunk per group, several chunks with a shorter last group, one group per row.
      for (const std::int64_t group : {32, 64, 1 << 20})
        formats.push_back(
            {std::to_string(bits) + " bits, " + kNames[static_cast<int>(kind)] + ", groups of " +
                 std::to_string(group),
             1, [=](std::int64_t rows, std::int64_t columns, std::uint64_t seed, bool extreme) {
               auto matrix = Matrix::pack_groups(
                   random_groups(bits, rows, columns, group, kind, seed, extreme).view());
               EXPECT_TRUE(matrix) << matrix.error().message;
               return std::move(*matrix);
             }});
    }
  return formats;
}

// Of a quantized matrix's weight: w = scale (level - zero) + offset.
struct WeightParts {
  double scale, level, zero, offset;
  double value() const { return scale * (level - zero) + offset; }
};
inline WeightParts weight_parts(const Matrix& matrix, std::int64_t row, std::int64_t column) {
  const MatrixView& view = matrix.view();
  const std::size_t at = matrix.scale_index(row, column / (view.group_chunks * kChunkColumns));
  const int code = matrix.code(row, column);
  return {f16_to_f32(matrix.scales()[at]),
          view.book == CodeBook::kNf4 ? double{nf4_levels()[static_cast<std::size_t>(code)]} : code,
          matrix.has_zeros() ? double{f16_to_f32(matrix.zeros()[at])} : view.zero_point,
          matrix.has_offsets() ? double{f16_to_f32(matrix.offsets()[at])} : 0.0};
}

}  // namespace trimpot
