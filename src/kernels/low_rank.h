// The low-rank path y += scale B (A x) and its gradients (LoRA: Hu et al. 2021, section 4.1;
// QA-LoRA: Xu et al. 2023, equation 5, with sums over groups).
#pragma once

#include "kernels/linear.h"

namespace trimpot {

// Tokens [begin, end) of an output y [tokens, rows] that go through a path.
struct LowRankRun {
  const LowRank* path;
  std::int64_t begin, end;
  float* y;
};

// y += scale B (A x) for all runs in two joins of the team, however many paths a batch has. Dropout
// of x if compute.dropout_stream is set.
void low_rank_forward(Compute& compute, std::span<const LowRankRun> runs, const Activations& x);

// With u = A x and du = scale dy B:  dB += scale dy^T u,  dA += du^T x,  dx += du A.
// Null pointers: not wanted.
void low_rank_backward(Compute& compute, const LowRank& path, const Activations& x, const float* dy,
                       std::int64_t tokens, float* d_a, float* d_b, float* dx);

// y [tokens, rows] (+)= scale x W^T in floats; x has rows `stride` floats apart. A scale other than
// 1 is not for `add`.
struct FloatProduct {
  const Matrix* weight;
  const float* x;
  std::int64_t stride, tokens;
  float* y;
  bool add = false;
  float scale = 1;
};
// All in one join.
void linear_f32(Compute& compute, std::span<const FloatProduct> products);
// dx (+)= dy W for a plain matrix; rows of dy are `dy_stride`, of dx `dx_stride` floats apart.
void input_gradient(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                    std::int64_t tokens, float* dx, std::int64_t dx_stride, bool add);
// d [tiles of rows][columns][16] += dy^T x, contracted over tokens.
void dense_gradient(Compute& compute, const float* dy, std::int64_t rows, const float* x,
                    std::int64_t stride, std::int64_t columns, std::int64_t tokens, float* d);

}  // namespace trimpot
