// The training loop on toy models: that it learns, and that a run is the same for any number of
// threads.
#include "tune/trainer.h"

#include <gtest/gtest.h>

#include "tune/training.h"

namespace trimpot {
namespace {

using enum ElementType;

// The toy task: after a separator repeat the symbols before it, each replaced by another one. Only
// the second half is learned; the model has to look back as many tokens as the text is long.
ExampleSet cipher_examples(std::size_t count, std::int64_t length) {
  RandomStream random(5);
  ExampleSet examples;
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<TokenId> tokens;
    std::vector<std::uint8_t> learned(static_cast<std::size_t>(length) + 1, 0);
    for (std::int64_t k = 0; k < length; ++k)
      tokens.push_back(static_cast<TokenId>(random.below(kSymbols)));
    tokens.push_back(kSeparator);
    for (std::int64_t k = 0; k < length; ++k) {
      tokens.push_back((5 * tokens[static_cast<std::size_t>(k)] + 3) % kSymbols);
      learned.push_back(1);
    }
    examples.append(tokens, learned);
  }
  return examples;
}

// A small model learns to translate by its scales alone, on texts it has not seen: forward,
// attention, every gradient, the optimizer and the commit have to work together for it. The loss
// falls to about 0.1; guessing is 2.8. One thread: nothing to wait for on a busy machine.
TEST_F(Training, LearnsToTranslate) {
  const ExampleSet examples = cipher_examples(1000, 3);
  TrainerOptions options;
  options.learning_rate = 3e-2;
  options.max_steps = 600;
  options.batch_size = 16;
  options.val_size = 64;
  Run run = start(examples, options, {}, 1);
  RunFolder out = folder("run");
  const auto result = run.trainer->run(out, {});
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_TRUE(result->finished);
  EXPECT_GT(*result->first_eval_loss, 2.5);
  EXPECT_LT(*result->last_eval_loss, 0.4);
  testing::Test::RecordProperty("last_eval_loss", std::to_string(*result->last_eval_loss));
}

// Every method, granularity, format and path learns the chain; a sign that is wrong anywhere makes
// the loss rise.
TEST_F(Training, EveryMethodLearns) {
  const ExampleSet examples = chain_examples(64);
  const auto loss_after = [&](const ScaleOptions& scales, Precision precision) {
    TrainerOptions options;
    options.learning_rate = 3e-2;
    options.max_steps = 60;
    options.val_size = 16;
    Run run = start(examples, options, scales, 1, precision);
    RunFolder out = folder("run");
    const auto result = run.trainer->run(out, {});
    EXPECT_TRUE(result) << result.error().message;
    EXPECT_GT(*result->first_eval_loss, 2.5);
    return *result->last_eval_loss;
  };
  for (const Precision precision : {Precision::kDefault, Precision::kF32})
    for (const ScaleMethod method : {ScaleMethod::kScales, ScaleMethod::kZeros, ScaleMethod::kBoth})
      for (const auto granularity : {ScaleGranularity::kGroup, ScaleGranularity::kRow})
        EXPECT_LT(loss_after({method, granularity, {}}, precision), 1.0)
            << static_cast<int>(method) << ' ' << static_cast<int>(granularity);
  for (const ElementType type : {kQ4_0, kQ5_0, kQ5_1, kQ8_0}) {
    reload(trainer_options(type));
    EXPECT_LT(loss_after({}, Precision::kDefault), 1.0) << element_type_info(type).name;
  }
}

TEST_F(Training, TheSameBitsForAnyThreads) {
  const ExampleSet examples = chain_examples(60);
  for (const Precision precision : {Precision::kDefault, Precision::kF32}) {
    std::optional<State> want;
    std::vector<double> losses;
    for (const int threads : {1, 2, 3, 8}) {
      Run run = start(examples, short_run(), {ScaleMethod::kBoth, {}, {}}, threads, precision);
      RunFolder out = folder("run");
      ASSERT_TRUE(run.trainer->run(out, {}));
      if (!want) want = state_of(run);
      expect_equal(state_of(run), *want);
      std::vector<double> got;
      for (const StepMetrics& step : out.metrics().steps) {
        got.push_back(step.loss);
        got.push_back(step.grad_norm);
      }
      for (const EvalMetrics& eval : out.metrics().evals) got.push_back(eval.loss);
      if (losses.empty()) losses = got;
      EXPECT_EQ(got, losses) << threads << " threads";
    }
  }
}

// How the sequences of a step are grouped changes no weight: every prediction counts the same.
TEST_F(Training, AccumulationIsOneBatch) {
  const ExampleSet examples = chain_examples(60);
  TrainerOptions options = short_run();
  options.packing = false;
  options.batch_size = 8;
  Run whole = start(examples, options);
  options.batch_size = 2;
  options.gradient_accumulation_steps = 4;
  Run parts = start(examples, options);
  RunFolder a = folder("a"), b = folder("b");
  ASSERT_TRUE(whole.trainer->run(a, {}));
  ASSERT_TRUE(parts.trainer->run(b, {}));
  expect_equal(state_of(parts), state_of(whole));
}

// The step's loss is the mean over its predictions also when they do not fit into one pass (more
// than 512 tokens); validation the mean over the set aside.
TEST_F(Training, LossesAreMeansOverPredictions) {
  const ExampleSet examples = cipher_examples(40, 12);  // 40 x 25 tokens
  TrainerOptions options;
  options.batch_size = 32;
  options.max_steps = 1;
  options.warmup_steps = 1;  // the first learning rate is 0
  options.shuffle = false;
  options.val_size = 8;
  Run run = start(examples, options);
  EXPECT_EQ(run.trainer->training_examples(), 32u);
  EXPECT_EQ(run.trainer->validation_examples(), 8u);
  EXPECT_EQ(run.trainer->total_steps(), 1u);
  RunFolder out = folder("run");
  std::vector<StepReport> steps;
  std::vector<EvalMetrics> evals;
  TrainerHooks hooks;
  hooks.step = [&](const StepReport& report) { steps.push_back(report); };
  hooks.evaluated = [&](const EvalMetrics& metrics) { evals.push_back(metrics); };
  const auto result = run.trainer->run(out, hooks);
  ASSERT_TRUE(result) << result.error().message;
  // All examples once more, one by one: as a step does, whose products may be of another form than
  // an evaluation's, and as an evaluation does.
  TrainingPass pass(*run.compute, *run.model);
  const GradientSink nothing;
  const auto split = split_examples(examples.size(), options.val_size, options.seed, false);
  ASSERT_TRUE(split);
  double loss_of_step = 0, loss = 0;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    const auto tokens = examples.tokens(i);
    const auto learned = examples.learned(i);
    const bool trained = std::count(split->training.begin(), split->training.end(), i) > 0;
    const auto sum = pass.run({{tokens.begin(), tokens.end()},
                               {learned.begin(), learned.end()},
                               {static_cast<std::int64_t>(tokens.size())}},
                              0, trained ? &nothing : nullptr);
    ASSERT_TRUE(sum);
    EXPECT_EQ(sum->count, 12);
    (trained ? loss_of_step : loss) += sum->loss;
  }
  ASSERT_EQ(steps.size(), 1u);
  ASSERT_EQ(evals.size(), 2u);
  EXPECT_EQ(evals[0].tokens, 8u * 12u);
  EXPECT_EQ(evals[0].loss, evals[1].loss);  // nothing was learned at rate 0
  EXPECT_NEAR(steps[0].metrics.loss * 32 * 12, loss_of_step, 1e-9 * loss_of_step);
  EXPECT_NEAR(evals[0].loss * 8 * 12, loss, 1e-9 * loss);
  EXPECT_EQ(steps[0].metrics.tokens, 32u * 25u);
  EXPECT_EQ(steps[0].metrics.learning_rate, 0.0);
  EXPECT_GT(steps[0].metrics.grad_norm, 0.0);
  EXPECT_EQ(steps[0].total_steps, 1u);
  EXPECT_EQ(result->train_loss, steps[0].metrics.loss);
}

// Steps of more than 512 tokens go through the model in several parts: all predictions still have
// the same weight, so the gradient is that of one part up to the order of its sums.
TEST_F(Training, GradientsOfLargeStepsAreOne) {
  const ExampleSet examples = cipher_examples(40, 12);
  std::vector<double> norms;
  for (const std::size_t length : {512, 4096}) {  // two parts; one
    TrainerOptions options;
    options.batch_size = 40;
    options.max_steps = 1;
    options.max_seq_length = length;
    Run run = start(examples, options, {}, 2, Precision::kF32);
    RunFolder out = folder("run");
    ASSERT_TRUE(run.trainer->run(out, {}));
    norms.push_back(out.metrics().steps[0].grad_norm);
  }
  EXPECT_NEAR(norms[0], norms[1], 1000 * kRoundoff * norms[1]);
}

// Adam's first step is one learning rate against the sign of the gradient, times the parameter's
// own factor: catches a step number, a rate or a clipping factor that does not arrive.
TEST_F(Training, TheFirstStepIsOneLearningRate) {
  const ExampleSet examples = chain_examples(30);
  TrainerOptions options;
  options.learning_rate = 1e-3;
  options.warmup_ratio = 0;
  options.schedule = ScheduleKind::kConstant;
  options.max_steps = 1;
  Run run = start(examples, options, {ScaleMethod::kBoth, {}, {}});
  RunFolder out = folder("run");
  ASSERT_TRUE(run.trainer->run(out, {}));
  const Parameters& parameters = run.method->parameters();
  std::size_t moved = 0;
  for (const Parameter& parameter : parameters.list)
    for (std::size_t i = parameter.begin; i < parameter.begin + parameter.count; ++i) {
      const float start = parameter.name.ends_with(".zero") ? 0.0f : 1.0f;
      const float g = parameters.gradient[i];
      if (std::fabs(g) < 1e-4f) continue;  // the epsilon of 1e-8 counts
      ++moved;
      const double want = -std::copysign(1e-3 * parameter.learning_rate_factor, double{g});
      // 1 + x keeps x to 2^-24.
      ASSERT_NEAR(parameters.values[i] - start, want, 1e-3 * std::fabs(want) + 2 * kRoundoff)
          << parameter.name;
    }
  EXPECT_GT(moved, parameters.size() / 2);
}

TEST_F(Training, LearningRatesFollowTheSchedule) {
  const ExampleSet examples = chain_examples(60);
  TrainerOptions options = short_run();
  options.learning_rate = 0.5e-2;
  options.warmup_steps = 2;
  Run run = start(examples, options);
  RunFolder out = folder("run");
  ASSERT_TRUE(run.trainer->run(out, {}));
  std::vector<double> rates;
  for (const StepMetrics& step : out.metrics().steps) rates.push_back(step.learning_rate / 0.5e-2);
  EXPECT_EQ(rates, (std::vector<double>{0, 0.5, 1, 0.75, 0.5, 0.25}));
}

TEST_F(Training, ImpossibleOptions) {
  const ExampleSet examples = chain_examples(10), none;
  const auto error_of = [&](const ExampleSet& set, auto&& change) {
    TrainerOptions options;
    change(options);
    Compute compute(*usable_kernels().front(), Precision::kDefault, 1);
    const auto method = make_scale_method(*model_, {});
    EXPECT_TRUE(method);
    const auto trainer = Trainer::create(compute, *model_, **method, set, false, options, "");
    return trainer ? "" : trainer.error().message;
  };
  EXPECT_EQ(error_of(examples, [](TrainerOptions&) {}), "");
  EXPECT_EQ(error_of(examples, [](TrainerOptions& o) { o.learning_rate = 0; }),
            "the learning rate is 0; it must be above 0");
  EXPECT_EQ(error_of(examples, [](TrainerOptions& o) { o.learning_rate = std::nan(""); }),
            "the learning rate is nan; it must be above 0");
  EXPECT_EQ(error_of(examples, [](TrainerOptions& o) { o.learning_rate = HUGE_VAL; }),
            "the learning rate is inf; it must be above 0");
  EXPECT_EQ(error_of(examples, [](TrainerOptions& o) { o.max_grad_norm = -1; }),
            "--max-grad-norm is -1; it must be 0 (off) or more");
  EXPECT_NE(error_of(examples, [](TrainerOptions& o) { o.adamw.beta2 = 1; }), "");
  EXPECT_NE(error_of(examples, [](TrainerOptions& o) { o.batch_size = 0; }), "");
  EXPECT_NE(error_of(examples, [](TrainerOptions& o) { o.epochs = 0; }), "");
  EXPECT_NE(error_of(examples, [](TrainerOptions& o) { o.val_size = 10; }), "");
  EXPECT_NE(error_of(examples, [](TrainerOptions& o) { o.warmup_ratio = 2; }), "");
  EXPECT_EQ(error_of(none, [](TrainerOptions&) {}), "there is no example to train on");
}

// A broken model or a run that diverges ends with an error, not with a file full of NaN.
TEST_F(Training, NumbersThatAreNotFiniteEndTheRun) {
  const ExampleSet examples = chain_examples(30);
  for (const Precision precision : {Precision::kDefault, Precision::kF32}) {
    TrainerOptions options = short_run();
    options.val_size = 0;
    Run broken = start(examples, options, {}, 2, precision);
    broken.model->layers[1].attention_norm[5] = std::nanf("");
    RunFolder out = folder("run");
    const State before = state_of(broken);
    const auto loss = broken.trainer->run(out, {});
    ASSERT_FALSE(loss);
    EXPECT_TRUE(loss.error().message.starts_with("the loss is not a finite number"))
        << loss.error().message;
    expect_equal(state_of(broken), before);
    EXPECT_TRUE(out.metrics().steps.empty());

    options.learning_rate = 1e12;
    options.warmup_ratio = 0;
    Run diverging = start(examples, options, {}, 2, precision);
    const auto range = diverging.trainer->run(out, {});
    ASSERT_FALSE(range);
    EXPECT_TRUE(range.error().message.ends_with(
        "a tuned scale left the range of 16-bit floats; lower the learning rate"))
        << range.error().message;
  }
}

}  // namespace
}  // namespace trimpot
