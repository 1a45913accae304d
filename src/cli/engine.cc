#include "cli/engine.h"

#include <malloc.h>
#include <unistd.h>

#include <csignal>

#include "io/atomic_file.h"
#include "kernels/linear.h"
#include "sys/mapped_file.h"
#include "tune/adapter.h"

namespace trimpot::cli {

void add_model_options(CLI::App& command, ModelOptions& options, const ModelChoices& offered) {
  command.add_option("-m,--model", options.model, "GGUF model file")->required();
  if (offered.adapter)
    command.add_option("--adapter", options.adapter,
                       "adapter (.safetensors) made by trimpot tune for this model");
  command.add_option("-t,--threads", options.threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  std::vector<std::string> precisions{"default", "f32"};
  if (offered.bf16) precisions.push_back("bf16");
  command
      .add_option("--precision", options.precision,
                  std::string("default: int8 activations on packed weights; f32: everything in "
                              "32-bit floats, slower, the yardstick") +
                      (offered.bf16 ? "; bf16: as default, but prompts and scored texts in bf16, "
                                      "on CPUs with AMX, where that is faster"
                                    : ""))
      ->check(CLI::IsMember(precisions))
      ->capture_default_str();
}

void add_cache_option(CLI::App& command, std::string& type) {
  command
      .add_option("--cache-type", type,
                  "keys and values in f16, or in int8: half the memory, faster in long contexts")
      ->check(CLI::IsMember({"f16", "int8"}))
      ->capture_default_str();
}

CacheType cache_type(const std::string& type) {
  return type == "int8" ? CacheType::kInt8 : CacheType::kFloat;
}

void add_sampler_options(CLI::App& command, SamplerOptions& options) {
  command.add_option("--temp", options.temperature, "temperature; 0 is greedy")
      ->check(number_between(0, 100))
      ->capture_default_str();
  command.add_option("--top-k", options.top_k, "only the k most likely tokens; 0: all")
      ->check(whole_number(0, 1 << 30))
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "the fewest tokens that reach this probability")
      ->check(number_between(0, 1))
      ->capture_default_str();
  command.add_option("--min-p", options.min_p, "tokens at least this likely, relative to the best")
      ->check(number_between(0, 1))
      ->capture_default_str();
  command.add_option("-s,--seed", options.seed, "random seed")
      ->check(whole_number(0))
      ->capture_default_str();
}

Result<std::unique_ptr<Engine>> load_engine(const ModelOptions& options) {
  TRIMPOT_TRY(const Kernels* kernels, select_kernels());
  TRIMPOT_TRY(gguf::File file, gguf::File::open(options.model));
  const Precision precision = options.precision == "f32" ? Precision::kF32 : Precision::kDefault;
  const int threads = options.threads > 0 ? options.threads : default_thread_count();
  auto engine = std::make_unique<Engine>(std::move(file), *kernels, precision, threads);
  engine->compute.bf16_prompts = options.precision == "bf16";
  if (engine->compute.bf16_prompts && !step_rounds_inputs(engine->compute))
    return fail(
        "--precision bf16 needs a CPU with AMX, and here are {} kernels; without it the "
        "default is the fastest",
        kernels->name);
  TRIMPOT_TRY(engine->model, load_model(engine->file, engine->compute.team));
  TRIMPOT_TRY(Tokenizer tokenizer, Tokenizer::from_gguf(engine->file));
  if (tokenizer.vocabulary_size() > static_cast<std::size_t>(engine->model->config.vocabulary))
    return fail("{}: the tokenizer has {} tokens, the embedding only {}", options.model,
                tokenizer.vocabulary_size(), engine->model->config.vocabulary);
  engine->tokenizer = std::make_unique<Tokenizer>(std::move(tokenizer));
  if (!options.adapter.empty())
    TRIMPOT_TRY_VOID(
        apply_adapter(options.adapter, engine->file, *engine->model, &engine->compute.team));
  // What loading leaves behind: pages of the file that two tensors share, small tensors that were
  // copied (7 MB of a 92 MB file with weak columns), and the holes of freed memory.
  engine->file.release(engine->file.bytes());
  ::malloc_trim(0);
  return engine;
}

Status same_vocabulary(const std::string& model_path, const Engine& model,
                       const std::string& teacher_path, const Engine& teacher) {
  constexpr std::string_view kWhy =
      "their predictions do not compare; a teacher with the same tokenizer is needed";
  const std::int64_t rows = model.model->config.vocabulary;
  if (rows != teacher.model->config.vocabulary)
    return fail("{} has {} tokens and {} has {}: {}", teacher_path,
                teacher.model->config.vocabulary, model_path, rows, kWhy);
  const Tokenizer &a = *model.tokenizer, &b = *teacher.tokenizer;
  if (a.vocabulary_size() != b.vocabulary_size())
    return fail("{} has {} tokens and {} has {}: {}", teacher_path, b.vocabulary_size(), model_path,
                a.vocabulary_size(), kWhy);
  for (std::size_t id = 0; id < a.vocabulary_size(); ++id)
    if (a.token_text(static_cast<TokenId>(id)) != b.token_text(static_cast<TokenId>(id)))
      return fail("token {} of {} is another than that of {}: {}", id, teacher_path, model_path,
                  kWhy);
  return {};
}

Result<std::string> read_text_file(const std::string& path) {
  TRIMPOT_TRY(const MappedFile file, MappedFile::open(path));
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

void end(int signal) {
  AtomicFile::remove_partials();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void on_signal(int signal) {
  if (interrupt_flag != 0) end(signal);
  interrupt_flag = 1;
}

}  // namespace

void clean_up_at_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    if (std::signal(signal, end) == SIG_IGN) std::signal(signal, SIG_IGN);  // nohup
}

void watch_interrupts() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
}
bool interrupted() { return interrupt_flag != 0; }
void clear_interrupt() { interrupt_flag = 0; }

}  // namespace trimpot::cli
