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
  std::vector<InputStatistics> seen;  // by layer and input
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer)
    for (const LayerInput input : kLayerInputs)
      seen.emplace_back(input_width(model.config, input), false);
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
      const float* inputs[] = {activations.attention_in.values(),
                               activations.attention_out.values(),
                               activations.feed_forward_in.values(),
                               activations.feed_forward_out.values()};
      for (std::size_t input = 0; input < std::size(inputs); ++input)
        seen[layer * std::size(inputs) + input].add(compute, inputs[input], rows);
    }
    done += tokens.size();
  }
  std::vector<std::vector<std::int32_t>> columns(model.linear_count());
  for (std::size_t index = 0; index < columns.size(); ++index) {
    if (!is_target(target_modules, index)) continue;
    const auto input = static_cast<std::size_t>(input_of(index % kLinearKinds.size()));
    const std::size_t layer = index / kLinearKinds.size();
    TRIMPOT_TRY(columns[index],
                top_columns(seen[layer * kLayerInputs.size() + input].diagonal(), k));
  }
  return columns;
}

}  // namespace trimpot
