// How the elements of a tensor are stored in a file. Block types hold `block_elements` consecutive
// elements of a row in `block_bytes` bytes; numbers are ggml's type ids, which GGUF files carry.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trimpot {

enum class ElementType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
};

struct ElementTypeInfo {
  ElementType type;
  std::string_view name;
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
  // Whether a tensor of this type can be a weight (Matrix::pack). The others are carried: their
  // size is known, so that files that hold them can be opened, described, compared and copied.
  bool computable;
};

// Q8_1 (id 9) is missing on purpose: ggml quantizes activations to it, no file holds it, and
// descriptions disagree on its size.
inline constexpr ElementTypeInfo kElementTypes[] = {
    {ElementType::kF32, "F32", 1, 4, true},
    {ElementType::kF16, "F16", 1, 2, true},
    {ElementType::kBF16, "BF16", 1, 2, true},
    {ElementType::kQ4_0, "Q4_0", 32, 18, true},
    {ElementType::kQ4_1, "Q4_1", 32, 20, true},
    {ElementType::kQ5_0, "Q5_0", 32, 22, true},
    {ElementType::kQ5_1, "Q5_1", 32, 24, true},
    {ElementType::kQ8_0, "Q8_0", 32, 34, true},
    {ElementType::kI8, "I8", 1, 1, false},
    {ElementType::kI16, "I16", 1, 2, false},
    {ElementType::kI32, "I32", 1, 4, false},
    {ElementType::kI64, "I64", 1, 8, false},
    {ElementType::kF64, "F64", 1, 8, false},
    {ElementType::kQ2_K, "Q2_K", 256, 84, false},
    {ElementType::kQ3_K, "Q3_K", 256, 110, false},
    {ElementType::kQ4_K, "Q4_K", 256, 144, false},
    {ElementType::kQ5_K, "Q5_K", 256, 176, false},
    {ElementType::kQ6_K, "Q6_K", 256, 210, false},
    {ElementType::kQ8_K, "Q8_K", 256, 292, false},
    {ElementType::kIQ1_S, "IQ1_S", 256, 50, false},
    {ElementType::kIQ1_M, "IQ1_M", 256, 56, false},
    {ElementType::kIQ2_XXS, "IQ2_XXS", 256, 66, false},
    {ElementType::kIQ2_XS, "IQ2_XS", 256, 74, false},
    {ElementType::kIQ2_S, "IQ2_S", 256, 82, false},
    {ElementType::kIQ3_XXS, "IQ3_XXS", 256, 98, false},
    {ElementType::kIQ3_S, "IQ3_S", 256, 110, false},
    {ElementType::kIQ4_NL, "IQ4_NL", 32, 18, false},
    {ElementType::kIQ4_XS, "IQ4_XS", 256, 136, false},
    {ElementType::kTQ1_0, "TQ1_0", 256, 54, false},
    {ElementType::kTQ2_0, "TQ2_0", 256, 66, false},
    {ElementType::kMXFP4, "MXFP4", 32, 17, false},
    {ElementType::kNVFP4, "NVFP4", 64, 36, false},
    {ElementType::kQ1_0, "Q1_0", 128, 18, false},
};

// Nothing for an id that this program does not know.
constexpr std::optional<ElementTypeInfo> element_type_info(std::uint32_t ggml_type_id) {
  for (const ElementTypeInfo& info : kElementTypes)
    if (static_cast<std::uint32_t>(info.type) == ggml_type_id) return info;
  return std::nullopt;
}

constexpr ElementTypeInfo element_type_info(ElementType type) {
  return *element_type_info(static_cast<std::uint32_t>(type));
}

// "F32, F16, ...": what weights can be, for messages.
inline std::string computable_type_names() {
  std::string names;
  for (const ElementTypeInfo& info : kElementTypes) {
    if (!info.computable) continue;
    if (!names.empty()) names += ", ";
    names += info.name;
  }
  return names;
}

}  // namespace trimpot
