#include "kernels/linear.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/round.h"
#include "kernels/low_rank.h"
#include "kernels/rounded_panels.h"
#include "kernels/split.h"

namespace trimpot {
namespace {

// int8 rows of 1536 columns: 288 KiB of the second-level cache.
constexpr std::int64_t kTokenBlock = 192;

// So few that memory is what takes the time: threads that wait ask for the next weights.
constexpr std::int64_t kMostTokensAhead = 8;

// Pieces of work small enough that threads finish together: about 8 per thread. Products of few
// tokens take some 10 us, and each piece that a thread counts 0.1 where cores are far from each
// other: equal stretches of 3 or more pieces, if there are such (0.96 to 0.97 of a token's time in
// such hours, 1.00 in others).
constexpr std::int64_t kFewTokens = 2;
std::int64_t grain_for(const Compute& compute, std::int64_t count, std::int64_t tokens) {
  const std::int64_t threads = compute.team.size(), small = count / (threads * 8);
  for (std::int64_t grain = count / (threads * 3); tokens <= kFewTokens && grain > small; --grain)
    if (count % (grain * threads) == 0) return grain;
  return std::max<std::int64_t>(1, small);
}

struct Range {
  std::int64_t begin, end;
  Range within(std::int64_t least, std::int64_t most) const {
    return {std::max(begin, least), std::min(end, most)};
  }
  bool empty() const { return begin >= end; }
};

// Tiles [2 from, 2 to) of a matrix in floats. Codes are unpacked two tiles at a time.
void linear_pairs_f32(Compute& compute, const MatrixView& w, const float* x, std::int64_t stride,
                      std::int64_t tokens, std::int64_t from, std::int64_t to, float* y, bool add,
                      int member) {
  const auto multiply = [&](std::int64_t tile, std::int64_t tile_end, const Panels& panels) {
    const std::int64_t rows = std::min(tile_end * kTileRows, w.rows) - tile * kTileRows;
    compute.kernels.multiply({x, stride, 1}, panels, tokens, rows, w.columns, y + tile * kTileRows,
                             w.rows, add);
  };
  const std::int64_t end = std::min(to * 2, w.tiles);
  if (w.storage != Storage::kCodes) {
    const std::int64_t bytes = w.storage == Storage::kF32 ? 4 : 2;
    const auto* dense = static_cast<const std::uint8_t*>(w.dense);
    multiply(from * 2, end,
             {dense + from * 2 * w.columns * kTileRows * bytes, w.storage, w.columns * kTileRows,
              kTileRows});
    return;
  }
  const std::int64_t size = divide_up(w.columns, kChunkColumns) * kChunkColumns * kTileRows;
  for (std::int64_t tile = from * 2; tile < end; tile += 2) {
    const std::int64_t tile_end = std::min(tile + 2, end);
    float* panel = compute.scratch(member, (tile_end - tile) * size);
    for (std::int64_t i = tile; i < tile_end; ++i)
      compute.kernels.unpack_tile(w, i, false, panel + (i - tile) * size);
    multiply(tile, tile_end, {panel, Storage::kF32, size, kTileRows});
  }
}

// The same in the rounded form, with weak columns if not null, which x has twice behind the others
// (Activations::Form). Codes are unpacked for at most 640 columns of two tiles at a time, 40 KiB,
// in equal parts: what a part adds to y is read and written once more.
void linear_pairs_rounded(Compute& compute, const MatrixView& w, const MatrixView* weak,
                          const RoundedView& x, Range tokens, Range pairs, float* y, bool add,
                          int member) {
  constexpr std::int64_t kMostChunks = 20, kWidth = 2 * kTileRows;
  const std::int64_t step = equal_part(w.chunks, kMostChunks);
  const std::int64_t weak_columns = weak != nullptr ? 2 * even(weak->columns) : 0;
  auto* panel = reinterpret_cast<std::int16_t*>(
      compute.scratch(member, (step * kChunkColumns + weak_columns) * kWidth / 2));
  for (std::int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
    const std::int64_t tile = 2 * pair, tile_end = std::min(tile + 2, w.tiles);
    const std::int64_t row = tile * kTileRows;
    const int rows = static_cast<int>(std::min(kWidth, w.rows - row));
    for (std::int64_t chunk = 0; chunk < w.chunks; chunk += step) {
      const std::int64_t chunk_end = std::min(w.chunks, chunk + step);
      const std::int64_t column = chunk * kChunkColumns;
      std::int64_t columns = even(std::min(w.columns, chunk_end * kChunkColumns) - column);
      compute.kernels.unpack_rows_rounded(w, chunk, chunk_end, tile, tile_end, panel);
      if (weak != nullptr && chunk_end == w.chunks) {
        compute.kernels.unpack_weak_rounded(*weak, tile, tile_end, panel + columns * kWidth);
        columns += weak_columns;
      }
      RoundedView block = x;
      block.codes += column;
      compute.kernels.multiply_rounded(block, panel, nullptr, columns, tokens.begin, tokens.end,
                                       y + row, w.rows, rows, add || chunk > 0);
    }
  }
}

// Rows that share a pass over the codes: all with the numbers in `codes`, or each with its own.
struct Stretch {
  std::int64_t begin, end;
  MatrixView codes;
  bool mixed;
};

// How one output is multiplied, found once for all its tiles: a token alone is some 2000 pieces of
// work, each below a microsecond.
struct Plan {
  bool int8 = false, rounded = false;
  LinearInput x;
  Stretch all;                           // without runs: no memory to be asked for
  std::vector<Stretch> of_runs;          // with runs, instead
  std::vector<GroupArrays> of_token;     // where some stretch is mixed
  std::optional<WeakPart> beside;        // weak columns that the codes' kernel takes along
  const Matrix* rounded_weak = nullptr;  // those that linear_pairs_rounded() does

  std::span<const Stretch> stretches() const {
    return of_runs.empty() ? std::span(&all, 1) : std::span(of_runs);
  }
};

// From this many rows on, numbers that are loaded once for all of them outweigh a pass of their own
// over codes that the cache still has.
constexpr std::int64_t kRowsAlone = 8;

GroupArrays numbers_of(const MatrixView& codes) {
  return {codes.scales, codes.zeros, codes.offsets};
}

void plan_codes(const LinearOutput& output, std::int64_t tokens, Plan& plan) {
  std::vector<Stretch>& stretches = plan.of_runs;
  if (output.runs.empty()) {
    plan.all = {0, tokens, output.linear.codes(), false};
    return;
  }
  std::vector<Stretch> same;  // rows in a row with the same numbers
  for (const LinearRun& run : output.runs) {
    const MatrixView codes = run.linear.codes();
    if (!same.empty() && numbers_of(same.back().codes) == numbers_of(codes))
      same.back().end = run.end;
    else
      same.push_back({run.begin, run.end, codes, false});
  }
  if (!plan.int8) {
    stretches = std::move(same);
    return;
  }
  bool short_before = false;
  for (const Stretch& stretch : same) {
    const bool is_short = stretch.end - stretch.begin < kRowsAlone;
    if (is_short && short_before) {
      stretches.back().end = stretch.end;
      stretches.back().mixed = true;
    } else {
      stretches.push_back(stretch);
    }
    short_before = is_short;
    plan.of_token.insert(plan.of_token.end(), static_cast<std::size_t>(stretch.end - stretch.begin),
                         numbers_of(stretch.codes));
  }
}

bool same_weak(const LinearView& a, const LinearView& b) {
  return a.weak == b.weak && a.weak_columns == b.weak_columns;
}

// Calls use(view, begin, end) for the runs of an output; runs in a row that `same` says are alike
// together.
template <typename Same, typename Use>
void for_each_run(const LinearOutput& output, std::int64_t tokens, Same&& same, Use&& use) {
  if (output.runs.empty()) return use(output.linear, std::int64_t{0}, tokens);
  for (std::size_t i = 0; i < output.runs.size();) {
    const LinearRun& first = output.runs[i];
    std::int64_t end = first.end;
    for (++i; i < output.runs.size() && same(first.linear, output.runs[i].linear); ++i)
      end = output.runs[i].end;
    use(first.linear, first.begin, end);
  }
}

// Weak columns of all rows, where the codes' kernel takes them.
std::optional<WeakPart> weak_beside_codes(const Compute& compute, const LinearOutput& output,
                                          const Plan& plan, const Activations& activations,
                                          std::int64_t tokens) {
  const LinearView& view = output.runs.empty() ? output.linear : output.runs.front().linear;
  if (tokens > kMostTokensWithWeak && !compute.kernels.weak_for_many) return {};
  if (view.weak == nullptr || !plan.int8 || plan.stretches().size() != 1) return {};
  for (const LinearRun& run : output.runs)
    if (!same_weak(view, run.linear)) return {};
  const LinearInput in = activations.input(view);
  return WeakPart{view.weak->view(), in.weak, in.weak_stride};
}

Plan make_plan(const Compute& compute, const LinearOutput& output, const Activations& activations,
               std::int64_t tokens) {
  Plan plan;
  plan.rounded = output.runs.empty() && rounds_inputs(compute) && output.linear.weight->quantized();
  plan.int8 = !plan.rounded && uses_int8(compute, *output.linear.weight);
  plan.x = activations.input(output.linear);
  plan_codes(output, tokens, plan);
  plan.beside = weak_beside_codes(compute, output, plan, activations, tokens);
  if (plan.rounded && weak_follows(output.linear)) plan.rounded_weak = output.linear.weak;
  return plan;
}

// What these are added to, put where the sum goes just before the sum.
void copy_base(const LinearOutput& output, Range tokens, Range pairs) {
  constexpr std::int64_t kWidth = 2 * kTileRows;
  const std::int64_t rows = output.linear.weight->rows();
  const std::int64_t first = pairs.begin * kWidth,
                     width = std::min(rows, pairs.end * kWidth) - first;
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token)
    std::copy_n(output.base + token * rows + first, width, output.y + token * rows + first);
}

// The codes of one layer, in the form that the plan says.
void linear_codes(Compute& compute, const LinearOutput& output, const Plan& plan, Range tokens,
                  Range pairs, int member) {
  const std::int64_t rows = output.linear.weight->rows();
  const bool add = output.base != nullptr;
  const LinearInput& x = plan.x;
  for (const Stretch& stretch : plan.stretches()) {
    const MatrixView& w = stretch.codes;
    const Range own = tokens.within(stretch.begin, stretch.end);
    if (own.empty()) continue;
    if (plan.rounded) {
      linear_pairs_rounded(compute, w, plan.rounded_weak ? &plan.rounded_weak->view() : nullptr,
                           x.rounded, own, pairs, output.y, add, member);
      continue;
    }
    if (!plan.int8) {
      linear_pairs_f32(compute, w, x.values + own.begin * x.stride, x.stride, own.end - own.begin,
                       pairs.begin, pairs.end, output.y + own.begin * rows, add, member);
      continue;
    }
    compute.kernels.linear_int8(w, x.int8, own.begin, own.end, pairs.begin * 2,
                                std::min(pairs.end * 2, w.tiles),
                                stretch.mixed ? plan.of_token.data() : nullptr,
                                plan.beside ? &*plan.beside : nullptr, output.y, rows, add);
  }
}

// Weak columns that linear_codes() did not do.
void linear_weak(Compute& compute, const LinearOutput& output, const Plan& plan,
                 const Activations& activations, std::int64_t all_tokens, Range tokens, Range pairs,
                 int member) {
  const std::int64_t rows = output.linear.weight->rows();
  if (plan.beside || plan.rounded_weak != nullptr) return;
  if (output.linear.weak == nullptr && output.runs.empty()) return;
  for_each_run(output, all_tokens, same_weak,
               [&](const LinearView& view, std::int64_t begin, std::int64_t end) {
                 const Range own = tokens.within(begin, end);
                 if (view.weak == nullptr || own.empty()) return;
                 const LinearInput in = activations.input(view);
                 linear_pairs_f32(compute, view.weak->view(), in.weak + own.begin * in.weak_stride,
                                  in.weak_stride, own.end - own.begin, pairs.begin, pairs.end,
                                  output.y + own.begin * rows, true, member);
               });
}

// What rounding left of activations that stand out.
void add_remainders(Compute& compute, const LinearOutput& output, const Plan& plan, Range tokens,
                    Range pairs) {
  for (const Stretch& stretch : plan.stretches()) {
    const Range own = tokens.within(stretch.begin, stretch.end);
    compute.kernels.add_remainders(stretch.codes, plan.x.int8, own.begin, own.end, pairs.begin * 2,
                                   std::min(pairs.end * 2, stretch.codes.tiles),
                                   stretch.mixed ? plan.of_token.data() : nullptr, output.y,
                                   stretch.codes.rows);
  }
}

// These tokens and pairs of tiles of one layer: codes, weak columns, and last, while codes and sums
// are in the caches, remainders.
void linear_pairs(Compute& compute, const LinearOutput& output, const Plan& plan,
                  const Activations& activations, std::int64_t all_tokens, Range tokens,
                  Range pairs, int member) {
  if (output.base != nullptr && output.base != output.y) copy_base(output, tokens, pairs);
  const bool remainders = plan.int8 && plan.x.int8.remainders != nullptr;
  const std::int64_t count = tokens.end - tokens.begin;
  // Of few tokens the caches have to hold codes, 80 KB of 16 tiles of 576 columns, else sums.
  const std::int64_t most_pairs = count <= kMostTokensAhead ? 8 : 1;
  const std::int64_t step = remainders ? most_pairs : pairs.end - pairs.begin;
  const std::int64_t block = plan.int8 ? kTokenBlock : count;
  for (std::int64_t token = tokens.begin; token < tokens.end; token += block)
    for (std::int64_t pair = pairs.begin; pair < pairs.end; pair += step) {
      const Range some{token, std::min(tokens.end, token + block)};
      const Range part{pair, std::min(pairs.end, pair + step)};
      linear_codes(compute, output, plan, some, part, member);
      linear_weak(compute, output, plan, activations, all_tokens, some, part, member);
      if (remainders) add_remainders(compute, output, plan, some, part);
    }
}

std::int64_t pairs_of(const LinearOutput& output) {
  return divide_up(output.linear.weight->view().tiles, 2);
}
std::int64_t pairs_of(const Upcoming& next) { return divide_up(next.weight->view().tiles, 2); }

// Calls use(index of the output, first pair of tiles, end) for pairs [begin, end) of all outputs.
template <typename Output, typename Use>
void for_each_output(std::span<const Output> outputs, std::int64_t begin, std::int64_t end,
                     Use&& use) {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::int64_t count = pairs_of(outputs[i]);
    const std::int64_t from = std::max(begin, first) - first;
    const std::int64_t to = std::min(end, first + count) - first;
    first += count;
    if (from < to) use(i, from, to);
  }
}

template <typename Output>
std::int64_t all_pairs(std::span<const Output> outputs) {
  std::int64_t pairs = 0;
  for (const Output& output : outputs) pairs += pairs_of(output);
  return pairs;
}

// Says to the team what `member` reads in the next product.
void read_ahead(Compute& compute, std::span<const Upcoming> next, std::int64_t tokens, int member) {
  // Of each array: 16 KiB and all of it gave no more.
  constexpr std::int64_t kMostBytes = 64 << 10;
  std::array<std::span<const std::byte>, ThreadTeam::kMostAhead> ranges;
  std::size_t count = 0;
  const auto take = [&](std::size_t i, std::int64_t from, std::int64_t to) {
    const MatrixView& w = next[i].weight->view();
    const std::int64_t first = from * 2, end = std::min(to * 2, w.tiles);
    const auto add = [&](const void* data, std::int64_t tile_bytes) {
      if (data != nullptr && count < ranges.size())
        ranges[count++] = {
            static_cast<const std::byte*>(data) + first * tile_bytes,
            static_cast<std::size_t>(std::min((end - first) * tile_bytes, kMostBytes))};
    };
    const std::int64_t numbers = w.groups * kTileRows * 2;
    add(w.codes, w.tile_bytes);
    add(w.scales, numbers);
    add(w.zeros, numbers);
    add(w.offsets, numbers);
    if (next[i].weak == nullptr) return;
    const MatrixView& weak = next[i].weak->view();
    add(weak.dense, weak.columns * kTileRows * (weak.storage == Storage::kF32 ? 4 : 2));
  };
  const std::int64_t pairs = all_pairs(next), grain = grain_for(compute, pairs, tokens);
  for_each_output(next, compute.team.stretch_begin(pairs, grain, member),
                  compute.team.stretch_begin(pairs, grain, member + 1), take);
  compute.team.read_ahead(member, std::span(ranges).first(count));
}

}  // namespace

void linear(Compute& compute, const Activations& x, std::int64_t tokens,
            std::span<const LinearOutput> outputs, std::span<const Upcoming> next,
            const Activations* filled_next) {
  if (compute.learning) filled_next = nullptr;  // the backward pass may want what is there
  std::vector<Plan> plans;
  plans.reserve(outputs.size());
  for (const LinearOutput& output : outputs) plans.push_back(make_plan(compute, output, x, tokens));
  // Codes become bytes in the time that products of two or three tokens take: a prompt of 128 is
  // faster whole (1.01), one of 160 in two parts.
  const bool to_bytes = compute.precision == Precision::kDefault && !compute.kernels.tiled;
  const std::int64_t parts = token_parts(compute, tokens, to_bytes ? 80 : kLeastTokens);
  const std::int64_t pairs = all_pairs(outputs);
  for_each_token_part(compute, tokens, parts, pairs, grain_for(compute, parts * pairs, tokens),
                      [&](std::int64_t token, std::int64_t token_end, std::int64_t begin,
                          std::int64_t end, int member) {
                        if (begin == 0 && member == 0 && filled_next != nullptr)
                          filled_next->own_lines();
                        if (tokens <= kMostTokensAhead && compute.team.wants_ahead(member))
                          read_ahead(compute, next, tokens, member);
                        for_each_output(outputs, begin, end,
                                        [&](std::size_t i, std::int64_t from, std::int64_t to) {
                                          linear_pairs(compute, outputs[i], plans[i], x, tokens,
                                                       {token, token_end}, {from, to}, member);
                                        });
                      });
  std::vector<LowRankRun> paths;
  for (const LinearOutput& output : outputs)
    for_each_run(
        output, tokens,
        [](const LinearView& a, const LinearView& b) { return a.low_rank == b.low_rank; },
        [&](const LinearView& view, std::int64_t begin, std::int64_t end) {
          if (view.low_rank != nullptr) paths.push_back({view.low_rank, begin, end, output.y});
        });
  if (!paths.empty()) low_rank_forward(compute, paths, x);
}

void linear_f32(Compute& compute, std::span<const FloatProduct> products) {
  struct Piece {
    const FloatProduct* product;
    std::int64_t from, to, begin, end;  // pairs of tiles, tokens
  };
  std::int64_t pairs = 0;
  for (const FloatProduct& product : products) pairs += divide_up(product.weight->view().tiles, 2);
  const std::int64_t step = std::max<std::int64_t>(1, pairs / (compute.team.size() * 16));
  std::vector<Piece> pieces;
  for (const FloatProduct& product : products) {
    const std::int64_t count = divide_up(product.weight->view().tiles, 2);
    const std::int64_t block = block_rows(compute, pairs, product.tokens);
    for (std::int64_t from = 0; from < count; from += step)
      for (std::int64_t begin = 0; begin < product.tokens; begin += block)
        pieces.push_back({&product, from, std::min(count, from + step), begin,
                          std::min(product.tokens, begin + block)});
  }
  const auto multiply = [&](const Piece& piece, int member) {
    const FloatProduct& p = *piece.product;
    const std::int64_t rows = p.weight->rows();
    float* y = p.y + piece.begin * rows;
    const std::int64_t tokens = piece.end - piece.begin;
    linear_pairs_f32(compute, p.weight->view(), p.x + piece.begin * p.stride, p.stride, tokens,
                     piece.from, piece.to, y, p.add, member);
    if (p.scale == 1.0f) return;
    const std::int64_t first = piece.from * 2 * kTileRows;
    const std::int64_t width = std::min(piece.to * 2 * kTileRows, rows) - first;
    for (float* out = y + first; out < y + tokens * rows; out += rows)
      compute.kernels.scale(out, width, p.scale, out);
  };
  compute.team.for_each(static_cast<std::int64_t>(pieces.size()), 1,
                        [&](std::int64_t index, std::int64_t, int member) {
                          multiply(pieces[static_cast<std::size_t>(index)], member);
                        });
}

}  // namespace trimpot
