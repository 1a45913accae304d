#include "serve/sequence_pool.h"

#include <algorithm>
#include <new>

namespace trimpot::serve {
namespace {

constexpr std::int64_t kPlaces = 256;

std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const auto [end, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<std::size_t>(end - a.begin());
}

}  // namespace

std::unique_ptr<Slot> SequencePool::make_slot(std::int64_t places) const {
  try {
    return std::make_unique<Slot>(compute_, model_, places, cache_);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// Not `keep`, which is still to be read from.
Slot* SequencePool::free_slot(std::int64_t places, const Slot* keep) {
  if (slots_.size() < most_) {
    if (auto made = make_slot(places)) {
      slots_.push_back(std::move(made));
      return slots_.back().get();
    }
    most_ = slots_.size();
  }
  std::unique_ptr<Slot>* oldest = nullptr;
  for (auto& slot : slots_)
    if (!slot->busy && slot.get() != keep &&
        (oldest == nullptr || slot->last_used < (*oldest)->last_used))
      oldest = &slot;
  if (oldest == nullptr) return nullptr;
  if ((*oldest)->sequence.context() < places) {
    auto made = make_slot(places);
    if (!made) return nullptr;
    *oldest = std::move(made);
  }
  return oldest->get();
}

Slot* SequencePool::acquire(std::uint64_t version, std::span<const TokenId> prompt,
                            std::size_t limit, std::int64_t places) {
  // Rounded, so that a later request of about this length finds room too.
  places = std::min(context_, (places + kPlaces - 1) / kPlaces * kPlaces);
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
  if (best == nullptr || best->busy || 2 * longest < best->tokens.size() ||
      best->sequence.context() < places)
    slot = free_slot(places, best);
  if (slot == nullptr && best != nullptr) {  // nothing else is idle: without its beginning
    best = nullptr;
    longest = 0;
    slot = free_slot(places, nullptr);
  }
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
