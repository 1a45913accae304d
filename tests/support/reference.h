// The library's matrices and models as scalar references (kernels/ref).
#pragma once

#include <cmath>
#include <vector>

#include "base/rng.h"
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
    std::vector<float> row(static_cast<std::size_t>(out.columns));
    for (std::int64_t n = 0; n < out.rows; ++n) {
      matrix.dequantize_row(n, row.data());
      out.dense.insert(out.dense.end(), row.begin(), row.end());
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
      if (matrix.has_zeros()) out.zeros.push_back(T(w.zero));
      if (matrix.has_offsets()) out.offsets.push_back(T(w.offset));
    }
  }
  return out;
}

// The same function with zeros as offsets m = -s z: what the kernels' d_scale and d_offset are of.
template <class T>
ref::Linear<T> with_offsets(ref::Linear<T> w) {
  for (std::size_t i = 0; i < w.zeros.size(); ++i) w.offsets.push_back(-w.scales[i] * w.zeros[i]);
  w.zeros.clear();
  return w;
}

// Terms of the same size, all positive: linear() of them gives the sums of absolute terms.
inline std::vector<double> absolute(std::vector<double> values) {
  for (double& value : values) value = std::fabs(value);
  return values;
}
inline ref::Linear<double> absolute(ref::Linear<double> w) {
  w = with_offsets(std::move(w));
  w.codes = absolute(w.codes);
  w.scales = absolute(w.scales);
  w.offsets = absolute(w.offsets);
  w.dense = absolute(w.dense);
  return w;
}
inline ref::LinearLayer<double> absolute(ref::LinearLayer<double> w) {
  w.weight = absolute(w.weight);
  w.weak = absolute(w.weak);
  w.a = absolute(w.a);
  w.b = absolute(w.b);
  w.scale = std::fabs(w.scale);
  return w;
}

// What dropout does to A's input of one linear layer, [tokens, columns of A]: 16 bits of
// CounterRng(stream of the pass, seed of the layer) to an element, the lowest ones first.
inline std::vector<double> dropout_mask(const LowRank& path, std::uint64_t stream,
                                        std::int64_t tokens, std::int64_t first_token = 0) {
  std::vector<double> mask;
  if (path.dropout == 0 || stream == 0) return mask;
  const CounterRng rng(stream, path.seed);
  const double limit = std::floor(double{path.dropout} * 65536);
  const std::int64_t begin = first_token * path.a.columns();
  for (std::int64_t i = begin; i < begin + tokens * path.a.columns(); ++i) {
    const auto draw =
        static_cast<std::uint16_t>(rng.bits(static_cast<std::uint64_t>(i / 4)) >> (i % 4 * 16));
    mask.push_back(draw < limit ? 0.0 : 65536 / (65536 - limit));
  }
  return mask;
}

// `mask`: of the low-rank path's dropout.
template <class T>
ref::LinearLayer<T> reference_layer(const LinearView& linear, std::int64_t columns,
                                    std::vector<double> mask = {}) {
  ref::LinearLayer<T> out;
  const auto channels = [](const std::vector<std::int32_t>* given, std::int64_t first,
                           std::int64_t count) {
    std::vector<ref::Index> list;
    for (std::int64_t i = 0; i < count; ++i)
      list.push_back(given != nullptr ? (*given)[static_cast<std::size_t>(i)] : first + i);
    return list;
  };
  out.columns = columns;
  out.weight = reference_linear<T>(*linear.weight);
  out.weight_columns = channels(linear.weight_columns, 0, out.weight.columns);
  if (linear.weak != nullptr) {
    out.weak = reference_linear<T>(*linear.weak);
    out.weak_columns = channels(linear.weak_columns, out.weight.columns, out.weak.columns);
  }
  if (linear.low_rank != nullptr) {
    out.a = reference_linear<T>(linear.low_rank->a);
    out.b = reference_linear<T>(linear.low_rank->b);
    out.scale = linear.low_rank->scale;
    out.pool = std::max(1, linear.low_rank->pool);
    out.mask = std::move(mask);
  }
  return out;
}

// A matrix of frozen values with its columns in another order.
template <class T>
ref::Linear<T> reordered(const ref::Linear<T>& w, const ColumnOrder& columns) {
  if (!columns) return w;
  ref::Linear<T> out;
  out.rows = w.rows;
  out.columns = w.columns;
  for (std::int64_t n = 0; n < w.rows; ++n)
    for (const std::int32_t column : *columns) out.dense.push_back(w.weight(n, column));
  return out;
}

// Rows of a batch that are a reference's sequence: dropout depends on them.
struct DropoutRows {
  std::uint64_t stream = 0;
  std::int64_t first = 0, tokens = 0;
};

template <class T>
ref::Model<T> reference_model(const Model& model, const DropoutRows& rows = {}) {
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
  out.embedding = reordered(reference_linear<T>(model.embedding), model.embedding_order);
  out.head = reordered(reference_linear<T>(model.head_matrix()), model.embedding_order);
  out.output_norm = vector(model.output_norm);
  for (const LayerWeights& layer : model.layers) {
    ref::Layer<T> to{vector(layer.attention_norm), vector(layer.feed_forward_norm), {}};
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
      const Linear& linear = layer.*kLinearKinds[kind].linear;
      std::vector<double> mask;
      if (linear.low_rank)
        mask = dropout_mask(*linear.low_rank, rows.stream, rows.tokens, rows.first);
      to.linears[kind] = reference_layer<T>(linear, linear.columns, std::move(mask));
    }
    out.layers.push_back(std::move(to));
  }
  return out;
}

}  // namespace trimpot
