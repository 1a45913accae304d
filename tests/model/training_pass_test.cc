// The training pass: the same bits for any number of threads, the loss of the session's logits, and
// sequences that do not see each other. That gradients are right is tested in
// kernels/model_gradient_test.cc.
#include "model/training_pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/test_files.h"
#include "model/session.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using enum ElementType;

struct PassSetup {
  const Kernels* kernels;
  Precision precision;
};
std::vector<PassSetup> pass_setups() {
  std::vector<PassSetup> out;
  for (const Kernels* kernels : usable_kernels())
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      out.push_back({kernels, precision});
  return out;
}

ToyOptions pass_options() {
  ToyOptions options;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 32;
  options.vocabulary = 77;  // odd: rows of bf16 gradients are padded
  options.linear_types = {kQ4_1, kQ5_1, kQ4_0, kQ5_0, kQ8_0, kQ4_1, kQ4_1};
  return options;
}

TrainingBatch random_batch(const std::vector<std::int64_t>& lengths, std::uint64_t seed) {
  RandomStream random(seed);
  TrainingBatch batch;
  batch.lengths = lengths;
  for (const std::int64_t length : lengths)
    for (std::int64_t i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<TokenId>(random.below(77)));
      batch.learned.push_back(random.below(3) != 0);
    }
  return batch;
}

TrainingBatch sequence_of(const TrainingBatch& batch, std::size_t index) {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < index; ++i) first += batch.lengths[i];
  const std::int64_t length = batch.lengths[index];
  return {{batch.tokens.begin() + first, batch.tokens.begin() + first + length},
          {batch.learned.begin() + first, batch.learned.begin() + first + length},
          {length}};
}

// Loss and all gradients, scales and offsets one after another in packed order.
struct Outcome {
  LossSum sum;
  std::vector<float> gradients;
};
Outcome run(TrainingPass& pass, const Model& model, const TrainingBatch& batch, float weight) {
  std::vector<std::size_t> first{0};
  for (std::size_t i = 0; i < model.linear_count(); ++i)
    first.push_back(first.back() + model.linear(i).weight.scales().size() +
                    model.linear(i).weight.offsets().size());
  Outcome out;
  out.gradients.resize(first.back());
  GradientSink sink;
  for (std::size_t i = 0; i < model.linear_count(); ++i)
    sink.linears.emplace_back().scales = [&, i](std::int64_t begin, std::int64_t end,
                                                const float* d_scale, const float* d_offset) {
      const auto per_tile = static_cast<std::size_t>(model.linear(i).weight.groups()) * 16;
      const std::size_t size = static_cast<std::size_t>(end - begin) * per_tile;
      float* to = out.gradients.data() + first[i] + static_cast<std::size_t>(begin) * per_tile;
      std::copy_n(d_scale, size, to);
      if (d_offset != nullptr)
        std::copy_n(d_offset, size, to + model.linear(i).weight.scales().size());
    };
  const auto sum = pass.run(batch, weight, &sink);
  EXPECT_TRUE(sum) << sum.error().message;
  if (sum) out.sum = *sum;
  return out;
}

class Pass : public testing::TestWithParam<PassSetup> {
 protected:
  void SetUp() override {
    auto toy = load_toy(toy_file(pass_options()), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
  }
  Compute make_compute(int threads) const {
    return Compute(*GetParam().kernels, GetParam().precision, threads);
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
};
INSTANTIATE_TEST_SUITE_P(All, Pass, testing::ValuesIn(pass_setups()), [](const auto& info) {
  return std::string(info.param.kernels->name) +
         (info.param.precision == Precision::kF32 ? "_f32" : "_default");
});

// What is computed again is what the forward had. What is kept is rounded: to f16, 2^-11 of each;
// attention's output, gate and up to 1/254 of the largest of 32, and their products with each other
// and with gradients to twice that. The f32 path keeps nothing.
TEST_P(Pass, KeptOrComputedAgain) {
  EXPECT_TRUE(Kept::choose(250, 32000, true, false).queries);
  EXPECT_FALSE(Kept::choose(251, 32000, true, false).queries);
  EXPECT_TRUE(Kept::choose(1000, 32000, true, false).feed_forward);
  EXPECT_FALSE(Kept::choose(1001, 32000, true, false).feed_forward);
  EXPECT_FALSE(Kept::choose(0, 32000, true, true).inputs);
  EXPECT_FALSE(Kept::choose(0, 32000, false, false).bytes);
  const TrainingBatch batch = random_batch({5, 70}, 3);
  Compute compute = make_compute(2);
  TrainingPass keeping(compute, *model_), computing(compute, *model_, {}, model_->weight_bytes());
  const Outcome a = run(keeping, *model_, batch, 0.01f), b = run(computing, *model_, batch, 0.01f);
  EXPECT_EQ(a.sum.loss, b.sum.loss);
  const bool same = same_bits(a.gradients, b.gradients);
  EXPECT_EQ(same, GetParam().precision == Precision::kF32);
  double error = 0;
  for (std::size_t i = 0; i < a.gradients.size(); ++i)
    error = std::max(error, std::fabs(static_cast<double>(a.gradients[i] - b.gradients[i])));
  EXPECT_LE(error, 0x1p-7 * largest(widened(b.gradients)));
}

TEST_P(Pass, TheSameBitsForAnyThreads) {
  const TrainingBatch batch = random_batch({5, 170, 1, 33}, 1);
  ToyOptions rows = pass_options();  // one group per row: gradients from the layers' outputs
  rows.hidden = rows.feed_forward = 32;
  rows.heads = 1;
  auto toy = load_toy(toy_file(rows), folder_.file("rows.gguf"));
  ASSERT_TRUE(toy) << toy.error().message;
  for (const Model* model : {model_.get(), toy->model.get()}) {
    Compute one = make_compute(1);
    TrainingPass single(one, *model);
    const Outcome want = run(single, *model, batch, 0.01f);
    EXPECT_GT(largest(widened(want.gradients)), 0.0);
    for (const int threads : {2, 3, 8}) {
      Compute compute = make_compute(threads);
      TrainingPass pass(compute, *model);
      for (int repeat = 0; repeat < 2; ++repeat) {
        const Outcome got = run(pass, *model, batch, 0.01f);
        EXPECT_EQ(got.sum.loss, want.sum.loss) << threads << " threads";
        EXPECT_EQ(got.sum.correct, want.sum.correct);
        EXPECT_TRUE(same_bits(got.gradients, want.gradients)) << threads << " threads";
      }
    }
  }
}

// The loss is -log p of the session's logits, so what is trained is what will be generated.
TEST_P(Pass, LossOfTheSessionsLogits) {
  const TrainingBatch batch = random_batch({9, 60}, 2);
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  const auto sum = pass.run(batch, 0.0f, nullptr);
  ASSERT_TRUE(sum) << sum.error().message;
  double loss = 0;
  std::int64_t correct = 0, count = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    const TrainingBatch sequence = sequence_of(batch, i);
    Session session(compute, *model_, 60);
    ASSERT_TRUE(session.append_all(sequence.tokens, 0, [&](std::int64_t row, const float* logits) {
      const auto next = static_cast<std::size_t>(row) + 1;
      if (next == sequence.tokens.size() || sequence.learned[next] == 0) return;
      double total = 0;
      for (int j = 0; j < 77; ++j) total += std::exp(double{logits[j]});
      loss += std::log(total) - logits[sequence.tokens[next]];
      correct += std::max_element(logits, logits + 77) - logits == sequence.tokens[next];
      ++count;
    }));
  }
  EXPECT_EQ(sum->count, count);
  EXPECT_EQ(sum->count, count_predictions(batch));
  EXPECT_EQ(sum->correct, correct);
  // Each log-sum-exp of about 5 is rounded to f32.
  EXPECT_NEAR(sum->loss, loss, 8 * kRoundoff * static_cast<double>(count));
}

// With and without gradients, and from a pass that was used before: the same bits.
TEST_P(Pass, NothingIsLeftOver) {
  const TrainingBatch large = random_batch({64, 5, 40}, 3), small = random_batch({3, 20}, 4);
  Compute compute = make_compute(2), other = make_compute(2);
  TrainingPass used(compute, *model_), fresh(other, *model_);
  run(used, *model_, large, 1.0f);
  const Outcome got = run(used, *model_, small, 1.0f), want = run(fresh, *model_, small, 1.0f);
  EXPECT_EQ(got.sum.loss, want.sum.loss);
  EXPECT_TRUE(same_bits(got.gradients, want.gradients));
  const auto loss_only = used.run(small, 0.0f, nullptr);
  TrainingPass unused(other, *model_);
  const auto wanted = unused.run(small, 0.0f, nullptr);
  ASSERT_TRUE(loss_only && wanted);
  EXPECT_EQ(loss_only->loss, wanted->loss);
  EXPECT_EQ(loss_only->correct, wanted->correct);
}

// Packed sequences do not see each other: a batch is the sum of its sequences. The losses of rows
// are equal to the bit and added up in double; gradients add up the same terms in another order.
TEST_P(Pass, SequencesDoNotSeeEachOther) {
  const TrainingBatch batch = random_batch({17, 50, 2}, 5);
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  const Outcome together = run(pass, *model_, batch, 0.1f);
  double loss = 0;
  std::vector<double> gradients(together.gradients.size());
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const Outcome alone = run(pass, *model_, sequence_of(batch, i), 0.1f);
    loss += alone.sum.loss;
    for (std::size_t k = 0; k < gradients.size(); ++k) gradients[k] += alone.gradients[k];
  }
  EXPECT_NEAR(together.sum.loss, loss, 1e-14 * loss);
  EXPECT_LE(relative_error(together.gradients, gradients), 69 * kRoundoff);
}

// Two tokens alone are what they are beside a sequence that nothing is learned of: decoding writes
// to inputs of one or two tokens before they are filled again, a step must not.
TEST_P(Pass, TwoTokensAlone) {
  TrainingBatch batch = random_batch({2, 40}, 8);
  std::fill(batch.learned.begin(), batch.learned.end(), 0);
  batch.learned[0] = batch.learned[1] = 1;
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  const Outcome together = run(pass, *model_, batch, 0.1f);
  const Outcome alone = run(pass, *model_, sequence_of(batch, 0), 0.1f);
  EXPECT_EQ(together.sum.count, 1);
  EXPECT_EQ(together.sum.loss, alone.sum.loss);
  EXPECT_LE(relative_error(together.gradients, widened(alone.gradients)), 42 * kRoundoff);
}

// More predictions than one block of logits has rows (252).
TEST_P(Pass, ManyPredictions) {
  TrainingBatch batch = random_batch({100, 100, 100}, 6);
  std::fill(batch.learned.begin(), batch.learned.end(), 1);
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  const Outcome together = run(pass, *model_, batch, 0.1f);
  EXPECT_EQ(together.sum.count, 297);
  double loss = 0;
  std::vector<double> gradients(together.gradients.size());
  for (std::size_t i = 0; i < 3; ++i) {
    const Outcome alone = run(pass, *model_, sequence_of(batch, i), 0.1f);
    loss += alone.sum.loss;
    for (std::size_t k = 0; k < gradients.size(); ++k) gradients[k] += alone.gradients[k];
  }
  EXPECT_NEAR(together.sum.loss, loss, 1e-13 * loss);
  EXPECT_LE(relative_error(together.gradients, gradients), 300 * kRoundoff);
}

TEST_P(Pass, OnlyWantedLayersAreAsked) {
  const TrainingBatch batch = random_batch({12}, 7);
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  std::array<std::atomic<int>, 14> asked{};
  GradientSink sink;
  sink.linears.resize(10);  // shorter than the model
  for (const std::size_t i : {3, 9})
    sink.linears[i].scales = [&, i](std::int64_t, std::int64_t, const float*, const float*) {
      ++asked[i];
    };
  ASSERT_TRUE(pass.run(batch, 1.0f, &sink));
  for (std::size_t i = 0; i < asked.size(); ++i)
    EXPECT_EQ(asked[i] > 0, i == 3 || i == 9) << linear_tensor_name(i);
}

TEST_P(Pass, NothingToPredict) {
  TrainingBatch batch = random_batch({4, 1}, 8);
  std::fill(batch.learned.begin(), batch.learned.end(), 0);
  batch.learned[0] = batch.learned[4] = 1;  // first tokens have nothing before them
  Compute compute = make_compute(2);
  TrainingPass pass(compute, *model_);
  const Outcome got = run(pass, *model_, batch, 1.0f);
  EXPECT_EQ(got.sum.count, 0);
  EXPECT_EQ(got.sum.loss, 0.0);
  EXPECT_EQ(largest(widened(got.gradients)), 0.0);
  EXPECT_EQ(count_predictions(batch), 0);
}

TEST_P(Pass, TokensOutsideOfTheVocabulary) {
  TrainingBatch batch = random_batch({4}, 9);
  Compute compute = make_compute(1);
  TrainingPass pass(compute, *model_);
  for (const TokenId bad : {-1, 77}) {
    batch.tokens[2] = bad;
    const auto sum = pass.run(batch, 1.0f, nullptr);
    ASSERT_FALSE(sum);
    EXPECT_EQ(sum.error().message,
              "token " + std::to_string(bad) + " is not in the vocabulary of 77");
  }
}

// Numbers that overflow anywhere in the model end with an error on both paths, never with a finite
// loss: rounding to int8 must not swallow them.
TEST_P(Pass, BrokenModelsGiveNoLoss) {
  const TrainingBatch batch = random_batch({30}, 10);
  Compute compute = make_compute(2);
  const auto expect_error = [&](const Model& model, const std::string& what) {
    TrainingPass pass(compute, model);
    const auto sum = pass.run(batch, 1.0f, nullptr);
    ASSERT_FALSE(sum) << what << " gives a loss of " << sum->loss;
    EXPECT_NE(sum.error().message.find("the loss is not a finite number"), std::string::npos)
        << sum.error().message;
  };
  ToyFile toy = toy_file(pass_options());
  // One activation in the first layer is too large for f32, or not a number.
  for (const float value : {3e38f, std::nanf("")}) {
    auto loaded = load_toy(toy, folder_.file("broken.gguf"));
    ASSERT_TRUE(loaded) << loaded.error().message;
    loaded->model->layers[0].feed_forward_norm[7] = value;
    loaded->model->layers[0].feed_forward_norm[8] = value;
    expect_error(*loaded->model, "norm " + std::to_string(value));
  }
  // An embedding whose squares overflow.
  ToyOptions options = pass_options();
  options.embedding = kF32;
  options.head = kQ8_0;
  toy = toy_file(options);
  const float huge = 1e30f;
  for (int token = 0; token < 77; ++token)
    std::memcpy(toy.tensor("token_embd.weight").data.data() + (token * 64 + 3) * 4, &huge, 4);
  const auto loaded = load_toy(toy, folder_.file("broken.gguf"));
  ASSERT_TRUE(loaded) << loaded.error().message;
  expect_error(*loaded->model, "embedding");
}

}  // namespace
}  // namespace trimpot
