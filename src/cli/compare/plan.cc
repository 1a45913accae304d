#include "cli/compare/plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/compare/plans.h"
#include "cli/compare/table.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

const std::vector<std::string> kCommands{"quantize", "tune", "merge"};
const std::vector<std::string> kDefaults{"quantize", "tune", "merge",  "ppl",    "task",
                                         "decode",   "step", "switch", "columns"};
const std::vector<std::string> kMeasures{"ppl",    "task",    "decode", "step",
                                         "switch", "inspect", "columns"};
const std::vector<std::string> kPlots{"speed",        "time",   "loss",
                                      "weak-columns", "memory", "sensitivity"};
const std::vector<std::string> kFileReferences{"base", "model", "data", "other-data",
                                               "text", "calib", "task"};
const std::vector<std::string> kRowReferences{"quantized", "result", "adapter"};

// What a plan's own defaults replace: 30 steps of 4 sequences in file order, and llama.cpp's
// perplexity over 64 windows in f32.
const std::map<std::string, Arguments> kStandardDefaults{
    {"tune", {"--batch-size", "4", "--max-steps", "30", "--no-shuffle", "--val-size", "0"}},
    {"ppl", {"--chunks", "64", "--precision", "f32"}}};

bool is_one_of(const std::string& text, const std::vector<std::string>& known) {
  return std::find(known.begin(), known.end(), text) != known.end();
}

Status check_keys(const std::string& where, const Json& object,
                  const std::vector<std::string>& known) {
  if (!object.is_object()) return fail("{}: an object {{...}} was expected", where);
  for (const auto& [key, value] : object.items())
    if (!is_one_of(key, known))
      return fail("{}: unknown key \"{}\"; known are {}", where, key, fmt::join(known, ", "));
  return {};
}

Result<std::string> read_text(const std::string& where, const Json& object, const char* key) {
  if (!object.contains(key)) return std::string();
  if (!object[key].is_string()) return fail("{}: \"{}\" must be a text", where, key);
  return object[key].get<std::string>();
}

Result<std::vector<std::string>> read_texts(const std::string& where, const Json& list) {
  std::vector<std::string> texts;
  if (!list.is_array()) return fail("{}: a list of texts [\"...\"] was expected", where);
  for (const Json& item : list) {
    if (!item.is_string())
      return fail("{}: a list of texts was expected; write numbers as \"{}\"", where, item.dump());
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

Result<std::vector<std::string>> read_names(const std::string& where, const Json& object,
                                            const char* key,
                                            const std::vector<std::string>& known) {
  if (!object.contains(key)) return std::vector<std::string>();
  TRIMPOT_TRY(auto names, read_texts(fmt::format("{}: \"{}\"", where, key), object[key]));
  for (const std::string& name : names)
    if (!is_one_of(name, known))
      return fail("{}: \"{}\": unknown \"{}\"; known are {}", where, key, name,
                  fmt::join(known, ", "));
  return names;
}

// [["quantize", "--method", "rtn"], ["merge"]]
Result<std::vector<PlanStep>> read_steps(const std::string& where, const Json& list) {
  std::vector<PlanStep> steps;
  if (!list.is_array()) return fail("{}: a list of commands [[...], ...] was expected", where);
  for (const Json& item : list) {
    TRIMPOT_TRY(Arguments words, read_texts(where, item));
    if (words.empty() || !is_one_of(words[0], kCommands))
      return fail("{}: a command starts with one of {}", where, fmt::join(kCommands, ", "));
    steps.push_back({words[0], {words.begin() + 1, words.end()}});
  }
  return steps;
}

Result<PlanRow> read_row(const std::string& plan, std::size_t index, const Json& object) {
  std::string where = fmt::format("{}: row {}", plan, index + 1);
  TRIMPOT_TRY_VOID(
      check_keys(where, object, {"name", "from", "output", "quantize", "tune", "then"}));
  PlanRow row;
  TRIMPOT_TRY(row.name, read_text(where, object, "name"));
  if (row.name.empty()) return fail("{}: it needs a \"name\"", where);
  where += fmt::format(" ({})", row.name);
  if (object.contains("from")) {
    TRIMPOT_TRY(row.from, read_text(where, object, "from"));
  }
  TRIMPOT_TRY(row.output, read_text(where, object, "output"));
  if (!row.output.empty() && row.output != "gguf" && row.output != "safetensors")
    return fail("{}: \"output\" is gguf or safetensors", where);
  for (const char* command : {"quantize", "tune"})
    if (object.contains(command)) {
      TRIMPOT_TRY(Arguments words,
                  read_texts(fmt::format("{}: \"{}\"", where, command), object[command]));
      row.steps.push_back({command, std::move(words)});
    }
  if (object.contains("then")) {
    TRIMPOT_TRY(const auto more, read_steps(where + ": \"then\"", object["then"]));
    row.steps.insert(row.steps.end(), more.begin(), more.end());
  }
  return row;
}

// References of a row name files of the command line, or of rows before it.
Status check_references(const std::string& where, const PlanRow& row,
                        const std::set<std::string>& before) {
  Arguments all{row.from};
  for (const PlanStep& step : row.steps)
    all.insert(all.end(), step.arguments.begin(), step.arguments.end());
  if (!is_reference(row.from))
    return fail("{}: row {}: \"from\" is @base, @model, or @result:ROW of a row before", where,
                row.name);
  for (const std::string& argument : all) {
    if (!is_reference(argument)) continue;
    const Reference reference = split_reference(argument);
    if (!is_one_of(reference.kind, reference.row.empty() ? kFileReferences : kRowReferences))
      return fail("{}: row {}: {} is no reference; there are @{}, and @{} followed by :ROW", where,
                  row.name, argument, fmt::join(kFileReferences, ", @"),
                  fmt::join(kRowReferences, ", @"));
    if (!reference.row.empty() && !before.contains(reference.row))
      return fail("{}: row {}: {} names no row before it", where, row.name, argument);
  }
  return {};
}

Status read_rows(const std::string& where, const Json& json, Plan& plan) {
  if (!json.contains("rows") || !json["rows"].is_array() || json["rows"].empty())
    return fail("{}: \"rows\" must be a list with at least one row", where);
  std::set<std::string> names;
  for (std::size_t i = 0; i < json["rows"].size(); ++i) {
    TRIMPOT_TRY(PlanRow row, read_row(where, i, json["rows"][i]));
    TRIMPOT_TRY_VOID(check_references(where, row, names));
    if (!names.insert(row.name).second)
      return fail("{}: two rows are called \"{}\"", where, row.name);
    plan.rows.push_back(std::move(row));
  }
  return {};
}

bool starts_option(const std::string& argument) {
  // "-1" is a value, "-c" and "--bits" are options.
  return argument.size() > 1 && argument[0] == '-' &&
         (argument[1] == '-' || std::isalpha(static_cast<unsigned char>(argument[1])) != 0);
}

// (option, its values); values before the first option stand under "".
std::vector<std::pair<std::string, Arguments>> group_options(const Arguments& options) {
  std::vector<std::pair<std::string, Arguments>> groups;
  for (const std::string& argument : options) {
    if (groups.empty() || starts_option(argument)) groups.push_back({argument, {}});
    groups.back().second.push_back(argument);
  }
  return groups;
}

}  // namespace

Result<Plan> parse_plan(const std::string& where, std::string_view text) {
  const Json json = Json::parse(text, nullptr, false, true);
  if (json.is_discarded()) return fail("{}: this is not JSON", where);
  TRIMPOT_TRY_VOID(check_keys(
      where, json, {"title", "about", "base", "defaults", "measure", "columns", "plots", "rows"}));
  Plan plan;
  TRIMPOT_TRY(plan.title, read_text(where, json, "title"));
  TRIMPOT_TRY(plan.about, read_text(where, json, "about"));
  if (plan.title.empty()) plan.title = where;
  if (json.contains("base")) {
    TRIMPOT_TRY(plan.base, read_steps(where + ": \"base\"", json["base"]));
    for (const PlanStep& step : plan.base)
      if (step.command != "quantize")
        return fail("{}: \"base\": only quantize can be there", where);
  }
  plan.defaults = kStandardDefaults;
  if (json.contains("defaults")) {
    TRIMPOT_TRY_VOID(check_keys(where + ": \"defaults\"", json["defaults"], kDefaults));
    for (const auto& [command, list] : json["defaults"].items()) {
      TRIMPOT_TRY(const Arguments options,
                  read_texts(fmt::format("{}: defaults of {}", where, command), list));
      plan.defaults[command] = merge_options(plan.defaults[command], options);
    }
  }
  TRIMPOT_TRY(plan.measure, read_names(where, json, "measure", kMeasures));
  if (!json.contains("measure")) plan.measure = {"ppl", "task", "decode", "switch", "inspect"};
  TRIMPOT_TRY(plan.columns, read_names(where, json, "columns", column_ids()));
  TRIMPOT_TRY(plan.plots, read_names(where, json, "plots", kPlots));
  if (!json.contains("plots")) plan.plots = {"speed", "time", "loss"};
  TRIMPOT_TRY_VOID(read_rows(where, json, plan));
  return plan;
}

std::string_view builtin_plan(std::string_view name) {
  for (const auto plans : {peqa_plans(), qeft_plans()})
    for (const BuiltinPlan& plan : plans)
      if (plan.name == name) return plan.json;
  return {};
}

std::vector<std::string> builtin_plan_names() {
  std::vector<std::string> names;
  for (const auto plans : {peqa_plans(), qeft_plans()})
    for (const BuiltinPlan& plan : plans) names.emplace_back(plan.name);
  return names;
}

Arguments merge_options(const Arguments& options, const Arguments& more) {
  const auto added = group_options(more);
  Arguments merged;
  for (const auto& option : group_options(options)) {
    const bool replaced = std::any_of(
        added.begin(), added.end(), [&](const auto& group) { return group.first == option.first; });
    if (!replaced) merged.insert(merged.end(), option.second.begin(), option.second.end());
  }
  merged.insert(merged.end(), more.begin(), more.end());
  return merged;
}

std::string option_value(const Arguments& options, std::string_view name) {
  const auto found = std::find(options.begin(), options.end(), name);
  return found == options.end() || found + 1 == options.end() ? std::string() : *(found + 1);
}

bool is_reference(std::string_view argument) {
  return argument.size() > 1 && argument[0] == '@' && argument[1] != '@';
}

Reference split_reference(std::string_view argument) {
  const std::size_t colon = argument.find(':');
  if (colon == std::string_view::npos) return {std::string(argument.substr(1)), ""};
  return {std::string(argument.substr(1, colon - 1)), std::string(argument.substr(colon + 1))};
}

}  // namespace trimpot::cli
