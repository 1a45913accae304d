#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace trimpot {

Result<ScheduleKind> parse_schedule_kind(std::string_view name) {
  if (name == "constant") return ScheduleKind::kConstant;
  if (name == "linear") return ScheduleKind::kLinear;
  if (name == "cosine") return ScheduleKind::kCosine;
  return fail("learning rate schedule \"{}\" is unknown; use constant, linear or cosine", name);
}

Result<std::uint64_t> warmup_steps_from_ratio(double ratio, std::uint64_t total_steps) {
  if (!(ratio >= 0.0 && ratio <= 1.0))
    return fail("warm-up ratio is {}; it must be between 0 and 1", ratio);
  return static_cast<std::uint64_t>(std::ceil(ratio * static_cast<double>(total_steps)));
}

double Schedule::factor(std::uint64_t step) const {
  const double done = static_cast<double>(step);
  const double total = static_cast<double>(total_steps);
  const double warmup = static_cast<double>(warmup_steps);
  if (step < warmup_steps) return done / std::max(1.0, warmup);
  switch (kind) {
    case ScheduleKind::kConstant:
      break;
    case ScheduleKind::kLinear:
      return std::max(0.0, (total - done) / std::max(1.0, total - warmup));
    case ScheduleKind::kCosine: {
      // Past the end the cosine would rise again.
      const double progress = std::min(1.0, (done - warmup) / std::max(1.0, total - warmup));
      return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
    }
  }
  return 1.0;
}

}  // namespace trimpot
