// Keys and values of a head as multiply_panels() wants its second operand, in panels of 32
// columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/round.h"
#include "kernels/kernels.h"

namespace trimpot {

constexpr std::int64_t kPanelColumns = 32;

constexpr std::int64_t even(std::int64_t count) { return round_up(count, 2); }

// For sums over channels: a panel [head_dim / 2][32 keys][2] of at most 32 rows. `channels` has
// room for [head_dim, 32].
inline void pack_channels(const Kernels& kernels, const float* rows, std::int64_t stride,
                          std::int64_t count, std::int64_t head_dim, float* channels,
                          std::int16_t* panel) {
  kernels.transpose(rows, stride, count, head_dim, channels, kPanelColumns);
  kernels.round_pairs(channels, kPanelColumns, head_dim, static_cast<int>(count), panel);
}

// For sums over keys: the same rows in panels [keys / 2][32 channels][2], `panel_size` apart.
inline void pack_keys(const Kernels& kernels, const float* rows, std::int64_t stride,
                      std::int64_t count, std::int64_t head_dim, std::int16_t* panel,
                      std::int64_t panel_size) {
  for (std::int64_t c = 0; c < head_dim; c += kPanelColumns, panel += panel_size)
    kernels.round_pairs(rows + c, stride, count,
                        static_cast<int>(std::min(kPanelColumns, head_dim - c)), panel);
}

}  // namespace trimpot
