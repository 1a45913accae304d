#include "eval/choice.h"

#include <algorithm>
#include <array>
#include <optional>

#include "cli/engine.h"
#include "cli/eval/common.h"

namespace trimpot::cli {
namespace {

struct ChoiceCommand {
  ModelOptions model;
  std::string task, file, examples, output;
  std::string norm = "chars";
  ChoiceOptions choice;
  bool json = false;
  std::string preamble;
};

// One line of --output: the item, and what the model made of it.
Json item_json(const ChoiceCommand& command, const ChoiceItem& item, const ChoiceAnswer& answer) {
  Json json{{"task", command.task}, {"line", item.line}, {"question", item.question}};
  json["choices"] = item.choices;
  json["right"] = Json::array();
  json["greedy"] = Json::array();
  for (std::size_t i = 0; i < item.choices.size(); ++i) {
    if (item.right[i] != 0) json["right"].push_back(i);
    json["greedy"].push_back(answer.greedy[i] != 0);
  }
  json["log_likelihoods"] = answer.log_likelihoods;
  json["normalized"] = answer.normalized;
  json["picked"] = answer.picked;
  json["picked_normalized"] = answer.picked_normalized;
  json["score"] = answer.score;
  json["score_normalized"] = answer.score_normalized;
  return json;
}

Status eval_choice(const ChoiceCommand& command) {
  if (!command.output.empty())
    TRIMPOT_TRY_VOID(check_output_file(
        command.output, std::array{command.model.model, command.model.adapter, command.file,
                                   command.examples, command.preamble}));
  TRIMPOT_TRY(const ChoiceTask task, find_choice_task(command.task));
  TRIMPOT_TRY(ChoiceFile file, read_choices(task, command.file));
  if (!command.preamble.empty()) {
    TRIMPOT_TRY(const std::string preamble, read_text_file(command.preamble));
    file.header = preamble + file.header;
  }
  std::optional<ChoiceFile> examples;
  if (!command.examples.empty()) {
    TRIMPOT_TRY(ChoiceFile read, read_choices(task, command.examples));
    examples = std::move(read);
  }
  TRIMPOT_TRY(const auto engine, load_engine(command.model));
  ChoiceOptions options = command.choice;
  options.norm = command.norm == "tokens" ? ChoiceNorm::kTokens : ChoiceNorm::kChars;
  auto total = static_cast<std::int64_t>(file.items.size());
  if (options.limit > 0) total = std::min(total, options.limit);
  const Clock clock;
  TRIMPOT_TRY(
      const ChoiceResult result,
      score_choices(engine->compute, *engine->model, *engine->tokenizer, task, command.file, file,
                    examples ? &*examples : nullptr, options, [&](std::int64_t done) {
                      live(fmt::format("item {}/{}  ETA {}", done, total, clock.eta(done, total)));
                    }));
  live("");
  const double seconds = clock.seconds();
  if (result.truncated > 0)
    note(
        fmt::format("{} prompts are longer than the model's context of {} tokens and lost their "
                    "beginning",
                    result.truncated, engine->model->config.context_length));
  if (!command.output.empty()) {
    std::vector<Json> lines;
    for (std::size_t i = 0; i < result.answers.size(); ++i)
      lines.push_back(item_json(command, file.items[i], result.answers[i]));
    TRIMPOT_TRY_VOID(write_lines(command.output, lines));
  }
  if (command.json) {
    Json json{{"task", command.task}, {"items", result.answers.size()}};
    add_metrics(json, result.metrics);
    json["norm"] = command.norm;
    json["num_fewshot"] = options.examples;
    json["truncated"] = result.truncated;
    json["model"] = command.model.model;
    json["adapter"] = command.model.adapter;
    json["precision"] = command.model.precision;
    json["seconds"] = seconds;
    return print(to_line(json));
  }
  std::string text = fmt::format("{}: {} items", command.task, result.answers.size());
  for (const Metric& metric : result.metrics)
    text += fmt::format(", {} {:.2f} % +/- {:.2f}", metric.name, 100 * metric.value,
                        100 * metric.error);
  return print(text + fmt::format("   ({:.1f} s)\n", seconds));
}

}  // namespace

void add_eval_choice(CLI::App& eval, Action& action) {
  CLI::App* choice = eval.add_subcommand(
      "choice", "Multiple choice: accuracy, with lm-eval's prompts and standard errors");
  auto options = std::make_shared<ChoiceCommand>();
  add_model_options(*choice, options->model, {.bf16 = false});
  choice->add_option("--task", options->task, "what kind of data set the file is")
      ->check(CLI::IsMember(choice_task_names()))
      ->required();
  choice
      ->add_option("-f,--file", options->file,
                   "the data set as its authors publish it; for hellaswag also llama.cpp's text")
      ->required();
  choice
      ->add_option("--norm", options->norm,
                   "acc_norm by the endings' characters (lm-eval's) or by their tokens "
                   "(llama.cpp's --hellaswag)")
      ->check(CLI::IsMember({"chars", "tokens"}))
      ->capture_default_str();
  choice->add_option("--num-fewshot", options->choice.examples, "examples before each question")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  choice->add_option("--fewshot-file", options->examples,
                     "where the examples come from, its first ones (default: the file itself, "
                     "without the question)");
  choice->add_option(
      "--preamble", options->preamble,
      "text file that comes before everything else, as it is: TruthfulQA's examples, "
      "instructions");
  choice->add_option("--limit", options->choice.limit, "items to score (default: all)")
      ->check(whole_number(0));
  choice->add_option("-o,--output", options->output,
                     "every item with its log-likelihoods, as JSON Lines");
  choice->add_flag("--json", options->json, "one JSON object instead of text");
  choice->footer(
      "Examples:\n"
      "  trimpot eval choice -m model.gguf --task hellaswag -f hellaswag_val.jsonl\n"
      "  trimpot eval choice -m model.gguf --task arc -f ARC-Challenge-Test.jsonl \\\n"
      "      --num-fewshot 25 --fewshot-file ARC-Challenge-Train.jsonl\n"
      "  trimpot eval choice -m model.gguf --adapter task.safetensors --task mmlu \\\n"
      "      -f anatomy_test.csv --num-fewshot 5 --fewshot-file anatomy_dev.csv -o items.jsonl");
  choice->callback([options, &action] { action = [options] { return eval_choice(*options); }; });
}

}  // namespace trimpot::cli
