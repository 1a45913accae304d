// What rounding to int8 leaves of blocks that stand out: every instruction set finds the scalar
// one's remainders, and adds their products with the same bits, which are right.
#include <gtest/gtest.h>

#include "kernels/isa_shapes.h"
#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/random_groups.h"

namespace trimpot {
namespace {

struct TwiceRounded {
  TwiceRounded(const Kernels& kernels, const std::vector<float>& x, std::int64_t columns)
      : tokens(static_cast<std::int64_t>(x.size()) / columns),
        blocks(static_cast<std::size_t>(tokens * ((columns + 31) / 32))) {
    const std::int64_t count = (columns + 31) / 32;
    remainders.resize(static_cast<std::size_t>(tokens * most_remainders(count)));
    tiles.resize(static_cast<std::size_t>((tokens + kTiledTokens - 1) / kTiledTokens * count));
    view = {blocks.data(), count, tiles.data(), remainders.data()};
    kernels.quantize(x.data(), columns, columns, 0, tokens, view);
  }
  // Those of a token, as far as they go.
  std::span<const Int8Remainder> of(std::int64_t token) const {
    const std::span all(view.remainders_of(token),
                        static_cast<std::size_t>(most_remainders(view.blocks)));
    std::size_t count = 0;
    while (count < all.size() && all[count].chunk >= 0) ++count;
    return all.first(count);
  }
  std::int64_t tokens;
  std::vector<Int8Block> blocks;
  std::vector<Int8Tile> tiles;
  std::vector<Int8Remainder> remainders;
  Int8View view;
};

// Tokens in which nothing stands out, one channel, two of one block, several blocks, a channel that
// is not the others'; zeros, sizes that squares overflow or lose, what is no number.
std::vector<float> with_outliers(std::int64_t tokens, std::int64_t columns, std::uint64_t seed) {
  RandomStream random(seed);
  std::vector<float> x = random.normals(tokens * columns);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* row = x.data() + t * columns;
    const auto at = [&](std::int64_t channel) -> float& { return row[channel % columns]; };
    if (t % 10 == 1 || t % 10 == 2) at(37) = 200.0f;
    if (t % 10 == 3) at(70) = at(71) = -90.0f;
    if (t % 10 == 4) at(5) = at(300) = at(600) = 60.0f;
    if (t % 10 == 5) at(columns - 1) = 400.0f;
    if (t % 10 == 6) std::fill(row, row + columns, 0.0f);
    if (t % 10 == 7 || t % 10 == 8) {
      at(37) = 200.0f;
      for (std::int64_t j = 0; j < columns; ++j) row[j] *= t % 10 == 7 ? 1e-28f : 1e28f;
    }
    if (t % 10 == 9) at(37) = std::nanf("");
  }
  return x;
}

class IsaRemainders : public testing::TestWithParam<const Kernels*> {};
INSTANTIATE_TEST_SUITE_P(Isas, IsaRemainders, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

bool same_block(const Int8Block& a, const Int8Block& b) {
  return std::memcmp(a.codes, b.codes, sizeof a.codes) == 0 && a.scale == b.scale &&
         a.sum == b.sum && a.scaled_sum == b.scaled_sum;
}

// Catches: a sum of squares in another order, a limit that depends on it, blocks that are changed
// because remainders are wanted.
TEST_P(IsaRemainders, TheScalarOnes) {
  for (const std::int64_t columns : {31, 288, 289, 320, 500, 576, 1000, 1536}) {
    const auto x = with_outliers(40, columns, static_cast<std::uint64_t>(columns));
    const TwiceRounded got(*GetParam(), x, columns), want(scalar(), x, columns);
    std::vector<Int8Block> plain(got.blocks.size());
    const Int8View view{plain.data(), got.view.blocks, got.view.tiles};
    GetParam()->quantize(x.data(), columns, columns, 0, 40, view);
    EXPECT_EQ(0, std::memcmp(plain.data(), got.blocks.data(), plain.size() * sizeof(Int8Block)));
    for (std::int64_t t = 0; t < 40; ++t) {
      if (t % 10 == 9) continue;
      ASSERT_EQ(got.of(t).size(), want.of(t).size()) << columns << " columns, token " << t;
      for (std::size_t i = 0; i < got.of(t).size(); ++i) {
        EXPECT_EQ(got.of(t)[i].chunk, want.of(t)[i].chunk);
        EXPECT_TRUE(same_block(got.of(t)[i].block, want.of(t)[i].block))
            << columns << ", token " << t;
      }
    }
  }
}

// The blocks that stand out, in order, and x = scale code + remainder to half of its code.
TEST_P(IsaRemainders, AreRight) {
  std::int64_t found = 0;
  for (const std::int64_t columns : {320, 500, 576, 1536}) {
    const auto x = with_outliers(40, columns, 3);
    const TwiceRounded r(*GetParam(), x, columns);
    for (std::int64_t t = 0; t < 40; ++t) {
      if (t % 10 == 8 || t % 10 == 9) continue;
      double squares = 0;
      for (std::int64_t b = 0; b < r.view.blocks; ++b)
        squares += std::pow(double{r.view.row(t)[b].scale}, 2);
      std::size_t next = 0;
      const auto of = r.of(t);
      for (std::int64_t b = 0; b < r.view.blocks; ++b) {
        const Int8Block& block = r.view.row(t)[b];
        const double square = std::pow(double{block.scale}, 2) * r.view.blocks;
        const bool listed = next < of.size() && of[next].chunk == b;
        if (t % 10 != 7) {  // squares below the smallest float
          EXPECT_EQ(listed, square > kStandsOut * squares)
              << columns << ", token " << t << ", " << b;
        }
        if (!listed) continue;
        const Int8Block& own = of[next++].block;
        std::int32_t sum = 0;
        for (std::int64_t j = 0; j < 32; ++j) {
          sum += own.codes[j];
          if (b * 32 + j >= columns) {
            EXPECT_EQ(own.codes[j], 0);
            continue;
          }
          const double value = x[t * columns + b * 32 + j];
          const double got =
              double{block.scale} * block.codes[j] + double{own.scale} * own.codes[j];
          // scale * code rounds once, to 2^-24 of a number of 127 codes.
          EXPECT_NEAR(got, value, 0.5001 * own.scale + 127 * 0x1p-24 * block.scale);
        }
        EXPECT_LE(own.scale, 0.51f * block.scale / 127);
        EXPECT_EQ(own.sum, sum);
        EXPECT_EQ(own.scaled_sum, own.scale * static_cast<float>(sum));
      }
      EXPECT_EQ(next, of.size());
      found += static_cast<std::int64_t>(of.size());
    }
  }
  EXPECT_GT(found, 40);
}

std::vector<float> added(const Kernels& kernels, const Matrix& weight, const TwiceRounded& x,
                         std::int64_t begin, std::int64_t end, std::int64_t tile,
                         std::int64_t tile_end, const GroupArrays* of_token = nullptr) {
  std::vector<float> y(static_cast<std::size_t>(x.tokens * weight.rows()), 0.25f);
  kernels.add_remainders(weight.view(), x.view, begin, end, tile, tile_end, of_token, y.data(),
                         weight.rows());
  return y;
}

// Any range of tokens and tiles: the scalar kernels' bits inside, and nothing else is written.
TEST_P(IsaRemainders, TheSameBitsForAnyRange) {
  for (const MatrixFormat& format : all_formats())
    for (const std::int64_t rows : {16, 100}) {
      const std::int64_t columns = format.column_unit == 1 ? 349 : 352, tokens = 20;
      const Matrix weight = format.make(rows, columns, 1, false);
      const TwiceRounded in(scalar(), with_outliers(tokens, columns, 2), columns);
      const std::int64_t tiles = weight.view().tiles;
      const auto want = added(scalar(), weight, in, 0, tokens, 0, tiles);
      for (const auto& [begin, end, tile, tile_end] :
           {std::array<std::int64_t, 4>{0, tokens, 0, tiles},
            {1, 2, 0, tiles},
            {0, 1, 0, tiles},
            {2, 9, tiles / 2, tiles},
            {5, 5, 0, tiles},
            {6, 7, 0, 1}}) {
        const auto got = added(*GetParam(), weight, in, begin, end, tile, tile_end);
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t n = 0; n < rows; ++n) {
            const bool inside = t >= begin && t < end && n / 16 >= tile && n / 16 < tile_end;
            const float expected = inside ? want[t * rows + n] : 0.25f;
            if (std::isnan(expected) && std::isnan(got[t * rows + n])) continue;
            ASSERT_EQ(got[t * rows + n], expected)
                << format.name << ", token " << t << ", row " << n;
          }
      }
    }
}

TEST_P(IsaRemainders, WithNumbersOfEachToken) {
  constexpr std::int64_t kRows = 40, kTokens = 9;
  for (const MatrixFormat& format : all_formats()) {
    const std::int64_t columns = format.column_unit == 1 ? 349 : 352;
    const Matrix weight = format.make(kRows, columns, 5, false);
    Matrix other = weight.clone();
    for (f16& scale : other.scales()) scale = f32_to_f16(f16_to_f32(scale) * 0.5f);
    for (f16& zero : other.zeros()) zero = f32_to_f16(f16_to_f32(zero) + 1.0f);
    for (f16& offset : other.offsets()) offset = f32_to_f16(f16_to_f32(offset) * 2.0f);
    const TwiceRounded in(scalar(), with_outliers(kTokens, columns, 6), columns);
    std::vector<GroupArrays> of_token;
    std::vector<float> want(kTokens * kRows, 0.25f);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Matrix& own = t % 2 == 0 ? weight : other;
      of_token.push_back({own.view().scales, own.view().zeros, own.view().offsets});
      scalar().add_remainders(own.view(), in.view, t, t + 1, 0, weight.view().tiles, nullptr,
                              want.data(), kRows);
    }
    EXPECT_TRUE(same_bits(
        added(*GetParam(), weight, in, 0, kTokens, 0, weight.view().tiles, of_token.data()), want))
        << format.name;
  }
}

// Against the definition in double: for each remainder an exact integer part, then at most four
// roundings, and those of adding it.
TEST_P(IsaRemainders, ProductsAreRight) {
  WorstError used("tolerance_used");
  // NF4's levels in int8 products (isa_int8_test.cc checks them) are not those of the file.
  for (const MatrixFormat& format : all_formats()) {
    constexpr std::int64_t kRows = 40, kTokens = 9;
    const std::int64_t columns = format.column_unit == 1 ? 1533 : 1536;
    const Matrix weight = format.make(kRows, columns, 5, false);
    if (weight.view().book == CodeBook::kNf4) continue;
    const TwiceRounded in(*GetParam(), with_outliers(kTokens, columns, 7), columns);
    const auto got = added(*GetParam(), weight, in, 0, kTokens, 0, weight.view().tiles);
    std::vector<double> want(got.size(), 0.25), magnitude(got.size(), 0.25);
    for (std::int64_t t = 0; t < kTokens; ++t)
      for (const Int8Remainder& own : in.of(t))
        for (std::int64_t j = 32 * own.chunk; j < std::min(columns, 32 * own.chunk + 32L); ++j)
          for (std::int64_t n = 0; n < kRows; ++n) {
            const WeightParts w = weight_parts(weight, n, j);
            const double x = double{own.block.scale} * own.block.codes[j % 32];
            want[t * kRows + n] += w.value() * x;
            magnitude[t * kRows + n] +=
                (std::fabs(w.scale) * (std::fabs(w.level) + std::fabs(w.zero)) +
                 std::fabs(w.offset)) *
                std::fabs(x);
          }
    used.add(expect_close(got, want, magnitude, 4.0 + 2 * 5, format.name));
  }
}

}  // namespace
}  // namespace trimpot
