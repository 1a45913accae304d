// Products of packed codes with what rounding left of activations that stand out: some 3 % of what
// impl/int8.h multiplies, so that it need not know of them.
#pragma once

#include <cstdint>

#include "kernels/impl/codes.h"
#include "kernels/kernels.h"

namespace trimpot::impl {

// Each remainder as a group of its own in impl/int8.h:
//   part = float(sum byte * code - zero_point * sum_of_codes) * its scale
//   y    = fma(part, scale, y)                         NF4: scale * kByteScale
//   y    = fma(fma(-zero, scaled_sum, part), scale, y)    where there are zeros
//   y    = fma(offset, scaled_sum, fma(part, scale, y))   where there are offsets

// Remainders of one chunk, those of `count` tokens; some may lack one.
struct RemainderRun {
  const Int8Remainder* first;
  std::int64_t step;  // to the next token's
  std::int64_t count, chunk;
  const GroupArrays* of_token;  // of the first token
  float* y;                     // of the first token
  std::int64_t y_stride;
};

// kAlone: of one token, codes are used as they are unpacked; 16 registers do not hold them.
template <class S, class C, bool kAlone>
void add_remainders_of_tile(const MatrixView& w, const RemainderRun& run, std::int64_t tile) {
  const std::uint8_t* codes = w.codes + tile * w.tile_bytes + run.chunk * (C::kBits * 64);
  typename S::B code[kAlone ? 1 : 8];
  if constexpr (!kAlone)
    for_each_step([&]<int kStep>() __attribute__((always_inline)) {
      code[kStep] = C::template bytes<S, kStep>(codes);
    });
  const std::int64_t at = (tile * w.groups + run.chunk / w.group_chunks) * kTileRows;
  typename S::F scale, minus_zero, offset;
  const auto load_numbers = [&](const auto& from) __attribute__((always_inline)) {
    scale = S::load(from.scales + at);
    if constexpr (C::kScaled) scale = S::mul(scale, S::set(C::kByteScale));
    if (w.zeros != nullptr) minus_zero = S::sub(S::zero(), S::load(from.zeros + at));
    if (w.offsets != nullptr) offset = S::load(from.offsets + at);
  };
  minus_zero = offset = S::zero();
  load_numbers(w);
  const bool shifts = w.zeros != nullptr || w.offsets != nullptr;
  const std::int64_t left = w.rows - tile * kTileRows;
  const int rows = static_cast<int>(left < kTileRows ? left : kTileRows);
  const Int8Remainder* own = run.first;
  float* to = run.y + tile * kTileRows;
  const std::int64_t count = kAlone ? 1 : run.count, step = run.step, y_stride = run.y_stride;
  const GroupArrays* of_token = run.of_token;
  for (std::int64_t t = 0; t < count; ++t, own += step, to += y_stride) {
    if (own->chunk < 0) continue;
    typename S::I dot[S::template kPasses<C::kByteBits>][1][1];
    const auto multiply = [&]<int kPass, int kStep, bool kFirst>() __attribute__((always_inline)) {
      typename S::B bytes;
      if constexpr (kAlone)
        bytes = C::template bytes<S, kStep>(codes);
      else
        bytes = code[kStep];
      const auto part = S::template part<C::kByteBits, kPass>(bytes);
      const auto four = S::broadcast4(own->block.codes + 4 * kStep);
      dot[kPass][0][0] = S::dot(kFirst ? S::zero_int() : dot[kPass][0][0], part, four);
    };
    for_each_part<S, C::kByteBits, true>(multiply);
    auto product = sum_passes<S, C::kByteBits>(dot, 0, 0);
    if (!shifts) product = S::sub(product, S::set_int(C::zero_point(w) * own->block.sum));
    if (of_token != nullptr) load_numbers(of_token[t]);
    const auto scaled_sum = S::set(own->block.scaled_sum);
    auto part = S::mul(S::to_float(product), S::set(own->block.scale));
    if (w.zeros != nullptr) part = S::fma(minus_zero, scaled_sum, part);
    auto sum = S::fma(part, scale, rows == kTileRows ? S::load(to) : S::load_first(to, rows));
    if (w.offsets != nullptr) sum = S::fma(offset, scaled_sum, sum);
    if (rows == kTileRows)
      S::store(to, sum);
    else
      S::store_first(to, sum, rows);
  }
}

// Tokens stand out in the same channels nearly always. So the first remainders of all of them come
// first, then the second ones, and codes are unpacked once for all tokens of one chunk in a row.
template <class S>
void add_remainders(const MatrixView& w, const Int8View& x, std::int64_t token_begin,
                    std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                    const GroupArrays* of_token, float* y, std::int64_t y_stride) {
  const std::int64_t most = most_remainders(x.blocks);
  const auto add_many =
      with_codes(w, []<class C>() { return add_remainders_of_tile<S, C, false>; });
  const auto add_one = with_codes(w, []<class C>() { return add_remainders_of_tile<S, C, true>; });
  bool some = true;
  for (std::int64_t i = 0; i < most && some; ++i) {
    some = false;
    for (std::int64_t token = token_begin; token < token_end;) {
      const Int8Remainder* first = x.remainders_of(token) + i;
      std::int64_t count = 1;
      for (; token + count < token_end; ++count) {
        const std::int32_t chunk = first[count * most].chunk;
        if (chunk >= 0 && chunk != first->chunk) break;
      }
      if (first->chunk >= 0) {
        some = true;
        const RemainderRun run{first,
                               most,
                               count,
                               first->chunk,
                               of_token != nullptr ? of_token + token : nullptr,
                               y + token * y_stride,
                               y_stride};
        for (std::int64_t tile = tile_begin; tile < tile_end; ++tile)
          (count == 1 ? add_one : add_many)(w, run, tile);
      }
      token += count;
    }
  }
}

}  // namespace trimpot::impl
