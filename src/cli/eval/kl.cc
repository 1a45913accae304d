#include <cmath>

#include "cli/engine.h"
#include "cli/eval/common.h"
#include "eval/divergence.h"

namespace trimpot::cli {
namespace {

struct KlOptions {
  ModelOptions model;
  std::string teacher, text;
  DivergenceOptions divergence;
  bool json = false;
};

Json to_json(const KlOptions& options, const DivergenceResult& result, double seconds) {
  Json json{{"task", "kl"}, {"tokens", result.tokens}, {"chunks", result.chunks}};
  add_metrics(json, {{result.mean, result.same_top}});
  json["kl_median"] = result.median;
  json["kl_90"] = result.percentile_90;
  json["kl_99"] = result.percentile_99;
  json["kl_max"] = result.largest;
  add_metrics(json, {{result.log_perplexity, result.teacher_log_perplexity}});
  json["perplexity"] = std::exp(result.log_perplexity.value);
  json["teacher_perplexity"] = std::exp(result.teacher_log_perplexity.value);
  json["context"] = options.divergence.context;
  json["model"] = options.model.model;
  json["adapter"] = options.model.adapter;
  json["teacher"] = options.teacher;
  json["precision"] = options.model.precision;
  json["seconds"] = seconds;
  return json;
}

Status eval_kl(const KlOptions& options) {
  TRIMPOT_TRY(const std::string text, read_text_file(options.text));
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  ModelOptions teacher_options = options.model;
  teacher_options.model = options.teacher;
  teacher_options.adapter.clear();
  TRIMPOT_TRY(const auto teacher, load_engine(teacher_options));
  const Tokenizer& tokenizer = *engine->tokenizer;
  TRIMPOT_TRY_VOID(same_vocabulary(options.model.model, *engine, options.teacher, *teacher));
  const std::vector<TokenId> tokens = tokenizer.encode(text);
  if (tokens != teacher->tokenizer->encode(text))
    return fail(
        "{} and {} cut the text into other tokens: their predictions do not compare; a "
        "teacher with the same tokenizer is needed",
        options.model.model, options.teacher);
  DivergenceOptions protocol = options.divergence;
  if (tokenizer.adds_bos() && tokenizer.bos()) protocol.bos = *tokenizer.bos();
  const Clock clock;
  auto result = divergence(engine->compute, *engine->model, *teacher->model, tokens, protocol,
                           [&](std::int64_t done, std::int64_t total, double mean) {
                             live(fmt::format("window {}/{}  KL {:.5f}  ETA {}", done, total, mean,
                                              clock.eta(done, total)));
                           });
  live("");
  if (!result) return fail("{}: {}", options.text, result.error().message);
  if (options.json) return print(to_line(to_json(options, *result, clock.seconds())));
  const auto line = [](const char* name, double value) {
    return fmt::format("{:<24}{:>10.5f}\n", name, value);
  };
  const auto with_error = [](const char* name, const Metric& metric, double factor) {
    return fmt::format("{:<24}{:>10.5f} +/- {:.5f}\n", name, factor * metric.value,
                       factor * metric.error);
  };
  // d exp(x) = exp(x) dx
  const auto perplexity = [&](const char* name, const Metric& log) {
    const double value = std::exp(log.value);
    return with_error(name, {log.name, value, value * log.error}, 1);
  };
  return print(with_error("mean KL", result->mean, 1) + line("median KL", result->median) +
               line("90 % KL", result->percentile_90) + line("99 % KL", result->percentile_99) +
               line("maximum KL", result->largest) +
               with_error("same top token, %", result->same_top, 100) +
               perplexity("perplexity", result->log_perplexity) +
               perplexity("teacher's perplexity", result->teacher_log_perplexity) +
               fmt::format("{} predictions in {} windows of {} tokens, KL in nats\n",
                           result->tokens, result->chunks, protocol.context));
}

}  // namespace

void add_eval_kl(CLI::App& eval, Action& action) {
  CLI::App* kl = eval.add_subcommand(
      "kl", "KL divergence from a teacher, say the unquantized model, on a text");
  auto options = std::make_shared<KlOptions>();
  add_model_options(*kl, options->model);
  kl->add_option("--teacher", options->teacher, "GGUF model with the same tokenizer")->required();
  kl->add_option("-f,--file", options->text, "text file, read as it is")->required();
  kl->add_option("-c,--ctx-size", options->divergence.context,
                 "tokens of a window, of which the second half is scored")
      ->check(CLI::Range(4, 1 << 24))
      ->capture_default_str();
  kl->add_option("--chunks", options->divergence.chunks, "windows to score (default: all)")
      ->check(whole_number(0));
  kl->add_flag("--json", options->json, "one JSON object instead of text");
  kl->footer(
      "Example:\n"
      "  trimpot eval kl -m tuned-q4.gguf --teacher full-f32.gguf -f wiki.test.raw --chunks 64");
  kl->callback([options, &action] { action = [options] { return eval_kl(*options); }; });
}

}  // namespace trimpot::cli
