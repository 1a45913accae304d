// What applying adapters to a model and merging them into its weights have in common.
#pragma once

#include <span>
#include <vector>

#include "tune/adapter.h"

namespace trimpot {

// The sum of the adapters' differences of one layer's columns.
struct WeakSum {
  std::vector<std::int32_t> channels;  // of all adapters, each once, in the order they come in
  std::vector<float> values;           // [rows, channels], original row order
};
WeakSum sum_weak(std::span<const Adapter> adapters, std::size_t index, std::int64_t rows);

// Original row at a position (null: the same one).
inline std::int64_t original(const ColumnOrder& order, std::int64_t position) {
  return order ? (*order)[static_cast<std::size_t>(position)] : position;
}

// Scales and zero-points of one layer under the adapters. Errors: a factor, values that are not
// finite.
Status overlay_scales(std::span<const Adapter> adapters, std::size_t index, const Model& model,
                      LinearOverlay& out);

// f16(old + difference) for columns that the layer has. Errors: others, values that are not finite.
Status overlay_weak(const WeakSum& sum, std::size_t index, const Model& model, LinearOverlay& out);

// Makes an overlay the layer's own.
void put_into(LinearOverlay&& from, Linear& linear);

}  // namespace trimpot
