// What inspect says of a model's linear layers: bits per weight, scales and all, and which input
// channels are weak columns.
#pragma once

#include <nlohmann/json.hpp>

#include "io/gguf/gguf.h"

namespace trimpot::cli {

// {"weights", "bytes", "bits_per_weight", "weak_columns": [{"layer", "tensor", "channels"}]}, with
// channels in the order of the original model, ascending, once per distinct input (q stands for k
// and v, gate for up). Null for models that this program cannot run.
nlohmann::ordered_json describe_linears(const gguf::File& file);

}  // namespace trimpot::cli
