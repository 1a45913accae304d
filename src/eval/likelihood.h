// Log-likelihoods of many token sequences that share beginnings.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/session.h"

namespace trimpot {

// Tokens [scored, tokens.size()) are predicted from those before them; 1 <= scored < tokens.size().
struct LikelihoodRequest {
  std::vector<TokenId> tokens;
  std::int64_t scored = 1;
};

struct Likelihood {
  std::vector<double> log_probs;  // of the scored tokens, natural logarithm
  bool greedy = true;             // every scored token was the most likely one
  double sum() const;
};

using LikelihoodGroup = std::vector<LikelihoodRequest>;

// What the requests of a group have in common at their beginning is computed once, and so is what
// all groups have in common; several groups share each pass over the weights. A result depends on
// its request alone, bit for bit. `progress` is called with the number of groups that are done.
// Errors: a request with nothing to score, a token outside the vocabulary.
Result<std::vector<std::vector<Likelihood>>> log_likelihoods(
    Compute& compute, const Model& model, std::span<const LikelihoodGroup> groups,
    const std::function<void(std::int64_t done)>& progress);

// The tokens that all sequences begin with, at most `most`.
std::int64_t common_prefix(std::span<const LikelihoodRequest> requests, std::int64_t most);

}  // namespace trimpot
