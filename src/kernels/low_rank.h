// The low-rank path y += scale B (A x) and its gradients (LoRA: Hu et al. 2021, section 4.1;
// QA-LoRA: Xu et al. 2023, equation 5, with sums over groups).
#pragma once

#include "kernels/linear.h"

namespace trimpot {

// y [tokens, rows] += scale B (A x) for tokens [begin, end). Dropout of x if compute.dropout_stream
// is set.
void low_rank_forward(Compute& compute, const LowRank& path, const Activations& x,
                      std::int64_t begin, std::int64_t end, float* y);

// With u = A x and du = scale dy B:  dB += scale dy^T u,  dA += du^T x,  dx += du A.
// Null pointers: not wanted.
void low_rank_backward(Compute& compute, const LowRank& path, const Activations& x, const float* dy,
                       std::int64_t tokens, float* d_a, float* d_b, float* dx);

// y [tokens, rows] (+)= x W^T in floats; x has rows `stride` floats apart.
void linear_f32(Compute& compute, const Matrix& weight, const float* x, std::int64_t stride,
                std::int64_t tokens, float* y, bool add);
// dx (+)= dy W for a plain matrix; rows of dy are `dy_stride`, of dx `dx_stride` floats apart.
void input_gradient(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                    std::int64_t tokens, float* dx, std::int64_t dx_stride, bool add);
// d [tiles of rows][columns][16] += dy^T x, contracted over tokens.
void dense_gradient(Compute& compute, const float* dy, std::int64_t rows, const float* x,
                    std::int64_t stride, std::int64_t columns, std::int64_t tokens, float* d);

}  // namespace trimpot
