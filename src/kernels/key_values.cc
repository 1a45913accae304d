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

// To the nearest, ties to even, by an addition that leaves no room for a fraction: std::nearbyint
// is a call without SSE4.1.
std::int8_t int8_code(float x, float inverse) {
  constexpr float kNoFraction = 12582912.0f;  // 1.5 * 2^23
  const float limited = std::clamp(x * inverse, -127.0f, 127.0f);
  return static_cast<std::int8_t>((limited + kNoFraction) - kNoFraction);
}

}  // namespace

void KeyValues::allocate(const Compute& compute, const AttentionShape& shape, std::int64_t capacity,
                         CacheType type, Arena* arena) {
  const std::int64_t rounded = round_up(capacity, kKeyLanes);
  if (rounded <= capacity_) return;
  capacity_ = rounded;
  storage_ = type == CacheType::kInt8               ? Storage::kInt8
             : compute.precision == Precision::kF32 ? Storage::kF32
                                                    : Storage::kF16;
  const std::int64_t bytes = storage_bytes(storage_);
  keys_.resize(capacity_ * shape.kv_width() * bytes);
  values_.resize(capacity_ * shape.kv_width() * bytes);
  if (storage_ == Storage::kInt8) {
    key_scales_.resize(capacity_ * shape.kv_heads);
    value_scales_.resize(capacity_ * shape.kv_heads);
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
  auto* keys = reinterpret_cast<std::int8_t*>(keys_.data());
  auto* values = reinterpret_cast<std::int8_t*>(values_.data());
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    const std::int64_t at = head * capacity_ + position;
    const float* k_head = k + head * dim;
    const float* v_head = v + head * dim;
    const float k_scale = int8_scale(k_head, dim), v_scale = int8_scale(v_head, dim);
    key_scales_[at] = k_scale;
    value_scales_[at] = v_scale;
    // Below 1e-30 the inverse could overflow; such a head is zero for every purpose.
    const float k_inverse = k_scale > 1e-30f ? 1.0f / k_scale : 0.0f;
    const float v_inverse = v_scale > 1e-30f ? 1.0f / v_scale : 0.0f;
    for (std::int64_t c = 0; c < dim; ++c) {
      keys[key_index(shape, position, head * dim + c)] = int8_code(k_head[c], k_inverse);
      values[at * dim + c] = int8_code(v_head[c], v_inverse);
    }
  }
}

void KeyValues::store(Compute& compute, const AttentionShape& shape, std::int64_t position,
                      std::int64_t count, float* k, float* v) {
  const std::int64_t width = shape.kv_width();
  compute.team.for_each(count, 32, [&](std::int64_t begin, std::int64_t end, int member) {
    auto* half = reinterpret_cast<f16*>(compute.scratch(member, width));
    for (std::int64_t row = begin; row < end; ++row) {
      float* k_row = k + row * width;
      float* v_row = v + row * width;
      if (storage_ == Storage::kF32)
        store_f32(shape, position + row, k_row, v_row);
      else if (storage_ == Storage::kF16)
        store_f16(compute, shape, position + row, k_row, v_row, half);
      else
        store_int8(shape, position + row, k_row, v_row);
    }
  });
}

void KeyValues::copy_prefix(const AttentionShape& shape, const KeyValues& from,
                            std::int64_t count) {
  const std::int64_t row = shape.head_dim * storage_bytes(storage_);
  const std::int64_t keys = round_up(count, kKeyLanes);
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    std::memcpy(keys_.data() + head * capacity_ * row,
                from.keys_.data() + head * from.capacity_ * row, keys * row);
    std::memcpy(values_.data() + head * capacity_ * row,
                from.values_.data() + head * from.capacity_ * row, count * row);
    if (storage_ != Storage::kInt8) continue;
    std::copy_n(from.key_scales_.data() + head * from.capacity_, count,
                key_scales_.data() + head * capacity_);
    std::copy_n(from.value_scales_.data() + head * from.capacity_, count,
                value_scales_.data() + head * capacity_);
  }
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
