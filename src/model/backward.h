// The backward pass: the forward's calls mirrored, same names with `d_`.
#pragma once

#include <cstdint>
#include <functional>

#include "model/forward.h"

namespace trimpot {

// Called for every linear layer the tuning method wants (index as in Model::linear) with the
// gradients of scales and offsets of whole tiles; see ScaleGradientSink.
struct GradientSink {
  std::function<bool(std::size_t index)> wants;
  std::function<void(std::size_t index, std::int64_t tile_begin, std::int64_t tile_end,
                     const float* d_scale, const float* d_offset)>
      scales;
};

struct LayerGradients {
  AlignedBuffer<float> d_feed_forward_out;  // [rows, feed_forward]
  AlignedBuffer<float> d_normed;            // [rows, hidden]
  AlignedBuffer<float> d_attention_out;     // [rows, q_width]
  AlignedBuffer<float> d_q, d_k, d_v;       // [rows, q_width | kv_width]
  void allocate(const ModelConfig& config, std::int64_t rows);
};

// One layer: dy [rows, hidden] (the gradient of the layer's output) becomes the gradient of its
// input x, in place. `a` must hold layer_forward()'s results for this layer.
void layer_backward(Compute& compute, const ModelConfig& config, const LayerWeights& weights,
                    std::size_t layer, std::span<const Segment> segments, const RopeTable& rope,
                    std::int64_t rows, const float* x, LayerActivations& a, LayerGradients& g,
                    const GradientSink& sink, float* dy);

}  // namespace trimpot
