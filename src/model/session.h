// One sequence being read and continued: a key/value cache and the buffers of the forward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/forward.h"

namespace trimpot {

class Session {
 public:
  // `context`: the most tokens this sequence may have.
  Session(Compute& compute, const Model& model, std::int64_t context);

  std::int64_t length() const { return length_; }
  std::int64_t context() const { return context_; }

  // Appends tokens and writes the logits after the last one, [vocabulary] (null: not wanted).
  // Errors: no room left in the context, a token outside the vocabulary.
  Status append(std::span<const TokenId> tokens, float* last_logits);
  // Appends tokens and calls `visit` with the logits of each row [first_row, tokens.size()).
  Status append_all(std::span<const TokenId> tokens, std::int64_t first_row,
                    const std::function<void(std::int64_t row, const float* logits)>& visit);
  // Forgets everything from position `length` on.
  void truncate(std::int64_t length) { length_ = length < length_ ? length : length_; }

 private:
  Status check(std::span<const TokenId> tokens) const;
  // The hidden states after the last layer of up to kRows tokens, in x_.
  void forward(std::span<const TokenId> tokens);

  static constexpr std::int64_t kRows = 512;
  Compute& compute_;
  const Model& model_;
  std::int64_t context_;
  std::int64_t length_ = 0;
  std::vector<KeyValues> caches_;  // one per layer
  RopeTable rope_;
  LayerActivations activations_;
  AlignedBuffer<float> x_;
  AlignedBuffer<float> logits_;
  Head head_;
};

}  // namespace trimpot
