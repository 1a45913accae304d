// The typed getters of gguf::File.
#include <cstring>
#include <limits>

#include "io/gguf/gguf.h"
#include "io/gguf/layout.h"
#include "io/printable.h"

namespace trimpot::gguf {
namespace {

std::string describe(const Value& value) {
  if (value.type == ValueType::kArray)
    return fmt::format("an array of {}", value_type_name(value.element_type));
  return fmt::format("of type {}", value_type_name(value.type));
}

tl::unexpected<Error> missing(const File& file, std::string_view key) {
  return fail("{}: key \"{}\" is missing; use a file that has it", file.path(), printable(key));
}

tl::unexpected<Error> wrong_type(const File& file, std::string_view key, const Value& value,
                                 std::string_view expected) {
  return fail("{}: key \"{}\" is {}, but {} is needed; use a file where it is right", file.path(),
              printable(key), describe(value), expected);
}

// Element `index` of an array; unaligned in the file.
template <typename T>
T element(const Value& value, std::uint64_t index) {
  T out;
  std::memcpy(&out, value.raw.data() + index * sizeof(T), sizeof(T));
  return out;
}

template <typename Stored, typename Out>
void append_all(const Value& value, std::vector<Out>& out) {
  for (std::uint64_t i = 0; i < value.count; ++i)
    out.push_back(static_cast<Out>(element<Stored>(value, i)));
}

}  // namespace

Result<std::uint64_t> File::get_uint(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (value->type != ValueType::kArray) {
    if (const auto* number = std::get_if<std::uint64_t>(&value->scalar)) return *number;
    if (const auto* number = std::get_if<std::int64_t>(&value->scalar)) {
      if (*number >= 0) return static_cast<std::uint64_t>(*number);
      return fail("{}: key \"{}\" is {}, but an integer from 0 up is needed", path(),
                  printable(key), *number);
    }
  }
  return wrong_type(*this, key, *value, "an integer");
}

Result<std::uint64_t> File::get_uint_or(std::string_view key, std::uint64_t fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_uint(key);
}

Result<double> File::get_float(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  const auto* number = std::get_if<double>(&value->scalar);
  if (value->type == ValueType::kArray || number == nullptr)
    return wrong_type(*this, key, *value, "a floating-point number");
  return *number;
}

Result<double> File::get_float_or(std::string_view key, double fallback) const {
  if (find(key) == nullptr) return fallback;
  return get_float(key);
}

Result<bool> File::get_bool_or(std::string_view key, bool fallback) const {
  const Value* value = find(key);
  if (value == nullptr) return fallback;
  const auto* flag = std::get_if<bool>(&value->scalar);
  if (value->type == ValueType::kArray || flag == nullptr)
    return wrong_type(*this, key, *value, "a bool");
  return *flag;
}

Result<std::string> File::get_string(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  const auto* text = std::get_if<std::string>(&value->scalar);
  if (value->type == ValueType::kArray || text == nullptr)
    return wrong_type(*this, key, *value, "a string");
  return *text;
}

Result<std::string> File::get_string_or(std::string_view key, std::string_view fallback) const {
  if (find(key) == nullptr) return std::string(fallback);
  return get_string(key);
}

Result<std::span<const std::string_view>> File::get_strings(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (value->type != ValueType::kArray || value->element_type != ValueType::kString)
    return wrong_type(*this, key, *value, "an array of strings");
  return std::span<const std::string_view>(value->strings);
}

Result<std::vector<std::int64_t>> File::get_ints(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  if (value->type != ValueType::kArray)
    return wrong_type(*this, key, *value, "an array of integers");
  std::vector<std::int64_t> out;
  out.reserve(value->count);
  switch (value->element_type) {
    case ValueType::kU8:
      append_all<std::uint8_t>(*value, out);
      break;
    case ValueType::kI8:
      append_all<std::int8_t>(*value, out);
      break;
    case ValueType::kU16:
      append_all<std::uint16_t>(*value, out);
      break;
    case ValueType::kI16:
      append_all<std::int16_t>(*value, out);
      break;
    case ValueType::kU32:
      append_all<std::uint32_t>(*value, out);
      break;
    case ValueType::kI32:
      append_all<std::int32_t>(*value, out);
      break;
    case ValueType::kI64:
      append_all<std::int64_t>(*value, out);
      break;
    case ValueType::kU64:
      for (std::uint64_t i = 0; i < value->count; ++i) {
        const auto number = element<std::uint64_t>(*value, i);
        if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
          return fail("{}: key \"{}\": element {} is {}, but an integer below 2^63 is needed",
                      path(), printable(key), i, number);
        out.push_back(static_cast<std::int64_t>(number));
      }
      break;
    default:
      return wrong_type(*this, key, *value, "an array of integers");
  }
  return out;
}

Result<std::vector<float>> File::get_floats(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return missing(*this, key);
  const bool is_f32 = value->element_type == ValueType::kF32;
  if (value->type != ValueType::kArray || !(is_f32 || value->element_type == ValueType::kF64))
    return wrong_type(*this, key, *value, "an array of floating-point numbers");
  std::vector<float> out;
  out.reserve(value->count);
  if (is_f32) {
    append_all<float>(*value, out);
  } else {
    append_all<double>(*value, out);
  }
  return out;
}

}  // namespace trimpot::gguf
