// Sizes and constants of a model of the llama family, read from GGUF metadata.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/gguf/gguf.h"
#include "kernels/attention.h"

namespace trimpot {

struct ModelConfig {
  std::string architecture;
  std::string name;
  std::int64_t layers = 0;
  std::int64_t hidden = 0;        // width of the residual stream
  std::int64_t feed_forward = 0;  // inner width of the feed-forward block
  std::int64_t vocabulary = 0;
  std::int64_t context_length = 0;
  AttentionShape attention;
  std::int64_t rope_dims = 0;  // leading channels of a head that are rotated
  float rope_base = 10000.0f;
  float rope_frequency_scale = 1.0f;  // 1 / factor of linear scaling
  float rms_eps = 1e-5f;
};

// Errors name file and key: another architecture, missing keys, sizes that do not fit together,
// RoPE scaling other than none, linear and frequency tables.
Result<ModelConfig> read_config(const gguf::File& file);

}  // namespace trimpot
