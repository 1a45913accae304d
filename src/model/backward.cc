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
                    std::int64_t rows, const float* x, const float* y, LayerActivations& a,
                    LayerGradients& g, const GradientSink& sink, float* dy) {
  const auto sink_of = [&](LinearIndex kind) -> const LinearSink& {
    return sink.of(layer * kLinearKinds.size() + kind);
  };
  // One linear layer: its wanted gradients, and dx (+)= its input's.
  const auto back = [&](LinearIndex kind, const Activations& input, const KnownOutput& output,
                        const float* d_y, float* dx, bool add = false) {
    linear_backward(compute, weights.*kLinearKinds[kind].linear, input, d_y, rows, sink_of(kind),
                    dx, add, output);
  };

  // y = middle + down_proj(silu(gate) * up)
  // gate and up stay: they are outputs. down_proj is the last to read feed_forward_out.
  float *d_gate = g.d_feed_forward_out.data(), *d_up = a.feed_forward_out.values();
  back(kDown, a.feed_forward_out, {y, a.middle.data()}, dy, g.d_feed_forward_out.data());
  swiglu_backward(compute, a.gate.data(), a.up.data(), rows, config.feed_forward, d_gate, d_up);
  back(kGate, a.feed_forward_in, {a.gate.data()}, d_gate, g.d_normed.data());
  back(kUp, a.feed_forward_in, {a.up.data()}, d_up, g.d_normed.data(), true);
  rms_norm_backward(compute, g.d_normed.data(), a.middle.data(), weights.feed_forward_norm.data(),
                    a.feed_forward_rstd.data(), rows, config.hidden, dy);

  // middle = x + o_proj(attention(q, k, v))
  back(kO, a.attention_out, {a.middle.data(), x}, dy, g.d_attention_out.data());
  attention_backward(
      compute, config.attention, segments, rows,
      {a.q.data(), a.k.data(), a.v.data(), a.attention_out.values(), a.log_sum_exp.data(),
       g.d_attention_out.data(), g.d_q.data(), g.d_k.data(), g.d_v.data()});
  // Gradients, and outputs where they are asked for, of q and k before they were turned.
  const auto turn_back = [&](LinearIndex kind, std::int64_t heads, float* d, float* output) {
    rope.rotate(compute, config, rows, heads, -1.0f, d);
    if (takes_output(compute, weights.*kLinearKinds[kind].linear, sink_of(kind)))
      rope.rotate(compute, config, rows, heads, -1.0f, output);
  };
  turn_back(kQ, config.attention.heads, g.d_q.data(), a.q.data());
  turn_back(kK, config.attention.kv_heads, g.d_k.data(), a.k.data());
  back(kQ, a.attention_in, {a.q.data()}, g.d_q.data(), g.d_normed.data());
  back(kK, a.attention_in, {a.k.data()}, g.d_k.data(), g.d_normed.data(), true);
  back(kV, a.attention_in, {a.v.data()}, g.d_v.data(), g.d_normed.data(), true);
  rms_norm_backward(compute, g.d_normed.data(), x, weights.attention_norm.data(),
                    a.attention_rstd.data(), rows, config.hidden, dy);
}

}  // namespace trimpot
