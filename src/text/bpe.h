// Byte-pair merging: from the bytes of one word to token ids.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace trimpot::text {

using TokenId = std::int32_t;
inline constexpr TokenId kNoToken = -1;

struct Merge {
  TokenId left;
  TokenId right;
  TokenId result;  // kNoToken: the rule only holds its place and never fires
};

class BytePairMerger {
 public:
  // `merges` in the order of their rank. `byte_tokens[b]` is the token of the single byte b, or
  // kNoToken: such a byte is left out of the word before merging, as `tokenizers` does.
  // At most 2^31 - 1 merges.
  BytePairMerger(const std::array<TokenId, 256>& byte_tokens, const std::vector<Merge>& merges);

  // Appends the ids of `word`. Always the lowest rank first, the leftmost of equals. Words of any
  // length: O(n log n). Safe to call from many threads.
  void encode(std::string_view word, std::vector<TokenId>& ids) const;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    std::uint32_t rank = 0;
    TokenId result = kNoToken;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  static constexpr std::uint32_t kNoRank = ~std::uint32_t{0};

  const Slot* find(TokenId left, TokenId right) const;
  void insert(const Merge& merge, std::uint32_t rank);
  void merge_short(std::vector<TokenId>& ids, std::size_t begin) const;
  void merge_long(std::vector<TokenId>& ids, std::size_t begin) const;

  std::array<TokenId, 256> byte_tokens_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  std::uint32_t shift_ = 0;
};

}  // namespace trimpot::text
