#include "cli/eval/common.h"

#include <unistd.h>

#include <cstdio>

#include "io/atomic_file.h"
#include "tune/progress.h"

namespace trimpot::cli {

void live(const std::string& line) {
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[K%s", line.c_str());
}

double Clock::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string Clock::eta(std::int64_t done, std::int64_t total) const {
  return format_duration(seconds() / static_cast<double>(done) * static_cast<double>(total - done));
}

void add_metrics(Json& json, std::span<const Metric> metrics) {
  for (const Metric& metric : metrics) {
    json[metric.name] = metric.value;
    json[metric.name + "_stderr"] = metric.error;
  }
}

std::string to_line(const Json& json) { return dump(json) + "\n"; }

Status write_lines(const std::string& path, std::span<const Json> lines) {
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(path));
  for (const Json& line : lines) TRIMPOT_TRY_VOID(file.write(to_line(line)));
  return file.commit();
}

}  // namespace trimpot::cli
