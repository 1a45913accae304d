// Files for the tests of this room: a folder that goes away, and bytes put together by hand.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf/gguf.h"

namespace trimpot {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "trimpot-io-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data()) != nullptr ? pattern : ".";
  }
  ~TempFolder() {
    std::error_code ignored;
    if (path_ != ".") std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      out.push_back(entry.path().filename().string());
    return out;
  }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A file in memory, for tests that change one thousands of times: far faster than one on a disk.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("trimpot-test", 0)) {}
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  bool set(std::string_view bytes) {
    const auto size = static_cast<ssize_t>(bytes.size());
    return ::ftruncate(descriptor_, size) == 0 &&
           ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) == size;
  }

 private:
  int descriptor_;
};

// A GGUF file put together field by field, so that every field can be wrong.
class Raw {
 public:
  template <typename T>
  Raw& number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Raw& u8(std::uint8_t value) { return number(value); }
  Raw& u32(std::uint32_t value) { return number(value); }
  Raw& u64(std::uint64_t value) { return number(value); }
  Raw& text(std::string_view value) {
    u64(value.size());
    bytes_ += value;
    return *this;
  }
  Raw& start(std::uint64_t tensors, std::uint64_t entries, std::uint32_t version = 3) {
    bytes_ += "GGUF";
    return u32(version).u64(tensors).u64(entries);
  }
  Raw& tensor(std::string_view name, std::vector<std::uint64_t> shape, std::uint32_t type,
              std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(shape.size()));
    for (const std::uint64_t extent : shape) u64(extent);
    return u32(type).u64(offset);
  }
  Raw& pad(std::size_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  Raw& data(std::size_t count) {
    bytes_.append(count, '\x11');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

inline std::vector<std::byte> counted_bytes(std::size_t count, int first = 0) {
  std::vector<std::byte> out(count);
  for (std::size_t i = 0; i < count; ++i)
    out[i] = static_cast<std::byte>((static_cast<std::size_t>(first) + i * 7) & 0xff);
  return out;
}

// Every kind of value and three tensors. The last one fills its padding, so the file has no byte
// that may be missing.
inline gguf::Writer small_model() {
  gguf::Writer writer;
  writer.set_string("general.architecture", "llama");
  writer.set_uint32("llama.block_count", 2);
  writer.set_uint64("large", 1ull << 40);
  writer.set_float32("llama.epsilon", 1e-5f);
  writer.set_bool("add_bos", true);
  writer.set_strings("tokens", {"a", "", "long token"});
  writer.set_int32s("types", {1, -2, 3});
  writer.set_float32s("scores", {0.5f, -1.0f});
  writer.add_tensor("norm", ElementType::kF32, {5}, counted_bytes(20, 1));
  writer.add_tensor("weight", ElementType::kQ4_1, {64, 3}, counted_bytes(120, 2));
  writer.add_tensor("last", ElementType::kF16, {8, 2, 2}, counted_bytes(64, 3));
  return writer;
}

}  // namespace trimpot
