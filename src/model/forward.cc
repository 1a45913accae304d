#include "model/forward.h"

#include <array>
#include <cmath>

namespace trimpot {
namespace {

// Gives the layers that share an input the forms of it that they want, and runs them.
void apply_linears(Compute& compute, Activations& x, std::int64_t rows,
                   std::span<const LinearOutput> outputs, std::span<const Upcoming> next = {},
                   const Activations* filled_next = nullptr) {
  x.prepare(compute, rows, outputs);
  linear(compute, x, rows, outputs, next, filled_next);
}

}  // namespace

void RopeTable::fill(const Model& model, const Batch& batch) {
  const std::int64_t half = model.config.rope_dims / 2;
  cos_.resize(batch.tokens.size() * half * 2);
  sin_.resize(batch.tokens.size() * half * 2);
  std::vector<float> frequency(half);
  for (std::int64_t i = 0; i < half; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(half * 2);
    double value = std::pow(static_cast<double>(model.config.rope_base), exponent);
    if (!model.rope_frequency_factors.empty())
      value /= static_cast<double>(model.rope_frequency_factors[i]);
    frequency[i] = static_cast<float>(value) * model.config.rope_frequency_scale;
  }
  for (const Segment& segment : batch.segments)
    for (std::int64_t row = 0; row < segment.count; ++row)
      for (std::int64_t i = 0; i < half; ++i) {
        // The angle is rounded to f32, as peers do; its cosine is exact to the last bit or so.
        const float angle = static_cast<float>(segment.position + row) * frequency[i];
        const std::int64_t at = ((segment.row + row) * half + i) * 2;
        cos_[at] = cos_[at + 1] = static_cast<float>(std::cos(double{angle}));
        sin_[at + 1] = static_cast<float>(std::sin(double{angle}));
        sin_[at] = -sin_[at + 1];
      }
}

void RopeTable::rotate(Compute& compute, const ModelConfig& config, std::int64_t rows,
                       std::int64_t heads, float direction, float* x) const {
  const std::int64_t turned = config.rope_dims, dim = config.attention.head_dim;
  compute.team.for_each(rows, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row)
      for (std::int64_t head = 0; head < heads; ++head)
        compute.kernels.rotate_pairs(cos_.data() + row * turned, sin_.data() + row * turned,
                                     direction, turned, x + (row * heads + head) * dim);
  });
}

void LayerActivations::allocate(const ModelConfig& config, std::int64_t rows) {
  const std::int64_t q_width = config.attention.q_width(), kv_width = config.attention.kv_width();
  // Each is below the size from which a buffer has huge pages of its own; those of 512 rows are
  // some 6000 pages of 4 KiB, more than a TLB holds: steps took 1.01 times as long.
  constexpr std::int64_t kManyBytes = 1 << 20;
  const std::int64_t bytes = rows * config.feed_forward * static_cast<std::int64_t>(sizeof(float));
  Arena* large = bytes >= kManyBytes ? arena.get() : nullptr;
  attention_in.allocate(rows, config.hidden, large);
  q.reserve(rows * q_width, large);
  k.reserve(rows * kv_width, large);
  v.reserve(rows * kv_width, large);
  attention_out.allocate(rows, q_width, large);
  log_sum_exp.reserve(rows * config.attention.heads);
  middle.reserve(rows * config.hidden, large);
  feed_forward_in.allocate(rows, config.hidden, large);
  gate.reserve(rows * config.feed_forward, large);
  up.reserve(rows * config.feed_forward, large);
  feed_forward_out.allocate(rows, config.feed_forward, large);
  attention_rstd.reserve(rows);
  feed_forward_rstd.reserve(rows);
}

void attention_norm(Compute& compute, const ModelConfig& config, const LayerView& layer,
                    std::int64_t rows, const float* x, LayerActivations& a) {
  rms_norm(compute, x, layer.weights.attention_norm.data(), rows, config.hidden, config.rms_eps,
           a.attention_in.values(), a.attention_rstd.data());
}

void attention_inputs(Compute& compute, const ModelConfig& config, const LayerView& layer,
                      std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                      const float* x, LayerActivations& a) {
  const AttentionShape& shape = config.attention;
  attention_norm(compute, config, layer, rows, x, a);
  apply_linears(compute, a.attention_in, rows,
                std::array{layer.output(kQ, a.q.data()), layer.output(kK, a.k.data()),
                           layer.output(kV, a.v.data())},
                std::array{layer.upcoming(kO)}, &a.attention_out);
  rope.rotate(compute, config, rows, shape.heads, 1.0f, a.q.data());
  rope.rotate(compute, config, rows, shape.kv_heads, 1.0f, a.k.data());
  for (const Segment& segment : segments)
    segment.cache->store(compute, shape, segment.position, segment.count,
                         a.k.data() + segment.row * shape.kv_width(),
                         a.v.data() + segment.row * shape.kv_width());
}

void attention_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                       std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                       const float* x, LayerActivations& a) {
  attention_inputs(compute, config, layer, segments, rope, rows, x, a);
  attention(compute, config.attention, segments, a.q.data(), a.attention_out.values(),
            a.log_sum_exp.data());
}

void attention_output(Compute& compute, const ModelConfig& config, const LayerView& layer,
                      std::int64_t rows, const float* x, float* middle, LayerActivations& a) {
  apply_linears(compute, a.attention_out, rows, std::array{layer.output(kO, middle, x)},
                std::array{layer.upcoming(kGate), layer.upcoming(kUp)}, &a.feed_forward_in);
  rms_norm(compute, middle, layer.weights.feed_forward_norm.data(), rows, config.hidden,
           config.rms_eps, a.feed_forward_in.values(), a.feed_forward_rstd.data());
}

void feed_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                  std::int64_t rows, LayerActivations& a) {
  apply_linears(compute, a.feed_forward_in, rows,
                std::array{layer.output(kGate, a.gate.data()), layer.output(kUp, a.up.data())},
                std::array{layer.upcoming(kDown)}, &a.feed_forward_out);
  swiglu(compute, a.gate.data(), a.up.data(), rows, config.feed_forward,
         a.feed_forward_out.values());
}

void feed_forward_output(Compute& compute, const LayerView& layer, std::int64_t rows,
                         const float* middle, LayerActivations& a, float* y,
                         std::span<const Upcoming> next) {
  const LinearOutput down = layer.output(kDown, y, middle);
  a.feed_forward_out.prepare(compute, rows, {&down, 1});
  if (y == nullptr) return;
  linear(compute, a.feed_forward_out, rows, {&down, 1}, next, &a.attention_in);
}

void layer_forward(Compute& compute, const ModelConfig& config, const LayerView& layer,
                   std::span<const Segment> segments, const RopeTable& rope, std::int64_t rows,
                   const float* x, LayerActivations& a, float* y, std::span<const Upcoming> next) {
  attention_forward(compute, config, layer, segments, rope, rows, x, a);
  float* middle = y == x ? y : a.middle.data();
  attention_output(compute, config, layer, rows, x, middle, a);
  feed_forward(compute, config, layer, rows, a);
  feed_forward_output(compute, layer, rows, middle, a, y, next);
}

void embed(Compute& compute, const Model& model, std::span<const TokenId> tokens, float* x) {
  const std::int64_t hidden = model.config.hidden;
  const auto rows = static_cast<std::int64_t>(tokens.size());
  compute.team.for_each(rows, 16, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* to = x + row * hidden;
      if (!model.embedding_order) {
        model.embedding.dequantize_row(tokens[row], to);
        continue;
      }
      float* channels = compute.scratch(member, hidden);
      model.embedding.dequantize_row(tokens[row], channels);
      for (std::int64_t i = 0; i < hidden; ++i) to[i] = channels[(*model.embedding_order)[i]];
    }
  });
}

void Head::forward(Compute& compute, const Model& model, std::int64_t rows, const float* x,
                   float* logits) {
  const ModelConfig& config = model.config;
  normed_.allocate(rows, config.hidden);
  rstd_.reserve(rows);
  rms_norm(compute, x, model.output_norm.data(), rows, config.hidden, config.rms_eps,
           normed_.values(), rstd_.data());
  apply_linears(compute, normed_, rows, std::array{LinearOutput{model.head_view(), logits}});
}

}  // namespace trimpot
