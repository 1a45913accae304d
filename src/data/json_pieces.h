// Cuts a file of JSON records into the text of one record after another, so that no more than one
// is parsed at a time and every one knows its line.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace trimpot {

// The first byte of `text` that is not part of well-formed UTF-8 (overlong forms, surrogates and
// code points above U+10FFFF are not); nothing if all of it is.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);

// One record's JSON text and where it stands, for messages.
struct JsonPiece {
  std::string_view text;
  std::size_t line = 0;    // of its first byte, from 1
  std::size_t record = 0;  // from 1
};

// Reads JSON Lines (one value a line; blank lines are skipped) or one JSON array of values,
// whichever the first byte says. The text must outlive the reader.
class JsonPieces {
 public:
  // Records nest deeper than this only to hurt a parser.
  static constexpr std::size_t kMaxDepth = 64;

  JsonPieces(std::string path, std::string_view text);

  // The next record; nothing at the end. Errors: an array that is cut off or has anything but a
  // comma between records, nesting below kMaxDepth. The JSON inside a piece is not checked.
  Result<std::optional<JsonPiece>> next();

  bool is_array() const { return is_array_; }

 private:
  Result<std::optional<JsonPiece>> next_line();
  Result<std::optional<JsonPiece>> next_element();
  void skip_space();

  std::string path_;
  std::string_view text_;
  std::size_t position_ = 0;
  std::size_t line_ = 1;
  std::size_t record_ = 0;
  bool is_array_ = false;
  bool at_end_ = false;
};

}  // namespace trimpot
