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

// Places in memory that the caller has: a buffer of the head's, which is done by then.
struct LayerGradients {
  float* d_feed_forward_out;  // [rows, feed_forward], then gate's
  float* d_normed;            // [rows, hidden]
  float* d_attention_out;     // [rows, q_width]
  float *d_q, *d_k, *d_v;     // [rows, q_width | kv_width]
  float* in_attention;        // attention_backward()'s own

  // `memory` holds size() floats, on a boundary of 64 bytes.
  LayerGradients(const ModelConfig& config, std::int64_t rows, float* memory);
  static std::int64_t size(const ModelConfig& config, std::int64_t rows,
                           std::span<const Segment> segments);
};

// One layer: dy [rows, hidden] (the gradient of the layer's output) becomes the gradient of its
// input x, in place. `a` must hold layer_forward()'s results for this layer, y its output (null:
// not known); `a` is used up.
void layer_backward(Compute& compute, const ModelConfig& config, const LayerWeights& weights,
                    std::size_t layer, std::span<const Segment> segments, const RopeTable& rope,
                    std::int64_t rows, const float* x, const float* y, LayerActivations& a,
                    const LayerGradients& g, const GradientSink& sink, float* dy);

}  // namespace trimpot
