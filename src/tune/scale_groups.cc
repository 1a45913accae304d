#include "tune/scale_groups.h"

#include <cmath>

namespace trimpot {
namespace {

// z' = z + shift must fit an f16.
constexpr float kLargestZeroPoint = 32768.0f;

// Whether a group stays as it is; with a scale of 0 `zero` may be anything.
[[gnu::always_inline]] inline bool stays(float scale, float zero, bool learns_zero) {
  return (scale == 0.0f) | (learns_zero & (std::fabs(zero) > kLargestZeroPoint));
}

// Numbers of 16 rows as floats: the loops are vectors then.
struct Floats {
  alignas(64) float of[kTileRows];
};
[[gnu::always_inline]] inline Floats widen(const f16* from) {
  Floats out;
  for (int i = 0; i < kTileRows; ++i) out.of[i] = f16_to_f32(from[i]);
  return out;
}

[[gnu::always_inline]] inline Floats zero_points(const GroupLanes& base, const Floats& scales) {
  if (base.centres == nullptr) return {};
  Floats zeros = widen(base.centres);
  if (!base.is_zero)
    for (int i = 0; i < kTileRows; ++i) zeros.of[i] = -zeros.of[i] / scales.of[i];
  return zeros;
}

// to[i] = stays ? old[i] : now[i]; whether all are finite.
[[gnu::always_inline]] inline bool choose(const std::uint32_t* stay, const f16* old, const f16* now,
                                          f16* to) {
  std::uint32_t broken = 0;
  for (int i = 0; i < kTileRows; ++i) {
    const f16 kept = old[i], fresh = now[i];  // both loaded: no branch
    const f16 value = stay[i] != 0 ? kept : fresh;
    broken |= (value & 0x7c00u) == 0x7c00u ? 1u : 0u;
    to[i] = value;
  }
  return broken == 0;
}

}  // namespace

GroupLanes lanes_at(const GroupLanes& all, std::size_t index) {
  return {all.scales + index, all.centres != nullptr ? all.centres + index : nullptr, all.is_zero};
}

// Twice as fast with 8 lanes at once, and the same bits: products and sums are not contracted.
#if defined(__x86_64__)
[[gnu::target_clones("default", "avx2")]]
#endif
bool commit_lanes(const GroupLanes& base, const f16* scales, const f16* zeros, f16* to_scales,
                  f16* to_centres) {
  const Floats old_scales = widen(base.scales);
  const Floats old_zeros = zeros != nullptr ? zero_points(base, old_scales) : Floats{};
  alignas(64) std::uint32_t stay[kTileRows];
  for (int i = 0; i < kTileRows; ++i)
    stay[i] = stays(old_scales.of[i], old_zeros.of[i], zeros != nullptr) ? 1u : 0u;
  bool finite = choose(stay, base.scales, scales, to_scales);
  if (base.centres == nullptr) return finite;
  alignas(64) f16 centres[kTileRows];
  if (base.is_zero) {
    const f16* from = zeros != nullptr ? zeros : base.centres;
    for (int i = 0; i < kTileRows; ++i) centres[i] = from[i];
  } else if (zeros != nullptr) {
    const Floats now = widen(scales), z = widen(zeros);
    for (int i = 0; i < kTileRows; ++i) centres[i] = f32_to_f16(-now.of[i] * z.of[i]);
  } else {
    const Floats now = widen(scales), m = widen(base.centres);
    for (int i = 0; i < kTileRows; ++i)
      centres[i] = f32_to_f16(now.of[i] * (m.of[i] / old_scales.of[i]));
  }
  finite = choose(stay, base.centres, centres, to_centres) && finite;
  return finite;
}

void scale_lanes(const f16* base, const float* factors, f16* out) {
  const Floats scales = widen(base);
  for (int i = 0; i < kTileRows; ++i) out[i] = f32_to_f16(scales.of[i] * factors[i]);
}

void shift_lanes(const GroupLanes& base, const float* shifts, f16* out) {
  const Floats scales = widen(base.scales), zeros = zero_points(base, scales);
  for (int i = 0; i < kTileRows; ++i) {
    const f16 shifted = f32_to_f16(zeros.of[i] + shifts[i]);
    out[i] = stays(scales.of[i], zeros.of[i], true) ? f16{0} : shifted;
  }
}

void add_lane_gradients(const GroupLanes& base, const f16* scales, const f16* zeros,
                        const float* d_scale, const float* d_offset, float* d_theta,
                        float* d_zero) {
  const Floats old = widen(base.scales);
  const Floats old_zeros = zeros != nullptr ? zero_points(base, old) : Floats{};
  Floats d_m{};
  if (d_offset != nullptr)
    for (int i = 0; i < kTileRows; ++i) d_m.of[i] = d_offset[i];
  for (int i = 0; i < kTileRows; ++i)  // a group that stays gives nothing
    d_m.of[i] = stays(old.of[i], old_zeros.of[i], zeros != nullptr) ? 0.0f : d_m.of[i];
  if (d_theta != nullptr) {
    Floats offset = base.centres != nullptr ? widen(base.centres) : Floats{};  // m at theta = 1
    if (zeros != nullptr) offset = widen(zeros);
    if (zeros != nullptr || base.is_zero)
      for (int i = 0; i < kTileRows; ++i) offset.of[i] = -old.of[i] * offset.of[i];
    for (int i = 0; i < kTileRows; ++i) {
      const float d = d_scale[i];
      const float d_s = stays(old.of[i], old_zeros.of[i], zeros != nullptr) ? 0.0f : d;
      d_theta[i] += old.of[i] * d_s + offset.of[i] * d_m.of[i];
    }
  }
  if (d_zero != nullptr) {
    const Floats now = widen(scales);
    for (int i = 0; i < kTileRows; ++i) d_zero[i] -= now.of[i] * d_m.of[i];
  }
}

}  // namespace trimpot
