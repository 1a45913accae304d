// Files in this program's own format: the function they hold, and what is said about broken ones.
#include "model/stored.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "format/nf4.h"
#include "io/test_files.h"
#include "model/session.h"
#include "support/compare.h"
#include "support/own_toy.h"
#include "support/quantizers.h"
#include "support/random.h"
#include "support/reference.h"

namespace trimpot {
namespace {

struct Case {
  std::string name;
  OwnOptions own;
  bool head = false;  // apart from the embedding
};

std::vector<Case> cases() {
  using enum OwnCentre;
  return {
      {"4 bits", {4, 32, kZeros}},
      {"3 bits, offsets", {3, 64, kOffsets}},
      {"8 bits, symmetric, rows", {8, 0, kSymmetric}},
      {"weak last", {4, 32, kZeros, 5, true}},
      {"weak anywhere", {3, 32, kZeros, 5, false}},
      {"weak anywhere, rows", {4, 0, kOffsets, 40, false}},
      {"reordered", {4, 32, kZeros, 5, false, true}},
      {"reordered, all weak last before", {4, 0, kSymmetric, 5, true, true}, true},
      {"reordered, embedding not", {3, 64, kZeros, 7, false, true, true}},
      {"reordered, head not", {3, 64, kZeros, 7, false, true, true}, true},
      {"head in groups", {4, 32, kZeros, 0, false, false, false, 8}},
      {"reordered, head in groups", {4, 0, kZeros, 7, false, true, true, 8}, true},
  };
}

ToyOptions toy_options(bool head = false) {
  ToyOptions options;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 20;
  options.vocabulary = 45;
  if (head) options.head = ElementType::kF16;
  return options;
}

// The embedding's type must survive another order of its columns.
ToyOptions toy_options(const Case& c) {
  ToyOptions options = toy_options(c.head);
  if (c.own.reordered && !c.own.embedding_in_original_order) {
    options.embedding = ElementType::kF32;
    if (c.head) options.head = ElementType::kF32;
  }
  return options;
}

std::vector<TokenId> some_tokens(std::int64_t count) {
  std::vector<TokenId> tokens;
  RandomStream random(1);
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>(random.below(45)));
  return tokens;
}

std::vector<float> logits(Compute& compute, const Model& model, std::span<const TokenId> tokens,
                          std::size_t piece) {
  Session session(compute, model, 100);
  std::vector<float> out;
  while (!tokens.empty()) {
    const std::size_t count = std::min(piece, tokens.size());
    const auto status = session.append_all(
        tokens.first(count), 0,
        [&](std::int64_t, const float* row) { out.insert(out.end(), row, row + 45); });
    EXPECT_TRUE(status) << status.error().message;
    tokens = tokens.subspan(count);
  }
  return out;
}

// All parts of a layer put together, rows and columns in the original order.
std::vector<float> put_together(const Model& model, std::size_t index) {
  const Linear& linear = model.linear(index);
  const LinearAxes axes = linear_axes(model, index);
  std::vector<float> out(static_cast<std::size_t>(linear.rows() * linear.columns), NAN);
  const auto put = [&](const Matrix& part, const ColumnOrder& columns, std::int64_t first) {
    std::vector<float> row(static_cast<std::size_t>(part.columns()));
    for (std::int64_t i = 0; i < part.rows(); ++i) {
      part.dequantize_row(i, row.data());
      const std::int64_t r = axes.rows ? (*axes.rows)[i] : i;
      for (std::int64_t j = 0; j < part.columns(); ++j) {
        const std::int64_t position = columns ? (*columns)[j] : first + j;
        const std::int64_t c = axes.columns ? (*axes.columns)[position] : position;
        out[r * linear.columns + c] = row[j];
      }
    }
  };
  put(linear.weight, linear.weight_columns, 0);
  if (linear.weak.rows() > 0) put(linear.weak, linear.weak_columns, linear.weight.columns());
  return out;
}

class Stored : public testing::Test {
 protected:
  std::unique_ptr<Model> load(const ToyFile& toy) {
    auto loaded = load_toy(toy, path());
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(loaded->model);
  }
  std::string path() const { return folder_.file("own.gguf"); }
  std::string error_of(const ToyFile& toy) const {
    const auto model = load_toy(toy, path());
    if (model) return "";
    const std::string& message = model.error().message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_TRUE(message.starts_with(path() + ": ")) << message;
    return message.substr(std::min(message.size(), path().size() + 2));
  }
  const TempFolder folder_;
};

// Every weight is what the format's definition says, at its place, to the bit.
TEST_F(Stored, EveryWeightInItsPlace) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    OwnToy toy = own_toy(toy_options(c), c.own);
    const auto model = load(toy.own);
    ASSERT_NE(model, nullptr);
    for (std::size_t i = 0; i < model->linear_count(); ++i) {
      const ToyTensor& plain = toy.plain.tensor(linear_tensor_name(i));
      EXPECT_EQ(put_together(*model, i), dequantize_bytes(plain.type, plain.data))
          << linear_name(i);
      EXPECT_EQ(model->linear(i).weak.rows() > 0, c.own.weak > 0);
      EXPECT_EQ(model->linear(i).columns, static_cast<std::int64_t>(plain.shape[0]));
    }
    // One form of the input for layers that share it.
    const LayerWeights& layer = model->layers[1];
    EXPECT_EQ(layer.q_proj.weak_columns, layer.k_proj.weak_columns);
    EXPECT_EQ(layer.q_proj.weight_columns, layer.v_proj.weight_columns);
    EXPECT_EQ(layer.gate_proj.weight_columns, layer.up_proj.weight_columns);
    const bool gathered = c.own.weak > 0 && !c.own.weak_last && !c.own.reordered;
    EXPECT_EQ(layer.q_proj.weight_columns != nullptr, gathered);
    EXPECT_EQ(layer.down_proj.weight_columns != nullptr, gathered);
  }
}

// The file's logits are those of the plain F32 file with the same weights: sums of up to 96 terms
// in another order, some 15 of them in a row, in both. The references agree as well.
TEST_F(Stored, LogitsOfTheDequantizedModel) {
  const double bound = 15 * 96 * kRoundoff;
  const auto tokens = some_tokens(40);
  WorstError worst("worst_logit"), worst_default("worst_default");
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const OwnToy toy = own_toy(toy_options(c), c.own);
    const auto model = load(toy.own), plain = load(toy.plain);
    ASSERT_TRUE(model != nullptr && plain != nullptr);
    const auto reference = reference_model<double>(*model);
    std::vector<double> x = ref::embed(reference, {tokens.begin(), tokens.end()});
    ref::LayerState<double> state;
    for (const auto& layer : reference.layers) x = ref::layer_forward(reference, layer, x, state);
    const auto exact = ref::logits_of(reference, x);
    for (const Kernels* kernels : usable_kernels()) {
      Compute compute(*kernels, Precision::kF32, 2);
      const auto got = logits(compute, *model, tokens, 40);
      const auto want = logits(compute, *plain, tokens, 40);
      EXPECT_LE(relative_error(got, widened(want)), 2 * bound);
      EXPECT_LE(relative_error(got, exact), bound);
      worst.add(relative_error(got, exact));
      Compute rounding(*kernels, Precision::kDefault, 2);
      const auto rounded = logits(rounding, *model, tokens, 40);
      EXPECT_LE(relative_error(rounded, exact), 0.05);  // what int8 activations cost
      worst_default.add(relative_error(rounded, exact));
      EXPECT_TRUE(same_bits(logits(rounding, *model, tokens, 7), rounded));
      EXPECT_TRUE(same_bits(logits(rounding, *model, tokens, 1), rounded));
    }
  }
}

// A model and the same one with its axes in another order: the same weights.
TEST_F(Stored, AnOrderChangesNothing) {
  OwnOptions own{4, 0, OwnCentre::kZeros, 6, false, false};
  const ToyOptions options = toy_options();
  const OwnToy before = own_toy(options, own);
  own.reordered = own.embedding_in_original_order = true;
  const OwnToy after = own_toy(options, own);
  ASSERT_EQ(before.plain.tensors.size(), after.plain.tensors.size());
  for (std::size_t i = 0; i < before.plain.tensors.size(); ++i)
    EXPECT_EQ(before.plain.tensors[i].data, after.plain.tensors[i].data);
}

template <typename T>
void set(ToyTensor& tensor, std::size_t at, T value) {
  std::memcpy(tensor.data.data() + at * sizeof(T), &value, sizeof(T));
}

OwnToy weak_toy() { return own_toy(toy_options(), {4, 32, OwnCentre::kZeros, 5, false}); }

TEST_F(Stored, HostileWeakColumns) {
  const std::string name = "blk.1.ffn_up.weak_columns";
  for (const std::int32_t bad : {-1, 64, 1 << 30, INT32_MIN}) {
    ToyFile toy = weak_toy().own;
    set(toy.tensor(name), 3, bad);
    EXPECT_EQ(error_of(toy), "tensor " + name + " names column " + std::to_string(bad) +
                                 " twice or outside 0 to 63");
  }
  ToyFile toy = weak_toy().own;
  std::int32_t first;
  std::memcpy(&first, toy.tensor(name).data.data(), 4);
  set(toy.tensor(name), 4, first);
  EXPECT_EQ(error_of(toy), "tensor " + name + " names column " + std::to_string(first) +
                               " twice or outside 0 to 63");
  const std::string list = "tensor " + name + " is not a list of fewer than 64 columns";
  toy = weak_toy().own;
  toy.tensor(name).type = ElementType::kF32;
  EXPECT_EQ(error_of(toy), list);
  toy = weak_toy().own;
  toy.tensor(name).shape = {1, 5};
  EXPECT_EQ(error_of(toy), list);
  for (const std::size_t count : {64, 65}) {  // nothing is left for the codes
    toy = weak_toy().own;
    toy.tensor(name).shape = {count};
    toy.tensor(name).data.resize(4 * count);
    EXPECT_EQ(error_of(toy), list);
  }
}

TEST_F(Stored, WrongShapesAndTypes) {
  const auto with = [&](const char* tensor, std::vector<std::uint64_t> shape, std::size_t bytes) {
    ToyFile toy = weak_toy().own;
    ToyTensor& changed = toy.tensor(tensor);
    changed.shape = std::move(shape);
    changed.data.resize(bytes);
    return error_of(toy);
  };
  // 96 rows of 59 robust columns: 30 bytes, 2 groups.
  EXPECT_EQ(
      with("blk.0.ffn_gate.codes", {32, 96}, 32 * 96),
      "tensor blk.0.ffn_gate.codes has 96 rows of 32 columns; its metadata calls for 96 of 30");
  EXPECT_EQ(
      with("blk.0.ffn_gate.codes", {30, 95}, 30 * 95),
      "tensor blk.0.ffn_gate.codes has 95 rows of 30 columns; its metadata calls for 96 of 30");
  EXPECT_EQ(
      with("blk.0.ffn_gate.scales", {3, 96}, 2 * 3 * 96),
      "tensor blk.0.ffn_gate.scales has 96 rows of 3 columns; its metadata calls for 96 of 2");
  EXPECT_EQ(with("blk.0.ffn_gate.zeros", {96, 2}, 2 * 2 * 96),
            "tensor blk.0.ffn_gate.zeros has 2 rows of 96 columns; its metadata calls for 96 of 2");
  EXPECT_EQ(with("blk.0.ffn_gate.weak", {4, 96}, 2 * 4 * 96),
            "tensor blk.0.ffn_gate.weak has 96 rows of 4 columns; its metadata calls for 96 of 5");
  ToyFile toy = weak_toy().own;
  toy.tensor("blk.1.attn_v.weak").type = ElementType::kBF16;
  EXPECT_EQ(error_of(toy), "tensor blk.1.attn_v.weak is of type BF16; F16 was expected");
  toy = weak_toy().own;
  toy.tensor("blk.1.attn_v.scales").type = ElementType::kBF16;
  EXPECT_EQ(error_of(toy), "tensor blk.1.attn_v.scales is of type BF16; F16 was expected");
}

TEST_F(Stored, MissingAndSurplusTensors) {
  for (const char* name : {"blk.0.attn_q.scales", "blk.1.ffn_down.weak"}) {
    ToyFile toy = weak_toy().own;
    toy.remove(name);
    EXPECT_EQ(error_of(toy), std::string("tensor ") + name + " is missing");
  }
  ToyFile toy = weak_toy().own;
  toy.remove("blk.0.attn_q.codes");
  // Scales of nothing.
  EXPECT_NE(error_of(toy).find("tensor blk.0.attn_q."), std::string::npos);
  // Tensors that would be ignored without a word, and the result would be another model.
  const auto surplus = [&](const std::string& name, const std::string& like) {
    ToyFile file = weak_toy().own;
    ToyTensor copy = file.tensor(like);
    copy.name = name;
    file.tensors.push_back(copy);
    EXPECT_EQ(error_of(file),
              "tensor " + name +
                  " is not part of a model of architecture \"llama\" as this program "
                  "computes it; the result would be wrong");
  };
  surplus("blk.0.attn_q.offsets", "blk.0.attn_q.zeros");
  surplus("blk.0.attn_q.weight", "blk.0.attn_q.zeros");
  surplus("blk.0.attn_q.absmax_offset", "blk.0.attn_q.zeros");
  surplus("token_embd.weak", "blk.0.attn_q.weak");
  surplus("token_embd.scales", "blk.0.attn_q.scales");
  surplus("blk.2.ffn_order", "blk.0.attn_q.weak_columns");
  toy = weak_toy().own;
  toy.remove("blk.1.attn_k.weak_columns");
  EXPECT_EQ(error_of(toy),
            "tensor blk.1.attn_k.weak is not part of a model of architecture \"llama\" as this "
            "program computes it; the result would be wrong");
}

TEST_F(Stored, ValuesThatAreNotFinite) {
  ToyFile toy = weak_toy().own;
  set<std::uint16_t>(toy.tensor("blk.1.attn_k.scales"), 2 * 5 + 1, 0x7c00);
  EXPECT_EQ(error_of(toy),
            "blk.1.attn_k: row 5, columns 32 to 58: the scale is not a finite number");
  toy = weak_toy().own;
  set<std::uint16_t>(toy.tensor("blk.1.attn_k.zeros"), 0, 0xfe00);
  EXPECT_EQ(error_of(toy), "blk.1.attn_k: row 0, columns 0 to 31: the zero is not a finite number");
}

TEST_F(Stored, MetadataThatNoKernelHas) {
  const auto with = [&](const std::string& key, std::uint32_t value) {
    ToyFile toy = weak_toy().own;
    toy.metadata.set_uint32(key, value);
    return error_of(toy);
  };
  for (const std::uint32_t bits : {0u, 2u, 5u, 16u, 1u << 31})
    EXPECT_EQ(with("trimpot.bits", bits),
              "trimpot.bits is " + std::to_string(bits) + "; 3, 4 or 8 was expected");
  for (const std::uint32_t size : {1u, 33u, 1u << 25, ~0u})
    EXPECT_EQ(with("trimpot.group_size", size),
              "trimpot.group_size is " + std::to_string(size) +
                  "; a multiple of 32, or 0 for one group per row, was expected");
  EXPECT_EQ(with("trimpot.version", 2),
            "trimpot.version is 2; this program knows 1, a newer trimpot wrote the file");
  ToyFile toy = weak_toy().own;
  toy.metadata.set_string("trimpot.architecture", "gpt2");
  EXPECT_EQ(error_of(toy),
            "models of architecture \"gpt2\" are not supported yet; \"llama\" is (Llama, SmolLM, "
            "Mistral and relatives)");
  // Another program's file with tensors of ours.
  toy = own_toy(toy_options(), {}).plain;
  for (const ToyTensor& tensor : own_toy(toy_options(), {}).own.tensors)
    if (tensor.name.starts_with("blk.0.attn_q.")) toy.tensors.push_back(tensor);
  toy.remove("blk.0.attn_q.weight");
  EXPECT_NE(error_of(toy).find("trimpot.bits"), std::string::npos);
  // The head has sizes of its own.
  toy = own_toy(toy_options(), {4, 32, OwnCentre::kZeros, 0, false, false, false, 8}).own;
  toy.metadata.set_uint32("trimpot.head.bits", 6);
  EXPECT_EQ(error_of(toy), "trimpot.head.bits is 6; 3, 4 or 8 was expected");
}

TEST_F(Stored, OrdersThatAreNone) {
  ToyOptions options = toy_options();
  options.embedding = ElementType::kF32;
  const OwnToy good = own_toy(options, {4, 32, OwnCentre::kZeros, 5, false, true});
  EXPECT_EQ(error_of(good.own), "");
  for (const auto& [name, count] :
       {std::pair<std::string, int>{"residual_order", 64}, {"blk.1.ffn_order", 96}}) {
    const std::string message =
        "tensor " + name + " is not a permutation of " + std::to_string(count) + " channels";
    for (const std::int32_t bad : {-1, count, INT32_MAX}) {
      ToyFile toy = good.own;
      set(toy.tensor(name), 7, bad);
      EXPECT_EQ(error_of(toy), message);
    }
    ToyFile toy = good.own;
    std::int32_t other;
    std::memcpy(&other, toy.tensor(name).data.data() + 4 * 9, 4);
    set(toy.tensor(name), 7, other);  // twice
    EXPECT_EQ(error_of(toy), message);
    toy = good.own;
    toy.tensor(name).shape[0] -= 1;
    toy.tensor(name).data.resize(toy.tensor(name).data.size() - 4);
    EXPECT_EQ(error_of(toy), "tensor " + name + " has 1 rows of " + std::to_string(count - 1) +
                                 " columns; its metadata calls for 1 of " + std::to_string(count));
    toy = good.own;
    toy.tensor(name).type = ElementType::kF32;
    EXPECT_EQ(error_of(toy), "tensor " + name + " is of type F32; I32 was expected");
  }
}

// NF4 of a file: its constants, and broken ones.
TEST_F(Stored, Nf4) {
  const auto nf4_toy = [](float scale, float offset) {
    ToyFile toy = own_toy(toy_options(), {}).own;  // 4 bits: rows of 32 bytes
    const std::string name = "blk.1.attn_v";       // 20 rows of 64
    for (const char* suffix : {".scales", ".zeros"}) toy.remove(name + suffix);
    std::vector<std::byte> codes(20);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i * 13);
    const auto floats = [](float value) {
      const auto bytes = std::as_bytes(std::span(&value, 1));
      return std::vector<std::byte>(bytes.begin(), bytes.end());
    };
    toy.tensors.push_back({name + ".absmax", ElementType::kI8, {1, 20}, codes});
    toy.tensors.push_back({name + ".absmax_scales", ElementType::kF32, {1}, floats(scale)});
    toy.tensors.push_back({name + ".absmax_offset", ElementType::kF32, {1}, floats(offset)});
    return toy;
  };
  const auto model = load(nf4_toy(0.25f, 0.5f));
  ASSERT_NE(model, nullptr);
  const Matrix& weight = model->layers[1].v_proj.weight;
  EXPECT_EQ(weight.view().book, CodeBook::kNf4);
  std::vector<float> row(64);
  for (std::int64_t n = 0; n < 20; ++n) {
    weight.dequantize_row(n, row.data());
    const float absmax = dynamic_map()[static_cast<std::size_t>(n * 13)] * 0.25f + 0.5f;
    for (std::int64_t j = 0; j < 64; ++j)
      EXPECT_EQ(row[j], nf4_levels()[weight.code(n, j)] * f16_to_f32(f32_to_f16(absmax)));
  }
  EXPECT_EQ(error_of(nf4_toy(0.25f, NAN)),
            "blk.1.attn_v: row 0, columns 0 to 63: the scale is not a finite number");
  EXPECT_EQ(error_of(nf4_toy(0.25f, 1e9f)),
            "blk.1.attn_v: row 0, columns 0 to 63: the scale is not a finite number");
  ToyFile toy = nf4_toy(0.25f, 0.5f);
  toy.tensor("blk.1.attn_v.absmax").shape = {20, 1};
  EXPECT_EQ(error_of(toy),
            "tensor blk.1.attn_v.absmax has 1 rows of 20 columns; its metadata calls for 20 of 1");
  toy = nf4_toy(0.25f, 0.5f);
  toy.remove("blk.1.attn_v.absmax_offset");
  EXPECT_EQ(error_of(toy), "tensor blk.1.attn_v.absmax_offset is missing");
}

}  // namespace
}  // namespace trimpot
