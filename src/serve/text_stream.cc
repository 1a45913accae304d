#include "serve/text_stream.h"

#include <algorithm>

#include "text/unicode.h"

namespace trimpot::serve {
namespace {

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

std::size_t expected_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1;
}

// Length of the longest end of `text` that is the beginning of `stop`, short of all of it.
std::size_t overlap(std::string_view text, std::string_view stop) {
  std::size_t length = std::min(text.size(), stop.size() - 1);
  while (length > 0 && !text.ends_with(stop.substr(0, length))) --length;
  return length;
}

}  // namespace

std::string valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const text::CodePoint point = text::decode_utf8(bytes, at);
    if (point.valid)
      out += bytes.substr(at, point.bytes);
    else
      out += "\xef\xbf\xbd";
    at += point.bytes;
  }
  return out;
}

std::size_t incomplete_tail(std::string_view bytes) {
  std::size_t length = 1;
  while (length <= 3 && length <= bytes.size() && is_continuation(bytes[bytes.size() - length]))
    ++length;
  if (length > 3 || length > bytes.size()) return 0;
  return expected_bytes(bytes[bytes.size() - length]) > length ? length : 0;
}

void TextStream::add(std::string_view bytes, std::string& out) {
  if (stopped_) return;
  held_ += bytes;
  std::size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
  if (end != std::string::npos) {
    stopped_ = true;
    out += valid_utf8(std::string_view(held_).substr(0, end));
    held_.clear();
    return;
  }
  std::size_t hold = 0;
  for (const std::string& stop : stops_) hold = std::max(hold, overlap(held_, stop));
  std::string_view ready = std::string_view(held_).substr(0, held_.size() - hold);
  ready.remove_suffix(incomplete_tail(ready));
  out += valid_utf8(ready);
  held_.erase(0, ready.size());
}

void TextStream::finish(std::string& out) {
  if (!stopped_) out += valid_utf8(held_);
  held_.clear();
}

}  // namespace trimpot::serve
