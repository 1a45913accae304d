#include "tune/adapter.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "format/ggml_blocks.h"
#include "io/gguf/patch.h"
#include "io/safetensors/safetensors.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

constexpr std::string_view kFormat = "trimpot-adapter";

// A streaming XXH3-128.
class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void add(const void* data, std::size_t size) { XXH3_128bits_update(state_, data, size); }
  void add_text(std::string_view text) {
    const std::uint64_t size = text.size();
    add(&size, sizeof size);
    add(text.data(), text.size());
  }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t* state_;
};

void add_identity(Hasher& hasher, const gguf::TensorInfo& tensor) {
  hasher.add_text(tensor.name);
  const auto type = static_cast<std::uint32_t>(tensor.type);
  hasher.add(&type, sizeof type);
  for (const std::uint64_t extent : tensor.shape) hasher.add(&extent, sizeof extent);
}

// Everything of a block but scale and offset.
void add_codes(Hasher& hasher, const gguf::TensorInfo& tensor, std::span<const std::byte> data) {
  const BlockFormat format = block_format(tensor.type);
  const int first = std::max(format.scale_offset, format.offset_offset) + 2;
  const int size = format.bytes - first;
  std::vector<std::byte> gathered(static_cast<std::size_t>(size) * 256);
  std::size_t filled = 0;
  for (std::size_t at = 0; at < data.size(); at += static_cast<std::size_t>(format.bytes)) {
    std::memcpy(gathered.data() + filled, data.data() + at + first, static_cast<std::size_t>(size));
    filled += static_cast<std::size_t>(size);
    if (filled == gathered.size()) {
      hasher.add(gathered.data(), filled);
      filled = 0;
    }
  }
  hasher.add(gathered.data(), filled);
}

// Whether a GGUF tensor is one of the linear layers: blk.<n>.<suffix>.weight.
bool is_linear(std::string_view name) {
  if (!name.starts_with("blk.") || !name.ends_with(".weight")) return false;
  const std::size_t dot = name.find('.', 4);
  const std::string_view suffix = name.substr(dot + 1, name.size() - dot - 1 - 7);
  return std::any_of(kLinearKinds.begin(), kLinearKinds.end(),
                     [&](const LinearKind& kind) { return kind.gguf_suffix == suffix; });
}

std::vector<const gguf::TensorInfo*> sorted_tensors(const gguf::File& file) {
  std::vector<const gguf::TensorInfo*> tensors;
  for (const gguf::TensorInfo& tensor : file.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(),
            [](const auto* a, const auto* b) { return a->name < b->name; });
  return tensors;
}

std::unordered_map<std::string, std::size_t> linear_index(const Model& model) {
  std::unordered_map<std::string, std::size_t> index;
  for (std::size_t i = 0; i < model.linear_count(); ++i) index[linear_tensor_name(i)] = i;
  return index;
}

}  // namespace

Fingerprint fingerprint(const gguf::File& file) {
  Hasher codes, weights;
  for (const gguf::TensorInfo* tensor : sorted_tensors(file)) {
    const std::span<const std::byte> data = file.data(*tensor);
    add_identity(weights, *tensor);
    weights.add(data.data(), data.size());
    if (is_linear(tensor->name) && block_format(tensor->type).bits > 0) {
      add_identity(codes, *tensor);
      add_codes(codes, *tensor, data);
    }
    file.release(*tensor);
  }
  return {codes.hex(), weights.hex()};
}

Status write_adapter(const std::string& path, const Fingerprint& base, const std::string& method,
                     const std::string& options_json, const std::vector<AdapterTensor>& tensors) {
  std::vector<safetensors::OutputTensor> outputs;
  for (const AdapterTensor& tensor : tensors)
    outputs.push_back({tensor.name, tensor.dtype, tensor.shape, std::span(tensor.bytes)});
  return safetensors::write(path,
                            {{"format", std::string(kFormat)},
                             {"version", "1"},
                             {"method", method},
                             {"options", options_json},
                             {"base_codes", base.codes},
                             {"base_weights", base.weights}},
                            outputs);
}

Status apply_adapter(const std::string& path, const gguf::File& base, Model& model) {
  TRIMPOT_TRY(const safetensors::File file, safetensors::File::open(path));
  const auto metadata = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (metadata("format") != kFormat) return fail("{}: not an adapter made by trimpot tune", path);
  if (metadata("version") != "1")
    return fail("{}: adapter version \"{}\" is not known; a newer trimpot wrote it", path,
                metadata("version"));
  if (metadata("base_codes") != fingerprint(base).codes)
    return fail(
        "{}: this adapter belongs to another base model; the codes of {} are not those it "
        "was tuned on",
        path, base.path());
  const auto linears = linear_index(model);
  for (const safetensors::TensorInfo& tensor : file.tensors()) {
    const std::size_t dot = tensor.name.rfind('.');
    const std::string target = tensor.name.substr(0, dot);
    const std::string kind = dot == std::string::npos ? "" : tensor.name.substr(dot + 1);
    const auto found = linears.find(target);
    if (found == linears.end() || (kind != "scale" && kind != "zero"))
      return fail("{}: tensor {} belongs to no part of this model that can be tuned", path,
                  tensor.name);
    const Matrix& matrix = model.linear(found->second).weight;
    const bool fits = tensor.dtype == "F16" && tensor.shape.size() == 2 &&
                      tensor.shape[0] == static_cast<std::uint64_t>(matrix.rows()) &&
                      tensor.shape[1] == static_cast<std::uint64_t>(matrix.groups());
    if (!fits || !matrix.quantized() || (kind == "zero" && !matrix.has_offsets()))
      return fail("{}: tensor {} does not fit the base, which has {} rows of {} groups{}", path,
                  tensor.name, matrix.rows(), matrix.groups(),
                  kind == "zero" && !matrix.has_offsets() ? " and fixed zero-points" : "");
  }
  // All is known to fit: nothing half-applied is left behind by the loop below but for values that
  // are not finite, which end the program's use of the model anyway.
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    const std::string name = linear_tensor_name(index);
    const safetensors::TensorInfo* scales = file.find(name + ".scale");
    const safetensors::TensorInfo* zeros = file.find(name + ".zero");
    if (scales == nullptr && zeros == nullptr) continue;
    Matrix& matrix = model.linear(index).weight;
    const auto value_at = [&](const safetensors::TensorInfo& tensor, std::size_t at) {
      f16 value;
      std::memcpy(&value, file.data(tensor).data() + at * sizeof value, sizeof value);
      return value;
    };
    for (std::int64_t row = 0; row < matrix.rows(); ++row)
      for (std::int64_t group = 0; group < matrix.groups(); ++group) {
        const std::size_t to = matrix.scale_index(row, group);
        const auto at = static_cast<std::size_t>(row * matrix.groups() + group);
        const GroupValues old = group_values(matrix, to);
        const f16 scale = scales != nullptr ? value_at(*scales, at) : old.scale;
        const GroupValues now = committed_group(
            old, scale, zeros != nullptr ? std::optional<f16>(value_at(*zeros, at)) : std::nullopt);
        if ((now.scale & 0x7c00u) == 0x7c00u || (now.centre & 0x7c00u) == 0x7c00u)
          return fail("{}: tensor {}, row {}, group {}: not a finite number", path, name, row,
                      group);
        set_group_values(matrix, to, now);
      }
  }
  return {};
}

Status export_gguf(const gguf::File& base, const Model& model, const std::string& out_path) {
  const auto linears = linear_index(model);
  const auto wants = [&](const gguf::TensorInfo& tensor) {
    return linears.contains(tensor.name) && block_format(tensor.type).bits > 0;
  };
  const auto patch = [&](const gguf::TensorInfo& tensor, std::span<std::byte> rows,
                         std::uint64_t first_row) -> Status {
    const Matrix& matrix = model.linear(linears.at(tensor.name)).weight;
    const BlockFormat format = block_format(tensor.type);
    const auto groups = static_cast<std::size_t>(matrix.groups());
    const std::size_t row_bytes = groups * static_cast<std::size_t>(format.bytes);
    for (std::size_t at = 0; at < rows.size(); at += static_cast<std::size_t>(format.bytes)) {
      const std::size_t index = matrix.scale_index(
          static_cast<std::int64_t>(first_row + at / row_bytes),
          static_cast<std::int64_t>(at % row_bytes / static_cast<std::size_t>(format.bytes)));
      std::memcpy(rows.data() + at + format.scale_offset, &matrix.scales()[index], 2);
      if (format.offset_offset >= 0)
        std::memcpy(rows.data() + at + format.offset_offset, &matrix.offsets()[index], 2);
    }
    return {};
  };
  return gguf::write_patched_copy(base, out_path, patch, wants);
}

}  // namespace trimpot
