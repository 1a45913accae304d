// The sequences that requests are read into. Those of finished requests keep their keys and values
// until their place is needed, so that a prompt that begins as an earlier one did is not read
// again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/session.h"

namespace trimpot::serve {

struct Slot {
  Slot(const Compute& compute, const Model& model, std::int64_t context, CacheType cache)
      : sequence(compute, model, context, cache) {}
  Sequence sequence;
  std::vector<TokenId> tokens;  // what the sequence holds
  std::uint64_t version = 0;    // of the adapter that they went through
  std::uint64_t last_used = 0;
  bool busy = false;
};

// For one thread.
class SequencePool {
 public:
  // At most `slots` sequences of at most `context` tokens, made when they are first needed and
  // only as long as a request needs: a page that is touched first costs as much as reading it,
  // and 2,048 tokens of the default model are 47 MB.
  SequencePool(const Compute& compute, const Model& model, std::int64_t context, CacheType cache,
               std::size_t slots)
      : compute_(compute), model_(model), context_(context), cache_(cache), most_(slots) {}

  // A free slot that holds the longest beginning of `prompt` that is found anywhere under the same
  // version, at most `limit` tokens of it: an idle slot of which at least half is wanted is taken
  // over, any other beginning is copied into the slot that was not used for the longest time.
  // It has room for `places` tokens. Null: all are busy, or there is no memory for another.
  Slot* acquire(std::uint64_t version, std::span<const TokenId> prompt, std::size_t limit,
                std::int64_t places);
  void release(Slot& slot);

  // Tokens held by busy slots.
  std::size_t busy_tokens() const;

 private:
  std::unique_ptr<Slot> make_slot(std::int64_t places) const;
  Slot* free_slot(std::int64_t places, const Slot* keep);

  const Compute& compute_;
  const Model& model_;
  std::int64_t context_;
  CacheType cache_;
  std::size_t most_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::uint64_t clock_ = 0;
};

}  // namespace trimpot::serve
