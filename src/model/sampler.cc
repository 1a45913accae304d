#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"

namespace trimpot {

TokenId greedy(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (options_.temperature <= 0.0f) return greedy(logits);
  candidates_.clear();
  for (std::size_t id = 0; id < logits.size(); ++id)
    candidates_.emplace_back(logits[id], static_cast<TokenId>(id));
  const auto likelier = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  const std::size_t keep = options_.top_k > 0
                               ? std::min<std::size_t>(options_.top_k, candidates_.size())
                               : candidates_.size();
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(keep),
                    candidates_.end(), likelier);
  candidates_.resize(keep);
  const float highest = candidates_[0].first;
  double total = 0;
  for (const auto& [logit, id] : candidates_) total += std::exp(double{logit} - double{highest});
  std::size_t count = 0;
  double reached = 0;
  for (const auto& [logit, id] : candidates_) {
    const double relative = std::exp(double{logit} - double{highest});
    if (count > 0 && (reached >= double{options_.top_p} || relative < double{options_.min_p}))
      break;
    reached += relative / total;
    ++count;
  }
  candidates_.resize(count);
  double sum = 0;
  for (auto& [logit, id] : candidates_) {
    logit = static_cast<float>(
        std::exp((double{logit} - double{highest}) / double{options_.temperature}));
    sum += double{logit};
  }
  double left = CounterRng(options_.seed, 1).uniform(draws_++) * sum;
  for (const auto& [weight, id] : candidates_) {
    left -= double{weight};
    if (left < 0) return id;
  }
  return candidates_.back().second;
}

}  // namespace trimpot
