// Text inside HTML and XML.
#pragma once

#include <string>
#include <string_view>

namespace trimpot {

// For text and attributes. Control characters, which XML does not have, are left out.
inline std::string escape_markup(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else if (c == '>') {
      result += "&gt;";
    } else if (c == '"') {
      result += "&quot;";
    } else if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') {
      result += c;
    }
  }
  return result;
}

}  // namespace trimpot
