#include "cli/compare/runner.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "cli/compare/child.h"
#include "cli/engine.h"
#include "io/atomic_file.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

bool is_measured(const StepResult& result) {
  return result.problem.empty() && !result.result.is_null();
}

// All but merge have --json.
bool prints_result(const Step& step) { return step.kind != "merge"; }

// The last line of a program's messages that says something, without its name.
std::string last_message(const ChildResult& child) {
  std::string text = child.last_lines;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  const std::size_t line = text.find_last_of("\n\r");
  if (line != std::string::npos) text.erase(0, line + 1);
  if (text.starts_with("trimpot: ")) text.erase(0, 9);
  if (!text.empty()) return text;
  return child.exit_code > 128 ? fmt::format("ended by signal {}", child.exit_code - 128)
                               : fmt::format("exit code {}", child.exit_code);
}

std::string program_identity() {
  struct stat info {};
  if (::stat("/proc/self/exe", &info) != 0) return "";
  return fmt::format("{}-{}", info.st_size, info.st_mtim.tv_sec);
}

double number(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number() ? found->get<double>() : 0.0;
}

}  // namespace

Runner::Runner(std::string folder, int lock, bool keep_files)
    : folder_(std::move(folder)),
      lock_(lock),
      keep_files_(keep_files),
      build_(program_identity()) {}

Runner::Runner(Runner&& other) noexcept
    : folder_(std::move(other.folder_)),
      lock_(std::exchange(other.lock_, -1)),
      keep_files_(other.keep_files_),
      build_(std::move(other.build_)) {}

Runner::~Runner() {
  if (lock_ >= 0) ::close(lock_);
}

Result<Runner> Runner::open(const std::string& folder, bool keep_files) {
  std::error_code error;
  for (const char* part : {"/steps", "/files"}) {
    fs::create_directories(folder + part, error);
    if (error) return fail("{}{}: cannot make this folder: {}", folder, part, error.message());
  }
  const std::string path = folder + "/lock";
  const int lock = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) return fail("{}: {}", path, std::strerror(errno));
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock);
    return fail("{}: another trimpot compare works in this folder; wait for it, or choose another",
                folder);
  }
  for (const char* part : {"/steps", "/files"})
    for (const auto& entry : fs::directory_iterator(folder + part, error))
      if (entry.path().filename().string().find(".partial-") != std::string::npos)
        fs::remove(entry.path(), error);
  return Runner(folder, lock, keep_files);
}

std::string Runner::result_path(const Step& step) const {
  return fmt::format("{}/steps/{}.json", folder_, step.key);
}

// A result that cannot be read is measured again.
void Runner::load(const Step& step, StepResult& result) const {
  std::error_code error;
  if (!fs::exists(result_path(step), error)) return;
  const auto text = read_text_file(result_path(step));
  if (!text) return;
  const Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("result") || !json["result"].is_object()) return;
  if (json["result"].empty() && prints_result(step)) return;
  result.result = json["result"];
  result.seconds = number(json, "seconds");
  result.peak_rss_mb = number(json, "peak_rss_mb");
  result.output_bytes = number(json, "output_bytes");
  result.reused = true;
  result.other_build = !json.contains("program") || json["program"] != Json(build_);
}

Status Runner::save(const Step& step, const StepResult& result) const {
  const Json json{{"kind", step.kind},
                  {"argv", step.arguments},
                  {"seconds", result.seconds},
                  {"peak_rss_mb", result.peak_rss_mb},
                  {"output_bytes", result.output_bytes},
                  {"program", build_},
                  {"result", result.result}};
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(result_path(step)));
  TRIMPOT_TRY_VOID(file.write(json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
  return file.commit();
}

// Runs a step, after those whose outputs it reads if these are gone.
Status Runner::perform(const Schedule& schedule, std::size_t at, std::vector<StepResult>& results,
                       const StepProgress& progress) {
  const Step& step = schedule.steps[at];
  StepResult& result = results[at];
  std::error_code error;
  for (const std::size_t input : step.inputs) {
    if (results[input].problem.empty() && !fs::exists(schedule.steps[input].output, error))
      TRIMPOT_TRY_VOID(perform(schedule, input, results, progress));
    if (results[input].problem.empty()) continue;
    result = {};
    result.problem =
        results[input].problem;  // the first cause says more than "an input is missing"
    return {};
  }
  progress(fmt::format("{}/{} {}: {}", at + 1, schedule.steps.size(), step.row, step.kind));
  TRIMPOT_TRY(const ChildResult child, run_child(step.arguments));
  result = {};
  if (child.exit_code != 0) {
    result.problem = fmt::format("{}: {}", step.kind, last_message(child));
    progress(fmt::format("  failed\n{}", child.last_lines));
    return {};
  }
  result.result = Json::parse(child.output, nullptr, false);
  if (!result.result.is_object()) result.result = Json::object();
  if (result.result.empty() && prints_result(step)) {
    result.problem = fmt::format("{}: printed no result", step.kind);
    return {};
  }
  result.seconds = child.seconds;
  result.peak_rss_mb = child.peak_rss_mb;
  if (!step.output.empty()) {
    const auto bytes = fs::file_size(step.output, error);
    if (error) {
      result.problem = fmt::format("{}: {} was not written", step.kind, step.output);
      return {};
    }
    result.output_bytes = static_cast<double>(bytes);
  }
  progress(fmt::format("  {:.1f} s, {:.0f} MB", child.seconds, child.peak_rss_mb));
  return save(step, result);
}

// Models that no step after `done` has to read. Adapters are small and what people want to have.
void Runner::delete_unneeded(const Schedule& schedule, const std::vector<StepResult>& results,
                             std::size_t done) const {
  std::vector<bool> needed(schedule.steps.size());
  for (std::size_t at = done + 1; at < schedule.steps.size(); ++at)
    if (!is_measured(results[at]))
      for (const std::size_t input : schedule.steps[at].inputs) needed[input] = true;
  std::error_code ignored;
  for (std::size_t at = 0; at <= done; ++at)
    if (!needed[at] && schedule.steps[at].output.ends_with(".gguf"))
      fs::remove(schedule.steps[at].output, ignored);
}

Result<std::vector<StepResult>> Runner::run(const Schedule& schedule,
                                            const StepProgress& progress) {
  std::vector<StepResult> results(schedule.steps.size());
  for (std::size_t at = 0; at < results.size(); ++at) load(schedule.steps[at], results[at]);
  for (std::size_t at = 0; at < results.size(); ++at) {
    if (is_measured(results[at])) continue;
    TRIMPOT_TRY_VOID(perform(schedule, at, results, progress));
    if (!keep_files_) delete_unneeded(schedule, results, at);
  }
  return results;
}

}  // namespace trimpot::cli
