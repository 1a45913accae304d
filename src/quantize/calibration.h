// What calibration text does: hidden states that wait in a file, and Hessians of layers' inputs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/forward.h"
#include "sys/scratch_file.h"

namespace trimpot {

// H = (2/n) sum x x^T of one input of a layer, or its diagonal alone.
class InputStatistics {
 public:
  InputStatistics(std::int64_t columns, bool whole);
  // Adds x [tokens, columns].
  void add(Compute& compute, const float* x, std::int64_t tokens);
  std::int64_t columns() const { return columns_; }
  bool whole() const { return !hessian_.empty(); }
  std::vector<double> diagonal() const;
  // [columns][columns] in a column order of its own; the lower triangle is filled.
  std::vector<float> hessian(std::span<const std::int32_t> order) const;

 private:
  std::int64_t columns_;
  std::int64_t tokens_ = 0;
  AlignedBuffer<float> hessian_;  // sums of x x^T; in [i][j] valid for i < (j / 32 + 1) * 32
  std::vector<double> squares_;
};

// The distinct inputs of a layer's linear layers, in the order in which they are computed.
enum class LayerInput : std::uint8_t { kAttention, kAttentionOut, kFeedForward, kFeedForwardOut };
inline constexpr std::array kLayerInputs{LayerInput::kAttention, LayerInput::kAttentionOut,
                                         LayerInput::kFeedForward, LayerInput::kFeedForwardOut};
// What the linear layer of this kind (LinearIndex) reads.
LayerInput input_of(std::size_t kind);
std::int64_t input_width(const ModelConfig& config, LayerInput input);

// Calibration windows on their way through a model, one in memory at a time.
class CalibrationRun {
 public:
  // Embeds the windows (all of one length). `model` needs embedding and orders; the hidden states
  // are in the original order of channels. Errors: no window, tokens outside the vocabulary, the
  // temporary file.
  static Result<CalibrationRun> start(Compute& compute, const Model& model,
                                      std::span<const std::vector<TokenId>> windows,
                                      const std::string& folder);
  std::size_t samples() const { return samples_; }

  // The input `input` of a layer for every sample. To be called for the four inputs in order, each
  // time with the layer's weights as they are then: a linear layer sees what those before it, also
  // of its own layer, give it when they are quantized.
  using Seen = std::function<void(const float* values, std::int64_t tokens)>;
  Status see(const LayerWeights& weights, LayerInput input, const Seen& seen);
  // The layer's output becomes the sample.
  Status advance(const LayerWeights& weights);

 private:
  CalibrationRun(Compute& compute, const Model& model, ScratchFile file)
      : compute_(compute), model_(model), file_(std::move(file)) {}

  // Three places per sample: x, later middle [tokens, hidden]; attention_out; feed_forward_out.
  enum Place { kHidden, kAttentionOut, kFeedForwardOut };
  Status keep(std::size_t sample, Place place, const float* values);
  Status fetch(std::size_t sample, Place place, float* values) const;
  std::int64_t width(Place place) const;
  std::size_t offset(std::size_t sample, Place place) const;

  Compute& compute_;
  const Model& model_;
  ScratchFile file_;
  std::size_t samples_ = 0;
  std::int64_t tokens_ = 0;
  Batch batch_;
  RopeTable rope_;
  std::vector<KeyValues> cache_;
  LayerActivations activations_;
  AlignedBuffer<float> x_;
};

}  // namespace trimpot
