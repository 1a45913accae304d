#include "serve/scores.h"

#include <algorithm>

namespace trimpot::serve {

std::vector<TokenId> likeliest(std::span<const float> logits, int count) {
  std::vector<TokenId> best;
  const auto likelier = [&](TokenId a, TokenId b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  for (std::size_t i = 0; i < logits.size() && count > 0; ++i) {
    const auto id = static_cast<TokenId>(i);
    const bool full = best.size() == static_cast<std::size_t>(count);
    // Ids rise, so an equal one never displaces the last.
    if (full && !(logits[i] > logits[static_cast<std::size_t>(best.back())])) continue;
    if (full) best.pop_back();
    best.insert(std::upper_bound(best.begin(), best.end(), id, likelier), id);
  }
  return best;
}

TokenScore score_token(const Kernels& kernels, std::span<const float> logits, std::size_t tokens,
                       TokenId token, int top) {
  const double log_sum =
      double{kernels.log_sum_exp(logits.data(), static_cast<std::int64_t>(logits.size()))};
  const auto logprob = [&](TokenId id) {
    return double{logits[static_cast<std::size_t>(id)]} - log_sum;
  };
  TokenScore score{token, logprob(token), {}};
  for (const TokenId id : likeliest(logits.first(tokens), top))
    score.top.emplace_back(id, logprob(id));
  return score;
}

}  // namespace trimpot::serve
