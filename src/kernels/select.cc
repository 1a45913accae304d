#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "kernels/isa.h"
#include "kernels/kernels.h"

namespace trimpot {

#if defined(__x86_64__)
namespace {

// clang 14's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace
#endif

std::vector<IsaInfo> list_isas() {
  std::vector<IsaInfo> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#ifdef TRIMPOT_EMULATE_AVX512  // tests/kernels/emulated
  const bool avx512 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
  isas.push_back({&kAvx512Kernels, kAvx512Kernels.name, "AVX-512 F, BW, DQ, VL, VNNI", avx512});
  isas.push_back({&kAvx2Kernels, kAvx2Kernels.name, "AVX2, FMA, F16C", avx2});
#endif
  isas.push_back({&kScalarKernels, kScalarKernels.name, "nothing", true});
  return isas;
}

Result<const Kernels*> kernels_by_name(std::string_view name) {
  std::string usable;
  for (const IsaInfo& isa : list_isas()) {
    if (isa.name == name) {
      if (isa.usable) return isa.kernels;
      return fail("this CPU cannot run the {} kernels, which need {}", name, isa.needs);
    }
    if (isa.usable) usable += (usable.empty() ? "" : ", ") + isa.name;
  }
  return fail("there are no kernels called \"{}\"; this CPU can run: {}", name, usable);
}

Result<const Kernels*> select_kernels() {
  const char* forced = std::getenv("TRIMPOT_ISA");
  if (forced != nullptr && *forced != '\0') {
    auto kernels = kernels_by_name(forced);
    if (!kernels) return fail("TRIMPOT_ISA: {}", kernels.error().message);
    return kernels;
  }
  for (const IsaInfo& isa : list_isas())
    if (isa.usable) return isa.kernels;
  return &kScalarKernels;
}

}  // namespace trimpot
