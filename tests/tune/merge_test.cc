// Merging: what is written into weights, zero-points and weak columns is what the adapter computes.
#include "tune/merge.h"

#include <gtest/gtest.h>

#include <cstring>

#include "io/test_files.h"
#include "tune/matrices.h"
#include "tune/own_files.h"

namespace trimpot {
namespace {

constexpr Scheme kZeros{4, 32, ZeroKind::kInteger}, kOffsets{4, 32, ZeroKind::kOffset},
    kSymmetric{4, 32, ZeroKind::kSymmetric}, kRows{3, kWholeRow, ZeroKind::kInteger};

std::vector<float> row_of(const Matrix& matrix, std::int64_t row) {
  std::vector<float> values(static_cast<std::size_t>(matrix.columns()));
  matrix.dequantize_row(row, values.data());
  return values;
}

class Merge : public testing::Test {
 protected:
  ToyModel load(const ToyFile& toy, const std::string& name) {
    auto loaded = load_toy(toy, path(name));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(*loaded);
  }
  std::unique_ptr<Model> fresh(const gguf::File& file) {
    auto model = load_model(file, team_);
    EXPECT_TRUE(model) << model.error().message;
    return std::move(*model);
  }
  // A model tuned at random: its adapter.
  Adapter tune(Result<std::unique_ptr<TuningMethod>> method, const ToyModel& base, Model& model,
               float deviation = 0.05f, std::uint64_t seed = 7) {
    EXPECT_TRUE(method) << method.error().message;
    RandomStream random(seed);
    for (float& value : (*method)->parameters().values.span()) value += deviation * random.normal();
    EXPECT_TRUE((*method)->commit(team_));
    const auto tensors = (*method)->adapter_tensors();
    EXPECT_TRUE(tensors);
    EXPECT_TRUE(write_adapter(path("a.safetensors"), fingerprint(base.file), "m", "{}", *tensors,
                              low_rank_metadata(model, 16)));
    auto adapter = read_adapter(path("a.safetensors"), {base.file.path(), fingerprint(base.file)},
                                *base.model);
    EXPECT_TRUE(adapter) << adapter.error().message;
    return std::move(*adapter);
  }
  Adapter low_rank(const ToyModel& base, Model& model, bool pooled, std::uint64_t seed = 7) {
    return tune(make_low_rank_method(model, {3, 16, 0, true, pooled, seed, {}}), base, model, 0.05f,
                seed);
  }
  std::string refusal(const std::vector<Adapter>& adapters, Model& model) {
    const auto status = merge_adapters(adapters, team_, model);
    EXPECT_FALSE(status);
    EXPECT_EQ(status.error().message.find('\n'), std::string::npos);
    return status ? "" : status.error().message;
  }
  // The exported file computes what the merged model does.
  void expect_exported(const gguf::File& base, const Model& merged) {
    const auto status = export_gguf(base, merged, path("out.gguf"));
    ASSERT_TRUE(status) << status.error().message;
    const auto file = gguf::File::open(path("out.gguf"));
    ASSERT_TRUE(file);
    EXPECT_EQ(file->file_bytes(), base.file_bytes());
    EXPECT_TRUE(same_bits(logits(*fresh(*file), Precision::kF32), logits(merged, Precision::kF32)));
  }
  std::string path(const std::string& name) const { return folder_.file(name); }
  const TempFolder folder_;
  ThreadTeam team_{2};
};

// The path that an adapter of this model has at (row, input), in f64, in the model's order.
double path_value(const LowRank& path, std::int64_t row, std::int64_t input) {
  double sum = 0;
  for (std::int64_t r = 0; r < path.a.rows(); ++r)
    sum += double{path.scale} * path.b.dense_f32()[path.b.dense_index(row, r)] *
           path.a.dense_f32()[path.a.dense_index(r, input)];
  return sum;
}

double distance(std::span<const float> a, std::span<const float> b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(double{a[i]} - b[i]));
  return most;
}

// W + scale B A, rounded once to the type of W: half a unit in its last place, and the f32 rounding
// of the sum of 3 products. Catches a transposed or unpermuted factor, a scale left out.
TEST_F(Merge, LoraIntoDenseWeights) {
  using enum ElementType;
  for (const auto& [type, order, half_unit] :
       {std::tuple{kF32, 0, 0x1p-24}, {kF16, 3, 0x1p-11}, {kBF16, 4, 0x1p-8}}) {
    OwnOptions options{{}, 0, 1, static_cast<std::uint64_t>(order), type};
    const ToyModel base =
        load(order == 0 ? dense_toy(type) : own_file(dense_toy(), options), "base.gguf");
    const auto tuned = fresh(base.file), merged = fresh(base.file);
    const Adapter adapter = low_rank(base, *tuned, false);
    const auto status = merge_adapters(std::span(&adapter, 1), team_, *merged);
    ASSERT_TRUE(status) << status.error().message;
    double worst = 0;
    for (std::size_t index = 0; index < base.model->linear_count(); ++index) {
      const Linear& old = base.model->linear(index);
      for (std::int64_t row = 0; row < old.rows(); ++row) {
        const auto before = row_of(old.weight, row),
                   after = row_of(merged->linear(index).weight, row);
        for (std::size_t c = 0; c < before.size(); ++c) {
          const double want =
              before[c] + path_value(*tuned->linear(index).low_rank, row, static_cast<int>(c));
          worst = std::max(
              worst, std::fabs(after[c] - want) / (std::fabs(want) * half_unit + 8 * 0x1p-24));
        }
      }
    }
    EXPECT_LE(worst, 1.0);
    expect_exported(base.file, *merged);
    const auto unmerged = logits(*tuned, Precision::kF32), now = logits(*merged, Precision::kF32);
    const auto was = logits(*base.model, Precision::kF32);
    EXPECT_LT(distance(now, unmerged), 50 * half_unit * distance(was, unmerged) + 1e-5);
  }
}

// Sums of adapters with factors: merging 0.5 A and -2 B is adding both differences.
TEST_F(Merge, SeveralLoras) {
  const ToyModel base = load(dense_toy(), "base.gguf");
  const auto first = fresh(base.file), second = fresh(base.file), merged = fresh(base.file);
  std::vector<Adapter> adapters;
  adapters.push_back(low_rank(base, *first, false, 1));
  adapters.push_back(low_rank(base, *second, false, 2));
  adapters[0].factor = 0.5f;
  adapters[1].factor = -2.0f;
  ASSERT_TRUE(merge_adapters(adapters, team_, *merged));
  const Linear& old = base.model->linear(9);
  for (std::int64_t row = 0; row < old.rows(); ++row) {
    const auto before = row_of(old.weight, row), after = row_of(merged->linear(9).weight, row);
    for (std::size_t c = 0; c < before.size(); ++c)
      EXPECT_NEAR(after[c],
                  before[c] + 0.5 * path_value(*first->linear(9).low_rank, row, c) -
                      2.0 * path_value(*second->linear(9).low_rank, row, c),
                  1e-6);
  }
}

TEST_F(Merge, LoraIntoCodesIsRefused) {
  for (const ToyFile& toy :
       {dense_toy(ElementType::kQ4_1), own_file(dense_toy(), {kZeros, 5, 1, 3, {}})}) {
    const ToyModel base = load(toy, "base.gguf");
    const Adapter adapter = low_rank(base, *fresh(base.file), false);
    const std::string text = refusal({adapter}, *base.model);
    EXPECT_TRUE(text.starts_with("blk.0.attn_q.weight: LoRA cannot be merged into integer codes"));
    EXPECT_NE(text.find("--adapter"), std::string::npos);
    EXPECT_NE(text.find("--method qalora"), std::string::npos);
    EXPECT_NE(text.find("trimpot quantize"), std::string::npos);
  }
}

// The merged weight is the base's plus scale (B A)[row, group], but for the f16 rounding of offset
// (half a unit: 2^-11 of it) or zero-point (2^-11 of s z'); dequantizing rounds to f32 thrice.
TEST_F(Merge, QaLoraIsExact) {
  const ToyFile dense = dense_toy();
  for (const ToyFile& toy :
       {dense_toy(ElementType::kQ4_1), dense_toy(ElementType::kQ5_1),
        own_file(dense, {kZeros, 0, 1, 3, {}}), own_file(dense, {kOffsets, 0, 1, 4, {}}),
        own_file(dense, {kRows, 0, 1, 5, {}})}) {
    const ToyModel base = load(toy, "base.gguf");
    const auto tuned = fresh(base.file), merged = fresh(base.file);
    const Adapter adapter = low_rank(base, *tuned, true);
    const auto status = merge_adapters(std::span(&adapter, 1), team_, *merged);
    ASSERT_TRUE(status) << status.error().message;
    double worst = 0;
    for (std::size_t index = 0; index < base.model->linear_count(); ++index) {
      const Matrix& now = merged->linear(index).weight;
      const LowRank& lora = *tuned->linear(index).low_rank;
      for (std::int64_t row = 0; row < now.rows(); ++row) {
        const auto before = row_of(base.model->linear(index).weight, row), after = row_of(now, row);
        for (std::size_t c = 0; c < before.size(); ++c) {
          const auto group = static_cast<std::int64_t>(c) / lora.pool;
          const std::size_t at = now.scale_index(row, group);
          const double shift = now.has_offsets() ? double{f16_to_f32(now.offsets()[at])}
                                                 : double{f16_to_f32(now.scales()[at])} *
                                                       f16_to_f32(now.zeros()[at]);
          const double want = before[c] + path_value(lora, row, group);
          worst = std::max(
              worst, std::fabs(after[c] - want) / (std::fabs(shift) * 0x1p-11 + 32 * 0x1p-24));
        }
      }
    }
    EXPECT_LE(worst, 1.0);
    expect_exported(base.file, *merged);
    EXPECT_EQ(fingerprint(base.file).codes, fingerprint(*gguf::File::open(path("out.gguf"))).codes);
    // Not the rounding noise of a whole model, but far from what the adapter changes.
    const auto unmerged = logits(*tuned, Precision::kF32);
    EXPECT_LT(distance(logits(*merged, Precision::kF32), unmerged),
              0.02 * distance(logits(*base.model, Precision::kF32), unmerged));
  }
}

// A group of zeros: RTN gives it scale 0, which no zero-point can move.
TEST_F(Merge, QaLoraOnGroupsOfZeros) {
  ToyFile dense = dense_toy();
  std::memset(dense.tensor("blk.0.attn_k.weight").data.data() + (5 * 64 + 32) * 4, 0, 32 * 4);
  const ToyModel base = load(own_file(dense, {kZeros, 0, 1, 0, {}}), "base.gguf");
  const Matrix& old = base.model->linear(kK).weight;
  ASSERT_EQ(old.scales()[old.scale_index(5, 1)], 0);
  const auto tuned = fresh(base.file), merged = fresh(base.file);
  const Adapter adapter = low_rank(base, *tuned, true);
  ASSERT_TRUE(merge_adapters(std::span(&adapter, 1), team_, *merged));
  const double want = path_value(*tuned->linear(kK).low_rank, 5, 1);
  ASSERT_NE(want, 0);
  for (int c = 32; c < 64; ++c)
    EXPECT_NEAR(row_of(merged->linear(kK).weight, 5)[static_cast<std::size_t>(c)], want,
                std::fabs(want) * 0x1p-10);
  expect_exported(base.file, *merged);
}

TEST_F(Merge, QaLoraNeedsZeroPoints) {
  for (const ToyFile& toy :
       {dense_toy(ElementType::kQ4_0), own_file(dense_toy(), {kSymmetric, 0, 1, 3, {}})}) {
    const ToyModel base = load(toy, "base.gguf");
    const Adapter adapter = low_rank(base, *fresh(base.file), true);
    EXPECT_EQ(
        refusal({adapter}, *base.model),
        "blk.0.attn_q.weight: QA-LoRA is merged into zero-points or offsets, and this format's "
        "are fixed; keep the adapter beside the model (--adapter), or tune a Q4_1 or Q5_1 "
        "file, or one that `trimpot quantize` made with zero-points");
  }
  // And the base it was tuned on.
  const ToyModel base = load(dense_toy(ElementType::kQ4_1), "base.gguf");
  low_rank(base, *fresh(base.file), true);
  const auto adapter = read_adapter(path("a.safetensors"), {}, *base.model);
  ASSERT_FALSE(adapter);
  EXPECT_NE(adapter.error().message.find("cannot be added to another model"), std::string::npos);
}

class MergeWeak : public Merge {
 protected:
  void SetUp() override {
    base_.emplace(load(own_file(dense_toy(), {kZeros, 5, 1, 3, {}}), "base.gguf"));
    tuned_ = fresh(base_->file);
    adapter_ = tune(make_weak_column_method(*tuned_, {}), *base_, *tuned_);
  }
  // tuned - base of a weight, by original row and channel; 0 outside the weak columns.
  double difference(std::size_t index, std::int64_t row, std::int32_t channel) const {
    const auto channels = weak_channels(*tuned_, index);
    const auto found = std::find(channels.begin(), channels.end(), channel);
    if (found == channels.end()) return 0;
    const ColumnOrder rows = linear_axes(*tuned_, index).rows;
    std::int64_t position = row;
    if (rows) position = std::find(rows->begin(), rows->end(), row) - rows->begin();
    const Matrix &now = tuned_->linear(index).weak, &old = base_->model->linear(index).weak;
    const std::size_t at = now.dense_index(position, found - channels.begin());
    return double{f16_to_f32(now.dense_f16()[at])} - f16_to_f32(old.dense_f16()[at]);
  }
  std::optional<ToyModel> base_;
  std::unique_ptr<Model> tuned_;
  Adapter adapter_;
};

// Section 5 of QEFT, the full-precision case: channels of a reordered, quantized model are found in
// the original one. All other weights stay.
TEST_F(MergeWeak, OntoADenseModel) {
  const ToyModel other = load(dense_toy(), "other.gguf");
  const auto merged = fresh(other.file);
  // From the file, as the command does, and twice: half and half.
  auto adapter = read_adapter(path("a.safetensors"), {}, *merged);
  ASSERT_TRUE(adapter) << adapter.error().message;
  adapter->factor = 0.5f;
  ASSERT_TRUE(merge_adapters(std::vector<Adapter>{*adapter, *adapter}, team_, *merged));
  std::size_t changed = 0;
  for (std::size_t index = 0; index < merged->linear_count(); ++index)
    for (std::int64_t row = 0; row < merged->linear(index).rows(); ++row) {
      const auto before = row_of(other.model->linear(index).weight, row);
      const auto after = row_of(merged->linear(index).weight, row);
      for (std::size_t c = 0; c < before.size(); ++c) {
        const double d = difference(index, row, static_cast<std::int32_t>(c));
        EXPECT_NEAR(after[c], before[c] + d, d == 0 ? 0 : 0x1p-22);
        changed += after[c] != before[c];
      }
    }
  EXPECT_GT(changed, 1000u);
  expect_exported(other.file, *merged);
}

// The quantized case: another order, other codes, the same channels. Different ones are refused.
TEST_F(MergeWeak, OntoAQuantizedModel) {
  ToyFile source = dense_toy();
  for (ToyTensor& tensor : source.tensors)
    if (tensor.type == ElementType::kF32 && tensor.shape.size() == 2) {
      const auto values =
          RandomStream(99).normals(static_cast<std::int64_t>(tensor.data.size() / 4), 0.1f);
      tensor.data = raw(values);
    }
  const ToyModel other = load(own_file(source, {kOffsets, 5, 1, 8, {}}), "other.gguf");
  const auto merged = fresh(other.file);
  const auto adapter = read_adapter(path("a.safetensors"), {}, *merged);
  ASSERT_TRUE(adapter) << adapter.error().message;
  const auto status = merge_adapters(std::span(&*adapter, 1), team_, *merged);
  ASSERT_TRUE(status) << status.error().message;
  for (std::size_t index = 0; index < merged->linear_count(); ++index) {
    const auto channels = weak_channels(*merged, index);
    const ColumnOrder rows = linear_axes(*merged, index).rows;
    const Matrix &now = merged->linear(index).weak, &old = other.model->linear(index).weak;
    for (std::int64_t row = 0; row < now.rows(); ++row)
      for (std::int64_t c = 0; c < now.columns(); ++c) {
        const std::size_t at = now.dense_index(row, c);
        const std::int64_t original = rows ? (*rows)[static_cast<std::size_t>(row)] : row;
        const double d = difference(index, original, channels[static_cast<std::size_t>(c)]);
        EXPECT_EQ(now.dense_f16()[at],
                  f32_to_f16(static_cast<float>(f16_to_f32(old.dense_f16()[at]) + d)));
      }
  }
  expect_exported(other.file, *merged);

  const ToyModel different = load(own_file(source, {kZeros, 5, 2, 8, {}}), "different.gguf");
  const std::string text = refusal({*adapter}, *different.model);
  EXPECT_TRUE(text.starts_with("blk.0.attn_q.weight: channel ")) << text;
  EXPECT_NE(text.find("--weak-columns-from"), std::string::npos);
  const ToyModel codes = load(dense_toy(ElementType::kQ4_1), "codes.gguf");
  EXPECT_TRUE(refusal({*adapter}, *codes.model)
                  .starts_with("blk.0.attn_q.weight: differences of columns cannot be added to "
                               "integer codes"));
}

// A tuned file says the same as its adapter; files that do not belong together are refused.
TEST_F(MergeWeak, DifferenceOfFiles) {
  ASSERT_TRUE(export_gguf(base_->file, *tuned_, path("tuned.gguf")));
  const auto file = gguf::File::open(path("tuned.gguf"));
  const auto got = weak_difference(*file, *fresh(*file), base_->file, *base_->model);
  ASSERT_TRUE(got) << got.error().message;
  for (std::size_t i = 0; i < got->layers.size(); ++i) {
    EXPECT_EQ(got->layers[i].weak_columns, adapter_.layers[i].weak_columns);
    EXPECT_EQ(got->layers[i].weak, adapter_.layers[i].weak);
  }
  EXPECT_TRUE(check_fits(*got, *base_->model));
  ToyOptions small;
  small.layers = 1;
  const ToyModel other = load(toy_file(small), "small.gguf");
  EXPECT_FALSE(check_fits(*got, *other.model));
  EXPECT_FALSE(weak_difference(*file, *tuned_, other.file, *other.model));
  const auto none = weak_difference(base_->file, *base_->model, base_->file, *base_->model);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("nothing to add"), std::string::npos);
}

// Scale sets belong to their codes.
TEST_F(Merge, ScalesOntoAnotherModelAreRefused) {
  const ToyModel base = load(dense_toy(ElementType::kQ4_1), "base.gguf");
  std::vector<f16> ones(128, f32_to_f16(1.0f));
  ASSERT_TRUE(write_adapter(path("a.safetensors"), fingerprint(base.file), "peqa", "{}",
                            {AdapterTensor::make<f16>("blk.0.attn_q.weight.scale", "F16", {64, 2},
                                                      std::span<const f16>(ones))}));
  const auto adapter = read_adapter(path("a.safetensors"), {}, *base.model);
  ASSERT_FALSE(adapter);
  EXPECT_NE(adapter.error().message.find("belong to the codes"), std::string::npos);
}

// A value that f16 cannot hold ends the merge with its place.
TEST_F(MergeWeak, OutOfRange) {
  adapter_.factor = 1e9f;
  EXPECT_NE(refusal({adapter_}, *base_->model).find("exceeds 16-bit floats"), std::string::npos);
  const ToyModel other = load(dense_toy(ElementType::kF16), "other.gguf");
  EXPECT_NE(refusal({adapter_}, *other.model).find("leaves the range"), std::string::npos);
}

}  // namespace
}  // namespace trimpot
