// Names out of files, made fit for a one-line message.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace trimpot {

// ASCII stays, everything else (and quotes, backslashes) is escaped, so that a hostile name can
// neither break the line nor make a message that is no valid UTF-8. Cut after 100 bytes: longer
// than any real name.
inline std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 100;
  std::string out;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7e || c == '"' || c == '\\') {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (text.size() > kLongest) out += "...";
  return out;
}

}  // namespace trimpot
