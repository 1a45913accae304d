#include "cli/inspect_linears.h"

#include <algorithm>

#include "model/config.h"
#include "model/stored.h"
#include "model/weights.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

// Bytes of everything that the matrix consists of: "blk.0.attn_q.codes", ".scales" ...
std::uint64_t stored_bytes(const gguf::File& file, const std::string& name) {
  std::uint64_t bytes = 0;
  for (const gguf::TensorInfo& tensor : file.tensors())
    if (tensor.name.starts_with(name) && tensor.name.size() > name.size() &&
        tensor.name[name.size()] == '.')
      bytes += tensor.bytes;
  return bytes;
}

// Original channels of a layer's weak columns; empty where it has none or they cannot be read.
std::vector<std::int32_t> original_weak_columns(const gguf::File& file, const ModelConfig& config,
                                                std::size_t index) {
  const std::size_t kind = index % kLinearKinds.size();
  const std::int64_t columns = linear_size(config, kind).columns;
  auto weak = read_weak_columns(file, linear_name(index), columns);
  if (!weak) return {};
  ColumnOrder order;
  if (kind == kDown) {
    const std::string name = "blk." + std::to_string(index / kLinearKinds.size()) + ".ffn_order";
    order = read_order(file, name, columns).value_or(nullptr);
  } else if (kind != kO) {  // attention's output has heads, which stay where they are
    order = read_order(file, "residual_order", columns).value_or(nullptr);
  }
  if (order)
    for (std::int32_t& channel : *weak) channel = (*order)[static_cast<std::size_t>(channel)];
  std::sort(weak->begin(), weak->end());
  return *weak;
}

}  // namespace

Json describe_linears(const gguf::File& file) {
  const auto config = read_config(file);
  if (!config) return nullptr;
  std::uint64_t weights = 0, bytes = 0;
  Json weak = Json::array();
  // The layer count is the file's word: what lies beyond its tensors is not counted.
  for (std::int64_t layer = 0; layer < config->layers; ++layer) {
    const std::size_t first = static_cast<std::size_t>(layer) * kLinearKinds.size();
    if (stored_bytes(file, linear_name(first)) == 0) break;
    for (std::size_t kind = 0; kind < kLinearKinds.size(); ++kind) {
      const LinearSize size = linear_size(*config, kind);
      weights += static_cast<std::uint64_t>(size.rows) * static_cast<std::uint64_t>(size.columns);
      bytes += stored_bytes(file, linear_name(first + kind));
      if (kind != kQ && kind != kO && kind != kGate && kind != kDown) continue;
      const auto channels = original_weak_columns(file, *config, first + kind);
      if (!channels.empty())
        weak.push_back(
            {{"layer", layer}, {"tensor", kLinearKinds[kind].gguf_suffix}, {"channels", channels}});
    }
  }
  if (weights == 0) return nullptr;
  return {{"weights", weights},
          {"bytes", bytes},
          {"bits_per_weight", 8.0 * static_cast<double>(bytes) / static_cast<double>(weights)},
          {"weak_columns", std::move(weak)}};
}

}  // namespace trimpot::cli
