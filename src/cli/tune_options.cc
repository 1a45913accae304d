#include "cli/tune_options.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>

#include "tune/methods.h"

namespace trimpot::cli {
namespace {

void add_method_options(CLI::App& command, TuneOptions& options) {
  command
      .add_option("--method", options.method,
                  "what learns: peqa (scales), peqa-zero (zero-points), peqa-both, qeft (weak "
                  "columns), lora, qlora, qalora, platypus (low-rank pairs), full, qat (all "
                  "weights)")
      ->check(CLI::IsMember(method_names()))
      ->capture_default_str();
  command
      .add_option("--scale-granularity", options.granularity,
                  "peqa: group: every scale; row: one factor per output row")
      ->check(CLI::IsMember({"group", "row"}))
      ->capture_default_str();
  command
      .add_option("--target-modules", options.target_modules,
                  "linear layers to tune: q_proj,k_proj,... (default: all; platypus: the "
                  "feed-forward ones)")
      ->delimiter(',');
  command
      .add_option("--weak-columns", options.weak_columns,
                  "qeft, for a file without weak columns: choose so many in every layer; the "
                  "result is an adapter")
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--lora-r,--lora-rank", options.rank, "rank (default 64; platypus 16)")
      ->check(whole_number(1, 1 << 20));
  command.add_option("--lora-alpha", options.alpha, "the path is scaled by alpha / r (default 16)")
      ->check(finite_number());
  command.add_option("--lora-dropout", options.dropout, "of the path's input (default: preset)")
      ->check(number_between(0, 1));
  command.add_flag("--rslora", options.rank_stabilized, "scale by alpha / sqrt(r)");
  command.add_option("--bits", options.bits, "qat: bits of a code")
      ->check(CLI::IsMember({3, 4, 8}))
      ->capture_default_str();
  command
      .add_option("--group-size", options.group_size,
                  "qat: columns that share a scale; -1: a whole row")
      ->capture_default_str();
  command.add_option("--teacher", options.teacher,
                     "a full-precision GGUF whose predictions are learned instead of the data's: "
                     "heals quantization without labels");
  command
      .add_option("--kd-weight", options.teacher_weight,
                  "the teacher's part of the loss; the rest is the data's")
      ->check(number_between(0, 1))
      ->capture_default_str();
}

void add_training_options(CLI::App& command, TuneOptions& options) {
  TrainerOptions& t = options.trainer;
  command
      .add_option("--lr,--learning-rate", options.learning_rate,
                  "default: the method's preset for the model's size; for peqa the step is "
                  "relative: 5e-3 moves a scale by about 0.5 % at most")
      ->check(finite_number());
  command
      .add_option("--lr-scheduler-type", options.schedule,
                  "constant, linear or cosine (default: the method's preset)")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}));
  command.add_option("--warmup-ratio", options.warmup_ratio, "part of the steps that warms up")
      ->check(number_between(0, 1));
  command
      .add_option("--warmup-steps", options.warmup_steps,
                  "steps that warm up, instead of the ratio")
      ->check(whole_number(0));
  command.add_option("--weight-decay", t.adamw.weight_decay, "AdamW's decay of the scales")
      ->check(finite_number())
      ->capture_default_str();
  command
      .add_option("--max-grad-norm", options.max_grad_norm,
                  "gradient clipping; 0: none (default: the method's preset)")
      ->check(finite_number());
  command
      .add_option("--batch-size,--per-device-train-batch-size", t.batch_size, "sequences of a step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--gradient-accumulation-steps", t.gradient_accumulation_steps,
                  "multiplies the batch size (memory does not depend on either)")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--epochs,--num-train-epochs", t.epochs, "passes over the data")
      ->check(finite_number())
      ->capture_default_str();
  command.add_option("--max-steps,--iters", t.max_steps, "steps, instead of epochs")
      ->check(whole_number(0));
  command
      .add_option("--max-seq-length", t.max_seq_length,
                  "tokens of a sequence at most (default: 512, or the model's context if smaller)")
      ->check(CLI::Range(2, 1 << 20));
  command.add_flag("--packing", t.packing,
                   "several short examples in one sequence (they do not see each other)");
  command.add_flag("--train-on-prompt", options.train_on_prompt,
                   "learn the whole conversation, not only the answers");
  command.add_flag("--no-shuffle", options.no_shuffle, "file order");
  command.add_option("--seed", t.seed, "order of the data, validation split")
      ->check(whole_number(0))
      ->capture_default_str();
  command
      .add_option("--val-size", options.val_size,
                  "examples set aside for validation: a fraction, a count, 0, or auto (5 %, at "
                  "most 64)")
      ->capture_default_str();
  command.add_option("--eval-steps", t.eval_steps, "validate every so many steps")
      ->check(whole_number(0));
  command.add_option("--save-steps", t.save_steps, "write a checkpoint every so many steps")
      ->check(whole_number(0));
  command.add_option("--save-total-limit", t.save_total_limit, "checkpoints to keep; 0: all")
      ->check(whole_number(0))
      ->capture_default_str();
  command
      .add_option("--logging-steps", options.logging_steps,
                  "progress lines, where stderr is no terminal")
      ->check(whole_number(1))
      ->capture_default_str();
}

}  // namespace

void add_tune_options(CLI::App& command, TuneOptions& options) {
  options.trainer.max_seq_length = 0;  // chosen when the model is known
  add_model_options(command, options.model, {.adapter = false, .bf16 = false});
  command
      .add_option("--data", options.data,
                  "records (JSON or JSONL: messages, prompt/completion, text, Alpaca, ShareGPT) "
                  "or a plain text file")
      ->required();
  command
      .add_option("-o,--output", options.output,
                  "OUT.gguf: a whole model file; OUT.safetensors: an adapter")
      ->required();
  add_method_options(command, options);
  add_training_options(command, options);
  command.add_option("--run-dir", options.run_folder,
                     "folder for metrics.jsonl, loss.svg and checkpoints (default: the output's "
                     "name with .run)");
  command
      .add_option("--resume", options.resume,
                  "go on from a checkpoint: a file, or the run folder's latest")
      ->expected(0, 1);
  command.add_flag("--force", options.force, "start even if the memory seems too small");
  command.add_flag("-q,--quiet", options.quiet, "no progress");
  command.add_flag("--json", options.json, "one JSON object instead of text");
}

bool ends_with_gguf(const std::string& path) { return path.ends_with(".gguf"); }

std::string default_run_folder(const std::string& output) {
  std::filesystem::path path(output);
  return path.replace_extension(".run").string();
}

Status check_output(const TuneOptions& options) {
  if (!ends_with_gguf(options.output) && !options.output.ends_with(".safetensors"))
    return fail(
        "{}: the output must end in .gguf (a whole model file) or .safetensors (an "
        "adapter)",
        options.output);
  // AtomicFile writes to devices; a copy of the base with other scales cannot be made there.
  std::error_code missing;
  if (const auto status = std::filesystem::status(options.output, missing);
      std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    return fail("{}: exists and is not a regular file; choose another name", options.output);
  return check_output_file(options.output,
                           std::array{options.model.model, options.data, options.teacher});
}

// Options that would do nothing are told: who gives them expects something of them.
Status check_options_apply(const TuneOptions& options) {
  struct Rule {
    const char* name;
    bool applies;
    const char* to;
  };
  const bool low_rank = is_low_rank(options.method), qat = options.method == "qat";
  const Rule rules[] = {{"--lora-r", low_rank, "methods lora, qlora, qalora and platypus"},
                        {"--lora-alpha", low_rank, "methods lora, qlora, qalora and platypus"},
                        {"--lora-dropout", low_rank, "methods lora, qlora, qalora and platypus"},
                        {"--rslora", low_rank, "methods lora, qlora, qalora and platypus"},
                        {"--bits", qat, "method qat"},
                        {"--group-size", qat, "method qat"},
                        {"--scale-granularity", options.method.starts_with("peqa"), "method peqa"},
                        {"--kd-weight", !options.teacher.empty(), "runs with a --teacher"}};
  for (const Rule& rule : rules)
    if (!rule.applies && options.given.contains(rule.name))
      return fail("{}: belongs to {}; leave it out", rule.name, rule.to);
  return {};
}

Result<double> validation_size(const std::string& text, std::size_t examples) {
  if (text == "auto") {
    if (examples < 20) return 0.0;
    return static_cast<double>(std::min<std::size_t>(64, (examples + 19) / 20));
  }
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0))
    return fail("--val-size {}: a fraction below 1, a count, 0 or auto was expected", text);
  return value;
}

nlohmann::ordered_json method_options(const TuneOptions& options) {
  nlohmann::ordered_json json{{"target_modules", options.target_modules}};
  if (options.method.starts_with("peqa")) json["scale_granularity"] = options.granularity;
  if (options.weak_columns > 0) json["weak_columns"] = options.weak_columns;
  if (is_low_rank(options.method)) {
    json["lora_r"] = *options.rank;
    json["lora_alpha"] = *options.alpha;
    json["lora_dropout"] = *options.dropout;
    json["rslora"] = options.rank_stabilized;
  }
  if (options.method == "qat") {
    json["bits"] = options.bits;
    json["group_size"] = options.group_size;
  }
  if (!options.teacher.empty()) {
    json["teacher"] = options.teacher;
    json["kd_weight"] = options.teacher_weight;
  }
  return json;
}

}  // namespace trimpot::cli
