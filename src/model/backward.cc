#include "model/backward.h"

namespace trimpot {

void LayerGradients::allocate(const ModelConfig& config, std::int64_t rows) {
  d_feed_forward_out.reserve(rows * config.feed_forward);
  d_normed.reserve(rows * config.hidden);
  d_attention_out.reserve(rows * config.attention.q_width());
  d_q.reserve(rows * config.attention.q_width());
  d_k.reserve(rows * config.attention.kv_width());
  d_v.reserve(rows * config.attention.kv_width());
}

void layer_backward(Compute& compute, const ModelConfig& config, const LayerWeights& weights,
                    std::size_t layer, std::span<const Segment> segments, const RopeTable& rope,
                    std::int64_t rows, const float* x, LayerActivations& a, LayerGradients& g,
                    const GradientSink& sink, float* dy) {
  const auto weight_gradients = [&](LinearIndex kind, const Activations& input, const float* d_y) {
    const std::size_t index = layer * kLinearKinds.size() + kind;
    if (!sink.wants(index)) return;
    scale_gradients(
        compute, weights.*kLinearKinds[kind].matrix, input, d_y, rows,
        [&](std::int64_t begin, std::int64_t end, const float* d_scale, const float* d_offset) {
          sink.scales(index, begin, end, d_scale, d_offset);
        });
  };

  // y = middle + down_proj(silu(gate) * up)
  weight_gradients(kDown, a.feed_forward_out, dy);
  linear_backward(compute, std::array<LinearGradient, 1>{{{&weights.down_proj, dy}}}, rows,
                  g.d_feed_forward_out.data());
  swiglu_backward(compute, g.d_feed_forward_out.data(), rows, config.feed_forward, a.gate.data(),
                  a.up.data());  // now gradients
  const float* d_gate = a.gate.data();
  const float* d_up = a.up.data();
  weight_gradients(kGate, a.feed_forward_in, d_gate);
  weight_gradients(kUp, a.feed_forward_in, d_up);
  linear_backward(
      compute,
      std::array<LinearGradient, 2>{{{&weights.gate_proj, d_gate}, {&weights.up_proj, d_up}}}, rows,
      g.d_normed.data());
  rms_norm_backward(compute, g.d_normed.data(), a.middle.data(), weights.feed_forward_norm.data(),
                    a.feed_forward_rstd.data(), rows, config.hidden, dy);

  // middle = x + o_proj(attention(q, k, v))
  weight_gradients(kO, a.attention_out, dy);
  linear_backward(compute, std::array<LinearGradient, 1>{{{&weights.o_proj, dy}}}, rows,
                  g.d_attention_out.data());
  attention_backward(
      compute, config.attention, segments, rows,
      {a.q.data(), a.k.data(), a.v.data(), a.attention_out.values(), a.log_sum_exp.data(),
       g.d_attention_out.data(), g.d_q.data(), g.d_k.data(), g.d_v.data()});
  rope.rotate(compute, config, rows, config.attention.heads, -1.0f, g.d_q.data());
  rope.rotate(compute, config, rows, config.attention.kv_heads, -1.0f, g.d_k.data());
  weight_gradients(kQ, a.attention_in, g.d_q.data());
  weight_gradients(kK, a.attention_in, g.d_k.data());
  weight_gradients(kV, a.attention_in, g.d_v.data());
  linear_backward(compute,
                  std::array<LinearGradient, 3>{{{&weights.q_proj, g.d_q.data()},
                                                 {&weights.k_proj, g.d_k.data()},
                                                 {&weights.v_proj, g.d_v.data()}}},
                  rows, g.d_normed.data());
  rms_norm_backward(compute, g.d_normed.data(), x, weights.attention_norm.data(),
                    a.attention_rstd.data(), rows, config.hidden, dy);
}

}  // namespace trimpot
