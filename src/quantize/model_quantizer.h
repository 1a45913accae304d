// Quantizes a whole model layer by layer: each layer sees the inputs that the layers before it,
// already quantized, give it. In memory are one layer's weights and one calibration sample; hidden
// states wait in a temporary file, results go to the output as they come. So a model larger than
// memory can be done.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/gguf/gguf.h"
#include "kernels/ops.h"
#include "model/forward.h"
#include "quantize/recipe.h"

namespace trimpot {

// How embedding and head are stored.
struct HeadFormat {
  enum Kind : std::uint8_t { kAsInput, kTensor, kGrouped } kind = kAsInput;
  ElementType type = ElementType::kF16;  // kTensor
  Scheme scheme;                         // kGrouped
};
// "keep", "f32", "f16", "bf16", "q8_0", "q8", "q4" or "q3" (grouped with `group_size`).
Result<HeadFormat> head_format_of(const std::string& name, std::int64_t group_size);

struct QuantizeOptions {
  Recipe recipe;
  HeadFormat head;
  std::vector<std::vector<TokenId>> calibration;  // windows of equal length
  std::string weak_columns_from;                  // a file whose weak columns are taken
};

struct QuantizeReport {
  std::vector<std::int32_t> global_columns;  // of the residual axis, ascending
  double sensitivity_seconds = 0, statistics_seconds = 0, layers_seconds = 0, seconds = 0;
  std::size_t weights = 0;       // quantized
  std::size_t tunable_weak = 0;  // f16 numbers in weak columns
};

// `done` in [0, 1].
using QuantizeProgress = std::function<void(double done, const std::string& what)>;

// Errors: whatever reading and writing say; recipes that fit no layer; a calibration text that is
// too short; layers whose inputs are all zero. Nothing remains of the output then.
Result<QuantizeReport> quantize_model(Compute& compute, const gguf::File& in,
                                      const std::string& out, const QuantizeOptions& options,
                                      const QuantizeProgress& progress);

}  // namespace trimpot
