// GGUF v2 and v3: named tensors and typed metadata in one file. Bytes <-> names, nothing else.
// The format as ggml/include/gguf.h of llama.cpp describes it: header, key/value pairs, tensor
// infos, padding, tensor data in the order of the infos, each padded to `general.alignment`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/result.h"
#include "io/gguf/metadata.h"
#include "sys/mapped_file.h"
#include "tensor/element_type.h"

namespace trimpot::gguf {

struct Array;
// Integers of every width are widened; `Value` remembers the width on disk for the writer.
using Scalar = std::variant<std::uint64_t, std::int64_t, double, bool, std::string>;

enum class ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// A value as it lies in the file. Arrays of strings are kept as views into the mapping.
struct Value {
  ValueType type{};
  Scalar scalar;                          // when type is not kArray
  ValueType element_type{};               // when type is kArray
  std::uint64_t count = 0;                // elements of the array
  std::span<const std::byte> raw;         // array of fixed-width elements, little-endian, unaligned
  std::vector<std::string_view> strings;  // array of strings
};

struct TensorInfo {
  std::string name;
  ElementType type{};
  std::vector<std::uint64_t> shape;  // as in the file: the fastest axis (columns) first
  std::uint64_t offset = 0;          // bytes from the start of the file
  std::uint64_t bytes = 0;

  std::uint64_t columns() const { return shape.empty() ? 1 : shape[0]; }
  std::uint64_t rows() const {  // product of the other axes
    std::uint64_t product = 1;
    for (std::size_t axis = 1; axis < shape.size(); ++axis) product *= shape[axis];
    return product;
  }
};

class File {
 public:
  // Checks everything that can be checked without reading tensor data: counts and lengths against
  // the file's size, types, duplicate names, offsets in order without overlaps or gaps, alignment.
  static Result<File> open(const std::string& path);

  const std::string& path() const { return mapping_.path(); }
  std::uint32_t version() const { return version_; }
  std::uint32_t alignment() const { return alignment_; }
  std::uint64_t file_bytes() const { return mapping_.bytes().size(); }
  std::uint64_t data_offset() const { return data_offset_; }
  std::span<const std::byte> bytes() const { return mapping_.bytes(); }

  const std::vector<std::pair<std::string, Value>>& metadata() const { return metadata_; }
  const Value* find(std::string_view key) const;  // nullptr when absent

  // The typed getters fail with file, key and what was expected; the `_or` forms give `fallback`
  // when the key is absent and still fail when it has another type.
  Result<std::uint64_t> get_uint(std::string_view key) const;
  Result<std::uint64_t> get_uint_or(std::string_view key, std::uint64_t fallback) const;
  Result<double> get_float(std::string_view key) const;
  Result<double> get_float_or(std::string_view key, double fallback) const;
  Result<bool> get_bool_or(std::string_view key, bool fallback) const;
  Result<std::string> get_string(std::string_view key) const;
  Result<std::string> get_string_or(std::string_view key, std::string_view fallback) const;
  Result<std::span<const std::string_view>> get_strings(std::string_view key) const;
  Result<std::vector<std::int64_t>> get_ints(std::string_view key) const;
  Result<std::vector<float>> get_floats(std::string_view key) const;

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find_tensor(std::string_view name) const;  // nullptr when absent
  std::span<const std::byte> data(const TensorInfo& tensor) const {
    return mapping_.bytes().subspan(tensor.offset, tensor.bytes);
  }
  // Lets go of a tensor's resident pages (MappedFile::release).
  void release(const TensorInfo& tensor) const { mapping_.release(data(tensor)); }
  void release(std::span<const std::byte> part) const { mapping_.release(part); }

 private:
  explicit File(MappedFile mapping) : mapping_(std::move(mapping)) {}
  Status parse();

  MappedFile mapping_;
  std::uint32_t version_ = 0;
  std::uint32_t alignment_ = 32;
  std::uint64_t data_offset_ = 0;
  std::vector<std::pair<std::string, Value>> metadata_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, std::size_t> metadata_index_;
  std::unordered_map<std::string, std::size_t> tensor_index_;
};

// Builds a GGUF v3 file in memory. Tensors are written in the order in which they were added.
class Writer : public Metadata {
 public:
  // `shape` has the fastest axis first. `data` must hold exactly the bytes of shape and type.
  void add_tensor(std::string name, ElementType type, std::vector<std::uint64_t> shape,
                  std::vector<std::byte> data);
  // Written beside and renamed. Errors: unwritable, disk full, data of the wrong size.
  Status write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    ElementType type;
    std::vector<std::uint64_t> shape;
    std::vector<std::byte> data;
  };
  std::vector<Tensor> tensors_;
};

}  // namespace trimpot::gguf
