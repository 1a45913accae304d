// Compute::bf16_prompts: long pieces of a text in bf16, all else as without it.
#include <gtest/gtest.h>

#include "io/test_files.h"
#include "kernels/linear.h"
#include "model/session.h"
#include "model/session_options.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using Logits = std::vector<float>;
constexpr std::int64_t kVocabulary = 45;

class Bf16Prompts : public testing::TestWithParam<const Kernels*> {
 protected:
  void SetUp() override {
    auto toy = load_toy(toy_file(session_options()), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
    RandomStream random(1);
    for (int i = 0; i < 140; ++i) tokens_.push_back(static_cast<TokenId>(random.below(45)));
  }
  // Logits of all rows, the tokens appended in pieces of these sizes.
  Logits read(bool bf16, const std::vector<std::size_t>& pieces, int threads = 2,
              CacheType cache = CacheType::kFloat) const {
    Compute compute(*GetParam(), Precision::kDefault, threads);
    compute.bf16_prompts = bf16;
    Session session(compute, *model_, 140, cache);
    Logits out;
    std::span<const TokenId> rest = tokens_;
    for (const std::size_t piece : pieces) {
      const auto status =
          session.append_all(rest.first(piece), 0, [&](std::int64_t, const float* logits) {
            out.insert(out.end(), logits, logits + kVocabulary);
          });
      EXPECT_TRUE(status) << status.error().message;
      EXPECT_FALSE(compute.reading_bf16);
      rest = rest.subspan(piece);
    }
    return out;
  }
  bool has_bf16() const { return rounds_to_bf16(*GetParam()); }
  static bool same_rows(const Logits& a, const Logits& b, std::size_t begin, std::size_t end) {
    const auto part = [&](const Logits& of) {
      return Logits(of.begin() + static_cast<std::ptrdiff_t>(begin * kVocabulary),
                    of.begin() + static_cast<std::ptrdiff_t>(end * kVocabulary));
    };
    return same_bits(part(a), part(b));
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
  std::vector<TokenId> tokens_;
};
INSTANTIATE_TEST_SUITE_P(Isas, Bf16Prompts, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

// Catches: keys and values in another order or of another block (33, 70, 31: none is whole), a
// prompt that does not see what was read before it. Numbers of 8 bits are off by 1/512 at most, in
// 2 layers of some ten roundings each: sqrt(20) of them, twice that is the limit.
TEST_P(Bf16Prompts, LogitsAreRight) {
  const auto reference = reference_model<double>(*model_);
  const std::vector<ref::Index> tokens(tokens_.begin(), tokens_.end());
  std::vector<double> x = ref::embed(reference, tokens);
  ref::LayerState<double> state;
  for (const auto& layer : reference.layers) x = ref::layer_forward(reference, layer, x, state);
  const auto want = ref::logits_of(reference, x);
  for (const auto& pieces :
       std::vector<std::vector<std::size_t>>{{140}, {33, 70, 37}, {5, 135}, {109, 31}})
    for (const CacheType cache : {CacheType::kFloat, CacheType::kInt8})
      EXPECT_LE(relative_error(read(true, pieces, 2, cache), want), 0.01);
}

TEST_P(Bf16Prompts, AnyThreads) {
  const Logits one = read(true, {33, 100, 7}, 1);
  for (const int threads : {2, 3, 8})
    EXPECT_TRUE(same_bits(read(true, {33, 100, 7}, threads), one)) << threads << " threads";
}

// Catches: pieces of fewer tokens that are in bf16, and longer ones that are not.
TEST_P(Bf16Prompts, LongPiecesAlone) {
  const Logits usual = read(false, {140});
  EXPECT_TRUE(same_bits(read(true, {31, 1, 30, 31, 31, 16}), usual));
  const Logits mixed = read(true, {31, 32, 77});
  EXPECT_TRUE(same_rows(mixed, usual, 0, 31));
  EXPECT_EQ(same_rows(mixed, usual, 31, 63), !has_bf16());
}

// Catches: a long turn in bf16 beside a short one, whose tokens then were, too.
TEST_P(Bf16Prompts, NotBesideGeneratedTokens) {
  Compute compute(*GetParam(), Precision::kDefault, 2);
  const auto logits_of = [&](bool bf16, std::size_t other) {
    compute.bf16_prompts = bf16;
    Sequence prompt(compute, *model_, 140), beside(compute, *model_, 140);
    const std::span<const TokenId> tokens = tokens_;
    const std::vector<Turn> turns{{&prompt, tokens.first(50)},
                                  {&beside, tokens.subspan(60, other)}};
    Logits logits(2 * kVocabulary);
    EXPECT_TRUE(Decoder(compute, *model_).step(turns, logits.data()));
    return logits;
  };
  EXPECT_TRUE(same_bits(logits_of(true, 1), logits_of(false, 1)));
  EXPECT_EQ(same_bits(logits_of(true, 40), logits_of(false, 40)), !has_bf16());
}

}  // namespace
}  // namespace trimpot
