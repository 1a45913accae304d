#include "kernels/ops.h"

#include <algorithm>
#include <cstring>

namespace trimpot {
namespace {

constexpr std::int64_t kTokenBlock =
    192;  // int8 rows of 1536 columns: 288 KiB of the second-level cache

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Pieces of work small enough that threads finish together: about 8 per thread.
std::int64_t grain_for(const Compute& compute, std::int64_t count) {
  return std::max<std::int64_t>(1, count / (compute.team.size() * 8));
}

bool uses_int8(const Compute& compute, const Matrix& weight) {
  return compute.precision == Precision::kDefault && weight.quantized();
}

// Tiles [2 pair, 2 pair + 2) of a matrix in floats.
void linear_pair_f32(Compute& compute, const Matrix& weight, const Activations& x,
                     std::int64_t tokens, std::int64_t pair, float* y, bool add, int member) {
  const MatrixView& w = weight.view();
  const std::int64_t tile = pair * 2;
  const std::int64_t count = std::min<std::int64_t>(2, w.tiles - tile);
  const std::int64_t rows = std::min<std::int64_t>(count * kTileRows, w.rows - tile * kTileRows);
  Panels panels;
  if (weight.quantized()) {
    const std::int64_t stride = divide_up(w.columns, kChunkColumns) * kChunkColumns * kTileRows;
    float* panel = compute.scratch(member, count * stride);
    for (std::int64_t i = 0; i < count; ++i)
      compute.kernels.unpack_tile(w, tile + i, false, panel + i * stride);
    panels = {panel, Storage::kF32, stride, kTileRows};
  } else {
    const std::int64_t bytes = w.storage == Storage::kF32 ? 4 : 2;
    const auto* dense = static_cast<const std::uint8_t*>(w.dense);
    panels = {dense + tile * w.columns * kTileRows * bytes, w.storage, w.columns * kTileRows,
              kTileRows};
  }
  compute.kernels.multiply({x.values(), x.columns(), 1}, panels, tokens, rows, w.columns,
                           y + tile * kTileRows, w.rows, add);
}

}  // namespace

void Activations::allocate(const Compute& compute, std::int64_t tokens, std::int64_t columns) {
  if (tokens <= tokens_ && columns == columns_) return;
  tokens_ = tokens;
  columns_ = columns;
  values_.resize(tokens * columns);
  if (compute.precision == Precision::kF32) return;
  view_.blocks = divide_up(columns, kChunkColumns);
  codes_.resize(tokens * view_.blocks * kChunkColumns);
  scales_.resize(tokens * view_.blocks);
  sums_.resize(tokens * view_.blocks);
  scaled_sums_.resize(tokens * view_.blocks);
  view_.codes = codes_.data();
  view_.scales = scales_.data();
  view_.sums = sums_.data();
  view_.scaled_sums = scaled_sums_.data();
}

void Activations::quantize(Compute& compute, std::int64_t tokens) {
  if (compute.precision == Precision::kF32) return;
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.quantize(values_.data(), columns_, columns_, begin, end, view_);
  });
}

void linear(Compute& compute, const Activations& x, std::int64_t tokens,
            std::span<const LinearOutput> outputs, bool add) {
  std::int64_t pairs = 0;
  for (const LinearOutput& output : outputs) pairs += divide_up(output.weight->view().tiles, 2);
  const std::int64_t grain = grain_for(compute, pairs);
  compute.team.for_each(pairs, grain, [&](std::int64_t begin, std::int64_t end, int member) {
    std::int64_t first = 0;
    for (const LinearOutput& output : outputs) {
      const MatrixView& w = output.weight->view();
      const std::int64_t count = divide_up(w.tiles, 2);
      const std::int64_t from = std::max(begin, first) - first;
      const std::int64_t to = std::min(end, first + count) - first;
      first += count;
      if (from >= to) continue;
      if (uses_int8(compute, *output.weight)) {
        for (std::int64_t token = 0; token < tokens; token += kTokenBlock)
          compute.kernels.linear_int8(w, x.int8(), token, std::min(tokens, token + kTokenBlock),
                                      from * 2, std::min(to * 2, w.tiles), output.y, w.rows, add);
      } else {
        for (std::int64_t pair = from; pair < to; ++pair)
          linear_pair_f32(compute, *output.weight, x, tokens, pair, output.y, add, member);
      }
    }
  });
}

bool uses_bf16(const Compute& compute) {
  return compute.precision == Precision::kDefault && compute.kernels.bf16_backward;
}

namespace {

// dx[:, chunk] += dy W[:, chunk], rows in blocks so that the panel stays in the second-level cache.
void backward_chunk(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                    const bf16* dy_bf16, std::int64_t tokens, std::int64_t chunk, float* dx,
                    bool add, int member) {
  constexpr std::int64_t kBlockTiles = 96;  // 1536 rows: 96 KiB of bf16
  const MatrixView& w = weight.view();
  const std::int64_t column = chunk * kChunkColumns;
  const int columns = static_cast<int>(std::min<std::int64_t>(kChunkColumns, w.columns - column));
  float* panel = compute.scratch(member, kBlockTiles * kTileRows * kChunkColumns);
  for (std::int64_t tile = 0; tile < w.tiles; tile += kBlockTiles) {
    const std::int64_t tile_end = std::min(w.tiles, tile + kBlockTiles);
    const std::int64_t row = tile * kTileRows;
    const std::int64_t rows = std::min(tile_end * kTileRows, w.rows) - row;
    const bool accumulate = add || tile > 0;
    if (dy_bf16 != nullptr) {
      auto* pairs = reinterpret_cast<bf16*>(panel);
      compute.kernels.unpack_columns_bf16(w, chunk, tile, tile_end, pairs);
      // dy rows are padded with zeros to whole pairs.
      compute.kernels.multiply_bf16(dy_bf16 + row, dy_stride, pairs, rows + rows % 2, 0, tokens,
                                    dx + column, w.columns, columns, accumulate);
    } else {
      compute.kernels.unpack_columns(w, chunk, tile, tile_end, false, panel);
      compute.kernels.multiply({dy + row, dy_stride, 1}, {panel, Storage::kF32, 16, kChunkColumns},
                               tokens, columns, rows, dx + column, w.columns, accumulate);
    }
  }
}

}  // namespace

void linear_backward(Compute& compute, std::span<const LinearGradient> gradients,
                     std::int64_t tokens, float* dx, bool add) {
  // dy as bf16, rows padded with zeros to an even count.
  std::vector<const bf16*> rounded(gradients.size(), nullptr);
  if (uses_bf16(compute))
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const std::int64_t rows = gradients[i].weight->rows(), stride = rows + rows % 2;
      bf16* to = compute.rounded(i, tokens * stride);
      compute.team.for_each(tokens, 32, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t token = begin; token < end; ++token) {
          compute.kernels.to_bf16(gradients[i].dy + token * rows, rows, to + token * stride);
          if (rows % 2 != 0) to[token * stride + rows] = 0;
        }
      });
      rounded[i] = to;
    }
  const std::int64_t chunks = divide_up(gradients[0].weight->columns(), kChunkColumns);
  compute.team.for_each(chunks, 1, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk)
      for (std::size_t i = 0; i < gradients.size(); ++i) {
        const std::int64_t rows = gradients[i].weight->rows();
        backward_chunk(compute, *gradients[i].weight, gradients[i].dy,
                       rounded[i] ? rows + rows % 2 : rows, rounded[i], tokens, chunk, dx,
                       add || i > 0, member);
      }
  });
}

void head_backward(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                   std::int64_t tokens, float* dx) {
  const bool half = uses_bf16(compute);
  const std::int64_t chunks = divide_up(weight.columns(), kChunkColumns);
  compute.team.for_each(chunks, 1, [&](std::int64_t begin, std::int64_t end, int member) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk)
      backward_chunk(compute, weight, dy, half ? dy_stride * 2 : dy_stride,
                     half ? reinterpret_cast<const bf16*>(dy) : nullptr, tokens, chunk, dx, false,
                     member);
  });
}

namespace {

// One tile on the f32 path: dW [16, columns] = dy^T x, then its sums over groups.
void scale_gradients_f32(Compute& compute, const MatrixView& w, const Activations& x,
                         const float* dy, std::int64_t tokens, std::int64_t tile, int member,
                         const ScaleGradientSink& sink) {
  const std::int64_t padded = w.chunks * kChunkColumns, sums = w.groups * kTileRows;
  float* d_weight = compute.scratch(member, kTileRows * padded + 512 + 2 * sums);
  float* codes = d_weight + kTileRows * padded;  // [16][32]
  float* d_scale = codes + 512;
  float* d_offset = d_scale + sums;
  std::memset(d_scale, 0, 2 * sums * sizeof(float));
  const std::int64_t row = tile * kTileRows;
  const std::int64_t rows = std::min<std::int64_t>(kTileRows, w.rows - row);
  compute.kernels.multiply({dy + row, 1, w.rows}, {x.values(), Storage::kF32, 16, w.columns}, rows,
                           w.columns, tokens, d_weight, padded, false);
  for (std::int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    compute.kernels.unpack_columns(w, chunk, tile, tile + 1, true, codes);
    const std::int64_t group = chunk / w.group_chunks * kTileRows;
    const std::int64_t columns = std::min<std::int64_t>(32, w.columns - chunk * kChunkColumns);
    for (std::int64_t r = 0; r < rows; ++r) {
      double scale_sum = 0, offset_sum = 0;
      for (std::int64_t j = 0; j < columns; ++j) {
        const double d = d_weight[r * padded + chunk * kChunkColumns + j];
        scale_sum += d * static_cast<double>(codes[r * kChunkColumns + j]);
        offset_sum += d;
      }
      d_scale[group + r] += static_cast<float>(scale_sum);
      d_offset[group + r] += static_cast<float>(offset_sum);
    }
  }
  sink(tile, tile + 1, d_scale, w.has_shifts() ? d_offset : nullptr);
}

}  // namespace

void scale_gradients(Compute& compute, const Matrix& weight, const Activations& x, const float* dy,
                     std::int64_t tokens, const ScaleGradientSink& sink) {
  const MatrixView& w = weight.view();
  // Pairs of tiles, as the kernel likes them.
  compute.team.for_each(w.tiles, 2, [&](std::int64_t tile, std::int64_t tile_end, int member) {
    if (compute.precision == Precision::kF32) {
      for (; tile < tile_end; ++tile)
        scale_gradients_f32(compute, w, x, dy, tokens, tile, member, sink);
      return;
    }
    constexpr std::int64_t kPanel = 128 * 2 * kTileRows;
    const std::int64_t sums = (tile_end - tile) * w.groups * kTileRows;
    float* dy_panel = compute.scratch(member, kPanel + 2 * sums);
    float* d_scale = dy_panel + kPanel;
    float* d_offset = w.has_shifts() ? d_scale + sums : nullptr;
    std::memset(d_scale, 0, 2 * sums * sizeof(float));
    compute.kernels.scale_gradient_int8(w, x.int8(), dy, w.rows, tokens, tile, tile_end, d_scale,
                                        d_offset, dy_panel);
    sink(tile, tile_end, d_scale, d_offset);
  });
}

void rms_norm(Compute& compute, const float* x, const float* weight, std::int64_t tokens,
              std::int64_t columns, float eps, float* y, float* rstd) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      compute.kernels.rms_norm(x + token * columns, weight, columns, eps, y + token * columns,
                               rstd ? rstd + token : nullptr);
  });
}

void rms_norm_backward(Compute& compute, const float* dy, const float* x, const float* weight,
                       const float* rstd, std::int64_t tokens, std::int64_t columns, float* dx) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      compute.kernels.rms_norm_backward(dy + token * columns, x + token * columns, weight,
                                        rstd[token], columns, dx + token * columns);
  });
}

void swiglu(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
            std::int64_t columns, float* out) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.swiglu(gate + begin * columns, up + begin * columns, (end - begin) * columns,
                           out + begin * columns);
  });
}

void swiglu_backward(Compute& compute, const float* d_out, std::int64_t tokens,
                     std::int64_t columns, float* gate, float* up) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.swiglu_backward(d_out + begin * columns, (end - begin) * columns,
                                    gate + begin * columns, up + begin * columns);
  });
}

}  // namespace trimpot
