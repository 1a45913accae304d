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
[[maybe_unused]] ExampleSet chain_examples(std::size_t count) {
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

TEST_F(Training, Experiment) {
  for (const std::int64_t length : {3, 4})
    for (const double rate : {1e-2, 3e-2})
    for (const float gain : {1.0f, 2.0f})
      for (const ScaleMethod kind : {ScaleMethod::kScales, ScaleMethod::kBoth}) {
        TrainerOptions options;
        options.learning_rate = rate;
        options.max_steps = 800;
        options.val_size = 64;
        options.batch_size = 16;
        ToyOptions toy = trainer_options(kQ4_1);
        toy.gain = gain;
        reload(toy);
        const ExampleSet examples = cipher_examples(2000, length);
        Run run = start(examples, options, {kind, {}, {}});
        RunFolder out = folder("x");
        const auto result = run.trainer->run(out, {});
        if (!result) {
          std::printf("%g %d %s\n", rate, static_cast<int>(kind), result.error().message.c_str());
          continue;
        }
        std::printf("%d %g %g %d: %f -> %f train %f, %f s %zu\n", (int)length, rate, gain, static_cast<int>(kind),
                    *result->first_eval_loss, *result->last_eval_loss, result->train_loss,
                    result->seconds, run.method->trainable());
      }
}

}  // namespace
}  // namespace trimpot
