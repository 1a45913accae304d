#include "sys/thread_team.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

namespace trimpot {
namespace {

// Every index once, whoever does it, and stretches that join without gaps.
TEST(ThreadTeam, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadTeam team(threads);
    for (const std::int64_t count : {0, 1, 7, 64, 1000})
      for (const std::int64_t grain : {1, 3, 2000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
        team.for_each(count, grain, [&](std::int64_t begin, std::int64_t end, int member) {
          ASSERT_LT(member, threads);
          for (; begin < end; ++begin) ++seen[static_cast<std::size_t>(begin)];
        });
        for (const auto& times : seen) ASSERT_EQ(times, 1) << count << " by " << grain;
        EXPECT_EQ(team.stretch_begin(count, grain, 0), 0);
        EXPECT_EQ(team.stretch_begin(count, grain, threads), count);
      }
  }
}

// Work that arrives while a member still reads ahead is done at once, and what it reads may change
// or go away under it.
TEST(ThreadTeam, WorkComesBeforeReadingAhead) {
  ThreadTeam team(3);
  for (int round = 0; round < 300; ++round) {
    auto memory = std::make_unique<std::array<std::byte, 100000>>();
    const std::span<const std::byte> all(*memory);
    // More ranges than a member takes; empty ones; one of a byte.
    std::vector<std::span<const std::byte>> ranges(ThreadTeam::kMostAhead + 3, all);
    ranges[1] = {};
    ranges[2] = all.first(1);
    team.read_ahead(1, ranges);
    team.read_ahead(2, std::span(ranges).first(static_cast<std::size_t>(round % 4)));
    memory.reset();
    std::atomic<int> sum = 0;
    team.for_each(10, 1,
                  [&](std::int64_t begin, std::int64_t, int) { sum += static_cast<int>(begin); });
    ASSERT_EQ(sum, 45);
  }
}

// Runs follow each other so closely that members come late for many: none may take part in a run
// that is over (its context is gone), and none may be missing from one that it has begun.
TEST(ThreadTeam, LateMembersAreNotWaitedFor) {
  ThreadTeam team(8);  // more than there are cores
  for (int round = 0; round < 20000; ++round) {
    auto sums = std::make_unique<std::array<std::int64_t, 16>>();
    team.for_each(16, 1, [sums = sums.get(), round](std::int64_t i, std::int64_t, int) {
      (*sums)[static_cast<std::size_t>(i)] = i + round;
    });
    std::int64_t total = 0;
    for (const std::int64_t sum : *sums) total += sum;
    ASSERT_EQ(total, 120 + 16 * std::int64_t{round});
  }
}

}  // namespace
}  // namespace trimpot
