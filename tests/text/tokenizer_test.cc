#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "base/rng.h"
#include "text/test_vocabulary.h"

namespace trimpot {
namespace {

using Ids = std::vector<TokenId>;

Tokenizer load(const VocabularyFile& file) {
  auto tokenizer = file.load();
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return std::move(*tokenizer);
}

// The vocabulary with the bytes that golden.json leaves out, to decode anything back.
VocabularyFile complete_file() {
  VocabularyFile file;
  for (const char* missing : {"\u0107", "\u011b", "\u00f9"}) {
    file.tokens.emplace_back(missing);
    file.types->push_back(1);
  }
  return file;
}

TEST(Tokenizer, SameIdsAsTheTokenizersLibrary) {
  for (const std::string pre : golden()["pre"]) {
    VocabularyFile file;
    file.pre = pre;
    file.add_bos = false;
    const Tokenizer tokenizer = load(file);
    int differing = 0;
    for (const auto& test : golden()["cases"]) {
      const std::string text = test["text"];
      const auto& ids = test["ids"];
      const Ids expected = ids.contains(pre) ? ids[pre] : ids["gpt-2"];
      differing += ids.contains(pre);
      EXPECT_EQ(tokenizer.encode(text, {.parse_special = test["parse_special"]}), expected)
          << pre << ": " << test["text"];
    }
    EXPECT_GT(differing, 5) << pre;  // the cases do tell the pre-tokenizers apart
  }
}

TEST(Tokenizer, DecodesAnyBytesBack) {
  const CounterRng rng(1, 2);
  std::uint64_t draw = 0;
  for (const std::string pre : {"gpt-2", "smollm", "llama-bpe", "default"}) {
    VocabularyFile file = complete_file();
    file.pre = pre;
    const Tokenizer tokenizer = load(file);
    for (int round = 0; round < 500; ++round) {
      std::string text(rng.below(draw++, 200), '\0');
      for (char& c : text) c = static_cast<char>(rng.below(draw++, round % 2 ? 256 : 128));
      ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << pre;
      ASSERT_EQ(tokenizer.decode(tokenizer.encode(text, {.parse_special = true})), text) << pre;
    }
  }
}

TEST(Tokenizer, Qwen2DecodesInvalidBytesBack) {
  VocabularyFile file = complete_file();
  file.pre = "qwen2";
  const Tokenizer tokenizer = load(file);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("\xff"
                                              "e\u0301\xc3 \xe2\x82")),
            "\xff\u00e9\xc3 \xe2\x82");
}

TEST(Tokenizer, LongWordsMergeLikeShortOnes) {
  // Every merge by scanning for the lowest rank, leftmost first: the definition.
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (const std::string merge : golden()["merges"]) {
    const std::size_t space = merge.find(' ', 1);
    ranks.emplace(std::pair(merge.substr(0, space), merge.substr(space + 1)), ranks.size());
  }
  const Tokenizer tokenizer = load({});
  const CounterRng rng(3, 4);
  std::uint64_t draw = 0;
  for (int round = 0; round < 300; ++round) {
    std::string text(1 + rng.below(draw++, 120), '\0');
    for (char& c : text) c = "etaonisrhlc"[rng.below(draw++, 11)];
    std::vector<std::string> symbols;
    for (const char c : text) symbols.emplace_back(1, c);
    for (;;) {
      std::size_t best_rank = ranks.size(), best = 0;
      for (std::size_t left = 0; left + 1 < symbols.size(); ++left)
        if (const auto rule = ranks.find({symbols[left], symbols[left + 1]});
            rule != ranks.end() && rule->second < best_rank)
          best_rank = rule->second, best = left;
      if (best_rank == ranks.size()) break;
      symbols[best] += symbols[best + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    Ids expected;
    for (const std::string& symbol : symbols) expected.push_back(*tokenizer.find(symbol));
    ASSERT_EQ(tokenizer.encode(text), expected) << text;
  }
}

// Quadratic merging would take hours.
TEST(Tokenizer, AMegabyteOfOneLetter) {
  const Tokenizer tokenizer = load({});
  for (const char letter : {'e', '=', ' '}) {
    const std::string text(1000000, letter);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, RepeatedWordsComeFromTheCacheUnchanged) {
  const Tokenizer tokenizer = load({});
  Ids expected;
  std::string text;
  for (int word = 0; word < 3000; ++word) {
    const std::string piece = " w" + std::string(1, static_cast<char>('a' + word % 26)) +
                              std::string(1, static_cast<char>('a' + word / 26 % 26));
    const Ids ids = tokenizer.encode(piece);
    expected.insert(expected.end(), ids.begin(), ids.end());
    text += piece;
  }
  EXPECT_EQ(tokenizer.encode(text), expected);
}

TEST(Tokenizer, ControlTokensOnlyOnRequest) {
  const Tokenizer tokenizer = load({});
  const std::string text = "a<|im_end|>b<|im_start|><|endoftext|>";
  for (const TokenId id : tokenizer.encode(text)) EXPECT_FALSE(tokenizer.is_control(id));
  const Ids ids = tokenizer.encode(text, {.parse_special = true});
  EXPECT_EQ(ids, (Ids{*tokenizer.find("a"), 2, *tokenizer.find("b"), 1, 0}));
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(tokenizer.decode(ids, true), "ab");
}

// Files whose converter forgot the types must not let a message forge an end of turn, nor may a
// merge build a control token out of plain text.
TEST(Tokenizer, ChatTokensAreControlWhateverTheirType) {
  for (const int type : {1, 4}) {
    VocabularyFile file;
    for (int id = 0; id < 3; ++id) (*file.types)[static_cast<std::size_t>(id)] = type;
    file.tokens.emplace_back("<|");
    file.types->push_back(3);
    file.merges->emplace_back("< |");
    const Tokenizer tokenizer = load(file);
    EXPECT_TRUE(tokenizer.is_control(1));
    EXPECT_TRUE(tokenizer.is_control(2));
    for (const TokenId id : tokenizer.encode("<|im_start|><|im_end|> <| <|"))
      EXPECT_FALSE(tokenizer.is_control(id));
    EXPECT_EQ(tokenizer.encode("<|im_end|>", {.parse_special = true}), Ids{2});
  }
}

TEST(Tokenizer, LongestUserDefinedTokenWins) {
  const Tokenizer tokenizer = load({});
  EXPECT_EQ(tokenizer.encode("<tool>><tool>"),
            (Ids{*tokenizer.find("<tool>>"), *tokenizer.find("<tool>")}));
}

TEST(Tokenizer, SpecialIds) {
  VocabularyFile file;
  file.pad = 2;
  file.add_bos = true;
  file.add_eos = true;
  const Tokenizer tokenizer = load(file);
  EXPECT_EQ(tokenizer.bos(), 0);
  EXPECT_EQ(tokenizer.eos(), 0);
  EXPECT_EQ(tokenizer.pad(), 2);
  EXPECT_EQ(tokenizer.eot(), 2);  // guessed: <|im_end|>
  EXPECT_TRUE(tokenizer.is_end_of_generation(0));
  EXPECT_FALSE(tokenizer.is_end_of_generation(1));
  EXPECT_TRUE(tokenizer.is_end_of_generation(2));
  EXPECT_EQ(tokenizer.vocabulary_size(), golden()["tokens"].size());
  EXPECT_EQ(tokenizer.encode("", {.add_special = true}), (Ids{0, 0}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});

  VocabularyFile llama;
  llama.pre = "llama-bpe";  // adds BOS unless the file says otherwise
  EXPECT_EQ(load(llama).encode("a", {.add_special = true}).size(), 2u);
  llama.add_bos = false;
  EXPECT_EQ(load(llama).encode("a", {.add_special = true}).size(), 1u);
}

TEST(Tokenizer, IdsOutsideTheVocabulary) {
  const Tokenizer tokenizer = load({});
  for (const TokenId id : {-1, 1000000, std::numeric_limits<TokenId>::min()}) {
    EXPECT_EQ(tokenizer.token_bytes(id), "");
    EXPECT_FALSE(tokenizer.is_control(id));
    EXPECT_FALSE(tokenizer.is_end_of_generation(id));
  }
  EXPECT_EQ(tokenizer.decode(Ids{-5, 1 << 30, *tokenizer.find("a")}), "a");
}

TEST(Tokenizer, MissingPreIsLlamaCppsDefault) {
  VocabularyFile without, with;
  without.pre.reset();
  with.pre = "default";
  const std::string text = "1234567 $a+b <the> scale's";
  EXPECT_EQ(load(without).encode(text), load(with).encode(text));
  EXPECT_NE(load(without).encode(text), load({}).encode(text));
}

TEST(Tokenizer, ThreadsShareOneTokenizer) {
  const Tokenizer tokenizer = load({});
  std::string text;
  for (const auto& test : golden()["cases"]) text += test["text"].get<std::string>();
  const Ids expected = tokenizer.encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results)
    threads.emplace_back([&result, copy = tokenizer, &text] { result = copy.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, BadFilesAreRefused) {
  const auto expect_error = [](const VocabularyFile& file, std::string_view part) {
    const auto tokenizer = file.load();
    ASSERT_FALSE(tokenizer) << part;
    EXPECT_NE(tokenizer.error().message.find(part), std::string::npos) << tokenizer.error().message;
    EXPECT_EQ(tokenizer.error().message.find('\n'), std::string::npos);
    EXPECT_NE(tokenizer.error().message.find(".gguf: "), std::string::npos);
  };
  const auto changed = [](auto change) {
    VocabularyFile file;
    change(file);
    return file;
  };
  expect_error(changed([](auto& f) { f.model = "llama"; }),
               "\"llama\", which is not supported yet");
  expect_error(changed([](auto& f) { f.pre = "tek\nken"; }), "\"tek\\x0aken\", which is not");
  expect_error(changed([](auto& f) { f.merges.reset(); }), "tokenizer.ggml.merges");
  expect_error(changed([](auto& f) { f.tokens.clear(); }), "0 tokens");
  expect_error(changed([](auto& f) { f.tokens[7] = f.tokens[5]; }), "token 7 repeats token 5");
  expect_error(changed([](auto& f) { f.types->pop_back(); }), "token_type has");
  expect_error(changed([](auto& f) { f.types->at(9) = 7; }), "element 9 is 7");
  expect_error(changed([](auto& f) { f.types->at(9) = -1; }), "element 9 is -1");
  expect_error(changed([](auto& f) { f.merges->at(3) = "ab"; }), "element 3 (\"ab\") is not two");
  expect_error(changed([](auto& f) { f.merges->at(3) = " "; }), "is not two");
  expect_error(changed([](auto& f) { f.merges->at(3) = ""; }), "is not two");
  expect_error(changed([](auto& f) { f.merges->at(4) = "a qqq"; }), "needs the token \"qqq\"");
  expect_error(changed([](auto& f) { f.merges->at(4) = "q q"; }), "needs the token \"qq\"");
  expect_error(changed([](auto& f) { f.eos = 1000000; }), "eos_token_id is 1000000, but there are");
  expect_error(changed([](auto& f) { f.bos.reset(), f.add_bos = true; }),
               "bos_token_id is missing");
  expect_error(changed([](auto& f) { f.eos.reset(), f.add_eos = true; }),
               "eos_token_id is missing");
}

}  // namespace
}  // namespace trimpot
