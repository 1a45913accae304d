#include "model/backward.h"

#include <utility>

namespace trimpot {

namespace {

std::int64_t whole_lines(std::int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

LayerGradients::LayerGradients(const ModelConfig& config, std::int64_t rows, float* memory) {
  const auto take = [&](std::int64_t columns) {
    return std::exchange(memory, memory + whole_lines(rows * columns));
  };
  d_feed_forward_out = take(config.feed_forward);
  d_normed = take(config.hidden);
  d_attention_out = take(config.attention.q_width());
  d_q = take(config.attention.q_width());
  d_k = take(config.attention.kv_width());
  d_v = take(config.attention.kv_width());
  in_attention = memory;
}

std::int64_t LayerGradients::size(const ModelConfig& config, std::int64_t rows,
                                  std::span<const Segment> segments) {
  const std::int64_t q_width = config.attention.q_width(), kv_width = config.attention.kv_width();
  return whole_lines(rows * config.feed_forward) + whole_lines(rows * config.hidden) +
         2 * whole_lines(rows * q_width) + 2 * whole_lines(rows * kv_width) +
         attention_backward_size(config.attention, segments);
}

void layer_backward(Compute& compute, const ModelConfig& config, const LayerWeights& weights,
                    std::size_t layer, std::span<const Segment> segments, const RopeTable& rope,
                    std::int64_t rows, const float* x, const float* y, LayerActivations& a,
                    const LayerGradients& g, const GradientSink& sink, float* dy) {
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
  float *d_gate = g.d_feed_forward_out, *d_up = a.feed_forward_out.values();
  back(kDown, a.feed_forward_out, {y, a.middle.data()}, dy, g.d_feed_forward_out);
  swiglu_backward(compute, a.gate.data(), a.up.data(), rows, config.feed_forward, d_gate, d_up);
  back(kGate, a.feed_forward_in, {a.gate.data()}, d_gate, g.d_normed);
  back(kUp, a.feed_forward_in, {a.up.data()}, d_up, g.d_normed, true);
  rms_norm_backward(compute, g.d_normed, a.middle.data(), weights.feed_forward_norm.data(),
                    a.feed_forward_rstd.data(), rows, config.hidden, dy);

  // middle = x + o_proj(attention(q, k, v))
  back(kO, a.attention_out, {a.middle.data(), x}, dy, g.d_attention_out);
  attention_backward(
      compute, config.attention, segments,
      {a.q.data(), a.k.data(), a.v.data(), a.attention_out.values(), a.log_sum_exp.data(),
       g.d_attention_out, g.d_q, g.d_k, g.d_v, g.in_attention});
  // Gradients, and outputs where they are asked for, of q and k before they were turned.
  const auto turn_back = [&](LinearIndex kind, std::int64_t heads, float* d, float* output) {
    rope.rotate(compute, config, rows, heads, -1.0f, d);
    if (takes_output(compute, weights.*kLinearKinds[kind].linear, sink_of(kind)))
      rope.rotate(compute, config, rows, heads, -1.0f, output);
  };
  turn_back(kQ, config.attention.heads, g.d_q, a.q.data());
  turn_back(kK, config.attention.kv_heads, g.d_k, a.k.data());
  back(kQ, a.attention_in, {a.q.data()}, g.d_q, g.d_normed);
  back(kK, a.attention_in, {a.k.data()}, g.d_k, g.d_normed, true);
  back(kV, a.attention_in, {a.v.data()}, g.d_v, g.d_normed, true);
  rms_norm_backward(compute, g.d_normed, x, weights.attention_norm.data(), a.attention_rstd.data(),
                    rows, config.hidden, dy);
}

}  // namespace trimpot
