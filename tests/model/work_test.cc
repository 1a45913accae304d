// Work of passes against counts by hand.
#include "model/work.h"

#include <gtest/gtest.h>

#include "io/test_files.h"
#include "support/compare.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

class WorkTest : public testing::Test {
 protected:
  void SetUp() override {
    ToyOptions options;
    options.linear_types = ToyOptions::all_linears(ElementType::kQ4_0);
    options.embedding = ElementType::kQ8_0;
    auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
    const ModelConfig& c = model_->config;
    const auto h = static_cast<double>(c.hidden), f = static_cast<double>(c.feed_forward);
    const auto q = static_cast<double>(c.attention.q_width());
    const auto kv = static_cast<double>(c.attention.kv_width());
    layers_ = static_cast<double>(c.layers);
    down_ = layers_ * h * f;
    linears_ = layers_ * (h * q + 2 * h * kv + q * h + 2 * h * f) + down_;
    head_ = static_cast<double>(c.vocabulary) * h;
    h_ = h;
    q_ = q;
    kv_ = kv;
  }
  TempFolder folder_;
  std::unique_ptr<Model> model_;
  double layers_, down_, linears_, head_, h_, q_, kv_;
  Compute compute_{*usable_kernels().front(), Precision::kDefault, 1};
  Compute f32_{*usable_kernels().front(), Precision::kF32, 1};
};

TEST_F(WorkTest, Decode) {
  const Work one = decode_work(compute_, *model_, 10, 1),
             three = decode_work(compute_, *model_, 10, 3);
  EXPECT_EQ(one.int8_macs, linears_ + head_);
  EXPECT_EQ(one.f32_macs, layers_ * 2 * 11 * q_);  // 10 keys and its own
  EXPECT_EQ(one.rounded_macs, 0);
  const double keys = 10 * layers_ * 2 * kv_ * 2;  // f16
  EXPECT_EQ(one.bytes, static_cast<double>(model_->weight_bytes()) + keys);
  EXPECT_EQ(three.int8_macs, 3 * one.int8_macs);
  EXPECT_EQ(three.bytes, one.bytes + 2 * keys);
  EXPECT_EQ(decode_work(f32_, *model_, 10, 1).f32_macs, one.int8_macs + one.f32_macs);
}

TEST_F(WorkTest, Prefill) {
  const Work work = prefill_work(compute_, *model_, 8);
  // Of 7 rows the last layer has queries, keys and values alone.
  const double linears = 8 * linears_ - 7 * (linears_ / layers_ - h_ * (q_ + 2 * kv_));
  const double attention = layers_ * 2 * 36 * q_ - 2 * 28 * q_;
  EXPECT_EQ(work.int8_macs, linears + head_);
  EXPECT_EQ(work.f32_macs, attention);
  compute_.bf16_prompts = true;
  const Work prompt = prefill_work(compute_, *model_, 8);
  const bool rounded = step_rounds_inputs(compute_);
  EXPECT_EQ(prompt.int8_macs, head_ + (rounded ? 0 : linears));
  EXPECT_EQ(prompt.rounded_macs, rounded ? linears + attention : 0);
}

TEST_F(WorkTest, Tuning) {
  const Work forward = tuning_work(compute_, *model_, 8, nullptr);
  EXPECT_EQ(forward.int8_macs, 8 * (linears_ + head_));
  GradientSink sink;
  const Work plain = tuning_work(compute_, *model_, 8, &sink);
  // o_proj, gate_proj and up_proj of all layers but the last are computed again.
  const double again = (layers_ - 1) / layers_ * (linears_ - down_ - layers_ * h_ * (q_ + 2 * kv_));
  const double products = 8 * (linears_ + head_ + again);
  const bool rounded = step_rounds_inputs(compute_);
  // Gradients through codes may be of bytes, too.
  const double bytes =
      gradients_in_bytes(compute_, model_->linear(0).weight) ? 8 * (linears_ + head_) : 0;
  EXPECT_EQ(plain.int8_macs, rounded ? 0 : products + bytes);
  const double attention = layers_ * 36 * q_;  // twice forward, five times backward
  const double gradients = rounds_gradients(compute_)
                               ? plain.rounded_macs - (rounded ? products : 0.0) - 7 * attention
                               : plain.f32_macs - 7 * attention;
  EXPECT_NEAR(gradients, 8 * (linears_ + head_) - bytes, 1);
  sink.linears.resize(model_->linear_count());
  for (LinearSink& linear : sink.linears)
    linear.scales = [](std::int64_t, std::int64_t, const float*, const float*) {};
  EXPECT_EQ(tuning_work(compute_, *model_, 8, &sink).int8_macs, plain.int8_macs + 8 * linears_);
}

// With one group per row, outputs that are there anyway take a product's place; not on the f32
// path.
TEST_F(WorkTest, TuningRows) {
  ToyOptions options;
  options.hidden = options.feed_forward = 32;
  options.heads = options.kv_heads = 1;
  options.head_dim = 32;
  options.linear_types = ToyOptions::all_linears(ElementType::kQ4_0);
  const auto toy = load_toy(toy_file(options), folder_.file("rows.gguf"));
  ASSERT_TRUE(toy) << toy.error().message;
  const Model& model = *toy->model;
  GradientSink none, sink;
  sink.linears.resize(model.linear_count());
  for (LinearSink& linear : sink.linears)
    linear.scales = [](std::int64_t, std::int64_t, const float*, const float*) {};
  EXPECT_EQ(tuning_work(compute_, model, 8, &sink).int8_macs,
            tuning_work(compute_, model, 8, &none).int8_macs);
  EXPECT_EQ(tuning_work(f32_, model, 8, &sink).f32_macs,
            tuning_work(f32_, model, 8, &none).f32_macs + 8.0 * 7 * 32 * 32 * model.config.layers);
}

}  // namespace
}  // namespace trimpot
