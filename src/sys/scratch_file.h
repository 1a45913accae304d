// A nameless temporary file: memory that does not count as memory. It is gone when it is closed or
// the program ends.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.h"

namespace trimpot {

class ScratchFile {
 public:
  // In the folder `folder`. Errors: it cannot be written.
  static Result<ScratchFile> create(const std::string& folder);
  ScratchFile(ScratchFile&& other) noexcept;
  ScratchFile& operator=(ScratchFile&& other) noexcept;
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile();

  // Errors: disk full, input/output errors, reading what was never written.
  Status write(std::size_t offset, std::span<const std::byte> bytes);
  Status read(std::size_t offset, std::span<std::byte> bytes) const;

 private:
  ScratchFile(std::string folder, int descriptor)
      : folder_(std::move(folder)), descriptor_(descriptor) {}
  std::string folder_;
  int descriptor_ = -1;
};

}  // namespace trimpot
