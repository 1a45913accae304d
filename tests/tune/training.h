// Runs of the trainer on toy models, for tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/test_files.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"
#include "tune/scales.h"
#include "tune/trainer.h"

namespace trimpot {

inline constexpr TokenId kSymbols = 16, kSeparator = 16;

// A chain in which every symbol follows from the one before it.
inline ExampleSet chain_examples(std::size_t count) {
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

inline ToyOptions trainer_options(ElementType type) {
  ToyOptions options;
  options.vocabulary = 17;
  options.head = ElementType::kQ8_0;
  options.feed_forward = 128;
  options.linear_types = ToyOptions::all_linears(type);
  return options;
}

class Training : public testing::Test {
 protected:
  void SetUp() override { reload(trainer_options(ElementType::kQ4_1)); }
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

inline TrainerOptions short_run() {
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
inline void expect_equal(const State& a, const State& b) {
  EXPECT_TRUE(same_bits(a.numbers, b.numbers));
  EXPECT_EQ(a.committed, b.committed);
}

}  // namespace trimpot
