// How a model is quantized: a method of the papers is a choice of three steps.
//   which columns stay in f16     none | per layer (OWQ, eq. 3) | one choice for the residual axis
//                                 (QEFT, algorithm 1), the others per layer
//   a group's parameters          min-max | search of clipping
//   how codes are found           round to nearest | OPTQ
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "quantize/scheme.h"
#include "tensor/element_type.h"

namespace trimpot {

enum class Target : std::uint8_t { kCodes, kNf4, kDense };
enum class Selection : std::uint8_t { kNone, kPerLayer, kGlobal };
enum class Search : std::uint8_t { kMinMax, kGrid };
enum class Reconstruct : std::uint8_t { kRound, kOptq };

struct Recipe {
  std::string method;
  Target target = Target::kCodes;
  ElementType dense_type = ElementType::kF16;  // kDense
  Scheme scheme;
  Selection selection = Selection::kNone;
  Search search = Search::kMinMax;
  Reconstruct reconstruct = Reconstruct::kRound;
  std::int64_t weak_columns = 0;  // k
  // Reorder the whole model so that weak columns are the last ones (offline global reordering);
  // otherwise their inputs are gathered at run time.
  bool reorder = false;
  bool act_order = false;
  double damping = 0.01;

  bool needs_hessian() const { return reconstruct == Reconstruct::kOptq; }
  bool needs_calibration() const { return needs_hessian() || selection != Selection::kNone; }
};

// The recipe of rtn, optq, owq, qeft, nf4, int8, f16, bf16 or f32 with the papers' defaults: 4
// bits; owq channel-wise, qeft in groups of 128, both with 16 weak columns. Errors: another name.
Result<Recipe> recipe_of(const std::string& method);

// Errors: bits, group size or weak columns that fit no matrix between these widths.
Status check_recipe(const Recipe& recipe, std::int64_t narrowest, std::int64_t widest);

}  // namespace trimpot
