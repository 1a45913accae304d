// Splits, epoch orders, packing and steps.
#include "data/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "base/rng.h"

namespace trimpot {
namespace {

std::vector<std::uint32_t> iota(std::size_t size, std::uint32_t from = 0) {
  std::vector<std::uint32_t> result(size);
  std::iota(result.begin(), result.end(), from);
  return result;
}

std::vector<std::size_t> lengths(std::size_t size) {
  std::vector<std::size_t> result(size);
  for (std::size_t i = 0; i < size; ++i) result[i] = 5 + CounterRng(3, 0).below(i, 90);
  return result;
}

// The examples of all steps of an epoch, in order.
std::vector<std::uint32_t> epoch_of(BatchPlan& plan, std::uint64_t epoch) {
  std::vector<std::uint32_t> seen;
  for (std::uint64_t s = 0; s < plan.steps_per_epoch(); ++s)
    for (const ExampleIndices& sequence : plan.step(epoch * plan.steps_per_epoch() + s))
      seen.insert(seen.end(), sequence.begin(), sequence.end());
  return seen;
}

std::vector<std::uint32_t> sorted(std::vector<std::uint32_t> values) {
  std::sort(values.begin(), values.end());
  return values;
}

// Catches: an example lost or doubled by the shuffle, the packing or the last smaller step; an
// order that repeats in the next epoch or ignores the seed.
TEST(Batches, EveryEpochSeesEveryExampleOnceInItsOwnOrder) {
  const auto training = iota(103, 1000);
  for (const bool packing : {false, true}) {
    BatchOptions options{
        .sequences_per_step = 4, .seed = 7, .packing = packing, .max_seq_length = 128};
    auto plan = BatchPlan::create(training, lengths(103), options);
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->steps_per_epoch(), (plan->sequences() + 3) / 4);
    const auto first = epoch_of(*plan, 0);
    const auto second = epoch_of(*plan, 1);
    EXPECT_EQ(sorted(first), training);
    EXPECT_EQ(sorted(second), training);
    EXPECT_NE(first, second);
    EXPECT_NE(first, training);
    options.seed = 8;
    auto other = BatchPlan::create(training, lengths(103), options);
    ASSERT_TRUE(other);
    EXPECT_NE(epoch_of(*other, 0), first);
  }
}

// Catches: state that a resumed run does not have.
TEST(Batches, AStepDependsOnItsNumberAlone) {
  const BatchOptions options{.sequences_per_step = 3, .seed = 1, .packing = true};
  auto plan = BatchPlan::create(iota(50), lengths(50), options);
  ASSERT_TRUE(plan);
  std::vector<std::vector<ExampleIndices>> forward;
  for (std::uint64_t s = 0; s < 12; ++s) forward.push_back(plan->step(s));
  for (const std::uint64_t s : {11u, 0u, 7u, 3u}) {
    auto fresh = BatchPlan::create(iota(50), lengths(50), options);
    ASSERT_TRUE(fresh);
    EXPECT_EQ(fresh->step(s), forward[s]);
    EXPECT_EQ(plan->step(s), forward[s]);
  }
}

TEST(Batches, WithoutShuffleFileOrder) {
  const BatchOptions options{.sequences_per_step = 4, .shuffle = false};
  auto plan = BatchPlan::create(iota(10), lengths(10), options);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->steps_per_epoch(), 3u);
  EXPECT_EQ(epoch_of(*plan, 0), iota(10));
  EXPECT_EQ(epoch_of(*plan, 5), iota(10));
  EXPECT_EQ(plan->step(2).size(), 2u);  // the smaller last one
  EXPECT_EQ(plan->step(3).size(), 4u);
}

// Catches: sequences that are too long, and packing that does not pack. 2000 examples of mean 49.5
// tokens cannot need fewer than 2000 * 49.5 / 512 sequences; first fit stays within a few percent.
TEST(Batches, PackingFillsSequences) {
  const auto size = lengths(2000);
  const BatchOptions options{.sequences_per_step = 1, .packing = true, .max_seq_length = 512};
  auto plan = BatchPlan::create(iota(2000), size, options);
  ASSERT_TRUE(plan);
  for (std::uint64_t s = 0; s < plan->steps_per_epoch(); ++s)
    for (const ExampleIndices& sequence : plan->step(s)) {
      std::size_t tokens = 0;
      for (const std::uint32_t example : sequence) tokens += size[example];
      EXPECT_LE(tokens, 512u);
    }
  const double total =
      static_cast<double>(std::accumulate(size.begin(), size.end(), std::size_t{0}));
  EXPECT_LE(static_cast<double>(plan->sequences()), 1.05 * total / 512 + 1);
}

// An example longer than the limit stands alone rather than underflow the room.
TEST(Batches, PackingSurvivesAnExampleThatIsTooLong) {
  const std::vector<std::size_t> size{600, 10, 20, 600};
  auto plan = BatchPlan::create(iota(4), size, {.packing = true, .max_seq_length = 512});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->sequences(), 3u);
}

TEST(Batches, TotalSteps) {
  auto plan = BatchPlan::create(iota(10), lengths(10), {.sequences_per_step = 4});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->total_steps(2.0, 0), 6u);
  EXPECT_EQ(plan->total_steps(0.5, 0), 2u);
  EXPECT_EQ(plan->total_steps(2.0, 17), 17u);  // max_steps wins
  EXPECT_FALSE(plan->total_steps(0.0, 0));
  EXPECT_FALSE(plan->total_steps(std::nan(""), 0));
  EXPECT_FALSE(plan->total_steps(1e300, 0));
}

TEST(Batches, ErrorsForNothingToDo) {
  EXPECT_FALSE(BatchPlan::create({}, {}, {}));
  EXPECT_FALSE(BatchPlan::create(iota(2), lengths(2), {.sequences_per_step = 0}));
  EXPECT_FALSE(BatchPlan::create(iota(2), lengths(3), {}));
}

// Catches: parts that overlap or lose an example, a fraction rounded to nothing, a split that
// differs between runs or stays the same for every seed.
TEST(Split, IsAPartitionChosenBySeed) {
  const auto split = split_examples(100, 0.101, 5, false);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->validation.size(), 11u);
  auto all = split->training;
  all.insert(all.end(), split->validation.begin(), split->validation.end());
  EXPECT_EQ(sorted(all), iota(100));
  EXPECT_TRUE(std::is_sorted(split->validation.begin(), split->validation.end()));
  EXPECT_EQ(split_examples(100, 0.101, 5, false)->validation, split->validation);
  EXPECT_NE(split_examples(100, 0.101, 6, false)->validation, split->validation);
}

TEST(Split, OfWindowsTakesTheLast) {
  const auto split = split_examples(10, 3, 5, true);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->training, iota(7));
  EXPECT_EQ(split->validation, iota(3, 7));
}

TEST(Split, CountsAndErrors) {
  EXPECT_EQ(split_examples(10, 0.0, 1, false)->validation.size(), 0u);
  EXPECT_EQ(split_examples(10, 1.0, 1, false)->validation.size(), 1u);
  EXPECT_EQ(split_examples(10, 0.001, 1, false)->validation.size(), 1u);
  for (const double bad : {-0.1, 1.5, 10.0, 1e300, std::nan(""), 0.99})
    EXPECT_FALSE(split_examples(10, bad, 1, false)) << bad;
}

}  // namespace
}  // namespace trimpot
