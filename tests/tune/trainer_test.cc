// The training loop on toy models: that it learns, and that a run is the same run for any number of
// threads and across interruptions.
#include "tune/trainer.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "io/test_files.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

using enum ElementType;

constexpr TokenId kSymbols = 16, kSeparator = 16;

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

// A chain in which every symbol follows from the one before it.
ExampleSet chain_examples(std::size_t count) {
  RandomStream random(6);
  ExampleSet examples;
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<TokenId> tokens{static_cast<TokenId>(random.below(kSymbols))};
    const std::int64_t length = 4 + random.below(9);
    while (static_cast<std::int64_t>(tokens.size()) < length)
      tokens.push_back((5 * tokens.back() + 3) % kSymbols);
    examples.append(tokens, std::vector<std::uint8_t>(tokens.size(), 1));
  }
  return examples;
}

ToyOptions trainer_options(ElementType type) {
  ToyOptions options;
  options.vocabulary = 17;
  options.head = kQ8_0;
  options.feed_forward = 128;
  options.linear_types = ToyOptions::all_linears(type);
  return options;
}

class Training : public testing::Test {
 protected:
  void SetUp() override { reload(trainer_options(kQ4_1)); }
  void reload(const ToyOptions& options) {
    auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
  }
  // A model as it is in the file, with a method on it and a trainer.
  struct Run {
    std::unique_ptr<Model> model;
    std::unique_ptr<TuningMethod> method;
    std::unique_ptr<Compute> compute;
    std::optional<Trainer> trainer;
    std::span<const float> values() const { return method->parameters().values.span(); }
  };
  Run start(const ExampleSet& examples, const TrainerOptions& options,
            const ScaleOptions& scales = {}, int threads = 2,
            Precision precision = Precision::kDefault, const std::string& identity = "this run") {
    Run run;
    const auto file = gguf::File::open(folder_.file("toy.gguf"));
    EXPECT_TRUE(file);
    run.compute = std::make_unique<Compute>(*usable_kernels().front(), precision, threads);
    auto model = load_model(*file, run.compute->team);
    EXPECT_TRUE(model) << model.error().message;
    run.model = std::move(*model);
    auto method = make_scale_method(*run.model, scales);
    EXPECT_TRUE(method) << method.error().message;
    run.method = std::move(*method);
    auto trainer =
        Trainer::create(*run.compute, *run.model, *run.method, examples, false, options, identity);
    EXPECT_TRUE(trainer) << trainer.error().message;
    run.trainer.emplace(std::move(*trainer));
    return run;
  }
  RunFolder folder(const std::string& name, std::optional<std::uint64_t> step = std::nullopt) {
    auto out = RunFolder::open(folder_.file(name), step);
    EXPECT_TRUE(out) << out.error().message;
    return std::move(*out);
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
};

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

TrainerOptions short_run() {
  TrainerOptions options;
  options.learning_rate = 1e-2;
  options.max_steps = 6;
  options.batch_size = 5;
  options.packing = true;
  options.max_seq_length = 24;
  options.val_size = 6;
  options.seed = 3;
  return options;
}

// Everything that must be equal between two runs: master values, moments, what is in the model.
struct State {
  std::vector<float> numbers;
  std::vector<f16> committed;
};
template <class Run>
State state_of(const Run& run) {
  State state;
  const Parameters& parameters = run.method->parameters();
  for (const auto* values :
       {&parameters.values, &parameters.first_moment, &parameters.second_moment})
    state.numbers.insert(state.numbers.end(), values->data(), values->data() + values->size());
  for (std::size_t i = 0; i < run.model->linear_count(); ++i) {
    const Matrix& matrix = run.model->linear(i).weight;
    state.committed.insert(state.committed.end(), matrix.scales().begin(), matrix.scales().end());
    state.committed.insert(state.committed.end(), matrix.offsets().begin(), matrix.offsets().end());
  }
  return state;
}
void expect_equal(const State& a, const State& b) {
  EXPECT_TRUE(same_bits(a.numbers, b.numbers));
  EXPECT_EQ(a.committed, b.committed);
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

// Six steps at once against three, an interruption, and three more by other numbers of threads.
TEST_F(Training, ResumingIsExact) {
  const ExampleSet examples = chain_examples(60);
  const ScaleOptions scales{ScaleMethod::kBoth, ScaleGranularity::kGroup, {}};
  Run straight = start(examples, short_run(), scales, 2);
  RunFolder straight_folder = folder("straight");
  const auto whole = straight.trainer->run(straight_folder, {});
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_TRUE(whole->finished);
  EXPECT_EQ(whole->steps, 6u);

  Run first = start(examples, short_run(), scales, 1);
  {
    RunFolder out = folder("stopped");
    int calls = 0;
    TrainerHooks hooks;
    hooks.stop = [&] { return ++calls > 3; };
    const auto stopped = first.trainer->run(out, hooks);
    ASSERT_TRUE(stopped) << stopped.error().message;
    EXPECT_FALSE(stopped->finished);
    EXPECT_EQ(stopped->steps, 3u);
    EXPECT_EQ(stopped->checkpoint, folder_.file("stopped/checkpoint-3.safetensors"));
    EXPECT_EQ(latest_checkpoint(folder_.file("stopped")), stopped->checkpoint);
  }
  for (const int threads : {1, 2, 3}) {
    Run second = start(examples, short_run(), scales, threads);
    const auto warning = second.trainer->resume(*latest_checkpoint(folder_.file("stopped")));
    ASSERT_TRUE(warning) << warning.error().message;
    EXPECT_EQ(*warning, "");
    EXPECT_EQ(second.trainer->step(), 3u);
    expect_equal(state_of(second), state_of(first));
    RunFolder out = folder("stopped", 3);
    const auto rest = second.trainer->run(out, {});
    ASSERT_TRUE(rest) << rest.error().message;
    EXPECT_TRUE(rest->finished);
    expect_equal(state_of(second), state_of(straight));
    EXPECT_EQ(rest->first_eval_loss, whole->first_eval_loss);
    EXPECT_EQ(rest->last_eval_loss, whole->last_eval_loss);
    ASSERT_EQ(out.metrics().steps.size(), 6u);
    for (std::size_t i = 0; i < 6; ++i) {
      const StepMetrics& a = out.metrics().steps[i];
      const StepMetrics& b = straight_folder.metrics().steps[i];
      EXPECT_EQ(a.step, i + 1);
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
      EXPECT_EQ(a.learning_rate, b.learning_rate);
      EXPECT_EQ(a.tokens, b.tokens);
    }
  }
}

TEST_F(Training, ResumingWithOtherKernelsWarns) {
  const auto kernels = usable_kernels();
  if (kernels.size() < 2) GTEST_SKIP() << "only one set of kernels";
  const ExampleSet examples = chain_examples(60);
  Run run = start(examples, short_run());
  RunFolder out = folder("run");
  TrainerHooks hooks;
  hooks.stop = [] { return true; };
  ASSERT_TRUE(run.trainer->run(out, hooks));
  Compute other(*kernels.back(), Precision::kDefault, 1);
  auto trainer =
      Trainer::create(other, *run.model, *run.method, examples, false, short_run(), "this run");
  ASSERT_TRUE(trainer);
  const auto warning = trainer->resume(*latest_checkpoint(out.path()));
  ASSERT_TRUE(warning) << warning.error().message;
  EXPECT_EQ(*warning, std::string("this run used the ") + kernels.front()->name +
                          " kernels and goes on with scalar: it will not be the same bit for bit "
                          "(TRIMPOT_ISA=" +
                          kernels.front()->name + " makes it so on a CPU that has them)");
}

TEST_F(Training, CheckpointsThatDoNotFitAreRefused) {
  const ExampleSet examples = chain_examples(60);
  Run run = start(examples, short_run());
  RunFolder out = folder("run");
  TrainerHooks hooks;
  int calls = 0;
  hooks.stop = [&] { return ++calls > 2; };
  ASSERT_TRUE(run.trainer->run(out, hooks));
  const std::string path = *latest_checkpoint(out.path());
  const auto error_of = [&](Run& other, const std::string& checkpoint) {
    const auto result = other.trainer->resume(checkpoint);
    EXPECT_FALSE(result);
    return result ? "" : result.error().message;
  };
  Run renamed = start(examples, short_run(), {}, 1, Precision::kDefault, "another run");
  EXPECT_EQ(error_of(renamed, path),
            path +
                ": this checkpoint belongs to another run (another identity); repeat the run's "
                "own options, or start anew without --resume");
  EXPECT_EQ(renamed.trainer->step(), 0u);
  // Another number of parameters under the same identity.
  Run both = start(examples, short_run(), {ScaleMethod::kBoth, {}, {}});
  EXPECT_EQ(error_of(both, path),
            path + ": tensor values is missing or has another size than this model's");
  TrainerOptions shorter = short_run();
  shorter.max_steps = 1;
  Run early = start(examples, shorter);
  EXPECT_EQ(error_of(early, path), path + ": it is at step 2, beyond this run's 1");
  // Other files, damaged ones, none.
  const std::string bytes = read_file(path);
  Run fresh = start(examples, short_run());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
    write_file(folder_.file("cut"), bytes.substr(0, size));
    EXPECT_FALSE(error_of(fresh, folder_.file("cut")).empty());
  }
  EXPECT_FALSE(error_of(fresh, folder_.file("absent")).empty());
  EXPECT_FALSE(error_of(fresh, folder_.file("toy.gguf")).empty());
  std::string other = bytes;
  other.replace(other.find("tiles16"), 7, "tiles99");
  write_file(folder_.file("layout"), other);
  EXPECT_EQ(error_of(fresh, folder_.file("layout")),
            folder_.file("layout") + ": not a checkpoint of this version of trimpot");
}

TEST_F(Training, SavesNowAndThenAndKeepsTheLast) {
  const ExampleSet examples = chain_examples(60);
  TrainerOptions options = short_run();
  options.max_steps = 12;
  options.save_steps = 3;
  options.save_total_limit = 2;
  Run run = start(examples, options);
  RunFolder out = folder("run");
  ASSERT_TRUE(run.trainer->run(out, {}));
  // 3, 6 and 9 were saved, not the end; "9" is after "6".
  EXPECT_FALSE(std::filesystem::exists(out.file("checkpoint-3.safetensors")));
  EXPECT_TRUE(std::filesystem::exists(out.file("checkpoint-6.safetensors")));
  EXPECT_EQ(latest_checkpoint(out.path()), out.file("checkpoint-9.safetensors"));
  std::filesystem::copy_file(out.file("checkpoint-9.safetensors"),
                             out.file("checkpoint-10.safetensors"));
  write_file(out.file("checkpoint-x.safetensors"), "");
  write_file(out.file("checkpoint-99.safetensors.tmp"), "");
  EXPECT_EQ(latest_checkpoint(out.path()), out.file("checkpoint-10.safetensors"));
  EXPECT_EQ(latest_checkpoint(folder_.file("nowhere")), std::nullopt);
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
  // All examples once more, one by one.
  TrainingPass pass(*run.compute, *run.model);
  double loss = 0;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    const auto tokens = examples.tokens(i);
    const auto learned = examples.learned(i);
    const auto sum = pass.run({{tokens.begin(), tokens.end()},
                               {learned.begin(), learned.end()},
                               {static_cast<std::int64_t>(tokens.size())}},
                              0, nullptr);
    ASSERT_TRUE(sum);
    EXPECT_EQ(sum->count, 12);
    loss += sum->loss;
  }
  ASSERT_EQ(steps.size(), 1u);
  ASSERT_EQ(evals.size(), 2u);
  EXPECT_EQ(evals[0].tokens, 8u * 12u);
  EXPECT_EQ(evals[0].loss, evals[1].loss);  // nothing was learned at rate 0
  EXPECT_NEAR(steps[0].metrics.loss * 32 * 12 + evals[0].loss * 8 * 12, loss, 1e-9 * loss);
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
