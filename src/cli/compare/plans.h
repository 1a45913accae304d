// The built-in plans, as JSON text (docs/compare.md describes the language).
#pragma once

#include <span>
#include <string_view>

namespace trimpot::cli {

struct BuiltinPlan {
  std::string_view name, json;
};

std::span<const BuiltinPlan> peqa_plans();  // quick; tables A, B, D
std::span<const BuiltinPlan> qeft_plans();  // tables 1 to 11, figures 3a and 5

}  // namespace trimpot::cli
