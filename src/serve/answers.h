// The bodies of answers to requests that generate text, whole or as server-sent events.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "serve/fields.h"
#include "serve/requests.h"
#include "serve/ticket.h"
#include "text/tokenizer.h"

namespace trimpot::serve {

// A token as OpenAI's API spells it: its text, or "bytes:\xe2\x80" where that is not UTF-8.
std::string token_display(std::string_view bytes);

// The error that a job's end is, if it is one.
std::optional<ApiError> finish_error(Finish finish);

class AnswerWriter {
 public:
  // All are to outlive this. `id`: unique among answers.
  AnswerWriter(const GenerationRequest& request, const Ticket& ticket, const Tokenizer& tokenizer,
               std::uint64_t id);

  // One event for a delta of a streaming ticket.
  std::string event(const Delta& delta);
  // What ends a stream: usage if it was asked for, and [DONE].
  std::string last_events();
  // The whole answer; one last delta per job, in any order.
  std::string whole(const std::vector<Delta>& deltas);

 private:
  // Where a choice's next token begins, in characters.
  struct Progress {
    std::int64_t characters = 0;
    bool begun = false;
  };
  OrderedJson frame(const char* object) const;
  OrderedJson completion_logprobs(const Delta& delta);
  OrderedJson chat_logprobs(const Delta& delta) const;
  OrderedJson choice(const Delta& delta, bool streamed);
  void count(const Delta& delta);
  OrderedJson usage() const;

  const GenerationRequest& request_;
  const Ticket& ticket_;
  const Tokenizer& tokenizer_;
  std::string id_;
  std::int64_t created_;
  std::vector<Progress> progress_;  // by job
  std::int64_t generated_ = 0, cached_ = 0;
};

}  // namespace trimpot::serve
