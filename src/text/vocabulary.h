// What a Tokenizer shares between its copies. Private to this room.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/special_tokens.h"
#include "text/tokenizer.h"

namespace trimpot {

// `token_type` in GGUF files.
enum class TokenType : std::uint8_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Tokenizer::Vocabulary {
  // Slices of two blobs that never change once they are built, so views into them stay valid.
  std::string texts;
  std::string bytes;
  std::vector<std::size_t> text_ends;
  std::vector<std::size_t> byte_ends;
  std::vector<TokenType> types;
  std::vector<bool> ends_generation;

  std::unordered_map<std::string_view, TokenId> ids;           // by text
  std::unordered_map<std::string_view, TokenId> ids_of_bytes;  // only for ignore_merges
  std::optional<text::BytePairMerger> merger;
  text::SpecialTokens user_defined;
  text::SpecialTokens all_special;

  text::PreTokenizer pre_tokenizer = text::PreTokenizer::kDefault;
  bool normalize = false;      // NFC
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool add_bos = false;
  bool add_eos = false;
  std::optional<TokenId> bos, eos, eot, pad;

  std::size_t size() const { return types.size(); }
  bool contains(TokenId id) const { return id >= 0 && static_cast<std::size_t>(id) < size(); }
  std::string_view text_of(TokenId id) const { return slice(texts, text_ends, id); }
  std::string_view bytes_of(TokenId id) const { return slice(bytes, byte_ends, id); }
  TokenType type_of(TokenId id) const { return types[static_cast<std::size_t>(id)]; }
  // Never the outcome of ordinary text.
  bool is_special(TokenId id) const {
    return type_of(id) == TokenType::kControl || type_of(id) == TokenType::kUnknown;
  }

 private:
  static std::string_view slice(std::string_view blob, const std::vector<std::size_t>& ends,
                                TokenId id) {
    const auto index = static_cast<std::size_t>(id);
    const std::size_t begin = index == 0 ? 0 : ends[index - 1];
    return blob.substr(begin, ends[index] - begin);
  }
};

}  // namespace trimpot
