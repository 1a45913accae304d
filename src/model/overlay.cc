#include "model/overlay.h"

namespace trimpot {

LinearView LinearOverlay::over(const Linear& base) const {
  LinearView view(base);
  if (scales.size() > 0) view.groups.scales = scales.data();
  if (zeros.size() > 0) view.groups.zeros = zeros.data();
  if (offsets.size() > 0) view.groups.offsets = offsets.data();
  if (weak.rows() > 0) {
    view.weak = &weak;
    if (weak_columns) view.weak_columns = weak_columns.get();
  }
  if (low_rank) view.low_rank = low_rank.get();
  return view;
}

std::size_t LinearOverlay::bytes() const {
  std::size_t bytes = (scales.size() + zeros.size() + offsets.size()) * sizeof(f16) + weak.bytes();
  if (low_rank) bytes += low_rank->a.bytes() + low_rank->b.bytes();
  return bytes;
}

std::size_t Overlay::bytes() const {
  std::size_t bytes = 0;
  for (const LinearOverlay& linear : linears) bytes += linear.bytes();
  return bytes;
}

LayerView LayerRuns::view(const Model& model, std::size_t layer, std::span<const OverlayRun> runs) {
  LayerView view(model.layers[layer]);
  for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
    const std::size_t index = layer * kLinearKinds.size() + kind;
    runs_[kind].clear();
    for (const OverlayRun& run : runs)
      runs_[kind].push_back({run.begin, run.end,
                             run.overlay != nullptr
                                 ? run.overlay->linears[index].over(model.linear(index))
                                 : LinearView(model.linear(index))});
    view.runs[kind] = runs_[kind];
  }
  return view;
}

}  // namespace trimpot
