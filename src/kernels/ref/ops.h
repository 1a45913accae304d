// Every operation as a plain scalar template: the specification that the kernels are held to.
// T = float, double or std::complex<double>. With complex numbers f(x + ih) gives the derivative
// Im f / h free of cancellation (Squire, Trapp: "Using complex variables to estimate derivatives of
// real functions", 1998), and every *_backward below is held to that. Comparisons look at the real
// part only.
//
// Matrices are vectors, row after row; [a, b] in a comment means a rows of b. A d_ in front of a
// name is the gradient of the loss by it. Simplicity is everything here, speed nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace trimpot::ref {

using Index = std::int64_t;

// The residual connection; its gradient is d_y for both.
template <class T>
std::vector<T> add(std::vector<T> a, const std::vector<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// A weight matrix: w[n, j] = scale[n, g] * (code[n, j] - zero[n, g]) + offset[n, g] with
// g = j / group_size, where `codes` already are q - z for formats with one zero-point z for all.
// Or a dense one.
template <class T>
struct Linear {
  Index rows = 0, columns = 0, group_size = 32;
  std::vector<double> codes;  // [rows, columns], constants
  std::vector<T> scales;      // [rows, groups]
  std::vector<T> zeros;       // [rows, groups] or empty
  std::vector<T> offsets;     // [rows, groups] or empty
  std::vector<T> dense;       // [rows, columns]; then all of the above are empty

  Index groups() const { return (columns + group_size - 1) / group_size; }
  Index group(Index n, Index j) const { return n * groups() + j / group_size; }
  T level(Index n, Index j) const {
    const T code = T(codes[n * columns + j]);
    return zeros.empty() ? code : code - zeros[group(n, j)];
  }
  T weight(Index n, Index j) const {
    if (!dense.empty()) return dense[n * columns + j];
    const T product = scales[group(n, j)] * level(n, j);
    return offsets.empty() ? product : product + offsets[group(n, j)];
  }
};

// y[t, n] = sum_j w[n, j] x[t, j]
template <class T>
std::vector<T> linear(const Linear<T>& w, const std::vector<T>& x) {
  const Index tokens = static_cast<Index>(x.size()) / w.columns;
  std::vector<T> y(tokens * w.rows);
  for (Index t = 0; t < tokens; ++t)
    for (Index n = 0; n < w.rows; ++n)
      for (Index j = 0; j < w.columns; ++j)
        y[t * w.rows + n] += w.weight(n, j) * x[t * w.columns + j];
  return y;
}

// dx[t, j]       = sum_n dy[t, n] w[n, j]
// d_weight[n, j] = sum_t dy[t, n] x[t, j]
// d_scale[n, g]  = sum_{j in g} d_weight[n, j] (code[n, j] - zero[n, g])
// d_zero[n, g]   = -scale[n, g] sum_{j in g} d_weight[n, j]
// d_offset[n, g] = sum_{j in g} d_weight[n, j]
template <class T>
struct LinearGradients {
  std::vector<T> d_x, d_weight, d_scales, d_zeros, d_offsets;  // the last three of codes only
};
template <class T>
LinearGradients<T> linear_backward(const Linear<T>& w, const std::vector<T>& x,
                                   const std::vector<T>& d_y) {
  const Index tokens = static_cast<Index>(x.size()) / w.columns;
  LinearGradients<T> g;
  g.d_x.resize(x.size());
  g.d_weight.resize(w.rows * w.columns);
  g.d_scales.resize(w.scales.size());
  g.d_zeros.resize(w.scales.size());
  g.d_offsets.resize(w.scales.size());
  for (Index t = 0; t < tokens; ++t)
    for (Index n = 0; n < w.rows; ++n)
      for (Index j = 0; j < w.columns; ++j) {
        g.d_x[t * w.columns + j] += d_y[t * w.rows + n] * w.weight(n, j);
        g.d_weight[n * w.columns + j] += d_y[t * w.rows + n] * x[t * w.columns + j];
      }
  if (!w.dense.empty()) return g;
  for (Index n = 0; n < w.rows; ++n)
    for (Index j = 0; j < w.columns; ++j) {
      const T d = g.d_weight[n * w.columns + j];
      g.d_scales[w.group(n, j)] += d * w.level(n, j);
      g.d_zeros[w.group(n, j)] -= d * w.scales[w.group(n, j)];
      g.d_offsets[w.group(n, j)] += d;
    }
  return g;
}

// A linear layer: a weight, and what may stand beside it (weak columns: OWQ, QEFT; a low-rank pair:
// LoRA, with pooled inputs QA-LoRA):
//   y[t] = W x[t, weight_columns] + F x[t, weak_columns] + scale B A u[t]
//   u[t, i] = mask[t, i] sum of x[t, j] over the channels j with j / pool = i
template <class T>
struct LinearLayer {
  Index columns = 0;  // channels of x
  Linear<T> weight;
  std::vector<Index> weight_columns;  // channel of each of the weight's columns
  Linear<T> weak;                     // no rows: none
  std::vector<Index> weak_columns;
  Linear<T> a, b;  // no rows: none
  double scale = 0;
  Index pool = 1;
  std::vector<double> mask;  // of dropout, [tokens, columns of A]; empty: ones
};

// out[t, i] = x[t, channels[i]], and its transpose: d_x[t, channels[i]] += d_out[t, i].
template <class T>
std::vector<T> gather(const std::vector<T>& x, Index width, const std::vector<Index>& channels) {
  std::vector<T> out;
  for (std::size_t at = 0; at < x.size(); at += width)
    for (const Index channel : channels) out.push_back(x[at + channel]);
  return out;
}
template <class T>
void scatter_add(const std::vector<T>& d_out, const std::vector<Index>& channels, Index width,
                 std::vector<T>& d_x) {
  for (std::size_t i = 0; i < d_out.size(); ++i)
    d_x[i / channels.size() * width + channels[i % channels.size()]] += d_out[i];
}

// u of the low-rank path.
template <class T>
std::vector<T> low_rank_input(const LinearLayer<T>& w, const std::vector<T>& x) {
  std::vector<T> u(x.size() / w.columns * w.a.columns);
  for (std::size_t at = 0; at < x.size(); ++at) {
    const Index to = at / w.columns * w.a.columns + at % w.columns / w.pool;
    u[to] += w.mask.empty() ? x[at] : T(w.mask[to]) * x[at];
  }
  return u;
}

template <class T>
std::vector<T> linear(const LinearLayer<T>& w, const std::vector<T>& x) {
  std::vector<T> y = linear(w.weight, gather(x, w.columns, w.weight_columns));
  if (w.weak.rows > 0) y = add(y, linear(w.weak, gather(x, w.columns, w.weak_columns)));
  if (w.a.rows == 0) return y;
  const std::vector<T> low_rank = linear(w.b, linear(w.a, low_rank_input(w, x)));
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += T(w.scale) * low_rank[i];
  return y;
}

// With v = A u:  d_B = scale dy^T v,  dv = scale dy B,  d_A = dv^T u,  du = dv A.
template <class T>
struct LinearLayerGradients : LinearGradients<T> {  // of the weight, but for d_x
  std::vector<T> d_weak, d_a, d_b;
};
template <class T>
LinearLayerGradients<T> linear_backward(const LinearLayer<T>& w, const std::vector<T>& x,
                                        const std::vector<T>& d_y) {
  LinearLayerGradients<T> g{
      linear_backward(w.weight, gather(x, w.columns, w.weight_columns), d_y), {}, {}, {}};
  std::vector<T> d_x(x.size());
  scatter_add(g.d_x, w.weight_columns, w.columns, d_x);
  if (w.weak.rows > 0) {
    const auto weak = linear_backward(w.weak, gather(x, w.columns, w.weak_columns), d_y);
    scatter_add(weak.d_x, w.weak_columns, w.columns, d_x);
    g.d_weak = weak.d_weight;
  }
  if (w.a.rows > 0) {
    std::vector<T> scaled = d_y;
    for (T& value : scaled) value *= T(w.scale);
    const std::vector<T> u = low_rank_input(w, x);
    const auto outer = linear_backward(w.b, linear(w.a, u), scaled);
    const auto inner = linear_backward(w.a, u, outer.d_x);
    for (std::size_t at = 0; at < x.size(); ++at) {
      const Index from = at / w.columns * w.a.columns + at % w.columns / w.pool;
      d_x[at] += w.mask.empty() ? inner.d_x[from] : T(w.mask[from]) * inner.d_x[from];
    }
    g.d_a = inner.d_weight;
    g.d_b = outer.d_weight;
  }
  g.d_x = std::move(d_x);
  return g;
}

// y = x * weight / r,  r = sqrt(mean(x^2) + eps)     (Zhang, Sennrich: "Root Mean Square Layer
// Normalization", 2019)
template <class T>
std::vector<T> rms_norm(const std::vector<T>& x, const std::vector<T>& weight, double eps) {
  const Index columns = static_cast<Index>(weight.size());
  std::vector<T> y(x.size());
  for (std::size_t at = 0; at < x.size(); at += columns) {
    T squares{};
    for (Index j = 0; j < columns; ++j) squares += x[at + j] * x[at + j];
    const T root = std::sqrt(squares / T(columns) + T(eps));
    for (Index j = 0; j < columns; ++j) y[at + j] = x[at + j] * weight[j] / root;
  }
  return y;
}

// With u = dy * weight: dx = u / r - x mean(u x) / r^3.
template <class T>
std::vector<T> rms_norm_backward(const std::vector<T>& x, const std::vector<T>& weight, double eps,
                                 const std::vector<T>& d_y) {
  const Index columns = static_cast<Index>(weight.size());
  std::vector<T> d_x(x.size());
  for (std::size_t at = 0; at < x.size(); at += columns) {
    T squares{}, products{};
    for (Index j = 0; j < columns; ++j) {
      squares += x[at + j] * x[at + j];
      products += d_y[at + j] * weight[j] * x[at + j];
    }
    const T root = std::sqrt(squares / T(columns) + T(eps));
    for (Index j = 0; j < columns; ++j)
      d_x[at + j] =
          d_y[at + j] * weight[j] / root - x[at + j] * products / (T(columns) * root * root * root);
  }
  return d_x;
}

// Rotates the pairs (x[2i], x[2i+1]) of every head by the angle position * frequency[i]; channels
// beyond 2 * frequencies stay. x [tokens, heads, head_dim]; the position is the token's number.
// (Su et al.: "RoFormer", 2021, with adjacent pairs as GGUF files of architecture llama store
// them.) A rotation is orthogonal: its gradient is the rotation back, direction -1.
template <class T>
std::vector<T> rope(std::vector<T> x, Index heads, Index head_dim,
                    const std::vector<double>& frequencies, double direction) {
  for (Index row = 0; row < static_cast<Index>(x.size()) / head_dim; ++row)
    for (std::size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = direction * static_cast<double>(row / heads) * frequencies[i];
      const T cosine = T(std::cos(angle)), sine = T(std::sin(angle));
      T& even = x[row * head_dim + 2 * i];
      T& odd = x[row * head_dim + 2 * i + 1];
      const T turned = even * cosine - odd * sine;
      odd = even * sine + odd * cosine;
      even = turned;
    }
  return x;
}

// Causal attention with `heads / kv_heads` query heads to a key/value head (Vaswani et al., 2017;
// Ainslie et al.: "GQA", 2023), one sequence:
//   p[t, u] = softmax over u <= t of q[t] k[u] / sqrt(head_dim);  out[t] = sum_u p[t, u] v[u]
// q, out [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim].
struct Heads {
  Index heads = 1, kv_heads = 1, head_dim = 1;
  Index query(Index token, Index head) const { return (token * heads + head) * head_dim; }
  Index key(Index token, Index head) const {
    return (token * kv_heads + head / (heads / kv_heads)) * head_dim;
  }
  Index tokens(std::size_t q_size) const { return static_cast<Index>(q_size) / (heads * head_dim); }
};

// p[0 .. token] of one query.
template <class T>
std::vector<T> attention_weights(const Heads& h, const std::vector<T>& q, const std::vector<T>& k,
                                 Index token, Index head) {
  std::vector<T> p(token + 1);
  const T scale = T(1.0 / std::sqrt(static_cast<double>(h.head_dim)));
  for (Index u = 0; u <= token; ++u)
    for (Index c = 0; c < h.head_dim; ++c)
      p[u] += scale * q[h.query(token, head) + c] * k[h.key(u, head) + c];
  const T highest = *std::max_element(
      p.begin(), p.end(), [](const T& a, const T& b) { return std::real(a) < std::real(b); });
  T sum{};
  for (T& value : p) sum += value = std::exp(value - highest);
  for (T& value : p) value /= sum;
  return p;
}

template <class T>
std::vector<T> attention(const Heads& h, const std::vector<T>& q, const std::vector<T>& k,
                         const std::vector<T>& v) {
  std::vector<T> out(q.size());
  for (Index t = 0; t < h.tokens(q.size()); ++t)
    for (Index head = 0; head < h.heads; ++head) {
      const std::vector<T> p = attention_weights(h, q, k, t, head);
      for (Index u = 0; u <= t; ++u)
        for (Index c = 0; c < h.head_dim; ++c)
          out[h.query(t, head) + c] += p[u] * v[h.key(u, head) + c];
    }
  return out;
}

// With s = the scaled scores:  dp[u] = d_out v[u],  ds[u] = p[u] (dp[u] - sum_w p[w] dp[w]),
//   dq = sum_u ds[u] k[u] / sqrt(d),  dk[u] = ds[u] q / sqrt(d),  dv[u] = p[u] d_out.
template <class T>
struct AttentionGradients {
  std::vector<T> d_q, d_k, d_v;
};
template <class T>
AttentionGradients<T> attention_backward(const Heads& h, const std::vector<T>& q,
                                         const std::vector<T>& k, const std::vector<T>& v,
                                         const std::vector<T>& d_out) {
  AttentionGradients<T> g{std::vector<T>(q.size()), std::vector<T>(k.size()),
                          std::vector<T>(v.size())};
  const T scale = T(1.0 / std::sqrt(static_cast<double>(h.head_dim)));
  for (Index t = 0; t < h.tokens(q.size()); ++t)
    for (Index head = 0; head < h.heads; ++head) {
      const std::vector<T> p = attention_weights(h, q, k, t, head);
      const Index query = h.query(t, head);
      std::vector<T> d_p(p.size());
      T mean{};
      for (Index u = 0; u <= t; ++u) {
        for (Index c = 0; c < h.head_dim; ++c) d_p[u] += d_out[query + c] * v[h.key(u, head) + c];
        mean += p[u] * d_p[u];
      }
      for (Index u = 0; u <= t; ++u) {
        const T d_score = p[u] * (d_p[u] - mean) * scale;
        const Index key = h.key(u, head);
        for (Index c = 0; c < h.head_dim; ++c) {
          g.d_q[query + c] += d_score * k[key + c];
          g.d_k[key + c] += d_score * q[query + c];
          g.d_v[key + c] += p[u] * d_out[query + c];
        }
      }
    }
  return g;
}

// out = silu(gate) * up, silu(x) = x sigmoid(x)      (Shazeer: "GLU Variants Improve Transformer")
template <class T>
T sigmoid(const T& x) {
  return T(1.0) / (T(1.0) + std::exp(-x));
}
template <class T>
std::vector<T> swiglu(const std::vector<T>& gate, const std::vector<T>& up) {
  std::vector<T> out(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
  return out;
}

// With s = sigmoid(gate): d_gate = d_out up (s + gate s (1 - s)),  d_up = d_out gate s.
template <class T>
struct SwigluGradients {
  std::vector<T> d_gate, d_up;
};
template <class T>
SwigluGradients<T> swiglu_backward(const std::vector<T>& gate, const std::vector<T>& up,
                                   const std::vector<T>& d_out) {
  SwigluGradients<T> g{std::vector<T>(gate.size()), std::vector<T>(gate.size())};
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const T s = sigmoid(gate[i]);
    g.d_gate[i] = d_out[i] * up[i] * (s + gate[i] * s * (T(1.0) - s));
    g.d_up[i] = d_out[i] * gate[i] * s;
  }
  return g;
}

// -log softmax(logits)[label] = log sum exp logits - logits[label]
template <class T>
T cross_entropy(const std::vector<T>& logits, Index label) {
  const T highest = *std::max_element(logits.begin(), logits.end(), [](const T& a, const T& b) {
    return std::real(a) < std::real(b);
  });
  T sum{};
  for (const T& value : logits) sum += std::exp(value - highest);
  return highest + std::log(sum) - logits[label];
}

// d_loss (softmax(logits) - [i = label])
template <class T>
std::vector<T> cross_entropy_backward(const std::vector<T>& logits, Index label, const T& d_loss) {
  // -log softmax of every label is a stable way to its probability.
  const T log_sum = cross_entropy(logits, label) + logits[label];
  std::vector<T> d_logits(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    d_logits[i] = d_loss * std::exp(logits[i] - log_sum);
  d_logits[label] -= d_loss;
  return d_logits;
}

}  // namespace trimpot::ref
