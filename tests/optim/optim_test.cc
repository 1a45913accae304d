// AdamW, gradient norm, clipping and schedules against torch's and transformers' values.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"

namespace trimpot {
namespace {

#include "golden.inc"

struct Tensors {
  std::vector<float> values, gradient, first, second;
  AdamWState state() { return {values, gradient, first, second}; }
};

Tensors make_tensors(std::size_t size) {
  Tensors tensors;
  for (std::size_t i = 0; i < size; ++i) {
    tensors.values.push_back(0.5f - 0.25f * static_cast<float>(i % 5));
    tensors.gradient.push_back(static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 64.0f);
  }
  tensors.first.resize(size);
  tensors.second.resize(size);
  return tensors;
}

// Catches: missing bias correction, coupled weight decay, epsilon inside the root, swapped betas,
// a learning rate that is not taken per step.
TEST(AdamW, EqualsTorch) {
  for (const AdamWGolden& golden : kAdamWGolden) {
    const AdamWOptions options{golden.beta1, golden.beta2, golden.epsilon, golden.weight_decay};
    ASSERT_TRUE(options.check());
    Tensors tensors = make_tensors(5);
    for (int step = 1; step <= 6; ++step) {
      for (int i = 0; i < 5; ++i)
        tensors.gradient[i] = static_cast<float>((step * 7 + i * 3) % 11 - 5) / 64.0f;
      adamw_step(options, step, 1e-2 / step, 1.0f, tensors.state());
      for (int i = 0; i < 5; ++i) {
        // Six operations of half an ulp each per step on numbers below 0.6.
        EXPECT_NEAR(tensors.values[i], golden.values[step - 1][i], 6e-8f * 3 * step)
            << "step " << step << " element " << i;
      }
    }
  }
}

// Catches: a vectorized main loop and its scalar tail that round differently, and state kept
// outside the spans.
TEST(AdamW, PartsGiveTheBitsOfTheWhole) {
  const AdamWOptions options{.weight_decay = 0.01};
  Tensors whole = make_tensors(1003);
  Tensors parts = make_tensors(1003);
  for (int step = 1; step <= 3; ++step) {
    adamw_step(options, step, 1e-3, 0.7f, whole.state());
    for (std::size_t begin = 0, size = 1; begin < 1003; begin += size, size = size % 13 + 1) {
      const std::size_t length = std::min<std::size_t>(size, 1003 - begin);
      const AdamWState state = parts.state();
      adamw_step(
          options, step, 1e-3, 0.7f,
          {state.values.subspan(begin, length), state.gradient.subspan(begin, length),
           state.first_moment.subspan(begin, length), state.second_moment.subspan(begin, length)});
    }
  }
  EXPECT_EQ(whole.values, parts.values);
  EXPECT_EQ(whole.second, parts.second);
}

// Catches: the scale applied to the update instead of the gradient (Adam would hide or double it).
TEST(AdamW, GradientScaleScalesTheGradient) {
  Tensors scaled = make_tensors(64);
  Tensors direct = make_tensors(64);
  for (float& g : direct.gradient) g *= 0.25f;
  adamw_step({}, 1, 1e-3, 0.25f, scaled.state());
  adamw_step({}, 1, 1e-3, 1.0f, direct.state());
  EXPECT_EQ(scaled.values, direct.values);
  EXPECT_EQ(scaled.first, direct.first);
}

TEST(AdamW, ChecksItsOptions) {
  EXPECT_TRUE(AdamWOptions{}.check());
  EXPECT_FALSE((AdamWOptions{.beta1 = 1.0}.check()));
  EXPECT_FALSE((AdamWOptions{.beta2 = -0.1}.check()));
  EXPECT_FALSE((AdamWOptions{.epsilon = 0.0}.check()));
  EXPECT_FALSE((AdamWOptions{.weight_decay = std::nan("")}.check()));
}

// Catches: summing in f32 (1e8 ones would stick at 2^24), a lost tail, chunks of another size.
TEST(Norm, IsExactAndMadeOfFixedChunks) {
  std::vector<float> ones(kNormChunk * 3 + 5, 1.0f);
  EXPECT_EQ(sum_of_squares(ones), static_cast<double>(ones.size()));
  EXPECT_EQ(sum_of_squares({}), 0.0);

  const Tensors tensors = make_tensors(kNormChunk * 2 + 7);
  const std::span<const float> all = tensors.gradient;
  const double by_chunks = chunk_sum_of_squares(all.subspan(0, kNormChunk)) +
                           chunk_sum_of_squares(all.subspan(kNormChunk, kNormChunk)) +
                           chunk_sum_of_squares(all.subspan(2 * kNormChunk));
  EXPECT_EQ(sum_of_squares(all), by_chunks);
  double plain = 0.0;
  for (const float g : all) plain += static_cast<double>(g) * g;
  EXPECT_NEAR(sum_of_squares(all), plain, plain * 1e-13);
}

TEST(Clip, FollowsTorch) {
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0f);
  EXPECT_FLOAT_EQ(clip_factor(4.0, 1.0), static_cast<float>(1.0 / (4.0 + 1e-6)));
  EXPECT_EQ(clip_factor(0.0, 1.0), 1.0f);
  EXPECT_EQ(clip_factor(100.0, 0.0), 1.0f);  // off
  EXPECT_EQ(clip_factor(std::numeric_limits<double>::infinity(), 1.0), 0.0f);
  EXPECT_TRUE(std::isnan(clip_factor(std::nan(""), 1.0)));
}

// Catches: counting steps from 1, a warm-up that ends late, the cosine's missing half.
TEST(Schedule, EqualsTransformers) {
  for (const ScheduleGolden& golden : kScheduleGolden) {
    const auto kind = parse_schedule_kind(golden.kind);
    ASSERT_TRUE(kind);
    const Schedule schedule{*kind, golden.warmup, golden.total};
    EXPECT_NEAR(schedule.factor(golden.step), golden.factor, 1e-15)
        << golden.kind << " " << golden.warmup << "/" << golden.total << " step " << golden.step;
  }
}

TEST(Schedule, ConstantWarmsUpAndStays) {
  const Schedule schedule{ScheduleKind::kConstant, 4, 10};
  EXPECT_EQ(schedule.factor(0), 0.0);
  EXPECT_EQ(schedule.factor(2), 0.5);
  EXPECT_EQ(schedule.factor(4), 1.0);
  EXPECT_EQ(schedule.factor(1000), 1.0);
}

TEST(Schedule, NeverLeavesItsRange) {
  for (const ScheduleKind kind : {ScheduleKind::kLinear, ScheduleKind::kCosine})
    for (const std::uint64_t step : {0ull, 9ull, 10ull, 15ull, ~0ull}) {
      const double factor = Schedule{kind, 3, 10}.factor(step);
      EXPECT_GE(factor, 0.0);
      EXPECT_LE(factor, 1.0);
      if (step >= 10) {
        EXPECT_LT(factor, 1e-15);
      }
    }
  // No steps at all: no division by zero.
  EXPECT_EQ((Schedule{ScheduleKind::kCosine, 0, 0}.factor(0)), 1.0);
}

TEST(Schedule, WarmupFromRatioRoundsUp) {
  EXPECT_EQ(*warmup_steps_from_ratio(0.03, 100), 3u);
  EXPECT_EQ(*warmup_steps_from_ratio(0.03, 101), 4u);
  EXPECT_EQ(*warmup_steps_from_ratio(0.0, 101), 0u);
  EXPECT_FALSE(warmup_steps_from_ratio(-0.1, 100));
  EXPECT_FALSE(warmup_steps_from_ratio(std::nan(""), 100));
  EXPECT_FALSE(parse_schedule_kind("cosin"));
}

}  // namespace
}  // namespace trimpot
