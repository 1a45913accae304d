// The backward pass: the forward's calls mirrored, same names with `d_`.
#pragma once

#include <cstdint>
#include <vector>

#include "model/forward.h"

namespace trimpot {

// Which gradients a tuning method wants and where they go.
struct GradientSink {
  std::vector<LinearSink> linears;  // by Model::linear index; may be shorter
  // Random numbers for dropout; a method changes them from pass to pass. 0: no dropout.
  std::uint64_t dropout_stream = 0;

  const LinearSink& of(std::size_t index) const {
    static const LinearSink kNothing;
    return index < linears.size() ? linears[index] : kNothing;
  }
};

struct LayerGradients {
  AlignedBuffer<float> d_feed_forward_out;  // [rows, feed_forward], then gate's
  AlignedBuffer<float> d_normed;            // [rows, hidden]
  AlignedBuffer<float> d_attention_out;     // [rows, q_width]
  AlignedBuffer<float> d_q, d_k, d_v;       // [rows, q_width | kv_width]
  void allocate(const ModelConfig& config, std::int64_t rows);
};

// One layer: dy [rows, hidden] (the gradient of the layer's output) becomes the gradient of its
// input x, in place. `a` must hold layer_forward()'s results for this layer, y its output (null:
// not known); `a` is used up.
void layer_backward(Compute& compute, const ModelConfig& config, const LayerWeights& weights,
                    std::size_t layer, std::span<const Segment> segments, const RopeTable& rope,
                    std::int64_t rows, const float* x, const float* y, LayerActivations& a,
                    LayerGradients& g, const GradientSink& sink, float* dy);

}  // namespace trimpot
