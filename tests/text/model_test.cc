// The default model, SmolLM2-135M-Instruct: set TRIMPOT_MODEL to its GGUF file. The ids are those
// of PyPI's `tokenizers` 0.23.3 (check_against_tokenizers.py compares far more).
#include <gtest/gtest.h>

#include <cstdlib>

#include "text/chat_template.h"

namespace trimpot {
namespace {

using Ids = std::vector<TokenId>;

class DefaultModel : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("TRIMPOT_MODEL");
    if (!path) GTEST_SKIP() << "TRIMPOT_MODEL is not set";
    auto file = gguf::File::open(path);
    ASSERT_TRUE(file) << file.error().message;
    auto tokenizer = Tokenizer::from_gguf(*file);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_.emplace(std::move(*tokenizer));
    auto chat = ChatTemplate::from_gguf(*file);
    ASSERT_TRUE(chat) << chat.error().message;
    chat_.emplace(std::move(*chat));
    if (tokenizer_->vocabulary_size() != 49152) GTEST_SKIP() << "another model";
  }
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;
};

TEST_F(DefaultModel, Encodes) {
  EXPECT_EQ(tokenizer_->encode("Hello, world! It's 2024.\n\n  caf\u00e9"),
            (Ids{19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30, 8866, 37366}));
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->eos(), 2);
  EXPECT_EQ(tokenizer_->eot(), 2);
  EXPECT_FALSE(tokenizer_->adds_bos());
  EXPECT_TRUE(tokenizer_->is_end_of_generation(2));
  EXPECT_TRUE(tokenizer_->is_end_of_generation(0));
}

TEST_F(DefaultModel, Chats) {
  const Message messages[] = {{"user", "Hi there"}, {"assistant", "\nHello!"}};
  const auto chat = chat_->encode(*tokenizer_, messages, true);
  ASSERT_TRUE(chat) << chat.error().message;
  EXPECT_EQ(chat->ids, (Ids{1,     9690,  198,   2683, 359, 253, 5356,  5646, 11173, 3365, 3511,
                            308,   34519, 28,    7018, 411, 407, 19712, 8182, 2,     198,  1,
                            4093,  198,   26843, 665,  2,   198, 1,     520,  9531,  198,  198,
                            19556, 17,    2,     198,  1,   520, 9531,  198}));
  std::string learned;
  for (std::size_t index = 0; index < chat->ids.size(); ++index)
    if (chat->learned[index]) learned += tokenizer_->token_bytes(chat->ids[index]);
  EXPECT_EQ(learned, "\nHello!<|im_end|>");
}

}  // namespace
}  // namespace trimpot
