// The norm of all gradients together, and clipping by it.
#pragma once

#include <cstddef>
#include <span>

namespace trimpot {

// Gradients are summed in chunks of so many elements, each chunk in double in eight fixed lanes,
// and the chunks one after another: whoever computes the chunks, the sum has the same bits.
inline constexpr std::size_t kNormChunk = 4096;

// The sum of squares of at most kNormChunk elements.
double chunk_sum_of_squares(std::span<const float> chunk);

// The sum of squares of any number of elements. For several tensors add their sums in a fixed
// order; the norm is the root of it all.
double sum_of_squares(std::span<const float> values);

// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it; 1 where max_norm is
// 0 or less (no clipping). NaN for a norm that is not a number: check the norm before stepping.
float clip_factor(double norm, double max_norm);

}  // namespace trimpot
