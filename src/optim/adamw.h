// AdamW (Loshchilov, Hutter: "Decoupled Weight Decay Regularization", 2019), the same order of
// operations as torch.optim.AdamW. Elementwise without sums, so neither the vector width nor a
// split of the elements among threads changes a bit.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"

namespace trimpot {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;  // per step, times the learning rate

  // Errors: a value outside its range (betas in [0, 1), epsilon > 0, weight decay >= 0).
  Status check() const;
};

// The tensors of one parameter, or a part of them: all spans have the same length.
struct AdamWState {
  std::span<float> values;  // the f32 master values
  std::span<const float> gradient;
  std::span<float> first_moment;   // zero before the first step
  std::span<float> second_moment;  // zero before the first step
};

// Updates values and moments. `step` counts from 1; the gradient is multiplied by
// `gradient_scale` first (clip_factor, or 1 / accumulated tokens).
void adamw_step(const AdamWOptions& options, std::uint64_t step, double learning_rate,
                float gradient_scale, const AdamWState& state);

}  // namespace trimpot
