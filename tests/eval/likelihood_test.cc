// Many sequences that share beginnings, against each of them read alone from its first token.
#include "eval/likelihood.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "io/test_files.h"
#include "model/sampler.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

constexpr std::int64_t kVocabulary = 45;

class LikelihoodTest : public testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    ToyOptions options;
    options.vocabulary = kVocabulary;
    options.gain = 3;  // predictions far from uniform
    auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
  }

  Likelihood alone(const LikelihoodRequest& request) const {
    Compute compute(*usable_kernels().back(), GetParam(), 1);
    const auto size = static_cast<std::int64_t>(request.tokens.size());
    Session session(compute, *model_, size);
    Likelihood result;
    const auto status = session.append_all(
        std::span(request.tokens).first(request.tokens.size() - 1), request.scored - 1,
        [&](std::int64_t row, const float* logits) {
          const TokenId next = request.tokens[static_cast<std::size_t>(row) + 1];
          result.log_probs.push_back(
              static_cast<double>(logits[next]) -
              static_cast<double>(compute.kernels.log_sum_exp(logits, kVocabulary)));
          result.greedy = result.greedy && greedy(std::span(logits, kVocabulary)) == next;
        });
    EXPECT_TRUE(status);
    return result;
  }

  void expect_same(const std::vector<LikelihoodGroup>& groups, int threads) const {
    Compute compute(*usable_kernels().back(), GetParam(), threads);
    std::int64_t last_done = 0;
    const auto results = log_likelihoods(compute, *model_, groups, [&](std::int64_t done) {
      EXPECT_GT(done, last_done);
      last_done = done;
    });
    ASSERT_TRUE(results) << results.error().message;
    EXPECT_EQ(last_done, static_cast<std::int64_t>(groups.size()));
    for (std::size_t g = 0; g < groups.size(); ++g)
      for (std::size_t i = 0; i < groups[g].size(); ++i) {
        const Likelihood want = alone(groups[g][i]);
        const Likelihood& got = (*results)[g][i];
        ASSERT_TRUE(same_bits(got.log_probs, want.log_probs)) << "group " << g << ", " << i;
        EXPECT_EQ(got.greedy, want.greedy);
      }
  }

  std::vector<TokenId> random_tokens(std::int64_t count) {
    std::vector<TokenId> tokens;
    for (std::int64_t i = 0; i < count; ++i)
      tokens.push_back(static_cast<TokenId>(random_.below(kVocabulary)));
    return tokens;
  }
  // `common` and then `own` random tokens, of which the last `scored` are asked for.
  LikelihoodRequest request(std::vector<TokenId> common, std::int64_t own, std::int64_t scored) {
    const std::vector<TokenId> rest = random_tokens(own);
    common.insert(common.end(), rest.begin(), rest.end());
    const auto size = static_cast<std::int64_t>(common.size());
    return {std::move(common), size - scored};
  }

  const TempFolder folder_;
  std::unique_ptr<Model> model_;
  RandomStream random_{7};
};

TEST_P(LikelihoodTest, GroupsOfEveryShape) {
  const std::vector<TokenId> text = random_tokens(30);
  std::vector<LikelihoodGroup> groups;
  groups.push_back({request(text, 5, 5), request(text, 9, 9), request(text, 1, 1)});
  groups.push_back({request(text, 1, 1), request(text, 1, 1)});    // nothing left behind the prefix
  groups.push_back({request(text, 12, 4), request(text, 11, 4)});  // contexts differ
  LikelihoodRequest longer = groups[0][1];
  LikelihoodRequest shorter{{longer.tokens.begin(), longer.tokens.end() - 3}, longer.scored};
  groups.push_back({longer, shorter});                             // one is the begin of the other
  groups.push_back({longer, longer});                              // equal
  groups.push_back({request(text, 8, 20), request(text, 7, 19)});  // scored inside the common part
  groups.push_back({request(text, 6, 3)});                         // alone
  groups.push_back({request({}, 12, 11), request({}, 9, 8)});      // nothing in common
  expect_same(groups, 2);
  for (const LikelihoodGroup& group : groups) expect_same({group}, 1);
}

TEST_P(LikelihoodTest, MoreGroupsThanSequencesBehindOneExample) {
  const std::vector<TokenId> example = random_tokens(25);
  std::vector<LikelihoodGroup> groups;
  for (int g = 0; g < 30; ++g) {
    const LikelihoodRequest context = request(example, 10 + g % 7, 1);
    LikelihoodGroup group;
    for (int i = 0; i < 2 + g % 4; ++i)
      group.push_back(request(context.tokens, 3 + (g + i) % 5, 3 + (g + i) % 5));
    groups.push_back(std::move(group));
  }
  expect_same(groups, 2);
}

TEST_P(LikelihoodTest, LongerThanAStep) {
  const std::vector<TokenId> text = random_tokens(1030);
  expect_same({{request(text, 3, 3)}, {request({}, 20, 5), request({}, 1040, 30)}}, 2);
}

TEST_P(LikelihoodTest, GreedyEndings) {
  // What the model itself would say, and the same with another last token.
  LikelihoodRequest said = request({}, 10, 1);
  said.tokens.pop_back();
  Compute compute(*usable_kernels().back(), GetParam(), 1);
  Session session(compute, *model_, 20);
  std::vector<float> logits(kVocabulary);
  ASSERT_TRUE(session.append(said.tokens, logits.data()));
  for (int i = 0; i < 4; ++i) {
    const TokenId token = greedy(logits);
    said.tokens.push_back(token);
    ASSERT_TRUE(session.append({&token, 1}, logits.data()));
  }
  LikelihoodRequest other = said;
  other.tokens.back() = (other.tokens.back() + 1) % kVocabulary;
  const LikelihoodGroup group{said, other};
  const auto results = log_likelihoods(compute, *model_, {&group, 1}, nullptr);
  ASSERT_TRUE(results);
  EXPECT_TRUE((*results)[0][0].greedy);
  EXPECT_FALSE((*results)[0][1].greedy);
}

TEST_P(LikelihoodTest, Errors) {
  Compute compute(*usable_kernels().back(), GetParam(), 1);
  const auto fails = [&](LikelihoodRequest request) {
    const LikelihoodGroup group{std::move(request)};
    return !log_likelihoods(compute, *model_, {&group, 1}, nullptr);
  };
  EXPECT_TRUE(fails({{1, 2, 3}, 0}));
  EXPECT_TRUE(fails({{1, 2, 3}, 3}));
  EXPECT_TRUE(fails({{1, 2, static_cast<TokenId>(kVocabulary)}, 1}));
  EXPECT_TRUE(fails({{1, -1, 2}, 1}));
  EXPECT_FALSE(fails({{1, 2, 3}, 1}));
  const LikelihoodGroup empty;
  EXPECT_FALSE(log_likelihoods(compute, *model_, {&empty, 1}, nullptr));
}

INSTANTIATE_TEST_SUITE_P(Precisions, LikelihoodTest,
                         testing::Values(Precision::kDefault, Precision::kF32));

}  // namespace
}  // namespace trimpot
