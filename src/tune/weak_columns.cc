#include <algorithm>

#include "model/forward.h"
#include "quantize/calibration.h"
#include "quantize/columns.h"
#include "tune/matrices.h"

namespace trimpot {
namespace {

// Enough for stable ranks: OPTQ's calibration uses as many tokens.
constexpr std::size_t kTokens = 16384;

}  // namespace

Result<std::vector<std::vector<std::int32_t>>> choose_weak_columns(
    Compute& compute, const Model& model, const ExampleSet& examples, std::int64_t k,
    const std::vector<std::string>& target_modules) {
  std::vector<LayerStatistics> seen;
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer)
    seen.emplace_back(model.config, false);
  LayerActivations activations;
  RopeTable rope;
  KeyValues cache;
  AlignedBuffer<float> x;
  std::size_t done = 0;
  for (std::size_t i = 0; i < examples.size() && done < kTokens; ++i) {
    const auto tokens = examples.tokens(i);
    const auto rows = static_cast<std::int64_t>(tokens.size());
    cache.allocate(compute, model.config.attention, rows);
    const Batch batch{tokens, {{0, rows, 0, &cache}}};
    rope.fill(model, batch);
    activations.allocate(model.config, rows);
    x.reserve(static_cast<std::size_t>(rows * model.config.hidden));
    embed(compute, model, tokens, x.data());
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      layer_forward(compute, model.config, model.layers[layer], batch.segments, rope, rows,
                    x.data(), activations, x.data());
      seen[layer].add(compute, activations, rows);
    }
    done += tokens.size();
  }
  std::vector<std::vector<std::int32_t>> columns(model.linear_count());
  for (std::size_t index = 0; index < columns.size(); ++index) {
    if (!is_target(target_modules, index)) continue;
    const LayerStatistics& layer = seen[index / kLinearKinds.size()];
    TRIMPOT_TRY(columns[index],
                top_columns(layer.of(index % kLinearKinds.size()).diagonal(), k));
  }
  return columns;
}

}  // namespace trimpot
