#include "cli/command.h"
#include "cli/engine.h"
#include "tune/adapter.h"

namespace trimpot::cli {
namespace {

struct MergeOptions {
  std::string model, adapter, output;
};

Status merge(const MergeOptions& options) {
  if (!options.output.ends_with(".gguf"))
    return fail("{}: the output must end in .gguf", options.output);
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.model));
  ThreadTeam team(default_thread_count());
  TRIMPOT_TRY(const auto model, load_model(file, team));
  TRIMPOT_TRY_VOID(apply_adapter(options.adapter, file, *model));
  TRIMPOT_TRY_VOID(export_gguf(file, *model, options.output));
  return print(fmt::format("wrote {} ({})\n", options.output,
                           format_bytes(static_cast<double>(file.file_bytes()))));
}

}  // namespace

void add_merge(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("merge", "Write an adapter into a copy of its base model, exactly");
  auto options = std::make_shared<MergeOptions>();
  command->add_option("-m,--model", options->model, "the base model (GGUF)")->required();
  command->add_option("--adapter", options->adapter, "adapter made by trimpot tune")->required();
  command->add_option("-o,--output", options->output, "the file to write (.gguf)")->required();
  command->footer(
      "Example:\n  trimpot merge -m model.gguf --adapter task.safetensors -o tuned.gguf");
  command->callback([options, &action] { action = [options] { return merge(*options); }; });
}

}  // namespace trimpot::cli
