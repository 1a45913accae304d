// How matrices and linear layers lie in a file: ggml's tensors, or our own grouped ones.
//
// A file of ours is GGUF with general.architecture = "trimpot" and the real one in
// trimpot.architecture; so other programs refuse it instead of misreading it. A matrix <name> that
// is not an ordinary tensor <name>.weight is these:
//   <name>.codes         I8  [row bytes, rows]   codes bit by bit, rows on whole bytes (format/grouped.h)
//   <name>.scales        F16 [groups, rows]
//   <name>.zeros         F16 [groups, rows]      w = scale (code - zero); or
//   <name>.offsets       F16 [groups, rows]      w = scale code + offset; neither: zero 2^(bits-1)
//   <name>.weak          F16 [k, rows]           weak columns, kept apart from the codes
//   <name>.weak_columns  I32 [k]                 their input channels in the order of the file
// NF4 has, instead of scales, bitsandbytes' double quantization (format/nf4.h):
//   <name>.absmax        I8  [blocks per row, rows]   <name>.absmax_scales F32 [blocks / 256]
//   <name>.absmax_offset F32 [1]
// where the 256 are counted across rows in the order of nf4_row_places().
// Shapes have the fastest axis first. The codes cover the channels that are not weak, ascending.
// Bits and group size are trimpot.bits and trimpot.group_size (0: one group per row) for the linear
// layers, trimpot.head.bits and trimpot.head.group_size for embedding and head.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "base/result.h"
#include "format/linear.h"
#include "io/gguf/gguf.h"
#include "model/config.h"

namespace trimpot {

// Sizes of the grouped matrices of a file of ours.
struct GroupedSizes {
  int bits = 0;
  std::int64_t group_size = 0;  // 0: one group per row
};

// Whether the file is one of ours.
Result<bool> is_own_file(const gguf::File& file);
// `prefix` is "trimpot" or "trimpot.head". Errors: bits that no kernel has, group sizes that are no
// multiple of 32.
Result<GroupedSizes> read_grouped_sizes(const gguf::File& file, const std::string& prefix);

// Place of each row of <name> in the order of PyTorch's files: llama.cpp has the rows of attn_q and
// attn_k as rotary pairs (0, half, 1, half + 1 ...) in every head. Others: empty, the same order.
std::vector<std::int32_t> nf4_row_places(const ModelConfig& config, const std::string& name);

// Names of the tensors that will be read as <name>, with weak columns or without, for the check that
// nothing is left over: offsets beside zeros, or a weight beside codes, would be ignored otherwise.
void add_stored_names(const gguf::File& file, const std::string& name, bool weak,
                      std::unordered_set<std::string>& names);

// Reads <name>, rows x columns, and lets go of the file's pages. Errors name file and tensor:
// missing, another shape, a type that does not fit, numbers that are not finite, weak columns that
// repeat or do not exist.
Result<Linear> read_linear(const gguf::File& file, const std::string& name, std::int64_t rows,
                           std::int64_t columns, const std::string& sizes_prefix);
// The same without weak columns (embedding, head).
Result<Matrix> read_matrix(const gguf::File& file, const std::string& name, std::int64_t rows,
                           std::int64_t columns, const std::string& sizes_prefix);
// Weak columns of <name> in the order of the file; none: empty.
Result<std::vector<std::int32_t>> read_weak_columns(const gguf::File& file, const std::string& name,
                                                    std::int64_t columns);
// A permutation of 0 .. count - 1, or null where the tensor is missing.
Result<ColumnOrder> read_order(const gguf::File& file, const std::string& name, std::int64_t count);
ColumnOrder inverse_order(const ColumnOrder& order);

// The tensor `name`. Errors: missing, another shape.
Result<const gguf::TensorInfo*> find_shaped(const gguf::File& file, const std::string& name,
                                            std::int64_t rows, std::int64_t columns);

}  // namespace trimpot
