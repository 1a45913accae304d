#include "serve/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "serve/scores.h"

namespace trimpot::serve {
namespace {

constexpr std::int64_t kScoreRows = 48;        // 9 MB of logits for 49,152 tokens
constexpr std::int64_t kLeastPromptRows = 64;  // of a step, however many are answering

// Sequences of finished requests that fit into the memory for them.
std::size_t idle_slots(const Compute& compute, const Model& model, const EngineOptions& options) {
  const std::size_t number = options.cache == CacheType::kInt8      ? 1
                             : compute.precision == Precision::kF32 ? 4
                                                                    : 2;
  const std::size_t bytes = 2 * number * model.layers.size() *
                            static_cast<std::size_t>(model.config.attention.kv_width()) *
                            static_cast<std::size_t>(options.context);
  return options.cache_bytes / std::max<std::size_t>(bytes, 1);
}

double seconds_since(Clock::time_point time) {
  return std::chrono::duration<double>(Clock::now() - time).count();
}

}  // namespace

Engine::Running::Running(const Waiting& from, Slot& slot, OverlayPtr overlay)
    : ticket(from.ticket),
      slot(&slot),
      overlay(std::move(overlay)),
      read(slot.tokens.size()),
      sampler(from.ticket->jobs[from.job].sampler),
      text(from.ticket->jobs[from.job].stop) {
  delta.job = from.job;
  delta.cached_tokens = static_cast<std::int64_t>(read);
}

Engine::Engine(Compute& compute, const Model& model, const Tokenizer& tokenizer,
               OverlayCache& overlays, const EngineOptions& options)
    : compute_(compute),
      model_(model),
      tokenizer_(tokenizer),
      overlays_(overlays),
      options_(options),
      decoder_(compute, model),
      pool_(compute, model, options.context, options.cache,
            options.parallel + idle_slots(compute, model, options)),
      thread_([this] { run(); }) {}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = draining_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

Engine::Answer Engine::submit(std::shared_ptr<Ticket> ticket) {
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return Answer::kStopping;
    if (waiting_.size() + ticket->jobs.size() > options_.queue) return Answer::kQueueFull;
    for (std::size_t job = 0; job < ticket->jobs.size(); ++job) waiting_.push_back({ticket, job});
    ticket->served->usage.waiting += static_cast<std::int64_t>(ticket->jobs.size());
  }
  wake_.notify_one();
  return Answer::kAccepted;
}

void Engine::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Engine::idle() const {
  const std::lock_guard lock(mutex_);
  return state_.running == 0 && waiting_.empty();
}

EngineState Engine::state() const {
  const std::lock_guard lock(mutex_);
  EngineState state = state_;
  state.waiting = waiting_.size();
  return state;
}

void Engine::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      state_.running = running_.size();
      state_.kv_usage =
          static_cast<double>(pool_.busy_tokens()) /
          (static_cast<double>(options_.parallel) * static_cast<double>(options_.context));
      if (running_.empty()) wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    }
    drop_hopeless();
    admit();
    if (running_.empty()) {
      const std::lock_guard lock(mutex_);
      if (stopping_ && waiting_.empty()) return;
      continue;
    }
    try {
      step();
    } catch (const std::bad_alloc&) {
      while (!running_.empty()) finish(*running_.back(), Finish::kNoMemory);
    }
  }
}

std::optional<Finish> Engine::verdict(const Ticket& ticket) const {
  if (stopping_) return Finish::kShutdown;
  if (ticket.cancelled()) return Finish::kCancelled;
  if (Clock::now() >= ticket.deadline) return Finish::kTimeout;
  return {};
}

void Engine::drop_hopeless() {
  std::vector<std::pair<Waiting, Finish>> dropped;
  std::vector<std::pair<Running*, Finish>> ended;
  {
    const std::lock_guard lock(mutex_);
    for (auto waiting = waiting_.begin(); waiting != waiting_.end();) {
      const auto end = verdict(*waiting->ticket);
      if (end) dropped.emplace_back(*waiting, *end);
      waiting = end ? waiting_.erase(waiting) : waiting + 1;
    }
    for (const auto& running : running_)
      if (const auto end = verdict(*running->ticket)) ended.emplace_back(running.get(), *end);
  }
  for (const auto& [waiting, end] : dropped) give_up_waiting(waiting, end);
  for (const auto& [running, end] : ended) finish(*running, end);
}

void Engine::give_up_waiting(const Waiting& waiting, Finish finish) {
  Usage& usage = waiting.ticket->served->usage;
  --usage.waiting;
  ++(finish == Finish::kCancelled ? usage.cancelled : usage.failed);
  Delta delta;
  delta.job = waiting.job;
  delta.finish = finish;
  waiting.ticket->push(std::move(delta));
}

void Engine::admit() {
  std::unique_lock lock(mutex_);
  for (std::size_t i = 0; i < waiting_.size() && running_.size() < options_.parallel;) {
    const Waiting waiting = waiting_[i];
    lock.unlock();
    const bool admitted = admit_one(waiting);
    lock.lock();
    // Only this thread takes from the queue, and others only add at its end.
    if (admitted)
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    else
      ++i;
  }
  state_.running = running_.size();
}

bool Engine::admit_one(const Waiting& waiting) {
  const Job& job = waiting.ticket->jobs[waiting.job];
  const Served& served = *waiting.ticket->served;
  if (job.leader >= 0)
    for (const auto& running : running_)
      if (running->ticket == waiting.ticket &&
          running->delta.job == static_cast<std::size_t>(job.leader) && running->reads_prompt())
        return false;
  // The last token has to be computed anyway, for what comes after it.
  const std::size_t limit = job.score_prompt ? 0 : job.prompt.size() - 1;
  const auto length = static_cast<std::int64_t>(job.prompt.size());
  auto overlay = overlays_.of(waiting.ticket->served, &compute_.team);
  Slot* slot = overlay ? pool_.acquire(served.version, job.prompt, limit,
                                       std::min(options_.context, length + job.max_tokens))
                       : nullptr;
  if (slot == nullptr) {
    if (!running_.empty()) return false;
    give_up_waiting(waiting, Finish::kNoMemory);
    return true;
  }
  running_.push_back(std::make_unique<Running>(waiting, *slot, std::move(*overlay)));
  --served.usage.waiting;
  ++served.usage.running;
  served.usage.prompt_tokens += job.prompt.size();
  served.usage.cached_tokens += slot->tokens.size();
  if (job.score_prompt)
    running_.back()->delta.prompt_scores.push_back(
        {job.prompt[0], std::numeric_limits<double>::quiet_NaN(), {}});
  return true;
}

// Those that answer get a row each, then prompts get what is left, the first come first.
void Engine::plan(std::vector<Turn>& turns, std::vector<Share>& shares) {
  std::int64_t rows = 0, wanted = 0;
  const auto add = [&](Running& running, std::span<const TokenId> tokens, bool wants_logits) {
    turns.push_back({&running.slot->sequence, tokens, wants_logits, running.overlay.get(),
                     running.reads_prompt() && running.job().score_prompt});
    shares.push_back(
        {&running, rows, static_cast<std::int64_t>(tokens.size()), wants_logits ? wanted++ : -1});
    rows += static_cast<std::int64_t>(tokens.size());
  };
  for (const auto& running : running_)
    if (!running->reads_prompt()) add(*running, {&running->last, 1}, true);
  const std::int64_t budget = std::max(options_.step_rows, rows + kLeastPromptRows);
  for (const auto& running : running_) {
    if (!running->reads_prompt() || rows >= budget) continue;
    const std::span<const TokenId> rest = std::span(running->job().prompt).subspan(running->read);
    const auto count = std::min(rest.size(), static_cast<std::size_t>(budget - rows));
    add(*running, rest.first(count), count == rest.size() && running->job().max_tokens > 0);
  }
}

void Engine::step() {
  std::vector<Turn> turns;
  std::vector<Share> shares;
  plan(turns, shares);
  logits_.reserve(shares.size() * static_cast<std::size_t>(model_.config.vocabulary));
  // Prompts were checked against vocabulary and context when they came, answers end at it.
  if (const Status status = decoder_.step(turns, logits_.data()); !status) {
    for (const Share& share : shares) finish(*share.running, Finish::kNoMemory);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ++state_.steps;
  }
  for (std::size_t i = 0; i < shares.size(); ++i) {
    Running& running = *shares[i].running;
    running.slot->tokens.insert(running.slot->tokens.end(), turns[i].tokens.begin(),
                                turns[i].tokens.end());
    if (!running.reads_prompt()) continue;
    if (running.job().score_prompt) score_prompt(shares[i]);
    running.read += static_cast<std::size_t>(shares[i].count);
  }
  draw(shares);
  for (const Share& share : shares) {
    if (share.logits >= 0)
      accept(*share.running);
    else if (!share.running->reads_prompt())
      finish(*share.running, Finish::kLength);  // nothing was to be generated
    else
      flush(*share.running);
  }
}

void Engine::score_prompt(const Share& share) {
  Running& running = *share.running;
  const Job& job = running.job();
  const std::int64_t vocabulary = model_.config.vocabulary;
  // The row of the prompt's last token predicts what comes after it.
  const auto left = static_cast<std::int64_t>(job.prompt.size() - running.read) - 1;
  const std::int64_t rows = std::min(share.count, left);
  prompt_logits_.reserve(static_cast<std::size_t>(kScoreRows * vocabulary));
  std::vector<TokenScore>& scores = running.delta.prompt_scores;
  for (std::int64_t begin = 0; begin < rows; begin += kScoreRows) {
    const std::int64_t count = std::min(kScoreRows, rows - begin);
    decoder_.logits_of(share.row + begin, count, prompt_logits_.data());
    const std::size_t first = scores.size();
    scores.resize(first + static_cast<std::size_t>(count));
    compute_.team.for_each(count, 1, [&](std::int64_t row, std::int64_t, int) {
      const auto at = static_cast<std::size_t>(row);
      const TokenId token = job.prompt[running.read + static_cast<std::size_t>(begin) + at + 1];
      scores[first + at] = score_token(
          compute_.kernels,
          {prompt_logits_.data() + row * vocabulary, static_cast<std::size_t>(vocabulary)},
          tokenizer_.vocabulary_size(), token, job.top);
    });
  }
}

void Engine::draw(const std::vector<Share>& shares) {
  std::vector<const Share*> drawing;
  for (const Share& share : shares)
    if (share.logits >= 0) drawing.push_back(&share);
  const std::int64_t vocabulary = model_.config.vocabulary;
  std::vector<TokenScore> scores(drawing.size());
  compute_.team.for_each(
      static_cast<std::int64_t>(drawing.size()), 1, [&](std::int64_t i, std::int64_t, int) {
        const Share& share = *drawing[static_cast<std::size_t>(i)];
        Running& running = *share.running;
        const std::span<const float> logits{logits_.data() + share.logits * vocabulary,
                                            static_cast<std::size_t>(vocabulary)};
        running.last = running.sampler.sample(logits.first(tokenizer_.vocabulary_size()));
        if (running.job().top >= 0)
          scores[static_cast<std::size_t>(i)] =
              score_token(compute_.kernels, logits, tokenizer_.vocabulary_size(), running.last,
                          running.job().top);
      });
  for (std::size_t i = 0; i < drawing.size(); ++i) {
    Running& running = *drawing[i]->running;
    if (running.job().top >= 0) running.delta.scores.push_back(std::move(scores[i]));
  }
}

void Engine::accept(Running& running) {
  Usage& usage = running.ticket->served->usage;
  if (running.drawn++ == 0) usage.first_token.add(seconds_since(running.ticket->arrived));
  ++usage.generated_tokens;
  ++running.delta.tokens;
  if (tokenizer_.is_end_of_generation(running.last) && !running.job().ignore_end)
    return finish(running, Finish::kStop);
  if (!tokenizer_.is_control(running.last))
    running.text.add(tokenizer_.token_bytes(running.last), running.delta.text);
  if (running.text.stopped()) return finish(running, Finish::kStop);
  if (running.drawn >= running.job().max_tokens ||
      static_cast<std::int64_t>(running.slot->tokens.size()) >= options_.context)
    return finish(running, Finish::kLength);
  flush(running);
}

void Engine::flush(Running& running) {
  if (!running.ticket->stream || running.delta.empty()) return;
  Delta next;
  next.job = running.delta.job;
  next.cached_tokens = running.delta.cached_tokens;
  std::swap(next, running.delta);
  running.ticket->push(std::move(next));
}

void Engine::finish(Running& running, Finish how) {
  Usage& usage = running.ticket->served->usage;
  running.text.finish(running.delta.text);
  running.delta.finish = how;
  ++(how == Finish::kStop        ? usage.stopped
     : how == Finish::kLength    ? usage.reached_length
     : how == Finish::kCancelled ? usage.cancelled
                                 : usage.failed);
  usage.whole.add(seconds_since(running.ticket->arrived));
  --usage.running;
  pool_.release(*running.slot);
  running.ticket->push(std::move(running.delta));
  std::erase_if(running_, [&](const auto& each) { return each.get() == &running; });
}

}  // namespace trimpot::serve
