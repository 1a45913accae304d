// What the subcommands of eval share.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "cli/command.h"
#include "eval/choice.h"

namespace trimpot::cli {

using Json = nlohmann::ordered_json;

void add_eval_choice(CLI::App& eval, Action& action);
void add_eval_columns(CLI::App& eval, Action& action);
void add_eval_generate(CLI::App& eval, Action& action);
void add_eval_kl(CLI::App& eval, Action& action);
void add_eval_match(CLI::App& eval, Action& action);
void add_eval_ppl(CLI::App& eval, Action& action);
void add_eval_report(CLI::App& eval, Action& action);

// A line on stderr that is redrawn on a terminal and left out elsewhere.
void live(const std::string& line);

class Clock {
 public:
  double seconds() const;
  std::string eta(std::int64_t done, std::int64_t total) const;

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// {"acc": ..., "acc_stderr": ...}
void add_metrics(Json& json, std::span<const Metric> metrics);
// Bytes that are not UTF-8 (an answer may be cut inside a character) are replaced.
std::string to_line(const Json& json);
// JSON Lines, whole or not at all.
Status write_lines(const std::string& path, std::span<const Json> lines);

}  // namespace trimpot::cli
