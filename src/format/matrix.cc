#include "format/matrix.h"

#include <cstring>

#include "format/ggml_blocks.h"

namespace trimpot {
namespace {

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

bool finite(f16 bits) { return (bits & 0x7c00u) != 0x7c00u; }

// Writes 16 rows x 32 columns of codes, [16][32], as the planes of one chunk.
void pack_chunk(int bits, const std::uint8_t* codes, std::uint8_t* chunk) {
  for (int row = 0; row < kTileRows; ++row) {
    const std::uint8_t* from = codes + row * kChunkColumns;
    std::uint8_t* to = chunk + row * 4;
    if (bits == 8) {
      for (int step = 0; step < 8; ++step) std::memcpy(to + step * 64, from + step * 4, 4);
      continue;
    }
    for (int plane = 0; plane < 4; ++plane) {
      std::uint32_t low, high;
      std::memcpy(&low, from + plane * 8, 4);
      std::memcpy(&high, from + plane * 8 + 4, 4);
      const std::uint32_t both = (low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4;
      std::memcpy(to + plane * 64, &both, 4);
    }
    if (bits == 5) {
      std::uint32_t fifth = 0;
      for (int step = 0; step < 8; ++step) {
        std::uint32_t four;
        std::memcpy(&four, from + step * 4, 4);
        fifth |= (four >> 4 & 0x01010101u) << step;
      }
      std::memcpy(to + 256, &fifth, 4);
    }
  }
}

int code_in_chunk(int bits, const std::uint8_t* chunk, int row, int column) {
  const int step = column / 4, byte = row * 4 + column % 4;
  if (bits == 8) return chunk[step * 64 + byte];
  int code = chunk[step / 2 * 64 + byte] >> (step % 2 * 4) & 0x0f;
  if (bits == 5) code |= (chunk[256 + byte] >> step & 1) << 4;
  return code;
}

}  // namespace

void Matrix::set_views() {
  view_.codes = codes_.data();
  view_.scales = scales_.data();
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
  matrix.codes_.resize(view.tiles * view.chunks * chunk_bytes);
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
        if (!finite(scale) || !finite(offset))
          return fail("row {}, columns {} to {}: the {} is not a finite number", tile * 16 + row,
                      chunk * 32, chunk * 32 + 31, finite(scale) ? "offset" : "scale");
        matrix.scales_[index] = scale;
        if (format.offset_offset >= 0) matrix.offsets_[index] = offset;
      }
      pack_chunk(format.bits, codes,
                 matrix.codes_.data() + (tile * view.chunks + chunk) * chunk_bytes);
    }
  }
  matrix.set_views();
  return matrix;
}

std::size_t Matrix::bytes() const {
  return codes_.size() + 2 * (scales_.size() + offsets_.size()) + dense_.size();
}

int Matrix::code(std::int64_t row, std::int64_t column) const {
  const std::uint8_t* chunk =
      view_.codes + ((row / kTileRows) * view_.chunks + column / kChunkColumns) * view_.bits * 64;
  return code_in_chunk(view_.bits, chunk, static_cast<int>(row % kTileRows),
                       static_cast<int>(column % kChunkColumns));
}

void Matrix::dequantize_row(std::int64_t row, float* out) const {
  if (view_.storage == Storage::kCodes) {
    for (std::int64_t column = 0; column < view_.columns; ++column) {
      const std::size_t index = scale_index(row, column / (view_.group_chunks * kChunkColumns));
      const float offset = offsets_.empty() ? 0.0f : f16_to_f32(offsets_[index]);
      const float code = static_cast<float>(this->code(row, column) - view_.zero_point);
      out[column] = f16_to_f32(scales_[index]) * code + offset;
    }
    return;
  }
  const std::int64_t first = (row / kTileRows) * view_.columns * kTileRows + row % kTileRows;
  for (std::int64_t column = 0; column < view_.columns; ++column) {
    const std::int64_t index = first + column * kTileRows;
    if (view_.storage == Storage::kF32) {
      out[column] = static_cast<const float*>(view_.dense)[index];
    } else {
      const std::uint16_t bits = static_cast<const std::uint16_t*>(view_.dense)[index];
      out[column] = view_.storage == Storage::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
}

}  // namespace trimpot
