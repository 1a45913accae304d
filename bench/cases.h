// Single kernels on the shapes of a small model, for timing (kernels.cc) and for counting
// instructions (once.cc).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace trimpot::bench {

struct Case {
  std::string name;  // "linear_int8/4 bits g128/tokens 192"
  double macs;       // multiply-adds of a call
  double bytes;      // of the weight
  // Sets up operands for these kernels; null if they lack the operation.
  std::function<std::function<void()>(const Kernels&)> prepare;
};

std::vector<Case> all_cases();

}  // namespace trimpot::bench
