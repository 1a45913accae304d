#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/command.h"
#include "cli/compare/report.h"
#include "cli/engine.h"
#include "io/atomic_file.h"
#include "kernels/kernels.h"
#include "sys/thread_team.h"

namespace trimpot::cli {
namespace {

struct CompareOptions {
  CompareInputs inputs;
  std::vector<std::string> plans;
  std::string print_plan;
  bool list = false, keep_files = false, quiet = false, json = false, dry_run = false;
};

Status write_file(const std::string& path, const std::string& text) {
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(path));
  TRIMPOT_TRY_VOID(file.write(text));
  return file.commit();
}

Status list_plans() {
  std::string text = fmt::format("{:<10}{}\n", "Plan", "rows of");
  for (const std::string& name : builtin_plan_names()) {
    TRIMPOT_TRY(const Plan plan, parse_plan(name, builtin_plan(name)));
    text += fmt::format("  {:<8}{} ({} rows)\n", name, plan.title, plan.rows.size());
  }
  return print(text + "  papers  all of them but quick\n");
}

// A file, the name of a built-in plan, or all of the papers'.
Result<std::vector<Plan>> read_plans(const std::vector<std::string>& names) {
  std::vector<Plan> plans;
  for (const std::string& name : names) {
    std::vector<std::string> builtin{name};
    if (name == "papers") {
      builtin = builtin_plan_names();
      std::erase(builtin, "quick");
    }
    for (const std::string& part : builtin) {
      std::string text(builtin_plan(part));
      if (text.empty() && !part.ends_with(".json"))
        return fail("{}: no built-in plan of that name, and no .json file; --list shows the plans",
                    part);
      if (text.empty()) {
        TRIMPOT_TRY(text, read_text_file(part));
      }
      TRIMPOT_TRY(Plan plan, parse_plan(part, text));
      plans.push_back(std::move(plan));
    }
  }
  return plans;
}

std::string quoted(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_-./=,:@+") == std::string::npos;
  if (plain) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

ReportHead make_head(const CompareOptions& options) {
  const CompareInputs& in = options.inputs;
  ReportHead head;
  head.command = "trimpot compare -m " + quoted(in.model);
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) head.command += fmt::format(" {} {}", name, quoted(value));
  };
  const auto add_number = [&](const char* name, std::int64_t value) {
    if (value > 0) head.command += fmt::format(" {} {}", name, value);
  };
  add("--data", in.data);
  add("--text", in.text);
  if (in.calibration != in.data) add("--calib", in.calibration);
  add("--other-data", in.other_data);
  add("--task", in.task);
  for (const std::string& plan : options.plans) add("--plan", plan);
  add_number("--max-steps", in.max_steps);
  add_number("--chunks", in.chunks);
  add_number("--task-limit", in.task_limit);
  add_number("--threads", in.threads);
  add("-o", in.folder);
  head.model = in.model;
  head.data = in.data;
  head.text = in.text;
  const auto kernels = select_kernels();
  head.machine =
      fmt::format("{} threads, {} kernels", in.threads > 0 ? in.threads : default_thread_count(),
                  kernels ? (*kernels)->name : "no");
  return head;
}

Status show_steps(const Schedule& schedule) {
  std::string text;
  for (const Step& step : schedule.steps) {
    text += "trimpot";
    for (const std::string& word : step.arguments) text += " " + quoted(word);
    text += "\n";
  }
  return print(text);
}

Status write_reports(const CompareOptions& options, const std::vector<Plan>& plans,
                     const Schedule& schedule, const std::vector<StepResult>& results) {
  ReportHead head = make_head(options);
  for (const StepResult& result : results)
    head.mixed_builds = head.mixed_builds || result.other_build;
  const std::vector<Section> sections = make_sections(plans, schedule, results);
  const std::string& folder = options.inputs.folder;
  const std::string json =
      to_json(head, sections, schedule, results)
          .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
      "\n";
  const std::string text = markdown(head, sections);
  TRIMPOT_TRY_VOID(write_file(folder + "/results.json", json));
  TRIMPOT_TRY_VOID(write_file(folder + "/report.md", text));
  TRIMPOT_TRY_VOID(write_file(folder + "/report.html", html(head, sections)));
  for (const Section& section : sections)
    for (const Picture& picture : section.pictures)
      TRIMPOT_TRY_VOID(
          write_file(fmt::format("{}/plot-{}.svg", folder, picture.name), picture.svg));
  TRIMPOT_TRY_VOID(print(options.json ? json : text));
  std::size_t failed = 0, rows = 0;
  for (const Section& section : sections)
    for (const TableRow& row : section.table.rows) {
      ++rows;
      if (!row.problem.empty()) ++failed;
    }
  if (failed > 0)
    return fail("{} of {} rows failed, see above; the same command tries these again", failed,
                rows);
  return {};
}

Status compare(CompareOptions options) {
  if (options.list) return list_plans();
  if (!options.print_plan.empty()) {
    const std::string_view text = builtin_plan(options.print_plan);
    if (text.empty())
      return fail("{}: no built-in plan of that name; --list shows them", options.print_plan);
    return print(std::string(text));
  }
  CompareInputs& in = options.inputs;
  for (const auto& [name, value] : {std::pair<const char*, std::string*>{"-m", &in.model},
                                    {"--data", &in.data},
                                    {"--text", &in.text},
                                    {"-o", &in.folder}})
    if (value->empty()) return fail("compare needs {}; see trimpot compare --help", name);
  if (options.plans.empty()) options.plans = {"quick"};
  if (in.calibration.empty()) in.calibration = in.data;
  TRIMPOT_TRY(const std::vector<Plan> plans, read_plans(options.plans));
  TRIMPOT_TRY(const Schedule schedule, make_schedule(plans, in));
  if (options.dry_run) return show_steps(schedule);
  TRIMPOT_TRY(Runner runner, Runner::open(in.folder, options.keep_files));
  watch_interrupts();
  auto results = runner.run(schedule, [&](const std::string& line) {
    if (!options.quiet) note(line);
  });
  if (!results && interrupted())
    return fail("stopped; the same command goes on where it was ({})", in.folder);
  if (!results) return fail(results.error());
  return write_reports(options, plans, schedule, *results);
}

void add_options(CLI::App& command, CompareOptions& options) {
  CompareInputs& in = options.inputs;
  command.add_option("-m,--model", in.model, "the model that all rows start from (GGUF)");
  command.add_option("--data", in.data, "what is tuned on, as for trimpot tune");
  command.add_option("--text", in.text, "text for perplexity");
  command.add_option("--calib", in.calibration, "text for calibration (default: --data)");
  command.add_option("--other-data", in.other_data,
                     "what the target of merging is tuned on (table 3)");
  command.add_option("--task", in.task, "held-out records, scored by exact answers");
  command.add_option("--plan,--table", options.plans,
                     "a plan of your own (plan.json), a table or figure of the papers, quick, or "
                     "papers: all of them; may be given several times (default: quick)");
  command.add_option("-o,--out-dir", in.folder,
                     "folder for report.html, report.md, results.json and all that is made");
  command.add_option("--max-steps", in.max_steps, "steps of every tuning, instead of the plan's")
      ->check(whole_number(1));
  command.add_option("--chunks", in.chunks, "windows of perplexity, instead of the plan's")
      ->check(whole_number(1));
  command.add_option("--task-limit", in.task_limit, "records of --task to score")
      ->check(whole_number(1));
  command.add_option("-t,--threads", in.threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  command.add_flag("--keep-files", options.keep_files,
                   "keep every model; else only adapters stay when no step needs a model any more");
  command.add_flag("--dry-run", options.dry_run, "print the commands, run nothing");
  command.add_flag("--list", options.list, "list the built-in plans");
  command.add_option("--print-plan", options.print_plan,
                     "print a built-in plan: a start for your own");
  command.add_flag("-q,--quiet", options.quiet, "no progress");
  command.add_flag("--json", options.json, "JSON on stdout instead of Markdown");
}

}  // namespace

void add_compare(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("compare", "Quantize, tune and measure with many methods: one table");
  auto options = std::make_shared<CompareOptions>();
  add_options(*command, *options);
  command->footer(
      "Each step is a process of its own; its peak memory and time are the system's figures. What\n"
      "is finished is kept: the same command goes on after it was stopped.\n"
      "Examples:\n"
      "  trimpot compare -m model.gguf --data train.txt --text test.txt -o out\n"
      "  trimpot compare -m model.gguf --data train.txt --text test.txt --table A --table 2 -o "
      "out\n"
      "  trimpot compare --print-plan 7 > plan.json");
  command->callback([options, &action] { action = [options] { return compare(*options); }; });
}

}  // namespace trimpot::cli
