#include "kernels/impl/table.h"
#include "kernels/isa.h"
#include "kernels/simd/avx512.h"

namespace trimpot {

constinit const Kernels kAvx512Bf16Kernels = impl::make_kernels<Avx512<true>>();

}  // namespace trimpot
