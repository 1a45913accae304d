#include "model/stored.h"

#include <algorithm>
#include <cstring>

#include "format/nf4.h"

namespace trimpot {
namespace {

template <typename T>
std::vector<T> elements(const gguf::File& file, const gguf::TensorInfo& tensor) {
  const std::span<const std::byte> data = file.data(tensor);
  std::vector<T> values(data.size() / sizeof(T));
  std::memcpy(values.data(), data.data(), values.size() * sizeof(T));
  return values;
}

Result<const gguf::TensorInfo*> find_typed(const gguf::File& file, const std::string& name,
                                           ElementType type, std::int64_t rows,
                                           std::int64_t columns) {
  TRIMPOT_TRY(const gguf::TensorInfo* info, find_shaped(file, name, rows, columns));
  if (info->type != type)
    return fail("{}: tensor {} is of type {}; {} was expected", file.path(), name,
                element_type_info(info->type).name, element_type_info(type).name);
  return info;
}

bool is_rotated(const std::string& name) {
  return name.ends_with(".attn_q") || name.ends_with(".attn_k");
}

Result<Matrix> read_nf4(const gguf::File& file, const std::string& name, std::int64_t rows,
                        std::int64_t columns) {
  Nf4Codes codes;
  codes.rows = rows;
  codes.columns = columns;
  const std::int64_t blocks = rows * codes.row_blocks();
  TRIMPOT_TRY(const gguf::TensorInfo* packed,
              find_typed(file, name + ".codes", ElementType::kI8, rows, (columns + 1) / 2));
  TRIMPOT_TRY(const gguf::TensorInfo* absmax,
              find_typed(file, name + ".absmax", ElementType::kI8, rows, codes.row_blocks()));
  TRIMPOT_TRY(
      const gguf::TensorInfo* scales,
      find_typed(file, name + ".absmax_scales", ElementType::kF32, 1, (blocks + 255) / 256));
  TRIMPOT_TRY(const gguf::TensorInfo* offset,
              find_typed(file, name + ".absmax_offset", ElementType::kF32, 1, 1));
  codes.codes = elements<std::uint8_t>(file, *packed);
  codes.absmax_codes = elements<std::uint8_t>(file, *absmax);
  codes.absmax_scales = elements<float>(file, *scales);
  codes.offset = elements<float>(file, *offset)[0];
  if (is_rotated(name)) {
    TRIMPOT_TRY(const ModelConfig config, read_config(file));
    codes.row_places = nf4_row_places(config, name);
  }
  file.release(*packed);
  auto matrix = Matrix::pack_groups(nf4_grouped(std::move(codes)).view());
  if (!matrix) return fail("{}: {}: {}", file.path(), name, matrix.error().message);
  return matrix;
}

Result<Matrix> read_grouped(const gguf::File& file, const std::string& name, std::int64_t rows,
                            std::int64_t columns, const GroupedSizes& sizes) {
  GroupedView view;
  view.bits = sizes.bits;
  view.rows = rows;
  view.columns = columns;
  view.group_size = sizes.group_size == 0 ? columns : sizes.group_size;
  TRIMPOT_TRY(const gguf::TensorInfo* codes,
              find_typed(file, name + ".codes", ElementType::kI8, rows, view.row_bytes()));
  const auto halves = [&](const char* suffix) -> Result<std::vector<f16>> {
    TRIMPOT_TRY(const gguf::TensorInfo* info,
                find_typed(file, name + suffix, ElementType::kF16, rows, view.groups()));
    return elements<f16>(file, *info);
  };
  TRIMPOT_TRY(const std::vector<f16> scales, halves(".scales"));
  std::vector<f16> zeros, offsets;
  if (file.find_tensor(name + ".zeros") != nullptr) {
    TRIMPOT_TRY(zeros, halves(".zeros"));
  } else if (file.find_tensor(name + ".offsets") != nullptr) {
    TRIMPOT_TRY(offsets, halves(".offsets"));
  } else {
    view.zero_point = 1 << (sizes.bits - 1);
  }
  const std::span<const std::byte> bytes = file.data(*codes);
  view.codes = {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
  view.scales = scales;
  view.zeros = zeros;
  view.offsets = offsets;
  auto packed = Matrix::pack_groups(view);
  file.release(*codes);
  if (!packed) return fail("{}: {}: {}", file.path(), name, packed.error().message);
  return packed;
}

Result<Matrix> read_weak(const gguf::File& file, const std::string& name, std::int64_t rows,
                         std::int64_t count) {
  TRIMPOT_TRY(const gguf::TensorInfo* info, find_typed(file, name, ElementType::kF16, rows, count));
  auto packed = Matrix::pack(ElementType::kF16, rows, count, file.data(*info));
  if (!packed) return fail("{}: tensor {}: {}", file.path(), name, packed.error().message);
  file.release(*info);
  return packed;
}

// Channels without the weak ones, ascending.
std::vector<std::int32_t> other_columns(const std::vector<std::int32_t>& weak,
                                        std::int64_t columns) {
  std::vector<bool> is_weak(static_cast<std::size_t>(columns));
  for (const std::int32_t column : weak) is_weak[static_cast<std::size_t>(column)] = true;
  std::vector<std::int32_t> others;
  for (std::int32_t column = 0; column < columns; ++column)
    if (!is_weak[static_cast<std::size_t>(column)]) others.push_back(column);
  return others;
}

}  // namespace

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

Result<bool> is_own_file(const gguf::File& file) {
  TRIMPOT_TRY(const std::string name, file.get_string("general.architecture"));
  return name == "trimpot";
}

Result<GroupedSizes> read_grouped_sizes(const gguf::File& file, const std::string& prefix) {
  TRIMPOT_TRY(const std::uint64_t bits, file.get_uint(prefix + ".bits"));
  TRIMPOT_TRY(const std::uint64_t group_size, file.get_uint(prefix + ".group_size"));
  if (bits != 3 && bits != 4 && bits != 8)
    return fail("{}: {}.bits is {}; 3, 4 or 8 was expected", file.path(), prefix, bits);
  if (group_size % 32 != 0 || group_size > (1u << 24))
    return fail(
        "{}: {}.group_size is {}; a multiple of 32, or 0 for one group per row, was "
        "expected",
        file.path(), prefix, group_size);
  return GroupedSizes{static_cast<int>(bits), static_cast<std::int64_t>(group_size)};
}

Result<std::vector<std::int32_t>> read_weak_columns(const gguf::File& file,
                                                    const std::string& linear,
                                                    std::int64_t columns) {
  const std::string name = linear + ".weak_columns";
  const gguf::TensorInfo* info = file.find_tensor(name);
  if (info == nullptr) return std::vector<std::int32_t>();
  if (info->type != ElementType::kI32 || info->rows() != 1 ||
      static_cast<std::int64_t>(info->columns()) >= columns)
    return fail("{}: tensor {} is not a list of fewer than {} columns", file.path(), name, columns);
  std::vector<std::int32_t> weak = elements<std::int32_t>(file, *info);
  std::vector<bool> seen(static_cast<std::size_t>(columns));
  for (const std::int32_t column : weak) {
    if (column < 0 || column >= columns || seen[static_cast<std::size_t>(column)])
      return fail("{}: tensor {} names column {} twice or outside 0 to {}", file.path(), name,
                  column, columns - 1);
    seen[static_cast<std::size_t>(column)] = true;
  }
  return weak;
}

std::vector<std::int32_t> nf4_row_places(const ModelConfig& config, const std::string& name) {
  if (!is_rotated(name)) return {};
  const AttentionShape& shape = config.attention;
  const std::int64_t size = shape.head_dim;
  std::vector<std::int32_t> places;
  for (std::int64_t row = 0; row < (name.ends_with("q") ? shape.heads : shape.kv_heads) * size;
       ++row) {
    const std::int64_t in_head = row % size;
    places.push_back(
        static_cast<std::int32_t>(row - in_head + in_head % 2 * (size / 2) + in_head / 2));
  }
  return places;
}

void add_stored_names(const gguf::File& file, const std::string& name, bool weak,
                      std::unordered_set<std::string>& names) {
  const auto has = [&](const char* suffix) { return file.find_tensor(name + suffix) != nullptr; };
  if (!has(".codes")) {
    names.insert(name + ".weight");
  } else if (has(".absmax")) {
    for (const char* suffix : {".codes", ".absmax", ".absmax_scales", ".absmax_offset"})
      names.insert(name + suffix);
  } else {
    for (const char* suffix : {".codes", ".scales", has(".zeros") ? ".zeros" : ".offsets"})
      names.insert(name + suffix);
  }
  if (weak && has(".weak_columns"))
    for (const char* suffix : {".weak", ".weak_columns"}) names.insert(name + suffix);
}

Result<Matrix> read_matrix(const gguf::File& file, const std::string& name, std::int64_t rows,
                           std::int64_t columns, const std::string& sizes_prefix) {
  if (file.find_tensor(name + ".codes") == nullptr) {
    TRIMPOT_TRY(const gguf::TensorInfo* info, find_shaped(file, name + ".weight", rows, columns));
    auto packed = Matrix::pack(info->type, rows, columns, file.data(*info));
    if (!packed) return fail("{}: tensor {}: {}", file.path(), info->name, packed.error().message);
    file.release(*info);
    return packed;
  }
  if (file.find_tensor(name + ".absmax") != nullptr) return read_nf4(file, name, rows, columns);
  TRIMPOT_TRY(const GroupedSizes sizes, read_grouped_sizes(file, sizes_prefix));
  return read_grouped(file, name, rows, columns, sizes);
}

Result<Linear> read_linear(const gguf::File& file, const std::string& name, std::int64_t rows,
                           std::int64_t columns, const std::string& sizes_prefix) {
  Linear linear;
  linear.columns = columns;
  TRIMPOT_TRY(const std::vector<std::int32_t> weak, read_weak_columns(file, name, columns));
  const auto count = static_cast<std::int64_t>(weak.size());
  TRIMPOT_TRY(linear.weight, read_matrix(file, name, rows, columns - count, sizes_prefix));
  if (count == 0) return linear;
  TRIMPOT_TRY(linear.weak, read_weak(file, name + ".weak", rows, count));
  bool last = true;  // nothing to gather where the weak columns are the last ones
  for (std::int64_t i = 0; i < count; ++i)
    last = last && weak[static_cast<std::size_t>(i)] == columns - count + i;
  if (last) return linear;
  linear.weight_columns =
      std::make_shared<const std::vector<std::int32_t>>(other_columns(weak, columns));
  linear.weak_columns = std::make_shared<const std::vector<std::int32_t>>(weak);
  return linear;
}

Result<ColumnOrder> read_order(const gguf::File& file, const std::string& name,
                               std::int64_t count) {
  if (file.find_tensor(name) == nullptr) return ColumnOrder();
  TRIMPOT_TRY(const gguf::TensorInfo* info, find_typed(file, name, ElementType::kI32, 1, count));
  std::vector<std::int32_t> order = elements<std::int32_t>(file, *info);
  std::vector<bool> seen(order.size());
  for (const std::int32_t channel : order) {
    if (channel < 0 || channel >= count || seen[static_cast<std::size_t>(channel)])
      return fail("{}: tensor {} is not a permutation of {} channels", file.path(), name, count);
    seen[static_cast<std::size_t>(channel)] = true;
  }
  return std::make_shared<const std::vector<std::int32_t>>(std::move(order));
}

ColumnOrder inverse_order(const ColumnOrder& order) {
  if (!order) return nullptr;
  std::vector<std::int32_t> inverse(order->size());
  for (std::size_t i = 0; i < order->size(); ++i)
    inverse[static_cast<std::size_t>((*order)[i])] = static_cast<std::int32_t>(i);
  return std::make_shared<const std::vector<std::int32_t>>(std::move(inverse));
}

}  // namespace trimpot
