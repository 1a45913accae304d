#include "text/special_tokens.h"

namespace trimpot::text {

void SpecialTokens::add(std::string_view text, TokenId id) {
  if (text.empty()) return;
  const auto new_node = [&] {
    ids_.push_back(kNoToken);
    return static_cast<std::uint32_t>(ids_.size() - 1);
  };
  std::uint32_t& root = roots_[static_cast<unsigned char>(text[0])];
  if (root == 0) root = new_node();
  std::uint32_t node = root;
  for (const char c : text.substr(1)) {
    std::uint32_t& next =
        edges_[static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(c)];
    if (next == 0) next = new_node();
    node = next;
  }
  ids_[node] = id;
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    std::uint32_t node = roots_[static_cast<unsigned char>(text[begin])];
    if (node == 0) continue;
    Match longest{begin, begin, kNoToken};
    for (std::size_t end = begin + 1;; ++end) {
      if (ids_[node] != kNoToken) longest = {begin, end, ids_[node]};
      if (end == text.size()) break;
      const auto edge = edges_.find(static_cast<std::uint64_t>(node) << 8 |
                                    static_cast<unsigned char>(text[end]));
      if (edge == edges_.end()) break;
      node = edge->second;
    }
    if (longest.id != kNoToken) return longest;
  }
  return {text.size(), text.size(), kNoToken};
}

}  // namespace trimpot::text
