// The scheduler: one thread owns the model and continues all running requests together, a token
// each per step; requests join and leave at every step. Prompts are read in pieces beside the
// tokens of those that are already answering, so that nobody waits for a long prompt to end.
//
// What a request gets depends on its own prompt, adapter, options and seed alone: the decoder
// computes each row the same whatever is beside it, and every job draws from its own numbers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "model/session.h"
#include "serve/overlay_cache.h"
#include "serve/sequence_pool.h"
#include "serve/text_stream.h"
#include "serve/ticket.h"
#include "text/tokenizer.h"

namespace trimpot::serve {

struct EngineOptions {
  std::int64_t context = 2048;                       // most tokens of a prompt with its answer
  std::size_t parallel = 8;                          // continuations that run at once
  std::size_t queue = 256;                           // continuations that may wait
  CacheType cache = CacheType::kFloat;               // of keys and values
  std::size_t cache_bytes = std::size_t{256} << 20;  // for sequences of finished requests
  std::int64_t step_rows = 256;  // tokens of a step: 75 ms for the default model on two cores
};

struct EngineState {
  std::size_t running = 0, waiting = 0;
  std::uint64_t steps = 0;
  double kv_usage = 0;  // share of the running sequences' places that is in use
};

class Engine {
 public:
  // `compute` belongs to the engine from now on. All must outlive it.
  Engine(Compute& compute, const Model& model, const Tokenizer& tokenizer, OverlayCache& overlays,
         const EngineOptions& options);
  ~Engine() { stop(); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  enum class Answer { kAccepted, kQueueFull, kStopping };
  // All jobs of a ticket or none. Its deltas come until each job's last; so they do after cancel().
  Answer submit(std::shared_ptr<Ticket> ticket);
  // No new requests; those at hand go on.
  void drain();
  // Gives up whatever is not done: every ticket gets its end.
  void stop();
  bool idle() const;
  EngineState state() const;
  const EngineOptions& options() const { return options_; }

 private:
  struct Waiting {
    std::shared_ptr<Ticket> ticket;
    std::size_t job;
  };
  struct Running {
    Running(const Waiting& from, Slot& slot, OverlayPtr overlay);
    const Job& job() const { return ticket->jobs[delta.job]; }
    bool reads_prompt() const { return read < job().prompt.size(); }

    std::shared_ptr<Ticket> ticket;
    Slot* slot;
    OverlayPtr overlay;
    std::size_t read;   // tokens of the prompt that the slot holds
    TokenId last = -1;  // drawn, and not in the slot yet
    std::int64_t drawn = 0;
    Sampler sampler;
    TextStream text;
    Delta delta;
  };
  // A share of a step.
  struct Share {
    Running* running;
    std::int64_t row;          // first row of it in the step
    std::int64_t count;        // rows
    std::int64_t logits = -1;  // row of the logits after it; -1: not wanted
  };

  void run();
  void admit();
  bool admit_one(const Waiting& waiting);
  void give_up_waiting(const Waiting& waiting, Finish finish);
  void drop_hopeless();
  void step();
  void plan(std::vector<Turn>& turns, std::vector<Share>& shares);
  void score_prompt(const Share& share);
  void draw(const std::vector<Share>& shares);
  void accept(Running& running);
  void finish(Running& running, Finish how);
  void flush(Running& running);
  std::optional<Finish> verdict(const Ticket& ticket) const;

  Compute& compute_;
  const Model& model_;
  const Tokenizer& tokenizer_;
  OverlayCache& overlays_;
  const EngineOptions options_;
  Decoder decoder_;
  SequencePool pool_;
  AlignedBuffer<float> logits_;                    // [running, vocabulary]
  AlignedBuffer<float> prompt_logits_;             // [kScoreRows, vocabulary]
  std::vector<std::unique_ptr<Running>> running_;  // in the order in which they were admitted

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Waiting> waiting_;
  bool draining_ = false, stopping_ = false;
  EngineState state_;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace trimpot::serve
