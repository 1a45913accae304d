// The vector operations in plain C++: the specification of the other two and the fallback for
// machines without AVX2. Every operation rounds exactly as its SIMD twins do.
//   F = 16 floats, I = 16 int32, B = 64 bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace trimpot {

struct Scalar {
  static constexpr const char* kName = "scalar";
  static constexpr int kMaxRowsF32 = 4;  // rows of a float tile that stay in registers
  static constexpr int kMaxRowsOfTile = 1;
  static constexpr int kMaxRowsI8 = 1;             // nothing to keep in registers: quick to compile
  static constexpr int kVectors = 1;               // of 16 lanes that registers hold
  static constexpr bool kRoundedProducts = false;  // no faster than f32's
  static constexpr int kMaxTiles = 1;              // side by side in a product's block
  // Codes become bytes once for all tokens of a product, instead of once per block of tokens.
  static constexpr bool kUnpacksForMany = false;
  static constexpr bool kPairsOfCodes = false;  // 16 vectors of codes fit the registers
  // A block of many tokens has registers for its weak columns' sums, too.
  static constexpr bool kWeakForMany = false;
  // dot()'s sums are whole from the first step on, not parts that total() puts together: they may
  // start with any number.
  static constexpr bool kWholeSums = true;
  // In how many passes a chunk of codes of kBits bits is multiplied.
  template <int kBits>
  static constexpr int kPasses = 1;

  struct F {
    float lane[16];
  };
  struct I {
    std::int32_t lane[16];
  };
  struct B {
    std::uint8_t byte[64];
  };

  template <typename Operation>
  static F map(Operation operation) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = operation(i);
    return out;
  }

  static F zero() {
    return map([](int) { return 0.0f; });
  }
  static F set(float value) {
    return map([=](int) { return value; });
  }
  static F load(const float* from) {
    return map([=](int i) { return from[i]; });
  }
  static F load(const f16* from) {
    return map([=](int i) { return f16_to_f32(from[i]); });
  }
  static F load(const std::int8_t* from) {
    return map([=](int i) { return static_cast<float>(from[i]); });
  }
  static F load_bf16(const bf16* from) {
    return map([=](int i) { return bf16_to_f32(from[i]); });
  }
  static F load_first(const float* from, int count) {
    return map([=](int i) { return i < count ? from[i] : 0.0f; });
  }
  static F load_first(const f16* from, int count) {
    return map([=](int i) { return i < count ? f16_to_f32(from[i]) : 0.0f; });
  }
  static void store(float* to, F a) { std::memcpy(to, a.lane, sizeof a.lane); }
  static void store(f16* to, F a) {
    for (int i = 0; i < 16; ++i) to[i] = f32_to_f16(a.lane[i]);
  }
  static void store_first(float* to, F a, int count) {
    std::memcpy(to, a.lane, sizeof(float) * static_cast<std::size_t>(count));
  }
  static F add(F a, F b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static F fma(F a, F b, F c) {
    return map([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static F max(F a, F b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F abs(F a) {
    return map([&](int i) { return std::fabs(a.lane[i]); });
  }
  static F round(F a) {
    return map([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  // `then` where a >= least, else 0.
  // 0 where a is below `least`; NaN is not.
  static F unless_below(F a, F least, F then) {
    return map([&](int i) { return a.lane[i] < least.lane[i] ? 0.0f : then.lane[i]; });
  }
  // a * 2^n for a of about 1 and integral n, -252 <= n <= 254: two factors, because one exponent
  // field holds -126 .. 127. The first product is exact.
  static F scale_by_power(F a, F n) {
    const auto power = [](std::int32_t exponent) {
      return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
    };
    return map([&](int i) {
      if (std::isnan(n.lane[i])) return a.lane[i] * n.lane[i];
      const auto whole = static_cast<std::int32_t>(n.lane[i]), half = whole >> 1;
      return a.lane[i] * power(half) * power(whole - half);
    });
  }
  // Tree order ((i, i+8), (i, i+4), (i, i+2), (i, i+1)): the same in every instruction set.
  static float sum(F a) {
    for (int half = 8; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
    return a.lane[0];
  }
  static F swap_pairs(F a) {
    return map([&](int i) { return a.lane[i ^ 1]; });
  }
  static float highest(F a) {
    float best = a.lane[0];
    for (float value : a.lane) best = value > best ? value : best;
    return best;
  }

  static I zero_int() { return I{}; }
  static I set_int(std::int32_t value) {
    I out;
    for (auto& lane : out.lane) lane = value;
    return out;
  }
  static I add(I a, I b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static I sub(I a, I b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
  }
  static F to_float(I a) {
    return map([&](int i) { return static_cast<float>(a.lane[i]); });
  }
  // Rounds to nearest even and narrows to int8; values within -127 .. 127. The lanes of the result
  // add up to the sum of all 32.
  static I store_int8(std::int8_t* to, F a, F b) {
    I sums = zero_int();
    for (int i = 0; i < 32; ++i) {
      const float value = i < 16 ? a.lane[i] : b.lane[i - 16];
      to[i] = static_cast<std::int8_t>(static_cast<int>(std::nearbyint(value)));
      sums.lane[i % 16] += to[i];
    }
    return sums;
  }
  // Lane i comes from v[i]: its largest lane, and the sum of its lanes.
  static F highest_of_each(const F* v) {
    return map([&](int i) { return highest(v[i]); });
  }
  static I sum_of_each(const I* v) {
    I sums = zero_int();
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k) sums.lane[i] += v[i].lane[k];
    return sums;
  }
  static void store(std::int32_t* to, I a) { std::memcpy(to, a.lane, sizeof a.lane); }

  static B load_bytes(const std::uint8_t* from) {
    B out;
    std::memcpy(out.byte, from, sizeof out.byte);
    return out;
  }
  static B broadcast4(const std::int8_t* from) {
    B out;
    for (int i = 0; i < 64; ++i) out.byte[i] = static_cast<std::uint8_t>(from[i % 4]);
    return out;
  }
  static B low_nibbles(B a) {
    for (auto& byte : a.byte) byte &= 0x0f;
    return a;
  }
  static B high_nibbles(B a) {
    for (auto& byte : a.byte) byte >>= 4;
    return a;
  }
  template <int kFrom, int kCount>
  static B field(B a) {  // kCount bits of every byte, from bit kFrom on
    for (auto& byte : a.byte) byte = byte >> kFrom & ((1 << kCount) - 1);
    return a;
  }
  template <int kBit, int kTo>
  static B move_bit(B a) {  // bit kBit of every byte, moved to bit kTo; the others are 0
    for (auto& byte : a.byte) byte = static_cast<std::uint8_t>((byte >> kBit & 1) << kTo);
    return a;
  }
  static B bit_or(B a, B b) {
    for (int i = 0; i < 64; ++i) a.byte[i] |= b.byte[i];
    return a;
  }
  static B lookup(const std::uint8_t* table, B a) {  // 16 entries; bytes are 0 .. 15
    for (auto& byte : a.byte) byte = table[byte];
    return a;
  }
  // Whether pass kPass over codes of kBits bits has a part of this step's, and which.
  template <int kBits, int kPass>
  static constexpr bool takes(int) {
    return true;
  }
  template <int kBits, int kPass>
  static B part(B codes) {
    return codes;
  }
  // acc[i] += sum over 4 bytes of u8 parts of codes * s8 activations, which are -127 .. 127. At
  // most the steps of a pass are added up, and read through total() alone.
  static I dot(I acc, B codes, B activations) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 4; ++j)
        acc.lane[i] +=
            codes.byte[4 * i + j] * static_cast<std::int8_t>(activations.byte[4 * i + j]);
    return acc;
  }
  // What a pass's sums are of those of whole codes.
  template <int kBits, int kPass>
  static I total(I acc) {
    return acc;
  }
  // Byte kByte of each group of four as floats: the codes of 16 rows in one column.
  template <int kByte>
  static F byte_to_float(B a) {
    return map([&](int i) { return static_cast<float>(a.byte[4 * i + kByte]); });
  }
  // The entries of a table of 16 at the same bytes, which are 0 .. 15.
  template <int kByte>
  static F byte_to_entry(const float* table, B a) {
    return map([&](int i) { return table[a.byte[4 * i + kByte]]; });
  }
  static void transpose(F* rows) {
    F out[16];
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) out[i].lane[j] = rows[j].lane[i];
    std::memcpy(rows, out, sizeof out);
  }
};

}  // namespace trimpot
