#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

namespace trimpot {

Status AdamWOptions::check() const {
  // Written so that NaN fails too.
  if (!(beta1 >= 0.0 && beta1 < 1.0)) return fail("adam beta1 is {}; it must be in [0, 1)", beta1);
  if (!(beta2 >= 0.0 && beta2 < 1.0)) return fail("adam beta2 is {}; it must be in [0, 1)", beta2);
  if (!(epsilon > 0.0 && std::isfinite(epsilon)))
    return fail("adam epsilon is {}; it must be above 0", epsilon);
  if (!(weight_decay >= 0.0 && std::isfinite(weight_decay)))
    return fail("weight decay is {}; it must be 0 or more", weight_decay);
  return {};
}

void adamw_step(const AdamWOptions& options, std::uint64_t step, double learning_rate,
                float gradient_scale, const AdamWState& state) {
  // Scalars in double, rounded once: beta2^step in f32 would be off by 1e-5 at the start.
  const double count = static_cast<double>(step);
  const double correction1 = 1.0 - std::pow(options.beta1, count);
  const double correction2 = 1.0 - std::pow(options.beta2, count);
  const float keep = static_cast<float>(1.0 - learning_rate * options.weight_decay);
  const float blend1 = static_cast<float>(1.0 - options.beta1);
  const float beta2 = static_cast<float>(options.beta2);
  const float blend2 = static_cast<float>(1.0 - options.beta2);
  const float step_size = static_cast<float>(learning_rate / correction1);
  const float root_correction2 = static_cast<float>(std::sqrt(correction2));
  const float epsilon = static_cast<float>(options.epsilon);

  const std::size_t size = std::min({state.values.size(), state.gradient.size(),
                                     state.first_moment.size(), state.second_moment.size()});
  float* __restrict values = state.values.data();
  const float* __restrict gradient = state.gradient.data();
  float* __restrict first = state.first_moment.data();
  float* __restrict second = state.second_moment.data();
  for (std::size_t i = 0; i < size; ++i) {
    const float g = gradient[i] * gradient_scale;
    const float m = first[i] + blend1 * (g - first[i]);
    const float v = beta2 * second[i] + blend2 * (g * g);
    first[i] = m;
    second[i] = v;
    values[i] = keep * values[i] - step_size * (m / (std::sqrt(v) / root_correction2 + epsilon));
  }
}

}  // namespace trimpot
