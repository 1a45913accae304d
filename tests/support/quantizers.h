// Rows of floats as GGUF stores them, by plain rounding to the range of each block: made for tests,
// not for quality. Written apart from the library's own block code, so that the two check each
// other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/half.h"
#include "tensor/element_type.h"

namespace trimpot {

// One block of 32 elements put together from its parts; parts that the type lacks are ignored.
// codes: 0 .. 15 (Q4), 0 .. 31 (Q5), for Q8_0 the int8 plus 128.
void append_block(ElementType type, f16 scale, f16 offset, std::span<const std::uint8_t> codes,
                  std::vector<std::byte>& out);

// `values` are whole rows one after another; a multiple of the type's block.
std::vector<std::byte> quantize_values(ElementType type, std::span<const float> values);

// The same bytes as floats, element by element from the block formats' definitions.
std::vector<float> dequantize_bytes(ElementType type, std::span<const std::byte> data);

}  // namespace trimpot
