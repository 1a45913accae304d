#include "eval/generate.h"

#include <algorithm>
#include <array>

#include "cli/engine.h"
#include "cli/eval/common.h"
#include "eval/gsm8k.h"

namespace trimpot::cli {
namespace {

struct GenerateCommand {
  ModelOptions model;
  std::string task, file, examples_file, output;
  std::int64_t examples = 5;
  std::int64_t limit = 0;
  GenerateOptions generate;
  std::int64_t together = 16;
  bool json = false;
};

Status eval_generate(const GenerateCommand& command) {
  if (!command.output.empty())
    TRIMPOT_TRY_VOID(
        check_output_file(command.output, std::array{command.model.model, command.model.adapter,
                                                     command.file, command.examples_file}));
  TRIMPOT_TRY(const std::vector<MathItem> items, read_gsm8k(command.file));
  std::vector<MathItem> others;
  if (!command.examples_file.empty()) {
    TRIMPOT_TRY(others, read_gsm8k(command.examples_file));
  }
  const std::vector<MathItem>& examples = command.examples_file.empty() ? items : others;
  const std::size_t available = &examples == &items ? items.size() - 1 : others.size();
  if (command.examples > static_cast<std::int64_t>(available))
    return fail("--num-fewshot {}: there are only {} examples", command.examples, available);
  TRIMPOT_TRY(const auto engine, load_engine(command.model));
  const Tokenizer& tokenizer = *engine->tokenizer;
  std::size_t count = items.size();
  if (command.limit > 0) count = std::min(count, static_cast<std::size_t>(command.limit));
  std::vector<std::vector<TokenId>> prompts;
  for (std::size_t i = 0; i < count; ++i) {
    prompts.push_back(tokenizer.encode(gsm8k_prompt(items, i, examples, command.examples)));
    if (tokenizer.adds_bos() && tokenizer.bos())
      prompts[i].insert(prompts[i].begin(), *tokenizer.bos());
  }
  GenerateOptions options = command.generate;
  options.stops = {"Question:", "</s>", "<|im_end|>"};  // lm-eval's
  options.together = static_cast<std::size_t>(command.together);
  const Clock clock;
  const auto total = static_cast<std::int64_t>(count);
  auto texts = generate_texts(
      engine->compute, *engine->model, tokenizer, prompts, options, [&](std::int64_t done) {
        live(fmt::format("answer {}/{}  ETA {}", done, total, clock.eta(done, total)));
      });
  live("");
  if (!texts) return fail("{}: {}", command.file, texts.error().message);
  const double seconds = clock.seconds();
  std::vector<double> strict, flexible;
  std::vector<Json> lines;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& text = (*texts)[i];
    const std::string strict_found = strict_number(text), flexible_found = flexible_number(text);
    strict.push_back(same_number(strict_found, items[i].answer));
    flexible.push_back(same_number(flexible_found, items[i].answer));
    lines.push_back(Json{{"task", command.task},
                         {"line", items[i].line},
                         {"question", items[i].question},
                         {"expected", items[i].answer},
                         {"answer", text},
                         {"strict", strict_found},
                         {"flexible", flexible_found},
                         {"score_strict", strict.back()},
                         {"score", flexible.back()}});
  }
  if (!command.output.empty()) TRIMPOT_TRY_VOID(write_lines(command.output, lines));
  const Metric metrics[] = {mean_metric("exact_match_strict", strict),
                            mean_metric("exact_match_flexible", flexible)};
  if (command.json) {
    Json json{{"task", command.task}, {"items", count}};
    add_metrics(json, metrics);
    json["num_fewshot"] = command.examples;
    json["model"] = command.model.model;
    json["adapter"] = command.model.adapter;
    json["precision"] = command.model.precision;
    json["seconds"] = seconds;
    return print(to_line(json));
  }
  return print(fmt::format(
      "{}: {} items, strict {:.2f} % +/- {:.2f}, flexible {:.2f} % +/- {:.2f}   ({:.1f} s)\n",
      command.task, count, 100 * metrics[0].value, 100 * metrics[0].error, 100 * metrics[1].value,
      100 * metrics[1].error, seconds));
}

}  // namespace

void add_eval_generate(CLI::App& eval, Action& action) {
  CLI::App* generate =
      eval.add_subcommand("generate", "Written answers, greedy: exact match of the final number");
  auto options = std::make_shared<GenerateCommand>();
  add_model_options(*generate, options->model, {.bf16 = false});
  generate->add_option("--task", options->task, "what kind of data set the file is")
      ->check(CLI::IsMember({"gsm8k"}))
      ->required();
  generate->add_option("-f,--file", options->file, "JSON Lines with question and answer")
      ->required();
  generate->add_option("--num-fewshot", options->examples, "examples before each question")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  generate->add_option("--fewshot-file", options->examples_file,
                       "where the examples come from, its first ones (default: the file itself, "
                       "without the question)");
  generate->add_option("--limit", options->limit, "items to answer (default: all)")
      ->check(whole_number(0));
  generate
      ->add_option("-n,--n-predict", options->generate.max_tokens, "tokens of an answer at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  generate->add_option("--np", options->together, "answers that are written together")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  generate->add_option("-o,--output", options->output, "every item with its answer, as JSON Lines");
  generate->add_flag("--json", options->json, "one JSON object instead of text");
  generate->footer(
      "Example:\n"
      "  trimpot eval generate -m model.gguf --task gsm8k -f test.jsonl \\\n"
      "      --num-fewshot 5 --fewshot-file train.jsonl -o answers.jsonl");
  generate->callback(
      [options, &action] { action = [options] { return eval_generate(*options); }; });
}

}  // namespace trimpot::cli
