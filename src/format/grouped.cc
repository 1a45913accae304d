#include "format/grouped.h"

#include <cstring>

namespace trimpot {

void pack_row(int bits, std::span<const std::uint8_t> codes, std::uint8_t* packed) {
  if (bits == 8) {
    if (!codes.empty()) std::memcpy(packed, codes.data(), codes.size());
    return;
  }
  std::uint32_t waiting = 0;  // bits that do not fill a byte yet
  int count = 0;
  for (const std::uint8_t code : codes) {
    waiting |= static_cast<std::uint32_t>(code) << count;
    for (count += bits; count >= 8; count -= 8, waiting >>= 8)
      *packed++ = static_cast<std::uint8_t>(waiting);
  }
  if (count > 0) *packed = static_cast<std::uint8_t>(waiting);
}

void unpack_row(int bits, std::int64_t columns, const std::uint8_t* packed, std::uint8_t* codes) {
  if (bits == 8) {
    if (columns > 0) std::memcpy(codes, packed, static_cast<std::size_t>(columns));
    return;
  }
  const std::uint32_t mask = (1u << bits) - 1;
  std::uint32_t waiting = 0;
  int count = 0;
  for (std::int64_t column = 0; column < columns; ++column, count -= bits, waiting >>= bits) {
    if (count < bits) {
      waiting |= static_cast<std::uint32_t>(*packed++) << count;
      count += 8;
    }
    codes[column] = static_cast<std::uint8_t>(waiting & mask);
  }
}

std::span<const float, 16> nf4_levels() { return kNf4Levels; }

}  // namespace trimpot
