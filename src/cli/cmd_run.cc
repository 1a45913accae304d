#include <chrono>

#include "cli/command.h"
#include "cli/engine.h"
#include "model/session.h"

namespace trimpot::cli {
namespace {

struct RunOptions {
  ModelOptions model;
  SamplerOptions sampler;
  std::string cache = "f16";
  std::string prompt;
  std::string prompt_file;
  int count = 128;
  bool ignore_end = false;
  bool quiet = false;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Status run(const RunOptions& options) {
  std::string prompt = options.prompt;
  if (!options.prompt_file.empty()) {
    TRIMPOT_TRY(prompt, read_text_file(options.prompt_file));
  }
  const auto start = std::chrono::steady_clock::now();
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  const double load_seconds = seconds_since(start);
  std::vector<TokenId> tokens =
      engine->tokenizer->encode(prompt, {.add_special = true, .parse_special = true});
  if (tokens.empty()) return fail("nothing to continue; give a text with -p or a file with -f");
  const ModelConfig& config = engine->model->config;
  const auto needed = static_cast<std::int64_t>(tokens.size()) + options.count;
  if (needed > config.context_length)
    return fail(
        "a prompt of {} tokens and {} new ones exceed the model's context of {}; shorten "
        "the prompt or lower -n",
        tokens.size(), options.count, config.context_length);
  Session session(engine->compute, *engine->model, needed, cache_type(options.cache));
  Sampler sampler(options.sampler);
  std::vector<float> logits(static_cast<std::size_t>(config.vocabulary));
  const auto prompt_start = std::chrono::steady_clock::now();
  TRIMPOT_TRY_VOID(session.append(tokens, logits.data()));
  const double prompt_seconds = seconds_since(prompt_start);
  watch_interrupts();
  const auto decode_start = std::chrono::steady_clock::now();
  int made = 0;
  while (made < options.count && !interrupted()) {
    const TokenId token =
        sampler.sample(std::span(logits).first(engine->tokenizer->vocabulary_size()));
    if (!options.ignore_end && engine->tokenizer->is_end_of_generation(token)) break;
    TRIMPOT_TRY_VOID(print(std::string(engine->tokenizer->token_bytes(token))));
    if (++made < options.count) TRIMPOT_TRY_VOID(session.append({&token, 1}, logits.data()));
  }
  const double decode_seconds = seconds_since(decode_start);
  TRIMPOT_TRY_VOID(print("\n"));
  if (!options.quiet)
    note(fmt::format(
        "load {:.2f} s | prompt {} tokens, {:.0f} tokens/s | generated {} tokens, "
        "{:.1f} tokens/s | {} peak",
        load_seconds, tokens.size(), static_cast<double>(tokens.size()) / prompt_seconds, made,
        made / std::max(decode_seconds, 1e-9), format_bytes(static_cast<double>(peak_memory()))));
  return {};
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("run", "Continue a text");
  auto options = std::make_shared<RunOptions>();
  add_model_options(*command, options->model);
  auto* prompt = command->add_option("-p,--prompt", options->prompt, "text to continue");
  command->add_option("-f,--file", options->prompt_file, "file with the text to continue")
      ->excludes(prompt);
  command->add_option("-n,--n-predict", options->count, "tokens to generate at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_end, "go on after an end token");
  command->add_flag("-q,--quiet", options->quiet, "no statistics on stderr");
  add_cache_option(*command, options->cache);
  add_sampler_options(*command, options->sampler);
  command->footer(
      "Example:\n  trimpot run -m model.gguf -p \"The capital of France is\" -n 32 "
      "--temp 0");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace trimpot::cli
