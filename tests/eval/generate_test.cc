// Texts decoded together against each alone, and the numbers that GSM8K looks for in them.
#include "eval/generate.h"

#include <gtest/gtest.h>

#include "eval/gsm8k.h"
#include "eval/toy_text.h"

namespace trimpot {
namespace {

class GenerateTest : public ToyText {
 protected:
  GenerateTest() : ToyText(120) {}
  Result<std::vector<std::string>> texts(const std::vector<std::string>& prompts,
                                         const GenerateOptions& options) const {
    Compute compute(*usable_kernels().back(), Precision::kDefault, 2);
    std::vector<std::vector<TokenId>> ids;
    for (const std::string& prompt : prompts) ids.push_back(tokenizer_->encode(prompt));
    return generate_texts(compute, *model_, *tokenizer_, ids, options, nullptr);
  }
};

TEST_F(GenerateTest, TogetherAsAlone) {
  std::vector<std::string> prompts;
  for (int i = 0; i < 7; ++i)
    prompts.push_back("the same begin " + std::string(static_cast<std::size_t>(i * 3), 'a') +
                      std::to_string(i));
  GenerateOptions options;
  options.max_tokens = 20;
  options.together = 3;
  const auto together = texts(prompts, options);
  ASSERT_TRUE(together);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto alone = texts({prompts[i]}, options);
    ASSERT_TRUE(alone);
    EXPECT_EQ((*together)[i], (*alone)[0]);
    EXPECT_FALSE((*alone)[0].empty());
  }
  EXPECT_NE((*together)[0], (*together)[1]);
}

TEST_F(GenerateTest, StopsBeforeTheFirstStop) {
  GenerateOptions options;
  options.max_tokens = 24;
  const auto whole = texts({"go on"}, options);
  ASSERT_TRUE(whole);
  const std::string& text = (*whole)[0];
  ASSERT_GE(text.size(), 20u);
  const std::string stop = text.substr(10, 4);
  options.stops = {"not there at all", stop, text.substr(15, 3)};
  const auto cut = texts({"go on"}, options);
  ASSERT_TRUE(cut);
  EXPECT_EQ((*cut)[0], text.substr(0, std::min(text.find(stop), text.find(options.stops[2]))));
}

TEST_F(GenerateTest, FullContext) {
  GenerateOptions options;
  options.max_tokens = 500;
  const auto text = texts({std::string(117, 'a')}, options);
  ASSERT_TRUE(text);
  EXPECT_LE((*text)[0].size(), 4u);  // 117 + 3 are read, the fourth is only said
  const auto error = texts({"a", std::string(120, 'a')}, options);
  ASSERT_FALSE(error);
  EXPECT_NE(error.error().message.find("prompt 2"), std::string::npos);
}

TEST(Gsm8k, NumbersInTexts) {
  EXPECT_EQ(strict_number("so\n#### 1,234.5 or #### 7"), "1,234.5");
  EXPECT_EQ(strict_number("#### none, #### -5"), "-5");
  EXPECT_EQ(strict_number("####5 and 7"), "[invalid]");
  EXPECT_EQ(flexible_number("a 3 and -12 apples"), "-12");
  EXPECT_EQ(flexible_number("it costs $1,200.50."), "$1,200.50.");
  EXPECT_EQ(flexible_number("3-4"), "-4");
  EXPECT_EQ(flexible_number("five."), "[invalid]");
  EXPECT_EQ(flexible_number("7 ..."), "...");  // as lm-eval's pattern has it
  const std::string gold = "3 + 4 = <<3+4=7>>7.\nMore.\n#### 1,207";
  EXPECT_TRUE(same_number("$1207.", gold));
  EXPECT_TRUE(same_number("1,207", gold));
  EXPECT_FALSE(same_number("207", gold));
  EXPECT_FALSE(same_number("[invalid]", gold));
}

TEST(Gsm8k, RowsAndPrompts) {
  const auto items = parse_gsm8k("d.jsonl",
                                 "{\"question\": \"a\", \"answer\": \"#### 1\"}\n"
                                 "{\"question\": \"b\", \"answer\": \"#### 2\"}\n");
  ASSERT_TRUE(items);
  EXPECT_EQ(gsm8k_prompt(*items, 0, *items, 1),
            "Question: b\nAnswer: #### 2\n\nQuestion: a\nAnswer:");
  const std::vector<MathItem> others = *items;
  EXPECT_EQ(gsm8k_prompt(*items, 0, others, 1),
            "Question: a\nAnswer: #### 1\n\nQuestion: a\nAnswer:");
  const auto error = parse_gsm8k("d.jsonl", "{\"question\": \"a\"}");
  ASSERT_FALSE(error);
  EXPECT_EQ(error.error().message, "d.jsonl:1: field \"answer\" is missing; a string is expected");
}

}  // namespace
}  // namespace trimpot
