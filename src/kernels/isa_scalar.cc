#include "kernels/impl/table.h"
#include "kernels/isa.h"
#include "kernels/simd/scalar.h"

namespace trimpot {

constinit const Kernels kScalarKernels = impl::make_kernels<Scalar>();

}  // namespace trimpot
