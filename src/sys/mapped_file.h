// A file mapped for reading.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"

namespace trimpot {

class MappedFile {
 public:
  // Errors: not found, a directory, empty, no permission.
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Lets go of the resident pages that lie wholly inside `part` (they come back from the file when
  // touched again), so that mapped weights do not count twice once they are packed.
  void release(std::span<const std::byte> part) const;

 private:
  MappedFile(std::string path, const std::byte* data, std::size_t size);
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace trimpot
