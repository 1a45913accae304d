// Integer codes with scales per row and group of columns, as they lie in a file: what a quantizer
// makes and what `Matrix` packs for the kernels.
//
//     w = scale (level(code) - zero)      zeros per group, or one zero_point for all
//     w = scale level(code) + offset      with offsets
//
// where level(code) is the code itself, or, for NF4, an entry of a table of 16 values in [-1, 1].
//
//   codes   [rows][row_bytes]  packed bit by bit from the lowest: column c at bits c * bits ...
//           (so 4 bits: even columns in low nibbles; 8 bits: bytes); rows start on whole bytes
//   scales  [rows][groups] f16
//   zeros   [rows][groups] f16: whole numbers from a quantizer, any number once tuned
//   offsets [rows][groups] f16
// A group is `group_size` columns (a multiple of 32); the last one may be shorter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/half.h"
#include "base/result.h"

namespace trimpot {

enum class CodeBook : std::uint8_t {
  kInteger,  // level(code) = code
  kNf4,      // the 4-bit NormalFloat of QLoRA, 16 values of the normal distribution's quantiles
};

struct GroupedView {
  CodeBook book = CodeBook::kInteger;
  int bits = 0;  // 3, 4, 5 or 8
  int zero_point = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t group_size = 0;  // columns per group; `columns` or more: one group per row
  std::span<const std::uint8_t> codes;
  std::span<const f16> scales;
  std::span<const f16> zeros;    // empty: none
  std::span<const f16> offsets;  // empty: none; never together with zeros

  std::int64_t row_bytes() const { return (columns * bits + 7) / 8; }
  std::int64_t groups() const {
    return group_size >= columns ? 1 : (columns + group_size - 1) / group_size;
  }
};

struct GroupedCodes {
  CodeBook book = CodeBook::kInteger;
  int bits = 0;
  int zero_point = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t group_size = 0;
  std::vector<std::uint8_t> codes;
  std::vector<f16> scales;
  std::vector<f16> zeros;
  std::vector<f16> offsets;

  GroupedView view() const {
    return {book, bits, zero_point, rows, columns, group_size, codes, scales, zeros, offsets};
  }
};

// One row of codes, one byte each, to and from the packed form. `packed` has row_bytes() bytes.
void pack_row(int bits, std::span<const std::uint8_t> codes, std::uint8_t* packed);
void unpack_row(int bits, std::int64_t columns, const std::uint8_t* packed, std::uint8_t* codes);

// The 16 levels of NF4, ascending, as bitsandbytes has them (QLoRA, appendix E). An array, so that
// kernels build their tables from it at compile time.
inline constexpr float kNf4Levels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
std::span<const float, 16> nf4_levels();

}  // namespace trimpot
