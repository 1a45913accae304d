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
extern const Kernels kAmxParts;  // what it has of its own; the rest is AVX-512's
#endif

}  // namespace trimpot
