// What every operation works with, and the operations between the linear layers (linear.h) and
// attention (attention.h). Every function splits its outputs over the threads and never a sum, so
// that results do not depend on the number of threads.
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
  kDefault,  // packed codes times int8 activations; f16 keys and values
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
  // Room for an output gradient [tokens, rows] in whole numbers.
  RoundedView rounded(std::int64_t tokens, std::int64_t rows) {
    const std::int64_t stride = rounded_stride(rows);
    const std::int64_t blocks = (rows + kRoundedBlock - 1) / kRoundedBlock;
    rounded_.reserve(tokens * stride);
    rounded_scales_.reserve(tokens * blocks);
    return {rounded_.data(), stride, rounded_scales_.data(), blocks};
  }
  RoundedBytes rounded_bytes(std::int64_t tokens, std::int64_t rows) {
    const std::int64_t stride = 2 * rounded_stride((rows + 1) / 2);  // as many cache lines
    const std::int64_t blocks = (rows + kRoundedBlock - 1) / kRoundedBlock;
    rounded_.reserve(tokens * stride / 2);
    rounded_scales_.reserve(2 * tokens * blocks);
    float* scales = rounded_scales_.data();
    return {{reinterpret_cast<std::int8_t*>(rounded_.data()), stride, scales, blocks},
            reinterpret_cast<std::int32_t*>(scales + tokens * blocks)};
  }
  // At least `count` floats shared by all members during one operation; contents do not outlive it.
  enum Shared {
    kReordered,
    kLowRankInput,
    kLowRankInner,
    kLowRankGradient,
    kScores,
    kPanels,
    kSharedCount
  };
  float* shared(Shared which, std::size_t count) {
    shared_[which].reserve(count);
    return shared_[which].data();
  }

  // A step of tuning runs, forward and backward. With `wants_int8` its backward pass reads int8
  // activations: gradients of scales do.
  bool learning = false, wants_int8 = false;
  // Prompts and texts to be scored are multiplied in bf16 where a step of tuning is
  // (step_rounds_inputs()): faster, but what a token gets depends on how many come with it. Set
  // once; a Decoder sets the second one while it reads such a text.
  bool bf16_prompts = false, reading_bf16 = false;
  // Random numbers of this forward and backward pass (dropout); 0: none are wanted.
  std::uint64_t dropout_stream = 0;

 private:
  std::vector<AlignedBuffer<float>> scratch_;
  AlignedBuffer<float> shared_[kSharedCount];
  AlignedBuffer<std::int16_t> rounded_;
  AlignedBuffer<float> rounded_scales_;
};

void clear(Compute& compute, float* x, std::size_t count);
void rms_norm(Compute& compute, const float* x, const float* weight, std::int64_t tokens,
              std::int64_t columns, float eps, float* y, float* rstd);
void rms_norm_backward(Compute& compute, const float* dy, const float* x, const float* weight,
                       const float* rstd, std::int64_t tokens, std::int64_t columns, float* dx);
// Of each token the columns from `first` on.
void swiglu(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
            std::int64_t columns, float* out, std::int64_t first = 0);
// d_gate comes with the gradient of swiglu's output, which it replaces.
void swiglu_backward(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
                     std::int64_t columns, float* d_gate, float* d_up);

}  // namespace trimpot
