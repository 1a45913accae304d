// AMX for the tests of a CPU that has none: the functions of src/kernels/simd/tiles.h as loops.
#pragma once

#include <cstdint>
#include <cstring>

namespace trimpot::tiles {

struct Shapes {
  std::uint16_t row_bytes[8] = {};
  std::uint8_t rows[8] = {};
  void set(int tile, std::int64_t row_count, std::int64_t bytes) {
    rows[tile] = static_cast<std::uint8_t>(row_count);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};

struct Tile {
  std::uint8_t bytes[16][64];
};
inline thread_local Shapes shapes_now;
inline thread_local Tile tiles_now[8];

inline void configure(const Shapes& shapes) {
  shapes_now = shapes;
  std::memset(tiles_now, 0, sizeof tiles_now);
}
inline void release() { configure({}); }

template <int kTile>
void zero() {
  tiles_now[kTile] = {};
}
template <int kTile>
void load(const void* from, std::int64_t stride) {
  zero<kTile>();
  for (int row = 0; row < shapes_now.rows[kTile]; ++row)
    std::memcpy(tiles_now[kTile].bytes[row], static_cast<const std::uint8_t*>(from) + row * stride,
                shapes_now.row_bytes[kTile]);
}
template <int kTile>
void store(void* to, std::int64_t stride) {
  for (int row = 0; row < shapes_now.rows[kTile]; ++row)
    std::memcpy(static_cast<std::uint8_t*>(to) + row * stride, tiles_now[kTile].bytes[row],
                shapes_now.row_bytes[kTile]);
}

// Calls add(number of C, 4 bytes of A, 4 bytes of B) for all steps of a product, which has to have
// tiles that fit.
template <class Number, int kC, int kA, int kB, class Add>
void multiply(Add&& add) {
  const Shapes& s = shapes_now;
  if (s.rows[kC] != s.rows[kA] || s.row_bytes[kA] != 4 * s.rows[kB] ||
      s.row_bytes[kC] != s.row_bytes[kB] || s.rows[kC] == 0 || s.rows[kB] == 0)
    __builtin_trap();  // as the CPU does
  for (int m = 0; m < s.rows[kC]; ++m)
    for (int k = 0; k < s.rows[kB]; ++k)
      for (int n = 0; n < s.row_bytes[kC] / 4; ++n) {
        Number sum;
        std::memcpy(&sum, tiles_now[kC].bytes[m] + 4 * n, 4);
        sum = add(sum, tiles_now[kA].bytes[m] + 4 * k, tiles_now[kB].bytes[k] + 4 * n);
        std::memcpy(tiles_now[kC].bytes[m] + 4 * n, &sum, 4);
      }
}

template <int kC, int kA, int kB>
void dot_unsigned() {
  multiply<std::int32_t, kC, kA, kB>(
      [](std::int32_t sum, const std::uint8_t* a, const std::uint8_t* b) {
        for (int i = 0; i < 4; ++i) sum += static_cast<std::int8_t>(a[i]) * b[i];
        return sum;
      });
}
template <int kC, int kA, int kB>
void dot_signed() {
  multiply<std::int32_t, kC, kA, kB>(
      [](std::int32_t sum, const std::uint8_t* a, const std::uint8_t* b) {
        for (int i = 0; i < 4; ++i)
          sum += static_cast<std::int8_t>(a[i]) * static_cast<std::int8_t>(b[i]);
        return sum;
      });
}
template <int kC, int kA, int kB>
void dot_bf16() {
  multiply<float, kC, kA, kB>([](float sum, const std::uint8_t* a, const std::uint8_t* b) {
    for (int i = 0; i < 2; ++i) {
      std::uint32_t x = a[2 * i] << 16 | a[2 * i + 1] << 24,
                    y = b[2 * i] << 16 | b[2 * i + 1] << 24;
      float fx, fy;
      std::memcpy(&fx, &x, 4);
      std::memcpy(&fy, &y, 4);
      sum = __builtin_fmaf(fx, fy, sum);
    }
    return sum;
  });
}

}  // namespace trimpot::tiles
