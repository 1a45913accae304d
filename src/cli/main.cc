// trimpot: fine-tune the quantized model you deploy.
#include <fcntl.h>
#include <malloc.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <new>

#include "cli/command.h"
#include "cli/engine.h"

namespace {

constexpr const char* kExamples = R"(
Examples:
  trimpot inspect model.gguf
  trimpot tune -m model.gguf --data train.jsonl -o tuned.gguf
  trimpot eval match -m tuned.gguf --data heldout.jsonl --show 3
  trimpot run -m tuned.gguf -p "Once upon a time" -n 64
  trimpot diff model.gguf tuned.gguf
  trimpot serve -m model.gguf --adapter tuned=tuned.safetensors

Each command explains itself: trimpot tune --help)";

// Where standard input, output or error is closed, the next file opened would get its number, and
// progress would be written into a model. Standard output can then be read only: results fail.
void open_standard_files() {
  for (int descriptor = 0; descriptor < 3; ++descriptor)
    if (::fcntl(descriptor, F_GETFD) < 0)
      (void)::open("/dev/null", descriptor == 2 ? O_WRONLY : O_RDONLY);
}

// CLI11 asks for a command where the one that was given does not exist.
bool unknown_command(const CLI::App& main, int argc, char** argv) {
  const CLI::App* app = &main;
  std::string path = main.get_name();
  for (int i = 1; i < argc && argv[i][0] != '-'; ++i) {
    const auto all = [](const CLI::App*) { return true; };
    const auto commands = app->get_subcommands(all);
    if (commands.empty()) return false;
    const auto found = std::find_if(commands.begin(), commands.end(), [&](const CLI::App* command) {
      return command->get_name() == argv[i];
    });
    if (found == commands.end()) {
      std::fprintf(stderr, "trimpot: there is no command \"%s\"; `%s --help` lists them\n", argv[i],
                   path.c_str());
      return true;
    }
    app = *found;
    path += " " + app->get_name();
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_files();
  // Matrices that are freed go back to the system at once. Left to itself, glibc raises this limit
  // to 32 MiB after the first large one and keeps holes: 78 MB with qat on the default model, which
  // no estimate of memory could know.
  ::mallopt(M_MMAP_THRESHOLD, 128 << 10);
  // A closed pipe and a file beyond `ulimit -f` are errors to report, not reasons to die.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  trimpot::cli::clean_up_at_signals();
  CLI::App app(
      "Fine-tune the quantized language model you actually deploy: no merge, no "
      "requantization.",
      "trimpot");
  app.footer(kExamples);
  app.require_subcommand(1);
  app.set_version_flag("--version", "trimpot 0.1.0");
  trimpot::cli::Action action;
  trimpot::cli::add_inspect(app, action);
  trimpot::cli::add_quantize(app, action);
  trimpot::cli::add_run(app, action);
  trimpot::cli::add_chat(app, action);
  trimpot::cli::add_serve(app, action);
  trimpot::cli::add_tune(app, action);
  trimpot::cli::add_eval(app, action);
  trimpot::cli::add_merge(app, action);
  trimpot::cli::add_diff(app, action);
  trimpot::cli::add_fit(app, action);
  trimpot::cli::add_bench(app, action);
  trimpot::cli::add_compare(app, action);
  // llama.cpp's spelling; CLI11 has no short names of two letters.
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "-np") {
      static char name[] = "--np";
      argv[i] = name;
    }
  if (unknown_command(app, argc, argv)) return 2;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version come as "errors" with code 0; wrong usage is 2.
    if (app.exit(error) != 0) return 2;
    return std::cout.flush() ? 0 : 1;
  }
  try {
    const trimpot::Status status = action ? action() : trimpot::Status{};
    if (status) return 0;
    std::fprintf(stderr, "trimpot: %s\n", status.error().message.c_str());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr,
                 "trimpot: out of memory; `trimpot fit` tells what a run needs and what to "
                 "change\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "trimpot: %s\n", error.what());
  }
  return 1;
}
