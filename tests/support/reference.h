// The library's matrices and models as scalar references (kernels/ref).
#pragma once

#include <cmath>
#include <vector>

#include "kernels/ref/model.h"
#include "model/weights.h"
#include "support/random_groups.h"

namespace trimpot {

template <class T>
ref::Linear<T> reference_linear(const Matrix& matrix) {
  ref::Linear<T> out;
  out.rows = matrix.rows();
  out.columns = matrix.columns();
  if (!matrix.quantized()) {
    out.group_size = out.columns;
    out.scales.assign(static_cast<std::size_t>(out.rows), T(1.0));
    std::vector<float> row(static_cast<std::size_t>(out.columns));
    for (std::int64_t n = 0; n < out.rows; ++n) {
      matrix.dequantize_row(n, row.data());
      out.codes.insert(out.codes.end(), row.begin(), row.end());
    }
    return out;
  }
  out.group_size = matrix.view().group_chunks * kChunkColumns;
  for (std::int64_t n = 0; n < out.rows; ++n) {
    for (std::int64_t j = 0; j < out.columns; ++j)
      out.codes.push_back(weight_parts(matrix, n, j).level - matrix.view().zero_point);
    for (std::int64_t g = 0; g < matrix.groups(); ++g) {
      const WeightParts w = weight_parts(matrix, n, g * out.group_size);
      out.scales.push_back(T(w.scale));
      if (matrix.has_offsets()) out.offsets.push_back(T(w.offset));
      if (matrix.has_zeros()) out.offsets.push_back(T(-w.scale * w.zero));
    }
  }
  return out;
}

template <class T>
ref::Model<T> reference_model(const Model& model) {
  const ModelConfig& config = model.config;
  const auto vector = [](const std::vector<float>& values) {
    return std::vector<T>(values.begin(), values.end());
  };
  ref::Model<T> out;
  out.heads = {config.attention.heads, config.attention.kv_heads, config.attention.head_dim};
  out.eps = config.rms_eps;
  for (std::int64_t i = 0; i < config.rope_dims / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.rope_dims);
    double frequency = std::pow(double{config.rope_base}, exponent) * config.rope_frequency_scale;
    if (!model.rope_frequency_factors.empty()) frequency /= model.rope_frequency_factors[i];
    out.frequencies.push_back(frequency);
  }
  out.embedding = reference_linear<T>(model.embedding);
  out.head = reference_linear<T>(model.head_matrix());
  out.output_norm = vector(model.output_norm);
  for (const LayerWeights& layer : model.layers) {
    ref::Layer<T> to{vector(layer.attention_norm), vector(layer.feed_forward_norm), {}};
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind)
      to.linears[kind] = reference_linear<T>((layer.*kLinearKinds[kind].linear).weight);
    out.layers.push_back(std::move(to));
  }
  return out;
}

}  // namespace trimpot
