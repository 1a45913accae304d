// Examples through the default model's tokenizer and chat template: set TRIMPOT_MODEL to its GGUF
// file.
#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "data/examples.h"
#include "io/gguf/gguf.h"

namespace trimpot {
namespace {

// Catches: a mask that is shifted against the real template, an answer whose end is not learned, a
// tail behind the answer that only costs time.
TEST(ExamplesOfTheModel, LearnTheAnswerAndItsEnd) {
  const char* path = std::getenv("TRIMPOT_MODEL");
  if (path == nullptr) GTEST_SKIP() << "TRIMPOT_MODEL is not set";
  const auto file = gguf::File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  const auto tokenizer = Tokenizer::from_gguf(*file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto encoder = make_example_encoder(*tokenizer, ChatTemplate::from_gguf(*file));
  const auto records = parse_records("d", R"({"prompt":"Hello","completion":"{\"a\":1}"})");
  ASSERT_TRUE(records);
  const auto examples = make_examples("d", *records, encoder, {});
  ASSERT_TRUE(examples) << examples.error().message;
  std::vector<TokenId> answer;
  for (std::size_t i = 0; i < examples->set.length(0); ++i)
    if (examples->set.learned(0)[i]) answer.push_back(examples->set.tokens(0)[i]);
  EXPECT_EQ(tokenizer->decode(answer), "{\"a\":1}<|im_end|>");
  EXPECT_EQ(examples->set.tokens(0).back(), tokenizer->eot());
  EXPECT_NE(tokenizer->decode(examples->set.tokens(0)).find("user\nHello<|im_end|>"),
            std::string::npos);
}

// A model without a template that we know still trains on texts.
TEST(ExamplesOfTheModel, WithoutATemplateOnlyTextsWork) {
  const char* path = std::getenv("TRIMPOT_MODEL");
  if (path == nullptr) GTEST_SKIP() << "TRIMPOT_MODEL is not set";
  const auto file = gguf::File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  const auto tokenizer = Tokenizer::from_gguf(*file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto encoder = make_example_encoder(*tokenizer, fail("no template"));
  const auto chat = parse_records("d", R"({"prompt":"p","completion":"c"})");
  ASSERT_TRUE(chat);
  const auto refused = make_examples("d", *chat, encoder, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "d:1: no template");
  const auto text = parse_records("d", R"({"text":"some words"})");
  ASSERT_TRUE(text);
  EXPECT_TRUE(make_examples("d", *text, encoder, {}));
}

}  // namespace
}  // namespace trimpot
