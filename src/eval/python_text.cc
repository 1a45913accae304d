#include "eval/python_text.h"

#include <utf8proc.h>

#include "text/unicode.h"

namespace trimpot {
namespace {

bool is_space(char32_t c) {
  // str.isspace() knows the four separators 1c .. 1f, which \s of the tokenizers does not.
  return (c >= 0x1c && c <= 0x1f) || text::char_class(c) == text::CharClass::kSpace;
}

}  // namespace

std::string_view strip_right(std::string_view text) {
  std::size_t end = 0;  // behind the last character that is no space
  for (std::size_t at = 0; at < text.size();) {
    const text::CodePoint c = text::decode_utf8(text, at);
    at += c.bytes;
    if (!is_space(c.value)) end = at;
  }
  return text.substr(0, end);
}

std::string_view strip(std::string_view text) {
  text = strip_right(text);
  while (!text.empty()) {
    const text::CodePoint c = text::decode_utf8(text, 0);
    if (!is_space(c.value)) break;
    text.remove_prefix(c.bytes);
  }
  return text;
}

std::string capitalize(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const text::CodePoint c = text::decode_utf8(text, at);
    if (c.valid) {
      const auto value = static_cast<utf8proc_int32_t>(c.value);
      text::append_utf8(
          out, static_cast<char32_t>(at == 0 ? utf8proc_totitle(value) : utf8proc_tolower(value)));
    } else {
      out += text.substr(at, c.bytes);
    }
    at += c.bytes;
  }
  return out;
}

std::int64_t count_characters(std::string_view text) {
  std::int64_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++count) at += text::decode_utf8(text, at).bytes;
  return count;
}

std::string replace_all(std::string_view text, std::string_view what, std::string_view with) {
  std::string out;
  while (true) {
    const std::size_t found = text.find(what);
    out += text.substr(0, found);
    if (found == std::string_view::npos) return out;
    out += with;
    text.remove_prefix(found + what.size());
  }
}

}  // namespace trimpot
