// The bodies of requests that generate text, checked and made into jobs.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "serve/api_error.h"
#include "serve/fields.h"
#include "serve/ticket.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace trimpot::serve {

// What requests are checked against.
struct RequestLimits {
  std::int64_t context = 2048;  // tokens of a prompt with its answer
  std::size_t most_jobs = 256;  // continuations of one request
};

struct GenerationRequest {
  std::string model;
  // llama-server's way to choose: an adapter's number (Served::version), or 0 for the base.
  std::optional<std::uint64_t> adapter;
  std::vector<Job> jobs;             // prompt by prompt; its `n` choices one after the other
  std::vector<std::string> prompts;  // of /v1/completions with echo: the prompts as texts
  std::int64_t choices = 1;          // of each prompt
  bool chat = false;
  bool echo = false;
  bool stream = false;
  bool stream_usage = false;
};

Parsed<GenerationRequest> read_completion(const Json& body, const Tokenizer& tokenizer,
                                          const RequestLimits& limits);
// `chat` null: the model has no template (an error).
Parsed<GenerationRequest> read_chat(const Json& body, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat, const RequestLimits& limits);

}  // namespace trimpot::serve
