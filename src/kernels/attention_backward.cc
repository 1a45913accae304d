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
constexpr std::int64_t kFloatRows = 36;
std::int64_t rounded_rows(const Kernels& kernels) { return round_up(32, kernels.panel_rows); }

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

  struct Head {
    RoundedPanels keys;  // for sums over keys
    RoundedPanels key_channels, value_channels;
  };
  static std::int64_t panels_size(const AttentionShape& shape, std::int64_t keys) {
    return panels_floats(shape.head_dim, keys) + 2 * panels_floats(keys, shape.head_dim);
  }
  Head head(const AttentionShape& shape, std::int64_t keys, std::int64_t kv_head) const {
    float* at = memory + kv_head * panels_size(shape, keys);
    return {lay_panels(at, shape.head_dim, keys), lay_panels(at, keys, shape.head_dim),
            lay_panels(at, keys, shape.head_dim)};
  }

  static std::int64_t size(const AttentionShape& shape, std::int64_t keys) {
    return shape.kv_heads * std::max(lanes_size(shape, keys), panels_size(shape, keys));
  }
};

struct BackwardSegment {
  SharedInputs inputs;
  std::size_t first_unit, end;  // the same heads next to each other
};

// From kSplitFrom tokens on a head's queries are two units, the first with two thirds of them and
// 4/9 of the work: 9 heads are an uneven share for 2 threads, 18 such units are not.
std::vector<BackwardUnit> backward_units(const AttentionShape& shape, const Segment& segment) {
  constexpr std::int64_t kSplitFrom = 128, kWhole = 32;
  const std::int64_t first =
      segment.count < kSplitFrom ? 0 : segment.count * 2 / 3 / kWhole * kWhole;
  std::vector<BackwardUnit> units;
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    if (first > 0) units.push_back({&segment, head, 0, first, nullptr, nullptr});
    units.push_back({&segment, head, first, segment.count, nullptr, nullptr});
  }
  return units;
}

// Keys of one block, at most 128, for all heads.
void fill_inputs(Compute& compute, const AttentionShape& shape, const Block& keys,
                 const AttentionGradients& g, const SharedInputs& to, int member) {
  const std::int64_t dim = shape.head_dim, width = shape.kv_width(), all = keys.segment->count;
  const std::int64_t row = keys.segment->row + keys.first;
  float* channels = compute.scratch(member, dim * kPanelColumns);  // [head_dim][32]
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    const float* k = g.k + row * width + head * dim;
    const float* v = g.v + row * width + head * dim;
    if (!rounds_attention(compute)) {
      for (std::int64_t first = 0; first < keys.count; first += kKeyLanes) {
        float* lanes = to.value_lanes(shape, all, head) + (keys.first + first) * dim;
        const std::int64_t count = std::min(kKeyLanes, keys.count - first);
        if (count < kKeyLanes) std::memset(lanes, 0, kKeyLanes * dim * sizeof(float));
        compute.kernels.transpose(v + first * width, width, count, dim, lanes, kKeyLanes);
      }
      continue;
    }
    const SharedInputs::Head panels = to.head(shape, all, head);
    pack_keys(compute.kernels, k, width, keys.count, dim, panels.keys.from_row(keys.first));
    for (std::int64_t first = 0; first < keys.count; first += kPanelColumns) {
      const std::int64_t count = std::min(kPanelColumns, keys.count - first);
      const std::int64_t panel = (keys.first + first) / kPanelColumns;
      pack_channels(compute.kernels, k + first * width, width, count, dim, channels,
                    panels.key_channels.panel(panel));
      pack_channels(compute.kernels, v + first * width, width, count, dim, channels,
                    panels.value_channels.panel(panel));
    }
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
  RoundedScratch(Compute& compute, std::int64_t dim, std::int64_t keys, int member)
      : rows(rounded_rows(compute.kernels)), stride(rounded_stride(2 * keys) / 2) {
    const std::int64_t sums = 2 * (rows + dim) * stride;
    p = compute.scratch(member, sums + 2 * rows_floats(rows, dim) + 2 * rows_floats(dim, rows) +
                                    std::max(rows_floats(rows, keys), panels_floats(keys, rows)));
    d_p = p + rows * stride;
    d_k = d_p + rows * stride;
    d_v = d_k + dim * stride;
    float* at = p + sums;
    q = lay_rows(at, rows, dim);
    d_out = lay_rows(at, rows, dim);
    q_channels = lay_rows(at, dim, rows);
    d_out_channels = lay_rows(at, dim, rows);
    float* same = at;
    d_scores = lay_rows(at, rows, keys);
    weights = lay_panels(same, keys, rows);
  }
  std::int64_t rows, stride;
  float *p, *d_p;                          // [rows, keys], `stride` floats apart
  float *d_k, *d_v;                        // [head_dim, keys], as far apart
  RoundedView q, d_out;                    // [rows, head_dim]
  RoundedView q_channels, d_out_channels;  // [head_dim, rows]
  RoundedView d_scores;                    // [rows, keys]
  RoundedPanels weights;                   // of keys, for sums over rows; where d_scores was
};

// The same in rounded numbers. Shares of d_k and d_v are summed channel by channel: then what is
// turned is a block of q and d_out, not all of its scores.
void unit_backward_rounded(Compute& compute, const AttentionShape& shape, const BackwardUnit& unit,
                           const AttentionGradients& g, const SharedInputs& inputs, int member) {
  const Kernels& k = compute.kernels;
  const std::int64_t width = shape.q_width(), dim = shape.head_dim;
  const SharedInputs::Head panels =
      inputs.head(shape, unit.segment->count, unit.head / shape.heads_per_kv());
  const RoundedScratch at(compute, dim, round_up(unit.end, kPanelColumns), member);
  std::memset(at.d_k, 0, 2 * dim * at.stride * sizeof(float));
  const auto round_rows = [&](const float* from, std::int64_t stride, std::int64_t count,
                              std::int64_t columns, const RoundedView& to) {
    for (std::int64_t i = 0; i < count; ++i)
      k.round_row(from + i * stride, columns, to.row(i), to.scales_of(i));
  };
  for_each_rows(shape, unit, g, at.rows, kPanelColumns, [&](const Rows& rows) {
    const std::int64_t count = rows.count;
    round_rows(rows.q, width, count, dim, at.q);
    round_rows(rows.d_out, width, count, dim, at.d_out);
    k.multiply_panels(at.q, count, even(dim), panels.key_channels, rows.padded, at.p, at.stride,
                      false);
    k.multiply_panels(at.d_out, count, even(dim), panels.value_channels, rows.padded, at.d_p,
                      at.stride, false);
    scores_backward(compute, shape, unit, g, rows, at.p, at.d_p, at.stride);
    round_rows(at.d_p, at.stride, count, rows.keys, at.d_scores);
    k.multiply_panels(at.d_scores, count, even(rows.keys), panels.keys, dim, rows.d_q, width,
                      false);
    const auto add = [&](const float* x, const RoundedView& channels, const float* weights,
                         float* to) {
      k.round_columns(x, width, count, dim, channels);
      for (std::int64_t key = 0; key < rows.keys; key += kPanelColumns)
        k.round_pairs(weights + key, at.stride, count,
                      static_cast<int>(std::min(kPanelColumns, rows.keys - key)),
                      at.weights.panel(key / kPanelColumns));
      k.multiply_panels(channels, dim, even(count), at.weights, rows.keys, to, at.stride, true);
    };
    add(rows.q, at.q_channels, at.d_p, at.d_k);
    add(rows.d_out, at.d_out_channels, at.p, at.d_v);
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
  const std::vector<Block> blocks = query_blocks(segments, kRoundedBlock);
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
  const bool rounded = rounds_attention(compute);
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
