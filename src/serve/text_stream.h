// From the bytes of tokens to text that may be sent: whole UTF-8 characters only, and nothing from
// a stop string on, wherever token boundaries lie.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace trimpot::serve {

class TextStream {
 public:
  // No stop string may be empty.
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Appends to `out` what is safe to send after these bytes. Held back: the beginning of a
  // character, and what may be the beginning of a stop string. After a stop nothing more comes.
  void add(std::string_view bytes, std::string& out);
  // The rest: no more bytes will come.
  void finish(std::string& out);
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // bytes that were not sent yet
  bool stopped_ = false;
};

// `bytes` as UTF-8: each byte that belongs to no character becomes U+FFFD.
std::string valid_utf8(std::string_view bytes);
// Bytes at the end that may be the beginning of a character.
std::size_t incomplete_tail(std::string_view bytes);

}  // namespace trimpot::serve
