#include "cli/compare/steps.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <map>

namespace trimpot::cli {
namespace {

// A file that commands read: from outside, or made by a step.
struct FileRef {
  std::string path;
  std::optional<std::size_t> step;
  bool empty() const { return path.empty(); }
};

// Where a row stands after some of its steps.
struct State {
  FileRef model, adapter;
  FileRef tuned;  // the last adapter that a tune wrote, merged or not
};

std::string digest(const std::string& text) {
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// Size and time of change of a file, empty if `path` is none.
std::string file_identity(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return "";
  return fmt::format("{}:{}.{:09}", info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

// Puts an argv together, and with it the text that tells the step from others: where a step made an
// input, that step's key stands for the file, and the output's name is left out.
class Command {
 public:
  Command(std::string kind, const std::vector<Step>& steps) : steps_(steps) {
    step_.kind = std::move(kind);
  }
  void add(const Arguments& words) {
    for (const std::string& word : words) {
      step_.arguments.push_back(word);
      identity_ += word + '\0' + file_identity(word) + '\0';
    }
  }
  void add_file(const FileRef& file) {
    step_.arguments.push_back(file.path);
    if (file.step) step_.inputs.push_back(*file.step);
    identity_ +=
        file.step ? "step " + steps_[*file.step].key : file.path + '\0' + file_identity(file.path);
    identity_ += '\0';
  }
  void add_output(std::string extension) {
    output_at_ = step_.arguments.size();
    extension_ = std::move(extension);
    step_.arguments.emplace_back();
  }
  Step finish(const std::string& folder) {
    step_.key = digest(step_.kind + '\0' + identity_);
    if (output_at_) {
      step_.output =
          fmt::format("{}/files/{}-{}{}", folder, step_.kind, step_.key.substr(0, 16), extension_);
      step_.arguments[*output_at_] = step_.output;
    }
    if (step_.kind == "tune") {
      step_.run_folder =
          fmt::format("{}/files/{}-{}.run", folder, step_.kind, step_.key.substr(0, 16));
      step_.arguments.insert(step_.arguments.end(), {"--run-dir", step_.run_folder});
    }
    return step_;
  }

 private:
  const std::vector<Step>& steps_;
  Step step_;
  std::string identity_;
  std::optional<std::size_t> output_at_;
  std::string extension_;
};

class Scheduler {
 public:
  Scheduler(const Plan& plan, const CompareInputs& inputs, Schedule& schedule,
            std::map<std::string, std::size_t>& known)
      : plan_(plan), inputs_(inputs), schedule_(schedule), known_(known) {}

  Result<std::vector<RowSteps>> run() {
    RowSteps ignored;
    State state{{inputs_.model, {}}, {}, {}};
    for (const PlanStep& step : plan_.base)
      TRIMPOT_TRY_VOID(advance({"base", "@model", "", {}}, step, state, ignored));
    base_ = state.model;
    std::vector<RowSteps> rows;
    for (const PlanRow& row : plan_.rows) {
      TRIMPOT_TRY(RowSteps steps, schedule_row(row));
      rows.push_back(std::move(steps));
    }
    return rows;
  }

 private:
  Error problem(const PlanRow& row, const std::string& what) const {
    return {fmt::format("{}: row {}: {}", plan_.title, row.name, what)};
  }

  std::size_t add(Command& command, const PlanRow& row, RowSteps& steps) {
    Step step = command.finish(inputs_.folder);
    step.row = row.name;
    const auto [at, is_new] = known_.try_emplace(step.key, schedule_.steps.size());
    if (is_new) schedule_.steps.push_back(std::move(step));
    if (std::find(steps.all.begin(), steps.all.end(), at->second) == steps.all.end())
      steps.all.push_back(at->second);
    return at->second;
  }

  // Options of the plan, then the row's, then those of the command line.
  Arguments options_of(const std::string& kind, const Arguments& row) const {
    const auto found = plan_.defaults.find(kind);
    Arguments options = found == plan_.defaults.end() ? row : merge_options(found->second, row);
    const auto force = [&](const char* name, std::int64_t value) {
      if (value > 0) options = merge_options(options, {name, std::to_string(value)});
    };
    if (kind == "tune") force("--max-steps", inputs_.max_steps);
    if (kind == "ppl") force("--chunks", inputs_.chunks);
    if (kind == "task") force("--limit", inputs_.task_limit);
    force("--threads", inputs_.threads);
    return options;
  }

  Result<FileRef> resolve(const PlanRow& row, const std::string& argument) const {
    const Reference reference = split_reference(argument);
    if (!reference.row.empty()) {
      const auto found = rows_.find(reference.row);
      if (found == rows_.end()) return fail(problem(row, argument + " names no row before it"));
      const auto& [quantized, result] = found->second;
      const FileRef& file = reference.kind == "quantized" ? quantized
                            : reference.kind == "adapter" ? result.tuned
                                                          : result.model;
      if (file.empty()) return fail(problem(row, fmt::format("{}: that row has none", argument)));
      return file;
    }
    if (reference.kind == "base") return base_;
    const std::map<std::string, std::pair<const char*, const std::string*>> files{
        {"model", {"--model", &inputs_.model}},
        {"data", {"--data", &inputs_.data}},
        {"text", {"--text", &inputs_.text}},
        {"other-data", {"--other-data", &inputs_.other_data}},
        {"calib", {"--calib", &inputs_.calibration}},
        {"task", {"--task", &inputs_.task}}};
    const auto& [option, path] = files.at(reference.kind);
    if (path->empty())
      return fail(problem(row, fmt::format("{} is used, but {} is not given", argument, option)));
    return FileRef{*path, {}};
  }

  Status add_words(const PlanRow& row, const Arguments& words, Command& command) const {
    for (const std::string& word : words) {
      if (!is_reference(word)) {
        command.add({word});
        continue;
      }
      TRIMPOT_TRY(const FileRef file, resolve(row, word));
      command.add_file(file);
    }
    return {};
  }

  // One command of a row.
  Status advance(const PlanRow& row, const PlanStep& step, State& state, RowSteps& steps) {
    if (step.command == "quantize") return quantize(row, step, state, steps);
    if (step.command == "tune") return tune(row, step, state, steps);
    return merge(row, step, state, steps);
  }

  Status quantize(const PlanRow& row, const PlanStep& step, State& state, RowSteps& steps) {
    if (!state.adapter.empty())
      return fail(problem(row, "quantize after tune needs a [\"merge\"] between them"));
    Arguments options = options_of("quantize", step.arguments);
    const std::string method = option_value(options, "--method");
    const bool calibrates = method == "optq" || method == "owq" || method == "qeft";
    if (calibrates && option_value(options, "--calib").empty())
      options.insert(options.end(), {"--calib", "@calib"});
    Command command("quantize", schedule_.steps);
    command.add({"quantize"});
    command.add_file(state.model);
    command.add_output(".gguf");
    TRIMPOT_TRY_VOID(add_words(row, options, command));
    command.add({"--json", "--quiet"});
    const std::size_t at = add(command, row, steps);
    steps.quantize.push_back(at);
    state.model = {schedule_.steps[at].output, at};
    return {};
  }

  Status tune(const PlanRow& row, const PlanStep& step, State& state, RowSteps& steps) {
    if (!state.adapter.empty())
      return fail(problem(row, "a second tune needs a [\"merge\"] before it"));
    Arguments options = options_of("tune", step.arguments);
    if (option_value(options, "--data").empty()) options.insert(options.end(), {"--data", "@data"});
    const std::string method = option_value(options, "--method");
    const bool whole_model =
        row.output == "gguf" || (row.output.empty() && (method == "full" || method == "qat"));
    Command command("tune", schedule_.steps);
    command.add({"tune", "-m"});
    command.add_file(state.model);
    command.add({"-o"});
    command.add_output(whole_model ? ".gguf" : ".safetensors");
    TRIMPOT_TRY_VOID(add_words(row, options, command));
    command.add({"--json", "--quiet"});
    steps.tuned_model = state.model.path;
    steps.tuned_model_step = state.model.step;
    const std::size_t at = add(command, row, steps);
    steps.tune = at;
    (whole_model ? state.model : state.adapter) = {schedule_.steps[at].output, at};
    state.tuned = state.adapter;
    return {};
  }

  Status merge(const PlanRow& row, const PlanStep& step, State& state, RowSteps& steps) {
    if (state.adapter.empty() && step.arguments.empty())
      return fail(problem(row,
                          "there is no adapter to merge; a tune must come before, or options "
                          "of trimpot merge"));
    Command command("merge", schedule_.steps);
    command.add({"merge", "-m"});
    command.add_file(state.model);
    command.add({"-o"});
    command.add_output(".gguf");
    if (!state.adapter.empty()) {
      command.add({"--adapter"});
      command.add_file(state.adapter);
    }
    TRIMPOT_TRY_VOID(add_words(row, options_of("merge", step.arguments), command));
    const std::size_t at = add(command, row, steps);
    steps.merge.push_back(at);
    state = {{schedule_.steps[at].output, at}, {}, state.tuned};
    return {};
  }

  // A measuring step of a state.
  Result<std::size_t> measure(const std::string& kind, const Arguments& words, const PlanRow& row,
                              const State& state, const Arguments& more, RowSteps& steps) {
    Command command(kind, schedule_.steps);
    command.add(words);
    command.add_file(state.model);
    if (!state.adapter.empty()) {
      command.add({"--adapter"});
      command.add_file(state.adapter);
    }
    TRIMPOT_TRY_VOID(add_words(row, more, command));
    command.add({"--json"});
    return add(command, row, steps);
  }

  Status measure_scores(const PlanRow& row, const State& state, RowSteps& steps,
                        std::optional<std::size_t>& ppl, std::optional<std::size_t>& task) {
    if (wants("ppl")) {
      TRIMPOT_TRY(ppl, measure("ppl", {"eval", "ppl", "-m"}, row, state,
                               merge_options(options_of("ppl", {}), {"-f", "@text"}), steps));
    }
    if (wants("task") && !inputs_.task.empty()) {
      TRIMPOT_TRY(task, measure("task", {"eval", "match", "-m"}, row, state,
                                merge_options(options_of("task", {}), {"--data", "@task"}), steps));
    }
    return {};
  }

  Result<RowSteps> schedule_row(const PlanRow& row) {
    RowSteps steps;
    State state;
    TRIMPOT_TRY(state.model, resolve(row, row.from));
    FileRef quantized;
    for (const PlanStep& step : row.steps) {
      // What learned or was added so far: nothing, so this is the state "before".
      if (quantized.empty() && step.command != "quantize") {
        quantized = state.model;
        TRIMPOT_TRY_VOID(measure_scores(row, state, steps, steps.ppl_before, steps.task_before));
      }
      TRIMPOT_TRY_VOID(advance(row, step, state, steps));
    }
    auto& ppl = quantized.empty() ? steps.ppl_before : steps.ppl_after;
    auto& task = quantized.empty() ? steps.task_before : steps.task_after;
    TRIMPOT_TRY_VOID(measure_scores(row, state, steps, ppl, task));
    if (wants("decode")) {
      TRIMPOT_TRY(steps.decode,
                  measure("decode", {"bench", "decode", "-m"}, row, state,
                          merge_options({"-n", "256"}, options_of("decode", {})), steps));
    }
    if (wants("inspect")) {
      TRIMPOT_TRY(steps.inspect,
                  measure("inspect", {"inspect"}, row, {state.model, {}, {}}, {}, steps));
    }
    if (wants("columns")) {
      TRIMPOT_TRY(steps.columns,
                  measure("columns", {"eval", "columns", "-m"}, row, {state.model, {}, {}},
                          merge_options({"-f", "@text"}, options_of("columns", {})), steps));
    }
    TRIMPOT_TRY_VOID(measure_tuning(row, state, steps));
    steps.final_model = state.model.path;
    steps.final_model_step = state.model.step;
    steps.adapter = state.adapter.path;
    steps.adapter_step = state.adapter.step;
    rows_[row.name] = {quantized.empty() ? state.model : quantized, state};
    return steps;
  }

  Status measure_tuning(const PlanRow& row, const State& state, RowSteps& steps) {
    if (!steps.tune) return {};
    if (wants("switch")) {
      TRIMPOT_TRY(steps.task_switch, measure("switch", {"bench", "switch", "-m"}, row, state,
                                             options_of("switch", {}), steps));
    }
    if (!wants("step")) return {};
    // The method's own options decide what a step computes; those of the run do not.
    const auto step = std::find_if(row.steps.begin(), row.steps.end(),
                                   [](const PlanStep& s) { return s.command == "tune"; });
    Arguments options{"--method", option_value(step->arguments, "--method")};
    for (const char* name : {"--lora-r", "--weak-columns", "--target-modules", "--precision"})
      if (const std::string value = option_value(step->arguments, name); !value.empty())
        options.insert(options.end(), {name, value});
    const FileRef model{steps.tuned_model, steps.tuned_model_step};
    TRIMPOT_TRY(steps.training_step,
                measure("step", {"bench", "tune", "-m"}, row, {model, {}, {}},
                        merge_options(options_of("step", {}), options), steps));
    return {};
  }

  bool wants(const std::string& what) const {
    return std::find(plan_.measure.begin(), plan_.measure.end(), what) != plan_.measure.end();
  }

  const Plan& plan_;
  const CompareInputs& inputs_;
  Schedule& schedule_;
  std::map<std::string, std::size_t>& known_;
  FileRef base_;
  std::map<std::string, std::pair<FileRef, State>> rows_;  // model before tuning, and the end
};

}  // namespace

Result<Schedule> make_schedule(const std::vector<Plan>& plans, const CompareInputs& inputs) {
  for (const std::string* path : {&inputs.model, &inputs.data, &inputs.other_data, &inputs.text,
                                  &inputs.calibration, &inputs.task})
    if (!path->empty() && file_identity(*path).empty())
      return fail("{}: there is no such file, or it is a folder", *path);
  Schedule schedule;
  std::map<std::string, std::size_t> known;
  for (const Plan& plan : plans) {
    TRIMPOT_TRY(std::vector<RowSteps> rows, Scheduler(plan, inputs, schedule, known).run());
    schedule.rows.push_back(std::move(rows));
  }
  return schedule;
}

}  // namespace trimpot::cli
