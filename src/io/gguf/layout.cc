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

Result<std::uint64_t> tensor_bytes(std::uint32_t type_id, std::span<const std::uint64_t> shape) {
  const auto type = element_type_info(type_id);
  if (!type)
    return fail("type id {} is not known; use a file whose tensors are {}", type_id,
                computable_type_names());
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
