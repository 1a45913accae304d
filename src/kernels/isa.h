// The tables of the instruction sets, each filled by its own translation unit with its own flags.
// Those units include only this project's headers: a std template compiled for AVX-512 could be
// picked by the linker for the whole program and stop it on an older CPU.
#pragma once

#include "kernels/kernels.h"

namespace trimpot {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512Kernels;
// What AMX has of its own, in int8 and in bf16; the rest is AVX-512's.
extern const Kernels kAmxParts, kAmxBf16Parts;
#endif

}  // namespace trimpot
