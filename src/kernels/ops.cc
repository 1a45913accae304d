#include "kernels/ops.h"

#include <algorithm>

namespace trimpot {

void clear(Compute& compute, float* x, std::size_t count) {
  constexpr std::int64_t kPiece = 64 << 10;
  compute.team.for_each(
      static_cast<std::int64_t>(count), kPiece,
      [&](std::int64_t begin, std::int64_t end, int) { std::fill(x + begin, x + end, 0.0f); });
}

void rms_norm(Compute& compute, const float* x, const float* weight, std::int64_t tokens,
              std::int64_t columns, float eps, float* y, float* rstd) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      compute.kernels.rms_norm(x + token * columns, weight, columns, eps, y + token * columns,
                               rstd ? rstd + token : nullptr);
  });
}

void rms_norm_backward(Compute& compute, const float* dy, const float* x, const float* weight,
                       const float* rstd, std::int64_t tokens, std::int64_t columns, float* dx) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t token = begin; token < end; ++token)
      compute.kernels.rms_norm_backward(dy + token * columns, x + token * columns, weight,
                                        rstd[token], columns, dx + token * columns);
  });
}

void swiglu(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
            std::int64_t columns, float* out, std::int64_t first) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t at = begin * columns + first; at < end * columns; at += columns)
      compute.kernels.swiglu(gate + at, up + at, columns - first, out + at);
  });
}

void swiglu_backward(Compute& compute, const float* gate, const float* up, std::int64_t tokens,
                     std::int64_t columns, float* d_gate, float* d_up) {
  compute.team.for_each(tokens, 16, [&](std::int64_t begin, std::int64_t end, int) {
    compute.kernels.swiglu_backward(gate + begin * columns, up + begin * columns,
                                    (end - begin) * columns, d_gate + begin * columns,
                                    d_up + begin * columns);
  });
}

}  // namespace trimpot
