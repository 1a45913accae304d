#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <queue>
#include <tuple>

namespace trimpot::text {
namespace {

// Up to this many bytes a scan over all pairs beats the heap; English words have 4 to 10.
constexpr std::size_t kShortWord = 48;

std::uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// Fibonacci hashing; the high bits are the good ones.
std::size_t slot_of(std::uint64_t key, std::uint32_t shift) {
  key ^= key >> 32;
  return static_cast<std::size_t>(key * 0x9e3779b97f4a7c15u >> shift);
}

struct Candidate {
  std::uint32_t rank;
  std::size_t left;  // index of the left symbol
  TokenId result;
  bool operator>(const Candidate& other) const {
    return std::tie(rank, left) > std::tie(other.rank, other.left);
  }
};

constexpr std::size_t kNone = ~std::size_t{0};

struct Symbol {
  TokenId id;  // kNoToken once it is merged into its left neighbour
  std::size_t previous;
  std::size_t next;
};

}  // namespace

BytePairMerger::BytePairMerger(const std::array<TokenId, 256>& byte_tokens,
                               const std::vector<Merge>& merges)
    : byte_tokens_(byte_tokens) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(merges.size() * 2, 16));
  slots_.resize(size);
  shift_ = 64 - static_cast<std::uint32_t>(std::countr_zero(size));
  for (std::size_t rank = 0; rank < merges.size(); ++rank)
    insert(merges[rank], static_cast<std::uint32_t>(rank));
}

void BytePairMerger::insert(const Merge& merge, std::uint32_t rank) {
  if (merge.result == kNoToken) return;
  const std::uint64_t key = pair_key(merge.left, merge.right);
  std::size_t slot = slot_of(key, shift_);
  while (slots_[slot].pair != kEmpty && slots_[slot].pair != key)
    slot = (slot + 1) & (slots_.size() - 1);
  slots_[slot] = {key, rank, merge.result};  // of two equal rules the later counts
}

const BytePairMerger::Slot* BytePairMerger::find(TokenId left, TokenId right) const {
  const std::uint64_t key = pair_key(left, right);
  for (std::size_t slot = slot_of(key, shift_);; slot = (slot + 1) & (slots_.size() - 1)) {
    if (slots_[slot].pair == key) return &slots_[slot];
    if (slots_[slot].pair == kEmpty) return nullptr;
  }
}

void BytePairMerger::encode(std::string_view word, std::vector<TokenId>& ids) const {
  const std::size_t begin = ids.size();
  for (const char c : word)
    if (const TokenId id = byte_tokens_[static_cast<unsigned char>(c)]; id != kNoToken)
      ids.push_back(id);
  const std::size_t count = ids.size() - begin;
  if (count < 2) return;
  if (count <= kShortWord)
    merge_short(ids, begin);
  else
    merge_long(ids, begin);
}

void BytePairMerger::merge_short(std::vector<TokenId>& ids, std::size_t begin) const {
  struct Rule {
    std::uint32_t rank;
    TokenId result;
  };
  std::array<TokenId, kShortWord> symbols;
  std::array<Rule, kShortWord> rules;  // rules[i] joins symbols i and i + 1
  std::size_t count = ids.size() - begin;
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), symbols.begin());
  const auto rule_at = [&](std::size_t left) -> Rule {
    const Slot* slot = find(symbols[left], symbols[left + 1]);
    return slot ? Rule{slot->rank, slot->result} : Rule{kNoRank, kNoToken};
  };
  for (std::size_t left = 0; left + 1 < count; ++left) rules[left] = rule_at(left);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t left = 1; left + 1 < count; ++left)
      if (rules[left].rank < rules[best].rank) best = left;
    if (rules[best].rank == kNoRank) break;
    symbols[best] = rules[best].result;
    for (std::size_t index = best + 1; index + 1 < count; ++index)
      symbols[index] = symbols[index + 1];
    for (std::size_t index = best + 1; index + 2 < count; ++index) rules[index] = rules[index + 1];
    --count;
    if (best + 1 < count) rules[best] = rule_at(best);
    if (best > 0) rules[best - 1] = rule_at(best - 1);
  }
  ids.resize(begin);
  ids.insert(ids.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(count));
}

void BytePairMerger::merge_long(std::vector<TokenId>& ids, std::size_t begin) const {
  const std::size_t count = ids.size() - begin;
  std::vector<Symbol> symbols(count);
  for (std::size_t index = 0; index < count; ++index)
    symbols[index] = {ids[begin + index], index == 0 ? kNone : index - 1,
                      index + 1 == count ? kNone : index + 1};
  std::vector<Candidate> initial;
  const auto candidate = [&](std::size_t left, auto add) {
    if (left == kNone || symbols[left].next == kNone) return;
    const Slot* slot = find(symbols[left].id, symbols[symbols[left].next].id);
    if (slot) add(Candidate{slot->rank, left, slot->result});
  };
  for (std::size_t left = 0; left < count; ++left)
    candidate(left, [&](const Candidate& c) { initial.push_back(c); });
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>{},
                                                                               std::move(initial));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.left];
    if (left.id == kNoToken || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    const Slot* slot = find(left.id, right.id);
    if (!slot || slot->rank != top.rank) continue;  // one of the two has grown meanwhile
    left.id = top.result;
    right.id = kNoToken;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = top.left;
    const auto push = [&](const Candidate& c) { queue.push(c); };
    candidate(left.previous, push);
    candidate(top.left, push);
  }
  ids.resize(begin);
  for (std::size_t index = 0; index != kNone; index = symbols[index].next)
    ids.push_back(symbols[index].id);
}

}  // namespace trimpot::text
