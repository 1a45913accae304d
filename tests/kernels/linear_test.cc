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
#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <array>

#include "kernels/linear_layers.h"
#include "kernels/ref/ops.h"
#include "support/compare.h"
#include "support/reference.h"

namespace trimpot {
namespace {

constexpr double kWhole = 1.0 / 8190;  // error of rounding to whole numbers, of the largest
constexpr double kByte = 1.0 / 254;    // to bytes, of the largest
constexpr double kBf16 = 1.0 / 256;    // to bf16, of each

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

constexpr std::uint64_t kStream = 77;

// Rows first from the layout of dense gradients, [tiles][columns][16].
std::vector<float> rows_first(const std::vector<float>& packed, std::int64_t rows,
                              std::int64_t columns) {
  std::vector<float> out;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      out.push_back(packed[static_cast<std::size_t>((r / 16 * columns + c) * 16 + r % 16)]);
  return out;
}

constexpr float kBefore = 0.25f;  // what is in the gradients' arrays before

struct Gradients {
  std::vector<float> d_x, d_weak, d_weight, d_a, d_b;  // dense ones packed
  std::vector<float> d_scales, d_offsets;              // rows first
};

// Arrays of a layer's gradients and a sink into all of them.
class Sink {
 public:
  Sink(const Linear& linear, std::int64_t tokens) {
    const auto size = [](const Matrix& m) {
      return static_cast<std::size_t>(m.view().tiles * m.columns() * 16);
    };
    const Matrix& weight = linear.weight;
    out.d_x.assign(static_cast<std::size_t>(tokens * linear.columns), kBefore);
    out.d_weight.assign(size(weight), kBefore);
    sink.weight = out.d_weight.data();
    if (linear.weak.rows() > 0) {
      out.d_weak.assign(size(linear.weak), kBefore);
      sink.weak = out.d_weak.data();
    }
    if (linear.low_rank) {
      out.d_a.assign(size(linear.low_rank->a), kBefore);
      out.d_b.assign(size(linear.low_rank->b), kBefore);
      sink.low_rank_a = out.d_a.data();
      sink.low_rank_b = out.d_b.data();
    }
    if (!weight.quantized()) return;
    out.d_scales.resize(static_cast<std::size_t>(weight.rows() * weight.groups()));
    out.d_offsets.resize(out.d_scales.size());
    sink.scales = [this, &weight](std::int64_t begin, std::int64_t end, const float* scale,
                                  const float* offset) {
      for (std::int64_t row = begin * 16; row < std::min(end * 16, weight.rows()); ++row)
        for (std::int64_t group = 0; group < weight.groups(); ++group) {
          const auto to = static_cast<std::size_t>(row * weight.groups() + group);
          const std::size_t from = weight.scale_index(row, group) -
                                   static_cast<std::size_t>(begin * weight.groups() * 16);
          out.d_scales[to] += scale[from];
          if (offset != nullptr) out.d_offsets[to] += offset[from];
        }
    };
  }
  Sink(const Sink&) = delete;
  Gradients out;
  LinearSink sink;
};

struct Data {
  std::vector<float> x, d_y;
};
Data random_data(const Linear& linear, std::int64_t tokens) {
  RandomStream random(6, static_cast<std::uint64_t>(tokens));
  return {random.normals(tokens * linear.columns), random.normals(tokens * linear.rows())};
}

// The same with a channel that stands out in two tokens of three, so that on the default path they
// have remainders: from ten blocks on.
Data standing_out(const Linear& linear, std::int64_t tokens) {
  Data data = random_data(linear, tokens);
  for (std::int64_t t = 0; t < tokens; ++t)
    if (t % 3 != 0)
      data.x[t * linear.columns + (t % 3 == 1 ? 45 : 7 * t % linear.columns)] *= 300.0f;
  return data;
}

Activations activations(Compute& compute, const std::vector<float>& values, std::int64_t columns,
                        std::span<const LinearView> readers) {
  Activations x;
  const std::int64_t tokens = static_cast<std::int64_t>(values.size()) / columns;
  x.allocate(tokens, columns);
  std::copy(values.begin(), values.end(), x.values());
  std::vector<LinearOutput> outputs;
  for (const LinearView& reader : readers) outputs.push_back({reader, nullptr});
  x.prepare(compute, tokens, outputs);
  return x;
}

std::vector<float> forward(Compute& compute, const Linear& linear_layer,
                           const std::vector<float>& x, float before = 0, bool add = false) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / linear_layer.columns;
  const Activations in =
      activations(compute, x, linear_layer.columns, std::array<LinearView, 1>{linear_layer});
  std::vector<float> y(static_cast<std::size_t>(tokens * linear_layer.rows()), before);
  // To what is there already, or to what lies elsewhere.
  const std::vector<float> base = y;
  if (add && tokens % 2 == 1) std::fill(y.begin(), y.end(), 7.0f);
  const float* from = !add ? nullptr : tokens % 2 == 1 ? base.data() : y.data();
  linear(compute, in, tokens, std::array<LinearOutput, 1>{{{linear_layer, y.data(), from}}});
  return y;
}

Gradients backward(Compute& compute, const Linear& linear, const Data& data, bool add) {
  const std::int64_t tokens = static_cast<std::int64_t>(data.x.size()) / linear.columns;
  const Activations in =
      activations(compute, data.x, linear.columns, std::array<LinearView, 1>{linear});
  Sink sink(linear, tokens);
  linear_backward(compute, linear, in, data.d_y.data(), tokens, sink.sink, sink.out.d_x.data(),
                  add);
  return std::move(sink.out);
}

struct Setup {
  const Kernels* kernels;
  Precision precision;
};
std::vector<Setup> setups() {
  std::vector<Setup> out;
  for (const Kernels* kernels : usable_kernels())
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      out.push_back({kernels, precision});
  return out;
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
INSTANTIATE_TEST_SUITE_P(All, LinearLayers, testing::ValuesIn(setups()), [](const auto& info) {
  return std::string(info.param.kernels->name) +
         (info.param.precision == Precision::kF32 ? "_f32" : "_default");
});

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

TEST_P(LinearLayers, TheSameBitsForAnyThreads) {
  for (const WeightFormat& format : weight_formats())
    for (const Case& c : kCases) {
      SCOPED_TRACE(format.name + ", " + c.name);
      const Linear linear = make_linear(format, c, 40, 352);
      const Data data = standing_out(linear, 150);
      Compute one = make_compute(1), three = make_compute(3);
      one.dropout_stream = three.dropout_stream = kStream;
      EXPECT_TRUE(same_bits(forward(three, linear, data.x), forward(one, linear, data.x)));
      const Gradients a = backward(one, linear, data, true),
                      b = backward(three, linear, data, true);
      EXPECT_TRUE(same_bits(b.d_x, a.d_x));
      EXPECT_TRUE(same_bits(b.d_weak, a.d_weak));
      EXPECT_TRUE(same_bits(b.d_weight, a.d_weight));
      EXPECT_TRUE(same_bits(b.d_a, a.d_a));
      EXPECT_TRUE(same_bits(b.d_b, a.d_b));
      EXPECT_TRUE(same_bits(b.d_scales, a.d_scales));
      EXPECT_TRUE(same_bits(b.d_offsets, a.d_offsets));
    }
}

// Prefill, decode and evaluation must agree to the bit. (With dropout rows differ by their number;
// none is active outside of tuning.)
TEST_P(LinearLayers, OneTokenAtATimeOrAllAtOnce) {
  Compute compute = make_compute(2);
  for (const WeightFormat& format : weight_formats())
    for (const Case& c : kCases) {
      SCOPED_TRACE(format.name + ", " + c.name);
      const Linear linear = make_linear(format, c, 40, 352);
      const Data data = standing_out(linear, 40);
      const auto all = forward(compute, linear, data.x);
      std::vector<float> single;
      for (std::int64_t t = 0; t < 40; ++t) {
        const auto y = forward(
            compute, linear,
            {data.x.begin() + t * linear.columns, data.x.begin() + (t + 1) * linear.columns});
        single.insert(single.end(), y.begin(), y.end());
      }
      EXPECT_TRUE(same_bits(single, all));
    }
}

// Layers that want the same input in different forms: each gets its own, in any company.
TEST_P(LinearLayers, DifferentOrdersOfOneInput) {
  Compute compute = make_compute(2);
  compute.dropout_stream = kStream;
  const auto formats = weight_formats();
  std::vector<Linear> layers;
  layers.push_back(make_linear(formats[0], kCases[3], 40, 64, 1));   // anywhere
  layers.push_back(make_linear(formats[0], kCases[3], 24, 64, 2));   // elsewhere
  layers.push_back(make_linear(formats[5], kCases[1], 7, 64, 3));    // last
  layers.push_back(make_linear(formats[1], kCases[0], 33, 69, 4));   // a dense one
  layers.push_back(make_linear(formats[3], kCases[13], 16, 66, 5));  // pooled
  layers.push_back(make_linear(formats[4], kCases[14], 16, 69, 6));  // on top
  ASSERT_NE(*layers[0].weak_columns, *layers[1].weak_columns);
  const std::int64_t tokens = 9;
  const Data data = random_data(layers[0], tokens);
  std::vector<LinearView> readers;
  std::vector<LinearOutput> outputs;
  std::vector<std::vector<float>> together, d_y;
  RandomStream random(8);
  for (const Linear& layer : layers) {
    ASSERT_EQ(layer.columns, 69);
    readers.emplace_back(layer);
    together.emplace_back(static_cast<std::size_t>(tokens * layer.rows()));
    d_y.push_back(random.normals(tokens * layer.rows()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i)
    outputs.push_back({layers[i], together[i].data()});
  Activations in = activations(compute, data.x, 69, readers);
  linear(compute, in, tokens, outputs);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    EXPECT_TRUE(same_bits(together[i], forward(compute, layers[i], data.x))) << i;
    Sink sink(layers[i], tokens);
    linear_backward(compute, layers[i], in, d_y[i].data(), tokens, sink.sink, sink.out.d_x.data(),
                    false);
    const Gradients alone = backward(compute, layers[i], {data.x, d_y[i]}, false);
    EXPECT_TRUE(same_bits(sink.out.d_x, alone.d_x)) << i;
    EXPECT_TRUE(same_bits(sink.out.d_weak, alone.d_weak)) << i;
    EXPECT_TRUE(same_bits(sink.out.d_weight, alone.d_weight)) << i;
    EXPECT_TRUE(same_bits(sink.out.d_scales, alone.d_scales)) << i;
    EXPECT_TRUE(same_bits(sink.out.d_a, alone.d_a)) << i;
  }
  // New values in the same buffers, with other readers first: nothing of the old ones is left.
  const auto fresh = random.normals(tokens * 69);
  std::copy(fresh.begin(), fresh.end(), in.values());
  const std::vector<LinearOutput> reversed(outputs.rbegin(), outputs.rend());
  in.prepare(compute, tokens, reversed);
  linear(compute, in, tokens, outputs);
  for (std::size_t i = 0; i < layers.size(); ++i)
    EXPECT_TRUE(same_bits(together[i], forward(compute, layers[i], fresh))) << i;
}

// What is not wanted is not needed: any subset of gradients has the bits of all.
TEST_P(LinearLayers, OnlyWhatIsWanted) {
  Compute compute = make_compute(2);
  compute.dropout_stream = kStream;
  const Linear linear = make_linear(weight_formats()[3], kCases[12], 40, 96);
  const std::int64_t tokens = 21;
  const Data data = random_data(linear, tokens);
  const Gradients all = backward(compute, linear, data, false);
  const Activations in =
      activations(compute, data.x, linear.columns, std::array<LinearView, 1>{linear});
  for (int part = 0; part < 6; ++part) {
    Sink sink(linear, tokens);
    const LinearSink& every = sink.sink;
    LinearSink only;
    if (part == 0) only.scales = every.scales;
    if (part == 1) only.weak = every.weak;
    if (part == 2) only.weight = every.weight;
    if (part == 3) only.low_rank_a = every.low_rank_a;
    if (part == 4) only.low_rank_b = every.low_rank_b;
    EXPECT_EQ(only.wanted(), part < 5);
    const Gradients untouched = Sink(linear, tokens).out;
    linear_backward(compute, linear, in, data.d_y.data(), tokens, only,
                    part == 5 ? sink.out.d_x.data() : nullptr, false);
    const auto expect = [&](int wanted, std::vector<float> Gradients::*array) {
      EXPECT_TRUE(same_bits(sink.out.*array, part == wanted ? all.*array : untouched.*array))
          << part << ' ' << wanted;
    };
    expect(0, &Gradients::d_scales);
    expect(0, &Gradients::d_offsets);
    expect(1, &Gradients::d_weak);
    expect(2, &Gradients::d_weight);
    expect(3, &Gradients::d_a);
    expect(4, &Gradients::d_b);
    expect(5, &Gradients::d_x);
  }
}

// Dropout keeps the mean, is off without a stream, differs from layer to layer and pass to pass,
// and is the same mask whenever the stream is the same. (That it is the reference's mask, forward
// and backward, is tested above.)
TEST_P(LinearLayers, Dropout) {
  Compute compute = make_compute(2);
  const WeightFormat format = weight_formats()[1];
  for (const std::size_t index : {10, 11}) {
    Linear linear = make_linear(format, kCases[index], 40, 96);
    const float dropout = linear.low_rank->dropout;
    const Data data = random_data(linear, 50);
    const auto plain = forward(compute, linear, data.x);
    linear.low_rank->dropout = 0;
    EXPECT_TRUE(same_bits(plain, forward(compute, linear, data.x)));
    compute.dropout_stream = 5;
    EXPECT_TRUE(same_bits(plain, forward(compute, linear, data.x)));
    linear.low_rank->dropout = dropout;
    const auto first = forward(compute, linear, data.x);
    EXPECT_FALSE(same_bits(plain, first));
    EXPECT_TRUE(same_bits(first, forward(compute, linear, data.x)));
    compute.dropout_stream = 6;
    EXPECT_FALSE(same_bits(first, forward(compute, linear, data.x)));
    compute.dropout_stream = 5;
    linear.low_rank->seed += 1;
    EXPECT_FALSE(same_bits(first, forward(compute, linear, data.x)));
    compute.dropout_stream = 0;
  }
  // 40000 draws: the mean's deviation is sqrt(p / (1 - p) / 40000); five of them.
  LowRank path;
  path.a = Matrix::zeros(Storage::kF32, 1, 100);
  for (const float dropout : {0.05f, 0.3f, 0.9f}) {
    path.dropout = dropout;
    double sum = 0, dropped = 0;
    for (const double factor : dropout_mask(path, 3, 400)) {
      sum += factor;
      dropped += factor == 0;
    }
    EXPECT_NEAR(sum / 40000, 1, 5 * std::sqrt(dropout / (1 - dropout) / 40000));
    EXPECT_NEAR(dropped / 40000, dropout, 5 * std::sqrt(dropout * (1 - dropout) / 40000));
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
