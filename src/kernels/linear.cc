#include "kernels/linear.h"

#include <algorithm>

#include "kernels/low_rank.h"

namespace trimpot {
namespace {

// int8 rows of 1536 columns: 288 KiB of the second-level cache.
constexpr std::int64_t kTokenBlock = 192;

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

// Pieces of work small enough that threads finish together: about 8 per thread.
std::int64_t grain_for(const Compute& compute, std::int64_t count) {
  return std::max<std::int64_t>(1, count / (compute.team.size() * 8));
}

bool uses_int8(const Compute& compute, const Matrix& weight) {
  return compute.precision == Precision::kDefault && weight.quantized();
}

// Tiles [2 from, 2 to) of a matrix in floats. Codes are unpacked two tiles at a time.
void linear_pairs_f32(Compute& compute, const Matrix& weight, const float* x, std::int64_t stride,
                      std::int64_t tokens, std::int64_t from, std::int64_t to, float* y, bool add,
                      int member) {
  const MatrixView& w = weight.view();
  const auto multiply = [&](std::int64_t tile, std::int64_t tile_end, const Panels& panels) {
    const std::int64_t rows = std::min(tile_end * kTileRows, w.rows) - tile * kTileRows;
    compute.kernels.multiply({x, stride, 1}, panels, tokens, rows, w.columns, y + tile * kTileRows,
                             w.rows, add);
  };
  const std::int64_t end = std::min(to * 2, w.tiles);
  if (!weight.quantized()) {
    const std::int64_t bytes = w.storage == Storage::kF32 ? 4 : 2;
    const auto* dense = static_cast<const std::uint8_t*>(w.dense);
    multiply(from * 2, end,
             {dense + from * 2 * w.columns * kTileRows * bytes, w.storage, w.columns * kTileRows,
              kTileRows});
    return;
  }
  const std::int64_t size = divide_up(w.columns, kChunkColumns) * kChunkColumns * kTileRows;
  for (std::int64_t tile = from * 2; tile < end; tile += 2) {
    const std::int64_t tile_end = std::min(tile + 2, end);
    float* panel = compute.scratch(member, (tile_end - tile) * size);
    for (std::int64_t i = tile; i < tile_end; ++i)
      compute.kernels.unpack_tile(w, i, false, panel + (i - tile) * size);
    multiply(tile, tile_end, {panel, Storage::kF32, size, kTileRows});
  }
}

// Tile pairs [from, to) of one layer: codes, then weak columns.
void linear_pairs(Compute& compute, const LinearView& linear, const LinearInput& x,
                  std::int64_t tokens, std::int64_t from, std::int64_t to, float* y, bool add,
                  int member) {
  const MatrixView& w = linear.weight->view();
  if (uses_int8(compute, *linear.weight)) {
    for (std::int64_t token = 0; token < tokens; token += kTokenBlock)
      compute.kernels.linear_int8(w, x.int8, token, std::min(tokens, token + kTokenBlock), from * 2,
                                  std::min(to * 2, w.tiles), y, w.rows, add);
  } else {
    linear_pairs_f32(compute, *linear.weight, x.values, x.stride, tokens, from, to, y, add, member);
  }
  if (linear.weak != nullptr)
    linear_pairs_f32(compute, *linear.weak, x.weak, x.weak_stride, tokens, from, to, y, true,
                     member);
}

}  // namespace

void gather_columns(Compute& compute, const float* x, std::int64_t width, std::int64_t tokens,
                    std::span<const std::int32_t> columns, float* out) {
  const auto count = static_cast<std::int64_t>(columns.size());
  compute.team.for_each(tokens, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      for (std::int64_t i = 0; i < count; ++i)
        out[token * count + i] = x[token * width + columns[static_cast<std::size_t>(i)]];
  });
}

void scatter_add_columns(Compute& compute, const float* x, std::int64_t tokens,
                         std::span<const std::int32_t> columns, float* out, std::int64_t width) {
  const auto count = static_cast<std::int64_t>(columns.size());
  compute.team.for_each(tokens, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      for (std::int64_t i = 0; i < count; ++i)
        out[token * width + columns[static_cast<std::size_t>(i)]] += x[token * count + i];
  });
}

void Activations::allocate(std::int64_t tokens, std::int64_t columns) {
  columns_ = columns;
  values_.reserve(tokens * columns);
  used_ = 0;
}

const Activations::Form* Activations::find(const std::vector<std::int32_t>* columns,
                                           std::int64_t count) const {
  for (std::size_t i = 0; i < used_; ++i)
    if (forms_[i].columns == columns && forms_[i].count == count) return &forms_[i];
  return nullptr;
}

Activations::Form& Activations::form_of(const std::vector<std::int32_t>* columns,
                                        std::int64_t count) {
  if (const Form* found = find(columns, count)) return *const_cast<Form*>(found);
  if (forms_.size() == used_) forms_.emplace_back();
  Form& form = forms_[used_++];
  form.columns = columns;
  form.count = count;
  form.rounded = false;
  return form;
}

void Activations::fill(Compute& compute, std::int64_t tokens, Form& form) const {
  const float* from = values_.data();
  std::int64_t stride = columns_;
  if (form.columns != nullptr) {
    form.gathered.reserve(tokens * form.count);
    gather_columns(compute, from, columns_, tokens, *form.columns, form.gathered.data());
    from = form.gathered.data();
    stride = form.count;
  }
  if (!form.rounded) return;
  const std::int64_t blocks = divide_up(form.count, kChunkColumns);
  form.codes.reserve(tokens * blocks * kChunkColumns);
  form.scales.reserve(tokens * blocks);
  form.sums.reserve(tokens * blocks);
  form.scaled_sums.reserve(tokens * blocks);
  form.int8 = {form.codes.data(), form.scales.data(), form.sums.data(), form.scaled_sums.data(),
               blocks};
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.quantize(from, stride, form.count, begin, end, form.int8);
  });
}

void Activations::prepare(Compute& compute, std::int64_t tokens,
                          std::span<const LinearView> readers) {
  used_ = 0;
  for (const LinearView& reader : readers) {
    Form& form = form_of(reader.weight_columns, reader.weight->columns());
    form.rounded = form.rounded || uses_int8(compute, *reader.weight);
    if (reader.weak != nullptr && reader.weak_columns != nullptr)
      form_of(reader.weak_columns, reader.weak->columns());
  }
  for (std::size_t i = 0; i < used_; ++i) fill(compute, tokens, forms_[i]);
}

LinearInput Activations::input(const LinearView& linear) const {
  LinearInput input;
  const Form* form = find(linear.weight_columns, linear.weight->columns());
  const bool gathered = linear.weight_columns != nullptr;
  input.values = gathered ? form->gathered.data() : values_.data();
  input.stride = gathered ? form->count : columns_;
  input.int8 = form->int8;
  if (linear.weak == nullptr) return input;
  if (linear.weak_columns != nullptr) {
    input.weak = find(linear.weak_columns, linear.weak->columns())->gathered.data();
    input.weak_stride = linear.weak->columns();
  } else {
    input.weak = values_.data() + linear.weight->columns();
    input.weak_stride = columns_;
  }
  return input;
}

void linear(Compute& compute, const Activations& x, std::int64_t tokens,
            std::span<const LinearOutput> outputs, bool add) {
  std::int64_t pairs = 0;
  for (const LinearOutput& output : outputs)
    pairs += divide_up(output.linear.weight->view().tiles, 2);
  const std::int64_t grain = grain_for(compute, pairs);
  compute.team.for_each(pairs, grain, [&](std::int64_t begin, std::int64_t end, int member) {
    std::int64_t first = 0;
    for (const LinearOutput& output : outputs) {
      const std::int64_t count = divide_up(output.linear.weight->view().tiles, 2);
      const std::int64_t from = std::max(begin, first) - first;
      const std::int64_t to = std::min(end, first + count) - first;
      first += count;
      if (from < to)
        linear_pairs(compute, output.linear, x.input(output.linear), tokens, from, to, output.y,
                     add, member);
    }
  });
  for (const LinearOutput& output : outputs)
    if (output.linear.low_rank != nullptr)
      low_rank_forward(compute, *output.linear.low_rank, x, tokens, output.y);
}

void linear_f32(Compute& compute, const Matrix& weight, const float* x, std::int64_t stride,
                std::int64_t tokens, float* y, bool add) {
  const std::int64_t pairs = divide_up(weight.view().tiles, 2);
  compute.team.for_each(pairs, 1, [&](std::int64_t from, std::int64_t to, int member) {
    linear_pairs_f32(compute, weight, x, stride, tokens, from, to, y, add, member);
  });
}

}  // namespace trimpot
