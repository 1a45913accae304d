// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/forward.h"

namespace trimpot {

struct SamplerOptions {
  float temperature = 0.8f;  // 0: always the most likely token
  std::int32_t top_k = 40;   // only the k most likely tokens; 0: all
  float top_p = 0.95f;       // the fewest tokens whose probabilities reach p; 1: all
  float min_p = 0.05f;       // tokens at least min_p as likely as the most likely one; 0: all
  std::uint64_t seed = 0;
};

// The most likely token; the lowest id among equals.
TokenId greedy(std::span<const float> logits);

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options) {}
  // Filters in the order top-k, top-p, min-p (on the untempered probabilities), then draws at
  // the given temperature. The n-th draw depends on the seed and n alone.
  TokenId sample(std::span<const float> logits);

 private:
  SamplerOptions options_;
  std::uint64_t draws_ = 0;
  std::vector<std::pair<float, TokenId>> candidates_;
};

}  // namespace trimpot
