#include "quantize/recipe.h"

#include <algorithm>

namespace trimpot {

Result<Recipe> recipe_of(const std::string& method) {
  Recipe recipe;
  recipe.method = method;
  if (method == "rtn" || method == "optq") {
    recipe.scheme.group_size = 128;
    if (method == "optq") recipe.reconstruct = Reconstruct::kOptq;
  } else if (method == "owq" || method == "qeft") {
    recipe.search = Search::kGrid;
    recipe.reconstruct = Reconstruct::kOptq;
    recipe.weak_columns = 16;
    recipe.selection = method == "owq" ? Selection::kPerLayer : Selection::kGlobal;
    recipe.scheme.group_size = method == "owq" ? kWholeRow : 128;
    recipe.reorder = method == "qeft";
  } else if (method == "int8") {
    recipe.scheme = kInt8Scheme;
  } else if (method == "nf4") {
    recipe.target = Target::kNf4;
  } else if (method == "f16" || method == "bf16" || method == "f32") {
    recipe.target = Target::kDense;
    recipe.dense_type = method == "f16"    ? ElementType::kF16
                        : method == "bf16" ? ElementType::kBF16
                                           : ElementType::kF32;
  } else {
    return fail(
        "method \"{}\" is not known; rtn, optq, owq, qeft, nf4, int8, f16, bf16 and f32 are",
        method);
  }
  return recipe;
}

Status check_recipe(const Recipe& recipe, std::int64_t narrowest, std::int64_t widest) {
  if (recipe.target != Target::kCodes) return {};
  TRIMPOT_TRY_VOID(check_scheme(recipe.scheme, 1, narrowest));
  // 128 is the default, for models that are narrower too.
  constexpr std::int64_t kDefaultGroup = 128;
  if (recipe.scheme.group_size > std::max(widest, kDefaultGroup))
    return fail(
        "--group-size {}: the widest layer has {} input columns; -1 makes one group of each row",
        recipe.scheme.group_size, widest);
  if (recipe.selection == Selection::kNone) return {};
  if (recipe.weak_columns < 1)
    return fail("--weak-columns {}: method {} keeps at least 1", recipe.weak_columns,
                recipe.method);
  if (recipe.weak_columns >= narrowest)
    return fail(
        "--weak-columns {}: the narrowest layer has only {} input columns, and some must "
        "be quantized",
        recipe.weak_columns, narrowest);
  if (!(recipe.damping >= 0 && recipe.damping < 100))
    return fail(
        "--damping {}: a fraction of the Hessian's mean diagonal was expected, 0.01 for "
        "example",
        recipe.damping);
  return {};
}

}  // namespace trimpot
