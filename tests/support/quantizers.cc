#include "support/quantizers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trimpot {
namespace {

void append_bytes(const void* data, std::size_t size, std::vector<std::byte>& out) {
  const auto* bytes = static_cast<const std::byte*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

// How a block's range maps to codes: w = scale * code + offset, or scale * (code - middle).
struct Coding {
  int highest;  // code
  int middle;   // fixed zero-point; 0 with offsets
  bool offsets;
};

Coding coding(ElementType type) {
  switch (type) {
    case ElementType::kQ4_0:
      return {15, 8, false};
    case ElementType::kQ4_1:
      return {15, 0, true};
    case ElementType::kQ5_0:
      return {31, 16, false};
    case ElementType::kQ5_1:
      return {31, 0, true};
    default:
      return {255, 128, false};  // Q8_0
  }
}

void quantize_block(ElementType type, std::span<const float> values, std::vector<std::byte>& out) {
  const Coding c = coding(type);
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  f16 scale, offset = 0;
  if (c.offsets) {
    scale = f32_to_f16((*high - *low) / static_cast<float>(c.highest));
    offset = f32_to_f16(*low);
  } else {
    const float most = std::max(std::fabs(*low), std::fabs(*high));
    scale = f32_to_f16(most / static_cast<float>(c.highest - c.middle));
  }
  std::uint8_t codes[32];
  for (int i = 0; i < 32; ++i) {
    const float step = f16_to_f32(scale);
    const float code = step > 0.0f ? std::nearbyint((values[i] - f16_to_f32(offset)) / step) : 0.0f;
    codes[i] =
        static_cast<std::uint8_t>(std::clamp(static_cast<int>(code) + c.middle, 0, c.highest));
  }
  append_block(type, scale, offset, codes, out);
}

}  // namespace

void append_block(ElementType type, f16 scale, f16 offset, std::span<const std::uint8_t> codes,
                  std::vector<std::byte>& out) {
  append_bytes(&scale, 2, out);
  if (coding(type).offsets) append_bytes(&offset, 2, out);
  if (type == ElementType::kQ8_0) {
    for (const std::uint8_t code : codes) out.push_back(static_cast<std::byte>(code - 128));
    return;
  }
  if (coding(type).highest == 31) {
    std::uint32_t fifth = 0;
    for (int i = 0; i < 32; ++i) fifth |= static_cast<std::uint32_t>(codes[i] / 16) << i;
    append_bytes(&fifth, 4, out);
  }
  for (int i = 0; i < 16; ++i)
    out.push_back(static_cast<std::byte>(codes[i] % 16 + codes[i + 16] % 16 * 16));
}

std::vector<std::byte> quantize_values(ElementType type, std::span<const float> values) {
  std::vector<std::byte> out;
  const ElementTypeInfo info = element_type_info(type);
  if (info.block_elements == 32) {
    for (std::size_t at = 0; at < values.size(); at += 32)
      quantize_block(type, values.subspan(at, 32), out);
    return out;
  }
  for (const float value : values) {
    const std::uint16_t half = type == ElementType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    if (type == ElementType::kF32)
      append_bytes(&value, 4, out);
    else
      append_bytes(&half, 2, out);
  }
  return out;
}

std::vector<float> dequantize_bytes(ElementType type, std::span<const std::byte> data) {
  const ElementTypeInfo info = element_type_info(type);
  const auto half_at = [&](std::size_t at) {
    std::uint16_t bits;
    std::memcpy(&bits, data.data() + at, 2);
    return bits;
  };
  const auto byte_at = [&](std::size_t at) { return std::to_integer<int>(data[at]); };
  std::vector<float> out;
  for (std::size_t at = 0; at < data.size(); at += info.block_bytes) {
    if (type == ElementType::kF32) {
      float value;
      std::memcpy(&value, data.data() + at, 4);
      out.push_back(value);
      continue;
    }
    if (info.block_elements == 1) {
      out.push_back(type == ElementType::kF16 ? f16_to_f32(half_at(at)) : bf16_to_f32(half_at(at)));
      continue;
    }
    const float d = f16_to_f32(half_at(at));
    for (std::size_t i = 0; i < 32; ++i) {
      const auto nibble = [&](std::size_t from) {
        const int both = byte_at(at + from + i % 16);
        return i < 16 ? both % 16 : both / 16;
      };
      const auto fifth = [&](std::size_t from) {
        return (byte_at(at + from + i / 8) >> (i % 8)) % 2 * 16;
      };
      switch (type) {
        case ElementType::kQ4_0:
          out.push_back(d * static_cast<float>(nibble(2) - 8));
          break;
        case ElementType::kQ4_1:
          out.push_back(d * static_cast<float>(nibble(4)) + f16_to_f32(half_at(at + 2)));
          break;
        case ElementType::kQ5_0:
          out.push_back(d * static_cast<float>(nibble(6) + fifth(2) - 16));
          break;
        case ElementType::kQ5_1:
          out.push_back(d * static_cast<float>(nibble(8) + fifth(4)) + f16_to_f32(half_at(at + 2)));
          break;
        default:
          out.push_back(d * static_cast<float>(static_cast<std::int8_t>(byte_at(at + 2 + i))));
      }
    }
  }
  return out;
}

}  // namespace trimpot
