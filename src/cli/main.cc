// trimpot: fine-tune the quantized model you deploy.
#include <malloc.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "cli/command.h"

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

}  // namespace

int main(int argc, char** argv) {
  // Matrices that are freed go back to the system at once. Left to itself, glibc raises this limit
  // to 32 MiB after the first large one and keeps holes: 78 MB with qat on the default model, which
  // no estimate of memory could know.
  ::mallopt(M_MMAP_THRESHOLD, 128 << 10);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error to report, not a reason to die
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
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and version come as "errors" with code 0; wrong usage is 2.
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    const trimpot::Status status = action ? action() : trimpot::Status{};
    if (status) return 0;
    std::fprintf(stderr, "trimpot: %s\n", status.error().message.c_str());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr,
                 "trimpot: out of memory; `trimpot fit` tells what a run needs and what to "
                 "change\n");
  }
  return 1;
}
