#include "model/kept_activations.h"

#include <algorithm>
#include <utility>

#include "base/round.h"

namespace trimpot {
namespace {

std::int64_t byte_blocks(std::int64_t width) { return divide_up(width, kByteBlock); }

}  // namespace

Kept Kept::choose(std::size_t learned_values, std::size_t weight_bytes, bool quantized,
                  bool of_outputs) {
  if (!quantized) return {.queries = learned_values <= weight_bytes / 32};
  const bool feed_forward = learned_values <= weight_bytes / 32;
  return {.bytes = true,
          .queries = learned_values <= weight_bytes / 128,
          .feed_forward = feed_forward,
          .inputs = feed_forward && !of_outputs};
}

KeptWidths kept_widths(const ModelConfig& config, Kept kept) {
  const AttentionShape& shape = config.attention;
  const std::int64_t blocks = (kept.bytes ? byte_blocks(shape.q_width()) : 0) +
                              (kept.feed_forward ? 2 * byte_blocks(config.feed_forward) : 0);
  return {.halves = shape.q_width() * ((kept.queries ? 1 : 0) + (kept.bytes ? 0 : 1)) +
                    2 * shape.kv_width() + (kept.inputs ? config.hidden : 0) + blocks,
          .bytes = blocks * kByteBlock,
          .floats = shape.heads + (kept.inputs ? 1 : 0)};
}

// What is kept of a row, one after another.
struct KeptActivations::Row {
  f16* halves;  // numbers, and bytes' scales
  std::int8_t* bytes;
  float* floats;  // log-sum-exp of each head, 1 / rms of the input
};

KeptActivations::Row KeptActivations::row(std::size_t layer, std::int64_t row) const {
  const std::int64_t at = static_cast<std::int64_t>(layer) * rows_ + row;
  auto& self = const_cast<KeptActivations&>(*this);
  return {self.halves_.data() + at * widths_.halves, self.bytes_.data() + at * widths_.bytes,
          self.floats_.data() + at * widths_.floats};
}

void KeptActivations::allocate(const ModelConfig& config, std::int64_t rows, std::int64_t layers,
                               Kept kept) {
  kept_ = kept;
  rows_ = rows;
  shape_ = config.attention;
  hidden_ = config.hidden;
  feed_forward_ = config.feed_forward;
  widths_ = kept_widths(config, kept);
  halves_.reserve(layers * rows * widths_.halves);
  bytes_.reserve(layers * rows * widths_.bytes);
  floats_.reserve(layers * rows * widths_.floats);
}

// Calls half(values, width) and bytes(values, width) for what is kept of row i of `a`, in the order
// in which it lies.
template <typename LayerResults, typename Half, typename Bytes>
void KeptActivations::for_each_part(LayerResults& a, std::int64_t i, Half&& half,
                                    Bytes&& bytes) const {
  const auto use = [i](auto&& form, auto* values, std::int64_t width) {
    form(values + i * width, width);
  };
  const std::int64_t q_width = shape_.q_width(), kv_width = shape_.kv_width();
  if (kept_.bytes)
    use(bytes, a.attention_out.values(), q_width);
  else
    use(half, a.attention_out.values(), q_width);
  use(half, a.k.data(), kv_width);
  use(half, a.v.data(), kv_width);
  if (kept_.queries) use(half, a.q.data(), q_width);
  if (!kept_.feed_forward) return;
  use(bytes, a.gate.data(), feed_forward_);
  use(bytes, a.up.data(), feed_forward_);
}

void KeptActivations::keep(Compute& compute, std::size_t layer, const LayerActivations& a,
                           const float* x) {
  const Kernels& k = compute.kernels;
  compute.team.for_each(rows_, 32, [&](std::int64_t begin, std::int64_t end, int member) {
    float* normed = compute.scratch(member, static_cast<std::size_t>(hidden_));
    for (std::int64_t i = begin; i < end; ++i) {
      Row to = row(layer, i);
      const auto half = [&](const float* from, std::int64_t width) {
        k.narrow_f16(from, width, std::exchange(to.halves, to.halves + width));
      };
      const auto bytes = [&](const float* from, std::int64_t width) {
        const std::int64_t blocks = byte_blocks(width);
        k.narrow_int8(from, width, std::exchange(to.bytes, to.bytes + blocks * kByteBlock),
                      std::exchange(to.halves, to.halves + blocks));
      };
      for_each_part(a, i, half, bytes);
      to.floats = std::copy_n(a.log_sum_exp.data() + i * shape_.heads, shape_.heads, to.floats);
      if (!kept_.inputs) continue;
      // Normed: as they are, some models' pass 65504.
      const float rstd = *to.floats = a.attention_rstd.data()[i];
      k.scale(x + i * hidden_, hidden_, rstd, normed);
      half(normed, hidden_);
    }
  });
}

void KeptActivations::restore(Compute& compute, std::size_t layer, LayerActivations& a,
                              float* x) const {
  const Kernels& k = compute.kernels;
  compute.team.for_each(rows_, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      Row from = row(layer, i);
      const auto half = [&](float* to, std::int64_t width) {
        k.widen_f16(std::exchange(from.halves, from.halves + width), width, to);
      };
      const auto bytes = [&](float* to, std::int64_t width) {
        const std::int64_t blocks = byte_blocks(width);
        k.widen_int8(std::exchange(from.bytes, from.bytes + blocks * kByteBlock),
                     std::exchange(from.halves, from.halves + blocks), width, to);
      };
      for_each_part(a, i, half, bytes);
      std::copy_n(from.floats, shape_.heads, a.log_sum_exp.data() + i * shape_.heads);
      if (!kept_.inputs) continue;
      half(x + i * hidden_, hidden_);
      k.scale(x + i * hidden_, hidden_, 1.0f / from.floats[shape_.heads], x + i * hidden_);
    }
  });
}

}  // namespace trimpot
