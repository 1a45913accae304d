#include "model/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"

namespace trimpot {

namespace {

// Logits that are compared before a branch: 49152 of them one by one took 4 % of a token's time.
constexpr std::size_t kAtOnce = 16;

bool any_above(const float* logits, float bound) {
  int above = 0;
  for (std::size_t i = 0; i < kAtOnce; ++i) above |= logits[i] > bound ? 1 : 0;
  return above != 0;
}

using Candidate = std::pair<float, TokenId>;
bool likelier(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// The `count` most likely tokens, the most likely first.
void find_likeliest(std::span<const float> logits, std::size_t count,
                    std::vector<Candidate>& likeliest) {
  likeliest.clear();
  for (std::size_t id = 0; id < count; ++id)
    likeliest.emplace_back(logits[id], static_cast<TokenId>(id));
  // A heap, whose first is the least likely. Among equals the earlier ones stay.
  std::make_heap(likeliest.begin(), likeliest.end(), likelier);
  for (std::size_t id = count; id < logits.size();) {
    if (id + kAtOnce <= logits.size() && !any_above(&logits[id], likeliest.front().first)) {
      id += kAtOnce;
      continue;
    }
    for (const std::size_t end = std::min(id + kAtOnce, logits.size()); id < end; ++id) {
      if (!(logits[id] > likeliest.front().first)) continue;
      std::pop_heap(likeliest.begin(), likeliest.end(), likelier);
      likeliest.back() = {logits[id], static_cast<TokenId>(id)};
      std::push_heap(likeliest.begin(), likeliest.end(), likelier);
    }
  }
  std::sort_heap(likeliest.begin(), likeliest.end(), likelier);
}

}  // namespace

TokenId greedy(std::span<const float> logits) {
  std::vector<Candidate> likeliest;
  find_likeliest(logits, 1, likeliest);
  return likeliest[0].second;
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (options_.temperature <= 0.0f) return greedy(logits);
  const std::size_t keep =
      options_.top_k > 0 ? std::min<std::size_t>(options_.top_k, logits.size()) : logits.size();
  find_likeliest(logits, keep, candidates_);
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
