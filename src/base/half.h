// 16-bit floats as stored in files: IEEE binary16 (f16) and bfloat16, converted in plain integer
// arithmetic so that every machine gets the same bits. Kernels have their own vector versions.
// always_inline: a copy compiled for one instruction set must never serve another's code.
#pragma once

#include <bit>
#include <cstdint>

namespace trimpot {

using f16 = std::uint16_t;   // bits of an IEEE binary16
using bf16 = std::uint16_t;  // bits of a bfloat16

[[gnu::always_inline]] inline bool is_finite(f16 bits) { return (bits & 0x7c00u) != 0x7c00u; }

// All cases are computed and one is chosen: loops over these become vectors, which branches
// prevent.

[[gnu::always_inline]] inline float f16_to_f32(f16 bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::int32_t magnitude = bits & 0x7fff;
  const std::uint32_t moved = static_cast<std::uint32_t>(magnitude) << 13;
  // A subnormal is an exact integer multiple of 2^-24.
  const float tiny = static_cast<float>(magnitude) * 0x1p-24f;
  const std::uint32_t finite = magnitude >= 0x0400
                                   ? moved + 0x38000000u  // the exponent's bias from 15 to 127
                                   : std::bit_cast<std::uint32_t>(tiny);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00 ? moved + 0x70000000u : finite));
}

// Rounds to nearest, ties to even; overflow gives infinity; NaN stays NaN.
[[gnu::always_inline]] inline f16 f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const auto magnitude = static_cast<std::int32_t>(bits & 0x7fffffffu);
  // Below 2^-14: adding 0.5 rounds to a multiple of 2^-24 in the low mantissa bits.
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t rounded =
      static_cast<std::uint32_t>(magnitude) + 0xfffu + (bits >> 13 & 1u) - 0x38000000u;
  const std::uint32_t finite = magnitude < 0x38800000 ? tiny : rounded >> 13;
  const std::uint32_t broken = magnitude > 0x7f800000 ? 0x7e00u : 0x7c00u;
  return static_cast<f16>(sign | (magnitude >= 0x477ff000 ? broken : finite));
}

[[gnu::always_inline]] inline float bf16_to_f32(bf16 bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
[[gnu::always_inline]] inline bf16 f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>(bits >> 16 | 0x40u);
  return static_cast<bf16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace trimpot
