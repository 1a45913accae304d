// Linear layers with weak columns, column orders and low-rank paths: the production code, with the
// kernels of every instruction set and on both paths, against the scalar reference in double.
//
// Tolerances, element by element. Sums of n rounded terms are off by at most n u sum |terms|
// (u = 2^-24; see gradient_test.cc), and the reference run on absolute values gives sum |terms|. On
// the default path the codes are multiplied by activations rounded to int8: the reference gets the
// rounded ones. Where output gradients are rounded (dx), each of the two factors is off by up to
// 1/8190 of the largest of its block (whole numbers: the reference run on matrices of nothing but
// their largest number bounds that) or 1/256 of itself (bf16). Two such products in a row (the
// low-rank path) are off by twice as much.
#include <gtest/gtest.h>

#include <array>

#include "kernels/linear_calls.h"
#include "kernels/ref/ops.h"
#include "support/compare.h"
#include "support/reference.h"

namespace trimpot {
namespace {

constexpr double kWhole = 1.0 / 8190;  // error of rounding to whole numbers, of the largest
constexpr double kByte = 1.0 / 254;    // to bytes, of the largest
constexpr double kBf16 = 1.0 / 256;    // to bf16, of each

// Rows first from the layout of dense gradients, [tiles][columns][16].
std::vector<float> rows_first(const std::vector<float>& packed, std::int64_t rows,
                              std::int64_t columns) {
  std::vector<float> out;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      out.push_back(packed[static_cast<std::size_t>((r / 16 * columns + c) * 16 + r % 16)]);
  return out;
}

std::vector<double> largest(const std::vector<double>& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::fabs(value));
  return std::vector<double>(values.size(), most);
}
ref::Linear<double> largest(const ref::Linear<double>& w) {
  std::vector<double> weights;
  for (ref::Index n = 0; n < w.rows; ++n)
    for (ref::Index j = 0; j < w.columns; ++j) weights.push_back(w.weight(n, j));
  ref::Linear<double> out;
  out.rows = w.rows;
  out.columns = w.columns;
  out.dense = largest(weights);
  return out;
}
ref::LinearLayer<double> largest(ref::LinearLayer<double> w) {
  w.weight = largest(w.weight);
  w.weak = largest(w.weak);
  w.a = largest(w.a);
  w.b = largest(w.b);
  w.scale = std::fabs(w.scale);
  return w;
}

class LinearLayers : public testing::TestWithParam<Setup> {
 protected:
  Compute make_compute(int threads) const {
    return Compute(*GetParam().kernels, GetParam().precision, threads);
  }
  bool rounds(const Linear& linear) const {
    return GetParam().precision == Precision::kDefault && linear.weight.quantized();
  }
  // Magnitudes with which `roundings` cover two rounded factors `times` times, too.
  std::vector<double> with_rounded(std::vector<double> magnitude, const std::vector<double>& most,
                                   double times, double roundings, bool bytes = false) const {
    if (GetParam().precision == Precision::kF32) return magnitude;
    constexpr double kTwo = 2.1;  // and their product
    const Kernels& kernels = *GetParam().kernels;
    for (std::size_t i = 0; i < magnitude.size(); ++i) {
      const double error = bytes                      ? kByte * most[i]
                           : rounds_to_int16(kernels) ? kWhole * most[i]
                           : rounds_to_bf16(kernels)  ? kBf16 * magnitude[i]
                                                      : 0.0;
      magnitude[i] += kTwo * times * error / (roundings * kRoundoff);
    }
    return magnitude;
  }
  void check(const Linear& linear, std::int64_t tokens, WorstError& used) const;
};
INSTANTIATE_TEST_SUITE_P(All, LinearLayers, testing::ValuesIn(setups()), setup_name);

// `add` on top of kBefore.
std::vector<double> plus_before(std::vector<double> values) {
  for (double& value : values) value += kBefore;
  return values;
}

void LinearLayers::check(const Linear& linear, std::int64_t tokens, WorstError& used) const {
  Compute compute = make_compute(2);
  compute.dropout_stream = kStream;
  const std::int64_t rows = linear.rows(), width = linear.columns;
  const Data data = random_data(linear, tokens);
  const auto x = widened(data.x), d_y = widened(data.d_y);
  ref::LinearLayer<double> w = reference_layer<double>(
      linear, width,
      linear.low_rank ? dropout_mask(*linear.low_rank, kStream, tokens) : std::vector<double>());
  w.weight = with_offsets(std::move(w.weight));
  const auto size = absolute(w);
  const auto stored = ref::gather(x, width, w.weight_columns);
  const auto seen =
      rounds(linear) ? rounded_to_int8(compute.kernels, stored, w.weight.columns) : stored;

  // Forward: the weight sees what it sees, all other parts x itself.
  auto want = ref::linear(w, x), terms = ref::linear(size, absolute(x));
  std::vector<double> change = seen;
  for (std::size_t i = 0; i < change.size(); ++i) change[i] -= stored[i];
  want = ref::add(want, ref::linear(w.weight, change));
  terms = ref::add(terms, ref::linear(size.weight, absolute(seen)));
  const double inner = static_cast<double>(w.a.columns + w.a.rows) + static_cast<double>(w.pool);
  const double sums = static_cast<double>(w.weight.columns + w.weak.columns) + inner + 10;
  used.add(expect_close(forward(compute, linear, data.x), want, terms, sums, "y"));
  used.add(expect_close(forward(compute, linear, data.x, kBefore, true), plus_before(want),
                        plus_before(terms), sums, "y added"));
  compute.learning = true;
  if (rounds_inputs(compute) && linear.weight.quantized()) {
    const auto exact = ref::linear(w, x);
    const auto rounded = with_rounded(ref::linear(size, absolute(x)), {}, 1.0, sums);
    used.add(expect_close(forward(compute, linear, data.x), exact, rounded, sums, "y of a step"));
    used.add(expect_close(forward(compute, linear, data.x, kBefore, true), plus_before(exact),
                          plus_before(rounded), sums, "y of a step, added"));
  }
  compute.learning = false;

  const auto g = ref::linear_backward(w, x, d_y);
  const auto m = ref::linear_backward(size, absolute(x), absolute(d_y));
  const auto most = ref::linear_backward(largest(w), absolute(x), largest(d_y));
  for (const bool add : {false, true}) {
    const Gradients got = backward(compute, linear, data, add);
    // Through the low-rank path two products in a row are rounded.
    const double back = static_cast<double>(rows) + inner + 10;
    const bool bytes = gradients_in_bytes(compute, linear.weight);
    const auto terms_of_x = with_rounded(m.d_x, most.d_x, linear.low_rank ? 2.1 : 1.0, back, bytes);
    used.add(expect_close(got.d_x, add ? plus_before(g.d_x) : g.d_x,
                          add ? plus_before(terms_of_x) : terms_of_x, back, "d_x"));
    const double through_tokens = static_cast<double>(tokens) + 10;
    const auto expect_dense = [&](const std::vector<float>& packed, const ref::Linear<double>& part,
                                  const std::vector<double>& wanted,
                                  const std::vector<double>& terms_of, double roundings,
                                  const char* what) {
      used.add(expect_close(rows_first(packed, part.rows, part.columns), plus_before(wanted),
                            plus_before(terms_of), roundings, what));
    };
    expect_dense(got.d_weight, w.weight, g.d_weight, m.d_weight, through_tokens, "d_weight");
    if (linear.weak.rows() > 0)
      expect_dense(got.d_weak, w.weak, g.d_weak, m.d_weak, through_tokens, "d_weak");
    if (linear.low_rank) {
      const double through_both = through_tokens + static_cast<double>(rows) + w.pool;
      expect_dense(got.d_a, w.a, g.d_a, with_rounded(m.d_a, most.d_a, 1.0, through_both),
                   through_both, "d_a");
      expect_dense(got.d_b, w.b, g.d_b, m.d_b, through_tokens + inner, "d_b");
    }
    if (!linear.weight.quantized()) continue;
    const auto codes = ref::linear_backward(w.weight, seen, d_y);
    const auto code_terms = ref::linear_backward(size.weight, absolute(seen), absolute(d_y));
    const double roundings = through_tokens + 2 * linear.weight.view().group_chunks;
    used.add(expect_close(got.d_scales, codes.d_scales, code_terms.d_scales, roundings, "d_scale"));
    if (linear.weight.has_shifts())
      used.add(expect_close(got.d_offsets, codes.d_offsets, code_terms.d_offsets, roundings,
                            "d_offset"));
  }
}

// Catches: a part that reads another's columns, orders that are applied twice or not at all, a
// gradient that is scattered to the wrong channels, columns that occur twice and are added once,
// weak columns at the end of a shorter weight, a mask that differs between forward and backward.
TEST_P(LinearLayers, AgreeWithTheReference) {
  WorstError used("tolerance_used");
  for (const WeightFormat& format : weight_formats())
    for (const Case& c : kCases) {
      const bool long_list = c.weak_count > 32;
      for (const auto& [rows, columns, tokens] :
           {std::array<std::int64_t, 3>{40, 96, 3}, {7, 45, 1}, {16, 64, 17}, {33, 160, 130}}) {
        if (tokens == 130 && (long_list || format.unit == 1)) continue;  // for time's sake
        const std::int64_t fitting = columns / format.unit * format.unit;
        SCOPED_TRACE(testing::Message() << format.name << ", " << c.name << ", " << rows << " x "
                                        << fitting << ", " << tokens << " tokens");
        check(make_linear(format, c, rows, fitting), tokens, used);
      }
    }
}

// Catches: remainders left out, added twice, of another token, or in a step, whose backward pass
// knows of none.
TEST_P(LinearLayers, StandingOut) {
  if (GetParam().precision == Precision::kF32) GTEST_SKIP() << "rounds nothing";
  Compute compute = make_compute(2);
  WorstError used("tolerance_used");
  for (const WeightFormat& format : weight_formats()) {
    const Linear linear = make_linear(format, kCases[0], 40, 352);
    if (!linear.weight.quantized()) continue;
    const Data data = standing_out(linear, 20);
    auto w = reference_layer<double>(linear, linear.columns, {});
    w.weight = with_offsets(std::move(w.weight));
    const auto x = widened(data.x), seen = rounded_to_int8(compute.kernels, x, linear.columns);
    const double sums = static_cast<double>(linear.columns) + 10;
    const auto got = forward(compute, linear, data.x);
    used.add(expect_close(got, ref::linear(w, seen), ref::linear(absolute(w), absolute(seen)), sums,
                          format.name));
    if (step_rounds_inputs(compute)) continue;
    compute.learning = true;
    EXPECT_FALSE(same_bits(forward(compute, linear, data.x), got)) << format.name;
    compute.learning = false;
  }
}

// The head of a reordered model reads its input, and hands back its gradient, in the model's order.
TEST_P(LinearLayers, HeadWithAnOrder) {
  Compute compute = make_compute(2);
  const std::int64_t rows = 45, columns = 96, tokens = 5, stride = 46;  // odd: rows are padded
  const Matrix head = random_matrix(ElementType::kQ8_0, rows, columns, 9);
  const auto channels = some_channels(columns, columns, 10);
  RandomStream random(11);
  auto d_y = random.normals(tokens * stride);
  LinearView view(head);
  view.weight_columns = &channels;
  ref::LinearLayer<double> w = reference_layer<double>(view, columns);
  std::vector<double> wanted;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t n = 0; n < rows; ++n) wanted.push_back(d_y[t * stride + n]);
  const std::vector<double> x(static_cast<std::size_t>(tokens * columns), 1.0);
  const auto g = ref::linear_backward(w, x, wanted);
  const auto m = ref::linear_backward(absolute(w), x, absolute(wanted));
  const auto most = ref::linear_backward(largest(w), x, largest(wanted));
  for (std::int64_t t = 0; t < tokens; ++t)
    round_head_row(compute, head, d_y.data() + t * stride, 0);
  std::vector<float> d_x(static_cast<std::size_t>(tokens * columns), 7.0f);
  head_backward(compute, view, d_y.data(), stride, tokens, d_x.data());
  const double roundings = static_cast<double>(rows) + 5;
  // With dither dy is wrong by up to a whole step of 126: with W, 1.5 times as much as both halves.
  const bool bytes = gradients_in_bytes(compute, head);
  expect_close(d_x, g.d_x, with_rounded(m.d_x, most.d_x, bytes ? 1.52 : 1.0, roundings, bytes),
               roundings, "d_x");
}

}  // namespace
}  // namespace trimpot
