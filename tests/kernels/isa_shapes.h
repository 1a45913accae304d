// Matrices that the tests of all instruction sets take.
#pragma once

#include "support/random_groups.h"

namespace trimpot {

struct Shape {
  std::int64_t rows, columns;
};
inline constexpr Shape kShapes[] = {{1, 32}, {16, 64}, {40, 96}, {100, 160}};

// Formats that allow it get columns that fill no chunk, or no half of one.
inline std::int64_t fitting(const MatrixFormat& format, std::int64_t columns) {
  if (format.column_unit != 1) return columns;
  return columns == 160 ? 140 : columns - 11;
}

}  // namespace trimpot
