// Fields of a GGUF header as bytes, for the writers.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace trimpot::gguf {

using Bytes = std::vector<std::byte>;

inline void append(Bytes& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <typename T>
void append_number(Bytes& out, T value) {
  append(out, std::as_bytes(std::span(&value, 1)));
}

inline void append_text(Bytes& out, std::string_view text) {
  append_number(out, static_cast<std::uint64_t>(text.size()));
  append(out, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace trimpot::gguf
