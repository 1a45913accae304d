#include "tune/fit.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "model/training_pass.h"
#include "model/weights.h"
#include "tune/fit_sizes.h"

namespace trimpot {
namespace {

// Kernels::panel_rows where a step's attention gradients are products of rounded numbers; else 0.
std::int64_t panel_rows(Precision precision) {
  const auto kernels = select_kernels();
  return precision == Precision::kDefault && kernels ? (*kernels)->panel_rows : 0;
}

bool kernels_are_tiled() {
  const auto kernels = select_kernels();
  return kernels && (*kernels)->tiled;
}

using namespace fit;

constexpr std::int64_t kGroupTokens = 512;  // Trainer::accumulate_gradients puts so many together
constexpr std::int64_t kLogitBytes = 12 << 20;  // TrainingPass::head

// Adds up one item after another.
class Items {
 public:
  void add(std::string name, std::int64_t bytes, std::string why) {
    items_.push_back({std::move(name), static_cast<std::size_t>(bytes), std::move(why)});
  }
  std::int64_t sum_without(std::initializer_list<std::string_view> names) const {
    std::int64_t bytes = 0;
    for (const FitItem& item : items_)
      if (std::find(names.begin(), names.end(), item.name) == names.end())
        bytes = sum(bytes, static_cast<std::int64_t>(item.bytes));
    return bytes;
  }
  std::vector<FitItem> take() { return std::move(items_); }

 private:
  std::vector<FitItem> items_;
};

const char* values_of(const std::string& method) {
  return method == "peqa"        ? "scales"
         : method == "peqa-zero" ? "zero-points"
         : method == "peqa-both" ? "scales and zero-points"
         : method == "qeft"      ? "numbers of weak columns"
         : is_low_rank(method)   ? "numbers of low-rank pairs"
                                 : "weights";
}

// What learns, and what the method keeps and needs beside it.
void add_method(const TuningSize& size, const Shapes& shapes, const FitOptions& options,
                Items& items) {
  const auto padded = static_cast<std::int64_t>(size.padded);
  items.add("learned values", 4 * buffer(product({padded, 4})),
            fmt::format("{} {} x 16 bytes: value, gradient, two moments", size.trainable,
                        values_of(options.tuning.method)));
  if (size.base_values > 0)
    items.add("base values", product({static_cast<std::int64_t>(size.base_values), 2}),
              "the file's own numbers, 2 bytes each");
  const SizeOptions& tuning = options.tuning;
  std::int64_t pairs = 0, largest = 0;
  for (std::size_t index = 0; index < shapes.linears.size(); ++index) {
    if (!is_target(tuning.target_modules, index)) continue;
    const StoredMatrix& matrix = shapes.linears[index].matrix;
    const std::int64_t inputs = tuning.method == "qalora" ? matrix.groups : matrix.columns;
    pairs = sum(pairs,
                sum(dense_bytes(tuning.rank, inputs, 4), dense_bytes(matrix.rows, tuning.rank, 4)));
    // MatrixTuning::commit_rounded: plain rows, their codes, and the codes packed.
    largest = std::max(largest, product({matrix.rows, matrix.columns, 6}));
  }
  if (is_low_rank(tuning.method)) items.add("low-rank pairs", pairs, "A and B in f32");
  if (tuning.method == "qat") items.add("rounding", largest, "of one matrix at a time");
}

// QAT rounds the first time when the learned values are there and no activations yet; if the
// weights as they were take more than all that comes then, that is the peak.
void add_replaced(const Shapes& shapes, const FitOptions& options, Items& items) {
  if (options.tuning.method != "qat") return;
  const std::int64_t loaded = weight_bytes(shapes, shapes.linears);
  const std::int64_t later = items.sum_without({"learned values", "rounding", "teacher"});
  if (loaded > later)
    items.add("weights as loaded", loaded - later, "until they are rounded the first time");
}

void add_result(const TuningSize& size, const Shapes& shapes, const FitOptions& options,
                Items& items) {
  if (options.adapter && size.adapter_bytes > 0)
    items.add("adapter", static_cast<std::int64_t>(size.adapter_bytes), "while it is written");
  // save_model() copies tensors whole, export_gguf() piece by piece.
  if (size.adapter_bytes == 0)
    items.add("tuned file", shapes.largest_tensor, "its largest tensor, while it is written");
}

// What the low-rank path and reordered layers share (Compute::shared), for so many rows.
std::int64_t shared_bytes(const std::vector<RunLinear>& linears, const FitOptions& options,
                          std::int64_t rows) {
  const SizeOptions& tuning = options.tuning;
  std::int64_t reordered = 0, input = 0, gradient = 0;
  for (std::size_t index = 0; index < linears.size(); ++index) {
    const RunLinear& linear = linears[index];
    if (linear.weight_gathered) reordered = std::max(reordered, linear.codes_columns);
    if (linear.weak_gathered) reordered = std::max(reordered, linear.matrix.weak);
    if (!is_low_rank(tuning.method) || !is_target(tuning.target_modules, index)) continue;
    const bool pooled = tuning.method == "qalora";
    if (!pooled && !options.dropout) continue;
    input = std::max(input, linear.matrix.columns);
    gradient = std::max(gradient, pooled ? linear.matrix.groups : linear.matrix.columns);
  }
  std::int64_t bytes = 0;
  for (const std::int64_t columns :
       {reordered, input, gradient, is_low_rank(tuning.method) ? tuning.rank : 0})
    if (columns > 0) bytes = sum(bytes, floats(rows, columns));
  return bytes;
}

void add_layers(const Shapes& shapes, const std::vector<RunLinear>& linears,
                const FitOptions& options, std::int64_t rows, std::int64_t forward_rows, Kept kept,
                Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t q = c.attention.q_width(), kv = c.attention.kv_width();
  const Precision precision = options.precision;
  const std::int64_t inputs = kept.inputs ? 2 : c.layers + 1;
  items.add("layer inputs", sum(floats(product({inputs, rows}), c.hidden), floats(rows, c.hidden)),
            fmt::format("{} x {} tokens x {} x 4 bytes{}", inputs, rows, c.hidden,
                        kept.inputs ? "" : ", kept for the backward pass"));
  if (precision == Precision::kDefault) {
    const KeptWidths widths = kept_widths(c, kept);
    const std::int64_t all = product({c.layers - 1, rows});
    items.add("layers' results",
              sum(buffer(product({all, widths.halves, 2})),
                  sum(buffer(product({all, widths.bytes})), floats(all, widths.floats))),
              fmt::format("{} x {} tokens x {} bytes, kept for the backward pass", c.layers - 1,
                          rows, 2 * widths.halves + widths.bytes + 4 * widths.floats));
  }
  items.add(
      "one layer, forward", forward_bytes(c, linears, precision, forward_rows, kernels_are_tiled()),
      precision == Precision::kF32 ? "its activations" : "its activations and their int8 form");

  std::int64_t bytes = shared_bytes(linears, options, rows);
  const auto kernels = select_kernels();
  if (precision == Precision::kDefault && (!kernels || (*kernels)->rounded != nullptr)) {
    const std::int64_t widest = std::max({c.hidden, q, kv, c.feed_forward});  // Compute::rounded
    bytes = sum(bytes, sum(buffer(product({rows, rounded_stride(widest), 2})),
                           floats(rows, divide_up(widest, kRoundedBlock))));
  }
  if (bytes > 0) items.add("one layer, backward", bytes, "forms of its gradients");
}

// What TrainingPass keeps; takes_output() needs more than shapes.
Kept kept_by_pass(const SizeOptions& tuning, const std::vector<RunLinear>& linears,
                  Precision precision, const TuningSize& size, std::int64_t weights) {
  if (precision == Precision::kF32) return {};
  bool quantized = true, of_outputs = false;
  for (std::size_t index = 0; index < linears.size(); ++index) {
    const StoredMatrix& matrix = linears[index].matrix;
    quantized &= matrix.quantized();
    of_outputs |= tuning.method.starts_with("peqa") && is_target(tuning.target_modules, index) &&
                  matrix.quantized() && matrix.groups == 1 && matrix.weak == 0;
  }
  return Kept::choose(size.padded, static_cast<std::size_t>(weights), quantized, of_outputs);
}

// Keys and values of `rows` tokens.
std::int64_t cache_bytes(const ModelConfig& c, const FitOptions& options, std::int64_t rows) {
  const std::int64_t number = options.precision == Precision::kF32 ? 4 : 2;
  const std::int64_t keys = std::max(rows, round_up(options.max_seq_length, 32));
  return 2 * buffer(product({keys, c.attention.kv_width(), number}));
}

void add_attention(const Shapes& shapes, const std::vector<RunLinear>& linears,
                   const FitOptions& options, std::int64_t rows, Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t keys = round_up(options.max_seq_length, 32);
  // With tiles' bf16 the forward has a layer's keys and values in panels beside the cache.
  const bool panels = options.precision == Precision::kDefault && kernels_are_tiled();
  const std::int64_t bytes = product({panels ? 2 : 1, cache_bytes(c, options, rows)});
  // A thread's scratch memory is as large as its largest user: attention_backward's two blocks of
  // scores and, of rounded numbers, its sums and their operands, linear_backward's panel, on the
  // f32 path unpacked tiles, and a row of logits with a teacher.
  const std::int64_t dim = c.attention.head_dim, of_panels = panel_rows(options.precision);
  // Floats of two blocks and, rounded, of d_k and d_v, for each key; the scores' gradients in
  // halves are a quarter of a block more.
  const std::int64_t block = of_panels > 0 ? round_up(32, of_panels) : 36;
  const std::int64_t sums = of_panels > 0 ? block / 4 + dim : 0;
  const std::int64_t operands = of_panels > 0 ? product({2, block, dim + kChunkColumns}) : 0;
  std::int64_t scratch = std::max<std::int64_t>(96 * kTileRows * kChunkColumns,
                                                sum(product({2, block + sums, keys}), operands));
  std::int64_t columns = std::max(shapes.embedding.columns, c.hidden);
  for (const RunLinear& linear : linears) columns = std::max(columns, linear.matrix.columns);
  if (options.precision == Precision::kF32)
    scratch = std::max(scratch, product({2 * kTileRows, round_up(columns, 32)}));
  if (options.teacher != nullptr) scratch = std::max(scratch, c.vocabulary);
  items.add("attention", sum(bytes, product({options.threads, buffer(product({scratch, 4}))})),
            fmt::format("keys and values; scratch memory of {} thread{}", options.threads,
                        options.threads == 1 ? "" : "s"));
}

std::int64_t head_rows(const ModelConfig& c) {
  return std::clamp<std::int64_t>(kLogitBytes / 4 / c.vocabulary / 12 * 12, 12, 252);
}

// Head: the normed rows and their form.
std::int64_t head_bytes(const Shapes& shapes, Precision precision) {
  const StoredMatrix& head = shapes.head ? *shapes.head : shapes.embedding;
  const std::int64_t hidden = shapes.config.hidden, step = head_rows(shapes.config);
  const Form form{shapes.head_gathered ? hidden : 0,
                  precision == Precision::kDefault && head.quantized() ? hidden : 0};
  return sum(floats(step, hidden), form_bytes(form, step, kernels_are_tiled()));
}

void add_head(const Shapes& shapes, const FitOptions& options, std::int64_t rows, Items& items) {
  const ModelConfig& c = shapes.config;
  const std::int64_t step = head_rows(c);
  const AttentionShape& shape = c.attention;
  // LayerGradients; keys and values have one for each head, and one for the first two thirds of its
  // queries.
  const std::int64_t shares = product({2, shape.heads, rows + rows * 2 / 3, shape.head_dim, 4});
  // Values in lanes of floats, or in halves, with scales, the values once and the keys twice.
  const bool rounds = panel_rows(options.precision) > 0;
  const std::int64_t lanes =
      product({round_up(rows, 32), shape.kv_width(), rounds ? 6 : 4}) + (rounds ? rows : 0);
  const std::int64_t layer =
      sum(product({rows, c.feed_forward + c.hidden + 2 * (shape.q_width() + shape.kv_width()), 4}),
          sum(shares, lanes));
  const std::int64_t logits = product({std::min(step, rows), c.vocabulary, 4});
  std::int64_t bytes = sum(buffer(std::max(layer, logits)),
                           sum(3 * floats(step, c.hidden), head_bytes(shapes, options.precision)));
  if (shapes.head_gathered) bytes = sum(bytes, floats(step, c.hidden));
  items.add("head", bytes,
            fmt::format("{} x {} logits at a time, then a layer's gradients", std::min(step, rows),
                        c.vocabulary));
}

// The teacher's forward pass (TrainingPass::run_teacher).
void add_teacher(const Shapes& teacher, const FitOptions& options, std::int64_t rows,
                 Items& items) {
  const ModelConfig& c = teacher.config;
  items.add("teacher", sum(weight_bytes(teacher, teacher.linears), tokenizer_bytes(teacher)),
            "its weights and tokenizer");
  std::int64_t bytes =
      forward_bytes(c, teacher.linears, options.precision, rows, kernels_are_tiled());
  const std::int64_t step = head_rows(c);
  for (const std::int64_t part :
       {cache_bytes(c, options, rows), floats(rows, c.hidden), floats(step, c.hidden),
        floats(std::min(step, rows), c.vocabulary), head_bytes(teacher, options.precision)})
    bytes = sum(bytes, part);
  items.add("teacher, forward", bytes, "its activations and logits");
}

void add_rest(const Shapes& shapes, const FitOptions& options, Items& items) {
  items.add(
      "tokenizer", tokenizer_bytes(shapes),
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
  // What malloc keeps grows with what is allocated: 0.3 % at most was measured.
  items.add("program", sum(8'000'000, items.sum_without({}) / 200),
            "code, libraries, and what malloc keeps");
}

struct Estimate {
  std::vector<FitItem> items;
  std::size_t total = 0;
};

// What is read of the files, once for all estimates.
struct Files {
  std::vector<TunableLinear> tunable;
  Shapes model;
  std::optional<Shapes> teacher;
};

Result<Estimate> estimate(const Files& files, const FitOptions& options) {
  TRIMPOT_TRY(const TuningSize size, tuning_size(files.tunable, options.tuning));
  const std::int64_t most = std::max(options.max_seq_length, kGroupTokens);
  const std::int64_t rows =
      std::min(most, product({options.max_seq_length, options.sequences_per_step}));
  const Shapes& shapes = files.model;
  std::vector<RunLinear> linears = shapes.linears;
  prepare_linears(options.tuning, linears);
  Items items;
  const std::int64_t weights = weight_bytes(shapes, linears);
  items.add("weights", weights, "as they are packed for the kernels");
  add_method(size, shapes, options, items);
  add_layers(shapes, linears, options, rows, most,
             kept_by_pass(options.tuning, linears, options.precision, size, weights), items);
  add_attention(shapes, linears, options, rows, items);
  add_head(shapes, options, most, items);
  if (files.teacher) add_teacher(*files.teacher, options, most, items);
  add_replaced(shapes, options, items);
  add_result(size, shapes, options, items);
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
  FitOptions less = options;
  std::string flags;
  if (options.tuning.method == "peqa-both") {
    less.tuning.method = "peqa";
    flags = "--method peqa";
    changes.push_back({flags, less});
  }
  if (is_low_rank(options.tuning.method) && options.tuning.rank > 8) {
    less.tuning.rank = 8;
    flags = "--lora-r 8";
    changes.push_back({flags, less});
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
  add_shorter(less, flags);
  FitOptions rows = less;
  if (options.tuning.method.starts_with("peqa") &&
      options.tuning.granularity == ScaleGranularity::kGroup) {
    rows.tuning.granularity = ScaleGranularity::kRow;
    flags += std::string(flags.empty() ? "" : " ") + "--scale-granularity row";
    changes.push_back({flags, rows});
    add_shorter(rows, flags);
  }
  return changes;
}

}  // namespace

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
  Files files;
  TRIMPOT_TRY(files.model, read_shapes(file));
  if (options.max_seq_length > files.model.config.context_length)
    return fail(
        "{}: sequences of {} tokens exceed the model's context of {}; lower "
        "--max-seq-length",
        file.path(), options.max_seq_length, files.model.config.context_length);
  if (options.teacher != nullptr) {
    TRIMPOT_TRY(files.teacher, read_shapes(*options.teacher));
  }
  files.tunable = tunable_linears(file);
  auto now = estimate(files, options);
  if (!now) return fail("{}: {}", file.path(), now.error().message);
  FitReport report;
  report.items = std::move(now->items);
  report.total = now->total;
  const std::optional<std::size_t> available =
      options.available > 0 ? std::optional(options.available) : free_memory();
  report.available = available.value_or(0);
  report.fits = !available || report.total <= *available;
  if (report.fits) return report;
  std::size_t least = report.total;
  for (const Change& change : possible_changes(options)) {
    TRIMPOT_TRY(const Estimate changed, estimate(files, change.options));
    const std::size_t total = changed.total;
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

}  // namespace trimpot
