// Linear layers' results that are the same to the bit: for any number of threads, tokens together
// or alone, layers that share an input or have it for themselves, gradients wanted or not, masks.
#include <gtest/gtest.h>

#include <array>

#include "kernels/linear_calls.h"
#include "support/compare.h"
#include "support/reference.h"

namespace trimpot {
namespace {

class LinearBits : public testing::TestWithParam<Setup> {
 protected:
  Compute make_compute(int threads) const {
    return Compute(*GetParam().kernels, GetParam().precision, threads);
  }
};
INSTANTIATE_TEST_SUITE_P(All, LinearBits, testing::ValuesIn(setups()), setup_name);

TEST_P(LinearBits, TheSameBitsForAnyThreads) {
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
TEST_P(LinearBits, OneTokenAtATimeOrAllAtOnce) {
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
TEST_P(LinearBits, DifferentOrdersOfOneInput) {
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
TEST_P(LinearBits, OnlyWhatIsWanted) {
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
// and backward, is tested in linear_test.cc.)
TEST_P(LinearBits, Dropout) {
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

}  // namespace
}  // namespace trimpot
