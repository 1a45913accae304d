// Adapters merged into a model's own weights, so that no path beside them is left.
#pragma once

#include <span>

#include "sys/thread_team.h"
#include "tune/adapter.h"

namespace trimpot {

// With f = the adapter's factor, per linear layer:
//   scales, zero-points   set as they are
//   weak columns          f16(old + sum f difference) for columns that the layer keeps in f16
//   (QEFT,
//                         section 5); dense weights: added at their channels
//   LoRA                  dense weights: W + sum f scale B A, rounded once to the weights' type
//   QA-LoRA               with D = sum f scale (B A)[row, group], the factor of the group's sum of
//                         inputs: offsets m' = f16(m + D); zeros z' = f16(z - D / s). A group of
//                         scale 0 with zeros is one number: with its codes all q, s' = f16(D) and
//                         z' = q - 1 give D.
// Errors: conflicts (check_conflicts); parts that this layer cannot hold, with the reason and the
// alternatives; values that leave the range of their type (the model is spoiled then).
Status merge_adapters(std::span<const Adapter> adapters, ThreadTeam& team, Model& model);

// The weak columns of `tuned` less those of `base`, as an adapter. Errors: files of other codes or
// weak columns; no difference.
Result<Adapter> weak_difference(const gguf::File& tuned_file, const Model& tuned,
                                const gguf::File& base_file, const Model& base);
// Whether such a difference has the shape of another model's layers. Errors: it has not.
Status check_fits(const Adapter& adapter, const Model& model);

}  // namespace trimpot
