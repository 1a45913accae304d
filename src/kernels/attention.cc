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
// and of rounded numbers (6, 12 or 32).
constexpr std::int64_t kFloatRows = 24;
std::int64_t rounded_rows(const Kernels& kernels) { return round_up(24, kernels.panel_rows); }

// Queries that are scored together: `count` consecutive ones of one head, or a single one of
// `heads` heads that share their keys.
struct Unit {
  const Segment* segment;
  std::int64_t first, count;  // rows within the segment
  std::int64_t head, heads;
  float* panels;  // RoundedKeyValues of the segment; null: the products are of floats or int8
};

// Each part of the keys has a softmax and a sum of values of its own, so that scores stay in the
// first-level cache and a single query can be split over the threads. Parts are combined in order.
constexpr std::int64_t kPart = KeyValues::kPart;
// Keys beyond which a single query is split: 700 in f16 as fast as whole, 950 1.03 to 1.07 times.
constexpr std::int64_t kLongContext = 768;

bool is_long(const Segment& segment) {
  return segment.count == 1 && segment.position + 1 > kLongContext;
}

// A segment's keys and values in the rounded form, as multiply_panels() wants them, in memory for
// all heads.
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
  if (!rounds_scores(compute) || segments.front().cache->type() != CacheType::kFloat) return panels;
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
    const std::int64_t blocks = divide_up(all, kRoundedBlock);
    panels[i] = at;
    compute.team.for_each(
        shape.kv_heads * blocks, 1, [&](std::int64_t begin, std::int64_t, int member) {
          const std::int64_t head = begin / blocks, first = begin % blocks * kRoundedBlock;
          const std::int64_t count = std::min(kRoundedBlock, all - first);
          float* wide = compute.scratch(member, kRoundedBlock * dim);
          const RoundedKeyValues to(shape, all, head, panels[i]);
          const auto* keys = static_cast<const f16*>(cache.key_panels(shape, head).data);
          for (std::int64_t key = first; key < first + count; key += kPanelColumns) {
            for (std::int64_t c = 0; c < 2 * dim; ++c)  // to [head_dim][32]
              k.widen_f16(keys + key * dim + c * kKeyLanes, kKeyLanes,
                          wide + c % dim * kPanelColumns + c / dim * kKeyLanes);
            const auto columns = static_cast<int>(std::min(kPanelColumns, all - key));
            k.round_pairs(wide, kPanelColumns, dim, columns, to.keys.panel(key / kPanelColumns));
          }
          const auto* values = static_cast<const f16*>(cache.value_panels(shape, head).data);
          k.widen_f16(values + first * dim, count * dim, wide);
          pack_keys(k, wide, dim, count, dim, to.values.from_row(first));
        });
    at += shape.kv_heads * RoundedKeyValues::head_size(shape, all);
  }
  return panels;
}

std::vector<Unit> attention_units(const Kernels& kernels, const AttentionShape& shape,
                                  std::span<const Segment> segments,
                                  std::span<float* const> panels) {
  std::vector<Unit> units;
  const bool rounded = !segments.empty() && panels.front() != nullptr;
  const std::vector<Block> blocks =
      query_blocks(segments, rounded ? rounded_rows(kernels) : kFloatRows);
  // In the order of the tokens, as all that is done row by row: what a core's caches hold of the
  // first ones is read there. The last blocks, which see the most keys, are soon shared.
  for (const Block& block : blocks) {
    float* of_segment = panels[static_cast<std::size_t>(block.segment - segments.data())];
    if (of_segment == nullptr && is_long(*block.segment)) continue;
    const std::int64_t heads = block.segment->count == 1 ? shape.heads_per_kv() : 1;
    for (std::int64_t head = 0; head < shape.heads; head += heads)
      units.push_back({block.segment, block.first, block.count, head, heads, of_segment});
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

// Consecutive queries of one head, or one of each head that shares keys.
struct Queries {
  const float* q;  // of head_dim numbers each
  std::int64_t stride, rows;
  std::int64_t kv_head;
  std::int64_t keys;   // that the last one sees
  bool causal;         // the one before sees one less
  Int8View int8 = {};  // [rows, blocks of head_dim], for int8 keys

  std::int64_t seen(std::int64_t row) const { return keys - (causal ? rows - 1 - row : 0); }
  std::int64_t padded() const { return round_up(keys, kKeyLanes); }
  std::int64_t parts() const { return divide_up(keys, kPart); }
  std::int64_t parts(std::int64_t row) const { return divide_up(seen(row), kPart); }
};

// Sums of exponentials, every 16th score in one of them: those of parts are added in order, then
// lane by lane, whoever worked them out.
struct Sums {
  static constexpr std::int64_t kLanes = 16;
  float lane[kLanes] = {};
  void add(const float* other, float factor) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] += factor * other[i];
  }
  float total() {
    for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
      for (std::int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
  }
};

// What parts of the keys give a query: e^(score - highest) times the values, and its sums.
struct Partials {
  float* out;      // [parts, rows, head_dim]
  float* highest;  // [parts, rows]
  float* lanes;    // [parts, rows, Sums::kLanes]
  std::int64_t rows, dim;

  static std::int64_t floats(std::int64_t rows, std::int64_t dim) {  // of a part
    return rows * (dim + 1 + Sums::kLanes);
  }
  Partials(float* memory, std::int64_t parts, std::int64_t rows, std::int64_t dim)
      : out(memory),
        highest(out + parts * rows * dim),
        lanes(highest + parts * rows),
        rows(rows),
        dim(dim) {}
  std::int64_t at(std::int64_t part, std::int64_t row) const { return part * rows + row; }
};

// Queries for int8 keys are int8 too, once for all parts: in int8_floats(rows, dim) of memory.
void round_queries(const Kernels& k, std::int64_t dim, float* memory, Queries& queries) {
  queries.int8 = int8_view(memory, dim);
  k.quantize(queries.q, queries.stride, dim, 0, queries.rows, queries.int8);
}

// scores [rows, width] of keys first .. first + width, still without 1 / sqrt(dim).
void score_keys(const Kernels& k, const AttentionShape& shape, const KeyValues& cache,
                const Queries& queries, std::int64_t first, std::int64_t width, float* scores) {
  const std::int64_t dim = shape.head_dim;
  if (cache.type() == CacheType::kInt8) {
    const MatrixView keys = cache.key_matrix(shape, queries.kv_head, first, width);
    k.linear_int8(keys, queries.int8, 0, queries.rows, 0, keys.tiles, nullptr, nullptr, scores,
                  width, false);
    return;
  }
  Panels panels = cache.key_panels(shape, queries.kv_head);
  panels.data = static_cast<const std::uint8_t*>(panels.data) +
                first / kKeyLanes * panels.tile_stride * storage_bytes(panels.storage);
  k.multiply({queries.q, queries.stride, 1}, panels, queries.rows, width, dim, scores, width,
             false);
}

// out [rows, head_dim] of keys first .. first + width from their weights [rows, width]. Of int8
// values the weights take the values' scales and are rounded to int8 too, in `int8`; those that a
// query does not see are zero and stay so, whatever a later value's scale.
void add_values(const Kernels& k, const AttentionShape& shape, const KeyValues& cache,
                const Queries& queries, std::int64_t first, std::int64_t width, float* weights,
                float* int8, float* out) {
  const std::int64_t dim = shape.head_dim;
  if (cache.type() == CacheType::kInt8) {
    const Int8View rounded = int8_view(int8, width);
    const float* scales = cache.value_scales(queries.kv_head) + first;
    for (std::int64_t i = 0; i < queries.rows; ++i)
      k.scale_each(scales, std::clamp<std::int64_t>(queries.seen(i) - first, 0, width),
                   weights + i * width);
    const MatrixView values = cache.value_matrix(shape, queries.kv_head, first, width);
    k.quantize(weights, width, width, 0, queries.rows, rounded);
    k.linear_int8(values, rounded, 0, queries.rows, 0, values.tiles, nullptr, nullptr, out, dim,
                  false);
    return;
  }
  Panels panels = cache.value_panels(shape, queries.kv_head);
  panels.data = static_cast<const std::uint8_t*>(panels.data) +
                first * panels.k_stride * storage_bytes(panels.storage);
  // Positions that nobody has written yet may hold anything.
  const std::int64_t depth = std::min(width, queries.keys - first);
  k.multiply({weights, width, 1}, panels, queries.rows, dim, depth, out, dim, false);
}

std::int64_t part_scratch(const KeyValues& cache, std::int64_t rows) {
  return rows * kPart + (cache.type() == CacheType::kInt8 ? int8_floats(rows, kPart) : 0);
}

// One part of the keys. `scratch`: part_scratch() floats.
void attend_part(const Kernels& k, const AttentionShape& shape, const KeyValues& cache,
                 const Queries& queries, std::int64_t part, const Partials& to, float* scratch) {
  const std::int64_t first = part * kPart, width = std::min(kPart, queries.padded() - first);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  float* scores = scratch;
  score_keys(k, shape, cache, queries, first, width, scores);
  for (std::int64_t i = 0; i < queries.rows; ++i) {
    const std::int64_t at = to.at(part, i), seen = std::min(queries.seen(i) - first, width);
    float* lanes = to.lanes + at * Sums::kLanes;
    std::fill_n(lanes, Sums::kLanes, 0.0f);
    if (seen <= 0) {
      std::fill_n(scores + i * width, width, 0.0f);
      continue;
    }
    to.highest[at] = k.scale_scores(scores + i * width, seen, width, scale);
    k.exponentials(scores + i * width, width, to.highest[at], lanes);
  }
  add_values(k, shape, cache, queries, first, width, scores, scratch + queries.rows * kPart,
             to.out + to.at(part, 0) * shape.head_dim);
}

// The softmax over the parts that a query sees: out[0, head_dim), and the log-sum-exp of its scaled
// scores.
float combine_parts(const Kernels& k, const Partials& of, std::int64_t parts, std::int64_t row,
                    float* out) {
  float highest = of.highest[row];
  for (std::int64_t part = 1; part < parts; ++part)
    highest = std::max(highest, of.highest[of.at(part, row)]);
  Sums sums;
  float* values = of.out + of.at(0, row) * of.dim;  // of the first part, then of all
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t at = of.at(part, row);
    const float factor = parts > 1 ? std::exp(of.highest[at] - highest) : 1.0f;
    sums.add(of.lanes + at * Sums::kLanes, factor);
    float* of_part = of.out + at * of.dim;
    if (parts > 1) k.scale(of_part, of.dim, factor, of_part);  // else by 1
    if (part > 0) k.add(of_part, of.dim, values);
  }
  const float sum = sums.total();
  k.scale(values, of.dim, 1.0f / sum, out);
  return highest + std::log(sum);
}

// scores[0, keys) -> exp(scale * score - highest), zero up to `padded`; gives their sum and the
// log-sum-exp of the scaled scores.
void softmax(const Kernels& k, float* scores, std::int64_t keys, std::int64_t padded, float scale,
             float* sum, float* log_sum_exp) {
  const float highest = k.scale_scores(scores, keys, padded, scale);
  Sums sums;
  k.exponentials(scores, padded, highest, sums.lane);
  *sum = sums.total();
  *log_sum_exp = highest + std::log(*sum);
}

// attend() with queries, keys, weights and values rounded; sums and the softmax are not.
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
  const std::int64_t blocks = divide_up(padded, kRoundedBlock);
  float* scores = compute.scratch(member, rows * (padded + 1 + blocks) + rows_floats(rows, dim));
  float* sums = scores + rows * padded;
  float* more = sums + rows * (1 + blocks);
  const RoundedView queries = lay_rows(more, rows, dim);
  for (std::int64_t i = 0; i < rows; ++i)
    k.round_row(q + at + i * stride, dim, queries.row(i), queries.scales_of(i));
  k.multiply_panels(queries, rows, even(dim), panels.keys, padded, scores, padded, false);
  const RoundedView weights{reinterpret_cast<std::int16_t*>(scores), 2 * padded, sums + rows,
                            blocks};  // where the scores are
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = unit.heads > 1 ? 0 : i, head = unit.head + (i - query);
    float lse;
    softmax(k, scores + i * padded, keys - unit.count + query + 1, padded, scale, &sums[i], &lse);
    if (log_sum_exp != nullptr) log_sum_exp[(row + query) * shape.heads + head] = lse;
    k.round_row(scores + i * padded, padded, weights.row(i), weights.scales_of(i));
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
  const bool one_head = unit.heads == 1;
  const std::int64_t dim = shape.head_dim, stride = one_head ? shape.q_width() : dim;
  const std::int64_t row = segment.row + unit.first;
  const std::int64_t at = row * shape.q_width() + unit.head * dim;
  Queries queries{.q = q + at,
                  .stride = stride,
                  .rows = unit.count * unit.heads,
                  .kv_head = unit.head / shape.heads_per_kv(),
                  .keys = segment.position + unit.first + unit.count,
                  .causal = one_head};
  const std::int64_t parts = queries.parts(), rows = queries.rows;
  const std::int64_t of_part = part_scratch(*segment.cache, rows);
  const std::int64_t of_all = parts * Partials::floats(rows, dim);
  float* scratch = compute.scratch(member, of_part + of_all + int8_floats(rows, dim));
  const Partials view(scratch + of_part, parts, rows, dim);
  if (segment.cache->type() == CacheType::kInt8)
    round_queries(compute.kernels, dim, scratch + of_part + of_all, queries);
  for (std::int64_t part = 0; part < parts; ++part)
    attend_part(compute.kernels, shape, *segment.cache, queries, part, view, scratch);
  for (std::int64_t i = 0; i < rows; ++i) {
    const float lse =
        combine_parts(compute.kernels, view, queries.parts(i), i, out + at + i * stride);
    if (log_sum_exp == nullptr) continue;
    log_sum_exp[(one_head ? row + i : row) * shape.heads + unit.head + (one_head ? 0 : i)] = lse;
  }
}

// A single query with many keys: parts for all threads, the heads that share keys together.
void attend_long(Compute& compute, const AttentionShape& shape, const Segment& segment,
                 const float* q, float* out, float* log_sum_exp) {
  const KeyValues& cache = *segment.cache;
  const std::int64_t dim = shape.head_dim, share = shape.heads_per_kv();
  const std::int64_t at = segment.row * shape.q_width();
  Queries all{.q = q + at,
              .stride = dim,
              .rows = shape.heads,
              .kv_head = 0,
              .keys = segment.position + 1,
              .causal = false};
  const std::int64_t parts = all.parts();
  const std::int64_t floats = parts * Partials::floats(share, dim);
  float* memory =
      compute.shared(Compute::kScores, shape.kv_heads * floats + int8_floats(shape.heads, dim));
  if (cache.type() == CacheType::kInt8)
    round_queries(compute.kernels, dim, memory + shape.kv_heads * floats, all);
  const auto queries_of = [&](std::int64_t kv_head) {
    Queries of = all;
    of.q += kv_head * share * dim;
    of.int8.data += kv_head * share * of.int8.blocks;
    of.rows = share;
    of.kv_head = kv_head;
    return of;
  };
  const auto view_of = [&](std::int64_t kv_head) {
    return Partials(memory + kv_head * floats, parts, share, dim);
  };
  compute.team.for_each(
      shape.kv_heads * parts, 1, [&](std::int64_t unit, std::int64_t, int member) {
        const std::int64_t kv_head = unit / parts;
        attend_part(compute.kernels, shape, cache, queries_of(kv_head), unit % parts,
                    view_of(kv_head), compute.scratch(member, part_scratch(cache, share)));
      });
  compute.team.for_each(shape.heads, 1, [&](std::int64_t head, std::int64_t, int) {
    const float lse = combine_parts(compute.kernels, view_of(head / share), parts, head % share,
                                    out + at + head * dim);
    if (log_sum_exp != nullptr) log_sum_exp[segment.row * shape.heads + head] = lse;
  });
}

}  // namespace

void attention(Compute& compute, const AttentionShape& shape, std::span<const Segment> segments,
               const float* q, float* out, float* log_sum_exp) {
  if (segments.empty()) return;
  const std::vector<float*> panels = round_key_values(compute, shape, segments);
  const std::vector<Unit> units = attention_units(compute.kernels, shape, segments, panels);
  compute.team.for_each(
      static_cast<std::int64_t>(units.size()), 1, [&](std::int64_t unit, std::int64_t, int member) {
        attend(compute, shape, units[static_cast<std::size_t>(unit)], q, out, log_sum_exp, member);
      });
  for (const Segment& segment : segments)
    if (panels.front() == nullptr && is_long(segment))
      attend_long(compute, shape, segment, q, out, log_sum_exp);
}

}  // namespace trimpot
