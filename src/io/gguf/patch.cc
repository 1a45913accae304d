#include "io/gguf/patch.h"

#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "io/atomic_file.h"
#include "io/printable.h"

namespace trimpot::gguf {
namespace {

constexpr std::uint64_t kPieceBytes = 1u << 20;
constexpr std::uint64_t kLongestRowBytes = 64u << 20;

bool is_same_file(const std::string& a, const std::string& b) {
  struct stat status_a {};
  struct stat status_b {};
  return ::stat(a.c_str(), &status_a) == 0 && ::stat(b.c_str(), &status_b) == 0 &&
         status_a.st_dev == status_b.st_dev && status_a.st_ino == status_b.st_ino;
}

// Pages before `end` are not needed again. Half a page may be left of the piece before, so the
// release starts a little earlier: else one page in every MiB would stay.
void release_before(const File& base, std::uint64_t begin, std::uint64_t end) {
  constexpr std::uint64_t kLargestPage = 64u << 10;
  begin -= std::min(begin, kLargestPage);
  base.release(base.bytes().subspan(begin, end - begin));
}

Status copy_bytes(const File& base, std::uint64_t begin, std::uint64_t end, AtomicFile& out) {
  while (begin < end) {
    const auto piece = base.bytes().subspan(begin, std::min(kPieceBytes, end - begin));
    TRIMPOT_TRY_VOID(out.write(piece));
    release_before(base, begin, begin + piece.size());
    begin += piece.size();
  }
  return {};
}

Status copy_rows(const File& base, const TensorInfo& tensor, const PatchRows& patch_rows,
                 std::vector<std::byte>& buffer, AtomicFile& out) {
  const std::uint64_t row_bytes = tensor.bytes / tensor.rows();
  if (row_bytes > kLongestRowBytes)
    return fail("{}: tensor \"{}\": rows of {} bytes are too long to be changed (at most {})",
                base.path(), printable(tensor.name), row_bytes, kLongestRowBytes);
  const std::uint64_t rows_at_once = std::max<std::uint64_t>(1, kPieceBytes / row_bytes);
  for (std::uint64_t row = 0; row < tensor.rows(); row += rows_at_once) {
    const std::uint64_t rows = std::min(rows_at_once, tensor.rows() - row);
    const auto piece = base.data(tensor).subspan(row * row_bytes, rows * row_bytes);
    buffer.assign(piece.begin(), piece.end());
    const std::uint64_t begin = tensor.offset + row * row_bytes;
    release_before(base, begin, begin + piece.size());
    TRIMPOT_TRY_VOID(patch_rows(tensor, buffer, row));
    TRIMPOT_TRY_VOID(out.write(buffer));
  }
  return {};
}

}  // namespace

Status write_patched_copy(const File& base, const std::string& out_path,
                          const PatchRows& patch_rows, const WantsTensor& wants) {
  if (is_same_file(base.path(), out_path))
    return fail("{}: is the model that is being read; write the copy under another name", out_path);
  TRIMPOT_TRY(AtomicFile out, AtomicFile::create(out_path));
  std::vector<std::byte> buffer;
  std::uint64_t done = 0;
  for (const TensorInfo& tensor : base.tensors()) {  // in the order of the file
    if (!wants(tensor)) continue;
    TRIMPOT_TRY_VOID(copy_bytes(base, done, tensor.offset, out));
    TRIMPOT_TRY_VOID(copy_rows(base, tensor, patch_rows, buffer, out));
    done = tensor.offset + tensor.bytes;
  }
  TRIMPOT_TRY_VOID(copy_bytes(base, done, base.file_bytes(), out));
  return out.commit();
}

}  // namespace trimpot::gguf
