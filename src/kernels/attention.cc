#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trimpot {
namespace {

constexpr std::int64_t kKeyLanes = 16;
constexpr std::int64_t kForwardRows = 16;  // queries of one head that are scored together
constexpr std::int64_t kBackwardRows = 64;

std::int64_t storage_bytes(Storage storage) {
  return storage == Storage::kF32 ? 4 : storage == Storage::kF16 ? 2 : 1;
}

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

// One block of queries of one head.
struct Block {
  const Segment* segment;
  std::int64_t first;  // row within the segment
  std::int64_t count;
};

std::vector<Block> query_blocks(std::span<const Segment> segments, std::int64_t rows) {
  std::vector<Block> blocks;
  for (const Segment& segment : segments)
    for (std::int64_t first = 0; first < segment.count; first += rows)
      blocks.push_back({&segment, first, std::min(rows, segment.count - first)});
  return blocks;
}

// Queries that are scored together: `count` consecutive ones of one head, or a single one of
// `heads` heads that share their keys.
struct Unit {
  const Segment* segment;
  std::int64_t first, count;  // rows within the segment
  std::int64_t head, heads;
};

// Keys beyond which a single query is split over the threads.
constexpr std::int64_t kLongContext = 1024;

bool is_long(const Segment& segment) {
  return segment.count == 1 && segment.position + 1 > kLongContext;
}

std::vector<Unit> attention_units(const AttentionShape& shape, std::span<const Segment> segments) {
  std::vector<Unit> units;
  const std::vector<Block> blocks = query_blocks(segments, kForwardRows);
  // The last blocks see the most keys: first come, first served, the longest first.
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    if (is_long(*block->segment)) continue;
    const std::int64_t heads = block->segment->count == 1 ? shape.heads_per_kv() : 1;
    for (std::int64_t head = 0; head < shape.heads; head += heads)
      units.push_back({block->segment, block->first, block->count, head, heads});
  }
  return units;
}

void attend(Compute& compute, const AttentionShape& shape, const Unit& unit, const float* q,
            float* out, float* log_sum_exp, int member) {
  const Segment& segment = *unit.segment;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const std::int64_t width = shape.q_width(), dim = shape.head_dim;
  const std::int64_t kv_head = unit.head / shape.heads_per_kv();
  const std::int64_t keys = segment.position + unit.first + unit.count;
  const std::int64_t padded = round_up(keys, kKeyLanes);
  const std::int64_t rows = unit.count * unit.heads, stride = unit.heads > 1 ? dim : width;
  float* scores = compute.scratch(member, rows * (padded + 1));
  const std::int64_t row = segment.row + unit.first;
  compute.kernels.multiply({q + row * width + unit.head * dim, stride, 1},
                           segment.cache->key_panels(shape, kv_head), rows, padded, dim, scores,
                           padded, false);
  const float* key_scales = segment.cache->key_scales(kv_head);
  const float* value_scales = segment.cache->value_scales(kv_head);
  float* sums = scores + rows * padded;
  for (std::int64_t i = 0; i < rows; ++i) {
    if (key_scales != nullptr) compute.kernels.scale_each(key_scales, keys, scores + i * padded);
    const std::int64_t query = unit.heads > 1 ? 0 : i, head = unit.head + (i - query);
    float lse;
    compute.kernels.softmax(scores + i * padded, keys - unit.count + query + 1, padded, scale,
                            &sums[i], &lse);
    if (log_sum_exp != nullptr) log_sum_exp[(row + query) * shape.heads + head] = lse;
    if (value_scales != nullptr)
      compute.kernels.scale_each(value_scales, keys, scores + i * padded);
  }
  float* to = out + row * width + unit.head * dim;
  compute.kernels.multiply({scores, padded, 1}, segment.cache->value_panels(shape, kv_head), rows,
                           dim, keys, to, stride, false);
  for (std::int64_t i = 0; i < rows; ++i)
    compute.kernels.scale(to + i * stride, dim, 1.0f / sums[i], to + i * stride);
}

// A single query with many keys: scores are split by keys, then the output by channels, all heads
// that share keys together.
void attend_long(Compute& compute, const AttentionShape& shape, const Segment& segment,
                 const float* q, float* out, float* log_sum_exp) {
  constexpr std::int64_t kKeys = 512, kChannels = 32;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const std::int64_t dim = shape.head_dim, share = shape.heads_per_kv();
  const std::int64_t keys = segment.position + 1, padded = round_up(keys, kKeyLanes);
  float* scores = compute.shared(Compute::kScores, shape.heads * (padded + 1));
  float* sums = scores + shape.heads * padded;
  const float* queries = q + segment.row * shape.q_width();
  float* to = out + segment.row * shape.q_width();
  const std::int64_t key_parts = (padded + kKeys - 1) / kKeys;
  compute.team.for_each(shape.kv_heads * key_parts, 1, [&](std::int64_t unit, std::int64_t, int) {
    const std::int64_t kv_head = unit / key_parts, first = unit % key_parts * kKeys;
    Panels panels = segment.cache->key_panels(shape, kv_head);
    panels.data = static_cast<const std::uint8_t*>(panels.data) +
                  first / kKeyLanes * panels.tile_stride * storage_bytes(panels.storage);
    compute.kernels.multiply({queries + kv_head * share * dim, dim, 1}, panels, share,
                             std::min(kKeys, padded - first), dim,
                             scores + kv_head * share * padded + first, padded, false);
  });
  compute.team.for_each(shape.heads, 1, [&](std::int64_t head, std::int64_t, int) {
    float lse;
    float* p = scores + head * padded;
    const float* key_scales = segment.cache->key_scales(head / share);
    const float* value_scales = segment.cache->value_scales(head / share);
    if (key_scales != nullptr) compute.kernels.scale_each(key_scales, keys, p);
    compute.kernels.softmax(p, keys, padded, scale, &sums[head], &lse);
    if (log_sum_exp != nullptr) log_sum_exp[segment.row * shape.heads + head] = lse;
    if (value_scales != nullptr) compute.kernels.scale_each(value_scales, keys, p);
  });
  const std::int64_t channel_parts = (dim + kChannels - 1) / kChannels;
  compute.team.for_each(
      shape.kv_heads * channel_parts, 1, [&](std::int64_t unit, std::int64_t, int) {
        const std::int64_t kv_head = unit / channel_parts, first = unit % channel_parts * kChannels;
        const std::int64_t count = std::min(kChannels, dim - first);
        Panels panels = segment.cache->value_panels(shape, kv_head);
        panels.data =
            static_cast<const std::uint8_t*>(panels.data) + first * storage_bytes(panels.storage);
        float* part = to + kv_head * share * dim + first;
        compute.kernels.multiply({scores + kv_head * share * padded, padded, 1}, panels, share,
                                 count, keys, part, dim, false);
        for (std::int64_t i = 0; i < share; ++i)
          compute.kernels.scale(part + i * dim, count, 1.0f / sums[kv_head * share + i],
                                part + i * dim);
      });
}

}  // namespace

void attention(Compute& compute, const AttentionShape& shape, std::span<const Segment> segments,
               const float* q, float* out, float* log_sum_exp) {
  const std::vector<Unit> units = attention_units(shape, segments);
  compute.team.for_each(
      static_cast<std::int64_t>(units.size()), 1, [&](std::int64_t unit, std::int64_t, int member) {
        attend(compute, shape, units[static_cast<std::size_t>(unit)], q, out, log_sum_exp, member);
      });
  for (const Segment& segment : segments)
    if (is_long(segment)) attend_long(compute, shape, segment, q, out, log_sum_exp);
}

namespace {

// One head of one segment: d_q rows of this head; d_k and d_v of this head alone, [count,
// head_dim].
void head_backward(Compute& compute, const AttentionShape& shape, const Segment& segment,
                   std::int64_t head, const AttentionGradients& g, float* d_k, float* d_v,
                   int member) {
  const std::int64_t width = shape.q_width(), kv_width = shape.kv_width(), dim = shape.head_dim;
  const std::int64_t kv_head = head / shape.heads_per_kv();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const std::int64_t all_keys = round_up(segment.count, kKeyLanes);
  float* p = compute.scratch(member, 2 * kBackwardRows * all_keys + all_keys * dim);
  float* d_p = p + kBackwardRows * all_keys;
  float* value_lanes = d_p + kBackwardRows * all_keys;  // [all_keys / 16][dim][16]
  std::memset(value_lanes, 0, all_keys * dim * sizeof(float));
  for (std::int64_t key = 0; key < segment.count; ++key) {
    const float* v = g.v + (segment.row + key) * kv_width + kv_head * dim;
    float* lanes = value_lanes + key / kKeyLanes * dim * kKeyLanes + key % kKeyLanes;
    for (std::int64_t c = 0; c < dim; ++c) lanes[c * kKeyLanes] = v[c];
  }
  std::memset(d_k, 0, segment.count * dim * sizeof(float));
  std::memset(d_v, 0, segment.count * dim * sizeof(float));
  for (std::int64_t first = 0; first < segment.count; first += kBackwardRows) {
    const std::int64_t count = std::min(kBackwardRows, segment.count - first);
    const std::int64_t keys = first + count, padded = round_up(keys, kKeyLanes);
    const std::int64_t row = segment.row + first;
    const float* q = g.q + row * width + head * dim;
    const float* d_out = g.d_out + row * width + head * dim;
    compute.kernels.multiply({q, width, 1}, segment.cache->key_panels(shape, kv_head), count,
                             padded, dim, p, padded, false);
    compute.kernels.multiply({d_out, width, 1},
                             {value_lanes, Storage::kF32, dim * kKeyLanes, kKeyLanes}, count,
                             padded, dim, d_p, padded, false);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* out = g.out + (row + i) * width + head * dim;
      const float delta = compute.kernels.dot(d_out + i * width, out, dim);
      compute.kernels.softmax_again(p + i * padded, first + i + 1, padded, scale,
                                    g.log_sum_exp[(row + i) * shape.heads + head]);
      compute.kernels.softmax_backward(p + i * padded, padded, delta, scale, d_p + i * padded);
    }
    const Panels k{g.k + segment.row * kv_width + kv_head * dim, Storage::kF32, 16, kv_width};
    compute.kernels.multiply({d_p, padded, 1}, k, count, dim, keys,
                             g.d_q + row * width + head * dim, width, false);
    compute.kernels.multiply({d_p, 1, padded}, {q, Storage::kF32, 16, width}, keys, dim, count, d_k,
                             dim, true);
    compute.kernels.multiply({p, 1, padded}, {d_out, Storage::kF32, 16, width}, keys, dim, count,
                             d_v, dim, true);
  }
}

}  // namespace

void attention_backward(Compute& compute, const AttentionShape& shape,
                        std::span<const Segment> segments, std::int64_t rows,
                        const AttentionGradients& g) {
  const std::int64_t dim = shape.head_dim, share = shape.heads_per_kv();
  // Each head sums its own d_k and d_v; the heads that share keys are added afterwards, in order.
  const std::int64_t per_head = rows * dim;
  float* parts = compute.shared(Compute::kHeadParts, 2 * shape.heads * per_head);
  const auto units = static_cast<std::int64_t>(segments.size()) * shape.heads;
  compute.team.for_each(units, 1, [&](std::int64_t unit, std::int64_t, int member) {
    const Segment& segment = segments[static_cast<std::size_t>(unit / shape.heads)];
    const std::int64_t head = unit % shape.heads;
    float* d_k = parts + 2 * head * per_head + segment.row * dim;
    head_backward(compute, shape, segment, head, g, d_k, d_k + per_head, member);
  });
  compute.team.for_each(rows, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        const float* d_k = parts + 2 * head * per_head + row * dim;
        float* to_k = g.d_k + row * shape.kv_width() + head / share * dim;
        float* to_v = g.d_v + row * shape.kv_width() + head / share * dim;
        if (head % share == 0) {
          std::memcpy(to_k, d_k, dim * sizeof(float));
          std::memcpy(to_v, d_k + per_head, dim * sizeof(float));
        } else {
          compute.kernels.add(d_k, dim, to_k);
          compute.kernels.add(d_k + per_head, dim, to_v);
        }
      }
  });
}

}  // namespace trimpot
