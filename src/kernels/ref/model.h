// A whole model of the llama family in scalar templates, forward and backward: the specification of
// the training pass. One sequence at a time; the loss of a batch is the sum over its sequences.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/ref/ops.h"

namespace trimpot::ref {

enum LinearOf { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };

template <class T>
struct Layer {
  std::vector<T> attention_norm, feed_forward_norm;  // [hidden]
  std::array<LinearLayer<T>, kLinears> linears;
};

template <class T>
struct Model {
  Heads heads;
  double eps = 1e-5;
  std::vector<double> frequencies;  // of RoPE, [rope_dims / 2]
  Linear<T> embedding, head;        // [vocabulary, hidden]; head: a copy where it is tied
  std::vector<T> output_norm;       // [hidden]
  std::vector<Layer<T>> layers;
};

// What the backward needs of a layer's forward.
template <class T>
struct LayerState {
  std::vector<T> x, attention_in, q, k, v, attention_out, middle, feed_forward_in, gate, up,
      feed_forward_out;
};

template <class T>
std::vector<T> layer_forward(const Model<T>& model, const Layer<T>& layer, std::vector<T> x,
                             LayerState<T>& s) {
  const Heads& h = model.heads;
  const auto& w = layer.linears;
  s.x = std::move(x);
  s.attention_in = rms_norm(s.x, layer.attention_norm, model.eps);
  s.q = rope(linear(w[kQ], s.attention_in), h.heads, h.head_dim, model.frequencies, 1.0);
  s.k = rope(linear(w[kK], s.attention_in), h.kv_heads, h.head_dim, model.frequencies, 1.0);
  s.v = linear(w[kV], s.attention_in);
  s.attention_out = attention(h, s.q, s.k, s.v);
  s.middle = add(s.x, linear(w[kO], s.attention_out));
  s.feed_forward_in = rms_norm(s.middle, layer.feed_forward_norm, model.eps);
  s.gate = linear(w[kGate], s.feed_forward_in);
  s.up = linear(w[kUp], s.feed_forward_in);
  s.feed_forward_out = swiglu(s.gate, s.up);
  return add(s.middle, linear(w[kDown], s.feed_forward_out));
}

template <class T>
struct LayerGradients {
  std::vector<T> d_x;
  std::array<LinearLayerGradients<T>, kLinears> linears;
};

// The forward's calls mirrored.
template <class T>
LayerGradients<T> layer_backward(const Model<T>& model, const Layer<T>& layer,
                                 const LayerState<T>& s, const std::vector<T>& d_y) {
  const Heads& h = model.heads;
  const auto& w = layer.linears;
  LayerGradients<T> out;
  auto& g = out.linears;
  g[kDown] = linear_backward(w[kDown], s.feed_forward_out, d_y);
  const SwigluGradients<T> d_swiglu = swiglu_backward(s.gate, s.up, g[kDown].d_x);
  g[kUp] = linear_backward(w[kUp], s.feed_forward_in, d_swiglu.d_up);
  g[kGate] = linear_backward(w[kGate], s.feed_forward_in, d_swiglu.d_gate);
  const std::vector<T> d_middle =
      add(d_y, rms_norm_backward(s.middle, layer.feed_forward_norm, model.eps,
                                 add(g[kGate].d_x, g[kUp].d_x)));
  g[kO] = linear_backward(w[kO], s.attention_out, d_middle);
  const AttentionGradients<T> d = attention_backward(h, s.q, s.k, s.v, g[kO].d_x);
  g[kV] = linear_backward(w[kV], s.attention_in, d.d_v);
  g[kK] = linear_backward(w[kK], s.attention_in,
                          rope(d.d_k, h.kv_heads, h.head_dim, model.frequencies, -1.0));
  g[kQ] = linear_backward(w[kQ], s.attention_in,
                          rope(d.d_q, h.heads, h.head_dim, model.frequencies, -1.0));
  out.d_x = add(d_middle, rms_norm_backward(s.x, layer.attention_norm, model.eps,
                                            add(g[kQ].d_x, add(g[kK].d_x, g[kV].d_x))));
  return out;
}

// Rows of the embedding, [tokens, hidden].
template <class T>
std::vector<T> embed(const Model<T>& model, const std::vector<Index>& tokens) {
  std::vector<T> x;
  for (const Index token : tokens)
    for (Index j = 0; j < model.embedding.columns; ++j)
      x.push_back(model.embedding.weight(token, j));
  return x;
}

// Logits of every row of x, the last layer's output, [tokens, vocabulary].
template <class T>
std::vector<T> logits_of(const Model<T>& model, const std::vector<T>& x) {
  return linear(model.head, rms_norm(x, model.output_norm, model.eps));
}

template <class T>
std::vector<T> row_of(const std::vector<T>& matrix, Index row, Index columns) {
  return {matrix.begin() + row * columns, matrix.begin() + (row + 1) * columns};
}

// Sum of -log p(token i | tokens before it) over i > 0 with learned[i], from the embedded tokens x.
template <class T>
T loss_from(const Model<T>& model, std::vector<T> x, const std::vector<Index>& tokens,
            const std::vector<bool>& learned) {
  LayerState<T> state;
  for (const Layer<T>& layer : model.layers) x = layer_forward(model, layer, std::move(x), state);
  const std::vector<T> logits = logits_of(model, x);
  T sum{};
  for (std::size_t i = 1; i < tokens.size(); ++i)
    if (learned[i])
      sum += cross_entropy(row_of(logits, static_cast<Index>(i) - 1, model.head.rows), tokens[i]);
  return sum;
}

template <class T>
T loss(const Model<T>& model, const std::vector<Index>& tokens, const std::vector<bool>& learned) {
  return loss_from(model, embed(model, tokens), tokens, learned);
}

template <class T>
struct ModelGradients {
  T loss{};
  std::vector<T> d_x;  // of the embedded tokens, [tokens, hidden]
  std::vector<LayerGradients<T>> layers;
};

// The loss times `weight` and its gradients.
template <class T>
ModelGradients<T> loss_backward(const Model<T>& model, const std::vector<Index>& tokens,
                                const std::vector<bool>& learned, const T& weight) {
  ModelGradients<T> out;
  out.layers.resize(model.layers.size());
  std::vector<LayerState<T>> states(model.layers.size());
  std::vector<T> x = embed(model, tokens);
  for (std::size_t l = 0; l < model.layers.size(); ++l)
    x = layer_forward(model, model.layers[l], std::move(x), states[l]);
  const std::vector<T> normed = rms_norm(x, model.output_norm, model.eps);
  const std::vector<T> logits = linear(model.head, normed);
  std::vector<T> d_logits(logits.size());
  const Index vocabulary = model.head.rows;
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    if (!learned[i]) continue;
    const Index row = static_cast<Index>(i) - 1;
    const std::vector<T> here = row_of(logits, row, vocabulary);
    out.loss += weight * cross_entropy(here, tokens[i]);
    const std::vector<T> d = cross_entropy_backward(here, tokens[i], weight);
    std::copy(d.begin(), d.end(), d_logits.begin() + row * vocabulary);
  }
  std::vector<T> d_x = rms_norm_backward(x, model.output_norm, model.eps,
                                         linear_backward(model.head, normed, d_logits).d_x);
  for (std::size_t l = model.layers.size(); l-- > 0;) {
    out.layers[l] = layer_backward(model, model.layers[l], states[l], d_x);
    d_x = out.layers[l].d_x;
  }
  out.d_x = std::move(d_x);
  return out;
}

}  // namespace trimpot::ref
