// A weight matrix in memory, packed for the kernels. Files keep plain rows; this layout is made at
// load, so a better kernel never changes a file.
//
// Convention everywhere: w = s (q - z) per row and group of columns. In memory this is one of
//   - w = scale * (code - zero_point), one integer for the whole matrix: Q4_0 8, Q5_0 16, Q8_0 128;
//   - w = scale * code + offset, Q4_1 and Q5_1: offset = -s z;
//   - w = scale * (code - zero), zeros stored as such;
//   - w = scale * level[code], NF4: 4-bit codes into a table of 16 levels,
// with unsigned codes; zero_point is 0 in all but the first.
//
// Layout: tiles of 16 rows, so that a vector lane is an output row, and chunks of 32 columns.
//
//   codes    [tiles][chunks][bits * 64 bytes]   one chunk = 16 rows x 32 columns = `bits` planes;
//                                               the last may be half as long (tile_code_bytes)
//   scales   [tiles][groups][16]  f16     group = group_chunks chunks; the last may be shorter
//   zeros    [tiles][groups][16]  f16     empty when the format has none
//   offsets  [tiles][groups][16]  f16     empty when the format has none
//   dense    [tiles][columns][16] f32|f16|bf16   for matrices that are not quantized
//
// Inside a chunk, step b (0..7) is the columns 4b..4b+3, and byte 4r+j belongs to row r, column
// 4b+j: one 64-byte vector feeds one u8 x s8 dot product against a broadcast of 4 activations.
//   3 bits: plane b%3 holds step b < 6 at bits 0 to 2 (b < 3) or 3 to 5; bits 6 and 7 of planes 0
//           and 2 hold the low two bits of steps 6 and 7, those of plane 1 their third bits. With
//           the third bits in a plane of their own each step took five instructions to unpack
//   4 bits: plane b/2 holds step b in its low nibbles (b even) or high nibbles (b odd)
//   5 bits: as 4 bits, then one plane whose bit b holds the fifth bit of step b
//   8 bits: plane b holds step b
// Rows beyond the matrix have zero scales, zeros and offsets. Columns beyond it are codes of
// zero_point or, behind half a chunk, the next tile's; these are not weights of 0, so kernels
// either multiply them by activations of 0 or do not look at them.
#pragma once

#include <cstdint>
#include <span>

#include "base/half.h"
#include "base/result.h"
#include "format/grouped.h"
#include "sys/aligned_buffer.h"
#include "tensor/element_type.h"

namespace trimpot {

inline constexpr int kTileRows = 16;
inline constexpr int kChunkColumns = 32;

// Bytes of a tile's codes. With 4 and 8 bits the first 16 columns of a chunk are its first half:
// where a row ends with them, the next tile begins there. 576 columns less 16 weak ones are 17 1/2
// chunks, and decoding reads no more than these.
inline std::int64_t tile_code_bytes(int bits, std::int64_t columns) {
  const std::int64_t chunks = (columns + kChunkColumns - 1) / kChunkColumns;
  const bool half = (bits == 4 || bits == 8) && (columns + 15) / 16 % 2 == 1;
  return chunks * bits * 64 - (half ? bits * 32 : 0);
}

enum class Storage : std::uint8_t { kCodes, kF32, kF16, kBF16 };

// Plain pointers: what kernels see of a matrix.
struct MatrixView {
  Storage storage{};
  CodeBook book = CodeBook::kInteger;
  int bits = 0;
  int zero_point = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  int group_chunks = 1;  // chunks per group
  std::int64_t tiles = 0;
  std::int64_t chunks = 0;  // per tile
  std::int64_t tile_bytes = 0;
  std::int64_t groups = 0;  // per row
  const std::uint8_t* codes = nullptr;
  const f16* scales = nullptr;
  const f16* zeros = nullptr;    // nullptr: none
  const f16* offsets = nullptr;  // nullptr: none; never together with zeros
  const void* dense = nullptr;

  // Whether every group has a zero-point of its own, as zeros or offsets: a second gradient.
  bool has_shifts() const { return zeros != nullptr || offsets != nullptr; }
};

// Scales, zeros and offsets in a matrix's packed order; null: the matrix's own. Only what the
// matrix has can be replaced.
struct GroupArrays {
  const f16* scales = nullptr;
  const f16* zeros = nullptr;
  const f16* offsets = nullptr;

  bool operator==(const GroupArrays&) const = default;
};

class Matrix {
 public:
  Matrix() = default;

  // Packs `rows` x `columns` elements that lie row after row in `data` as GGUF stores them.
  // Errors: a type that is not computable; columns not a multiple of the type's block; scales or
  // offsets that are NaN or infinite (naming the row and group). The caller adds file and tensor.
  static Result<Matrix> pack(ElementType type, std::int64_t rows, std::int64_t columns,
                             std::span<const std::byte> data);
  // Packs grouped codes. Errors: sizes that do not agree, bits or a group size that no kernel has,
  // scales, zeros or offsets that are not finite (naming row and columns). The caller adds file and
  // tensor.
  static Result<Matrix> pack_groups(const GroupedView& source);
  // The inverse for any quantized matrix: the same codes, scales, zeros and offsets. group_size is
  // a multiple of 32, or `columns` where rows have one group.
  GroupedCodes unpack_groups() const;
  // A dense matrix of zeros, to be filled through dense_f32() and the like. Not for kCodes.
  static Matrix zeros(Storage storage, std::int64_t rows, std::int64_t columns);
  Matrix clone() const;
  // Moves the contents to memory of the arena, which must outlive this matrix.
  void move_to(Arena& arena);

  const MatrixView& view() const { return view_; }
  std::int64_t rows() const { return view_.rows; }
  std::int64_t columns() const { return view_.columns; }
  std::int64_t groups() const { return view_.groups; }
  bool quantized() const { return view_.storage == Storage::kCodes; }
  bool has_zeros() const { return view_.zeros != nullptr; }
  bool has_offsets() const { return view_.offsets != nullptr; }
  bool has_shifts() const { return view_.has_shifts(); }
  std::size_t bytes() const;

  // Row `row` as f32, [columns]: the embedding lookup.
  void dequantize_row(std::int64_t row, float* out) const;
  // The code at (row, column), 0 .. 2^bits - 1.
  int code(std::int64_t row, std::int64_t column) const;

  // Scales, zeros and offsets in packed order [tiles][groups][16]; a tuning method writes them
  // here.
  std::span<f16> scales() { return scales_.span(); }
  std::span<const f16> scales() const { return scales_.span(); }
  std::span<f16> zeros() { return zeros_.span(); }
  std::span<const f16> zeros() const { return zeros_.span(); }
  std::span<f16> offsets() { return offsets_.span(); }
  std::span<const f16> offsets() const { return offsets_.span(); }
  // Position of (row, group) in scales(), zeros() and offsets().
  std::size_t scale_index(std::int64_t row, std::int64_t group) const {
    return static_cast<std::size_t>(((row / kTileRows) * view_.groups + group) * kTileRows +
                                    row % kTileRows);
  }

  // Elements of a dense matrix, [tiles][columns][16]; empty if it has another storage.
  std::span<float> dense_f32();
  std::span<const float> dense_f32() const;
  std::span<f16> dense_f16();
  std::span<const f16> dense_f16() const;
  std::span<bf16> dense_bf16();
  // Position of (row, column) there.
  std::size_t dense_index(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(((row / kTileRows) * view_.columns + column) * kTileRows +
                                    row % kTileRows);
  }

 private:
  void set_views();
  const std::uint8_t* chunk_at(std::int64_t row, std::int64_t chunk) const {
    return view_.codes + row / kTileRows * view_.tile_bytes + chunk * view_.bits * 64;
  }
  MatrixView view_;
  AlignedBuffer<std::uint8_t> codes_;
  AlignedBuffer<f16> scales_;
  AlignedBuffer<f16> zeros_;
  AlignedBuffer<f16> offsets_;
  AlignedBuffer<std::uint8_t> dense_;
};

}  // namespace trimpot
