// Tuning under fake quantization: what is committed, and which gradient it is.
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/rtn.h"
#include "tune/matrices_fixture.h"

namespace trimpot {
namespace {

using Qat = Matrices;

// What the forward pass sees under fake quantization is what `trimpot quantize` would make of the
// masters.
TEST_F(Qat, CommitsTheRoundedMasters) {
  for (const Scheme& scheme :
       {Scheme{4, 32, ZeroKind::kInteger}, Scheme{3, kWholeRow, ZeroKind::kSymmetric},
        Scheme{8, 64, ZeroKind::kOffset}})
    for (const bool grouped : {false, true}) {
      const auto model = load(grouped ? grouped_toy() : dense_toy(ElementType::kF16));
      const auto base = load(grouped ? grouped_toy() : dense_toy(ElementType::kF16));
      const auto method = take(make_qat_method(*model, team_, scheme, {}));
      EXPECT_EQ(method->trainable(), elements(*model));
      const auto check = [&] {
        for (const Parameter& parameter : method->parameters().list) {
          const Matrix& weight = model->linear(parameter.linear).weight;
          ASSERT_TRUE(weight.quantized());
          const std::int64_t rows = weight.rows(), columns = weight.columns();
          std::vector<float> masters;
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < columns; ++c)
              masters.push_back(method->parameters().values[parameter.begin +
                                                            (r / 16 * columns + c) * 16 + r % 16]);
          const auto want = quantize_rtn(team_, {masters.data(), rows, columns, columns}, scheme);
          ASSERT_TRUE(want);
          const GroupedCodes got = weight.unpack_groups();
          EXPECT_EQ(got.codes, want->codes);
          EXPECT_EQ(got.scales, want->scales);
          EXPECT_EQ(got.zeros, want->zeros);
          EXPECT_EQ(got.offsets, want->offsets);
        }
      };
      check();  // from the start
      std::vector<float> row(64);
      base->linear(kUp).weight.dequantize_row(17, row.data());
      for (std::size_t c = 0; c < 64; ++c)  // masters are the file's weights
        EXPECT_EQ(
            method->parameters().values[method->parameters().list[kUp].begin + (64 + c) * 16 + 1],
            row[c]);
      const auto before = logits(*model, Precision::kDefault);
      perturb(*method, 0.02f);
      ASSERT_TRUE(method->commit(team_));
      check();
      EXPECT_FALSE(same_bits(logits(*model, Precision::kDefault), before));
      const auto tensors = method->adapter_tensors();
      ASSERT_FALSE(tensors);
      EXPECT_EQ(tensors.error().message,
                "this method changes all weights; its result is a model file (.gguf), not an "
                "adapter");
    }
  const auto model = load(grouped_toy());
  const auto method = take(make_qat_method(*model, team_, {4, 32}, {"o_proj"}));
  method->parameters().values[3] = NAN;
  const auto status = method->commit(team_);
  ASSERT_FALSE(status);
  EXPECT_TRUE(status.error().message.starts_with("blk.0.attn_output.weight: "))
      << status.error().message;
}

// The straight-through estimator: the gradient of the rounded weights, as if they were the masters.
TEST_F(Qat, PassesGradientsThroughTheRounding) {
  const auto model = load(dense_toy(ElementType::kF16));
  const auto qat = take(make_qat_method(*model, team_, {3, 32}, {}));
  const auto got = gradient(*qat, *model);
  EXPECT_GT(largest(widened(got)), 0.0);
  // Full tuning of the weights as rounded, but for their f16 form: 2^-11 of each.
  const auto full = take(make_full_method(*model, team_, {}));
  EXPECT_LT(relative_error(gradient(*full, *model), widened(got)), 0x1p-8);
}

}  // namespace
}  // namespace trimpot
