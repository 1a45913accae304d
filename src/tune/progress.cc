#include "tune/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

namespace trimpot {
namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A terminal that is redrawn more often only flickers.
constexpr double kRedrawSeconds = 0.1;

}  // namespace

std::string format_duration(double seconds) {
  if (!(seconds >= 0.0 && seconds < 999.0 * 3600.0)) return "?";
  const auto total = static_cast<std::uint64_t>(std::ceil(seconds));
  if (total < 3600) return fmt::format("{}:{:02}", total / 60, total % 60);
  return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
}

Progress::Progress(ProgressOptions options, Sink sink, Clock clock)
    : options_(options),
      sink_(std::move(sink)),
      clock_(clock ? std::move(clock) : Clock(steady_seconds)) {
  start_ = clock_();
  last_time_ = start_;
  last_step_ = options_.first_step;
}

std::string Progress::format(const ProgressState& state) const {
  std::string line =
      fmt::format("step {}/{}  loss {:.3f}  lr {:.1e}  {:.0f} tok/s", state.step,
                  options_.total_steps, state.loss, state.learning_rate, state.tokens_per_second);
  if (state.memory_bytes > 0)
    line += fmt::format("  {:.0f} MB", static_cast<double>(state.memory_bytes) / 1e6);
  const double elapsed = clock_() - start_;
  if (state.step >= options_.total_steps) return line + "  in " + format_duration(elapsed);
  const double done = static_cast<double>(state.step) - static_cast<double>(options_.first_step);
  const double left = static_cast<double>(options_.total_steps - state.step);
  return line + "  ETA " + format_duration(done > 0.0 ? elapsed / done * left : -1.0);
}

void Progress::draw(const std::string& line) {
  last_time_ = clock_();
  last_step_ = state_.step;
  pending_ = false;
  if (!options_.terminal) {
    sink_(line + "\n");
    return;
  }
  // Blanks wipe what a longer line left behind; no escape codes needed.
  const std::size_t blanks = drawn_width_ > line.size() ? drawn_width_ - line.size() : 0;
  sink_("\r" + line + std::string(blanks, ' '));
  drawn_width_ = line.size();
}

void Progress::update(const ProgressState& state) {
  if (options_.quiet) return;
  const bool first = state_.step == 0;
  state_ = state;
  pending_ = true;
  const double waited = clock_() - last_time_;
  const bool last = state.step >= options_.total_steps;
  const bool due = options_.terminal ? waited >= kRedrawSeconds
                                     : waited >= options_.every_seconds ||
                                           state.step >= last_step_ + std::max<std::uint64_t>(
                                                                          1, options_.every_steps);
  if (first || last || due) draw(format(state));
}

void Progress::message(std::string_view text) {
  if (options_.quiet) return;
  if (!options_.terminal || drawn_width_ == 0) {
    sink_(std::string(text) + "\n");
    return;
  }
  const std::size_t blanks = drawn_width_ > text.size() ? drawn_width_ - text.size() : 0;
  sink_("\r" + std::string(text) + std::string(blanks, ' ') + "\n");
  drawn_width_ = 0;
  draw(format(state_));
}

void Progress::finish() {
  if (options_.quiet) return;
  if (pending_) draw(format(state_));
  if (drawn_width_ > 0) sink_("\n");
  drawn_width_ = 0;
}

}  // namespace trimpot
