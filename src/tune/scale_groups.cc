#include "tune/scale_groups.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

// Lanes whose floats stay in the first-level cache.
constexpr std::size_t kPiece = 16 * kTileRows;
struct Piece {
  alignas(64) float old_scales[kPiece], old_centres[kPiece], scales[kPiece], zeros[kPiece];
  alignas(64) float centres[kPiece];
  alignas(64) f16 fresh[kPiece];
  alignas(64) std::uint16_t stay[kPiece];  // all bits or none
};

using Eight [[gnu::vector_size(16)]] = std::uint16_t;
Eight load(const std::uint16_t* from) {
  Eight numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

// Who stays, and where there are centres and they are offsets m, the new ones. Twice as fast with 8
// lanes at once, and the same bits: products and sums are not contracted.
#if defined(__x86_64__)
[[gnu::target_clones("default", "avx2")]]
#endif
void decide(Piece& piece, std::size_t count, bool has_centres, bool is_zero, bool learns_zeros) {
  const bool has_offsets = has_centres && !is_zero;
  for (std::size_t at = 0; at < count; at += kTileRows) {
    const float *s = piece.old_scales + at, *m = piece.old_centres + at;
    std::uint16_t* stay = piece.stay + at;
    if (!learns_zeros || !has_centres)
      for (int i = 0; i < kTileRows; ++i) stay[i] = stays(s[i], 0.0f, false) ? 0xffff : 0;
    else if (is_zero)
      for (int i = 0; i < kTileRows; ++i) stay[i] = stays(s[i], m[i], true) ? 0xffff : 0;
    else
      for (int i = 0; i < kTileRows; ++i) stay[i] = stays(s[i], -m[i] / s[i], true) ? 0xffff : 0;
    const float *now = piece.scales + at, *z = piece.zeros + at;
    float* centres = piece.centres + at;
    if (has_offsets && learns_zeros)
      for (int i = 0; i < kTileRows; ++i) centres[i] = -now[i] * z[i];
    else if (has_offsets)
      for (int i = 0; i < kTileRows; ++i) centres[i] = now[i] * (m[i] / s[i]);
  }
}

// to[i] = stay[i] ? old[i] : now[i]; whether all are finite.
bool choose(const std::uint16_t* stay, std::size_t count, const f16* old, const f16* now, f16* to) {
  Eight broken{};
  for (std::size_t at = 0; at < count; at += 8) {
    const Eight stays = load(stay + at);
    const Eight value = (stays & load(old + at)) | (~stays & load(now + at));
    broken |= (value & 0x7c00u) == 0x7c00u;
    std::memcpy(to + at, &value, sizeof value);
  }
  std::uint64_t any[2];
  std::memcpy(any, &broken, sizeof any);
  return (any[0] | any[1]) == 0;
}

bool commit_piece(const GroupLanes& base, std::size_t count, const f16* scales, const f16* zeros,
                  f16* to_scales, f16* to_centres) {
  Piece piece;
  const Kernels& k = converters();
  const auto lanes = static_cast<std::int64_t>(count);
  const bool learns_zeros = zeros != nullptr, has_centres = base.centres != nullptr;
  k.widen_f16(base.scales, lanes, piece.old_scales);
  if (has_centres) k.widen_f16(base.centres, lanes, piece.old_centres);
  if (has_centres && !base.is_zero) {
    k.widen_f16(scales, lanes, piece.scales);
    if (learns_zeros) k.widen_f16(zeros, lanes, piece.zeros);
  }
  decide(piece, count, has_centres, base.is_zero, learns_zeros);
  const bool finite = choose(piece.stay, count, base.scales, scales, to_scales);
  if (!has_centres) return finite;
  const f16* fresh = learns_zeros ? zeros : base.centres;  // where they are zeros
  if (!base.is_zero) {
    k.narrow_f16(piece.centres, lanes, piece.fresh);
    fresh = piece.fresh;
  }
  return choose(piece.stay, count, base.centres, fresh, to_centres) && finite;
}

// rows[i] is row i in 8 groups: afterwards group i in 8 rows. Each of three rounds brings what is
// half of them apart side by side.
void transpose(Eight (&rows)[8]) {
  for (int round = 0; round < 3; ++round) {
    Eight next[8];
    for (int i = 0; i < 4; ++i) {
      next[2 * i] = __builtin_shufflevector(rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::copy_n(next, 8, rows);
  }
}

}  // namespace

const Kernels& converters() {
  static const Kernels& fastest =
      **select_kernels().or_else([](const Error&) { return kernels_by_name("scalar"); });
  return fastest;
}

GroupLanes lanes_at(const GroupLanes& all, std::size_t index) {
  return {all.scales + index, all.centres != nullptr ? all.centres + index : nullptr, all.is_zero};
}

bool commit_lanes(const GroupLanes& base, std::size_t count, const f16* scales, const f16* zeros,
                  f16* to_scales, f16* to_centres) {
  const auto plus = [](auto* from, std::size_t at) { return from == nullptr ? from : from + at; };
  bool finite = true;
  for (std::size_t at = 0; at < count; at += kPiece)
    finite = commit_piece(lanes_at(base, at), std::min(kPiece, count - at), scales + at,
                          plus(zeros, at), to_scales + at, plus(to_centres, at)) &&
             finite;
  return finite;
}

void pack_groups(const f16* const (&row)[kTileRows], std::int64_t groups, f16* to) {
  std::int64_t group = 0;
  for (; group + 8 <= groups; group += 8)
    for (int half = 0; half < kTileRows; half += 8) {
      Eight values[8] = {};
      for (int i = 0; i < 8; ++i)
        if (row[half + i] != nullptr) values[i] = load(row[half + i] + group);
      transpose(values);
      for (int i = 0; i < 8; ++i) std::memcpy(to + (group + i) * kTileRows + half, &values[i], 16);
    }
  for (; group < groups; ++group)
    for (int i = 0; i < kTileRows; ++i)
      to[group * kTileRows + i] = row[i] != nullptr ? row[i][group] : f16{0};
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
