// The forward pass: one layer is ten named calls, shared by generation, evaluation and training.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/linear.h"
#include "model/weights.h"

namespace trimpot {

using TokenId = std::int32_t;  // as in text/tokenizer.h

// Rows of tokens that are computed together: runs of consecutive tokens of one or more sequences.
struct Batch {
  std::span<const TokenId> tokens;
  std::vector<Segment> segments;  // cache pointers are set per layer
};

// cos and sin of the RoPE angles of every row, [rows, rope_dims]: as Kernels::rotate_pairs takes
// them.
class RopeTable {
 public:
  void fill(const Model& model, const Batch& batch);
  // Rotates the pairs (2i, 2i+1) of the first rope_dims channels of each head, as GGUF stores rows
  // of architecture llama; `direction` -1 rotates back (the gradient).
  void rotate(Compute& compute, const ModelConfig& config, std::int64_t rows, std::int64_t heads,
              float direction, float* x) const;

 private:
  std::vector<float> cos_, sin_;
};

// What one layer computes; the backward reads it. Buffers are reused from layer to layer.
struct LayerActivations {
  std::unique_ptr<Arena> arena = std::make_unique<Arena>();  // of those below, if they are large
  Activations attention_in;          // normed input           [rows, hidden]
  AlignedBuffer<float> q, k, v;      // after RoPE             [rows, q_width | kv_width]
  Activations attention_out;         //                        [rows, q_width]
  AlignedBuffer<float> log_sum_exp;  //                  [rows, heads]
  AlignedBuffer<float> middle;       // after attention, residual added [rows, hidden]
  Activations feed_forward_in;       // normed middle          [rows, hidden]
  AlignedBuffer<float> gate, up;     //                  [rows, feed_forward]
  Activations feed_forward_out;      // silu(gate) * up        [rows, feed_forward]
  AlignedBuffer<float> attention_rstd, feed_forward_rstd;  // [rows]

  LayerActivations() = default;
  LayerActivations(LayerActivations&&) = default;
  // Member by member the arena would go before the buffers in it.
  LayerActivations& operator=(LayerActivations&&) = delete;

  void allocate(const ModelConfig& config, std::int64_t rows);
};

// A layer as the rows of a batch see it: all alike, or in runs (LinearRun) with parts of their own.
struct LayerView {
  const LayerWeights& weights;
  std::array<std::span<const LinearRun>, kLinearKinds.size()> runs{};

  LayerView(const LayerWeights& weights) : weights(weights) {}
  LinearOutput output(LinearIndex kind, float* y, const float* base = nullptr) const {
    return {weights.*kLinearKinds[kind].linear, y, base, runs[kind]};
  }
  Upcoming upcoming(LinearIndex kind) const {
    const Linear& linear = weights.*kLinearKinds[kind].linear;
    return {&linear.weight, linear.weak.rows() > 0 ? &linear.weak : nullptr};
  }
};

// One layer: x [rows, hidden] -> y [rows, hidden]. If y is x, it takes a.middle's part, too.
// Without y the down projection is left out: the backward recomputes everything but the layer's
// output. `next`: what is multiplied after it (linear()).
void layer_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                   std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                   const float* x, LayerActivations& a, float* y,
                   std::span<const Upcoming> next = {});

// Its parts: x normed into a.attention_in; keys and values stored, a.q ready; up to
// a.attention_out; middle = x + o_proj(...), normed into a.feed_forward_in; up to
// a.feed_forward_out; y = middle + down_proj(...). middle may be x, y middle.
void attention_norm(Compute& compute, const ModelConfig& config, const LayerView& layer,
                    std::int64_t rows, const float* x, LayerActivations& a);
void attention_inputs(Compute& compute, const ModelConfig& config, const LayerView& layer,
                      std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                      const float* x, LayerActivations& a);
void attention_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                       std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                       const float* x, LayerActivations& a);
void attention_output(Compute& compute, const ModelConfig& config, const LayerView& layer,
                      std::int64_t rows, const float* x, float* middle, LayerActivations& a);
void feed_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                  std::int64_t rows, LayerActivations& a);
void feed_forward_output(Compute& compute, const LayerView& layer, std::int64_t rows,
                         const float* middle, LayerActivations& a, float* y,
                         std::span<const Upcoming> next = {});

// Rows of the embedding, [rows, hidden]. Token ids must be inside the vocabulary.
void embed(Compute& compute, const Model& model, std::span<const TokenId> tokens, float* x);

// logits [rows, vocabulary] of x [rows, hidden] after the last layer.
class Head {
 public:
  void forward(Compute& compute, const Model& model, std::int64_t rows, const float* x,
               float* logits);
  const float* rstd() const { return rstd_.data(); }

 private:
  Activations normed_;
  AlignedBuffer<float> rstd_;
};

}  // namespace trimpot
