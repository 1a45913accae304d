// The kernels on packed codes and int8 activations: every instruction set gives the bits of the
// scalar one, whose results are right.
#include <gtest/gtest.h>

#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/random_matrix.h"

namespace trimpot {
namespace {

const Kernels& scalar() { return **kernels_by_name("scalar"); }

// Activations that were rounded by one of the kernel sets.
struct Rounded {
  Rounded(const Kernels& kernels, const std::vector<float>& x, std::int64_t columns)
      : Rounded(static_cast<std::int64_t>(x.size()) / columns, (columns + 31) / 32) {
    kernels.quantize(x.data(), columns, columns, 0, tokens, view);
  }
  Rounded(std::int64_t tokens, std::int64_t blocks)
      : tokens(tokens),
        codes(tokens * blocks * 32),
        scales(tokens * blocks),
        scaled_sums(tokens * blocks),
        sums(tokens * blocks) {
    view = {codes.data(), scales.data(), sums.data(), scaled_sums.data(), blocks};
  }
  std::int64_t tokens;
  std::vector<std::int8_t> codes;
  std::vector<float> scales, scaled_sums;
  std::vector<std::int32_t> sums;
  Int8View view;
};

// Rows of very different sizes, rows of zeros, values at which 127 / highest rounds up, numbers so
// small that a block counts as zero, and the largest ones.
std::vector<float> activations(std::int64_t tokens, std::int64_t columns, std::uint64_t seed) {
  RandomStream random(seed);
  std::vector<float> x = random.normals(tokens * columns);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < columns; ++j) {
      float& value = x[t * columns + j];
      if (t % 7 == 1) value = 0.0f;
      if (t % 7 == 2) value *= 1e-31f;
      if (t % 7 == 3) value = random.below(2) != 0 ? 0.1f : -0.1f;  // every code +-127
      if (t % 7 == 4) value *= 1e30f;
      if (t % 7 == 5 && j % 13 == 0) value *= 1e4f;                                // outliers
      if (t % 7 == 6) value = static_cast<float>(random.below(255) - 127) + 0.5f;  // ties
    }
  return x;
}

class IsaInt8 : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isas, IsaInt8, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST_P(IsaInt8, QuantizeGivesTheSameBits) {
  for (const std::int64_t columns : {1, 15, 16, 17, 31, 32, 33, 50, 96, 200}) {
    const auto x = activations(30, columns, static_cast<std::uint64_t>(columns));
    const Rounded got(*GetParam(), x, columns), want(scalar(), x, columns);
    EXPECT_TRUE(same_bits(got.codes, want.codes)) << columns;
    EXPECT_TRUE(same_bits(got.scales, want.scales)) << columns;
    EXPECT_TRUE(same_bits(got.sums, want.sums)) << columns;
    EXPECT_TRUE(same_bits(got.scaled_sums, want.scaled_sums)) << columns;
  }
}

// x = scale code to half a code, the largest value of a block takes code 127, sums are sums.
TEST_P(IsaInt8, QuantizeIsRight) {
  const std::int64_t columns = 50;
  const auto x = activations(28, columns, 1);
  const Rounded r(*GetParam(), x, columns);
  for (std::int64_t t = 0; t < r.tokens; ++t)
    for (std::int64_t block = 0; block < 2; ++block) {
      float highest = 0;
      std::int32_t sum = 0;
      const std::int64_t count = std::min<std::int64_t>(32, columns - block * 32);
      for (std::int64_t j = 0; j < 32; ++j) {
        const std::int8_t code = r.codes[(t * 2 + block) * 32 + j];
        sum += code;
        EXPECT_GE(code, -127);
        if (j >= count) {
          EXPECT_EQ(code, 0);
          continue;
        }
        const float value = x[t * columns + block * 32 + j];
        highest = std::max(highest, std::fabs(value));
        const float scale = r.scales[t * 2 + block];
        // A block that counts as zero has scale 0 and values of at most 1e-30.
        EXPECT_LE(std::fabs(value - scale * static_cast<float>(code)), 0.5001f * scale + 1e-30f);
      }
      EXPECT_EQ(r.scales[t * 2 + block], highest > 1e-30f ? highest / 127.0f : 0.0f);
      EXPECT_EQ(r.sums[t * 2 + block], sum);
      EXPECT_EQ(r.scaled_sums[t * 2 + block], r.scales[t * 2 + block] * static_cast<float>(sum));
    }
}

// What is not a number must not disappear in a maximum: it would turn a broken model into a finite
// loss. It comes out of every product with the token, and only with that token.
TEST_P(IsaInt8, QuantizeKeepsNotANumber) {
  const Matrix weight = random_matrix(ElementType::kQ4_1, 16, 64, 1);
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF})
    for (std::int64_t at = 0; at < 64; ++at) {
      std::vector<float> x(3 * 64, 1.0f);
      x[64 + at] = bad;
      const Rounded in(*GetParam(), x, 64);
      std::vector<float> y(3 * 16);
      GetParam()->linear_int8(weight.view(), in.view, 0, 3, 0, 1, y.data(), 16, false);
      for (std::int64_t i = 0; i < 48; ++i)
        ASSERT_EQ(std::isnan(y[i]), i / 16 == 1) << bad << " at " << at << ", output " << i;
    }
}

struct Shape {
  std::int64_t rows, columns;
};
constexpr Shape kShapes[] = {{1, 32}, {16, 64}, {40, 96}, {100, 160}};

std::vector<float> linear(const Kernels& kernels, const Matrix& weight, const Rounded& x,
                          std::int64_t begin, std::int64_t end, bool add = false) {
  std::vector<float> y(static_cast<std::size_t>(x.tokens * weight.rows()), add ? 0.25f : 0.0f);
  kernels.linear_int8(weight.view(), x.view, begin, end, 0, weight.view().tiles, y.data(),
                      weight.rows(), add);
  return y;
}

// Every number of tokens up to 20 gives what one at a time gives, and what the scalar kernels give.
TEST_P(IsaInt8, LinearGivesTheSameBitsForAnyBatch) {
  for (const ElementType type : kBlockTypes)
    for (const auto& [rows, columns] : kShapes)
      for (const bool extreme : {false, true}) {
        const Matrix weight = random_matrix(type, rows, columns, 1, extreme);
        const auto x = activations(20, columns, 2);
        const Rounded in(scalar(), x, columns);
        const auto want = linear(scalar(), weight, in, 0, 20);
        std::vector<float> one_by_one(want.size());
        for (std::int64_t t = 0; t < 20; ++t)
          GetParam()->linear_int8(weight.view(), in.view, t, t + 1, 0, weight.view().tiles,
                                  one_by_one.data(), rows, false);
        ASSERT_TRUE(same_bits(one_by_one, want)) << type_name(type) << ' ' << rows;
        for (std::int64_t tokens = 1; tokens <= 20; ++tokens) {
          const auto got = linear(*GetParam(), weight, in, 0, tokens);
          const auto size = static_cast<std::size_t>(tokens * rows);
          ASSERT_TRUE(same_bits(std::span(got).first(size), std::span(want).first(size)))
              << type_name(type) << ' ' << rows << ", " << tokens << " tokens";
        }
        EXPECT_TRUE(same_bits(linear(*GetParam(), weight, in, 3, 20, true),
                              linear(scalar(), weight, in, 3, 20, true)));
      }
}

// Any split into ranges of tiles and tokens: how the work falls to threads changes nothing, and
// nothing outside of a range is written.
TEST_P(IsaInt8, LinearGivesTheSameBitsForAnySplit) {
  for (const ElementType type : kBlockTypes) {
    const Matrix weight = random_matrix(type, 100, 64, 3);  // 7 tiles
    const Rounded in(scalar(), activations(11, 64, 4), 64);
    const auto whole = linear(*GetParam(), weight, in, 0, 11);
    std::vector<float> parts(whole.size(), -1.0f);
    const auto part = [&](std::int64_t tokens, std::int64_t token_end, std::int64_t tile,
                          std::int64_t tile_end) {
      const std::vector<float> before = parts;
      GetParam()->linear_int8(weight.view(), in.view, tokens, token_end, tile, tile_end,
                              parts.data(), 100, false);
      for (std::int64_t t = 0; t < 11; ++t)
        for (std::int64_t n = 0; n < 100; ++n) {
          const bool inside = t >= tokens && t < token_end && n / 16 >= tile && n / 16 < tile_end;
          if (inside) continue;
          ASSERT_EQ(parts[t * 100 + n], before[t * 100 + n]);
        }
    };
    part(0, 5, 0, 3);
    part(5, 11, 0, 3);
    part(0, 11, 3, 4);
    part(0, 2, 4, 7);
    part(2, 11, 4, 7);
    EXPECT_TRUE(same_bits(parts, whole)) << type_name(type);
  }
}

// Against the definition in double, from the same int8 activations: per chunk the integer part is
// exact, then two roundings for its factor and one or two to add it.
TEST_P(IsaInt8, LinearIsRight) {
  WorstError used("tolerance_used");
  for (const ElementType type : kBlockTypes)
    for (const auto& [rows, columns] : kShapes) {
      const Matrix weight = random_matrix(type, rows, columns, 5);
      const Rounded in(*GetParam(), RandomStream(6).normals(9 * columns), columns);
      const auto got = linear(*GetParam(), weight, in, 0, 9);
      std::vector<double> want(got.size()), magnitude(got.size());
      for (std::int64_t t = 0; t < 9; ++t)
        for (std::int64_t n = 0; n < rows; ++n)
          for (std::int64_t j = 0; j < columns; ++j) {
            const std::size_t group = weight.scale_index(n, j / 32);
            const double scale = f16_to_f32(weight.scales()[group]);
            const double offset = weight.has_offsets() ? f16_to_f32(weight.offsets()[group]) : 0.0f;
            const double code = weight.code(n, j) - weight.view().zero_point;
            const double x = double{in.scales[t * in.view.blocks + j / 32]} *
                             in.codes[t * in.view.blocks * 32 + j];
            want[t * rows + n] += (scale * code + offset) * x;
            magnitude[t * rows + n] += (std::fabs(scale * code) + std::fabs(offset)) * std::fabs(x);
          }
      const double chunks = static_cast<double>(columns) / 32;
      used.add(expect_close(got, want, magnitude, 2 * chunks + 4, type_name(type)));
    }
}

// The gradient of scales and offsets against exact sums from the same int8 activations. A group's
// sum has one term per token (its integer part is exact), two roundings in the factor; the blocks
// of 128 tokens are added up on top.
TEST_P(IsaInt8, ScaleGradient) {
  WorstError used("tolerance_used");
  for (const ElementType type : kBlockTypes)
    for (const std::int64_t tokens : {1, 2, 3, 4, 7, 128, 130, 300}) {
      const std::int64_t rows = 40, columns = 96;
      const Matrix weight = random_matrix(type, rows, columns, 7);
      RandomStream random(8, static_cast<std::uint64_t>(tokens));
      const Rounded in(*GetParam(), random.normals(tokens * columns), columns);
      const auto d_y = random.normals(tokens * rows);
      // Tiles 1 and 2 only, on top of what is there.
      const std::int64_t groups = 3;
      const std::size_t size = 2 * groups * 16;
      std::vector<float> d_scale(size, 0.5f), d_offset(size, -0.5f), scratch(128 * 32);
      float* offsets = weight.has_offsets() ? d_offset.data() : nullptr;
      GetParam()->scale_gradient_int8(weight.view(), in.view, d_y.data(), rows, tokens, 1, 3,
                                      d_scale.data(), offsets, scratch.data());
      std::vector<double> want_scale(size, 0.5), want_offset(size, -0.5);
      std::vector<double> scale_terms(size, 0.5), offset_terms(size, 0.5);
      for (std::int64_t n = 16; n < rows; ++n)
        for (std::int64_t g = 0; g < groups; ++g) {
          const auto to = static_cast<std::size_t>(((n / 16 - 1) * groups + g) * 16 + n % 16);
          for (std::int64_t t = 0; t < tokens; ++t) {
            std::int64_t product = 0, sum = 0;
            for (std::int64_t j = g * 32; j < g * 32 + 32; ++j) {
              const std::int64_t code = in.codes[t * columns + j];
              product += (weight.code(n, j) - weight.view().zero_point) * code;
              sum += code;
            }
            const double factor = double{d_y[t * rows + n]} * in.scales[t * groups + g];
            want_scale[to] += factor * static_cast<double>(product);
            want_offset[to] += factor * static_cast<double>(sum);
            scale_terms[to] += std::fabs(factor * static_cast<double>(product));
            offset_terms[to] += std::fabs(factor * static_cast<double>(sum));
          }
        }
      const double roundings = static_cast<double>(tokens) + 6;
      used.add(expect_close(d_scale, want_scale, scale_terms, roundings, type_name(type)));
      if (offsets != nullptr)
        used.add(expect_close(d_offset, want_offset, offset_terms, roundings, type_name(type)));
      else
        EXPECT_TRUE(same_bits(d_offset, std::vector<float>(size, -0.5f)));

      std::vector<float> s_scale(size, 0.5f), s_offset(size, -0.5f);
      scalar().scale_gradient_int8(weight.view(), in.view, d_y.data(), rows, tokens, 1, 3,
                                   s_scale.data(), offsets ? s_offset.data() : nullptr,
                                   scratch.data());
      EXPECT_TRUE(same_bits(d_scale, s_scale)) << type_name(type) << ' ' << tokens;
      EXPECT_TRUE(same_bits(d_offset, s_offset)) << type_name(type) << ' ' << tokens;
    }
}

// Codes as floats against dequantize_row. Scale times code is exact in f32 (11 + 8 bits), so the
// fused and the plain form of scale * code + offset round once and agree to the bit.
TEST_P(IsaInt8, Unpack) {
  const auto check = [&](ElementType type, std::int64_t rows, std::int64_t columns) {
    SCOPED_TRACE(testing::Message() << type_name(type) << ' ' << rows << " x " << columns);
    const Matrix weight = random_matrix(type, rows, columns, 9);
    const MatrixView& view = weight.view();
    const std::int64_t padded = (columns + 31) / 32 * 32;
    std::vector<float> plain(static_cast<std::size_t>(view.tiles * 16 * padded));
    std::vector<float> raw = plain, row(static_cast<std::size_t>(columns));
    for (std::int64_t n = 0; n < rows; ++n) {
      weight.dequantize_row(n, row.data());
      std::copy(row.begin(), row.end(), plain.begin() + n * padded);
      for (std::int64_t j = 0; j < columns; ++j)
        raw[n * padded + j] =
            weight.quantized() ? static_cast<float>(weight.code(n, j) - view.zero_point) : row[j];
    }
    for (const bool want_raw : {false, true}) {
      const std::vector<float>& want = want_raw ? raw : plain;
      for (std::int64_t tile = 0; tile < view.tiles; ++tile) {
        std::vector<float> panel(static_cast<std::size_t>(padded * 16));
        GetParam()->unpack_tile(view, tile, want_raw, panel.data());
        for (std::int64_t j = 0; j < columns; ++j)
          for (std::int64_t r = 0; r < std::min<std::int64_t>(16, rows - tile * 16); ++r)
            ASSERT_EQ(panel[j * 16 + r], want[(tile * 16 + r) * padded + j]) << r << ' ' << j;
      }
      for (std::int64_t chunk = 0; chunk < padded / 32; ++chunk) {
        std::vector<float> panel(static_cast<std::size_t>(view.tiles * 16 * 32));
        GetParam()->unpack_columns(view, chunk, 0, view.tiles, want_raw, panel.data());
        for (std::int64_t n = 0; n < rows; ++n)
          for (std::int64_t j = 0; j < 32; ++j)
            ASSERT_EQ(panel[n * 32 + j], want[n * padded + chunk * 32 + j]) << n << ' ' << j;
      }
    }
    if (!GetParam()->bf16_backward) return;
    for (std::int64_t chunk = 0; chunk < padded / 32; ++chunk) {
      std::vector<bf16> pairs(static_cast<std::size_t>(view.tiles * 16 * 32));
      GetParam()->unpack_columns_bf16(view, chunk, 0, view.tiles, pairs.data());
      for (std::int64_t n = 0; n < rows; ++n)
        for (std::int64_t j = 0; j < 32; ++j)
          ASSERT_EQ(pairs[(n / 2 * 32 + j) * 2 + n % 2],
                    f32_to_bf16(plain[n * padded + chunk * 32 + j]));
    }
  };
  for (const ElementType type : kBlockTypes)
    for (const auto& [rows, columns] : kShapes) check(type, rows, columns);
  for (const ElementType type : kDenseTypes) {
    check(type, 7, 33);
    check(type, 40, 20);
    check(type, 33, 64);
  }
}

}  // namespace
}  // namespace trimpot
