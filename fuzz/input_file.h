// The readers map files, so a fuzzer's input goes into a file in memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

class InputFile {
 public:
  InputFile() : descriptor_(::memfd_create("fuzz-input", MFD_CLOEXEC)) {}
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  bool set(const std::uint8_t* data, std::size_t size) {
    return ::ftruncate(descriptor_, static_cast<off_t>(size)) == 0 &&
           ::pwrite(descriptor_, data, size, 0) == static_cast<ssize_t>(size);
  }

 private:
  int descriptor_;
};
