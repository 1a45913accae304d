#include "tune/methods.h"

#include <algorithm>

namespace trimpot {
namespace {

ScaleMethod scale_method(const std::string& name) {
  return name == "peqa-zero"   ? ScaleMethod::kZeros
         : name == "peqa-both" ? ScaleMethod::kBoth
                               : ScaleMethod::kScales;
}

constexpr std::size_t kSmall = 3'000'000'000;
constexpr std::size_t kLarge = 50'000'000'000;

}  // namespace

const std::vector<std::string>& method_names() {
  static const std::vector<std::string> names{"peqa",  "peqa-zero", "peqa-both", "qeft", "lora",
                                              "qlora", "qalora",    "platypus",  "full", "qat"};
  return names;
}

bool is_low_rank(const std::string& method) {
  return method == "lora" || method == "qlora" || method == "qalora" || method == "platypus";
}

Result<TuningPreset> preset_of(const std::string& method, std::size_t parameters,
                               std::int64_t weak_columns) {
  const auto& names = method_names();
  if (std::find(names.begin(), names.end(), method) == names.end())
    return fail("method \"{}\" is not known; {} are", method, fmt::join(names, ", "));
  const bool small = parameters < kSmall, large = parameters >= kLarge;
  TuningPreset preset;
  if (method.starts_with("peqa")) {
    preset.learning_rate = 5e-3;
    preset.schedule = ScheduleKind::kLinear;
    preset.warmup_ratio = 0.03;
    preset.max_grad_norm = 1.0;
  } else if (method == "qeft") {
    preset.learning_rate =
        small ? (weak_columns > 32 ? 5e-4 : 1e-3) : (weak_columns > 32 ? 5e-6 : 1e-5);
  } else if (method == "lora") {
    preset.learning_rate = small ? 1e-3 : 2e-4;
    preset.dropout = 0.1;
  } else if (method == "qlora") {
    preset.learning_rate = small ? 1e-3 : large ? 1e-4 : 2e-4;
    preset.dropout = large ? 0.05 : 0.1;
  } else if (method == "qalora") {
    preset.learning_rate = small ? 1e-3 : large ? 1e-5 : 2e-5;
  } else if (method == "platypus") {
    preset.learning_rate = small ? 1e-3 : 4e-4;
    preset.dropout = 0.05;
    preset.schedule = ScheduleKind::kCosine;
    preset.warmup_steps = 100;
    preset.rank = 16;
    preset.max_grad_norm = 1.0;
    preset.target_modules = {"gate_proj", "up_proj", "down_proj"};
  } else {  // full, qat
    preset.learning_rate = small ? 1e-4 : 1e-5;
    preset.max_grad_norm = 1.0;
  }
  return preset;
}

Result<std::unique_ptr<TuningMethod>> make_method(Compute& compute, Model& model,
                                                  const MethodOptions& options) {
  const std::string& name = options.method;
  if (name.starts_with("peqa"))
    return make_scale_method(model,
                             {scale_method(name), options.granularity, options.target_modules});
  if (name == "qeft") {
    add_weak_columns(model, options.new_columns);
    return make_weak_column_method(model, options.target_modules);
  }
  if (name == "full") return make_full_method(model, compute.team, options.target_modules);
  if (name == "qat")
    return make_qat_method(model, compute.team, options.scheme, options.target_modules);
  LowRankOptions low_rank = options.low_rank;
  low_rank.pooled = name == "qalora";
  low_rank.target_modules = options.target_modules;
  if (name == "qlora") {
    for (std::size_t index = 0; index < model.linear_count(); ++index)
      if (!model.linear(index).weight.quantized())
        return fail(
            "{} is not quantized, and QLoRA tunes over quantized weights; make an NF4 file "
            "with `trimpot quantize --method nf4`, or use --method lora",
            linear_tensor_name(index));
  }
  return make_low_rank_method(model, low_rank);
}

std::string why_not_gguf(const Model& model, const MethodOptions& options) {
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    const Linear& linear = model.linear(index);
    if (options.method.starts_with("peqa") && is_target(options.target_modules, index) &&
        linear.weight.view().book == CodeBook::kNf4)
      return fmt::format(
          "the scales of {} are 8-bit codes themselves (NF4) and cannot hold tuned ones; write an "
          "adapter (.safetensors)",
          linear_name(index));
    if (linear.low_rank)
      return linear.low_rank->pool > 0 && linear.weight.has_shifts()
                 ? "a low-rank adapter is not part of the model file; write an adapter "
                   "(.safetensors), which `trimpot merge` puts into the offsets exactly"
                 : "a low-rank adapter is not part of the model file; write an adapter "
                   "(.safetensors); `trimpot merge` adds it to dense weights";
    if (!linear.weak.dense_f32().empty())
      return "this file has no place for columns of differences beside its codes; write an adapter "
             "(.safetensors), or start from a file that `trimpot quantize --method qeft` made";
  }
  return {};
}

}  // namespace trimpot
