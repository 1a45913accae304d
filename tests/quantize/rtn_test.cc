#include "quantize/rtn.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <limits>

#include "quantize/dense.h"
#include "quantize/grid.h"
#include "support/compare.h"
#include "support/random.h"

namespace trimpot {
namespace {

float as_f16(float value) { return f16_to_f32(f32_to_f16(value)); }

struct Group {
  float scale = 0, zero = 0, offset = 0;
  std::vector<int> codes;
  std::vector<float> values;
};

// One group from the definition in rtn.h, with the range scaled by `factor`; nearbyint instead of
// the library's addition of a large number, branches instead of lanes.
Group literal(const Scheme& scheme, std::span<const float> w, float factor) {
  const float top = static_cast<float>((1 << scheme.bits) - 1);
  const float middle = static_cast<float>(1 << (scheme.bits - 1));
  float lo = 0, hi = 0;
  for (const float value : w) {
    lo = std::min(lo, value);
    hi = std::max(hi, value);
  }
  lo *= factor;
  hi *= factor;
  Group group;
  const bool symmetric = scheme.zeros == ZeroKind::kSymmetric;
  group.scale = as_f16(symmetric ? std::max(-lo, hi) / (middle - 1) : (hi - lo) / top);
  const float step = group.scale == 0 ? 1.0f : group.scale;
  if (symmetric) group.zero = middle;
  if (scheme.zeros == ZeroKind::kInteger)
    group.zero = std::clamp(std::nearbyint(-lo / step), 0.0f, top);
  if (scheme.zeros == ZeroKind::kOffset) group.offset = as_f16(lo);
  for (const float value : w) {
    const float code =
        std::clamp(std::nearbyint((value - group.offset) / step) + group.zero, 0.0f, top);
    group.codes.push_back(static_cast<int>(code));
    group.values.push_back(group.scale * (code - group.zero) + group.offset);
  }
  return group;
}

std::vector<Scheme> schemes() {
  std::vector<Scheme> all;
  for (const int bits : {3, 4, 8})
    for (const std::int64_t group : {kWholeRow, std::int64_t{32}, std::int64_t{64}})
      for (const ZeroKind zeros : {ZeroKind::kInteger, ZeroKind::kSymmetric, ZeroKind::kOffset})
        all.push_back({bits, group, zeros});
  return all;
}

// 19 rows (a tile of 16 and a ragged one) of 80 columns (ragged groups), with rows of one sign,
// of zeros, of tiny and of huge weights, and with weights half-way between two codes.
constexpr std::int64_t kRows = 19, kColumns = 80;
std::vector<float> difficult_weights() {
  RandomStream random(7);
  std::vector<float> w = random.normals(kRows * kColumns, 0.05f);
  for (std::int64_t c = 0; c < kColumns; ++c) {
    w[1 * kColumns + c] = std::fabs(w[1 * kColumns + c]);
    w[2 * kColumns + c] = -std::fabs(w[2 * kColumns + c]);
    w[3 * kColumns + c] = 0;
    w[4 * kColumns + c] *= 1e-8f;  // scales below f16's smallest number
    w[5 * kColumns + c] *= 1e5f;
    // Ranges of [-7, 8] and s = 1 (4 bits): every second weight is a tie.
    w[6 * kColumns + c] = static_cast<float>(c % 31 - 14) * 0.5f;
    w[7 * kColumns + c] = c % 32 == 0 ? 8.0f : c % 32 == 1 ? -7.0f : w[6 * kColumns + c];
    w[18 * kColumns + c] = c < 32 ? 0 : w[18 * kColumns + c];
  }
  return w;
}

TEST(RoundToNearest, IsTheDefinition) {
  ThreadTeam team(2);
  const std::vector<float> w = difficult_weights();
  for (const Scheme& scheme : schemes()) {
    const auto result = quantize_rtn(team, whole(w, kRows, kColumns), scheme);
    ASSERT_TRUE(result) << result.error().message;
    const std::vector<int> codes = all_codes(*result);
    const std::vector<double> values = dequantized(*result);
    const std::int64_t each = scheme.group_columns(kColumns);
    EXPECT_EQ(result->group_size, each);
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t first = 0; first < kColumns; first += each) {
        const std::int64_t count = std::min(each, kColumns - first);
        const std::size_t start = r * kColumns + first;
        const Group want = literal(scheme, std::span(w).subspan(start, count), 1.0f);
        const std::size_t at = r * scheme.groups(kColumns) + first / each;
        EXPECT_EQ(f16_to_f32(result->scales[at]), want.scale);
        if (scheme.zeros == ZeroKind::kInteger) {
          EXPECT_EQ(f16_to_f32(result->zeros[at]), want.zero);
          EXPECT_EQ(result->zeros[at] & 0x8000u, 0u) << "a zero must be +0";
        }
        if (scheme.zeros == ZeroKind::kOffset) {
          EXPECT_EQ(f16_to_f32(result->offsets[at]), want.offset);
        }
        for (std::int64_t c = 0; c < count; ++c) {
          ASSERT_EQ(codes[start + c], want.codes[c])
              << scheme.bits << " bits, row " << r << ", column " << first + c;
          EXPECT_FLOAT_EQ(values[start + c], want.values[c]);
        }
      }
  }
}

TEST(RoundToNearest, ZerosStayZeros) {
  ThreadTeam team(1);
  const std::vector<float> w(16 * 64, 0.0f);
  for (const Scheme& scheme : schemes()) {
    const auto result = quantize_rtn(team, whole(w, 16, 64), scheme);
    ASSERT_TRUE(result);
    for (const double value : dequantized(*result)) EXPECT_EQ(value, 0.0);
  }
}

TEST(RoundToNearest, ReadsAViewOfWiderRows) {
  ThreadTeam team(1);
  RandomStream random(3);
  const std::vector<float> w = random.normals(5 * 100);
  std::vector<float> narrow;
  for (int r = 0; r < 5; ++r)
    narrow.insert(narrow.end(), w.begin() + r * 100, w.begin() + r * 100 + 70);
  const Scheme scheme{4, 32, ZeroKind::kInteger};
  const auto a = quantize_rtn(team, {w.data(), 5, 70, 100}, scheme);
  const auto b = quantize_rtn(team, whole(narrow, 5, 70), scheme);
  EXPECT_EQ(a->codes, b->codes);
  EXPECT_EQ(a->scales, b->scales);
}

TEST(RoundToNearest, Int8IsSymmetricPerRow) {
  ThreadTeam team(1);
  const std::vector<float> w = {-1.27f, 0.64f, 0.005f, 0.0149f};
  const auto result = quantize_rtn(team, whole(w, 1, 4), kInt8Scheme);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->zero_point, 128);
  EXPECT_EQ(all_codes(*result), (std::vector<int>{1, 192, 128, 129}));  // 0.005 / 0.010002 < 1/2
  EXPECT_EQ(result->scales, std::vector<f16>{f32_to_f16(0.01f)});
}

TEST(RoundToNearest, RefusesWhatHasNoScale) {
  ThreadTeam team(2);
  std::vector<float> w(40 * 64, 1.0f);
  w[39 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  for (const Scheme& scheme : schemes()) EXPECT_FALSE(quantize_rtn(team, whole(w, 40, 64), scheme));
  w[33 * 64 + 40] = -std::numeric_limits<float>::infinity();
  for (const Scheme& scheme : schemes()) {
    const auto result = quantize_rtn(team, whole(w, 40, 64), scheme);
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("row 33"), std::string::npos) << result.error().message;
    EXPECT_FALSE(grid_parameters(team, whole(w, 40, 64), scheme));
  }
  w.assign(40 * 64, 1.0f);
  w[64] = 1e9f;
  EXPECT_FALSE(quantize_rtn(team, whole(w, 40, 64), {4, 32, ZeroKind::kInteger}));
  EXPECT_FALSE(quantize_rtn(team, whole(w, 40, 64), {5, 32, ZeroKind::kInteger}));
  EXPECT_FALSE(quantize_rtn(team, whole(w, 40, 64), {4, 48, ZeroKind::kInteger}));
  EXPECT_FALSE(quantize_rtn(team, whole(w, 40, 64), {4, 0, ZeroKind::kInteger}));
  EXPECT_FALSE(quantize_rtn(team, {w.data(), 0, 64, 64}, {4, 32, ZeroKind::kInteger}));
}

double squared_error(const Group& group, std::span<const float> w) {
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); ++i)
    sum += std::pow(static_cast<double>(w[i]) - static_cast<double>(group.values[i]), 2);
  return sum;
}

// The chosen factor's error, by brute force in f64, is the least of all 51: equal up to the f32 sum
// that the library compares by (n + 4 roundings of non-negative terms).
TEST(Grid, FindsTheLeastErrorOfAllFactors) {
  ThreadTeam team(2);
  const std::vector<float> w = difficult_weights();
  for (const Scheme& scheme : schemes()) {
    const auto found = grid_parameters(team, whole(w, kRows, kColumns), scheme);
    ASSERT_TRUE(found);
    const std::vector<double> values =
        dequantized(round_to_nearest(team, whole(w, kRows, kColumns), *found));
    const std::int64_t each = scheme.group_columns(kColumns);
    int clipped = 0;
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t first = 0; first < kColumns; first += each) {
        const std::int64_t count = std::min(each, kColumns - first);
        const std::size_t start = r * kColumns + first;
        const auto weights = std::span(w).subspan(start, count);
        double least = HUGE_VAL, got = 0;
        for (int percent = 100; percent >= 50; --percent) {
          const Group group = literal(scheme, weights, static_cast<float>(percent) / 100.0f);
          least = std::min(least, squared_error(group, weights));
        }
        for (std::int64_t c = 0; c < count; ++c)
          got += std::pow(static_cast<double>(weights[c]) - values[start + c], 2);
        double size = 0;
        for (const float value : weights) size += static_cast<double>(value) * value;
        // A weight half-way between codes may fall to the other side; its error is the same.
        // Values themselves round at 2^-24 of their size.
        EXPECT_LE(got,
                  least * (1 + (count + 4) * kRoundoff) + 8 * kRoundoff * std::sqrt(size * least))
            << scheme.bits << " bits, row " << r << ", column " << first;
        const Group unclipped = literal(scheme, weights, 1.0f);
        EXPECT_LE(got, squared_error(unclipped, weights) * (1 + 1e-5) + 1e-30);
        const std::size_t at = r * scheme.groups(kColumns) + first / each;
        clipped += f16_to_f32(found->scales[at]) < 0.9f * unclipped.scale;
      }
    if (scheme.bits == 3) {
      EXPECT_GT(clipped, 0);  // the search does something
    }
  }
}

TEST(Grid, AnyNumberOfThreadsGivesTheSameBits) {
  RandomStream random(5);
  const std::vector<float> w = random.normals(100 * 160);
  ThreadTeam one(1), three(3);
  const Scheme scheme{4, 64, ZeroKind::kInteger};
  const auto a = grid_parameters(one, whole(w, 100, 160), scheme);
  const auto b = grid_parameters(three, whole(w, 100, 160), scheme);
  EXPECT_EQ(a->scales, b->scales);
  EXPECT_EQ(a->zeros, b->zeros);
  EXPECT_EQ(round_to_nearest(one, whole(w, 100, 160), *a).codes,
            round_to_nearest(three, whole(w, 100, 160), *b).codes);
}

}  // namespace
}  // namespace trimpot
