// What there is to tune in a file, from names and shapes alone: nothing is packed, and files that
// this program cannot run can be looked at too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"
#include "tune/methods.h"

namespace trimpot {

// A matrix as a file stores it (model/stored.h).
struct StoredMatrix {
  std::int64_t rows = 0;
  std::int64_t columns = 0;  // weak ones included
  std::int64_t weak = 0;
  ElementType type{};              // of an ordinary tensor, blocks included; I8: grouped codes
  int bits = 0;                    // of a code; 0: dense numbers
  std::int64_t groups = 0;         // per row
  std::int64_t group_columns = 0;  // the last group may have fewer
  bool zeros = false, offsets = false, nf4 = false;

  bool quantized() const { return bits > 0; }
  bool has_shifts() const { return zeros || offsets; }
};
// `columns`: as the model's sizes call for; 0: those of an ordinary tensor. `sizes_prefix` as for
// read_matrix(). Errors: missing, a type that cannot be computed with, a shape that does not fit.
Result<StoredMatrix> stored_matrix(const gguf::File& file, const std::string& name,
                                   std::int64_t columns, const std::string& sizes_prefix);

// A linear layer of a file, of one of the kinds of kLinearKinds, that this program could compute
// with.
struct TunableLinear {
  std::string name;    // "blk.3.ffn_down"
  std::string module;  // as in kLinearKinds
  StoredMatrix matrix;
};
std::vector<TunableLinear> tunable_linears(const gguf::File& file);

// A method with what decides its size.
struct SizeOptions {
  std::string method = "peqa";
  ScaleGranularity granularity = ScaleGranularity::kGroup;
  std::vector<std::string> target_modules;  // empty: all
  std::int64_t rank = 64;
  std::int64_t weak_columns = 0;  // qeft: added to files without weak columns
  Scheme scheme;                  // qat
};
// With the preset's rank and target modules (TuningPreset).
Result<SizeOptions> preset_sizes(const std::string& method,
                                 const std::vector<TunableLinear>& linears);
// The preset for the model that these layers make up. `weak_columns`: those of the run, 0: the
// file's.
Result<TuningPreset> preset_of(const std::string& method, const std::vector<TunableLinear>& linears,
                               std::int64_t weak_columns);

// What a method learns of a file, and how large its adapter is.
struct TuningSize {
  std::size_t trainable = 0;
  std::size_t padded = 0;         // elements of the optimizer's arrays
  std::size_t base_values = 0;    // 16-bit values of the base that are kept
  std::size_t tensors = 0;        // of the adapter; 0: the result is a whole model
  std::size_t adapter_bytes = 0;  // its values
};
// Errors, as make_method() has them: what the method cannot do with this file.
Result<TuningSize> tuning_size(const std::vector<TunableLinear>& linears,
                               const SizeOptions& options);

}  // namespace trimpot
