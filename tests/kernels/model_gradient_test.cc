// Whole layers and models on the f32 path against the scalar references in double.
//
// Tolerance, relative to the largest element of each gradient: u times the lengths of all sums on
// the way there and back. Per layer a forward adds up 2 hidden + q_width + feed_forward + head_dim
// + tokens terms, the backward (with the recomputed forward) three times as many. That is first
// order: errors of different sums are taken to add up and not to multiply, and each op to be
// conditioned like its largest results. It comes to some 1e-4, a hundred times what is seen.
#include <gtest/gtest.h>

#include <map>

#include "io/test_files.h"
#include "model/training_pass.h"
#include "support/compare.h"
#include "support/own_toy.h"
#include "support/random.h"
#include "support/reference.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using enum ElementType;

struct Case {
  std::string name;
  ToyOptions options;
  ToyFile file;
  std::int64_t rank = 0;  // of low-rank pairs on every layer; 0: none
  bool pooled = false;
  float dropout = 0;
};

// Files of our own with all that stands beside codes.
std::vector<Case> own_cases() {
  ToyOptions options;
  options.hidden = 64;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 20;
  options.feed_forward = 96;
  options.vocabulary = 37;
  options.embedding = options.head.emplace(kF32);
  const auto own = [&](const OwnOptions& own_options) { return own_toy(options, own_options).own; };
  using enum OwnCentre;
  return {
      {"zeros", options, own({4, 32, kZeros})},
      {"rows with zeros", options, own({4, 0, kZeros})},
      {"rows with offsets", options, own({4, 0, kOffsets})},
      {"symmetric rows", options, own({4, 0, kSymmetric})},
      {"weak anywhere", options, own({3, 64, kZeros, 7, false})},
      {"weak last", options, own({4, 0, kOffsets, 5, true})},
      {"reordered", options, own({4, 32, kZeros, 7, false, true})},
      {"reordered, head not", options, own({8, 32, kSymmetric, 3, false, true, true})},
      {"low rank", options, own({4, 32, kOffsets}), 4, false, 0.1f},
      {"pooled", options, own({4, 32, kZeros}), 3, true, 0.2f},
      {"everything", options, own({4, 32, kZeros, 7, false, true}), 3, false, 0.1f},
  };
}

// Pairs with A and B random: at B = 0, where tuning starts, A's gradient would be 0.
void add_low_rank(Model& model, const Case& c) {
  for (std::size_t i = 0; c.rank > 0 && i < model.linear_count(); ++i) {
    Linear& linear = model.linear(i);
    auto path = std::make_unique<LowRank>();
    path->pool = c.pooled ? linear.weight.view().group_chunks * kChunkColumns : 0;
    path->a =
        Matrix::zeros(Storage::kF32, c.rank, c.pooled ? linear.weight.groups() : linear.columns);
    path->b = Matrix::zeros(Storage::kF32, linear.rows(), c.rank);
    RandomStream random(13, i);
    for (Matrix* matrix : {&path->a, &path->b})
      for (std::int64_t row = 0; row < matrix->rows(); ++row)
        for (std::int64_t column = 0; column < matrix->columns(); ++column)
          matrix->dense_f32()[matrix->dense_index(row, column)] = 0.1f * random.normal();
    path->scale = 0.5f;
    path->dropout = c.dropout;
    path->seed = i;
    linear.low_rank = std::move(path);
  }
}

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
  std::vector<Case> all = own_cases();
  all.push_back({"ragged", ragged, toy_file(ragged)});
  all.push_back({"shared", shared, toy_file(shared)});
  all.push_back({"plain", plain, toy_file(plain)});
  return all;
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

// Gradients by name ("blk.0.attn_q zeros"), row after row.
using Gradients = std::map<std::string, std::vector<double>>;

constexpr std::uint64_t kStream = 5;  // of dropout

// Asks for every gradient that there is.
class Collector {
 public:
  explicit Collector(const Model& model) : model_(model), linears_(model.linear_count()) {
    sink_.dropout_stream = kStream;
    sink_.linears.resize(model.linear_count());
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      const Linear& linear = model.linear(i);
      LinearSink& sink = sink_.linears[i];
      Arrays& to = linears_[i];
      sink.weight = array(to.weight, linear.weight);
      if (linear.weak.rows() > 0) sink.weak = array(to.weak, linear.weak);
      if (linear.low_rank) {
        sink.low_rank_a = array(to.a, linear.low_rank->a);
        sink.low_rank_b = array(to.b, linear.low_rank->b);
      }
      if (!linear.weight.quantized()) continue;
      to.scales.resize(linear.weight.scales().size());
      to.offsets.resize(linear.weight.scales().size());
      sink.scales = collect(i);
    }
  }
  const GradientSink& sink() const { return sink_; }

  Gradients gradients() const {
    Gradients out;
    for (std::size_t i = 0; i < model_.linear_count(); ++i) {
      const Linear& linear = model_.linear(i);
      const Arrays& from = linears_[i];
      const std::string name = linear_name(i);
      out[name + " weight"] = rows_first(from.weight, linear.weight);
      if (linear.weak.rows() > 0) out[name + " weak"] = rows_first(from.weak, linear.weak);
      if (linear.low_rank) {
        out[name + " a"] = rows_first(from.a, linear.low_rank->a);
        out[name + " b"] = rows_first(from.b, linear.low_rank->b);
      }
      const Matrix& weight = linear.weight;
      if (!weight.quantized()) continue;
      for (std::int64_t row = 0; row < weight.rows(); ++row)
        for (std::int64_t group = 0; group < weight.groups(); ++group) {
          const std::size_t at = weight.scale_index(row, group);
          double scale = from.scales[at];
          if (weight.has_zeros()) {  // as kernels.h has it
            scale -= f16_to_f32(weight.zeros()[at]) * from.offsets[at];
            out[name + " zeros"].push_back(-f16_to_f32(weight.scales()[at]) * from.offsets[at]);
          }
          out[name + " scales"].push_back(scale);
          if (weight.has_offsets()) out[name + " offsets"].push_back(from.offsets[at]);
        }
    }
    return out;
  }

 private:
  struct Arrays {
    std::vector<float> weight, weak, a, b, scales, offsets;
  };
  static float* array(std::vector<float>& values, const Matrix& matrix) {
    values.resize(static_cast<std::size_t>(matrix.view().tiles * matrix.columns() * kTileRows));
    return values.data();
  }
  static std::vector<double> rows_first(const std::vector<float>& packed, const Matrix& matrix) {
    std::vector<double> out;
    for (std::int64_t row = 0; row < matrix.rows(); ++row)
      for (std::int64_t column = 0; column < matrix.columns(); ++column)
        out.push_back(packed[matrix.dense_index(row, column)]);
    return out;
  }
  ScaleGradientSink collect(std::size_t i) {
    return [this, i](std::int64_t begin, std::int64_t end, const float* d_scale,
                     const float* d_offset) {
      const auto per_tile = static_cast<std::size_t>(model_.linear(i).weight.groups()) * kTileRows;
      for (std::size_t at = begin * per_tile; at < end * per_tile; ++at) {
        linears_[i].scales[at] += d_scale[at - begin * per_tile];
        if (d_offset != nullptr) linears_[i].offsets[at] += d_offset[at - begin * per_tile];
      }
    };
  }
  const Model& model_;
  std::vector<Arrays> linears_;
  GradientSink sink_;
};

// The references' gradients, summed over the sequences of a batch.
struct Wanted {
  double loss = 0;
  Gradients gradients;
};
Wanted wanted(const Model& model, const TrainingBatch& batch, double weight) {
  Wanted out;
  const auto add = [&](const std::string& name, const std::vector<double>& from) {
    std::vector<double>& to = out.gradients[name];
    to.resize(from.size());
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  };
  std::int64_t first = 0;
  for (const std::int64_t length : batch.lengths) {
    const auto reference = reference_model<double>(model, {kStream, first, length});
    const std::vector<ref::Index> tokens(batch.tokens.begin() + first,
                                         batch.tokens.begin() + first + length);
    const std::vector<bool> learned(batch.learned.begin() + first,
                                    batch.learned.begin() + first + length);
    const auto all = ref::loss_backward(reference, tokens, learned, weight);
    out.loss += all.loss / weight;
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      const auto& g = all.layers[i / 7].linears[i % 7];
      const Linear& linear = model.linear(i);
      const std::string name = linear_name(i);
      add(name + " weight", g.d_weight);
      if (linear.weak.rows() > 0) add(name + " weak", g.d_weak);
      if (linear.low_rank) add(name + " a", g.d_a);
      if (linear.low_rank) add(name + " b", g.d_b);
      if (linear.weight.quantized()) add(name + " scales", g.d_scales);
      if (linear.weight.has_zeros()) add(name + " zeros", g.d_zeros);
      if (linear.weight.has_offsets()) add(name + " offsets", g.d_offsets);
    }
    first += length;
  }
  return out;
}

double difference(const std::vector<double>& got, const std::vector<double>& want) {
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    worst = std::max(worst, std::isfinite(got[i]) ? std::fabs(got[i] - want[i]) : HUGE_VAL);
  return worst / largest(want);
}

class ModelGradient : public testing::TestWithParam<const Kernels*> {
 protected:
  const TempFolder folder_;
};
INSTANTIATE_TEST_SUITE_P(Isas, ModelGradient, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST_P(ModelGradient, TrainingPass) {
  WorstError worst("worst_gradient"), worst_loss("worst_loss");
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const ToyOptions& options = c.options;
    const auto toy = load_toy(c.file, folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    add_low_rank(*toy->model, c);
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
    const Gradients gradients = got.gradients();
    ASSERT_EQ(gradients.size(), want.gradients.size());
    for (const auto& [part, values] : want.gradients) {
      ASSERT_EQ(gradients.at(part).size(), values.size()) << part;
      EXPECT_GT(largest(values), 0.0) << part;
      const double error = difference(gradients.at(part), values);
      EXPECT_LE(error, bound) << part;
      worst.add(error);
    }
  }
}

// The gradient of a layer's input, which the training pass keeps to itself.
TEST_P(ModelGradient, LayerInputs) {
  WorstError worst("worst_gradient");
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const ToyOptions& options = c.options;
    const auto toy = load_toy(c.file, folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    add_low_rank(*toy->model, c);
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
    AlignedBuffer<float> memory(LayerGradients::size(model.config, rows, batch.segments));
    const LayerGradients g(model.config, rows, memory.data());
    std::vector<float> y(x.size()), d_x = d_y;
    layer_forward(compute, model.config, model.layers[1], batch.segments, rope, rows, x.data(), a,
                  y.data());
    layer_backward(compute, model.config, model.layers[1], 1, batch.segments, rope, rows, x.data(),
                   y.data(), a, g, {}, d_x.data());
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

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
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
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const ToyOptions& options = c.options;
    const auto toy = load_toy(c.file, folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    add_low_rank(*toy->model, c);
    const Model& model = *toy->model;
    Compute compute(*GetParam(), Precision::kDefault, 2);
    TrainingPass pass(compute, model);
    const TrainingBatch batch = random_batch({1, 70, 2, 17}, options.vocabulary);
    const Collector got(model);
    const auto sum = pass.run(batch, 1.0f, &got.sink());
    ASSERT_TRUE(sum) << sum.error().message;
    const Wanted want = wanted(model, batch, 1.0);
    EXPECT_NEAR(sum->loss, want.loss, 0.02 * want.loss);
    for (const auto& [part, values] : got.gradients()) {
      const double alike = cosine(values, want.gradients.at(part));
      sine.add(std::sqrt(1 - alike * alike));
      EXPECT_GT(alike, 0.99) << part;
    }
  }
}

// Gradients of scales from the layers' outputs against those by products, which a low-rank path of
// zeros brings back: it changes nothing else. Outputs taken from the residual have its rounding,
// and q that was turned there and back that of two turns: less than the bound of whole passes. Keys
// and values, and queries that were kept, were rounded to f16, 2^-11 of each, as the layers' inputs
// of the other side were; their sums cancel by a few bits. Kept outputs of gate and up are off by
// at most 1/254 of the largest of 32, and where a layer is recomputed, some int8 codes of o_proj's
// input stepped by one: so much is missing from down_proj's output (0.9 % of a toy's largest
// gradient; 0.6 % of the default model's, as vectors, at a cosine of 0.99997).
TEST_P(ModelGradient, ScalesFromOutputs) {
  constexpr double kHalf = 0x1p-7, kRecomputed = 0x1p-5;
  // Outputs in bf16 differ from the int8 products that the other gradients are of: by 2^-8 of each
  // term, some of which cancel.
  constexpr double kBf16 = 0x1p-6;
  WorstError worst("worst_gradient"), worst_half("worst_half"), worst_down("worst_recomputed");
  int layers_with_rows = 0;
  for (const Case& c : cases()) {
    if (c.rank > 0) continue;
    SCOPED_TRACE(c.name);
    const ToyOptions& options = c.options;
    const auto toy = load_toy(c.file, folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    Model& model = *toy->model;
    Compute compute(*GetParam(), Precision::kDefault, 2);
    TrainingPass pass(compute, model);
    const TrainingBatch batch = random_batch({1, 70, 2, 17}, options.vocabulary);
    const auto gradients = [&] {
      const Collector collector(model);
      EXPECT_TRUE(pass.run(batch, 1.0f, &collector.sink()));
      return collector.gradients();
    };
    const Collector any(model);
    std::vector<bool> takes(model.linear_count());
    for (std::size_t i = 0; i < takes.size(); ++i)
      takes[i] = takes_output(compute, model.linear(i), any.sink().of(i));
    const Gradients got = gradients();
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      Linear& linear = model.linear(i);
      auto path = std::make_unique<LowRank>();
      path->a = Matrix::zeros(Storage::kF32, 1, linear.columns);
      path->b = Matrix::zeros(Storage::kF32, linear.rows(), 1);
      path->scale = 1.0f;
      linear.low_rank = std::move(path);
    }
    const Gradients want = gradients();
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      if (!takes[i]) continue;
      ++layers_with_rows;
      const std::string name = linear_name(i) + " scales";
      const bool last = i + 7 >= model.linear_count();  // its results are still there
      const bool recomputed = (i % 7 == kDown || i % 7 == kGate || i % 7 == kUp) && !last;
      const bool half = i % 7 == kK || i % 7 == kV || (i % 7 == kQ && !last);
      const double error = difference(got.at(name), want.at(name));
      EXPECT_LE(error, recomputed                        ? kRecomputed
                       : GetParam()->unpack_rows_rounded ? kBf16
                       : half                            ? kHalf
                                                         : tolerance(options, 70))
          << name;
      EXPECT_GT(error, 0.0) << name;
      (recomputed ? worst_down : half ? worst_half : worst).add(error);
    }
  }
  EXPECT_GE(layers_with_rows, 3 * 14);
}

}  // namespace
}  // namespace trimpot
