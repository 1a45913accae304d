// A copy of a GGUF file in which bytes of some tensors are replaced: how tuned scales leave.
// Header, codes and file size stay as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/result.h"
#include "io/gguf/gguf.h"

namespace trimpot::gguf {

// Says whether rows of this tensor are to be changed.
using WantsTensor = std::function<bool(const TensorInfo& tensor)>;

// Changes whole rows of a tensor in place. `rows` are the bytes of consecutive rows of which the
// first is `first_row`; each row has tensor.bytes / tensor.rows() bytes. Called in order of the
// rows, often several times for a tensor. An error ends the copy.
using PatchRows = std::function<Status(const TensorInfo& tensor, std::span<std::byte> rows,
                                       std::uint64_t first_row)>;

// Copies `base` to `out_path` in pieces of at most 1 MiB (or one row, if that is longer) and lets
// go of the pages of `base` on the way, so that a copy of any size takes a few MiB of memory. The
// copy appears whole or not at all.
// Errors: `out_path` is the file that is read, unwritable, disk full, a row of a wanted tensor
// longer than 64 MiB, whatever `patch_rows` returns.
Status write_patched_copy(const File& base, const std::string& out_path,
                          const PatchRows& patch_rows, const WantsTensor& wants);

}  // namespace trimpot::gguf
