// Training records as people have them, brought to two neutral forms: a conversation, or a text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"

namespace trimpot {

struct Record {
  enum class Kind { kMessages, kText };
  Kind kind = Kind::kMessages;
  std::vector<Message> messages;  // kMessages: never empty; roles are system, user or assistant
  std::string text;               // kText
  std::size_t line = 0;           // in the file, from 1
};

struct RecordFile {
  std::vector<Record> records;  // of a plain text file: one, the whole text
  bool plain_text = false;
};

// Reads a training file. What it is, its content says: a first character [ means a JSON array of
// records, { means JSON Lines (one record a line), anything else, or a name that ends in .txt,
// means plain text. A byte order mark, CRLF and blank lines are fine, and so are records of
// different kinds in one file. A record is an object with
//   {"messages": [{"role": "system|user|assistant", "content": "..."}, ...]}      a conversation
//   {"conversations": [{"from": "system|human|user|gpt|assistant", "value": "..."}, ...]} ShareGPT
//   {"prompt": ..., "completion": ...}      strings: one user and one assistant message, through
//                                           the model's chat template; or two lists of messages
//   {"instruction": "...", "input": "...", "output": "..."}   Alpaca: user = instruction, a blank
//                                           line, input (optional; "<noinput>" counts as none)
//   {"question": "...", "answer": "..."}    as prompt and completion
//   {"text": "..."}                         as it stands, without a template
// Where several fit, the first of this list counts; other fields are ignored, but a string
// "system" beside ShareGPT or Alpaca fields becomes the system message.
// Errors name file and line (in an array, record and line), the field, and what is expected: no
// file, no record, broken JSON, text that is not UTF-8, a field that is missing or of another type.
Result<RecordFile> read_records(const std::string& path);

// The same for text in memory; `path` is for messages and for the ending .txt.
Result<RecordFile> parse_records(const std::string& path, std::string_view text);

}  // namespace trimpot
