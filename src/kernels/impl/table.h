// Fills the function table for one instruction set.
#pragma once

#include "kernels/impl/codes.h"
#include "kernels/impl/elementwise.h"
#include "kernels/impl/int8.h"
#include "kernels/impl/limits.h"
#include "kernels/impl/multiply.h"
#include "kernels/impl/quantize.h"
#include "kernels/impl/remainders.h"
#include "kernels/impl/rounded.h"
#include "kernels/kernels.h"

namespace trimpot::impl {

template <class S>
constexpr Kernels make_kernels() {
  Kernels k{};
  k.name = S::kName;
  k.quantize = quantize<S>;
  k.linear_int8 = linear_int8<S>;
  k.weak_for_many = S::kWeakForMany;
  k.add_remainders = add_remainders<S>;
  k.multiply = multiply<S>;
  k.unpack_tile = unpack_tile<S>;
  k.unpack_columns = unpack_columns<S>;
  if constexpr (S::kRoundedProducts) {
    k.rounded = "int16";
    k.unpack_columns_rounded = unpack_columns_rounded<S, Int16Rows>;
    k.multiply_rounded = multiply_rounded<S, Int16Rows, RoundedView>;
    k.round_row = to_int16<S>;
    k.multiply_panels = multiply_panels_int16<S>;
    k.panel_rows = S::kMaxRowsRounded;
    k.round_pairs = round_pairs_int16<S>;
    k.round_columns = round_columns_int16<S>;
    k.peak_rounded = {peak_int16<S>, 12 * 32};
    if constexpr (S::kByteProducts) {
      k.unpack_columns_bytes = unpack_columns_rounded<S, ByteRows>;
      k.multiply_bytes = multiply_rounded<S, ByteRows, RoundedBytes>;
      k.round_row_bytes = to_bytes<S>;
    }
  }
  k.scale_gradient_int8 = scale_gradient_int8<S>;
  k.output_sums = output_sums<S>;
  k.rms_norm = rms_norm<S>;
  k.rms_norm_backward = rms_norm_backward<S>;
  k.swiglu = swiglu<S>;
  k.swiglu_backward = swiglu_backward<S>;
  k.scale_scores = scale_scores<S>;
  k.exponentials = exponentials<S>;
  k.softmax_again = softmax_again<S>;
  k.softmax_backward = softmax_backward<S>;
  k.rotate_pairs = rotate_pairs<S>;
  k.highest = highest<S>;
  k.log_sum_exp = log_sum_exp<S>;
  k.softmax_gradient = softmax_gradient<S>;
  k.scale = scale<S>;
  k.add = add<S>;
  k.dot = dot<S>;
  k.transpose = transpose<S>;
  k.widen_f16 = widen_f16<S>;
  k.scale_each = scale_each<S>;
  k.narrow_f16 = narrow_f16<S>;
  k.narrow_int8 = narrow_int8<S>;
  k.widen_int8 = widen_int8<S>;
  k.peak_f32 = {peak_f32<S>, 12 * 16};
  k.peak_int8 = {peak_int8<S>, 12 * 64};
  k.read_memory = read_memory<S>;
  return k;
}

}  // namespace trimpot::impl
