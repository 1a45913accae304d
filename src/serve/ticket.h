// A request on its way through the engine: what is wanted, and what has been made so far.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/sampler.h"
#include "serve/served.h"

namespace trimpot::serve {

using Clock = std::chrono::steady_clock;

// One continuation of one prompt.
struct Job {
  std::vector<TokenId> prompt;  // 1 .. context tokens of the vocabulary
  std::int64_t max_tokens = 0;
  SamplerOptions sampler;
  std::vector<std::string> stop;
  bool ignore_end = false;  // goes on after a token that ends a text
  // Log-probabilities: of each generated token and of the `top` likeliest ones (0: only of the
  // token itself); -1: none. With `score_prompt` also of the prompt's tokens.
  int top = -1;
  bool score_prompt = false;
  // Index of a job of the same ticket with the same prompt: this one starts when that has read it.
  int leader = -1;
};

// Natural logarithms. Where the token is among the top, both are the same number.
struct TokenScore {
  TokenId token = 0;
  double logprob = 0;  // NaN: the first token of a prompt, which nothing predicts
  std::vector<std::pair<TokenId, double>> top;  // likeliest first; the lower id among equals
};

enum class Finish { kStop, kLength, kCancelled, kTimeout, kShutdown, kNoMemory };

// What one job made since the last delta.
struct Delta {
  std::size_t job = 0;
  std::string text;
  std::vector<TokenScore> prompt_scores, scores;
  std::int64_t tokens = 0;
  std::int64_t cached_tokens = 0;  // set in a job's last delta
  std::optional<Finish> finish;    // in the last one

  bool empty() const { return text.empty() && scores.empty() && prompt_scores.empty() && !finish; }
};

class Ticket {
 public:
  // Set before it is handed to the engine, not changed after.
  std::vector<Job> jobs;
  ServedPtr served;
  bool stream = false;  // deltas come as they are made; otherwise one per job, at its end
  Clock::time_point arrived = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();

  // May be called by any thread at any time: the engine gives up at its next step.
  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

  // Waits for a delta; nothing if none came in time.
  std::optional<Delta> next(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, patience, [this] { return !deltas_.empty(); })) return {};
    Delta delta = std::move(deltas_.front());
    deltas_.pop_front();
    return delta;
  }
  void push(Delta delta) {
    const std::lock_guard lock(mutex_);
    deltas_.push_back(std::move(delta));
    changed_.notify_one();
  }

 private:
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Delta> deltas_;
};

}  // namespace trimpot::serve
