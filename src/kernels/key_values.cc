// Storing keys and values.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/round.h"
#include "kernels/attention.h"

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

// Of the code at (row % 16, column) from its tile's first on, in a packed matrix of 8 bits.
std::int64_t index_in_tile(std::int64_t row, std::int64_t column) {
  return column / kChunkColumns * kChunkBytes + column % kChunkColumns / 4 * 64 +
         row % kTileRows * 4 + column % 4;
}

std::int64_t key_bytes(const AttentionShape& shape, std::int64_t keys) {
  return keys * round_up(shape.head_dim, kChunkColumns);
}

std::int64_t value_bytes(const AttentionShape& shape, std::int64_t keys) {
  return keys * round_up(shape.head_dim, kTileRows);
}

MatrixView int8_matrix(std::int64_t rows, std::int64_t columns, std::int64_t tile_bytes) {
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
  view.tile_bytes = tile_bytes;
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

// `count` positions of the same 16 (kKeyLanes), which are turned together: of a prompt of 512
// tokens storing number by number took 2 % of the time. `scratch`: kKeyLanes times head_dim
// numbers, then as many halves as k has in a row.
constexpr float kMostF16 = 65504.0f;

void KeyValues::store_f16(const Compute& compute, const AttentionShape& shape,
                          std::int64_t position, std::int64_t count, float* k, float* v,
                          float* scratch) {
  const Kernels& kernels = compute.kernels;
  const std::int64_t width = shape.kv_width(), dim = shape.head_dim;
  auto* keys = reinterpret_cast<f16*>(keys_.data());
  auto* values = reinterpret_cast<f16*>(values_.data());
  auto* halves = reinterpret_cast<f16*>(scratch + kKeyLanes * dim);
  // What f16 cannot hold would be infinite, and 0 of it in another query's sum NaN. NaN stays.
  for (float* row : {k, v})
    for (std::int64_t i = 0; i < count * width; ++i)
      row[i] = std::clamp(row[i], -kMostF16, kMostF16);
  if (count == kKeyLanes)
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      kernels.transpose(k + head * dim, width, count, dim, scratch, kKeyLanes);
      kernels.narrow_f16(scratch, dim * kKeyLanes, keys + key_index(shape, position, head * dim));
    }
  for (std::int64_t row = 0; row < count; ++row, ++position, k += width, v += width) {
    kernels.narrow_f16(k, width, halves);
    for (std::int64_t head = 0; count < kKeyLanes && head < shape.kv_heads; ++head) {
      f16* to = keys + key_index(shape, position, head * dim);
      for (std::int64_t c = 0; c < dim; ++c) to[c * kKeyLanes] = halves[head * dim + c];
    }
    kernels.widen_f16(halves, width, k);
    kernels.narrow_f16(v, width, halves);
    for (std::int64_t head = 0; head < shape.kv_heads; ++head)
      std::copy_n(halves + head * dim, dim, values + (head * capacity_ + position) * dim);
    kernels.widen_f16(halves, width, v);
  }
}

std::int64_t KeyValues::value_part_at(const AttentionShape& shape, std::int64_t position) const {
  return value_bytes(shape, position / kPart * kPart);
}

std::int64_t KeyValues::value_tile_bytes(std::int64_t position) const {
  return std::min(kPart, capacity_ - position / kPart * kPart) / kChunkColumns * kChunkBytes;
}

void KeyValues::store_int8(const AttentionShape& shape, std::int64_t position, const float* k,
                           const float* v) {
  const std::int64_t dim = shape.head_dim, value_tile = value_tile_bytes(position);
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
    std::uint8_t* keys = keys_.data() + head * key_bytes(shape, capacity_) +
                         key_bytes(shape, position / kTileRows * kTileRows);
    std::uint8_t* values =
        values_.data() + head * value_bytes(shape, capacity_) + value_part_at(shape, position);
    for (std::int64_t c = 0; c < dim; ++c) {
      keys[index_in_tile(position, c)] = int8_code(k_head[c], k_inverse);
      values[c / kTileRows * value_tile + index_in_tile(c, position % kPart)] =
          int8_code(v_head[c], v_inverse);
    }
  }
}

void KeyValues::store(Compute& compute, const AttentionShape& shape, std::int64_t position,
                      std::int64_t count, float* k, float* v) {
  const std::int64_t width = shape.kv_width();
  compute.team.for_each(count, 32, [&](std::int64_t begin, std::int64_t end, int member) {
    float* scratch = compute.scratch(member, kKeyLanes * shape.head_dim + width);
    for (std::int64_t row = begin, rows = 1; row < end; row += rows) {
      const std::int64_t at = position + row;
      float* k_row = k + row * width;
      float* v_row = v + row * width;
      if (type_ == CacheType::kInt8) {
        store_int8(shape, at, k_row, v_row);
      } else if (storage_ == Storage::kF32) {
        store_f32(shape, at, k_row, v_row);
      } else {
        rows = std::min(kKeyLanes - at % kKeyLanes, end - row);
        store_f16(compute, shape, at, rows, k_row, v_row, scratch);
      }
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
    copy(keys_, from.keys_, heads, key_bytes(shape, capacity_), key_bytes(shape, from.capacity_),
         key_bytes(shape, round_up(count, kTileRows)));
    // Part by part: the last one's tiles are as long as the capacity makes them.
    const std::int64_t tiles = divide_up(shape.head_dim, kTileRows);
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t first = 0; first < count; first += kPart) {
        const std::int64_t length = round_up(std::min(kPart, count - first), kChunkColumns);
        const std::int64_t part = value_part_at(shape, first);
        const std::uint8_t* source =
            from.values_.data() + head * value_bytes(shape, from.capacity_) + part;
        std::uint8_t* to = values_.data() + head * value_bytes(shape, capacity_) + part;
        for (std::int64_t tile = 0; tile < tiles; ++tile)
          std::copy_n(source + tile * from.value_tile_bytes(first), length * kTileRows,
                      to + tile * value_tile_bytes(first));
      }
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
                                 std::int64_t first, std::int64_t keys) const {
  MatrixView view = int8_matrix(keys, shape.head_dim, key_bytes(shape, kTileRows));
  view.codes = keys_.data() + kv_head * key_bytes(shape, capacity_) + key_bytes(shape, first);
  view.scales = key_scales_.data() + kv_head * capacity_ + first;
  return view;
}

MatrixView KeyValues::value_matrix(const AttentionShape& shape, std::int64_t kv_head,
                                   std::int64_t first, std::int64_t keys) const {
  MatrixView view = int8_matrix(shape.head_dim, keys, value_tile_bytes(first));
  view.codes =
      values_.data() + kv_head * value_bytes(shape, capacity_) + value_part_at(shape, first);
  view.scales = ones_.data();
  return view;
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
