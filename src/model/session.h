// Sequences that are read and continued: their keys and values, and the forward pass over them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/forward.h"
#include "model/overlay.h"

namespace trimpot {

// The keys and values of one sequence, in all layers.
class Sequence {
 public:
  // `context`: the most tokens it may have.
  Sequence(const Compute& compute, const Model& model, std::int64_t context,
           CacheType cache = CacheType::kFloat);
  std::int64_t length() const { return length_; }
  std::int64_t context() const { return context_; }
  // Forgets everything from position `length` on.
  void truncate(std::int64_t length) { length_ = length < length_ ? length : length_; }
  // Becomes the first `length` tokens of another sequence of the same model and type of cache,
  // which has at least as many; they fit in this one's context.
  void copy_prefix(const Sequence& from, std::int64_t length);

 private:
  friend class Decoder;
  AttentionShape shape_;
  std::int64_t context_;
  std::int64_t length_ = 0;
  std::unique_ptr<Arena> memory_ = std::make_unique<Arena>();
  std::vector<KeyValues> caches_;  // one per layer
};

// What one sequence does in a step: it is continued by these tokens, at least one.
struct Turn {
  Sequence* sequence = nullptr;
  std::span<const TokenId> tokens;
  bool wants_logits = true;          // after the last token
  const Overlay* overlay = nullptr;  // null: the model as it is
  bool scored = false;               // logits_of() will be asked for its rows
};

// Computes several sequences together, sharing each pass over the weights. What a sequence gets
// does not depend on the others, nor on how its tokens are split into steps, bit for bit. Unless
// Compute::bf16_prompts is set: then steps are in bf16 in which each sequence has kPromptTokens or
// more and no overlay.
class Decoder {
 public:
  static constexpr std::size_t kPromptTokens = 32;

  Decoder(Compute& compute, const Model& model) : compute_(compute), model_(model) {}

  // Continues all sequences, each of which appears once. `logits` gets [turns that want them,
  // vocabulary]; it may be null if none does. Buffers grow with the number of tokens of a step.
  // Errors: no room left in a context, a token outside the vocabulary; then nothing has changed.
  Status step(std::span<const Turn> turns, float* logits);

  // Logits of rows [begin, begin + count) of the last step's tokens, [count, vocabulary], if a turn
  // of it was `scored`.
  void logits_of(std::int64_t begin, std::int64_t count, float* logits);

  // The errors of step(), for tokens that may take several steps.
  Status check(const Sequence& sequence, std::span<const TokenId> tokens) const;

 private:
  // The rows of these turns and their tokens, still without caches.
  Batch batch_of(std::span<const Turn> turns);
  LayerView view(std::size_t layer, std::span<const OverlayRun> runs);
  // The last layer where only rows in last_ are read on, one of each turn that wants logits: from
  // all others come keys and values. `runs`: of the rows in last_.
  void last_layer(const LayerView& all, std::span<const OverlayRun> runs, const Batch& batch,
                  std::span<const Turn> turns);

  Compute& compute_;
  const Model& model_;
  std::vector<TokenId> tokens_;
  RopeTable rope_;
  LayerActivations activations_;
  LayerRuns layer_runs_;
  AlignedBuffer<float> x_;     // [rows, hidden] after the last layer
  AlignedBuffer<float> last_;  // the rows whose logits are wanted
  Head head_;
  bool in_bf16_ = false;  // the last step was
};

// One sequence.
class Session {
 public:
  Session(Compute& compute, const Model& model, std::int64_t context,
          CacheType cache = CacheType::kFloat)
      : model_(model), sequence_(compute, model, context, cache), decoder_(compute, model) {}

  std::int64_t length() const { return sequence_.length(); }
  std::int64_t context() const { return sequence_.context(); }

  // Appends tokens and writes the logits after the last one, [vocabulary] (null: not wanted).
  // Errors: no room left in the context, a token outside the vocabulary.
  Status append(std::span<const TokenId> tokens, float* last_logits);
  // Appends tokens and calls `visit` with the logits of each row [first_row, tokens.size()).
  Status append_all(std::span<const TokenId> tokens, std::int64_t first_row,
                    const std::function<void(std::int64_t row, const float* logits)>& visit);
  void truncate(std::int64_t length) { sequence_.truncate(length); }

 private:
  static constexpr std::size_t kRows = 512;
  const Model& model_;
  Sequence sequence_;
  Decoder decoder_;
  AlignedBuffer<float> logits_;
};

}  // namespace trimpot
