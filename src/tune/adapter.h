// Adapters: the learned part of a model alone, tied to its base by a fingerprint of the codes.
// A safetensors file with, per tuned linear layer,
//   <gguf tensor name>.scale   F16 [rows, groups]   final scales
//   <gguf tensor name>.zero    F16 [rows, groups]   final zero-points
// in the file's row and channel order, and as metadata: format "trimpot-adapter", version, method,
// options (JSON), base_codes and base_weights (XXH3-128, hex).
//   base_codes    names, shapes, types and code bytes of the quantized linear layers
//   base_weights  the same of all tensors, every byte
// A scale set needs the first to match; methods that add to the weights need both.
#pragma once

#include <map>
#include <string>

#include "io/gguf/gguf.h"
#include "tune/parameters.h"

namespace trimpot {

struct Fingerprint {
  std::string codes;
  std::string weights;
};
// Reads the whole file once (letting go of its pages).
Fingerprint fingerprint(const gguf::File& file);

Status write_adapter(const std::string& path, const Fingerprint& base, const std::string& method,
                     const std::string& options_json, const std::vector<AdapterTensor>& tensors);

// Puts an adapter into a loaded model. Errors: not an adapter of this program, one that belongs to
// another base, tensors that do not fit or hold values that are not finite.
Status apply_adapter(const std::string& path, const gguf::File& base, Model& model);

// The model's linear layers as a copy of `base` with other scales and offsets: same header, same
// size, only scale and offset bytes differ. Errors: as write_patched_copy.
Status export_gguf(const gguf::File& base, const Model& model, const std::string& out_path);

}  // namespace trimpot
