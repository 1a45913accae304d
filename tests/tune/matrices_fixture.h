// Models for tests of the methods that tune whole matrices, and what these do to them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "io/test_files.h"
#include "model/session.h"
#include "model/training_pass.h"
#include "support/compare.h"
#include "support/own_toy.h"
#include "support/random.h"
#include "tune/matrices.h"

namespace trimpot {

inline constexpr std::int64_t kWeak = 5;

inline ToyOptions toy_options() {
  ToyOptions options;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 20;
  options.vocabulary = 30;
  return options;
}

// Rows are one group, so that another order of columns is the same function.
inline ToyFile weak_toy(bool reordered = false) {
  return own_toy(toy_options(), {4, 0, OwnCentre::kZeros, kWeak, false, reordered, reordered}).own;
}
inline ToyFile grouped_toy() { return own_toy(toy_options(), {4, 32, OwnCentre::kZeros}).own; }
inline ToyFile dense_toy(ElementType type) {
  ToyOptions options = toy_options();
  options.linear_types = ToyOptions::all_linears(type);
  return toy_file(options);
}

using Made = Result<std::unique_ptr<TuningMethod>>;

class Matrices : public testing::Test {
 protected:
  std::unique_ptr<Model> load(const ToyFile& toy) {
    auto loaded = load_toy(toy, folder_.file("toy.gguf"));
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(loaded->model);
  }
  static std::unique_ptr<TuningMethod> take(Made made) {
    EXPECT_TRUE(made) << made.error().message;
    return std::move(*made);
  }
  static std::vector<float> logits(const Model& model, Precision precision) {
    Compute compute(*usable_kernels().front(), precision, 2);
    Session session(compute, model, 16);
    const std::vector<TokenId> tokens{3, 14, 15, 9, 2, 6};
    std::vector<float> out(30);
    EXPECT_TRUE(session.append(tokens, out.data()));
    return out;
  }
  static void expect_same_function(const Model& a, const Model& b) {
    for (const Precision precision : {Precision::kF32, Precision::kDefault})
      EXPECT_TRUE(same_bits(logits(a, precision), logits(b, precision)));
  }
  // Loss of a batch; with a method its gradients.
  static double loss(const Model& model, TuningMethod* method = nullptr) {
    TrainingBatch batch;
    RandomStream random(3);
    for (int i = 0; i < 20; ++i) {
      batch.tokens.push_back(static_cast<TokenId>(random.below(30)));
      batch.learned.push_back(1);
    }
    batch.lengths = {20};
    Compute compute(*usable_kernels().front(), Precision::kF32, 2);
    TrainingPass pass(compute, model);
    const auto sum = pass.run(batch, 0.05f, method == nullptr ? nullptr : &method->sink());
    EXPECT_TRUE(sum) << sum.error().message;
    return sum->loss;
  }
  // Bits, so that they compare.
  static std::vector<float> gradient(TuningMethod& method, const Model& model) {
    AlignedBuffer<float>& gradient = method.parameters().gradient;
    std::fill_n(gradient.data(), gradient.size(), 0.0f);
    loss(model, &method);
    return {gradient.data(), gradient.data() + gradient.size()};
  }
  static std::size_t elements(const Model& model) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < model.linear_count(); ++i)
      count += static_cast<std::size_t>(model.linear(i).rows() * model.linear(i).columns);
    return count;
  }
  const TempFolder folder_;
  ThreadTeam team_{2};
};

}  // namespace trimpot
