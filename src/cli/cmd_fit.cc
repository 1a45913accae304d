#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "sys/thread_team.h"
#include "tune/fit.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct FitCommand {
  std::string model;
  std::string method = "peqa";
  std::string granularity = "group";
  std::vector<std::string> target_modules;
  std::string precision = "default";
  int max_seq_length = 0;
  int batch_size = 4;
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

Status fit(const FitCommand& command) {
  FitOptions options;
  options.method = command.method == "peqa-zero"   ? ScaleMethod::kZeros
                   : command.method == "peqa-both" ? ScaleMethod::kBoth
                                                   : ScaleMethod::kScales;
  options.granularity =
      command.granularity == "row" ? ScaleGranularity::kRow : ScaleGranularity::kGroup;
  options.target_modules = command.target_modules;
  options.precision = command.precision == "f32" ? Precision::kF32 : Precision::kDefault;
  options.sequences_per_step = command.batch_size;
  options.threads = command.threads > 0 ? command.threads : default_thread_count();
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(command.model));
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

}  // namespace

void add_fit(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("fit", "Tell how much memory a tuning run takes, and whether it is there");
  auto options = std::make_shared<FitCommand>();
  command->add_option("-m,--model", options->model, "GGUF model file")->required();
  command->add_option("--method", options->method, "what learns: peqa, peqa-zero or peqa-both")
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
  command
      ->add_option("--max-seq-length", options->max_seq_length,
                   "tokens of a sequence at most (default: 512, or the model's context if smaller)")
      ->check(CLI::Range(2, 1 << 20));
  command
      ->add_option("--batch-size", options->batch_size,
                   "sequences of a step; matters only if all of them are less than 512 tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--precision", options->precision, "default or f32, as for tune")
      ->check(CLI::IsMember({"default", "f32"}))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Examples:\n"
      "  trimpot fit -m model.gguf\n"
      "  trimpot fit -m model.gguf --method peqa-both --max-seq-length 2048");
  command->callback([options, &action] { action = [options] { return fit(*options); }; });
}

}  // namespace trimpot::cli
