// How far a model's predictions are from a teacher's on a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"
#include "eval/choice.h"
#include "model/session.h"

namespace trimpot {

struct DivergenceOptions {
  std::int64_t context = 512;  // tokens of a window
  std::int64_t chunks = 0;     // windows; 0: all
  std::int32_t bos = -1;       // put in place of each window's first token; -1: none
};

struct DivergenceResult {
  Metric mean;  // KL(teacher || model) of a prediction, in nats
  double median = 0, percentile_90 = 0, percentile_99 = 0, largest = 0;
  Metric same_top;        // share of predictions with the same most likely token
  Metric log_perplexity;  // of the model
  Metric teacher_log_perplexity;
  std::int64_t tokens = 0, chunks = 0;
};

// The second half of each window is scored, as in perplexity() and in llama.cpp's --kl-divergence.
// Both models read with `compute`. `progress` is called after each window with the mean so far.
// Errors: vocabularies of different sizes, a window that is too short or longer than a context, a
// text shorter than a window.
Result<DivergenceResult> divergence(
    Compute& compute, const Model& model, const Model& teacher, std::span<const TokenId> tokens,
    const DivergenceOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total, double mean)>& progress);

}  // namespace trimpot
