// What OPTQ needs of the Hessian H = (2/n) sum x x^T of a linear layer's inputs: the upper Cholesky
// factor U of the inverse, H^-1 = U^T U (Frantar et al. 2022, section 3.3, step 3). It depends on
// the inputs only, so matrices that share theirs (q, k, v; gate, up) share it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops.h"
#include "sys/aligned_buffer.h"

namespace trimpot {

struct HessianOptions {
  // Added to the diagonal, as a fraction of its mean (over columns that are not dead).
  double damping = 0.01;
  // The last `weak` columns are not quantized: they come last in any order and take up the error.
  std::int64_t weak = 0;
  // Quantize the columns by falling diagonal instead of from left to right.
  bool act_order = false;
};

// U lives in f32, as in the paper's own code. On Hessians of SmolLM2 (condition 4e3 to 5e4 once
// damped) its norm is within 1e-4 to 3e-6 of f64's, as PyTorch's f32 is, and OPTQ's codes are those
// of f64 but for 0.02 % of them, which leave the objective within 0.1 %. Positions are the order in
// which columns are quantized; without act_order position = column.
class InverseFactor {
 public:
  // `hessian` is [columns][columns], of which the lower triangle is read; any common factor is
  // irrelevant. A column whose diagonal is 0 is dead (that input was always 0): it gets the mean as
  // its diagonal and nothing beside it, and optq() sets its weights to 0, unless it is weak.
  // Cost: 2/3 columns^3 multiplications, memory 2 columns^2 floats.
  // Errors: values that are not finite or a negative diagonal; a Hessian of zeros; one that stays
  // singular after damping (names the column); options out of range.
  static Result<InverseFactor> prepare(Compute& compute, std::span<const float> hessian,
                                       std::int64_t columns, const HessianOptions& options);

  std::int64_t columns() const { return columns_; }
  std::int64_t robust() const { return robust_; }  // columns - weak
  bool reordered() const { return reordered_; }
  // Column at each position, and whether a column is dead.
  std::span<const std::int32_t> order() const { return order_; }
  bool dead(std::int64_t column) const { return dead_[static_cast<std::size_t>(column)] != 0; }
  // Row `position` of U, and left of the diagonal the same values mirrored: row(j)[i] = U[i][j] for
  // i < j, so that a column of U is contiguous too.
  const float* row(std::int64_t position) const { return factor_.data() + position * stride_; }
  std::int64_t stride() const { return stride_; }

 private:
  std::int64_t columns_ = 0;
  std::int64_t robust_ = 0;
  std::int64_t stride_ = 0;
  bool reordered_ = false;
  std::vector<std::int32_t> order_;
  std::vector<std::uint8_t> dead_;
  AlignedBuffer<float> factor_;
};

}  // namespace trimpot
