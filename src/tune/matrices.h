// Methods that learn whole matrices beside or instead of the codes: weak columns (QEFT, OWQ's
// weak-column tuning), low-rank pairs (LoRA, QLoRA, QA-LoRA, Platypus), all weights (full
// fine-tuning), and all weights seen through their quantization (QAT). They differ in which matrix
// of a linear layer learns and how its masters are committed; all else is shared.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/examples.h"
#include "quantize/scheme.h"
#include "tune/parameters.h"

namespace trimpot {

// Weak columns of every target layer that has some. Errors: none has.
Result<std::unique_ptr<TuningMethod>> make_weak_column_method(
    Model& model, const std::vector<std::string>& target_modules);

// Adds k columns of differences, zero at first, at the given channels of layers without weak
// columns (QEFT on any file); `columns` by Model::linear index, empty: none for that layer.
void add_weak_columns(Model& model, const std::vector<std::vector<std::int32_t>>& columns);

// The k channels with the largest mean square of each target layer's inputs (the Hessian's
// diagonal) over examples of the tuning data, for add_weak_columns(). Errors: k above a width.
Result<std::vector<std::vector<std::int32_t>>> choose_weak_columns(
    Compute& compute, const Model& model, const ExampleSet& examples, std::int64_t k,
    const std::vector<std::string>& target_modules);

struct LowRankOptions {
  std::int64_t rank = 64;
  double alpha = 16;
  double dropout = 0;
  bool rank_stabilized = false;  // scale alpha / sqrt(r) instead of alpha / r (rsLoRA)
  bool pooled = false;           // QA-LoRA: A sees sums over the groups of the codes
  std::uint64_t seed = 0;  // A is Kaiming-uniform(sqrt 5), that is U(+-1/sqrt(columns)); B = 0
  std::vector<std::string> target_modules;
};
// Adds low-rank pairs to the target layers and tunes them. Errors: no target, a rank that is not
// positive or exceeds a layer's size; for QA-LoRA layers without groups or with weak columns.
Result<std::unique_ptr<TuningMethod>> make_low_rank_method(Model& model,
                                                           const LowRankOptions& options);

// All weights of the target layers. Codes become f16 weights first, masters are f32.
Result<std::unique_ptr<TuningMethod>> make_full_method(
    Model& model, ThreadTeam& team, const std::vector<std::string>& target_modules);

// Quantization-aware training: f32 masters of all weights; the forward pass sees them rounded to
// `scheme`, gradients pass straight through the rounding (straight-through estimator).
Result<std::unique_ptr<TuningMethod>> make_qat_method(
    Model& model, ThreadTeam& team, const Scheme& scheme,
    const std::vector<std::string>& target_modules);

// Whether a module is among the targets (empty: all).
bool is_target(const std::vector<std::string>& target_modules, std::size_t linear);

}  // namespace trimpot
