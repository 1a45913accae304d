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
  const float factor = 65536.0f / (65536.0f - static_cast<float>(limit));
  std::uint64_t bits = 0;
  for (std::int64_t i = first; i < first + count; ++i) {
    if (i == first || i % 4 == 0)
      bits = rng.bits(static_cast<std::uint64_t>(i / 4)) >> (i % 4 * 16);
    visit(i - first, (bits & 0xffffu) < limit ? 0.0f : factor);
    bits >>= 16;
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

Input low_rank_input(Compute& compute, const LowRank& path, const Activations& x,
                     std::int64_t first, std::int64_t tokens) {
  const std::int64_t width = x.columns();
  const float* values = x.values() + first * width;
  if (!drops(compute, path) && path.pool == 0) return {values, width};
  const std::int64_t pool = std::max(1, path.pool);
  const std::int64_t columns = path.a.columns();
  float* out = compute.shared(Compute::kLowRankInput, tokens * std::max(columns, width));
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

float* inner(Compute& compute, const LowRank& path, const Input& input, std::int64_t tokens) {
  const std::int64_t rank = path.a.rows();
  float* u = compute.shared(Compute::kLowRankInner, tokens * rank);
  linear_f32(compute, path.a, input.data, input.columns, tokens, u, false);
  // The factor belongs to the small matrix: u is scale A x from here on.
  compute.team.for_each(tokens, 64, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.scale(u + begin * rank, (end - begin) * rank, path.scale, u + begin * rank);
  });
  return u;
}

}  // namespace

void low_rank_forward(Compute& compute, const LowRank& path, const Activations& x,
                      std::int64_t begin, std::int64_t end, float* y) {
  const Input input = low_rank_input(compute, path, x, begin, end - begin);
  const float* u = inner(compute, path, input, end - begin);
  linear_f32(compute, path.b, u, path.a.rows(), end - begin, y + begin * path.b.rows(), true);
}

void low_rank_backward(Compute& compute, const LowRank& path, const Activations& x, const float* dy,
                       std::int64_t tokens, float* d_a, float* d_b, float* dx) {
  const std::int64_t rank = path.a.rows(), rows = path.b.rows(), width = x.columns();
  const Input input = low_rank_input(compute, path, x, 0, tokens);
  if (d_b != nullptr)
    dense_gradient(compute, dy, rows, inner(compute, path, input, tokens), rank, rank, tokens, d_b);
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
