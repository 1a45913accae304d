#include "model/weights.h"

#include <cmath>
#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_set>

namespace trimpot {
namespace {

struct Slot {
  std::string name;
  std::int64_t rows, columns;
  Matrix* matrix;
};

Result<const gguf::TensorInfo*> find_shaped(const gguf::File& file, const std::string& name,
                                            std::int64_t rows, std::int64_t columns) {
  const gguf::TensorInfo* info = file.find_tensor(name);
  if (info == nullptr) return fail("{}: tensor {} is missing", file.path(), name);
  if (static_cast<std::int64_t>(info->columns()) != columns ||
      static_cast<std::int64_t>(info->rows()) != rows)
    return fail("{}: tensor {} has {} rows of {} columns; its metadata calls for {} of {}",
                file.path(), name, info->rows(), info->columns(), rows, columns);
  return info;
}

Result<std::vector<float>> read_vector(const gguf::File& file, const std::string& name,
                                       std::int64_t count) {
  TRIMPOT_TRY(const gguf::TensorInfo* info, find_shaped(file, name, 1, count));
  const auto packed = Matrix::pack(info->type, 1, count, file.data(*info));
  if (!packed) return fail("{}: tensor {}: {}", file.path(), name, packed.error().message);
  std::vector<float> values(static_cast<std::size_t>(count));
  packed->dequantize_row(0, values.data());
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      return fail("{}: tensor {}, element {}: not a finite number", file.path(), name, i);
  return values;
}

std::string layer_tensor(std::size_t layer, std::string_view suffix) {
  return fmt::format("blk.{}.{}.weight", layer, suffix);
}

// Packs all slots, several at a time; the first error wins.
Status pack_all(const gguf::File& file, ThreadTeam& team, const std::vector<Slot>& slots) {
  std::mutex mutex;
  std::optional<Error> error;
  team.for_each(
      static_cast<std::int64_t>(slots.size()), 1, [&](std::int64_t index, std::int64_t, int) {
        const Slot& slot = slots[static_cast<std::size_t>(index)];
        auto result = [&]() -> Status {
          TRIMPOT_TRY(const gguf::TensorInfo* info,
                      find_shaped(file, slot.name, slot.rows, slot.columns));
          auto packed = Matrix::pack(info->type, slot.rows, slot.columns, file.data(*info));
          if (!packed)
            return fail("{}: tensor {}: {}", file.path(), slot.name, packed.error().message);
          *slot.matrix = std::move(*packed);
          file.release(*info);
          return {};
        }();
        if (!result) {
          const std::lock_guard lock(mutex);
          if (!error) error = result.error();
        }
      });
  if (error) return fail(*error);
  return {};
}

Status check_no_surplus(const gguf::File& file, const std::unordered_set<std::string>& known) {
  for (const gguf::TensorInfo& info : file.tensors())
    if (!known.contains(info.name))
      return fail(
          "{}: tensor {} is not part of a model of architecture \"llama\" as this program "
          "computes it; the result would be wrong",
          file.path(), info.name);
  return {};
}

}  // namespace

std::string linear_tensor_name(std::size_t index) {
  return layer_tensor(index / kLinearKinds.size(),
                      kLinearKinds[index % kLinearKinds.size()].gguf_suffix);
}

std::size_t Model::weight_bytes() const {
  std::size_t bytes = embedding.bytes() + head.bytes();
  for (std::size_t index = 0; index < linear_count(); ++index) bytes += linear(index).bytes();
  return bytes;
}

Result<std::unique_ptr<Model>> load_model(const gguf::File& file, ThreadTeam& team) {
  auto model = std::make_unique<Model>();
  TRIMPOT_TRY(model->config, read_config(file));
  ModelConfig& config = model->config;
  const gguf::TensorInfo* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) return fail("{}: tensor token_embd.weight is missing", file.path());
  config.vocabulary = static_cast<std::int64_t>(embedding->rows());
  if (static_cast<std::uint64_t>(config.layers) > file.tensors().size())
    return fail("{}: {}.block_count is {}, but the file has only {} tensors", file.path(),
                config.architecture, config.layers, file.tensors().size());

  std::unordered_set<std::string> known{"token_embd.weight", "output_norm.weight"};
  std::vector<Slot> slots;
  // The largest first, so that the threads finish together.
  slots.push_back({"token_embd.weight", config.vocabulary, config.hidden, &model->embedding});
  if (file.find_tensor("output.weight") != nullptr) {
    slots.push_back({"output.weight", config.vocabulary, config.hidden, &model->head});
    known.insert("output.weight");
  }
  TRIMPOT_TRY(model->output_norm, read_vector(file, "output_norm.weight", config.hidden));
  if (file.find_tensor("rope_freqs.weight") != nullptr) {
    TRIMPOT_TRY(model->rope_frequency_factors,
                read_vector(file, "rope_freqs.weight", config.rope_dims / 2));
    for (const float factor : model->rope_frequency_factors)
      if (!(factor > 0.0f))
        return fail("{}: tensor rope_freqs.weight holds {}; positive factors were expected",
                    file.path(), factor);
    known.insert("rope_freqs.weight");
  }
  const std::int64_t q_width = config.attention.q_width(), kv_width = config.attention.kv_width();
  const std::int64_t rows[] = {
      q_width,      kv_width, kv_width, config.hidden, config.feed_forward, config.feed_forward,
      config.hidden};
  const std::int64_t columns[] = {config.hidden, config.hidden, config.hidden,      q_width,
                                  config.hidden, config.hidden, config.feed_forward};
  model->layers.resize(static_cast<std::size_t>(config.layers));
  for (std::size_t layer = 0; layer < model->layers.size(); ++layer) {
    LayerWeights& weights = model->layers[layer];
    const std::string norm = layer_tensor(layer, "attn_norm");
    const std::string ffn_norm = layer_tensor(layer, "ffn_norm");
    TRIMPOT_TRY(weights.attention_norm, read_vector(file, norm, config.hidden));
    TRIMPOT_TRY(weights.feed_forward_norm, read_vector(file, ffn_norm, config.hidden));
    known.insert(norm);
    known.insert(ffn_norm);
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
      const std::string name = layer_tensor(layer, kLinearKinds[kind].gguf_suffix);
      slots.push_back({name, rows[kind], columns[kind], &(weights.*kLinearKinds[kind].matrix)});
      known.insert(name);
    }
  }
  TRIMPOT_TRY_VOID(check_no_surplus(file, known));
  TRIMPOT_TRY_VOID(pack_all(file, team, slots));
  return model;
}

}  // namespace trimpot
