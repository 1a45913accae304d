// Methods that tune whole matrices: what they count, start from, commit and hand out.
#include <cmath>
#include <cstring>
#include <functional>

#include "tune/matrices_fixture.h"

namespace trimpot {
namespace {

LowRankOptions with_rank(std::int64_t rank, double dropout = 0, bool pooled = false,
                         std::vector<std::string> modules = {}) {
  LowRankOptions options;
  options.rank = rank;
  options.dropout = dropout;
  options.pooled = pooled;
  options.target_modules = std::move(modules);
  return options;
}

// Rows: q 60, k, v 20, o 64, gate, up 96, down 64. Inputs: 64, but o 60 and down 96.
TEST_F(Matrices, Counts) {
  auto model = load(weak_toy());
  EXPECT_EQ(take(make_weak_column_method(*model, {}))->trainable(),
            2u * kWeak * (60 + 20 + 20 + 64 + 96 + 96 + 64));
  EXPECT_EQ(take(make_weak_column_method(*model, {"q_proj", "o_proj"}))->trainable(),
            2u * kWeak * (60 + 64));
  LowRankOptions options = with_rank(4);
  auto low_rank = take(make_low_rank_method(*model, options));
  EXPECT_EQ(low_rank->trainable(), 2u * 4 * (124 + 84 + 84 + 124 + 160 + 160 + 160));
  options.target_modules = {"down_proj"};
  model = load(grouped_toy());
  EXPECT_EQ(take(make_low_rank_method(*model, options))->trainable(), 2u * 4 * 160);
  EXPECT_EQ(model->linear(kQ).low_rank, nullptr);
  options.pooled = true;
  EXPECT_EQ(take(make_low_rank_method(*model, options))->trainable(), 2u * 4 * (3 + 64));
  EXPECT_EQ(model->linear(kDown).low_rank->pool, 32);
  EXPECT_EQ(take(make_full_method(*model, team_, {}))->trainable(), elements(*model));
  // Names and places: one after another, without gaps.
  model = load(weak_toy());
  options = with_rank(3, 0, false, {"k_proj"});
  low_rank = take(make_low_rank_method(*model, options));
  std::vector<std::string> names;
  std::size_t next = 0;
  for (const Parameter& parameter : low_rank->parameters().list) {
    names.push_back(parameter.name);
    EXPECT_EQ(parameter.begin, next);
    EXPECT_EQ(parameter.learning_rate_factor, 1.0);
    EXPECT_EQ(parameter.linear % 7, std::size_t{kK});
    next += parameter.count;
  }
  EXPECT_EQ(next, low_rank->parameters().size());
  EXPECT_EQ(names,
            (std::vector<std::string>{"blk.0.attn_k.weight.lora_a", "blk.0.attn_k.weight.lora_b",
                                      "blk.1.attn_k.weight.lora_a", "blk.1.attn_k.weight.lora_b"}));
  const auto weak = take(make_weak_column_method(*model, {"v_proj"}));
  EXPECT_EQ(weak->parameters().list[1].name, "blk.1.attn_v.weight.weak");
}

// Before the first step every method's model is the file's.
TEST_F(Matrices, TheStartIsTheFile) {
  for (const bool reordered : {false, true}) {
    const auto base = load(weak_toy(reordered));
    auto model = load(weak_toy(reordered));
    auto method = take(make_weak_column_method(*model, {}));
    ASSERT_TRUE(method->commit(team_));
    expect_same_function(*model, *base);
    for (const bool stabilized : {false, true}) {
      LowRankOptions options = with_rank(4);
      options.alpha = 6;
      options.rank_stabilized = stabilized;
      method = take(make_low_rank_method(*model, options));
      EXPECT_EQ(model->linear(0).low_rank->scale, stabilized ? 3.0f : 1.5f);
      ASSERT_TRUE(method->commit(team_));
      expect_same_function(*model, *base);
      for (const float value : model->linear(9).low_rank->b.dense_f32()) EXPECT_EQ(value, 0.0f);
    }
  }
  const auto base = load(grouped_toy());
  auto model = load(grouped_toy());
  LowRankOptions options = with_rank(4);
  options.pooled = true;
  auto method = take(make_low_rank_method(*model, options));
  ASSERT_TRUE(method->commit(team_));
  expect_same_function(*model, *base);
  model = load(grouped_toy());
  std::vector<std::vector<std::int32_t>> columns(model->linear_count());
  columns[kQ] = {9, 3, 63};
  columns[7 + kDown] = {95};
  add_weak_columns(*model, columns);
  method = take(make_weak_column_method(*model, {}));
  EXPECT_EQ(method->trainable(), 3u * 60 + 64);
  ASSERT_TRUE(method->commit(team_));
  expect_same_function(*model, *base);
  // Codes become f16 weights: each within half a unit of the last of 11 bits.
  model = load(grouped_toy());
  method = take(make_full_method(*model, team_, {}));
  ASSERT_TRUE(method->commit(team_));
  EXPECT_EQ(model->linear(0).weight.view().storage, Storage::kF16);
  EXPECT_LT(
      relative_error(logits(*model, Precision::kF32), widened(logits(*base, Precision::kF32))),
      0x1p-9);
}

// A is U(+-1 / sqrt(inputs)) and differs from layer to layer and seed to seed.
TEST_F(Matrices, InitialA) {
  const auto a_of = [&](std::uint64_t seed, std::size_t index) {
    const auto model = load(grouped_toy());
    LowRankOptions options = with_rank(20);
    options.seed = seed;
    take(make_low_rank_method(*model, options));
    const Matrix& a = model->linear(index).low_rank->a;
    std::vector<float> values, row(static_cast<std::size_t>(a.columns()));
    for (std::int64_t r = 0; r < a.rows(); ++r) {
      a.dequantize_row(r, row.data());
      values.insert(values.end(), row.begin(), row.end());
    }
    return values;
  };
  const auto values = a_of(1, kDown);
  const double bound = 1 / std::sqrt(96.0), count = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const float value : values) {
    EXPECT_LE(std::fabs(value), bound);
    sum += value;
    squares += double{value} * value;
  }
  // Five deviations: of the mean b / sqrt(3 n), of the mean square b^2 sqrt(4 / 45 / n).
  EXPECT_NEAR(sum / count, 0, 5 * bound / std::sqrt(3 * count));
  EXPECT_NEAR(squares / count, bound * bound / 3, 5 * bound * bound * std::sqrt(4.0 / 45 / count));
  EXPECT_EQ(a_of(1, kDown), values);
  EXPECT_NE(a_of(2, kDown), values);
  EXPECT_NE(a_of(1, 7 + kDown), values);
}

void perturb(TuningMethod& method, float size) {
  RandomStream random(7);
  for (float& value : method.parameters().values.span()) value += size * random.normal();
}

// The stored weights are the masters rounded to their type, and the forward pass sees these.
TEST_F(Matrices, CommitRounds) {
  auto model = load(weak_toy());
  auto method = take(make_weak_column_method(*model, {}));
  const auto before = logits(*model, Precision::kDefault);
  perturb(*method, 0.01f);
  ASSERT_TRUE(method->commit(team_));
  const auto after = logits(*model, Precision::kDefault);
  EXPECT_FALSE(same_bits(before, after));
  std::size_t inexact = 0;
  for (const Parameter& parameter : method->parameters().list) {
    const auto stored = model->linear(parameter.linear).weak.dense_f16();
    ASSERT_EQ(stored.size(), parameter.count);
    for (std::size_t i = 0; i < stored.size(); ++i) {
      const float master = method->parameters().values[parameter.begin + i];
      ASSERT_EQ(stored[i], f32_to_f16(master));
      inexact += f16_to_f32(stored[i]) != master;
    }
  }
  EXPECT_GT(inexact, 100u);
  // Another model with the rounded values by hand.
  const auto other = load(weak_toy());
  for (std::size_t i = 0; i < other->linear_count(); ++i) {
    const auto from = model->linear(i).weak.dense_f16();
    std::copy(from.begin(), from.end(), other->linear(i).weak.dense_f16().begin());
  }
  EXPECT_TRUE(same_bits(logits(*other, Precision::kDefault), after));

  for (const ElementType type : {ElementType::kF32, ElementType::kF16, ElementType::kBF16}) {
    model = load(dense_toy(type));
    method = take(make_full_method(*model, team_, {"gate_proj"}));
    perturb(*method, 0.01f);
    ASSERT_TRUE(method->commit(team_));
    const Parameter& parameter = method->parameters().list[1];
    Matrix& weight = model->linear(parameter.linear).weight;
    std::vector<float> row(64);
    for (std::int64_t r = 0; r < 96; ++r) {
      weight.dequantize_row(r, row.data());
      for (std::int64_t c = 0; c < 64; ++c) {
        const float master =
            method->parameters().values[parameter.begin + weight.dense_index(r, c)];
        const float want = type == ElementType::kF32   ? master
                           : type == ElementType::kF16 ? f16_to_f32(f32_to_f16(master))
                                                       : bf16_to_f32(f32_to_bf16(master));
        ASSERT_EQ(row[static_cast<std::size_t>(c)], want);
      }
    }
  }
}

TEST_F(Matrices, ValuesThatLeaveTheRangeAreErrors) {
  const auto error = [&](const ToyFile& toy, auto&& make, float bad) {
    const auto model = load(toy);
    const auto method = take(make(*model));
    method->parameters().values[method->parameters().list[1].begin + 5] = bad;
    const auto status = method->commit(team_);
    return status ? "" : status.error().message;
  };
  const auto weak = [](Model& model) { return make_weak_column_method(model, {"k_proj"}); };
  const auto full = [&](Model& model) { return make_full_method(model, team_, {"k_proj"}); };
  const std::string rest = " a tuned weight left the range of its type; lower the learning rate";
  for (const float bad : {70000.0f, -1e9f, INFINITY, NAN})
    EXPECT_EQ(error(weak_toy(), weak, bad), "blk.1.attn_k.weight.weak:" + rest);
  EXPECT_EQ(error(dense_toy(ElementType::kF16), full, 70000.0f), "blk.1.attn_k.weight:" + rest);
  EXPECT_EQ(error(dense_toy(ElementType::kBF16), full, 70000.0f), "");
  EXPECT_EQ(error(dense_toy(ElementType::kBF16), full, 3.4e38f), "blk.1.attn_k.weight:" + rest);
  EXPECT_EQ(error(dense_toy(ElementType::kF32), full, 3.4e38f), "");
  EXPECT_EQ(error(dense_toy(ElementType::kF32), full, NAN), "blk.1.attn_k.weight:" + rest);
}

// A number that depends on a place in the original model only.
float by_place(std::int64_t row, std::int64_t column, std::size_t parameter) {
  return static_cast<float>(
             CounterRng(11, parameter).uniform(static_cast<std::uint64_t>(row * 1000 + column))) -
         0.5f;
}

// A model and its reordered form, tuned alike, give the same adapter.
TEST_F(Matrices, AdaptersAreInTheOriginalOrder) {
  const auto tune = [&](bool reordered, bool low_rank) {
    auto model = load(weak_toy(reordered));
    LowRankOptions options = with_rank(3);
    const auto method = take(low_rank ? make_low_rank_method(*model, options)
                                      : make_weak_column_method(*model, {}));
    for (std::size_t p = 0; p < method->parameters().list.size(); ++p) {
      const Parameter& parameter = method->parameters().list[p];
      const LinearAxes axes = linear_axes(*model, parameter.linear);
      const Linear& linear = model->linear(parameter.linear);
      const bool is_a = parameter.name.ends_with(".lora_a");
      const Matrix& matrix = is_a       ? linear.low_rank->a
                             : low_rank ? linear.low_rank->b
                                        : linear.weak;
      for (std::int64_t r = 0; r < matrix.rows(); ++r)
        for (std::int64_t c = 0; c < matrix.columns(); ++c) {
          const std::int64_t row = !is_a && axes.rows ? (*axes.rows)[r] : r;
          const std::int64_t column = is_a && axes.columns ? (*axes.columns)[c] : c;
          float& value = method->parameters().values[parameter.begin + matrix.dense_index(r, c)];
          value = (low_rank ? 0.0f : value) + 0.1f * by_place(row, column, p);
        }
    }
    EXPECT_TRUE(method->commit(team_));
    auto tensors = method->adapter_tensors();
    EXPECT_TRUE(tensors) << tensors.error().message;
    return std::pair(std::move(*tensors), std::move(model));
  };
  for (const bool low_rank : {false, true}) {
    const auto [plain, plain_model] = tune(false, low_rank);
    const auto [reordered, reordered_model] = tune(true, low_rank);
    ASSERT_NE(reordered_model->residual_order, nullptr);
    ASSERT_EQ(plain.size(), reordered.size());
    ASSERT_EQ(plain.size(), 28u);  // two tensors for each of 14 layers
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_EQ(plain[i].name, reordered[i].name);
      EXPECT_EQ(plain[i].dtype, i % 2 == 1 && !low_rank ? "I32" : "F32");
      EXPECT_EQ(plain[i].shape, reordered[i].shape);
      EXPECT_EQ(plain[i].bytes, reordered[i].bytes) << plain[i].name;
    }
    // And they are one function: sums of up to 96 terms in another order, some 15 in a row, twice.
    EXPECT_LE(relative_error(logits(*reordered_model, Precision::kF32),
                             widened(logits(*plain_model, Precision::kF32))),
              2 * 15 * 96 * kRoundoff);
  }
  // The weak columns' tensor holds the change, exactly.
  const auto [tensors, model] = tune(false, false);
  const auto base = load(weak_toy());
  const Linear& now = model->linear(kUp);
  std::vector<float> change(96 * kWeak);
  ASSERT_EQ(tensors[2 * kUp].name, "blk.0.ffn_up.weight.weak");
  ASSERT_EQ(tensors[2 * kUp].bytes.size(), change.size() * 4);
  std::memcpy(change.data(), tensors[2 * kUp].bytes.data(), change.size() * 4);
  for (std::int64_t r = 0; r < 96; ++r)
    for (std::int64_t c = 0; c < kWeak; ++c) {
      const std::size_t at = now.weak.dense_index(r, c);
      EXPECT_EQ(change[static_cast<std::size_t>(r * kWeak + c)],
                f16_to_f32(now.weak.dense_f16()[at]) -
                    f16_to_f32(base->linear(kUp).weak.dense_f16()[at]));
    }
  std::vector<std::int32_t> channels(kWeak);
  ASSERT_EQ(tensors[2 * kUp + 1].name, "blk.0.ffn_up.weight.weak_columns");
  std::memcpy(channels.data(), tensors[2 * kUp + 1].bytes.data(), 4 * kWeak);
  EXPECT_EQ(channels, *now.weak_columns);
}

// Passes differ from one another and are the same again under the same number.
TEST_F(Matrices, DropoutFollowsThePass) {
  const auto model = load(grouped_toy());
  LowRankOptions options = with_rank(4);
  options.dropout = 0.2;
  const auto method = take(make_low_rank_method(*model, options));
  perturb(*method, 0.05f);
  ASSERT_TRUE(method->commit(team_));
  method->begin_pass(0);
  const auto first = gradient(*method, *model);
  EXPECT_TRUE(same_bits(gradient(*method, *model), first));
  method->begin_pass(1);
  EXPECT_FALSE(same_bits(gradient(*method, *model), first));
  method->begin_pass(0);
  EXPECT_TRUE(same_bits(gradient(*method, *model), first));
  // Evaluation knows no dropout, before and after a pass.
  EXPECT_EQ(loss(*model), loss(*model));
  options.dropout = 0;
  const auto plain = take(make_low_rank_method(*model, options));
  plain->begin_pass(5);
  EXPECT_EQ(plain->sink().dropout_stream, 0u);
}

// A step against the gradient lowers the loss, by what the gradient says: parameters, gradients
// and weights belong together.
TEST_F(Matrices, AStepLowersTheLoss) {
  LowRankOptions low_rank = with_rank(4);
  LowRankOptions pooled = low_rank;
  pooled.pooled = true;
  struct Method {
    std::string name;
    ToyFile toy;
    std::function<Made(Model&)> make;
    bool f16 = false;  // what is tuned
  };
  const Method methods[] = {
      {"weak", weak_toy(), [](Model& m) { return make_weak_column_method(m, {}); }, true},
      {"reordered", weak_toy(true), [](Model& m) { return make_weak_column_method(m, {}); }, true},
      {"on top", grouped_toy(),
       [](Model& m) {
         add_weak_columns(m, std::vector<std::vector<std::int32_t>>(m.linear_count(), {1, 40, 7}));
         return make_weak_column_method(m, {});
       }},
      {"low rank", weak_toy(), [&](Model& m) { return make_low_rank_method(m, low_rank); }},
      {"pooled", grouped_toy(), [&](Model& m) { return make_low_rank_method(m, pooled); }},
      {"full", dense_toy(ElementType::kF32),
       [&](Model& m) { return make_full_method(m, team_, {}); }},
  };
  for (const Method& test : methods) {
    SCOPED_TRACE(test.name);
    const auto model = load(test.toy);
    const auto method = take(test.make(*model));
    const double before = loss(*model, method.get());
    Parameters& parameters = method->parameters();
    double squares = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i)
      squares += double{parameters.gradient[i]} * parameters.gradient[i];
    ASSERT_GT(squares, 0.0);
    // By 0.001 to first order, less what the rounding to f16 takes away.
    const auto rate = static_cast<float>(0.001 / squares);
    double fall = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const float old = parameters.values[i], now = old - rate * parameters.gradient[i];
      parameters.values[i] = test.f16 ? f16_to_f32(f32_to_f16(now)) : now;
      fall += double{parameters.gradient[i]} * (old - parameters.values[i]);
    }
    ASSERT_TRUE(method->commit(team_));
    EXPECT_GT(fall, 5e-5);
    EXPECT_NEAR(0.05 * (before - loss(*model)), fall, 0.1 * fall);
  }
}

TEST_F(Matrices, WhatCannotBeTunedIsRefused) {
  const auto error = [&](const ToyFile& toy, auto&& make) {
    const auto model = load(toy);
    const Made method = make(*model);
    return method ? "" : method.error().message;
  };
  const auto low_rank = [](LowRankOptions options) {
    return [options](Model& model) { return make_low_rank_method(model, options); };
  };
  const auto weak = [](Model& model) { return make_weak_column_method(model, {}); };
  const auto full = [&](Model& model) { return make_full_method(model, team_, {}); };
  const auto qat = [&](Model& model) { return make_qat_method(model, team_, {}, {}); };
  EXPECT_EQ(error(grouped_toy(), weak),
            "this model has no weak columns; `trimpot quantize --method qeft` makes a file with "
            "some, or choose them here with --weak-columns 16");
  EXPECT_EQ(error(grouped_toy(), low_rank(with_rank(21))),
            "--lora-r is 21; blk.0.attn_k.weight takes a rank from 1 to 20");
  EXPECT_EQ(error(grouped_toy(), low_rank(with_rank(20))), "");
  for (const std::int64_t rank : {std::int64_t{0}, std::int64_t{-1}, INT64_MIN, INT64_MAX})
    EXPECT_EQ(
        error(grouped_toy(), low_rank(with_rank(rank))),
        "--lora-r is " + std::to_string(rank) + "; blk.0.attn_q.weight takes a rank from 1 to 60");
  EXPECT_EQ(error(grouped_toy(), low_rank(with_rank(4, 1))),
            "--lora-dropout is 1; it must be at least 0 and below 1");
  EXPECT_NE(error(grouped_toy(), low_rank(with_rank(4, NAN))), "");
  const std::string pooled =
      "blk.0.attn_q.weight: QA-LoRA needs a layer in groups of codes without weak columns; "
      "`trimpot "
      "quantize --method rtn --group-size 32` makes such a file";
  EXPECT_EQ(error(dense_toy(ElementType::kF16), low_rank(with_rank(4, 0, true))), pooled);
  EXPECT_EQ(error(weak_toy(), low_rank(with_rank(4, 0, true))), pooled);
  const std::string whole =
      "blk.0.attn_q.weight has weak columns, which this method would not tune with the rest; use "
      "--method qeft, or a file without weak columns";
  EXPECT_EQ(error(weak_toy(), full), whole);
  EXPECT_EQ(error(weak_toy(), qat), whole);
  const std::string module =
      "target module \"wq\" matches nothing; this model has q_proj, k_proj, v_proj, o_proj, "
      "gate_proj, up_proj, down_proj";
  EXPECT_EQ(error(weak_toy(), low_rank(with_rank(4, 0, false, {"wq"}))), module);
  EXPECT_EQ(error(weak_toy(), [](Model& m) { return make_weak_column_method(m, {"wq"}); }), module);
  EXPECT_EQ(error(grouped_toy(), [&](Model& m) { return make_full_method(m, team_, {"wq"}); }),
            module);
}

}  // namespace
}  // namespace trimpot
