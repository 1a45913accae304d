// One sequence read in any number of pieces by any number of threads gives the same bits.
#include "model/session.h"

#include <gtest/gtest.h>

#include "io/test_files.h"
#include "model/session_options.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using Logits = std::vector<float>;

struct Setup {
  const Kernels* kernels;
  Precision precision;
  CacheType cache;
};

class SessionBits : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    auto toy = load_toy(toy_file(session_options()), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
    RandomStream random(1);
    for (int i = 0; i < 70; ++i) tokens_.push_back(static_cast<TokenId>(random.below(45)));
  }
  // Logits of all rows, the tokens appended in pieces of these sizes.
  Logits read(int threads, const std::vector<std::size_t>& pieces) const {
    Compute compute(*GetParam().kernels, GetParam().precision, threads);
    Session session(compute, *model_, 80, GetParam().cache);
    Logits out;
    std::span<const TokenId> rest = tokens_;
    for (const std::size_t piece : pieces) {
      const auto status =
          session.append_all(rest.first(piece), 0, [&](std::int64_t row, const float* logits) {
            EXPECT_EQ(static_cast<std::size_t>(row) + tokens_.size() - rest.size(),
                      out.size() / 45);
            out.insert(out.end(), logits, logits + 45);
          });
      EXPECT_TRUE(status) << status.error().message;
      rest = rest.subspan(piece);
    }
    return out;
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
  std::vector<TokenId> tokens_;
};

std::vector<Setup> setups() {
  std::vector<Setup> out;
  for (const Kernels* kernels : usable_kernels())
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      for (const CacheType cache : {CacheType::kFloat, CacheType::kInt8})
        out.push_back({kernels, precision, cache});
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, SessionBits, testing::ValuesIn(setups()), [](const auto& info) {
  return std::string(info.param.kernels->name) +
         (info.param.precision == Precision::kF32 ? "_f32" : "_default") +
         (info.param.cache == CacheType::kInt8 ? "_int8" : "");
});

TEST_P(SessionBits, AnyPiecesAndAnyThreads) {
  const Logits whole = read(1, {70});
  ASSERT_EQ(whole.size(), 70u * 45u);
  for (const float value : whole) ASSERT_TRUE(std::isfinite(value));
  for (const int threads : {1, 2, 3, 8}) {
    EXPECT_TRUE(same_bits(read(threads, {70}), whole)) << threads << " threads, whole";
    EXPECT_TRUE(same_bits(read(threads, {33, 37}), whole)) << threads << " threads, two pieces";
  }
  EXPECT_TRUE(same_bits(read(2, std::vector<std::size_t>(70, 1)), whole)) << "one by one";
  EXPECT_TRUE(same_bits(read(3, {1, 15, 16, 1, 17, 20}), whole));
}

// Sequences of different lengths that join and leave: each gets what it gets alone. Catches sums
// that depend on the number of rows, and keys of one sequence seen by another.
TEST_P(SessionBits, OtherSequencesMakeNoDifference) {
  Compute compute(*GetParam().kernels, GetParam().precision, 2);
  const std::span<const TokenId> tokens = tokens_;
  constexpr std::size_t kSequences = 9;
  const auto own_tokens = [&](std::size_t i) { return tokens.subspan(3 * i, 20 + 2 * i); };
  Decoder decoder(compute, *model_);
  std::vector<Sequence> sequences;
  for (std::size_t i = 0; i < kSequences; ++i)
    sequences.emplace_back(compute, *model_, 40, GetParam().cache);
  std::vector<Logits> together(kSequences), alone(kSequences);
  for (int step = 0; step < 8; ++step) {
    std::vector<Turn> turns;
    std::vector<std::size_t> wanting;
    for (std::size_t i = 0; i < kSequences; ++i) {
      if (step < static_cast<int>(i) % 3) continue;  // not there yet
      const std::int64_t done = sequences[i].length();
      const std::size_t count = done == 0 ? 1 + 5 * (i % 4) : 1;
      const bool wants = (i + static_cast<std::size_t>(step)) % 4 != 0;
      turns.push_back(
          {&sequences[i], own_tokens(i).subspan(static_cast<std::size_t>(done), count), wants});
      if (wants) wanting.push_back(i);
    }
    Logits logits(wanting.size() * 45);
    ASSERT_TRUE(decoder.step(turns, logits.data()));
    for (std::size_t k = 0; k < wanting.size(); ++k)
      together[wanting[k]].insert(together[wanting[k]].end(), logits.begin() + k * 45,
                                  logits.begin() + (k + 1) * 45);
  }
  for (std::size_t i = 0; i < kSequences; ++i) {
    Session session(compute, *model_, 40, GetParam().cache);
    for (int step = 0; step < 8; ++step) {
      if (step < static_cast<int>(i) % 3) continue;
      const auto done = static_cast<std::size_t>(session.length());
      Logits logits(45);
      ASSERT_TRUE(session.append(own_tokens(i).subspan(done, done == 0 ? 1 + 5 * (i % 4) : 1),
                                 logits.data()));
      if ((i + static_cast<std::size_t>(step)) % 4 != 0)
        alone[i].insert(alone[i].end(), logits.begin(), logits.end());
    }
    EXPECT_TRUE(same_bits(together[i], alone[i])) << "sequence " << i;
  }
}

TEST_P(SessionBits, Truncate) {
  Compute compute(*GetParam().kernels, GetParam().precision, 2);
  Session session(compute, *model_, 80, GetParam().cache);
  const std::span<const TokenId> tokens = tokens_;
  Logits first(45), again(45), direct(45);
  ASSERT_TRUE(session.append(tokens.first(40), first.data()));
  ASSERT_TRUE(session.append(tokens.subspan(40, 25), nullptr));
  session.truncate(39);
  EXPECT_EQ(session.length(), 39);
  ASSERT_TRUE(session.append(tokens.subspan(39, 1), again.data()));
  EXPECT_TRUE(same_bits(again, first));
  session.truncate(50);  // longer than it is: nothing happens
  EXPECT_EQ(session.length(), 40);
  // Another continuation: nothing of the first one is left.
  session.truncate(20);
  ASSERT_TRUE(session.append(tokens.subspan(50, 20), again.data()));
  Session fresh(compute, *model_, 80, GetParam().cache);
  ASSERT_TRUE(fresh.append(tokens.first(20), nullptr));
  ASSERT_TRUE(fresh.append(tokens.subspan(50, 20), direct.data()));
  EXPECT_TRUE(same_bits(again, direct));
  session.truncate(0);
  ASSERT_TRUE(session.append(tokens.first(40), again.data()));
  EXPECT_TRUE(same_bits(again, first));
}

// Against the references in double (f32 path); others within what rounding to int8 costs.
TEST_P(SessionBits, LogitsAreRight) {
  const Logits got = read(2, {70});
  const auto reference = reference_model<double>(*model_);
  const std::vector<ref::Index> tokens(tokens_.begin(), tokens_.end());
  std::vector<double> x = ref::embed(reference, tokens);
  ref::LayerState<double> state;
  for (const auto& layer : reference.layers) x = ref::layer_forward(reference, layer, x, state);
  const bool exact =
      GetParam().precision == Precision::kF32 && GetParam().cache == CacheType::kFloat;
  // Sums of up to 96 terms, some 15 of them in a row.
  EXPECT_LE(relative_error(got, ref::logits_of(reference, x)), exact ? 15 * 96 * kRoundoff : 0.05);
}

class SessionUse : public testing::Test {
 protected:
  void SetUp() override {
    auto toy = load_toy(toy_file(session_options()), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
  Compute compute_{*usable_kernels().front(), Precision::kDefault, 2};
};

TEST_F(SessionUse, LastLogitsAreTheLastRow) {
  const std::vector<TokenId> tokens{3, 1, 4, 1, 5, 9, 2, 6};
  Session one(compute_, *model_, 8), all(compute_, *model_, 8);
  Logits last(45), rows;
  ASSERT_TRUE(one.append(tokens, last.data()));
  std::vector<std::int64_t> visited;
  ASSERT_TRUE(all.append_all(tokens, 5, [&](std::int64_t row, const float* logits) {
    visited.push_back(row);
    rows.assign(logits, logits + 45);
  }));
  EXPECT_EQ(visited, (std::vector<std::int64_t>{5, 6, 7}));
  EXPECT_TRUE(same_bits(rows, last));
}

// More tokens than one pass takes (512), more rows than one block of logits (48).
TEST_F(SessionUse, LongTexts) {
  RandomStream random(2);
  std::vector<TokenId> tokens;
  for (int i = 0; i < 560; ++i) tokens.push_back(static_cast<TokenId>(random.below(45)));
  Session whole(compute_, *model_, 560), pieces(compute_, *model_, 560);
  Logits a, b, last(45);
  std::int64_t next = 450;
  ASSERT_TRUE(whole.append_all(tokens, 450, [&](std::int64_t row, const float* logits) {
    EXPECT_EQ(row, next++);
    a.insert(a.end(), logits, logits + 45);
  }));
  EXPECT_EQ(next, 560);
  const std::span<const TokenId> all = tokens;
  ASSERT_TRUE(pieces.append(all.first(450), nullptr));
  ASSERT_TRUE(pieces.append_all(all.subspan(450), 0, [&](std::int64_t, const float* logits) {
    b.insert(b.end(), logits, logits + 45);
  }));
  EXPECT_TRUE(same_bits(a, b));
  whole.truncate(0);
  ASSERT_TRUE(whole.append(tokens, last.data()));
  EXPECT_TRUE(same_bits(std::span<const float>(last), std::span<const float>(a).last(45)));
}

// Beyond 768 keys a single query is split over the threads: still the bits of a prompt at once.
TEST_P(SessionBits, LongContexts) {
  RandomStream random(3);
  std::vector<TokenId> tokens;
  for (int i = 0; i < 1030; ++i) tokens.push_back(static_cast<TokenId>(random.below(45)));
  Compute compute(*GetParam().kernels, GetParam().precision, 3);
  Session whole(compute, *model_, 1030, GetParam().cache),
      pieces(compute, *model_, 1030, GetParam().cache);
  Logits want, got;
  ASSERT_TRUE(whole.append_all(tokens, 1018, [&](std::int64_t, const float* logits) {
    want.insert(want.end(), logits, logits + 45);
  }));
  const std::span<const TokenId> all = tokens;
  ASSERT_TRUE(pieces.append(all.first(1018), nullptr));
  for (std::size_t i = 1018; i < 1030; ++i) {
    Logits logits(45);
    ASSERT_TRUE(pieces.append(all.subspan(i, 1), logits.data()));
    got.insert(got.end(), logits.begin(), logits.end());
  }
  EXPECT_TRUE(same_bits(got, want));
}

// A copy goes on as the original does, for lengths inside and at the end of a block of 16 keys, in
// a context of another size.
TEST_P(SessionBits, CopyPrefix) {
  Compute compute(*GetParam().kernels, GetParam().precision, 2);
  Decoder decoder(compute, *model_);
  const std::span<const TokenId> tokens = tokens_;
  Sequence whole(compute, *model_, 70, GetParam().cache);
  Turn turn{&whole, tokens, false};
  ASSERT_TRUE(decoder.step({&turn, 1}, nullptr));
  Logits want(45), got(45);
  for (const std::size_t length : {1, 15, 16, 17, 48, 69}) {
    Sequence copy(compute, *model_, 90, GetParam().cache);
    turn = {&copy, tokens.last(9), false};  // something to overwrite
    ASSERT_TRUE(decoder.step({&turn, 1}, nullptr));
    copy.copy_prefix(whole, static_cast<std::int64_t>(length));
    EXPECT_EQ(copy.length(), static_cast<std::int64_t>(length));
    turn = {&copy, tokens.subspan(length, 1), true};
    ASSERT_TRUE(decoder.step({&turn, 1}, got.data()));
    Session alone(compute, *model_, 70, GetParam().cache);
    ASSERT_TRUE(alone.append(tokens.first(length + 1), want.data()));
    EXPECT_TRUE(same_bits(got, want)) << length;
  }
}

// The same around the end of a part of 512 positions, the last of which is as long as the context.
TEST_P(SessionBits, CopyPrefixBeyondAPart) {
  RandomStream random(4);
  std::vector<TokenId> tokens;
  for (int i = 0; i < 600; ++i) tokens.push_back(static_cast<TokenId>(random.below(45)));
  Compute compute(*GetParam().kernels, GetParam().precision, 2);
  Session all(compute, *model_, 600, GetParam().cache);
  Logits want, got(45);
  ASSERT_TRUE(all.append_all(tokens, 500, [&](std::int64_t, const float* logits) {
    want.insert(want.end(), logits, logits + 45);
  }));
  Decoder decoder(compute, *model_);
  Sequence whole(compute, *model_, 600, GetParam().cache);
  const std::span<const TokenId> some = tokens;
  Turn turn{&whole, some, false};
  ASSERT_TRUE(decoder.step({&turn, 1}, nullptr));
  for (const std::size_t length : {500, 511, 512, 513, 599}) {
    Sequence copy(compute, *model_, 1100, GetParam().cache);
    copy.copy_prefix(whole, static_cast<std::int64_t>(length));
    turn = {&copy, some.subspan(length, 1), true};
    ASSERT_TRUE(decoder.step({&turn, 1}, got.data()));
    EXPECT_TRUE(same_bits(std::span<const float>(got),
                          std::span<const float>(want).subspan((length - 500) * 45, 45)))
        << length;
  }
}

TEST_F(SessionUse, AStepWithABadTurnChangesNothing) {
  Decoder decoder(compute_, *model_);
  Sequence good(compute_, *model_, 10), full(compute_, *model_, 2);
  const std::vector<TokenId> three(3, 1);
  const Turn turns[]{{&good, three, false}, {&full, three, false}};
  ASSERT_FALSE(decoder.step(turns, nullptr));
  EXPECT_EQ(good.length(), 0);
  EXPECT_EQ(full.length(), 0);
}

TEST_F(SessionUse, Errors) {
  Session session(compute_, *model_, 10);
  const std::vector<TokenId> seven(7, 1), four(4, 1);
  Logits logits(45);
  ASSERT_TRUE(session.append(seven, nullptr));
  const auto full = session.append(four, logits.data());
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().message,
            "4 tokens do not fit in the context: 7 of 10 are in use (-c sets its size)");
  for (const TokenId bad : {-1, 45, 1 << 30}) {
    const auto outside = session.append(std::vector<TokenId>{1, bad}, logits.data());
    ASSERT_FALSE(outside);
    EXPECT_EQ(outside.error().message,
              "token " + std::to_string(bad) + " is not in the vocabulary of 45");
  }
  EXPECT_EQ(session.length(), 7);  // an error changes nothing
  EXPECT_TRUE(session.append(std::vector<TokenId>{1, 2, 3}, logits.data()));
  EXPECT_EQ(session.length(), 10);
  EXPECT_TRUE(session.append({}, nullptr));  // nothing to do
}

}  // namespace
}  // namespace trimpot
