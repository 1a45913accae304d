// What `trimpot compare` is asked to do: rows, each a list of commands on a model. A plan is JSON
// (docs/compare.md describes it); the built-in ones are written in the same language.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace trimpot::cli {

using Arguments = std::vector<std::string>;

struct PlanStep {
  std::string command;  // quantize, tune or merge
  Arguments arguments;  // without input, output, data
};

struct PlanRow {
  std::string name;
  std::string from = "@base";  // the model it starts from, a reference
  std::string output;  // what `tune` writes: gguf, safetensors, or empty: as the method has it
  std::vector<PlanStep> steps;
};

struct Plan {
  std::string title, about;
  std::vector<PlanStep> base;                 // make @base of the model on the command line
  std::map<std::string, Arguments> defaults;  // by command: options that a row's own replace
  std::vector<std::string> measure;           // ppl, task, decode, step, switch, inspect, columns
  std::vector<std::string> columns;           // of the table; empty: all that have a value
  std::vector<std::string> plots;
  std::vector<PlanRow> rows;
};

// Errors name `where` and the row: not JSON, a key or command that does not exist, names that are
// missing or repeat, references to rows that do not come before.
Result<Plan> parse_plan(const std::string& where, std::string_view json);

// `more` after `options`; an option of both (--name with its values) is taken from `more`.
Arguments merge_options(const Arguments& options, const Arguments& more);
// The value of "--name" or "" if it is not there.
std::string option_value(const Arguments& options, std::string_view name);

// A reference "@kind:row"; row is empty in "@kind".
struct Reference {
  std::string kind, row;
};
bool is_reference(std::string_view argument);
Reference split_reference(std::string_view argument);

// Built-in plans, as JSON. `name` is a table (A, B, D, 1, 2, 3, 5 ... 11), a figure (fig3a, fig5,
// fig8) or quick; empty if there is none of that name.
std::string_view builtin_plan(std::string_view name);
// The names in the papers' order.
std::vector<std::string> builtin_plan_names();

}  // namespace trimpot::cli
