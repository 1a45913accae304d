// Bytes of what a tuning run holds of a model, from shapes: the parts of which fit.cc makes its
// estimate. Sums and products stop at a number that fits nowhere, since sizes come from a file.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "base/round.h"
#include "model/config.h"
#include "tune/tunable.h"

namespace trimpot::fit {

std::int64_t product(std::initializer_list<std::int64_t> factors);
std::int64_t sum(std::int64_t a, std::int64_t b);
// What an AlignedBuffer of so many bytes takes: whole 2 MiB pages when it is large, whole pages and
// malloc's own one when malloc maps it.
std::int64_t buffer(std::int64_t bytes);
std::int64_t floats(std::int64_t rows, std::int64_t columns);
// A dense Matrix whose elements have `number` bytes.
std::int64_t dense_bytes(std::int64_t rows, std::int64_t columns, std::int64_t number);

// A linear layer as the run has it in memory (format/linear.h).
struct RunLinear {
  StoredMatrix matrix;                  // columns: of the layer's input
  std::vector<std::int32_t> positions;  // of the weak columns
  std::int64_t codes_columns = 0;       // of the weights beside the weak columns
  std::int64_t weak_number = 2;         // bytes of a weak column's number
  bool weight_gathered = false, weak_gathered = false;
};

// What the estimate needs of a file.
struct Shapes {
  ModelConfig config;
  StoredMatrix embedding;
  std::optional<StoredMatrix> head;
  bool head_gathered = false;
  std::vector<RunLinear> linears;  // by Model::linear index
  std::int64_t norm_values = 0;
  std::int64_t header_bytes = 0;
  std::int64_t largest_tensor = 0;      // bytes in the file
  std::int64_t tokens = 0, merges = 0;  // of the tokenizer
};

// Errors: a model that this program cannot run (file and key or tensor).
Result<Shapes> read_shapes(const gguf::File& file);

// The layers as the method makes them: dense for full tuning, rounded anew for QAT, with columns of
// differences for QEFT on files without weak columns.
void prepare_linears(const SizeOptions& tuning, std::vector<RunLinear>& linears);

// A model's matrices and norms.
std::int64_t weight_bytes(const Shapes& shapes, const std::vector<RunLinear>& linears);
std::int64_t tokenizer_bytes(const Shapes& shapes);

// One form of a layer input (Activations::Form): columns that are gathered, and columns that are
// rounded to int8 with scale, sum and scaled sum per 32 columns.
struct Form {
  std::int64_t gathered = 0, rounded = 0, weak = 0;
};
std::int64_t form_bytes(const Form& form, std::int64_t rows, bool tiled);
// LayerActivations and RopeTable; `tiled`: as kernels of tiles have them (Activations::Form).
std::int64_t forward_bytes(const ModelConfig& config, const std::vector<RunLinear>& linears,
                           Precision precision, std::int64_t rows, bool tiled);

}  // namespace trimpot::fit
