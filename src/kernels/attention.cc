#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/round.h"

namespace trimpot {
namespace {

constexpr std::int64_t kForwardRows = 24;  // queries of one head that are scored together
constexpr std::int64_t kBackwardRows = 36;

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

// Turns a row's scores into the weights of its values, which add up to *sum. Those of int8 values
// take the values' scales, and are rounded to int8 in row `row` of `weights`.
void weigh_values(Compute& compute, const AttentionShape& shape, const KeyValues& cache,
                  std::int64_t kv_head, std::int64_t keys, std::int64_t padded, float* scores,
                  float* sum, float* log_sum_exp, const Int8View& weights, std::int64_t row) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  compute.kernels.softmax(scores, keys, padded, scale, sum, log_sum_exp);
  if (cache.type() != CacheType::kInt8) return;
  compute.kernels.scale_each(cache.value_scales(kv_head), keys, scores);
  compute.kernels.quantize(scores - row * padded, padded, padded, row, row + 1, weights);
}

// out [rows, channels first .. end) of a head, from weights as weigh_values() leaves them.
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

void attend(Compute& compute, const AttentionShape& shape, const Unit& unit, const float* q,
            float* out, float* log_sum_exp, int member) {
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
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = unit.heads > 1 ? 0 : i, head = unit.head + (i - query);
    float lse;
    weigh_values(compute, shape, cache, kv_head, keys - unit.count + query + 1, padded,
                 scores + i * padded, &sums[i], &lse, weights, i);
    if (log_sum_exp != nullptr) log_sum_exp[(row + query) * shape.heads + head] = lse;
  }
  add_values(compute, shape, cache, kv_head, keys, padded, rows, 0, dim, scores, weights, out + at,
             stride, sums);
}

// A single query with many keys: scores are split by keys, then the output by channels, all heads
// that share keys together.
void attend_long(Compute& compute, const AttentionShape& shape, const Segment& segment,
                 const float* q, float* out, float* log_sum_exp) {
  constexpr std::int64_t kKeys = 512, kChannels = 32;
  const KeyValues& cache = *segment.cache;
  const std::int64_t dim = shape.head_dim, share = shape.heads_per_kv();
  const std::int64_t keys = segment.position + 1, padded = round_up(keys, kKeyLanes);
  const bool int8 = cache.type() == CacheType::kInt8;
  const std::int64_t floats = int8 ? int8_floats(1, padded) : 0;  // of a head
  float* scores = compute.shared(Compute::kScores, shape.heads * (padded + 1 + floats));
  float* sums = scores + shape.heads * padded;
  float* rounded = sums + shape.heads;
  const float* queries = q + segment.row * shape.q_width();
  float* to = out + segment.row * shape.q_width();
  const std::int64_t key_parts = (padded + kKeys - 1) / kKeys;
  compute.team.for_each(
      shape.kv_heads * key_parts, 1, [&](std::int64_t unit, std::int64_t, int member) {
        const std::int64_t kv_head = unit / key_parts, first = unit % key_parts * kKeys;
        score_keys(compute, shape, cache, kv_head, queries + kv_head * share * dim, dim, share,
                   first, std::min(first + kKeys, padded), padded,
                   scores + kv_head * share * padded,
                   int8 ? compute.scratch(member, int8_floats(share, dim)) : nullptr);
      });
  compute.team.for_each(shape.heads, 1, [&](std::int64_t head, std::int64_t, int) {
    float lse;
    weigh_values(compute, shape, cache, head / share, keys, padded, scores + head * padded,
                 &sums[head], &lse, int8_view(rounded + head * floats, padded), 0);
    if (log_sum_exp != nullptr) log_sum_exp[segment.row * shape.heads + head] = lse;
  });
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
  const std::vector<Unit> units = attention_units(shape, segments);
  compute.team.for_each(
      static_cast<std::int64_t>(units.size()), 1, [&](std::int64_t unit, std::int64_t, int member) {
        attend(compute, shape, units[static_cast<std::size_t>(unit)], q, out, log_sum_exp, member);
      });
  for (const Segment& segment : segments)
    if (is_long(segment)) attend_long(compute, shape, segment, q, out, log_sum_exp);
}

namespace {

// Queries [begin, end) of one head of one segment. They see keys [0, end): their shares of d_k and
// d_v are summed apart from those of the head's other queries.
struct BackwardUnit {
  const Segment* segment;
  std::int64_t head, begin, end;
  float *d_k, *d_v;  // [end, head_dim]
};

// What the units of one segment share.
struct BackwardSegment {
  float* value_lanes;           // [kv_heads][keys / 16][head_dim][16], zero beyond the last key
  std::size_t first_unit, end;  // the same heads next to each other
};

// From kSplitFrom tokens on a head's queries are two units, the first with two thirds of them and
// 4/9 of the work: 9 heads are an uneven share for 2 threads, 18 such units are not.
std::vector<BackwardUnit> backward_units(const AttentionShape& shape, const Segment& segment) {
  constexpr std::int64_t kSplitFrom = 128;
  const std::int64_t first =
      segment.count < kSplitFrom ? 0 : segment.count * 2 / 3 / kBackwardRows * kBackwardRows;
  std::vector<BackwardUnit> units;
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    if (first > 0) units.push_back({&segment, head, 0, first, nullptr, nullptr});
    units.push_back({&segment, head, first, segment.count, nullptr, nullptr});
  }
  return units;
}

// One tile of 16 keys for all heads, as products with values want them.
void fill_value_lanes(const AttentionShape& shape, const Block& keys, const float* v,
                      float* lanes) {
  const std::int64_t dim = shape.head_dim, padded = round_up(keys.segment->count, kKeyLanes);
  for (std::int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    float* to = lanes + (kv_head * padded + keys.first) * dim;
    const float* from = v + (keys.segment->row + keys.first) * shape.kv_width() + kv_head * dim;
    for (std::int64_t c = 0; c < dim; ++c)
      for (std::int64_t lane = 0; lane < kKeyLanes; ++lane)
        to[c * kKeyLanes + lane] = lane < keys.count ? from[lane * shape.kv_width() + c] : 0.0f;
  }
}

// d_q rows of a unit, and its shares of d_k and d_v.
void unit_backward(Compute& compute, const AttentionShape& shape, const BackwardUnit& unit,
                   const AttentionGradients& g, const float* value_lanes, int member) {
  const Segment& segment = *unit.segment;
  const std::int64_t width = shape.q_width(), kv_width = shape.kv_width(), dim = shape.head_dim;
  const std::int64_t head = unit.head, kv_head = head / shape.heads_per_kv();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const std::int64_t most_keys = round_up(unit.end, kKeyLanes);
  float* p = compute.scratch(member, 2 * kBackwardRows * most_keys);
  float* d_p = p + kBackwardRows * most_keys;
  const Panels values{value_lanes + kv_head * round_up(segment.count, kKeyLanes) * dim,
                      Storage::kF32, dim * kKeyLanes, kKeyLanes};
  const Panels key_rows{g.k + segment.row * kv_width + kv_head * dim, Storage::kF32, 16, kv_width};
  std::memset(unit.d_k, 0, unit.end * dim * sizeof(float));
  std::memset(unit.d_v, 0, unit.end * dim * sizeof(float));
  for (std::int64_t first = unit.begin; first < unit.end; first += kBackwardRows) {
    const std::int64_t count = std::min(kBackwardRows, unit.end - first);
    const std::int64_t keys = first + count, padded = round_up(keys, kKeyLanes);
    const std::int64_t row = segment.row + first;
    const float* q = g.q + row * width + head * dim;
    const float* d_out = g.d_out + row * width + head * dim;
    compute.kernels.multiply({q, width, 1}, segment.cache->key_panels(shape, kv_head), count,
                             padded, dim, p, padded, false);
    compute.kernels.multiply({d_out, width, 1}, values, count, padded, dim, d_p, padded, false);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* out = g.out + (row + i) * width + head * dim;
      const float delta = compute.kernels.dot(d_out + i * width, out, dim);
      compute.kernels.softmax_again(p + i * padded, first + i + 1, padded, scale,
                                    g.log_sum_exp[(row + i) * shape.heads + head]);
      compute.kernels.softmax_backward(p + i * padded, padded, delta, scale, d_p + i * padded);
    }
    compute.kernels.multiply({d_p, padded, 1}, key_rows, count, dim, keys,
                             g.d_q + row * width + head * dim, width, false);
    compute.kernels.multiply({d_p, 1, padded}, {q, Storage::kF32, 16, width}, keys, dim, count,
                             unit.d_k, dim, true);
    compute.kernels.multiply({p, 1, padded}, {d_out, Storage::kF32, 16, width}, keys, dim, count,
                             unit.d_v, dim, true);
  }
}

// Rows of d_k and d_v: the shares of the heads that share keys, in order.
void add_shares(Compute& compute, const AttentionShape& shape, const Block& keys,
                std::span<const BackwardUnit> units, const AttentionGradients& g) {
  const std::int64_t dim = shape.head_dim, kv_width = shape.kv_width();
  for (std::int64_t key = keys.first; key < keys.first + keys.count; ++key) {
    float* d_k = g.d_k + (keys.segment->row + key) * kv_width;
    float* d_v = g.d_v + (keys.segment->row + key) * kv_width;
    std::memset(d_k, 0, kv_width * sizeof(float));
    std::memset(d_v, 0, kv_width * sizeof(float));
    for (const BackwardUnit& unit : units) {
      if (key >= unit.end) continue;
      const std::int64_t at = unit.head / shape.heads_per_kv() * dim;
      compute.kernels.add(unit.d_k + key * dim, dim, d_k + at);
      compute.kernels.add(unit.d_v + key * dim, dim, d_v + at);
    }
  }
}

}  // namespace

std::int64_t attention_backward_size(const AttentionShape& shape,
                                     std::span<const Segment> segments) {
  std::int64_t size = 0;
  for (const Segment& segment : segments) {
    size += round_up(segment.count, kKeyLanes) * shape.kv_width();
    for (const BackwardUnit& unit : backward_units(shape, segment))
      size += 2 * unit.end * shape.head_dim;
  }
  return size;
}

void attention_backward(Compute& compute, const AttentionShape& shape,
                        std::span<const Segment> segments, const AttentionGradients& g) {
  const std::int64_t dim = shape.head_dim;
  std::vector<BackwardUnit> units;
  std::vector<BackwardSegment> shared;
  for (const Segment& segment : segments) {
    const std::vector<BackwardUnit> own = backward_units(shape, segment);
    shared.push_back({nullptr, units.size(), units.size() + own.size()});
    units.insert(units.end(), own.begin(), own.end());
  }
  float* memory = g.memory;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    shared[i].value_lanes = memory;
    memory += round_up(segments[i].count, kKeyLanes) * shape.kv_width();
  }
  for (BackwardUnit& unit : units) {
    unit.d_k = memory;
    unit.d_v = memory + unit.end * dim;
    memory += 2 * unit.end * dim;
  }
  const std::vector<Block> tiles = query_blocks(segments, kKeyLanes);
  const auto index = [&](const Segment* segment) {
    return static_cast<std::size_t>(segment - segments.data());
  };
  const auto count = static_cast<std::int64_t>(tiles.size());
  compute.team.for_each(count, 2, [&](std::int64_t tile, std::int64_t end, int) {
    for (; tile < end; ++tile) {
      const Block& block = tiles[static_cast<std::size_t>(tile)];
      fill_value_lanes(shape, block, g.v, shared[index(block.segment)].value_lanes);
    }
  });
  compute.team.for_each(
      static_cast<std::int64_t>(units.size()), 1, [&](std::int64_t i, std::int64_t, int member) {
        const BackwardUnit& unit = units[static_cast<std::size_t>(i)];
        unit_backward(compute, shape, unit, g, shared[index(unit.segment)].value_lanes, member);
      });
  compute.team.for_each(count, 2, [&](std::int64_t tile, std::int64_t end, int) {
    for (; tile < end; ++tile) {
      const Block& block = tiles[static_cast<std::size_t>(tile)];
      const BackwardSegment& of = shared[index(block.segment)];
      add_shares(compute, shape, block,
                 std::span(units).subspan(of.first_unit, of.end - of.first_unit), g);
    }
  });
}

}  // namespace trimpot
