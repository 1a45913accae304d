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
constexpr std::int64_t kFloatRows = 36, kRoundedRows = 32;

// Queries [begin, end) of one head of one segment. They see keys [0, end): their shares of d_k and
// d_v are summed apart from those of the head's other queries.
struct BackwardUnit {
  const Segment* segment;
  std::int64_t head, begin, end;
  float *d_k, *d_v;  // [end, head_dim]
};

// What the units of one segment share: values as products of floats want them, or keys and values
// in panels of multiply_panels().
struct SharedInputs {
  float* memory;  // size() floats

  // [kv_heads][keys / 16][head_dim][16], zero beyond the last key
  static std::int64_t lanes_size(const AttentionShape& shape, std::int64_t keys) {
    return round_up(keys, kKeyLanes) * shape.head_dim;
  }
  float* value_lanes(const AttentionShape& shape, std::int64_t keys, std::int64_t kv_head) const {
    return memory + kv_head * lanes_size(shape, keys);
  }

  // Of a head: [head_dim / 32] panels of pairs of keys, then [keys / 32] of pairs of channels.
  static std::int64_t key_panel(std::int64_t keys) { return even(keys) * kPanelColumns; }
  static std::int64_t value_panel(const AttentionShape& shape) {
    return even(shape.head_dim) * kPanelColumns;
  }
  static std::int64_t panels_size(const AttentionShape& shape, std::int64_t keys) {
    return divide_up(shape.head_dim, kPanelColumns) * key_panel(keys) +
           divide_up(keys, kPanelColumns) * value_panel(shape);
  }
  std::int16_t* key_panels(const AttentionShape& shape, std::int64_t keys,
                           std::int64_t kv_head) const {
    return reinterpret_cast<std::int16_t*>(memory) + kv_head * panels_size(shape, keys);
  }
  std::int16_t* value_panels(const AttentionShape& shape, std::int64_t keys,
                             std::int64_t kv_head) const {
    return key_panels(shape, keys, kv_head) +
           divide_up(shape.head_dim, kPanelColumns) * key_panel(keys);
  }

  static std::int64_t size(const AttentionShape& shape, std::int64_t keys) {
    return shape.kv_heads * std::max(lanes_size(shape, keys), panels_size(shape, keys) / 2);
  }
};

struct BackwardSegment {
  SharedInputs inputs;
  std::size_t first_unit, end;  // the same heads next to each other
};

// From kSplitFrom tokens on a head's queries are two units, the first with two thirds of them and
// 4/9 of the work: 9 heads are an uneven share for 2 threads, 18 such units are not.
std::vector<BackwardUnit> backward_units(const AttentionShape& shape, const Segment& segment) {
  constexpr std::int64_t kSplitFrom = 128;
  const std::int64_t first =
      segment.count < kSplitFrom ? 0 : segment.count * 2 / 3 / kRoundedRows * kRoundedRows;
  std::vector<BackwardUnit> units;
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    if (first > 0) units.push_back({&segment, head, 0, first, nullptr, nullptr});
    units.push_back({&segment, head, first, segment.count, nullptr, nullptr});
  }
  return units;
}

// Keys of one block, at most 32, for all heads.
void fill_inputs(Compute& compute, const AttentionShape& shape, const Block& keys,
                 const AttentionGradients& g, const SharedInputs& to, int member) {
  const std::int64_t dim = shape.head_dim, width = shape.kv_width(), all = keys.segment->count;
  const std::int64_t row = keys.segment->row + keys.first;
  float* channels = compute.scratch(member, dim * kPanelColumns);  // [head_dim][32]
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    const float* v = g.v + row * width + head * dim;
    if (!rounds_inputs(compute)) {
      for (std::int64_t first = 0; first < keys.count; first += kKeyLanes) {
        float* lanes = to.value_lanes(shape, all, head) + (keys.first + first) * dim;
        const std::int64_t count = std::min(kKeyLanes, keys.count - first);
        if (count < kKeyLanes) std::memset(lanes, 0, kKeyLanes * dim * sizeof(float));
        compute.kernels.transpose(v + first * width, width, count, dim, lanes, kKeyLanes);
      }
      continue;
    }
    pack_channels(compute.kernels, v, width, keys.count, dim, channels,
                  to.value_panels(shape, all, head) +
                      keys.first / kPanelColumns * SharedInputs::value_panel(shape));
    pack_keys(compute.kernels, g.k + row * width + head * dim, width, keys.count, dim,
              to.key_panels(shape, all, head) + keys.first * kPanelColumns,
              SharedInputs::key_panel(all));
  }
}

// One block of queries of a unit: the rows of q, out and so on, and their scores.
struct Rows {
  std::int64_t first, count;  // within the segment
  std::int64_t keys, padded;  // that they see
  const float *q, *d_out;     // [count, head_dim], rows q_width apart
  float* d_q;
};

// The attention's weights p and, in place of d_p, the scores' gradients; rows `stride` floats
// apart.
void scores_backward(Compute& compute, const AttentionShape& shape, const BackwardUnit& unit,
                     const AttentionGradients& g, const Rows& rows, float* p, float* d_p,
                     std::int64_t stride) {
  const std::int64_t dim = shape.head_dim, width = shape.q_width();
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const float* out = g.out + (rows.q - g.q);
  const std::int64_t row = unit.segment->row + rows.first;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const float delta = compute.kernels.dot(rows.d_out + i * width, out + i * width, dim);
    compute.kernels.softmax_again(p + i * stride, rows.first + i + 1, rows.padded, scale,
                                  g.log_sum_exp[(row + i) * shape.heads + unit.head]);
    compute.kernels.softmax_backward(p + i * stride, rows.padded, delta, scale, d_p + i * stride);
  }
}

// Calls body(rows) for the blocks of a unit's queries.
template <typename Body>
void for_each_rows(const AttentionShape& shape, const BackwardUnit& unit,
                   const AttentionGradients& g, std::int64_t most, std::int64_t lanes,
                   Body&& body) {
  const std::int64_t width = shape.q_width(), dim = shape.head_dim;
  for (std::int64_t first = unit.begin; first < unit.end; first += most) {
    const std::int64_t count = std::min(most, unit.end - first), keys = first + count;
    const std::int64_t at = (unit.segment->row + first) * width + unit.head * dim;
    body(Rows{first, count, keys, round_up(keys, lanes), g.q + at, g.d_out + at, g.d_q + at});
  }
}

// d_q rows of a unit, and its shares of d_k and d_v.
void unit_backward(Compute& compute, const AttentionShape& shape, const BackwardUnit& unit,
                   const AttentionGradients& g, const SharedInputs& inputs, int member) {
  const Segment& segment = *unit.segment;
  const std::int64_t width = shape.q_width(), kv_width = shape.kv_width(), dim = shape.head_dim;
  const std::int64_t kv_head = unit.head / shape.heads_per_kv();
  const std::int64_t most_keys = round_up(unit.end, kKeyLanes);
  float* p = compute.scratch(member, 2 * kFloatRows * most_keys);
  float* d_p = p + kFloatRows * most_keys;
  const Panels values{inputs.value_lanes(shape, segment.count, kv_head), Storage::kF32,
                      dim * kKeyLanes, kKeyLanes};
  const Panels key_rows{g.k + segment.row * kv_width + kv_head * dim, Storage::kF32, 16, kv_width};
  std::memset(unit.d_k, 0, unit.end * dim * sizeof(float));
  std::memset(unit.d_v, 0, unit.end * dim * sizeof(float));
  for_each_rows(shape, unit, g, kFloatRows, kKeyLanes, [&](const Rows& rows) {
    const std::int64_t count = rows.count, padded = rows.padded;
    compute.kernels.multiply({rows.q, width, 1}, segment.cache->key_panels(shape, kv_head), count,
                             padded, dim, p, padded, false);
    compute.kernels.multiply({rows.d_out, width, 1}, values, count, padded, dim, d_p, padded,
                             false);
    scores_backward(compute, shape, unit, g, rows, p, d_p, padded);
    compute.kernels.multiply({d_p, padded, 1}, key_rows, count, dim, rows.keys, rows.d_q, width,
                             false);
    compute.kernels.multiply({d_p, 1, padded}, {rows.q, Storage::kF32, 16, width}, rows.keys, dim,
                             count, unit.d_k, dim, true);
    compute.kernels.multiply({p, 1, padded}, {rows.d_out, Storage::kF32, 16, width}, rows.keys, dim,
                             count, unit.d_v, dim, true);
  });
}

// What unit_backward_rounded() works in, in a thread's scratch memory.
struct RoundedScratch {
  RoundedScratch(Compute& compute, std::int64_t dim, std::int64_t keys, int member) {
    const std::int64_t padded = round_up(keys, kPanelColumns);
    stride = rounded_stride(2 * padded) / 2;  // floats are two such numbers
    const std::int64_t of_queries = rounded_stride(dim), of_scores = rounded_stride(padded);
    const std::int64_t floats = 2 * (kRoundedRows + dim) * stride;
    const std::int64_t halves = kRoundedRows * (2 * of_queries + 2 * dim + of_scores);
    p = compute.scratch(member, static_cast<std::size_t>(floats + halves / 2));
    d_p = p + kRoundedRows * stride;
    d_k = d_p + kRoundedRows * stride;
    d_v = d_k + dim * stride;
    q = {reinterpret_cast<std::int16_t*>(d_v + dim * stride), of_queries};
    d_out = {q.codes + kRoundedRows * of_queries, of_queries};
    q_channels = d_out.codes + kRoundedRows * of_queries;
    d_out_channels = q_channels + kRoundedRows * dim;
    d_scores = {d_out_channels + kRoundedRows * dim, of_scores};
  }
  std::int64_t stride;
  float *p, *d_p;                             // [32, keys], `stride` floats apart
  float *d_k, *d_v;                           // [head_dim, keys], as far apart
  RoundedView q, d_out;                       // [32, head_dim]
  std::int16_t *q_channels, *d_out_channels;  // [head_dim, 32]
  RoundedView d_scores;                       // [32, keys]; then panels of scores, as many numbers
};

// The same in bf16. Shares of d_k and d_v are summed channel by channel: then what is turned is a
// block of q and d_out, not all of its scores.
void unit_backward_rounded(Compute& compute, const AttentionShape& shape, const BackwardUnit& unit,
                           const AttentionGradients& g, const SharedInputs& inputs, int member) {
  const Kernels& k = compute.kernels;
  const std::int64_t width = shape.q_width(), dim = shape.head_dim, all = unit.segment->count;
  const std::int64_t kv_head = unit.head / shape.heads_per_kv();
  const RoundedScratch at(compute, dim, unit.end, member);
  std::memset(at.d_k, 0, 2 * dim * at.stride * sizeof(float));
  const auto round_rows = [&](const float* from, std::int64_t stride, std::int64_t count,
                              std::int64_t columns, const RoundedView& to) {
    for (std::int64_t i = 0; i < count; ++i)
      k.round_row(from + i * stride, columns, to.codes + i * to.stride, nullptr);
  };
  for_each_rows(shape, unit, g, kRoundedRows, kPanelColumns, [&](const Rows& rows) {
    const std::int64_t count = rows.count;
    round_rows(rows.q, width, count, dim, at.q);
    round_rows(rows.d_out, width, count, dim, at.d_out);
    const auto score = [&](const RoundedView& of, const std::int16_t* panels, float* to) {
      k.multiply_panels(of, count, even(dim), panels, SharedInputs::value_panel(shape), rows.padded,
                        to, at.stride, false);
    };
    score(at.q, unit.segment->cache->rounded_keys(shape, kv_head), at.p);
    score(at.d_out, inputs.value_panels(shape, all, kv_head), at.d_p);
    scores_backward(compute, shape, unit, g, rows, at.p, at.d_p, at.stride);
    round_rows(at.d_p, at.stride, count, rows.keys, at.d_scores);
    k.multiply_panels(at.d_scores, count, even(rows.keys), inputs.key_panels(shape, all, kv_head),
                      SharedInputs::key_panel(all), dim, rows.d_q, width, false);

    k.round_columns(rows.q, width, count, dim, at.q_channels);
    k.round_columns(rows.d_out, width, count, dim, at.d_out_channels);
    const auto add = [&](std::int16_t* channels, const float* weights, float* to) {
      constexpr std::int64_t kPanel = kRoundedRows * kPanelColumns;
      for (std::int64_t key = 0; key < rows.keys; key += kPanelColumns) {
        const auto keys = static_cast<int>(std::min(kPanelColumns, rows.keys - key));
        k.round_pairs(weights + key, at.stride, count, keys,
                      at.d_scores.codes + key * kRoundedRows);
      }
      k.multiply_panels({channels, kRoundedRows}, dim, even(count), at.d_scores.codes, kPanel,
                        rows.keys, to, at.stride, true);
    };
    add(at.q_channels, at.d_p, at.d_k);
    add(at.d_out_channels, at.p, at.d_v);
  });
  k.transpose(at.d_k, at.stride, dim, unit.end, unit.d_k, dim);
  k.transpose(at.d_v, at.stride, dim, unit.end, unit.d_v, dim);
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
    size += round_up(SharedInputs::size(shape, segment.count), 16);
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
  float* memory = g.memory;
  for (const Segment& segment : segments) {
    const std::vector<BackwardUnit> own = backward_units(shape, segment);
    shared.push_back({{memory}, units.size(), units.size() + own.size()});
    memory += round_up(SharedInputs::size(shape, segment.count), 16);
    units.insert(units.end(), own.begin(), own.end());
  }
  for (BackwardUnit& unit : units) {
    unit.d_k = memory;
    unit.d_v = memory + unit.end * dim;
    memory += 2 * unit.end * dim;
  }
  const std::vector<Block> blocks = query_blocks(segments, kPanelColumns);
  const auto of = [&](const Segment* segment) -> const BackwardSegment& {
    return shared[static_cast<std::size_t>(segment - segments.data())];
  };
  const auto for_each_block = [&](const auto& body) {
    compute.team.for_each(static_cast<std::int64_t>(blocks.size()), 1,
                          [&](std::int64_t i, std::int64_t, int member) {
                            const Block& block = blocks[static_cast<std::size_t>(i)];
                            body(block, of(block.segment), member);
                          });
  };
  for_each_block([&](const Block& block, const BackwardSegment& segment, int member) {
    fill_inputs(compute, shape, block, g, segment.inputs, member);
  });
  const bool rounded = rounds_inputs(compute);
  compute.team.for_each(static_cast<std::int64_t>(units.size()), 1,
                        [&](std::int64_t i, std::int64_t, int member) {
                          const BackwardUnit& unit = units[static_cast<std::size_t>(i)];
                          (rounded ? unit_backward_rounded : unit_backward)(
                              compute, shape, unit, g, of(unit.segment).inputs, member);
                        });
  for_each_block([&](const Block& block, const BackwardSegment& segment, int) {
    add_shares(compute, shape, block,
               std::span(units).subspan(segment.first_unit, segment.end - segment.first_unit), g);
  });
}

}  // namespace trimpot
