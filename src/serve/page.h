// The web page of the server, one file that needs no other (page/index.html, embedded at build).
#pragma once

#include <string_view>

namespace trimpot::serve {

// In the page's <script> and <style> tags stands kNonce, to be replaced by a fresh one.
inline constexpr std::string_view kNonce = "NONCE";
extern const std::string_view kPage;

}  // namespace trimpot::serve
