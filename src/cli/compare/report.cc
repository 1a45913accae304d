#include "cli/compare/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/markup.h"
#include "cli/compare/plot.h"
#include "tune/run_folder.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

class Values {
 public:
  explicit Values(const std::vector<StepResult>& results) : results_(results) {}

  // A number that the step printed; nothing where it failed or has none of that name.
  void take(Json& values, const char* id, std::optional<std::size_t> step, const char* key) const {
    if (!step) return;
    const Json& result = results_[*step].result;
    if (result.is_object() && result.contains(key) && result[key].is_number())
      values[id] = result[key];
  }

  // Size of a file that a step made or that was there.
  std::optional<double> bytes(const std::string& path, std::optional<std::size_t> step) const {
    if (path.empty()) return 0.0;
    if (step) {
      if (!results_[*step].problem.empty()) return std::nullopt;
      return results_[*step].output_bytes;
    }
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    if (error) return std::nullopt;
    return static_cast<double>(size);
  }

  TableRow row(const PlanRow& plan_row, const RowSteps& steps) const {
    TableRow row{plan_row.name, Json::object(), ""};
    for (const std::size_t step : steps.all)
      if (row.problem.empty()) row.problem = results_[step].problem;
    Json& v = row.values;
    take_sizes(steps, v);
    take(v, "trainable", steps.tune, "trainable");
    take(v, "tune_seconds", steps.tune, "seconds");
    if (steps.tune && results_[*steps.tune].problem.empty())
      v["tune_peak_mb"] = results_[*steps.tune].peak_rss_mb;
    take(v, "forward_ms", steps.training_step, "forward_ms");
    take(v, "backward_ms", steps.training_step, "backward_ms");
    take(v, "step_ms", steps.training_step, "step_ms");
    take_quantization(steps, v);
    take(v, "decode_tps", steps.decode, "tokens_per_second");
    take(v, "ppl_before", steps.ppl_before, "perplexity");
    take(v, "ppl_after", steps.ppl_after, "perplexity");
    take(v, "task_before", steps.task_before, "exact_match");
    take(v, "task_after", steps.task_after, "exact_match");
    take(v, "switch_ms", steps.task_switch, "milliseconds");
    return row;
  }

 private:
  void take_sizes(const RowSteps& steps, Json& v) const {
    if (steps.inspect) {
      const Json& result = results_[*steps.inspect].result;
      if (result.is_object() && result.contains("linear_layers"))
        if (const Json& linears = result["linear_layers"];
            linears.is_object() && linears.contains("bits_per_weight"))
          v["bits"] = linears["bits_per_weight"];
    }
    if (!steps.tuned_model.empty())
      if (const auto base = bytes(steps.tuned_model, steps.tuned_model_step))
        v["base_bytes"] = *base;
    const auto model = bytes(steps.final_model, steps.final_model_step);
    const auto adapter = bytes(steps.adapter, steps.adapter_step);
    if (model && adapter) v["storage_bytes"] = *model + *adapter;
    if (!steps.tune) return;
    // What another task needs on this disk: an adapter, or a whole file where the weights changed.
    const auto other = steps.adapter.empty() ? model : adapter;
    if (other) v["switch_bytes"] = *other;
  }

  // Of a row with several: their times add up, their peaks do not.
  void take_quantization(const RowSteps& steps, Json& v) const {
    double seconds = 0, peak = 0;
    for (const std::size_t step : steps.quantize) {
      if (!results_[step].problem.empty()) return;
      const Json& result = results_[step].result;
      seconds += result.contains("seconds") && result["seconds"].is_number()
                     ? result["seconds"].get<double>()
                     : results_[step].seconds;
      peak = std::max(peak, results_[step].peak_rss_mb);
    }
    if (steps.quantize.empty()) return;
    v["quantize_seconds"] = seconds;
    v["quantize_peak_mb"] = peak;
  }

  const std::vector<StepResult>& results_;
};

double value_of(const TableRow& row, const char* id) {
  const auto found = row.values.find(id);
  return found != row.values.end() && found->is_number() ? found->get<double>() : std::nan("");
}

// The row's score: of the task where there is one, else perplexity; after tuning, or before where
// nothing was tuned.
double score_of(const TableRow& row, bool task) {
  const double after = value_of(row, task ? "task_after" : "ppl_after");
  return std::isfinite(after) ? after : value_of(row, task ? "task_before" : "ppl_before");
}

bool has_task(const Table& table) {
  for (const TableRow& row : table.rows)
    if (std::isfinite(score_of(row, true))) return true;
  return false;
}

std::string score_against(const Table& table, const char* id, const std::string& what) {
  const bool task = has_task(table);
  std::vector<PlotPoint> points;
  for (const TableRow& row : table.rows)
    points.push_back({value_of(row, id), score_of(row, task), row.name});
  const std::string score =
      task ? "exact answers in % (more is better)" : "perplexity (less is better)";
  return scatter_svg(
      {fmt::format("{}: {} against {}", table.title, task ? "accuracy" : "perplexity", what),
       "One numbered point per method; the table has the same numbers.", what, score},
      points);
}

// An exponential mean, as loss.svg of a run has it: single steps scatter.
std::vector<PlotPoint> smoothed(const std::vector<StepMetrics>& steps) {
  const double keep = 1.0 - 1.0 / std::max(1.0, static_cast<double>(steps.size()) / 30.0);
  double mean = 0, weight = 0;
  std::vector<PlotPoint> points;
  for (const StepMetrics& step : steps) {
    if (!std::isfinite(step.loss)) continue;
    mean = keep * mean + (1 - keep) * step.loss;
    weight = keep * weight + (1 - keep);
    points.push_back({static_cast<double>(step.step), mean / weight, ""});
  }
  return points;
}

std::string loss_curves(const Plan& plan, const Schedule& schedule,
                        const std::vector<RowSteps>& rows) {
  std::vector<PlotSeries> series;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].tune) continue;
    const auto metrics = read_metrics(schedule.steps[*rows[i].tune].run_folder + "/metrics.jsonl");
    if (metrics && !metrics->steps.empty())
      series.push_back({plan.rows[i].name, smoothed(metrics->steps)});
  }
  return lines_svg({plan.title + ": training loss",
                    "One line per method, the loss of training steps, smoothed over a thirtieth "
                    "of the run.",
                    "step", "loss"},
                   series);
}

// Figure 3a: weak columns of the two inputs of the residual axis, block by block.
std::string weak_columns(const std::string& title, const StepResult& inspected) {
  const Json linears =
      inspected.result.is_object() ? inspected.result.value("linear_layers", Json()) : Json();
  if (!linears.is_object() || !linears.contains("weak_columns")) return "";
  PlotSeries attention{"attn", {}}, feed_forward{"ffn", {}};
  for (const Json& entry : linears["weak_columns"]) {
    const std::string tensor = entry.value("tensor", "");
    if (tensor != "attn_q" && tensor != "ffn_gate") continue;
    for (const Json& channel : entry["channels"])
      (tensor == "attn_q" ? attention : feed_forward)
          .points.push_back({channel.get<double>(), entry.value("layer", 0.0), ""});
  }
  return marks_svg(
      {title + ": weak columns",
       "A mark per weak column, by input channel and block: inputs of attention and of "
       "the feed-forward layers.",
       "input channel", "block"},
      {attention, feed_forward});
}

// Figure 5: a layer's channels from the most to the least sensitive, and the gradient of each.
std::string sensitivity(const std::string& title, const Json& study) {
  if (!study.is_object() || !study.contains("sensitivity") || !study.contains("gradient"))
    return "";
  std::vector<std::pair<double, double>> channels;  // sensitivity, gradient
  for (std::size_t i = 0; i < study["sensitivity"].size() && i < study["gradient"].size(); ++i)
    if (study["sensitivity"][i].is_number() && study["gradient"][i].is_number())
      channels.emplace_back(study["sensitivity"][i].get<double>(),
                            study["gradient"][i].get<double>());
  std::sort(channels.rbegin(), channels.rend());
  double most_sensitive = 0, most_gradient = 0;
  for (const auto& [sensitive, gradient] : channels) {
    most_sensitive = std::max(most_sensitive, sensitive);
    most_gradient = std::max(most_gradient, gradient);
  }
  PlotSeries first{"sensitivity", {}}, second{"squared gradient", {}};
  for (std::size_t i = 0; i < channels.size(); ++i) {
    const auto rank = static_cast<double>(i + 1);
    // A logarithmic axis has no zero; a channel that is never used has one.
    if (channels[i].first > 0)
      first.points.push_back({rank, channels[i].first / most_sensitive, ""});
    if (channels[i].second > 0)
      second.points.push_back({rank, channels[i].second / most_gradient, ""});
  }
  return lines_svg({title + ": sensitivity and gradient by channel",
                    "Input channels of one layer from the most to the least sensitive to "
                    "quantization, and the squared gradient of their weights, as parts of the "
                    "largest.",
                    "rank by sensitivity", "part of the largest"},
                   {second, first});
}

// Figure 8, from what was measured: the file's weights, the values that learn, and the rest.
std::string memory_bars(const Table& table) {
  std::vector<PlotBar> bars;
  for (const TableRow& row : table.rows) {
    const double peak = value_of(row, "tune_peak_mb"), base = value_of(row, "base_bytes") / 1e6;
    // f32 values, gradients and two moments
    const double learned = value_of(row, "trainable") * 16 / 1e6;
    if (!std::isfinite(peak) || !std::isfinite(base) || !std::isfinite(learned)) continue;
    bars.push_back({row.name, {base, learned, std::max(0.0, peak - base - learned)}});
  }
  return bars_svg({table.title + ": memory of tuning",
                   "Stacked bars: size of the base, values that learn with gradients and moments "
                   "(16 bytes each), and the rest of the measured peak.",
                   "MB", ""},
                  {"base model", "learned values, AdamW", "activations and the rest"}, bars);
}

void add_picture(Section& section, const std::string& name, std::string svg) {
  if (!svg.empty()) section.pictures.push_back({name, std::move(svg)});
}

Json step_json(const Step& step, const StepResult& result) {
  Json json{{"kind", step.kind},
            {"argv", step.arguments},
            {"seconds", result.seconds},
            {"peak_rss_mb", result.peak_rss_mb}};
  if (!step.output.empty()) json["output_bytes"] = result.output_bytes;
  if (!result.problem.empty()) json["problem"] = result.problem;
  json["result"] = result.result;
  return json;
}

std::string about_head(const ReportHead& head) {
  std::string text = fmt::format("Model {}, tuned on {}, evaluated on {}; {}.", head.model,
                                 head.data, head.text, head.machine);
  if (head.mixed_builds)
    text +=
        " Some results were measured by another build of the program; remove the folder's "
        "steps/ to measure them again.";
  return text;
}

constexpr const char* kTableStyle = R"(<style>
:root { color-scheme: light dark; --line: #ccc; --quiet: #555; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --quiet: #bbb; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: right; }
tr > :first-child { text-align: left; white-space: nowrap; }
.failed td { color: #c33; text-align: left; white-space: normal; }
svg { max-width: 100%; height: auto; color: var(--quiet); }
code { overflow-wrap: anywhere; }
</style>
)";

}  // namespace

std::vector<Section> make_sections(const std::vector<Plan>& plans, const Schedule& schedule,
                                   const std::vector<StepResult>& results) {
  const Values values(results);
  std::vector<Section> sections;
  for (std::size_t p = 0; p < plans.size(); ++p) {
    const Plan& plan = plans[p];
    const std::vector<RowSteps>& rows = schedule.rows[p];
    Section section{{plan.title, plan.about, plan.columns, {}}, {}};
    for (std::size_t i = 0; i < rows.size(); ++i)
      section.table.rows.push_back(values.row(plan.rows[i], rows[i]));
    const std::string number = std::to_string(p + 1);
    for (const std::string& plot : plan.plots) {
      if (plot == "speed")
        add_picture(section, number + "-speed",
                    score_against(section.table, "decode_tps", "tokens per second"));
      if (plot == "time")
        add_picture(section, number + "-time",
                    score_against(section.table, "tune_seconds", "seconds of tuning"));
      if (plot == "loss") add_picture(section, number + "-loss", loss_curves(plan, schedule, rows));
      if (plot == "memory") add_picture(section, number + "-memory", memory_bars(section.table));
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (plot == "sensitivity" && rows[i].columns)
          add_picture(section, fmt::format("{}-sensitivity-{}", number, i + 1),
                      sensitivity(plan.rows[i].name, results[*rows[i].columns].result));
      if (plot != "weak-columns") continue;
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i].inspect)
          add_picture(section, fmt::format("{}-weak-columns-{}", number, i + 1),
                      weak_columns(plan.rows[i].name, results[*rows[i].inspect]));
    }
    sections.push_back(std::move(section));
  }
  return sections;
}

std::string markdown(const ReportHead& head, const std::vector<Section>& sections) {
  std::string text =
      fmt::format("# Methods compared\n\n{}\n\n    {}\n\n", about_head(head), head.command);
  for (const Section& section : sections) text += markdown(section.table) + "\n";
  return text;
}

std::string html(const ReportHead& head, const std::vector<Section>& sections) {
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>Methods compared</title>\n{}</head>\n<body>\n<h1>Methods compared</h1>\n<p>{}</p>\n"
      "<p><code>{}</code></p>\n",
      kTableStyle, escape_markup(about_head(head)), escape_markup(head.command));
  for (const Section& section : sections) {
    text += fmt::format("<section>\n<h2>{}</h2>\n", escape_markup(section.table.title));
    if (!section.table.about.empty())
      text += fmt::format("<p>{}</p>\n", escape_markup(section.table.about));
    text += html(section.table);
    for (const Picture& picture : section.pictures)
      text += "<figure>" + picture.svg + "</figure>\n";
    text += "</section>\n";
  }
  return text + "</body>\n</html>\n";
}

Json to_json(const ReportHead& head, const std::vector<Section>& sections, const Schedule& schedule,
             const std::vector<StepResult>& results) {
  Json json{{"command", head.command}, {"model", head.model},     {"data", head.data},
            {"text", head.text},       {"machine", head.machine}, {"plans", Json::array()}};
  for (std::size_t p = 0; p < sections.size(); ++p) {
    const Table& table = sections[p].table;
    Json columns = Json::array();
    for (const Column& column : shown_columns(table))
      columns.push_back({{"id", column.id}, {"header", column.header}, {"help", column.help}});
    Json rows = Json::array();
    for (std::size_t i = 0; i < table.rows.size(); ++i) {
      Json row{{"name", table.rows[i].name}, {"values", table.rows[i].values}};
      if (!table.rows[i].problem.empty()) row["problem"] = table.rows[i].problem;
      row["steps"] = Json::array();
      for (const std::size_t step : schedule.rows[p][i].all)
        row["steps"].push_back(step_json(schedule.steps[step], results[step]));
      rows.push_back(std::move(row));
    }
    json["plans"].push_back({{"title", table.title},
                             {"about", table.about},
                             {"columns", std::move(columns)},
                             {"rows", std::move(rows)}});
  }
  return json;
}

}  // namespace trimpot::cli
