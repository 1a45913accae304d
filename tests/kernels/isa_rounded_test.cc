// Numbers rounded to 16 bits, whole ones or bf16, and their products.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/random.h"

namespace trimpot {
namespace {

using Floats = std::vector<float>;

class IsaRounded : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isas, IsaRounded, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

// c [tokens, columns] against `before` (where it was added to) and the sums of term(t, n, j) over
// n. Sums of a block are exact; one as a float, the product of scales and the addition are rounded.
template <class Term>
double expect_sums(const Floats& c, const Floats& before, std::int64_t tokens, std::int64_t rows,
                   int columns, bool add, Term&& term) {
  const std::int64_t c_stride = columns + 3;
  std::vector<double> want = widened(before), magnitude(want.size());
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = add ? before[t * c_stride + j] : 0.0, terms = std::fabs(sum);
      for (std::int64_t n = 0; n < rows; ++n) {
        const double product = term(t, n, j);
        sum += product;
        terms += std::fabs(product);
      }
      want[t * c_stride + j] = sum;
      magnitude[t * c_stride + j] = terms;
    }
  const std::int64_t blocks = (rows + kRoundedBlock - 1) / kRoundedBlock;
  return expect_close(c, want, magnitude, 3.0 * static_cast<double>(blocks) + 1, "c");
}

// Catches: a sum that overflows, a block with another's scale, rows beyond the last pair, columns
// that are stored but not wanted.
TEST_P(IsaRounded, MultiplyInt16) {
  if (!rounds_to_int16(*GetParam())) GTEST_SKIP() << "no products of 16-bit whole numbers";
  WorstError used("tolerance_used");
  for (const std::int64_t rows : {2, 16, 34, 128, 200, 386})
    for (const std::int64_t tokens : {1, 3, 4, 12, 13, 29})
      for (const int columns : {1, 16, 20, 32})
        for (const bool add : {false, true})
          for (const bool largest : {false, true}) {
            RandomStream random(6, static_cast<std::uint64_t>(rows));
            const std::int64_t stride = rows + 6, c_stride = columns + 3;
            const std::int64_t blocks = (rows + kRoundedBlock - 1) / kRoundedBlock;
            std::vector<std::int16_t> d_y(static_cast<std::size_t>(tokens * stride));
            std::vector<std::int16_t> panel(static_cast<std::size_t>(rows * 32));
            const auto number = [&] {
              return static_cast<std::int16_t>(
                  largest ? 4095 : static_cast<int>(random.bits() % 8191) - 4095);
            };
            for (std::int16_t& value : d_y) value = number();
            for (std::int16_t& value : panel) value = number();
            Floats scales = random.normals(tokens * (blocks + 1));
            const Floats panel_scales = random.normals(blocks);
            Floats c = random.normals(tokens * c_stride);
            const Floats before = c;
            const RoundedView view{d_y.data(), stride, scales.data(), blocks + 1};
            GetParam()->multiply_rounded(view, panel.data(), panel_scales.data(), rows, 0, tokens,
                                         c.data(), c_stride, columns, add);
            used.add(expect_sums(c, before, tokens, rows, columns, add,
                                 [&](std::int64_t t, std::int64_t n, std::int64_t j) {
                                   const std::int64_t block = n / kRoundedBlock;
                                   return double{scales[t * (blocks + 1) + block]} *
                                          panel_scales[block] * d_y[t * stride + n] *
                                          panel[(n / 2 * 32 + j) * 2 + n % 2];
                                 }));
          }
}

// Catches: a tail that is not rounded or padded, a scale for the wrong numbers, numbers overwritten
// before they are read, infinities and NaN that become numbers.
TEST_P(IsaRounded, ToInt16) {
  if (!rounds_to_int16(*GetParam())) GTEST_SKIP() << "no products of 16-bit whole numbers";
  for (const std::int64_t count : {1, 2, 15, 16, 33, 127, 128, 129, 300}) {
    const auto blocks = static_cast<std::size_t>((count + kRoundedBlock - 1) / kRoundedBlock);
    Floats x = RandomStream(8).normals(count);
    if (count > 200)
      for (std::int64_t i = 128; i < 256; ++i) x[i] = 0.0f;
    std::vector<std::int16_t> codes(static_cast<std::size_t>(count + 3), 7);
    Floats scales(blocks);
    GetParam()->round_row(x.data(), count, codes.data(), scales.data());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = i / kRoundedBlock * kRoundedBlock;
      float highest = 0.0f;
      for (std::int64_t k = begin; k < std::min(count, begin + kRoundedBlock); ++k)
        highest = std::max(highest, std::fabs(x[k]));
      const float scale = scales[static_cast<std::size_t>(i / kRoundedBlock)];
      EXPECT_EQ(scale, highest / 4095.0f);
      EXPECT_LE(std::abs(codes[i]), 4095);
      // Half a step and three roundings of up to 4095 steps in f32.
      EXPECT_NEAR(double{scale} * codes[i], x[i], 0.501 * scale);
    }
    EXPECT_EQ(codes[count], count % 2 == 0 ? 7 : 0);
    EXPECT_EQ(codes[count + 1], 7);
    Floats row = x, again(blocks);
    row.push_back(0.0f);
    GetParam()->round_row(row.data(), count, reinterpret_cast<std::int16_t*>(row.data()),
                          again.data());
    EXPECT_EQ(std::memcmp(row.data(), codes.data(), static_cast<std::size_t>(count) * 2), 0);
    EXPECT_EQ(again, scales);
    for (const float bad : {INFINITY, -INFINITY, std::nanf("")}) {
      Floats broken = x;
      broken[static_cast<std::size_t>(count - 1)] = bad;
      GetParam()->round_row(broken.data(), count, codes.data(), scales.data());
      EXPECT_TRUE(std::isnan(scales.back()));
    }
  }
}

// Catches, as MultiplyInt16 does, and 128 taken away too often or not at all. `largest`: sums of
// 128 x 255 x 127 fit.
TEST_P(IsaRounded, MultiplyBytes) {
  if (GetParam()->multiply_bytes == nullptr) GTEST_SKIP() << "no products of bytes";
  WorstError used("tolerance_used");
  for (const std::int64_t rows : {4, 16, 36, 128, 200, 388})
    for (const std::int64_t tokens : {1, 3, 4, 12, 13, 29})
      for (const int columns : {1, 16, 20, 32})
        for (const bool add : {false, true})
          for (const bool largest : {false, true}) {
            RandomStream random(6, static_cast<std::uint64_t>(rows));
            const std::int64_t stride = rows + 12, c_stride = columns + 3;
            const std::int64_t blocks = (rows + kRoundedBlock - 1) / kRoundedBlock;
            std::vector<std::int8_t> d_y(static_cast<std::size_t>(tokens * stride));
            std::vector<std::uint8_t> panel(static_cast<std::size_t>(rows * 32));
            const auto number = [&] {
              return largest ? 127 : static_cast<int>(random.bits() % 255) - 127;
            };
            for (std::int8_t& value : d_y) value = static_cast<std::int8_t>(number());
            for (std::uint8_t& value : panel) value = static_cast<std::uint8_t>(128 + number());
            Floats scales = random.normals(tokens * (blocks + 1));
            std::vector<std::int32_t> sums(scales.size());
            for (std::int64_t t = 0; t < tokens; ++t)
              for (std::int64_t n = 0; n < rows; ++n)
                sums[t * (blocks + 1) + n / kRoundedBlock] += d_y[t * stride + n];
            const Floats panel_scales = random.normals(blocks);
            Floats c = random.normals(tokens * c_stride);
            const Floats before = c;
            GetParam()->multiply_bytes(
                {{d_y.data(), stride, scales.data(), blocks + 1}, sums.data()}, panel.data(),
                panel_scales.data(), rows, 0, tokens, c.data(), c_stride, columns, add);
            used.add(expect_sums(c, before, tokens, rows, columns, add,
                                 [&](std::int64_t t, std::int64_t n, std::int64_t j) {
                                   const std::int64_t block = n / kRoundedBlock;
                                   return double{scales[t * (blocks + 1) + block]} *
                                          panel_scales[block] * d_y[t * stride + n] *
                                          (panel[(n / 4 * 32 + j) * 4 + n % 4] - 128);
                                 }));
          }
}

// As ToInt16; and a sum that is not of the codes.
TEST_P(IsaRounded, ToBytes) {
  if (GetParam()->round_row_bytes == nullptr) GTEST_SKIP() << "no products of bytes";
  for (const std::int64_t count : {1, 2, 15, 16, 33, 127, 128, 129, 300}) {
    const auto blocks = static_cast<std::size_t>((count + kRoundedBlock - 1) / kRoundedBlock);
    Floats x = RandomStream(8).normals(count);
    if (count > 200)
      for (std::int64_t i = 128; i < 256; ++i) x[i] = 0.0f;
    std::vector<std::int8_t> codes(static_cast<std::size_t>(count + 4), 7);
    Floats scales(blocks);
    std::vector<std::int32_t> sums(blocks), want(blocks);
    GetParam()->round_row_bytes(x.data(), count, 0, codes.data(), scales.data(), sums.data());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = i / kRoundedBlock * kRoundedBlock;
      float highest = 0.0f;
      for (std::int64_t k = begin; k < std::min(count, begin + kRoundedBlock); ++k)
        highest = std::max(highest, std::fabs(x[k]));
      const float scale = scales[static_cast<std::size_t>(i / kRoundedBlock)];
      EXPECT_EQ(scale, highest / 127.0f);
      EXPECT_LE(std::abs(codes[i]), 127);
      EXPECT_NEAR(double{scale} * codes[i], x[i], 0.501 * scale);
      want[static_cast<std::size_t>(i / kRoundedBlock)] += codes[i];
    }
    EXPECT_EQ(sums, want);
    for (std::int64_t i = count; i < count + 4; ++i)
      EXPECT_EQ(codes[i], i < (count + 3) / 4 * 4 ? 0 : 7);
    for (const float bad : {INFINITY, -INFINITY, std::nanf("")}) {
      Floats broken = x;
      broken[static_cast<std::size_t>(count - 1)] = bad;
      GetParam()->round_row_bytes(broken.data(), count, 0, codes.data(), scales.data(),
                                  sums.data());
      EXPECT_TRUE(std::isnan(scales.back()));
    }
  }
}

// Catches: small numbers that are lost beside a large one, all of a row's blocks with the same
// dither, padding that is not 0, codes that turn over. 4096 numbers of 0.3 steps: their codes'
// standard deviation is 0.46, of the mean 0.0072; 5 of them are allowed.
TEST_P(IsaRounded, Dither) {
  if (GetParam()->round_row_bytes == nullptr) GTEST_SKIP() << "no products of bytes";
  constexpr std::int64_t kCount = 4096 + 5;
  Floats x(kCount, 0.3f);
  for (std::int64_t i = 0; i < kCount; i += kRoundedBlock) x[i] = 126.0f;
  std::vector<std::int8_t> codes(kCount + 3), again(codes.size());
  Floats scales(kCount / kRoundedBlock + 1);
  std::vector<std::int32_t> sums(scales.size());
  for (const std::uint32_t dither : {1u, 2u, 0x9e3779b9u}) {
    GetParam()->round_row_bytes(x.data(), kCount, dither, codes.data(), scales.data(), sums.data());
    std::int64_t sum = 0, count = 0, all = 0;
    for (std::int64_t i = 0; i < kCount; ++i) {
      all += codes[i];
      if (i % kRoundedBlock == 0) {
        EXPECT_NEAR(codes[i], 126, 1);
        continue;
      }
      EXPECT_NEAR(codes[i], 0.3, 1.0);
      sum += codes[i];
      ++count;
    }
    EXPECT_NEAR(static_cast<double>(sum) / static_cast<double>(count), 0.3, 5 * 0.0072);
    EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), std::int64_t{0}), all);
    for (std::int64_t i = kCount; i < kCount + 3; ++i) EXPECT_EQ(codes[i], 0);
    EXPECT_NE(std::memcmp(codes.data() + 1, codes.data() + kRoundedBlock + 1, kRoundedBlock - 1),
              0);
    GetParam()->round_row_bytes(x.data(), kCount, dither, again.data(), scales.data(), sums.data());
    EXPECT_EQ(again, codes);
  }
}

// Catches: tails of tokens, rows or columns that are left out or read beyond their end, sums that
// are not added. Products of bf16 are exact in a float; each is added with one rounding.
TEST_P(IsaRounded, MultiplyBf16) {
  if (!rounds_to_bf16(*GetParam())) GTEST_SKIP() << "no products of bf16";
  WorstError used("tolerance_used");
  for (const std::int64_t rows : {2, 16, 34, 128, 200, 386})
    for (const std::int64_t tokens : {1, 15, 16, 17, 32, 33, 61})
      for (const int columns : {1, 16, 20, 32})
        for (const bool add : {false, true}) {
          RandomStream random(6, static_cast<std::uint64_t>(rows));
          const std::int64_t stride = rows + 6, c_stride = columns + 3;
          const auto halves = [&](std::int64_t count) {
            std::vector<std::int16_t> out(static_cast<std::size_t>(count));
            for (std::int16_t& half : out)
              half = static_cast<std::int16_t>(f32_to_bf16(random.normals(1)[0]));
            return out;
          };
          auto d_y = halves(tokens * stride);
          const auto panel = halves(rows * 32);
          const auto value = [](std::int16_t half) {
            return double{bf16_to_f32(static_cast<bf16>(half))};
          };
          Floats c = random.normals(tokens * c_stride);
          const Floats before = c;
          GetParam()->multiply_rounded({d_y.data(), stride, nullptr, 0}, panel.data(), nullptr,
                                       rows, 0, tokens, c.data(), c_stride, columns, add);
          std::vector<double> want = widened(before), magnitude(want.size());
          for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t j = 0; j < columns; ++j) {
              double sum = add ? before[t * c_stride + j] : 0.0, terms = std::fabs(sum);
              for (std::int64_t n = 0; n < rows; ++n) {
                const double product =
                    value(d_y[t * stride + n]) * value(panel[(n / 2 * 32 + j) * 2 + n % 2]);
                sum += product;
                terms += std::fabs(product);
              }
              want[t * c_stride + j] = sum;
              magnitude[t * c_stride + j] = terms;
            }
          used.add(expect_close(c, want, magnitude, static_cast<double>(rows) + 1, "c"));
          // Any split of the tokens gives the same bits.
          for (const std::int64_t split : {1, 16, 20}) {
            if (split >= tokens) continue;
            Floats parts = before;
            for (const auto& [begin, end] : {std::pair{std::int64_t{0}, split}, {split, tokens}})
              GetParam()->multiply_rounded({d_y.data(), stride, nullptr, 0}, panel.data(), nullptr,
                                           rows, begin, end, parts.data(), c_stride, columns, add);
            EXPECT_EQ(parts, c) << split;
          }
        }
}

// Catches: a panel or its scales taken from the wrong place, tiles that still have the shape of the
// panel before when the last one is narrower or tokens end with a smaller block.
TEST_P(IsaRounded, PanelsAreProductsOfTheirOwn) {
  if (GetParam()->rounded == nullptr) GTEST_SKIP() << "no products of rounded numbers";
  const bool whole = rounds_to_int16(*GetParam());
  for (const std::int64_t depth : {2, 64, 74, 140})
    for (const std::int64_t count : {1, 32, 45})
      for (const std::int64_t columns : {20, 64, 77})
        for (const bool add : {false, true}) {
          RandomStream random(7, static_cast<std::uint64_t>(depth));
          const std::int64_t stride = depth + 2, c_stride = columns + 3, size = depth * 32 + 64;
          const std::int64_t panels = (columns + 31) / 32, blocks = (depth + 127) / 128 + 1;
          std::vector<std::int16_t> rows(static_cast<std::size_t>(count * stride));
          std::vector<std::int16_t> panel(static_cast<std::size_t>(panels * size));
          for (std::vector<std::int16_t>* halves : {&rows, &panel})
            for (std::int16_t& half : *halves)
              half = whole ? static_cast<std::int16_t>(random.bits() % 8191 - 4095)
                           : static_cast<std::int16_t>(f32_to_bf16(random.normals(1)[0]));
          Floats scales = random.normals(count * blocks);
          Floats panel_scales = random.normals(panels * blocks);
          const RoundedView view{rows.data(), stride, scales.data(), blocks};
          const RoundedPanels second{panel.data(), size, panel_scales.data(), blocks};
          Floats c = random.normals(count * c_stride), want = c;
          GetParam()->multiply_panels(view, count, depth, second, columns, c.data(), c_stride, add);
          for (std::int64_t i = 0; i < panels; ++i)
            GetParam()->multiply_rounded(
                view, panel.data() + i * size, panel_scales.data() + i * blocks, depth, 0, count,
                want.data() + 32 * i, c_stride,
                static_cast<int>(std::min<std::int64_t>(32, columns - 32 * i)), add);
          EXPECT_EQ(c, want) << depth << ' ' << count << ' ' << columns;
        }
}

// Catches: a tail that is not rounded or padded, numbers overwritten before they are read,
// infinities and NaN that become numbers.
TEST_P(IsaRounded, ToBf16) {
  if (!rounds_to_bf16(*GetParam())) GTEST_SKIP() << "no products of bf16";
  for (const std::int64_t count : {1, 2, 15, 16, 17, 31, 33, 300}) {
    const Floats x = RandomStream(8).normals(count);
    std::vector<std::int16_t> codes(static_cast<std::size_t>(count + 3), 7);
    GetParam()->round_row(x.data(), count, codes.data(), nullptr);
    for (std::int64_t i = 0; i < count; ++i)
      ASSERT_EQ(static_cast<bf16>(codes[i]), f32_to_bf16(x[i])) << i << " of " << count;
    EXPECT_EQ(codes[count], count % 2 == 0 ? 7 : 0);
    EXPECT_EQ(codes[count + 1], 7);
    Floats row = x;
    row.push_back(0.0f);
    GetParam()->round_row(row.data(), count, reinterpret_cast<std::int16_t*>(row.data()), nullptr);
    EXPECT_EQ(std::memcmp(row.data(), codes.data(), static_cast<std::size_t>(count) * 2), 0);
    for (const float bad : {INFINITY, -INFINITY, std::nanf("")}) {
      Floats broken = x;
      broken[static_cast<std::size_t>(count - 1)] = bad;
      GetParam()->round_row(broken.data(), count, codes.data(), nullptr);
      EXPECT_FALSE(std::isfinite(bf16_to_f32(static_cast<bf16>(codes[count - 1]))));
    }
  }
}

// Catches: rows paired with the wrong ones, tails read beyond their end or not zeroed, a block of
// 128 rows with another's scale. Each number is within half a step of what was rounded, and a
// block's largest one is the largest whole number; what is not finite stays so.
TEST_P(IsaRounded, Operands) {
  if (GetParam()->rounded == nullptr) GTEST_SKIP() << "no products of rounded numbers";
  const bool whole = rounds_to_int16(*GetParam());
  for (const std::int64_t count : {1, 2, 15, 16, 31, 32, 47, 128, 200})
    for (const int columns : {1, 15, 16, 17, 32}) {
      const std::int64_t stride = columns + 1, blocks = (count + 127) / 128;
      Floats x = RandomStream(11).normals((count - 1) * stride + columns);
      const auto at = [&](std::int64_t row, std::int64_t column) {
        return row < count && column < columns ? x[row * stride + column] : 0.0f;
      };
      const auto expect_rounded = [&](std::int16_t is, float scale, float value) {
        if (whole) {
          EXPECT_NEAR(double{scale} * is, value, 0.501 * scale);
        } else {
          EXPECT_EQ(static_cast<bf16>(is), f32_to_bf16(value));
        }
      };
      std::vector<std::int16_t> codes(static_cast<std::size_t>((count + 1) / 2 * 64), 7);
      Floats scales(static_cast<std::size_t>(blocks));
      const RoundedPanels panel{codes.data(), 0, scales.data(), blocks};
      GetParam()->round_pairs(x.data(), stride, count, columns, panel);
      std::vector<int> most(static_cast<std::size_t>(blocks));
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(codes.size()); ++i) {
        const std::int64_t row = i / 64 * 2 + i % 2;
        const auto block = static_cast<std::size_t>(std::min(row, count - 1) / kRoundedBlock);
        expect_rounded(codes[i], scales[block], at(row, i / 2 % 32));
        most[block] = std::max(most[block], std::abs(int{codes[i]}));
      }
      if (whole) {
        EXPECT_EQ(most, std::vector<int>(static_cast<std::size_t>(blocks), 4095));
      }
      if (count <= kRoundedBlock) {
        const std::int64_t padded = count + count % 2, width = padded + 3;
        std::vector<std::int16_t> turned(static_cast<std::size_t>(columns * width), 7);
        Floats of_rows(static_cast<std::size_t>(columns));
        GetParam()->round_columns(x.data(), stride, count, columns,
                                  {turned.data(), width, of_rows.data(), 1});
        for (std::int64_t column = 0; column < columns; ++column)
          for (std::int64_t row = 0; row < width; ++row) {
            const std::int16_t is = turned[column * width + row];
            if (row < padded) {
              expect_rounded(is, of_rows[column], at(row, column));
            } else {
              EXPECT_EQ(is, 7);
            }
          }
      }
      x.back() = INFINITY;
      GetParam()->round_pairs(x.data(), stride, count, columns, panel);
      if (whole) {
        EXPECT_TRUE(std::isnan(scales.back()));
      }
    }
}

}  // namespace
}  // namespace trimpot
