#include "tune/fit.h"

#include <algorithm>
#include <bit>
#include <fstream>
#include <sstream>

#include "format/ggml_blocks.h"
#include "model/config.h"
#include "model/weights.h"

namespace trimpot {
namespace {

constexpr std::int64_t kGroupTokens = 512;  // Trainer::accumulate_gradients puts so many together
constexpr std::int64_t kLogitBytes = 12 << 20;  // TrainingPass::head
constexpr std::int64_t kMost = std::int64_t{1} << 58;

// Sizes come from a file: sums and products stop at a number that fits nowhere.
std::int64_t product(std::initializer_list<std::int64_t> factors) {
  std::int64_t result = 1;
  for (const std::int64_t factor : factors)
    if (__builtin_mul_overflow(result, factor, &result) || result > kMost) return kMost;
  return result;
}
std::int64_t sum(std::int64_t a, std::int64_t b) { return std::min(a + b, kMost); }
std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }
std::int64_t round_up(std::int64_t value, std::int64_t to) { return divide_up(value, to) * to; }

// What an AlignedBuffer of so many bytes takes: whole 2 MiB pages when it is large, whole pages and
// malloc's own one when malloc maps it.
std::int64_t buffer(std::int64_t bytes) {
  constexpr std::int64_t kHuge = 2 << 20, kMapped = 128 << 10, kPage = 4096;
  if (bytes >= kMost) return kMost;
  if (bytes >= 2 * kHuge) return round_up(bytes + 64, kHuge);
  if (bytes >= kMapped) return round_up(bytes, kPage) + kPage;
  return bytes;
}

// A packed matrix (Matrix::pack).
std::int64_t matrix_bytes(const gguf::TensorInfo& tensor) {
  const auto rows = static_cast<std::int64_t>(tensor.rows());
  const auto columns = static_cast<std::int64_t>(tensor.columns());
  const BlockFormat format = block_format(tensor.type);
  const std::int64_t tiles = divide_up(rows, kTileRows);
  if (format.bits == 0)
    return buffer(product({tiles, kTileRows, columns, element_type_info(tensor.type).block_bytes}));
  const std::int64_t chunks = divide_up(columns, kChunkColumns);
  const std::int64_t numbers = buffer(product({tiles, chunks, kTileRows, 2}));
  return sum(buffer(product({tiles, chunks, format.bits * 64})),
             numbers * (format.offset_offset >= 0 ? 2 : 1));
}

// What the estimate needs of a file.
struct Shapes {
  ModelConfig config;
  std::int64_t weight_bytes = 0;
  std::int64_t largest_columns = 0;
  std::int64_t norm_values = 0;
  std::int64_t header_bytes = 0;
  std::int64_t tokens = 0, merges = 0;  // of the tokenizer
  const gguf::File* file = nullptr;
};

Result<Shapes> read_shapes(const gguf::File& file) {
  Shapes shapes;
  shapes.file = &file;
  TRIMPOT_TRY(shapes.config, read_config(file));
  ModelConfig& config = shapes.config;
  const gguf::TensorInfo* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) return fail("{}: tensor token_embd.weight is missing", file.path());
  config.vocabulary = static_cast<std::int64_t>(embedding->rows());
  if (static_cast<std::uint64_t>(config.layers) > file.tensors().size())
    return fail("{}: {}.block_count is {}, but the file has only {} tensors", file.path(),
                config.architecture, config.layers, file.tensors().size());
  const auto add = [&](const gguf::TensorInfo& tensor) -> Status {
    const ElementTypeInfo type = element_type_info(tensor.type);
    if (!type.computable)
      return fail("{}: tensor {}: type {} cannot be computed with; use a file whose weights are {}",
                  file.path(), tensor.name, type.name, computable_type_names());
    shapes.weight_bytes = sum(shapes.weight_bytes, matrix_bytes(tensor));
    shapes.largest_columns =
        std::max(shapes.largest_columns, static_cast<std::int64_t>(tensor.columns()));
    return {};
  };
  TRIMPOT_TRY_VOID(add(*embedding));
  if (const gguf::TensorInfo* head = file.find_tensor("output.weight"))
    TRIMPOT_TRY_VOID(add(*head));
  const std::size_t linears = static_cast<std::size_t>(config.layers) * kLinearKinds.size();
  for (std::size_t index = 0; index < linears; ++index) {
    const std::string name = linear_tensor_name(index);
    const gguf::TensorInfo* tensor = file.find_tensor(name);
    if (tensor == nullptr) return fail("{}: tensor {} is missing", file.path(), name);
    TRIMPOT_TRY_VOID(add(*tensor));
  }
  shapes.norm_values = product({2 * config.layers + 1, config.hidden});
  shapes.header_bytes = static_cast<std::int64_t>(std::min(file.data_offset(), file.file_bytes()));
  const auto array_size = [&](std::string_view key) {
    const gguf::Value* value = file.find(key);
    return value == nullptr ? std::int64_t{0} : static_cast<std::int64_t>(value->count);
  };
  shapes.tokens = array_size("tokenizer.ggml.tokens");
  shapes.merges = array_size("tokenizer.ggml.merges");
  return shapes;
}

// Adds up one item after another.
class Items {
 public:
  void add(std::string name, std::int64_t bytes, std::string why) {
    items_.push_back({std::move(name), static_cast<std::size_t>(bytes), std::move(why)});
  }
  std::vector<FitItem> take() { return std::move(items_); }

 private:
  std::vector<FitItem> items_;
};

// Inputs of linear layers: floats and, on the default path, int8 codes with scale, sum and scaled
// sum per 32 columns (Activations).
std::int64_t activations(Precision precision, std::int64_t rows, std::int64_t columns) {
  std::int64_t bytes = buffer(product({rows, columns, 4}));
  if (precision == Precision::kF32) return bytes;
  const std::int64_t blocks = divide_up(columns, kChunkColumns);
  bytes = sum(bytes, buffer(product({rows, blocks, kChunkColumns})));
  return sum(bytes, 3 * buffer(product({rows, blocks, 4})));
}

std::int64_t floats(std::int64_t rows, std::int64_t columns) {
  return buffer(product({rows, columns, 4}));
}

void add_weights(const Shapes& shapes, Items& items) {
  items.add("weights", sum(shapes.weight_bytes, product({shapes.norm_values, 4})),
            "codes, scales and offsets, packed for the kernels");
}

void add_method(const TuningSize& size, const FitOptions& options, Items& items) {
  const auto padded = static_cast<std::int64_t>(size.counts.padded);
  items.add("learned values", 4 * buffer(product({padded, 4})),
            fmt::format("{} {} x 16 bytes: value, gradient, two moments", size.counts.trainable,
                        options.method == ScaleMethod::kScales  ? "scales"
                        : options.method == ScaleMethod::kZeros ? "zero-points"
                                                                : "scales and zero-points"));
  items.add("base scales", product({static_cast<std::int64_t>(size.counts.base_values), 2}),
            "the file's own scales and offsets, 2 bytes each");
}

void add_layers(const Shapes& shapes, const FitOptions& options, std::int64_t rows,
                std::int64_t forward_rows, Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t q = c.attention.q_width(), kv = c.attention.kv_width();
  const Precision precision = options.precision;
  items.add("layer inputs",
            sum(floats(product({c.layers + 1, rows}), c.hidden), floats(rows, c.hidden)),
            fmt::format("{} x {} tokens x {} x 4 bytes, kept for the backward pass", c.layers + 1,
                        rows, c.hidden));

  std::int64_t bytes = 0;  // LayerActivations and RopeTable
  for (const std::int64_t part :
       {activations(precision, forward_rows, c.hidden), floats(forward_rows, q),
        floats(forward_rows, kv), floats(forward_rows, kv), activations(precision, forward_rows, q),
        floats(forward_rows, c.attention.heads), floats(forward_rows, c.hidden),
        activations(precision, forward_rows, c.hidden), floats(forward_rows, c.feed_forward),
        floats(forward_rows, c.feed_forward), activations(precision, forward_rows, c.feed_forward),
        floats(forward_rows, c.rope_dims)})
    bytes = sum(bytes, part);
  items.add(
      "one layer, forward", bytes,
      precision == Precision::kF32 ? "its activations" : "its activations and their int8 form");

  bytes = 0;  // LayerGradients
  for (const std::int64_t part : {floats(rows, c.feed_forward), floats(rows, c.hidden),
                                  2 * floats(rows, q), 2 * floats(rows, kv)})
    bytes = sum(bytes, part);
  const auto kernels = select_kernels();
  if (precision == Precision::kDefault && (!kernels || (*kernels)->bf16_backward)) {
    // Compute::rounded: of down, o and q, gate; of k and up; of v.
    const std::int64_t widest = std::max({c.hidden, q, c.feed_forward});
    for (const std::int64_t width : {widest, std::max(kv, c.feed_forward), kv})
      bytes = sum(bytes, buffer(product({rows, width + width % 2, 2})));
  }
  items.add("one layer, backward", bytes, "gradients of its activations");
}

void add_attention(const Shapes& shapes, const FitOptions& options, std::int64_t rows,
                   Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t dim = c.attention.head_dim, kv = c.attention.kv_width();
  const std::int64_t number = options.precision == Precision::kF32 ? 4 : 2;
  const std::int64_t keys = round_up(options.max_seq_length, 16);
  std::int64_t bytes = 2 * buffer(product({std::max(rows, keys), kv, number}));
  bytes = sum(bytes, buffer(product({2, c.attention.heads, rows, dim, 4})));
  // A thread's scratch memory is as large as its largest user: attention_backward's two blocks of
  // 64 rows of scores and the values, linear_backward's panel, and on the f32 path unpacked tiles.
  std::int64_t scratch =
      std::max<std::int64_t>(96 * kTileRows * kChunkColumns, product({keys, 2 * 64 + dim}));
  if (options.precision == Precision::kF32)
    scratch = std::max(scratch, product({2 * kTileRows, round_up(shapes.largest_columns, 32)}));
  bytes = sum(bytes, product({options.threads, buffer(product({scratch, 4}))}));
  items.add("attention", bytes,
            fmt::format("keys, values and their gradients per head; scratch memory of {} thread{}",
                        options.threads, options.threads == 1 ? "" : "s"));
}

void add_head(const Shapes& shapes, const FitOptions& options, std::int64_t rows, Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t step =
      std::clamp<std::int64_t>(kLogitBytes / 4 / c.vocabulary / 12 * 12, 12, 252);
  const std::int64_t bytes =
      sum(floats(std::min(step, rows), c.vocabulary),
          sum(3 * floats(step, c.hidden), activations(options.precision, step, c.hidden)));
  items.add("head", bytes,
            fmt::format("{} x {} logits at a time", std::min(step, rows), c.vocabulary));
}

void add_rest(const Shapes& shapes, const FitOptions& options, Items& items) {
  // Per token: a node and a bucket of the hash table, its text twice, ends and views; per merge: a
  // view and a slot of 16 bytes in a table that is at most half full.
  const std::int64_t slots = std::int64_t{1} << std::bit_width(static_cast<std::uint64_t>(
                                 std::max<std::int64_t>(1, 2 * shapes.merges - 1)));
  const std::int64_t bytes =
      shapes.tokens * (48 + 8 + 2 * 8 + 16 + 16 + 2) + shapes.merges * 16 + slots * 16;
  items.add(
      "tokenizer", sum(bytes, shapes.header_bytes),
      fmt::format("{} tokens, {} merges, and the file's header", shapes.tokens, shapes.merges));
  // Tokens (4 bytes and a mark each, about 4 bytes of text), arrays that grow by doubling, and the
  // text itself while it is read.
  const std::int64_t data = options.data_bytes > 0
                                ? static_cast<std::int64_t>(std::min<std::size_t>(
                                      options.data_bytes, std::size_t{1} << 60))
                                : 1'000'000;
  items.add("examples", sum(data, data / 4 * 10),
            options.data_bytes > 0 ? "the training file's text and tokens"
                                   : "of a training file of 1 MB");
  items.add("program", 8'000'000, "code and libraries");
}

struct Estimate {
  std::vector<FitItem> items;
  std::size_t total = 0;
};

Estimate estimate(const Shapes& shapes, const FitOptions& options) {
  const TuningSize size = tuning_size(tunable_linears(*shapes.file, options.target_modules),
                                      options.method, options.granularity);
  const std::int64_t most = std::max(options.max_seq_length, kGroupTokens);
  const std::int64_t rows =
      std::min(most, product({options.max_seq_length, options.sequences_per_step}));
  Items items;
  add_weights(shapes, items);
  add_method(size, options, items);
  add_layers(shapes, options, rows, most, items);
  add_attention(shapes, options, rows, items);
  add_head(shapes, options, most, items);
  add_rest(shapes, options, items);
  Estimate result;
  result.items = items.take();
  for (const FitItem& item : result.items)
    result.total = static_cast<std::size_t>(
        sum(static_cast<std::int64_t>(result.total), static_cast<std::int64_t>(item.bytes)));
  return result;
}

struct Change {
  std::string flags;
  FitOptions options;
};

// What a user may change, in the order in which it costs the least.
std::vector<Change> possible_changes(const FitOptions& options) {
  std::vector<Change> changes;
  FitOptions scales = options;
  std::string flags;
  if (options.method == ScaleMethod::kBoth) {
    scales.method = ScaleMethod::kScales;
    flags = "--method peqa";
    changes.push_back({flags, scales});
  }
  const auto add_shorter = [&](FitOptions changed, const std::string& before) {
    while (changed.max_seq_length > 64) {
      // Below 512 tokens, several sequences would be put together again.
      changed.max_seq_length =
          std::bit_floor(static_cast<std::uint64_t>(changed.max_seq_length - 1));
      if (changed.max_seq_length < kGroupTokens) changed.sequences_per_step = 1;
      changes.push_back(
          {fmt::format(
               "{}{}--max-seq-length {}{}", before, before.empty() ? "" : " ",
               changed.max_seq_length,
               changed.sequences_per_step < options.sequences_per_step ? " --batch-size 1" : ""),
           changed});
    }
  };
  add_shorter(scales, flags);
  FitOptions rows = scales;
  if (options.granularity == ScaleGranularity::kGroup) {
    rows.granularity = ScaleGranularity::kRow;
    flags += std::string(flags.empty() ? "" : " ") + "--scale-granularity row";
    changes.push_back({flags, rows});
    add_shorter(rows, flags);
  }
  return changes;
}

}  // namespace

std::vector<TunableLinear> tunable_linears(const gguf::File& file,
                                           const std::vector<std::string>& modules) {
  std::vector<TunableLinear> linears;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const BlockFormat format = block_format(tensor.type);
    const std::string_view name = tensor.name;
    if (format.bits == 0 || !name.starts_with("blk.") || !name.ends_with(".weight")) continue;
    const std::size_t first = std::min(name.find('.', 4), name.size() - 8) + 1;
    const std::string_view suffix = name.substr(first, name.size() - 7 - first);
    const auto kind = std::find_if(kLinearKinds.begin(), kLinearKinds.end(),
                                   [&](const LinearKind& k) { return k.gguf_suffix == suffix; });
    if (kind == kLinearKinds.end()) continue;
    if (!modules.empty() &&
        std::find(modules.begin(), modules.end(), kind->module) == modules.end())
      continue;
    linears.push_back(
        {tensor.name, std::string(kind->module), static_cast<std::int64_t>(tensor.rows()),
         static_cast<std::int64_t>(tensor.columns() / kBlockElements), format.offset_offset >= 0});
  }
  return linears;
}

TuningSize tuning_size(const std::vector<TunableLinear>& linears, ScaleMethod method,
                       ScaleGranularity granularity) {
  std::vector<QuantizedShape> shapes;
  TuningSize size;
  for (const TunableLinear& linear : linears) {
    shapes.push_back({linear.rows, linear.groups, linear.has_offsets});
    const std::size_t tensors =
        (method != ScaleMethod::kZeros) + (method != ScaleMethod::kScales && linear.has_offsets);
    size.tensors += tensors;
    size.adapter_bytes += tensors * static_cast<std::size_t>(linear.rows * linear.groups) * 2;
  }
  size.counts = count_scales(shapes, method, granularity);
  return size;
}

Result<std::int64_t> sequence_length(const gguf::File& file, std::int64_t requested) {
  TRIMPOT_TRY(const ModelConfig config, read_config(file));
  if (requested == 0) return std::min<std::int64_t>(512, config.context_length);
  if (requested > config.context_length)
    return fail("{}: --max-seq-length {} exceeds the model's context of {}", file.path(), requested,
                config.context_length);
  return requested;
}

Result<FitReport> estimate_fit(const gguf::File& file, const FitOptions& options) {
  constexpr std::int64_t kMostTokens = 1 << 24, kMostThreads = 1 << 16;
  if (options.max_seq_length < 1 || options.max_seq_length > kMostTokens ||
      options.sequences_per_step < 1 || options.threads < 1 || options.threads > kMostThreads)
    return fail("sequence length {}, {} sequences, {} threads: impossible", options.max_seq_length,
                options.sequences_per_step, options.threads);
  TRIMPOT_TRY_VOID(check_target_modules(options.target_modules));
  TRIMPOT_TRY(const Shapes shapes, read_shapes(file));
  if (options.max_seq_length > shapes.config.context_length)
    return fail(
        "{}: sequences of {} tokens exceed the model's context of {}; lower "
        "--max-seq-length",
        file.path(), options.max_seq_length, shapes.config.context_length);
  const auto linears = tunable_linears(file, options.target_modules);
  if (linears.empty())
    return fail("{}: no linear layer is quantized, so there are no scales to tune", file.path());
  if (tuning_size(linears, options.method, options.granularity).tensors == 0)
    return fail(
        "{}: the zero-points of its formats are fixed and cannot be tuned; use --method "
        "peqa",
        file.path());

  Estimate now = estimate(shapes, options);
  FitReport report;
  report.items = std::move(now.items);
  report.total = now.total;
  const std::optional<std::size_t> available =
      options.available > 0 ? std::optional(options.available) : free_memory();
  report.available = available.value_or(0);
  report.fits = !available || report.total <= *available;
  if (report.fits) return report;
  std::size_t least = report.total;
  for (const Change& change : possible_changes(options)) {
    const std::size_t total = estimate(shapes, change.options).total;
    least = std::min(least, total);
    if (total > report.available) continue;
    report.advice = fmt::format("{} would need about {:.0f} MB", change.flags,
                                static_cast<double>(total) / 1e6);
    return report;
  }
  report.advice = fmt::format(
      "no option brings it below {:.0f} MB; take a smaller model or more "
      "memory",
      static_cast<double>(least) / 1e6);
  return report;
}

namespace {

std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // not there, or "max"
}

// The value of a "key 123" line, as in memory.stat.
std::uint64_t read_field(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  std::uint64_t value = 0;
  while (file >> name >> value)
    if (name == key) return value;
  return 0;
}

// What is left of one control group's limit; file pages that are not in use can be given up.
std::optional<std::uint64_t> left_in_group(const std::string& folder, bool version_2) {
  const auto limit = read_number(folder + (version_2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used =
      read_number(folder + (version_2 ? "/memory.current" : "/memory.usage_in_bytes"));
  // Version 1 writes "no limit" as nearly 2^63.
  if (!limit || !used || *limit >= std::uint64_t{1} << 60) return std::nullopt;
  const std::uint64_t idle =
      read_field(folder + "/memory.stat", version_2 ? "inactive_file" : "total_inactive_file");
  const std::uint64_t in_use = *used - std::min(idle, *used);
  return *limit - std::min(in_use, *limit);
}

}  // namespace

std::optional<std::size_t> free_memory(const std::string& root) {
  std::optional<std::size_t> free;
  const auto at_most = [&](std::size_t value) { free = std::min(free.value_or(value), value); };
  std::ifstream meminfo(root + "/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    std::istringstream fields(line);
    std::string key;
    std::uint64_t kilobytes = 0;
    if (fields >> key >> kilobytes && key == "MemAvailable:") at_most(kilobytes * 1024);
  }
  // Lines are "0::/path" (version 2) and "4:memory:/path" (version 1). Every group above has its
  // own limit; in a container the path may not be visible, but its root is.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool version_2 = line.starts_with("0::");
    const std::size_t colon = line.find(":memory:");
    if (!version_2 && colon == std::string::npos) continue;
    std::string path = line.substr(version_2 ? 3 : colon + 8);
    const std::string base = root + "/sys/fs/cgroup" + (version_2 ? "" : "/memory");
    for (;; path.resize(path.rfind('/'))) {
      if (const auto left = left_in_group(base + path, version_2)) at_most(*left);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return free;
}

}  // namespace trimpot
