// Whole numbers of blocks.
#pragma once

#include <cstdint>

namespace trimpot {

// For values >= 0 and by > 0.
constexpr std::int64_t divide_up(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}
constexpr std::int64_t round_up(std::int64_t value, std::int64_t to) {
  return divide_up(value, to) * to;
}
// The size of equal parts, as few as have at most `most` each.
constexpr std::int64_t equal_part(std::int64_t value, std::int64_t most) {
  return value == 0 ? 0 : divide_up(value, divide_up(value, most));
}

}  // namespace trimpot
