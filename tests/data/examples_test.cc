// Records to tokens: what is learned, what is cut, what is skipped.
#include "data/examples.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace trimpot {
namespace {

using Tokens = std::vector<TokenId>;
using Mask = std::vector<std::uint8_t>;

constexpr TokenId kBos = 1000, kEos = 1001, kTurn = 1002;

// A token per byte; a turn is kTurn, the bytes, kEos, and learned are an assistant's bytes and its
// kEos. '#' stands for a special token, if those are parsed.
Tokens encode_text(std::string_view text, bool parse_special) {
  Tokens tokens;
  for (const char c : text) tokens.push_back(c == '#' && parse_special ? kEos : c);
  return tokens;
}

Result<EncodedChat> encode_chat(const std::vector<Message>& messages) {
  EncodedChat encoded;
  for (const Message& m : messages) {
    if (m.content == "bad") return fail("the template refuses this");
    const bool answer = m.role == "assistant";
    encoded.ids.push_back(kTurn);
    encoded.learned.push_back(0);
    for (const char c : m.content) {
      encoded.ids.push_back(c);
      encoded.learned.push_back(answer);
    }
    encoded.ids.push_back(kEos);
    encoded.learned.push_back(answer);
  }
  return encoded;
}

ExampleEncoder encoder(std::optional<TokenId> bos = {}, std::optional<TokenId> eos = kEos) {
  return {encode_chat, encode_text, bos, eos};
}

Record chat(const std::string& user, const std::string& assistant, std::size_t line = 1) {
  Record record;
  record.messages = {{"user", user}, {"assistant", assistant}};
  record.line = line;
  return record;
}

RecordFile text_file(const std::string& text, bool plain) {
  Record record;
  record.kind = Record::Kind::kText;
  record.text = text;
  record.line = 1;
  RecordFile file;
  file.records.push_back(record);
  file.plain_text = plain;
  return file;
}

Tokens tokens_of(const Examples& examples, std::size_t i) {
  const auto span = examples.set.tokens(i);
  return {span.begin(), span.end()};
}

Mask learned_of(const Examples& examples, std::size_t i) {
  const auto span = examples.set.learned(i);
  return {span.begin(), span.end()};
}

// Catches: a mask that is off by one, or that counts the prompt.
TEST(Examples, AnswersAloneAreLearned) {
  const RecordFile file{{chat("ab", "c"), chat("d", "e", 2)}, false};
  const auto examples = make_examples("d", file, encoder(), {});
  ASSERT_TRUE(examples);
  ASSERT_EQ(examples->set.size(), 2u);
  EXPECT_EQ(tokens_of(*examples, 0), (Tokens{kTurn, 'a', 'b', kEos, kTurn, 'c', kEos}));
  EXPECT_EQ(learned_of(*examples, 0), (Mask{0, 0, 0, 0, 0, 1, 1}));
  EXPECT_EQ(tokens_of(*examples, 1), (Tokens{kTurn, 'd', kEos, kTurn, 'e', kEos}));
  EXPECT_EQ(examples->report.tokens, 13u);
  EXPECT_EQ(examples->report.learned_tokens, 4u);
  EXPECT_TRUE(examples->report.warnings({}).empty());
}

// Catches: time spent on tokens that nobody learns from, and a record that counts as too long
// because of them.
TEST(Examples, WhatFollowsTheLastAnswerIsDropped) {
  Record record = chat("ab", "c");
  record.messages.push_back({"user", "more"});
  const auto examples = make_examples("d", {{record}, false}, encoder(), {.max_seq_length = 7});
  ASSERT_TRUE(examples);
  EXPECT_EQ(tokens_of(*examples, 0), (Tokens{kTurn, 'a', 'b', kEos, kTurn, 'c', kEos}));
  EXPECT_EQ(examples->report.truncated, 0u);
}

// Catches: a first token that is learned although nothing predicts it.
TEST(Examples, TrainOnPromptLearnsAllButTheFirstToken) {
  const RecordFile file{{chat("ab", "c")}, false};
  const auto examples = make_examples("d", file, encoder(), {.train_on_prompt = true});
  ASSERT_TRUE(examples);
  EXPECT_EQ(learned_of(*examples, 0), (Mask{0, 1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(examples->report.learned_tokens, 6u);
}

// Catches: a doubled or missing EOS, BOS without the flag, special tokens left as text.
TEST(Examples, TextRecordsEndInOneEos) {
  const auto plain = make_examples("d", text_file("ab", false), encoder(), {});
  ASSERT_TRUE(plain);
  EXPECT_EQ(tokens_of(*plain, 0), (Tokens{'a', 'b', kEos}));
  EXPECT_EQ(learned_of(*plain, 0), (Mask{0, 1, 1}));
  const auto ended = make_examples("d", text_file("ab#", false), encoder(kBos), {});
  ASSERT_TRUE(ended);
  EXPECT_EQ(tokens_of(*ended, 0), (Tokens{kBos, 'a', 'b', kEos}));
  const auto no_eos = make_examples("d", text_file("ab", false), encoder({}, {}), {});
  ASSERT_TRUE(no_eos);
  EXPECT_EQ(tokens_of(*no_eos, 0), (Tokens{'a', 'b'}));
}

// Catches: a record cut at the wrong end, a skipped record counted as cut, a wrong first line.
TEST(Examples, LongRecordsLoseTheirEndOrAreSkipped) {
  const RecordFile file{{chat("a", "b", 1), chat("a", "bcdefgh", 4), chat("abcdefghi", "b", 7),
                         chat("abcdefghi", "b", 9)},
                        false};
  const ExampleOptions options{.max_seq_length = 8};
  const auto examples = make_examples("d", file, encoder(), options);
  ASSERT_TRUE(examples);
  ASSERT_EQ(examples->set.size(), 2u);
  EXPECT_EQ(tokens_of(*examples, 1), (Tokens{kTurn, 'a', kEos, kTurn, 'b', 'c', 'd', 'e'}));
  EXPECT_EQ(examples->report.records, 4u);
  EXPECT_EQ(examples->report.truncated, 1u);
  EXPECT_EQ(examples->report.first_truncated_line, 4u);
  EXPECT_EQ(examples->report.skipped, 2u);
  EXPECT_EQ(examples->report.first_skipped_line, 7u);
  const auto warnings = examples->report.warnings(options);
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_NE(warnings[0].find("1 of 4 records"), std::string::npos) << warnings[0];
  EXPECT_NE(warnings[0].find("line 4"), std::string::npos);
  EXPECT_NE(warnings[1].find("2 of 4 records"), std::string::npos) << warnings[1];
  EXPECT_NE(warnings[1].find("line 7"), std::string::npos);
}

TEST(Examples, ErrorsSayWhy) {
  Record no_answer;
  no_answer.messages = {{"user", "u"}};
  const auto nothing = make_examples("d", {{no_answer}, false}, encoder(), {});
  ASSERT_FALSE(nothing);
  EXPECT_NE(nothing.error().message.find("none of the 1 records"), std::string::npos);

  const auto refused =
      make_examples("d", {{chat("a", "b"), chat("bad", "b", 5)}, false}, encoder(), {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "d:5: the template refuses this");

  EXPECT_FALSE(make_examples("d", {{chat("a", "b")}, false}, encoder(), {.max_seq_length = 1}));
  EXPECT_FALSE(make_examples("d", {}, encoder(), {}));
  EXPECT_FALSE(make_examples("d", text_file("a", true), encoder(), {}));
  EXPECT_FALSE(make_examples("d", text_file("", true), encoder(), {}));
  EXPECT_FALSE(make_examples("d", text_file("", false), encoder(), {}));  // EOS alone: no context
}

// Catches: windows that overlap or leave a gap, a short tail, special tokens made from plain text.
TEST(Examples, PlainTextIsCutIntoWindows) {
  const auto examples =
      make_examples("d", text_file("abcd#fghij", true), encoder(), {.max_seq_length = 4});
  ASSERT_TRUE(examples);
  EXPECT_TRUE(examples->windows);
  ASSERT_EQ(examples->set.size(), 2u);
  EXPECT_EQ(tokens_of(*examples, 0), (Tokens{'a', 'b', 'c', 'd'}));
  EXPECT_EQ(tokens_of(*examples, 1), (Tokens{'#', 'f', 'g', 'h'}));
  EXPECT_EQ(learned_of(*examples, 1), (Mask{0, 1, 1, 1}));
  EXPECT_EQ(examples->report.dropped_tokens, 2u);
  EXPECT_EQ(examples->report.learned_tokens, 6u);

  const auto short_text =
      make_examples("d", text_file("abc", true), encoder(), {.max_seq_length = 4});
  ASSERT_TRUE(short_text);
  EXPECT_EQ(tokens_of(*short_text, 0), (Tokens{'a', 'b', 'c'}));
  EXPECT_EQ(short_text->report.dropped_tokens, 0u);

  const auto with_bos =
      make_examples("d", text_file("abcdefg", true), encoder(kBos), {.max_seq_length = 4});
  ASSERT_TRUE(with_bos);
  ASSERT_EQ(with_bos->set.size(), 2u);
  EXPECT_EQ(tokens_of(*with_bos, 1), (Tokens{kBos, 'd', 'e', 'f'}));
}

}  // namespace
}  // namespace trimpot
