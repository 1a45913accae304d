// Reading packed codes, shared by the kernels of all instruction sets. `S` is one of simd/*.h.
#pragma once

#include <cstdint>

#include "format/matrix.h"

namespace trimpot::impl {

// Step kStep (columns 4 kStep .. 4 kStep + 3 of 16 rows) of a chunk: see format/matrix.h.
template <class S, int kBits, int kStep>
[[gnu::always_inline]] inline typename S::B code_step(const std::uint8_t* chunk) {
  if constexpr (kBits == 8) {
    return S::load_bytes(chunk + 64 * kStep);
  } else if constexpr (kBits == 3) {
    if constexpr (kStep < 6)
      return S::template field<kStep / 3 * 3, 3>(S::load_bytes(chunk + 64 * (kStep % 3)));
    const typename S::B low =
        S::template field<6, 2>(S::load_bytes(chunk + (kStep == 6 ? 0 : 128)));
    return S::bit_or(low, S::template move_bit<kStep, 2>(S::load_bytes(chunk + 64)));
  } else {
    const typename S::B both = S::load_bytes(chunk + 64 * (kStep / 2));
    const typename S::B low = kStep % 2 == 0 ? S::low_nibbles(both) : S::high_nibbles(both);
    if constexpr (kBits == 4)
      return low;
    else
      return S::bit_or(low, S::template move_bit<kStep, 4>(S::load_bytes(chunk + 256)));
  }
}

// What kernels have to know of a code: its bits in memory, and its level as a float and as the
// unsigned byte that goes into integer products, where level = (byte - zero_point) * kByteScale.
template <int kBitsPerCode>
struct Integers {
  static constexpr int kBits = kBitsPerCode;
  static constexpr int kByteBits = kBits;
  static constexpr float kByteScale = 1.0f;
  static constexpr bool kScaled = false;
  static constexpr float kLowest = 0.0f, kHighest = (1 << kBits) - 1;  // level
  static int zero_point(const MatrixView& w) { return w.zero_point; }

  template <class S, int kStep>
  [[gnu::always_inline]] static typename S::B bytes(const std::uint8_t* chunk) {
    return code_step<S, kBits, kStep>(chunk);
  }
  template <class S, int kByte>
  [[gnu::always_inline]] static typename S::F level(typename S::B code) {
    return S::template byte_to_float<kByte>(code);
  }
};

// NF4's levels as bytes are round(112.03 level) + 128. Of all factors from 100 to 127 this one
// rounds the 16 levels best: 0.0017 root mean square of the largest level, 127 gives 0.0022. Both
// are small beside the distances of the levels, 0.08 to 0.3.
struct Nf4Bytes {
  static constexpr float kFactor = 112.03f;
  std::uint8_t byte[16];
  constexpr Nf4Bytes() : byte{} {
    // The sum is positive, so cutting off the fraction rounds.
    for (int i = 0; i < 16; ++i)
      byte[i] = static_cast<std::uint8_t>(kNf4Levels[i] * kFactor + 128.5f);
  }
};
inline constexpr Nf4Bytes kNf4Bytes;

struct Nf4 {
  static constexpr int kBits = 4;
  static constexpr int kByteBits = 8;
  static constexpr float kByteScale = 1.0f / Nf4Bytes::kFactor;
  static constexpr bool kScaled = true;
  static constexpr float kLowest = -1.0f, kHighest = 1.0f;
  static int zero_point(const MatrixView&) { return 128; }

  template <class S, int kStep>
  [[gnu::always_inline]] static typename S::B bytes(const std::uint8_t* chunk) {
    return S::lookup(kNf4Bytes.byte, code_step<S, kBits, kStep>(chunk));
  }
  template <class S, int kByte>
  [[gnu::always_inline]] static typename S::F level(typename S::B code) {
    return S::template byte_to_entry<kByte>(kNf4Levels, code);
  }
};

// C's bytes, unpacked before: [chunks][8 steps][16 rows][4 columns].
template <class C>
struct Unpacked : C {
  static constexpr int kBits = 8;
  static constexpr std::int64_t kChunkBytes = 512;
  template <class S, int kStep>
  [[gnu::always_inline]] static typename S::B bytes(const std::uint8_t* chunk) {
    return S::load_bytes(chunk + 64 * kStep);
  }
};

// Codes are asked for to the second-level cache. What is on its way to the first takes one of the
// few buffers that has: 300 MB from memory, by one core of Granite Rapids, came at 9.6 GB/s (4-bit
// codes alone) and 13.3 (with scales and offsets beside them), to the second at 13.3 and 14.3; a
// loop that only reads reached 14.8. 45 MB, which its last cache holds: 27 and 28 either way.
inline constexpr int kSecondLevel = 2;  // __builtin_prefetch()'s locality

// Asks for a chunk of codes long before it is unpacked, where products of many tokens come between
// and need the first-level cache. No hardware prefetcher foresees it where the chunk before lies a
// tile away.
inline void ask_for_chunk(const std::uint8_t* chunk, int bits) {
  for (int line = 0; line < bits; ++line) __builtin_prefetch(chunk + 64 * line, 0, kSecondLevel);
}

// Calls body.template operator()<C>() for the codes of a matrix; with_integers() where they are
// whole numbers.
template <class Body>
[[gnu::always_inline]] inline auto with_integers(const MatrixView& w, Body&& body) {
  if (w.bits == 3) return body.template operator()<Integers<3>>();
  if (w.bits == 4) return body.template operator()<Integers<4>>();
  if (w.bits == 5) return body.template operator()<Integers<5>>();
  return body.template operator()<Integers<8>>();
}
template <class Body>
[[gnu::always_inline]] inline auto with_codes(const MatrixView& w, Body&& body) {
  if (w.book == CodeBook::kNf4) return body.template operator()<Nf4>();
  return with_integers(w, body);
}

// Calls body.template operator()<step>() for the 8 steps of a chunk, unrolled.
template <class Body>
[[gnu::always_inline]] inline void for_each_step(Body&& body) {
  body.template operator()<0>();
  body.template operator()<1>();
  body.template operator()<2>();
  body.template operator()<3>();
  body.template operator()<4>();
  body.template operator()<5>();
  body.template operator()<6>();
  body.template operator()<7>();
}

// Calls body.template operator()<pass, step, first>() for all that a product takes of a chunk of
// codes of kBits bits, pass by pass, or `kTogether`: step by step, where the sums of all passes fit
// the registers. `first`: the step begins its pass's sums.
template <class S, int kBits, bool kTogether, class Body>
[[gnu::always_inline]] inline void for_each_part(Body&& body) {
  constexpr int kPasses = S::template kPasses<kBits>;
  const auto part = [&]<int kPass, int kStep>() __attribute__((always_inline)) {
    if constexpr (kPass < kPasses && S::template takes<kBits, kPass>(kStep))
      body.template
      operator()<kPass, kStep, kStep == 0 || !S::template takes<kBits, kPass>(kStep - 1)>();
  };
  for_each_step([&]<int kStep>() __attribute__((always_inline)) {
    part.template operator()<0, kStep>();
    if constexpr (kTogether) part.template operator()<1, kStep>();
  });
  if constexpr (kTogether || kPasses == 1) return;
  // Or GCC would keep the first pass's 32 broadcasts of activations on the stack for the second.
  asm volatile("" ::: "memory");
  for_each_step([&]<int kStep>()
                    __attribute__((always_inline)) { part.template operator()<1, kStep>(); });
}

// The sums over whole codes, from those of the passes.
template <class S, int kBits, int kTokens, int kTiles>
[[gnu::always_inline]] inline typename S::I sum_passes(
    const typename S::I (&sum)[S::template kPasses<kBits>][kTokens][kTiles], int token, int tile) {
  const auto first = S::template total<kBits, 0>(sum[0][token][tile]);
  if constexpr (S::template kPasses<kBits> == 1)
    return first;
  else
    return S::add(first, S::template total<kBits, 1>(sum[1][token][tile]));
}

// The 16 rows of a tile in 32 columns as floats: out[column] has one lane per row.
// `raw` gives level - zero_point, otherwise the weight.
template <class S, class C>
void unpack_codes(const MatrixView& w, std::int64_t tile, std::int64_t chunk, bool raw,
                  typename S::F* out) {
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes + chunk * (C::kBits * 64);
  const std::int64_t group = (tile * w.groups + chunk / w.group_chunks) * kTileRows;
  const auto scale = raw ? S::set(1.0f) : S::load(w.scales + group);
  const auto offset = raw || w.offsets == nullptr ? S::zero() : S::load(w.offsets + group);
  const auto zero = raw || w.zeros == nullptr ? S::set(static_cast<float>(w.zero_point))
                                              : S::load(w.zeros + group);
  const auto value = [&](typename S::F level) {
    return S::fma(scale, S::sub(level, zero), offset);
  };
  for_each_step([&]<int kStep>() {
    const typename S::B step = code_step<S, C::kBits, kStep>(codes);
    out[4 * kStep] = value(C::template level<S, 0>(step));
    out[4 * kStep + 1] = value(C::template level<S, 1>(step));
    out[4 * kStep + 2] = value(C::template level<S, 2>(step));
    out[4 * kStep + 3] = value(C::template level<S, 3>(step));
  });
}

template <class S>
typename S::F load_stored(const void* data, Storage storage, std::int64_t index) {
  if (storage == Storage::kF32) return S::load(static_cast<const float*>(data) + index);
  if (storage == Storage::kF16) return S::load(static_cast<const f16*>(data) + index);
  return S::load_bf16(static_cast<const bf16*>(data) + index);
}

// Any storage; columns beyond the matrix are zeros.
template <class S>
void unpack_chunk(const MatrixView& w, std::int64_t tile, std::int64_t chunk, bool raw,
                  typename S::F* out) {
  if (w.storage == Storage::kCodes)
    return with_codes(w, [&]<class C>() { unpack_codes<S, C>(w, tile, chunk, raw, out); });
  for (int k = 0; k < kChunkColumns; ++k) {
    const std::int64_t column = chunk * kChunkColumns + k;
    out[k] = column < w.columns
                 ? load_stored<S>(w.dense, w.storage, (tile * w.columns + column) * kTileRows)
                 : S::zero();
  }
}

template <class S>
void unpack_tile(const MatrixView& w, std::int64_t tile, bool raw, float* panel) {
  typename S::F values[kChunkColumns];
  for (std::int64_t column = 0; column < w.columns; column += kChunkColumns) {
    unpack_chunk<S>(w, tile, column / kChunkColumns, raw, values);
    for (int k = 0; k < kChunkColumns; ++k) S::store(panel + (column + k) * kTileRows, values[k]);
  }
}

// Transposes to rows first: values[0..15] are rows in columns 0..15, values[16..31] in 16..31.
template <class S>
void unpack_chunk_rows(const MatrixView& w, std::int64_t tile, std::int64_t chunk, bool raw,
                       typename S::F* values) {
  unpack_chunk<S>(w, tile, chunk, raw, values);
  S::transpose(values);
  S::transpose(values + 16);
}

template <class S>
void unpack_columns(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                    std::int64_t tile_end, bool raw, float* panel) {
  typename S::F values[kChunkColumns];
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    unpack_chunk_rows<S>(w, tile, chunk, raw, values);
    for (int row = 0; row < kTileRows; ++row, panel += 32) {
      S::store(panel, values[row]);
      S::store(panel + 16, values[16 + row]);
    }
  }
}

}  // namespace trimpot::impl
