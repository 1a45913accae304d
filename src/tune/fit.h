// How much memory a tuning run takes, computed from shapes before anything is allocated, and
// whether this machine has it. Follows the allocations of model/, kernels/ and tune/ one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"
#include "kernels/ops.h"
#include "tune/tunable.h"

namespace trimpot {

struct FitOptions {
  SizeOptions tuning;
  bool dropout = false;  // of the low-rank path's input
  bool adapter = false;  // the result is one, else a whole model file
  const gguf::File* teacher = nullptr;
  std::int64_t max_seq_length = 512;
  std::int64_t sequences_per_step = 4;  // batch size times gradient accumulation
  Precision precision = Precision::kDefault;
  int threads = 1;
  std::size_t data_bytes = 0;  // size of the training file, 0: unknown
  // What the run may use; 0: what this machine has (free_memory()).
  std::size_t available = 0;
};

// The sequence length of a run: what was asked for, or, for 0, 512 or the model's context if that
// is smaller. Errors: longer than the context; a model that cannot be read.
Result<std::int64_t> sequence_length(const gguf::File& file, std::int64_t requested);

struct FitItem {
  std::string name;
  std::size_t bytes;
  std::string why;
};

struct FitReport {
  std::vector<FitItem> items;
  std::size_t total = 0;  // their sum
  std::size_t available = 0;
  bool fits = true;  // also if what is available is not known; then it is 0
  // If it does not fit: what to do, "try --scale-granularity row (about 190 MB)".
  std::string advice;
};

// Errors: a model that this program cannot run (file and key or tensor), nothing that the method
// could tune, an unknown target module.
Result<FitReport> estimate_fit(const gguf::File& file, const FitOptions& options);

// Memory that a program may still take: MemAvailable of /proc/meminfo, or what is left of its
// control group's limit (either version), whichever is less. Nothing if neither can be found out.
// `root` is put before the paths (tests).
std::optional<std::size_t> free_memory(const std::string& root = "");

}  // namespace trimpot
