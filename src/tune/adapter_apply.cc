// Adapters into a loaded model.
#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "model/stored.h"
#include "tune/adapter_parts.h"
#include "tune/scale_groups.h"

namespace trimpot {
namespace {

// The packed rows of a tile, each beginning at its numbers in the file, [rows, groups].
struct TileRows {
  const f16* row[kTileRows];
  std::int64_t count;  // of rows; a last tile may have fewer
};
TileRows tile_rows(const f16* from, const ColumnOrder& rows, std::int64_t tile,
                   const Matrix& matrix) {
  TileRows out{{}, std::min<std::int64_t>(kTileRows, matrix.rows() - tile * kTileRows)};
  for (std::int64_t i = 0; i < out.count; ++i)
    out.row[i] = from + original(rows, tile * kTileRows + i) * matrix.groups();
  return out;
}

// One group of them side by side; zero beyond the matrix's rows.
void take_group(const TileRows& from, std::int64_t group, f16* to) {
  for (std::int64_t i = 0; i < from.count; ++i) to[i] = from.row[i][group];
  for (std::int64_t i = from.count; i < kTileRows; ++i) to[i] = 0;
}

// The row and group of the first number that is not finite.
std::string where_broken(const LinearOverlay& overlay, const Matrix& matrix) {
  for (std::int64_t row = 0; row < matrix.rows(); ++row)
    for (std::int64_t group = 0; group < matrix.groups(); ++group)
      for (const AlignedBuffer<f16>* values : {&overlay.scales, &overlay.zeros, &overlay.offsets})
        if (!values->empty() && !is_finite((*values)[matrix.scale_index(row, group)]))
          return fmt::format("row {}, group {}", row, group);
  return "its padding";
}

// The pair in the model's order of rows and channels.
std::unique_ptr<LowRank> make_path(const Adapter& adapter, const AdapterPart& part,
                                   const Linear& linear, const LinearAxes& axes) {
  auto path = std::make_unique<LowRank>();
  const std::int64_t inputs = static_cast<std::int64_t>(part.lora_a.size()) / part.rank;
  const ColumnOrder columns = adapter.pooled ? nullptr : axes.columns;
  path->a = Matrix::zeros(Storage::kF32, part.rank, inputs);
  for (std::int64_t r = 0; r < part.rank; ++r)
    for (std::int64_t c = 0; c < inputs; ++c)
      path->a.dense_f32()[path->a.dense_index(r, c)] =
          part.lora_a[static_cast<std::size_t>(r * inputs + original(columns, c))];
  path->b = Matrix::zeros(Storage::kF32, linear.rows(), part.rank);
  for (std::int64_t row = 0; row < linear.rows(); ++row)
    for (std::int64_t r = 0; r < part.rank; ++r)
      path->b.dense_f32()[path->b.dense_index(row, r)] =
          part.lora_b[static_cast<std::size_t>(original(axes.rows, row) * part.rank + r)];
  path->scale = adapter.low_rank_scale * adapter.factor;
  path->pool = adapter.pooled ? linear.weight.view().group_chunks * kChunkColumns : 0;
  return path;
}

// The differences as columns of their own beside the layer's weights.
void put_beside(const WeakSum& sum, const LinearAxes& axes, LinearOverlay& out) {
  const auto count = static_cast<std::int64_t>(sum.channels.size());
  const auto rows = static_cast<std::int64_t>(sum.values.size()) / count;
  out.weak = Matrix::zeros(Storage::kF32, rows, count);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t c = 0; c < count; ++c)
      out.weak.dense_f32()[out.weak.dense_index(row, c)] =
          sum.values[static_cast<std::size_t>(original(axes.rows, row) * count + c)];
  const ColumnOrder inverse = inverse_order(axes.columns);
  std::vector<std::int32_t> positions;
  for (const std::int32_t channel : sum.channels)
    positions.push_back(static_cast<std::int32_t>(original(inverse, channel)));
  out.weak_columns = std::make_shared<const std::vector<std::int32_t>>(std::move(positions));
}

// What one layer becomes.
Status overlay_linear(std::span<const Adapter> adapters, std::size_t index, const Model& model,
                      LinearOverlay& out) {
  const Linear& linear = model.linear(index);
  const LinearAxes axes = linear_axes(model, index);
  TRIMPOT_TRY_VOID(overlay_scales(adapters, index, model, out));
  const WeakSum sum = sum_weak(adapters, index, linear.rows());
  if (!sum.channels.empty() && linear.weak.rows() == 0)
    put_beside(sum, axes, out);
  else
    TRIMPOT_TRY_VOID(overlay_weak(sum, index, model, out));
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    if (part.rank > 0) out.low_rank = make_path(adapter, part, linear, axes);
  }
  return {};
}

}  // namespace

WeakSum sum_weak(std::span<const Adapter> adapters, std::size_t index, std::int64_t rows) {
  WeakSum sum;
  for (const Adapter& adapter : adapters)
    for (const std::int32_t channel : adapter.layers[index].weak_columns)
      if (std::find(sum.channels.begin(), sum.channels.end(), channel) == sum.channels.end())
        sum.channels.push_back(channel);
  const std::size_t count = sum.channels.size();
  sum.values.resize(static_cast<std::size_t>(rows) * count);
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    for (std::size_t c = 0; c < part.weak_columns.size(); ++c) {
      const auto at = static_cast<std::size_t>(
          std::find(sum.channels.begin(), sum.channels.end(), part.weak_columns[c]) -
          sum.channels.begin());
      for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row)
        sum.values[row * count + at] +=
            adapter.factor * part.weak[row * part.weak_columns.size() + c];
    }
  }
  return sum;
}

Status overlay_scales(std::span<const Adapter> adapters, std::size_t index, const Model& model,
                      LinearOverlay& out) {
  const std::vector<f16>*scales = nullptr, *zeros = nullptr;
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    if (!part.scale.empty()) scales = &part.scale;
    if (!part.zero.empty()) zeros = &part.zero;
    if ((!part.scale.empty() || !part.zero.empty()) && adapter.factor != 1.0f)
      return fail(
          "{}: scales and zero-points are final values; a factor of {} has no meaning for them",
          adapter.path, adapter.factor);
  }
  if (scales == nullptr && zeros == nullptr) return {};
  const Matrix& matrix = model.linear(index).weight;
  const ColumnOrder rows = linear_axes(model, index).rows;
  const bool moves_zeros = matrix.has_zeros() && zeros != nullptr;  // else they stay the base's
  const std::span<const f16> centres = moves_zeros ? matrix.zeros() : matrix.offsets();
  const GroupLanes base{matrix.scales().data(), centres.data(), moves_zeros};
  out.scales.resize(matrix.scales().size());
  AlignedBuffer<f16>& to_centres = moves_zeros ? out.zeros : out.offsets;
  to_centres.resize(centres.size());
  alignas(64) f16 new_scales[kTileRows], new_zeros[kTileRows];
  bool good = true;
  for (std::int64_t tile = 0; tile < matrix.view().tiles; ++tile) {
    TileRows scale_rows{}, zero_rows{};
    if (scales != nullptr) scale_rows = tile_rows(scales->data(), rows, tile, matrix);
    if (zeros != nullptr) zero_rows = tile_rows(zeros->data(), rows, tile, matrix);
    for (std::int64_t group = 0; group < matrix.groups(); ++group) {
      const std::size_t at = matrix.scale_index(tile * kTileRows, group);
      if (scales != nullptr) take_group(scale_rows, group, new_scales);
      if (zeros != nullptr) take_group(zero_rows, group, new_zeros);
      const bool finite =
          commit_lanes(lanes_at(base, at), scales != nullptr ? new_scales : base.scales + at,
                       zeros != nullptr ? new_zeros : nullptr, out.scales.data() + at,
                       centres.empty() ? nullptr : to_centres.data() + at);
      good = finite && good;
    }
  }
  if (good) return {};
  return fail("tensor {}, {}: not a finite number", linear_tensor_name(index),
              where_broken(out, matrix));
}

Status overlay_weak(const WeakSum& sum, std::size_t index, const Model& model, LinearOverlay& out) {
  if (sum.channels.empty()) return {};
  const ColumnOrder rows = linear_axes(model, index).rows;
  const std::vector<std::int32_t> channels = weak_channels(model, index);
  out.weak = model.linear(index).weak.clone();
  const std::span<f16> values = out.weak.dense_f16();
  for (std::size_t c = 0; c < sum.channels.size(); ++c) {
    const auto found = std::find(channels.begin(), channels.end(), sum.channels[c]);
    if (found == channels.end() || values.empty())
      return fail(
          "{}: channel {} of the adapter is none of this model's weak columns; `trimpot "
          "quantize --weak-columns-from` makes a model that has the same ones",
          linear_tensor_name(index), sum.channels[c]);
    for (std::int64_t row = 0; row < out.weak.rows(); ++row) {
      const float difference =
          sum.values[static_cast<std::size_t>(original(rows, row)) * sum.channels.size() + c];
      if (difference == 0.0f) continue;  // -0 stays
      f16& value = values[out.weak.dense_index(row, found - channels.begin())];
      value = f32_to_f16(f16_to_f32(value) + difference);
      if (!is_finite(value))
        return fail("tensor {}, row {}, channel {}: the sum exceeds 16-bit floats",
                    linear_tensor_name(index), original(rows, row), sum.channels[c]);
    }
  }
  return {};
}

void put_into(LinearOverlay&& from, Linear& linear) {
  std::copy_n(from.scales.data(), from.scales.size(), linear.weight.scales().data());
  std::copy_n(from.zeros.data(), from.zeros.size(), linear.weight.zeros().data());
  std::copy_n(from.offsets.data(), from.offsets.size(), linear.weight.offsets().data());
  if (from.weak.rows() > 0) linear.weak = std::move(from.weak);
  if (from.weak_columns) linear.weak_columns = std::move(from.weak_columns);
  if (from.low_rank) linear.low_rank = std::move(from.low_rank);
}

Status check_conflicts(std::span<const Adapter> adapters, bool low_rank_adds) {
  for (std::size_t i = 0; i < adapters.size(); ++i)
    for (std::size_t j = i + 1; j < adapters.size(); ++j) {
      std::string first;
      std::size_t count = 0;
      const std::size_t layers = std::min(adapters[i].layers.size(), adapters[j].layers.size());
      for (std::size_t index = 0; index < layers; ++index) {
        const AdapterPart &a = adapters[i].layers[index], &b = adapters[j].layers[index];
        const auto note = [&](bool both, const char* suffix) {
          if (both && count++ == 0) first = linear_tensor_name(index) + suffix;
        };
        note(!a.scale.empty() && !b.scale.empty(), ".scale");
        note(!a.zero.empty() && !b.zero.empty(), ".zero");
        note(!low_rank_adds && a.rank > 0 && b.rank > 0, ".lora_a");
      }
      if (count > 0)
        return fail("{} and {} both hold {}{}; use one of them", adapters[i].path, adapters[j].path,
                    first, count > 1 ? fmt::format(" and {} more tensors", count - 1) : "");
    }
  return {};
}

Result<Overlay> make_overlay(std::span<const Adapter> adapters, const Model& model,
                             ThreadTeam* team) {
  TRIMPOT_TRY_VOID(check_conflicts(adapters, false));
  Overlay overlay;
  overlay.linears.resize(model.linear_count());
  const auto make = [&](std::size_t index) {
    return overlay_linear(adapters, index, model, overlay.linears[index]);
  };
  TRIMPOT_TRY_VOID(run_parts(team, model.linear_count(), make, linear_tensor_name));
  return overlay;
}

Result<Overlay> load_overlay(const std::string& path, const AdapterBase& base, const Model& model,
                             ThreadTeam* team) {
  TRIMPOT_TRY(const Adapter adapter, read_adapter(path, base, model, team));
  auto overlay = make_overlay({&adapter, 1}, model, team);
  if (!overlay) return fail("{}: {}", path, overlay.error().message);
  return overlay;
}

Status apply_adapters(std::span<const Adapter> adapters, Model& model) {
  TRIMPOT_TRY(Overlay overlay, make_overlay(adapters, model));
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    put_into(std::move(overlay.linears[index]), model.linear(index));
  return {};
}

Status apply_adapter(const std::string& path, const gguf::File& base, Model& model,
                     ThreadTeam* team) {
  TRIMPOT_TRY(Overlay overlay, load_overlay(path, {base.path(), fingerprint(base)}, model, team));
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    put_into(std::move(overlay.linears[index]), model.linear(index));
  return {};
}

}  // namespace trimpot
