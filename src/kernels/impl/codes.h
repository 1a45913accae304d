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
  } else {
    const typename S::B both = S::load_bytes(chunk + 64 * (kStep / 2));
    const typename S::B low = kStep % 2 == 0 ? S::low_nibbles(both) : S::high_nibbles(both);
    if constexpr (kBits == 4)
      return low;
    else
      return S::bit_or(low, S::template bit_to_16<kStep>(S::load_bytes(chunk + 256)));
  }
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

// The 16 rows of a tile in 32 columns as floats: out[column] has one lane per row.
// `raw` gives code - zero_point, otherwise scale * (code - zero_point) + offset.
template <class S, int kBits>
void unpack_codes(const MatrixView& w, std::int64_t tile, std::int64_t chunk, bool raw,
                  typename S::F* out) {
  const std::uint8_t* codes = w.codes + (tile * w.chunks + chunk) * (kBits * 64);
  const std::int64_t group = (tile * w.groups + chunk / w.group_chunks) * kTileRows;
  const auto scale = raw ? S::set(1.0f) : S::load(w.scales + group);
  const auto offset = raw || w.offsets == nullptr ? S::zero() : S::load(w.offsets + group);
  const auto zero_point = S::set(static_cast<float>(w.zero_point));
  const auto value = [&](typename S::F code) {
    return S::fma(scale, S::sub(code, zero_point), offset);
  };
  for_each_step([&]<int kStep>() {
    const typename S::B step = code_step<S, kBits, kStep>(codes);
    out[4 * kStep] = value(S::template byte_to_float<0>(step));
    out[4 * kStep + 1] = value(S::template byte_to_float<1>(step));
    out[4 * kStep + 2] = value(S::template byte_to_float<2>(step));
    out[4 * kStep + 3] = value(S::template byte_to_float<3>(step));
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
  if (w.storage == Storage::kCodes) {
    if (w.bits == 4) return unpack_codes<S, 4>(w, tile, chunk, raw, out);
    if (w.bits == 5) return unpack_codes<S, 5>(w, tile, chunk, raw, out);
    return unpack_codes<S, 8>(w, tile, chunk, raw, out);
  }
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

template <class S>
void unpack_columns_bf16(const MatrixView& w, std::int64_t chunk, std::int64_t tile_begin,
                         std::int64_t tile_end, bf16* panel) {
  typename S::F values[kChunkColumns];
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    unpack_chunk_rows<S>(w, tile, chunk, false, values);
    for (int row = 0; row < kTileRows; row += 2, panel += 64) {
      S::store_bf16_pairs(panel, values[row], values[row + 1]);
      S::store_bf16_pairs(panel + 32, values[16 + row], values[16 + row + 1]);
    }
  }
}

}  // namespace trimpot::impl
