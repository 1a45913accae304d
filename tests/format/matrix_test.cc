#include "format/matrix.h"

#include <gtest/gtest.h>

#include <cstring>

#include "format/ggml_blocks.h"
#include "support/random_matrix.h"

namespace trimpot {
namespace {

struct Shape {
  std::int64_t rows, columns;
};
constexpr Shape kBlockShapes[] = {{1, 32}, {15, 64}, {16, 32}, {17, 96}, {31, 160}, {48, 32}};
constexpr Shape kDenseShapes[] = {{1, 1}, {16, 3}, {17, 5}, {33, 32}, {40, 31}};

// Catches: rows, columns, nibbles or fifth bits that change places, a wrong zero-point, a scale
// that is read from the offset. Codes are random, so every bit pattern of every plane occurs.
void expect_row_by_row(ElementType type, Shape shape, bool extreme) {
  SCOPED_TRACE(testing::Message() << type_name(type) << ' ' << shape.rows << " x "
                                  << shape.columns);
  const auto bytes = random_bytes(type, shape.rows, shape.columns, 1, extreme);
  const auto matrix = Matrix::pack(type, shape.rows, shape.columns, bytes);
  ASSERT_TRUE(matrix) << matrix.error().message;
  const std::vector<float> want = dequantize_bytes(type, bytes);
  std::vector<float> row(static_cast<std::size_t>(shape.columns));
  for (std::int64_t n = 0; n < shape.rows; ++n) {
    matrix->dequantize_row(n, row.data());
    // The values to the last bit; only a zero may have another sign.
    for (std::int64_t j = 0; j < shape.columns; ++j)
      ASSERT_EQ(row[j], want[n * shape.columns + j]) << "row " << n << ", column " << j;
  }
  EXPECT_EQ(matrix->rows(), shape.rows);
  EXPECT_EQ(matrix->columns(), shape.columns);
  EXPECT_EQ(matrix->quantized(), element_type_info(type).block_elements == 32);
  EXPECT_GE(matrix->bytes(), bytes.size());
  EXPECT_EQ(matrix->has_offsets(), type == ElementType::kQ4_1 || type == ElementType::kQ5_1);
}

TEST(Matrix, EqualsItsBlocks) {
  for (const ElementType type : kBlockTypes)
    for (const Shape& shape : kBlockShapes)
      for (const bool extreme : {false, true}) expect_row_by_row(type, shape, extreme);
  for (const ElementType type : kDenseTypes)
    for (const Shape& shape : kDenseShapes) expect_row_by_row(type, shape, false);
}

// The first block of each type written out by hand: the test's own quantizers could share a mistake
// with themselves only.
TEST(Matrix, BlocksByHand) {
  const auto value = [](ElementType type, std::vector<int> bytes, int column) {
    std::vector<std::byte> block;
    for (const int byte : bytes) block.push_back(static_cast<std::byte>(byte));
    block.resize(element_type_info(type).block_bytes);
    const auto matrix = Matrix::pack(type, 1, 32, block);
    EXPECT_TRUE(matrix);
    std::vector<float> row(32);
    matrix->dequantize_row(0, row.data());
    return row[static_cast<std::size_t>(column)];
  };
  // d = 2 is 0x4000 in f16, m = 0.5 is 0x3800. Element 1 is the low nibble of byte 1, element 17
  // the high one.
  EXPECT_EQ(value(ElementType::kQ4_0, {0x00, 0x40, 0, 0xa3}, 1), 2.0f * (3 - 8));
  EXPECT_EQ(value(ElementType::kQ4_0, {0x00, 0x40, 0, 0xa3}, 17), 2.0f * (10 - 8));
  EXPECT_EQ(value(ElementType::kQ4_1, {0x00, 0x40, 0x00, 0x38, 0, 0xa3}, 1), 2.0f * 3 + 0.5f);
  EXPECT_EQ(value(ElementType::kQ4_1, {0x00, 0x40, 0x00, 0x38, 0, 0xa3}, 17), 2.0f * 10 + 0.5f);
  // The fifth bit of element j is bit j of the four bytes: element 1 of byte 0, 17 of byte 2.
  EXPECT_EQ(value(ElementType::kQ5_0, {0x00, 0x40, 2, 0, 0, 0, 0, 0xa3}, 1), 2.0f * (19 - 16));
  EXPECT_EQ(value(ElementType::kQ5_0, {0x00, 0x40, 0, 0, 2, 0, 0, 0xa3}, 17), 2.0f * (26 - 16));
  EXPECT_EQ(value(ElementType::kQ5_1, {0x00, 0x40, 0x00, 0x38, 2, 0, 0, 0, 0, 0xa3}, 1),
            2.0f * 19 + 0.5f);
  EXPECT_EQ(value(ElementType::kQ5_1, {0x00, 0x40, 0x00, 0x38, 0, 0, 2, 0, 0, 0xa3}, 17),
            2.0f * 26 + 0.5f);
  EXPECT_EQ(value(ElementType::kQ8_0, {0x00, 0x40, 0x80, 0xff}, 0), 2.0f * -128);
  EXPECT_EQ(value(ElementType::kQ8_0, {0x00, 0x40, 0x80, 0xff}, 1), 2.0f * -1);
}

// Scales and offsets lie where scale_index says, and a change of one changes its group alone.
TEST(Matrix, ScalesCanBeChanged) {
  const std::int64_t rows = 37, columns = 96;
  Matrix matrix = random_matrix(ElementType::kQ5_1, rows, columns, 2);
  std::vector<float> before(96), after(96);
  for (const auto& [row, group] : {std::pair{0, 0}, {16, 2}, {36, 1}}) {
    matrix.dequantize_row(row, before.data());
    const std::size_t index = matrix.scale_index(row, group);
    matrix.scales()[index] = f32_to_f16(3.0f);
    matrix.offsets()[index] = f32_to_f16(-7.0f);
    matrix.dequantize_row(row, after.data());
    for (std::int64_t j = 0; j < columns; ++j)
      EXPECT_EQ(after[j], j / 32 == group ? 3.0f * static_cast<float>(matrix.code(row, j)) - 7.0f
                                          : before[j]);
  }
  // The views that kernels hold see the same memory, also after a move.
  const Matrix moved = std::move(matrix);
  EXPECT_EQ(moved.view().scales, moved.scales().data());
  EXPECT_EQ(moved.view().offsets, moved.offsets().data());
  EXPECT_EQ(moved.view().scales[moved.scale_index(36, 1)], f32_to_f16(3.0f));
}

// What pads the last tile must be neutral: kernels compute on it.
TEST(Matrix, PaddingIsZero) {
  for (const ElementType type : kBlockTypes) {
    const Matrix matrix = random_matrix(type, 18, 64, 3);
    for (std::int64_t row = 18; row < 32; ++row) {
      for (std::int64_t group = 0; group < 2; ++group) {
        EXPECT_EQ(matrix.scales()[matrix.scale_index(row, group)], 0);
        if (matrix.has_offsets()) {
          EXPECT_EQ(matrix.offsets()[matrix.scale_index(row, group)], 0);
        }
      }
      for (std::int64_t column = 0; column < 64; ++column)
        EXPECT_EQ(matrix.code(row, column), matrix.view().zero_point);
    }
  }
}

TEST(Matrix, ScalesThatAreNotFiniteAreErrors) {
  const std::int64_t rows = 20, columns = 96;
  for (const ElementType type : kBlockTypes) {
    const BlockFormat format = block_format(type);
    const auto bytes = random_bytes(type, rows, columns, 4);
    for (const std::uint16_t bad : {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff})
      for (const bool offset : {false, true}) {
        if (offset && format.offset_offset < 0) continue;
        auto broken = bytes;
        const int at = offset ? format.offset_offset : format.scale_offset;
        std::memcpy(broken.data() + (17 * 3 + 2) * format.bytes + at, &bad, 2);
        const auto matrix = Matrix::pack(type, rows, columns, broken);
        ASSERT_FALSE(matrix) << type_name(type);
        EXPECT_EQ(matrix.error().message, std::string("row 17, columns 64 to 95: the ") +
                                              (offset ? "offset" : "scale") +
                                              " is not a finite number");
      }
  }
}

// Of each dense type the smallest exponent that is none of a number, in a row that is not the
// first.
TEST(Matrix, WeightsThatAreNotFiniteAreErrors) {
  const auto message = [](ElementType type, std::size_t size, std::uint32_t bits) {
    std::vector<std::byte> data(3 * 5 * size);
    std::memcpy(data.data() + (2 * 5 + 4) * size, &bits, size);
    const auto matrix = Matrix::pack(type, 3, 5, data);
    return matrix ? "fine" : matrix.error().message;
  };
  const std::string broken = "row 2, column 4: not a finite number";
  EXPECT_EQ(message(ElementType::kF32, 4, 0x7f800000u), broken);
  EXPECT_EQ(message(ElementType::kF32, 4, 0xffc00000u), broken);
  EXPECT_EQ(message(ElementType::kF32, 4, 0x7f7fffffu), "fine");
  EXPECT_EQ(message(ElementType::kF16, 2, 0xfc00u), broken);
  EXPECT_EQ(message(ElementType::kF16, 2, 0x7bffu), "fine");
  EXPECT_EQ(message(ElementType::kBF16, 2, 0x7f80u), broken);
  EXPECT_EQ(message(ElementType::kBF16, 2, 0x7c00u), "fine");
}

TEST(Matrix, WrongSizesAreErrors) {
  const std::vector<std::byte> bytes(2048);
  const auto message = [&](ElementType type, std::int64_t rows, std::int64_t columns,
                           std::size_t size) {
    const auto matrix = Matrix::pack(type, rows, columns, std::span(bytes).first(size));
    EXPECT_FALSE(matrix);
    return matrix ? std::string() : matrix.error().message;
  };
  for (const ElementTypeInfo& info : kElementTypes) {
    if (info.computable) continue;
    const std::string text =
        message(info.type, 1, 256, 256 / info.block_elements * info.block_bytes);
    EXPECT_NE(text.find(" cannot be computed with; use a file whose weights are F32, F16"),
              std::string::npos)
        << text;
  }
  EXPECT_EQ(message(ElementType::kQ4_1, 2, 32, 39),
            "39 bytes where 2 rows of 32 Q4_1 elements need 40");
  EXPECT_EQ(message(ElementType::kQ4_1, 2, 32, 41),
            "41 bytes where 2 rows of 32 Q4_1 elements need 40");
  EXPECT_EQ(message(ElementType::kF16, 3, 5, 31),
            "31 bytes where 3 rows of 5 F16 elements need 30");
  EXPECT_EQ(message(ElementType::kQ8_0, 1, 40, 68),
            "1 rows of 40 columns cannot be stored as Q8_0, whose blocks have 32 elements");
  EXPECT_EQ(message(ElementType::kF32, 0, 4, 0),
            "0 rows of 4 columns cannot be stored as F32, whose blocks have 1 elements");
  EXPECT_FALSE(message(ElementType::kF32, 4, 0, 0).empty());
  EXPECT_FALSE(message(ElementType::kF32, -1, 4, 16).empty());
  EXPECT_FALSE(message(ElementType::kQ4_0, 1, -32, 18).empty());
}

}  // namespace
}  // namespace trimpot
