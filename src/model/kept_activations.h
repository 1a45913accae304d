// What a step of tuning keeps of each layer, so that its backward pass need not compute it again,
// in fewer bits than it was computed in.
#pragma once

#include <cstdint>

#include "model/forward.h"

namespace trimpot {

// Beside keys and values, in f16 as they are multiplied anyway, and attention's output.
struct Kept {
  bool bytes = false;    // attention's output in int8 blocks of 32, as products with codes have
                         // it, instead of f16
  bool queries = false;  // f16; a tenth of the forward's products
  bool feed_forward = false;  // gate and up, int8 in blocks of 32; half of the products
  bool inputs = false;        // the layer's input, normed, in f16

  // The more, the less memory what learns takes, at 16 bytes a value. Gate and up come first: of
  // 135 M weights they save 0.65 G multiply-adds per MB, queries 0.3. `quantized`: all linear
  // layers are; others see numbers in full, and no bytes. `of_outputs`: gradients come from outputs
  // (takes_output()), which are differences of layers' inputs.
  static Kept choose(std::size_t learned_values, std::size_t weight_bytes, bool quantized,
                     bool of_outputs);
};

// Numbers of each kind, of a row and layer.
struct KeptWidths {
  std::int64_t halves, bytes, floats;
};
KeptWidths kept_widths(const ModelConfig& config, Kept kept);

class KeptActivations {
 public:
  void allocate(const ModelConfig& config, std::int64_t rows, std::int64_t layers, Kept kept);
  Kept kept() const { return kept_; }
  // After the forward of a layer with input x.
  void keep(Compute& compute, std::size_t layer, const LayerActivations& a, const float* x);
  // `a` and x as they were, but for rounding; what was not kept stays as it is.
  void restore(Compute& compute, std::size_t layer, LayerActivations& a, float* x) const;

 private:
  struct Row;
  Row row(std::size_t layer, std::int64_t row) const;
  template <typename LayerResults, typename Half, typename Bytes>
  void for_each_part(LayerResults& a, std::int64_t i, Half&& half, Bytes&& bytes) const;

  Kept kept_;
  std::int64_t rows_ = 0;
  AttentionShape shape_;
  std::int64_t hidden_ = 0, feed_forward_ = 0;
  KeptWidths widths_{};
  AlignedBuffer<f16> halves_;         // [layers, rows, widths_.halves]
  AlignedBuffer<std::int8_t> bytes_;  // [layers, rows, widths_.bytes]
  AlignedBuffer<float> floats_;       // [layers, rows, widths_.floats]
};

}  // namespace trimpot
