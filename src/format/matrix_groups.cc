// Grouped codes, as quantizers make them and files hold them, to and from a Matrix.
#include <algorithm>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/round.h"
#include "format/chunks.h"
#include "format/matrix.h"

namespace trimpot {
namespace {

// What a file may claim, before anything is allocated or multiplied.
Status check(const GroupedView& source) {
  const std::int64_t rows = source.rows, columns = source.columns, size = source.group_size;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (rows <= 0 || columns <= 0 || rows > kMost || columns > kMost)
    return fail("a matrix of {} rows and {} columns is not possible; both are 1 to {}", rows,
                columns, kMost);
  if (source.bits != 3 && source.bits != 4 && source.bits != 5 && source.bits != 8)
    return fail("codes of {} bits are not supported; 3, 4, 5 and 8 are", source.bits);
  if (size <= 0 || (size < columns && size % kChunkColumns != 0))
    return fail(
        "a group size of {} is not supported for {} columns; it is a multiple of {}, or at "
        "least the number of columns",
        size, columns, kChunkColumns);
  const bool shifts = !source.zeros.empty() || !source.offsets.empty();
  if (!source.zeros.empty() && !source.offsets.empty())
    return fail("a matrix has either zeros or offsets, not both");
  if (source.book == CodeBook::kNf4 && (source.bits != 4 || source.zero_point != 0 || shifts))
    return fail("NF4 has codes of 4 bits without zero-points, zeros or offsets");
  if (source.zero_point < 0 || source.zero_point >= 1 << source.bits ||
      (shifts && source.zero_point != 0))
    return fail("a zero-point of {} does not fit codes of {} bits{}", source.zero_point,
                source.bits, shifts ? " with zeros or offsets" : "");
  const auto code_bytes = static_cast<std::uint64_t>(rows * source.row_bytes());
  if (source.codes.size() != code_bytes)
    return fail("{} bytes of codes where {} rows of {} codes with {} bits need {}",
                source.codes.size(), rows, columns, source.bits, code_bytes);
  const auto count = static_cast<std::uint64_t>(rows * source.groups());
  const auto agrees = [&](std::span<const f16> values) {
    return values.empty() || values.size() == count;
  };
  if (source.scales.size() != count || !agrees(source.zeros) || !agrees(source.offsets))
    return fail(
        "{} scales, {} zeros and {} offsets where {} rows of {} groups need {} of each kind",
        source.scales.size(), source.zeros.size(), source.offsets.size(), rows, source.groups(),
        count);
  const auto all_finite = [&](std::span<const f16> values, const char* name) -> Status {
    const auto bad = std::find_if_not(values.begin(), values.end(), is_finite);
    if (bad == values.end()) return {};
    const std::int64_t at = bad - values.begin(), first = at % source.groups() * size;
    const std::int64_t last = source.groups() == 1 ? columns : std::min(columns, first + size);
    return fail("row {}, columns {} to {}: the {} is not a finite number", at / source.groups(),
                first, last - 1, name);
  };
  TRIMPOT_TRY_VOID(all_finite(source.scales, "scale"));
  TRIMPOT_TRY_VOID(all_finite(source.zeros, "zero"));
  return all_finite(source.offsets, "offset");
}

}  // namespace

Result<Matrix> Matrix::pack_groups(const GroupedView& source) {
  TRIMPOT_TRY_VOID(check(source));
  Matrix matrix;
  MatrixView& view = matrix.view_;
  view.storage = Storage::kCodes;
  view.book = source.book;
  view.bits = source.bits;
  view.zero_point = source.zero_point;
  view.rows = source.rows;
  view.columns = source.columns;
  view.tiles = divide_up(view.rows, kTileRows);
  view.chunks = divide_up(view.columns, kChunkColumns);
  view.groups = source.groups();
  view.group_chunks =
      static_cast<int>(view.groups == 1 ? view.chunks : source.group_size / kChunkColumns);
  const auto pack_values = [&](std::span<const f16> from, AlignedBuffer<f16>& to) {
    if (from.empty()) return;
    to.resize(view.tiles * view.groups * kTileRows);
    for (std::int64_t row = 0; row < view.rows; ++row)
      for (std::int64_t group = 0; group < view.groups; ++group)
        to[matrix.scale_index(row, group)] = from[row * view.groups + group];
  };
  pack_values(source.scales, matrix.scales_);
  pack_values(source.zeros, matrix.zeros_);
  pack_values(source.offsets, matrix.offsets_);

  const std::int64_t chunk_bytes = view.bits * 64;
  view.tile_bytes = tile_code_bytes(view.bits, view.columns);
  // Whole chunks can be read of the last tile as well.
  const std::int64_t beyond = view.chunks * chunk_bytes - view.tile_bytes;
  matrix.codes_.resize(view.tiles * view.tile_bytes + beyond);
  const std::int64_t stride = view.chunks * kChunkColumns;
  const auto padding = static_cast<std::uint8_t>(view.zero_point);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(kTileRows * stride), padding);
  for (std::int64_t tile = 0; tile < view.tiles; ++tile) {
    const std::int64_t first = tile * kTileRows;
    const std::int64_t rows = std::min<std::int64_t>(kTileRows, view.rows - first);
    for (std::int64_t row = 0; row < rows; ++row)
      unpack_row(view.bits, view.columns, source.codes.data() + (first + row) * source.row_bytes(),
                 codes.data() + row * stride);
    std::fill(codes.begin() + rows * stride, codes.end(), padding);
    // Tiles in order: what a last chunk has beyond its half is overwritten by the next tile.
    for (std::int64_t chunk = 0; chunk < view.chunks; ++chunk)
      pack_chunk(view.bits, codes.data() + chunk * kChunkColumns, stride,
                 matrix.codes_.data() + tile * view.tile_bytes + chunk * chunk_bytes);
  }
  matrix.set_views();
  return matrix;
}

GroupedCodes Matrix::unpack_groups() const {
  GroupedCodes out;
  out.book = view_.book;
  out.bits = view_.bits;
  out.zero_point = view_.zero_point;
  out.rows = view_.rows;
  out.columns = view_.columns;
  out.group_size =
      view_.groups == 1 ? view_.columns : std::int64_t{view_.group_chunks} * kChunkColumns;
  const std::int64_t row_bytes = out.view().row_bytes();
  out.codes.resize(static_cast<std::size_t>(view_.rows * row_bytes));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(view_.chunks * kChunkColumns));
  for (std::int64_t row = 0; row < view_.rows; ++row) {
    for (std::int64_t chunk = 0; chunk < view_.chunks; ++chunk)
      for (int column = 0; column < kChunkColumns; ++column)
        codes[chunk * kChunkColumns + column] = static_cast<std::uint8_t>(code_in_chunk(
            view_.bits, chunk_at(row, chunk), static_cast<int>(row % kTileRows), column));
    pack_row(view_.bits, std::span(codes).first(static_cast<std::size_t>(view_.columns)),
             out.codes.data() + row * row_bytes);
  }
  const auto unpack_values = [&](const AlignedBuffer<f16>& from, std::vector<f16>& to) {
    if (from.empty()) return;
    to.reserve(static_cast<std::size_t>(view_.rows * view_.groups));
    for (std::int64_t row = 0; row < view_.rows; ++row)
      for (std::int64_t group = 0; group < view_.groups; ++group)
        to.push_back(from[scale_index(row, group)]);
  };
  unpack_values(scales_, out.scales);
  unpack_values(zeros_, out.zeros);
  unpack_values(offsets_, out.offsets);
  return out;
}

}  // namespace trimpot
