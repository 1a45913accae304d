#include "model/save.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/ggml_blocks.h"
#include "model/stored.h"

namespace trimpot {
namespace {

std::uint64_t size(std::int64_t value) { return static_cast<std::uint64_t>(value); }

template <typename T>
Status write_whole(gguf::StreamWriter& out, const std::string& name, const std::vector<T>& values) {
  return out.write(name, 0, std::as_bytes(std::span(values)));
}

StoredShape shape_of(const Matrix& matrix, ElementType dense_type) {
  StoredShape shape;
  shape.rows = matrix.rows();
  shape.columns = matrix.columns();
  shape.type = dense_type;
  if (!matrix.quantized()) return shape;
  shape.grouped = true;
  shape.bits = matrix.view().bits;
  shape.groups = matrix.groups();
  shape.zeros = matrix.has_zeros();
  shape.offsets = matrix.has_offsets();
  return shape;
}

Status write_matrix(gguf::StreamWriter& out, const std::string& name, const Matrix& matrix,
                    ElementType dense_type) {
  if (matrix.quantized()) return write_grouped(out, name, matrix.unpack_groups());
  std::vector<float> row(static_cast<std::size_t>(matrix.columns()));
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    matrix.dequantize_row(r, row.data());
    TRIMPOT_TRY_VOID(write_rows(out, name + ".weight", dense_type, matrix.columns(), r, row));
  }
  return {};
}

}  // namespace

void declare_stored(gguf::StreamWriter& out, const std::string& name, const StoredShape& shape) {
  const std::uint64_t rows = size(shape.rows), robust = size(shape.columns - shape.weak);
  if (!shape.grouped) {
    out.declare(name + ".weight", shape.type, {robust, rows});
  } else {
    out.declare(name + ".codes", ElementType::kI8, {(robust * size(shape.bits) + 7) / 8, rows});
    if (shape.nf4) {
      const std::uint64_t blocks = (robust + 63) / 64;
      out.declare(name + ".absmax", ElementType::kI8, {blocks, rows});
      out.declare(name + ".absmax_scales", ElementType::kF32, {(blocks * rows + 255) / 256});
      out.declare(name + ".absmax_offset", ElementType::kF32, {1});
    } else {
      out.declare(name + ".scales", ElementType::kF16, {size(shape.groups), rows});
      if (shape.zeros) out.declare(name + ".zeros", ElementType::kF16, {size(shape.groups), rows});
      if (shape.offsets)
        out.declare(name + ".offsets", ElementType::kF16, {size(shape.groups), rows});
    }
  }
  if (shape.weak == 0) return;
  out.declare(name + ".weak", ElementType::kF16, {size(shape.weak), rows});
  out.declare(name + ".weak_columns", ElementType::kI32, {size(shape.weak)});
}

Status write_grouped(gguf::StreamWriter& out, const std::string& name, const GroupedCodes& codes) {
  TRIMPOT_TRY_VOID(write_whole(out, name + ".codes", codes.codes));
  TRIMPOT_TRY_VOID(write_whole(out, name + ".scales", codes.scales));
  if (!codes.zeros.empty()) TRIMPOT_TRY_VOID(write_whole(out, name + ".zeros", codes.zeros));
  if (!codes.offsets.empty()) TRIMPOT_TRY_VOID(write_whole(out, name + ".offsets", codes.offsets));
  return {};
}

Status write_weak(gguf::StreamWriter& out, const std::string& name, std::span<const f16> weak,
                  std::span<const std::int32_t> weak_columns) {
  TRIMPOT_TRY_VOID(out.write(name + ".weak", 0, std::as_bytes(weak)));
  return out.write(name + ".weak_columns", 0, std::as_bytes(weak_columns));
}

std::vector<std::byte> encode_rows(ElementType type, std::span<const float> values) {
  std::vector<std::byte> bytes;
  if (type == ElementType::kF32) {
    const auto raw = std::as_bytes(values);
    return {raw.begin(), raw.end()};
  }
  if (type == ElementType::kQ8_0) {
    // d = max|w| / 127, as ggml rounds.
    bytes.resize(values.size() / 32 * 34);
    for (std::size_t block = 0; block < values.size() / 32; ++block) {
      float most = 0;
      for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(values[block * 32 + i]));
      const float d = most / 127.0f;
      const float inverse = d > 0 ? 1.0f / d : 0.0f;
      const f16 scale = f32_to_f16(d);
      std::memcpy(bytes.data() + block * 34, &scale, 2);
      for (std::size_t i = 0; i < 32; ++i) {
        const float code = std::nearbyint(values[block * 32 + i] * inverse);
        bytes[block * 34 + 2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(code));
      }
    }
    return bytes;
  }
  bytes.resize(values.size() * 2);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half =
        type == ElementType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &half, 2);
  }
  return bytes;
}

Status write_rows(gguf::StreamWriter& out, const std::string& tensor, ElementType type,
                  std::int64_t columns, std::int64_t first_row, std::span<const float> values) {
  const ElementTypeInfo info = element_type_info(type);
  const std::int64_t row_bytes = columns / info.block_elements * info.block_bytes;
  return out.write(tensor, size(first_row * row_bytes), encode_rows(type, values));
}

Status copy_metadata(const gguf::File& from, bool own, gguf::StreamWriter& out) {
  TRIMPOT_TRY(std::string architecture, from.get_string("general.architecture"));
  if (architecture == "trimpot") {
    TRIMPOT_TRY(architecture, from.get_string("trimpot.architecture"));
  }
  out.set_string("general.architecture", own ? "trimpot" : architecture);
  if (own) {
    out.set_uint32("trimpot.version", 1);
    out.set_string("trimpot.architecture", architecture);
  }
  for (const auto& [key, value] : from.metadata()) {
    if (key == "general.architecture" || key.starts_with("trimpot.")) continue;
    if (key == "general.file_type" || key == "general.quantization_version") continue;
    out.copy_value(key, value);
  }
  return {};
}

Status save_model(const gguf::File& base, const Model& model, const std::vector<bool>& changed,
                  ElementType dense_type, const std::string& out_path) {
  gguf::StreamWriter out;
  TRIMPOT_TRY(bool own, is_own_file(base));
  const Matrix* grouped = nullptr;
  std::vector<std::string> names;  // of the changed layers
  for (std::size_t index = 0; index < changed.size(); ++index) {
    if (!changed[index]) continue;
    const Linear& linear = model.linear(index);
    if (linear.weak.rows() > 0 || linear.low_rank)
      return fail("{}: weak columns and low-rank paths cannot be written as a plain model file",
                  linear_name(index));
    // Where rows differ in length, only the longer ones tell one group a row from a large one.
    if (linear.weight.quantized() &&
        (grouped == nullptr || linear.weight.groups() > grouped->groups()))
      grouped = &linear.weight;
    names.push_back(linear_name(index));
  }
  TRIMPOT_TRY_VOID(copy_metadata(base, own || grouped != nullptr, out));
  for (const auto& [key, value] : base.metadata())
    if (key.starts_with("trimpot.") && key != "trimpot.version" && key != "trimpot.architecture")
      out.copy_value(key, value);
  if (grouped != nullptr) {
    const MatrixView& view = grouped->view();
    out.set_uint32("trimpot.bits", static_cast<std::uint32_t>(view.bits));
    out.set_uint32("trimpot.group_size",
                   view.groups == 1 ? 0u : static_cast<std::uint32_t>(view.group_chunks * 32));
  }
  const auto is_changed = [&](const std::string& tensor) {
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return tensor.size() > name.size() && tensor.starts_with(name) && tensor[name.size()] == '.';
    });
  };
  for (const gguf::TensorInfo& tensor : base.tensors())
    if (!is_changed(tensor.name)) out.declare(tensor.name, tensor.type, tensor.shape);
  for (std::size_t index = 0; index < changed.size(); ++index)
    if (changed[index])
      declare_stored(out, linear_name(index), shape_of(model.linear(index).weight, dense_type));
  TRIMPOT_TRY_VOID(out.open(out_path));
  for (const gguf::TensorInfo& tensor : base.tensors()) {
    if (is_changed(tensor.name)) continue;
    TRIMPOT_TRY_VOID(out.write(tensor.name, 0, base.data(tensor)));
    base.release(tensor);
  }
  for (std::size_t index = 0; index < changed.size(); ++index)
    if (changed[index])
      TRIMPOT_TRY_VOID(
          write_matrix(out, linear_name(index), model.linear(index).weight, dense_type));
  return out.commit();
}

}  // namespace trimpot
