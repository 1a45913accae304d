#include "tune/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "optim/clip.h"

namespace trimpot {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Trainer::Trainer(Compute& compute, Model& model, TuningMethod& method, const ExampleSet& examples,
                 const TrainerOptions& options, std::string identity, DataSplit split,
                 BatchPlan plan, std::uint64_t total_steps)
    : compute_(compute),
      model_(model),
      method_(method),
      examples_(examples),
      options_(options),
      identity_(std::move(identity)),
      split_(std::move(split)),
      plan_(std::move(plan)),
      pass_(compute, model, options.teacher, method.parameters().size()),
      total_steps_(total_steps) {}

Result<Trainer> Trainer::create(Compute& compute, Model& model, TuningMethod& method,
                                const ExampleSet& examples, bool windows,
                                const TrainerOptions& options, std::string identity) {
  if (!(options.learning_rate > 0) || !std::isfinite(options.learning_rate))
    return fail("the learning rate is {}; it must be above 0", options.learning_rate);
  if (!(options.max_grad_norm >= 0))
    return fail("--max-grad-norm is {}; it must be 0 (off) or more", options.max_grad_norm);
  TRIMPOT_TRY_VOID(options.adamw.check());
  TRIMPOT_TRY(DataSplit split,
              split_examples(examples.size(), options.val_size, options.seed, windows));
  std::vector<std::size_t> lengths;
  for (const std::uint32_t example : split.training) lengths.push_back(examples.length(example));
  BatchOptions batch;
  batch.sequences_per_step = options.batch_size * options.gradient_accumulation_steps;
  batch.seed = options.seed;
  batch.shuffle = options.shuffle;
  batch.packing = options.packing;
  batch.max_seq_length = options.max_seq_length;
  TRIMPOT_TRY(BatchPlan plan, BatchPlan::create(split.training, lengths, batch));
  TRIMPOT_TRY(const std::uint64_t total, plan.total_steps(options.epochs, options.max_steps));
  Schedule schedule;
  schedule.kind = options.schedule;
  schedule.total_steps = total;
  schedule.warmup_steps = options.warmup_steps;
  if (options.warmup_steps == 0) {
    TRIMPOT_TRY(schedule.warmup_steps, warmup_steps_from_ratio(options.warmup_ratio, total));
  }
  Trainer trainer(compute, model, method, examples, options, std::move(identity), std::move(split),
                  std::move(plan), total);
  trainer.schedule_ = schedule;
  return trainer;
}

void Trainer::append(std::uint32_t example, TrainingBatch& batch) const {
  const auto tokens = examples_.tokens(example);
  const auto learned = examples_.learned(example);
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
  batch.learned.insert(batch.learned.end(), learned.begin(), learned.end());
  batch.lengths.push_back(static_cast<std::int64_t>(tokens.size()));
}

Result<LossSum> Trainer::accumulate_gradients() {
  // Sequences go through the model in groups of about this many tokens: enough rows for the
  // kernels, little memory for activations. Grouping depends on the data alone.
  const std::size_t most = std::max<std::size_t>(options_.max_seq_length, 512);
  std::vector<TrainingBatch> groups;
  std::int64_t predictions = 0;
  for (const ExampleIndices& sequence : plan_.step(step_)) {
    std::size_t length = 0;
    for (const std::uint32_t example : sequence) length += examples_.length(example);
    if (groups.empty() || groups.back().tokens.size() + length > most) groups.emplace_back();
    for (const std::uint32_t example : sequence) append(example, groups.back());
  }
  for (const TrainingBatch& group : groups) predictions += count_predictions(group);
  Parameters& parameters = method_.parameters();
  clear(compute_, parameters.gradient.data(), parameters.size());
  LossSum sum;
  for (std::size_t pass = 0; pass < groups.size(); ++pass) {
    const TrainingBatch& group = groups[pass];
    method_.begin_pass(step_ << 20 | pass);
    // Every prediction of the step counts the same, however the sequences are grouped.
    const float weight = 1.0f / static_cast<float>(std::max<std::int64_t>(1, predictions));
    TRIMPOT_TRY(const LossSum part, pass_.run(group, weight, &method_.sink()));
    sum.loss += part.loss;
    sum.count += part.count;
    sum.correct += part.correct;
    tokens_ += group.tokens.size();
  }
  return sum;
}

Status Trainer::update(double learning_rate, double& grad_norm) {
  Parameters& parameters = method_.parameters();
  const auto chunks = static_cast<std::int64_t>((parameters.size() + kNormChunk - 1) / kNormChunk);
  const auto chunk_of = [&](std::span<float> values, std::int64_t chunk) {
    const std::size_t begin = static_cast<std::size_t>(chunk) * kNormChunk;
    return values.subspan(begin, std::min(kNormChunk, values.size() - begin));
  };
  // Chunk sums are added in order: the same norm for any number of threads.
  std::vector<double> squares(static_cast<std::size_t>(chunks));
  compute_.team.for_each(chunks, 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk)
      squares[static_cast<std::size_t>(chunk)] =
          chunk_sum_of_squares(chunk_of(parameters.gradient.span(), chunk));
  });
  double sum = 0;
  for (const double value : squares) sum += value;
  grad_norm = std::sqrt(sum);
  if (!std::isfinite(grad_norm))
    return fail("the gradient is not a finite number at step {}; lower the learning rate",
                step_ + 1);
  const float factor = clip_factor(grad_norm, options_.max_grad_norm);
  for (const Parameter& parameter : parameters.list) {
    const double rate = learning_rate * parameter.learning_rate_factor;
    constexpr std::int64_t kSlice = 16384;
    compute_.team.for_each(static_cast<std::int64_t>(parameter.count), kSlice,
                           [&](std::int64_t begin, std::int64_t end, int) {
                             const std::size_t first =
                                 parameter.begin + static_cast<std::size_t>(begin);
                             const auto size = static_cast<std::size_t>(end - begin);
                             adamw_step(options_.adamw, step_ + 1, rate, factor,
                                        {parameters.values.span().subspan(first, size),
                                         parameters.gradient.span().subspan(first, size),
                                         parameters.first_moment.span().subspan(first, size),
                                         parameters.second_moment.span().subspan(first, size)});
                           });
  }
  return method_.commit(compute_.team);
}

Result<EvalMetrics> Trainer::evaluate() {
  const std::size_t most = std::max<std::size_t>(options_.max_seq_length, 512);
  LossSum sum;
  TrainingBatch batch;
  const auto flush = [&]() -> Status {
    if (batch.tokens.empty()) return {};
    TRIMPOT_TRY(const LossSum part, pass_.run(batch, 0.0f, nullptr));
    sum.loss += part.loss;
    sum.count += part.count;
    batch = {};
    return {};
  };
  for (const std::uint32_t example : split_.validation) {
    if (batch.tokens.size() + examples_.length(example) > most) TRIMPOT_TRY_VOID(flush());
    append(example, batch);
  }
  TRIMPOT_TRY_VOID(flush());
  EvalMetrics metrics;
  metrics.step = step_;
  metrics.loss = sum.loss / static_cast<double>(std::max<std::int64_t>(1, sum.count));
  metrics.tokens = static_cast<std::uint64_t>(sum.count);
  return metrics;
}

Result<TrainerResult> Trainer::run(RunFolder& folder, const TrainerHooks& hooks) {
  TrainerResult result;
  const double start = now_seconds();
  double training_seconds = 0;
  const std::uint64_t first_tokens = tokens_;
  std::vector<double> recent;
  const auto validate = [&]() -> Status {
    if (split_.validation.empty()) return {};
    TRIMPOT_TRY(EvalMetrics metrics, evaluate());
    metrics.seconds = now_seconds() - start;
    if (!result.first_eval_loss) result.first_eval_loss = metrics.loss;
    result.last_eval_loss = metrics.loss;
    TRIMPOT_TRY_VOID(folder.append(metrics));
    if (hooks.evaluated) hooks.evaluated(metrics);
    return {};
  };
  if (!folder.metrics().evals.empty()) {  // of a run that is resumed
    result.first_eval_loss = folder.metrics().evals.front().loss;
  } else if (step_ == 0) {
    TRIMPOT_TRY_VOID(validate());
  }

  while (step_ < total_steps_) {
    if (hooks.stop && hooks.stop()) {
      TRIMPOT_TRY(result.checkpoint, save(folder.path()));
      break;
    }
    const double step_start = now_seconds();
    const std::uint64_t tokens_before = tokens_;
    TRIMPOT_TRY(const LossSum sum, accumulate_gradients());
    StepReport report;
    report.total_steps = total_steps_;
    report.metrics.learning_rate = options_.learning_rate * schedule_.factor(step_);
    TRIMPOT_TRY_VOID(update(report.metrics.learning_rate, report.metrics.grad_norm));
    ++step_;
    const double seconds = now_seconds() - step_start;
    training_seconds += seconds;
    report.metrics.step = step_;
    report.metrics.epoch =
        static_cast<double>(step_) / static_cast<double>(plan_.steps_per_epoch());
    report.metrics.loss = sum.loss / static_cast<double>(std::max<std::int64_t>(1, sum.count));
    report.metrics.tokens = tokens_;
    report.metrics.tokens_per_second = static_cast<double>(tokens_ - tokens_before) / seconds;
    report.metrics.seconds = now_seconds() - start;
    TRIMPOT_TRY_VOID(folder.append(report.metrics));
    recent.push_back(report.metrics.loss);
    if (recent.size() > 20) recent.erase(recent.begin());
    if (hooks.step) hooks.step(report);
    const bool last = step_ == total_steps_;
    if (last || (options_.eval_steps > 0 && step_ % options_.eval_steps == 0))
      TRIMPOT_TRY_VOID(validate());
    if (!last && options_.save_steps > 0 && step_ % options_.save_steps == 0) {
      auto saved = save(folder.path());
      if (!saved) return fail(saved.error());
    }
  }
  result.finished = step_ == total_steps_;
  result.steps = step_;
  for (const double loss : recent) result.train_loss += loss / static_cast<double>(recent.size());
  result.seconds = training_seconds;
  result.tokens = tokens_ - first_tokens;
  return result;
}

}  // namespace trimpot
