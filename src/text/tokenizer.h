// Tokenizers from the metadata of a GGUF file: byte-level BPE (`tokenizer.ggml.model` = "gpt2").
//
// The ids are those of PyPI's `tokenizers` with the model's own tokenizer.json, which is what the
// model was trained on. Where llama.cpp differs (it never normalizes, so qwen2 sees other ids for
// decomposed characters; it cuts special tokens longest first instead of leftmost first),
// `tokenizers` is followed. qwen2 composes text to NFC first, the others take bytes as they are.
//
// Bytes that are not UTF-8 count as symbols and are encoded byte by byte, so for a vocabulary with
// all 256 bytes decode(encode(x)) == x for every x (up to NFC for qwen2). A byte that the
// vocabulary lacks is dropped, as `tokenizers` does; SmolLM2's lacks 21: six control characters,
// the lead bytes of the unassigned planes 4 to 11, and bytes that never occur in UTF-8.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/gguf/gguf.h"
#include "text/bpe.h"

namespace trimpot {

using text::TokenId;

struct EncodeOptions {
  bool add_special = false;    // BOS and EOS where the vocabulary's flags say so
  bool parse_special = false;  // recognise control tokens written out in the text
};

// Cheap to copy: copies share one immutable vocabulary. Every function may be called from many
// threads at once.
class Tokenizer {
 public:
  // Errors: another tokenizer model than "gpt2", an unknown pre-tokenizer, missing or ill-typed
  // keys, arrays of different lengths, repeated tokens, merges of unknown tokens, special ids out
  // of range. A missing `tokenizer.ggml.pre` means llama.cpp's default split, as there. The file
  // may be closed afterwards.
  static Result<Tokenizer> from_gguf(const gguf::File& file);

  // Without parse_special no control token can come out of any text. User-defined tokens
  // (token_type 4) are always recognised.
  std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const;

  // Ids outside the vocabulary decode to nothing.
  std::string decode(std::span<const TokenId> ids, bool skip_special = false) const;

  // The bytes that a token stands for: possibly a part of a UTF-8 sequence, for streaming. Lives as
  // long as any copy of the tokenizer.
  std::string_view token_bytes(TokenId id) const;
  // The token as the vocabulary spells it ("\xc4\xa0the" for " the"; "<|im_end|>").
  std::string_view token_text(TokenId id) const;
  std::optional<TokenId> find(std::string_view token_text) const;

  std::size_t vocabulary_size() const;
  std::optional<TokenId> bos() const;
  std::optional<TokenId> eos() const;
  std::optional<TokenId> eot() const;  // end of a turn; guessed by its text if the file has no key
  std::optional<TokenId> pad() const;
  bool adds_bos() const;
  bool adds_eos() const;
  bool is_control(TokenId id) const;
  // eos, eot and the tokens that llama.cpp takes for an end by their text.
  bool is_end_of_generation(TokenId id) const;

  struct Vocabulary;

 private:
  explicit Tokenizer(std::shared_ptr<const Vocabulary> vocabulary)
      : vocabulary_(std::move(vocabulary)) {}
  std::shared_ptr<const Vocabulary> vocabulary_;
};

}  // namespace trimpot
