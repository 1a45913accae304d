// Adapters: the learned part of a model alone, tied to its base by a fingerprint.
// A safetensors file with, per tuned linear layer, some of
//   <gguf tensor name>.scale         F16 [rows, groups]   final scales
//   <gguf tensor name>.zero          F16 [rows, groups]   final zero-points
//   <gguf tensor name>.weak          F32 [rows, k]        what is added to k columns, and
//   <gguf tensor name>.weak_columns  I32 [k]              their input channels
//   <gguf tensor name>.lora_a        F32 [rank, columns]  y += scale B (A x); of pooled adapters
//   <gguf tensor name>.lora_b        F32 [rows, rank]     (QA-LoRA) A has a column per group
// Rows and channels are in the original order, whatever the order of the base; groups are those of
// the base's codes. Metadata: format "trimpot-adapter", version, method, options (JSON), base_codes
// and base_weights (XXH3-128, hex); with low-rank pairs rank, alpha, scale (alpha / rank, or what
// rank stabilization makes of it) and pool (columns per group, 0: none).
//   base_codes    names, shapes, types and code bytes of the quantized linear layers; of our own
//                 files also weak columns' channels and the order of reordered axes
//   base_weights  the same of all tensors, every byte
// A scale set needs the first to match; what adds to the weights needs both.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/half.h"
#include "io/gguf/gguf.h"
#include "model/overlay.h"
#include "tune/parameters.h"

namespace trimpot {

class ThreadTeam;

struct Fingerprint {
  std::string codes;
  std::string weights;
};
// Reads the whole file once (letting go of its pages).
Fingerprint fingerprint(const gguf::File& file);

using AdapterMetadata = std::map<std::string, std::string>;
// rank, alpha, scale and pool of a model's low-rank paths; nothing where it has none.
AdapterMetadata low_rank_metadata(const Model& model, double alpha);

Status write_adapter(const std::string& path, const Fingerprint& base, const std::string& method,
                     const std::string& options_json, const std::vector<AdapterTensor>& tensors,
                     const AdapterMetadata& more = {});

// What an adapter has for one linear layer, as in the file; empty vectors: nothing.
struct AdapterPart {
  std::vector<f16> scale, zero;            // [rows, groups]
  std::vector<float> weak;                 // [rows, k]
  std::vector<std::int32_t> weak_columns;  // [k]
  std::vector<float> lora_a, lora_b;       // [rank, inputs], [rows, rank]
  std::int64_t rank = 0;
};

struct Adapter {
  std::string path;
  std::string method;
  float low_rank_scale = 0;
  bool pooled = false;              // A sees sums over the base's groups
  float factor = 1;                 // how much of it is wanted: on differences and low-rank paths
  std::vector<AdapterPart> layers;  // by Model::linear index

  std::size_t bytes() const;  // in memory: what its file holds
};

// The base that an adapter is to be used with. An empty fingerprint: any that it fits, which only
// differences of columns and low-rank pairs over all columns can be added to.
struct AdapterBase {
  std::string path;
  Fingerprint fingerprint;
};

// Errors: not an adapter of this program, one that belongs to another base, tensors that do not fit
// the model, numbers that are not finite, channels that repeat. The threads of `team` share the
// tensors; null: this thread reads them all.
Result<Adapter> read_adapter(const std::string& path, const AdapterBase& base, const Model& model,
                             ThreadTeam* team = nullptr);

// Two adapters that hold the same scales or zero-points; unless `low_rank_adds`, two low-rank paths
// of one layer. Differences of weak columns may always be added. The error names the adapters and
// tensors.
Status check_conflicts(std::span<const Adapter> adapters, bool low_rank_adds);

// What linear layers compute with under these adapters, beside the model as it is (Turn::overlay).
// The same as apply_adapters(), bit for bit, with the same errors. The threads of `team` share the
// layers; null: this thread makes them all.
Result<Overlay> make_overlay(std::span<const Adapter> adapters, const Model& model,
                             ThreadTeam* team = nullptr);

// One adapter read and made an overlay.
Result<Overlay> load_overlay(const std::string& path, const AdapterBase& base, const Model& model,
                             ThreadTeam* team = nullptr);

// Puts adapters into a loaded model, so that it computes what the tuned one did, bit for bit:
// scales and zero-points as they are; weak columns that the layer has become f16(old + sum of
// differences), exact where differences are below 1, for both are multiples of 2^-24; over a layer
// without weak columns the differences become some in f32, beside its weights; low-rank pairs
// become the layers' paths. Errors: conflicts; a layer that has other weak columns; scale sets with
// a factor; results that are not finite.
Status apply_adapters(std::span<const Adapter> adapters, Model& model);

// One adapter read and applied.
Status apply_adapter(const std::string& path, const gguf::File& base, Model& model,
                     ThreadTeam* team = nullptr);

// The model's linear layers as a copy of `base`: same header, same size; only bytes of scales,
// zeros, offsets, weak columns and dense weights of linear layers can differ. Errors: what the
// file's layout has no place for (low-rank paths, differences over a layer without weak columns,
// other scales in NF4, weights in another type); as write_patched_copy.
Status export_gguf(const gguf::File& base, const Model& model, const std::string& out_path);

}  // namespace trimpot
