// Gradients of scales from a layer's output, without a product: those of the reference, for every
// format with one group per row, and only where they follow from it.
#include <gtest/gtest.h>

#include <array>
#include <atomic>

#include "kernels/linear.h"
#include "kernels/linear_layers.h"
#include "kernels/ref/ops.h"
#include "support/compare.h"
#include "support/random_groups.h"
#include "support/reference.h"

namespace trimpot {
namespace {

using Floats = std::vector<float>;

struct ScaleGradients {
  Floats d_scales, d_offsets;  // in packed order
  int calls = 0;
};

class OutputGradient : public testing::TestWithParam<const Kernels*> {
 protected:
  // One layer's forward, added to `base`, and its backward.
  struct Pass {
    Pass(Compute& compute, const Linear& layer, std::int64_t tokens) : layer(layer) {
      RandomStream random(2, static_cast<std::uint64_t>(tokens));
      x = random.normals(tokens * layer.columns);
      d_y = random.normals(tokens * layer.rows());
      base = random.normals(tokens * layer.rows(), 3.0f);
      in.allocate(tokens, layer.columns);
      std::copy(x.begin(), x.end(), in.values());
      const std::array<LinearOutput, 1> reader{{{layer, nullptr}}};
      in.prepare(compute, tokens, reader);
      y.resize(d_y.size());
      linear(compute, in, tokens, std::array<LinearOutput, 1>{{{layer, y.data()}}});
      added.resize(d_y.size());
      linear(compute, in, tokens,
             std::array<LinearOutput, 1>{{{layer, added.data(), base.data()}}});
    }
    ScaleGradients gradients(Compute& compute, const KnownOutput& output) const {
      const Matrix& weight = layer.weight;
      ScaleGradients out;
      out.d_scales.resize(weight.scales().size());
      out.d_offsets.resize(weight.has_shifts() ? weight.scales().size() : 0);
      LinearSink sink;
      std::atomic<int> calls{0};
      sink.scales = [&](std::int64_t begin, std::int64_t end, const float* scale,
                        const float* offset) {
        ++calls;
        EXPECT_EQ(offset != nullptr, weight.has_shifts());
        const std::int64_t per_tile = weight.groups() * kTileRows;
        std::copy_n(scale, (end - begin) * per_tile, out.d_scales.data() + begin * per_tile);
        if (offset != nullptr)
          std::copy_n(offset, (end - begin) * per_tile, out.d_offsets.data() + begin * per_tile);
      };
      linear_backward(compute, layer, in, d_y.data(),
                      static_cast<std::int64_t>(x.size()) / layer.columns, sink, nullptr, false,
                      output);
      out.calls = calls;
      return out;
    }
    const Linear& layer;
    Activations in;
    Floats x, d_y, base, y, added;
  };
  Compute compute_{*GetParam(), Precision::kDefault, 2};
};
INSTANTIATE_TEST_SUITE_P(Isas, OutputGradient, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

Linear layer_of(Matrix weight) {
  Linear layer;
  layer.columns = weight.columns();
  layer.weight = std::move(weight);
  return layer;
}

// The reference's weight with NF4's levels as the int8 kernels have them (impl/codes.h).
ref::Linear<double> int8_linear(const Matrix& weight) {
  ref::Linear<double> w = with_offsets(reference_linear<double>(weight));
  if (weight.view().book == CodeBook::kNf4)
    for (double& level : w.codes) level = std::round(level * 112.03) / 112.03;
  return w;
}

Floats rows_of(const Floats& packed, const Matrix& weight) {
  Floats out;
  for (std::int64_t row = 0; row < weight.rows(); ++row)
    out.push_back(packed[weight.scale_index(row, 0)]);
  return out;
}

// sum_t |dy| (sum_j |w's terms| |x| + |base|) / |s|: with E = columns + 10 for the rounding of y,
// as in linear_test.cc, a subtracted base's two roundings, the sum over tokens, and a few for the
// epilogue.
TEST_P(OutputGradient, AgreesWithTheReference) {
  WorstError used("tolerance_used");
  int formats = 0;
  for (const MatrixFormat& format : all_formats())
    for (const auto& [rows, columns, tokens] :
         {std::array<std::int64_t, 3>{40, 96, 3}, {1, 32, 1}, {7, 45, 6}, {33, 160, 70}}) {
      const std::int64_t unit = format.column_unit;
      const Linear layer = layer_of(format.make(rows, columns / unit * unit, 3, false));
      const Matrix& weight = layer.weight;
      if (weight.groups() != 1) continue;
      ++formats;
      SCOPED_TRACE(testing::Message() << format.name << ", " << rows << " x " << weight.columns()
                                      << ", " << tokens << " tokens");
      const Pass pass(compute_, layer, tokens);
      const ref::Linear<double> w = int8_linear(weight);
      const auto x = widened(pass.x), d_y = widened(pass.d_y);
      const auto seen = rounded_to_int8(compute_.kernels, x, weight.columns());
      const auto want = ref::linear_backward(w, seen, d_y);
      const auto terms = ref::linear_backward(absolute(w), absolute(seen), absolute(d_y));
      std::vector<double> magnitude, based;
      for (std::int64_t row = 0; row < rows; ++row) {
        const auto at = static_cast<std::size_t>(row);
        double of_base = 0;
        for (std::int64_t t = 0; t < tokens; ++t)
          of_base += std::fabs(double{pass.d_y[t * rows + row]} * pass.base[t * rows + row]);
        const double scale = std::fabs(w.scales[at]);
        const double offset = w.offsets.empty() ? 0.0 : std::fabs(w.offsets[at]);
        magnitude.push_back(terms.d_scales[at] + offset / scale * terms.d_offsets[at]);
        based.push_back(magnitude.back() + of_base / scale);
      }
      const double roundings = static_cast<double>(weight.columns() + tokens) + 20;
      const auto check = [&](const KnownOutput& output, const std::vector<double>& size,
                             const char* what) {
        const ScaleGradients got = pass.gradients(compute_, output);
        used.add(expect_close(rows_of(got.d_scales, weight), want.d_scales, size, roundings, what));
        if (weight.has_shifts())
          used.add(expect_close(rows_of(got.d_offsets, weight), want.d_offsets, terms.d_offsets,
                                roundings, "d_offset"));
      };
      check({pass.y.data()}, magnitude, "d_scale");
      check({pass.added.data(), pass.base.data()}, based, "d_scale above a base");
      check({}, magnitude, "d_scale by the product");
    }
  EXPECT_GE(formats, 17 * 4);
}

// The output is what counts, not the codes: twice the output gives twice the gradient. A scale of 0
// gives 0.
TEST_P(OutputGradient, FollowsFromTheOutput) {
  auto groups = random_groups(4, 33, 64, 1 << 20, GroupKind::kConstant, 5);
  groups.scales[20] = 0;
  auto packed = Matrix::pack_groups(groups.view());
  ASSERT_TRUE(packed) << packed.error().message;
  const Linear layer = layer_of(std::move(*packed));
  Pass pass(compute_, layer, 9);
  const Floats once = pass.gradients(compute_, {pass.y.data()}).d_scales;
  for (float& y : pass.y) y *= 2;
  const Floats twice = pass.gradients(compute_, {pass.y.data()}).d_scales;
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], 2 * once[i]);
  EXPECT_EQ(rows_of(once, layer.weight)[20], 0.0f);
}

// Several groups, anything beside the codes, and the f32 path: the product, whatever the output.
TEST_P(OutputGradient, OnlyWhereItFollows) {
  const auto make = [](std::int64_t group_size) {
    return WeightFormat{
        "", 1, [=](std::int64_t rows, std::int64_t columns) {
          auto made = Matrix::pack_groups(
              random_groups(4, rows, columns, group_size, GroupKind::kZeros, 1).view());
          EXPECT_TRUE(made) << made.error().message;
          return std::move(*made);
        }};
  };
  Compute f32(*GetParam(), Precision::kF32, 2);
  LinearSink sink;
  const auto expect_product = [&](Compute& compute, const Linear& layer, bool product,
                                  const std::string& what) {
    sink.scales = [](std::int64_t, std::int64_t, const float*, const float*) {};
    EXPECT_EQ(takes_output(compute, layer, sink), !product) << what;
    sink.scales = {};
    EXPECT_FALSE(takes_output(compute, layer, sink)) << what;
    const Pass pass(compute, layer, 9);
    const Floats want = pass.gradients(compute, {}).d_scales;
    const Floats wrong(pass.y.size(), 100.0f);
    const Floats got = pass.gradients(compute, {wrong.data()}).d_scales;
    EXPECT_EQ(static_cast<bool>(same_bits(got, want)), product) << what;
  };
  for (const Case& c : kCases) {
    if (c.pool > 0 || c.dropout > 0) continue;
    const Linear layer = make_linear(make(1 << 20), c, 40, 96);
    expect_product(compute_, layer, c.weak != Weak::kNone || c.rank > 0, c.name);
    expect_product(f32, layer, true, c.name + ", f32");
  }
  expect_product(compute_, make_linear(make(32), kCases[0], 40, 96), true, "groups");
}

TEST_P(OutputGradient, TheSameBitsForAnyThreads) {
  for (const GroupKind kind : kGroupKinds) {
    auto packed = Matrix::pack_groups(random_groups(4, 215, 64, 1 << 20, kind, 1).view());
    ASSERT_TRUE(packed) << packed.error().message;
    const Linear layer = layer_of(std::move(*packed));
    const Pass pass(compute_, layer, 150);
    Compute one(*GetParam(), Precision::kDefault, 1);
    const KnownOutput output{pass.added.data(), pass.base.data()};
    const ScaleGradients want = pass.gradients(one, output);
    for (const int threads : {2, 3, 8}) {
      Compute compute(*GetParam(), Precision::kDefault, threads);
      const ScaleGradients got = pass.gradients(compute, output);
      EXPECT_GT(got.calls, 1);
      EXPECT_TRUE(same_bits(got.d_scales, want.d_scales)) << threads << " threads";
      EXPECT_TRUE(same_bits(got.d_offsets, want.d_offsets)) << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace trimpot
