// The training loop. It knows parameters, examples and a schedule, but no method.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "data/batches.h"
#include "data/examples.h"
#include "model/training_pass.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tune/parameters.h"
#include "tune/run_folder.h"

namespace trimpot {

struct TrainerOptions {
  double learning_rate = 5e-3;
  ScheduleKind schedule = ScheduleKind::kLinear;
  double warmup_ratio = 0.03;
  std::uint64_t warmup_steps = 0;  // wins over the ratio where not 0
  AdamWOptions adamw;
  double max_grad_norm = 1.0;  // 0: no clipping
  std::size_t batch_size = 4;
  std::size_t gradient_accumulation_steps = 1;
  double epochs = 1;
  std::uint64_t max_steps = 0;  // wins over epochs where not 0
  std::size_t max_seq_length = 512;
  bool packing = false;
  bool shuffle = true;
  std::uint64_t seed = 0;
  double val_size = 0;           // a fraction below 1, or a count
  std::uint64_t eval_steps = 0;  // 0: before, after, and not between
  std::uint64_t save_steps = 0;  // 0: no checkpoints but at an interruption
  std::size_t save_total_limit = 2;
  Teacher teacher;  // whose logits are learned, instead of or beside the data
};

struct StepReport {
  StepMetrics metrics;
  std::uint64_t total_steps = 0;
};

struct TrainerHooks {
  std::function<void(const StepReport&)> step;
  std::function<void(const EvalMetrics&)> evaluated;
  std::function<bool()> stop;  // true: save a checkpoint and return
};

struct TrainerResult {
  bool finished = false;   // false: stopped by the hook; a checkpoint was written
  std::string checkpoint;  // the file, when stopped
  std::uint64_t steps = 0;
  double train_loss = 0;  // mean of the last steps (at most 20)
  std::optional<double> first_eval_loss, last_eval_loss;
  double seconds = 0;
  std::uint64_t tokens = 0;
};

class Trainer {
 public:
  // `identity` ties checkpoints to base file, data and options: a checkpoint with another one is
  // refused. Errors: impossible options, nothing to train on.
  static Result<Trainer> create(Compute& compute, Model& model, TuningMethod& method,
                                const ExampleSet& examples, bool windows,
                                const TrainerOptions& options, std::string identity);

  std::uint64_t total_steps() const { return total_steps_; }
  std::size_t training_examples() const { return split_.training.size(); }
  std::size_t validation_examples() const { return split_.validation.size(); }

  // Continues from a checkpoint file; gives a warning if the continuation will not be exact (other
  // kernels), else an empty text. Errors: another run's, damaged.
  Result<std::string> resume(const std::string& checkpoint_path);
  std::uint64_t step() const { return step_; }
  // Writes a checkpoint of the state as it is and says where.
  Result<std::string> save(const std::string& folder);

  Result<TrainerResult> run(RunFolder& folder, const TrainerHooks& hooks);

 private:
  Trainer(Compute& compute, Model& model, TuningMethod& method, const ExampleSet& examples,
          const TrainerOptions& options, std::string identity, DataSplit split, BatchPlan plan,
          std::uint64_t total_steps);

  // Forward and backward of one optimizer step; the mean loss.
  Result<LossSum> accumulate_gradients();
  Status update(double learning_rate, double& grad_norm);
  Result<EvalMetrics> evaluate();
  // Appends an example to a batch.
  void append(std::uint32_t example, TrainingBatch& batch) const;

  Compute& compute_;
  Model& model_;
  TuningMethod& method_;
  const ExampleSet& examples_;
  TrainerOptions options_;
  std::string identity_;
  DataSplit split_;
  BatchPlan plan_;
  Schedule schedule_;
  TrainingPass pass_;
  std::uint64_t total_steps_ = 0;
  std::uint64_t step_ = 0;    // finished steps
  std::uint64_t tokens_ = 0;  // processed by them
};

// The checkpoint of a run folder that was written last, if any.
std::optional<std::string> latest_checkpoint(const std::string& folder);

}  // namespace trimpot
