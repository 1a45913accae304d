#include "tune/shapes.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/round.h"
#include "model/weights.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

// The models' config.json files.
constexpr PublishedShape kShapes[] = {
    {"llama-7b", 4096, 11008, 32, 32, 32, 32000},  {"llama-13b", 5120, 13824, 40, 40, 40, 32000},
    {"llama-30b", 6656, 17920, 60, 52, 52, 32000}, {"llama-65b", 8192, 22016, 80, 64, 64, 32000},
    {"llama2-7b", 4096, 11008, 32, 32, 32, 32000}, {"llama2-13b", 5120, 13824, 40, 40, 40, 32000},
    {"llama2-70b", 8192, 28672, 80, 64, 8, 32000},
};

constexpr int kHalf[] = {16};
constexpr int kEight[] = {8};
constexpr int kFour[] = {4};
constexpr int kInteger[] = {4, 3, 8};
constexpr int kAny[] = {16, 8, 4, 3};
constexpr std::string_view kFeedForward[] = {"gate_proj", "up_proj", "down_proj"};

// Settings of QEFT's Table 4 and, for PEQA, of its main results.
constexpr ShapeMethod kMethods[] = {
    {"full", Learns::kEverything, GroupNumbers::kF16Zeros, kHalf, -1, 0, 0, false, {}},
    {"lora", Learns::kLowRank, GroupNumbers::kPackedZeros, kAny, -1, 0, 64, false, {}},
    {"platypus", Learns::kLowRank, GroupNumbers::kF16Zeros, kEight, -1, 0, 16, false, kFeedForward},
    {"qlora", Learns::kLowRank, GroupNumbers::kDoubleQuantized, kFour, 64, 0, 64, false, {}},
    {"qalora", Learns::kLowRank, GroupNumbers::kF16Zeros, kInteger, 32, 0, 64, true, {}},
    {"peqa", Learns::kScales, GroupNumbers::kPackedZeros, kInteger, -1, 0, 0, false, {}},
    {"owq", Learns::kWeakColumns, GroupNumbers::kF16Zeros, kInteger, -1, 128, 0, false, {}},
    {"qeft", Learns::kWeakColumns, GroupNumbers::kF16Zeros, kInteger, 128, 128, 0, false, {}},
};

constexpr std::int64_t kHalfBytes = 2;  // f16

std::int64_t kv_width(const PublishedShape& shape) {
  return shape.hidden / shape.heads * shape.kv_heads;
}

struct LinearShape {
  std::int64_t rows, columns;
};
// In the order of kLinearKinds.
std::array<LinearShape, 7> linears_of(const PublishedShape& shape) {
  const std::int64_t h = shape.hidden, f = shape.feed_forward, kv = kv_width(shape);
  return {{{h, h}, {kv, h}, {kv, h}, {h, h}, {f, h}, {f, h}, {h, f}}};
}

std::int64_t linear_parameters(const PublishedShape& shape) {
  std::int64_t count = 0;
  for (const LinearShape& linear : linears_of(shape)) count += linear.rows * linear.columns;
  return count * shape.layers;
}
std::int64_t embedding_parameters(const PublishedShape& shape) {
  return 2 * shape.vocabulary * shape.hidden;
}
std::int64_t norm_parameters(const PublishedShape& shape) {
  return (2 * shape.layers + 1) * shape.hidden;
}
std::int64_t all_parameters(const PublishedShape& shape) {
  return linear_parameters(shape) + embedding_parameters(shape) + norm_parameters(shape);
}

// A method with every setting decided and checked.
struct Setting {
  PublishedShape shape;
  ShapeMethod method;
  ShapeOptions options;

  // Groups of a row: weak columns stand outside of them.
  std::int64_t groups(const LinearShape& linear) const {
    if (options.group_size < 0) return 1;
    return divide_up(linear.columns - options.weak_columns, options.group_size);
  }
  bool learns(std::size_t kind) const {
    const auto& modules = options.target_modules;
    return modules.empty() ||
           std::find(modules.begin(), modules.end(), kLinearKinds[kind].module) != modules.end();
  }
  bool has_codes() const { return options.bits < 16; }
};

Status check_sizes(const Setting& s) {
  const ShapeOptions& o = s.options;
  const std::int64_t width = std::min(s.shape.hidden, s.shape.feed_forward);
  if (o.weak_columns < 0 || o.weak_columns >= width)
    return fail("{} weak columns: they must be fewer than the {} columns of {}'s narrowest layer",
                o.weak_columns, width, s.shape.name);
  if (o.group_size != -1 && (o.group_size < 32 || o.group_size % 32 != 0))
    return fail("groups of {} columns: give a multiple of 32, or -1 for one group per row",
                o.group_size);
  if (s.has_codes() && o.group_size > width - o.weak_columns)
    return fail("groups of {} columns do not fit the {} quantized columns of {}'s narrowest layer",
                o.group_size, width - o.weak_columns, s.shape.name);
  if (s.method.learns == Learns::kLowRank && (o.lora_r < 1 || o.lora_r > width))
    return fail("r = {}: it must be from 1 to {}, the columns of {}'s narrowest layer", o.lora_r,
                width, s.shape.name);
  // So that no sum below can overflow.
  constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;
  if (o.max_seq_length < 1 || o.batch_size < 1 || o.max_seq_length > kMostTokens / o.batch_size)
    return fail("{} sequences of {} tokens: there must be from 1 to 2^30 tokens", o.batch_size,
                o.max_seq_length);
  return {};
}

Result<Setting> decide(const PublishedShape& shape, const ShapeOptions& options) {
  const auto method = std::find_if(std::begin(kMethods), std::end(kMethods),
                                   [&](const auto& m) { return m.name == options.method; });
  if (method == std::end(kMethods)) {
    std::vector<std::string_view> names;
    for (const ShapeMethod& known : kMethods) names.push_back(known.name);
    return fail("method \"{}\" is not known here; there are {}", options.method,
                fmt::join(names, ", "));
  }
  TRIMPOT_TRY_VOID(check_target_modules(options.target_modules));
  Setting s{shape, *method, options};
  ShapeOptions& o = s.options;
  if (o.bits == 0) o.bits = method->bits.front();
  if (std::find(method->bits.begin(), method->bits.end(), o.bits) == method->bits.end())
    return fail("method {} has no {} bits; it has {}", method->name, o.bits,
                fmt::join(method->bits, ", "));
  const bool fixed_groups =
      !s.has_codes() || method->group_numbers == GroupNumbers::kDoubleQuantized;
  if (fixed_groups && o.group_size != 0 && o.group_size != method->group_size)
    return fail("method {} with {} bits takes no group size", method->name, o.bits);
  if (o.group_size == 0) o.group_size = method->group_size;
  if (method->weak_columns == 0 && o.weak_columns != 0)
    return fail("method {} has no weak columns; owq and qeft have", method->name);
  if (o.weak_columns == 0) o.weak_columns = method->weak_columns;
  if (method->lora_r == 0 && o.lora_r != 0)
    return fail("method {} has no low-rank path and takes no r", method->name);
  if (o.lora_r == 0) o.lora_r = method->lora_r;
  if (method->learns == Learns::kEverything && !o.target_modules.empty())
    return fail("method {} tunes everything and takes no target modules", method->name);
  if (o.target_modules.empty())
    o.target_modules.assign(method->modules.begin(), method->modules.end());
  TRIMPOT_TRY_VOID(check_sizes(s));
  return s;
}

// Bytes of what stands beside the codes of a linear layer.
std::int64_t group_bytes(const Setting& s, const LinearShape& linear) {
  const std::int64_t groups = linear.rows * s.groups(linear);
  switch (s.method.group_numbers) {
    case GroupNumbers::kPackedZeros:
      return groups * kHalfBytes + divide_up(groups * s.options.bits, 8);
    case GroupNumbers::kF16Zeros:
      return groups * 2 * kHalfBytes;
    case GroupNumbers::kDoubleQuantized:
      return groups + divide_up(groups, 256) * 4;
  }
  return 0;
}

std::vector<FitItem> storage_items(const Setting& s) {
  std::int64_t codes = 0, groups = 0, weak = 0;
  for (const LinearShape& linear : linears_of(s.shape)) {
    // Full width: QEFT's sizes come out with codes under the weak columns, too.
    codes += divide_up(linear.rows * linear.columns * s.options.bits, 8);
    if (s.has_codes()) groups += group_bytes(s, linear);
    weak += linear.rows * s.options.weak_columns * kHalfBytes;
  }
  std::vector<FitItem> items;
  const auto add = [&](std::string name, std::int64_t bytes, std::string why) {
    if (bytes > 0)
      items.push_back({std::move(name), static_cast<std::size_t>(bytes), std::move(why)});
  };
  const std::int64_t layers = s.shape.layers;
  add("linear layers", codes * layers,
      s.has_codes() ? fmt::format("codes of {} bits", s.options.bits) : "f16");
  add("scales, zero-points", groups * layers,
      s.options.group_size < 0 ? "one group per row"
                               : fmt::format("groups of {} columns", s.options.group_size));
  add("weak columns", weak * layers, fmt::format("{} per layer, f16", s.options.weak_columns));
  add("embedding and head", embedding_parameters(s.shape) * kHalfBytes, "f16");
  add("norms", norm_parameters(s.shape) * kHalfBytes, "f16");
  return items;
}

std::int64_t learnable_parameters(const Setting& s) {
  if (s.method.learns == Learns::kEverything) return all_parameters(s.shape);
  const auto linears = linears_of(s.shape);
  std::int64_t count = 0;
  for (std::size_t kind = 0; kind < linears.size(); ++kind) {
    if (!s.learns(kind)) continue;
    const LinearShape& linear = linears[kind];
    const std::int64_t inputs = s.method.pools_inputs ? s.groups(linear) : linear.columns;
    count += s.method.learns == Learns::kLowRank  ? s.options.lora_r * (inputs + linear.rows)
             : s.method.learns == Learns::kScales ? linear.rows * s.groups(linear)
                                                  : linear.rows * s.options.weak_columns;
  }
  return count * s.shape.layers;
}

// Values per token that a layer keeps for its backward pass.
std::int64_t kept_values(const Setting& s) {
  const std::int64_t h = s.shape.hidden, f = s.shape.feed_forward;
  // Inputs of both norms, q, k, v, attention's output (also o_proj's input), gate and up.
  std::int64_t values = 2 * h + h + 2 * kv_width(s.shape) + h + 2 * f;
  // Inputs of linear layers, as much of them as gradients of learned values need: those that
  // several layers read are kept once. QEFT: its weak columns alone (Section 3.3).
  const auto linears = linears_of(s.shape);
  const auto input = [&](std::size_t first, std::size_t last) {
    for (std::size_t kind = first; kind <= last; ++kind) {
      if (!s.learns(kind)) continue;
      if (s.method.learns == Learns::kWeakColumns) return std::int64_t{s.options.weak_columns};
      return s.method.pools_inputs ? s.groups(linears[kind]) : linears[kind].columns;
    }
    return std::int64_t{0};
  };
  values += input(kQ, kV) + input(kGate, kUp) + input(kDown, kDown);
  if (s.method.learns == Learns::kLowRank)
    for (std::size_t kind = 0; kind < linears.size(); ++kind)
      if (s.learns(kind)) values += s.options.lora_r;
  return values;
}

// `width`: bytes of a gradient, a moment or an activation, 2 or 4.
TrainingMemory training_memory(const Setting& s, const ShapeReport& report, std::int64_t width) {
  const bool low_rank = s.method.learns == Learns::kLowRank;
  const std::int64_t tokens = s.options.max_seq_length * s.options.batch_size;
  const std::int64_t inputs = s.shape.layers * tokens * s.shape.hidden * width;
  const std::int64_t layer = kept_values(s) * tokens * width;
  TrainingMemory memory;
  const auto add = [&](std::string name, std::int64_t bytes, std::string why) {
    memory.items.push_back({std::move(name), static_cast<std::size_t>(bytes), std::move(why)});
    memory.total += bytes;
  };
  add("weights", report.base_bytes, "as stored");
  // In 16 bits, all but a low-rank path's matrices are part of the weights.
  add("learned values", width == 4 || low_rank ? report.learnable * width : 0,
      low_rank ? "the low-rank path" : "f32 masters, if states have 32 bits");
  add("gradients", report.learnable * width, "of learned values");
  add("moments", 2 * report.learnable * width, "AdamW's two");
  add("layer inputs", inputs, "from which a layer is computed again");
  add("a layer's activations", layer, fmt::format("{} values per token", kept_values(s)));
  add("logits", tokens * s.shape.vocabulary * 4, "f32; their gradient takes their place");
  memory.total_without_checkpoints = memory.total - inputs - layer + s.shape.layers * layer;
  return memory;
}

}  // namespace

std::span<const PublishedShape> published_shapes() { return kShapes; }
std::span<const ShapeMethod> shape_methods() { return kMethods; }

Result<PublishedShape> find_shape(std::string_view name) {
  std::vector<std::string_view> names;
  for (const PublishedShape& shape : kShapes) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  return fail("shape \"{}\" is not known; there are {}", name, fmt::join(names, ", "));
}

Result<ShapeReport> fit_shape(const PublishedShape& shape, const ShapeOptions& options) {
  TRIMPOT_TRY(const Setting setting, decide(shape, options));
  ShapeReport report;
  report.options = setting.options;
  report.parameters = all_parameters(shape);
  report.learnable = learnable_parameters(setting);
  report.storage = storage_items(setting);
  for (const FitItem& item : report.storage)
    report.base_bytes += static_cast<std::int64_t>(item.bytes);
  report.adapter_bytes = report.learnable * kHalfBytes;
  report.states_16 = training_memory(setting, report, 2);
  report.states_32 = training_memory(setting, report, 4);
  return report;
}

Result<std::vector<TuningRow>> compare_tuning(const PublishedShape& shape,
                                              const ShapeOptions& options) {
  ShapeOptions full, lora, peqa;
  full.method = "full";
  lora.method = "lora";
  lora.lora_r = options.lora_r == 0 ? 4 : options.lora_r;
  lora.target_modules = options.target_modules;
  if (lora.target_modules.empty()) lora.target_modules = {"q_proj", "v_proj"};
  peqa.method = "peqa";
  peqa.bits = options.bits;
  peqa.group_size = options.group_size;
  TRIMPOT_TRY(const ShapeReport all, fit_shape(shape, full));
  TRIMPOT_TRY(const ShapeReport low_rank, fit_shape(shape, lora));
  TRIMPOT_TRY(const ShapeReport scales, fit_shape(shape, peqa));
  const std::int64_t dense = all.base_bytes, codes = scales.base_bytes;
  // 457 GB for full fine-tuning are 7 bytes for each of 65,285,660,672 parameters (456.9996): the
  // f16 weight and 5 more. The paper does not say how they divide; the other rows follow suit.
  constexpr std::int64_t kStateBytes = 5;
  const std::int64_t states = low_rank.learnable * (kHalfBytes + kStateBytes);
  std::vector<TuningRow> rows{
      {"Full fine-tuning", dense, all.learnable * kStateBytes, dense, dense, false, false, false},
      {"PEFT", dense, states, dense, low_rank.adapter_bytes, true, false, true},
      // Merged and then quantized: every task has codes of its own.
      {"PEFT+PTQ", dense, states, codes, codes, true, true, false},
      // The low-rank path stays beside the codes: a second product at run time.
      {"PTQ+PEFT", codes, states, codes, low_rank.adapter_bytes, true, false, true},
      {"PEQA", codes, scales.learnable * kStateBytes, codes, scales.adapter_bytes, true, true,
       true}};
  return rows;
}

}  // namespace trimpot
