// PEQA: the integer codes are frozen, the scales of their groups are learned (and, in the variants,
// the zero-points). With w = s (q - z):
//   peqa        learns s at fixed z: in formats with offsets, m = -s z moves with s
//   peqa-zero   learns z at fixed s: only m moves
//   peqa-both   learns both
// Scales differ in size by orders of magnitude and Adam's steps do not know it. So the master value
// of a scale is the factor theta on its value in the file (1 at the start), and one learning rate
// fits every group; the master of a zero-point is its shift in codes (0 at the start).
//
// What is committed follows from the rounded values and the base file alone, so that an adapter
// with these values gives the same bits as the tuned file:
//   s' = f16(s theta),  z' = f16(z + shift),  m' = f16(s' (m / s))   or   f16(-s' z')
// (formats that store zeros instead of offsets keep z, or store z' itself).
// Groups whose scale is zero stay as they are, and so do, where zero-points are learned, those
// whose z is beyond +-32768: f16 would not hold it.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "tune/parameters.h"

namespace trimpot {

enum class ScaleMethod { kScales, kZeros, kBoth };
enum class ScaleGranularity { kGroup, kRow };  // kRow: one factor for all groups of an output row

struct ScaleOptions {
  ScaleMethod method = ScaleMethod::kScales;
  ScaleGranularity granularity = ScaleGranularity::kGroup;
  std::vector<std::string> target_modules;  // of kLinearKinds; empty: all
};

// Errors: a name that is none of kLinearKinds' modules.
Status check_target_modules(const std::vector<std::string>& modules);

// Errors: no quantized linear layer, none with offsets for peqa-zero or peqa-both, a target module
// that does not exist.
Result<std::unique_ptr<TuningMethod>> make_scale_method(Model& model, const ScaleOptions& options);

// Whether this linear layer's offsets change under the method.
bool learns_zeros(ScaleMethod method, const Matrix& matrix);

// The rule above for one group. `zero` is the learned z', if zero-points are learned.
struct GroupValues {
  f16 scale;
  f16 centre;    // m, or z where the format stores zeros; unused where it has neither
  bool is_zero;  // centre is z
};
GroupValues committed_group(GroupValues base, f16 scale, std::optional<f16> zero);
// z of a group, stored or as -m / s in f32; 0 where the scale is zero.
float zero_point(GroupValues base);
// A group of a matrix as it is now, and back.
GroupValues group_values(const Matrix& matrix, std::size_t index);
void set_group_values(Matrix& matrix, std::size_t index, GroupValues values);

}  // namespace trimpot
