#include <cmath>

#include "cli/command.h"
#include "cli/engine.h"
#include "tune/merge.h"

namespace trimpot::cli {
namespace {

struct MergeOptions {
  std::string model, output, tuned, tuned_base;
  std::vector<std::string> adapters;  // PATH or PATH=FACTOR
  float scale = 1;
  bool onto_other = false;
  int threads = 0;
};

struct AdapterChoice {
  std::string path;
  float factor;
};

// "task.safetensors=0.5"; what follows the last '=' must be a number, or it belongs to the path.
AdapterChoice parse_choice(const std::string& text, float scale) {
  const std::size_t at = text.rfind('=');
  if (at != std::string::npos && at + 1 < text.size()) {
    char* end = nullptr;
    const float factor = std::strtof(text.c_str() + at + 1, &end);
    if (*end == '\0' && std::isfinite(factor)) return {text.substr(0, at), factor * scale};
  }
  return {text, scale};
}

Status check(const MergeOptions& options) {
  if (!options.output.ends_with(".gguf"))
    return fail("{}: the output must end in .gguf", options.output);
  if (options.tuned.empty() != options.tuned_base.empty())
    return fail("--tuned and --tuned-base go together: their difference is added to --model");
  if (options.adapters.empty() && options.tuned.empty())
    return fail("nothing to merge: give --adapter, or --tuned and --tuned-base");
  if (!std::isfinite(options.scale)) return fail("--scale must be a finite number");
  std::vector<std::string> inputs{options.model, options.tuned, options.tuned_base};
  for (const std::string& text : options.adapters)
    inputs.push_back(parse_choice(text, options.scale).path);
  return check_output_file(options.output, inputs);
}

Result<Adapter> read_difference(const MergeOptions& options, ThreadTeam& team, const Model& model) {
  TRIMPOT_TRY(const gguf::File tuned_file, gguf::File::open(options.tuned));
  TRIMPOT_TRY(const gguf::File base_file, gguf::File::open(options.tuned_base));
  TRIMPOT_TRY(const auto tuned, load_model(tuned_file, team));
  TRIMPOT_TRY(const auto base, load_model(base_file, team));
  TRIMPOT_TRY(Adapter adapter, weak_difference(tuned_file, *tuned, base_file, *base));
  TRIMPOT_TRY_VOID(check_fits(adapter, model));
  adapter.factor = options.scale;
  return adapter;
}

Status merge(const MergeOptions& options) {
  TRIMPOT_TRY_VOID(check(options));
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.model));
  ThreadTeam team(options.threads > 0 ? options.threads : default_thread_count());
  TRIMPOT_TRY(const auto model, load_model(file, team));
  std::vector<Adapter> adapters;
  AdapterBase base{options.model, {}};
  if (!options.onto_other && !options.adapters.empty()) base.fingerprint = fingerprint(file);
  for (const std::string& text : options.adapters) {
    const AdapterChoice choice = parse_choice(text, options.scale);
    TRIMPOT_TRY(Adapter adapter, read_adapter(choice.path, base, *model));
    adapter.factor = choice.factor;
    adapters.push_back(std::move(adapter));
  }
  if (!options.tuned.empty()) {
    TRIMPOT_TRY(Adapter adapter, read_difference(options, team, *model));
    adapters.push_back(std::move(adapter));
  }
  TRIMPOT_TRY_VOID(merge_adapters(adapters, team, *model));
  TRIMPOT_TRY_VOID(export_gguf(file, *model, options.output));
  return print(fmt::format("wrote {} ({})\n", options.output,
                           format_bytes(static_cast<double>(file.file_bytes()))));
}

}  // namespace

void add_merge(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("merge", "Write adapters into a copy of a model: same size, same format");
  auto options = std::make_shared<MergeOptions>();
  command->add_option("-m,--model", options->model, "the model to copy (GGUF)")->required();
  command
      ->add_option("--adapter", options->adapters,
                   "adapter made by trimpot tune, or FILE=FACTOR; several are added")
      ->expected(1, -1);
  command->add_option("--scale", options->scale, "factor on everything that is added")
      ->capture_default_str();
  command->add_flag("--onto-other", options->onto_other,
                    "the model is not the adapters' base: add their differences of weak columns, "
                    "or LoRA, to it");
  command->add_option("--tuned", options->tuned,
                      "a tuned model (GGUF) whose weak columns, less those of --tuned-base, are "
                      "added");
  command->add_option("--tuned-base", options->tuned_base, "what --tuned was tuned from");
  command->add_option("-t,--threads", options->threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  command->add_option("-o,--output", options->output, "the file to write (.gguf)")->required();
  command->footer(
      "Scales and QEFT's weak columns go into the quantized file they were tuned on; QA-LoRA goes\n"
      "into its zero-points or offsets; LoRA goes into dense weights only.\n"
      "Examples:\n"
      "  trimpot merge -m model.gguf --adapter task.safetensors -o tuned.gguf\n"
      "  trimpot merge -m f16.gguf --adapter lora.safetensors=0.5 -o merged.gguf\n"
      "  trimpot merge -m f16.gguf --adapter qeft.safetensors --onto-other -o merged.gguf");
  command->callback([options, &action] { action = [options] { return merge(*options); }; });
}

}  // namespace trimpot::cli
