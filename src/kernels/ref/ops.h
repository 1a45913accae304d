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

// A weight matrix: w[n, j] = scale[n, g] * code[n, j] + offset[n, g], g = j / group_size, where
// `codes` already are q - z for formats with a fixed zero-point z. The convention w = s (q - z)
// with a free z is offset = -s z. A dense matrix has its elements as codes and one scale of 1 per
// row.
template <class T>
struct Linear {
  Index rows = 0, columns = 0, group_size = 32;
  std::vector<double> codes;  // [rows, columns], constants
  std::vector<T> scales;      // [rows, groups]
  std::vector<T> offsets;     // [rows, groups] or empty

  Index groups() const { return (columns + group_size - 1) / group_size; }
  Index group(Index n, Index j) const { return n * groups() + j / group_size; }
  T weight(Index n, Index j) const {
    const T product = scales[group(n, j)] * T(codes[n * columns + j]);
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
// d_scale[n, g]  = sum_t dy[t, n] sum_{j in g} code[n, j] x[t, j]
// d_offset[n, g] = sum_t dy[t, n] sum_{j in g} x[t, j]
template <class T>
struct LinearGradients {
  std::vector<T> d_x, d_scales, d_offsets;
};
template <class T>
LinearGradients<T> linear_backward(const Linear<T>& w, const std::vector<T>& x,
                                   const std::vector<T>& d_y) {
  const Index tokens = static_cast<Index>(x.size()) / w.columns;
  LinearGradients<T> g;
  g.d_x.resize(x.size());
  g.d_scales.resize(w.scales.size());
  g.d_offsets.resize(w.scales.size());
  for (Index t = 0; t < tokens; ++t)
    for (Index n = 0; n < w.rows; ++n)
      for (Index j = 0; j < w.columns; ++j) {
        const T d = d_y[t * w.rows + n], in = x[t * w.columns + j];
        g.d_x[t * w.columns + j] += d * w.weight(n, j);
        g.d_scales[w.group(n, j)] += d * in * T(w.codes[n * w.columns + j]);
        g.d_offsets[w.group(n, j)] += d * in;
      }
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

// The residual connection; its gradient is d_y for both.
template <class T>
std::vector<T> add(std::vector<T> a, const std::vector<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
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
