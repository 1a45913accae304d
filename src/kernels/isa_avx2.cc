#include "kernels/impl/table.h"
#include "kernels/isa.h"
#include "kernels/simd/avx2.h"

namespace trimpot {

constinit const Kernels kAvx2Kernels = impl::make_kernels<Avx2>();

}  // namespace trimpot
