// Grouped codes as plain numbers, from the definitions in format/grouped.h.
#pragma once

#include <vector>

#include "format/grouped.h"
#include "quantize/scheme.h"

namespace trimpot {

inline std::vector<int> all_codes(const GroupedCodes& grouped) {
  const GroupedView view = grouped.view();
  std::vector<int> codes;
  std::vector<std::uint8_t> row(static_cast<std::size_t>(view.columns));
  for (std::int64_t r = 0; r < view.rows; ++r) {
    unpack_row(view.bits, view.columns, view.codes.data() + r * view.row_bytes(), row.data());
    codes.insert(codes.end(), row.begin(), row.end());
  }
  return codes;
}

inline std::vector<double> dequantized(const GroupedCodes& grouped) {
  const GroupedView view = grouped.view();
  const std::vector<int> codes = all_codes(grouped);
  std::vector<double> values;
  for (std::int64_t r = 0; r < view.rows; ++r)
    for (std::int64_t c = 0; c < view.columns; ++c) {
      const std::size_t at = r * view.groups() + c / view.group_size;
      const int code = codes[r * view.columns + c];
      const double level = view.book == CodeBook::kNf4 ? nf4_levels()[code] : code;
      double zero = view.zero_point, offset = 0;
      if (!view.zeros.empty()) zero = f16_to_f32(view.zeros[at]);
      if (!view.offsets.empty()) offset = f16_to_f32(view.offsets[at]);
      values.push_back(f16_to_f32(view.scales[at]) * (level - zero) + offset);
    }
  return values;
}

inline WeightView whole(const std::vector<float>& w, std::int64_t rows, std::int64_t columns) {
  return {w.data(), rows, columns, columns};
}

}  // namespace trimpot
