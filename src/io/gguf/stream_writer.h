// Writes a GGUF v3 file piece by piece, so that a file larger than memory can be made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "io/atomic_file.h"
#include "io/gguf/metadata.h"
#include "tensor/element_type.h"

namespace trimpot::gguf {

// In this order: metadata and declare(), open(), write(), commit(). Destroyed before commit(), it
// leaves nothing behind. Not for several threads at a time.
class StreamWriter : public Metadata {
 public:
  StreamWriter() = default;
  explicit StreamWriter(Metadata metadata) : Metadata(std::move(metadata)) {}

  // The next tensor of the file; `shape` has the fastest axis first. open() checks it.
  void declare(std::string name, ElementType type, std::vector<std::uint64_t> shape);
  // Writes the header to a file beside `path` and takes the room for all tensors, so that a full
  // disk shows before the work and not after it. Errors: unwritable, disk full, what Metadata and
  // the format refuse (names, twice the same name, shapes), opened before.
  Status open(const std::string& path);
  // Bytes of a tensor from `offset` on; tensors and their pieces may come in any order.
  // Errors: not open, a name that was not declared, bytes beyond the tensor's end or written
  // before.
  Status write(std::string_view name, std::uint64_t offset, std::span<const std::byte> bytes);
  // The file appears under its name. Errors: bytes of a tensor that were never written.
  Status commit();

 private:
  struct Tensor {
    std::string name;
    ElementType type;
    std::vector<std::uint64_t> shape;
    std::uint64_t bytes = 0;
    std::uint64_t offset = 0;                        // from the start of the file
    std::map<std::uint64_t, std::uint64_t> written;  // begin -> end, neighbours joined
  };
  // Magic to tensor infos, padded; sets the tensors' places and file_bytes_.
  Result<std::vector<std::byte>> make_header();

  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, std::size_t> index_;  // of the names that open() saw
  std::string path_;
  std::optional<AtomicFile> file_;
  std::uint64_t file_bytes_ = 0;
};

}  // namespace trimpot::gguf
