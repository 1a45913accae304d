#include "io/gguf/layout.h"

#include <fmt/ranges.h>

#include <limits>

namespace trimpot::gguf {

std::size_t value_width(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
      return 8;
    case ValueType::kString:
    case ValueType::kArray:
      break;
  }
  return 0;
}

bool is_known_value_type(std::uint32_t type) {
  return type <= static_cast<std::uint32_t>(ValueType::kF64);
}

std::string_view value_type_name(ValueType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  const auto id = static_cast<std::uint32_t>(type);
  return is_known_value_type(id) ? kNames[id] : "unknown";
}

std::string tensor_type_label(std::uint32_t type_id) {
  if (const auto info = element_type_info(type_id)) return std::string(info->name);
  // Those of ggml.h that this program may not read, so that a message can call them by their name.
  constexpr struct {
    std::uint32_t id;
    std::string_view name;
  } kOthers[] = {{9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},    {12, "Q4_K"},   {13, "Q5_K"},
                 {14, "Q6_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
                 {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},
                 {24, "I8"},    {25, "I16"},    {26, "I32"},     {27, "I64"},    {28, "F64"},
                 {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"}};
  for (const auto& other : kOthers)
    if (other.id == type_id) return fmt::format("{} (id {})", other.name, type_id);
  return fmt::format("with id {}", type_id);
}

std::string readable_tensor_types() {
  std::string names;
  for (const ElementTypeInfo& info : kElementTypes)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  return names;
}

Result<std::uint64_t> tensor_bytes(std::uint32_t type_id, std::span<const std::uint64_t> shape) {
  const auto type = element_type_info(type_id);
  if (!type)
    return fail("type {} cannot be read; use a file whose tensors are {}",
                tensor_type_label(type_id), readable_tensor_types());
  if (shape.size() > kMaxRank)
    return fail("{} axes, and GGUF has at most {}", shape.size(), kMaxRank);
  constexpr auto kLimit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t elements = 1;
  for (const std::uint64_t extent : shape) {
    if (extent == 0) return fail("shape [{}] has an empty axis", fmt::join(shape, ", "));
    if (extent > kLimit / elements)
      return fail("shape [{}] overflows 64 bits", fmt::join(shape, ", "));
    elements *= extent;
  }
  const std::uint64_t columns = shape.empty() ? 1 : shape[0];
  if (columns % type->block_elements != 0)
    return fail("rows of {} elements are no whole number of {} blocks of {}", columns, type->name,
                type->block_elements);
  const std::uint64_t blocks = elements / type->block_elements;
  if (blocks > kLimit / type->block_bytes)
    return fail("shape [{}] overflows 64 bits", fmt::join(shape, ", "));
  return blocks * type->block_bytes;
}

}  // namespace trimpot::gguf
