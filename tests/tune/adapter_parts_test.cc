// Adapters of every kind of parameter, on plain files and on our own, reordered or not: base +
// adapter is the tuned model, bit for bit, and so is the exported file where there can be one.
#include <gtest/gtest.h>

#include <cstring>

#include "eval/diff.h"
#include "io/test_files.h"
#include "model/session.h"
#include "support/compare.h"
#include "sys/thread_team.h"
#include "tune/adapter.h"
#include "tune/matrices.h"
#include "tune/own_files.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

constexpr Scheme kZeros{4, 32, ZeroKind::kInteger}, kOffsets{3, 64, ZeroKind::kOffset},
    kSymmetric{4, kWholeRow, ZeroKind::kSymmetric};

enum class Kind { kScales, kBoth, kWeak, kAddedWeak, kLora, kQaLora };

std::vector<std::vector<std::int32_t>> some_columns(const Model& model) {
  std::vector<std::vector<std::int32_t>> columns(model.linear_count());
  for (std::size_t i = 0; i < columns.size(); i += 3)
    columns[i] = {static_cast<std::int32_t>(i), 40, 7 + static_cast<std::int32_t>(i), 0};
  columns[0] = {5, 4, 63};
  return columns;
}

class Parts : public testing::Test {
 protected:
  ToyModel load(const ToyFile& toy, const std::string& name) {
    auto loaded = load_toy(toy, folder_.file(name));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(*loaded);
  }
  std::unique_ptr<Model> fresh(const gguf::File& file) {
    auto model = load_model(file, team_);
    EXPECT_TRUE(model) << model.error().message;
    return std::move(*model);
  }
  // Tunes at random and writes the adapter.
  std::unique_ptr<TuningMethod> tune(Kind kind, const gguf::File& base, Model& model,
                                     const std::string& path, std::uint64_t seed = 7) {
    Result<std::unique_ptr<TuningMethod>> method = fail("");
    switch (kind) {
      case Kind::kScales:
        method = make_scale_method(model, {});
        break;
      case Kind::kBoth:
        method = make_scale_method(model, {ScaleMethod::kBoth, {}, {}});
        break;
      case Kind::kAddedWeak:
        add_weak_columns(model, some_columns(model));
        [[fallthrough]];
      case Kind::kWeak:
        method = make_weak_column_method(model, {});
        break;
      case Kind::kLora:
      case Kind::kQaLora:
        method = make_low_rank_method(model, {3, 16, 0, true, kind == Kind::kQaLora, 5, {}});
    }
    EXPECT_TRUE(method) << method.error().message;
    RandomStream random(seed);
    for (float& value : (*method)->parameters().values.span()) value += 0.05f * random.normal();
    EXPECT_TRUE((*method)->commit(team_));
    const auto tensors = (*method)->adapter_tensors();
    EXPECT_TRUE(tensors) << tensors.error().message;
    const auto status =
        write_adapter(path, fingerprint(base), "m", "{}", *tensors, low_rank_metadata(model, 16));
    EXPECT_TRUE(status) << status.error().message;
    return std::move(*method);
  }
  std::string path(const std::string& name) const { return folder_.file(name); }
  const TempFolder folder_;
  ThreadTeam team_{2};
};

struct Case {
  const char* name;
  ToyFile toy;
  std::vector<Kind> kinds;
};

std::vector<Case> cases() {
  const ToyFile dense = dense_toy();
  using enum Kind;
  return {
      {"f16", dense_toy(ElementType::kF16), {kAddedWeak, kLora}},
      {"q4_1", dense_toy(ElementType::kQ4_1), {kBoth, kAddedWeak, kLora, kQaLora}},
      {"zeros",
       own_file(dense, {kZeros, 0, 1, 3, {}}),
       {kScales, kBoth, kAddedWeak, kLora, kQaLora}},
      {"zeros and weak", own_file(dense, {kZeros, 5, 1, 3, {}}), {kScales, kBoth, kWeak, kLora}},
      {"weak", own_file(dense, {kSymmetric, 5, 1, 0, {}}), {kScales, kWeak, kLora}},
      {"offsets", own_file(dense, {kOffsets, 0, 1, 4, {}}), {kScales, kBoth, kLora, kQaLora}},
      {"symmetric", own_file(dense, {kSymmetric, 0, 1, 5, {}}), {kScales, kAddedWeak, kQaLora}},
  };
}

// Catches: rows or channels in another order on one of the two ways, a lost factor, differences
// that are rounded twice, parts that are put on another layer.
TEST_F(Parts, BasePlusAdapterIsTheTunedModel) {
  for (const Case& c : cases())
    for (const Kind kind : c.kinds) {
      SCOPED_TRACE(testing::Message() << c.name << ", kind " << static_cast<int>(kind));
      const ToyModel base = load(c.toy, "base.gguf");
      const auto tuned = fresh(base.file), again = fresh(base.file);
      tune(kind, base.file, *tuned, path("a.safetensors"));
      const auto status = apply_adapter(path("a.safetensors"), base.file, *again);
      ASSERT_TRUE(status) << status.error().message;
      for (const Precision precision : {Precision::kF32, Precision::kDefault}) {
        EXPECT_TRUE(same_bits(logits(*again, precision), logits(*tuned, precision)));
        EXPECT_FALSE(same_bits(logits(*again, precision), logits(*base.model, precision)));
      }
      // The exported copy, or the reason why there is none.
      const std::string out = path("out.gguf");
      const auto exported = export_gguf(base.file, *tuned, out);
      if (kind == Kind::kAddedWeak || kind == Kind::kLora || kind == Kind::kQaLora) {
        ASSERT_FALSE(exported);
        EXPECT_NE(exported.error().message.find("write an adapter"), std::string::npos);
        EXPECT_EQ(exported.error().message.find('\n'), std::string::npos);
        continue;
      }
      ASSERT_TRUE(exported) << exported.error().message;
      const auto file = gguf::File::open(out);
      ASSERT_TRUE(file);
      EXPECT_TRUE(
          same_bits(logits(*fresh(*file), Precision::kF32), logits(*tuned, Precision::kF32)));
      EXPECT_EQ(fingerprint(*file).codes, fingerprint(base.file).codes);
      EXPECT_EQ(diff_files(base.file, *file).only_scales_and_offsets(), kind != Kind::kWeak);
      const std::string before = read_file(path("base.gguf")), after = read_file(out);
      ASSERT_EQ(before.size(), after.size());
      EXPECT_EQ(before.substr(0, base.file.data_offset()),
                after.substr(0, base.file.data_offset()));
      for (const gguf::TensorInfo& tensor : base.file.tensors()) {
        const bool may = tensor.name.ends_with(".scales") || tensor.name.ends_with(".zeros") ||
                         tensor.name.ends_with(".offsets") || tensor.name.ends_with(".weak") ||
                         tensor.type == ElementType::kQ4_1;
        EXPECT_TRUE(may || before.compare(tensor.offset, tensor.bytes, after, tensor.offset,
                                          tensor.bytes) == 0)
            << tensor.name;
      }
    }
}

// Rows of one batch through the base and through adapters of every kind: each sequence gets the
// bits of the tuned model alone, in a long prompt, a short one and single tokens, whoever is beside
// it.
TEST_F(Parts, RowsOfOneBatchThroughDifferentAdapters) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const ToyModel base = load(c.toy, "base.gguf");
    std::vector<std::unique_ptr<Model>> tuned;
    std::vector<Overlay> overlays;
    for (const Kind kind : c.kinds)
      for (const std::uint64_t seed : {7, 8}) {
        tuned.push_back(fresh(base.file));
        tune(kind, base.file, *tuned.back(), path("a.safetensors"), seed);
        ThreadTeam team(3);
        auto overlay =
            load_overlay(path("a.safetensors"), {path("base.gguf"), fingerprint(base.file)},
                         *base.model, seed == 8 ? &team : nullptr);  // one thread or three
        ASSERT_TRUE(overlay) << overlay.error().message;
        overlays.push_back(std::move(*overlay));
      }
    const std::int64_t vocabulary = base.model->config.vocabulary;
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      for (const int threads : {1, 3}) {
        Compute compute(*usable_kernels().front(), precision, threads);
        Decoder decoder(compute, *base.model);
        // Prompts of 1 to 12 tokens: shorter and longer than what is worth a pass of its own.
        const std::size_t count = 2 * overlays.size() + 2;
        std::vector<std::vector<TokenId>> prompts(count);
        std::vector<Sequence> sequences;
        std::vector<Turn> turns(count);
        for (std::size_t i = 0; i < count; ++i) {
          for (std::size_t t = 0; t < 1 + i * 5 % 12; ++t)
            prompts[i].push_back(static_cast<TokenId>((3 + 7 * i + 5 * t) % 23));
          sequences.emplace_back(compute, *base.model, 16);
        }
        const auto model_of = [&](std::size_t i) {
          return i % (count / 2) == 0 ? nullptr : &overlays[i % (count / 2) - 1];
        };
        for (std::size_t i = 0; i < count; ++i)
          turns[i] = {&sequences[i], prompts[i], true, model_of(i)};
        std::vector<float> got(count * vocabulary), next(got.size());
        ASSERT_TRUE(decoder.step(turns, got.data()));
        const TokenId token = 4;
        for (Turn& turn : turns) turn.tokens = {&token, 1};
        ASSERT_TRUE(decoder.step(turns, next.data()));
        for (std::size_t i = 0; i < count; ++i) {
          const Overlay* overlay = model_of(i);
          Session alone(compute, overlay ? *tuned[overlay - overlays.data()] : *base.model, 16);
          std::vector<float> want(vocabulary);
          ASSERT_TRUE(alone.append(prompts[i], want.data()));
          EXPECT_TRUE(same_bits(std::span(std::as_const(want)),
                                std::span(std::as_const(got)).subspan(i * vocabulary, vocabulary)))
              << i;
          ASSERT_TRUE(alone.append({&token, 1}, want.data()));
          EXPECT_TRUE(same_bits(std::span(std::as_const(want)),
                                std::span(std::as_const(next)).subspan(i * vocabulary, vocabulary)))
              << i;
        }
      }
  }
}

// Two files of one model, one of them reordered, tuned alike in the original's terms: the adapters'
// weak columns name the same channels, and their rows are the original's.
TEST_F(Parts, TensorsAreInTheOriginalOrder) {
  const ToyFile dense = dense_toy();
  const ToyModel plain = load(own_file(dense, {kZeros, 5, 1, 0, {}}), "plain.gguf");
  const ToyModel moved = load(own_file(dense, {kZeros, 5, 1, 3, {}}), "moved.gguf");
  for (const std::size_t index : {std::size_t{kO}, std::size_t{kDown}, std::size_t{kGate} + 7}) {
    Matrix& weak = moved.model->linear(index).weak;
    // One weight, doubled.
    const std::int64_t row = 11, column = 2;
    const auto method = make_weak_column_method(*moved.model, {});
    const f16 old = weak.dense_f16()[weak.dense_index(row, column)];
    Parameters& parameters = (*method)->parameters();
    for (const Parameter& parameter : parameters.list)
      if (parameter.linear == index)
        parameters.values[parameter.begin + weak.dense_index(row, column)] *= 2.0f;
    ASSERT_TRUE((*method)->commit(team_));
    const auto tensors = (*method)->adapter_tensors();
    ASSERT_TRUE(tensors);
    ASSERT_TRUE(
        write_adapter(path("a.safetensors"), fingerprint(moved.file), "qeft", "{}", *tensors));
    const auto adapter = read_adapter(path("a.safetensors"), {"", {}}, *plain.model);
    ASSERT_TRUE(adapter) << adapter.error().message;
    ASSERT_TRUE(apply_adapters(std::span(&*adapter, 1), *plain.model));
    // In the plain file that weight has the same value, at its original row and channel.
    const auto channels = weak_channels(*plain.model, index);
    const std::int32_t channel = weak_channels(*moved.model, index)[column];
    const auto at = std::find(channels.begin(), channels.end(), channel) - channels.begin();
    const ColumnOrder rows = linear_axes(*moved.model, index).rows;
    ASSERT_TRUE(rows);
    const Matrix& other = plain.model->linear(index).weak;
    EXPECT_EQ(f16_to_f32(std::as_const(other).dense_f16()[other.dense_index((*rows)[row], at)]),
              2 * f16_to_f32(old));
  }
}

// The same of scales and zero-points: row r of the adapter is the original's row r.
TEST_F(Parts, ScalesAreInTheOriginalOrder) {
  const ToyModel base = load(own_file(dense_toy(), {kZeros, 5, 1, 3, {}}), "base.gguf");
  const auto tuned = fresh(base.file);
  tune(Kind::kBoth, base.file, *tuned, path("a.safetensors"));
  const auto adapter =
      read_adapter(path("a.safetensors"), {"", fingerprint(base.file)}, *base.model);
  ASSERT_TRUE(adapter) << adapter.error().message;
  for (const std::size_t index : {std::size_t{kO}, std::size_t{kDown}, std::size_t{kUp} + 7}) {
    const Matrix& matrix = tuned->linear(index).weight;
    const ColumnOrder rows = linear_axes(*tuned, index).rows;
    for (std::int64_t row = 0; row < matrix.rows(); ++row) {
      const auto at = static_cast<std::size_t>((*rows)[row] * matrix.groups() + 1);
      EXPECT_EQ(adapter->layers[index].scale[at], matrix.scales()[matrix.scale_index(row, 1)]);
      EXPECT_EQ(adapter->layers[index].zero[at], matrix.zeros()[matrix.scale_index(row, 1)]);
    }
  }
}

TEST_F(Parts, FingerprintOfOwnFiles) {
  const ToyFile toy = own_file(dense_toy(), {kZeros, 5, 1, 3, {}});
  const Fingerprint want = fingerprint(load(toy, "a.gguf").file);
  const auto changed = [&](const char* name, std::size_t at, int by) {
    ToyFile other = toy;
    std::byte& byte = other.tensor(name).data[at];
    byte = static_cast<std::byte>(static_cast<int>(byte) ^ by);
    EXPECT_TRUE(other.write(path("b.gguf")));
    const auto file = gguf::File::open(path("b.gguf"));
    EXPECT_NE(fingerprint(*file).weights, want.weights);
    return fingerprint(*file).codes != want.codes;
  };
  EXPECT_TRUE(changed("blk.0.attn_q.codes", 3, 1));
  EXPECT_TRUE(changed("blk.1.ffn_down.weak_columns", 0, 1));
  EXPECT_TRUE(changed("blk.1.ffn_order", 0, 1));
  EXPECT_FALSE(changed("blk.1.ffn_down.weak", 0, 1));
  EXPECT_FALSE(changed("blk.0.attn_q.scales", 0, 1));
  EXPECT_FALSE(changed("blk.0.attn_q.zeros", 0, 1));
}

// Scale sets survive other weak columns; what adds to the weights does not.
TEST_F(Parts, OtherBases) {
  const ToyFile toy = own_file(dense_toy(), {kZeros, 5, 1, 3, {}});
  ToyFile other_weak = toy;
  other_weak.tensor("blk.0.attn_q.weak").data[0] ^= std::byte{1};
  const ToyModel base = load(toy, "base.gguf"), other = load(other_weak, "other.gguf");
  tune(Kind::kScales, base.file, *fresh(base.file), path("a.safetensors"));
  EXPECT_TRUE(apply_adapter(path("a.safetensors"), other.file, *fresh(other.file)));
  for (const Kind kind : {Kind::kWeak, Kind::kLora}) {
    tune(kind, base.file, *fresh(base.file), path("a.safetensors"));
    const auto status = apply_adapter(path("a.safetensors"), other.file, *fresh(other.file));
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().message,
              path("a.safetensors") +
                  ": this adapter belongs to another base model; the weights of " +
                  path("other.gguf") +
                  " are not those it was tuned on (`trimpot merge --onto-other` adds it to another "
                  "model)");
  }
}

TEST_F(Parts, SeveralAdapters) {
  const ToyModel base = load(own_file(dense_toy(), {kZeros, 5, 1, 3, {}}), "base.gguf");
  const AdapterBase identity{base.file.path(), fingerprint(base.file)};
  std::vector<Adapter> adapters;
  for (const Kind kind : {Kind::kScales, Kind::kLora, Kind::kWeak}) {
    const std::string name = path("a" + std::to_string(adapters.size()));
    tune(kind, base.file, *fresh(base.file), name, adapters.size());
    auto adapter = read_adapter(name, identity, *base.model);
    ASSERT_TRUE(adapter) << adapter.error().message;
    adapters.push_back(std::move(*adapter));
  }
  // Different parts go together, and differences of weak columns are added and rounded once.
  std::vector<Adapter> all = adapters;
  all.push_back(adapters[2]);
  all[2].factor = 0.25f;
  all[3].factor = 0.75f;
  const auto sum = fresh(base.file), one = fresh(base.file);
  ASSERT_TRUE(apply_adapters(all, *sum));
  ASSERT_TRUE(apply_adapters(adapters, *one));
  for (std::size_t i = 0; i < sum->linear_count(); ++i) {
    EXPECT_NE(sum->linear(i).low_rank, nullptr);
    const auto a = std::as_const(sum->linear(i).weak).dense_f16();
    const auto b = std::as_const(one->linear(i).weak).dense_f16();
    for (std::size_t at = 0; at < a.size(); ++at)
      // 0.25 d + 0.75 d is d but for one rounding to f32, so at most the last bit of f16 differs.
      EXPECT_LE(std::abs(int{a[at]} - int{b[at]}), 1);
  }
  const auto conflict = [&](const Adapter& a, const Adapter& b) {
    const std::vector<Adapter> both{a, b};
    const auto status = apply_adapters(both, *fresh(base.file));
    return status ? "" : status.error().message;
  };
  EXPECT_EQ(conflict(adapters[0], adapters[0]),
            path("a0") + " and " + path("a0") +
                " both hold blk.0.attn_q.weight.scale and 13 more tensors; use one of them");
  EXPECT_EQ(conflict(adapters[1], adapters[1]),
            path("a1") + " and " + path("a1") +
                " both hold blk.0.attn_q.weight.lora_a and 13 more tensors; use one of them");
  EXPECT_EQ(conflict(adapters[0], adapters[1]), "");
  adapters[0].factor = 0.5f;
  EXPECT_EQ(conflict(adapters[0], adapters[1]),
            path("a0") +
                ": scales and zero-points are final values; a factor of 0.5 has no meaning "
                "for them");
}

TEST_F(Parts, DamagedAdapters) {
  const ToyModel base = load(own_file(dense_toy(), {kZeros, 5, 1, 3, {}}), "base.gguf");
  const std::string file = path("a.safetensors"), q = "blk.0.attn_q.weight";
  const auto error = [&](std::vector<AdapterTensor> tensors, AdapterMetadata more = {}) {
    const auto written = write_adapter(file, fingerprint(base.file), "m", "{}", tensors, more);
    EXPECT_TRUE(written) << written.error().message;
    const auto status = apply_adapter(file, base.file, *fresh(base.file));
    return status ? "" : status.error().message.substr(file.size() + 2);
  };
  const auto floats = [&](const char* suffix, std::uint64_t rows, std::uint64_t columns) {
    const std::vector<float> values(rows * columns, 0.5f);
    return AdapterTensor::make<float>(q + suffix, "F32", {rows, columns}, std::span(values));
  };
  const auto channels = [&](std::vector<std::int32_t> values) {
    return AdapterTensor::make<std::int32_t>(q + ".weak_columns", "I32", {values.size()},
                                             std::span<const std::int32_t>(values));
  };
  const std::int32_t weak = weak_channels(*base.model, 0)[1];
  EXPECT_EQ(error({floats(".weak", 64, 1), channels({weak})}), "");
  std::int32_t other = 0;
  const auto all = weak_channels(*base.model, 0);
  while (std::find(all.begin(), all.end(), other) != all.end()) ++other;
  EXPECT_EQ(error({floats(".weak", 64, 1), channels({other})}),
            "blk.0.attn_q.weight: channel " + std::to_string(other) +
                " of the adapter is none of this model's weak columns; `trimpot quantize "
                "--weak-columns-from` makes a model that has the same ones");
  EXPECT_EQ(error({floats(".weak", 64, 2), channels({weak})}),
            "tensors " + q + ".weak and " + q + ".weak_columns do not fit together");
  EXPECT_EQ(error({floats(".weak", 64, 1)}), q + " has .weak without .weak_columns");
  EXPECT_EQ(error({floats(".weak", 63, 1), channels({weak})}),
            "tensor " + q + ".weak does not fit the base; F32 [64, k or rank] was expected");
  for (const std::vector<std::int32_t>& bad :
       {std::vector<std::int32_t>{-1, 2}, {64, 2}, {weak, weak}})
    EXPECT_NE(error({floats(".weak", 64, 2), channels(bad)}).find("twice or outside 0 to 63"),
              std::string::npos);
  AdapterTensor infinite = floats(".weak", 64, 1);
  const float bad = HUGE_VALF;
  std::memcpy(infinite.bytes.data() + 4 * 9, &bad, 4);
  EXPECT_EQ(error({infinite, channels({weak})}),
            "tensor " + q + ".weak, element 9: not a finite number");

  const AdapterMetadata scale{{"scale", "2"}, {"pool", "0"}};
  EXPECT_EQ(error({floats(".lora_a", 2, 64), floats(".lora_b", 64, 2)}, scale), "");
  EXPECT_EQ(error({floats(".lora_a", 2, 64), floats(".lora_b", 64, 2)}),
            "its scale is \"\"; a number was expected");
  EXPECT_EQ(error({floats(".lora_a", 2, 64), floats(".lora_b", 64, 2)}, {{"scale", "inf"}}),
            "its scale is \"inf\"; a number was expected");
  EXPECT_EQ(error({floats(".lora_a", 2, 64)}, scale), q + " has .lora_a without .lora_b");
  EXPECT_EQ(error({floats(".lora_a", 2, 64), floats(".lora_b", 64, 3)}, scale),
            "tensors " + q + ".lora_a and " + q + ".lora_b do not fit together");
  EXPECT_EQ(error({floats(".lora_a", 2, 63), floats(".lora_b", 64, 2)}, scale),
            "tensor " + q + ".lora_a does not fit the base; F32 [rank, 64] was expected");
  EXPECT_EQ(
      error({floats(".lora_a", 2, 2), floats(".lora_b", 64, 2)}, {{"scale", "2"}, {"pool", "32"}}),
      "tensor " + q + ".lora_a sees sums over groups of codes, and the base has none there");
}

}  // namespace
}  // namespace trimpot
