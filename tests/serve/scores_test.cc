#include "serve/scores.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/random.h"

namespace trimpot::serve {
namespace {

TEST(Scores, AreLogarithmsOfTheSoftmax) {
  RandomStream random(3);
  for (const Kernels* kernels : usable_kernels())
    for (const std::int64_t count : {1, 7, 45, 1000}) {
      const std::vector<float> logits = random.normals(count, 4.0f);
      double sum = 0;
      for (const float logit : logits) sum += std::exp(double{logit});
      const auto token = static_cast<TokenId>(random.below(count));
      const TokenScore score = score_token(*kernels, logits, logits.size(), token, 5);
      EXPECT_NEAR(score.logprob, logits[static_cast<std::size_t>(token)] - std::log(sum), 1e-5);
      ASSERT_EQ(score.top.size(), std::min<std::size_t>(5, logits.size()));
      for (std::size_t i = 1; i < score.top.size(); ++i)
        EXPECT_GE(score.top[i - 1].second, score.top[i].second);
      // lm-eval compares these with ==.
      const TokenId best = score.top[0].first;
      EXPECT_EQ(score_token(*kernels, logits, logits.size(), best, 1).logprob, score.top[0].second);
    }
}

TEST(Scores, LikeliestAreThoseOfAFullSort) {
  RandomStream random(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits;
    for (int i = 0; i < 40; ++i) logits.push_back(static_cast<float>(random.below(8)));  // ties
    std::vector<TokenId> sorted(logits.size());
    for (std::size_t i = 0; i < sorted.size(); ++i) sorted[i] = static_cast<TokenId>(i);
    std::stable_sort(sorted.begin(), sorted.end(), [&](TokenId a, TokenId b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    const int count = static_cast<int>(random.below(45));
    sorted.resize(std::min<std::size_t>(sorted.size(), static_cast<std::size_t>(count)));
    EXPECT_EQ(likeliest(logits, count), sorted);
  }
}

}  // namespace
}  // namespace trimpot::serve
