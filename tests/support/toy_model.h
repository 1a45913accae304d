// Small GGUF models of architecture llama with random weights, complete with a byte-level tokenizer
// and a chat template, so that whole commands run on them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"
#include "model/weights.h"
#include "tensor/element_type.h"

namespace trimpot {

// Ids of the toy vocabulary: three control tokens, then the 256 bytes, then unused ones.
inline constexpr std::int32_t kToyEndOfText = 0, kToyTurnStart = 1, kToyTurnEnd = 2,
                              kToyFirstByte = 3;
inline constexpr std::int64_t kToyVocabulary = 259;

struct ToyOptions {
  std::int64_t layers = 2;
  std::int64_t hidden = 64;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t head_dim = 16;
  std::int64_t feed_forward = 96;
  std::int64_t vocabulary = kToyVocabulary;  // a smaller one comes without tokenizer
  std::int64_t context = 256;
  std::int64_t rope_dims = 0;  // 0: the whole head
  float rope_base = 10000.0f;
  bool rope_freqs = false;
  // q, k, v, o, gate, up, down; every layer the same.
  std::array<ElementType, 7> linear_types = all_linears(ElementType::kQ4_1);
  ElementType embedding = ElementType::kQ8_0;
  std::optional<ElementType> head = std::nullopt;  // nothing: tied to the embedding
  float gain = 1.0f;  // on the deviation 1 / sqrt(columns) of the linear weights
  std::uint64_t seed = 1;

  static std::array<ElementType, 7> all_linears(ElementType type) {
    std::array<ElementType, 7> types;
    types.fill(type);
    return types;
  }
};

struct ToyTensor {
  std::string name;
  ElementType type;
  std::vector<std::uint64_t> shape;  // columns first
  std::vector<std::byte> data;
};

// A model file before it is written; tests of errors change it.
struct ToyFile {
  gguf::Writer metadata;
  std::vector<ToyTensor> tensors;

  ToyTensor& tensor(std::string_view name);  // must exist
  void remove(std::string_view name);
  Status write(const std::string& path) const;
};

// `without`: a metadata key to leave out.
ToyFile toy_file(const ToyOptions& options, std::string_view without = {});

// toy_file() written, read and packed.
struct ToyModel {
  gguf::File file;
  std::unique_ptr<Model> model;
};
Result<ToyModel> load_toy(const ToyFile& toy, const std::string& path);

}  // namespace trimpot
