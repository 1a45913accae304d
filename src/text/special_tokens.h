// Finds the tokens that are cut out of a text before it is split into words.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"

namespace trimpot::text {

class SpecialTokens {
 public:
  SpecialTokens() { roots_.fill(0); }

  void add(std::string_view text, TokenId id);  // an empty text is ignored

  struct Match {
    std::size_t begin;
    std::size_t end;
    TokenId id;  // kNoToken and begin = end = text.size() when there is none
  };
  // The leftmost special token at or after `from`; of several that start there the longest.
  Match find(std::string_view text, std::size_t from) const;

 private:
  // A trie: node 0 is "no node". Edges of deeper nodes are in one hash map, (node << 8 | byte).
  std::array<std::uint32_t, 256> roots_;
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<TokenId> ids_{kNoToken};  // of each node
};

}  // namespace trimpot::text
