// A file that appears whole or not at all: written beside its final name and renamed by commit().
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace trimpot {

class AtomicFile {
 public:
  // Opens `<path>.partial-<pid>` in the same folder. Fails if the folder cannot be written or if
  // `path` is a folder, pipe or socket. A character device (/dev/null) is written directly.
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();  // without commit(): removes the partial file

  Status write(std::span<const std::byte> bytes);  // at the end
  Status write(std::string_view text);
  Status write_at(std::size_t offset, std::span<const std::byte> bytes);  // over what is there
  // Makes the file `size` bytes long: zeros behind what is there, to be written with write_at(). A
  // disk without the room shows here, if its file system can tell. Never makes a file shorter.
  Status extend(std::size_t size);
  Status commit();  // fsync, rename; nothing can be written afterwards

  // Removes the partial files of all that are open. For handlers of signals that end the program:
  // it may be called in one, and the program is to end then.
  static void remove_partials();

 private:
  AtomicFile(std::string path, std::string partial_path, int descriptor);
  std::string path_;
  std::string partial_path_;
  int descriptor_ = -1;
  std::size_t size_ = 0;  // bytes of the file so far
  int slot_ = -1;         // of remove_partials()
};

}  // namespace trimpot
