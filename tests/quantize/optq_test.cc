#include "quantize/optq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "quantize/dense.h"
#include "quantize/grid.h"
#include "quantize/rtn.h"
#include "support/compare.h"
#include "support/random.h"

namespace trimpot {
namespace {

using Dense = std::vector<double>;

// H = (2/n) sum x x^T of correlated inputs with a few large columns, as layers have them.
std::vector<float> random_hessian(std::int64_t columns, std::uint64_t seed,
                                  const std::vector<std::int64_t>& dead = {}) {
  RandomStream random(seed);
  const std::int64_t tokens = 2 * columns;
  std::vector<float> x = random.normals(tokens * columns);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* row = x.data() + t * columns;
    for (std::int64_t j = 1; j < columns; ++j) row[j] += 0.6f * row[j - 1];
    for (std::int64_t j = 5; j < columns; j += 23) row[j] *= 6.0f;
    for (const std::int64_t j : dead) row[j] = 0;
  }
  std::vector<float> h(columns * columns);
  for (std::int64_t i = 0; i < columns; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (std::int64_t t = 0; t < tokens; ++t)
        sum += static_cast<double>(x[t * columns + i]) * x[t * columns + j];
      h[i * columns + j] = static_cast<float>(2 * sum / tokens);
    }
  return h;
}

// The damped Hessian in the order of quantization, dead columns as the header of hessian.h says.
Dense damped(const std::vector<float>& h, std::int64_t n, double damping,
             std::span<const std::int32_t> order) {
  double mean = 0;
  int alive = 0;
  for (std::int64_t j = 0; j < n; ++j)
    if (h[j * n + j] != 0) mean += h[j * n + j], ++alive;
  mean /= alive;
  Dense out(n * n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) out[i * n + j] = h[order[i] * n + order[j]];
  for (std::int64_t i = 0; i < n; ++i) {
    if (out[i * n + i] == 0) out[i * n + i] = mean;
    out[i * n + i] += damping * mean;
  }
  return out;
}

// Gauss and Jordan with f64, for small matrices.
Dense inverse(Dense a, std::int64_t n) {
  Dense b(n * n);
  for (std::int64_t i = 0; i < n; ++i) b[i * n + i] = 1;
  for (std::int64_t p = 0; p < n; ++p) {
    const double pivot = a[p * n + p];
    for (std::int64_t j = 0; j < n; ++j) a[p * n + j] /= pivot, b[p * n + j] /= pivot;
    for (std::int64_t i = 0; i < n; ++i) {
      const double factor = a[i * n + p];
      if (i == p || factor == 0) continue;
      for (std::int64_t j = 0; j < n; ++j) {
        a[i * n + j] -= factor * a[p * n + j];
        b[i * n + j] -= factor * b[p * n + j];
      }
    }
  }
  return b;
}

struct Textbook {
  std::vector<int> codes;  // [rows][robust], by original column
  Dense w;                 // [rows][columns]
  int near_ties = 0;
};

// Optimal brain quantization in a fixed order, as section 3.1 of the paper has it, without factor
// or blocks: after quantizing column p,
//     w -= (w_p - w^_p) / [H^-1]_pp  [H^-1]_p,:          H^-1 -= [H^-1]_:,p [H^-1]_p,: / [H^-1]_pp
// `given` null: parameters by the literal min-max of the current weights when a group is reached.
Textbook textbook(std::vector<float> weights, std::int64_t rows, const std::vector<float>& h,
                  std::int64_t n, std::int64_t weak, double damping,
                  std::span<const std::int32_t> order, const Scheme& scheme,
                  const GroupParameters* given) {
  const std::int64_t robust = n - weak, each = scheme.group_columns(robust);
  const std::int64_t groups = scheme.groups(robust);
  const double top = (1 << scheme.bits) - 1;
  Textbook out;
  out.w.assign(weights.begin(), weights.end());
  out.codes.resize(rows * robust);
  for (std::int64_t j = 0; j < robust; ++j)
    if (h[j * n + j] == 0)
      for (std::int64_t r = 0; r < rows; ++r) out.w[r * n + j] = 0;
  Dense hinv = inverse(damped(h, n, damping, order), n);
  std::vector<float> scale(rows), zero(rows);
  for (std::int64_t p = 0; p < robust; ++p) {
    const std::int64_t column = order[p], group = column / each;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (given != nullptr) {
        scale[r] = f16_to_f32(given->scales[r * groups + group]);
        zero[r] = f16_to_f32(given->zeros[r * groups + group]);
      } else if (p % each == 0) {
        float lo = 0, hi = 0;
        for (std::int64_t q = p; q < std::min(p + each, robust); ++q) {
          lo = std::min(lo, static_cast<float>(out.w[r * n + order[q]]));
          hi = std::max(hi, static_cast<float>(out.w[r * n + order[q]]));
        }
        scale[r] = f16_to_f32(f32_to_f16((hi - lo) / static_cast<float>(top)));
        zero[r] = scale[r] == 0 ? 0.0f : std::nearbyint(-lo / scale[r]);
      }
      const double w = out.w[r * n + column], s = scale[r], z = zero[r];
      const double steps = s == 0 ? 0 : w / s;
      if (std::fabs(steps - std::floor(steps) - 0.5) < 2e-3) ++out.near_ties;
      const double code = std::clamp(std::nearbyint(steps) + z, 0.0, top);
      out.codes[r * robust + column] = static_cast<int>(code);
      const double error = (w - s * (code - z)) / hinv[p * n + p];
      for (std::int64_t q = p; q < n; ++q) out.w[r * n + order[q]] -= error * hinv[p * n + q];
      out.w[r * n + column] = s * (code - z);
    }
    const double pivot = hinv[p * n + p];
    Dense row(hinv.begin() + p * n, hinv.begin() + (p + 1) * n);
    for (std::int64_t i = p; i < n; ++i)
      for (std::int64_t j = p; j < n; ++j) hinv[i * n + j] -= row[i] * row[j] / pivot;
  }
  return out;
}

// trace(dW H dW^T).
double objective(const std::vector<float>& original, std::span<const double> w, std::int64_t rows,
                 const std::vector<float>& h, std::int64_t n) {
  double sum = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        sum += (w[r * n + i] - original[r * n + i]) * h[i * n + j] *
               (w[r * n + j] - original[r * n + j]);
  return sum;
}

const Kernels& best_kernels() { return *usable_kernels().front(); }

struct Case {
  std::int64_t rows, columns, weak, group;
  bool act_order, grid;
  std::vector<std::int64_t> dead;
};

class OptqCases : public testing::TestWithParam<Case> {};

// Same codes as the textbook but where a weight lies within 0.2 % of a step of the middle between
// two (f32 against f64 moves weights by about 1e-5 of a step); such a row then goes its own way, so
// rows are compared whole and one may differ (with AVX-512 none does).
TEST_P(OptqCases, AgreesWithTheTextbook) {
  const Case& c = GetParam();
  const std::int64_t n = c.columns, robust = n - c.weak;
  RandomStream random(17);
  const std::vector<float> original = random.normals(c.rows * n, 0.05f);
  const std::vector<float> h = random_hessian(n, 18, c.dead);
  const Scheme scheme{3, c.group, ZeroKind::kInteger};
  Compute compute(best_kernels(), Precision::kF32, 2);
  const auto factor = InverseFactor::prepare(compute, h, n, {0.01, c.weak, c.act_order});
  ASSERT_TRUE(factor) << factor.error().message;
  const WeightView view{original.data(), c.rows, robust, n};
  GroupParameters given;
  if (c.grid) given = *grid_parameters(compute.team, view, scheme);
  if (c.act_order && !c.grid) given = *min_max_parameters(compute.team, view, scheme);
  std::vector<float> w = original;
  const auto result = c.grid ? optq(compute, *factor, c.rows, w.data(), given)
                             : optq(compute, *factor, c.rows, w.data(), scheme);
  ASSERT_TRUE(result) << result.error().message;
  const Textbook want = textbook(original, c.rows, h, n, c.weak, 0.01, factor->order(), scheme,
                                 given.rows > 0 ? &given : nullptr);

  const std::vector<int> codes = all_codes(*result);
  const std::vector<double> values = dequantized(*result);
  int other_rows = 0;
  for (std::int64_t r = 0; r < c.rows; ++r) {
    const bool same = std::equal(codes.begin() + r * robust, codes.begin() + (r + 1) * robust,
                                 want.codes.begin() + r * robust);
    other_rows += !same;
    for (std::int64_t j = 0; j < robust; ++j)
      EXPECT_NEAR(static_cast<double>(w[r * n + j]), values[r * robust + j], 1e-7);
    for (std::int64_t j = robust; same && j < n; ++j)
      EXPECT_NEAR(static_cast<double>(w[r * n + j]), want.w[r * n + j], 2e-5) << r << ", " << j;
  }
  EXPECT_LE(other_rows, 1) << want.near_ties << " near ties";

  // And better than rounding each weight by itself, weak columns left as they are.
  std::vector<double> rounded(original.begin(), original.end());
  const auto rtn = dequantized(*quantize_rtn(compute.team, view, scheme));
  for (std::int64_t r = 0; r < c.rows; ++r)
    std::copy_n(rtn.begin() + r * robust, robust, rounded.begin() + r * n);
  const std::vector<double> final(w.begin(), w.end());
  EXPECT_LT(objective(original, final, c.rows, h, n),
            0.9 * objective(original, rounded, c.rows, h, n));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, OptqCases,
    testing::Values(Case{20, 96, 0, kWholeRow, false, false, {}},
                    Case{40, 150, 0, 32, false, false, {}},       // ragged group, tile and strip
                    Case{33, 200, 0, 64, false, false, {0, 77}},  // dead columns
                    Case{40, 150, 13, 32, false, false, {3}},     // weak: 137 robust
                    Case{40, 150, 13, 64, false, true, {}},
                    Case{24, 150, 5, 64, true, false, {100}}, Case{24, 150, 5, 32, true, true, {}},
                    Case{16, 33, 1, 128, false, false, {}}, Case{3, 5, 2, 32, false, false, {}}));

TEST(Optq, WithoutCorrelationIsRoundToNearest) {
  constexpr std::int64_t kRows = 50, kColumns = 130;
  RandomStream random(21);
  const std::vector<float> original = random.normals(kRows * kColumns);
  std::vector<float> h(kColumns * kColumns, 0.0f);
  for (std::int64_t j = 0; j < kColumns; ++j) h[j * kColumns + j] = 3.0f;
  Compute compute(best_kernels(), Precision::kF32, 2);
  for (const ZeroKind zeros : {ZeroKind::kInteger, ZeroKind::kSymmetric, ZeroKind::kOffset})
    for (const bool act_order : {false, true}) {
      const Scheme scheme{4, 32, zeros};
      const auto factor = InverseFactor::prepare(compute, h, kColumns, {0.01, 0, act_order});
      std::vector<float> w = original;
      const auto a = optq(compute, *factor, kRows, w.data(), scheme);
      const auto b = quantize_rtn(compute.team, whole(original, kRows, kColumns), scheme);
      EXPECT_EQ(a->codes, b->codes);
      EXPECT_EQ(a->scales, b->scales);
      EXPECT_EQ(a->zeros, b->zeros);
      EXPECT_EQ(a->offsets, b->offsets);
      EXPECT_EQ(a->zero_point, b->zero_point);
    }
}

TEST(Optq, AnyNumberOfThreadsGivesTheSameBits) {
  constexpr std::int64_t kRows = 130, kColumns = 300;
  RandomStream random(22);
  const std::vector<float> original = random.normals(kRows * kColumns);
  const std::vector<float> h = random_hessian(kColumns, 23);
  for (const Kernels* kernels : usable_kernels()) {
    std::vector<std::vector<float>> weights;
    std::vector<GroupedCodes> results;
    for (const int threads : {1, 3}) {
      Compute compute(*kernels, Precision::kF32, threads);
      const auto factor = InverseFactor::prepare(compute, h, kColumns, {0.01, 20, false});
      weights.push_back(original);
      results.push_back(*optq(compute, *factor, kRows, weights.back().data(), Scheme{4, 64}));
    }
    EXPECT_TRUE(same_bits(weights[0], weights[1])) << kernels->name;
    EXPECT_EQ(results[0].codes, results[1].codes);
    EXPECT_EQ(results[0].scales, results[1].scales);
  }
}

// U^T U H = 1: the residual of a backward stable factorization in f32 is of the order of
// n roundings times the condition of H, here below 1e4.
TEST(InverseFactor, IsTheFactorOfTheInverse) {
  for (const std::int64_t n : {1, 31, 64, 65, 200}) {
    const std::vector<float> h = random_hessian(n, 31);
    for (const Kernels* kernels : usable_kernels()) {
      Compute compute(*kernels, Precision::kF32, 2);
      const auto factor = InverseFactor::prepare(compute, h, n, {0.01, 0, n > 64});
      ASSERT_TRUE(factor);
      const Dense want = inverse(damped(h, n, 0.01, factor->order()), n);
      double worst = 0, most = 0;
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (std::int64_t k = 0; k <= std::min(i, j); ++k)
            sum += static_cast<double>(factor->row(k)[i]) * factor->row(k)[j];
          worst = std::max(worst, std::fabs(sum - want[i * n + j]));
          most = std::max(most, std::fabs(want[i * n + j]));
          EXPECT_EQ(factor->row(i)[j], factor->row(j)[i]);
        }
      EXPECT_LE(worst, 1e4 * kRoundoff * most) << n << " columns, " << kernels->name;
    }
  }
}

TEST(InverseFactor, ActOrderSortsRobustColumnsByFallingDiagonal) {
  const std::vector<float> h = random_hessian(60, 32);
  Compute compute(best_kernels(), Precision::kF32, 1);
  const auto factor = InverseFactor::prepare(compute, h, 60, {0.01, 7, true});
  ASSERT_TRUE(factor);
  for (int p = 1; p < 53; ++p)
    EXPECT_GE(h[factor->order()[p - 1] * 61], h[factor->order()[p] * 61]);
  for (int p = 53; p < 60; ++p) EXPECT_EQ(factor->order()[p], p);
}

TEST(InverseFactor, RefusesWhatHasNone) {
  Compute compute(best_kernels(), Precision::kF32, 2);
  const auto message = [&](const std::vector<float>& h, std::int64_t n, HessianOptions options) {
    const auto result = InverseFactor::prepare(compute, h, n, options);
    return result ? std::string() : result.error().message;
  };
  // Inputs 8 and 150 are equal in all tokens: singular, unless damped.
  std::vector<float> h = random_hessian(160, 33);
  for (std::int64_t j = 0; j < 160; ++j) h[150 * 160 + j] = h[8 * 160 + j];
  for (std::int64_t j = 0; j < 160; ++j) h[j * 160 + 150] = h[j * 160 + 8];
  EXPECT_NE(message(h, 160, {0.0, 0, false}).find("singular at input column 8"), std::string::npos)
      << message(h, 160, {0.0, 0, false});
  EXPECT_EQ(message(h, 160, {0.01, 0, false}), "");
  h[40 * 160 + 40] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(message(h, 160, {}).find("column 40"), std::string::npos);
  h[40 * 160 + 40] = 1.0f;
  h[41 * 160 + 40] = std::numeric_limits<float>::infinity();
  EXPECT_NE(message(h, 160, {}), "");
  EXPECT_NE(message(std::vector<float>(9, 0.0f), 3, {}).find("all inputs are 0"),
            std::string::npos);
  EXPECT_NE(message(h, 161, {}), "");
  EXPECT_NE(message(h, 160, {0.01, 160, false}), "");
  EXPECT_NE(message(h, 160, {0.01, -1, false}), "");
  EXPECT_NE(message(h, 160, {-1.0, 0, false}), "");
}

TEST(Optq, RefusesWeightsThatAreNotFiniteAndParametersOfAnotherShape) {
  Compute compute(best_kernels(), Precision::kF32, 2);
  const auto factor = InverseFactor::prepare(compute, random_hessian(64, 34), 64, {});
  std::vector<float> w(40 * 64, 1.0f);
  GroupParameters given = *min_max_parameters(compute.team, whole(w, 40, 64), Scheme{4, 32});
  EXPECT_FALSE(optq(compute, *factor, 39, w.data(), given));
  EXPECT_FALSE(optq(compute, *factor, 40, w.data(), Scheme{4, 33}));
  w[35 * 64 + 1] = std::numeric_limits<float>::quiet_NaN();
  const auto result = optq(compute, *factor, 40, w.data(), Scheme{4, 32});
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("row 35"), std::string::npos) << result.error().message;
}

}  // namespace
}  // namespace trimpot
