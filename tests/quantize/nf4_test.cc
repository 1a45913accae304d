#include "quantize/nf4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quantize/dense.h"
#include "support/random.h"

namespace trimpot {
namespace {

namespace golden {
#include "quantize/golden.inc"
}

// The same weights as make_golden.py's.
std::vector<float> golden_weights() {
  std::vector<float> w;
  std::int64_t state = 12345;
  for (std::int64_t i = 0; i < golden::kRows * golden::kColumns; ++i) {
    state = (state * 1103515245 + 12345) % (std::int64_t{1} << 31);
    w.push_back(static_cast<float>((state / 65536 % 2001 - 1000) * (1 + i / 64 % 37)) / 32768.0f);
  }
  std::fill(w.begin() + 64, w.begin() + 128, 0.0f);
  return w;
}

TEST(Nf4, DynamicMapIsThatOfBitsandbytes) {
  for (int i = 0; i < 256; ++i) EXPECT_EQ(dynamic_map()[i], golden::kDynamicMap[i]) << i;
}

TEST(Nf4, CodesAndScalesAreThoseOfBitsandbytes) {
  const std::vector<float> w = golden_weights();
  ThreadTeam team(2);
  const auto result = quantize_nf4(team, whole(w, golden::kRows, golden::kColumns));
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->offset, golden::kOffset);
  ASSERT_EQ(result->absmax_scales.size(), std::size(golden::kAbsmaxScales));
  for (std::size_t i = 0; i < result->absmax_scales.size(); ++i)
    EXPECT_EQ(result->absmax_scales[i], golden::kAbsmaxScales[i]) << i;
  ASSERT_EQ(result->absmax_codes.size(), std::size(golden::kAbsmaxCodes));
  for (std::size_t i = 0; i < result->absmax_codes.size(); ++i)
    EXPECT_EQ(result->absmax_codes[i], golden::kAbsmaxCodes[i]) << i;
  const GroupedCodes grouped = nf4_grouped(*result);
  const std::vector<int> codes = all_codes(grouped);
  for (std::size_t i = 0; i < std::size(golden::kCodes); ++i)
    ASSERT_EQ(codes[i], golden::kCodes[i]) << i;
  long long sum = 0;
  for (std::size_t i = 0; i < codes.size(); ++i)
    sum += codes[i] * static_cast<long long>(i % 1009 + 1);
  EXPECT_EQ(sum, golden::kCodeSum);
  EXPECT_EQ(grouped.scales[3],
            f32_to_f16(golden::kDynamicMap[golden::kAbsmaxCodes[3]] * golden::kAbsmaxScales[0] +
                       golden::kOffset));
}

// bitsandbytes sees the rows in another order: scales and codes are those of the moved matrix.
TEST(Nf4, RowPlacesAreTheOrderInWhichBlocksAreCounted) {
  constexpr std::int64_t kRows = 600, kColumns = 64;  // three blocks of 256
  const std::vector<float> w = RandomStream(5, 0).normals(kRows * kColumns, 1.0f);
  std::vector<float> moved(w.size());
  std::vector<std::int32_t> places;
  for (std::int64_t row = 0; row < kRows; ++row) {
    places.push_back(static_cast<std::int32_t>(row * 7 % kRows));
    std::copy_n(w.begin() + row * kColumns, kColumns, moved.begin() + places.back() * kColumns);
  }
  ThreadTeam team(2);
  const auto in_place = quantize_nf4(team, whole(w, kRows, kColumns), places);
  const auto other = quantize_nf4(team, whole(moved, kRows, kColumns));
  ASSERT_TRUE(in_place && other);
  EXPECT_EQ(in_place->absmax_scales, other->absmax_scales);
  for (std::int64_t row = 0; row < kRows; ++row)
    EXPECT_EQ(in_place->absmax(row), other->absmax(places[static_cast<std::size_t>(row)])) << row;
}

// Each weight is within half the widest step between levels (0.152) of the block's scale, plus what
// double quantization does to the scale: half the widest step of the map (0.0071) of its range.
TEST(Nf4, ComesBackWithinAStep) {
  RandomStream random(3);
  const std::vector<float> w = random.normals(20 * 100);  // the last block of a row has 36 columns
  ThreadTeam team(1);
  const auto result = quantize_nf4(team, whole(w, 20, 100));
  ASSERT_TRUE(result);
  const GroupedCodes grouped = nf4_grouped(*result);
  EXPECT_EQ(grouped.book, CodeBook::kNf4);
  EXPECT_EQ(grouped.scales.size(), 40u);
  const auto values = dequantized(grouped);
  for (int r = 0; r < 20; ++r)
    for (int c = 0; c < 100; ++c) {
      const double scale = result->absmax(r * 2 + c / 64);
      EXPECT_NEAR(values[r * 100 + c], static_cast<double>(w[r * 100 + c]),
                  0.152 * scale + 0.01 * static_cast<double>(result->absmax_scales[0]));
    }
}

TEST(Nf4, ZerosStayZerosAndOtherThreadsGiveTheSame) {
  ThreadTeam one(1), three(3);
  std::vector<float> w(64 * 64, 0.0f);
  for (const double value : dequantized(nf4_grouped(*quantize_nf4(one, whole(w, 64, 64)))))
    EXPECT_EQ(value, 0.0);
  RandomStream random(4);
  w = random.normals(64 * 64);
  const auto a = quantize_nf4(one, whole(w, 64, 64)), b = quantize_nf4(three, whole(w, 64, 64));
  EXPECT_EQ(a->codes, b->codes);
  EXPECT_EQ(a->absmax_codes, b->absmax_codes);
  w[70] = std::numeric_limits<float>::quiet_NaN();
  const auto refused = quantize_nf4(three, whole(w, 64, 64));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("row 1"), std::string::npos) << refused.error().message;
  w[70] = 1e6f;
  EXPECT_FALSE(quantize_nf4(three, whole(w, 64, 64)));
}

}  // namespace
}  // namespace trimpot
