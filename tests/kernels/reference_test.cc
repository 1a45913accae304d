// The hand-written gradients of the scalar references against the complex step, in double.
//
// The complex step has no cancellation, so both sides are off by roundings only: sums of some
// hundred terms, about 100 u = 1e-14 of the largest element. The bound below leaves room for the
// whole model's depth; a wrong formula is off by parts in ten.
#include "support/reference.h"

#include <gtest/gtest.h>

#include "io/test_files.h"
#include "kernels/ref/model.h"
#include "kernels/ref/ops.h"
#include "support/compare.h"
#include "support/own_toy.h"
#include "support/random.h"
#include "support/toy_model.h"

namespace trimpot {
namespace {

using Complex = std::complex<double>;
constexpr double kStep = 1e-40;
constexpr double kBound = 1e-12;

std::vector<double> normals(RandomStream& random, std::int64_t count) {
  return widened(random.normals(count));
}

std::vector<Complex> complex(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// sum weights[i] y[i]: a loss whose d_y is `weights`.
template <class T>
T weighted(const std::vector<T>& y, const std::vector<double>& weights) {
  T sum{};
  for (std::size_t i = 0; i < y.size(); ++i) sum += T(weights[i]) * y[i];
  return sum;
}

// `gradient` against the complex step of `loss` by each element of `point`, which it reads.
template <class Loss>
void expect_gradient(std::vector<Complex>& point, const std::vector<double>& gradient, Loss&& loss,
                     const std::string& what) {
  ASSERT_EQ(point.size(), gradient.size()) << what;
  const double most = largest(gradient);
  ASSERT_GT(most, 0.0) << what << ": nothing is tested";
  WorstError worst("worst_" + what);
  for (std::size_t i = 0; i < point.size(); ++i) {
    const Complex old = point[i];
    point[i] += Complex(0.0, kStep);
    const double step = loss().imag() / kStep;
    point[i] = old;
    worst.add(std::fabs(step - gradient[i]) / most);
    ASSERT_LE(std::fabs(step - gradient[i]), kBound * most) << what << ", element " << i;
  }
}

enum class Centre { kNone, kOffsets, kZeros };

template <class T>
ref::Linear<T> random_linear(RandomStream random, std::int64_t rows, std::int64_t columns,
                             Centre centre) {
  ref::Linear<T> w;
  w.rows = rows;
  w.columns = columns;
  w.group_size = 8;
  for (std::int64_t i = 0; i < rows * columns; ++i)
    w.codes.push_back(static_cast<double>(random.below(16) - 8));
  for (std::int64_t i = 0; i < rows * w.groups(); ++i) w.scales.emplace_back(random.normal());
  for (std::int64_t i = 0; i < rows * w.groups(); ++i) {
    if (centre == Centre::kOffsets) w.offsets.emplace_back(random.normal());
    if (centre == Centre::kZeros) w.zeros.emplace_back(3 * random.normal());
  }
  return w;
}

template <class T>
ref::Linear<T> random_dense(RandomStream random, std::int64_t rows, std::int64_t columns) {
  ref::Linear<T> w;
  w.rows = rows;
  w.columns = columns;
  for (std::int64_t i = 0; i < rows * columns; ++i) w.dense.emplace_back(random.normal());
  return w;
}

TEST(Reference, Linear) {
  for (const Centre centre : {Centre::kNone, Centre::kOffsets, Centre::kZeros}) {
    RandomStream random(1, static_cast<std::uint64_t>(centre));
    auto w = random_linear<Complex>(RandomStream(2), 5, 20, centre);  // the last group has 4
    const auto real = random_linear<double>(RandomStream(2), 5, 20, centre);
    const auto x = normals(random, 3 * 20), d_y = normals(random, 3 * 5);
    const auto g = ref::linear_backward(real, x, d_y);
    auto point = complex(x);
    const auto loss = [&] { return weighted(ref::linear(w, point), d_y); };
    expect_gradient(point, g.d_x, loss, "linear_x");
    expect_gradient(w.scales, g.d_scales, loss, "linear_scales");
    if (centre == Centre::kOffsets) expect_gradient(w.offsets, g.d_offsets, loss, "linear_offsets");
    if (centre == Centre::kZeros) expect_gradient(w.zeros, g.d_zeros, loss, "linear_zeros");
  }
  RandomStream random(3);
  auto w = random_dense<Complex>(RandomStream(4), 5, 7);
  const auto real = random_dense<double>(RandomStream(4), 5, 7);
  const auto x = normals(random, 3 * 7), d_y = normals(random, 3 * 5);
  const auto g = ref::linear_backward(real, x, d_y);
  auto point = complex(x);
  const auto loss = [&] { return weighted(ref::linear(w, point), d_y); };
  expect_gradient(point, g.d_x, loss, "dense_x");
  expect_gradient(w.dense, g.d_weight, loss, "dense_weight");
  EXPECT_TRUE(g.d_scales.empty());
}

// Weak columns apart from the codes, or on top of them; pooled inputs with a shorter last pool.
struct LayerCase {
  std::string name;
  std::vector<ref::Index> weight_columns, weak_columns;
  ref::Index inputs = 0, pool = 1;  // of A; 0: no low-rank path
  bool dropout = false;
};

template <class T>
ref::LinearLayer<T> random_layer(const LayerCase& c) {
  ref::LinearLayer<T> w;
  w.columns = 10;
  w.weight = random_linear<T>(RandomStream(5), 6,
                              static_cast<std::int64_t>(c.weight_columns.size()), Centre::kZeros);
  w.weight_columns = c.weight_columns;
  w.weak_columns = c.weak_columns;
  if (!c.weak_columns.empty())
    w.weak = random_dense<T>(RandomStream(6), 6, static_cast<std::int64_t>(c.weak_columns.size()));
  if (c.inputs == 0) return w;
  w.a = random_dense<T>(RandomStream(7), 2, c.inputs);
  w.b = random_dense<T>(RandomStream(8), 6, 2);
  w.scale = 0.7;
  w.pool = c.pool;
  RandomStream random(9);
  for (ref::Index i = 0; c.dropout && i < 3 * c.inputs; ++i)
    w.mask.push_back(random.below(3) == 0 ? 0.0 : 1.5);
  return w;
}

TEST(Reference, LinearLayer) {
  const std::vector<ref::Index> all{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const LayerCase cases[] = {
      {"last", {0, 1, 2, 3, 4, 5, 6}, {7, 8, 9}},
      {"anywhere", {0, 2, 3, 4, 6, 7, 8, 9}, {5, 1}},
      {"on_top", all, {8, 3, 4}},
      {"low_rank", all, {}, 10},
      {"pooled", all, {}, 3, 4},
      {"dropout", all, {}, 10, 1, true},
      {"everything", {0, 2, 3, 4, 6, 7, 8, 9}, {5, 1}, 3, 4, true},
  };
  for (const LayerCase& c : cases) {
    RandomStream random(10);
    auto w = random_layer<Complex>(c);
    const auto x = normals(random, 3 * 10), d_y = normals(random, 3 * 6);
    const auto g = ref::linear_backward(random_layer<double>(c), x, d_y);
    auto point = complex(x);
    const auto loss = [&] { return weighted(ref::linear(w, point), d_y); };
    expect_gradient(point, g.d_x, loss, c.name + "_x");
    expect_gradient(w.weight.scales, g.d_scales, loss, c.name + "_scales");
    expect_gradient(w.weight.zeros, g.d_zeros, loss, c.name + "_zeros");
    if (w.weak.rows > 0) expect_gradient(w.weak.dense, g.d_weak, loss, c.name + "_weak");
    if (w.a.rows == 0) continue;
    expect_gradient(w.a.dense, g.d_a, loss, c.name + "_a");
    expect_gradient(w.b.dense, g.d_b, loss, c.name + "_b");
  }
}

// What the parts mean, without the formulas above: a layer is the matrix of all its parts.
TEST(Reference, LinearLayerIsAMatrix) {
  const LayerCase c{"everything", {0, 2, 3, 4, 6, 7, 8, 9}, {5, 1}, 3, 4, false};
  const auto w = random_layer<double>(c);
  ref::Linear<double> whole;
  whole.rows = 6;
  whole.columns = 10;
  whole.dense.resize(60);
  for (ref::Index n = 0; n < 6; ++n) {
    for (ref::Index i = 0; i < 8; ++i) {
      const ref::Index at = n * w.weight.groups() + i / 8;
      whole.dense[n * 10 + c.weight_columns[i]] +=
          w.weight.scales[at] * (w.weight.codes[n * 8 + i] - w.weight.zeros[at]);
    }
    for (ref::Index i = 0; i < 2; ++i)
      whole.dense[n * 10 + c.weak_columns[i]] += w.weak.dense[n * 2 + i];
    for (ref::Index j = 0; j < 10; ++j)
      for (ref::Index r = 0; r < 2; ++r)
        whole.dense[n * 10 + j] += 0.7 * w.b.dense[n * 2 + r] * w.a.dense[r * 3 + j / 4];
  }
  RandomStream random(11);
  const auto x = normals(random, 3 * 10);
  const auto got = ref::linear(w, x), want = ref::linear(whole, x);
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-13);
}

TEST(Reference, RmsNorm) {
  RandomStream random(3);
  const auto x = normals(random, 4 * 9), weight = normals(random, 9), d_y = normals(random, 4 * 9);
  auto point = complex(x);
  const auto loss = [&] { return weighted(ref::rms_norm(point, complex(weight), 0.1), d_y); };
  expect_gradient(point, ref::rms_norm_backward(x, weight, 0.1, d_y), loss, "rms_norm");
}

TEST(Reference, Rope) {
  RandomStream random(4);
  const std::vector<double> frequencies{1.0, 0.3};  // 4 of 5 channels
  const auto x = normals(random, 3 * 2 * 5), d_y = normals(random, 3 * 2 * 5);
  auto point = complex(x);
  const auto loss = [&] { return weighted(ref::rope(point, 2, 5, frequencies, 1.0), d_y); };
  expect_gradient(point, ref::rope(d_y, 2, 5, frequencies, -1.0), loss, "rope");
}

TEST(Reference, Attention) {
  for (const auto& heads : {ref::Heads{3, 1, 5}, ref::Heads{4, 2, 3}, ref::Heads{2, 2, 4}}) {
    RandomStream random(5);
    const std::int64_t tokens = 6, width = heads.heads * heads.head_dim;
    const std::int64_t kv_width = heads.kv_heads * heads.head_dim;
    const auto q = normals(random, tokens * width), d_out = normals(random, tokens * width);
    const auto k = normals(random, tokens * kv_width), v = normals(random, tokens * kv_width);
    const auto g = ref::attention_backward(heads, q, k, v, d_out);
    auto cq = complex(q), ck = complex(k), cv = complex(v);
    const auto loss = [&] { return weighted(ref::attention(heads, cq, ck, cv), d_out); };
    expect_gradient(cq, g.d_q, loss, "attention_q");
    expect_gradient(ck, g.d_k, loss, "attention_k");
    expect_gradient(cv, g.d_v, loss, "attention_v");
  }
}

TEST(Reference, Swiglu) {
  RandomStream random(6);
  const auto gate = normals(random, 30), up = normals(random, 30), d_out = normals(random, 30);
  const auto g = ref::swiglu_backward(gate, up, d_out);
  auto c_gate = complex(gate), c_up = complex(up);
  const auto loss = [&] { return weighted(ref::swiglu(c_gate, c_up), d_out); };
  expect_gradient(c_gate, g.d_gate, loss, "swiglu_gate");
  expect_gradient(c_up, g.d_up, loss, "swiglu_up");
}

TEST(Reference, CrossEntropy) {
  RandomStream random(7);
  const auto logits = normals(random, 11);
  auto point = complex(logits);
  const auto loss = [&] { return 0.7 * ref::cross_entropy(point, 4); };
  expect_gradient(point, ref::cross_entropy_backward(logits, 4, 0.7), loss, "cross_entropy");
}

// Every gradient of a whole model by the complex step; `complete` adds what a file does not hold.
template <class Complete>
void check_whole_model(const ToyFile& file, Complete&& complete) {
  const TempFolder folder;
  const auto toy = load_toy(file, folder.file("toy.gguf"));
  ASSERT_TRUE(toy) << toy.error().message;
  const std::vector<ref::Index> tokens{3, 7, 0, 3, 9, 1};
  const std::vector<bool> learned{true, true, false, true, true, true};
  auto real = reference_model<double>(*toy->model);
  auto model = reference_model<Complex>(*toy->model);
  complete(real);
  complete(model);
  const auto g = ref::loss_backward(real, tokens, learned, 0.3);
  EXPECT_NEAR(g.loss, 0.3 * ref::loss(real, tokens, learned), 1e-14 * g.loss);
  const auto loss = [&] { return 0.3 * ref::loss(model, tokens, learned); };
  for (std::size_t l = 0; l < model.layers.size(); ++l)
    for (std::size_t kind = 0; kind < ref::kLinears; ++kind) {
      auto& linear = model.layers[l].linears[kind];
      const auto& gradients = g.layers[l].linears[kind];
      const std::string what = "layer" + std::to_string(l) + "_linear" + std::to_string(kind);
      const auto expect = [&](std::vector<Complex>& point, const std::vector<double>& gradient,
                              const std::string& part) {
        if (!point.empty()) expect_gradient(point, gradient, loss, what + part);
      };
      expect(linear.weight.scales, gradients.d_scales, "_scales");
      expect(linear.weight.zeros, gradients.d_zeros, "_zeros");
      expect(linear.weight.offsets, gradients.d_offsets, "_offsets");
      expect(linear.weight.dense, gradients.d_weight, "_weight");
      expect(linear.weak.dense, gradients.d_weak, "_weak");
      expect(linear.a.dense, gradients.d_a, "_a");
      expect(linear.b.dense, gradients.d_b, "_b");
    }
  auto x = ref::embed(model, tokens);
  expect_gradient(
      x, g.d_x, [&] { return 0.3 * ref::loss_from(model, x, tokens, learned); }, "x");
}

ToyOptions small_options() {
  ToyOptions options;
  options.hidden = options.feed_forward = 32;
  options.heads = 4;
  options.kv_heads = 2;
  options.head_dim = 8;
  options.rope_dims = 6;
  options.vocabulary = 11;
  options.gain = 1.5f;
  return options;
}

// Catches a gradient that is right alone but put together wrongly (a residual branch, q and k
// swapped, the tied head).
TEST(Reference, WholeModel) {
  ToyOptions options = small_options();
  options.linear_types[ref::kK] = options.linear_types[ref::kUp] = ElementType::kQ4_0;
  options.linear_types[ref::kV] = ElementType::kF16;
  check_whole_model(toy_file(options), [](auto&) {});
}

// Zeros, weak columns, orders and low-rank pairs with dropout of the inputs.
TEST(Reference, WholeModelWithAllParts) {
  ToyOptions options = small_options();
  options.embedding = ElementType::kF32;
  options.layers = 1;
  const OwnToy toy = own_toy(options, {4, 32, OwnCentre::kZeros, 3, false, true});
  check_whole_model(toy.own, []<class T>(ref::Model<T>& model) {
    for (std::size_t kind = 0; kind < ref::kLinears; ++kind) {
      ref::LinearLayer<T>& linear = model.layers[0].linears[kind];
      linear.a = random_dense<T>(RandomStream(30, kind), 2, linear.columns);
      linear.b = random_dense<T>(RandomStream(31, kind), linear.weight.rows, 2);
      linear.scale = 0.1;
      RandomStream random(32, kind);
      for (ref::Index i = 0; i < 6 * linear.columns; ++i)
        linear.mask.push_back(random.below(4) == 0 ? 0.0 : 4.0 / 3.0);
    }
  });
}

}  // namespace
}  // namespace trimpot
