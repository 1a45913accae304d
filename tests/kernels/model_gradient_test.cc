// Whole layers and models on the f32 path against the scalar references in double.
//
// Tolerance, relative to the largest element of each gradient: u times the lengths of all sums on
// the way there and back. Per layer a forward adds up 2 hidden + q_width + feed_forward + head_dim
// + tokens terms, the backward (with the recomputed forward) three times as many. That is first
// order: errors of different sums are taken to add up and not to multiply, and each op to be
// conditioned like its largest results. It comes to some 1e-4, a hundred times what is seen.
#include <gtest/gtest.h>

#include "io/test_files.h"
#include "model/training_pass.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using enum ElementType;

struct Case {
  std::string name;
  ToyOptions options;
};

std::vector<Case> cases() {
  // 3:1 heads of 20 channels (no multiple of 16, and rows of k and v neither), dense o and down.
  ToyOptions ragged;
  ragged.hidden = 96;
  ragged.heads = 3;
  ragged.kv_heads = 1;
  ragged.head_dim = 20;
  ragged.rope_dims = 12;
  ragged.feed_forward = 50;
  ragged.vocabulary = 37;
  ragged.linear_types = {kQ4_1, kQ5_1, kQ4_0, kF16, kQ5_0, kQ8_0, kBF16};
  ragged.head = kF32;
  // 3:1 heads of 8, every block type.
  ToyOptions shared;
  shared.hidden = 64;
  shared.heads = 12;
  shared.kv_heads = 4;
  shared.head_dim = 8;
  shared.feed_forward = 96;
  shared.vocabulary = 50;
  shared.rope_freqs = true;
  shared.linear_types = {kQ5_0, kQ4_0, kQ8_0, kQ4_1, kQ5_1, kQ4_1, kQ5_1};
  // 1:1 heads of 24, tied head in Q4_1.
  ToyOptions plain;
  plain.hidden = 32;
  plain.heads = plain.kv_heads = 4;
  plain.head_dim = 24;
  plain.feed_forward = 160;
  plain.vocabulary = 40;
  plain.embedding = kQ4_1;
  plain.layers = 3;
  return {{"ragged", ragged}, {"shared", shared}, {"plain", plain}};
}

double tolerance(const ToyOptions& o, std::int64_t tokens) {
  const std::int64_t forward =
      2 * o.hidden + o.heads * o.head_dim + o.feed_forward + o.head_dim + tokens;
  return kRoundoff * static_cast<double>(4 * o.layers * forward + o.vocabulary + o.hidden);
}

TrainingBatch random_batch(const std::vector<std::int64_t>& lengths, std::int64_t vocabulary) {
  RandomStream random(11);
  TrainingBatch batch;
  batch.lengths = lengths;
  for (const std::int64_t length : lengths)
    for (std::int64_t i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<TokenId>(random.below(vocabulary)));
      batch.learned.push_back(random.below(4) != 0);
    }
  return batch;
}

// Gradients of all linear layers, [rows, groups] as the references have them.
class Collector {
 public:
  explicit Collector(const Model& model) : model_(model), d_scales_(model.linear_count()) {
    d_offsets_.resize(model.linear_count());
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      d_scales_[i].resize(model.linear(i).weight.scales().size());
      d_offsets_[i].resize(model.linear(i).weight.offsets().size());
    }
    sink_.linears.resize(model.linear_count());
    for (std::size_t i = 0; i < model.linear_count(); ++i)
      if (model.linear(i).weight.quantized()) sink_.linears[i].scales = collect(i);
  }
  const GradientSink& sink() const { return sink_; }
  std::vector<float> d_scales(std::size_t i) const { return rows_first(i, d_scales_[i]); }
  std::vector<float> d_offsets(std::size_t i) const { return rows_first(i, d_offsets_[i]); }

 private:
  ScaleGradientSink collect(std::size_t i) {
    return [this, i](std::int64_t begin, std::int64_t end, const float* d_scale,
                     const float* d_offset) {
      const auto per_tile = static_cast<std::size_t>(model_.linear(i).weight.groups()) * kTileRows;
      for (std::size_t at = begin * per_tile; at < end * per_tile; ++at) {
        d_scales_[i][at] += d_scale[at - begin * per_tile];
        if (d_offset != nullptr) d_offsets_[i][at] += d_offset[at - begin * per_tile];
      }
    };
  }
  std::vector<float> rows_first(std::size_t i, const std::vector<float>& packed) const {
    const Matrix& matrix = model_.linear(i).weight;
    std::vector<float> out;
    for (std::int64_t row = 0; row < matrix.rows(); ++row)
      for (std::int64_t group = 0; group < matrix.groups(); ++group)
        out.push_back(packed[matrix.scale_index(row, group)]);
    return out;
  }
  const Model& model_;
  std::vector<std::vector<float>> d_scales_, d_offsets_;
  GradientSink sink_;
};

// The references' gradients, summed over the sequences of a batch.
struct Wanted {
  double loss = 0;
  std::vector<std::vector<double>> d_scales, d_offsets;
};
Wanted wanted(const Model& model, const TrainingBatch& batch, double weight) {
  const auto reference = reference_model<double>(model);
  Wanted out;
  out.d_scales.resize(model.linear_count());
  out.d_offsets.resize(model.linear_count());
  const auto add = [](std::vector<double>& to, const std::vector<double>& from) {
    to.resize(from.size());
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  };
  std::size_t first = 0;
  for (const std::int64_t length : batch.lengths) {
    const std::vector<ref::Index> tokens(batch.tokens.begin() + first,
                                         batch.tokens.begin() + first + length);
    const std::vector<bool> learned(batch.learned.begin() + first,
                                    batch.learned.begin() + first + length);
    const auto g = ref::loss_backward(reference, tokens, learned, weight);
    out.loss += g.loss / weight;
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      add(out.d_scales[i], g.layers[i / 7].linears[i % 7].d_scales);
      add(out.d_offsets[i], g.layers[i / 7].linears[i % 7].d_offsets);
    }
    first += length;
  }
  return out;
}

class ModelGradient : public testing::TestWithParam<const Kernels*> {
 protected:
  const TempFolder folder_;
};
INSTANTIATE_TEST_SUITE_P(Isas, ModelGradient, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST_P(ModelGradient, TrainingPass) {
  WorstError worst("worst_gradient"), worst_loss("worst_loss");
  for (const auto& [name, options] : cases()) {
    SCOPED_TRACE(name);
    const auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    const Model& model = *toy->model;
    Compute compute(*GetParam(), Precision::kF32, 2);
    TrainingPass pass(compute, model);
    const TrainingBatch batch = random_batch({1, 70, 2, 17}, options.vocabulary);
    const Collector got(model);
    const auto sum = pass.run(batch, 0.01f, &got.sink());
    ASSERT_TRUE(sum) << sum.error().message;
    const Wanted want = wanted(model, batch, double{0.01f});
    const double bound = tolerance(options, 70);
    EXPECT_LE(bound, 1e-3);
    EXPECT_EQ(sum->count, count_predictions(batch));
    EXPECT_LE(std::fabs(sum->loss - want.loss), bound * want.loss);
    worst_loss.add(std::fabs(sum->loss - want.loss) / want.loss);
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      if (!model.linear(i).weight.quantized()) continue;
      const double scales = relative_error(got.d_scales(i), want.d_scales[i]);
      EXPECT_LE(scales, bound) << linear_tensor_name(i) << " scales";
      worst.add(scales);
      if (!model.linear(i).weight.has_offsets()) continue;
      const double offsets = relative_error(got.d_offsets(i), want.d_offsets[i]);
      EXPECT_LE(offsets, bound) << linear_tensor_name(i) << " offsets";
      worst.add(offsets);
    }
  }
}

// The gradient of a layer's input, which the training pass keeps to itself.
TEST_P(ModelGradient, LayerInputs) {
  WorstError worst("worst_gradient");
  for (const auto& [name, options] : cases()) {
    SCOPED_TRACE(name);
    const auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    const Model& model = *toy->model;
    Compute compute(*GetParam(), Precision::kF32, 2);
    const std::vector<std::int64_t> lengths{5, 66, 1};
    const std::int64_t rows = 72;
    RandomStream random(12);
    const auto x = random.normals(rows * options.hidden),
               d_y = random.normals(rows * options.hidden);
    std::vector<TokenId> tokens(static_cast<std::size_t>(rows));
    Batch batch{tokens, {}};
    std::vector<KeyValues> caches(lengths.size());
    std::int64_t first = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      caches[i].allocate(compute, model.config.attention, lengths[i]);
      batch.segments.push_back({first, lengths[i], 0, &caches[i]});
      first += lengths[i];
    }
    RopeTable rope;
    rope.fill(model, batch);
    LayerActivations a;
    a.allocate(model.config, rows);
    LayerGradients g;
    g.allocate(model.config, rows);
    std::vector<float> y(x.size()), d_x = d_y;
    layer_forward(compute, model.config, model.layers[1], batch.segments, rope, rows, x.data(), a,
                  y.data());
    layer_backward(compute, model.config, model.layers[1], 1, batch.segments, rope, rows, x.data(),
                   a, g, {}, d_x.data());
    const auto reference = reference_model<double>(model);
    const double bound = tolerance(options, 66);
    for (const Segment& segment : batch.segments) {
      const auto part = [&](const std::vector<float>& values) {
        return std::span(values).subspan(segment.row * options.hidden,
                                         segment.count * options.hidden);
      };
      ref::LayerState<double> state;
      const auto want_y =
          ref::layer_forward(reference, reference.layers[1], widened(part(x)), state);
      const auto want_d_x =
          ref::layer_backward(reference, reference.layers[1], state, widened(part(d_y))).d_x;
      EXPECT_LE(relative_error(part(y), want_y), bound);
      EXPECT_LE(relative_error(part(d_x), want_d_x), bound);
      worst.add(relative_error(part(d_x), want_d_x));
    }
  }
}

double cosine(const std::vector<float>& a, const std::vector<double>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t k = 0; k < a.size(); ++k) {
    ab += a[k] * b[k];
    aa += double{a[k]} * a[k];
    bb += b[k] * b[k];
  }
  return ab / std::sqrt(aa * bb);
}

// The default path rounds activations to int8 and passes the gradient straight through, so no bound
// follows from u. But both gradients must point the same way, within a few degrees: a wrong sign, a
// lost layer or a mixed-up buffer would show.
TEST_P(ModelGradient, DefaultPathPointsTheSameWay) {
  WorstError sine("worst_sine");
  for (const auto& [name, options] : cases()) {
    SCOPED_TRACE(name);
    const auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    const Model& model = *toy->model;
    Compute compute(*GetParam(), Precision::kDefault, 2);
    TrainingPass pass(compute, model);
    const TrainingBatch batch = random_batch({1, 70, 2, 17}, options.vocabulary);
    const Collector got(model);
    const auto sum = pass.run(batch, 1.0f, &got.sink());
    ASSERT_TRUE(sum) << sum.error().message;
    const Wanted want = wanted(model, batch, 1.0);
    EXPECT_NEAR(sum->loss, want.loss, 0.02 * want.loss);
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      if (!model.linear(i).weight.quantized()) continue;
      const double scales = cosine(got.d_scales(i), want.d_scales[i]);
      sine.add(std::sqrt(1 - scales * scales));
      EXPECT_GT(scales, 0.99) << linear_tensor_name(i);
      if (!model.linear(i).weight.has_offsets()) continue;
      EXPECT_GT(cosine(got.d_offsets(i), want.d_offsets[i]), 0.99) << linear_tensor_name(i);
    }
  }
}

}  // namespace
}  // namespace trimpot
