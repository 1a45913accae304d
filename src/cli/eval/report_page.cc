#include <algorithm>
#include <cmath>

#include "base/markup.h"
#include "cli/compare/plot.h"
#include "cli/eval/report.h"

namespace trimpot::cli {
namespace {

constexpr const char* kStyle = R"(<style>
:root { color-scheme: light dark; --line: #ccc; --quiet: #555; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --quiet: #bbb; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; }
tr > :first-child, .answers td { text-align: left; vertical-align: top; }
.text, .answers td { white-space: pre-wrap; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; color: var(--quiet); }
article { border-top: 1px solid var(--line); padding: .5rem 0; }
</style>
)";

// A page with whole essays in it helps nobody; cut between characters.
std::string shortened(const std::string& text) {
  constexpr std::size_t kMost = 1500;
  if (text.size() <= kMost) return text;
  std::size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + " ...";
}

std::string number(double value, const EvalMeasure& measure) {
  return measure.factor == 100 ? fmt::format("{:.2f}", value) : fmt::format("{:.5g}", value);
}

std::string with_error(const EvalValue& value, const EvalMeasure& measure) {
  std::string text = number(value.value, measure);
  if (value.error) text += " +/- " + number(*value.error, measure);
  return text;
}

// The best value of a column among several; nothing where all are equal.
std::optional<double> best_of(const EvalColumn& column) {
  double low = INFINITY, high = -INFINITY;
  for (const auto& entry : column.values) {
    low = std::min(low, entry.second.value);
    high = std::max(high, entry.second.value);
  }
  if (!(low < high)) return std::nullopt;
  return column.measure.more_is_better ? high : low;
}

std::string table(const EvalReport& report) {
  std::string html =
      "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Results\">\n<table>\n"
      "<caption>Results with one standard error; * marks the best of a column</caption>\n"
      "<thead><tr><th scope=\"col\">model</th>";
  for (const EvalColumn& column : report.columns)
    html += fmt::format("<th scope=\"col\">{}<br/>{}, {} is better</th>",
                        escape_markup(column.task), escape_markup(column.measure.header),
                        column.measure.more_is_better ? "more" : "less");
  html += "</tr></thead>\n<tbody>\n";
  for (std::size_t model = 0; model < report.models.size(); ++model) {
    html += fmt::format("<tr><th scope=\"row\">{}</th>", escape_markup(report.models[model]));
    for (const EvalColumn& column : report.columns) {
      const auto value = column.values.find(model);
      if (value == column.values.end()) {
        html += "<td>not measured</td>";
        continue;
      }
      const auto best = best_of(column);
      html += fmt::format("<td>{}{}</td>", with_error(value->second, column.measure),
                          best && *best == value->second.value ? " *" : "");
    }
    html += "</tr>\n";
  }
  return html + "</tbody>\n</table>\n</div>\n";
}

std::string plots(const EvalReport& report) {
  std::string html;
  for (const EvalColumn& column : report.columns) {
    std::vector<PlotBar> bars;
    std::string description = "A bar for each model:";
    for (const auto& [model, value] : column.values) {
      const std::string name = report.models[model] + ": " + with_error(value, column.measure);
      bars.push_back({name, {value.value}});
      description += " " + name + ";";
    }
    description.back() = '.';
    const std::string svg = bars_svg(
        {column.task + ": " + column.measure.header, description, column.measure.header, ""},
        {column.measure.more_is_better ? "more is better" : "less is better"}, bars);
    if (!svg.empty()) html += "<figure>" + svg + "</figure>\n";
  }
  return html;
}

bool models_differ(const EvalQuestion& question) {
  const EvalAnswer& first = question.answers.begin()->second;
  return std::any_of(question.answers.begin(), question.answers.end(),
                     [&](const auto& entry) { return entry.second.text != first.text; });
}

std::string sample(const EvalReport& report, const EvalQuestion& question, std::size_t index) {
  std::string html = fmt::format("<article>\n<h3>Question {}</h3>\n<p class=\"text\">{}</p>\n",
                                 index + 1, escape_markup(shortened(question.question)));
  if (!question.choices.empty()) {
    html += "<ul>\n";
    for (const std::string& choice : question.choices)
      html += fmt::format("<li>{}</li>\n", escape_markup(shortened(choice)));
    html += "</ul>\n";
  }
  html += fmt::format(
      "<p class=\"text\">Expected: {}</p>\n<table class=\"answers\">\n<thead><tr>"
      "<th scope=\"col\">model</th><th scope=\"col\">answer</th><th scope=\"col\">judged</th>"
      "</tr></thead>\n<tbody>\n",
      escape_markup(shortened(question.expected)));
  for (const auto& [model, answer] : question.answers)
    html += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>\n",
                        escape_markup(report.models[model]), escape_markup(shortened(answer.text)),
                        answer.right ? "right" : "wrong");
  return html + "</tbody>\n</table>\n</article>\n";
}

std::string samples_of(const EvalReport& report, const std::string& task, std::size_t most) {
  std::vector<const EvalQuestion*> questions;
  for (const EvalQuestion& question : report.questions)
    if (question.task == task) questions.push_back(&question);
  std::stable_partition(questions.begin(), questions.end(),
                        [](const EvalQuestion* question) { return models_differ(*question); });
  const std::size_t shown = std::min(most, questions.size());
  std::string html = fmt::format(
      "<section>\n<h2>Samples: {}</h2>\n<p>{} of {} questions; those on which the models give "
      "different answers come first.</p>\n",
      escape_markup(task), shown, questions.size());
  for (std::size_t i = 0; i < shown; ++i) html += sample(report, *questions[i], i);
  return html + "</section>\n";
}

}  // namespace

std::string eval_page(const std::string& title, const EvalReport& report, std::size_t samples) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>{0}</title>\n{1}</head>\n<body>\n<main>\n<h1>{0}</h1>\n",
      escape_markup(title), kStyle);
  if (!report.columns.empty())
    html += "<section>\n<h2>Results</h2>\n" + table(report) + plots(report) + "</section>\n";
  std::vector<std::string> tasks;
  for (const EvalQuestion& question : report.questions)
    if (std::find(tasks.begin(), tasks.end(), question.task) == tasks.end())
      tasks.push_back(question.task);
  if (samples > 0)
    for (const std::string& task : tasks) html += samples_of(report, task, samples);
  return html + "</main>\n</body>\n</html>\n";
}

}  // namespace trimpot::cli
