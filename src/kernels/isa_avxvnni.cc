#include "kernels/impl/table.h"
#include "kernels/isa.h"
#include "kernels/simd/avx2.h"

namespace trimpot {

constinit const Kernels kAvxVnniKernels = impl::make_kernels<AvxVnni>();

}  // namespace trimpot
