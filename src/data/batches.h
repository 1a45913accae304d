// Which examples every step of a run sees: a function of the options and the step number alone,
// so that a resumed run needs nothing but that number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace trimpot {

// Indices of examples, in file order.
struct DataSplit {
  std::vector<std::uint32_t> training;
  std::vector<std::uint32_t> validation;
};

// Sets `val_size` of `examples` aside: a fraction below 1 (rounded up), or a count from 1; 0 for
// none. Chosen by seed, or the last ones if `take_last` (windows of one text: neighbours of a
// validation window must not all be trained on). Errors: a val_size that is negative, no whole
// count, or leaves nothing to train on.
Result<DataSplit> split_examples(std::size_t examples, double val_size, std::uint64_t seed,
                                 bool take_last);

struct BatchOptions {
  std::size_t sequences_per_step = 8;  // batch size times gradient accumulation
  std::uint64_t seed = 0;
  bool shuffle = true;   // false: file order in every epoch
  bool packing = false;  // several short examples in one sequence of at most max_seq_length tokens
  std::size_t max_seq_length = 512;
};

// One sequence: the examples in it, one after another. Attention stays inside each of them.
using ExampleIndices = std::vector<std::uint32_t>;

// Packing happens once, first-fit over the examples in an order by seed with a bounded number of
// open sequences; every epoch then visits all sequences in an order of its own. So all epochs have
// the same number of steps, the last of which may be smaller.
class BatchPlan {
 public:
  // `training`: indices of the examples to train on; lengths[i]: tokens of example training[i].
  // Errors: nothing to train on, no sequence per step.
  static Result<BatchPlan> create(std::span<const std::uint32_t> training,
                                  std::span<const std::size_t> lengths,
                                  const BatchOptions& options);

  std::size_t sequences() const { return sequences_.size(); }
  std::size_t steps_per_epoch() const;
  // Steps of `epochs` (fractions are fine, rounded up), or max_steps where that is not 0. Errors:
  // neither, a number of epochs that is not above 0, more than 2^53 steps.
  Result<std::uint64_t> total_steps(double epochs, std::uint64_t max_steps) const;

  // The sequences of a step, counted from 0 over the whole run. Keeps the order of the last epoch
  // that was asked for: not for several threads at once.
  std::vector<ExampleIndices> step(std::uint64_t step);

 private:
  BatchOptions options_;
  std::vector<ExampleIndices> sequences_;
  std::vector<std::uint32_t> order_;  // of order_epoch_
  std::uint64_t order_epoch_ = ~std::uint64_t{0};
};

}  // namespace trimpot
