// The tables of the instruction sets, each filled by its own translation unit with its own flags.
// Those units include only this project's headers: a std template compiled for AVX-512 could be
// picked by the linker for the whole program and stop it on an older CPU.
#pragma once

#include "kernels/kernels.h"

namespace trimpot {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
// What AVX512_BF16 adds to them.
struct Bf16Kernels {
  decltype(Kernels::unpack_columns_bf16) unpack_columns;
  decltype(Kernels::multiply_bf16) multiply;
  decltype(Kernels::peak_bf16) peak;
};
extern const Bf16Kernels kAvx512Bf16Kernels;
#endif

}  // namespace trimpot
