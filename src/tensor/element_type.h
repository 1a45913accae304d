// How the elements of a tensor are stored in a file. Block types hold `block_elements` consecutive
// elements of a row in `block_bytes` bytes; numbers are ggml's type ids, which GGUF files carry.
#pragma once

#include <cstdint>
#include <optional>
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
  kBF16 = 30,
};

struct ElementTypeInfo {
  ElementType type;
  std::string_view name;
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};

inline constexpr ElementTypeInfo kElementTypes[] = {
    {ElementType::kF32, "F32", 1, 4},     {ElementType::kF16, "F16", 1, 2},
    {ElementType::kBF16, "BF16", 1, 2},   {ElementType::kQ4_0, "Q4_0", 32, 18},
    {ElementType::kQ4_1, "Q4_1", 32, 20}, {ElementType::kQ5_0, "Q5_0", 32, 22},
    {ElementType::kQ5_1, "Q5_1", 32, 24}, {ElementType::kQ8_0, "Q8_0", 32, 34},
};

// Nothing for an id that this program does not read.
constexpr std::optional<ElementTypeInfo> element_type_info(std::uint32_t ggml_type_id) {
  for (const ElementTypeInfo& info : kElementTypes)
    if (static_cast<std::uint32_t>(info.type) == ggml_type_id) return info;
  return std::nullopt;
}

constexpr ElementTypeInfo element_type_info(ElementType type) {
  return *element_type_info(static_cast<std::uint32_t>(type));
}

}  // namespace trimpot
