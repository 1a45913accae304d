#include "kernels/impl/codes.h"
#include "kernels/impl/limits.h"
#include "kernels/impl/multiply.h"
#include "kernels/isa.h"
#include "kernels/simd/avx512.h"

namespace trimpot {

constinit const Bf16Kernels kAvx512Bf16Kernels{impl::unpack_columns_bf16<Avx512<true>>,
                                               impl::multiply_bf16<Avx512<true>>,
                                               impl::peak_bf16<Avx512<true>>};

}  // namespace trimpot
