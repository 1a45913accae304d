// Perplexity of a text under a model, by the two protocols in use.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"
#include "model/forward.h"

namespace trimpot {

struct PerplexityOptions {
  std::int64_t context = 512;  // tokens of a window
  std::int64_t chunks = 0;     // windows to score; 0: all
  // false: llama.cpp's protocol, only the second half of each window is scored;
  // true: the papers' protocol (GPTQ's code), all predictions of each window are scored.
  bool score_all = false;
  CacheType cache = CacheType::kFloat;
  std::int32_t bos = -1;  // put in place of each window's first token, as llama.cpp does; -1: none
};

struct PerplexityResult {
  double perplexity = 0;
  double error = 0;         // one standard error of the perplexity, as llama.cpp computes it
  std::int64_t tokens = 0;  // predictions that were scored
  std::int64_t chunks = 0;
};

// Windows are consecutive and do not overlap; a last, shorter one is left out. `progress` is called
// after each window with the result so far. Errors: fewer tokens than one window (llama.cpp's
// protocol asks for two), a window longer than the model's context.
Result<PerplexityResult> perplexity(
    Compute& compute, const Model& model, std::span<const TokenId> tokens,
    const PerplexityOptions& options,
    const std::function<void(const PerplexityResult&, std::int64_t total_chunks)>& progress);

}  // namespace trimpot
