// Codes and weak columns as the numbers that other products take.
#include <gtest/gtest.h>

#include "kernels/isa_shapes.h"
#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/random_groups.h"

namespace trimpot {
namespace {

class IsaUnpack : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isas, IsaUnpack, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

// Codes as floats against dequantize_row. With offsets, scale times code is exact in f32 (11 + 8
// bits), so the fused and the plain form of scale * code + offset round once and agree to the bit;
// without, the sum with 0 rounds nothing.
void check_unpacking(const Kernels& kernels, const Matrix& weight) {
  const MatrixView& view = weight.view();
  const std::int64_t rows = view.rows, columns = view.columns;
  const std::int64_t padded = (columns + 31) / 32 * 32;
  std::vector<float> plain(static_cast<std::size_t>(view.tiles * 16 * padded));
  std::vector<float> raw = plain, row(static_cast<std::size_t>(columns));
  for (std::int64_t n = 0; n < rows; ++n) {
    weight.dequantize_row(n, row.data());
    std::copy(row.begin(), row.end(), plain.begin() + n * padded);
    for (std::int64_t j = 0; j < columns; ++j)
      raw[n * padded + j] =
          weight.quantized()
              ? static_cast<float>(weight_parts(weight, n, j).level - view.zero_point)
              : row[j];
  }
  for (const bool want_raw : {false, true}) {
    const std::vector<float>& want = want_raw ? raw : plain;
    for (std::int64_t tile = 0; tile < view.tiles; ++tile) {
      std::vector<float> panel(static_cast<std::size_t>(padded * 16));
      kernels.unpack_tile(view, tile, want_raw, panel.data());
      for (std::int64_t j = 0; j < columns; ++j)
        for (std::int64_t r = 0; r < std::min<std::int64_t>(16, rows - tile * 16); ++r)
          ASSERT_EQ(panel[j * 16 + r], want[(tile * 16 + r) * padded + j]) << r << ' ' << j;
    }
    for (std::int64_t chunk = 0; chunk < padded / 32; ++chunk) {
      std::vector<float> panel(static_cast<std::size_t>(view.tiles * 16 * 32));
      kernels.unpack_columns(view, chunk, 0, view.tiles, want_raw, panel.data());
      // Padding of dense matrices is 0, that of codes is not looked at.
      const std::int64_t count =
          weight.quantized() ? std::min<std::int64_t>(32, columns - chunk * 32) : 32;
      for (std::int64_t n = 0; n < rows; ++n)
        for (std::int64_t j = 0; j < count; ++j)
          ASSERT_EQ(panel[n * 32 + j], want[n * padded + chunk * 32 + j]) << n << ' ' << j;
    }
  }
  if (kernels.unpack_rows_rounded != nullptr)
    for (std::int64_t tile = 0; tile < view.tiles; tile += 2) {
      const std::int64_t tile_end = std::min(tile + 2, view.tiles), chunks = padded / 32;
      std::vector<std::int16_t> pairs(static_cast<std::size_t>(padded * 32));
      kernels.unpack_rows_rounded(view, 0, chunks, tile, tile_end, pairs.data());
      std::vector<std::int16_t> part(pairs.size());
      kernels.unpack_rows_rounded(view, chunks - 1, chunks, tile, tile_end, part.data());
      const std::int64_t before = (chunks - 1) * 32;
      for (std::int64_t n = tile * 16; n < std::min(tile_end * 16, rows); ++n)
        for (std::int64_t j = 0; j < columns; ++j) {
          const auto at = [&](std::int64_t column) {
            return static_cast<std::size_t>((column / 2 * 32 + n - tile * 16) * 2 + column % 2);
          };
          const float value = plain[n * padded + j];
          ASSERT_NEAR(bf16_to_f32(static_cast<bf16>(pairs[at(j)])), value,
                      std::fabs(value) / 256 + 1e-38)
              << n << ' ' << j;
          if (j >= before) {
            ASSERT_EQ(part[at(j - before)], pairs[at(j)]);
          }
        }
    }
  const bool bytes = kernels.unpack_columns_bytes != nullptr;
  for (std::int64_t chunk = 0; bytes && chunk < padded / 32; ++chunk) {
    std::vector<std::uint8_t> fours(static_cast<std::size_t>(view.tiles * 16 * 32));
    std::vector<float> scales(static_cast<std::size_t>((view.tiles + 7) / 8));
    kernels.unpack_columns_bytes(view, chunk, 0, view.tiles, fours.data(), scales.data());
    for (std::int64_t n = 0; n < rows; ++n) {
      const double scale = scales[static_cast<std::size_t>(n / kRoundedBlock)];
      for (std::int64_t j = 0; j < std::min<std::int64_t>(32, columns - chunk * 32); ++j) {
        const int code = fours[(n / 4 * 32 + j) * 4 + n % 4] - 128;
        ASSERT_LE(std::abs(code), 127);
        // As below, but with 128 added: that has 255 steps.
        ASSERT_NEAR(scale * code, plain[n * padded + chunk * 32 + j],
                    (0.5 + 7 * 255 * 0x1p-24) * scale);
      }
    }
  }
  if (kernels.rounded == nullptr) return;
  for (std::int64_t chunk = 0; chunk < padded / 32; ++chunk) {
    std::vector<std::int16_t> pairs(static_cast<std::size_t>(view.tiles * 16 * 32));
    std::vector<float> scales(static_cast<std::size_t>((view.tiles + 7) / 8));
    kernels.unpack_columns_rounded(view, chunk, 0, view.tiles, pairs.data(), scales.data());
    for (std::int64_t n = 0; n < rows; ++n) {
      const double scale = scales[static_cast<std::size_t>(n / kRoundedBlock)];
      for (std::int64_t j = 0; j < std::min<std::int64_t>(32, columns - chunk * 32); ++j) {
        const std::int16_t code = pairs[(n / 2 * 32 + j) * 2 + n % 2];
        const float value = plain[n * padded + chunk * 32 + j];
        if (rounds_to_bf16(kernels)) {  // of 8 bits, and half of the last is 1/256
          ASSERT_NEAR(bf16_to_f32(static_cast<bf16>(code)), value, std::fabs(value) / 256 + 1e-38);
          continue;
        }
        ASSERT_LE(std::abs(code), 4095);
        // Half a step and, in f32, seven roundings of up to 4095 steps: the inverse, the factor and
        // twice the term of up to two times as many.
        ASSERT_NEAR(scale * code, value, (0.5 + 7 * 4095 * 0x1p-24) * scale);
      }
    }
  }
}

TEST_P(IsaUnpack, Unpack) {
  for (const MatrixFormat& format : all_formats())
    for (const Shape& shape : kShapes) {
      const std::int64_t columns = fitting(format, shape.columns);
      SCOPED_TRACE(testing::Message() << format.name << ' ' << shape.rows << " x " << columns);
      check_unpacking(*GetParam(), format.make(shape.rows, columns, 9, false));
    }
  for (const ElementType type : kDenseTypes)
    for (const auto& [rows, columns] : {Shape{7, 33}, Shape{40, 20}, Shape{33, 64}}) {
      SCOPED_TRACE(testing::Message() << type_name(type) << ' ' << rows << " x " << columns);
      check_unpacking(*GetParam(), random_matrix(type, rows, columns, 9));
    }
}

// Two terms of 8 bits each: all 11 of an f16, all but 2^-17 of an f32. Catches: columns paired with
// the wrong ones, an odd column's pair that is not 0.
TEST_P(IsaUnpack, UnpackWeak) {
  const Kernels& kernels = *GetParam();
  if (kernels.unpack_weak_rounded == nullptr) GTEST_SKIP() << "no products of bf16";
  for (const ElementType type : {ElementType::kF16, ElementType::kF32})
    for (const auto& [rows, columns] : {Shape{7, 1}, Shape{40, 5}, Shape{33, 16}}) {
      const Matrix matrix = random_matrix(type, rows, columns, 9);
      const MatrixView& w = matrix.view();
      std::vector<float> want(static_cast<std::size_t>(rows * columns));
      for (std::int64_t n = 0; n < rows; ++n) matrix.dequantize_row(n, want.data() + n * columns);
      const std::int64_t padded = columns + columns % 2;
      for (std::int64_t tile = 0; tile < w.tiles; tile += 2) {
        std::vector<std::int16_t> panel(static_cast<std::size_t>(2 * padded * 32));
        kernels.unpack_weak_rounded(w, tile, std::min(tile + 2, w.tiles), panel.data());
        for (std::int64_t n = tile * 16; n < std::min(tile * 16 + 32, rows); ++n)
          for (std::int64_t j = 0; j < padded; ++j) {
            const auto at = static_cast<std::size_t>((j / 2 * 32 + n - tile * 16) * 2 + j % 2);
            const auto value = [&](std::size_t i) {
              return bf16_to_f32(static_cast<bf16>(panel[i]));
            };
            const float whole = j < columns ? want[static_cast<std::size_t>(n * columns + j)] : 0;
            const float sum = value(at) + value(at + static_cast<std::size_t>(padded * 32));
            const float left = type == ElementType::kF16 ? 0.0f : std::fabs(whole) * 0x1p-17f;
            ASSERT_NEAR(sum, whole, left) << n << ' ' << j;
          }
      }
    }
}

}  // namespace
}  // namespace trimpot
