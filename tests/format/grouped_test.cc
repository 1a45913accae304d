#include "format/grouped.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "format/matrix.h"
#include "support/compare.h"
#include "support/random_groups.h"

namespace trimpot {
namespace {

constexpr int kBits[] = {3, 4, 5, 8};

// Column c lies at bits c * bits from the lowest: read back here bit by bit. Catches: another order
// of nibbles or bits, codes that cross a byte, a last byte that is left out or overrun.
TEST(Grouped, RowsAreBitsInOrder) {
  RandomStream random(1);
  for (const int bits : kBits)
    for (std::int64_t columns = 0; columns <= 70; ++columns) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(columns)), back = codes;
      for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.below(1 << bits));
      const std::int64_t bytes = (columns * bits + 7) / 8;
      std::vector<std::uint8_t> packed(static_cast<std::size_t>(bytes + 1), 0xa5);
      pack_row(bits, codes, packed.data());
      EXPECT_EQ(packed.back(), 0xa5);
      for (std::int64_t bit = 0; bit < bytes * 8; ++bit) {
        const int want = bit < columns * bits ? codes[bit / bits] >> bit % bits & 1 : 0;
        ASSERT_EQ(packed[bit / 8] >> bit % 8 & 1, want) << bits << " bits, bit " << bit;
      }
      // The bits behind the last column mean nothing.
      if (columns * bits % 8 != 0)
        packed[static_cast<std::size_t>(bytes - 1)] |=
            static_cast<std::uint8_t>(0xff << columns * bits % 8);
      packed.resize(static_cast<std::size_t>(bytes));
      unpack_row(bits, columns, packed.data(), back.data());
      ASSERT_EQ(back, codes) << bits << " bits, " << columns << " columns";
    }
}

// Facts of the format, from the formula of bitsandbytes' create_normal_map (offset 0.9677083): the
// levels are quantiles of the normal distribution at evenly spaced probabilities, 8 above zero and
// 7 below, over the largest. Worked out here from erfc.
TEST(Grouped, Nf4Levels) {
  const auto quantile = [](double probability) {
    double low = 0, high = 5;
    for (int i = 0; i < 100; ++i) {
      const double middle = (low + high) / 2;
      (1 - std::erfc(middle / std::sqrt(2.0)) / 2 < probability ? low : high) = middle;
    }
    return low;
  };
  const double most = 0.9677083, largest = quantile(most);
  const auto levels = nf4_levels();
  for (int i = 0; i <= 7; ++i)  // 8 probabilities from `most` to 1/2, which is 0
    EXPECT_NEAR(levels[i], -quantile(most + (0.5 - most) * i / 7) / largest, 2e-6) << i;
  for (int i = 0; i <= 8; ++i)
    EXPECT_NEAR(levels[15 - i], quantile(most + (0.5 - most) * i / 8) / largest, 2e-6) << i;
  EXPECT_EQ(levels[0], -1.0f);
  EXPECT_EQ(levels[7], 0.0f);
  EXPECT_EQ(levels[15], 1.0f);
}

struct Case {
  int bits;
  GroupKind kind;
  std::int64_t rows, columns, group_size;
};
std::vector<Case> cases() {
  std::vector<Case> out;
  for (const int bits : kBits)
    for (const GroupKind kind : kGroupKinds) {
      if (kind == GroupKind::kNf4 && bits != 4) continue;
      for (const auto& [rows, columns, group] : {std::array{1, 1, 1},
                                                 {16, 32, 32},
                                                 {17, 17, 32},
                                                 {5, 560, 128},
                                                 {33, 96, 64},
                                                 {20, 100, 100},
                                                 {3, 64, 1 << 30},
                                                 {2, 200, 96}})
        out.push_back({bits, kind, rows, columns, group});
    }
  return out;
}

// Everything comes back: no tile, chunk, group or plane changes places.
TEST(Grouped, RoundTrip) {
  for (const auto& [bits, kind, rows, columns, group] : cases()) {
    SCOPED_TRACE(testing::Message() << bits << " bits, kind " << static_cast<int>(kind) << ", "
                                    << rows << " x " << columns << ", groups of " << group);
    const GroupedCodes source = random_groups(bits, rows, columns, group, kind, 1, true);
    const auto matrix = Matrix::pack_groups(source.view());
    ASSERT_TRUE(matrix) << matrix.error().message;
    for (const Matrix& m : {matrix->clone(), std::move(*Matrix::pack_groups(source.view()))}) {
      const GroupedCodes back = m.unpack_groups();
      EXPECT_EQ(back.book, source.book);
      EXPECT_EQ(back.bits, source.bits);
      EXPECT_EQ(back.zero_point, source.zero_point);
      EXPECT_EQ(back.rows, source.rows);
      EXPECT_EQ(back.columns, source.columns);
      EXPECT_EQ(back.group_size, group < columns ? group : columns);
      EXPECT_EQ(back.codes, source.codes);
      EXPECT_EQ(back.scales, source.scales);
      EXPECT_EQ(back.zeros, source.zeros);
      EXPECT_EQ(back.offsets, source.offsets);
    }
  }
}

// Against the definition in grouped.h, straight from the grouped codes. Up to three roundings.
TEST(Grouped, DequantizeRow) {
  for (const auto& [bits, kind, rows, columns, group] : cases()) {
    SCOPED_TRACE(testing::Message() << bits << " bits, kind " << static_cast<int>(kind) << ", "
                                    << rows << " x " << columns << ", groups of " << group);
    const GroupedCodes source = random_groups(bits, rows, columns, group, kind, 2);
    const auto matrix = Matrix::pack_groups(source.view());
    ASSERT_TRUE(matrix) << matrix.error().message;
    EXPECT_EQ(matrix->has_zeros(), !source.zeros.empty());
    EXPECT_EQ(matrix->has_offsets(), !source.offsets.empty());
    EXPECT_EQ(matrix->has_shifts(), kind != GroupKind::kConstant && kind != GroupKind::kNf4);
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(columns));
    std::vector<float> row(codes.size());
    for (std::int64_t n = 0; n < rows; ++n) {
      unpack_row(bits, columns, source.codes.data() + n * source.view().row_bytes(), codes.data());
      matrix->dequantize_row(n, row.data());
      std::vector<double> want(row.size()), magnitude(row.size());
      for (std::int64_t j = 0; j < columns; ++j) {
        EXPECT_EQ(matrix->code(n, j), codes[j]);
        const std::int64_t at = n * source.view().groups() + j / group;
        const double level = kind == GroupKind::kNf4 ? kNf4Levels[codes[j]] : codes[j];
        const double zero = source.zeros.empty() ? source.zero_point : f16_to_f32(source.zeros[at]);
        const double offset = source.offsets.empty() ? 0.0 : f16_to_f32(source.offsets[at]);
        const double scale = f16_to_f32(source.scales[at]);
        want[j] = scale * (level - zero) + offset;
        magnitude[j] = std::fabs(scale) * (std::fabs(level) + std::fabs(zero)) + std::fabs(offset);
      }
      expect_close(row, want, magnitude, 3, "row");
    }
  }
}

// Rows that pad the last tile have nothing to say, whatever the format.
TEST(Grouped, PaddingIsZero) {
  for (const int bits : kBits) {
    const auto matrix =
        Matrix::pack_groups(random_groups(bits, 18, 70, 32, GroupKind::kTuned, 3).view());
    ASSERT_TRUE(matrix);
    for (std::int64_t row = 18; row < 32; ++row)
      for (std::int64_t group = 0; group < 3; ++group) {
        EXPECT_EQ(matrix->scales()[matrix->scale_index(row, group)], 0);
        EXPECT_EQ(matrix->zeros()[matrix->scale_index(row, group)], 0);
      }
    for (std::int64_t row = 0; row < 32; ++row)
      for (std::int64_t column = row < 18 ? 70 : 0; column < 96; ++column)
        if (column < 80 || (bits != 4 && bits != 8)) {
          EXPECT_EQ(matrix->code(row, column), 0);
        }
  }
}

// A row of at most 16 columns in its last chunk takes half of it, with 4 and 8 bits.
TEST(Grouped, HalfChunks) {
  EXPECT_EQ(tile_code_bytes(4, 560), 17 * 256 + 128);
  EXPECT_EQ(tile_code_bytes(4, 561), 18 * 256);
  EXPECT_EQ(tile_code_bytes(8, 16), 256);
  EXPECT_EQ(tile_code_bytes(8, 1), 256);
  EXPECT_EQ(tile_code_bytes(3, 560), 18 * 192);
  EXPECT_EQ(tile_code_bytes(5, 560), 18 * 320);
  for (const int bits : kBits)
    for (const std::int64_t columns : {5, 16, 40, 48, 65}) {
      const GroupedCodes codes = random_groups(bits, 50, columns, 32, GroupKind::kTuned, 3);
      const auto matrix = Matrix::pack_groups(codes.view());
      ASSERT_TRUE(matrix);
      EXPECT_EQ(matrix->unpack_groups().codes, codes.codes) << bits << " bits, " << columns;
      EXPECT_EQ(matrix->view().tile_bytes, tile_code_bytes(bits, columns));
    }
}

// Blocks of GGUF are grouped codes too, with groups of 32.
TEST(Grouped, FromBlocks) {
  for (const ElementType type : kBlockTypes) {
    const Matrix blocks = random_matrix(type, 19, 96, 4);
    const GroupedCodes codes = blocks.unpack_groups();
    EXPECT_EQ(codes.group_size, 32);
    const auto again = Matrix::pack_groups(codes.view());
    ASSERT_TRUE(again) << again.error().message;
    std::vector<float> a(96), b(96);
    for (std::int64_t row = 0; row < 19; ++row) {
      blocks.dequantize_row(row, a.data());
      again->dequantize_row(row, b.data());
      EXPECT_TRUE(same_bits(a, b)) << type_name(type);
    }
  }
}

std::string message(const GroupedView& view) {
  const auto matrix = Matrix::pack_groups(view);
  EXPECT_FALSE(matrix);
  return matrix ? std::string() : matrix.error().message;
}

TEST(Grouped, WhatIsNotFiniteIsAnError) {
  for (const GroupKind kind : {GroupKind::kZeros, GroupKind::kOffsets})
    for (const f16 bad : {f16{0x7c00}, f16{0xfc00}, f16{0x7e00}, f16{0x7c01}}) {
      const GroupedCodes good = random_groups(3, 20, 100, 64, kind, 5);
      GroupedCodes broken = good;
      broken.scales[17 * 2 + 1] = bad;
      EXPECT_EQ(message(broken.view()),
                "row 17, columns 64 to 99: the scale is not a finite number");
      broken = good;
      (kind == GroupKind::kZeros ? broken.zeros : broken.offsets)[6] = bad;
      EXPECT_EQ(message(broken.view()), std::string("row 3, columns 0 to 63: the ") +
                                            (kind == GroupKind::kZeros ? "zero" : "offset") +
                                            " is not a finite number");
    }
  GroupedCodes row = random_groups(8, 3, 50, 1 << 30, GroupKind::kConstant, 6);
  row.scales[2] = 0x7c00;
  EXPECT_EQ(message(row.view()), "row 2, columns 0 to 49: the scale is not a finite number");
}

// What a file may claim. None of it may read beyond the spans or allocate by a count alone.
TEST(Grouped, HostileViewsAreErrors) {
  const GroupedCodes good = random_groups(4, 4, 96, 64, GroupKind::kZeros, 7);
  const auto with = [&](auto&& change) {
    GroupedView view = good.view();
    change(view);
    return message(view);
  };
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  for (const int bits : {-1, 0, 1, 2, 6, 7, 9, 16, 64})
    EXPECT_NE(with([&](GroupedView& v) { v.bits = bits; }).find("bits are not supported"),
              std::string::npos);
  for (const std::int64_t size : {std::int64_t{-32}, std::int64_t{0}, std::int64_t{1},
                                  std::int64_t{16}, std::int64_t{48}, std::int64_t{95}})
    EXPECT_NE(with([&](GroupedView& v) { v.group_size = size; }).find("group size"),
              std::string::npos);
  for (const std::int64_t count : {std::int64_t{-1}, std::int64_t{0}, kHuge, kHuge / 4}) {
    EXPECT_NE(with([&](GroupedView& v) { v.rows = count; }).find("not possible"),
              std::string::npos);
    EXPECT_NE(with([&](GroupedView& v) { v.columns = count; }).find("not possible"),
              std::string::npos);
  }
  EXPECT_EQ(with([](GroupedView& v) { v.rows = v.columns = 0x7fffffff; }).substr(0, 18),
            "192 bytes of codes");
  EXPECT_EQ(with([](GroupedView& v) { v.codes = v.codes.first(191); }),
            "191 bytes of codes where 4 rows of 96 codes with 4 bits need 192");
  EXPECT_EQ(with([](GroupedView& v) { v.group_size = kHuge; }),
            "8 scales, 8 zeros and 0 offsets where 4 rows of 1 groups need 4 of each kind");
  EXPECT_EQ(with([](GroupedView& v) { v.scales = {}; }),
            "0 scales, 8 zeros and 0 offsets where 4 rows of 2 groups need 8 of each kind");
  EXPECT_EQ(with([](GroupedView& v) { v.zeros = v.zeros.first(7); }),
            "8 scales, 7 zeros and 0 offsets where 4 rows of 2 groups need 8 of each kind");
  EXPECT_EQ(with([](GroupedView& v) { v.offsets = v.zeros; }),
            "a matrix has either zeros or offsets, not both");
  EXPECT_EQ(with([](GroupedView& v) { v.zero_point = 8; }),
            "a zero-point of 8 does not fit codes of 4 bits with zeros or offsets");
  EXPECT_EQ(with([](GroupedView& v) {
              v.zeros = {};
              v.zero_point = 16;
            }),
            "a zero-point of 16 does not fit codes of 4 bits");
  EXPECT_EQ(with([](GroupedView& v) { v.book = CodeBook::kNf4; }),
            "NF4 has codes of 4 bits without zero-points, zeros or offsets");
}

TEST(Grouped, DenseMatricesOfZeros) {
  Matrix f32 = Matrix::zeros(Storage::kF32, 18, 5), f16s = Matrix::zeros(Storage::kF16, 18, 5);
  ASSERT_EQ(f32.dense_f32().size(), 32u * 5);
  ASSERT_EQ(f16s.dense_f16().size(), 32u * 5);
  EXPECT_TRUE(f32.dense_f16().empty());
  EXPECT_TRUE(f16s.dense_f32().empty());
  EXPECT_EQ(f32.columns(), 5);
  f32.dense_f32()[f32.dense_index(17, 3)] = 2.5f;
  f16s.dense_f16()[f16s.dense_index(17, 3)] = f32_to_f16(2.5f);
  const Matrix copy = f32.clone();
  f32.dense_f32()[0] = 1.0f;
  for (const Matrix* matrix : {&copy, static_cast<const Matrix*>(&f16s)})
    for (std::int64_t row = 0; row < 18; ++row) {
      std::vector<float> values(5, -1.0f);
      matrix->dequantize_row(row, values.data());
      for (std::int64_t j = 0; j < 5; ++j) EXPECT_EQ(values[j], row == 17 && j == 3 ? 2.5f : 0.0f);
    }
}

}  // namespace
}  // namespace trimpot
