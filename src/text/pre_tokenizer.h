// Cuts a text into the words inside which byte pairs may merge. Hand-written equivalents of the
// published split patterns, because a regex engine with look-ahead is ten times slower.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace trimpot::text {

enum class PreTokenizer {
  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kGpt2,
  // Every digit alone, then kGpt2 on what lies between (smollm, starcoder).
  kSmolLm,
  // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
  // \s*[\r\n]+|\s+(?!\S)|\s+
  kLlama3,
  // kLlama3 with single digits.
  kQwen2,
  // What llama.cpp does when a file names none: runs of punctuation apart, kGpt2, then numbers in
  // groups of three.
  kDefault,
};

// The value of `tokenizer.ggml.pre`; "" and "default" are kDefault. Nothing for an unknown name.
std::optional<PreTokenizer> find_pre_tokenizer(std::string_view name);

// Appends the words of `text` in order; together they are the whole text. Bytes that are not valid
// UTF-8 count as symbols.
void split_words(PreTokenizer kind, std::string_view text, std::vector<std::string_view>& words);

}  // namespace trimpot::text
