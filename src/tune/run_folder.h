// What a tuning run leaves beside its result: metrics.jsonl, one JSON object a line, and loss.svg.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace trimpot {

// A training step: {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens",
// "tokens_per_second", "seconds"}.
struct StepMetrics {
  std::uint64_t step = 0;  // finished steps, so from 1
  double epoch = 0.0;      // finished part of the run in passes over the data
  double loss = 0.0;       // mean over the learned tokens of the step
  double learning_rate = 0.0;
  double grad_norm = 0.0;    // before clipping
  std::uint64_t tokens = 0;  // processed since the start of the run
  double tokens_per_second = 0.0;
  double seconds = 0.0;  // since the start of the run
};

// A validation: {"step", "eval_loss", "eval_tokens", "seconds"}.
struct EvalMetrics {
  std::uint64_t step = 0;
  double loss = 0.0;
  std::uint64_t tokens = 0;  // learned tokens that the loss is a mean of
  double seconds = 0.0;
};

// Everything that a metrics file holds, in file order.
struct Metrics {
  std::vector<StepMetrics> steps;
  std::vector<EvalMetrics> evals;
};

class RunFolder {
 public:
  // Makes the folder (and those above it) if it is missing. A new run (`resume_step` is nothing)
  // starts metrics.jsonl anew; a resumed one keeps the lines up to and including `resume_step` and
  // drops later ones, and a last line that a kill cut short. Errors: a file of that name, no
  // permission, a metrics.jsonl that holds something else.
  static Result<RunFolder> open(const std::string& path,
                                std::optional<std::uint64_t> resume_step = std::nullopt);
  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&& other) noexcept;
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  // One line, handed to the system before the call returns.
  Status append(const StepMetrics& metrics);
  Status append(const EvalMetrics& metrics);

  // What was appended so far and, after a resume, kept.
  const Metrics& metrics() const { return metrics_; }

  // Writes loss.svg (loss_curve.h) of all metrics.
  Status write_loss_curve(const std::string& title) const;

 private:
  RunFolder(std::string path, int descriptor, Metrics metrics);
  Status append_line(const std::string& line);
  std::string path_;
  int descriptor_ = -1;
  Metrics metrics_;
};

// Reads a metrics.jsonl. A number that was not finite is null in the file and comes back as NaN.
// A last line without its line end is left out. Errors name file and line.
Result<Metrics> read_metrics(const std::string& path);

}  // namespace trimpot
