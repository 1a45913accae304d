#include "tune/fit_sizes.h"

#include <algorithm>
#include <bit>

#include "model/stored.h"

namespace trimpot::fit {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 58;

}  // namespace

std::int64_t product(std::initializer_list<std::int64_t> factors) {
  std::int64_t result = 1;
  for (const std::int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result) || result > kMost) return kMost;
  return result;
}
std::int64_t sum(std::int64_t a, std::int64_t b) { return std::min(a + b, kMost); }

std::int64_t buffer(std::int64_t bytes) {
  constexpr std::int64_t kHuge = 2 << 20, kMapped = 128 << 10, kPage = 4096;
  if (bytes >= kMost) return kMost;
  if (bytes >= 2 * kHuge) return round_up(bytes + 64, kHuge);
  if (bytes >= kMapped) return round_up(bytes, kPage) + kPage;
  return bytes;
}

std::int64_t dense_bytes(std::int64_t rows, std::int64_t columns, std::int64_t number) {
  return buffer(product({round_up(rows, kTileRows), columns, number}));
}

std::int64_t floats(std::int64_t rows, std::int64_t columns) {
  return buffer(product({rows, columns, 4}));
}

namespace {

// A packed matrix (Matrix::pack, Matrix::pack_groups) of `columns` columns.
std::int64_t matrix_bytes(const StoredMatrix& matrix, std::int64_t columns) {
  if (!matrix.quantized())
    return dense_bytes(matrix.rows, columns, element_type_info(matrix.type).block_bytes);
  const std::int64_t tiles = divide_up(matrix.rows, kTileRows);
  const std::int64_t numbers = buffer(product({tiles, matrix.groups, kTileRows, 2}));
  return sum(buffer(product({tiles, divide_up(columns, kChunkColumns), matrix.bits * 64})),
             numbers * (matrix.has_shifts() ? 2 : 1));
}

std::int64_t linear_bytes(const RunLinear& linear) {
  std::int64_t bytes = matrix_bytes(linear.matrix, linear.codes_columns);
  const std::int64_t weak = linear.matrix.weak;
  if (weak == 0) return bytes;
  bytes = sum(bytes, dense_bytes(linear.matrix.rows, weak, linear.weak_number));
  return sum(bytes, (linear.weight_gathered ? linear.codes_columns * 4 : 0) +
                        (linear.weak_gathered ? weak * 4 : 0));
}

Result<RunLinear> read_linear_shape(const gguf::File& file, const ModelConfig& config,
                                    std::size_t index) {
  const std::string name = linear_name(index);
  const LinearSize size = linear_size(config, index % kLinearKinds.size());
  RunLinear linear;
  TRIMPOT_TRY(linear.matrix, stored_matrix(file, name, size.columns, "trimpot"));
  const std::int64_t weak = linear.matrix.weak;
  linear.codes_columns = linear.matrix.columns - weak;
  if (weak == 0) return linear;
  TRIMPOT_TRY(linear.positions, read_weak_columns(file, name, linear.matrix.columns));
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(linear.positions.size()); ++i)
    if (linear.positions[static_cast<std::size_t>(i)] != linear.codes_columns + i)
      linear.weight_gathered = linear.weak_gathered = true;
  return linear;
}

}  // namespace

Result<Shapes> read_shapes(const gguf::File& file) {
  Shapes shapes;
  TRIMPOT_TRY(shapes.config, read_config(file));
  ModelConfig& config = shapes.config;
  TRIMPOT_TRY(shapes.embedding, stored_matrix(file, "token_embd", config.hidden, "trimpot.head"));
  config.vocabulary = shapes.embedding.rows;
  if (static_cast<std::uint64_t>(config.layers) > file.tensors().size())
    return fail("{}: {}.block_count is {}, but the file has only {} tensors", file.path(),
                config.architecture, config.layers, file.tensors().size());
  if (file.find_tensor("output.weight") != nullptr || file.find_tensor("output.codes") != nullptr) {
    TRIMPOT_TRY(shapes.head, stored_matrix(file, "output", config.hidden, "trimpot.head"));
  }
  TRIMPOT_TRY(shapes.head_gathered, file.get_bool_or("trimpot.embedding_in_original_order", false));
  const std::size_t linears = static_cast<std::size_t>(config.layers) * kLinearKinds.size();
  for (std::size_t index = 0; index < linears; ++index) {
    TRIMPOT_TRY(RunLinear linear, read_linear_shape(file, config, index));
    shapes.linears.push_back(std::move(linear));
  }
  shapes.norm_values = product({2 * config.layers + 1, config.hidden});
  shapes.header_bytes = static_cast<std::int64_t>(std::min(file.data_offset(), file.file_bytes()));
  for (const gguf::TensorInfo& tensor : file.tensors())
    shapes.largest_tensor =
        std::max(shapes.largest_tensor, static_cast<std::int64_t>(tensor.bytes));
  const auto array_size = [&](std::string_view key) {
    const gguf::Value* value = file.find(key);
    return value == nullptr ? std::int64_t{0} : static_cast<std::int64_t>(value->count);
  };
  shapes.tokens = array_size("tokenizer.ggml.tokens");
  shapes.merges = array_size("tokenizer.ggml.merges");
  return shapes;
}

void prepare_linears(const SizeOptions& tuning, std::vector<RunLinear>& linears) {
  for (std::size_t index = 0; index < linears.size(); ++index) {
    if (!is_target(tuning.target_modules, index)) continue;
    RunLinear& linear = linears[index];
    StoredMatrix& matrix = linear.matrix;
    if (tuning.method == "full" && matrix.quantized()) {
      matrix.type = ElementType::kF16;
      matrix.bits = 0;
    } else if (tuning.method == "qat") {
      matrix.bits = tuning.scheme.bits;
      matrix.groups = tuning.scheme.groups(matrix.columns);
      matrix.zeros = true;
      matrix.nf4 = matrix.offsets = false;
    } else if (tuning.method == "qeft" && tuning.weak_columns > 0) {
      matrix.weak = tuning.weak_columns;
      linear.weak_number = 4;
      linear.weak_gathered = true;
    }
  }
}

std::int64_t form_bytes(const Form& form, std::int64_t rows, bool tiled) {
  std::int64_t bytes = form.gathered > 0 ? floats(rows, form.gathered) : 0;
  if (form.rounded == 0) return bytes;
  const std::int64_t blocks = divide_up(form.rounded, kChunkColumns);
  bytes = sum(bytes, buffer(product({rows, blocks, kChunkColumns})));
  const std::int64_t halves =
      rounded_stride(round_up(form.rounded, 2) + 2 * round_up(form.weak, 2));
  if (tiled) bytes = sum(bytes, buffer(product({rows, halves, 2})));
  return sum(bytes, 3 * buffer(product({rows, blocks, 4})));
}

namespace {

// The forms that `count` layers from `first` on want of their common input. Forms are kept from
// layer to layer of the model, each as large as it ever was.
void add_forms(const std::vector<RunLinear>& linears, std::size_t first, std::size_t count,
               Precision precision, std::vector<Form>& kept) {
  struct Wanted {
    std::size_t order;  // the layer whose order of columns it is; npos: none is gathered
    std::int64_t columns;
    Form form;
  };
  constexpr std::size_t kInOrder = static_cast<std::size_t>(-1);
  std::vector<Wanted> wanted;
  const auto form_of = [&](std::size_t order, std::int64_t columns) -> Form& {
    for (Wanted& each : wanted)
      if (each.order == order && each.columns == columns) return each.form;
    wanted.push_back({order, columns, {}});
    return wanted.back().form;
  };
  for (std::size_t index = first; index < first + count; ++index) {
    const RunLinear& linear = linears[index];
    // load_model() lets layers share the orders of the first one.
    const bool shared = !linear.positions.empty() && linear.positions == linears[first].positions;
    const std::size_t order = shared ? first : index;
    Form& form = form_of(linear.weight_gathered ? order : kInOrder, linear.codes_columns);
    if (linear.weight_gathered) form.gathered = linear.codes_columns;
    if (precision == Precision::kDefault && linear.matrix.quantized())
      form.rounded = linear.codes_columns;
    if (linear.matrix.weak > 0 && !linear.weight_gathered && !linear.weak_gathered)
      form.weak = linear.matrix.weak;
    if (linear.weak_gathered) form_of(order, linear.matrix.weak).gathered = linear.matrix.weak;
  }
  if (kept.size() < wanted.size()) kept.resize(wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    kept[i].gathered = std::max(kept[i].gathered, wanted[i].form.gathered);
    kept[i].rounded = std::max(kept[i].rounded, wanted[i].form.rounded);
    kept[i].weak = std::max(kept[i].weak, wanted[i].form.weak);
  }
}

// All forms of a layer's four inputs for so many rows.
std::int64_t forms_bytes(const std::vector<RunLinear>& linears, Precision precision,
                         std::int64_t rows, bool tiled) {
  constexpr std::pair<std::size_t, std::size_t> kInputs[] = {
      {kQ, 3}, {kO, 1}, {kGate, 2}, {kDown, 1}};
  std::int64_t bytes = 0;
  for (const auto& [first, count] : kInputs) {
    std::vector<Form> forms;
    for (std::size_t layer = 0; layer < linears.size(); layer += kLinearKinds.size())
      add_forms(linears, layer + first, count, precision, forms);
    for (const Form& form : forms) bytes = sum(bytes, form_bytes(form, rows, tiled));
  }
  return bytes;
}

}  // namespace

std::int64_t forward_bytes(const ModelConfig& c, const std::vector<RunLinear>& linears,
                           Precision precision, std::int64_t rows, bool tiled) {
  const std::int64_t q = c.attention.q_width(), kv = c.attention.kv_width();
  std::int64_t bytes = forms_bytes(linears, precision, rows, tiled);
  for (const std::int64_t columns :
       {c.hidden, q, kv, kv, q, c.attention.heads, c.hidden, c.hidden, c.feed_forward,
        c.feed_forward, c.feed_forward, c.rope_dims, c.rope_dims})
    bytes = sum(bytes, floats(rows, columns));
  return bytes;
}

std::int64_t weight_bytes(const Shapes& shapes, const std::vector<RunLinear>& linears) {
  std::int64_t bytes = matrix_bytes(shapes.embedding, shapes.embedding.columns);
  if (shapes.head) bytes = sum(bytes, matrix_bytes(*shapes.head, shapes.head->columns));
  for (const RunLinear& linear : linears) bytes = sum(bytes, linear_bytes(linear));
  return sum(bytes, product({shapes.norm_values, 4}));
}

std::int64_t tokenizer_bytes(const Shapes& shapes) {
  const std::int64_t slots = std::int64_t{1} << std::bit_width(static_cast<std::uint64_t>(
                                 std::max<std::int64_t>(1, 2 * shapes.merges - 1)));
  return sum(shapes.tokens * (48 + 8 + 2 * 8 + 16 + 16 + 2) + shapes.merges * 16 + slots * 16,
             shapes.header_bytes);
}

}  // namespace trimpot::fit
