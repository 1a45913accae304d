// A tuned model as a copy of its base with other numbers.
#include <cstring>
#include <unordered_map>

#include "format/ggml_blocks.h"
#include "io/gguf/patch.h"
#include "model/stored.h"
#include "tune/adapter.h"

namespace trimpot {
namespace {

enum class FilePart { kBlocks, kDense, kScales, kZeros, kOffsets, kWeak };

struct TensorPart {
  const Linear* linear;
  FilePart part;
};
using TensorParts = std::unordered_map<std::string, TensorPart>;  // by tensor name

std::optional<ElementType> dense_type(const Matrix& matrix) {
  switch (matrix.view().storage) {
    case Storage::kF32:
      return ElementType::kF32;
    case Storage::kF16:
      return ElementType::kF16;
    case Storage::kBF16:
      return ElementType::kBF16;
    default:
      return std::nullopt;
  }
}

bool same(std::span<const f16> a, std::span<const f16> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// Whether the base's tensors of a layer hold what the model has; adds those that may differ.
Status add_targets(const gguf::File& base, const Model& model, std::size_t index,
                   TensorParts& targets) {
  const Linear& linear = model.linear(index);
  const Matrix& matrix = linear.weight;
  const std::string name = linear_name(index);
  const auto add = [&](const char* suffix, FilePart part, bool wanted) {
    if (wanted) targets[name + suffix] = {&linear, part};
    return wanted == (base.find_tensor(name + suffix) != nullptr);
  };
  if (linear.low_rank)
    return fail(
        "{}: a low-rank path has no place beside these weights; write an adapter "
        "(.safetensors), which `trimpot merge` can add to a dense model, or, with QA-LoRA, "
        "to groups with zero-points",
        name);
  if (linear.weak.rows() > 0 &&
      (base.find_tensor(name + ".weak") == nullptr || linear.weak.view().storage != Storage::kF16))
    return fail(
        "{}: this file has no weak columns, so the tuned differences have no place in it; "
        "write an adapter (.safetensors), or tune a file that `trimpot quantize --method "
        "qeft` made",
        name);
  bool fits = add(".weak", FilePart::kWeak, linear.weak.rows() > 0);
  if (const gguf::TensorInfo* weight = base.find_tensor(name + ".weight")) {
    const BlockFormat format = block_format(weight->type);
    fits = fits && (matrix.quantized() ? format.bits > 0 && matrix.view().bits == format.bits &&
                                             !matrix.has_zeros() &&
                                             matrix.has_offsets() == (format.offset_offset >= 0)
                                       : dense_type(matrix) == weight->type);
    add(".weight", matrix.quantized() ? FilePart::kBlocks : FilePart::kDense, true);
  } else if (base.find_tensor(name + ".absmax") != nullptr) {
    TRIMPOT_TRY(const Linear stored,
                read_linear(base, name, linear.rows(), linear.columns, "trimpot"));
    if (!same(stored.weight.scales(), matrix.scales()))
      return fail(
          "{}: the scales of NF4 are 8-bit codes themselves and cannot hold tuned ones; "
          "write an adapter (.safetensors)",
          name);
  } else {
    fits = add(".scales", FilePart::kScales, matrix.quantized()) && fits;
    fits = add(".zeros", FilePart::kZeros, matrix.has_zeros()) && fits;
    fits = add(".offsets", FilePart::kOffsets, matrix.has_offsets()) && fits;
  }
  if (!fits)
    return fail("{}: the tuned layer is stored in another way than in {}, which cannot hold it",
                name, base.path());
  return {};
}

// Rows of a dense matrix from a packed one, bits as they are.
void copy_dense(const Matrix& matrix, std::int64_t first, std::span<std::byte> rows) {
  const std::size_t size = matrix.view().storage == Storage::kF32 ? 4 : 2;
  const auto* from = static_cast<const std::byte*>(matrix.view().dense);
  const std::size_t columns = static_cast<std::size_t>(matrix.columns());
  for (std::size_t i = 0; i < rows.size() / size; ++i)
    std::memcpy(rows.data() + i * size,
                from + size * matrix.dense_index(first + static_cast<std::int64_t>(i / columns),
                                                 static_cast<std::int64_t>(i % columns)),
                size);
}

void copy_groups(const Matrix& matrix, std::span<const f16> from, std::int64_t first,
                 std::span<std::byte> rows) {
  const auto groups = static_cast<std::size_t>(matrix.groups());
  for (std::size_t i = 0; i < rows.size() / 2; ++i)
    std::memcpy(rows.data() + i * 2,
                &from[matrix.scale_index(first + static_cast<std::int64_t>(i / groups),
                                         static_cast<std::int64_t>(i % groups))],
                2);
}

void copy_blocks(const Matrix& matrix, ElementType type, std::int64_t first,
                 std::span<std::byte> rows) {
  const BlockFormat format = block_format(type);
  const auto bytes = static_cast<std::size_t>(format.bytes);
  const auto groups = static_cast<std::size_t>(matrix.groups());
  for (std::size_t i = 0; i < rows.size() / bytes; ++i) {
    const std::size_t index = matrix.scale_index(first + static_cast<std::int64_t>(i / groups),
                                                 static_cast<std::int64_t>(i % groups));
    std::byte* block = rows.data() + i * bytes;
    std::memcpy(block + format.scale_offset, &matrix.scales()[index], 2);
    if (format.offset_offset >= 0)
      std::memcpy(block + format.offset_offset, &matrix.offsets()[index], 2);
  }
}

}  // namespace

Status export_gguf(const gguf::File& base, const Model& model, const std::string& out_path) {
  TensorParts targets;
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    TRIMPOT_TRY_VOID(add_targets(base, model, index, targets));
  const auto wants = [&](const gguf::TensorInfo& tensor) { return targets.contains(tensor.name); };
  const auto patch = [&](const gguf::TensorInfo& tensor, std::span<std::byte> rows,
                         std::uint64_t first_row) -> Status {
    const TensorPart& target = targets.at(tensor.name);
    const Matrix& matrix = target.linear->weight;
    const auto first = static_cast<std::int64_t>(first_row);
    switch (target.part) {
      case FilePart::kBlocks:
        copy_blocks(matrix, tensor.type, first, rows);
        break;
      case FilePart::kDense:
        copy_dense(matrix, first, rows);
        break;
      case FilePart::kScales:
        copy_groups(matrix, matrix.scales(), first, rows);
        break;
      case FilePart::kZeros:
        copy_groups(matrix, matrix.zeros(), first, rows);
        break;
      case FilePart::kOffsets:
        copy_groups(matrix, matrix.offsets(), first, rows);
        break;
      case FilePart::kWeak:
        copy_dense(target.linear->weak, first, rows);
        break;
    }
    return {};
  };
  return gguf::write_patched_copy(base, out_path, patch, wants);
}

}  // namespace trimpot
