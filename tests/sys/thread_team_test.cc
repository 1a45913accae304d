#include "sys/thread_team.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <memory>
#include <new>
#include <thread>
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

// An exception of any member comes out of for_each() when nobody works on any more, and the team
// goes on. Catches: a member's exception that ends the program, one that leaves while others still
// use what it unwinds, one that is told again after the next run.
TEST(ThreadTeam, ExceptionsReachTheCaller) {
  for (const int threads : {1, 2, 3}) {
    ThreadTeam team(threads);
    for (int failing = 0; failing < 40; ++failing) {
      std::atomic<int> at_work = 0;
      const auto body = [&](std::int64_t begin, std::int64_t, int) {
        ++at_work;
        if (begin == failing) {
          --at_work;
          throw std::bad_alloc();
        }
        --at_work;
      };
      EXPECT_THROW(team.for_each(40, 1, body), std::bad_alloc);
      ASSERT_EQ(at_work, 0);
      std::atomic<int> done = 0;
      team.for_each(40, 1, [&](std::int64_t, std::int64_t, int) { ++done; });
      ASSERT_EQ(done, 40);
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
    std::atomic<int> sum = 0, told = 0;
    const auto add = [&](std::int64_t begin, std::int64_t, int member) {
      sum += static_cast<int>(begin);
      if (!team.wants_ahead(member)) return;
      ++told;
      const auto count = static_cast<std::size_t>(round % 4);
      team.read_ahead(member, member == 1 ? ranges : std::span(ranges).first(count));
    };
    team.for_each(10, 1, add);
    ASSERT_LE(told, 2);
    memory.reset();
    team.for_each(10, 1, add);
    ASSERT_EQ(sum, 90);
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

// Members that are done take over what others have not begun, which is not over before they are.
TEST(ThreadTeam, MembersHelpEachOther) {
  ThreadTeam team(3);
  std::array<int, 3> pieces{};
  for (int round = 0; round < 300; ++round) {
    auto done = std::make_unique<std::array<int, 30>>();
    team.for_each(30, 1, [&, done = done.get()](std::int64_t i, std::int64_t, int member) {
      const bool slow = i / 10 == round % 3;  // this one's stretch
      if (slow) std::this_thread::sleep_for(std::chrono::microseconds(100));
      ++pieces[static_cast<std::size_t>(member)];
      (*done)[static_cast<std::size_t>(i)] = round + 1;
    });
    for (const int number : *done) ASSERT_EQ(number, round + 1);
  }
  EXPECT_EQ(pieces[0] + pieces[1] + pieces[2], 9000);
}

}  // namespace
}  // namespace trimpot
