// Training records as tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "data/records.h"
#include "text/tokenizer.h"

namespace trimpot {

struct ExampleOptions {
  std::size_t max_seq_length = 512;  // tokens; at least 2
  bool train_on_prompt = false;      // learn the whole conversation, not only the answers
};

// What turns records into tokens: the model's tokenizer and chat template, as functions so that
// tests and other tokenizers fit.
struct ExampleEncoder {
  std::function<Result<EncodedChat>(const std::vector<Message>&)> encode_chat;
  // Without BOS and EOS. `parse_special`: "<|im_end|>" and the like in the text become the special
  // token.
  std::function<std::vector<TokenId>(std::string_view, bool parse_special)> encode_text;
  std::optional<TokenId> bos;  // only where the tokenizer's flag says that one is put in front
  std::optional<TokenId> eos;
};

// Of a model that may have no chat template we know: then records that are conversations fail with
// the template's error, and texts still work. Holds copies of both.
ExampleEncoder make_example_encoder(const Tokenizer& tokenizer,
                                    const Result<ChatTemplate>& chat_template);

// The tokens of all examples in one array. Token i of an example is predicted from those before
// it, and its loss counts, where learned()[i] is 1; learned()[0] is always 0.
class ExampleSet {
 public:
  std::size_t size() const { return ends_.size(); }
  std::span<const TokenId> tokens(std::size_t example) const;
  std::span<const std::uint8_t> learned(std::size_t example) const;
  std::size_t length(std::size_t example) const { return ends_[example] - begin(example); }

  // `learned` has the length of `tokens`; its first element counts as 0.
  void append(std::span<const TokenId> tokens, std::span<const std::uint8_t> learned);

 private:
  std::size_t begin(std::size_t example) const { return example == 0 ? 0 : ends_[example - 1]; }
  std::vector<TokenId> tokens_;
  std::vector<std::uint8_t> learned_;
  std::vector<std::size_t> ends_;
};

struct ExampleReport {
  std::size_t records = 0;
  std::size_t examples = 0;
  std::size_t tokens = 0;
  std::size_t learned_tokens = 0;
  std::size_t truncated = 0;       // longer than max_seq_length: the end was cut off
  std::size_t skipped = 0;         // nothing to learn, or nothing left of it once cut
  std::size_t dropped_tokens = 0;  // of a plain text: behind its last full window
  std::size_t first_truncated_line = 0;
  std::size_t first_skipped_line = 0;

  // One line per thing that the user should know of (truncated and skipped records).
  std::vector<std::string> warnings(const ExampleOptions& options) const;
};

struct Examples {
  ExampleSet set;
  ExampleReport report;
  bool windows = false;  // consecutive windows of one plain text
};

// Conversations go through `encode_chat`; only answers are learned unless train_on_prompt. A
// {"text"} record is BOS (if the tokenizer has the flag), the text with its special tokens, and
// EOS unless it ends in one; all of it is learned. A plain text file is cut into consecutive
// windows of max_seq_length tokens (each with BOS if the tokenizer has the flag); what is left
// behind the last full window is dropped, unless it is the only one.
// What follows the last learned token of a record is dropped (it would only cost time).
// A record that is longer than max_seq_length loses its end, and is skipped if nothing learned is
// left. Errors: what the encoder says, with file and line; no example left; a max_seq_length below
// 2. `path` is for messages.
Result<Examples> make_examples(const std::string& path, const RecordFile& file,
                               const ExampleEncoder& encoder, const ExampleOptions& options);

}  // namespace trimpot
