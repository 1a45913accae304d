// What published models take under each method of the papers, computed from their shapes alone:
// storage, learnable parameters, training memory. docs/accounting.md states the formulas and
// compares the results with the papers' tables.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tune/fit.h"

namespace trimpot {

// Untied embedding and head, no biases, heads of hidden / heads columns.
struct PublishedShape {
  std::string_view name;
  std::int64_t hidden, feed_forward, layers, heads, kv_heads, vocabulary;
};
std::span<const PublishedShape> published_shapes();
Result<PublishedShape> find_shape(std::string_view name);  // error: the names that there are

enum class Learns { kEverything, kLowRank, kScales, kWeakColumns };
// What stands beside the codes of a group: an f16 scale and a zero-point as wide as a code (GPTQ
// files, PEQA), or an f16 scale and an f16 zero-point (QEFT's tables), or QLoRA's double
// quantization (8 bits per block of 64, an f32 per 256 blocks).
enum class GroupNumbers { kPackedZeros, kF16Zeros, kDoubleQuantized };

// A method of the papers: a storage and what learns, with the papers' settings as defaults.
struct ShapeMethod {
  std::string_view name;
  Learns learns;
  GroupNumbers group_numbers;
  std::span<const int> bits;  // possible ones; the first is the default; 16: f16, no codes
  int group_size;             // columns; -1: channel-wise
  int weak_columns;
  int lora_r;
  bool pools_inputs;                          // A works on sums over groups (QA-LoRA)
  std::span<const std::string_view> modules;  // empty: all
};
std::span<const ShapeMethod> shape_methods();  // full, lora, platypus, qlora, qalora, ...

struct ShapeOptions {
  std::string method = "peqa";
  int bits = 0;          // 0: the method's default; here and below
  int group_size = 0;    // -1: channel-wise
  int weak_columns = 0;  // k, per linear layer
  int lora_r = 0;
  std::vector<std::string> target_modules;  // what learns; empty: the method's default
  std::int64_t max_seq_length = 512;
  std::int64_t batch_size = 1;  // sequences at a time
};

// Peak memory of a training step. `items` add up to `total`, with every layer's activations
// computed again in the backward pass from the layer's input; without that it takes
// `total_without_checkpoints`.
struct TrainingMemory {
  std::vector<FitItem> items;
  std::int64_t total = 0;
  std::int64_t total_without_checkpoints = 0;
};

struct ShapeReport {
  ShapeOptions options;         // with the defaults that were taken
  std::int64_t parameters = 0;  // of the published model
  std::int64_t learnable = 0;
  std::vector<FitItem> storage;  // of the base; adds up to base_bytes
  std::int64_t base_bytes = 0;
  std::int64_t adapter_bytes = 0;  // what one task adds or replaces: f16 values
  // Gradients, moments and activations in 16 bits and no masters, as the papers' GPU runs have
  // them, and in f32 with f32 masters, as this program has them.
  TrainingMemory states_16, states_32;
};

// Errors: an unknown method or target module, bits or an option that the method does not have, as
// many weak columns as the narrowest layer has columns, a group wider than that, an r beyond it.
Result<ShapeReport> fit_shape(const PublishedShape& shape, const ShapeOptions& options);

// A row of PEQA's Table C.
struct TuningRow {
  std::string name;
  std::int64_t tuning_weights = 0;  // bytes while tuning: of the weights
  std::int64_t tuning_states = 0;   // and of gradients and optimizer, 5 per learnable parameter
  std::int64_t deployed = 0;        // bytes
  std::int64_t switched = 0;        // bytes that change from one task to another
  bool tunes_fast = false, runs_fast = false, switches_fast = false;
};
// Full fine-tuning, PEFT, PEFT+PTQ, PTQ+PEFT and PEQA. `options`: bits and group size of the
// quantized weights (default 4 bits channel-wise), LoRA's r and modules (default 4 on q and v).
Result<std::vector<TuningRow>> compare_tuning(const PublishedShape& shape,
                                              const ShapeOptions& options);

}  // namespace trimpot
