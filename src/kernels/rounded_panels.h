// Operands of multiply_panels(): memory for them, and a head's keys and values as its second one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/round.h"
#include "kernels/kernels.h"

namespace trimpot {

constexpr std::int64_t kPanelColumns = 32;

constexpr std::int64_t even(std::int64_t count) { return round_up(count, 2); }

// Panels of `columns` columns and `rows` rows in memory at `at`, which moves on; and what they
// take.
constexpr std::int64_t panels_floats(std::int64_t columns, std::int64_t rows) {
  const std::int64_t panels = divide_up(columns, kPanelColumns);
  return panels * even(rows) * kPanelColumns / 2 +
         round_up(panels * divide_up(rows, kRoundedBlock), 16);
}
inline RoundedPanels lay_panels(float*& at, std::int64_t columns, std::int64_t rows) {
  const std::int64_t panels = divide_up(columns, kPanelColumns), size = even(rows) * kPanelColumns;
  const RoundedPanels laid{reinterpret_cast<std::int16_t*>(at), size, at + panels * size / 2,
                           divide_up(rows, kRoundedBlock)};
  at += panels_floats(columns, rows);
  return laid;
}

// Rows of the first operand likewise.
constexpr std::int64_t rows_floats(std::int64_t rows, std::int64_t columns) {
  return rows * rounded_stride(columns) / 2 +
         round_up(rows * divide_up(columns, kRoundedBlock), 16);
}
inline RoundedView lay_rows(float*& at, std::int64_t rows, std::int64_t columns) {
  const std::int64_t stride = rounded_stride(columns);
  const RoundedView laid{reinterpret_cast<std::int16_t*>(at), stride, at + rows * stride / 2,
                         divide_up(columns, kRoundedBlock)};
  at += rows_floats(rows, columns);
  return laid;
}

// For sums over channels: a panel [head_dim / 2][32 keys][2] of at most 32 rows. `channels` has
// room for [head_dim, 32].
inline void pack_channels(const Kernels& kernels, const float* rows, std::int64_t stride,
                          std::int64_t count, std::int64_t head_dim, float* channels,
                          const RoundedPanels& panel) {
  kernels.transpose(rows, stride, count, head_dim, channels, kPanelColumns);
  kernels.round_pairs(channels, kPanelColumns, head_dim, static_cast<int>(count), panel);
}

// For sums over keys: the same rows in panels [keys / 2][32 channels][2].
inline void pack_keys(const Kernels& kernels, const float* rows, std::int64_t stride,
                      std::int64_t count, std::int64_t head_dim, const RoundedPanels& panels) {
  for (std::int64_t c = 0; c < head_dim; c += kPanelColumns)
    kernels.round_pairs(rows + c, stride, count,
                        static_cast<int>(std::min(kPanelColumns, head_dim - c)),
                        panels.panel(c / kPanelColumns));
}

}  // namespace trimpot
