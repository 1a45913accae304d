// Which beginnings of prompts are found again, and whose.
#include "serve/sequence_pool.h"

#include <gtest/gtest.h>

#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

class Pool : public testing::Test {
 protected:
  void SetUp() override {
    auto toy = load_toy(toy_file({}), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy);
    model_ = std::move(toy->model);
    pool_ = std::make_unique<SequencePool>(compute_, *model_, 64, CacheType::kFloat, 3);
  }
  // As the engine does: reads what is missing.
  Slot* read(std::uint64_t version, const std::vector<TokenId>& prompt) {
    Slot* slot = pool_->acquire(version, prompt, prompt.size() - 1, places_);
    if (slot == nullptr) return nullptr;
    found_ = slot->tokens.size();
    EXPECT_EQ(static_cast<std::int64_t>(found_), slot->sequence.length());
    const Turn turn{&slot->sequence, std::span(prompt).subspan(found_), false, nullptr};
    EXPECT_TRUE(decoder().step({&turn, 1}, nullptr));
    slot->tokens = prompt;
    return slot;
  }
  Decoder& decoder() {
    if (!decoder_) decoder_ = std::make_unique<Decoder>(compute_, *model_);
    return *decoder_;
  }

  const TempFolder folder_;
  Compute compute_{*usable_kernels().front(), Precision::kDefault, 1};
  std::unique_ptr<Model> model_;
  std::unique_ptr<SequencePool> pool_;
  std::unique_ptr<Decoder> decoder_;
  std::size_t found_ = 0;
  std::int64_t places_ = 64;
};

TEST_F(Pool, OfTheSameVersionOnly) {
  pool_->release(*read(1, {5, 6, 7, 8}));
  pool_->release(*read(2, {5, 6, 7, 8, 9}));
  EXPECT_EQ(found_, 0u);
  pool_->release(*read(1, {5, 6, 7, 8, 9}));
  EXPECT_EQ(found_, 4u);
}

TEST_F(Pool, TheLastTokenIsAlwaysRead) {
  pool_->release(*read(0, {5, 6, 7}));
  pool_->release(*read(0, {5, 6, 7}));
  EXPECT_EQ(found_, 2u);
}

TEST_F(Pool, ABusySequenceLendsItsBeginning) {
  Slot* first = read(0, {5, 6, 7, 8});
  Slot* second = read(0, {5, 6, 7, 9});
  EXPECT_NE(first, second);
  EXPECT_EQ(found_, 3u);
  EXPECT_EQ(first->tokens, (std::vector<TokenId>{5, 6, 7, 8}));
  EXPECT_EQ(pool_->busy_tokens(), 8u);
}

TEST_F(Pool, TakesOverWhatGoesOn) {
  Slot* first = read(0, {5, 6, 7, 8});
  pool_->release(*first);
  EXPECT_EQ(read(0, {5, 6, 7, 8, 9, 10}), first);
  EXPECT_EQ(found_, 4u);
}

TEST_F(Pool, AShortBeginningIsCopiedAndTheLongerOneKept) {
  Slot* first = read(0, {5, 6, 7, 8, 9, 10});
  pool_->release(*first);
  Slot* second = read(0, {5, 6, 20, 21});
  EXPECT_NE(first, second);
  EXPECT_EQ(found_, 2u);
  EXPECT_EQ(first->tokens.size(), 6u);
}

TEST_F(Pool, TheLeastRecentlyUsedGoes) {
  for (const TokenId start : {10, 20, 30}) pool_->release(*read(0, {start, 1, 2}));
  pool_->release(*read(0, {10, 1, 2, 3}));
  pool_->release(*read(0, {40, 1, 2}));  // takes the place of 20
  pool_->release(*read(0, {30, 1, 2, 3}));
  EXPECT_EQ(found_, 3u);
  pool_->release(*read(0, {20, 1, 2, 3}));
  EXPECT_EQ(found_, 0u);
}

TEST_F(Pool, ASlotHasTheRoomThatIsAskedFor) {
  for (const std::size_t slots : {1, 3}) {
    pool_ = std::make_unique<SequencePool>(compute_, *model_, 1000, CacheType::kFloat, slots);
    places_ = 100;
    Slot* small = read(0, {5, 6, 7, 8});
    EXPECT_EQ(small->sequence.context(), 256);
    pool_->release(*small);
    places_ = 257;
    Slot* large = read(0, {5, 6, 7, 8, 9});  // with one slot there is nowhere to copy from
    EXPECT_EQ(large->sequence.context(), 512);
    EXPECT_EQ(found_, slots == 1 ? 0u : 4u);
    pool_->release(*large);
    places_ = 2000;
    EXPECT_EQ(read(0, {50, 6, 7})->sequence.context(), 1000);
  }
}

TEST_F(Pool, NeverMoreThanItsSlots) {
  for (const TokenId start : {10, 20, 30}) EXPECT_NE(read(0, {start, 1}), nullptr);
  EXPECT_EQ(pool_->acquire(0, std::vector<TokenId>{40, 1}, 1, 64), nullptr);
}

}  // namespace
}  // namespace trimpot::serve
