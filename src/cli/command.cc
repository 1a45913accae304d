#include "cli/command.h"

#include <sys/resource.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>

#include "io/atomic_file.h"

namespace trimpot::cli {

namespace {

template <typename Number>
std::optional<Number> parse(const std::string& text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return {};
  return number;
}

// `description` stands in --help.
template <typename Number, typename Allows>
CLI::Validator validator(std::string description, Allows allows) {
  return CLI::Validator(
      [=](std::string& text) {
        const auto number = parse<Number>(text);
        if (number && allows(*number)) return std::string();
        return fmt::format("{} is not {}", text, description);
      },
      description);
}

}  // namespace

CLI::Validator whole_number(std::uint64_t least, std::uint64_t most) {
  const std::string range = most == UINT64_MAX
                                ? fmt::format("a whole number from {} on", least)
                                : fmt::format("a whole number from {} to {}", least, most);
  return validator<std::uint64_t>(
      range, [=](std::uint64_t number) { return number >= least && number <= most; });
}

CLI::Validator number_between(double least, double most) {
  return validator<double>(fmt::format("a number from {} to {}", least, most),
                           [=](double number) { return number >= least && number <= most; });
}

CLI::Validator finite_number() {
  return validator<double>("a number", [](double number) { return std::isfinite(number); });
}

CLI::Validator not_empty() {
  return CLI::Validator(
      [](std::string& text) { return text.empty() ? "may not be empty" : std::string(); }, "");
}

Status check_output_file(const std::string& output, std::span<const std::string> inputs) {
  std::error_code missing;
  for (const std::string& input : inputs)
    if (!input.empty() && std::filesystem::equivalent(input, output, missing))
      return fail("{}: the output is an input, {}; choose another name", output, input);
  TRIMPOT_TRY(const AtomicFile probe, AtomicFile::create(output));
  return {};
}

std::string dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

double file_bytes(const std::string& path) {
  std::error_code none;
  const auto bytes = std::filesystem::file_size(path, none);
  return none ? 0 : static_cast<double>(bytes);
}

Status print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return fail("cannot write to standard output");
  return {};
}

void note(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

std::string format_bytes(double bytes) {
  if (bytes < 1e3) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1e6) return fmt::format("{:.1f} kB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

std::size_t peak_memory() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

std::size_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

std::size_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  std::size_t kilobytes = 0;
  while (file >> key >> kilobytes) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return 0;
}

}  // namespace trimpot::cli
