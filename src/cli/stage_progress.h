// Progress of work that knows which part of it is done: "quantizing layer 3 of 30  10 %  ETA 0:42",
// redrawn on a terminal, otherwise a line every ten seconds.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "tune/progress.h"

namespace trimpot::cli {

class StageProgress {
 public:
  explicit StageProgress(bool quiet)
      : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0), start_(Clock::now()) {}
  ~StageProgress() { finish(); }

  // `done` in [0, 1].
  void update(double done, const std::string& what) {
    const double waited = std::chrono::duration<double>(Clock::now() - last_).count();
    if (quiet_ || waited < (terminal_ ? 0.1 : 10.0)) return;
    last_ = Clock::now();
    const double elapsed = std::chrono::duration<double>(last_ - start_).count();
    const std::string line =
        fmt::format("{}  {:.0f} %  ETA {}", what, done * 100,
                    format_duration(done > 0 ? elapsed / done * (1 - done) : -1.0));
    if (terminal_) {
      std::fprintf(stderr, "\r%-*s", static_cast<int>(width_), line.c_str());
      width_ = line.size();
    } else {
      std::fprintf(stderr, "%s\n", line.c_str());
    }
    std::fflush(stderr);
  }
  void finish() {
    if (width_ > 0) std::fprintf(stderr, "\r%-*s\r", static_cast<int>(width_), "");
    width_ = 0;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool quiet_, terminal_;
  std::size_t width_ = 0;
  Clock::time_point start_, last_;
};

}  // namespace trimpot::cli
