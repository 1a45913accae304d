#include "tune/tunable.h"

#include <algorithm>

#include "format/ggml_blocks.h"
#include "model/config.h"
#include "model/stored.h"

namespace trimpot {
namespace {

std::int64_t signed_size(std::uint64_t value) { return static_cast<std::int64_t>(value); }
std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }
std::int64_t padded(std::int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

bool is_among(const std::vector<std::string>& modules, const std::string& module) {
  return modules.empty() || std::find(modules.begin(), modules.end(), module) != modules.end();
}

// A matrix of f32 values that learns, [rows, columns].
void add_dense(std::int64_t rows, std::int64_t columns, TuningSize& sum) {
  sum.trainable += size(rows * columns);
  sum.padded += size(padded(rows) * columns);
  ++sum.tensors;
  sum.adapter_bytes += size(rows * columns) * 4;
}

void add_scales(const StoredMatrix& matrix, const SizeOptions& options, TuningSize& sum) {
  const std::size_t learned =
      (options.method != "peqa-zero") + (options.method != "peqa" && matrix.has_shifts());
  if (!matrix.quantized() || learned == 0) return;
  const std::int64_t groups = options.granularity == ScaleGranularity::kRow ? 1 : matrix.groups;
  sum.trainable += learned * size(matrix.rows * groups);
  sum.padded += learned * size(padded(matrix.rows) * groups);
  sum.base_values += size(padded(matrix.rows) * matrix.groups) * (matrix.has_shifts() ? 2 : 1);
  sum.tensors += learned;
  sum.adapter_bytes += learned * size(matrix.rows * matrix.groups) * 2;
}

Status add_weak(const TunableLinear& linear, const SizeOptions& options, TuningSize& sum) {
  const StoredMatrix& matrix = linear.matrix;
  if (options.weak_columns > 0 && matrix.weak > 0)
    return fail(
        "--weak-columns: this file has {} weak columns in {} already; leave the option out "
        "to tune them",
        matrix.weak, linear.name);
  if (options.weak_columns > matrix.columns)
    return fail("--weak-columns is {}; {} has only {} columns", options.weak_columns, linear.name,
                matrix.columns);
  const std::int64_t count = std::max(options.weak_columns, matrix.weak);
  if (count == 0) return {};
  add_dense(matrix.rows, count, sum);
  if (matrix.weak > 0) sum.base_values += size(padded(matrix.rows) * count);
  ++sum.tensors;  // the columns' numbers
  sum.adapter_bytes += size(count) * 4;
  return {};
}

Status add_low_rank(const TunableLinear& linear, const SizeOptions& options, TuningSize& sum) {
  const StoredMatrix& matrix = linear.matrix;
  const std::int64_t most = std::min(matrix.rows, matrix.columns);
  if (options.rank < 1 || options.rank > most)
    return fail("--lora-r is {}; {} takes a rank from 1 to {}", options.rank, linear.name, most);
  const bool pooled = options.method == "qalora";
  if (pooled && (!matrix.quantized() || matrix.weak > 0))
    return fail(
        "{}: QA-LoRA needs a layer in groups of codes without weak columns; `trimpot "
        "quantize --method rtn --group-size 32` makes such a file",
        linear.name);
  add_dense(options.rank, pooled ? matrix.groups : matrix.columns, sum);
  add_dense(matrix.rows, options.rank, sum);
  return {};
}

Status add_linear(const TunableLinear& linear, const SizeOptions& options, TuningSize& sum) {
  if (options.method.starts_with("peqa")) {
    add_scales(linear.matrix, options, sum);
    return {};
  }
  if (options.method == "qeft") return add_weak(linear, options, sum);
  if (is_low_rank(options.method)) return add_low_rank(linear, options, sum);
  if (linear.matrix.weak > 0)
    return fail(
        "{} has weak columns, which this method would not tune with the rest; use --method "
        "qeft, or a file without weak columns",
        linear.name);
  add_dense(linear.matrix.rows, linear.matrix.columns, sum);
  return {};
}

}  // namespace

Result<StoredMatrix> stored_matrix(const gguf::File& file, const std::string& name,
                                   std::int64_t columns, const std::string& sizes_prefix) {
  StoredMatrix matrix;
  if (const gguf::TensorInfo* weak = file.find_tensor(name + ".weak"))
    matrix.weak = signed_size(weak->columns());
  const gguf::TensorInfo* codes = file.find_tensor(name + ".codes");
  const gguf::TensorInfo* tensor = codes != nullptr ? codes : file.find_tensor(name + ".weight");
  if (tensor == nullptr) return fail("{}: tensor {}.weight is missing", file.path(), name);
  matrix.type = tensor->type;
  matrix.rows = signed_size(tensor->rows());
  if (codes == nullptr) {
    const ElementTypeInfo type = element_type_info(tensor->type);
    if (!type.computable)
      return fail("{}: tensor {}: type {} cannot be computed with; use a file whose weights are {}",
                  file.path(), tensor->name, type.name, computable_type_names());
    const BlockFormat format = block_format(tensor->type);
    matrix.columns = signed_size(tensor->columns()) + matrix.weak;
    matrix.bits = format.bits;
    matrix.offsets = format.offset_offset >= 0;
    matrix.group_columns = format.bits > 0 ? kBlockElements : 0;
    matrix.groups = format.bits > 0 ? signed_size(tensor->columns()) / kBlockElements : 0;
    return matrix;
  }
  matrix.columns = columns;
  const std::int64_t robust = columns - matrix.weak;
  const gguf::TensorInfo* absmax = file.find_tensor(name + ".absmax");
  const gguf::TensorInfo* scales = file.find_tensor(name + ".scales");
  if (absmax != nullptr) {
    matrix.nf4 = true;
    matrix.bits = 4;
    matrix.groups = signed_size(absmax->columns());
    matrix.group_columns = 64;
  } else if (scales != nullptr) {
    TRIMPOT_TRY(const GroupedSizes sizes, read_grouped_sizes(file, sizes_prefix));
    matrix.bits = sizes.bits;
    matrix.groups = signed_size(scales->columns());
    matrix.group_columns = sizes.group_size > 0 ? sizes.group_size : robust;
    matrix.zeros = file.find_tensor(name + ".zeros") != nullptr;
    matrix.offsets = file.find_tensor(name + ".offsets") != nullptr;
  } else {
    return fail("{}: tensor {}.scales is missing", file.path(), name);
  }
  if (robust <= 0 || signed_size(tensor->columns()) != (robust * matrix.bits + 7) / 8)
    return fail("{}: tensor {} has {} bytes in a row; its metadata calls for {} codes of {} bits",
                file.path(), tensor->name, tensor->columns(), robust, matrix.bits);
  return matrix;
}

std::vector<TunableLinear> tunable_linears(const gguf::File& file) {
  const auto config = read_config(file);  // grouped codes do not tell their columns themselves
  std::vector<TunableLinear> linears;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    const std::size_t ending = name.ends_with(".weight") ? 7 : name.ends_with(".codes") ? 6 : 0;
    if (ending == 0 || !name.starts_with("blk.")) continue;
    const std::size_t end = name.size() - ending;
    const std::size_t first = std::min(name.find('.', 4), end - 1) + 1;
    const std::string_view suffix = name.substr(first, end - first);
    const auto kind = std::find_if(kLinearKinds.begin(), kLinearKinds.end(),
                                   [&](const LinearKind& k) { return k.gguf_suffix == suffix; });
    if (kind == kLinearKinds.end()) continue;
    const auto which = static_cast<std::size_t>(kind - kLinearKinds.begin());
    const std::string stem(name.substr(0, end));
    auto matrix =
        stored_matrix(file, stem, config ? linear_size(*config, which).columns : 0, "trimpot");
    if (matrix) linears.push_back({stem, std::string(kind->module), *matrix});
  }
  return linears;
}

Result<TuningPreset> preset_of(const std::string& method, const std::vector<TunableLinear>& linears,
                               std::int64_t weak_columns) {
  std::size_t parameters = 0;
  std::int64_t weak = weak_columns;
  for (const TunableLinear& linear : linears) {
    parameters += size(linear.matrix.rows * linear.matrix.columns);
    if (weak_columns == 0) weak = std::max(weak, linear.matrix.weak);
  }
  return preset_of(method, parameters, weak);
}

Result<SizeOptions> preset_sizes(const std::string& method,
                                 const std::vector<TunableLinear>& linears) {
  TRIMPOT_TRY(const TuningPreset preset, preset_of(method, linears, 0));
  SizeOptions options;
  options.method = method;
  options.rank = preset.rank;
  options.target_modules = preset.target_modules;
  return options;
}

Result<TuningSize> tuning_size(const std::vector<TunableLinear>& linears,
                               const SizeOptions& options) {
  TRIMPOT_TRY_VOID(check_target_modules(options.target_modules));
  TRIMPOT_TRY_VOID(check_scheme(options.scheme, 1, 1));
  if (options.weak_columns > 0 && options.method != "qeft")
    return fail("--weak-columns: method qeft tunes some, {} does not", options.method);
  TuningSize sum;
  bool any_quantized = false, any_shifts = false;
  for (const TunableLinear& linear : linears) {
    if (options.method == "qlora" && !linear.matrix.quantized())
      return fail(
          "{} is not quantized, and QLoRA tunes over quantized weights; make an NF4 file "
          "with `trimpot quantize --method nf4`, or use --method lora",
          linear.name);
    if (!is_among(options.target_modules, linear.module)) continue;
    any_quantized = any_quantized || linear.matrix.quantized();
    any_shifts = any_shifts || linear.matrix.has_shifts();
    TRIMPOT_TRY_VOID(add_linear(linear, options, sum));
  }
  if (options.method == "full" || options.method == "qat") {
    sum.tensors = 0;
    sum.adapter_bytes = 0;
  }
  const bool learns_zeros = options.method == "peqa-zero" || options.method == "peqa-both";
  if (sum.trainable > 0 && (!learns_zeros || any_shifts)) return sum;
  if (options.method == "qeft")
    return fail(
        "this model has no weak columns; `trimpot quantize --method qeft` makes a file "
        "with some, or choose them here with --weak-columns 16");
  if (options.method.starts_with("peqa") && any_quantized)
    return fail(
        "the zero-points of this file's formats are fixed and cannot be tuned; use "
        "--method peqa");
  if (options.method.starts_with("peqa"))
    return fail(
        "no linear layer is quantized, so there are no scales to tune; `trimpot quantize` "
        "makes a quantized file of it");
  return fail("there is no linear layer to tune");
}

}  // namespace trimpot
