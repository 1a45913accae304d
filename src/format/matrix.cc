#include "format/matrix.h"

#include <algorithm>
#include <cstring>

#include "base/half.h"
#include "base/round.h"
#include "format/chunks.h"
#include "format/ggml_blocks.h"

namespace trimpot {
namespace {

// The first of `count` floats that is an infinity or NaN, whose exponent is all ones; `count` if
// none is.
template <typename Bits>
std::int64_t first_not_finite(const std::byte* from, std::int64_t count, Bits exponent) {
  const auto broken = [&](std::int64_t i) {
    Bits bits;
    std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
    return (bits & exponent) == exponent;
  };
  bool any = false;
  for (std::int64_t i = 0; i < count; ++i) any |= broken(i);
  if (!any) return count;
  std::int64_t first = 0;
  while (!broken(first)) ++first;
  return first;
}

std::int64_t first_not_finite(ElementType type, const std::byte* from, std::int64_t count) {
  if (type == ElementType::kF32) return first_not_finite<std::uint32_t>(from, count, 0x7f800000u);
  return first_not_finite<std::uint16_t>(from, count,
                                         type == ElementType::kF16 ? 0x7c00u : 0x7f80u);
}

}  // namespace

void Matrix::set_views() {
  view_.codes = codes_.data();
  view_.scales = scales_.data();
  view_.zeros = zeros_.data();
  view_.offsets = offsets_.data();
  view_.dense = dense_.data();
}

Result<Matrix> Matrix::pack(ElementType type, std::int64_t rows, std::int64_t columns,
                            std::span<const std::byte> data) {
  const ElementTypeInfo info = element_type_info(type);
  if (!info.computable)
    return fail("type {} cannot be computed with; use a file whose weights are {}", info.name,
                computable_type_names());
  if (rows <= 0 || columns <= 0 || columns % info.block_elements != 0)
    return fail("{} rows of {} columns cannot be stored as {}, whose blocks have {} elements", rows,
                columns, info.name, info.block_elements);
  const std::int64_t row_bytes = columns / info.block_elements * info.block_bytes;
  if (static_cast<std::int64_t>(data.size()) != rows * row_bytes)
    return fail("{} bytes where {} rows of {} {} elements need {}", data.size(), rows, columns,
                info.name, rows * row_bytes);
  Matrix matrix;
  MatrixView& view = matrix.view_;
  view.rows = rows;
  view.columns = columns;
  view.tiles = divide_up(rows, kTileRows);
  const BlockFormat format = block_format(type);
  if (format.bits == 0) {
    view.storage = type == ElementType::kF32   ? Storage::kF32
                   : type == ElementType::kF16 ? Storage::kF16
                                               : Storage::kBF16;
    const std::int64_t size = info.block_bytes;
    matrix.dense_.resize(view.tiles * kTileRows * columns * size);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::byte* from = data.data() + row * row_bytes;
      if (const std::int64_t broken = first_not_finite(type, from, columns); broken < columns)
        return fail("row {}, column {}: not a finite number", row, broken);
      std::uint8_t* to =
          matrix.dense_.data() + ((row / kTileRows) * columns * kTileRows + row % kTileRows) * size;
      for (std::int64_t column = 0; column < columns; ++column)
        std::memcpy(to + column * kTileRows * size, from + column * size, size);
    }
    matrix.set_views();
    return matrix;
  }

  view.storage = Storage::kCodes;
  view.bits = format.bits;
  view.zero_point = format.zero_point;
  view.chunks = divide_up(columns, kChunkColumns);
  view.groups = view.chunks;
  const std::int64_t chunk_bytes = format.bits * 64;
  view.tile_bytes = tile_code_bytes(view.bits, columns);  // whole chunks: blocks are of 32
  matrix.codes_.resize(view.tiles * view.tile_bytes);
  matrix.scales_.resize(view.tiles * view.groups * kTileRows);
  if (format.offset_offset >= 0) matrix.offsets_.resize(view.tiles * view.groups * kTileRows);
  alignas(64) std::uint8_t codes[kTileRows * kChunkColumns];
  for (std::int64_t tile = 0; tile < view.tiles; ++tile) {
    const int tile_rows = static_cast<int>(std::min<std::int64_t>(kTileRows, rows - tile * 16));
    if (tile_rows < kTileRows) std::memset(codes, format.zero_point, sizeof codes);
    for (std::int64_t chunk = 0; chunk < view.chunks; ++chunk) {
      for (int row = 0; row < tile_rows; ++row) {
        const std::byte* block =
            data.data() + (tile * kTileRows + row) * row_bytes + chunk * format.bytes;
        unpack_block(format, block, codes + row * kChunkColumns);
        const std::size_t index = matrix.scale_index(tile * kTileRows + row, chunk);
        const f16 scale = block_f16(block, format.scale_offset);
        const f16 offset = format.offset_offset >= 0 ? block_f16(block, format.offset_offset) : 0;
        if (!is_finite(scale) || !is_finite(offset))
          return fail("row {}, columns {} to {}: the {} is not a finite number", tile * 16 + row,
                      chunk * 32, chunk * 32 + 31, is_finite(scale) ? "offset" : "scale");
        matrix.scales_[index] = scale;
        if (format.offset_offset >= 0) matrix.offsets_[index] = offset;
      }
      pack_chunk(format.bits, codes, kChunkColumns,
                 matrix.codes_.data() + tile * view.tile_bytes + chunk * chunk_bytes);
    }
  }
  matrix.set_views();
  return matrix;
}

Matrix Matrix::zeros(Storage storage, std::int64_t rows, std::int64_t columns) {
  Matrix matrix;
  matrix.view_.storage = storage;
  matrix.view_.rows = rows;
  matrix.view_.columns = columns;
  matrix.view_.tiles = divide_up(rows, kTileRows);
  const std::int64_t size = storage == Storage::kF32 ? 4 : 2;
  matrix.dense_.resize(matrix.view_.tiles * kTileRows * columns * size);
  matrix.set_views();
  return matrix;
}

Matrix Matrix::clone() const {
  const auto copy = []<typename T>(const AlignedBuffer<T>& from, AlignedBuffer<T>& to) {
    to.resize(from.size());
    if (!from.empty()) std::memcpy(to.data(), from.data(), from.size() * sizeof(T));
  };
  Matrix matrix;
  matrix.view_ = view_;
  copy(codes_, matrix.codes_);
  copy(scales_, matrix.scales_);
  copy(zeros_, matrix.zeros_);
  copy(offsets_, matrix.offsets_);
  copy(dense_, matrix.dense_);
  matrix.set_views();
  return matrix;
}

void Matrix::move_to(Arena& arena) {
  codes_.move_to(arena);
  scales_.move_to(arena);
  zeros_.move_to(arena);
  offsets_.move_to(arena);
  dense_.move_to(arena);
  set_views();
}

std::size_t Matrix::bytes() const {
  return codes_.size() + 2 * (scales_.size() + zeros_.size() + offsets_.size()) + dense_.size();
}

std::span<float> Matrix::dense_f32() {
  if (view_.storage != Storage::kF32) return {};
  return {reinterpret_cast<float*>(dense_.data()), dense_.size() / sizeof(float)};
}
std::span<const float> Matrix::dense_f32() const { return const_cast<Matrix*>(this)->dense_f32(); }

std::span<f16> Matrix::dense_f16() {
  if (view_.storage != Storage::kF16) return {};
  return {reinterpret_cast<f16*>(dense_.data()), dense_.size() / sizeof(f16)};
}
std::span<bf16> Matrix::dense_bf16() {
  if (view_.storage != Storage::kBF16) return {};
  return {reinterpret_cast<bf16*>(dense_.data()), dense_.size() / sizeof(bf16)};
}
std::span<const f16> Matrix::dense_f16() const { return const_cast<Matrix*>(this)->dense_f16(); }

int Matrix::code(std::int64_t row, std::int64_t column) const {
  return code_in_chunk(view_.bits, chunk_at(row, column / kChunkColumns),
                       static_cast<int>(row % kTileRows), static_cast<int>(column % kChunkColumns));
}

void Matrix::dequantize_row(std::int64_t row, float* out) const {
  if (view_.storage == Storage::kCodes) {
    const std::int64_t group_columns = std::int64_t{view_.group_chunks} * kChunkColumns;
    for (std::int64_t group = 0; group < view_.groups; ++group) {
      const std::size_t index = scale_index(row, group);
      const float scale = f16_to_f32(scales_[index]);
      const float offset = offsets_.empty() ? 0.0f : f16_to_f32(offsets_[index]);
      const float zero =
          zeros_.empty() ? static_cast<float>(view_.zero_point) : f16_to_f32(zeros_[index]);
      const std::int64_t end = std::min(view_.columns, (group + 1) * group_columns);
      for (std::int64_t column = group * group_columns; column < end; ++column) {
        const int code = this->code(row, column);
        const float level =
            view_.book == CodeBook::kNf4 ? kNf4Levels[code] : static_cast<float>(code);
        out[column] = scale * (level - zero) + offset;
      }
    }
    return;
  }
  for (std::int64_t column = 0; column < view_.columns; ++column) {
    const std::size_t index = dense_index(row, column);
    if (view_.storage == Storage::kF32) {
      out[column] = static_cast<const float*>(view_.dense)[index];
    } else {
      const std::uint16_t bits = static_cast<const std::uint16_t*>(view_.dense)[index];
      out[column] = view_.storage == Storage::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
}

}  // namespace trimpot
