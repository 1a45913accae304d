#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "sys/thread_team.h"
#include "tune/fit.h"
#include "tune/shapes.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct FitCommand {
  std::string model;
  std::string shape;
  bool table = false;
  ShapeOptions sizes;  // bits, group size, weak columns, r
  std::string teacher;
  std::string method = "peqa";
  std::string granularity = "group";
  std::vector<std::string> target_modules;
  std::string precision = "default";
  int max_seq_length = 0;
  int batch_size = 0;
  int threads = 0;
  bool json = false;
};

std::string show(const FitReport& report) {
  std::string text;
  for (const FitItem& item : report.items)
    text += fmt::format("{:<22}{:>11}  {}\n", item.name,
                        format_bytes(static_cast<double>(item.bytes)), item.why);
  text += fmt::format("{:<22}{:>11}\n", "in all, about",
                      format_bytes(static_cast<double>(report.total)));
  if (report.available == 0 && report.fits) return text + "How much memory is free is not known.\n";
  text += fmt::format("{:<22}{:>11}\n\n", "free on this machine",
                      format_bytes(static_cast<double>(report.available)));
  return text + (report.fits ? "fits\n" : "does not fit: " + report.advice + "\n");
}

Status fit_file(const FitCommand& command) {
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(command.model));
  const int weak_columns = command.sizes.weak_columns;
  TRIMPOT_TRY(const TuningPreset preset,
              preset_of(command.method, tunable_linears(file), weak_columns));
  FitOptions options;
  options.tuning.method = command.method;
  options.tuning.granularity =
      command.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  options.tuning.target_modules =
      command.target_modules.empty() ? preset.target_modules : command.target_modules;
  options.tuning.rank = command.sizes.lora_r > 0 ? command.sizes.lora_r : preset.rank;
  options.tuning.weak_columns = weak_columns;
  if (command.sizes.bits > 0) options.tuning.scheme.bits = command.sizes.bits;
  if (command.sizes.group_size != 0) options.tuning.scheme.group_size = command.sizes.group_size;
  options.dropout = preset.dropout > 0;
  options.adapter = is_low_rank(command.method) || weak_columns > 0;
  options.precision = command.precision == "f32" ? Precision::kF32 : Precision::kDefault;
  options.sequences_per_step = command.batch_size > 0 ? command.batch_size : 4;
  options.threads = command.threads > 0 ? command.threads : default_thread_count();
  std::optional<gguf::File> teacher;
  if (!command.teacher.empty()) {
    TRIMPOT_TRY(teacher, gguf::File::open(command.teacher));
    options.teacher = &*teacher;
  }
  TRIMPOT_TRY(options.max_seq_length, sequence_length(file, command.max_seq_length));
  TRIMPOT_TRY(const FitReport report, estimate_fit(file, options));
  if (!command.json) return print(show(report));
  Json json{{"total_bytes", report.total},
            {"available_bytes", report.available},
            {"fits", report.fits},
            {"advice", report.advice},
            {"items", Json::array()}};
  for (const FitItem& item : report.items)
    json["items"].push_back({{"name", item.name}, {"bytes", item.bytes}, {"why", item.why}});
  return print(json.dump(2) + "\n");
}

std::string show_bytes(std::int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

std::string show(const PublishedShape& shape, const ShapeReport& report) {
  const ShapeOptions& o = report.options;
  std::string text = fmt::format("{}, {:.2f} billion parameters; {}, {} bits", shape.name,
                                 static_cast<double>(report.parameters) / 1e9, o.method, o.bits);
  if (o.bits < 16)
    text += o.group_size < 0 ? ", channel-wise" : fmt::format(", groups of {}", o.group_size);
  if (o.weak_columns > 0) text += fmt::format(", {} weak columns", o.weak_columns);
  if (o.lora_r > 0) text += fmt::format(", r = {}", o.lora_r);
  text += "\n\nStorage\n";
  for (const FitItem& item : report.storage)
    text += fmt::format("  {:<22}{:>11}  {}\n", item.name,
                        format_bytes(static_cast<double>(item.bytes)), item.why);
  const auto base = static_cast<double>(report.base_bytes);
  text += fmt::format("  {:<22}{:>11}  ({:.2f} GB of 1000 MiB, as QEFT's tables count)\n", "in all",
                      format_bytes(base), base / (1 << 20) / 1000);
  text += fmt::format(
      "  {:<22}{:>11}  {:.2f} million learnable parameters, {:.3f} %, in f16\n", "of a task",
      show_bytes(report.adapter_bytes), static_cast<double>(report.learnable) / 1e6,
      100 * static_cast<double>(report.learnable) / static_cast<double>(report.parameters));
  text += fmt::format("\nTraining, {} sequence{} of {} tokens\n  {:<22}{:>11}{:>11}\n",
                      o.batch_size, o.batch_size == 1 ? "" : "s", o.max_seq_length, "states of",
                      "16 bits", "32 bits");
  const auto row = [&](std::string_view name, std::int64_t half, std::int64_t whole,
                       std::string_view why) {
    text += fmt::format("  {:<22}{:>11}{:>11}  {}", name, show_bytes(half), show_bytes(whole), why);
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
  };
  for (std::size_t i = 0; i < report.states_16.items.size(); ++i) {
    const FitItem& item = report.states_16.items[i];
    row(item.name, static_cast<std::int64_t>(item.bytes),
        static_cast<std::int64_t>(report.states_32.items[i].bytes), item.why);
  }
  row("in all", report.states_16.total, report.states_32.total, "");
  row("all activations kept", report.states_16.total_without_checkpoints,
      report.states_32.total_without_checkpoints, "in all, with no layer computed twice");
  return text;
}

Json to_json(const PublishedShape& shape, const ShapeReport& report) {
  const auto items = [](const std::vector<FitItem>& list) {
    Json json = Json::array();
    for (const FitItem& item : list)
      json.push_back({{"name", item.name}, {"bytes", item.bytes}, {"why", item.why}});
    return json;
  };
  const auto training = [&](const TrainingMemory& memory) {
    return Json{{"total_bytes", memory.total},
                {"total_bytes_without_checkpoints", memory.total_without_checkpoints},
                {"items", items(memory.items)}};
  };
  const ShapeOptions& o = report.options;
  return {{"shape", shape.name},
          {"parameters", report.parameters},
          {"method", o.method},
          {"bits", o.bits},
          {"group_size", o.group_size},
          {"weak_columns", o.weak_columns},
          {"lora_r", o.lora_r},
          {"target_modules", o.target_modules},
          {"max_seq_length", o.max_seq_length},
          {"batch_size", o.batch_size},
          {"base_bytes", report.base_bytes},
          {"task_bytes", report.adapter_bytes},
          {"learnable", report.learnable},
          {"storage", items(report.storage)},
          {"training_16_bit_states", training(report.states_16)},
          {"training_32_bit_states", training(report.states_32)}};
}

std::string show(const std::vector<TuningRow>& rows) {
  const auto speed = [](bool fast) { return fast ? "fast" : "slow"; };
  std::string text =
      "                   fine-tuning                   | deployment         | switching tasks\n"
      "Method               weights     states    speed |   weights    speed |     bytes    "
      "speed\n";
  for (const TuningRow& row : rows)
    text += fmt::format("{:<18}{:>10}{:>11}{:>9} |{:>10}{:>9} |{:>10}{:>9}\n", row.name,
                        show_bytes(row.tuning_weights), show_bytes(row.tuning_states),
                        speed(row.tunes_fast), show_bytes(row.deployed), speed(row.runs_fast),
                        show_bytes(row.switched), speed(row.switches_fast));
  return text + "States: gradients and optimizer, 5 bytes per learnable parameter.\n";
}

Json to_json(const std::vector<TuningRow>& rows) {
  Json json = Json::array();
  for (const TuningRow& row : rows)
    json.push_back({{"method", row.name},
                    {"tuning_weight_bytes", row.tuning_weights},
                    {"tuning_state_bytes", row.tuning_states},
                    {"deployed_bytes", row.deployed},
                    {"switched_bytes", row.switched},
                    {"tunes_fast", row.tunes_fast},
                    {"runs_fast", row.runs_fast},
                    {"switches_fast", row.switches_fast}});
  return json;
}

Status fit_published(const FitCommand& command) {
  TRIMPOT_TRY(const PublishedShape shape, find_shape(command.shape));
  ShapeOptions options = command.sizes;
  options.method = command.method;
  options.target_modules = command.target_modules;
  options.max_seq_length = command.max_seq_length > 0 ? command.max_seq_length : 512;
  options.batch_size = command.batch_size > 0 ? command.batch_size : 1;
  if (command.table) {
    TRIMPOT_TRY(const std::vector<TuningRow> rows, compare_tuning(shape, options));
    return print(command.json ? to_json(rows).dump(2) + "\n" : show(rows));
  }
  TRIMPOT_TRY(const ShapeReport report, fit_shape(shape, options));
  return print(command.json ? to_json(shape, report).dump(2) + "\n" : show(shape, report));
}

void add_shape_options(CLI::App* command, FitCommand& options) {
  std::string names;
  for (const PublishedShape& shape : published_shapes()) names += fmt::format(" {}", shape.name);
  CLI::Option* shape = command->add_option(
      "--shape", options.shape, "instead of a file, the shape of a published model:" + names);
  command
      ->add_option("--bits", options.sizes.bits,
                   "qat: of a code (default: 4); with --shape: of the weights, 3, 4, 8 or 16 "
                   "(default: the method's)")
      ->check(CLI::IsMember({3, 4, 8, 16}));
  command->add_option("--group-size", options.sizes.group_size,
                      "qat and --shape: columns per scale, -1: one scale per row (default: the "
                      "method's)");
  command
      ->add_option("--weak-columns", options.sizes.weak_columns,
                   "qeft, for a file without weak columns: so many in every layer; with --shape: "
                   "k of owq and qeft (default: 128)")
      ->check(whole_number(1));
  command
      ->add_option("--lora-r", options.sizes.lora_r,
                   "rank of the low-rank path (default: the method's)")
      ->check(whole_number(1));
  command->add_option("--teacher", options.teacher, "a GGUF whose predictions are learned")
      ->excludes(shape);
  for (const char* name : {"--scale-granularity", "--precision", "--threads"})
    command->get_option(name)->excludes(shape);
  command
      ->add_flag("--table", options.table,
                 "with --shape: full fine-tuning, LoRA, quantizing before or after it, and PEQA")
      ->needs(shape)
      ->excludes(command->get_option("--method"))
      ->excludes(command->get_option("--weak-columns"));
}

}  // namespace

void add_fit(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("fit", "Tell how much memory a tuning run takes, and whether it is there");
  auto options = std::make_shared<FitCommand>();
  command->add_option("-m,--model", options->model, "GGUF model file");
  command
      ->add_option("--method", options->method,
                   "what learns, as for tune; with --shape peqa, qeft, owq, lora, qlora, qalora, "
                   "platypus or full")
      ->capture_default_str();
  command
      ->add_option("--scale-granularity", options->granularity,
                   "group: every scale; row: one factor per output row")
      ->check(CLI::IsMember({"group", "row"}))
      ->capture_default_str();
  command
      ->add_option(
          "--target-modules", options->target_modules,
          "linear layers to tune: q_proj,k_proj,... (default: all; platypus: feed-forward)")
      ->delimiter(',');
  command
      ->add_option("--max-seq-length", options->max_seq_length,
                   "tokens of a sequence at most (default: 512, or the model's context if smaller)")
      ->check(CLI::Range(2, 1 << 20));
  command
      ->add_option("--batch-size", options->batch_size,
                   "sequences of a step; matters only if all of them are less than 512 tokens "
                   "(default: 4); with --shape, sequences at a time (default: 1)")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--precision", options->precision, "default or f32, as for tune")
      ->check(CLI::IsMember({"default", "f32"}))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  add_shape_options(command, *options);
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Examples:\n"
      "  trimpot fit -m model.gguf\n"
      "  trimpot fit -m model.gguf --method peqa-both --max-seq-length 2048\n"
      "  trimpot fit -m model.gguf --method lora --lora-r 16\n"
      "  trimpot fit --shape llama-65b --method peqa --bits 4\n"
      "  trimpot fit --shape llama-65b --table");
  command->callback([options, &action] {
    if (options->model.empty() == options->shape.empty())
      throw CLI::RequiredError("one of --model and --shape");
    action = [options] {
      return options->shape.empty() ? fit_file(*options) : fit_published(*options);
    };
  });
}

}  // namespace trimpot::cli
