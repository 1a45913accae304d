#include "kernels/low_rank.h"

#include <algorithm>

#include "base/rng.h"

namespace trimpot {
namespace {

// Calls visit(index, factor) for `count` elements from `first` on: 0 with probability `dropout`,
// else 1 / (1 - dropout). 16 bits of a random number each.
template <typename Visit>
void for_each_kept(const CounterRng& rng, float dropout, std::int64_t first, std::int64_t count,
                   Visit&& visit) {
  const auto limit = static_cast<std::uint32_t>(dropout * 65536.0f);
  // From memory, for a branch would be mispredicted as often as elements are dropped.
  const float factors[2] = {0.0f, 65536.0f / (65536.0f - static_cast<float>(limit))};
  for (std::int64_t i = first, end = first + count; i < end;) {
    std::uint64_t bits = rng.bits(static_cast<std::uint64_t>(i / 4)) >> (i % 4 * 16);
    for (const std::int64_t stop = std::min(end, i / 4 * 4 + 4); i < stop; ++i, bits >>= 16)
      visit(i - first, factors[(bits & 0xffffu) >= limit ? 1 : 0]);
  }
}

bool drops(const Compute& compute, const LowRank& path) {
  return path.dropout > 0.0f && compute.dropout_stream != 0;
}

// What A sees: x itself, x with some elements dropped, or sums over groups of columns.
struct Input {
  const float* data;
  std::int64_t columns;
};

// Floats that low_rank_input() writes.
std::int64_t input_size(const Compute& compute, const LowRank& path, std::int64_t tokens) {
  return drops(compute, path) || path.pool > 0 ? tokens * path.a.columns() : 0;
}

Input low_rank_input(Compute& compute, const LowRank& path, const Activations& x,
                     std::int64_t first, std::int64_t tokens, float* out) {
  const std::int64_t width = x.columns();
  const float* values = x.values() + first * width;
  if (!drops(compute, path) && path.pool == 0) return {values, width};
  const std::int64_t pool = std::max(1, path.pool);
  const std::int64_t columns = path.a.columns();
  const CounterRng rng(compute.dropout_stream, path.seed);
  const bool drop = drops(compute, path);
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token) {
      const float* from = values + token * width;
      float* to = out + token * columns;
      if (path.pool == 0) {
        for_each_kept(rng, path.dropout, token * width, width,
                      [&](std::int64_t i, float factor) { to[i] = from[i] * factor; });
        continue;
      }
      for (std::int64_t group = 0; group < columns; ++group) {
        float sum = 0;
        for (std::int64_t i = group * pool; i < std::min(width, (group + 1) * pool); ++i)
          sum += from[i];
        to[group] = sum;
      }
      if (drop)
        for_each_kept(rng, path.dropout, token * columns, columns,
                      [&](std::int64_t i, float factor) { to[i] *= factor; });
    }
  });
  return {out, columns};
}

// The factor belongs to the small matrix: u is scale A x.
FloatProduct inner(const LowRank& path, const Input& input, std::int64_t tokens, float* u) {
  return {&path.a, input.data, input.columns, tokens, u, false, path.scale};
}

}  // namespace

void low_rank_forward(Compute& compute, std::span<const LowRankRun> runs, const Activations& x) {
  std::int64_t inputs = 0, inners = 0;
  for (const LowRankRun& run : runs) {
    inputs += input_size(compute, *run.path, run.end - run.begin);
    inners += (run.end - run.begin) * run.path->a.rows();
  }
  float* input = compute.shared(Compute::kLowRankInput, inputs);
  float* u = compute.shared(Compute::kLowRankInner, inners);
  std::vector<FloatProduct> down, up;
  for (const LowRankRun& run : runs) {
    const LowRank& path = *run.path;
    const std::int64_t tokens = run.end - run.begin, rank = path.a.rows();
    down.push_back(
        inner(path, low_rank_input(compute, path, x, run.begin, tokens, input), tokens, u));
    up.push_back({&path.b, u, rank, tokens, run.y + run.begin * path.b.rows(), true});
    input += input_size(compute, path, tokens);
    u += tokens * rank;
  }
  linear_f32(compute, down);
  linear_f32(compute, up);
}

void low_rank_backward(Compute& compute, const LowRank& path, const Activations& x, const float* dy,
                       std::int64_t tokens, float* d_a, float* d_b, float* dx) {
  const std::int64_t rank = path.a.rows(), rows = path.b.rows(), width = x.columns();
  const Input input =
      low_rank_input(compute, path, x, 0, tokens,
                     compute.shared(Compute::kLowRankInput, input_size(compute, path, tokens)));
  if (d_b != nullptr) {
    float* u = compute.shared(Compute::kLowRankInner, tokens * rank);
    const FloatProduct product = inner(path, input, tokens, u);
    linear_f32(compute, {&product, 1});
    dense_gradient(compute, dy, rows, u, rank, rank, tokens, d_b);
  }
  if (d_a == nullptr && dx == nullptr) return;
  float* du = compute.shared(Compute::kLowRankInner, tokens * rank);
  input_gradient(compute, path.b, dy, rows, tokens, du, rank, false);
  compute.team.for_each(tokens, 64, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.scale(du + begin * rank, (end - begin) * rank, path.scale, du + begin * rank);
  });
  if (d_a != nullptr)
    dense_gradient(compute, du, rank, input.data, input.columns, input.columns, tokens, d_a);
  if (dx == nullptr) return;
  if (!drops(compute, path) && path.pool == 0) {
    input_gradient(compute, path.a, du, rank, tokens, dx, width, true);
    return;
  }
  const std::int64_t columns = input.columns, pool = std::max(1, path.pool);
  float* d_input = compute.shared(Compute::kLowRankGradient, tokens * columns);
  input_gradient(compute, path.a, du, rank, tokens, d_input, columns, false);
  const CounterRng rng(compute.dropout_stream, path.seed);
  const bool drop = drops(compute, path);
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token) {
      float* d = d_input + token * columns;
      if (drop)
        for_each_kept(rng, path.dropout, token * columns, columns,
                      [&](std::int64_t i, float factor) { d[i] *= factor; });
      float* to = dx + token * width;
      for (std::int64_t i = 0; i < width; ++i) to[i] += d[i / pool];
    }
  });
}

}  // namespace trimpot
