// Plans as steps: each a command with its argv, its inputs and what tells it from all others. Steps
// that several rows need are one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/compare/plan.h"

namespace trimpot::cli {

// Files and sizes from the command line.
struct CompareInputs {
  std::string model, data, other_data, text, calibration, task;
  std::string folder;                                      // results, models, adapters
  int threads = 0;                                         // 0: each command's own choice
  std::int64_t max_steps = 0, chunks = 0, task_limit = 0;  // 0: as the plan has it
};

struct Step {
  std::string kind;     // quantize, tune, merge; inspect, ppl, task, decode, step, switch, columns
  std::string row;      // the first that needs it
  Arguments arguments;  // of the command, paths included
  std::vector<std::size_t> inputs;  // steps whose outputs it reads
  std::string output;               // what it writes; empty if it only measures
  std::string run_folder;           // of tune
  std::string key;                  // 32 hex digits: command, options, identity of every input
};

// Which steps make up a row.
struct RowSteps {
  std::vector<std::size_t> quantize, merge;
  std::optional<std::size_t> tune;  // the last
  std::optional<std::size_t> ppl_before, ppl_after, task_before, task_after, decode, training_step,
      task_switch, inspect, columns;
  std::vector<std::size_t> all;
  // Sizes: the file that is tuned, the final one, its adapter.
  std::string tuned_model, final_model, adapter;
  std::optional<std::size_t> tuned_model_step, final_model_step, adapter_step;
};

struct Schedule {
  std::vector<Step> steps;                  // inputs come before those that need them
  std::vector<std::vector<RowSteps>> rows;  // [plan][row]
};

// Errors: rows that cannot be done (an adapter in the way, nothing to merge), inputs that the plan
// names and the command line lacks, files that do not exist.
Result<Schedule> make_schedule(const std::vector<Plan>& plans, const CompareInputs& inputs);

}  // namespace trimpot::cli
