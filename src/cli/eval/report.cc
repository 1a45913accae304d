#include "cli/eval/report.h"

#include <algorithm>

#include "cli/engine.h"
#include "data/json_pieces.h"
#include "io/atomic_file.h"

namespace trimpot::cli {
namespace {

const std::vector<EvalMeasure>& all_measures() {
  static const std::vector<EvalMeasure> measures{
      {"acc", "acc (%)", 100, true},
      {"acc_norm", "acc_norm (%)", 100, true},
      {"exact_match_strict", "strict match (%)", 100, true},
      {"exact_match_flexible", "flexible match (%)", 100, true},
      {"exact_match", "exact match (%)", 1, true},
      {"kl", "mean KL (nats)", 1, false},
      {"kl_median", "median KL (nats)", 1, false},
      {"kl_99", "99 % KL (nats)", 1, false},
      {"same_top", "same top token (%)", 100, true},
      {"perplexity", "perplexity", 1, false}};
  return measures;
}

std::string text_of(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::optional<double> number_of(const Json& object, const std::string& name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

// The name under which results are compared: what differs in protocol stands in different columns.
std::string task_of(const Json& object) {
  std::string task = text_of(object, "task");
  if (task == "kl" || (task.empty() && object.contains("perplexity"))) {
    if (const auto context = number_of(object, "context"))
      task += fmt::format("{}windows of {}", task.empty() ? "" : ", ", *context);
    if (const std::string protocol = text_of(object, "protocol"); !protocol.empty())
      task += ", " + protocol;
    return task;
  }
  if (const auto examples = number_of(object, "num_fewshot"); examples && *examples > 0)
    task += fmt::format(", {} examples", *examples);
  if (text_of(object, "norm") == "tokens") task += ", by tokens";
  return task.empty() ? "held-out records" : task;
}

std::string joined(const Json& right, const std::vector<std::string>& choices) {
  std::string text;
  for (const Json& index : right) {
    if (!index.is_number_unsigned() || index.get<std::size_t>() >= choices.size()) continue;
    text += (text.empty() ? "" : "; ") + choices[index.get<std::size_t>()];
  }
  return text;
}

}  // namespace

void EvalReport::add_values(std::size_t model, const std::string& task, const Json& object) {
  for (const EvalMeasure& measure : all_measures()) {
    const auto value = number_of(object, measure.id);
    if (!value) continue;
    auto error = number_of(object, measure.id + "_stderr");
    if (!error && measure.id == "perplexity") error = number_of(object, "error");
    const auto same = [&](const EvalColumn& column) {
      return column.task == task && column.measure.id == measure.id;
    };
    auto column = std::find_if(columns.begin(), columns.end(), same);
    if (column == columns.end()) column = columns.insert(columns.end(), {task, measure, {}});
    if (error) error = *error * measure.factor;
    column->values[model] = {*value * measure.factor, error};
  }
}

EvalQuestion& EvalReport::question(const std::string& task, std::size_t line, const Json& item) {
  const std::string text = text_of(item, "question");
  const auto [found, is_new] =
      known_.try_emplace({task, fmt::format("{} {}", line, text)}, questions.size());
  if (is_new) {
    questions.emplace_back();
    questions.back().task = task;
    questions.back().question = text;
  }
  return questions[found->second];
}

Status EvalReport::add_item(std::size_t model, const std::string& place, const Json& item) {
  const std::string task = text_of(item, "task");
  const auto line = number_of(item, "line");
  EvalQuestion& asked =
      question(task.empty() ? "held-out records" : task,
               line && *line >= 0 && *line < 1e15 ? static_cast<std::size_t>(*line) : 0, item);
  EvalAnswer answer;
  const auto score = number_of(item, "score");
  answer.right = score && *score >= 0.5;
  if (const auto choices = item.find("choices"); choices != item.end()) {
    std::vector<std::string> texts;
    if (choices->is_array())
      for (const Json& choice : *choices)
        texts.push_back(choice.is_string() ? choice.get<std::string>() : "");
    const auto picked = item.find("picked");
    if (picked == item.end() || !picked->is_number_unsigned() ||
        picked->get<std::size_t>() >= texts.size())
      return fail("{}: \"picked\" must be the number of a choice; is this a file of eval choice?",
                  place);
    answer.text = texts[picked->get<std::size_t>()];
    asked.expected = joined(item.value("right", Json::array()), texts);
    asked.choices = std::move(texts);
  } else {
    answer.text = text_of(item, "answer");
    asked.expected = text_of(item, "expected");
    if (const auto exact = item.find("exact"); exact != item.end()) answer.right = *exact == true;
  }
  asked.answers[model] = std::move(answer);
  return {};
}

Status EvalReport::add_object(std::size_t model, const std::string& place, const Json& object) {
  if (!object.is_object())
    return fail("{}: an object is expected, as --json and --output of the evaluations write it",
                place);
  if (object.contains("question")) return add_item(model, place, object);
  const auto known = [&](const EvalMeasure& measure) {
    return number_of(object, measure.id).has_value();
  };
  if (std::none_of(all_measures().begin(), all_measures().end(), known))
    return fail(
        "{}: this has no results; give what --json or --output of eval ppl, choice, "
        "generate, match or kl wrote",
        place);
  add_values(model, task_of(object), object);
  if (const auto samples = object.find("samples"); samples != object.end() && samples->is_array())
    for (const Json& sample : *samples)
      if (sample.is_object()) TRIMPOT_TRY_VOID(add_item(model, place, sample));
  return {};
}

Status EvalReport::add(const std::string& model, const std::string& path, std::string_view text) {
  auto found = std::find(models.begin(), models.end(), model);
  if (found == models.end()) found = models.insert(models.end(), model);
  const auto index = static_cast<std::size_t>(found - models.begin());
  JsonPieces pieces(path, text);
  bool any = false;
  while (true) {
    TRIMPOT_TRY(const std::optional<JsonPiece> piece, pieces.next());
    if (!piece) break;
    const std::string place = fmt::format("{}:{}", path, piece->line);
    const Json object = Json::parse(piece->text, nullptr, false);
    if (object.is_discarded()) return fail("{}: broken JSON; one object a line is expected", place);
    TRIMPOT_TRY_VOID(add_object(index, place, object));
    any = true;
  }
  if (!any) return fail("{}: the file is empty", path);
  return {};
}

namespace {

struct ReportCommand {
  std::vector<std::string> inputs;
  std::string output, title = "Models compared";
  std::size_t samples = 20;
};

Status eval_report(const ReportCommand& command) {
  if (!command.output.ends_with(".html"))
    return fail("{}: the output must end in .html", command.output);
  EvalReport report;
  std::vector<std::string> paths;
  for (const std::string& input : command.inputs) {
    const std::size_t sign = input.find('=');
    if (sign == 0 || sign == std::string::npos || sign + 1 == input.size())
      return fail("{}: NAME=FILE is expected, such as base=base.json", input);
    const std::string path = input.substr(sign + 1);
    paths.push_back(path);
    TRIMPOT_TRY(const std::string text, read_text_file(path));
    TRIMPOT_TRY_VOID(report.add(input.substr(0, sign), path, text));
  }
  TRIMPOT_TRY_VOID(check_output_file(command.output, paths));
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(command.output));
  TRIMPOT_TRY_VOID(file.write(eval_page(command.title, report, command.samples)));
  return file.commit();
}

}  // namespace

void add_eval_report(CLI::App& eval, Action& action) {
  CLI::App* report = eval.add_subcommand(
      "report", "One HTML page over several models or adapters: table, plots, samples");
  auto options = std::make_shared<ReportCommand>();
  report
      ->add_option("inputs", options->inputs,
                   "NAME=FILE: what --json or --output of another evaluation wrote; a name may "
                   "have several files")
      ->required();
  report->add_option("-o,--output", options->output, "the page, .html")->required();
  report->add_option("--title", options->title, "heading of the page")->capture_default_str();
  report->add_option("--samples", options->samples, "questions per task with the models' answers")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  report->footer(
      "Example:\n"
      "  trimpot eval choice -m model.gguf --task arc -f arc.jsonl -o base.jsonl --json > "
      "base.json\n"
      "  trimpot eval choice -m model.gguf --adapter a.safetensors --task arc -f arc.jsonl \\\n"
      "      -o tuned.jsonl --json > tuned.json\n"
      "  trimpot eval report -o report.html base=base.json base=base.jsonl tuned=tuned.json \\\n"
      "      tuned=tuned.jsonl");
  report->callback([options, &action] { action = [options] { return eval_report(*options); }; });
}

}  // namespace trimpot::cli
