#include "tune/merge.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "tune/adapter_parts.h"

namespace trimpot {
namespace {

bool has_low_rank(std::span<const Adapter> adapters, std::size_t index, bool pooled) {
  return std::any_of(adapters.begin(), adapters.end(), [&](const Adapter& adapter) {
    return adapter.pooled == pooled && adapter.layers[index].rank > 0;
  });
}

// out [inputs] += sum over adapters of f scale (B A)[row, :].
void add_low_rank(std::span<const Adapter> adapters, std::size_t index, bool pooled,
                  std::int64_t row, std::span<float> out) {
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    if (part.rank == 0 || adapter.pooled != pooled) continue;
    for (std::int64_t r = 0; r < part.rank; ++r) {
      const float b = adapter.factor * adapter.low_rank_scale *
                      part.lora_b[static_cast<std::size_t>(row * part.rank + r)];
      const float* a = part.lora_a.data() + static_cast<std::size_t>(r) * out.size();
      for (std::size_t c = 0; c < out.size(); ++c) out[c] += b * a[c];
    }
  }
}

// Element `at` of a dense matrix plus `difference`, rounded to its type. False: not finite.
bool add_to_element(Matrix& matrix, std::size_t at, float difference) {
  if (difference == 0.0f) return true;  // -0 stays
  if (matrix.view().storage == Storage::kF32) {
    float& value = matrix.dense_f32()[at];
    value += difference;
    return std::isfinite(value);
  }
  if (matrix.view().storage == Storage::kF16) {
    f16& value = matrix.dense_f16()[at];
    value = f32_to_f16(f16_to_f32(value) + difference);
    return is_finite(value);
  }
  bf16& value = matrix.dense_bf16()[at];
  value = f32_to_bf16(bf16_to_f32(value) + difference);
  return std::isfinite(bf16_to_f32(value));
}

// Rows of which `good` is 0 hold something that does not fit.
Status check_rows(const std::vector<std::uint8_t>& good, std::size_t index) {
  const auto bad = std::find(good.begin(), good.end(), std::uint8_t{0});
  if (bad == good.end()) return {};
  return fail(
      "tensor {}, row {}: the merged value leaves the range of the file's type; keep the "
      "adapter beside the model (--adapter)",
      linear_tensor_name(index), bad - good.begin());
}

// Differences of columns and LoRA into dense weights, rounded once.
Status merge_dense(std::span<const Adapter> adapters, const WeakSum& weak, std::size_t index,
                   ThreadTeam& team, Model& model) {
  Linear& linear = model.linear(index);
  Matrix& matrix = linear.weight;
  const LinearAxes axes = linear_axes(model, index);
  std::vector<std::uint8_t> good(static_cast<std::size_t>(matrix.rows()), 1);
  team.for_each(matrix.rows(), kTileRows, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> difference(static_cast<std::size_t>(matrix.columns()));
    for (std::int64_t row = begin; row < end; ++row) {
      std::fill(difference.begin(), difference.end(), 0.0f);
      const std::int64_t from = original(axes.rows, row);
      add_low_rank(adapters, index, false, from, difference);
      const std::size_t count = weak.channels.size();
      for (std::size_t c = 0; c < count; ++c)
        difference[static_cast<std::size_t>(weak.channels[c])] +=
            weak.values[static_cast<std::size_t>(from) * count + c];
      for (std::int64_t position = 0; position < matrix.columns(); ++position)
        if (!add_to_element(matrix, matrix.dense_index(row, position),
                            difference[static_cast<std::size_t>(original(axes.columns, position))]))
          good[static_cast<std::size_t>(row)] = 0;
    }
  });
  return check_rows(good, index);
}

// The code that all weights of a group have, or -1.
int only_code(const Matrix& matrix, std::int64_t row, std::int64_t group) {
  const std::int64_t width = std::int64_t{matrix.view().group_chunks} * kChunkColumns;
  const std::int64_t end = std::min(matrix.columns(), (group + 1) * width);
  const int code = matrix.code(row, group * width);
  for (std::int64_t column = group * width; column < end; ++column)
    if (matrix.code(row, column) != code) return -1;
  return code;
}

// Adds D to every weight of a group. False: the group cannot hold it.
bool add_to_group(Matrix& matrix, std::int64_t row, std::int64_t group, float difference) {
  if (difference == 0.0f) return true;
  const std::size_t at = matrix.scale_index(row, group);
  if (matrix.has_offsets()) {
    f16& offset = matrix.offsets()[at];
    offset = f32_to_f16(f16_to_f32(offset) + difference);
    return is_finite(offset);
  }
  f16 &scale = matrix.scales()[at], &zero = matrix.zeros()[at];
  if ((scale & 0x7fffu) == 0) {
    const int code = only_code(matrix, row, group);
    if (code < 0) return false;
    scale = f32_to_f16(difference);
    zero = f32_to_f16(static_cast<float>(code) - 1.0f);
    return is_finite(scale);
  }
  zero = f32_to_f16(f16_to_f32(zero) - difference / f16_to_f32(scale));
  return is_finite(zero);
}

Status merge_groups(std::span<const Adapter> adapters, std::size_t index, ThreadTeam& team,
                    Model& model) {
  Matrix& matrix = model.linear(index).weight;
  if (!matrix.has_shifts())
    return fail(
        "{}: QA-LoRA is merged into zero-points or offsets, and this format's are fixed; "
        "keep the adapter beside the model (--adapter), or tune a Q4_1 or Q5_1 file, or one "
        "that `trimpot quantize` made with zero-points",
        linear_tensor_name(index));
  const ColumnOrder rows = linear_axes(model, index).rows;
  std::vector<std::uint8_t> good(static_cast<std::size_t>(matrix.rows()), 1);
  team.for_each(matrix.rows(), kTileRows, [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> difference(static_cast<std::size_t>(matrix.groups()));
    for (std::int64_t row = begin; row < end; ++row) {
      std::fill(difference.begin(), difference.end(), 0.0f);
      add_low_rank(adapters, index, true, original(rows, row), difference);
      for (std::int64_t group = 0; group < matrix.groups(); ++group)
        if (!add_to_group(matrix, row, group, difference[static_cast<std::size_t>(group)]))
          good[static_cast<std::size_t>(row)] = 0;
    }
  });
  return check_rows(good, index);
}

}  // namespace

Status merge_adapters(std::span<const Adapter> adapters, ThreadTeam& team, Model& model) {
  TRIMPOT_TRY_VOID(check_conflicts(adapters, true));
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    Linear& linear = model.linear(index);
    LinearOverlay changed;
    TRIMPOT_TRY_VOID(overlay_scales(adapters, index, model, changed));
    const WeakSum weak = sum_weak(adapters, index, linear.rows());
    const bool low_rank = has_low_rank(adapters, index, false);
    const bool dense = !linear.weight.quantized() && linear.weak.rows() == 0;
    if (low_rank && !dense)
      return fail(
          "{}: LoRA cannot be merged into integer codes without losing most of it to their "
          "rounding; keep the adapter beside the model (--adapter), or tune with --method "
          "qalora, whose result merges exactly, or merge it into the dense model "
          "(--onto-other) and quantize that with `trimpot quantize`",
          linear_tensor_name(index));
    if (!weak.channels.empty() && !dense && linear.weak.rows() == 0)
      return fail(
          "{}: differences of columns cannot be added to integer codes; keep the adapter "
          "beside the model (--adapter), or merge it onto a dense model, or onto one with "
          "these weak columns (`trimpot quantize --weak-columns-from`)",
          linear_tensor_name(index));
    if (dense && (low_rank || !weak.channels.empty()))
      TRIMPOT_TRY_VOID(merge_dense(adapters, weak, index, team, model));
    else
      TRIMPOT_TRY_VOID(overlay_weak(weak, index, model, changed));
    put_into(std::move(changed), linear);
    if (has_low_rank(adapters, index, true))
      TRIMPOT_TRY_VOID(merge_groups(adapters, index, team, model));
  }
  return {};
}

Result<Adapter> weak_difference(const gguf::File& tuned_file, const Model& tuned,
                                const gguf::File& base_file, const Model& base) {
  if (tuned.linear_count() != base.linear_count() ||
      fingerprint(tuned_file).codes != fingerprint(base_file).codes)
    return fail("{} was not tuned on {}: their codes or weak columns differ", tuned_file.path(),
                base_file.path());
  Adapter adapter;
  adapter.path = tuned_file.path();
  adapter.layers.resize(tuned.linear_count());
  bool any = false;
  for (std::size_t index = 0; index < tuned.linear_count(); ++index) {
    const Matrix &now = tuned.linear(index).weak, &old = base.linear(index).weak;
    if (now.rows() != old.rows() || now.columns() != old.columns())
      return fail("{}: {} has other weak columns than {}", tuned_file.path(), linear_name(index),
                  base_file.path());
    if (now.rows() == 0) continue;
    AdapterPart& part = adapter.layers[index];
    part.weak_columns = weak_channels(tuned, index);
    const ColumnOrder rows = linear_axes(tuned, index).rows;
    part.weak.resize(static_cast<std::size_t>(now.rows() * now.columns()));
    for (std::int64_t row = 0; row < now.rows(); ++row)
      for (std::int64_t c = 0; c < now.columns(); ++c) {
        const std::size_t at = now.dense_index(row, c);
        const float difference = f16_to_f32(now.dense_f16()[at]) - f16_to_f32(old.dense_f16()[at]);
        part.weak[static_cast<std::size_t>(original(rows, row) * now.columns() + c)] = difference;
        any = any || difference != 0.0f;
      }
  }
  if (!any)
    return fail("{}: its weak columns are those of {}; there is nothing to add", tuned_file.path(),
                base_file.path());
  return adapter;
}

Status check_fits(const Adapter& adapter, const Model& model) {
  for (std::size_t index = 0; index < adapter.layers.size(); ++index) {
    const AdapterPart& part = adapter.layers[index];
    if (part.weak_columns.empty() && index < model.linear_count()) continue;
    const bool fits = index < model.linear_count() &&
                      part.weak.size() == static_cast<std::size_t>(model.linear(index).rows()) *
                                              part.weak_columns.size() &&
                      *std::max_element(part.weak_columns.begin(), part.weak_columns.end()) <
                          model.linear(index).columns;
    if (!fits)
      return fail("{}: {} does not fit the model it is to be added to, which has another shape",
                  adapter.path, linear_tensor_name(index));
  }
  if (adapter.layers.size() != model.linear_count())
    return fail("{}: it has another number of layers than the model it is to be added to",
                adapter.path);
  return {};
}

}  // namespace trimpot
