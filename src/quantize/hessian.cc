#include "quantize/hessian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trimpot {
namespace {

// The reference inverts H and factors the inverse: H^-1 = U^T U. Here, with J the reversal of all
// rows (or columns): J H J = L L^T gives H = (J L J)(J L J)^T, J L J is upper triangular, and so
// U = (J L J)^-1 = J L^-1 J. One factorization and one triangular inverse, half the work, and the
// inverse of H, which loses digits, never exists.

constexpr std::int64_t kBlock = 64;
constexpr std::int64_t kPanel = 64;  // columns of the inverse that a thread computes at a time

// Rows that start an odd number of cache lines apart do not compete for the same sets.
std::int64_t padded_stride(std::int64_t columns) {
  const std::int64_t lines = (columns + 15) / 16;
  return (lines | 1) * 16;
}

struct Square {
  float* data;
  std::int64_t columns;
  std::int64_t stride;
  float* at(std::int64_t row, std::int64_t column) const { return data + row * stride + column; }
};

// c [rows][count] += a [rows][depth] * b, b row-major [depth][count].
void multiply_add(const Kernels& kernels, const float* a, std::int64_t a_stride, const float* b,
                  std::int64_t b_stride, std::int64_t rows, std::int64_t count, std::int64_t depth,
                  float* c, std::int64_t c_stride) {
  kernels.multiply({a, a_stride, 1}, {b, Storage::kF32, 16, b_stride}, rows, count, depth, c,
                   c_stride, true);
}

// Factors the block of `count` columns at `first` in place, in double. Returns the first column
// whose pivot has no correct digit left, or -1.
std::int64_t factor_block(const Square& a, std::int64_t first, std::int64_t count,
                          const float* diagonal) {
  double block[kBlock][kBlock];
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j <= i; ++j)
      block[i][j] = static_cast<double>(*a.at(first + i, first + j));
  for (std::int64_t j = 0; j < count; ++j) {
    double pivot = block[j][j];
    for (std::int64_t k = 0; k < j; ++k) pivot -= block[j][k] * block[j][k];
    // The pivot is at least the damping, and 1 % of the mean is at least 0.01 / columns of the
    // largest diagonal: 9e-7 for 11,008 columns. Four units of f32's rounding are 2.4e-7.
    if (!(pivot > 4 * 0x1p-24 * static_cast<double>(diagonal[first + j]))) return first + j;
    const double root = std::sqrt(pivot);
    block[j][j] = root;
    for (std::int64_t i = j + 1; i < count; ++i) {
      double sum = block[i][j];
      for (std::int64_t k = 0; k < j; ++k) sum -= block[i][k] * block[j][k];
      block[i][j] = sum / root;
    }
  }
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j <= i; ++j)
      *a.at(first + i, first + j) = static_cast<float>(block[i][j]);
  return -1;
}

// Solves x L^T = a for rows of `count` values below a factored block, 16 rows at a time.
void solve_rows(const Square& a, std::int64_t first, std::int64_t count, std::int64_t row,
                std::int64_t end) {
  constexpr int kLanes = 16;
  alignas(64) float x[kBlock][kLanes];
  for (; row < end; row += kLanes) {
    const std::int64_t rows = std::min<std::int64_t>(kLanes, end - row);
    for (std::int64_t j = 0; j < count; ++j) {
      const float* lower = a.at(first + j, first);
      float sum[kLanes] = {};
      for (std::int64_t lane = 0; lane < rows; ++lane) sum[lane] = *a.at(row + lane, first + j);
      for (std::int64_t k = 0; k < j; ++k)
        for (int lane = 0; lane < kLanes; ++lane) sum[lane] -= x[k][lane] * lower[k];
      for (int lane = 0; lane < kLanes; ++lane) x[j][lane] = sum[lane] / lower[j];
    }
    for (std::int64_t lane = 0; lane < rows; ++lane)
      for (std::int64_t j = 0; j < count; ++j) *a.at(row + lane, first + j) = x[j][lane];
  }
}

// The lower triangle of `a` becomes L, a = L L^T, block column by block column; each takes the
// products of all columns to its left at once, so that sums are long and stay in registers.
// Returns the column at which it failed, or -1.
std::int64_t factor(Compute& compute, const Square& a, const float* diagonal) {
  AlignedBuffer<float> turned(kBlock * a.columns);  // -(rows first..) of L, transposed: [k][64]
  for (std::int64_t first = 0; first < a.columns; first += kBlock) {
    const std::int64_t count = std::min(kBlock, a.columns - first);
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t k = 0; k < first; ++k) turned[k * kBlock + i] = -*a.at(first + i, k);
    const auto subtract = [&](std::int64_t row, std::int64_t end) {
      multiply_add(compute.kernels, a.at(row, 0), a.stride, turned.data(), kBlock, end - row, count,
                   first, a.at(row, first), a.stride);
    };
    if (first > 0) subtract(first, first + count);
    const std::int64_t failed = factor_block(a, first, count, diagonal);
    if (failed >= 0) return failed;
    const std::int64_t below = first + count;
    compute.team.for_each(a.columns - below, 64, [&](std::int64_t begin, std::int64_t end, int) {
      if (first > 0) subtract(below + begin, below + end);
      solve_rows(a, first, count, below + begin, below + end);
    });
  }
  return -1;
}

// x = L^-1, lower triangular, x zeroed before. Panels of columns are independent of each other:
// forward substitution in each, from its diagonal down.
void invert(Compute& compute, const Square& l, const Square& x) {
  compute.team.for_each(
      (l.columns + kPanel - 1) / kPanel, 1, [&](std::int64_t panel, std::int64_t, int) {
        const std::int64_t left = panel * kPanel, width = std::min(kPanel, l.columns - left);
        float sums[kBlock * kPanel];
        for (std::int64_t first = left; first < l.columns; first += kBlock) {
          const std::int64_t count = std::min(kBlock, l.columns - first);
          std::fill_n(sums, count * kPanel, 0.0f);
          if (first > left)
            multiply_add(compute.kernels, l.at(first, left), l.stride, x.at(left, left), x.stride,
                         count, width, first - left, sums, kPanel);
          for (std::int64_t i = 0; i < count; ++i) {
            float row[kPanel];
            for (std::int64_t c = 0; c < kPanel; ++c) row[c] = -sums[i * kPanel + c];
            if (first == left) row[i] += 1.0f;
            for (std::int64_t k = 0; k < i; ++k) {
              const float factor = *l.at(first + i, first + k);
              const float* above = sums + k * kPanel;  // holds row k of x by now
              for (std::int64_t c = 0; c < kPanel; ++c) row[c] -= factor * above[c];
            }
            const float pivot = *l.at(first + i, first + i);
            for (std::int64_t c = 0; c < kPanel; ++c) sums[i * kPanel + c] = row[c] / pivot;
            std::copy_n(sums + i * kPanel, width, x.at(first + i, left));
          }
        }
      });
}

// The mean of the diagonal over living columns.
Result<double> living_mean(std::span<const float> hessian, std::int64_t columns) {
  double sum = 0;
  std::int64_t alive = 0;
  for (std::int64_t j = 0; j < columns; ++j) {
    const float value = hessian[static_cast<std::size_t>(j * columns + j)];
    if (!std::isfinite(value) || value < 0)
      return fail("the Hessian of input column {} is {}: the activations are not finite", j, value);
    if (value == 0) continue;
    sum += static_cast<double>(value);
    ++alive;
  }
  if (alive == 0)
    return fail("all inputs are 0, so there is no Hessian: take other calibration text");
  return sum / static_cast<double>(alive);
}

}  // namespace

Result<InverseFactor> InverseFactor::prepare(Compute& compute, std::span<const float> hessian,
                                             std::int64_t columns, const HessianOptions& options) {
  if (columns <= 0 || columns > 1 << 20 ||
      hessian.size() != static_cast<std::size_t>(columns) * static_cast<std::size_t>(columns))
    return fail("a Hessian of {} values for {} columns", hessian.size(), columns);
  if (options.weak < 0 || options.weak >= columns)
    return fail("{} weak columns of {}: at least one must be left to quantize", options.weak,
                columns);
  if (!(options.damping >= 0 && std::isfinite(options.damping)))
    return fail("a damping of {}: take a small positive number such as 0.01", options.damping);
  TRIMPOT_TRY(const double mean, living_mean(hessian, columns));

  InverseFactor result;
  result.columns_ = columns;
  result.robust_ = columns - options.weak;
  result.stride_ = padded_stride(columns);
  result.reordered_ = options.act_order;
  result.order_.resize(static_cast<std::size_t>(columns));
  std::iota(result.order_.begin(), result.order_.end(), 0);
  std::vector<float> diagonal(static_cast<std::size_t>(columns));
  result.dead_.resize(static_cast<std::size_t>(columns));
  for (std::int64_t j = 0; j < columns; ++j) {
    diagonal[j] = hessian[static_cast<std::size_t>(j * columns + j)];
    result.dead_[j] = diagonal[j] == 0;
    if (result.dead_[j]) diagonal[j] = static_cast<float>(mean);
  }
  if (options.act_order)
    std::stable_sort(result.order_.begin(), result.order_.begin() + result.robust_,
                     [&](std::int32_t a, std::int32_t b) { return diagonal[a] > diagonal[b]; });

  const std::int64_t last = columns - 1;
  AlignedBuffer<float> lower(columns * result.stride_), inverse(columns * result.stride_);
  const Square l{lower.data(), columns, result.stride_};
  const Square x{inverse.data(), columns, result.stride_};
  std::vector<float> damped(diagonal.size());  // by reversed position
  compute.team.for_each(columns, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = result.order_[last - i];
      for (std::int64_t j = 0; j < i; ++j) {
        const std::int64_t column = result.order_[last - j];
        const bool dead = result.dead_[row] || result.dead_[column];
        const auto place = std::max(row, column) * columns + std::min(row, column);
        *l.at(i, j) = dead ? 0.0f : hessian[static_cast<std::size_t>(place)];
      }
      damped[i] = static_cast<float>(static_cast<double>(diagonal[row]) + options.damping * mean);
      *l.at(i, i) = damped[i];
    }
  });
  const std::int64_t failed = factor(compute, l, damped.data());
  if (failed >= 0)
    return fail(
        "the Hessian is singular at input column {} with a damping of {}: take more calibration "
        "text or a larger damping",
        result.order_[last - failed], options.damping);
  invert(compute, l, x);

  // U = J x J, and its mirror image, into the memory of L.
  compute.team.for_each(columns, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      float* to = lower.data() + i * result.stride_;
      for (std::int64_t j = 0; j < i; ++j) to[j] = *x.at(last - j, last - i);
      const float* from = x.at(last - i, 0);
      for (std::int64_t j = i; j < columns; ++j) to[j] = from[last - j];
    }
  });
  result.factor_ = std::move(lower);
  return result;
}

}  // namespace trimpot
