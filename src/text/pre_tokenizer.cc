#include "text/pre_tokenizer.h"

#include "text/unicode.h"

namespace trimpot::text {
namespace {

using Words = std::vector<std::string_view>;

struct Name {
  std::string_view name;
  PreTokenizer kind;
};

constexpr Name kNames[] = {
    {"", PreTokenizer::kDefault},         {"default", PreTokenizer::kDefault},
    {"gpt-2", PreTokenizer::kGpt2},       {"smollm", PreTokenizer::kSmolLm},
    {"starcoder", PreTokenizer::kSmolLm}, {"llama-bpe", PreTokenizer::kLlama3},
    {"llama3", PreTokenizer::kLlama3},    {"llama-v3", PreTokenizer::kLlama3},
    {"qwen2", PreTokenizer::kQwen2},
};

struct Char {
  CharClass kind;
  std::uint32_t bytes;
};

// Classes as the main patterns see them.
Char char_at(std::string_view text, std::size_t position) {
  const CodePoint code_point = decode_utf8(text, position);
  CharClass kind = char_class(code_point.value);
  if (kind == CharClass::kPunctuation || kind == CharClass::kNewNumber) kind = CharClass::kOther;
  return {kind, code_point.bytes};
}

// End of the run of `kind` that starts at `position`.
std::size_t run_end(std::string_view text, std::size_t position, CharClass kind) {
  while (position < text.size()) {
    const Char next = char_at(text, position);
    if (next.kind != kind) break;
    position += next.bytes;
  }
  return position;
}

// A white space run that ends before a word leaves its last character to that word.
struct SpaceRun {
  std::size_t end;
  std::size_t last;           // start of the last character
  std::size_t after_newline;  // end of the last \r or \n; 0 without one
  bool single;
};

SpaceRun scan_spaces(std::string_view text, std::size_t position) {
  SpaceRun run{position, position, 0, true};
  while (run.end < text.size()) {
    const Char next = char_at(text, run.end);
    if (next.kind != CharClass::kSpace) break;
    run.single = run.end == position;
    run.last = run.end;
    run.end += next.bytes;
    if (text[run.last] == '\n' || text[run.last] == '\r') run.after_newline = run.end;
  }
  return run;
}

std::size_t end_of_spaces(std::string_view text, const SpaceRun& run) {
  return run.end == text.size() || run.single ? run.end : run.last;
}

// Bytes of an English contraction at `position` (which holds an apostrophe), 0 for none.
std::size_t contraction(std::string_view text, std::size_t position, bool any_case) {
  const auto lower_at = [&](std::size_t index) -> char {
    if (index >= text.size()) return 0;
    const char c = text[index];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = lower_at(position + 1);
  const char second = lower_at(position + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  // Case folding also makes the long s (U+017F) an s: the only such letter in the pattern.
  if (any_case && text.substr(position + 1, 2) == "\xc5\xbf") return 3;
  return 0;
}

std::size_t next_gpt2(std::string_view text, std::size_t position) {
  if (text[position] == '\'')
    if (const std::size_t length = contraction(text, position, false)) return position + length;
  const Char first = char_at(text, position);
  if (first.kind != CharClass::kSpace) return run_end(text, position + first.bytes, first.kind);
  if (text[position] == ' ' && position + 1 < text.size()) {
    const Char second = char_at(text, position + 1);
    if (second.kind != CharClass::kSpace)
      return run_end(text, position + 1 + second.bytes, second.kind);
  }
  return end_of_spaces(text, scan_spaces(text, position));
}

void split_gpt2(std::string_view text, Words& words) {
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t end = next_gpt2(text, position);
    words.push_back(text.substr(position, end - position));
    position = end;
  }
}

std::size_t next_llama3(std::string_view text, std::size_t position, int digits) {
  if (text[position] == '\'')
    if (const std::size_t length = contraction(text, position, true)) return position + length;
  const Char first = char_at(text, position);
  const std::size_t second_at = position + first.bytes;
  if (first.kind == CharClass::kLetter) return run_end(text, second_at, CharClass::kLetter);
  if (first.kind == CharClass::kNumber) {
    std::size_t end = second_at;
    for (int count = 1; count < digits && end < text.size(); ++count) {
      const Char next = char_at(text, end);
      if (next.kind != CharClass::kNumber) break;
      end += next.bytes;
    }
    return end;
  }
  const auto is_newline = [&](std::size_t at) { return text[at] == '\n' || text[at] == '\r'; };
  const auto second = second_at < text.size() ? char_at(text, second_at) : Char{};
  const bool has_second = second_at < text.size();
  if (!is_newline(position) && has_second && second.kind == CharClass::kLetter)
    return run_end(text, second_at, CharClass::kLetter);
  const bool space_and_symbol =
      text[position] == ' ' && has_second && second.kind == CharClass::kOther;
  if (first.kind == CharClass::kOther || space_and_symbol) {
    std::size_t end = run_end(text, second_at, CharClass::kOther);
    while (end < text.size() && is_newline(end)) ++end;
    return end;
  }
  const SpaceRun run = scan_spaces(text, position);
  return run.after_newline != 0 ? run.after_newline : end_of_spaces(text, run);
}

void split_llama3(std::string_view text, int digits, Words& words) {
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t end = next_llama3(text, position, digits);
    words.push_back(text.substr(position, end - position));
    position = end;
  }
}

void split_smollm(std::string_view text, Words& words) {
  std::size_t begin = 0;
  for (std::size_t position = 0; position < text.size();) {
    const CodePoint code_point = decode_utf8(text, position);
    const CharClass kind = char_class(code_point.value);
    const std::size_t end = position + code_point.bytes;
    if (kind == CharClass::kNumber || kind == CharClass::kNewNumber) {
      split_gpt2(text.substr(begin, position - begin), words);
      words.push_back(text.substr(position, code_point.bytes));
      begin = end;
    }
    position = end;
  }
  split_gpt2(text.substr(begin), words);
}

// kDefault's later stages on one word of kGpt2: numbers apart, groups of three ASCII digits.
void split_numbers(std::string_view word, Words& words) {
  for (std::size_t position = 0; position < word.size();) {
    const bool number = char_at(word, position).kind == CharClass::kNumber;
    std::size_t end = position;
    while (end < word.size()) {
      const Char next = char_at(word, end);
      if ((next.kind == CharClass::kNumber) != number) break;
      end += next.bytes;
    }
    const auto digit_at = [&](std::size_t at) {
      return at < end && word[at] >= '0' && word[at] <= '9';
    };
    std::size_t kept = position;  // start of what no group of three has taken
    for (std::size_t at = position; at < end;) {
      if (digit_at(at) && digit_at(at + 1) && digit_at(at + 2)) {
        if (kept < at) words.push_back(word.substr(kept, at - kept));
        words.push_back(word.substr(at, 3));
        at += 3;
        kept = at;
      } else {
        ++at;
      }
    }
    if (kept < end) words.push_back(word.substr(kept, end - kept));
    position = end;
  }
}

void split_default(std::string_view text, Words& words) {
  const auto is_mark = [](CodePoint code_point) {
    constexpr std::u32string_view kSymbols = U"$+<=>^~|";
    return char_class(code_point.value) == CharClass::kPunctuation ||
           kSymbols.find(code_point.value) != std::u32string_view::npos;
  };
  Words parts;
  for (std::size_t position = 0; position < text.size();) {
    const bool mark = is_mark(decode_utf8(text, position));
    std::size_t end = position;
    while (end < text.size()) {
      const CodePoint next = decode_utf8(text, end);
      if (is_mark(next) != mark) break;
      end += next.bytes;
    }
    split_gpt2(text.substr(position, end - position), parts);
    position = end;
  }
  for (const std::string_view part : parts) split_numbers(part, words);
}

}  // namespace

std::optional<PreTokenizer> find_pre_tokenizer(std::string_view name) {
  for (const Name& known : kNames)
    if (known.name == name) return known.kind;
  return std::nullopt;
}

void split_words(PreTokenizer kind, std::string_view text, Words& words) {
  switch (kind) {
    case PreTokenizer::kGpt2:
      return split_gpt2(text, words);
    case PreTokenizer::kSmolLm:
      return split_smollm(text, words);
    case PreTokenizer::kLlama3:
      return split_llama3(text, 3, words);
    case PreTokenizer::kQwen2:
      return split_llama3(text, 1, words);
    case PreTokenizer::kDefault:
      return split_default(text, words);
  }
}

}  // namespace trimpot::text
