// The file that quantization writes: tensors declared from sizes, then written as layers are done.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "io/gguf/stream_writer.h"
#include "kernels/ops.h"
#include "model/save.h"
#include "quantize/layer_quantizer.h"
#include "quantize/model_quantizer.h"

namespace trimpot {

class ModelOutput {
 public:
  // Declares everything and opens `path`. `frame` is the input's (load_frame).
  static Result<ModelOutput> open(const gguf::File& in, const Model& frame,
                                  const QuantizeOptions& options, const std::string& path);

  // The residual axis in its new order (original channels); before the others, if reordering.
  void set_residual_order(std::vector<std::int32_t> order) { residual_ = std::move(order); }
  // Norms and orders, embedding and head.
  Status write_frame(Compute& compute);
  // `feed_forward`: the new order of the layer's inner axis (empty: as it was).
  Status write_layer(std::size_t layer, std::vector<QuantizedLinear>& linears,
                     std::span<const std::int32_t> feed_forward);
  // A linear layer that stays dense, rows in the original order.
  Status write_dense(const std::string& name, std::span<const float> rows, std::int64_t columns);
  Status commit() { return out_.commit(); }

 private:
  ModelOutput(const gguf::File& in, const Model& frame, const QuantizeOptions& options)
      : in_(in), frame_(frame), options_(options) {}
  void declare();
  StoredShape head_shape() const;
  // Whether embedding and head are copied in the input's order although the model is reordered.
  bool keeps_head_order() const;
  Status write_head(Compute& compute, const std::string& name);
  std::vector<float> reordered(std::span<const float> values) const;

  const gguf::File& in_;
  const Model& frame_;
  const QuantizeOptions& options_;
  gguf::StreamWriter out_;
  std::vector<std::int32_t> residual_;  // empty: not reordered
};

}  // namespace trimpot
