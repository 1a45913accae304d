// The kernels on packed codes and int8 activations: every instruction set gives the bits of the
// scalar one, whose results are right.
#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "kernels/isa_shapes.h"
#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/random_groups.h"

namespace trimpot {
namespace {

// Activations that were rounded by one of the kernel sets.
struct Rounded {
  Rounded(const Kernels& kernels, const std::vector<float>& x, std::int64_t columns)
      : Rounded(static_cast<std::int64_t>(x.size()) / columns, (columns + 31) / 32) {
    kernels.quantize(x.data(), columns, columns, 0, tokens, view);
    if (!kernels.tiled) fill_tiles();
  }
  Rounded(std::int64_t tokens, std::int64_t blocks)
      : tokens(tokens),
        blocks(tokens * blocks),
        tiles((tokens + kTiledTokens - 1) / kTiledTokens * blocks) {
    view = {this->blocks.data(), blocks, tiles.data()};
  }
  void fill_tiles() {
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < view.blocks; ++i) {
        Int8Tile& tile = tiles[t / kTiledTokens * view.blocks + i];
        std::memcpy(tile.codes[t % kTiledTokens], block(t, i).codes, 32);
        tile.scales[t % kTiledTokens] = block(t, i).scale;
        tile.scaled_sums[t % kTiledTokens] = block(t, i).scaled_sum;
      }
  }
  const Int8Block& block(std::int64_t token, std::int64_t index) const {
    return view.row(token)[index];
  }
  std::span<const std::int8_t> bytes() const {
    return {blocks.data()->codes, blocks.size() * sizeof(Int8Block)};
  }
  std::span<const std::int8_t> tile_bytes() const {
    return {tiles.data()->codes[0], tiles.size() * sizeof(Int8Tile)};
  }
  std::int64_t tokens;
  std::vector<Int8Block> blocks;
  std::vector<Int8Tile> tiles;
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
    EXPECT_TRUE(same_bits(got.bytes(), want.bytes())) << columns;
    EXPECT_TRUE(same_bits(got.tile_bytes(), want.tile_bytes())) << columns;
  }
}

// x = scale code to half a code, the largest value of a block takes code 127, sums are sums.
TEST_P(IsaInt8, QuantizeIsRight) {
  const std::int64_t columns = 50;
  const auto x = activations(28, columns, 1);
  const Rounded r(*GetParam(), x, columns);
  for (std::int64_t t = 0; t < r.tokens; ++t)
    for (std::int64_t block = 0; block < 2; ++block) {
      const Int8Block& got = r.block(t, block);
      float highest = 0;
      std::int32_t sum = 0;
      const std::int64_t count = std::min<std::int64_t>(32, columns - block * 32);
      for (std::int64_t j = 0; j < 32; ++j) {
        const std::int8_t code = got.codes[j];
        sum += code;
        EXPECT_GE(code, -127);
        if (j >= count) {
          EXPECT_EQ(code, 0);
          continue;
        }
        const float value = x[t * columns + block * 32 + j];
        highest = std::max(highest, std::fabs(value));
        // A block that counts as zero has scale 0 and values of at most 1e-30.
        EXPECT_LE(std::fabs(value - got.scale * static_cast<float>(code)),
                  0.5001f * got.scale + 1e-30f);
      }
      EXPECT_EQ(got.scale, highest > 1e-30f ? highest / 127.0f : 0.0f);
      EXPECT_EQ(got.sum, sum);
      EXPECT_EQ(got.scaled_sum, got.scale * static_cast<float>(sum));
      EXPECT_FALSE(std::signbit(got.scaled_sum) && got.scaled_sum == 0.0f);
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
      GetParam()->linear_int8(weight.view(), in.view, 0, 3, 0, 1, nullptr, nullptr, y.data(), 16,
                              false);
      for (std::int64_t i = 0; i < 48; ++i)
        ASSERT_EQ(std::isnan(y[i]), i / 16 == 1) << bad << " at " << at << ", output " << i;
    }
}

// NF4's levels in int8 products: whole numbers times the f32 nearest to 1 / 112.03. Worked out
// apart from the library's table.
constexpr int kNf4Products[16] = {-112, -78, -59, -44, -32, -21, -10, 0,
                                  9,    18,  28,  38,  49,  63,  81,  112};
WeightParts product_parts(const Matrix& weight, std::int64_t row, std::int64_t column) {
  WeightParts parts = weight_parts(weight, row, column);
  if (weight.view().book == CodeBook::kNf4)
    parts.level = kNf4Products[weight.code(row, column)] * double{1.0f / 112.03f};
  return parts;
}

std::vector<float> linear(const Kernels& kernels, const Matrix& weight, const Rounded& x,
                          std::int64_t begin, std::int64_t end, bool add = false) {
  std::vector<float> y(static_cast<std::size_t>(x.tokens * weight.rows()), add ? 0.25f : 0.0f);
  kernels.linear_int8(weight.view(), x.view, begin, end, 0, weight.view().tiles, nullptr, nullptr,
                      y.data(), weight.rows(), add);
  return y;
}

// Tokens of one prompt are scored together: a broken one must not reach those before it, which
// decoding computes without it.
TEST_P(IsaInt8, ABrokenValueLeavesEarlierTokensAlone) {
  const AttentionShape shape{2, 1, 64};
  constexpr std::int64_t kTokens = 40;
  Compute compute(*GetParam(), Precision::kDefault, 2);
  const auto run = [&](float bad) {
    RandomStream random(5);
    Floats q = random.normals(kTokens * shape.q_width(), 1.0f), out(q.size());
    Floats k = random.normals(kTokens * shape.kv_width(), 1.0f);
    Floats v = random.normals(kTokens * shape.kv_width(), 1.0f);
    v.back() += bad;
    KeyValues cache;
    cache.allocate(compute, shape, kTokens, CacheType::kInt8);
    cache.store(compute, shape, 0, kTokens, k.data(), v.data());
    const Segment segment{0, kTokens, 0, &cache};
    attention(compute, shape, {&segment, 1}, q.data(), out.data(), nullptr);
    return out;
  };
  const Floats want = run(0.0f), got = run(std::nanf(""));
  const std::int64_t earlier = (kTokens - 1) * shape.q_width();
  EXPECT_TRUE(std::isnan(got.back()));
  EXPECT_TRUE(std::equal(want.begin(), want.begin() + earlier, got.begin()));
}

// A key that is not a number reaches each token that sees it, and no other. Catches: an exponential
// that takes NaN for a score of nearly no weight, which leaves finite and wrong outputs.
TEST_P(IsaInt8, ABrokenKeyDoesNotDisappear) {
  const AttentionShape shape{2, 1, 64};
  constexpr std::int64_t kTokens = 40, kBroken = 30;
  Compute compute(*GetParam(), Precision::kDefault, 2);
  RandomStream random(5);
  Floats q = random.normals(kTokens * shape.q_width(), 1.0f), out(q.size());
  Floats k = random.normals(kTokens * shape.kv_width(), 1.0f);
  Floats v = random.normals(kTokens * shape.kv_width(), 1.0f);
  k[kBroken * 64 + 5] = std::nanf("");
  for (const CacheType type : {CacheType::kFloat, CacheType::kInt8}) {
    KeyValues cache;
    cache.allocate(compute, shape, kTokens, type);
    Floats k_row = k, v_row = v;
    cache.store(compute, shape, 0, kTokens, k_row.data(), v_row.data());
    const Segment segment{0, kTokens, 0, &cache};
    attention(compute, shape, {&segment, 1}, q.data(), out.data(), nullptr);
    for (std::int64_t token = 0; token < kTokens; ++token)
      EXPECT_EQ(std::isfinite(out[token * shape.q_width()]), token < kBroken) << token;
  }
}

// f16 ends at 65504. Catches: infinite values, of which 0 times is not a number in the sums of
// queries that do not see them, so that a prompt is not what its tokens are one by one.
TEST_P(IsaInt8, KeysAndValuesBeyondF16) {
  const AttentionShape shape{2, 1, 64};
  constexpr std::int64_t kTokens = 40;
  Compute compute(*GetParam(), Precision::kDefault, 2);
  RandomStream random(5);
  Floats q = random.normals(kTokens * shape.q_width(), 1e-3f), out(q.size()), one(q.size());
  Floats k = random.normals(kTokens * shape.kv_width(), 1.0f);
  Floats v = random.normals(kTokens * shape.kv_width(), 1.0f);
  k[30 * 64 + 5] = 7e4f;
  v[31 * 64 + 7] = -1e6f;
  KeyValues whole, grown;
  for (KeyValues* cache : {&whole, &grown})
    cache->allocate(compute, shape, kTokens, CacheType::kFloat);
  Floats k_row = k, v_row = v;
  whole.store(compute, shape, 0, kTokens, k_row.data(), v_row.data());
  const Segment all{0, kTokens, 0, &whole};
  attention(compute, shape, {&all, 1}, q.data(), out.data(), nullptr);
  for (std::int64_t token = 0; token < kTokens; ++token) {
    grown.store(compute, shape, token, 1, k.data() + token * 64, v.data() + token * 64);
    const Segment last{0, 1, token, &grown};
    const std::int64_t at = token * shape.q_width();
    attention(compute, shape, {&last, 1}, q.data() + at, one.data() + at, nullptr);
  }
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
  EXPECT_TRUE(std::equal(out.begin(), out.end(), one.begin()));
}

// Every number of tokens gives what one at a time gives, and what the scalar kernels give.
TEST_P(IsaInt8, LinearGivesTheSameBitsForAnyBatch) {
  for (const MatrixFormat& format : all_formats())
    for (const Shape& shape : kShapes)
      for (const bool extreme : {false, true}) {
        const std::int64_t rows = shape.rows, columns = fitting(format, shape.columns);
        const Matrix weight = format.make(rows, columns, 1, extreme);
        const auto x = activations(20, columns, 2);
        const Rounded in(scalar(), x, columns);
        const auto want = linear(scalar(), weight, in, 0, 20);
        std::vector<float> one_by_one(want.size());
        for (std::int64_t t = 0; t < 20; ++t)
          GetParam()->linear_int8(weight.view(), in.view, t, t + 1, 0, weight.view().tiles, nullptr,
                                  nullptr, one_by_one.data(), rows, false);
        ASSERT_TRUE(same_bits(one_by_one, want)) << format.name << ' ' << rows;
        for (const std::int64_t tokens : {1, 2, 3, 5, 6, 7, 8, 11, 14, 20}) {
          const auto got = linear(*GetParam(), weight, in, 0, tokens);
          const auto size = static_cast<std::size_t>(tokens * rows);
          ASSERT_TRUE(same_bits(std::span(got).first(size), std::span(want).first(size)))
              << format.name << ' ' << rows << ", " << tokens << " tokens";
        }
        EXPECT_TRUE(same_bits(linear(*GetParam(), weight, in, 3, 20, true),
                              linear(scalar(), weight, in, 3, 20, true)));
      }
}

// From 32 tokens on codes may be unpacked first, up to 4096 columns of them: the same bits as for a
// few.
TEST_P(IsaInt8, LinearOfManyTokens) {
  if (GetParam() == &scalar()) GTEST_SKIP() << "takes one token at a time";
  for (const MatrixFormat& format : all_formats())
    for (const auto& [rows, wanted] : {std::pair{40, 96}, {40, 160}, {16, 4096}, {16, 4160}}) {
      const std::int64_t columns = fitting(format, wanted);
      const Matrix weight = format.make(rows, columns, 9, false);
      const Rounded in(scalar(), activations(36, columns, 2), columns);
      std::vector<float> want;
      for (const std::int64_t token : {0, 12, 24}) {
        const auto part = linear(*GetParam(), weight, in, token, token + 12);
        want.insert(want.end(), part.begin() + token * rows, part.begin() + (token + 12) * rows);
      }
      for (const std::int64_t begin : {1, 4}) {
        const auto got = linear(*GetParam(), weight, in, begin, 36);
        const auto from = static_cast<std::size_t>(begin * rows);
        EXPECT_TRUE(same_bits(std::span<const float>(got).subspan(from),
                              std::span<const float>(want).subspan(from)))
            << format.name << ' ' << columns << " columns, from token " << begin;
      }
    }
}

// Weak columns taken along give the bits of a product after the codes'. With many tokens they are
// widened first, if they are at most 64.
void check_weak_columns(const Kernels& kernels, std::int64_t weak_columns) {
  constexpr std::int64_t kColumns = 96, kTokens = 52;
  const std::int64_t stride = weak_columns + 4;
  const auto weak_x = activations(kTokens, stride, 8);
  std::vector<std::int64_t> counts{1, 2, 3, kMostTokensWithWeak};
  if (kernels.weak_for_many)
    for (const std::int64_t more : {5, 6, 31, 32, 50}) counts.push_back(more);
  for (const Storage storage : {Storage::kF16, Storage::kF32})
    for (const std::int64_t rows : {std::int64_t{16}, std::int64_t{100}}) {
      const Matrix weight = random_matrix(ElementType::kQ4_1, rows, kColumns, 1);
      Matrix columns = Matrix::zeros(storage, rows, weak_columns);
      for (std::size_t i = 0; i < columns.dense_f16().size(); ++i)
        columns.dense_f16()[i] = f32_to_f16(0.01f * static_cast<float>(i % 37) - 0.2f);
      for (std::size_t i = 0; i < columns.dense_f32().size(); ++i)
        columns.dense_f32()[i] = 0.01f * static_cast<float>(i % 41) - 0.2f;
      const Rounded in(scalar(), activations(kTokens, kColumns, 2), kColumns);
      const WeakPart weak{columns.view(), weak_x.data(), stride};
      for (const bool add : {false, true})
        for (const std::int64_t tokens : counts) {
          auto want = linear(kernels, weight, in, 2, 2 + tokens, add);
          kernels.multiply({weak_x.data() + 2 * stride, stride, 1},
                           {columns.view().dense, storage, weak_columns * kTileRows, kTileRows},
                           tokens, rows, weak_columns, want.data() + 2 * rows, rows, true);
          std::vector<float> got(want.size(), add ? 0.25f : 0.0f);
          kernels.linear_int8(weight.view(), in.view, 2, 2 + tokens, 0, weight.view().tiles,
                              nullptr, &weak, got.data(), rows, add);
          ASSERT_TRUE(same_bits(got, want)) << rows << " rows, " << tokens << " tokens";
        }
    }
}
TEST_P(IsaInt8, LinearTakesWeakColumnsAlong) {
  check_weak_columns(*GetParam(), 5);
  check_weak_columns(*GetParam(), 65);
}

// Tokens with numbers of their own, in any mixture, get what a weight with these numbers gives.
TEST_P(IsaInt8, LinearWithNumbersOfEachToken) {
  constexpr std::int64_t kRows = 100, kColumns = 96, kTokens = 11;
  for (const MatrixFormat& format : all_formats()) {
    // Formats differ in how they make codes of a seed; the numbers of a clone are halved instead.
    const Matrix weight = format.make(kRows, fitting(format, kColumns), 5, false);
    std::vector<Matrix> variants;
    for (const float factor : {1.0f, 0.5f, 2.0f}) {
      variants.push_back(weight.clone());
      for (f16& scale : variants.back().scales()) scale = f32_to_f16(f16_to_f32(scale) * factor);
      for (f16& zero : variants.back().zeros()) zero = f32_to_f16(f16_to_f32(zero) + factor);
      for (f16& offset : variants.back().offsets())
        offset = f32_to_f16(f16_to_f32(offset) * factor);
    }
    const Rounded in(scalar(), activations(kTokens, fitting(format, kColumns), 6),
                     fitting(format, kColumns));
    std::vector<GroupArrays> of_token;
    std::vector<float> want(kTokens * kRows), got(want.size());
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Matrix& own = variants[static_cast<std::size_t>(t * t % 3)];
      of_token.push_back({own.view().scales, own.view().zeros, own.view().offsets});
      scalar().linear_int8(own.view(), in.view, t, t + 1, 0, weight.view().tiles, nullptr, nullptr,
                           want.data(), kRows, false);
    }
    for (const std::int64_t split : {0, 1, 3, 4, 9}) {
      std::fill(got.begin(), got.end(), -1.0f);
      for (const auto& [begin, end] : {std::pair{std::int64_t{0}, split}, {split, kTokens}})
        GetParam()->linear_int8(weight.view(), in.view, begin, end, 0, weight.view().tiles,
                                of_token.data(), nullptr, got.data(), kRows, false);
      ASSERT_TRUE(same_bits(got, want)) << format.name << ", split at " << split;
    }
  }
}

// Any split into ranges of tiles and tokens: how the work falls to threads changes nothing, and
// nothing outside of a range is written.
TEST_P(IsaInt8, LinearGivesTheSameBitsForAnySplit) {
  constexpr std::int64_t kTokens = 41;
  for (const MatrixFormat& format : all_formats()) {
    const Matrix weight = format.make(100, 64, 3, false);  // 7 tiles
    const Rounded in(scalar(), activations(kTokens, 64, 4), 64);
    const auto whole = linear(*GetParam(), weight, in, 0, kTokens);
    std::vector<float> parts(whole.size(), -1.0f);
    const auto part = [&](std::int64_t tokens, std::int64_t token_end, std::int64_t tile,
                          std::int64_t tile_end) {
      const std::vector<float> before = parts;
      GetParam()->linear_int8(weight.view(), in.view, tokens, token_end, tile, tile_end, nullptr,
                              nullptr, parts.data(), 100, false);
      for (std::int64_t t = 0; t < kTokens; ++t)
        for (std::int64_t n = 0; n < 100; ++n) {
          const bool inside = t >= tokens && t < token_end && n / 16 >= tile && n / 16 < tile_end;
          if (inside) continue;
          ASSERT_EQ(parts[t * 100 + n], before[t * 100 + n]);
        }
    };
    part(0, 5, 0, 3);
    part(5, kTokens, 0, 3);
    part(0, kTokens, 3, 4);
    part(0, 2, 4, 7);
    part(2, kTokens, 4, 7);
    EXPECT_TRUE(same_bits(parts, whole)) << format.name;
  }
}

// Against the definition in double, from the same int8 activations: per chunk the integer part is
// exact, then one rounding for a zero, up to three for the factor and one or two to add it.
TEST_P(IsaInt8, LinearIsRight) {
  WorstError used("tolerance_used");
  for (const MatrixFormat& format : all_formats())
    for (const Shape& shape : kShapes) {
      const std::int64_t rows = shape.rows, columns = fitting(format, shape.columns);
      const Matrix weight = format.make(rows, columns, 5, false);
      const Rounded in(*GetParam(), RandomStream(6).normals(9 * columns), columns);
      const auto got = linear(*GetParam(), weight, in, 0, 9);
      std::vector<double> want(got.size()), magnitude(got.size());
      for (std::int64_t n = 0; n < rows; ++n)
        for (std::int64_t j = 0; j < columns; ++j) {
          const WeightParts w = product_parts(weight, n, j);
          const double size =
              std::fabs(w.scale) * (std::fabs(w.level) + std::fabs(w.zero)) + std::fabs(w.offset);
          for (std::int64_t t = 0; t < 9; ++t) {
            const Int8Block& block = in.block(t, j / 32);
            const double x = double{block.scale} * block.codes[j % 32];
            want[t * rows + n] += w.value() * x;
            magnitude[t * rows + n] += size * std::fabs(x);
          }
        }
      const auto chunks = static_cast<double>(in.view.blocks);
      used.add(expect_close(got, want, magnitude, 2 * chunks + 5, format.name));
    }
}

// The gradient of scales, zeros and offsets against exact sums from the same int8 activations. A
// chunk's sum has one term per token (its integer part is exact), two roundings in the factor; the
// blocks of 128 tokens and the chunks of a group are added up on top.
void check_scale_gradient(const Kernels& kernels, const MatrixFormat& format, std::int64_t tokens,
                          WorstError& used) {
  const std::int64_t rows = 40, columns = fitting(format, 96);
  const Matrix weight = format.make(rows, columns, 7, false);
  const MatrixView& view = weight.view();
  RandomStream random(8, static_cast<std::uint64_t>(tokens));
  const Rounded in(kernels, random.normals(tokens * columns), columns);
  const auto d_y = random.normals(tokens * rows);
  // Tiles 1 and 2 only, on top of what is there.
  const auto size = static_cast<std::size_t>(2 * view.groups * 16);
  std::vector<float> d_scale(size, 0.5f), d_offset(size, -0.5f), scratch(128 * 32);
  float* offsets = view.has_shifts() ? d_offset.data() : nullptr;
  kernels.scale_gradient_int8(view, in.view, d_y.data(), rows, tokens, 1, 3, d_scale.data(),
                              offsets, scratch.data());
  std::vector<double> want_scale(size, 0.5), want_offset(size, -0.5);
  std::vector<double> scale_terms(size, 0.5), offset_terms(size, 0.5);
  for (std::int64_t n = 16; n < rows; ++n)
    for (std::int64_t chunk = 0; chunk < view.chunks; ++chunk) {
      const std::int64_t g = chunk / view.group_chunks;
      const std::int64_t end = std::min(columns, chunk * 32 + 32);
      std::vector<double> levels;
      for (std::int64_t j = chunk * 32; j < end; ++j)
        levels.push_back(product_parts(weight, n, j).level - view.zero_point);
      const auto to = static_cast<std::size_t>(((n / 16 - 1) * view.groups + g) * 16 + n % 16);
      for (std::int64_t t = 0; t < tokens; ++t) {
        double product = 0, sum = 0;
        for (std::int64_t j = chunk * 32; j < end; ++j) {
          const double code = in.block(t, chunk).codes[j - chunk * 32];
          product += levels[j - chunk * 32] * code;
          sum += code;
        }
        const double factor = double{d_y[t * rows + n]} * in.block(t, chunk).scale;
        want_scale[to] += factor * product;
        want_offset[to] += factor * sum;
        scale_terms[to] += std::fabs(factor * product);
        offset_terms[to] += std::fabs(factor * sum);
      }
    }
  const double roundings = static_cast<double>(tokens) + 7 + 3 * static_cast<double>(view.chunks);
  used.add(expect_close(d_scale, want_scale, scale_terms, roundings, format.name));
  if (offsets != nullptr)
    used.add(expect_close(d_offset, want_offset, offset_terms, roundings, format.name));
  else
    EXPECT_TRUE(same_bits(d_offset, std::vector<float>(size, -0.5f)));

  std::vector<float> s_scale(size, 0.5f), s_offset(size, -0.5f);
  scalar().scale_gradient_int8(view, in.view, d_y.data(), rows, tokens, 1, 3, s_scale.data(),
                               offsets ? s_offset.data() : nullptr, scratch.data());
  EXPECT_TRUE(same_bits(d_scale, s_scale)) << format.name << ' ' << tokens;
  EXPECT_TRUE(same_bits(d_offset, s_offset)) << format.name << ' ' << tokens;
}

TEST_P(IsaInt8, ScaleGradient) {
  WorstError used("tolerance_used");
  for (const MatrixFormat& format : all_formats())
    for (const std::int64_t tokens : {1, 2, 3, 4, 7, 128, 130, 300})
      check_scale_gradient(*GetParam(), format, tokens, used);
}

}  // namespace
}  // namespace trimpot
