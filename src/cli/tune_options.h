// What `trimpot tune` is told on the command line, checked and put into the words of a run.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/engine.h"
#include "tune/trainer.h"

namespace trimpot::cli {

struct TuneOptions {
  ModelOptions model;
  std::string data;
  std::string output;
  std::string method = "peqa";
  std::string granularity = "group";
  std::vector<std::string> target_modules;
  std::optional<std::string> schedule;  // these: the method's preset where not given
  std::optional<double> learning_rate, warmup_ratio, max_grad_norm, alpha, dropout;
  std::optional<std::uint64_t> warmup_steps;
  std::optional<std::int64_t> rank;
  bool rank_stabilized = false;
  std::int64_t weak_columns = 0;
  int bits = 4;
  std::int64_t group_size = 128;
  std::string teacher;
  double teacher_weight = 1.0;
  std::string val_size = "auto";
  std::string run_folder;
  std::string resume;
  bool resume_requested = false;
  std::set<std::string> given;  // names of options, not the defaults
  bool no_shuffle = false;
  bool train_on_prompt = false;
  bool quiet = false;
  bool json = false;
  bool force = false;
  std::uint64_t logging_steps = 10;
  TrainerOptions trainer;
};

// Registers all options of the command; resume_requested is left to the caller.
void add_tune_options(CLI::App& command, TuneOptions& options);

bool ends_with_gguf(const std::string& path);
// The run folder of an output that has none named: "out/tuned.gguf" -> "out/tuned.run".
std::string default_run_folder(const std::string& output);
// An impossible output is told before the training, not after it.
Status check_output(const TuneOptions& options);
// What was given has to mean something to the method. To be asked once `given` is known.
Status check_options_apply(const TuneOptions& options);
// Examples set aside, for split_examples(); "auto": 5 %, at most 64 examples, none of very small
// sets. Errors: no number.
Result<double> validation_size(const std::string& text, std::size_t examples);
// What the method was told, for checkpoints and adapters.
nlohmann::ordered_json method_options(const TuneOptions& options);

}  // namespace trimpot::cli
