// What a step costs, in multiply-adds of the kernels: QEFT's weight gradients are k / IC of those
// of full tuning (QEFT, section 3.3 and table 4), and the rest of the step is no more than its.
#include <gtest/gtest.h>

#include <atomic>

#include "io/test_files.h"
#include "model/training_pass.h"
#include "support/compare.h"
#include "support/own_toy.h"
#include "support/random.h"
#include "tune/matrices.h"
#include "tune/scales.h"

namespace trimpot {
namespace {

const Kernels* counted = nullptr;  // whose functions the counting ones call
std::atomic<std::int64_t> multiply_adds = 0;

std::int64_t rows_in(const MatrixView& w, std::int64_t tile_begin, std::int64_t tile_end) {
  return std::min(tile_end * kTileRows, w.rows) - tile_begin * kTileRows;
}

// The kernels of a table, with every product of matrices counted.
Kernels counting(const Kernels& kernels) {
  counted = &kernels;
  Kernels table = kernels;
  table.multiply = [](const Operand& a, const Panels& b, std::int64_t rows, std::int64_t columns,
                      std::int64_t depth, float* c, std::int64_t c_stride, bool add) {
    multiply_adds += rows * columns * depth;
    counted->multiply(a, b, rows, columns, depth, c, c_stride, add);
  };
  table.multiply_rounded = [](const RoundedView& dy, const std::int16_t* panel,
                              const float* panel_scales, std::int64_t rows,
                              std::int64_t token_begin, std::int64_t token_end, float* c,
                              std::int64_t c_stride, int columns, bool add) {
    multiply_adds += rows * columns * (token_end - token_begin);
    counted->multiply_rounded(dy, panel, panel_scales, rows, token_begin, token_end, c, c_stride,
                              columns, add);
  };
  table.multiply_bytes = [](const RoundedBytes& dy, const std::uint8_t* panel,
                            const float* panel_scales, std::int64_t rows, std::int64_t token_begin,
                            std::int64_t token_end, float* c, std::int64_t c_stride, int columns,
                            bool add) {
    multiply_adds += rows * columns * (token_end - token_begin);
    counted->multiply_bytes(dy, panel, panel_scales, rows, token_begin, token_end, c, c_stride,
                            columns, add);
  };
  table.multiply_panels = [](const RoundedView& rows, std::int64_t count, std::int64_t depth,
                             const RoundedPanels& panels, std::int64_t columns, float* c,
                             std::int64_t c_stride, bool add) {
    multiply_adds += count * depth * columns;
    counted->multiply_panels(rows, count, depth, panels, columns, c, c_stride, add);
  };
  table.linear_int8 = [](const MatrixView& w, const Int8View& x, std::int64_t token_begin,
                         std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                         const GroupArrays* of_token, const WeakPart* weak, float* y,
                         std::int64_t y_stride, bool add) {
    const std::int64_t columns = w.columns + (weak != nullptr ? weak->columns.columns : 0);
    multiply_adds += rows_in(w, tile_begin, tile_end) * columns * (token_end - token_begin);
    counted->linear_int8(w, x, token_begin, token_end, tile_begin, tile_end, of_token, weak, y,
                         y_stride, add);
  };
  table.scale_gradient_int8 = [](const MatrixView& w, const Int8View& x, const float* dy,
                                 std::int64_t dy_stride, std::int64_t tokens,
                                 std::int64_t tile_begin, std::int64_t tile_end, float* d_scale,
                                 float* d_offset, float* scratch) {
    multiply_adds += rows_in(w, tile_begin, tile_end) * w.columns * tokens;
    counted->scale_gradient_int8(w, x, dy, dy_stride, tokens, tile_begin, tile_end, d_scale,
                                 d_offset, scratch);
  };
  return table;
}

class Cost : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 30, kWeak = 6;
  // Even rows throughout, since rounded rows are padded to pairs.
  static ToyOptions options() {
    ToyOptions toy;
    toy.hidden = 96;
    toy.feed_forward = 160;
    toy.heads = 3;
    toy.kv_heads = 1;
    toy.head_dim = 32;
    toy.vocabulary = 30;
    return toy;
  }
  std::unique_ptr<Model> load(std::int64_t weak) {
    const OwnToy toy = own_toy(options(), {4, 32, OwnCentre::kZeros, weak, true});
    auto loaded = load_toy(toy.own, folder_.file("toy.gguf"));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(loaded->model);
  }
  // Multiply-adds of one forward and backward pass with these gradients.
  static std::int64_t count(const Model& model, const GradientSink& sink, Precision precision) {
    TrainingBatch batch;
    RandomStream random(3);
    for (std::int64_t i = 0; i < kTokens; ++i) {
      batch.tokens.push_back(static_cast<TokenId>(random.below(30)));
      batch.learned.push_back(1);
    }
    batch.lengths = {kTokens};
    const Kernels kernels = counting(*usable_kernels().front());
    Compute compute(kernels, precision, 2);
    TrainingPass pass(compute, model);
    multiply_adds = 0;
    const auto sum = pass.run(batch, 1.0f, &sink);
    EXPECT_TRUE(sum) << sum.error().message;
    return multiply_adds;
  }
  // What the method's gradients add to the pass.
  static std::int64_t extra(const Model& model, TuningMethod& method, Precision precision) {
    return count(model, method.sink(), precision) - count(model, {}, precision);
  }
  // Forward products of a step with the weak columns that come last, which in bf16 have two terms.
  static std::int64_t weak_forward(const Model& model) {
    std::int64_t sum = 0;
    const std::size_t recomputed = model.linear_count() - kLinearKinds.size();
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      const Linear& linear = model.linear(i);
      // Of the layers but the last, which keep the others' outputs, what o_proj gives again.
      const std::size_t kind = i % kLinearKinds.size();
      const bool again = i < recomputed && kind == kO;
      if (linear.weight_columns == nullptr) sum += linear.rows() * kWeak * (again ? 2 : 1);
    }
    return sum * kTokens;
  }
  const TempFolder folder_;
  ThreadTeam team_{2};
};

TEST_F(Cost, WeakColumnsCostTheirShareOfFullTuning) {
  for (const Precision precision : {Precision::kF32, Precision::kDefault}) {
    const auto weak_model = load(kWeak), model = load(0);
    const auto weak = make_weak_column_method(*weak_model, {});
    const auto scales = make_scale_method(*model, {});
    ASSERT_TRUE(weak && scales);
    const std::int64_t of_weak = extra(*weak_model, **weak, precision);
    const std::int64_t of_scales = extra(*model, **scales, precision);
    const std::int64_t rest = count(*weak_model, {}, precision);
    const std::int64_t without = count(*model, {}, precision);
    const auto full = make_full_method(*model, team_, {});
    ASSERT_TRUE(full);
    const std::int64_t of_full = extra(*model, **full, precision);
    std::int64_t rows = 0, elements = 0;
    for (std::size_t i = 0; i < model->linear_count(); ++i) {
      rows += model->linear(i).rows();
      elements += model->linear(i).rows() * model->linear(i).columns;
    }
    EXPECT_EQ(of_full, kTokens * elements);
    EXPECT_EQ(of_weak, kTokens * rows * kWeak);  // k / IC of each layer's
    EXPECT_EQ(of_scales, kTokens * elements);    // PEQA forms the whole product
    // Forward and input gradients are the same products, split by columns.
    const bool twice =
        precision == Precision::kDefault && rounds_to_bf16(*usable_kernels().front());
    EXPECT_EQ(rest, without + (twice ? weak_forward(*weak_model) : 0));
    // Layer by layer, not only in sum.
    for (const std::size_t kind : {kQ, kO, kDown}) {
      const std::vector<std::string> module{std::string(kLinearKinds[kind].module)};
      const auto one_weak = make_weak_column_method(*weak_model, module);
      const auto one_full = make_full_method(*model, team_, module);
      ASSERT_TRUE(one_weak && one_full);
      EXPECT_EQ(extra(*weak_model, **one_weak, precision) * model->linear(kind).columns,
                extra(*model, **one_full, precision) * kWeak);
    }
  }
}

}  // namespace
}  // namespace trimpot
