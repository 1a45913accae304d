#include "tune/adapter.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "format/ggml_blocks.h"
#include "io/printable.h"
#include "io/safetensors/safetensors.h"
#include "tune/adapter_parts.h"

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

// Whether a GGUF tensor is `suffix` of one of the linear layers: blk.<n>.<module><suffix>.
bool is_linear(std::string_view name, std::string_view suffix) {
  if (!name.starts_with("blk.") || !name.ends_with(suffix)) return false;
  const std::size_t dot = name.find('.', 4);
  if (dot == std::string_view::npos || dot + 1 + suffix.size() > name.size()) return false;
  const std::string_view module = name.substr(dot + 1, name.size() - dot - 1 - suffix.size());
  return std::any_of(kLinearKinds.begin(), kLinearKinds.end(),
                     [&](const LinearKind& kind) { return kind.gguf_suffix == module; });
}

// Whether every byte of a tensor of our own files says what the codes are and where they belong.
bool is_codes(std::string_view name) {
  if (name == "residual_order" || (name.starts_with("blk.") && name.ends_with(".ffn_order")))
    return true;
  for (const char* suffix :
       {".codes", ".weak_columns", ".absmax", ".absmax_scales", ".absmax_offset"})
    if (is_linear(name, suffix)) return true;
  return false;
}

std::vector<const gguf::TensorInfo*> sorted_tensors(const gguf::File& file) {
  std::vector<const gguf::TensorInfo*> tensors;
  for (const gguf::TensorInfo& tensor : file.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(),
            [](const auto* a, const auto* b) { return a->name < b->name; });
  return tensors;
}

// The adapter's tensors into its layers.
class AdapterReader {
  using Info = safetensors::TensorInfo;

 public:
  AdapterReader(const safetensors::File& file, const Model& model, Adapter& adapter)
      : file_(file), model_(model), adapter_(adapter) {
    for (std::size_t i = 0; i < model.linear_count(); ++i) index_[linear_tensor_name(i)] = i;
    adapter_.layers.resize(model.linear_count());
  }

  // Tensors are copied by the team, each to a place of its own.
  Status read_all(ThreadTeam* team) {
    const std::vector<Info>& tensors = file_.tensors();
    TRIMPOT_TRY_VOID(run_parts(
        team, tensors.size(), [&](std::size_t i) { return read(tensors[i]); },
        [&](std::size_t i) { return tensors[i].name; }));
    for (std::size_t index = 0; index < adapter_.layers.size(); ++index) {
      AdapterPart& part = adapter_.layers[index];
      if (part.weak_columns.empty() != part.weak.empty() ||
          part.lora_a.empty() != part.lora_b.empty())
        return fail("{}: {} has {} without {}", file_.path(), linear_tensor_name(index),
                    !part.weak.empty()           ? ".weak"
                    : !part.weak_columns.empty() ? ".weak_columns"
                    : !part.lora_a.empty()       ? ".lora_a"
                                                 : ".lora_b",
                    !part.weak.empty()           ? ".weak_columns"
                    : !part.weak_columns.empty() ? ".weak"
                    : !part.lora_a.empty()       ? ".lora_b"
                                                 : ".lora_a");
      part.rank = static_cast<std::int64_t>(part.lora_b.size()) / model_.linear(index).rows();
    }
    return {};
  }

 private:
  Status read(const Info& tensor) {
    const std::size_t dot = tensor.name.rfind('.');
    const std::string kind = dot == std::string::npos ? "" : tensor.name.substr(dot + 1);
    const auto found = index_.find(tensor.name.substr(0, dot));
    if (found != index_.end()) {
      const Linear& linear = model_.linear(found->second);
      AdapterPart& part = adapter_.layers[found->second];
      if (kind == "scale") return read_groups(tensor, linear.weight, true, part.scale);
      if (kind == "zero")
        return read_groups(tensor, linear.weight, linear.weight.has_shifts(), part.zero);
      if (kind == "weak") return read_floats(tensor, linear.rows(), 0, part.weak);
      if (kind == "weak_columns") return read_channels(tensor, linear, part.weak_columns);
      if (kind == "lora_a") {
        if (adapter_.pooled && (!linear.weight.quantized() || linear.weak.rows() > 0))
          return fail("{}: tensor {} sees sums over groups of codes, and the base has none there",
                      file_.path(), tensor.name);
        return read_floats(tensor, 0, adapter_.pooled ? linear.weight.groups() : linear.columns,
                           part.lora_a);
      }
      if (kind == "lora_b") return read_floats(tensor, linear.rows(), 0, part.lora_b);
    }
    return fail("{}: tensor {} belongs to no part of this model that can be tuned", file_.path(),
                printable(tensor.name));
  }

  Status read_groups(const Info& tensor, const Matrix& matrix, bool may, std::vector<f16>& out) {
    if (!matrix.quantized() || !may ||
        !fits(tensor, "F16", static_cast<std::uint64_t>(matrix.rows()),
              static_cast<std::uint64_t>(matrix.groups())))
      return fail("{}: tensor {} does not fit the base, which has {} rows of {} groups{}",
                  file_.path(), tensor.name, matrix.rows(), matrix.groups(),
                  may ? "" : " and fixed zero-points");
    copy(tensor, out);
    return {};
  }

  // A matrix of which rows or columns are given, and the other one (0) is k or the rank: the same
  // in both tensors of a layer.
  Status read_floats(const Info& tensor, std::int64_t rows, std::int64_t columns,
                     std::vector<float>& out) {
    const auto want_rows = static_cast<std::uint64_t>(rows);
    const auto want_columns = static_cast<std::uint64_t>(columns);
    const bool is_matrix = tensor.shape.size() == 2;
    const std::uint64_t free = !is_matrix ? 0 : rows == 0 ? tensor.shape[0] : tensor.shape[1];
    if (free == 0 || free > (1u << 24) ||
        !fits(tensor, "F32", rows == 0 ? free : want_rows, rows == 0 ? want_columns : free))
      return fail("{}: tensor {} does not fit the base; F32 [{}, {}] was expected", file_.path(),
                  tensor.name, rows == 0 ? "rank" : fmt::to_string(rows),
                  columns == 0 ? "k or rank" : fmt::to_string(columns));
    copy(tensor, out);
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!std::isfinite(out[i]))
        return fail("{}: tensor {}, element {}: not a finite number", file_.path(), tensor.name, i);
    const std::string_view name = tensor.name;
    const std::string other_name =
        std::string(name.substr(0, name.rfind('.'))) + (name.ends_with(".weak") ? ".weak_columns"
                                                        : rows == 0             ? ".lora_b"
                                                                                : ".lora_a");
    const Info* other = file_.find(other_name);
    if (other != nullptr &&
        (other->shape.empty() || free != (rows == 0 ? other->shape.back() : other->shape.front())))
      return fail("{}: tensors {} and {} do not fit together", file_.path(), name, other_name);
    return {};
  }

  Status read_channels(const Info& tensor, const Linear& linear, std::vector<std::int32_t>& out) {
    if (tensor.dtype != "I32" || tensor.shape.size() != 1 || tensor.shape[0] == 0)
      return fail("{}: tensor {} is not a list of channels", file_.path(), tensor.name);
    copy(tensor, out);
    std::vector<bool> seen(static_cast<std::size_t>(linear.columns));
    for (const std::int32_t channel : out) {
      if (channel < 0 || channel >= linear.columns || seen[static_cast<std::size_t>(channel)])
        return fail("{}: tensor {} names channel {} twice or outside 0 to {}", file_.path(),
                    tensor.name, channel, linear.columns - 1);
      seen[static_cast<std::size_t>(channel)] = true;
    }
    return {};
  }

  static bool fits(const Info& tensor, std::string_view dtype, std::uint64_t rows,
                   std::uint64_t columns) {
    return tensor.dtype == dtype && tensor.shape == std::vector<std::uint64_t>{rows, columns};
  }
  template <typename T>
  void copy(const Info& tensor, std::vector<T>& out) const {
    const std::span<const std::byte> data = file_.data(tensor);
    const auto* from = reinterpret_cast<const T*>(data.data());
    const std::size_t count = data.size() / sizeof(T);
    if (reinterpret_cast<std::uintptr_t>(from) % alignof(T) == 0)
      return out.assign(from, from + count);  // without the zeros first: 1 of 15 ms of 10 MB
    out.resize(count);
    std::memcpy(out.data(), data.data(), data.size());
  }

  const safetensors::File& file_;
  const Model& model_;
  Adapter& adapter_;
  std::unordered_map<std::string, std::size_t> index_;
};

// Whether an adapter belongs to the base; `adds`: to its weights.
Status check_base(const std::string& path, const AdapterMetadata& metadata, bool sets_scales,
                  bool adds, const AdapterBase& base) {
  const auto is = [&](const char* key, const std::string& want) {
    const auto found = metadata.find(key);
    return found != metadata.end() && found->second == want;
  };
  if (base.fingerprint.codes.empty()) {
    if (sets_scales)
      return fail(
          "{}: scales and zero-points belong to the codes that they were tuned with; only "
          "differences of columns and LoRA can be added to another model",
          path);
    return {};
  }
  if (!is("base_codes", base.fingerprint.codes))
    return fail(
        "{}: this adapter belongs to another base model; the codes of {} are not those it "
        "was tuned on",
        path, base.path);
  if (adds && !is("base_weights", base.fingerprint.weights))
    return fail(
        "{}: this adapter belongs to another base model; the weights of {} are not those "
        "it was tuned on (`trimpot merge --onto-other` adds it to another model)",
        path, base.path);
  return {};
}

}  // namespace

Fingerprint fingerprint(const gguf::File& file) {
  Hasher codes, weights;
  for (const gguf::TensorInfo* tensor : sorted_tensors(file)) {
    const std::span<const std::byte> data = file.data(*tensor);
    add_identity(weights, *tensor);
    weights.add(data.data(), data.size());
    if (is_linear(tensor->name, ".weight") && block_format(tensor->type).bits > 0) {
      add_identity(codes, *tensor);
      add_codes(codes, *tensor, data);
    } else if (is_codes(tensor->name)) {
      add_identity(codes, *tensor);
      codes.add(data.data(), data.size());
    }
    file.release(*tensor);
  }
  return {codes.hex(), weights.hex()};
}

std::size_t Adapter::bytes() const {
  std::size_t bytes = 0;
  for (const AdapterPart& part : layers)
    bytes +=
        (part.scale.size() + part.zero.size()) * sizeof(f16) +
        (part.weak.size() + part.weak_columns.size() + part.lora_a.size() + part.lora_b.size()) *
            sizeof(float);
  return bytes;
}

AdapterMetadata low_rank_metadata(const Model& model, double alpha) {
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    if (const auto& path = model.linear(index).low_rank)
      return {{"rank", fmt::to_string(path->a.rows())},
              {"alpha", fmt::to_string(alpha)},
              {"scale", fmt::to_string(path->scale)},
              {"pool", fmt::to_string(path->pool)}};
  return {};
}

Status write_adapter(const std::string& path, const Fingerprint& base, const std::string& method,
                     const std::string& options_json, const std::vector<AdapterTensor>& tensors,
                     const AdapterMetadata& more) {
  std::vector<safetensors::OutputTensor> outputs;
  for (const AdapterTensor& tensor : tensors)
    outputs.push_back({tensor.name, tensor.dtype, tensor.shape, std::span(tensor.bytes)});
  AdapterMetadata metadata = more;
  metadata["format"] = kFormat;
  metadata["version"] = "1";
  metadata["method"] = method;
  metadata["options"] = options_json;
  metadata["base_codes"] = base.codes;
  metadata["base_weights"] = base.weights;
  return safetensors::write(path, metadata, outputs);
}

Result<Adapter> read_adapter(const std::string& path, const AdapterBase& base, const Model& model,
                             ThreadTeam* team) {
  TRIMPOT_TRY(const safetensors::File file, safetensors::File::open(path));
  const auto metadata = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (metadata("format") != kFormat) return fail("{}: not an adapter made by trimpot tune", path);
  if (metadata("version") != "1")
    return fail("{}: adapter version \"{}\" is not known; a newer trimpot wrote it", path,
                metadata("version"));
  Adapter adapter;
  adapter.path = path;
  adapter.method = metadata("method");
  bool sets_scales = false, low_rank = false, adds = false;
  for (const safetensors::TensorInfo& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    sets_scales = sets_scales || name.ends_with(".scale") || name.ends_with(".zero");
    low_rank = low_rank || name.ends_with(".lora_a");
    adds = adds || low_rank || name.ends_with(".weak");
  }
  TRIMPOT_TRY_VOID(check_base(path, file.metadata(), sets_scales, adds, base));
  if (low_rank) {
    const std::string scale = metadata("scale"), pool = metadata("pool");
    const auto read =
        std::from_chars(scale.data(), scale.data() + scale.size(), adapter.low_rank_scale);
    if (read.ec != std::errc() || read.ptr != scale.data() + scale.size() ||
        !std::isfinite(adapter.low_rank_scale))
      return fail("{}: its scale is \"{}\"; a number was expected", path, scale);
    adapter.pooled = !pool.empty() && pool != "0";
    if (adapter.pooled && base.fingerprint.codes.empty())
      return fail(
          "{}: QA-LoRA belongs to the groups that it was tuned with and cannot be added to "
          "another model",
          path);
  }
  TRIMPOT_TRY_VOID(AdapterReader(file, model, adapter).read_all(team));
  return adapter;
}

}  // namespace trimpot
