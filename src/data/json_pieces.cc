#include "data/json_pieces.h"

#include <cstring>
#include <utility>

namespace trimpot {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// Follows strings and brackets through JSON text, byte by byte.
struct BracketScanner {
  std::size_t depth = 0;
  bool in_string = false;
  bool escaped = false;

  void take(char c) {
    if (in_string) {
      if (escaped) {
        escaped = false;
      } else if (c == '\\') {
        escaped = true;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
};

}  // namespace

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t i = 0;
  while (i < text.size()) {
    // Eight ASCII bytes at a time: most text is nothing else.
    std::uint64_t eight = 0;
    if (text.size() - i >= 8) {
      std::memcpy(&eight, text.data() + i, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The table of well-formed sequences of the Unicode standard (chapter 3, table 3-7).
    std::size_t length = 0;
    unsigned char low = 0x80, high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
      length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      length = 3;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      length = 4;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    } else {
      return i;
    }
    if (text.size() - i < length || byte(i + 1) < low || byte(i + 1) > high) return i;
    for (std::size_t k = 2; k < length; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    i += length;
  }
  return std::nullopt;
}

JsonPieces::JsonPieces(std::string path, std::string_view text)
    : path_(std::move(path)), text_(text) {
  if (text_.starts_with("\xef\xbb\xbf")) text_.remove_prefix(3);  // byte order mark
  skip_space();
  if (position_ < text_.size() && text_[position_] == '[') {
    is_array_ = true;
    ++position_;
  }
}

void JsonPieces::skip_space() {
  for (; position_ < text_.size() && is_space(text_[position_]); ++position_)
    if (text_[position_] == '\n') ++line_;
}

Result<std::optional<JsonPiece>> JsonPieces::next() {
  return is_array_ ? next_element() : next_line();
}

Result<std::optional<JsonPiece>> JsonPieces::next_line() {
  skip_space();
  if (position_ == text_.size()) return std::nullopt;
  const std::size_t end = std::min(text_.find('\n', position_), text_.size());
  const JsonPiece piece{text_.substr(position_, end - position_), line_, ++record_};
  BracketScanner scanner;
  for (const char c : piece.text) {
    scanner.take(c);
    if (scanner.depth > kMaxDepth)
      return fail("{}:{}: the JSON nests deeper than {} levels; a training record needs 4", path_,
                  line_, kMaxDepth);
  }
  position_ = end;
  return piece;
}

Result<std::optional<JsonPiece>> JsonPieces::next_element() {
  skip_space();
  if (at_end_) {
    if (position_ == text_.size()) return std::nullopt;
    return fail("{}:{}: text after the closing ] of the JSON array; remove it", path_, line_);
  }
  if (record_ == 0 && position_ < text_.size() && text_[position_] == ']') {
    ++position_;
    at_end_ = true;
    return next_element();
  }
  const std::size_t begin = position_;
  JsonPiece piece{{}, line_, ++record_};
  BracketScanner scanner;
  for (; position_ < text_.size(); ++position_) {
    const char c = text_[position_];
    const bool outside = scanner.depth == 0 && !scanner.in_string;
    if (outside && (c == ',' || c == ']')) {
      piece.text = text_.substr(begin, position_ - begin);
      at_end_ = c == ']';
      ++position_;
      return piece;
    }
    if (c == '\n') ++line_;
    scanner.take(c);
    if (scanner.depth > kMaxDepth)
      return fail(
          "{}: record {} (line {}): the JSON nests deeper than {} levels; a training record"
          " needs 4",
          path_, piece.record, line_, kMaxDepth);
  }
  return fail(
      "{}: record {} (line {}): the JSON array is cut off: the file ends before its closing"
      " ]",
      path_, piece.record, piece.line);
}

}  // namespace trimpot
