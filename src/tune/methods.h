// Every tuning method by its name, with the hyper-parameters it is known to work with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "optim/schedule.h"
#include "quantize/scheme.h"
#include "tune/matrices.h"
#include "tune/scales.h"

namespace trimpot {

// What a run does unless it is told otherwise. Methods on models of 3 billion parameters and more
// take the papers' values (QEFT, Table 4, for 7B to 70B; alpha is 16, which the table leaves out);
// below that their rates are far too low, and the values are those for a model of 135 million
// (docs/methods.md says which of them were measured).
struct TuningPreset {
  double learning_rate = 1e-3;
  ScheduleKind schedule = ScheduleKind::kConstant;
  double warmup_ratio = 0;
  std::uint64_t warmup_steps = 0;
  double max_grad_norm = 0.3;
  std::int64_t rank = 64;
  double alpha = 16;
  double dropout = 0;
  std::vector<std::string> target_modules;  // empty: all
};

struct MethodOptions {
  std::string method = "peqa";
  ScaleGranularity granularity = ScaleGranularity::kGroup;
  LowRankOptions low_rank;
  Scheme scheme;                                       // qat
  std::vector<std::vector<std::int32_t>> new_columns;  // qeft on files without weak columns
  std::vector<std::string> target_modules;
};

// Names of all methods, for help and messages.
const std::vector<std::string>& method_names();
// Whether the method adds low-rank pairs.
bool is_low_rank(const std::string& method);

// `parameters`: of the whole model. `weak_columns`: k of the file or of the run. Errors: a name
// that is no method.
Result<TuningPreset> preset_of(const std::string& method, std::size_t parameters,
                               std::int64_t weak_columns);

// Prepares the model (low-rank pairs, columns of differences, dense weights) and hands out what
// learns. Errors: what the method cannot do with this model, with the alternatives.
Result<std::unique_ptr<TuningMethod>> make_method(Compute& compute, Model& model,
                                                  const MethodOptions& options);

// Why the model that make_method() prepared cannot be written as a .gguf of the base's kind; empty
// if it can.
std::string why_not_gguf(const Model& model, const MethodOptions& options);

}  // namespace trimpot
