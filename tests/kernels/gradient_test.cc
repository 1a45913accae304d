// The production code of the f32 path, with the kernels of every instruction set that this machine
// has, against the scalar references in double.
//
// Tolerances: a sum of n rounded terms is off by at most n u sum |terms| (u = 2^-24), whatever the
// order (Higham: "Accuracy and Stability of Numerical Algorithms", section 4.2). The references,
// run on absolute values, give sum |terms|.
#include <gtest/gtest.h>

#include <array>
#include <mutex>

#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/linear_calls.h"
#include "kernels/ref/ops.h"
#include "support/compare.h"
#include "support/random_groups.h"
#include "support/reference.h"

namespace trimpot {
namespace {

constexpr int kThreads = 2;

struct Shape {
  std::int64_t rows, columns;
};
// Rows that fill no tile, one, and several; one to five chunks.
constexpr Shape kBlockShapes[] = {{1, 32}, {5, 64}, {16, 96}, {33, 32}, {40, 160}};
// Dense matrices may have any number of columns.
constexpr Shape kDenseShapes[] = {{1, 1}, {7, 33}, {37, 20}, {16, 50}, {50, 64}};
constexpr std::int64_t kTokens[] = {1, 2, 3, 5, 17, 70};

// Gradients of scales and offsets in the order of the references, [rows, groups].
struct ScaleGradients {
  std::vector<float> d_scales, d_offsets;
};
ScaleGradients collect(Compute& compute, const Matrix& weight, const Activations& x,
                       const float* d_y, std::int64_t tokens) {
  const std::size_t size = static_cast<std::size_t>(weight.rows() * weight.groups());
  ScaleGradients out{std::vector<float>(size), std::vector<float>(size)};
  std::vector<int> seen(static_cast<std::size_t>(weight.view().tiles));
  LinearSink sink;
  sink.scales = [&](std::int64_t begin, std::int64_t end, const float* scale, const float* offset) {
    EXPECT_EQ(offset != nullptr, weight.has_shifts());
    for (std::int64_t tile = begin; tile < end; ++tile) {
      ++seen[static_cast<std::size_t>(tile)];
      for (std::int64_t row = tile * 16; row < std::min(tile * 16 + 16, weight.rows()); ++row)
        for (std::int64_t group = 0; group < weight.groups(); ++group) {
          const auto to = static_cast<std::size_t>(row * weight.groups() + group);
          const auto from = weight.scale_index(row, group) -
                            static_cast<std::size_t>(begin * weight.groups() * 16);
          out.d_scales[to] = scale[from];
          if (offset != nullptr) out.d_offsets[to] = offset[from];
        }
    }
  };
  linear_backward(compute, weight, x, d_y, tokens, sink, nullptr, false);
  for (const int count : seen) EXPECT_EQ(count, 1);
  return out;
}

class Production : public testing::TestWithParam<const Kernels*> {
 protected:
  Compute compute_{*GetParam(), Precision::kF32, kThreads};
};
INSTANTIATE_TEST_SUITE_P(Isas, Production, testing::ValuesIn(usable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

void test_linear(Compute& compute, const std::string& name, const Matrix& weight,
                 std::int64_t tokens, WorstError& used) {
  const std::int64_t rows = weight.rows(), columns = weight.columns();
  SCOPED_TRACE(testing::Message() << name << ' ' << rows << " x " << columns << ", " << tokens
                                  << " tokens");
  const auto w = with_offsets(reference_linear<double>(weight));
  RandomStream random(2, static_cast<std::uint64_t>(tokens));
  const auto x = random.normals(tokens * columns), d_y = random.normals(tokens * rows);
  const Activations in = activations(compute, x, columns, std::array<LinearView, 1>{weight});
  const auto magnitude =
      ref::linear_backward(absolute(w), absolute(widened(x)), absolute(widened(d_y)));
  // The weight itself has up to two roundings, its product another.
  std::vector<float> y(d_y.size());
  linear(compute, in, tokens, std::array<LinearOutput, 1>{{{weight, y.data()}}});
  used.add(expect_close(y, ref::linear(w, widened(x)),
                        ref::linear(absolute(w), absolute(widened(x))),
                        static_cast<double>(columns) + 3, "y"));

  const auto want = ref::linear_backward(w, widened(x), widened(d_y));
  std::vector<float> d_x(x.size());
  linear_backward(compute, weight, in, d_y.data(), tokens, {}, d_x.data(), false);
  used.add(expect_close(d_x, want.d_x, magnitude.d_x, static_cast<double>(rows) + 3, "d_x"));

  if (!weight.quantized()) return;
  const ScaleGradients got = collect(compute, weight, in, d_y.data(), tokens);
  const double roundings =
      static_cast<double>(tokens) + 2 + static_cast<double>(weight.view().group_chunks);
  used.add(expect_close(got.d_scales, want.d_scales, magnitude.d_scales, roundings, "d_scale"));
  if (weight.has_shifts())
    used.add(
        expect_close(got.d_offsets, want.d_offsets, magnitude.d_offsets, roundings, "d_offset"));
}

// Catches: a tile, chunk or row at an edge that is dropped, doubled or read from its neighbour; a
// zero-point of the wrong format; offsets that are left out of a gradient.
TEST_P(Production, Linear) {
  WorstError used("tolerance_used");
  for (const std::int64_t tokens : kTokens) {
    for (const MatrixFormat& format : all_formats())
      for (const auto& [rows, columns] : kBlockShapes) {
        const std::int64_t fitting = format.column_unit == 1 ? columns - 11 : columns;
        test_linear(compute_, format.name, format.make(rows, fitting, 1, false), tokens, used);
      }
    for (const ElementType type : kDenseTypes)
      for (const auto& [rows, columns] : kDenseShapes)
        test_linear(compute_, std::string(type_name(type)), random_matrix(type, rows, columns, 1),
                    tokens, used);
  }
}

// More rows than backward_chunk's panel holds, so that it goes over the matrix in several blocks.
TEST_P(Production, LinearBackwardOfManyRows) {
  WorstError used("tolerance_used");
  test_linear(compute_, "Q4_1", random_matrix(ElementType::kQ4_1, 1601, 32, 1), 3, used);
  test_linear(compute_, "F16", random_matrix(ElementType::kF16, 3100, 3, 1), 2, used);
}

// Several matrices with one input; `add` on top of what is there.
TEST_P(Production, LinearsThatShareAnInput) {
  const std::int64_t tokens = 9, columns = 96;
  const Matrix a = random_matrix(ElementType::kQ4_1, 41, columns, 3);
  const Matrix b = random_matrix(ElementType::kQ8_0, 7, columns, 4);
  const Matrix c = random_matrix(ElementType::kF16, 20, columns, 5);
  RandomStream random(6);
  const auto x = random.normals(tokens * columns);
  const Activations in = activations(compute_, x, columns, std::array<LinearView, 3>{a, b, c});
  std::vector<std::vector<float>> together, alone;
  std::vector<float> d_x(x.size(), 0.5f);
  std::vector<double> want(x.size(), 0.5), magnitude(x.size(), 0.5);
  for (const Matrix* weight : {&a, &b, &c}) {
    together.push_back(random.normals(tokens * weight->rows()));
    alone.push_back(together.back());
    float* y = alone.back().data();
    linear(compute_, in, tokens, std::array<LinearOutput, 1>{{{*weight, y, y}}});
  }
  const std::vector<std::vector<float>> base = together;
  linear(compute_, in, tokens,
         std::array<LinearOutput, 3>{{{a, together[0].data(), base[0].data()},
                                      {b, together[1].data(), base[1].data()},
                                      {c, together[2].data(), base[2].data()}}});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(together[i], alone[i]));
  int at = 0;
  for (const Matrix* weight : {&a, &b, &c})
    linear_backward(compute_, *weight, in, alone[at++].data(), tokens, {}, d_x.data(), true);
  at = 0;
  for (const Matrix* weight : {&a, &b, &c}) {
    const auto w = reference_linear<double>(*weight);
    const auto d_y = widened(alone[at++]);
    want = ref::add(want, ref::linear_backward(w, widened(x), d_y).d_x);
    magnitude =
        ref::add(magnitude, ref::linear_backward(absolute(w), widened(x), absolute(d_y)).d_x);
  }
  expect_close(d_x, want, magnitude, 41 + 7 + 20 + 5, "d_x");
}

TEST_P(Production, RmsNorm) {
  WorstError used("tolerance_used");
  for (const std::int64_t columns : {1, 2, 15, 16, 17, 50, 96, 200}) {
    const std::int64_t tokens = 19;
    const float eps = 1e-5f;
    RandomStream random(7, static_cast<std::uint64_t>(columns));
    const auto x = random.normals(tokens * columns), weight = random.normals(columns);
    const auto d_y = random.normals(tokens * columns),
               d_x_before = random.normals(tokens * columns);
    std::vector<float> y(x.size()), rstd(static_cast<std::size_t>(tokens)), d_x = d_x_before;
    rms_norm(compute_, x.data(), weight.data(), tokens, columns, eps, y.data(), rstd.data());
    const double n = static_cast<double>(columns);
    const auto want = ref::rms_norm(widened(x), widened(weight), eps);
    // The sum of squares has positive terms only: n roundings, halved by the root.
    used.add(expect_close(y, want, want, n + 6, "y"));
    rms_norm_backward(compute_, d_y.data(), x.data(), weight.data(), rstd.data(), tokens, columns,
                      d_x.data());
    const auto change = ref::rms_norm_backward(widened(x), widened(weight), eps, widened(d_y));
    std::vector<double> magnitude(x.size());
    for (std::int64_t t = 0; t < tokens; ++t) {
      double squares = 0, products = 0;
      for (std::int64_t j = t * columns; j < (t + 1) * columns; ++j) {
        squares += double{x[j]} * x[j];
        products += std::fabs(double{d_y[j]} * weight[j - t * columns] * x[j]);
      }
      const double r = 1 / std::sqrt(squares / n + eps);
      for (std::int64_t j = t * columns; j < (t + 1) * columns; ++j)
        magnitude[j] = std::fabs(d_y[j] * weight[j - t * columns]) * r +
                       std::fabs(x[j]) * products / n * r * r * r + std::fabs(d_x_before[j]);
    }
    used.add(
        expect_close(d_x, ref::add(widened(d_x_before), change), magnitude, 3 * n + 20, "d_x"));
  }
}

// The exponential is off by 2 ulp, a sigmoid by about 4; 1 + gate (1 - s) may cancel, so its terms
// are the measure.
TEST_P(Production, Swiglu) {
  WorstError used("tolerance_used");
  for (const std::int64_t columns : {1, 15, 16, 40}) {
    const std::int64_t tokens = 35;
    RandomStream random(8, static_cast<std::uint64_t>(columns));
    auto gate = random.normals(tokens * columns, 4.0f), up = random.normals(tokens * columns);
    const auto d_out = random.normals(tokens * columns);
    gate[0] = -80.0f;
    gate.back() = 60.0f;
    std::vector<float> out(gate.size());
    swiglu(compute_, gate.data(), up.data(), tokens, columns, out.data());
    const auto want = ref::swiglu(widened(gate), widened(up));
    used.add(expect_close(out, want, want, 12, "out"));
    const auto g = ref::swiglu_backward(widened(gate), widened(up), widened(d_out));
    std::vector<double> magnitude(gate.size());
    for (std::size_t i = 0; i < gate.size(); ++i)
      magnitude[i] = double{d_out[i]} * up[i] * ref::sigmoid(double{gate[i]}) *
                     (1 + std::fabs(double{gate[i]}));
    std::vector<float> d_gate = d_out, d_up(up.size());
    swiglu_backward(compute_, gate.data(), up.data(), tokens, columns, d_gate.data(), d_up.data());
    used.add(expect_close(d_gate, g.d_gate, magnitude, 12, "d_gate"));
    used.add(expect_close(d_up, g.d_up, g.d_up, 12, "d_up"));
  }
}

// Attention over several segments, and the largest sums of absolute terms of its results.
struct AttentionCase {
  ref::Heads heads;
  std::vector<std::int64_t> lengths;
};

struct AttentionMagnitudes {
  std::vector<double> out, d_q, d_k, d_v;
  double score = 0;  // largest sum |q k| / sqrt(d) over channels
};

AttentionMagnitudes magnitudes(const ref::Heads& h, const std::vector<double>& q,
                               const std::vector<double>& k, const std::vector<double>& v,
                               const std::vector<double>& d_out) {
  AttentionMagnitudes m{std::vector<double>(q.size()), std::vector<double>(q.size()),
                        std::vector<double>(k.size()), std::vector<double>(k.size()), 0.0};
  const double scale = 1 / std::sqrt(static_cast<double>(h.head_dim));
  for (std::int64_t t = 0; t < h.tokens(q.size()); ++t)
    for (std::int64_t head = 0; head < h.heads; ++head) {
      const auto p = ref::attention_weights(h, q, k, t, head);
      const std::int64_t at = h.query(t, head);
      std::vector<double> d_p(p.size());
      double mean = 0;
      for (std::int64_t u = 0; u <= t; ++u) {
        double score = 0;
        for (std::int64_t c = 0; c < h.head_dim; ++c) {
          score += std::fabs(q[at + c] * k[h.key(u, head) + c]) * scale;
          d_p[u] += std::fabs(d_out[at + c] * v[h.key(u, head) + c]);
          m.out[at + c] += p[u] * std::fabs(v[h.key(u, head) + c]);
        }
        m.score = std::max(m.score, score);
        mean += p[u] * d_p[u];
      }
      for (std::int64_t u = 0; u <= t; ++u)
        for (std::int64_t c = 0; c < h.head_dim; ++c) {
          const std::int64_t key = h.key(u, head) + c;
          const double d_score = p[u] * (d_p[u] + mean) * scale;
          m.d_q[at + c] += d_score * std::fabs(k[key]);
          m.d_k[key] += d_score * std::fabs(q[at + c]);
          m.d_v[key] += p[u] * std::fabs(d_out[at + c]);
        }
    }
  return m;
}

// What whole numbers of 13 bits add, in units of 2 / 8190: both factors of a product are off by
// 1/8190 of the largest number that is rounded with them, at most all of q, k, v or d_out, a row of
// scores, or the scores of the queries of a block and all keys.
AttentionMagnitudes whole_number_errors(const ref::Heads& h, const std::vector<double>& q,
                                        const std::vector<double>& k, const std::vector<double>& v,
                                        const std::vector<double>& d_out) {
  constexpr std::int64_t kBlock = 36;
  const auto largest = [](const std::vector<double>& of) {
    double most = 0;
    for (const double value : of) most = std::max(most, std::fabs(value));
    return most;
  };
  AttentionMagnitudes m{q, q, k, k, 0.0};
  for (std::vector<double>* of : {&m.out, &m.d_q, &m.d_k, &m.d_v})
    std::fill(of->begin(), of->end(), 0.0);
  const double dim = static_cast<double>(h.head_dim), scale = 1 / std::sqrt(dim);
  const double most_q = largest(q), most_k = largest(k), most_v = largest(v),
               most_d = largest(d_out);
  const double d_p = dim * most_d * most_v;
  m.score = dim * most_q * most_k * scale;
  const std::int64_t tokens = h.tokens(q.size());
  for (std::int64_t head = 0; head < h.heads; ++head) {
    std::vector<std::vector<double>> p;
    std::vector<double> most_p;
    for (std::int64_t t = 0; t < tokens; ++t) {
      p.push_back(ref::attention_weights(h, q, k, t, head));
      most_p.push_back(largest(p.back()));
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto near = most_p.begin();
      const double most = *std::max_element(near + std::max<std::int64_t>(0, t - kBlock + 1),
                                            near + std::min(tokens, t + kBlock));
      double mean = 0;  // sum d_out out
      for (std::int64_t c = 0; c < h.head_dim; ++c) {
        const std::int64_t at = h.query(t, head) + c;
        m.out[at] = most_v;
        for (std::int64_t u = 0; u <= t; ++u)
          m.out[at] += most_p[t] * std::fabs(v[h.key(u, head) + c]);
        mean += std::fabs(d_out[at]) * m.out[at];
      }
      for (std::int64_t u = 0; u <= t; ++u)
        for (std::int64_t c = 0; c < h.head_dim; ++c) {
          // A d_score is p (d_p - mean) scale: off with both, and at most 2 d_p itself.
          const double of_d_p = p[t][u] * (d_p + mean) * scale,
                       of_row = most_p[t] * 2 * d_p * scale;
          m.d_q[h.query(t, head) + c] += (of_d_p + of_row) * most_k;
          m.d_k[h.key(u, head) + c] += (of_d_p + most * 2 * d_p * scale) * most_q;
          m.d_v[h.key(u, head) + c] += most * most_d;
        }
    }
  }
  return m;
}

// A weight p is off by e = (head_dim + 3) u sum |q k| from its score, as much again from the sum of
// all weights, and a few ulp of the exponentials; products and sums follow. (3: the score's scale,
// its distance from the highest one of its part of the keys, and that one's from the highest.)
//
// In bf16, of 8 bits, both factors of each product are off by 1/256 of themselves: p's exponent by
// 1/128 of its score, as much again from the sum, and a d_score by 1/128 from d_p. Whole numbers
// take p off by 2/8190 of the largest score, and as much again where the sum is of such scores.
void test_attention(Compute& compute, const AttentionCase& test, WorstError& used) {
  const ref::Heads& h = test.heads;
  const bool rounds = rounds_inputs(compute) && rounds_to_bf16(compute.kernels);
  const double product = rounds ? 2 * 0x1p24 / 256 : 0.0;  // in units of u
  constexpr double kStep = 2 * 0x1p24 / 8190;
  const bool whole = rounds_to_int16(compute.kernels) && rounds_attention(compute);
  const bool whole_forward = whole && rounds_scores(compute);
  const AttentionShape shape{h.heads, h.kv_heads, h.head_dim};
  std::int64_t rows = 0, longest = 0;
  for (const std::int64_t length : test.lengths) {
    rows += length;
    longest = std::max(longest, length);
  }
  RandomStream random(9, static_cast<std::uint64_t>(rows));
  auto q = random.normals(rows * shape.q_width()), k = random.normals(rows * shape.kv_width());
  auto v = random.normals(rows * shape.kv_width());
  const auto d_out = random.normals(rows * shape.q_width());
  std::vector<KeyValues> caches(test.lengths.size());
  std::vector<Segment> segments;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < caches.size(); ++i) {
    caches[i].allocate(compute, shape, test.lengths[i]);
    caches[i].store(compute, shape, 0, test.lengths[i], k.data() + first * shape.kv_width(),
                    v.data() + first * shape.kv_width());
    segments.push_back({first, test.lengths[i], 0, &caches[i]});
    first += test.lengths[i];
  }
  std::vector<float> out(q.size()), lse(static_cast<std::size_t>(rows * h.heads));
  std::vector<float> d_q(q.size()), d_k(k.size()), d_v(v.size());
  attention(compute, shape, segments, q.data(), out.data(), lse.data());
  std::vector<float> memory(static_cast<std::size_t>(attention_backward_size(shape, segments)));
  attention_backward(compute, shape, segments,
                     {q.data(), k.data(), v.data(), out.data(), lse.data(), d_out.data(),
                      d_q.data(), d_k.data(), d_v.data(), memory.data()});
  for (const Segment& segment : segments) {
    const auto part = [&](const std::vector<float>& values, std::int64_t width) {
      return std::span(values).subspan(segment.row * width, segment.count * width);
    };
    const auto wide = [&](const std::vector<float>& values, std::int64_t width) {
      return widened(part(values, width));
    };
    const std::int64_t width = shape.q_width(), kv_width = shape.kv_width();
    const auto rq = wide(q, width), rk = wide(k, kv_width), rv = wide(v, kv_width);
    const auto rd = wide(d_out, width);
    const auto want = ref::attention(h, rq, rk, rv);
    const auto g = ref::attention_backward(h, rq, rk, rv, rd);
    const auto m = magnitudes(h, rq, rk, rv, rd);
    const double dim = static_cast<double>(h.head_dim), n = static_cast<double>(segment.count);
    AttentionMagnitudes errors{m}, steps;
    if (whole) steps = whole_number_errors(h, rq, rk, rv, rd);
    const auto add = [&](std::vector<double>& to, const std::vector<double>& more, double units) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] += kStep * more[i] / units;
    };
    const double weights = 2 * (dim + 3 + product) * m.score + n + 12 +
                           (whole_forward ? 2 * kStep * steps.score : 0.0);
    const double forward = weights + product + n + 2;
    if (whole_forward) add(errors.out, steps.out, forward);
    used.add(expect_close(part(out, width), want, errors.out, forward, "out"));
    const double shared = static_cast<double>(h.heads / h.kv_heads);
    double back = 2 * weights + 2 * product + 2 * n + 2 * dim + 16;
    if (whole) {
      back += kStep * steps.score;
      add(errors.d_q, steps.d_q, back);
      add(errors.d_k, steps.d_k, back);
      add(errors.d_v, steps.d_v, back);
    }
    used.add(expect_close(part(d_q, width), g.d_q, errors.d_q, back, "d_q"));
    used.add(expect_close(part(d_k, kv_width), g.d_k, errors.d_k, back + shared, "d_k"));
    used.add(expect_close(part(d_v, kv_width), g.d_v, errors.d_v, back + shared, "d_v"));
  }
}

// Catches: keys that leak over from the neighbour, a causal mask off by one, heads that read
// another group's keys, blocks of queries (24 forward, 36 backward, 32 in bf16) and of rounded keys
// (128) that do not meet, and from 128 tokens on the shares of a head's two units.
void test_attentions(Compute& compute) {
  WorstError used("tolerance_used");
  const std::vector<std::vector<std::int64_t>> batches{
      {1}, {70}, {2, 1, 17, 64, 3}, {16, 65, 15}, {3, 128, 147}};
  for (const ref::Heads& heads : {ref::Heads{3, 1, 20}, ref::Heads{12, 4, 8}, ref::Heads{2, 2, 16},
                                  ref::Heads{3, 3, 40}, ref::Heads{9, 3, 64}, ref::Heads{1, 1, 6}})
    for (const auto& lengths : batches) {
      SCOPED_TRACE(testing::Message() << heads.heads << ":" << heads.kv_heads << " heads of "
                                      << heads.head_dim << ", " << testing::PrintToString(lengths));
      test_attention(compute, {heads, lengths}, used);
    }
}
TEST_P(Production, Attention) { test_attentions(compute_); }
// Catches: parts of 512 keys that do not meet, a part's sums without its own factor, a query that
// counts a part which only its neighbours in a block of 24 see.
TEST_P(Production, AttentionBeyondAPart) {
  WorstError used("tolerance_used");
  test_attention(compute_, {ref::Heads{2, 1, 6}, {530}}, used);
}
TEST_P(Production, AttentionOfRoundedNumbers) {
  if (GetParam()->rounded == nullptr) GTEST_SKIP() << "no products of rounded numbers";
  Compute compute(*GetParam(), Precision::kDefault, kThreads);
  compute.learning = true;
  test_attentions(compute);
}

}  // namespace
}  // namespace trimpot
