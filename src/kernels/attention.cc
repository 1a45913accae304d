#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/round.h"
#include "kernels/linear.h"
#include "kernels/query_blocks.h"
#include "kernels/rounded_panels.h"

namespace trimpot {
namespace {

// Queries of one head that are scored together: whole blocks of the products of floats (12 rows)
// and of those in bf16 (32).
constexpr std::int64_t kFloatRows = 24, kRoundedRows = 32;

// Queries that are scored together: `count` consecutive ones of one head, or a single one of
// `heads` heads that share their keys.
struct Unit {
  const Segment* segment;
  std::int64_t first, count;  // rows within the segment
  std::int64_t head, heads;
  float* panels;  // RoundedKeyValues of the segment; null: the products are of floats or int8
};

// Keys beyond which a single query is split over the threads, and how many of them are a piece.
constexpr std::int64_t kLongContext = 1024, kPart = 512;

bool is_long(const Segment& segment) {
  return segment.count == 1 && segment.position + 1 > kLongContext;
}

// A segment's keys and values in bf16, as multiply_panels() wants them, in memory for all heads.
struct RoundedKeyValues {
  RoundedPanels keys, values;  // of a head: for sums over channels; for sums over keys

  static std::int64_t head_size(const AttentionShape& shape, std::int64_t keys) {
    return panels_floats(keys, shape.head_dim) + panels_floats(shape.head_dim, keys);
  }
  RoundedKeyValues(const AttentionShape& shape, std::int64_t all, std::int64_t kv_head,
                   float* memory) {
    float* at = memory + kv_head * head_size(shape, all);
    keys = lay_panels(at, all, shape.head_dim);
    values = lay_panels(at, shape.head_dim, all);
  }
};

// Of the positions up to the last one of each segment, from the caches' f16; a pointer for each.
std::vector<float*> round_key_values(Compute& compute, const AttentionShape& shape,
                                     std::span<const Segment> segments) {
  std::vector<float*> panels(segments.size());
  if (!rounds_inputs(compute) || segments.front().cache->type() != CacheType::kFloat) return panels;
  const auto keys_of = [](const Segment& segment) { return segment.position + segment.count; };
  std::int64_t floats = 0;
  for (const Segment& segment : segments)
    floats += shape.kv_heads * RoundedKeyValues::head_size(shape, keys_of(segment));
  float* at = compute.shared(Compute::kPanels, floats);
  const Kernels& k = compute.kernels;
  const std::int64_t dim = shape.head_dim;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const KeyValues& cache = *segments[i].cache;
    const std::int64_t all = keys_of(segments[i]);
    const std::int64_t blocks = divide_up(all, kPanelColumns);
    panels[i] = at;
    compute.team.for_each(
        shape.kv_heads * blocks, 4, [&](std::int64_t begin, std::int64_t end, int member) {
          float* wide = compute.scratch(member, kPanelColumns * dim);
          for (; begin < end; ++begin) {
            const std::int64_t head = begin / blocks, block = begin % blocks;
            const std::int64_t first = block * kPanelColumns;
            const std::int64_t count = std::min(kPanelColumns, all - first);
            const RoundedKeyValues to(shape, all, head, panels[i]);
            const auto* keys = static_cast<const f16*>(cache.key_panels(shape, head).data);
            for (std::int64_t c = 0; c < 2 * dim; ++c)  // to [head_dim][32]
              k.widen_f16(keys + first * dim + c * kKeyLanes, kKeyLanes,
                          wide + c % dim * kPanelColumns + c / dim * kKeyLanes);
            k.round_pairs(wide, kPanelColumns, dim, kPanelColumns, to.keys.panel(block));
            const auto* values = static_cast<const f16*>(cache.value_panels(shape, head).data);
            k.widen_f16(values + first * dim, count * dim, wide);
            pack_keys(k, wide, dim, count, dim, to.values.from_row(first));
          }
        });
    at += shape.kv_heads * RoundedKeyValues::head_size(shape, all);
  }
  return panels;
}

std::vector<Unit> attention_units(const AttentionShape& shape, std::span<const Segment> segments,
                                  std::span<float* const> panels) {
  std::vector<Unit> units;
  const bool rounded = !segments.empty() && panels.front() != nullptr;
  const std::vector<Block> blocks = query_blocks(segments, rounded ? kRoundedRows : kFloatRows);
  // The last blocks see the most keys: first come, first served, the longest first.
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    float* of_segment = panels[static_cast<std::size_t>(block->segment - segments.data())];
    if (of_segment == nullptr && is_long(*block->segment)) continue;
    const std::int64_t heads = block->segment->count == 1 ? shape.heads_per_kv() : 1;
    for (std::int64_t head = 0; head < shape.heads; head += heads)
      units.push_back({block->segment, block->first, block->count, head, heads, of_segment});
  }
  return units;
}

// Rows rounded to int8 in memory of `int8_floats(rows, columns)` floats.
std::int64_t int8_blocks(std::int64_t columns) { return (columns + 31) / 32; }
std::int64_t int8_floats(std::int64_t rows, std::int64_t columns) {
  return rows * int8_blocks(columns) * static_cast<std::int64_t>(sizeof(Int8Block) / sizeof(float));
}
Int8View int8_view(float* memory, std::int64_t columns) {
  return {reinterpret_cast<Int8Block*>(memory), int8_blocks(columns)};
}

// scores [rows, padded keys] of queries whose rows are `stride` apart, still without 1 / sqrt(dim).
// With int8 keys the queries are rounded to int8 too, in `int8`.
void score_keys(Compute& compute, const AttentionShape& shape, const KeyValues& cache,
                std::int64_t kv_head, const float* q, std::int64_t stride, std::int64_t rows,
                std::int64_t first, std::int64_t end, std::int64_t padded, float* scores,
                float* int8) {
  const std::int64_t dim = shape.head_dim;
  if (cache.type() == CacheType::kInt8) {
    const Int8View queries = int8_view(int8, dim);
    compute.kernels.quantize(q, stride, dim, 0, rows, queries);
    compute.kernels.linear_int8(cache.key_matrix(shape, kv_head, padded), queries, 0, rows,
                                first / kTileRows, end / kTileRows, nullptr, nullptr, scores,
                                padded, false);
    return;
  }
  Panels panels = cache.key_panels(shape, kv_head);
  panels.data = static_cast<const std::uint8_t*>(panels.data) +
                first / kKeyLanes * panels.tile_stride * storage_bytes(panels.storage);
  compute.kernels.multiply({q, stride, 1}, panels, rows, end - first, dim, scores + first, padded,
                           false);
}

// Sums of exponentials, every 16th score in one of them: those of pieces are added in order, then
// lane by lane, whoever worked them out.
struct Sums {
  static constexpr std::int64_t kLanes = 16;
  float lane[kLanes] = {};
  void add(const float* other) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] += other[i];
  }
  float total() {
    for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
      for (std::int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
  }
};

// scores[0, keys) -> exp(scale * score - highest), zero up to `padded`; gives their sum and the
// log-sum-exp of the scaled scores.
void softmax(const Kernels& k, float* scores, std::int64_t keys, std::int64_t padded, float scale,
             float* sum, float* log_sum_exp) {
  const float highest = k.scale_scores(scores, keys, padded, scale);
  Sums sums;
  for (std::int64_t first = 0; first < padded; first += kPart) {
    Sums part;
    k.exponentials(scores + first, std::min(kPart, padded - first), highest, part.lane);
    sums.add(part.lane);
  }
  *sum = sums.total();
  *log_sum_exp = highest + std::log(*sum);
}

// The weights of keys first .. end of int8 values take the values' scales and are rounded to int8,
// in a row of weights. Those from `keys` on are zero and stay so, whatever a later value's scale.
void round_weights(const Kernels& k, const KeyValues& cache, std::int64_t kv_head,
                   std::int64_t first, std::int64_t end, std::int64_t keys, float* scores,
                   Int8Block* weights) {
  k.scale_each(cache.value_scales(kv_head) + first, std::min(end, keys) - first, scores + first);
  const Int8View part{weights + first / kChunkColumns, int8_blocks(end - first)};
  k.quantize(scores + first, 0, end - first, 0, 1, part);
}

// out [rows, channels first .. end) of a head, from weights as softmax() and, of int8 values,
// round_weights() leave them.
void add_values(Compute& compute, const AttentionShape& shape, const KeyValues& cache,
                std::int64_t kv_head, std::int64_t keys, std::int64_t padded, std::int64_t rows,
                std::int64_t first, std::int64_t end, const float* scores, const Int8View& weights,
                float* out, std::int64_t stride, const float* sums) {
  if (cache.type() == CacheType::kInt8) {
    compute.kernels.linear_int8(cache.value_matrix(shape, kv_head, keys), weights, 0, rows,
                                first / kTileRows, (end + kTileRows - 1) / kTileRows, nullptr,
                                nullptr, out, stride, false);
  } else {
    Panels panels = cache.value_panels(shape, kv_head);
    panels.data =
        static_cast<const std::uint8_t*>(panels.data) + first * storage_bytes(panels.storage);
    compute.kernels.multiply({scores, padded, 1}, panels, rows, end - first, keys, out + first,
                             stride, false);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    float* to = out + i * stride + first;
    compute.kernels.scale(to, end - first, 1.0f / sums[i], to);
  }
}

// attend() in bf16: queries, keys, weights and values are rounded, sums and the softmax are not.
void attend_rounded(Compute& compute, const AttentionShape& shape, const Unit& unit, const float* q,
                    float* out, float* log_sum_exp, int member) {
  const Kernels& k = compute.kernels;
  const std::int64_t width = shape.q_width(), dim = shape.head_dim;
  const RoundedKeyValues panels(shape, unit.segment->position + unit.segment->count,
                                unit.head / shape.heads_per_kv(), unit.panels);
  const std::int64_t keys = unit.segment->position + unit.first + unit.count;
  const std::int64_t padded = round_up(keys, kPanelColumns);
  const std::int64_t rows = unit.count * unit.heads, stride = unit.heads > 1 ? dim : width;
  const std::int64_t row = unit.segment->row + unit.first, at = row * width + unit.head * dim;
  float* scores = compute.scratch(member, rows * (padded + even(dim) / 2 + 1));
  float* sums = scores + rows * padded;
  const RoundedView queries{reinterpret_cast<std::int16_t*>(sums + rows), even(dim)};
  for (std::int64_t i = 0; i < rows; ++i)
    k.round_row(q + at + i * stride, dim, queries.codes + i * queries.stride, nullptr);
  k.multiply_panels(queries, rows, even(dim), panels.keys, padded, scores, padded, false);
  const RoundedView weights{reinterpret_cast<std::int16_t*>(scores), 2 * padded};
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = unit.heads > 1 ? 0 : i, head = unit.head + (i - query);
    float lse;
    softmax(k, scores + i * padded, keys - unit.count + query + 1, padded, scale, &sums[i], &lse);
    if (log_sum_exp != nullptr) log_sum_exp[(row + query) * shape.heads + head] = lse;
    k.round_row(scores + i * padded, padded, weights.codes + i * weights.stride, nullptr);
  }
  k.multiply_panels(weights, rows, even(keys), panels.values, dim, out + at, stride, false);
  for (std::int64_t i = 0; i < rows; ++i)
    k.scale(out + at + i * stride, dim, 1.0f / sums[i], out + at + i * stride);
}

void attend(Compute& compute, const AttentionShape& shape, const Unit& unit, const float* q,
            float* out, float* log_sum_exp, int member) {
  if (unit.panels != nullptr)
    return attend_rounded(compute, shape, unit, q, out, log_sum_exp, member);
  const Segment& segment = *unit.segment;
  const KeyValues& cache = *segment.cache;
  const std::int64_t width = shape.q_width(), dim = shape.head_dim;
  const std::int64_t kv_head = unit.head / shape.heads_per_kv();
  const std::int64_t keys = segment.position + unit.first + unit.count;
  const std::int64_t padded = round_up(keys, kKeyLanes);
  const std::int64_t rows = unit.count * unit.heads, stride = unit.heads > 1 ? dim : width;
  const bool int8 = cache.type() == CacheType::kInt8;
  float* scores = compute.scratch(
      member, rows * (padded + 1) + (int8 ? int8_floats(rows, std::max(dim, padded)) : 0));
  float* sums = scores + rows * padded;
  float* rounded = sums + rows;
  const std::int64_t row = segment.row + unit.first, at = row * width + unit.head * dim;
  score_keys(compute, shape, cache, kv_head, q + at, stride, rows, 0, padded, padded, scores,
             rounded);
  const Int8View weights = int8_view(rounded, padded);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = unit.heads > 1 ? 0 : i, head = unit.head + (i - query);
    const std::int64_t seen = keys - unit.count + query + 1;
    float lse;
    softmax(compute.kernels, scores + i * padded, seen, padded, scale, &sums[i], &lse);
    if (int8)
      round_weights(compute.kernels, cache, kv_head, 0, padded, seen, scores + i * padded,
                    weights.row(i));
    if (log_sum_exp != nullptr) log_sum_exp[(row + query) * shape.heads + head] = lse;
  }
  add_values(compute, shape, cache, kv_head, keys, padded, rows, 0, dim, scores, weights, out + at,
             stride, sums);
}

// A single query with many keys: scores and then weights are split by keys, then the output by
// channels, all heads that share keys together.
void attend_long(Compute& compute, const AttentionShape& shape, const Segment& segment,
                 const float* q, float* out, float* log_sum_exp) {
  constexpr std::int64_t kChannels = 32;
  const Kernels& kernels = compute.kernels;
  const KeyValues& cache = *segment.cache;
  const std::int64_t dim = shape.head_dim, share = shape.heads_per_kv();
  const std::int64_t keys = segment.position + 1, padded = round_up(keys, kKeyLanes);
  const std::int64_t parts = (padded + kPart - 1) / kPart;
  const bool int8 = cache.type() == CacheType::kInt8;
  const std::int64_t floats = int8 ? int8_floats(1, padded) : 0;  // of a head
  float* scores = compute.shared(Compute::kScores,
                                 shape.heads * (padded + floats + (1 + Sums::kLanes) * parts + 1));
  float* rounded = scores + shape.heads * padded;
  float* highest = rounded + shape.heads * floats;  // [heads, parts]
  float* lanes = highest + shape.heads * parts;     // [heads, parts, Sums::kLanes]
  float* sums = lanes + shape.heads * parts * Sums::kLanes;
  const float* queries = q + segment.row * shape.q_width();
  float* to = out + segment.row * shape.q_width();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  compute.team.for_each(
      shape.kv_heads * parts, 1, [&](std::int64_t unit, std::int64_t, int member) {
        const std::int64_t part = unit % parts, first = part * kPart;
        const std::int64_t end = std::min(first + kPart, padded);
        const std::int64_t kv_head = unit / parts, head = kv_head * share;
        score_keys(compute, shape, cache, kv_head, queries + head * dim, dim, share, first, end,
                   padded, scores + head * padded,
                   int8 ? compute.scratch(member, int8_floats(share, dim)) : nullptr);
        for (std::int64_t i = head; i < head + share; ++i)
          highest[i * parts + part] = kernels.scale_scores(
              scores + i * padded + first, std::min(end, keys) - first, end - first, scale);
      });
  // The same pieces as before: a thread has its scores in its cache.
  compute.team.for_each(shape.kv_heads * parts, 1, [&](std::int64_t unit, std::int64_t, int) {
    const std::int64_t kv_head = unit / parts, part = unit % parts, first = part * kPart;
    const std::int64_t end = std::min(first + kPart, padded);
    for (std::int64_t head = kv_head * share; head < (kv_head + 1) * share; ++head) {
      float* row = scores + head * padded;
      const float* of_head = highest + head * parts;
      const float shift = *std::max_element(of_head, of_head + parts);
      float* of_part = lanes + (head * parts + part) * Sums::kLanes;
      std::fill_n(of_part, Sums::kLanes, 0.0f);
      kernels.exponentials(row + first, end - first, shift, of_part);
      if (int8)
        round_weights(kernels, cache, kv_head, first, end, keys, row,
                      int8_view(rounded + head * floats, padded).row(0));
    }
  });
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    Sums all;
    for (std::int64_t part = 0; part < parts; ++part)
      all.add(lanes + (head * parts + part) * Sums::kLanes);
    sums[head] = all.total();
    if (log_sum_exp == nullptr) continue;
    const float* of_head = highest + head * parts;
    log_sum_exp[segment.row * shape.heads + head] =
        *std::max_element(of_head, of_head + parts) + std::log(sums[head]);
  }
  const std::int64_t channel_parts = (dim + kChannels - 1) / kChannels;
  compute.team.for_each(
      shape.kv_heads * channel_parts, 1, [&](std::int64_t unit, std::int64_t, int) {
        const std::int64_t kv_head = unit / channel_parts, first = unit % channel_parts * kChannels;
        const std::int64_t head = kv_head * share;
        add_values(compute, shape, cache, kv_head, keys, padded, share, first,
                   std::min(first + kChannels, dim), scores + head * padded,
                   int8_view(rounded + head * floats, padded), to + head * dim, dim, &sums[head]);
      });
}

}  // namespace

void attention(Compute& compute, const AttentionShape& shape, std::span<const Segment> segments,
               const float* q, float* out, float* log_sum_exp) {
  if (segments.empty()) return;
  const std::vector<float*> panels = round_key_values(compute, shape, segments);
  const std::vector<Unit> units = attention_units(shape, segments, panels);
  compute.team.for_each(
      static_cast<std::int64_t>(units.size()), 1, [&](std::int64_t unit, std::int64_t, int member) {
        attend(compute, shape, units[static_cast<std::size_t>(unit)], q, out, log_sum_exp, member);
      });
  for (const Segment& segment : segments)
    if (panels.front() == nullptr && is_long(segment))
      attend_long(compute, shape, segment, q, out, log_sum_exp);
}

}  // namespace trimpot
