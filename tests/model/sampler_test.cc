#include "model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/rng.h"

namespace trimpot {
namespace {

constexpr std::size_t kSizes[] = {1, 2, 15, 16, 17, 18, 40, 41, 100, 1000};

// `levels` different values, so that equals are common if these are few.
std::vector<float> some_logits(std::size_t size, std::uint64_t levels, std::uint64_t seed) {
  const CounterRng random(seed, size);
  std::vector<float> logits(size);
  for (std::size_t i = 0; i < size; ++i)
    logits[i] = 8 * static_cast<float>(random.below(i, levels)) / static_cast<float>(levels) - 5;
  return logits;
}

std::vector<TokenId> sorted_tokens(std::span<const float> logits) {
  std::vector<TokenId> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  std::stable_sort(tokens.begin(), tokens.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  return tokens;
}

// The probability of each token that may be drawn, as the options' comments define it.
std::map<TokenId, double> probabilities(std::span<const float> logits,
                                        const SamplerOptions& options) {
  std::vector<TokenId> tokens = sorted_tokens(logits);
  if (options.top_k > 0 && tokens.size() > static_cast<std::size_t>(options.top_k))
    tokens.resize(static_cast<std::size_t>(options.top_k));
  const auto weight = [&](TokenId token, double temperature) {
    return std::exp((double{logits[token]} - double{logits[tokens[0]]}) / temperature);
  };
  double total = 0;
  for (const TokenId token : tokens) total += weight(token, 1);
  double reached = 0;
  std::map<TokenId, double> kept;
  for (const TokenId token : tokens) {
    if (!kept.empty() && (reached >= options.top_p || weight(token, 1) < options.min_p)) break;
    reached += weight(token, 1) / total;
    kept[token] = weight(token, options.temperature);
  }
  double sum = 0;
  for (const auto& [token, value] : kept) sum += value;
  for (auto& [token, value] : kept) value /= sum;
  return kept;
}

TEST(Sampler, GreedyIsTheFirstOfTheLargest) {
  for (const std::size_t size : kSizes)
    for (const std::uint64_t levels : {2, 5, 1000})
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const std::vector<float> logits = some_logits(size, levels, seed);
        EXPECT_EQ(greedy(logits), sorted_tokens(logits)[0]) << size << " " << levels << " " << seed;
      }
}

// By Bernstein's inequality a count of mean m is further away than this from it once in e^20 / 2
// times: some 40,000 counts are looked at.
double bound(double mean) { return 20.0 / 3 + std::sqrt(400.0 / 9 + 40 * mean); }

// Frequencies of many draws, and nothing that is filtered out.
TEST(Sampler, DrawsWhatTheFiltersLeaveAsOftenAsTheyShould) {
  constexpr int kDraws = 3000;
  SamplerOptions options;
  for (const std::size_t size : kSizes)
    for (const std::uint64_t levels : {3, 1000})
      for (const std::int32_t top_k : {0, 1, 7, 16, 40})
        for (const bool filtered : {false, true}) {
          options.top_k = top_k;
          options.top_p = filtered ? 0.8f : 1.0f;
          options.min_p = filtered ? 0.1f : 0.0f;
          options.temperature = filtered ? 1.3f : 0.7f;
          options.seed = size + levels;
          const std::vector<float> logits = some_logits(size, levels, 3);
          const std::map<TokenId, double> expected = probabilities(logits, options);
          std::map<TokenId, int> drawn;
          Sampler sampler(options);
          for (int i = 0; i < kDraws; ++i) ++drawn[sampler.sample(logits)];
          for (const auto& [token, count] : drawn)
            ASSERT_TRUE(expected.contains(token)) << token << " of " << size << ", top-k " << top_k;
          for (const auto& [token, p] : expected)
            EXPECT_NEAR(drawn[token], kDraws * p, bound(kDraws * p))
                << token << " of " << size << ", top-k " << top_k;
        }
}

TEST(Sampler, TheSameSeedDrawsTheSameTokens) {
  const std::vector<float> logits = some_logits(1000, 1000, 1);
  SamplerOptions options;
  std::vector<TokenId> drawn[2];
  for (auto& tokens : drawn) {
    Sampler sampler(options);
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler.sample(logits));
  }
  EXPECT_EQ(drawn[0], drawn[1]);
  options.seed = 1;
  Sampler other(options);
  std::vector<TokenId> different;
  for (int i = 0; i < 50; ++i) different.push_back(other.sample(logits));
  EXPECT_NE(drawn[0], different);
}

}  // namespace
}  // namespace trimpot
