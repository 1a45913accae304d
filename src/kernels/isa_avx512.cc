#include "kernels/impl/table.h"
#include "kernels/isa.h"
#include "kernels/simd/avx512.h"

namespace trimpot {

constinit const Kernels kAvx512Kernels = impl::make_kernels<Avx512>();

}  // namespace trimpot
