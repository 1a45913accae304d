// The scale methods: what they commit, what they leave alone, and their gradients.
#include "tune/scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/half.h"
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

// A model in which every type occurs, and some groups have the scale 0.
ToyOptions mixed_options() {
  ToyOptions options;
  options.hidden = 64;
  options.heads = 2;
  options.kv_heads = 1;
  options.head_dim = 32;
  options.feed_forward = 96;
  options.vocabulary = 30;
  options.linear_types = {kQ4_1, kQ4_0, kQ5_1, kQ8_0, kQ5_0, kF16, kQ4_1};
  return options;
}
ToyFile mixed_toy() {
  ToyFile toy = toy_file(mixed_options());
  for (const char* name : {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"})  // both Q4_1
    for (const std::size_t block : {0, 7, 50}) {
      std::memset(toy.tensor(name).data.data() + block * 20, 0, 2);
      toy.tensor(name).data[block * 20 + 3] = std::byte{0x3c};  // offset about 1
    }
  return toy;
}

// Zeros as such, beside weak columns, which these methods leave alone.
ToyFile zeros_toy() {
  ToyOptions options = mixed_options();
  options.embedding = kF32;
  return own_toy(options, {3, 32, OwnCentre::kZeros, 5, false, true}).own;
}

class Scales : public testing::Test {
 protected:
  std::unique_ptr<Model> load(const ToyFile& toy) {
    auto loaded = load_toy(toy, folder_.file("toy.gguf"));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(loaded->model);
  }
  std::unique_ptr<Model> load_mixed() { return load(mixed_toy()); }
  std::string error_of(const ToyOptions& toy, const ScaleOptions& options) {
    const auto model = load(toy_file(toy));
    const auto method = make_scale_method(*model, options);
    return method ? "" : method.error().message;
  }
  const TempFolder folder_;
  ThreadTeam team_{2};
};

constexpr ScaleMethod kMethods[] = {ScaleMethod::kScales, ScaleMethod::kZeros, ScaleMethod::kBoth};
constexpr ScaleGranularity kGranularities[] = {ScaleGranularity::kGroup, ScaleGranularity::kRow};

// All scales and offsets of a model.
std::vector<f16> stored(const Model& model) {
  std::vector<f16> out;
  for (std::size_t i = 0; i < model.linear_count(); ++i) {
    const Matrix& matrix = model.linear(i).weight;
    out.insert(out.end(), matrix.scales().begin(), matrix.scales().end());
    out.insert(out.end(), matrix.offsets().begin(), matrix.offsets().end());
  }
  return out;
}

std::vector<f16> halves(const AdapterTensor& tensor) {
  std::vector<f16> values(tensor.bytes.size() / sizeof(f16));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

void perturb(TuningMethod& method, float size, std::uint64_t seed = 1) {
  RandomStream random(seed);
  for (float& value : method.parameters().values.span()) value += size * random.normal();
}

TEST_F(Scales, AtTheStartPeqaCommitsTheFile) {
  for (const ScaleGranularity granularity : kGranularities) {
    const auto model = load_mixed();
    const std::vector<f16> before = stored(*model);
    const auto method = make_scale_method(*model, {ScaleMethod::kScales, granularity, {}});
    ASSERT_TRUE(method) << method.error().message;
    ASSERT_TRUE((*method)->commit(team_));
    EXPECT_EQ(stored(*model), before);
  }
}

// A learned zero-point is stored as f16, so its offset may move by a rounding of m, never more.
TEST_F(Scales, AtTheStartZeroPointsMoveOffsetsByARoundingOnly) {
  const auto model = load_mixed(), base = load_mixed();
  const auto method = make_scale_method(*model, {ScaleMethod::kZeros, {}, {}});
  ASSERT_TRUE(method);
  ASSERT_TRUE((*method)->commit(team_));
  for (std::size_t i = 0; i < model->linear_count(); ++i) {
    const Matrix& now = model->linear(i).weight;
    for (std::size_t k = 0; k < now.scales().size(); ++k) {
      EXPECT_EQ(now.scales()[k], base->linear(i).weight.scales()[k]);
      if (!now.has_offsets()) continue;
      const float old = f16_to_f32(base->linear(i).weight.offsets()[k]);
      EXPECT_NEAR(f16_to_f32(now.offsets()[k]), old, std::fabs(old) * 0x1.02p-10f);
    }
  }
}

// Catches: master values that do not reach their group, a group of scale 0 that comes alive, scales
// that move under peqa-zero, offsets that do not follow.
TEST_F(Scales, CommitFollowsTheMasters) {
  for (const ScaleMethod kind : kMethods)
    for (const ScaleGranularity granularity : kGranularities) {
      const auto model = load_mixed(), base = load_mixed();
      const auto method = make_scale_method(*model, {kind, granularity, {}});
      ASSERT_TRUE(method) << method.error().message;
      perturb(**method, 0.1f);
      ASSERT_TRUE((*method)->commit(team_));
      const Parameters& parameters = (*method)->parameters();
      std::size_t frozen = 0;
      for (std::size_t i = 0; i < model->linear_count(); ++i) {
        const Matrix& now = model->linear(i).weight;
        const Matrix& old = base->linear(i).weight;
        const auto master = [&](const std::string& suffix, std::int64_t row, std::int64_t group) {
          for (const Parameter& p : parameters.list)
            if (p.name == linear_tensor_name(i) + suffix) {
              const std::int64_t groups = granularity == ScaleGranularity::kRow ? 1 : now.groups();
              const std::int64_t g = granularity == ScaleGranularity::kRow ? 0 : group;
              return std::optional(
                  parameters.values[p.begin + ((row / 16) * groups + g) * 16 + row % 16]);
            }
          return std::optional<float>();
        };
        for (std::int64_t row = 0; row < now.rows(); ++row)
          for (std::int64_t group = 0; group < now.groups(); ++group) {
            const std::size_t k = now.scale_index(row, group);
            const f16 offset = now.has_offsets() ? now.offsets()[k] : f16{0};
            const f16 old_offset = now.has_offsets() ? old.offsets()[k] : f16{0};
            if (old.scales()[k] == 0) {
              ++frozen;
              EXPECT_EQ(now.scales()[k], 0);
              EXPECT_EQ(offset, old_offset);
              continue;
            }
            const auto theta = master(".scale", row, group), shift = master(".zero", row, group);
            EXPECT_EQ(theta.has_value(), kind != ScaleMethod::kZeros && now.quantized());
            EXPECT_EQ(shift.has_value(), kind != ScaleMethod::kScales && now.has_offsets());
            const float s = f16_to_f32(old.scales()[k]), m = f16_to_f32(old_offset);
            const f16 want = f32_to_f16(s * theta.value_or(1.0f));
            ASSERT_EQ(now.scales()[k], want);
            const double z = -double{m} / s + shift.value_or(0.0f);
            const double want_offset = -f16_to_f32(want) * z;
            ASSERT_NEAR(f16_to_f32(offset), want_offset, std::fabs(want_offset) * 0x1.1p-10 + 1e-6);
          }
      }
      EXPECT_EQ(frozen, 6u);
    }
}

// Formats that store zeros: s' = f16(s theta), and z' = f16(z + shift) where zero-points are
// learned; nothing else of the model changes.
TEST_F(Scales, CommitsOfStoredZeros) {
  for (const ScaleMethod kind : kMethods)
    for (const ScaleGranularity granularity : kGranularities) {
      const auto model = load(zeros_toy()), base = load(zeros_toy());
      const auto method = make_scale_method(*model, {kind, granularity, {}});
      ASSERT_TRUE(method) << method.error().message;
      ASSERT_TRUE((*method)->commit(team_));
      for (std::size_t i = 0; i < model->linear_count(); ++i) {
        const Matrix& now = model->linear(i).weight;
        const Matrix& old = base->linear(i).weight;
        EXPECT_TRUE(same_bits(now.scales(), old.scales()));
        EXPECT_TRUE(same_bits(now.zeros(), old.zeros()));
      }
      perturb(**method, 0.1f);
      ASSERT_TRUE((*method)->commit(team_));
      const Parameters& parameters = (*method)->parameters();
      EXPECT_EQ(parameters.list.size(), kind == ScaleMethod::kBoth ? 28u : 14u);
      for (std::size_t i = 0; i < model->linear_count(); ++i) {
        const Matrix& now = model->linear(i).weight;
        const Matrix& old = base->linear(i).weight;
        const auto master = [&](const char* suffix, std::size_t at, float otherwise) {
          const std::size_t groups = static_cast<std::size_t>(now.groups()) * 16;
          if (granularity == ScaleGranularity::kRow) at = at / groups * 16 + at % 16;
          for (const Parameter& p : parameters.list)
            if (p.name == linear_tensor_name(i) + suffix) return parameters.values[p.begin + at];
          return otherwise;
        };
        for (std::int64_t row = 0; row < now.rows(); ++row)
          for (std::int64_t group = 0; group < now.groups(); ++group) {
            const std::size_t at = now.scale_index(row, group);
            ASSERT_EQ(now.scales()[at],
                      f32_to_f16(f16_to_f32(old.scales()[at]) * master(".scale", at, 1.0f)));
            ASSERT_EQ(now.zeros()[at],
                      f32_to_f16(f16_to_f32(old.zeros()[at]) + master(".zero", at, 0.0f)));
          }
        const Matrix& weak = model->linear(i).weak;
        EXPECT_TRUE(same_bits<f16>(weak.dense_f16(), base->linear(i).weak.dense_f16()));
      }
    }
}

TEST_F(Scales, CommitDoesNotDependOnThreads) {
  std::vector<std::vector<f16>> results;
  for (const int threads : {1, 2, 5}) {
    const auto model = load_mixed();
    const auto method = make_scale_method(*model, {ScaleMethod::kBoth, {}, {}});
    ASSERT_TRUE(method);
    perturb(**method, 0.1f);
    ThreadTeam team(threads);
    ASSERT_TRUE((*method)->commit(team));
    results.push_back(stored(*model));
  }
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TEST_F(Scales, ValuesThatLeaveTheRangeAreErrors) {
  for (const float bad : {1e9f, -1e9f, std::nanf("")}) {
    const auto model = load_mixed();
    const auto method = make_scale_method(*model, {ScaleMethod::kScales, {}, {}});
    ASSERT_TRUE(method);
    for (const Parameter& parameter : (*method)->parameters().list)
      if (parameter.name == "blk.1.attn_k.weight.scale")
        (*method)->parameters().values[parameter.begin + 5] = bad;
    const auto status = (*method)->commit(team_);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().message,
              "blk.1.attn_k.weight: a tuned scale left the range of 16-bit floats; lower the "
              "learning rate");
  }
}

// A zero-point far outside of the codes does not fit f16. Such a group (nearly constant weights)
// must not make the whole file impossible to tune.
TEST_F(Scales, ZeroPointsTooLargeForF16StayFrozen) {
  ToyFile toy = toy_file({});
  const f16 tiny = 1, offset = f32_to_f16(0.5f);  // z = -0.5 / 2^-24 = -8 million
  std::memcpy(toy.tensor("blk.0.ffn_up.weight").data.data() + 40, &tiny, 2);
  std::memcpy(toy.tensor("blk.0.ffn_up.weight").data.data() + 42, &offset, 2);
  for (const ScaleMethod kind : kMethods) {
    const auto model = load(toy);
    const Matrix& matrix = model->linear(5).weight;
    const std::size_t k = matrix.scale_index(1, 0);
    ASSERT_EQ(matrix.scales()[k], tiny);
    const auto method = make_scale_method(*model, {kind, {}, {}});
    ASSERT_TRUE(method);
    const auto status = (*method)->commit(team_);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(matrix.scales()[k], tiny);
    EXPECT_EQ(matrix.offsets()[k], offset);
    const auto tensors = (*method)->adapter_tensors();
    ASSERT_TRUE(tensors);
    for (const AdapterTensor& tensor : *tensors)
      for (const f16 value : halves(tensor)) ASSERT_TRUE(is_finite(value)) << tensor.name;
  }
}

// The gradient of every kind of master value, by the complex step through the whole model. The
// rounding to f16 is passed straight through:
//   ds' / dtheta = s,  dm' / dtheta = m (peqa) or -s z' (peqa-both),  dm' / dz' = -s'
// Tolerance as in kernels/model_gradient_test.cc: u times the lengths of all sums.
class ScaleGradient : public Scales {
 protected:
  using Complex = std::complex<double>;

  void check(const ToyFile& toy, ScaleMethod kind, ScaleGranularity granularity,
             const Kernels& kernels) {
    const auto model = load(toy), base = load(toy);
    const auto made = make_scale_method(*model, {kind, granularity, {}});
    ASSERT_TRUE(made) << made.error().message;
    TuningMethod& method = **made;
    perturb(method, 0.05f);
    ASSERT_TRUE(method.commit(team_));
    TrainingBatch batch;
    RandomStream random(3);
    for (int i = 0; i < 12; ++i) {
      batch.tokens.push_back(static_cast<TokenId>(random.below(30)));
      batch.learned.push_back(i % 4 != 2);
    }
    batch.lengths = {12};
    Compute compute(kernels, Precision::kF32, 2);
    TrainingPass pass(compute, *model);
    ASSERT_TRUE(pass.run(batch, 0.5f, &method.sink()));

    auto reference = reference_model<Complex>(*model);
    const std::vector<ref::Index> tokens(batch.tokens.begin(), batch.tokens.end());
    const std::vector<bool> learned(batch.learned.begin(), batch.learned.end());
    const double step = 1e-40;
    WorstError worst("worst_" + std::to_string(static_cast<int>(kind)));
    const Parameters& parameters = method.parameters();
    const std::vector<AdapterTensor> committed = *method.adapter_tensors();
    for (const Parameter& parameter : parameters.list) {
      const Matrix& matrix = base->linear(parameter.linear).weight;
      const auto zeros = std::find_if(committed.begin(), committed.end(), [&](const auto& tensor) {
        return tensor.name == linear_tensor_name(parameter.linear) + ".zero";
      });
      auto& linear = reference.layers[parameter.linear / 7].linears[parameter.linear % 7].weight;
      const bool zero = parameter.name.ends_with(".zero");
      const auto whole =
          widened(parameters.gradient.span().subspan(parameter.begin, parameter.count));
      const double most = largest(whole);
      ASSERT_GT(most, 0.0) << parameter.name;
      const std::int64_t masters = granularity == ScaleGranularity::kRow ? 1 : matrix.groups();
      for (int sample = 0; sample < 6; ++sample) {
        const std::int64_t row = random.below(matrix.rows()), group = random.below(masters);
        const ref::Linear<Complex> old = linear;
        for (std::int64_t g = 0; g < matrix.groups(); ++g) {
          if (granularity == ScaleGranularity::kGroup && g != group) continue;
          const std::size_t k = matrix.scale_index(row, g);
          if (matrix.scales()[k] == 0) continue;
          const auto at = static_cast<std::size_t>(row * matrix.groups() + g);
          const double s = f16_to_f32(matrix.scales()[k]);
          if (matrix.has_zeros()) {  // s (q - z) with z apart
            if (zero)
              linear.zeros[at] += Complex(0, step);
            else
              linear.scales[at] += Complex(0, step * s);
            continue;
          }
          if (zero) {
            linear.offsets[at] -= linear.scales[at] * Complex(0, step);
            continue;
          }
          if (matrix.has_offsets()) {
            const double m = f16_to_f32(matrix.offsets()[k]);
            const double z = zeros == committed.end() ? 0 : f16_to_f32(halves(*zeros)[at]);
            linear.offsets[at] += Complex(0, step * (kind == ScaleMethod::kBoth ? -s * z : m));
          }
          linear.scales[at] += Complex(0, step * s);
        }
        const double want = 0.5 * ref::loss(reference, tokens, learned).imag() / step;
        linear = old;
        const double got = whole[((row / 16) * masters + group) * 16 + row % 16];
        worst.add(std::fabs(got - want) / most);
        const double bound = 4000 * kRoundoff;
        ASSERT_LE(std::fabs(got - want), bound * most)
            << parameter.name << ", row " << row << ", group " << group;
      }
    }
  }
};

TEST_F(ScaleGradient, EveryMethodAndGranularity) {
  for (const ScaleMethod kind : kMethods)
    for (const ScaleGranularity granularity : kGranularities)
      check(mixed_toy(), kind, granularity, *usable_kernels().front());
  for (const ScaleMethod kind : kMethods)
    check(zeros_toy(), kind, ScaleGranularity::kGroup, *usable_kernels().front());
}

// Frozen groups and the padding of the last tile get no gradient, so that neither the norm nor
// Adam sees them.
TEST_F(Scales, FrozenGroupsGetNoGradient) {
  ToyOptions options = mixed_options();
  options.feed_forward = 32 * 3;
  options.head_dim = 20;  // 20 rows of k and v: 12 rows of padding
  options.heads = 8;
  const auto model = load(toy_file(options));
  Matrix& q = model->layers[0].q_proj.weight;
  for (std::int64_t row = 0; row < 160; row += 3) q.scales()[q.scale_index(row, 1)] = 0x8000;
  Compute compute(*usable_kernels().front(), Precision::kDefault, 2);
  TrainingPass pass(compute, *model);
  TrainingBatch batch{{1, 2, 3, 4, 5}, {1, 1, 1, 1, 1}, {5}};
  for (const ScaleMethod kind : kMethods) {
    const auto method = make_scale_method(*model, {kind, {}, {}});
    ASSERT_TRUE(method);
    ASSERT_TRUE(pass.run(batch, 1.0f, &(*method)->sink()));
    const Parameters& parameters = (*method)->parameters();
    for (const Parameter& parameter : parameters.list) {
      const Matrix& matrix = model->linear(parameter.linear).weight;
      const std::int64_t groups = matrix.groups();
      for (std::size_t at = 0; at < parameter.count; ++at) {
        const auto lane = static_cast<std::int64_t>(at % 16);
        const std::int64_t row = static_cast<std::int64_t>(at) / (groups * 16) * 16 + lane;
        if (row < matrix.rows() && (matrix.scales()[at] & 0x7fff) != 0) continue;
        ASSERT_EQ(parameters.gradient[parameter.begin + at], 0.0f) << parameter.name << ' ' << row;
      }
    }
  }
}

TEST_F(Scales, ParametersAndCounts) {
  const auto model = load_mixed();
  for (const ScaleMethod kind : kMethods)
    for (const ScaleGranularity granularity : kGranularities) {
      const auto method = make_scale_method(*model, {kind, granularity, {}});
      ASSERT_TRUE(method);
      const Parameters& parameters = (*method)->parameters();
      std::size_t next = 0;
      for (const Parameter& parameter : parameters.list) {
        EXPECT_EQ(parameter.begin, next);
        next += parameter.count;
        EXPECT_TRUE(parameter.name == linear_tensor_name(parameter.linear) + ".scale" ||
                    parameter.name == linear_tensor_name(parameter.linear) + ".zero");
        EXPECT_TRUE((*method)->sink().of(parameter.linear).wanted());
        const float start = parameter.name.ends_with(".zero") ? 0.0f : 1.0f;
        for (std::size_t i = 0; i < parameter.count; ++i)
          ASSERT_EQ(parameters.values[parameter.begin + i], start);
      }
      EXPECT_EQ(next, parameters.size());
      EXPECT_FALSE((*method)->sink().of(kUp).wanted());  // dense
    }
  // 64 q and 32 k, v rows of 2 groups, ...: counted by hand for one layer.
  const std::size_t per_layer = 64 * 2 + 32 * 2 + 32 * 2 + 64 * 2 + 96 * 2 + 64 * 3;
  const auto learned = [&](ScaleMethod kind, ScaleGranularity granularity) {
    return (*make_scale_method(*model, {kind, granularity, {}}))->trainable();
  };
  EXPECT_EQ(learned(ScaleMethod::kScales, ScaleGranularity::kGroup), 2 * per_layer);
  EXPECT_EQ(learned(ScaleMethod::kZeros, ScaleGranularity::kRow), 2u * (64 + 32 + 64));
}

TEST_F(Scales, TargetModules) {
  const auto model = load_mixed();
  const auto method =
      make_scale_method(*model, {ScaleMethod::kScales, {}, {"down_proj", "q_proj"}});
  ASSERT_TRUE(method);
  std::vector<std::string> names;
  for (const Parameter& parameter : (*method)->parameters().list) names.push_back(parameter.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"blk.0.attn_q.weight.scale", "blk.0.ffn_down.weight.scale",
                                      "blk.1.attn_q.weight.scale", "blk.1.ffn_down.weight.scale"}));
  EXPECT_FALSE((*method)->sink().of(kK).wanted());
  EXPECT_TRUE((*method)->sink().of(kQ).wanted());
}

TEST_F(Scales, WhatCannotBeTunedIsRefused) {
  ToyOptions q4_0;
  q4_0.linear_types = ToyOptions::all_linears(kQ4_0);
  ToyOptions dense;
  dense.linear_types = ToyOptions::all_linears(kF16);
  for (const ScaleMethod kind : {ScaleMethod::kZeros, ScaleMethod::kBoth})
    EXPECT_EQ(
        error_of(q4_0, {kind, {}, {}}),
        "the zero-points of this file's formats are fixed by their definition (Q4_0: 8, "
        "Q5_0: 16, Q8_0: 0; symmetric: the middle) and cannot be tuned; use --method peqa, or "
        "a file in Q4_1 or Q5_1, or one that `trimpot quantize` made with zero-points");
  EXPECT_EQ(error_of(q4_0, {}), "");
  EXPECT_EQ(error_of(dense, {}),
            "no linear layer of this model is quantized, so there are no scales to tune; "
            "`trimpot quantize` makes a quantized file of it");
  EXPECT_EQ(error_of({}, {ScaleMethod::kScales, {}, {"q_proj", "wq"}}),
            "target module \"wq\" matches nothing; this model has q_proj, k_proj, v_proj, o_proj, "
            "gate_proj, up_proj, down_proj");
}

}  // namespace
}  // namespace trimpot
