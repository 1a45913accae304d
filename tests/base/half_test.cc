// 16-bit floats: every f16, and f32 values at and around every boundary of rounding, against
// definitions in doubles.
#include "base/half.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace trimpot {
namespace {

// The value of finite bits by the standard's formula.
double value_of(f16 bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -size : size;
}

bool is_nan(f16 bits) { return (bits & 0x7fff) > 0x7c00; }

// Round to nearest, ties to even: multiples of the f16's last place, as doubles.
f16 nearest(float value) {
  const f16 sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<f16>(sign | 0x7e00);
  const double size = std::fabs(static_cast<double>(value));
  if (size >= 65520) return static_cast<f16>(sign | 0x7c00);  // half a place above the largest
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f * 2^exponent, 0.5 <= f < 1
  const int place = std::max(exponent - 11, -24);
  const double count = std::nearbyint(std::ldexp(size, -place));  // <= 2048
  if (count == 0) return sign;
  // Subnormals count in 2^-24; from there on a carry into the exponent comes by itself.
  const int bits = (place + 24) * 1024 + static_cast<int>(count);
  return static_cast<f16>(sign | bits);
}

TEST(Half, EveryF16Widens) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<f16>(bits);
    const float wide = f16_to_f32(half);
    if (is_nan(half)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
    } else if ((bits & 0x7fff) == 0x7c00) {
      ASSERT_TRUE(std::isinf(wide)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(wide), value_of(half)) << bits;
    }
    ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << bits;
    if (!is_nan(half)) {
      ASSERT_EQ(f32_to_f16(wide), half);
    }
  }
}

TEST(Half, RoundsToTheNearest) {
  const auto check = [](std::uint32_t bits) {
    const float value = std::bit_cast<float>(bits);
    ASSERT_EQ(f32_to_f16(value), nearest(value)) << std::hex << bits;
  };
  // The middle between neighbours and a few places to either side.
  for (std::uint32_t half = 0; half < 0x7c00; ++half) {
    const double low = value_of(static_cast<f16>(half));
    const double high = half == 0x7bff ? 65536.0 : value_of(static_cast<f16>(half + 1));
    const auto middle = std::bit_cast<std::uint32_t>(static_cast<float>((low + high) / 2));
    for (std::uint32_t step = 0; step < 5; ++step) {
      check(middle + step - 2);
      check((middle + step - 2) | 0x80000000u);
    }
  }
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 4093)
    check(static_cast<std::uint32_t>(bits));
  for (const float value : {0.0f, -0.0f, std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::denorm_min(), 65519.996f, 65520.0f})
    check(std::bit_cast<std::uint32_t>(value));
}

TEST(Half, Bf16IsTheUpperHalfRounded) {
  for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 4093) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    const float back = bf16_to_f32(f32_to_bf16(value));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(back));
      continue;
    }
    // half a place of 8 bits, or of the smallest normal's; above the largest: infinity
    const double place = std::ldexp(1.0, std::max(std::ilogb(value), -126) - 7);
    if (std::isinf(back)) {
      ASSERT_GE(std::fabs(static_cast<double>(value)), 0x1.ffp127);
    } else if (value != 0) {
      ASSERT_LE(std::fabs(static_cast<double>(value) - back), place / 2) << std::hex << bits;
    }
  }
}

}  // namespace
}  // namespace trimpot
