// Greedy answers against expected ones: exact match.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "data/records.h"
#include "model/session.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace trimpot {

struct MatchItem {
  std::string question;  // the last user message
  std::string expected;
  std::string answer;
  bool exact = false;  // equal after cutting white space off both ends
};

struct MatchResult {
  std::int64_t total = 0;
  std::int64_t exact = 0;
  std::vector<MatchItem> items;
};

struct MatchOptions {
  std::int64_t limit = 0;         // records to score; 0: all
  std::int64_t max_tokens = 256;  // of an answer
};

// Every record must end with an assistant message, which is what is expected; the messages before
// it are the prompt. `progress` is called after each record and returns false to stop early.
// Errors: records without an answer, a prompt longer than the model's context (naming the line).
Result<MatchResult> exact_match(Compute& compute, const Model& model, const Tokenizer& tokenizer,
                                const ChatTemplate& chat_template, const std::string& path,
                                std::span<const Record> records, const MatchOptions& options,
                                const std::function<bool(const MatchResult&)>& progress);

}  // namespace trimpot
