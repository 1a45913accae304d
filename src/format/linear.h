// One linear layer as it is stored: frozen codes, and what may stand beside them.
//
//   y = W x[weight_columns] + F x[weak_columns] + scale B (A x)
//
//   weight  codes or dense numbers [rows, n]
//   weak    weak columns, f16 or f32 [rows, k]: kept apart from the codes (OWQ, QEFT), or added to
//           them (differences of columns tuned over a file that has none)
//   A, B    the low-rank path [rank, columns], [rows, rank] (LoRA); A may see sums over groups of
//           `pool` columns instead of x (QA-LoRA)
// A format knows no tuning method; a method picks which of these parts learn.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "format/matrix.h"

namespace trimpot {

// Input channel of each stored column; null: in order (see Linear).
using ColumnOrder = std::shared_ptr<const std::vector<std::int32_t>>;

struct LowRank {
  Matrix a;           // f32 [rank, columns], or [rank, ceil(columns / pool)]
  Matrix b;           // f32 [rows, rank]
  float scale = 0;    // alpha / r, or alpha / sqrt(r)
  int pool = 0;       // 0: A sees x itself
  float dropout = 0;  // of A's input while tuning
  std::uint64_t seed = 0;
};

struct Linear {
  Matrix weight;
  Matrix weak;                 // rows() == 0: none
  ColumnOrder weight_columns;  // null: channels 0 .. n - 1
  ColumnOrder weak_columns;    // null: channels n .. n + k - 1
  std::unique_ptr<LowRank> low_rank;

  std::int64_t rows() const { return weight.rows(); }
  // Channels of the input.
  std::int64_t columns = 0;
  std::size_t bytes() const {
    std::size_t bytes = weight.bytes() + weak.bytes();
    if (low_rank) bytes += low_rank->a.bytes() + low_rank->b.bytes();
    return bytes;
  }
};

// What kernels work with: a linear layer, or a plain matrix (the head).
struct LinearView {
  const Matrix* weight;
  GroupArrays groups;  // instead of the weight's own
  const Matrix* weak = nullptr;
  const std::vector<std::int32_t>* weight_columns = nullptr;
  const std::vector<std::int32_t>* weak_columns = nullptr;
  const LowRank* low_rank = nullptr;

  LinearView(const Linear& linear)
      : weight(&linear.weight),
        weak(linear.weak.rows() > 0 ? &linear.weak : nullptr),
        weight_columns(linear.weight_columns.get()),
        weak_columns(linear.weak_columns.get()),
        low_rank(linear.low_rank.get()) {}
  LinearView(const Matrix& matrix) : weight(&matrix) {}

  // The weight with the groups' numbers that count.
  MatrixView codes() const;
};

inline MatrixView LinearView::codes() const {
  MatrixView view = weight->view();
  if (groups.scales != nullptr) view.scales = groups.scales;
  if (groups.zeros != nullptr) view.zeros = groups.zeros;
  if (groups.offsets != nullptr) view.offsets = groups.offsets;
  return view;
}

}  // namespace trimpot
