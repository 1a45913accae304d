// What calibration text does: hidden states that wait in a file, and Hessians of layers' inputs.
#pragma once

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

// The four distinct inputs of a layer's linear layers.
struct LayerStatistics {
  InputStatistics attention_in, attention_out, feed_forward_in, feed_forward_out;
  LayerStatistics(const ModelConfig& config, bool whole);
  void add(Compute& compute, const LayerActivations& a, std::int64_t tokens);
  // Of the linear layer of this kind (LinearIndex).
  const InputStatistics& of(std::size_t kind) const;
};

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

  // Runs every sample through a layer. With `advance` the layer's output replaces the sample;
  // `seen` gets the activations of each.
  Status run(const LayerWeights& weights, bool advance,
             const std::function<void(const LayerActivations&, std::int64_t tokens)>& seen);

 private:
  CalibrationRun(Compute& compute, const Model& model, ScratchFile file)
      : compute_(compute), model_(model), file_(std::move(file)) {}

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
