#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/engine.h"
#include "cli/tune_options.h"
#include "data/examples.h"
#include "data/records.h"
#include "model/save.h"
#include "text/chat_template.h"
#include "tune/adapter.h"
#include "tune/fit.h"
#include "tune/methods.h"
#include "tune/progress.h"
#include "tune/trainer.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

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
  return dump({{"base", base.weights},
               {"data", fmt::format("{:016x}", data_hash)},
               {"precision", options.model.precision},
               {"method", options.method},
               {"method_options", method_options(options)},
               {"learning_rate", t.learning_rate},
               {"lr_scheduler_type", *options.schedule},
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
               {"val_size", t.val_size}});
}

// Fills in what was not given from the method's preset for a model of this size.
Status resolve_preset(TuneOptions& options, const gguf::File& file) {
  TRIMPOT_TRY(const TuningPreset preset,
              preset_of(options.method, tunable_linears(file), options.weak_columns));
  TrainerOptions& t = options.trainer;
  t.learning_rate = options.learning_rate.value_or(preset.learning_rate);
  if (!options.schedule)
    options.schedule = preset.schedule == ScheduleKind::kLinear   ? "linear"
                       : preset.schedule == ScheduleKind::kCosine ? "cosine"
                                                                  : "constant";
  TRIMPOT_TRY(t.schedule, parse_schedule_kind(*options.schedule));
  // Steps that were given stand instead of the ratio, none of them included.
  t.warmup_ratio = options.warmup_ratio.value_or(options.warmup_steps ? 0 : preset.warmup_ratio);
  t.warmup_steps = options.warmup_steps.value_or(options.warmup_ratio ? 0 : preset.warmup_steps);
  t.max_grad_norm = options.max_grad_norm.value_or(preset.max_grad_norm);
  options.rank = options.rank.value_or(preset.rank);
  options.alpha = options.alpha.value_or(preset.alpha);
  options.dropout = options.dropout.value_or(preset.dropout);
  if (options.target_modules.empty()) options.target_modules = preset.target_modules;
  return {};
}

Status check_memory(const TuneOptions& options, const gguf::File& file) {
  FitOptions fit;
  fit.tuning.method = options.method;
  fit.tuning.granularity =
      options.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  fit.tuning.target_modules = options.target_modules;
  fit.tuning.rank = *options.rank;
  fit.tuning.weak_columns = options.weak_columns;
  fit.tuning.scheme.bits = options.bits;
  fit.tuning.scheme.group_size = options.group_size;
  fit.dropout = *options.dropout > 0;
  fit.adapter = !ends_with_gguf(options.output);
  std::optional<gguf::File> teacher;
  if (!options.teacher.empty()) {
    TRIMPOT_TRY(teacher, gguf::File::open(options.teacher));
    fit.teacher = &*teacher;
  }
  fit.max_seq_length = static_cast<std::int64_t>(options.trainer.max_seq_length);
  fit.precision = options.model.precision == "f32" ? Precision::kF32 : Precision::kDefault;
  fit.threads = options.model.threads > 0 ? options.model.threads : default_thread_count();
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

std::int64_t weak_columns_of(const Model& model) {
  std::int64_t most = 0;
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    most = std::max(most, model.linear(index).weak.columns());
  return most;
}

// A file has one number of bits and one group size for all its layers in groups.
Status check_one_scheme(const TuneOptions& options, const Engine& engine) {
  for (std::size_t index = 0; index < engine.model->linear_count(); ++index) {
    if (is_target(options.target_modules, index) ||
        !engine.file.find_tensor(linear_name(index) + ".codes"))
      continue;
    TRIMPOT_TRY(const std::uint64_t bits, engine.file.get_uint_or("trimpot.bits", 0));
    TRIMPOT_TRY(const std::uint64_t size, engine.file.get_uint_or("trimpot.group_size", 0));
    const auto group_size = size == 0 ? -1 : static_cast<std::int64_t>(size);
    if (static_cast<std::uint64_t>(options.bits) == bits && options.group_size == group_size)
      return {};
    return fail(
        "{} is not tuned and has {} bits in groups of {}: a file has one scheme; give --bits {} "
        "--group-size {}, or tune all layers",
        linear_name(index), bits, group_size, bits, group_size);
  }
  return {};
}

Result<std::unique_ptr<TuningMethod>> prepare_method(const TuneOptions& options, Engine& engine,
                                                     const Examples& examples) {
  MethodOptions how;
  how.method = options.method;
  how.granularity =
      options.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  how.target_modules = options.target_modules;
  how.low_rank.rank = *options.rank;
  how.low_rank.alpha = *options.alpha;
  how.low_rank.dropout = *options.dropout;
  how.low_rank.rank_stabilized = options.rank_stabilized;
  how.low_rank.seed = options.trainer.seed;
  how.scheme.bits = options.bits;
  how.scheme.group_size = options.group_size;
  if (options.weak_columns > 0) {
    if (options.method != "qeft")
      return fail("--weak-columns: method qeft tunes some, {} does not", options.method);
    if (const std::int64_t has = weak_columns_of(*engine.model); has > 0)
      return fail(
          "--weak-columns: this file has {} weak columns in every layer already; leave the "
          "option out to tune them",
          has);
    TRIMPOT_TRY(how.new_columns, choose_weak_columns(engine.compute, *engine.model, examples.set,
                                                     options.weak_columns, options.target_modules));
  }
  if (options.method == "qat") TRIMPOT_TRY_VOID(check_one_scheme(options, engine));
  TRIMPOT_TRY(auto method, make_method(engine.compute, *engine.model, how));
  if (!ends_with_gguf(options.output)) {
    if (options.method == "full" || options.method == "qat")
      return fail(
          "{}: method {} changes all weights; its result is a model file (.gguf), not an "
          "adapter",
          options.output, options.method);
    return method;
  }
  const std::string why = why_not_gguf(*engine.model, how);
  if (!why.empty()) return fail("{}: {}", options.output, why);
  return method;
}

// The tuned model as a file of the base's kind, or of the method's.
Status write_model(const TuneOptions& options, const Engine& engine) {
  const Model& model = *engine.model;
  bool replaced = options.method == "qat";
  std::vector<bool> changed(model.linear_count());
  for (std::size_t index = 0; index < changed.size(); ++index) {
    changed[index] = (options.method == "qat" || options.method == "full") &&
                     is_target(options.target_modules, index);
    const bool was_dense =
        engine.file.find_tensor(linear_tensor_name(index)) != nullptr &&
        element_type_info(engine.file.find_tensor(linear_tensor_name(index))->type)
                .block_elements == 1;
    replaced = replaced || (changed[index] && !was_dense);
  }
  if (replaced) return save_model(engine.file, model, changed, ElementType::kF16, options.output);
  return export_gguf(engine.file, model, options.output);
}

Status write_result(const TuneOptions& options, const Engine& engine, const TuningMethod& method,
                    const Fingerprint& base) {
  if (ends_with_gguf(options.output)) return write_model(options, engine);
  TRIMPOT_TRY(const std::vector<AdapterTensor> tensors, method.adapter_tensors());
  return write_adapter(options.output, base, options.method, dump(method_options(options)), tensors,
                       low_rank_metadata(*engine.model, *options.alpha));
}

Result<Outcome> train_and_write(const TuneOptions& options, Engine& engine,
                                const Examples& examples, const Engine* teacher) {
  Outcome outcome;
  TuneOptions resolved = options;
  TRIMPOT_TRY(resolved.trainer.val_size, validation_size(options.val_size, examples.set.size()));
  if (teacher != nullptr) resolved.trainer.teacher = {teacher->model.get(), options.teacher_weight};
  TRIMPOT_TRY(const auto method, prepare_method(options, engine, examples));
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
  const auto curve = folder.write_loss_curve(
      "trimpot tune: " + std::filesystem::path(options.output).filename().string());
  if (!curve) note("warning: " + curve.error().message);
  if (!trained) return fail("{}; {} is not written", trained.error().message, options.output);
  outcome.training = *trained;
  if (!trained->finished) return outcome;
  const Status written = write_result(options, engine, *method, base);
  if (written) return outcome;
  const auto checkpoint = trainer.save(folder_path);
  if (!checkpoint) return fail("{}; {}", written.error().message, checkpoint.error().message);
  return fail("{}; {} holds what was learned: the same command with --resume writes it again",
              written.error().message, *checkpoint);
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
  const double bytes = file_bytes(options.output);
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
    json["finished"] = true;
    if (t.first_eval_loss) json["eval_loss_before"] = *t.first_eval_loss;
    if (t.last_eval_loss) json["eval_loss_after"] = *t.last_eval_loss;
    if (outcome.reloaded_loss) json["eval_loss_reloaded"] = *outcome.reloaded_loss;
    return print(dump(json) + "\n");
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
  else if (t.first_eval_loss && t.last_eval_loss)
    text += fmt::format("validation loss: {:.4f} before, {:.4f} after, to the teacher\n",
                        *t.first_eval_loss, *t.last_eval_loss);
  return print(text);
}

Result<std::unique_ptr<Engine>> load_teacher(const TuneOptions& options, const Engine& student) {
  if (options.teacher.empty()) return std::unique_ptr<Engine>();
  ModelOptions teacher = options.model;
  teacher.model = options.teacher;
  teacher.adapter.clear();
  TRIMPOT_TRY(auto engine, load_engine(teacher));
  TRIMPOT_TRY_VOID(same_vocabulary(options.model.model, student, options.teacher, *engine));
  const auto length = static_cast<std::int64_t>(options.trainer.max_seq_length);
  if (length > engine->model->config.context_length)
    return fail("{}: the teacher has a context of {} tokens; use --max-seq-length {}",
                options.teacher, engine->model->config.context_length,
                engine->model->config.context_length);
  return engine;
}

Status tune(TuneOptions options) {
  TRIMPOT_TRY_VOID(check_options_apply(options));
  TRIMPOT_TRY_VOID(check_output(options));
  options.trainer.shuffle = !options.no_shuffle;
  Outcome outcome;
  std::optional<Examples> examples;
  {
    {
      TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.model.model));
      const auto requested = static_cast<std::int64_t>(options.trainer.max_seq_length);
      TRIMPOT_TRY(options.trainer.max_seq_length, sequence_length(file, requested));
      TRIMPOT_TRY_VOID(resolve_preset(options, file));
      TRIMPOT_TRY_VOID(check_memory(options, file));
    }
    TRIMPOT_TRY(const auto engine, load_engine(options.model));
    if (!options.quiet)
      note(fmt::format("{}: learning rate {:g} ({}), {}", options.method,
                       options.trainer.learning_rate, *options.schedule,
                       options.learning_rate ? "as told" : "its preset for a model of this size"));
    TRIMPOT_TRY(examples, load_examples(options, *engine));
    TRIMPOT_TRY(const auto teacher, load_teacher(options, *engine));
    TRIMPOT_TRY(outcome, train_and_write(options, *engine, *examples, teacher.get()));
  }
  if (const TrainerResult& t = outcome.training; !t.finished) {
    note(
        fmt::format("stopped at step {}; {} holds the state: the same command with --resume goes "
                    "on",
                    t.steps, t.checkpoint));
    if (!options.json) return {};
    return print(dump({{"finished", false}, {"steps", t.steps}, {"checkpoint", t.checkpoint}}) +
                 "\n");
  }
  // With a teacher the losses before and after are distances from it, which a file alone has not.
  if (options.teacher.empty()) {
    TRIMPOT_TRY(outcome.reloaded_loss, reload_and_evaluate(options, *examples));
  }
  return report(options, outcome);
}

}  // namespace

void add_tune(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("tune",
                                         "Fine-tune a quantized model: same file, same "
                                         "size, better at your task");
  auto options = std::make_shared<TuneOptions>();
  add_tune_options(*command, *options);
  command->footer(
      "Examples:\n"
      "  trimpot tune -m model.gguf --data train.jsonl -o tuned.gguf\n"
      "  trimpot tune -m model.gguf --data train.jsonl -o task.safetensors --max-steps 200\n"
      "  trimpot tune -m model.gguf --data notes.txt -o tuned.gguf --method peqa-both");
  command->callback([options, command, &action] {
    options->resume_requested = command->count("--resume") > 0;
    for (const CLI::Option* option : command->get_options())
      if (option->count() > 0) options->given.insert("--" + option->get_lnames().front());
    action = [options] { return tune(*options); };
  });
}

}  // namespace trimpot::cli
