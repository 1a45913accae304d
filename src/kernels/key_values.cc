// Storing keys and values.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/round.h"
#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/rounded_panels.h"

namespace trimpot {
namespace {

// The scale of one head's numbers as codes of -127 .. 127; NaN where one of them is not finite.
float int8_scale(const float* x, std::int64_t count) {
  float highest = 0, broken = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    highest = std::max(highest, std::fabs(x[i]));
    broken += x[i] * 0.0f;  // 0 or NaN
  }
  return highest / 127.0f + broken;
}

// Plus 128. To the nearest, ties to even, by an addition that leaves no room for a fraction:
// std::nearbyint is a call without SSE4.1.
std::uint8_t int8_code(float x, float inverse) {
  constexpr float kNoFraction = 12582912.0f;  // 1.5 * 2^23
  const float limited = std::clamp(x * inverse, -127.0f, 127.0f);
  return static_cast<std::uint8_t>(static_cast<int>((limited + kNoFraction) - kNoFraction) + 128);
}

constexpr std::int64_t kChunkBytes = 512;

// Of the code at (row, column) of a packed matrix of 8 bits.
std::int64_t packed_index(std::int64_t row, std::int64_t column, std::int64_t chunks) {
  return (row / kTileRows * chunks + column / kChunkColumns) * kChunkBytes +
         column % kChunkColumns / 4 * 64 + row % kTileRows * 4 + column % 4;
}

std::int64_t key_bytes(const AttentionShape& shape, std::int64_t keys) {
  return keys * round_up(shape.head_dim, kChunkColumns);
}

std::int64_t value_bytes(const AttentionShape& shape, std::int64_t keys) {
  return keys * round_up(shape.head_dim, kTileRows);
}

MatrixView int8_matrix(std::int64_t rows, std::int64_t columns, std::int64_t tile_chunks) {
  MatrixView view;
  view.storage = Storage::kCodes;
  view.bits = 8;
  view.zero_point = 128;
  view.rows = rows;
  view.columns = columns;
  view.tiles = (rows + kTileRows - 1) / kTileRows;
  view.chunks = (columns + kChunkColumns - 1) / kChunkColumns;
  view.group_chunks = static_cast<int>(view.chunks);
  view.groups = 1;
  view.tile_bytes = tile_chunks * kChunkBytes;
  return view;
}

}  // namespace

void KeyValues::allocate(const Compute& compute, const AttentionShape& shape, std::int64_t capacity,
                         CacheType type, Arena* arena) {
  const std::int64_t rounded = round_up(capacity, kChunkColumns);  // = kPanelColumns
  if (rounded <= capacity_) return;
  capacity_ = rounded;
  type_ = type;
  storage_ = compute.precision == Precision::kF32 ? Storage::kF32 : Storage::kF16;
  if (type == CacheType::kInt8) {
    keys_.resize(shape.kv_heads * key_bytes(shape, capacity_));
    values_.resize(shape.kv_heads * value_bytes(shape, capacity_));
    key_scales_.resize(capacity_ * shape.kv_heads);
    value_scales_.resize(capacity_ * shape.kv_heads);
    ones_.assign(round_up(shape.head_dim, kTileRows), f32_to_f16(1.0f));
  } else {
    keys_.resize(capacity_ * shape.kv_width() * storage_bytes(storage_));
    values_.resize(capacity_ * shape.kv_width() * storage_bytes(storage_));
  }
  if (arena == nullptr) return;
  keys_.move_to(*arena);
  values_.move_to(*arena);
}

std::int64_t KeyValues::key_index(const AttentionShape& shape, std::int64_t position,
                                  std::int64_t channel) const {
  const std::int64_t head = channel / shape.head_dim;
  return ((head * (capacity_ / kKeyLanes) + position / kKeyLanes) * shape.head_dim +
          channel % shape.head_dim) *
             kKeyLanes +
         position % kKeyLanes;
}

void KeyValues::store_f32(const AttentionShape& shape, std::int64_t position, const float* k,
                          const float* v) {
  auto* keys = reinterpret_cast<float*>(keys_.data());
  auto* values = reinterpret_cast<float*>(values_.data());
  for (std::int64_t c = 0; c < shape.kv_width(); ++c) keys[key_index(shape, position, c)] = k[c];
  for (std::int64_t head = 0; head < shape.kv_heads; ++head)
    std::copy_n(v + head * shape.head_dim, shape.head_dim,
                values + (head * capacity_ + position) * shape.head_dim);
}

void KeyValues::store_f16(const Compute& compute, const AttentionShape& shape,
                          std::int64_t position, float* k, float* v, f16* scratch) {
  const std::int64_t width = shape.kv_width();
  auto* keys = reinterpret_cast<f16*>(keys_.data());
  auto* values = reinterpret_cast<f16*>(values_.data());
  compute.kernels.narrow_f16(k, width, scratch);
  for (std::int64_t c = 0; c < width; ++c) keys[key_index(shape, position, c)] = scratch[c];
  compute.kernels.widen_f16(scratch, width, k);
  compute.kernels.narrow_f16(v, width, scratch);
  for (std::int64_t head = 0; head < shape.kv_heads; ++head)
    std::copy_n(scratch + head * shape.head_dim, shape.head_dim,
                values + (head * capacity_ + position) * shape.head_dim);
  compute.kernels.widen_f16(scratch, width, v);
}

void KeyValues::store_int8(const AttentionShape& shape, std::int64_t position, const float* k,
                           const float* v) {
  const std::int64_t dim = shape.head_dim;
  const std::int64_t key_chunks = round_up(dim, kChunkColumns) / kChunkColumns;
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    const std::int64_t at = head * capacity_ + position;
    const float* k_head = k + head * dim;
    const float* v_head = v + head * dim;
    // A key's scale is kept in f16, and what is kept is what its codes are for.
    key_scales_[at] = f32_to_f16(int8_scale(k_head, dim));
    const float k_scale = f16_to_f32(key_scales_[at]), v_scale = int8_scale(v_head, dim);
    value_scales_[at] = v_scale;
    // Below 1e-30 the inverse could overflow; such a head is zero for every purpose.
    const float k_inverse = k_scale > 1e-30f ? 1.0f / k_scale : 0.0f;
    const float v_inverse = v_scale > 1e-30f ? 1.0f / v_scale : 0.0f;
    std::uint8_t* keys = keys_.data() + head * key_bytes(shape, capacity_);
    std::uint8_t* values = values_.data() + head * value_bytes(shape, capacity_);
    for (std::int64_t c = 0; c < dim; ++c) {
      keys[packed_index(position, c, key_chunks)] = int8_code(k_head[c], k_inverse);
      values[packed_index(c, position, capacity_ / kChunkColumns)] =
          int8_code(v_head[c], v_inverse);
    }
  }
}

void KeyValues::store_rounded(Compute& compute, const AttentionShape& shape, std::int64_t position,
                              std::int64_t count, float* k, float* v) {
  const Kernels& kernels = compute.kernels;
  const std::int64_t dim = shape.head_dim, width = shape.kv_width();
  keys_.reserve(shape.kv_heads * capacity_ * even(dim) * sizeof(std::int16_t));
  values_.reserve(shape.kv_heads * capacity_ * round_up(dim, kPanelColumns) * sizeof(std::int16_t));
  const auto round_to_f16 = [&](float* x, std::int64_t rows, f16* halves) {
    for (float* end = x + rows * width; x != end; x += width) {
      kernels.narrow_f16(x, width, halves);
      kernels.widen_f16(halves, width, x);
    }
  };
  compute.team.for_each(
      count, kPanelColumns, [&](std::int64_t begin, std::int64_t stretch_end, int member) {
        float* scratch = compute.scratch(member, std::max(width, dim * kPanelColumns));
        for (; begin < stretch_end; begin += kPanelColumns) {
          const std::int64_t rows = std::min(kPanelColumns, stretch_end - begin);
          float* k_rows = k + begin * width;
          float* v_rows = v + begin * width;
          round_to_f16(k_rows, rows, reinterpret_cast<f16*>(scratch));
          round_to_f16(v_rows, rows, reinterpret_cast<f16*>(scratch));
          const std::int64_t at = position + begin;
          for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
            pack_channels(kernels, k_rows + head * dim, width, rows, dim, scratch,
                          rounded_keys(shape, head).panel(at / kPanelColumns));
            pack_keys(kernels, v_rows + head * dim, width, rows, dim,
                      rounded_values(shape, head).from_row(at));
          }
        }
      });
}

void KeyValues::store(Compute& compute, const AttentionShape& shape, std::int64_t position,
                      std::int64_t count, float* k, float* v) {
  const std::int64_t width = shape.kv_width();
  rounded_ = type_ == CacheType::kFloat && rounds_inputs(compute);
  if (rounded_) return store_rounded(compute, shape, position, count, k, v);
  compute.team.for_each(count, 32, [&](std::int64_t begin, std::int64_t end, int member) {
    auto* half = reinterpret_cast<f16*>(compute.scratch(member, width));
    for (std::int64_t row = begin; row < end; ++row) {
      float* k_row = k + row * width;
      float* v_row = v + row * width;
      if (type_ == CacheType::kInt8)
        store_int8(shape, position + row, k_row, v_row);
      else if (storage_ == Storage::kF32)
        store_f32(shape, position + row, k_row, v_row);
      else
        store_f16(compute, shape, position + row, k_row, v_row, half);
    }
  });
}

void KeyValues::copy_prefix(const AttentionShape& shape, const KeyValues& from,
                            std::int64_t count) {
  const auto copy = [](auto& to, const auto& from_numbers, std::int64_t pieces, std::int64_t size,
                       std::int64_t from_size, std::int64_t length) {
    for (std::int64_t i = 0; i < pieces; ++i)
      std::copy_n(from_numbers.data() + i * from_size, length, to.data() + i * size);
  };
  const std::int64_t heads = shape.kv_heads;
  if (type_ == CacheType::kInt8) {
    const std::int64_t tiles = heads * round_up(shape.head_dim, kTileRows) / kTileRows;
    copy(keys_, from.keys_, heads, key_bytes(shape, capacity_), key_bytes(shape, from.capacity_),
         key_bytes(shape, round_up(count, kTileRows)));
    copy(values_, from.values_, tiles, capacity_ * kTileRows, from.capacity_ * kTileRows,
         round_up(count, kChunkColumns) * kTileRows);
    copy(key_scales_, from.key_scales_, heads, capacity_, from.capacity_, count);
    copy(value_scales_, from.value_scales_, heads, capacity_, from.capacity_, count);
    return;
  }
  const std::int64_t row = shape.head_dim * storage_bytes(storage_);
  copy(keys_, from.keys_, heads, capacity_ * row, from.capacity_ * row,
       round_up(count, kKeyLanes) * row);
  copy(values_, from.values_, heads, capacity_ * row, from.capacity_ * row, count * row);
}

MatrixView KeyValues::key_matrix(const AttentionShape& shape, std::int64_t kv_head,
                                 std::int64_t keys) const {
  const std::int64_t chunks = round_up(shape.head_dim, kChunkColumns) / kChunkColumns;
  MatrixView view = int8_matrix(keys, shape.head_dim, chunks);
  view.codes = keys_.data() + kv_head * key_bytes(shape, capacity_);
  view.scales = key_scales_.data() + kv_head * capacity_;
  return view;
}

MatrixView KeyValues::value_matrix(const AttentionShape& shape, std::int64_t kv_head,
                                   std::int64_t keys) const {
  MatrixView view = int8_matrix(shape.head_dim, keys, capacity_ / kChunkColumns);
  view.codes = values_.data() + kv_head * value_bytes(shape, capacity_);
  view.scales = ones_.data();
  return view;
}

RoundedPanels KeyValues::rounded_keys(const AttentionShape& shape, std::int64_t kv_head) {
  const std::int64_t panel = even(shape.head_dim) * kPanelColumns;
  return {
      reinterpret_cast<std::int16_t*>(keys_.data()) + kv_head * capacity_ / kPanelColumns * panel,
      panel};
}

RoundedPanels KeyValues::rounded_values(const AttentionShape& shape, std::int64_t kv_head) {
  const std::int64_t panel = capacity_ * kPanelColumns;
  return {reinterpret_cast<std::int16_t*>(values_.data()) +
              kv_head * divide_up(shape.head_dim, kPanelColumns) * panel,
          panel};
}

Panels KeyValues::key_panels(const AttentionShape& shape, std::int64_t kv_head) const {
  const std::int64_t bytes = storage_bytes(storage_);
  return {keys_.data() + kv_head * capacity_ * shape.head_dim * bytes, storage_,
          shape.head_dim * kKeyLanes, kKeyLanes};
}

Panels KeyValues::value_panels(const AttentionShape& shape, std::int64_t kv_head) const {
  const std::int64_t bytes = storage_bytes(storage_);
  return {values_.data() + kv_head * capacity_ * shape.head_dim * bytes, storage_, kKeyLanes,
          shape.head_dim};
}

}  // namespace trimpot
