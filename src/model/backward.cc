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
  // One linear layer: its wanted gradients, and dx (+)= its input's.
  const auto back = [&](LinearIndex kind, const Activations& input, const float* d_y, float* dx,
                        bool add = false) {
    linear_backward(compute, weights.*kLinearKinds[kind].linear, input, d_y, rows,
                    sink.of(layer * kLinearKinds.size() + kind), dx, add);
  };

  // y = middle + down_proj(silu(gate) * up)
  back(kDown, a.feed_forward_out, dy, g.d_feed_forward_out.data());
  swiglu_backward(compute, g.d_feed_forward_out.data(), rows, config.feed_forward, a.gate.data(),
                  a.up.data());  // now gradients
  back(kGate, a.feed_forward_in, a.gate.data(), g.d_normed.data());
  back(kUp, a.feed_forward_in, a.up.data(), g.d_normed.data(), true);
  rms_norm_backward(compute, g.d_normed.data(), a.middle.data(), weights.feed_forward_norm.data(),
                    a.feed_forward_rstd.data(), rows, config.hidden, dy);

  // middle = x + o_proj(attention(q, k, v))
  back(kO, a.attention_out, dy, g.d_attention_out.data());
  attention_backward(
      compute, config.attention, segments, rows,
      {a.q.data(), a.k.data(), a.v.data(), a.attention_out.values(), a.log_sum_exp.data(),
       g.d_attention_out.data(), g.d_q.data(), g.d_k.data(), g.d_v.data()});
  rope.rotate(compute, config, rows, config.attention.heads, -1.0f, g.d_q.data());
  rope.rotate(compute, config, rows, config.attention.kv_heads, -1.0f, g.d_k.data());
  back(kQ, a.attention_in, g.d_q.data(), g.d_normed.data());
  back(kK, a.attention_in, g.d_k.data(), g.d_normed.data(), true);
  back(kV, a.attention_in, g.d_v.data(), g.d_normed.data(), true);
  rms_norm_backward(compute, g.d_normed.data(), x, weights.attention_norm.data(),
                    a.attention_rstd.data(), rows, config.hidden, dy);
}

}  // namespace trimpot
