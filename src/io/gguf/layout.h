// What reading and writing GGUF have in common: limits, widths, tensor sizes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"
#include "io/gguf/gguf.h"

namespace trimpot::gguf {

// ggml keeps names in char[64] with the final zero and holds tensors of up to 4 axes.
inline constexpr std::size_t kLongestTensorName = 63;
inline constexpr std::size_t kMaxRank = 4;
inline constexpr std::size_t kLongestKey = 65535;  // the limit of the format's description
inline constexpr std::uint32_t kDefaultAlignment = 32;

// A power of two from 8 up. The format's description wants a multiple of 8, ggml a power of two;
// below 8, tensor data could not be read in place as numbers.
constexpr bool is_valid_alignment(std::uint64_t alignment) {
  return alignment >= 8 && alignment <= (1u << 31) && (alignment & (alignment - 1)) == 0;
}

constexpr std::uint64_t padded(std::uint64_t bytes, std::uint64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// Bytes of one value; 0 for strings and arrays, whose length varies.
std::size_t value_width(ValueType type);
bool is_known_value_type(std::uint32_t type);
std::string_view value_type_name(ValueType type);  // "u32", "string", ...

// Bytes of a tensor. `shape` has the fastest axis first. Errors are half a sentence without file
// and tensor: an unknown type, more than 4 axes, an empty axis, more than 2^63 bytes, rows that are
// no whole number of blocks.
Result<std::uint64_t> tensor_bytes(std::uint32_t type_id, std::span<const std::uint64_t> shape);

}  // namespace trimpot::gguf
