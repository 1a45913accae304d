// One line that tells how a run is going:
//   step 12/300  loss 1.234  lr 5.0e-03  1234 tok/s  231 MB  ETA 0:42
// redrawn in place on a terminal, otherwise printed now and then.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace trimpot {

struct ProgressOptions {
  std::uint64_t total_steps = 0;
  std::uint64_t first_step = 0;  // steps that were finished before (resume): they took no time now
  bool terminal = false;         // redraw with a carriage return
  bool quiet = false;            // nothing at all
  std::uint64_t every_steps = 10;  // not on a terminal: a line every so many steps ...
  double every_seconds = 10.0;     // ... or so many seconds, whichever comes first
};

struct ProgressState {
  std::uint64_t step = 0;  // finished steps, so from 1
  double loss = 0.0;
  double learning_rate = 0.0;
  double tokens_per_second = 0.0;
  std::uint64_t memory_bytes = 0;  // left out where 0
};

class Progress {
 public:
  using Sink = std::function<void(std::string_view)>;  // for a command: write to stderr
  using Clock = std::function<double()>;               // seconds from any start, never backwards
  // Without a clock: the steady clock.
  Progress(ProgressOptions options, Sink sink, Clock clock = {});

  void update(const ProgressState& state);
  // A line of its own, such as a validation result; a drawn progress line is moved below it.
  void message(std::string_view text);
  // Leaves the last state on the screen and ends its line. Also called by the destructor.
  void finish();
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  std::string format(const ProgressState& state) const;
  void draw(const std::string& line);

  ProgressOptions options_;
  Sink sink_;
  Clock clock_;
  double start_ = 0.0;
  double last_time_ = 0.0;       // of the last line shown
  std::uint64_t last_step_ = 0;  // of the last line shown
  ProgressState state_;          // the latest
  std::size_t drawn_width_ = 0;  // characters of the line that stands on the terminal
  bool pending_ = false;         // state_ was not shown yet
};

// "0:42", "12:05", "3:04:05"; "?" for what is not a number or beyond 999 hours.
std::string format_duration(double seconds);

}  // namespace trimpot
