// Adapters into a loaded model.
#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "model/stored.h"
#include "tune/adapter_parts.h"
#include "tune/scale_groups.h"

namespace trimpot {
namespace {

// What adapters have learned of a layer's groups: one of them at most, see check_conflicts().
struct LearnedGroups {
  const std::vector<f16>*scales = nullptr, *zeros = nullptr;  // null: nothing
};
LearnedGroups learned_groups(std::span<const Adapter> adapters, std::size_t index) {
  LearnedGroups out;
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    if (!part.scale.empty()) out.scales = &part.scale;
    if (!part.zero.empty()) out.zeros = &part.zero;
  }
  return out;
}

// Memory for them on huge pages, if there is much: 13 MB on pages of 4 KiB took half of the time
// of making an adapter ready, and a token reads them all.
void reserve_groups(std::span<const Adapter> adapters, const Model& model, Overlay& overlay) {
  constexpr std::size_t kMuch = std::size_t{4} << 20;
  const auto for_each = [&](auto&& use) {
    for (std::size_t index = 0; index < model.linear_count(); ++index) {
      const LearnedGroups learned = learned_groups(adapters, index);
      if (learned.scales != nullptr || learned.zeros != nullptr)
        use(model.linear(index).weight, learned.zeros != nullptr, overlay.linears[index]);
    }
  };
  std::size_t count = 0;
  for_each([&](const Matrix& matrix, bool, LinearOverlay&) {
    count += matrix.scales().size() + matrix.zeros().size() + matrix.offsets().size();
  });
  if (count * sizeof(f16) < kMuch) return;
  overlay.memory = std::make_unique<Arena>();
  for_each([&](const Matrix& matrix, bool zeros, LinearOverlay& out) {
    out.scales.reserve(matrix.scales().size(), overlay.memory.get());
    out.offsets.reserve(matrix.offsets().size(), overlay.memory.get());
    if (zeros) out.zeros.reserve(matrix.zeros().size(), overlay.memory.get());
  });
}

// The numbers of a tile's rows in packed order, [groups][16], from a file's, [rows, groups].
void pack_tile(const std::vector<f16>& from, const ColumnOrder& rows, std::int64_t tile,
               const Matrix& matrix, f16* to) {
  const f16* row[kTileRows] = {};
  for (std::int64_t i = 0; i < kTileRows && tile * kTileRows + i < matrix.rows(); ++i)
    row[i] = from.data() + original(rows, tile * kTileRows + i) * matrix.groups();
  pack_groups(row, matrix.groups(), to);
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
    std::vector<std::size_t> places;  // of its channels
    for (const std::int32_t channel : part.weak_columns)
      places.push_back(static_cast<std::size_t>(
          std::find(sum.channels.begin(), sum.channels.end(), channel) - sum.channels.begin()));
    const float* from = part.weak.data();
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row)
      for (const std::size_t place : places)
        sum.values[row * count + place] += adapter.factor * *from++;
  }
  return sum;
}

Status overlay_scales(std::span<const Adapter> adapters, std::size_t index, const Model& model,
                      LinearOverlay& out) {
  for (const Adapter& adapter : adapters) {
    const AdapterPart& part = adapter.layers[index];
    if ((!part.scale.empty() || !part.zero.empty()) && adapter.factor != 1.0f)
      return fail(
          "{}: scales and zero-points are final values; a factor of {} has no meaning for them",
          adapter.path, adapter.factor);
  }
  const auto [scales, zeros] = learned_groups(adapters, index);
  if (scales == nullptr && zeros == nullptr) return {};
  const Matrix& matrix = model.linear(index).weight;
  const ColumnOrder rows = linear_axes(model, index).rows;
  const bool moves_zeros = matrix.has_zeros() && zeros != nullptr;  // else they stay the base's
  const std::span<const f16> centres = moves_zeros ? matrix.zeros() : matrix.offsets();
  const GroupLanes base{matrix.scales().data(), centres.data(), moves_zeros};
  AlignedBuffer<f16>& to_centres = moves_zeros ? out.zeros : out.offsets;
  out.scales.reserve(matrix.scales().size());
  to_centres.reserve(centres.size());
  const auto of_tile = static_cast<std::size_t>(matrix.groups()) * kTileRows;
  std::vector<f16> new_scales(of_tile), new_zeros(of_tile);
  bool good = true;
  for (std::int64_t tile = 0; tile < matrix.view().tiles; ++tile) {
    const std::size_t at = matrix.scale_index(tile * kTileRows, 0);
    if (scales != nullptr) pack_tile(*scales, rows, tile, matrix, new_scales.data());
    if (zeros != nullptr) pack_tile(*zeros, rows, tile, matrix, new_zeros.data());
    good = commit_lanes(lanes_at(base, at), of_tile,
                        scales != nullptr ? new_scales.data() : base.scales + at,
                        zeros != nullptr ? new_zeros.data() : nullptr, out.scales.data() + at,
                        centres.empty() ? nullptr : to_centres.data() + at) &&
           good;
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
  std::vector<std::int64_t> places;  // of the adapters' channels among the layer's
  for (const std::int32_t channel : sum.channels) {
    const auto found = std::find(channels.begin(), channels.end(), channel);
    if (found == channels.end() || out.weak.dense_f16().empty())
      return fail(
          "{}: channel {} of the adapter is none of this model's weak columns; `trimpot "
          "quantize --weak-columns-from` makes a model that has the same ones",
          linear_tensor_name(index), channel);
    places.push_back(found - channels.begin());
  }
  const std::int64_t lanes = out.weak.columns() * kTileRows;  // of a tile
  std::vector<float> wide(static_cast<std::size_t>(lanes));
  for (std::int64_t begin = 0; begin < out.weak.rows(); begin += kTileRows) {
    f16* tile = out.weak.dense_f16().data() + out.weak.dense_index(begin, 0);
    converters().widen_f16(tile, lanes, wide.data());
    const std::int64_t count = std::min<std::int64_t>(kTileRows, out.weak.rows() - begin);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* difference =
          sum.values.data() + original(rows, begin + i) * static_cast<std::int64_t>(places.size());
      for (std::size_t c = 0; c < places.size(); ++c) {
        float& value = wide[static_cast<std::size_t>(places[c] * kTileRows + i)];
        value = difference[c] == 0.0f ? value : value + difference[c];  // -0 stays
      }
    }
    converters().narrow_f16(wide.data(), lanes, tile);
    for (std::size_t c = 0; c < places.size(); ++c)
      for (std::int64_t i = 0; i < count; ++i)
        if (!is_finite(tile[places[c] * kTileRows + i]))
          return fail("tensor {}, row {}, channel {}: the sum exceeds 16-bit floats",
                      linear_tensor_name(index), original(rows, begin + i), sum.channels[c]);
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
  reserve_groups(adapters, model, overlay);
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
