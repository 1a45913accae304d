// The toy model of the tests of sequences: its layers are of several types.
#pragma once

#include "support/toy_model.h"

namespace trimpot {

inline ToyOptions session_options() {
  ToyOptions options;
  options.hidden = 64;
  options.heads = 12;
  options.kv_heads = 4;
  options.head_dim = 8;  // panels narrower than a vector
  options.vocabulary = 45;
  options.linear_types = {ElementType::kQ4_1, ElementType::kQ4_0, ElementType::kQ5_1,
                          ElementType::kQ8_0, ElementType::kQ5_0, ElementType::kF16,
                          ElementType::kQ4_1};
  return options;
}

}  // namespace trimpot
