// Inputs of linear layers in the forms in which their readers want them.
#include <algorithm>

#include "base/round.h"
#include "kernels/linear.h"
#include "kernels/rounded_panels.h"

namespace trimpot {

bool uses_int8(const Compute& compute, const Matrix& weight) {
  return compute.precision == Precision::kDefault && weight.quantized();
}

bool weak_follows(const LinearView& linear) {
  return linear.weak != nullptr && linear.weak_columns == nullptr &&
         linear.weight_columns == nullptr && linear.weak->view().storage != Storage::kBF16;
}

void gather_columns(Compute& compute, const float* x, std::int64_t width, std::int64_t tokens,
                    std::span<const std::int32_t> columns, float* out) {
  const auto count = static_cast<std::int64_t>(columns.size());
  compute.team.for_each(tokens, 32, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
#pragma GCC unroll 8
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

void Activations::allocate(std::int64_t tokens, std::int64_t columns, Arena* arena) {
  arena_ = arena;
  columns_ = columns;
  values_.reserve(tokens * columns, arena);
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
  form.wants_int8 = form.wants_rounded = false;
  form.weak = 0;
  return form;
}

void Activations::fill(Compute& compute, std::int64_t tokens, Form& form) const {
  const float* from = values_.data();
  std::int64_t stride = columns_;
  if (form.columns != nullptr) {
    form.gathered.reserve(tokens * form.count, arena_);
    gather_columns(compute, from, columns_, tokens, *form.columns, form.gathered.data());
    from = form.gathered.data();
    stride = form.count;
  }
  if (form.wants_rounded) {
    const std::int64_t weak = even(form.weak);
    const std::int64_t row = rounded_stride(even(form.count) + 2 * weak);
    form.tiles_or_halves.reserve(tokens * row * sizeof(std::int16_t), arena_);
    form.rounded = {reinterpret_cast<std::int16_t*>(form.tiles_or_halves.data()), row};
    compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t token = begin; token < end; ++token) {
        const float* x = from + token * stride;
        std::int16_t* to = form.rounded.codes + token * row;
        compute.kernels.round_row(x, form.count, to, nullptr);
        if (weak == 0) continue;
        std::int16_t* twice = to + even(form.count);
        compute.kernels.round_row(x + form.count, form.weak, twice, nullptr);
        std::copy_n(twice, weak, twice + weak);
      }
    });
  }
  if (!form.wants_int8) return;
  const std::int64_t blocks = divide_up(form.count, kChunkColumns);
  form.blocks.reserve(tokens * blocks, arena_);
  form.int8 = {form.blocks.data(), blocks};
  // A step does without: its backward pass knows of none, and its gradients have larger errors.
  if (!compute.learning) {
    form.remainders.reserve(tokens * most_remainders(blocks), arena_);
    form.int8.remainders = form.remainders.data();
  }
  if (compute.kernels.tiled && tokens >= kTiledTokens && !rounds_inputs(compute)) {
    form.tiles_or_halves.reserve(divide_up(tokens, kTiledTokens) * blocks * sizeof(Int8Tile),
                                 arena_);
    form.int8.tiles = reinterpret_cast<Int8Tile*>(form.tiles_or_halves.data());
  }
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.quantize(from, stride, form.count, begin, end, form.int8);
  });
}

void Activations::own_lines() const {
  constexpr std::int64_t kMostTokens = 2, kLine = 64;
  if (tokens_ > kMostTokens) return;
  for (std::size_t i = 0; i < used_; ++i) {
    const Form& form = forms_[i];
    if (!form.wants_int8) continue;
    const auto own = [](void* lines, std::int64_t bytes) {
      auto* to = static_cast<volatile char*>(lines);
      for (std::int64_t at = 0; at < bytes; at += kLine) to[at] = 0;
    };
    const std::int64_t blocks = form.int8.blocks, most = most_remainders(blocks);
    own(form.int8.data, tokens_ * blocks * static_cast<std::int64_t>(sizeof(Int8Block)));
    if (form.int8.remainders != nullptr)
      own(form.int8.remainders, tokens_ * most * static_cast<std::int64_t>(sizeof(Int8Remainder)));
  }
}

void Activations::note(const Compute& compute, const LinearView& reader, bool multiplied) {
  Form& form = form_of(reader.weight_columns, reader.weight->columns());
  const bool rounded = multiplied && rounds_inputs(compute);
  if (uses_int8(compute, *reader.weight)) {
    form.wants_rounded |= rounded;
    if (weak_follows(reader)) form.weak = reader.weak->columns();
    form.wants_int8 |= (multiplied && !rounded) || compute.wants_int8;
  }
  if (reader.weak != nullptr && reader.weak_columns != nullptr)
    form_of(reader.weak_columns, reader.weak->columns());
}

void Activations::prepare(Compute& compute, std::int64_t tokens,
                          std::span<const LinearOutput> readers, bool multiplied) {
  used_ = 0;
  tokens_ = tokens;
  for (const LinearOutput& reader : readers) {
    note(compute, reader.linear, multiplied);
    for (const LinearRun& run : reader.runs) note(compute, run.linear, multiplied);
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
  input.rounded = form->rounded;
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

}  // namespace trimpot
