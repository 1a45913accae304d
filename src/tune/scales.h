// PEQA: the integer codes are frozen, the scales of their groups are learned (and, in the variants,
// the zero-points). With w = s (q - z):
//   peqa        learns s at fixed z: in formats with offsets, m = -s z moves with s
//   peqa-zero   learns z at fixed s: only m moves
//   peqa-both   learns both
// Scales differ in size by orders of magnitude and Adam's steps do not know it. So the master value
// of a scale is the factor theta on its value in the file (1 at the start), and one learning rate
// fits every group; the master of a zero-point is its shift in codes (0 at the start).
//
// What is committed follows from the rounded values s' = f16(s theta), z' = f16(z + shift) and the
// base file alone (tune/scale_groups.h), so that an adapter with these values gives the same bits
// as the tuned file.
#pragma once

#include <memory>
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

}  // namespace trimpot
