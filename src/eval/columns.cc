#include "eval/columns.h"

#include "model/training_pass.h"
#include "quantize/calibration.h"
#include "quantize/columns.h"
#include "quantize/rtn.h"

namespace trimpot {
namespace {

// lambda of the layer's input over all windows.
std::vector<double> input_diagonal(Compute& compute, const Model& model,
                                   std::span<const std::vector<TokenId>> windows,
                                   std::size_t linear) {
  const std::size_t last = linear / kLinearKinds.size();
  const LayerInput input = input_of(linear % kLinearKinds.size());
  InputStatistics statistics(input_width(model.config, input), false);
  LayerActivations activations;
  RopeTable rope;
  KeyValues cache;
  AlignedBuffer<float> x;
  for (const std::vector<TokenId>& tokens : windows) {
    const auto rows = static_cast<std::int64_t>(tokens.size());
    cache.allocate(compute, model.config.attention, rows);
    const Batch batch{tokens, {{0, rows, 0, &cache}}};
    rope.fill(model, batch);
    activations.allocate(model.config, rows);
    x.reserve(static_cast<std::size_t>(rows * model.config.hidden));
    embed(compute, model, tokens, x.data());
    for (std::size_t layer = 0; layer <= last; ++layer)
      layer_forward(compute, model.config, model.layers[layer], batch.segments, rope, rows,
                    x.data(), activations, x.data());
    const float* values = input == LayerInput::kAttention      ? activations.attention_in.values()
                          : input == LayerInput::kAttentionOut ? activations.attention_out.values()
                          : input == LayerInput::kFeedForward
                              ? activations.feed_forward_in.values()
                              : activations.feed_forward_out.values();
    statistics.add(compute, values, rows);
  }
  return statistics.diagonal();
}

// ||dL/dW_:,j||^2 of the layer alone: no other gradient is computed.
Result<std::vector<double>> gradient_norms(Compute& compute, const Model& model,
                                           std::span<const std::vector<TokenId>> windows,
                                           std::size_t linear) {
  const Matrix& weight = model.linear(linear).weight;
  const std::int64_t tiles = (weight.rows() + kTileRows - 1) / kTileRows;
  AlignedBuffer<float> gradient;
  gradient.resize(static_cast<std::size_t>(tiles * kTileRows * weight.columns()));
  GradientSink sink;
  sink.linears.resize(linear + 1);
  sink.linears[linear].weight = gradient.data();
  std::size_t predictions = 0;
  for (const std::vector<TokenId>& tokens : windows) predictions += tokens.size() - 1;
  TrainingPass pass(compute, model);
  for (const std::vector<TokenId>& tokens : windows) {
    const TrainingBatch batch{tokens,
                              std::vector<std::uint8_t>(tokens.size(), 1),
                              {static_cast<std::int64_t>(tokens.size())}};
    TRIMPOT_TRY_VOID(pass.run(batch, 1.0f / static_cast<float>(predictions), &sink));
  }
  std::vector<double> norms(static_cast<std::size_t>(weight.columns()));
  for (std::int64_t row = 0; row < weight.rows(); ++row)
    for (std::int64_t column = 0; column < weight.columns(); ++column) {
      const double value = gradient.data()[weight.dense_index(row, column)];
      norms[static_cast<std::size_t>(column)] += value * value;
    }
  return norms;
}

}  // namespace

Result<ColumnStudy> study_columns(Compute& compute, const Model& model,
                                  std::span<const std::vector<TokenId>> windows, std::size_t linear,
                                  const Scheme& scheme) {
  if (windows.empty() || windows[0].size() < 2) return fail("no window of two tokens or more");
  if (linear >= model.linear_count())
    return fail("there is no layer {}; the model has {}", linear / kLinearKinds.size(),
                model.layers.size());
  const Matrix& weight = model.linear(linear).weight;
  if (weight.quantized() || model.linear(linear).weak.columns() > 0)
    return fail(
        "{} is quantized; make an unquantized copy first: trimpot quantize IN OUT --method "
        "f32",
        linear_name(linear));
  std::vector<float> values(static_cast<std::size_t>(weight.rows() * weight.columns()));
  for (std::int64_t row = 0; row < weight.rows(); ++row)
    weight.dequantize_row(row, values.data() + row * weight.columns());
  const WeightView view{values.data(), weight.rows(), weight.columns(), weight.columns()};
  TRIMPOT_TRY(const GroupParameters parameters, min_max_parameters(compute.team, view, scheme));
  ColumnStudy study;
  study.sensitivity = column_costs(input_diagonal(compute, model, windows, linear),
                                   column_errors(compute.team, view, parameters));
  TRIMPOT_TRY(study.gradient, gradient_norms(compute, model, windows, linear));
  return study;
}

}  // namespace trimpot
