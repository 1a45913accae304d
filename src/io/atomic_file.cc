#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

namespace trimpot {
namespace {

// strerror is not safe between threads by the standard; for the errors named here it is not asked.
std::string reason(int error) {
  switch (error) {
    case ENOSPC:
      return "no space left on the device; free some or write to another disk";
    case EDQUOT:
      return "no space left in your quota; free some or write to another disk";
    case EACCES:
    case EPERM:
      return "permission denied; write to a folder of your own";
    case EROFS:
      return "the file system is read-only; write to another folder";
    case ENOENT:
      return "the folder does not exist; create it first";
    case ENOTDIR:
      return "a part of the path is not a folder";
    case EFBIG:
      return "the file is too large for this file system or its limit";
    default:
      return std::strerror(error);
  }
}

// Names of partial files where a signal handler finds them. Of more at once the rest would stay.
struct Partial {
  enum State { kFree, kTaken, kNamed };
  std::atomic<int> state{kFree};
  char path[4096];
};
constexpr int kMostPartials = 16;
Partial partials[kMostPartials];

int note_partial(const std::string& path) {
  if (path.size() >= sizeof Partial::path) return -1;
  for (int i = 0; i < kMostPartials; ++i) {
    int free = Partial::kFree;
    if (!partials[i].state.compare_exchange_strong(free, Partial::kTaken)) continue;
    std::memcpy(partials[i].path, path.c_str(), path.size() + 1);
    partials[i].state = Partial::kNamed;
    return i;
  }
  return -1;
}

void forget_partial(int slot) {
  if (slot >= 0) partials[slot].state = Partial::kFree;
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  if (path.empty()) return fail("the name of the output file is empty");
  struct stat existing {};
  if (::stat(path.c_str(), &existing) == 0 && !S_ISREG(existing.st_mode)) {
    if (S_ISDIR(existing.st_mode)) return fail("{}: is a folder; name a file to write", path);
    // Renaming over /dev/null would destroy it: a character device is written as it is.
    if (!S_ISCHR(existing.st_mode))
      return fail("{}: exists and is not a regular file; choose another name", path);
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) return fail("{}: cannot write: {}", path, reason(errno));
    return AtomicFile(path, {}, descriptor);
  }
  // O_EXCL: never through a link that somebody else put there. The number is for two files of the
  // same name in one process and for remains of a killed one whose process id came back.
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string partial = fmt::format("{}.partial-{}", path, ::getpid());
    if (attempt > 0) partial += fmt::format("-{}", attempt);
    const int descriptor = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0) return AtomicFile(path, std::move(partial), descriptor);
    if (errno != EEXIST) return fail("{}: cannot write: {}", path, reason(errno));
  }
  return fail("{}: cannot write: remove the old {}.partial-* files first", path, path);
}

AtomicFile::AtomicFile(std::string path, std::string partial_path, int descriptor)
    : path_(std::move(path)), partial_path_(std::move(partial_path)), descriptor_(descriptor) {
  if (!partial_path_.empty()) slot_ = note_partial(partial_path_);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::exchange(other.partial_path_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(std::exchange(other.size_, 0)),
      slot_(std::exchange(other.slot_, -1)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(partial_path_, other.partial_path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(slot_, other.slot_);
  return *this;
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!partial_path_.empty()) ::unlink(partial_path_.c_str());
  forget_partial(slot_);
}

void AtomicFile::remove_partials() {
  for (const Partial& partial : partials)
    if (partial.state == Partial::kNamed) ::unlink(partial.path);
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  if (descriptor_ < 0) return fail("{}: cannot write: the file is not open any more", path_);
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return fail("{}: cannot write at byte {}: {}", path_, size_, reason(errno));
    }
    size_ += static_cast<std::size_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

Status AtomicFile::write(std::string_view text) {
  return write(std::as_bytes(std::span(text.data(), text.size())));
}

Status AtomicFile::write_at(std::size_t offset, std::span<const std::byte> bytes) {
  if (descriptor_ < 0) return fail("{}: cannot write: the file is not open any more", path_);
  if (offset > size_ || bytes.size() > size_ - offset)
    return fail("{}: cannot write {} bytes over byte {}: only {} are there", path_, bytes.size(),
                offset, size_);
  while (!bytes.empty()) {
    const ssize_t written =
        ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      return fail("{}: cannot write at byte {}: {}", path_, offset, reason(errno));
    }
    offset += static_cast<std::size_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

Status AtomicFile::extend(std::size_t size) {
  if (descriptor_ < 0) return fail("{}: cannot write: the file is not open any more", path_);
  if (size <= size_) return {};
  constexpr auto kMost = static_cast<std::size_t>(std::numeric_limits<off_t>::max());
  if (size > kMost)
    return fail("{}: cannot make room for {} bytes: {}", path_, size, reason(EFBIG));
  if (!partial_path_.empty()) {  // devices have no size
    // Not posix_fallocate: where the file system cannot do it, that one writes every block.
    int result = 0;
    do {
      result = ::fallocate(descriptor_, 0, 0, static_cast<off_t>(size));
    } while (result != 0 && errno == EINTR);
    if (result != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
      result = ::ftruncate(descriptor_, static_cast<off_t>(size));
    if (result != 0)
      return fail("{}: cannot make room for {} bytes: {}", path_, size, reason(errno));
    if (::lseek(descriptor_, static_cast<off_t>(size), SEEK_SET) < 0)  // write() goes on there
      return fail("{}: cannot write at byte {}: {}", path_, size, reason(errno));
  }
  size_ = size;
  return {};
}

Status AtomicFile::commit() {
  if (descriptor_ < 0) return fail("{}: cannot finish: the file is not open any more", path_);
  if (partial_path_.empty()) {  // a device
    if (::close(std::exchange(descriptor_, -1)) != 0)
      return fail("{}: cannot finish writing: {}", path_, reason(errno));
    return {};
  }
  // Without fsync a power cut after the rename may leave an empty file under the final name.
  if (::fsync(descriptor_) != 0) return fail("{}: cannot finish writing: {}", path_, reason(errno));
  if (::close(std::exchange(descriptor_, -1)) != 0)
    return fail("{}: cannot finish writing: {}", path_, reason(errno));
  if (std::rename(partial_path_.c_str(), path_.c_str()) != 0)
    return fail("{}: cannot rename the finished file: {}", path_, reason(errno));
  partial_path_.clear();
  forget_partial(std::exchange(slot_, -1));
  // The rename itself, as far as the file system can promise it: not every one can.
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    ::fsync(folder);
    ::close(folder);
  }
  return {};
}

}  // namespace trimpot
