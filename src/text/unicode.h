// What the tokenizers need to know of Unicode. Every rule here follows PyPI's `tokenizers` 0.23,
// whose ids the GGUF's model was trained on: its regex engine knows Unicode 16, its `Digits`
// splitter Unicode 17, its NFC Unicode 9.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trimpot::text {

enum class CharClass : std::uint8_t {
  kOther,        // symbols, marks, unassigned, bytes that are not UTF-8
  kPunctuation,  // \p{P}; only llama.cpp's default split tells it from kOther
  kSpace,        // \s
  kLetter,       // \p{L}
  kNumber,       // \p{N}
  kNewNumber,    // a number for `Digits` but not for \p{N}: 13 characters of Unicode 17
};

struct CodePoint {
  char32_t value;       // U+FFFD for a byte that is not part of valid UTF-8
  std::uint32_t bytes;  // 1 for such a byte
  bool valid;
};

// Strict: overlong forms, surrogates and values above U+10FFFF are not valid. position < size.
CodePoint decode_utf8(std::string_view text, std::size_t position);
void append_utf8(std::string& text, char32_t code_point);
CharClass char_class(char32_t code_point);

// Canonical composition. Returns `text` itself when it is composed already, else a view of
// `storage`. Bytes that are not valid UTF-8 stay as they are.
std::string_view normalize_nfc(std::string_view text, std::string& storage);

}  // namespace trimpot::text
