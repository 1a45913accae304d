// The progress line on a terminal, in a log, and when quiet.
#include "tune/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace trimpot {
namespace {

struct Screen {
  std::string text;
  double now = 100.0;
  Progress::Sink sink() {
    return [this](std::string_view part) { text += part; };
  }
  Progress::Clock clock() {
    return [this] { return now; };
  }
};

ProgressState state(std::uint64_t step) { return {step, 1.2341, 5e-3, 1234.4, 231000000}; }

TEST(Progress, ShowsTheLineOfTheManual) {
  Screen screen;
  Progress progress({.total_steps = 300, .terminal = true}, screen.sink(), screen.clock());
  screen.now += 1.75;
  progress.update(state(12));
  EXPECT_EQ(screen.text, "\rstep 12/300  loss 1.234  lr 5.0e-03  1234 tok/s  231 MB  ETA 0:42");
}

// Catches: the rest of a longer line left on the screen, a redraw per step, a last state that is
// never shown.
TEST(Progress, RedrawsInPlaceOnATerminal) {
  Screen screen;
  Progress progress({.total_steps = 1000, .terminal = true}, screen.sink(), screen.clock());
  screen.now += 3600 * 50;
  progress.update(state(1));
  const std::size_t width = screen.text.size() - 1;
  screen.text.clear();
  screen.now += 0.01;
  progress.update(state(2));
  EXPECT_EQ(screen.text, "");  // too soon
  screen.now += 0.2;
  ProgressState small = state(3);
  small.memory_bytes = 0;
  progress.update(small);
  EXPECT_EQ(screen.text.size(), width + 1);
  EXPECT_EQ(screen.text.back(), ' ');
  screen.text.clear();
  screen.now += 0.01;
  progress.update(state(4));
  progress.finish();
  EXPECT_NE(screen.text.find("step 4/1000"), std::string::npos);
  EXPECT_EQ(screen.text.back(), '\n');
  screen.text.clear();
  progress.finish();
  EXPECT_EQ(screen.text, "");
}

TEST(Progress, MessagesStandOnTheirOwnLine) {
  Screen screen;
  Progress progress({.total_steps = 10, .terminal = true}, screen.sink(), screen.clock());
  progress.message("before");
  EXPECT_EQ(screen.text, "before\n");
  progress.update(state(1));
  screen.text.clear();
  progress.message("eval loss 1.0");
  EXPECT_EQ(screen.text.find("\reval loss 1.0 "), 0u);
  EXPECT_NE(screen.text.find("\n\rstep 1/10"), std::string::npos);
}

// Catches: carriage returns in a log file, a line per step, silence for minutes.
TEST(Progress, PrintsLinesNowAndThenElsewhere) {
  Screen screen;
  Progress progress({.total_steps = 100, .every_steps = 10, .every_seconds = 10.0}, screen.sink(),
                    screen.clock());
  for (std::uint64_t step = 1; step <= 100; ++step) {
    screen.now += step <= 50 ? 0.1 : 11.0;
    progress.update(state(step));
  }
  progress.finish();
  EXPECT_EQ(screen.text.find('\r'), std::string::npos);
  // The first, 11, 21, 31, 41, then every one.
  EXPECT_EQ(std::count(screen.text.begin(), screen.text.end(), '\n'), 5 + 50);
  EXPECT_NE(screen.text.find("step 100/100"), std::string::npos);
}

TEST(Progress, QuietSaysNothing) {
  Screen screen;
  Progress progress({.total_steps = 1, .terminal = true, .quiet = true}, screen.sink(),
                    screen.clock());
  progress.update(state(1));
  progress.message("text");
  progress.finish();
  EXPECT_EQ(screen.text, "");
}

// Catches: an ETA that counts the steps of before the resume as done in no time.
TEST(Progress, EstimateCountsFromTheResumedStep) {
  Screen screen;
  Progress progress({.total_steps = 100, .first_step = 90, .terminal = true}, screen.sink(),
                    screen.clock());
  screen.now += 10.0;
  progress.update(state(91));
  EXPECT_NE(screen.text.find("ETA 1:30"), std::string::npos) << screen.text;
}

TEST(Progress, Durations) {
  EXPECT_EQ(format_duration(0.0), "0:00");
  EXPECT_EQ(format_duration(41.2), "0:42");
  EXPECT_EQ(format_duration(725.0), "12:05");
  EXPECT_EQ(format_duration(11045.0), "3:04:05");
  for (const double odd : {-1.0, std::nan(""), HUGE_VAL, 1e18})
    EXPECT_EQ(format_duration(odd), "?");
}

}  // namespace
}  // namespace trimpot
