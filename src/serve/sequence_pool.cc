#include "serve/sequence_pool.h"

#include <algorithm>
#include <new>

namespace trimpot::serve {
namespace {

std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const auto [end, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<std::size_t>(end - a.begin());
}

}  // namespace

Slot* SequencePool::free_slot() {
  if (slots_.size() < most_) {
    try {
      slots_.push_back(std::make_unique<Slot>(compute_, model_, context_, cache_));
      return slots_.back().get();
    } catch (const std::bad_alloc&) {
      most_ = slots_.size();
    }
  }
  Slot* oldest = nullptr;
  for (const auto& slot : slots_)
    if (!slot->busy && (oldest == nullptr || slot->last_used < oldest->last_used))
      oldest = slot.get();
  return oldest;
}

Slot* SequencePool::acquire(std::uint64_t version, std::span<const TokenId> prompt,
                            std::size_t limit) {
  Slot* best = nullptr;
  std::size_t longest = 0;
  for (const auto& slot : slots_) {
    if (slot->version != version) continue;
    const std::size_t common = std::min(limit, common_prefix(slot->tokens, prompt));
    // Of equally good ones an idle slot, which can be taken over.
    if (common > longest || (common == longest && common > 0 && best->busy && !slot->busy)) {
      best = slot.get();
      longest = common;
    }
  }
  Slot* slot = best;
  if (best == nullptr || best->busy || 2 * longest < best->tokens.size()) slot = free_slot();
  if (slot == nullptr) return nullptr;
  if (slot == best || best == nullptr) {
    slot->sequence.truncate(static_cast<std::int64_t>(longest));
  } else {
    slot->sequence.copy_prefix(best->sequence, static_cast<std::int64_t>(longest));
  }
  slot->tokens.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(longest));
  slot->version = version;
  slot->busy = true;
  return slot;
}

void SequencePool::release(Slot& slot) {
  slot.busy = false;
  slot.last_used = ++clock_;
}

std::size_t SequencePool::busy_tokens() const {
  std::size_t tokens = 0;
  for (const auto& slot : slots_)
    if (slot->busy) tokens += slot->tokens.size();
  return tokens;
}

}  // namespace trimpot::serve
