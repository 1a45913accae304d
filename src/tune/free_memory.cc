#include <algorithm>
#include <fstream>
#include <sstream>

#include "tune/fit.h"

namespace trimpot {
namespace {

std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // not there, or "max"
}

// The value of a "key 123" line, as in memory.stat.
std::uint64_t read_field(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  std::uint64_t value = 0;
  while (file >> name >> value)
    if (name == key) return value;
  return 0;
}

// What is left of one control group's limit; file pages that are not in use can be given up.
std::optional<std::uint64_t> left_in_group(const std::string& folder, bool version_2) {
  const auto limit = read_number(folder + (version_2 ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used =
      read_number(folder + (version_2 ? "/memory.current" : "/memory.usage_in_bytes"));
  // Version 1 writes "no limit" as nearly 2^63.
  if (!limit || !used || *limit >= std::uint64_t{1} << 60) return std::nullopt;
  const std::uint64_t idle =
      read_field(folder + "/memory.stat", version_2 ? "inactive_file" : "total_inactive_file");
  const std::uint64_t in_use = *used - std::min(idle, *used);
  return *limit - std::min(in_use, *limit);
}

}  // namespace

std::optional<std::size_t> free_memory(const std::string& root) {
  std::optional<std::size_t> free;
  const auto at_most = [&](std::size_t value) { free = std::min(free.value_or(value), value); };
  std::ifstream meminfo(root + "/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    std::istringstream fields(line);
    std::string key;
    std::uint64_t kilobytes = 0;
    if (fields >> key >> kilobytes && key == "MemAvailable:") at_most(kilobytes * 1024);
  }
  // Lines are "0::/path" (version 2) and "4:memory:/path" (version 1). Every group above has its
  // own limit; in a container the path may not be visible, but its root is.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool version_2 = line.starts_with("0::");
    const std::size_t colon = line.find(":memory:");
    if (!version_2 && colon == std::string::npos) continue;
    std::string path = line.substr(version_2 ? 3 : colon + 8);
    const std::string base = root + "/sys/fs/cgroup" + (version_2 ? "" : "/memory");
    for (;; path.resize(path.rfind('/'))) {
      if (const auto left = left_in_group(base + path, version_2)) at_most(*left);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return free;
}

}  // namespace trimpot
