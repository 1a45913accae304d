// The learned parts of adapters beside a model that stays as it is: what linear layers compute with
// instead of their own scales, zero-points, weak columns and low-rank paths. Many overlays share
// one model in memory, and rows of one batch may each go through another (model/session.h).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "model/forward.h"

namespace trimpot {

// Of one linear layer. What is empty stays the base's.
struct LinearOverlay {
  AlignedBuffer<f16> scales, zeros, offsets;  // in the order of the base's (format/matrix.h)
  Matrix weak;                                // instead of the base's weak columns, if it has any
  ColumnOrder weak_columns;                   // null where `weak` replaces the base's
  std::unique_ptr<LowRank> low_rank;

  // The base's layer with these parts. Refers to both.
  LinearView over(const Linear& base) const;
  std::size_t bytes() const;
};

struct Overlay {
  std::unique_ptr<Arena> memory;  // of large ones' scales, zeros and offsets; null: they own theirs
  std::vector<LinearOverlay> linears;  // by Model::linear index
  std::size_t bytes() const;
};

// Rows [begin, end) of a batch and what they go through; null: the model as it is.
struct OverlayRun {
  std::int64_t begin, end;
  const Overlay* overlay;
};

// One layer as the rows of a batch see it.
class LayerRuns {
 public:
  // `runs` are in order and together all rows. The view refers to this object and the model.
  LayerView view(const Model& model, std::size_t layer, std::span<const OverlayRun> runs);

 private:
  std::array<std::vector<LinearRun>, kLinearKinds.size()> runs_;
};

}  // namespace trimpot
