#include <algorithm>
#include <bit>
#include <cstring>

#include "base/round.h"
#include "kernels/linear.h"
#include "kernels/low_rank.h"
#include "kernels/split.h"

namespace trimpot {
namespace {

// Rows of dy, or their rounded form where the kernels work with it.
struct OutputGradient {
  const float* values;
  std::int64_t stride;
  RoundedView rounded = {};
  RoundedBytes bytes = {};  // instead, of a layer with codes
};

// dx[:, chunk] (+)= dy[:, rows of the tiles] W[those rows, chunk].
void backward_chunk(Compute& compute, const MatrixView& w, std::int64_t tile, std::int64_t tile_end,
                    const OutputGradient& dy, std::int64_t token_begin, std::int64_t token_end,
                    std::int64_t chunk, float* dx, std::int64_t dx_stride, bool add, int member) {
  const std::int64_t column = chunk * kChunkColumns, row = tile * kTileRows;
  const int columns = static_cast<int>(std::min<std::int64_t>(kChunkColumns, w.columns - column));
  const std::int64_t rows = std::min(tile_end * kTileRows, w.rows) - row;
  float* panel = compute.scratch(member, (tile_end - tile) * kTileRows * kChunkColumns);
  if (dy.bytes.codes != nullptr) {
    auto* codes = reinterpret_cast<std::uint8_t*>(panel);  // a quarter of the panel
    float* scales = panel + (tile_end - tile) * kTileRows * kChunkColumns / 4;
    compute.kernels.unpack_columns_bytes(w, chunk, tile, tile_end, codes, scales);
    RoundedBytes block = dy.bytes;
    block.codes += row;
    block.scales += row / kRoundedBlock;
    block.sums += row / kRoundedBlock;
    compute.kernels.multiply_bytes(block, codes, scales, round_up(rows, 4), token_begin, token_end,
                                   dx + column, dx_stride, columns, add);
  } else if (dy.rounded.codes != nullptr) {
    auto* pairs = reinterpret_cast<std::int16_t*>(panel);  // half of the panel
    float* scales = panel + (tile_end - tile) * kTileRows * kChunkColumns / 2;
    compute.kernels.unpack_columns_rounded(w, chunk, tile, tile_end, pairs, scales);
    RoundedView block = dy.rounded;
    block.codes += row;
    block.scales += row / kRoundedBlock;
    // dy rows are padded with zeros to whole pairs.
    compute.kernels.multiply_rounded(block, pairs, scales, rows + rows % 2, token_begin, token_end,
                                     dx + column, dx_stride, columns, add);
  } else {
    compute.kernels.unpack_columns(w, chunk, tile, tile_end, false, panel);
    compute.kernels.multiply({dy.values + row + token_begin * dy.stride, dy.stride, 1},
                             {panel, Storage::kF32, 16, kChunkColumns}, token_end - token_begin,
                             columns, rows, dx + column + token_begin * dx_stride, dx_stride, add);
  }
}

// dx (+)= dy W. Rows of W in blocks, so that a chunk's panel and dy of the block (a head's whole dy
// is 6 MiB for 60 tokens, and every chunk reads all of it) stay in the second-level cache.
void backward_chunks(Compute& compute, const Matrix& weight, const OutputGradient& dy,
                     std::int64_t tokens, float* dx, std::int64_t dx_stride, bool add) {
  // At most 640 rows (panels of 40 KiB), in equal parts: what a part adds to dx is read and written
  // once more.
  constexpr std::int64_t kMostTiles = 40, kTilesOfScale = kRoundedBlock / kTileRows;
  const MatrixView& w = weight.view();
  const std::int64_t block = round_up(equal_part(w.tiles, kMostTiles), kTilesOfScale);
  const std::int64_t chunks = divide_up(w.columns, kChunkColumns);
  const std::int64_t parts = token_parts(compute, tokens);
  for (std::int64_t tile = 0; tile < w.tiles; tile += block) {
    const auto multiply = [&](std::int64_t chunk, std::int64_t begin, std::int64_t end,
                              int member) {
      backward_chunk(compute, w, tile, std::min(w.tiles, tile + block), dy, begin, end, chunk, dx,
                     dx_stride, add || tile > 0, member);
    };
    if (parts == 1)
      for_each_block(compute, chunks, tokens, multiply);
    else
      for_each_token_part(compute, tokens, parts, chunks, 1,
                          [&](std::int64_t begin, std::int64_t end, std::int64_t chunk,
                              std::int64_t chunk_end, int member) {
                            for (; chunk < chunk_end; ++chunk) multiply(chunk, begin, end, member);
                          });
  }
}

// dy with its rounded form; of a weight with codes in bytes where there are products of them. After
// 30 steps of WikiText-2 the validation loss was 3.4439, with 13 bits 3.4437 (in place 3.3127 and
// 3.3128).
OutputGradient rounded(Compute& compute, const Matrix& weight, const float* dy,
                       std::int64_t dy_stride, std::int64_t tokens) {
  OutputGradient out{dy, dy_stride};
  if (!rounds_gradients(compute)) return out;
  const std::int64_t rows = weight.rows();
  const bool bytes = gradients_in_bytes(compute, weight);
  if (bytes)
    out.bytes = compute.rounded_bytes(tokens, rows);
  else
    out.rounded = compute.rounded(tokens, rows);
  compute.team.for_each(tokens, 32, [&](std::int64_t token, std::int64_t end, int) {
    for (; token < end; ++token) {
      const float* from = dy + token * dy_stride;
      if (bytes)
        compute.kernels.round_row_bytes(from, rows, 0, out.bytes.row(token),
                                        out.bytes.scales_of(token),
                                        out.bytes.sums + token * out.bytes.scale_stride);
      else
        compute.kernels.round_row(from, rows, out.rounded.row(token), out.rounded.scales_of(token));
    }
  });
  return out;
}

// dx of one part of a layer, whose columns are the channels `channels` (null: from `first` on).
void part_gradient(Compute& compute, const Matrix& part, const std::vector<std::int32_t>* channels,
                   std::int64_t first, const OutputGradient& dy, std::int64_t tokens, float* dx,
                   std::int64_t width, bool add) {
  if (channels == nullptr) {
    backward_chunks(compute, part, dy, tokens, dx + first, width, add);
    return;
  }
  float* stored = compute.shared(Compute::kReordered, tokens * part.columns());
  backward_chunks(compute, part, dy, tokens, stored, part.columns(), false);
  scatter_add_columns(compute, stored, tokens, *channels, dx, width);
}

// One tile on the f32 path: dW [16, columns] = dy^T x, then its sums over groups.
void scale_gradients_f32(Compute& compute, const MatrixView& w, const LinearInput& x,
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
  compute.kernels.multiply({dy + row, 1, w.rows}, {x.values, Storage::kF32, 16, x.stride}, rows,
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

void scale_gradients(Compute& compute, const Matrix& weight, const LinearInput& x, const float* dy,
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
    compute.kernels.scale_gradient_int8(w, x.int8, dy, w.rows, tokens, tile, tile_end, d_scale,
                                        d_offset, dy_panel);
    sink(tile, tile_end, d_scale, d_offset);
  });
}

// d_weak += dy^T x. x is copied side by side first: rows of 6 KiB fall into two sets of the
// first-level cache, which then keeps none of them for the next tile.
void weak_gradient(Compute& compute, const float* dy, std::int64_t rows, const LinearInput& x,
                   std::int64_t columns, std::int64_t tokens, float* d_weak) {
  float* dense = compute.shared(Compute::kReordered, tokens * columns);
  compute.team.for_each(tokens, 64, [&](std::int64_t token, std::int64_t end, int) {
    for (; token < end; ++token)
      std::copy_n(x.weak + token * x.weak_stride, columns, dense + token * columns);
  });
  dense_gradient(compute, dy, rows, dense, columns, columns, tokens, d_weak);
}

// sum_j x[t, j] of each token, as int8 products see it or, where the forward's are of another form,
// as it is.
std::vector<float> input_sums(Compute& compute, const LinearInput& x, std::int64_t columns,
                              std::int64_t tokens) {
  std::vector<float> sums(static_cast<std::size_t>(tokens));
  const bool exact = rounds_inputs(compute);
  const std::vector<float> ones(static_cast<std::size_t>(exact ? columns : 0), 1.0f);
  compute.team.for_each(tokens, 64, [&](std::int64_t token, std::int64_t end, int) {
    for (; token < end; ++token) {
      float& sum = sums[static_cast<std::size_t>(token)];
      if (exact) {
        sum = compute.kernels.dot(x.values + token * x.stride, ones.data(), columns);
        continue;
      }
      for (std::int64_t block = 0; block < x.int8.blocks; ++block)
        sum += x.int8.row(token)[block].scaled_sum;
    }
  });
  return sums;
}

// One group per row. From y = s sum (level - zero) x + m sum x follows, with D = sum_t dy y,
//   d_scale = (D - m d_offset) / s    or, as that of zero 0,    D / s + z d_offset
// A scale of 0 gives 0: such a group stays as it is.
void scale_gradients_of_output(Compute& compute, const MatrixView& w, const LinearInput& x,
                               const float* dy, const KnownOutput& y, std::int64_t tokens,
                               const ScaleGradientSink& sink) {
  const std::vector<float> x_sums =
      w.has_shifts() ? input_sums(compute, x, w.columns, tokens) : std::vector<float>();
  // Rows of dy and y are read a stretch at a time; about four pieces per thread.
  const std::int64_t grain = divide_up(w.tiles, 4 * compute.team.size());
  compute.team.for_each(w.tiles, grain, [&](std::int64_t tile, std::int64_t tile_end, int member) {
    const std::int64_t first = tile * kTileRows, count = (tile_end - tile) * kTileRows;
    float* d_scale = compute.scratch(member, 2 * count);
    float* d_offset = w.has_shifts() ? d_scale + count : nullptr;
    std::memset(d_scale, 0, 2 * count * sizeof(float));
    compute.kernels.output_sums(dy + first, y.values + first,
                                y.base != nullptr ? y.base + first : nullptr,
                                w.has_shifts() ? x_sums.data() : nullptr, w.rows, tokens,
                                std::min(count, w.rows - first), d_scale, d_offset);
    for (std::int64_t i = 0; i < count; ++i) {
      const float scale = f16_to_f32(w.scales[first + i]);
      float sum = d_scale[i];
      if (w.offsets != nullptr) sum -= f16_to_f32(w.offsets[first + i]) * d_offset[i];
      d_scale[i] = scale != 0.0f ? sum / scale : 0.0f;
      if (w.zeros != nullptr) d_scale[i] += f16_to_f32(w.zeros[first + i]) * d_offset[i];
    }
    sink(tile, tile_end, d_scale, d_offset);
  });
}

}  // namespace

bool takes_output(const Compute& compute, const LinearView& linear, const LinearSink& sink) {
  return sink.scales && compute.precision == Precision::kDefault && linear.weight->quantized() &&
         linear.weight->groups() == 1 && linear.weak == nullptr && linear.low_rank == nullptr;
}

bool rounds_gradients(const Compute& compute) {
  return compute.precision == Precision::kDefault && compute.kernels.rounded != nullptr;
}

bool gradients_in_bytes(const Compute& compute, const Matrix& weight) {
  constexpr std::int64_t kLeast = 4;  // rows of a head, in place: bytes_in_place()
  return rounds_gradients(compute) && weight.quantized() && weight.rows() >= kLeast &&
         compute.kernels.round_row_bytes != nullptr;
}

bool step_rounds_inputs(const Compute& compute) {
  return rounds_gradients(compute) && compute.kernels.unpack_rows_rounded != nullptr;
}

bool rounds_inputs(const Compute& compute) {
  return (compute.learning || compute.reading_bf16) && step_rounds_inputs(compute);
}

bool rounds_scores(const Compute& compute) {
  return rounds_inputs(compute) || (compute.learning && rounds_gradients(compute));
}

bool rounds_attention(const Compute& compute) {
  return rounds_gradients(compute) && (compute.learning || !step_rounds_inputs(compute));
}

void dense_gradient(Compute& compute, const float* dy, std::int64_t rows, const float* x,
                    std::int64_t stride, std::int64_t columns, std::int64_t tokens, float* d) {
  // 128 rows of x with 576 columns are 288 KiB: they stay in the second-level cache while the
  // columns pass by.
  constexpr std::int64_t kBlock = 128;
  for_each_block(compute, divide_up(rows, kTileRows), columns,
                 [&](std::int64_t tile, std::int64_t begin, std::int64_t end, int) {
                   const std::int64_t row = tile * kTileRows;
                   for (std::int64_t token = 0; token < tokens; token += kBlock)
                     compute.kernels.multiply(
                         {x + token * stride + begin, 1, stride},
                         {dy + token * rows + row, Storage::kF32, 16, rows}, end - begin,
                         std::min<std::int64_t>(kTileRows, rows - row),
                         std::min(kBlock, tokens - token), d + row * columns + begin * kTileRows,
                         kTileRows, true);
                 });
}

void input_gradient(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                    std::int64_t tokens, float* dx, std::int64_t dx_stride, bool add) {
  const OutputGradient gradient = rounded(compute, weight, dy, dy_stride, tokens);
  backward_chunks(compute, weight, gradient, tokens, dx, dx_stride, add);
}

void linear_backward(Compute& compute, const LinearView& linear, const Activations& x,
                     const float* dy, std::int64_t tokens, const LinearSink& sink, float* dx,
                     bool add, const KnownOutput& y) {
  const std::int64_t rows = linear.weight->rows(), width = x.columns();
  const LinearInput input = x.input(linear);
  if (y.values != nullptr && takes_output(compute, linear, sink))
    scale_gradients_of_output(compute, linear.weight->view(), input, dy, y, tokens, sink.scales);
  else if (sink.scales)
    scale_gradients(compute, *linear.weight, input, dy, tokens, sink.scales);
  if (sink.weak != nullptr)
    weak_gradient(compute, dy, rows, input, linear.weak->columns(), tokens, sink.weak);
  if (sink.weight != nullptr)
    dense_gradient(compute, dy, rows, input.values, input.stride, linear.weight->columns(), tokens,
                   sink.weight);
  if (dx != nullptr) {
    const bool in_order = linear.weight_columns == nullptr && linear.weak_columns == nullptr;
    if (!add && !in_order) clear(compute, dx, tokens * width);
    const OutputGradient gradient = rounded(compute, *linear.weight, dy, rows, tokens);
    part_gradient(compute, *linear.weight, linear.weight_columns, 0, gradient, tokens, dx, width,
                  add || !in_order);
    if (linear.weak != nullptr)
      part_gradient(compute, *linear.weak, linear.weak_columns, linear.weight->columns(), gradient,
                    tokens, dx, width, add || !in_order);
  }
  if (linear.low_rank != nullptr)
    low_rank_backward(compute, *linear.low_rank, x, dy, tokens, sink.low_rank_a, sink.low_rank_b,
                      dx);
}

namespace {

// Codes, then scales, where the floats were: 4 bytes a number become 2 and, for each 128, 4 more.
RoundedView int16_in_place(float* dy, std::int64_t rows, std::int64_t stride) {
  return {reinterpret_cast<std::int16_t*>(dy), stride * 2, dy + (rows + 1) / 2, stride};
}
// Or 1 and, for each 128, 8 more.
RoundedBytes bytes_in_place(float* dy, std::int64_t rows, std::int64_t stride) {
  float* scales = dy + divide_up(rows, 4);
  return {{reinterpret_cast<std::int8_t*>(dy), stride * 4, scales, stride},
          reinterpret_cast<std::int32_t*>(scales + divide_up(rows, kRoundedBlock))};
}

}  // namespace

void round_head_row(Compute& compute, const Matrix& head, float* dy, int member) {
  if (!rounds_gradients(compute)) return;
  const std::int64_t rows = head.rows(), blocks = divide_up(rows, kRoundedBlock);
  float* numbers = compute.scratch(member, static_cast<std::size_t>(2 * blocks));
  if (gradients_in_bytes(compute, head)) {
    const RoundedBytes to = bytes_in_place(dy, rows, rows);
    auto* sums = reinterpret_cast<std::int32_t*>(numbers + blocks);
    const std::uint32_t dither = std::bit_cast<std::uint32_t>(dy[rows / 2]) | 1u;
    compute.kernels.round_row_bytes(dy, rows, dither, to.codes, numbers, sums);
    std::memcpy(to.scales, numbers, static_cast<std::size_t>(2 * blocks) * sizeof(float));
    return;
  }
  const RoundedView to = int16_in_place(dy, rows, rows);
  compute.kernels.round_row(dy, rows, to.codes, numbers);
  std::memcpy(to.scales, numbers, static_cast<std::size_t>(blocks) * sizeof(float));
}

void head_backward(Compute& compute, const LinearView& head, float* dy, std::int64_t dy_stride,
                   std::int64_t tokens, float* dx) {
  OutputGradient gradient{dy, dy_stride};
  if (gradients_in_bytes(compute, *head.weight))
    gradient.bytes = bytes_in_place(dy, head.weight->rows(), dy_stride);
  else if (rounds_gradients(compute))
    gradient.rounded = int16_in_place(dy, head.weight->rows(), dy_stride);
  const std::int64_t width = head.weight->columns();
  if (head.weight_columns != nullptr) clear(compute, dx, tokens * width);
  part_gradient(compute, *head.weight, head.weight_columns, 0, gradient, tokens, dx, width, false);
}

}  // namespace trimpot
