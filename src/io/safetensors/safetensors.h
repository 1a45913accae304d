// safetensors: u64 header length, JSON header, tensor bytes. Read through a mapping, written whole.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sys/mapped_file.h"

namespace trimpot::safetensors {

struct TensorInfo {
  std::string name;
  std::string dtype;                 // "F32", "F16", "BF16", "I32", "I64", "U8", ...
  std::vector<std::uint64_t> shape;  // C order: the slowest axis first
  std::uint64_t begin = 0;           // bytes from the start of the file
  std::uint64_t end = 0;
};

class File {
 public:
  // Errors name the file and tensor: header longer than the file or than 100 MB, broken JSON,
  // unknown dtype, offsets that overlap, leave holes or do not match shape and dtype.
  static Result<File> open(const std::string& path);
  const std::string& path() const { return mapping_.path(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order of the data
  const TensorInfo* find(std::string_view name) const;                 // nullptr when absent
  // C order, little-endian, without any alignment: copy it out, do not cast the pointer.
  std::span<const std::byte> data(const TensorInfo& tensor) const {
    return mapping_.bytes().subspan(tensor.begin, tensor.end - tensor.begin);
  }

 private:
  explicit File(MappedFile mapping) : mapping_(std::move(mapping)) {}
  Status parse();

  MappedFile mapping_;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;
};

struct OutputTensor {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> data;  // must stay alive until write() returns
};

// Bytes of one element; 0 for a dtype that is not known.
std::uint64_t dtype_bytes(std::string_view dtype);

// Written beside and renamed. The header is padded with spaces to 8 bytes, and the data of wide
// dtypes comes first, so that every tensor is aligned to its element.
// Errors: unwritable, disk full, unknown dtype, names twice, text that is no UTF-8, data of the
// wrong size.
Status write(const std::string& path, const std::map<std::string, std::string>& metadata,
             const std::vector<OutputTensor>& tensors);

}  // namespace trimpot::safetensors
