// The weights of a model, packed for the kernels. One table lists the linear layers; loading,
// tuning, adapters, export and reports all loop over it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "format/linear.h"
#include "io/gguf/gguf.h"
#include "model/config.h"
#include "sys/thread_team.h"

namespace trimpot {

struct LayerWeights {
  std::vector<float> attention_norm;     // [hidden]
  std::vector<float> feed_forward_norm;  // [hidden]
  Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
  // Original channel at each position of the feed-forward axis; null: as it was (reordered models).
  ColumnOrder feed_forward_order;
};

struct LinearKind {
  std::string_view module;       // as PEFT's target_modules name it
  std::string_view gguf_suffix;  // "blk.<layer>.<suffix>.weight"
  Linear LayerWeights::*linear;
};

inline constexpr std::array<LinearKind, 7> kLinearKinds{{
    {"q_proj", "attn_q", &LayerWeights::q_proj},
    {"k_proj", "attn_k", &LayerWeights::k_proj},
    {"v_proj", "attn_v", &LayerWeights::v_proj},
    {"o_proj", "attn_output", &LayerWeights::o_proj},
    {"gate_proj", "ffn_gate", &LayerWeights::gate_proj},
    {"up_proj", "ffn_up", &LayerWeights::up_proj},
    {"down_proj", "ffn_down", &LayerWeights::down_proj},
}};
enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };

// Outputs and inputs of a kind of linear layer.
struct LinearSize {
  std::int64_t rows, columns;
};
LinearSize linear_size(const ModelConfig& config, std::size_t kind);

struct Model {
  Arena memory;  // of the layers' weights; first, so that it goes last
  ModelConfig config;
  Matrix embedding;                           // [vocabulary, hidden]
  Matrix head;                                // empty when tied to the embedding
  std::vector<float> output_norm;             // [hidden]
  std::vector<float> rope_frequency_factors;  // [rope_dims / 2], or empty
  std::vector<LayerWeights> layers;
  // Models whose residual stream was reordered offline (QEFT): the original channel at each
  // position. Embedding and head are in the new order too, unless embedding_order says otherwise:
  // a block-quantized matrix keeps its order, and the hidden vector is gathered on entry and exit.
  ColumnOrder residual_order;
  ColumnOrder embedding_order;  // channel of the embedding at each position, or null
  ColumnOrder head_order;       // the inverse: position of each of the head's columns, or null

  const Matrix& head_matrix() const { return head.rows() > 0 ? head : embedding; }
  LinearView head_view() const {
    LinearView view(head_matrix());
    view.weight_columns = head_order.get();
    return view;
  }
  std::size_t linear_count() const { return layers.size() * kLinearKinds.size(); }
  // Linear layers are numbered layer by layer, in the order of kLinearKinds.
  Linear& linear(std::size_t index) {
    return layers[index / kLinearKinds.size()].*kLinearKinds[index % kLinearKinds.size()].linear;
  }
  const Linear& linear(std::size_t index) const { return const_cast<Model*>(this)->linear(index); }
  std::size_t weight_bytes() const;
};

// Original channel at each position of a layer's outputs and inputs; null: as in the original.
struct LinearAxes {
  ColumnOrder rows, columns;
};
LinearAxes linear_axes(const Model& model, std::size_t index);
// Original channels of a layer's weak columns, in the order in which they are stored.
std::vector<std::int32_t> weak_channels(const Model& model, std::size_t index);

std::string linear_name(std::size_t index);         // "blk.3.ffn_down"
std::string linear_tensor_name(std::size_t index);  // "blk.3.ffn_down.weight"

// Reads and packs every tensor, letting go of the file's pages as it goes. Errors name file and
// tensor: missing, wrong shape, a type that does not fit, scales that are not finite, tensors that
// this architecture does not have (biases would silently change the function).
Result<std::unique_ptr<Model>> load_model(const gguf::File& file, ThreadTeam& team);

// The same in parts, for models larger than memory: everything but embedding, head and the linear
// layers' weights; then those of one layer.
Result<std::unique_ptr<Model>> load_frame(const gguf::File& file);
Status load_layer(const gguf::File& file, ThreadTeam& team, std::size_t layer, Model& model);
Status load_embedding(const gguf::File& file, Model& model);

}  // namespace trimpot
