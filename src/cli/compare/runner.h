// Runs steps, each as a process of its own, and keeps what they gave in <folder>/steps/, so that a
// run that was stopped goes on where it was.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/compare/steps.h"

namespace trimpot::cli {

struct StepResult {
  nlohmann::ordered_json result;  // what the command printed, {} if that is no JSON
  double seconds = 0;             // of the process
  double peak_rss_mb = 0;         // of the process, 10^6 bytes
  double output_bytes = 0;        // size of what it wrote
  bool reused = false;            // from an earlier run
  bool other_build = false;       // reused, and measured by another build of this program
  std::string problem;            // why there is none; empty: there is
};

// "3/40", what is going on; then what came of it.
using StepProgress = std::function<void(const std::string& line)>;

class Runner {
 public:
  // Makes the folder, takes its lock and removes what a killed run left half written.
  static Result<Runner> open(const std::string& folder, bool keep_files);
  Runner(Runner&& other) noexcept;
  Runner& operator=(Runner&&) = delete;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  ~Runner();

  // Results in the order of the schedule's steps. A step that fails has a problem, and so have
  // those that need its output. Unless files are kept, a model is deleted when no step needs it any
  // more (adapters stay); if one does later, it is made again. Errors: Ctrl-C, a full disk.
  Result<std::vector<StepResult>> run(const Schedule& schedule, const StepProgress& progress);

 private:
  Runner(std::string folder, int lock, bool keep_files);
  std::string result_path(const Step& step) const;
  void load(const Step& step, StepResult& result) const;
  Status save(const Step& step, const StepResult& result) const;
  Status perform(const Schedule& schedule, std::size_t at, std::vector<StepResult>& results,
                 const StepProgress& progress);
  void delete_unneeded(const Schedule& schedule, const std::vector<StepResult>& results,
                       std::size_t done) const;

  std::string folder_;
  int lock_;
  bool keep_files_;
  std::string build_;  // identity of this program's file
};

}  // namespace trimpot::cli
