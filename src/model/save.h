// Writing matrices, linear layers and whole models to files (stored.h has the format).
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "format/linear.h"
#include "io/gguf/stream_writer.h"
#include "model/weights.h"

namespace trimpot {

// What the tensors of one stored matrix look like before their contents are known.
struct StoredShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;  // all of them, weak ones included
  std::int64_t weak = 0;
  bool grouped = false;  // else an ordinary tensor of `type`
  ElementType type = ElementType::kF16;
  int bits = 0;
  std::int64_t groups = 0;  // per row
  bool zeros = false, offsets = false;
  bool nf4 = false;
};

// Declares the tensors of <name>.
void declare_stored(gguf::StreamWriter& out, const std::string& name, const StoredShape& shape);
// Their contents. `weak`: f16 [rows][k] row after row, `weak_columns` as in the file.
Status write_grouped(gguf::StreamWriter& out, const std::string& name, const GroupedCodes& codes);
Status write_weak(gguf::StreamWriter& out, const std::string& name, std::span<const f16> weak,
                  std::span<const std::int32_t> weak_columns);
// An ordinary tensor of floats or Q8_0 from row `first_row` on; `values` are whole rows.
Status write_rows(gguf::StreamWriter& out, const std::string& tensor, ElementType type,
                  std::int64_t columns, std::int64_t first_row, std::span<const float> values);
// Bytes of a tensor of `type` for whole rows. Types: f32, f16, bf16, Q8_0.
std::vector<std::byte> encode_rows(ElementType type, std::span<const float> values);

// Copies keys of a file that is read, with general.architecture set for a file of ours
// (`own`) or back to the real one.
Status copy_metadata(const gguf::File& from, bool own, gguf::StreamWriter& out);

// A copy of `base` in which the listed linear layers are written as they are in the model: dense
// ones as tensors of `dense_type`, grouped ones (fake quantization's result) as `sizes` says.
// Everything else is copied byte by byte. Errors: layers with weak columns or a low-rank path;
// whatever writing says.
Status save_model(const gguf::File& base, const Model& model, const std::vector<bool>& changed,
                  ElementType dense_type, const std::string& out_path);

}  // namespace trimpot
