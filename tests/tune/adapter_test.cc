// Adapters and exported models: base + adapter, the exported file and the tuned model in memory are
// the same function, bit for bit.
#include "tune/adapter.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "format/ggml_blocks.h"
#include "io/safetensors/safetensors.h"
#include "io/test_files.h"
#include "model/session.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

using enum ElementType;

ToyOptions adapter_options() {
  ToyOptions options;
  options.head_dim = 8;
  options.heads = 8;
  options.kv_heads = 4;
  options.vocabulary = 41;
  options.linear_types = {kQ4_1, kQ4_0, kQ5_1, kQ8_0, kQ5_0, kF16, kQ4_1};
  return options;
}

// Two groups of scale 0, which must stay.
ToyFile adapter_toy() {
  ToyFile toy = toy_file(adapter_options());
  std::memset(toy.tensor("blk.0.attn_q.weight").data.data() + 3 * 20, 0, 2);
  std::memset(toy.tensor("blk.1.attn_v.weight").data.data() + 5 * 24, 0, 2);
  return toy;
}

std::vector<f16> stored(const Model& model) {
  std::vector<f16> out;
  for (std::size_t i = 0; i < model.linear_count(); ++i) {
    const Matrix& matrix = model.linear(i).weight;
    out.insert(out.end(), matrix.scales().begin(), matrix.scales().end());
    out.insert(out.end(), matrix.offsets().begin(), matrix.offsets().end());
  }
  return out;
}

std::vector<float> logits(const Model& model, Precision precision) {
  Compute compute(*usable_kernels().front(), precision, 2);
  Session session(compute, model, 16);
  const std::vector<TokenId> tokens{3, 14, 15, 9, 2, 6};
  std::vector<float> out(41);
  EXPECT_TRUE(session.append(tokens, out.data()));
  return out;
}

class Adapter : public testing::Test {
 protected:
  void SetUp() override {
    auto toy = load_toy(adapter_toy(), base_path());
    ASSERT_TRUE(toy) << toy.error().message;
    base_.emplace(std::move(*toy));
  }
  std::string base_path() const { return folder_.file("base.gguf"); }
  std::string adapter_path() const { return folder_.file("tuned.safetensors"); }
  std::unique_ptr<Model> fresh(const gguf::File& file) {
    auto model = load_model(file, team_);
    EXPECT_TRUE(model) << model.error().message;
    return std::move(*model);
  }
  std::unique_ptr<Model> fresh() { return fresh(base_->file); }
  // A tuned model and its adapter's tensors.
  std::vector<AdapterTensor> tune(Model& model, const ScaleOptions& options) {
    const auto method = make_scale_method(model, options);
    EXPECT_TRUE(method) << method.error().message;
    RandomStream random(7);
    for (float& value : (*method)->parameters().values.span()) value += 0.1f * random.normal();
    EXPECT_TRUE((*method)->commit(team_));
    return *(*method)->adapter_tensors();
  }
  Status apply(Model& model) { return apply_adapter(adapter_path(), base_->file, model); }
  // The error of applying, without the path it starts with.
  std::string apply_error(const gguf::File& file, Model& model) {
    const auto status = apply_adapter(adapter_path(), file, model);
    if (status) return "";
    const std::string& message = status.error().message;
    EXPECT_TRUE(message.starts_with(adapter_path() + ": ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message.substr(adapter_path().size() + 2);
  }
  std::string apply_error() {
    const auto model = fresh();
    return apply_error(base_->file, *model);
  }
  const TempFolder folder_;
  ThreadTeam team_{2};
  std::optional<ToyModel> base_;
};

std::vector<ScaleOptions> all_options() {
  std::vector<ScaleOptions> out;
  for (const ScaleMethod method : {ScaleMethod::kScales, ScaleMethod::kZeros, ScaleMethod::kBoth})
    for (const ScaleGranularity granularity : {ScaleGranularity::kGroup, ScaleGranularity::kRow})
      out.push_back({method, granularity, {}});
  out.push_back({ScaleMethod::kBoth, ScaleGranularity::kGroup, {"v_proj", "down_proj"}});
  return out;
}

TEST_F(Adapter, BasePlusAdapterIsTheTunedModel) {
  for (const ScaleOptions& options : all_options()) {
    const auto tuned = fresh(), again = fresh();
    const auto tensors = tune(*tuned, options);
    ASSERT_NE(stored(*tuned), stored(*again));
    ASSERT_TRUE(write_adapter(adapter_path(), fingerprint(base_->file), "peqa", "{}", tensors));
    const auto status = apply(*again);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(stored(*again), stored(*tuned));
    for (const Precision precision : {Precision::kF32, Precision::kDefault}) {
      EXPECT_TRUE(same_bits(logits(*again, precision), logits(*tuned, precision)));
      EXPECT_FALSE(same_bits(logits(*again, precision), logits(*base_->model, precision)));
    }
  }
}

// The tensors are in the file's row order: row by row, group by group.
TEST_F(Adapter, Contents) {
  const auto tuned = fresh();
  ASSERT_TRUE(write_adapter(adapter_path(), fingerprint(base_->file), "peqa-both", R"({"a":1})",
                            tune(*tuned, {ScaleMethod::kBoth, {}, {"q_proj", "k_proj"}})));
  const auto file = safetensors::File::open(adapter_path());
  ASSERT_TRUE(file) << file.error().message;
  const std::map<std::string, std::string> want{{"format", "trimpot-adapter"},
                                                {"version", "1"},
                                                {"method", "peqa-both"},
                                                {"options", R"({"a":1})"},
                                                {"base_codes", fingerprint(base_->file).codes},
                                                {"base_weights", fingerprint(base_->file).weights}};
  EXPECT_EQ(file->metadata(), want);
  EXPECT_EQ(file->tensors().size(), 6u);  // k_proj is Q4_0: no zero-points
  const safetensors::TensorInfo* scale = file->find("blk.1.attn_q.weight.scale");
  ASSERT_NE(scale, nullptr);
  EXPECT_EQ(scale->dtype, "F16");
  EXPECT_EQ(scale->shape, (std::vector<std::uint64_t>{64, 2}));
  EXPECT_EQ(file->find("blk.1.attn_k.weight.zero"), nullptr);
  EXPECT_NE(file->find("blk.1.attn_q.weight.zero"), nullptr);
  const Matrix& q = tuned->layers[1].q_proj.weight;
  for (std::int64_t row = 0; row < 64; ++row)
    for (std::int64_t group = 0; group < 2; ++group) {
      f16 value;
      std::memcpy(&value, file->data(*scale).data() + (row * 2 + group) * 2, 2);
      EXPECT_EQ(value, q.scales()[q.scale_index(row, group)]);
    }
}

// Same header, same size; of the tensors only scales and offsets of quantized linear layers differ.
TEST_F(Adapter, ExportChangesScaleBytesOnly) {
  for (const ScaleOptions& options : all_options()) {
    const auto tuned = fresh();
    const auto tensors = tune(*tuned, options);
    const std::string out = folder_.file("tuned.gguf");
    const auto status = export_gguf(base_->file, *tuned, out);
    ASSERT_TRUE(status) << status.error().message;
    const std::string before = read_file(base_path()), after = read_file(out);
    ASSERT_EQ(after.size(), before.size());
    std::vector<bool> may_differ(before.size());
    for (const gguf::TensorInfo& tensor : base_->file.tensors()) {
      const BlockFormat format = block_format(tensor.type);
      if (!tensor.name.starts_with("blk.") || format.bits == 0) continue;
      for (std::uint64_t at = tensor.offset; at < tensor.offset + tensor.bytes;
           at += static_cast<std::uint64_t>(format.bytes))
        for (int i = 0; i < (format.offset_offset < 0 ? 2 : 4); ++i) may_differ[at + i] = true;
    }
    std::size_t changed = 0;
    for (std::size_t at = 0; at < before.size(); ++at) {
      if (before[at] == after[at]) continue;
      ++changed;
      ASSERT_TRUE(may_differ[at]) << "byte " << at;
    }
    EXPECT_GT(changed, 100u);

    const auto file = gguf::File::open(out);
    ASSERT_TRUE(file) << file.error().message;
    const auto reloaded = fresh(*file);
    EXPECT_EQ(stored(*reloaded), stored(*tuned));
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      EXPECT_TRUE(same_bits(logits(*reloaded, precision), logits(*tuned, precision)));
    // The tuned file has the same codes and other weights.
    EXPECT_EQ(fingerprint(*file).codes, fingerprint(base_->file).codes);
    EXPECT_NE(fingerprint(*file).weights, fingerprint(base_->file).weights);
  }
}

// Exporting a model that learned nothing is copying the file.
TEST_F(Adapter, ExportOfTheBaseIsTheBase) {
  ASSERT_TRUE(export_gguf(base_->file, *base_->model, folder_.file("same.gguf")));
  EXPECT_EQ(read_file(folder_.file("same.gguf")), read_file(base_path()));
}

TEST_F(Adapter, ExportDoesNotOverwriteTheBase) {
  const std::string before = read_file(base_path());
  const auto tuned = fresh();
  tune(*tuned, {});
  EXPECT_FALSE(export_gguf(base_->file, *tuned, base_path()));
  EXPECT_EQ(read_file(base_path()), before);
}

// The fingerprint of the codes sees every code and no scale; the other one sees every byte.
TEST_F(Adapter, Fingerprints) {
  const Fingerprint want = fingerprint(base_->file);
  EXPECT_EQ(want.codes.size(), 32u);
  const auto changed = [&](const char* name, std::size_t at) {
    ToyFile toy = adapter_toy();
    toy.tensor(name).data[at] ^= std::byte{1};
    auto loaded = load_toy(toy, folder_.file("other.gguf"));
    EXPECT_TRUE(loaded) << loaded.error().message;
    const Fingerprint got = fingerprint(loaded->file);
    EXPECT_NE(got.weights, want.weights);
    return got.codes != want.codes;
  };
  EXPECT_FALSE(changed("blk.0.attn_q.weight", 20));      // Q4_1: scale
  EXPECT_FALSE(changed("blk.0.attn_q.weight", 22));      // offset
  EXPECT_TRUE(changed("blk.0.attn_q.weight", 24));       // first codes
  EXPECT_TRUE(changed("blk.0.attn_q.weight", 39));       // last codes
  EXPECT_FALSE(changed("blk.1.attn_k.weight", 18 + 1));  // Q4_0
  EXPECT_TRUE(changed("blk.1.attn_k.weight", 18 + 2));
  EXPECT_TRUE(changed("blk.1.attn_v.weight", 24 + 4));        // Q5_1: fifth bits
  EXPECT_TRUE(changed("blk.1.attn_output.weight", 34 + 33));  // Q8_0
  EXPECT_FALSE(changed("blk.1.ffn_up.weight", 5));            // F16: has no codes
  EXPECT_FALSE(changed("token_embd.weight", 7));              // not a linear layer
  // The order of the tensors in the file does not matter.
  ToyFile toy = adapter_toy();
  std::reverse(toy.tensors.begin(), toy.tensors.end());
  const auto reversed = load_toy(toy, folder_.file("other.gguf"));
  ASSERT_TRUE(reversed);
  EXPECT_EQ(fingerprint(reversed->file).codes, want.codes);
  EXPECT_EQ(fingerprint(reversed->file).weights, want.weights);
}

TEST_F(Adapter, AnotherBaseIsRefused) {
  const auto tuned = fresh();
  ASSERT_TRUE(
      write_adapter(adapter_path(), fingerprint(base_->file), "peqa", "{}", tune(*tuned, {})));
  ToyOptions options = adapter_options();
  options.seed = 2;
  const std::string path = folder_.file("other.gguf");
  auto other = load_toy(toy_file(options), path);
  ASSERT_TRUE(other);
  const auto before = stored(*other->model);
  EXPECT_EQ(apply_error(other->file, *other->model),
            "this adapter belongs to another base model; the codes of " + path +
                " are not those it was tuned on");
  EXPECT_EQ(stored(*other->model), before);
}

TEST_F(Adapter, DamagedAdapters) {
  const Fingerprint base = fingerprint(base_->file);
  const std::map<std::string, std::string> metadata{{"format", "trimpot-adapter"},
                                                    {"version", "1"},
                                                    {"base_codes", base.codes},
                                                    {"base_weights", base.weights}};
  const std::vector<f16> ones(64 * 4, f32_to_f16(1.0f));
  const auto write = [&](std::map<std::string, std::string> meta, const std::string& name,
                         const std::string& dtype, std::vector<std::uint64_t> shape) {
    std::size_t bytes = dtype == "F16" ? 2 : 4;
    for (const std::uint64_t extent : shape) bytes *= extent;
    const auto status = safetensors::write(
        adapter_path(), meta, {{name, dtype, shape, std::as_bytes(std::span(ones)).first(bytes)}});
    EXPECT_TRUE(status) << status.error().message;
  };
  const std::string q = "blk.0.attn_q.weight.scale";
  write(metadata, q, "F16", {64, 2});
  EXPECT_EQ(apply_error(), "");
  auto other = metadata;
  other["format"] = "pt";
  write(other, q, "F16", {64, 2});
  EXPECT_EQ(apply_error(), "not an adapter made by trimpot tune");
  write({}, q, "F16", {64, 2});
  EXPECT_EQ(apply_error(), "not an adapter made by trimpot tune");
  other = metadata;
  other["version"] = "2";
  write(other, q, "F16", {64, 2});
  EXPECT_EQ(apply_error(), "adapter version \"2\" is not known; a newer trimpot wrote it");
  for (const auto& [dtype, shape] : {std::pair{"F16", std::vector<std::uint64_t>{2, 64}},
                                     {"F16", {128}},
                                     {"F16", {64, 3}},
                                     {"F32", {64, 2}},
                                     {"F16", {64, 2, 1}}}) {
    write(metadata, q, dtype, shape);
    EXPECT_EQ(apply_error(),
              "tensor " + q + " does not fit the base, which has 64 rows of 2 groups");
  }
  for (const char* name : {"blk.2.attn_q.weight.scale", "blk.0.attn_q.weight.lora_a", "scale",
                           "token_embd.weight.scale", "blk.0.attn_q.weight"}) {
    write(metadata, name, "F16", {64, 2});
    EXPECT_EQ(apply_error(), std::string("tensor ") + name +
                                 " belongs to no part of this model that can be tuned");
  }
  write(metadata, "blk.0.attn_k.weight.zero", "F16", {32, 2});  // Q4_0
  EXPECT_EQ(apply_error(),
            "tensor blk.0.attn_k.weight.zero does not fit the base, which has 32 "
            "rows of 2 groups and fixed zero-points");
  write(metadata, "blk.0.ffn_up.weight.scale", "F16", {96, 2});  // dense
  EXPECT_TRUE(apply_error().starts_with("tensor blk.0.ffn_up.weight.scale does not fit the base"));
  write_file(adapter_path(), "not a safetensors file");
  EXPECT_NE(apply_error(), "");
}

TEST_F(Adapter, ValuesThatAreNotFinite) {
  const auto tuned = fresh();
  for (const std::uint16_t bad : {0x7c00, 0xfe00}) {
    auto tensors = tune(*tuned, {ScaleMethod::kBoth, {}, {"v_proj"}});  // Q5_1, 32 rows of 2 groups
    ASSERT_EQ(tensors.size(), 4u);
    std::memcpy(tensors[3].bytes.data() + (2 * 11 + 1) * 2, &bad, 2);
    ASSERT_TRUE(write_adapter(adapter_path(), fingerprint(base_->file), "peqa", "{}", tensors));
    EXPECT_EQ(apply_error(), "tensor blk.1.attn_v.weight, row 11, group 1: not a finite number");
  }
}

}  // namespace
}  // namespace trimpot
