// Scores of multiple choice on a toy model whose tokens are bytes, against what reading each text
// alone gives.
#include "eval/choice.h"

#include <gtest/gtest.h>

#include <cmath>

#include "eval/toy_text.h"

namespace trimpot {
namespace {

class ChoiceTest : public ToyText {
 protected:
  ChoiceTest() : ToyText(160) {}

  // log P(byte | what comes before) for the bytes of `text` from `begin` on.
  std::vector<double> log_probs(const std::string& text, std::size_t begin) const {
    Compute compute(*usable_kernels().back(), Precision::kDefault, 1);
    Session session(compute, *model_, 200);
    std::vector<TokenId> tokens;
    for (const char c : text) tokens.push_back(kToyFirstByte + static_cast<unsigned char>(c));
    std::vector<double> values;
    EXPECT_TRUE(session.append_all(
        tokens, static_cast<std::int64_t>(begin) - 1, [&](std::int64_t row, const float* logits) {
          if (static_cast<std::size_t>(row) + 1 == tokens.size()) return;
          double sum = 0;
          for (std::int64_t i = 0; i < kToyVocabulary; ++i)
            sum += std::exp(static_cast<double>(logits[i]));
          values.push_back(static_cast<double>(logits[tokens[static_cast<std::size_t>(row) + 1]]) -
                           std::log(sum));
        }));
    return values;
  }

  static ChoiceItem item(std::vector<std::string> contexts, std::vector<std::string> endings,
                         std::vector<std::uint8_t> right) {
    ChoiceItem result;
    result.contexts = std::move(contexts);
    result.choices = endings;
    result.endings = std::move(endings);
    result.right = std::move(right);
    return result;
  }

  Result<ChoiceResult> score(ChoiceTask task, const ChoiceFile& file, ChoiceOptions options = {},
                             const ChoiceFile* examples = nullptr) const {
    Compute compute(*usable_kernels().back(), Precision::kDefault, 2);
    return score_choices(compute, *model_, *tokenizer_, task, "d.jsonl", file, examples, options,
                         nullptr);
  }

  static double sum(const std::vector<double>& values, std::size_t from = 0) {
    double total = 0;
    for (std::size_t i = from; i < values.size(); ++i) total += values[i];
    return total;
  }
};

TEST_F(ChoiceTest, LikelihoodsAndBothNorms) {
  ChoiceFile file;
  file.header = "head ";
  // "abc" and "abd" share " ab"; the last context ends in blanks, which belong to the ending; one
  // ending has more bytes than characters.
  file.items = {item({"what is it?"}, {"abc", "abde", "abd\xc3\xa9"}, {0, 1, 0}),
                item({"and now  "}, {"x", "yy"}, {1, 0})};
  ChoiceOptions options;
  const auto chars = score(ChoiceTask::kHellaswag, file, options);
  options.norm = ChoiceNorm::kTokens;
  const auto tokens = score(ChoiceTask::kHellaswag, file, options);
  ASSERT_TRUE(chars && tokens);
  const std::string first = "head what is it?", second = "head and now";
  const std::vector<std::size_t> characters{3, 4, 4};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto want = log_probs(first + " " + file.items[0].endings[i], first.size());
    EXPECT_NEAR(chars->answers[0].log_likelihoods[i], sum(want), 1e-4);
    EXPECT_NEAR(chars->answers[0].normalized[i], sum(want) / static_cast<double>(characters[i]),
                1e-4);
    // Behind " ab", which all have.
    EXPECT_NEAR(tokens->answers[0].normalized[i],
                sum(want, 3) / static_cast<double>(want.size() - 3), 1e-4);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    const auto want = log_probs(second + "   " + file.items[1].endings[i], second.size());
    EXPECT_NEAR(chars->answers[1].log_likelihoods[i], sum(want), 1e-4);
  }
  // Accuracies follow from the numbers.
  ASSERT_EQ(chars->metrics.size(), 2u);
  double right = 0;
  for (std::size_t k = 0; k < 2; ++k) {
    const ChoiceAnswer& answer = chars->answers[k];
    const auto best = std::max_element(answer.normalized.begin(), answer.normalized.end()) -
                      answer.normalized.begin();
    EXPECT_EQ(answer.picked_normalized, static_cast<std::size_t>(best));
    right += file.items[k].right[static_cast<std::size_t>(best)];
  }
  EXPECT_EQ(chars->metrics[1].name, "acc_norm");
  EXPECT_EQ(chars->metrics[1].value, right / 2);
}

TEST_F(ChoiceTest, TwoContextsOneEnding) {
  ChoiceFile file;
  file.items = {item({"a cat", "a dog"}, {"ran off.", "ran off."}, {0, 1})};
  const auto result = score(ChoiceTask::kWinogrande, file);
  ASSERT_TRUE(result);
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string& context = file.items[0].contexts[i];
    EXPECT_NEAR(result->answers[0].log_likelihoods[i],
                sum(log_probs(context + " ran off.", context.size())), 1e-4);
  }
  EXPECT_EQ(result->metrics.size(), 1u);  // endings of one length: nothing to normalise
}

TEST_F(ChoiceTest, ShareOfTheRightAnswers) {
  ChoiceFile file;
  file.items = {item({"q"}, {"u", "v", "w"}, {1, 0, 1})};
  const auto result = score(ChoiceTask::kTruthfulMc2, file);
  ASSERT_TRUE(result);
  const auto p = [&](std::size_t i) { return std::exp(result->answers[0].log_likelihoods[i]); };
  EXPECT_NEAR(result->metrics[0].value, (p(0) + p(2)) / (p(0) + p(1) + p(2)), 1e-9);
}

TEST_F(ChoiceTest, ExamplesAndLongPrompts) {
  ChoiceFile file;
  for (int i = 0; i < 4; ++i)
    file.items.push_back(item({"question " + std::to_string(i)}, {"yes", "no"}, {1, 0}));
  ChoiceOptions options;
  options.examples = 2;
  auto result = score(ChoiceTask::kArc, file, options);
  ASSERT_TRUE(result) << result.error().message;
  const std::string prompt = "question 1 yes\n\nquestion 2 yes\n\nquestion 0";
  EXPECT_NEAR(result->answers[0].log_likelihoods[1], sum(log_probs(prompt + " no", prompt.size())),
              1e-4);
  EXPECT_EQ(result->truncated, 0);
  options.examples = 4;
  EXPECT_FALSE(score(ChoiceTask::kArc, file, options));  // only three others
  options.examples = 1;
  EXPECT_FALSE(score(ChoiceTask::kTruthfulMc1, file, options));
  // 160 tokens of context: what does not fit is cut off in front.
  ChoiceFile examples;
  examples.items = {item({std::string(170, 'z')}, {"yes"}, {1})};
  options.limit = 1;
  result = score(ChoiceTask::kArc, file, options, &examples);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->truncated, 2);
  const std::string whole = std::string(170, 'z') + " yes\n\nquestion 0 no";
  const std::string kept = whole.substr(whole.size() - 161);
  EXPECT_NEAR(result->answers[0].log_likelihoods[1], sum(log_probs(kept, kept.size() - 3)), 1e-4);
  file.items[0].endings[0] = std::string(200, 'y');
  EXPECT_FALSE(score(ChoiceTask::kArc, file, options, &examples));
}

TEST(Metrics, MeanAndStandardError) {
  const std::vector<double> values{0, 1, 1, 0, 1};
  const Metric metric = mean_metric("m", values);
  EXPECT_DOUBLE_EQ(metric.value, 0.6);
  EXPECT_DOUBLE_EQ(metric.error, std::sqrt(0.3 / 5));  // variance 1.2 / 4
  EXPECT_EQ(mean_metric("m", std::vector<double>{1}).error, 0);
}

}  // namespace
}  // namespace trimpot
