// The kernels on floats: every instruction set gives the bits of the scalar one. What they compute
// is held to the references in gradient_test.cc; here the exponential's accuracy.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/quantizers.h"
#include "support/random.h"

namespace trimpot {
namespace {

using Floats = std::vector<float>;

constexpr std::int64_t kCounts[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 64, 70, 100, 257};

class IsaFloat : public testing::TestWithParam<const Kernels*> {
 protected:
  // Runs the same on this instruction set and on the scalar one and compares all that `run` gives.
  template <class Run>
  void expect_same(Run&& run, const std::string& what) {
    EXPECT_TRUE(same_bits(run(*GetParam()), run(scalar()))) << what;
  }
};
INSTANTIATE_TEST_SUITE_P(Isas, IsaFloat, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST_P(IsaFloat, RowOperationsGiveTheSameBits) {
  for (const std::int64_t count : kCounts)
    for (const float size : {1.0f, 30.0f, 1e-3f}) {
      const std::string what = std::to_string(count);
      RandomStream random(1, static_cast<std::uint64_t>(count));
      const Floats a = random.normals(count, size), b = random.normals(count, size);
      const Floats c = random.normals(count, size);
      expect_same(
          [&](const Kernels& k) {
            Floats y(a.size() + 1);
            k.rms_norm(a.data(), b.data(), count, 1e-5f, y.data(), &y.back());
            return y;
          },
          "rms_norm " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats d_x = c;
            k.rms_norm_backward(a.data(), b.data(), c.data(), 0.7f, count, d_x.data());
            return d_x;
          },
          "rms_norm_backward " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats out(a.size());
            k.swiglu(a.data(), b.data(), count, out.data());
            return out;
          },
          "swiglu " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats both = c, d_up(b.size());
            k.swiglu_backward(a.data(), b.data(), count, both.data(), d_up.data());
            both.insert(both.end(), d_up.begin(), d_up.end());
            return both;
          },
          "swiglu_backward " + what);
      expect_same(
          [&](const Kernels& k) {
            return Floats{k.log_sum_exp(a.data(), count), k.dot(a.data(), b.data(), count),
                          k.highest(a.data(), count)};
          },
          "log_sum_exp, dot, highest " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats out(a.size());
            k.scale(a.data(), count, 1.0f / 3.0f, out.data());
            k.add(b.data(), count, out.data());
            return out;
          },
          "scale, add " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats pairs = a;
            k.rotate_pairs(b.data(), c.data(), -1.0f, count / 2 * 2, pairs.data());
            return pairs;
          },
          "rotate_pairs " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats d_p = b;
            k.softmax_backward(a.data(), count, 0.3f, 0.125f, d_p.data());
            return d_p;
          },
          "softmax_backward " + what);
      const std::int64_t padded = (count + 15) / 16 * 16 + 16;
      Floats scores = a;
      scores.resize(static_cast<std::size_t>(padded), std::nanf(""));  // garbage behind the keys
      expect_same(
          [&](const Kernels& k) {
            Floats p = scores;
            const float highest = k.scale_scores(p.data(), count, padded, 0.125f);
            p.push_back(highest);
            Floats sums(16);
            k.exponentials(p.data(), padded, highest, sums.data());
            p.insert(p.end(), sums.begin(), sums.end());
            return p;
          },
          "softmax " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats p = scores;
            k.softmax_again(p.data(), count, padded, 0.125f, 0.4f);
            return p;
          },
          "softmax_again " + what);
      expect_same(
          [&](const Kernels& k) {
            Floats logits = a;
            k.softmax_gradient(logits.data(), count, 2.0f, 0.01f);
            return logits;
          },
          "softmax_gradient " + what);
    }
}

// With and without a base and factors, columns inside wider rows, tokens beyond a multiple of 4.
TEST_P(IsaFloat, OutputSums) {
  WorstError used("tolerance_used");
  for (const std::int64_t columns : kCounts)
    for (const std::int64_t tokens : {1, 4, 7, 130})
      for (const bool with_base : {false, true})
        for (const bool with_factors : {false, true}) {
          RandomStream random(8, static_cast<std::uint64_t>(columns));
          const std::int64_t stride = columns + 5;
          const Floats d_y = random.normals(tokens * stride), y = random.normals(tokens * stride);
          const Floats base = random.normals(tokens * stride), factors = random.normals(tokens);
          const Floats before = random.normals(2 * columns);
          const auto run = [&](const Kernels& k) {
            Floats sums = before;
            k.output_sums(d_y.data(), y.data(), with_base ? base.data() : nullptr,
                          with_factors ? factors.data() : nullptr, stride, tokens, columns,
                          sums.data(), sums.data() + columns);
            return sums;
          };
          const std::string what =
              std::to_string(columns) + " columns, " + std::to_string(tokens) + " tokens";
          expect_same(run, what);
          std::vector<double> want = widened(before), magnitude(want.size());
          for (std::size_t i = 0; i < want.size(); ++i) magnitude[i] = std::fabs(want[i]);
          const auto add = [&](std::int64_t at, double value, double size) {
            want[at] += value;
            magnitude[at] += std::fabs(size);
          };
          for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t c = 0; c < columns; ++c) {
              const std::int64_t at = t * stride + c;
              const double d = d_y[at], less = with_base ? double{base[at]} : 0.0;
              add(c, d * (y[at] - less), std::fabs(d) * (std::fabs(y[at]) + std::fabs(less)));
              if (with_factors) add(columns + c, d * factors[t], d * factors[t]);
            }
          used.add(expect_close(run(*GetParam()), want, magnitude,
                                static_cast<double>(tokens) / 4 + 7, what));
        }
}

// The forward and softmax_again() see the same scores: the backward's weights are the forward's.
TEST_P(IsaFloat, SoftmaxAgainRepeatsSoftmax) {
  for (const std::int64_t keys : {1, 5, 16, 50}) {
    const std::int64_t padded = (keys + 15) / 16 * 16;
    Floats scores = RandomStream(2).normals(padded, 20.0f), again = scores;
    const float highest = GetParam()->scale_scores(scores.data(), keys, padded, 0.25f);
    Floats sums(16);
    GetParam()->exponentials(scores.data(), padded, highest, sums.data());
    const float sum = std::accumulate(sums.begin(), sums.end(), 0.0f);
    const float lse = highest + std::log(sum);
    GetParam()->softmax_again(again.data(), keys, padded, 0.25f, lse);
    double total = 0;
    for (std::int64_t i = 0; i < padded; ++i) {
      // lse is rounded: it is off by up to 8 units of 2^-24 relative to scores of about 20.
      EXPECT_NEAR(again[i], scores[i] / sum, 40 * kRoundoff);
      total += again[i];
      EXPECT_TRUE(i < keys || again[i] == 0.0f);
    }
    EXPECT_NEAR(total, 1.0, 40 * kRoundoff);
  }
}

TEST_P(IsaFloat, SoftmaxGradient) {
  for (const std::int64_t count : {1, 16, 37, 100}) {
    const Floats logits = RandomStream(3).normals(count, 3.0f);
    Floats d = logits;
    GetParam()->softmax_gradient(d.data(), count, 4.0f, 0.5f);
    for (std::int64_t i = 0; i < count; ++i)
      EXPECT_NEAR(d[i], 0.5 * std::exp(double{logits[i]} - 4.0), 1e-6);
  }
}

// exp through softmax_again (scale 1, log-sum-exp 0), from the largest argument that does not
// overflow down to where results become 0.
TEST_P(IsaFloat, ExponentialIsAccurate) {
  WorstError worst("worst_ulp");
  const auto exponential = [&](float x) {
    Floats lanes(16, x);
    GetParam()->softmax_again(lanes.data(), 16, 16, 1.0f, 0.0f);
    for (const float lane : lanes) EXPECT_EQ(lane, lanes[0]);
    return lanes[0];
  };
  RandomStream random(4);
  for (int i = 0; i < 200000; ++i) {
    const auto x = static_cast<float>(-87.0 + 175.6 * random.uniform());
    const double want = std::exp(double{x});
    const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
    const double error = std::fabs(exponential(x) - want) / ulp;
    worst.add(error);
    ASSERT_LT(error, 2.0) << x;
  }
  // Small arguments: exp(x) is about 1 + x.
  for (int i = 0; i < 2000; ++i) {
    const float x = 1e-3f * random.normal();
    ASSERT_NEAR(exponential(x), std::exp(double{x}), 2 * kRoundoff) << x;
  }
  // No result is subnormal.
  for (float x = -105.0f; x < -87.0f; x += 0.01f) ASSERT_EQ(exponential(x), 0.0f) << x;
  EXPECT_TRUE(std::isnormal(exponential(-87.0f)));
  EXPECT_EQ(exponential(0.0f), 1.0f);
  EXPECT_EQ(exponential(-0.0f), 1.0f);
  EXPECT_EQ(exponential(-104.0f), 0.0f);
  EXPECT_EQ(exponential(-1e30f), 0.0f);
  EXPECT_EQ(exponential(-HUGE_VALF), 0.0f);
  EXPECT_TRUE(std::isfinite(exponential(88.7f)));
  EXPECT_TRUE(std::isfinite(exponential(1e30f)));  // clamped, never infinite
}

struct Product {
  std::int64_t rows, columns, depth;
};

// multiply() with all storages of panels, both orders of the left operand, whole and short last
// panels, heads inside wider rows.
TEST_P(IsaFloat, MultiplyGivesTheSameBits) {
  WorstError used("tolerance_used");
  for (const auto& [rows, columns, depth] :
       {Product{1, 16, 1}, Product{2, 32, 5}, Product{3, 20, 64}, Product{4, 40, 70},
        Product{5, 8, 130}, Product{7, 48, 33}, Product{13, 65, 20}, Product{20, 1, 17}})
    for (const ElementType type : {ElementType::kF32, ElementType::kF16, ElementType::kBF16})
      for (const bool panels_of_16 : {true, false})
        for (const bool transposed : {false, true})
          for (const bool add : {false, true}) {
            RandomStream random(5, static_cast<std::uint64_t>(rows));
            const std::int64_t tiles = (columns + 15) / 16;
            // Either whole tiles [tiles][depth][16], or rows of columns + 5 values.
            const std::int64_t k_stride = panels_of_16 ? 16 : columns + 5;
            const std::int64_t tile_stride = panels_of_16 ? depth * 16 : 16;
            const std::int64_t size = panels_of_16 ? tiles * depth * 16 : depth * k_stride;
            const auto bytes = quantize_values(type, random.normals(size));
            const Floats values = dequantize_bytes(type, bytes);
            const Floats a = random.normals(rows * depth), before = random.normals(rows * columns);
            const Operand left{a.data(), transposed ? 1 : depth, transposed ? rows : 1};
            const Storage storage = type == ElementType::kF32   ? Storage::kF32
                                    : type == ElementType::kF16 ? Storage::kF16
                                                                : Storage::kBF16;
            const auto run = [&](const Kernels& k) {
              // 64 bytes that may be read behind the panels, as AlignedBuffer has them.
              std::vector<std::byte> padded = bytes;
              padded.resize(bytes.size() + 64);
              Floats c = before;
              k.multiply(left, {padded.data(), storage, tile_stride, k_stride}, rows, columns,
                         depth, c.data(), columns, add);
              return c;
            };
            const std::string what = testing::PrintToString(rows) + " x " +
                                     testing::PrintToString(columns) + " x " +
                                     testing::PrintToString(depth);
            expect_same(run, what);
            std::vector<double> want(before.size()), magnitude(before.size());
            for (std::int64_t i = 0; i < rows; ++i)
              for (std::int64_t n = 0; n < columns; ++n) {
                const std::int64_t at = i * columns + n;
                if (add) want[at] = magnitude[at] = before[at];
                for (std::int64_t k = 0; k < depth; ++k) {
                  const double product = double{a[i * left.row_stride + k * left.column_stride]} *
                                         values[n / 16 * tile_stride + k * k_stride + n % 16];
                  want[at] += product;
                  magnitude[at] = std::fabs(magnitude[at]) + std::fabs(product);
                }
              }
            used.add(expect_close(run(*GetParam()), want, magnitude, static_cast<double>(depth) + 4,
                                  what));
          }
}

// Catches: tails read or written beyond their end, rows for columns.
TEST_P(IsaFloat, Transpose) {
  for (const std::int64_t rows : {1, 15, 16, 17, 40})
    for (const std::int64_t columns : {1, 16, 20, 33}) {
      const std::int64_t stride = columns + 2, to_stride = rows + 1;
      const Floats x = RandomStream(12).normals((rows - 1) * stride + columns);
      Floats to(static_cast<std::size_t>(columns * to_stride), 7.0f);
      GetParam()->transpose(x.data(), stride, rows, columns, to.data(), to_stride);
      for (std::int64_t i = 0; i < columns; ++i)
        for (std::int64_t j = 0; j < to_stride; ++j)
          ASSERT_EQ(to[i * to_stride + j], j < rows ? x[j * stride + i] : 7.0f) << i << ", " << j;
    }
}

// All 65,536 halves there, and floats on both sides of every rounding boundary back.
TEST_P(IsaFloat, HalfPrecisionGivesTheSameBits) {
  std::vector<f16> halves;
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits)
    if ((bits & 0x7c00u) != 0x7c00u || (bits & 0x3ffu) == 0)
      halves.push_back(static_cast<f16>(bits));
  Floats wide(halves.size());
  GetParam()->widen_f16(halves.data(), static_cast<std::int64_t>(halves.size()), wide.data());
  for (std::size_t i = 0; i < halves.size(); ++i) ASSERT_EQ(wide[i], f16_to_f32(halves[i]));
  Floats values;
  for (const float value : wide)
    for (const std::int32_t step : {-0x1001, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001})
      values.push_back(std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) +
                                            static_cast<std::uint32_t>(step)));
  RandomStream random(7);
  for (int i = 0; i < 10000; ++i)
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random.bits())));
  std::erase_if(values, [](float value) { return std::isnan(value); });
  std::vector<f16> narrow(values.size());
  const auto count = static_cast<std::int64_t>(values.size());
  GetParam()->narrow_f16(values.data(), count, narrow.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(narrow[i], f32_to_f16(values[i])) << values[i];
  }
  // NaN stays NaN in a vector and in a tail.
  const Floats nan(17, std::nanf(""));
  std::vector<std::uint16_t> out(17);
  GetParam()->narrow_f16(nan.data(), 17, out.data());
  for (const f16 value : out) EXPECT_TRUE(std::isnan(f16_to_f32(value)));
}

// Every number within half a step, or where a scale was rounded down, the largest within 2^-11 of
// itself; the same bytes from all instruction sets; nothing beyond the last number is written.
TEST_P(IsaFloat, BytesWithScales) {
  for (const std::int64_t count : {1, 16, 31, 32, 33, 512, 576, 1000, 1536}) {
    const std::int64_t blocks = (count + kByteBlock - 1) / kByteBlock;
    Floats x = RandomStream(21).normals(count);
    for (std::int64_t i = 0; i < count; ++i) x[i] *= std::exp2(static_cast<float>(i / 32 % 20 - 9));
    if (count > 64) std::fill_n(x.begin() + 32, 32, 0.0f);
    std::vector<std::int8_t> codes(blocks * kByteBlock), want(codes);
    std::vector<f16> scales(blocks), want_scales(blocks);
    GetParam()->narrow_int8(x.data(), count, codes.data(), scales.data());
    kernels_by_name("scalar").value()->narrow_int8(x.data(), count, want.data(),
                                                   want_scales.data());
    EXPECT_EQ(codes, want) << count;
    EXPECT_EQ(scales, want_scales) << count;
    Floats back(count + 1, 7.0f);
    GetParam()->widen_int8(codes.data(), scales.data(), count, back.data());
    EXPECT_EQ(back[count], 7.0f);
    for (std::int64_t i = 0; i < count; ++i) {
      const float step = f16_to_f32(scales[i / kByteBlock]);
      ASSERT_EQ(back[i], step * codes[i]);
      ASSERT_LE(std::fabs(back[i] - x[i]), std::max(0.5001f * step, 0x1.1p-11f * std::fabs(x[i])))
          << i << " of " << count;
    }
  }
}

}  // namespace
}  // namespace trimpot
