// Recognises chat templates (Jinja source text) of the ChatML family. Private to this room.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace trimpot::text {

struct ChatMl {
  // The text of the system message that goes in front when the first message is not a system
  // message; nothing if the template inserts none.
  std::optional<std::string> default_system;
};

// Reads `source` as Hugging Face renders it (Jinja with trim_blocks and lstrip_blocks) and accepts
// exactly this program, whatever its quoting, spacing or splitting into statements:
//
//   [ if not add_generation_prompt is defined: set add_generation_prompt = false ]
//   for message in messages:
//     [ if loop.first and messages[0]['role'] != 'system': "<|im_start|>system\nTEXT<|im_end|>\n" ]
//     "<|im_start|>" + message['role'] + "\n" + message['content'] + "<|im_end|>\n"
//   if add_generation_prompt: "<|im_start|>assistant\n"
//
// Everything else is an error whose message says what was met (without the file's name).
Result<ChatMl> match_chatml(std::string_view source);

}  // namespace trimpot::text
