#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/engine.h"
#include "data/examples.h"
#include "data/records.h"
#include "text/chat_template.h"
#include "tune/adapter.h"
#include "tune/fit.h"
#include "tune/progress.h"
#include "tune/scales.h"
#include "tune/trainer.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TuneOptions {
  ModelOptions model;
  std::string data;
  std::string output;
  std::string method = "peqa";
  std::string granularity = "group";
  std::vector<std::string> target_modules;
  std::string schedule = "linear";
  std::string val_size = "auto";
  std::string run_folder;
  std::string resume;
  bool resume_requested = false;
  bool no_shuffle = false;
  bool train_on_prompt = false;
  bool quiet = false;
  bool json = false;
  bool force = false;
  std::uint64_t logging_steps = 10;
  TrainerOptions trainer;
};

bool ends_with_gguf(const std::string& path) { return path.ends_with(".gguf"); }

ScaleMethod scale_method(const std::string& name) {
  return name == "peqa-zero"   ? ScaleMethod::kZeros
         : name == "peqa-both" ? ScaleMethod::kBoth
                               : ScaleMethod::kScales;
}

// The run folder of an output that has none named: "out/tuned.gguf" -> "out/tuned.run".
std::string default_run_folder(const std::string& output) {
  std::filesystem::path path(output);
  return path.replace_extension(".run").string();
}

// An impossible output is told before the training, not after it.
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

Result<Examples> load_examples(const TuneOptions& options, const Engine& engine) {
  TRIMPOT_TRY(const RecordFile file, read_records(options.data));
  const ExampleEncoder encoder =
      make_example_encoder(*engine.tokenizer, ChatTemplate::from_gguf(engine.file));
  ExampleOptions example_options;
  example_options.max_seq_length = options.trainer.max_seq_length;
  example_options.train_on_prompt = options.train_on_prompt;
  TRIMPOT_TRY(Examples examples, make_examples(options.data, file, encoder, example_options));
  const ExampleReport& report = examples.report;
  if (!options.quiet) {
    note(fmt::format("data: {} {}, {} tokens, {} of them learned", report.examples,
                     examples.windows ? "windows" : "examples", report.tokens,
                     report.learned_tokens));
    for (const std::string& warning : report.warnings(example_options)) note("warning: " + warning);
  }
  return examples;
}

// "auto": 5 %, at most 64 examples, none of very small sets.
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

// Everything that decides what a run computes, except the number of threads.
std::string run_identity(const TuneOptions& options, const Examples& examples,
                         const Fingerprint& base) {
  const TrainerOptions& t = options.trainer;
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  for (std::size_t i = 0; i < examples.set.size(); ++i) {
    const auto tokens = examples.set.tokens(i);
    const auto learned = examples.set.learned(i);
    const std::uint64_t size = tokens.size();
    XXH3_64bits_update(state, &size, sizeof size);
    XXH3_64bits_update(state, tokens.data(), tokens.size_bytes());
    XXH3_64bits_update(state, learned.data(), learned.size_bytes());
  }
  const std::uint64_t data_hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return Json{{"base", base.weights},
              {"data", fmt::format("{:016x}", data_hash)},
              {"precision", options.model.precision},
              {"method", options.method},
              {"scale_granularity", options.granularity},
              {"target_modules", options.target_modules},
              {"learning_rate", t.learning_rate},
              {"lr_scheduler_type", options.schedule},
              {"warmup_ratio", t.warmup_ratio},
              {"warmup_steps", t.warmup_steps},
              {"weight_decay", t.adamw.weight_decay},
              {"adam", {t.adamw.beta1, t.adamw.beta2, t.adamw.epsilon}},
              {"max_grad_norm", t.max_grad_norm},
              {"batch_size", t.batch_size},
              {"gradient_accumulation_steps", t.gradient_accumulation_steps},
              {"epochs", t.epochs},
              {"max_steps", t.max_steps},
              {"max_seq_length", t.max_seq_length},
              {"packing", t.packing},
              {"shuffle", t.shuffle},
              {"seed", t.seed},
              {"val_size", t.val_size}}
      .dump();
}

Status check_memory(const TuneOptions& options, const gguf::File& file, int threads) {
  FitOptions fit;
  fit.method = scale_method(options.method);
  fit.granularity =
      options.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  fit.target_modules = options.target_modules;
  fit.max_seq_length = static_cast<std::int64_t>(options.trainer.max_seq_length);
  fit.precision = options.model.precision == "f32" ? Precision::kF32 : Precision::kDefault;
  fit.threads = threads;
  fit.sequences_per_step = static_cast<std::int64_t>(options.trainer.batch_size *
                                                     options.trainer.gradient_accumulation_steps);
  std::error_code missing;  // a data file that is not there is told when it is read
  const auto data_bytes = std::filesystem::file_size(options.data, missing);
  if (!missing) fit.data_bytes = data_bytes;
  TRIMPOT_TRY(const FitReport report, estimate_fit(file, fit));
  if (report.fits || options.force) return {};
  return fail(
      "tuning would take about {}, but this machine has {} free; {} (`trimpot fit` shows "
      "the items; --force tries anyway)",
      format_bytes(static_cast<double>(report.total)),
      format_bytes(static_cast<double>(report.available)), report.advice);
}

struct Outcome {
  TrainerResult training;
  std::size_t trainable = 0;
  std::optional<double> reloaded_loss;
};

Result<Outcome> train_and_write(const TuneOptions& options, Engine& engine,
                                const Examples& examples) {
  Outcome outcome;
  TuneOptions resolved = options;
  TRIMPOT_TRY(resolved.trainer.val_size, validation_size(options.val_size, examples.set.size()));
  ScaleOptions scale_options;
  scale_options.method = scale_method(options.method);
  scale_options.granularity =
      options.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  scale_options.target_modules = options.target_modules;
  TRIMPOT_TRY(const auto method, make_scale_method(*engine.model, scale_options));
  outcome.trainable = method->trainable();
  const Fingerprint base = fingerprint(engine.file);
  TRIMPOT_TRY(Trainer trainer, Trainer::create(engine.compute, *engine.model, *method, examples.set,
                                               examples.windows, resolved.trainer,
                                               run_identity(resolved, examples, base)));
  const std::string folder_path =
      options.run_folder.empty() ? default_run_folder(options.output) : options.run_folder;
  if (options.resume_requested) {
    std::optional<std::string> checkpoint = options.resume;
    if (options.resume.empty() || options.resume == "auto")
      checkpoint = latest_checkpoint(folder_path);
    if (!checkpoint)
      return fail("{}: no checkpoint to resume from; start without --resume", folder_path);
    TRIMPOT_TRY(const std::string warning, trainer.resume(*checkpoint));
    if (!warning.empty()) note("warning: " + warning);
    if (!options.quiet)
      note(fmt::format("resumed {} at step {} of {}", *checkpoint, trainer.step(),
                       trainer.total_steps()));
  }
  TRIMPOT_TRY(RunFolder folder,
              RunFolder::open(folder_path, options.resume_requested ? std::optional(trainer.step())
                                                                    : std::nullopt));
  if (!options.quiet)
    note(
        fmt::format("tuning {} values of {} for {} steps, {} examples, {} set aside for "
                    "validation; log in {}",
                    outcome.trainable, options.method, trainer.total_steps(),
                    trainer.training_examples(), trainer.validation_examples(), folder_path));

  ProgressOptions progress_options;
  progress_options.total_steps = trainer.total_steps();
  progress_options.first_step = trainer.step();
  progress_options.terminal = ::isatty(STDERR_FILENO) != 0;
  progress_options.quiet = options.quiet;
  progress_options.every_steps = options.logging_steps;
  Progress progress(progress_options, [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  });
  TrainerHooks hooks;
  hooks.step = [&](const StepReport& report) {
    progress.update({report.metrics.step, report.metrics.loss, report.metrics.learning_rate,
                     report.metrics.tokens_per_second, resident_memory()});
  };
  hooks.evaluated = [&](const EvalMetrics& metrics) {
    progress.message(fmt::format("step {}  validation loss {:.4f}", metrics.step, metrics.loss));
  };
  hooks.stop = [] { return interrupted(); };
  watch_interrupts();
  auto trained = trainer.run(folder, hooks);
  progress.finish();
  TRIMPOT_TRY_VOID(folder.write_loss_curve(
      "trimpot tune: " + std::filesystem::path(options.output).filename().string()));
  if (!trained) return fail("{}; {} is not written", trained.error().message, options.output);
  outcome.training = *trained;
  if (!trained->finished) return outcome;

  if (ends_with_gguf(options.output)) {
    TRIMPOT_TRY_VOID(export_gguf(engine.file, *engine.model, options.output));
  } else {
    const Json method_options{{"scale_granularity", options.granularity},
                              {"target_modules", options.target_modules}};
    TRIMPOT_TRY(const std::vector<AdapterTensor> tensors, method->adapter_tensors());
    TRIMPOT_TRY_VOID(
        write_adapter(options.output, base, options.method, method_options.dump(), tensors));
  }
  return outcome;
}

// What was written, read back: the validation examples' loss with the file as a user will load it.
Result<std::optional<double>> reload_and_evaluate(const TuneOptions& options,
                                                  const Examples& examples) {
  ModelOptions reloaded = options.model;
  if (ends_with_gguf(options.output)) {
    reloaded.model = options.output;
  } else {
    reloaded.adapter = options.output;
  }
  TRIMPOT_TRY(const auto engine, load_engine(reloaded));
  TRIMPOT_TRY(const double val_size, validation_size(options.val_size, examples.set.size()));
  if (val_size == 0) return std::optional<double>();
  TRIMPOT_TRY(const DataSplit split, split_examples(examples.set.size(), val_size,
                                                    options.trainer.seed, examples.windows));
  TrainingPass pass(engine->compute, *engine->model);
  LossSum sum;
  for (const std::uint32_t example : split.validation) {
    const auto tokens = examples.set.tokens(example);
    const auto learned = examples.set.learned(example);
    TrainingBatch batch{{tokens.begin(), tokens.end()},
                        {learned.begin(), learned.end()},
                        {static_cast<std::int64_t>(tokens.size())}};
    TRIMPOT_TRY(const LossSum part, pass.run(batch, 0.0f, nullptr));
    sum.loss += part.loss;
    sum.count += part.count;
  }
  return std::optional(sum.loss / static_cast<double>(std::max<std::int64_t>(1, sum.count)));
}

Status report(const TuneOptions& options, const Outcome& outcome) {
  const TrainerResult& t = outcome.training;
  std::error_code ignored;
  const auto bytes = static_cast<double>(std::filesystem::file_size(options.output, ignored));
  const bool worse =
      t.first_eval_loss && t.last_eval_loss && *t.last_eval_loss > *t.first_eval_loss;
  if (worse)
    note(
        "warning: the validation loss is higher than before tuning; the data may be too small or "
        "too different, or the learning rate too high");
  if (options.json) {
    Json json{{"output", options.output},
              {"bytes", bytes},
              {"method", options.method},
              {"trainable", outcome.trainable},
              {"steps", t.steps},
              {"tokens", t.tokens},
              {"seconds", t.seconds},
              {"tokens_per_second", static_cast<double>(t.tokens) / std::max(t.seconds, 1e-9)},
              {"train_loss", t.train_loss},
              {"peak_rss_mb", static_cast<double>(peak_memory()) / 1e6}};
    if (t.first_eval_loss) json["eval_loss_before"] = *t.first_eval_loss;
    if (t.last_eval_loss) json["eval_loss_after"] = *t.last_eval_loss;
    if (outcome.reloaded_loss) json["eval_loss_reloaded"] = *outcome.reloaded_loss;
    return print(json.dump() + "\n");
  }
  std::string text = fmt::format(
      "wrote {} ({}) after {} steps, {} tokens, {}, {:.0f} tokens/s, {} "
      "peak memory\n",
      options.output, format_bytes(bytes), t.steps, t.tokens, format_duration(t.seconds),
      static_cast<double>(t.tokens) / std::max(t.seconds, 1e-9),
      format_bytes(static_cast<double>(peak_memory())));
  if (t.first_eval_loss && outcome.reloaded_loss)
    text +=
        fmt::format("validation loss: {:.4f} before, {:.4f} after (of {} read back from disk)\n",
                    *t.first_eval_loss, *outcome.reloaded_loss, options.output);
  return print(text);
}

Status tune(TuneOptions options) {
  TRIMPOT_TRY_VOID(check_output(options));
  options.trainer.shuffle = !options.no_shuffle;
  TRIMPOT_TRY(options.trainer.schedule, parse_schedule_kind(options.schedule));
  Outcome outcome;
  std::optional<Examples> examples;
  {
    {
      TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.model.model));
      const auto requested = static_cast<std::int64_t>(options.trainer.max_seq_length);
      TRIMPOT_TRY(options.trainer.max_seq_length, sequence_length(file, requested));
      TRIMPOT_TRY_VOID(
          check_memory(options, file,
                       options.model.threads > 0 ? options.model.threads : default_thread_count()));
    }
    TRIMPOT_TRY(const auto engine, load_engine(options.model));
    TRIMPOT_TRY(examples, load_examples(options, *engine));
    TRIMPOT_TRY(outcome, train_and_write(options, *engine, *examples));
  }
  if (!outcome.training.finished) {
    note(
        fmt::format("stopped at step {}; {} holds the state: the same command with --resume goes "
                    "on",
                    outcome.training.steps, outcome.training.checkpoint));
    return {};
  }
  TRIMPOT_TRY(outcome.reloaded_loss, reload_and_evaluate(options, *examples));
  return report(options, outcome);
}

void add_training_options(CLI::App& command, TuneOptions& options) {
  TrainerOptions& t = options.trainer;
  command
      .add_option("--lr,--learning-rate", t.learning_rate,
                  "step relative to each scale: 5e-3 moves a scale by about 0.5 % a step at most")
      ->capture_default_str();
  command.add_option("--lr-scheduler-type", options.schedule, "constant, linear or cosine")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str();
  command.add_option("--warmup-ratio", t.warmup_ratio, "part of the steps that warms up")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--warmup-steps", t.warmup_steps, "steps that warm up, instead of the ratio");
  command.add_option("--weight-decay", t.adamw.weight_decay, "AdamW's decay of the scales")
      ->capture_default_str();
  command.add_option("--max-grad-norm", t.max_grad_norm, "gradient clipping; 0: none")
      ->capture_default_str();
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

void add_tune(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("tune",
                                         "Fine-tune a quantized model: same file, same "
                                         "size, better at your task");
  auto options = std::make_shared<TuneOptions>();
  options->trainer.max_seq_length = 0;  // chosen when the model is known
  add_model_options(*command, options->model, false);
  command
      ->add_option("--data", options->data,
                   "records (JSON or JSONL: messages, prompt/completion, text, Alpaca, ShareGPT) "
                   "or a plain text file")
      ->required();
  command
      ->add_option("-o,--output", options->output,
                   "OUT.gguf: a whole model file; OUT.safetensors: an adapter")
      ->required();
  command
      ->add_option("--method", options->method,
                   "what learns: peqa (scales), peqa-zero (zero-points), peqa-both")
      ->check(CLI::IsMember({"peqa", "peqa-zero", "peqa-both"}))
      ->capture_default_str();
  command
      ->add_option("--scale-granularity", options->granularity,
                   "group: every scale; row: one factor per output row")
      ->check(CLI::IsMember({"group", "row"}))
      ->capture_default_str();
  command
      ->add_option("--target-modules", options->target_modules,
                   "linear layers to tune: q_proj,k_proj,... (default: all)")
      ->delimiter(',');
  add_training_options(*command, *options);
  command->add_option("--run-dir", options->run_folder,
                      "folder for metrics.jsonl, loss.svg and checkpoints (default: the output's "
                      "name with .run)");
  auto* resume = command
                     ->add_option("--resume", options->resume,
                                  "go on from a checkpoint: a file, or the run folder's latest")
                     ->expected(0, 1);
  command->add_flag("--force", options->force, "start even if the memory seems too small");
  command->add_flag("-q,--quiet", options->quiet, "no progress");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Examples:\n"
      "  trimpot tune -m model.gguf --data train.jsonl -o tuned.gguf\n"
      "  trimpot tune -m model.gguf --data train.jsonl -o task.safetensors --max-steps 200\n"
      "  trimpot tune -m model.gguf --data notes.txt -o tuned.gguf --method peqa-both");
  command->callback([options, resume, &action] {
    options->resume_requested = resume->count() > 0;
    action = [options] { return tune(*options); };
  });
}

}  // namespace trimpot::cli
