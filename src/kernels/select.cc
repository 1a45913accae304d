#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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

bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 4) != 0;
}

// Linux gives tiles to a process that asks for them, and to the threads that it starts then.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25,
                     kAll = kBf16 | kTile | kInt8;
  if ((edx & kAll) != kAll) return false;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((eax & 1u << 5) == 0) return false;  // AVX512_BF16
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Put together here, by code that any CPU can run.
const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels k = kAvx512Kernels;
    k.name = kAmxParts.name;
    k.tiled = kAmxParts.tiled;
    k.quantize = kAmxParts.quantize;
    k.linear_int8 = kAmxParts.linear_int8;
    k.weak_for_many = false;  // tiles take none: many tokens with them would do without tiles
    k.rounded = kAmxBf16Parts.rounded;
    k.round_row = kAmxBf16Parts.round_row;
    k.unpack_columns_rounded = kAmxBf16Parts.unpack_columns_rounded;
    k.unpack_columns_bytes = nullptr;  // tiles of bf16 are faster, and closer
    k.multiply_bytes = nullptr;
    k.round_row_bytes = nullptr;
    k.unpack_rows_rounded = kAmxBf16Parts.unpack_rows_rounded;
    k.unpack_weak_rounded = kAmxBf16Parts.unpack_weak_rounded;
    k.multiply_rounded = kAmxBf16Parts.multiply_rounded;
    k.multiply_panels = kAmxBf16Parts.multiply_panels;
    k.panel_rows = kAmxBf16Parts.panel_rows;
    k.round_pairs = kAmxBf16Parts.round_pairs;
    k.round_columns = kAmxBf16Parts.round_columns;
    k.peak_int8 = kAmxParts.peak_int8;
    k.peak_rounded = kAmxParts.peak_rounded;
    return k;
  }();
  return table;
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
#ifdef TRIMPOT_EMULATE_AVX_VNNI  // tests/kernels/emulated_vnni
  const bool avx_vnni = avx2;
#else
  const bool avx_vnni = avx2 && has_avx_vnni();
#endif
#ifdef TRIMPOT_EMULATE_AMX  // tests/kernels/emulated
  const bool amx = avx512;
#else
  const bool amx = avx512 && has_amx();
#endif
  isas.push_back({&amx_kernels(), amx_kernels().name,
                  "AMX (tiles, int8, bf16), AVX-512 F, BW, DQ, VL, VNNI, BF16", amx});
  isas.push_back({&kAvx512Kernels, kAvx512Kernels.name, "AVX-512 F, BW, DQ, VL, VNNI", avx512});
  isas.push_back({&kAvxVnniKernels, kAvxVnniKernels.name, "AVX2, FMA, F16C, AVX-VNNI", avx_vnni});
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
