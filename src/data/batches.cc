#include "data/batches.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"

namespace trimpot {
namespace {

// Random streams of a seed: epochs count from 0, the others lie where no epoch comes.
constexpr std::uint64_t kSplitStream = std::uint64_t{1} << 63;
constexpr std::uint64_t kPackingStream = kSplitStream + 1;

// Fisher-Yates.
std::vector<std::uint32_t> shuffled(std::size_t size, const CounterRng& rng) {
  std::vector<std::uint32_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = size; i > 1; --i) std::swap(order[i - 1], order[rng.below(i, i)]);
  return order;
}

// First fit: each example goes into the oldest open sequence with room. A sequence that does not
// take the example when all places are open makes way if it is the fullest.
std::vector<ExampleIndices> pack(std::span<const std::uint32_t> order,
                                 std::span<const std::uint32_t> training,
                                 std::span<const std::size_t> lengths, std::size_t capacity) {
  constexpr std::size_t kOpen = 64;  // the search costs at most so many looks per example
  struct Open {
    std::size_t sequence, room;
  };
  std::vector<ExampleIndices> sequences;
  std::vector<Open> open;
  for (const std::uint32_t i : order) {
    const std::size_t length = lengths[i];
    auto place =
        std::find_if(open.begin(), open.end(), [&](const Open& o) { return o.room >= length; });
    if (place == open.end()) {
      if (open.size() == kOpen)
        open.erase(std::min_element(open.begin(), open.end(),
                                    [](const Open& a, const Open& b) { return a.room < b.room; }));
      open.push_back({sequences.size(), std::max(capacity, length)});
      sequences.emplace_back();
      place = open.end() - 1;
    }
    sequences[place->sequence].push_back(training[i]);
    place->room -= length;
  }
  return sequences;
}

}  // namespace

Result<DataSplit> split_examples(std::size_t examples, double val_size, std::uint64_t seed,
                                 bool take_last) {
  if (!(val_size >= 0.0)) return fail("val-size is {}; it must be 0 or more", val_size);
  if (val_size >= 1.0 && val_size != std::floor(val_size))
    return fail("val-size is {}; give a fraction below 1 or a whole number of records", val_size);
  if (examples > std::numeric_limits<std::uint32_t>::max())
    return fail("the data has {} examples; at most 2^32 - 1 are supported", examples);
  const double total = static_cast<double>(examples);
  const double wanted = val_size < 1.0 ? std::ceil(val_size * total) : val_size;
  if (wanted > 0.0 && wanted >= total)
    return fail("val-size {} sets aside all {} examples; nothing is left to train on", val_size,
                examples);
  const auto count = static_cast<std::size_t>(wanted);
  std::vector<bool> is_validation(examples, false);
  if (take_last) {
    std::fill(is_validation.end() - static_cast<std::ptrdiff_t>(count), is_validation.end(), true);
  } else if (count > 0) {
    const auto order = shuffled(examples, CounterRng(seed, kSplitStream));
    for (std::size_t i = 0; i < count; ++i) is_validation[order[i]] = true;
  }
  DataSplit split;
  for (std::size_t i = 0; i < examples; ++i)
    (is_validation[i] ? split.validation : split.training).push_back(static_cast<std::uint32_t>(i));
  return split;
}

Result<BatchPlan> BatchPlan::create(std::span<const std::uint32_t> training,
                                    std::span<const std::size_t> lengths,
                                    const BatchOptions& options) {
  if (training.empty()) return fail("there is no example to train on");
  if (training.size() != lengths.size())
    return fail("{} examples but {} lengths; this is a bug", training.size(), lengths.size());
  if (options.sequences_per_step == 0)
    return fail("the batch size is 0; at least one sequence per step is needed");
  BatchPlan plan;
  plan.options_ = options;
  if (options.packing) {
    std::vector<std::uint32_t> order;
    if (options.shuffle) {
      order = shuffled(training.size(), CounterRng(options.seed, kPackingStream));
    } else {
      order.resize(training.size());
      std::iota(order.begin(), order.end(), 0u);
    }
    plan.sequences_ = pack(order, training, lengths, options.max_seq_length);
  } else {
    plan.sequences_.reserve(training.size());
    for (const std::uint32_t example : training) plan.sequences_.push_back({example});
  }
  return plan;
}

std::size_t BatchPlan::steps_per_epoch() const {
  return (sequences_.size() - 1) / options_.sequences_per_step + 1;
}

Result<std::uint64_t> BatchPlan::total_steps(double epochs, std::uint64_t max_steps) const {
  if (max_steps > 0) return max_steps;
  if (!(epochs > 0.0)) return fail("the number of epochs is {}; it must be above 0", epochs);
  const double steps = std::ceil(epochs * static_cast<double>(steps_per_epoch()));
  if (!(steps <= 0x1p53)) return fail("{} epochs are too many; lower the number", epochs);
  return static_cast<std::uint64_t>(steps);
}

std::vector<ExampleIndices> BatchPlan::step(std::uint64_t step) {
  const std::uint64_t epoch = step / steps_per_epoch();
  if (options_.shuffle && epoch != order_epoch_) {
    order_ = shuffled(sequences_.size(), CounterRng(options_.seed, epoch));
    order_epoch_ = epoch;
  }
  const std::size_t begin =
      static_cast<std::size_t>(step % steps_per_epoch()) * options_.sequences_per_step;
  const std::size_t end = begin + std::min(options_.sequences_per_step, sequences_.size() - begin);
  std::vector<ExampleIndices> batch;
  for (std::size_t i = begin; i < end; ++i)
    batch.push_back(sequences_[options_.shuffle ? order_[i] : i]);
  return batch;
}

}  // namespace trimpot
