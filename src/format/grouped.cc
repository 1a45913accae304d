#include "format/grouped.h"

#include <array>

namespace trimpot {
namespace {

constexpr std::array<float, 16> kNf4Levels = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

}  // namespace

void pack_row(int bits, std::span<const std::uint8_t> codes, std::uint8_t* packed) {
  std::uint32_t waiting = 0;
  int count = 0;
  for (const std::uint8_t code : codes) {
    waiting |= static_cast<std::uint32_t>(code) << count;
    for (count += bits; count >= 8; count -= 8, waiting >>= 8)
      *packed++ = static_cast<std::uint8_t>(waiting);
  }
  if (count > 0) *packed = static_cast<std::uint8_t>(waiting);
}

void unpack_row(int bits, std::int64_t columns, const std::uint8_t* packed, std::uint8_t* codes) {
  std::uint32_t waiting = 0;
  int count = 0;
  const std::uint32_t mask = (1u << bits) - 1;
  for (std::int64_t column = 0; column < columns; ++column) {
    if (count < bits) {
      waiting |= static_cast<std::uint32_t>(*packed++) << count;
      count += 8;
    }
    codes[column] = static_cast<std::uint8_t>(waiting & mask);
    waiting >>= bits;
    count -= bits;
  }
}

std::span<const float, 16> nf4_levels() { return kNf4Levels; }

}  // namespace trimpot
