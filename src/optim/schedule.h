// The learning rate over a run, with the values of Hugging Face transformers' get_*_schedule:
// after `step` finished steps of `total` with `warmup`,
//   step < warmup:  step / max(1, warmup)
//   constant:       1
//   linear:         max(0, (total - step) / max(1, total - warmup))
//   cosine:         max(0, (1 + cos(pi * (step - warmup) / max(1, total - warmup))) / 2)
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace trimpot {

enum class ScheduleKind { kConstant, kLinear, kCosine };

// "constant", "linear" or "cosine" (each with the warm-up, if there is one).
Result<ScheduleKind> parse_schedule_kind(std::string_view name);

// Warm-up of `ratio` of all steps, rounded up. Errors: a ratio outside [0, 1].
Result<std::uint64_t> warmup_steps_from_ratio(double ratio, std::uint64_t total_steps);

struct Schedule {
  ScheduleKind kind = ScheduleKind::kLinear;
  std::uint64_t warmup_steps = 0;
  std::uint64_t total_steps = 0;

  // The factor on the learning rate, in [0, 1], of the step that comes after `step` finished ones
  // (so 0 for the very first step of a warm-up, as in transformers).
  double factor(std::uint64_t step) const;
};

}  // namespace trimpot
