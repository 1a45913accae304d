#include "io/gguf/metadata.h"

#include <bit>
#include <cstring>

#include "io/gguf/encode.h"
#include "io/gguf/gguf.h"
#include "io/gguf/layout.h"
#include "io/printable.h"

namespace trimpot::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is written as it lies in memory");

Bytes with_tag(ValueType type) {
  Bytes out;
  append_number(out, static_cast<std::uint32_t>(type));
  return out;
}

template <typename T>
Bytes one_number(ValueType type, T value) {
  Bytes out = with_tag(type);
  append_number(out, value);
  return out;
}

Bytes array_start(ValueType element_type, std::uint64_t count) {
  Bytes out = with_tag(ValueType::kArray);
  append_number(out, static_cast<std::uint32_t>(element_type));
  append_number(out, count);
  return out;
}

template <typename T>
Bytes array_of_numbers(ValueType element_type, const std::vector<T>& values) {
  Bytes out = array_start(element_type, values.size());
  append(out, std::as_bytes(std::span(values)));
  return out;
}

template <typename Strings>
Bytes array_of_strings(const Strings& values) {
  Bytes out = array_start(ValueType::kString, values.size());
  for (const std::string_view value : values) append_text(out, value);
  return out;
}

// Empty when the scalar does not hold a `Wide` that fits in `Stored`.
template <typename Stored, typename Wide>
Bytes narrowed(const Value& value) {
  const auto* wide = std::get_if<Wide>(&value.scalar);
  if (wide == nullptr) return {};
  if constexpr (std::is_integral_v<Wide>)
    if (static_cast<Wide>(static_cast<Stored>(*wide)) != *wide) return {};
  return one_number(value.type, static_cast<Stored>(*wide));
}

// The value as it stood in the file; empty when it contradicts itself, which no value that was read
// does: append_to() then names its key.
Bytes encode(const Value& value) {
  switch (value.type) {
    case ValueType::kU8:
      return narrowed<std::uint8_t, std::uint64_t>(value);
    case ValueType::kU16:
      return narrowed<std::uint16_t, std::uint64_t>(value);
    case ValueType::kU32:
      return narrowed<std::uint32_t, std::uint64_t>(value);
    case ValueType::kU64:
      return narrowed<std::uint64_t, std::uint64_t>(value);
    case ValueType::kI8:
      return narrowed<std::int8_t, std::int64_t>(value);
    case ValueType::kI16:
      return narrowed<std::int16_t, std::int64_t>(value);
    case ValueType::kI32:
      return narrowed<std::int32_t, std::int64_t>(value);
    case ValueType::kI64:
      return narrowed<std::int64_t, std::int64_t>(value);
    case ValueType::kF32:
      return narrowed<float, double>(value);
    case ValueType::kF64:
      return narrowed<double, double>(value);
    case ValueType::kBool:
      return narrowed<std::uint8_t, bool>(value);
    case ValueType::kString: {
      const auto* text = std::get_if<std::string>(&value.scalar);
      if (text == nullptr) return {};
      Bytes out = with_tag(ValueType::kString);
      append_text(out, *text);
      return out;
    }
    case ValueType::kArray:
      break;
  }
  if (value.type != ValueType::kArray) return {};
  if (value.element_type == ValueType::kString)
    return value.strings.size() == value.count ? array_of_strings(value.strings) : Bytes{};
  const std::size_t width = value_width(value.element_type);
  if (width == 0 || value.raw.size() % width != 0 || value.raw.size() / width != value.count)
    return {};
  Bytes out = array_start(value.element_type, value.count);
  append(out, value.raw);
  return out;
}

// A key that is set again keeps its place.
void set(std::vector<std::pair<std::string, Bytes>>& entries, std::string key, Bytes encoded) {
  for (auto& entry : entries) {
    if (entry.first != key) continue;
    entry.second = std::move(encoded);
    return;
  }
  entries.emplace_back(std::move(key), std::move(encoded));
}

}  // namespace

void Metadata::set_uint32(std::string key, std::uint32_t value) {
  set(entries_, std::move(key), one_number(ValueType::kU32, value));
}

void Metadata::set_uint64(std::string key, std::uint64_t value) {
  set(entries_, std::move(key), one_number(ValueType::kU64, value));
}

void Metadata::set_float32(std::string key, float value) {
  set(entries_, std::move(key), one_number(ValueType::kF32, value));
}

void Metadata::set_bool(std::string key, bool value) {
  set(entries_, std::move(key), one_number(ValueType::kBool, static_cast<std::uint8_t>(value)));
}

void Metadata::set_string(std::string key, std::string value) {
  Bytes encoded = with_tag(ValueType::kString);
  append_text(encoded, value);
  set(entries_, std::move(key), std::move(encoded));
}

void Metadata::set_strings(std::string key, std::vector<std::string> values) {
  set(entries_, std::move(key), array_of_strings(values));
}

void Metadata::set_int32s(std::string key, std::vector<std::int32_t> values) {
  set(entries_, std::move(key), array_of_numbers(ValueType::kI32, values));
}

void Metadata::set_float32s(std::string key, std::vector<float> values) {
  set(entries_, std::move(key), array_of_numbers(ValueType::kF32, values));
}

void Metadata::copy_value(std::string key, const Value& value) {
  set(entries_, std::move(key), encode(value));
}

Result<std::uint32_t> Metadata::alignment() const {
  for (const auto& [key, encoded] : entries_) {
    if (key != "general.alignment") continue;
    std::uint32_t fields[2] = {};  // tag and value
    if (encoded.size() == sizeof(fields)) std::memcpy(fields, encoded.data(), sizeof(fields));
    if (fields[0] == static_cast<std::uint32_t>(ValueType::kU32) && is_valid_alignment(fields[1]))
      return fields[1];
    return fail("key \"general.alignment\" must be a u32 that is a power of two from 8 up");
  }
  return kDefaultAlignment;
}

Status Metadata::append_to(std::vector<std::byte>& header) const {
  for (const auto& [key, encoded] : entries_) {
    if (key.empty() || key.size() > kLongestKey)
      return fail("key \"{}\" must have from 1 to {} bytes", printable(key), kLongestKey);
    if (encoded.empty())
      return fail("key \"{}\": its value does not match its type", printable(key));
    append_text(header, key);
    append(header, encoded);
  }
  return {};
}

}  // namespace trimpot::gguf
