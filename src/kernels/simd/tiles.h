// Intel AMX: eight registers, "tiles" of up to 16 rows of 64 bytes, and the products of two of
// them.
//
// As assembly of its own, since GCC 12's intrinsics do not say which memory a tile is loaded from:
// stores before it could be moved behind it.
#pragma once

#include <cstdint>

namespace trimpot::tiles {

// What each tile holds, as LDTILECFG reads it.
struct Shapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, std::int64_t row_count, std::int64_t bytes) {
    rows[tile] = static_cast<std::uint8_t>(row_count);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};
static_assert(sizeof(Shapes) == 64);

// Shapes belong to the thread. Released, the tiles are no burden to a change of threads.
[[gnu::always_inline]] inline void configure(const Shapes& shapes) {
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
[[gnu::always_inline]] inline void release() { asm volatile("tilerelease"); }

// Rows are `stride` bytes apart.
template <int kTile>
[[gnu::always_inline]] inline void load(const void* from, std::int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void store(void* to, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
[[gnu::always_inline]] inline void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// kC[m][n] += sum over k and i < 4 of kA[m][4 k + i] kB[k][4 n + i], in int32; bytes of kA are
// signed, those of kB unsigned or signed.
template <int kC, int kA, int kB>
[[gnu::always_inline]] inline void dot_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
template <int kC, int kA, int kB>
[[gnu::always_inline]] inline void dot_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
// kC[m][n] += sum over k and i < 2 of kA[m][2 k + i] kB[k][2 n + i], bf16 in float, k by k;
// denormals are 0.
template <int kC, int kA, int kB>
[[gnu::always_inline]] inline void dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace trimpot::tiles
