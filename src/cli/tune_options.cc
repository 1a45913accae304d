#include "cli/tune_options.h"

#include <unistd.h>

#include <algorithm>
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
  command.add_option("--lora-r,--lora-rank", options.rank, "rank (default 64; platypus 16)");
  command.add_option("--lora-alpha", options.alpha, "the path is scaled by alpha / r (default 16)");
  command.add_option("--lora-dropout", options.dropout, "of the path's input (default: preset)");
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
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
}

void add_training_options(CLI::App& command, TuneOptions& options) {
  TrainerOptions& t = options.trainer;
  command.add_option("--lr,--learning-rate", options.learning_rate,
                     "default: the method's preset for the model's size; for peqa the step is "
                     "relative: 5e-3 moves a scale by about 0.5 % at most");
  command
      .add_option("--lr-scheduler-type", options.schedule,
                  "constant, linear or cosine (default: the method's preset)")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}));
  command.add_option("--warmup-ratio", options.warmup_ratio, "part of the steps that warms up")
      ->check(CLI::Range(0.0, 1.0));
  command.add_option("--warmup-steps", options.warmup_steps,
                     "steps that warm up, instead of the ratio");
  command.add_option("--weight-decay", t.adamw.weight_decay, "AdamW's decay of the scales")
      ->capture_default_str();
  command.add_option("--max-grad-norm", options.max_grad_norm,
                     "gradient clipping; 0: none (default: the method's preset)");
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
      ->capture_default_str();
  command.add_option("--max-steps,--iters", t.max_steps, "steps, instead of epochs");
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
      ->capture_default_str();
  command
      .add_option("--val-size", options.val_size,
                  "examples set aside for validation: a fraction, a count, 0, or auto (5 %, at "
                  "most 64)")
      ->capture_default_str();
  command.add_option("--eval-steps", t.eval_steps, "validate every so many steps");
  command.add_option("--save-steps", t.save_steps, "write a checkpoint every so many steps");
  command.add_option("--save-total-limit", t.save_total_limit, "checkpoints to keep; 0: all")
      ->capture_default_str();
  command
      .add_option("--logging-steps", options.logging_steps,
                  "progress lines, where stderr is no terminal")
      ->check(CLI::PositiveNumber)
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
  std::error_code error;
  if (std::filesystem::equivalent(options.model.model, options.output, error))
    return fail("{}: the output is the input file; choose another name", options.output);
  const std::filesystem::path folder = std::filesystem::path(options.output).parent_path();
  const std::string where = folder.empty() ? "." : folder.string();
  if (::access(where.c_str(), W_OK) != 0)
    return fail("{}: the folder {} does not exist or cannot be written", options.output, where);
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
