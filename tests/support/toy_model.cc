#include "support/toy_model.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "support/quantizers.h"
#include "support/random.h"

namespace trimpot {
namespace {

// A code point below U+0800 in UTF-8.
std::string utf8(unsigned code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

void set_tokenizer(const ToyOptions& options, gguf::Writer& writer) {
  std::vector<std::string> tokens{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  std::vector<std::int32_t> types{3, 3, 3};  // control
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    // GPT-2's spelling: printable Latin-1 characters stand for themselves.
    const bool itself = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    tokens.push_back(utf8(itself ? byte : next++));
    types.push_back(1);  // normal
  }
  for (std::int64_t id = kToyVocabulary; id < options.vocabulary; ++id) {
    tokens.push_back("[unused" + std::to_string(id) + "]");
    types.push_back(5);  // unused
  }
  writer.set_string("tokenizer.ggml.model", "gpt2");
  writer.set_string("tokenizer.ggml.pre", "smollm");
  writer.set_strings("tokenizer.ggml.tokens", tokens);
  writer.set_int32s("tokenizer.ggml.token_type", types);
  writer.set_strings("tokenizer.ggml.merges", {});
  writer.set_uint32("tokenizer.ggml.bos_token_id", kToyTurnStart);
  writer.set_uint32("tokenizer.ggml.eos_token_id", kToyTurnEnd);
  writer.set_uint32("tokenizer.ggml.padding_token_id", kToyTurnEnd);
  writer.set_bool("tokenizer.ggml.add_bos_token", false);
  writer.set_string("tokenizer.chat_template",
                    "{% for message in messages %}"
                    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                    "'<|im_end|>' + '\n'}}{% endfor %}"
                    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
}

gguf::Writer metadata(const ToyOptions& o, std::string_view without) {
  gguf::Writer writer;
  const auto set = [&](std::string key, std::int64_t value) {
    if (key != without) writer.set_uint32(std::move(key), static_cast<std::uint32_t>(value));
  };
  if (without != "general.architecture") writer.set_string("general.architecture", "llama");
  writer.set_string("general.name", "toy");
  set("llama.block_count", o.layers);
  set("llama.context_length", o.context);
  set("llama.embedding_length", o.hidden);
  set("llama.feed_forward_length", o.feed_forward);
  set("llama.attention.head_count", o.heads);
  set("llama.attention.head_count_kv", o.kv_heads);
  set("llama.attention.key_length", o.head_dim);
  set("llama.attention.value_length", o.head_dim);
  set("llama.rope.dimension_count", o.rope_dims > 0 ? o.rope_dims : o.head_dim);
  set("llama.vocab_size", o.vocabulary);
  writer.set_float32("llama.rope.freq_base", o.rope_base);
  if (without != "llama.attention.layer_norm_rms_epsilon")
    writer.set_float32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  if (o.vocabulary >= kToyVocabulary) set_tokenizer(o, writer);
  return writer;
}

}  // namespace

ToyTensor& ToyFile::tensor(std::string_view name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const ToyTensor& tensor) { return tensor.name == name; });
}

void ToyFile::remove(std::string_view name) {
  std::erase_if(tensors, [&](const ToyTensor& tensor) { return tensor.name == name; });
}

Status ToyFile::write(const std::string& path) const {
  gguf::Writer writer = metadata;
  for (const ToyTensor& tensor : tensors)
    writer.add_tensor(tensor.name, tensor.type, tensor.shape, tensor.data);
  return writer.write(path);
}

ToyFile toy_file(const ToyOptions& o, std::string_view without) {
  ToyFile file{metadata(o, without), {}};
  const auto add_matrix = [&](std::string name, ElementType type, std::int64_t rows,
                              std::int64_t columns, float deviation) {
    RandomStream random(o.seed, file.tensors.size());
    file.tensors.push_back({std::move(name),
                            type,
                            {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)},
                            quantize_values(type, random.normals(rows * columns, deviation))});
  };
  const auto add_vector = [&](std::string name, const std::vector<float>& values) {
    file.tensors.push_back({std::move(name),
                            ElementType::kF32,
                            {values.size()},
                            quantize_values(ElementType::kF32, values)});
  };
  const auto add_norm = [&](std::string name) {
    std::vector<float> values = RandomStream(o.seed, file.tensors.size()).normals(o.hidden, 0.1f);
    for (float& value : values) value += 1.0f;
    add_vector(std::move(name), values);
  };
  add_matrix("token_embd.weight", o.embedding, o.vocabulary, o.hidden, 1.0f);
  add_norm("output_norm.weight");
  if (o.head)
    add_matrix("output.weight", *o.head, o.vocabulary, o.hidden,
               1.0f / std::sqrt(static_cast<float>(o.hidden)));
  if (o.rope_freqs) {
    const std::int64_t dims = o.rope_dims > 0 ? o.rope_dims : o.head_dim;
    std::vector<float> factors(static_cast<std::size_t>(dims / 2));
    for (std::size_t i = 0; i < factors.size(); ++i) factors[i] = 1.0f + static_cast<float>(i);
    add_vector("rope_freqs.weight", factors);
  }
  const std::int64_t q_width = o.heads * o.head_dim, kv_width = o.kv_heads * o.head_dim;
  const std::int64_t rows[] = {q_width,        kv_width,       kv_width, o.hidden,
                               o.feed_forward, o.feed_forward, o.hidden};
  const std::int64_t columns[] = {o.hidden, o.hidden, o.hidden,      q_width,
                                  o.hidden, o.hidden, o.feed_forward};
  for (std::int64_t layer = 0; layer < o.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    add_norm(prefix + "attn_norm.weight");
    add_norm(prefix + "ffn_norm.weight");
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind)
      add_matrix(prefix + std::string(kLinearKinds[kind].gguf_suffix) + ".weight",
                 o.linear_types[kind], rows[kind], columns[kind],
                 o.gain / std::sqrt(static_cast<float>(columns[kind])));
  }
  return file;
}

Result<ToyModel> load_toy(const ToyFile& toy, const std::string& path) {
  TRIMPOT_TRY_VOID(toy.write(path));
  TRIMPOT_TRY(gguf::File file, gguf::File::open(path));
  ThreadTeam team(1);
  TRIMPOT_TRY(std::unique_ptr<Model> model, load_model(file, team));
  return ToyModel{std::move(file), std::move(model)};
}

}  // namespace trimpot
