// What a tuned group's numbers become.
#include "tune/scale_groups.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "base/half.h"
#include "support/random.h"

namespace trimpot {
namespace {

struct GroupValues {
  f16 scale;
  f16 centre;    // m, or z where the format stores zeros
  bool is_zero;  // centre is z
};

// z of a group, stored or as -m / s; 0 where the scale is zero.
float zero_point(GroupValues base) {
  if ((base.scale & 0x7fffu) == 0) return 0.0f;
  if (base.is_zero) return f16_to_f32(base.centre);
  return -f16_to_f32(base.centre) / f16_to_f32(base.scale);
}

// The rule of scale_groups.h for one group.
GroupValues by_rule(GroupValues base, f16 scale, std::optional<f16> zero) {
  if ((base.scale & 0x7fffu) == 0 || (zero && std::fabs(zero_point(base)) > 32768.0f)) return base;
  const float new_scale = f16_to_f32(scale);
  if (base.is_zero) return {scale, zero ? *zero : base.centre, true};
  if (zero) return {scale, f32_to_f16(-new_scale * f16_to_f32(*zero)), false};
  const float ratio = f16_to_f32(base.centre) / f16_to_f32(base.scale);
  return {scale, f32_to_f16(new_scale * ratio), false};
}

// What commit_lanes() makes of 16 equal groups.
GroupValues committed_group(GroupValues base, f16 scale, std::optional<f16> zero) {
  std::array<f16, kTileRows> scales, centres, learned, zeros, to_scales, to_centres;
  scales.fill(base.scale);
  centres.fill(base.centre);
  learned.fill(scale);
  zeros.fill(zero.value_or(0));
  commit_lanes({scales.data(), centres.data(), base.is_zero}, kTileRows, learned.data(),
               zero ? zeros.data() : nullptr, to_scales.data(), to_centres.data());
  return {to_scales[0], to_centres[0], base.is_zero};
}

// s' = s and m' = m at theta = 1, for every scale with many offsets and every offset with many
// scales: a run that learns nothing changes nothing.
TEST(CommittedGroup, AtTheStartNothingChanges) {
  RandomStream random(1);
  const auto check = [](f16 scale, f16 offset) {
    if (!is_finite(scale) || !is_finite(offset)) return;
    const f16 same = f32_to_f16(f16_to_f32(scale) * 1.0f);
    const GroupValues now = committed_group({scale, offset, false}, same, std::nullopt);
    ASSERT_EQ(now.scale, scale);
    ASSERT_EQ(now.centre, offset) << "scale bits " << scale;
  };
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
    for (int i = 0; i < 64; ++i) {
      check(static_cast<f16>(bits), static_cast<f16>(random.bits()));
      check(static_cast<f16>(random.bits()), static_cast<f16>(bits));
    }
  for (const f16 scale : {0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff})
    for (std::uint32_t offset = 0; offset < 0x10000; ++offset)
      check(scale, static_cast<f16>(offset));
}

// peqa: the zero-point -m / s stays where it was up to the rounding of m' and, for m' among the
// subnormals, their step.
TEST(CommittedGroup, KeepsTheZeroPoint) {
  RandomStream random(2);
  for (int i = 0; i < 200000; ++i) {
    const GroupValues base{f32_to_f16(0.01f * random.normal()), f32_to_f16(0.1f * random.normal()),
                           false};
    const float theta = static_cast<float>(0.2 + 2.0 * random.uniform());
    const f16 scale = f32_to_f16(f16_to_f32(base.scale) * theta);
    if ((base.scale & 0x7fff) == 0) continue;
    const GroupValues now = committed_group(base, scale, std::nullopt);
    ASSERT_EQ(now.scale, scale);
    const double offset = -double{f16_to_f32(scale)} * zero_point(base);
    ASSERT_NEAR(f16_to_f32(now.centre), offset, std::fabs(offset) * 0x1.01p-11 + 0x1p-25);
  }
}

TEST(CommittedGroup, LearnedZeroPoints) {
  const GroupValues base{f32_to_f16(0.5f), f32_to_f16(-2.0f), false};
  EXPECT_EQ(zero_point(base), 4.0f);
  const GroupValues now = committed_group(base, f32_to_f16(0.25f), f32_to_f16(3.0f));
  EXPECT_EQ(f16_to_f32(now.scale), 0.25f);
  EXPECT_EQ(f16_to_f32(now.centre), -0.75f);
  // A group of zero scale has no zero-point and stays.
  for (const f16 zero : {0x0000, 0x8000}) {
    const GroupValues frozen{zero, f32_to_f16(1.5f), false};
    EXPECT_EQ(zero_point(frozen), 0.0f);
    const GroupValues still = committed_group(frozen, f32_to_f16(9.0f), f32_to_f16(1.0f));
    EXPECT_EQ(still.scale, frozen.scale);
    EXPECT_EQ(still.centre, frozen.centre);
  }
}

bool same_number(f16 a, f16 b) {
  const auto is_nan = [](f16 bits) { return (bits & 0x7fffu) > 0x7c00u; };
  return a == b || (is_nan(a) && is_nan(b));
}

// Many lanes at once against the rule for one group, any bits: zero scales, subnormals, zero-points
// too large to move, learned values that are not finite.
TEST(CommittedGroup, ManyLanesAreTheSameRule) {
  RandomStream random(3);
  const auto any = [&](double zero_share) {
    return random.uniform() < zero_share ? f16{0} : static_cast<f16>(random.bits());
  };
  for (int round = 0; round < 4000; ++round) {
    const std::size_t count = (1 + random.bits() % 40) * kTileRows;  // up to 640
    // All learned values of every other round are finite.
    const double largest = round % 2 == 0 ? 1e4 : 1e9;
    const auto number = [&] {
      return f32_to_f16(static_cast<float>(largest * (random.uniform() - 0.5)));
    };
    std::vector<f16> scales(count), centres(count), learned(count), zeros(count), to_scales(count),
        to_centres(count);
    for (std::size_t i = 0; i < count; ++i) {
      do scales[i] = any(0.1);
      while (!is_finite(scales[i]));
      do centres[i] = any(0.1);
      while (!is_finite(centres[i]));
      learned[i] = round % 3 == 0 ? any(0.1) : number();
      zeros[i] = round % 3 == 0 ? any(0.1) : number();
    }
    const bool stored = round & 4, learns = round & 8, has = (round & 48) != 48;
    const GroupLanes base{scales.data(), has ? centres.data() : nullptr, has && stored};
    const bool good =
        commit_lanes(base, count, learned.data(), has && learns ? zeros.data() : nullptr,
                     to_scales.data(), has ? to_centres.data() : nullptr);
    bool all_finite = true;
    for (std::size_t i = 0; i < count; ++i) {
      const GroupValues want =
          by_rule({scales[i], has ? centres[i] : f16{0}, has && stored}, learned[i],
                  has && learns ? std::optional<f16>(zeros[i]) : std::nullopt);
      ASSERT_TRUE(same_number(to_scales[i], want.scale)) << scales[i] << " " << learned[i];
      all_finite = all_finite && is_finite(want.scale);
      if (!has) continue;
      ASSERT_TRUE(same_number(to_centres[i], want.centre)) << scales[i] << " " << centres[i];
      all_finite = all_finite && is_finite(want.centre);
    }
    ASSERT_EQ(good, all_finite);
  }
}

// Row i of a file to lane i of each group; rows beyond the matrix's are zeros.
TEST(PackGroups, EveryNumberIsInItsLane) {
  for (const std::int64_t groups : {1, 7, 8, 9, 18, 48})
    for (const int rows : {16, 9, 1}) {
      const auto value = [&](int row, std::int64_t group) {
        return static_cast<f16>(1 + row * groups + group);
      };
      std::vector<f16> file, packed(static_cast<std::size_t>(groups * kTileRows), f16{0xffff});
      for (int row = 0; row < rows; ++row)
        for (std::int64_t group = 0; group < groups; ++group) file.push_back(value(row, group));
      const f16* row[kTileRows] = {};
      for (int i = 0; i < rows; ++i) row[i] = file.data() + (rows - 1 - i) * groups;
      pack_groups(row, groups, packed.data());
      for (std::int64_t group = 0; group < groups; ++group)
        for (int i = 0; i < kTileRows; ++i)
          ASSERT_EQ(packed[static_cast<std::size_t>(group * kTileRows + i)],
                    i < rows ? value(rows - 1 - i, group) : 0)
              << groups << " groups, " << rows << " rows";
    }
}

}  // namespace
}  // namespace trimpot
