// The contracts of a linear layer and of attention, over whole matrices and all threads:
//   linear           y  = x W^T               (MatMul)
//   linear_backward  dx = dy W                (MatMulT; no transposed copy of W exists)
//   scale_gradients  d_scale, d_offset        (GradScales, GradOffsets; no dW in memory)
//   attention and attention_backward
// Every function splits its outputs over the threads and never a sum, so that results do not depend
// on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "format/matrix.h"
#include "kernels/kernels.h"
#include "sys/aligned_buffer.h"
#include "sys/thread_team.h"

namespace trimpot {

enum class Precision {
  kF32,      // weights dequantized, everything in f32: the yardstick
  kDefault,  // packed codes times int8 activations; f16 keys and values; bf16 input gradients
};

// What every operation works with. One per engine; not for two threads at once.
class Compute {
 public:
  Compute(const Kernels& kernels, Precision precision, int threads)
      : kernels(kernels), precision(precision), team(threads), scratch_(team.size()) {}

  const Kernels& kernels;
  const Precision precision;
  ThreadTeam team;

  // At least `count` floats that belong to one member of the team until its next call.
  float* scratch(int member, std::size_t count) {
    scratch_[member].reserve(count);
    return scratch_[member].data();
  }
  // At least `count` bf16 for rounded output gradients number `index`.
  bf16* rounded(std::size_t index, std::size_t count) {
    if (rounded_.size() <= index) rounded_.resize(index + 1);
    rounded_[index].reserve(count);
    return rounded_[index].data();
  }
  // At least `count` floats for the parts of key and value gradients (attention_backward).
  float* head_parts(std::size_t count) {
    head_parts_.reserve(count);
    return head_parts_.data();
  }

 private:
  std::vector<AlignedBuffer<float>> scratch_;
  AlignedBuffer<float> head_parts_;
  std::vector<AlignedBuffer<bf16>> rounded_;
};

// Inputs of a linear layer: floats [tokens, columns] and, on the default path, their int8 form.
class Activations {
 public:
  void allocate(const Compute& compute, std::int64_t tokens, std::int64_t columns);
  float* values() { return values_.data(); }
  const float* values() const { return values_.data(); }
  std::int64_t columns() const { return columns_; }
  // To be called when values() are final.
  void quantize(Compute& compute, std::int64_t tokens);
  const Int8View& int8() const { return view_; }

 private:
  std::int64_t columns_ = 0;
  std::int64_t tokens_ = 0;
  AlignedBuffer<float> values_;
  AlignedBuffer<std::int8_t> codes_;
  AlignedBuffer<float> scales_, scaled_sums_;
  AlignedBuffer<std::int32_t> sums_;
  Int8View view_;
};

// y [tokens, rows] (+)= x W^T for several matrices that share their input: one join for q, k, v.
struct LinearOutput {
  const Matrix* weight;
  float* y;
};
void linear(Compute& compute, const Activations& x, std::int64_t tokens,
            std::span<const LinearOutput> outputs, bool add = false);

// dx [tokens, columns] (+)= sum over the matrices of dy W.
struct LinearGradient {
  const Matrix* weight;
  const float* dy;  // [tokens, rows]
};
void linear_backward(Compute& compute, std::span<const LinearGradient> gradients,
                     std::int64_t tokens, float* dx, bool add = false);

// The head's gradient: dy as softmax_gradient() left it, rows `dy_stride` floats apart, in bf16 if
// the kernels work with bf16 on this path.
bool uses_bf16(const Compute& compute);
void head_backward(Compute& compute, const Matrix& weight, const float* dy, std::int64_t dy_stride,
                   std::int64_t tokens, float* dx);

// Receives d_scale and d_offset of whole tiles, [tile_end - tile_begin][groups][16], possibly from
// several threads at once (never the same tile). d_offset is null for formats without offsets.
using ScaleGradientSink = std::function<void(std::int64_t tile_begin, std::int64_t tile_end,
                                             const float* d_scale, const float* d_offset)>;
void scale_gradients(Compute& compute, const Matrix& weight, const Activations& x, const float* dy,
                     std::int64_t tokens, const ScaleGradientSink& sink);

void rms_norm(Compute& compute, const float* x, const float* weight, std::int64_t tokens,
              std::int64_t columns, float eps, float* y, float* rstd);
void rms_norm_backward(Compute& compute, const float* dy, const float* x, const float* weight,
                       const float* rstd, std::int64_t tokens, std::int64_t columns, float* dx);
void swiglu(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
            std::int64_t columns, float* out);
void swiglu_backward(Compute& compute, const float* d_out, std::int64_t tokens,
                     std::int64_t columns, float* gate, float* up);

}  // namespace trimpot
