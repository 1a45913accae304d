// Linear layers called as the model calls them, forward and backward, for tests of their results.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear.h"
#include "kernels/linear_layers.h"
#include "support/compare.h"

namespace trimpot {

inline constexpr std::uint64_t kStream = 77;

inline constexpr float kBefore = 0.25f;  // what is in the gradients' arrays before

struct Gradients {
  std::vector<float> d_x, d_weak, d_weight, d_a, d_b;  // dense ones packed
  std::vector<float> d_scales, d_offsets;              // rows first
};

// Arrays of a layer's gradients and a sink into all of them.
class Sink {
 public:
  Sink(const Linear& linear, std::int64_t tokens) {
    const auto size = [](const Matrix& m) {
      return static_cast<std::size_t>(m.view().tiles * m.columns() * 16);
    };
    const Matrix& weight = linear.weight;
    out.d_x.assign(static_cast<std::size_t>(tokens * linear.columns), kBefore);
    out.d_weight.assign(size(weight), kBefore);
    sink.weight = out.d_weight.data();
    if (linear.weak.rows() > 0) {
      out.d_weak.assign(size(linear.weak), kBefore);
      sink.weak = out.d_weak.data();
    }
    if (linear.low_rank) {
      out.d_a.assign(size(linear.low_rank->a), kBefore);
      out.d_b.assign(size(linear.low_rank->b), kBefore);
      sink.low_rank_a = out.d_a.data();
      sink.low_rank_b = out.d_b.data();
    }
    if (!weight.quantized()) return;
    out.d_scales.resize(static_cast<std::size_t>(weight.rows() * weight.groups()));
    out.d_offsets.resize(out.d_scales.size());
    sink.scales = [this, &weight](std::int64_t begin, std::int64_t end, const float* scale,
                                  const float* offset) {
      for (std::int64_t row = begin * 16; row < std::min(end * 16, weight.rows()); ++row)
        for (std::int64_t group = 0; group < weight.groups(); ++group) {
          const auto to = static_cast<std::size_t>(row * weight.groups() + group);
          const std::size_t from = weight.scale_index(row, group) -
                                   static_cast<std::size_t>(begin * weight.groups() * 16);
          out.d_scales[to] += scale[from];
          if (offset != nullptr) out.d_offsets[to] += offset[from];
        }
    };
  }
  Sink(const Sink&) = delete;
  Gradients out;
  LinearSink sink;
};

struct Data {
  std::vector<float> x, d_y;
};
inline Data random_data(const Linear& linear, std::int64_t tokens) {
  RandomStream random(6, static_cast<std::uint64_t>(tokens));
  return {random.normals(tokens * linear.columns), random.normals(tokens * linear.rows())};
}

// The same with a channel that stands out in two tokens of three, so that on the default path they
// have remainders: from ten blocks on.
inline Data standing_out(const Linear& linear, std::int64_t tokens) {
  Data data = random_data(linear, tokens);
  for (std::int64_t t = 0; t < tokens; ++t)
    if (t % 3 != 0)
      data.x[t * linear.columns + (t % 3 == 1 ? 45 : 7 * t % linear.columns)] *= 300.0f;
  return data;
}

inline Activations activations(Compute& compute, const std::vector<float>& values,
                               std::int64_t columns, std::span<const LinearView> readers) {
  Activations x;
  const std::int64_t tokens = static_cast<std::int64_t>(values.size()) / columns;
  x.allocate(tokens, columns);
  std::copy(values.begin(), values.end(), x.values());
  std::vector<LinearOutput> outputs;
  for (const LinearView& reader : readers) outputs.push_back({reader, nullptr});
  x.prepare(compute, tokens, outputs);
  return x;
}

inline std::vector<float> forward(Compute& compute, const Linear& linear_layer,
                                  const std::vector<float>& x, float before = 0, bool add = false) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / linear_layer.columns;
  const Activations in =
      activations(compute, x, linear_layer.columns, std::array<LinearView, 1>{linear_layer});
  std::vector<float> y(static_cast<std::size_t>(tokens * linear_layer.rows()), before);
  // To what is there already, or to what lies elsewhere.
  const std::vector<float> base = y;
  if (add && tokens % 2 == 1) std::fill(y.begin(), y.end(), 7.0f);
  const float* from = !add ? nullptr : tokens % 2 == 1 ? base.data() : y.data();
  linear(compute, in, tokens, std::array<LinearOutput, 1>{{{linear_layer, y.data(), from}}});
  return y;
}

inline Gradients backward(Compute& compute, const Linear& linear, const Data& data, bool add) {
  const std::int64_t tokens = static_cast<std::int64_t>(data.x.size()) / linear.columns;
  const Activations in =
      activations(compute, data.x, linear.columns, std::array<LinearView, 1>{linear});
  Sink sink(linear, tokens);
  linear_backward(compute, linear, in, data.d_y.data(), tokens, sink.sink, sink.out.d_x.data(),
                  add);
  return std::move(sink.out);
}

struct Setup {
  const Kernels* kernels;
  Precision precision;
};
inline std::vector<Setup> setups() {
  std::vector<Setup> out;
  for (const Kernels* kernels : usable_kernels())
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      out.push_back({kernels, precision});
  return out;
}
inline std::string setup_name(const testing::TestParamInfo<Setup>& info) {
  return std::string(info.param.kernels->name) +
         (info.param.precision == Precision::kF32 ? "_f32" : "_default");
}

}  // namespace trimpot
