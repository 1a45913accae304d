// Loading models: what is read, and that each way in which a file can be wrong has its own message.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "format/ggml_blocks.h"
#include "io/test_files.h"
#include "model/weights.h"
#include "support/compare.h"
#include "support/quantizers.h"
#include "support/toy_model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace trimpot {
namespace {

class Load : public testing::Test {
 protected:
  std::string path() const { return folder_.file("toy.gguf"); }
  // The error without the path that starts it; "" if there is none.
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

TEST_F(Load, EveryTensorInItsPlace) {
  ToyOptions options;
  options.linear_types = {ElementType::kQ4_0, ElementType::kQ4_1, ElementType::kQ5_0,
                          ElementType::kQ5_1, ElementType::kQ8_0, ElementType::kF16,
                          ElementType::kBF16};
  options.head = ElementType::kF32;
  options.rope_freqs = true;
  ToyFile toy = toy_file(options);
  const auto loaded = load_toy(toy, path());
  ASSERT_TRUE(loaded) << loaded.error().message;
  const Model& model = *loaded->model;
  EXPECT_EQ(model.config.layers, 2);
  EXPECT_EQ(model.config.hidden, 64);
  EXPECT_EQ(model.config.feed_forward, 96);
  EXPECT_EQ(model.config.vocabulary, kToyVocabulary);
  EXPECT_EQ(model.config.context_length, 256);
  EXPECT_EQ(model.config.attention.heads, 4);
  EXPECT_EQ(model.config.attention.kv_heads, 2);
  EXPECT_EQ(model.config.attention.head_dim, 16);
  EXPECT_EQ(model.config.rope_dims, 16);
  EXPECT_EQ(model.config.rms_eps, 1e-5f);
  const auto expect_matrix = [&](const Matrix& matrix, const std::string& name) {
    const ToyTensor& tensor = toy.tensor(name);
    const auto want = dequantize_bytes(tensor.type, tensor.data);
    ASSERT_EQ(static_cast<std::uint64_t>(matrix.columns()), tensor.shape[0]) << name;
    ASSERT_EQ(static_cast<std::uint64_t>(matrix.rows()), tensor.shape[1]) << name;
    std::vector<float> row(tensor.shape[0]);
    for (std::int64_t n = 0; n < matrix.rows(); ++n) {
      matrix.dequantize_row(n, row.data());
      for (std::size_t j = 0; j < row.size(); ++j)
        ASSERT_EQ(row[j], want[static_cast<std::size_t>(n) * row.size() + j]) << name;
    }
  };
  const auto expect_vector = [&](const std::vector<float>& values, const std::string& name) {
    EXPECT_EQ(values, dequantize_bytes(ElementType::kF32, toy.tensor(name).data)) << name;
  };
  expect_matrix(model.embedding, "token_embd.weight");
  expect_matrix(model.head_matrix(), "output.weight");
  expect_vector(model.output_norm, "output_norm.weight");
  expect_vector(model.rope_frequency_factors, "rope_freqs.weight");
  ASSERT_EQ(model.linear_count(), 14u);
  EXPECT_EQ(linear_tensor_name(8), "blk.1.attn_k.weight");
  for (std::size_t i = 0; i < model.linear_count(); ++i)
    expect_matrix(model.linear(i).weight, linear_tensor_name(i));
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    expect_vector(model.layers[layer].attention_norm, prefix + "attn_norm.weight");
    expect_vector(model.layers[layer].feed_forward_norm, prefix + "ffn_norm.weight");
  }
}

// The toy is a whole model file: its tokenizer and template work too.
TEST_F(Load, TheToyHasATokenizer) {
  const auto loaded = load_toy(toy_file({}), path());
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(&loaded->model->head_matrix(), &loaded->model->embedding);  // tied
  const auto tokenizer = Tokenizer::from_gguf(loaded->file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  const auto ids = tokenizer->encode(bytes);
  ASSERT_EQ(ids.size(), 256u);
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[byte], kToyFirstByte + byte);
  EXPECT_EQ(tokenizer->decode(ids), bytes);
  const auto chat = ChatTemplate::from_gguf(loaded->file);
  ASSERT_TRUE(chat) << chat.error().message;
  const std::vector<Message> messages{{"user", "hi"}};
  const auto encoded = chat->encode(*tokenizer, messages, true);
  ASSERT_TRUE(encoded) << encoded.error().message;
  EXPECT_EQ(encoded->ids.front(), kToyTurnStart);
  EXPECT_EQ(tokenizer->decode(encoded->ids),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(Load, MissingTensors) {
  for (const char* name :
       {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight",
        "blk.1.ffn_norm.weight", "blk.1.attn_v.weight", "blk.0.ffn_down.weight"}) {
    ToyFile toy = toy_file({});
    toy.remove(name);
    EXPECT_EQ(error_of(toy), std::string("tensor ") + name + " is missing");
  }
}

TEST_F(Load, WrongShapes) {
  ToyFile toy = toy_file({});
  std::swap(toy.tensor("blk.0.ffn_up.weight"), toy.tensor("blk.0.attn_q.weight"));
  std::swap(toy.tensor("blk.0.ffn_up.weight").name, toy.tensor("blk.0.attn_q.weight").name);
  // Both are wrong now; which is found first depends on the threads.
  const std::string message = error_of(toy);
  EXPECT_TRUE(message ==
                  "tensor blk.0.ffn_up.weight has 64 rows of 64 columns; its metadata calls "
                  "for 96 of 64" ||
              message ==
                  "tensor blk.0.attn_q.weight has 96 rows of 64 columns; its metadata calls "
                  "for 64 of 64")
      << message;

  toy = toy_file({});
  toy.tensor("output_norm.weight").shape = {32, 2};
  EXPECT_EQ(error_of(toy),
            "tensor output_norm.weight has 2 rows of 32 columns; its metadata calls for 1 of 64");

  toy = toy_file({.rope_freqs = true});
  toy.metadata.set_uint32("llama.rope.dimension_count", 8);
  EXPECT_EQ(error_of(toy),
            "tensor rope_freqs.weight has 1 rows of 8 columns; its metadata calls for 1 of 4");

  toy = toy_file({});
  toy.metadata.set_uint32("llama.embedding_length", 96);
  EXPECT_EQ(error_of(toy),
            "tensor output_norm.weight has 1 rows of 64 columns; its metadata calls for 1 of 96");
}

// A tensor that the architecture does not have would silently change the function.
TEST_F(Load, SurplusTensors) {
  for (const char* name : {"blk.0.attn_q.bias", "blk.2.attn_q.weight", "blk.0.attn_q_norm.weight",
                           "rope_factors_long.weight"}) {
    ToyFile toy = toy_file({});
    toy.tensors.push_back({name, ElementType::kF32, {4}, std::vector<std::byte>(16)});
    EXPECT_EQ(error_of(toy), std::string("tensor ") + name +
                                 " is not part of a model of architecture \"llama\" as this "
                                 "program computes it; the result would be wrong");
  }
}

// Such files open (for inspect), but their weights cannot be computed with.
TEST_F(Load, TypesThatAreOnlyCarried) {
  const std::string what =
      "; use a file whose weights are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0";
  ToyFile toy = toy_file({});
  ToyTensor& weight = toy.tensor("blk.1.ffn_up.weight");  // 96 rows of 64 columns
  weight.type = ElementType::kI8;
  weight.data.resize(96 * 64);
  EXPECT_EQ(error_of(toy), "tensor blk.1.ffn_up.weight: type I8 cannot be computed with" + what);
  weight.type = ElementType::kIQ4_NL;
  weight.data.resize(96 * 2 * 18);
  EXPECT_EQ(error_of(toy),
            "tensor blk.1.ffn_up.weight: type IQ4_NL cannot be computed with" + what);
  toy = toy_file({});
  ToyTensor& norm = toy.tensor("output_norm.weight");
  norm.type = ElementType::kF64;
  norm.data.resize(64 * 8);
  EXPECT_EQ(error_of(toy), "tensor output_norm.weight: type F64 cannot be computed with" + what);
}

TEST_F(Load, ValuesThatAreNotFinite) {
  const std::uint16_t bad = 0x7e00;
  const float nan = std::nanf("");
  ToyFile toy = toy_file({});
  // Row 5, second group of two; Q4_1: scale, then offset.
  std::memcpy(toy.tensor("blk.1.attn_k.weight").data.data() + (5 * 2 + 1) * 20, &bad, 2);
  EXPECT_EQ(
      error_of(toy),
      "tensor blk.1.attn_k.weight: row 5, columns 32 to 63: the scale is not a finite number");
  toy = toy_file({});
  std::memcpy(toy.tensor("blk.1.attn_k.weight").data.data() + 2, &bad, 2);
  EXPECT_EQ(
      error_of(toy),
      "tensor blk.1.attn_k.weight: row 0, columns 0 to 31: the offset is not a finite number");
  toy = toy_file({});
  std::memcpy(toy.tensor("blk.0.ffn_norm.weight").data.data() + 4 * 9, &nan, 4);
  EXPECT_EQ(error_of(toy), "tensor blk.0.ffn_norm.weight: row 0, column 9: not a finite number");
  toy = toy_file({.rope_freqs = true});
  std::memset(toy.tensor("rope_freqs.weight").data.data() + 4, 0, 4);
  EXPECT_EQ(error_of(toy), "tensor rope_freqs.weight holds 0; positive factors were expected");
}

TEST_F(Load, MissingMetadata) {
  for (const char* key : {"general.architecture", "llama.block_count", "llama.context_length",
                          "llama.embedding_length", "llama.feed_forward_length",
                          "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"}) {
    const std::string message = error_of(toy_file({}, key));
    EXPECT_NE(message.find(key), std::string::npos) << message;
  }
  // These have defaults: as many key heads as heads, the head size from the hidden size.
  EXPECT_EQ(error_of(toy_file({}, "llama.attention.key_length")), "");
  EXPECT_EQ(error_of(toy_file({}, "llama.rope.dimension_count")), "");
  ToyOptions plain;
  plain.kv_heads = plain.heads;
  EXPECT_EQ(error_of(toy_file(plain, "llama.attention.head_count_kv")), "");
}

TEST_F(Load, MetadataOfAnotherKindOfModel) {
  const auto with = [&](auto&& change) {
    ToyFile toy = toy_file({});
    change(toy.metadata);
    return error_of(toy);
  };
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_string("general.architecture", "qwen9"); }),
            "models of architecture \"qwen9\" are not supported yet; \"llama\" is (Llama, SmolLM, "
            "Mistral and relatives)");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_string("general.type", "adapter"); }),
            "this GGUF file is of type \"adapter\", not a model");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.expert_count", 8); }),
            "mixture-of-experts models (8 experts) are not supported yet");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.attention.head_count_kv", 3); }),
            "4 attention heads cannot share 3 key/value heads evenly");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.attention.value_length", 32); }),
            "keys of 16 and values of 32 channels per head are not supported; equal sizes are");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_string("llama.rope.scaling.type", "yarn"); }),
            "RoPE scaling of type \"yarn\" is not supported; none, linear and frequency tables "
            "(rope_freqs.weight) are");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.rope.dimension_count", 15); }),
            "llama.rope.dimension_count is 15; an even number up to the head size 16 was expected");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.rope.dimension_count", 18); }),
            "llama.rope.dimension_count is 18; an even number up to the head size 16 was expected");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_float32("llama.rope.freq_base", 0.5f); }),
            "llama.rope.freq_base is 0.5; a number above 1 was expected");
  EXPECT_EQ(with([](gguf::Writer& w) {
              w.set_float32("llama.attention.layer_norm_rms_epsilon", std::nanf(""));
            }),
            "llama.attention.layer_norm_rms_epsilon is nan; a small number was expected");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.attention.head_count", 0); }),
            "llama.attention.head_count is 0; a number from 1 to 16777216 was expected");
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.feed_forward_length", 1u << 30); }),
            "llama.feed_forward_length is 1073741824; a number from 1 to 16777216 was expected");
  // Absurd counts allocate nothing.
  EXPECT_EQ(with([](gguf::Writer& w) { w.set_uint32("llama.block_count", 1u << 24); }),
            "llama.block_count is 16777216, but the file has only 20 tensors");
}

TEST_F(Load, RopeScaling) {
  const auto scale_of = [&](auto&& change) {
    ToyFile toy = toy_file({});
    change(toy.metadata);
    const auto loaded = load_toy(toy, path());
    EXPECT_TRUE(loaded) << loaded.error().message;
    return loaded ? loaded->model->config.rope_frequency_scale : 0.0f;
  };
  EXPECT_EQ(scale_of([](gguf::Writer&) {}), 1.0f);
  EXPECT_EQ(scale_of([](gguf::Writer& w) {
              w.set_string("llama.rope.scaling.type", "linear");
              w.set_float32("llama.rope.scaling.factor", 4.0f);
            }),
            0.25f);
  EXPECT_EQ(scale_of([](gguf::Writer& w) { w.set_float32("llama.rope.scale_linear", 2.0f); }),
            0.5f);
}

}  // namespace
}  // namespace trimpot
