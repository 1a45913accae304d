#include "model/weights.h"

#include <mutex>
#include <optional>
#include <unordered_set>

#include "io/printable.h"
#include "model/stored.h"

namespace trimpot {

LinearSize linear_size(const ModelConfig& config, std::size_t kind) {
  const std::int64_t q_width = config.attention.q_width(), kv_width = config.attention.kv_width();
  switch (kind) {
    case kQ:
      return {q_width, config.hidden};
    case kK:
    case kV:
      return {kv_width, config.hidden};
    case kO:
      return {config.hidden, q_width};
    case kDown:
      return {config.hidden, config.feed_forward};
    default:
      return {config.feed_forward, config.hidden};
  }
}

namespace {

struct Slot {
  std::string name;
  std::int64_t rows, columns;
  Linear* linear;
  Matrix* matrix;  // or this one: embedding, head
};

Result<std::vector<float>> read_vector(const gguf::File& file, const std::string& name,
                                       std::int64_t count) {
  TRIMPOT_TRY(const gguf::TensorInfo* info, find_shaped(file, name, 1, count));
  const auto packed = Matrix::pack(info->type, 1, count, file.data(*info));
  if (!packed) return fail("{}: tensor {}: {}", file.path(), name, packed.error().message);
  std::vector<float> values(static_cast<std::size_t>(count));
  packed->dequantize_row(0, values.data());
  return values;
}

std::string layer_tensor(std::size_t layer, std::string_view suffix) {
  return fmt::format("blk.{}.{}", layer, suffix);
}

Status pack_slot(const gguf::File& file, const Slot& slot) {
  if (slot.matrix != nullptr) {
    TRIMPOT_TRY(*slot.matrix,
                read_matrix(file, slot.name, slot.rows, slot.columns, "trimpot.head"));
  } else {
    TRIMPOT_TRY(*slot.linear, read_linear(file, slot.name, slot.rows, slot.columns, "trimpot"));
  }
  return {};
}

// Packs all slots, several at a time; the first error wins. Layers go to `memory`, if there is one,
// each as soon as it is read: what malloc keeps of it serves the next one.
Status pack_all(const gguf::File& file, ThreadTeam& team, const std::vector<Slot>& slots,
                Arena* memory) {
  std::mutex mutex;
  std::optional<Error> error;
  team.for_each(static_cast<std::int64_t>(slots.size()), 1,
                [&](std::int64_t index, std::int64_t, int) {
                  const Slot& slot = slots[static_cast<std::size_t>(index)];
                  const auto result = pack_slot(file, slot);
                  const std::lock_guard lock(mutex);
                  if (!result) {
                    if (!error) error = result.error();
                  } else if (memory != nullptr && slot.linear != nullptr) {
                    slot.linear->weight.move_to(*memory);
                    slot.linear->weak.move_to(*memory);
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
          file.path(), printable(info.name));
  return {};
}

// The orders of a reordered model, and q, k, v (gate, up) that read the same columns share them, so
// that their input is gathered once.
Status read_orders(const gguf::File& file, Model& model, std::unordered_set<std::string>& known) {
  known.insert("residual_order");
  TRIMPOT_TRY(model.residual_order, read_order(file, "residual_order", model.config.hidden));
  TRIMPOT_TRY(const bool gathered, file.get_bool_or("trimpot.embedding_in_original_order", false));
  if (gathered) {
    model.embedding_order = model.residual_order;
    model.head_order = inverse_order(model.residual_order);
  }
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    const std::string name = layer_tensor(layer, "ffn_order");
    known.insert(name);
    TRIMPOT_TRY(model.layers[layer].feed_forward_order,
                read_order(file, name, model.config.feed_forward));
  }
  return {};
}

void share_orders(Linear& linear, const Linear& with) {
  if (!linear.weak_columns || !with.weak_columns || *linear.weak_columns != *with.weak_columns)
    return;
  linear.weak_columns = with.weak_columns;
  linear.weight_columns = with.weight_columns;
}

void share_orders(LayerWeights& layer) {
  share_orders(layer.k_proj, layer.q_proj);
  share_orders(layer.v_proj, layer.q_proj);
  share_orders(layer.up_proj, layer.gate_proj);
}

void add_layer_slots(Model& model, std::size_t layer, std::vector<Slot>& slots) {
  for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
    const LinearSize size = linear_size(model.config, kind);
    slots.push_back({layer_tensor(layer, kLinearKinds[kind].gguf_suffix), size.rows, size.columns,
                     &(model.layers[layer].*kLinearKinds[kind].linear), nullptr});
  }
}

}  // namespace

std::string linear_tensor_name(std::size_t index) { return linear_name(index) + ".weight"; }

std::string linear_name(std::size_t index) {
  return layer_tensor(index / kLinearKinds.size(),
                      kLinearKinds[index % kLinearKinds.size()].gguf_suffix);
}

LinearAxes linear_axes(const Model& model, std::size_t index) {
  const ColumnOrder& residual = model.residual_order;
  const ColumnOrder& inner = model.layers[index / kLinearKinds.size()].feed_forward_order;
  switch (index % kLinearKinds.size()) {
    case kQ:
    case kK:
    case kV:
      return {nullptr, residual};
    case kO:
      return {residual, nullptr};
    case kDown:
      return {residual, inner};
    default:
      return {inner, residual};
  }
}

std::vector<std::int32_t> weak_channels(const Model& model, std::size_t index) {
  const Linear& linear = model.linear(index);
  const ColumnOrder axis = linear_axes(model, index).columns;
  std::vector<std::int32_t> channels;
  for (std::int64_t i = 0; i < linear.weak.columns(); ++i) {
    const std::int32_t position = linear.weak_columns
                                      ? (*linear.weak_columns)[static_cast<std::size_t>(i)]
                                      : static_cast<std::int32_t>(linear.weight.columns() + i);
    channels.push_back(axis ? (*axis)[static_cast<std::size_t>(position)] : position);
  }
  return channels;
}

std::size_t Model::weight_bytes() const {
  std::size_t bytes = embedding.bytes() + head.bytes();
  for (std::size_t index = 0; index < linear_count(); ++index) bytes += linear(index).bytes();
  return bytes;
}

namespace {

Result<std::int64_t> vocabulary_rows(const gguf::File& file) {
  for (const char* name : {"token_embd.weight", "token_embd.codes"})
    if (const gguf::TensorInfo* info = file.find_tensor(name))
      return static_cast<std::int64_t>(info->rows());
  return fail("{}: tensor token_embd.weight is missing", file.path());
}

}  // namespace

Result<std::unique_ptr<Model>> load_frame(const gguf::File& file) {
  auto model = std::make_unique<Model>();
  TRIMPOT_TRY(model->config, read_config(file));
  ModelConfig& config = model->config;
  TRIMPOT_TRY(config.vocabulary, vocabulary_rows(file));
  if (static_cast<std::uint64_t>(config.layers) > file.tensors().size())
    return fail("{}: {}.block_count is {}, but the file has only {} tensors", file.path(),
                config.architecture, config.layers, file.tensors().size());

  std::unordered_set<std::string> known{"output_norm.weight", "rope_freqs.weight"};
  add_stored_names(file, "token_embd", false, known);
  add_stored_names(file, "output", false, known);
  TRIMPOT_TRY(model->output_norm, read_vector(file, "output_norm.weight", config.hidden));
  if (file.find_tensor("rope_freqs.weight") != nullptr) {
    TRIMPOT_TRY(model->rope_frequency_factors,
                read_vector(file, "rope_freqs.weight", config.rope_dims / 2));
    for (const float factor : model->rope_frequency_factors)
      if (!(factor > 0.0f))
        return fail("{}: tensor rope_freqs.weight holds {}; positive factors were expected",
                    file.path(), factor);
  }
  model->layers.resize(static_cast<std::size_t>(config.layers));
  for (std::size_t layer = 0; layer < model->layers.size(); ++layer) {
    LayerWeights& weights = model->layers[layer];
    const std::string norm = layer_tensor(layer, "attn_norm.weight");
    const std::string ffn_norm = layer_tensor(layer, "ffn_norm.weight");
    TRIMPOT_TRY(weights.attention_norm, read_vector(file, norm, config.hidden));
    TRIMPOT_TRY(weights.feed_forward_norm, read_vector(file, ffn_norm, config.hidden));
    known.insert(norm);
    known.insert(ffn_norm);
    for (const LinearKind& kind : kLinearKinds)
      add_stored_names(file, layer_tensor(layer, kind.gguf_suffix), true, known);
  }
  TRIMPOT_TRY_VOID(read_orders(file, *model, known));
  TRIMPOT_TRY_VOID(check_no_surplus(file, known));
  return model;
}

Status load_layer(const gguf::File& file, ThreadTeam& team, std::size_t layer, Model& model) {
  std::vector<Slot> slots;
  add_layer_slots(model, layer, slots);
  TRIMPOT_TRY_VOID(pack_all(file, team, slots, nullptr));
  share_orders(model.layers[layer]);
  return {};
}

Status load_embedding(const gguf::File& file, Model& model) {
  TRIMPOT_TRY(model.embedding, read_matrix(file, "token_embd", model.config.vocabulary,
                                           model.config.hidden, "trimpot.head"));
  return {};
}

Result<std::unique_ptr<Model>> load_model(const gguf::File& file, ThreadTeam& team) {
  TRIMPOT_TRY(auto model, load_frame(file));
  const ModelConfig& config = model->config;
  // The largest first, so that the threads finish together.
  std::vector<Slot> slots{
      {"token_embd", config.vocabulary, config.hidden, nullptr, &model->embedding}};
  if (file.find_tensor("output.weight") != nullptr || file.find_tensor("output.codes") != nullptr)
    slots.push_back({"output", config.vocabulary, config.hidden, nullptr, &model->head});
  for (std::size_t layer = 0; layer < model->layers.size(); ++layer)
    add_layer_slots(*model, layer, slots);
  TRIMPOT_TRY_VOID(pack_all(file, team, slots, &model->memory));
  for (LayerWeights& layer : model->layers) share_orders(layer);
  return model;
}

}  // namespace trimpot
