// A model with all that is needed to run it, as several commands load it.
#pragma once

#include <memory>
#include <string>

#include "cli/command.h"
#include "io/gguf/gguf.h"
#include "kernels/attention.h"
#include "model/sampler.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace trimpot::cli {

struct ModelOptions {
  std::string model;
  std::string adapter;
  std::string precision = "default";
  int threads = 0;  // 0: the cores this process may use
};

// What a command offers: --adapter; --precision bf16, which those leave out that read no prompts or
// several sequences in a step (model/session.h).
struct ModelChoices {
  bool adapter = true;
  bool bf16 = true;
};
void add_model_options(CLI::App& command, ModelOptions& options, const ModelChoices& offered = {});
// --cache-type
void add_cache_option(CLI::App& command, std::string& type);
CacheType cache_type(const std::string& type);
void add_sampler_options(CLI::App& command, SamplerOptions& options);

struct Engine {
  Engine(gguf::File file, const Kernels& kernels, Precision precision, int threads)
      : file(std::move(file)), compute(kernels, precision, threads) {}
  gguf::File file;
  Compute compute;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Errors: whatever opening, checking and packing the file says; an adapter that does not belong.
Result<std::unique_ptr<Engine>> load_engine(const ModelOptions& options);

// The same ids for the same tokens, so that predictions compare. What a text is cut into may differ
// all the same. Errors name both files.
Status same_vocabulary(const std::string& model_path, const Engine& model,
                       const std::string& teacher_path, const Engine& teacher);

// The whole of a file. Errors: not found, not readable.
Result<std::string> read_text_file(const std::string& path);

// From here on the program removes its partial files when a signal ends it.
void clean_up_at_signals();
// Ctrl-C (and termination) sets a flag; a second one ends the program as usual.
void watch_interrupts();
bool interrupted();
void clear_interrupt();

}  // namespace trimpot::cli
