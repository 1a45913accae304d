#include "tune/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "tune/loss_curve.h"

namespace trimpot {
namespace {

// Keeps the order of the keys as they are written here.
using Json = nlohmann::ordered_json;

std::string to_line(const StepMetrics& m) {
  // dump() writes null for what is not finite.
  return Json{{"step", m.step},
              {"epoch", m.epoch},
              {"loss", m.loss},
              {"learning_rate", m.learning_rate},
              {"grad_norm", m.grad_norm},
              {"tokens", m.tokens},
              {"tokens_per_second", m.tokens_per_second},
              {"seconds", m.seconds}}
             .dump() +
         "\n";
}

std::string to_line(const EvalMetrics& m) {
  return Json{{"step", m.step},
              {"eval_loss", m.loss},
              {"eval_tokens", m.tokens},
              {"seconds", m.seconds}}
             .dump() +
         "\n";
}

double number(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number()) return std::numeric_limits<double>::quiet_NaN();
  return found->get<double>();
}

std::uint64_t whole_number(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

// Adds one line to `metrics`; false if it is none of ours.
bool add_line(const std::string& line, Metrics& metrics) {
  const Json object = Json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_unsigned())
    return false;
  const std::uint64_t step = whole_number(object, "step");
  if (object.contains("eval_loss")) {
    metrics.evals.push_back({step, number(object, "eval_loss"), whole_number(object, "eval_tokens"),
                             number(object, "seconds")});
    return true;
  }
  if (!object.contains("loss")) return false;
  metrics.steps.push_back({step, number(object, "epoch"), number(object, "loss"),
                           number(object, "learning_rate"), number(object, "grad_norm"),
                           whole_number(object, "tokens"), number(object, "tokens_per_second"),
                           number(object, "seconds")});
  return true;
}

std::string system_error_text() { return std::generic_category().message(errno); }

}  // namespace

Result<Metrics> read_metrics(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail("{}: cannot be read: {}", path, system_error_text());
  Metrics metrics;
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    if (file.eof()) break;  // no line end: a kill cut it short
    if (!add_line(line, metrics))
      return fail("{}:{}: not a line of training metrics; remove the file or choose another folder",
                  path, number);
  }
  return metrics;
}

Result<RunFolder> RunFolder::open(const std::string& path,
                                  std::optional<std::uint64_t> resume_step) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path, error))
    return fail("{}: the run folder cannot be made: {}", path,
                error ? error.message() : "a file has that name");
  const std::string metrics_path = path + "/metrics.jsonl";
  Metrics kept;
  if (resume_step && std::filesystem::exists(metrics_path, error)) {
    TRIMPOT_TRY(kept, read_metrics(metrics_path));
    std::erase_if(kept.steps, [&](const StepMetrics& m) { return m.step > *resume_step; });
    std::erase_if(kept.evals, [&](const EvalMetrics& m) { return m.step > *resume_step; });
  }
  // The kept lines are written to a new file that then takes the name: a kill in between loses
  // nothing.
  const std::string partial = metrics_path + ".partial";
  const int descriptor =
      ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor < 0) return fail("{}: cannot be written: {}", metrics_path, system_error_text());
  RunFolder folder(path, descriptor, {});
  auto eval = kept.evals.begin();
  for (const StepMetrics& step : kept.steps) {
    for (; eval != kept.evals.end() && eval->step < step.step; ++eval)
      TRIMPOT_TRY_VOID(folder.append(*eval));
    TRIMPOT_TRY_VOID(folder.append(step));
  }
  for (; eval != kept.evals.end(); ++eval) TRIMPOT_TRY_VOID(folder.append(*eval));
  std::filesystem::rename(partial, metrics_path, error);
  if (error) return fail("{}: cannot be written: {}", metrics_path, error.message());
  return folder;
}

RunFolder::RunFolder(std::string path, int descriptor, Metrics metrics)
    : path_(std::move(path)), descriptor_(descriptor), metrics_(std::move(metrics)) {}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      metrics_(std::move(other.metrics_)) {}

RunFolder& RunFolder::operator=(RunFolder&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(metrics_, other.metrics_);
  return *this;
}

RunFolder::~RunFolder() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status RunFolder::append_line(const std::string& line) {
  std::size_t written = 0;
  while (written < line.size()) {
    const ssize_t count = ::write(descriptor_, line.data() + written, line.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      return fail("{}: cannot be written: {}", file("metrics.jsonl"), system_error_text());
    written += static_cast<std::size_t>(count);
  }
  return {};
}

Status RunFolder::append(const StepMetrics& metrics) {
  TRIMPOT_TRY_VOID(append_line(to_line(metrics)));
  metrics_.steps.push_back(metrics);
  return {};
}

Status RunFolder::append(const EvalMetrics& metrics) {
  TRIMPOT_TRY_VOID(append_line(to_line(metrics)));
  metrics_.evals.push_back(metrics);
  return {};
}

Status RunFolder::write_loss_curve(const std::string& title) const {
  LossCurve curve;
  curve.title = title;
  for (const StepMetrics& m : metrics_.steps)
    curve.training.push_back({static_cast<double>(m.step), m.loss});
  for (const EvalMetrics& m : metrics_.evals)
    curve.validation.push_back({static_cast<double>(m.step), m.loss});
  const std::string path = file("loss.svg");
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial, std::ios::binary | std::ios::trunc);
    out << loss_curve_svg(curve);
    out.close();
    if (!out) return fail("{}: cannot be written: {}", path, system_error_text());
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) return fail("{}: cannot be written: {}", path, error.message());
  return {};
}

}  // namespace trimpot
