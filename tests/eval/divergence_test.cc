// KL divergence from a teacher against its definition, on toy models.
#include "eval/divergence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "eval/perplexity.h"
#include "io/test_files.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

constexpr std::int64_t kVocabulary = 45;

class DivergenceTest : public testing::Test {
 protected:
  void SetUp() override {
    model_ = load(1, kVocabulary);
    teacher_ = load(2, kVocabulary);
    RandomStream random(3);
    for (int i = 0; i < 150; ++i)
      tokens_.push_back(static_cast<TokenId>(random.below(kVocabulary)));
  }
  std::unique_ptr<Model> load(std::uint64_t seed, std::int64_t vocabulary) {
    ToyOptions options;
    options.seed = seed;
    options.vocabulary = vocabulary;
    options.gain = 2;
    auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    EXPECT_TRUE(toy) << (toy ? "" : toy.error().message);
    return toy ? std::move(toy->model) : nullptr;
  }
  // log p of every token after each position of a window, [rows][vocabulary].
  std::vector<std::vector<double>> predictions(const Model& model, std::span<const TokenId> window,
                                               std::int64_t first) {
    Session session(compute_, model, 64);
    std::vector<std::vector<double>> rows;
    EXPECT_TRUE(session.append_all(window.first(window.size() - 1), first,
                                   [&](std::int64_t, const float* logits) {
                                     std::vector<double> row(logits, logits + kVocabulary);
                                     double sum = 0;
                                     for (const double logit : row) sum += std::exp(logit);
                                     for (double& value : row) value -= std::log(sum);
                                     rows.push_back(std::move(row));
                                   }));
    return rows;
  }
  const TempFolder folder_;
  Compute compute_{*usable_kernels().back(), Precision::kDefault, 2};
  std::unique_ptr<Model> model_, teacher_;
  std::vector<TokenId> tokens_;
};

TEST_F(DivergenceTest, ItsDefinition) {
  DivergenceOptions options;
  options.context = 50;
  const auto result = divergence(compute_, *model_, *teacher_, tokens_, options, nullptr);
  ASSERT_TRUE(result) << result.error().message;
  std::vector<double> kl, same, loss;
  for (std::size_t begin = 0; begin + 50 <= tokens_.size(); begin += 50) {
    const auto window = std::span(tokens_).subspan(begin, 50);
    const auto q = predictions(*model_, window, 25), p = predictions(*teacher_, window, 25);
    ASSERT_EQ(q.size(), 24u);
    for (std::size_t row = 0; row < q.size(); ++row) {
      double sum = 0;
      for (std::size_t i = 0; i < kVocabulary; ++i)
        sum += std::exp(p[row][i]) * (p[row][i] - q[row][i]);
      kl.push_back(sum);
      same.push_back(std::max_element(p[row].begin(), p[row].end()) - p[row].begin() ==
                     std::max_element(q[row].begin(), q[row].end()) - q[row].begin());
      loss.push_back(-p[row][static_cast<std::size_t>(window[26 + row])]);
    }
  }
  ASSERT_EQ(result->tokens, 72);
  EXPECT_NEAR(result->mean.value, mean_metric("", kl).value, 1e-6);
  EXPECT_NEAR(result->mean.error, mean_metric("", kl).error, 1e-6);
  EXPECT_NEAR(result->same_top.value, mean_metric("", same).value, 1e-12);
  EXPECT_NEAR(result->teacher_log_perplexity.value, mean_metric("", loss).value, 1e-6);
  std::sort(kl.begin(), kl.end());
  EXPECT_NEAR(result->median, (kl[35] + kl[36]) / 2, 1e-6);
  EXPECT_NEAR(result->largest, kl.back(), 1e-6);
  EXPECT_GE(result->percentile_99, result->percentile_90);
  EXPECT_GT(result->mean.value, 0.01);  // other weights
}

TEST_F(DivergenceTest, OfAModelFromItself) {
  DivergenceOptions options;
  options.context = 40;
  options.chunks = 2;
  options.bos = 3;
  const auto result = divergence(compute_, *model_, *model_, tokens_, options, nullptr);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->largest, 0);
  EXPECT_EQ(result->same_top.value, 1);
  EXPECT_EQ(result->chunks, 2);
  PerplexityOptions same;
  same.context = 40;
  same.chunks = 2;
  same.bos = 3;
  const auto ppl = perplexity(compute_, *model_, tokens_, same, nullptr);
  ASSERT_TRUE(ppl);
  EXPECT_EQ(ppl->tokens, result->tokens);
  EXPECT_NEAR(std::log(ppl->perplexity), result->log_perplexity.value, 1e-5);
}

TEST_F(DivergenceTest, Errors) {
  const auto other = load(1, kVocabulary - 1);
  DivergenceOptions options;
  options.context = 40;
  EXPECT_FALSE(divergence(compute_, *model_, *other, tokens_, options, nullptr));
  options.context = 151;
  EXPECT_FALSE(divergence(compute_, *model_, *teacher_, tokens_, options, nullptr));
  options.context = 257;
  EXPECT_FALSE(divergence(compute_, *model_, *teacher_, tokens_, options, nullptr));
  options.context = 2;
  EXPECT_FALSE(divergence(compute_, *model_, *teacher_, tokens_, options, nullptr));
}

}  // namespace
}  // namespace trimpot
