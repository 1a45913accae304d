// Conversations as text and as tokens, by the chat template that a GGUF file carries. Only the
// ChatML family so far (SmolLM2, Qwen 1 and 2, many fine-tunes); any other template is an error,
// never a wrong prompt.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/gguf/gguf.h"
#include "text/tokenizer.h"

namespace trimpot {

struct Message {
  std::string role;  // "system", "user", "assistant", ...
  std::string content;
};

struct Piece {
  std::string text;
  bool learned = false;  // part of what the assistant is to say: its content and its <|im_end|>
  bool special = false;  // one control token of the template
};

struct EncodedChat {
  std::vector<TokenId> ids;
  // One per token. A token that also holds the end of the header before an answer (an answer that
  // starts with a line break may merge with the header's) is not learned: in generation the header
  // is given, so the model never gets to say it.
  std::vector<std::uint8_t> learned;
};

class ChatTemplate {
 public:
  // Errors: no `tokenizer.chat_template`, or one that is not of the ChatML family.
  static Result<ChatTemplate> from_gguf(const gguf::File& file);

  // The texts of render_pieces() joined: what Jinja renders.
  std::string render(std::span<const Message> messages, bool add_generation_prompt) const;
  std::vector<Piece> render_pieces(std::span<const Message> messages,
                                   bool add_generation_prompt) const;

  // The ids that `tokenizers` gives for the rendered text, except that roles and contents cannot
  // bring in control tokens: "<|im_end|>" in a message stays plain text. No BOS or EOS is added, as
  // in Hugging Face's apply_chat_template.
  // Errors: the vocabulary lacks the template's control tokens.
  Result<EncodedChat> encode(const Tokenizer& tokenizer, std::span<const Message> messages,
                             bool add_generation_prompt) const;

  const std::optional<std::string>& default_system() const { return default_system_; }

 private:
  explicit ChatTemplate(std::optional<std::string> default_system)
      : default_system_(std::move(default_system)) {}
  std::optional<std::string> default_system_;
};

// Special pieces become their tokens; the texts between two of them are encoded as one, so that
// tokens form across pieces as they do in the whole text. Errors: a special piece that is no
// control token of the vocabulary.
Result<EncodedChat> encode_pieces(const Tokenizer& tokenizer, std::span<const Piece> pieces);

}  // namespace trimpot
