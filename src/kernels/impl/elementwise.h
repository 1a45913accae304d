// Row operations: norms, activations, softmax, and their gradients.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/kernels.h"

namespace trimpot::impl {

// e^x for x <= 88.7 within 2 ulp, 0 below -87: a subnormal result, and 0 by way of one, take an
// Intel core 220 cycles instead of 15, and each masked score would be such a result. Range
// reduction x = n ln 2 + r with ln 2 split in two (Cody and Waite), then a degree-6 polynomial on
// |r| <= ln(2)/2 (coefficients of Cephes' expf).
template <class S>
[[gnu::always_inline]] inline typename S::F exponential(typename S::F exponent) {
  using F = typename S::F;
  const F least = S::set(-87.0f);
  // Of two operands one of which is NaN the second is given: it must not disappear.
  const F x = S::min(S::set(88.7f), S::max(least, exponent));
  const F n = S::round(S::mul(x, S::set(1.44269504088896341f)));
  F r = S::fma(n, S::set(-0.693359375f), x);
  r = S::fma(n, S::set(2.12194440e-4f), r);
  F p = S::set(1.9875691500e-4f);
  p = S::fma(p, r, S::set(1.3981999507e-3f));
  p = S::fma(p, r, S::set(8.3334519073e-3f));
  p = S::fma(p, r, S::set(4.1665795894e-2f));
  p = S::fma(p, r, S::set(1.6666665459e-1f));
  p = S::fma(p, r, S::set(5.0000001201e-1f));
  p = S::add(S::fma(S::mul(p, r), r, r), S::set(1.0f));
  return S::unless_below(exponent, least, S::scale_by_power(p, n));
}

template <class S>
void rms_norm(const float* x, const float* weight, std::int64_t columns, float eps, float* y,
              float* rstd) {
  auto squares = S::zero();
  std::int64_t k = 0;
  for (; k + 16 <= columns; k += 16) {
    const auto v = S::load(x + k);
    squares = S::fma(v, v, squares);
  }
  if (k < columns) {
    const auto v = S::load_first(x + k, static_cast<int>(columns - k));
    squares = S::fma(v, v, squares);
  }
  const float mean = S::sum(squares) / static_cast<float>(columns);
  // 0 * mean: squares that overflow give NaN instead of a row of zeros, which would go unnoticed.
  const float inverse = 1.0f / std::sqrt(mean + eps) + 0.0f * mean;
  const auto factor = S::set(inverse);
  for (k = 0; k + 16 <= columns; k += 16)
    S::store(y + k, S::mul(S::mul(S::load(x + k), factor), S::load(weight + k)));
  if (k < columns) {
    const int count = static_cast<int>(columns - k);
    const auto normal = S::mul(S::load_first(x + k, count), factor);
    S::store_first(y + k, S::mul(normal, S::load_first(weight + k, count)), count);
  }
  if (rstd != nullptr) *rstd = inverse;
}

// With u = dy * weight: dx = rstd * (u - x * rstd^2 * mean(u * x)).
template <class S>
void rms_norm_backward(const float* dy, const float* x, const float* weight, float rstd,
                       std::int64_t columns, float* dx) {
  auto products = S::zero();
  std::int64_t k = 0;
  for (; k + 16 <= columns; k += 16)
    products = S::fma(S::mul(S::load(dy + k), S::load(weight + k)), S::load(x + k), products);
  const int tail = static_cast<int>(columns - k);
  if (tail > 0)
    products = S::fma(S::mul(S::load_first(dy + k, tail), S::load_first(weight + k, tail)),
                      S::load_first(x + k, tail), products);
  const auto back = S::set(-rstd * rstd * rstd * (S::sum(products) / static_cast<float>(columns)));
  const auto factor = S::set(rstd);
  for (k = 0; k + 16 <= columns; k += 16) {
    const auto u = S::mul(S::load(dy + k), S::load(weight + k));
    S::store(dx + k, S::add(S::load(dx + k), S::fma(S::load(x + k), back, S::mul(u, factor))));
  }
  if (tail > 0) {
    const auto u = S::mul(S::load_first(dy + k, tail), S::load_first(weight + k, tail));
    const auto change = S::fma(S::load_first(x + k, tail), back, S::mul(u, factor));
    S::store_first(dx + k, S::add(S::load_first(dx + k, tail), change), tail);
  }
}

template <class S>
[[gnu::always_inline]] inline typename S::F sigmoid(typename S::F x) {
  const auto one = S::set(1.0f);
  return S::div(one, S::add(one, exponential<S>(S::sub(S::zero(), x))));
}

// Applies body(load, store, offset) in steps of 16 with a masked tail.
template <class S, class Body>
[[gnu::always_inline]] inline void for_each_vector(std::int64_t count, Body&& body) {
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16)
    body([k](const float* p) { return S::load(p + k); },
         [k](float* p, typename S::F v) { S::store(p + k, v); });
  const int tail = static_cast<int>(count - k);
  if (tail > 0)
    body([k, tail](const float* p) { return S::load_first(p + k, tail); },
         [k, tail](float* p, typename S::F v) { S::store_first(p + k, v, tail); });
}

template <class S>
void swiglu(const float* gate, const float* up, std::int64_t count, float* out) {
  for_each_vector<S>(count, [&](auto load, auto store) {
    const auto g = load(gate);
    store(out, S::mul(S::mul(g, sigmoid<S>(g)), load(up)));
  });
}

// d_gate = d_out * up * s (1 + gate (1 - s)),  d_up = d_out * gate * s,  s = sigmoid(gate).
template <class S>
void swiglu_backward(const float* gate, const float* up, std::int64_t count, float* d_gate,
                     float* d_up) {
  const auto one = S::set(1.0f);
  for_each_vector<S>(count, [&](auto load, auto store) {
    const auto g = load(gate), u = load(up), d = load(d_gate);
    const auto s = sigmoid<S>(g);
    const auto slope = S::mul(s, S::fma(g, S::sub(one, s), one));
    store(d_gate, S::mul(S::mul(d, u), slope));
    store(d_up, S::mul(d, S::mul(g, s)));
  });
}

// kTokens tokens of output_sums(): a row of 512 tokens adds up 128 sums of 4.
template <class S, bool kBase, bool kWeighted, int kTokens>
void add_output_sums(const float* dy, const float* y, const float* base, const float* factors,
                     std::int64_t stride, std::int64_t columns, float* sums, float* weighted) {
  for_each_vector<S>(columns, [&](auto load, auto store) {
    auto sum = S::zero(), of_factors = S::zero();
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const auto d = load(dy + t * stride);
      auto out = load(y + t * stride);
      if constexpr (kBase) out = S::sub(out, load(base + t * stride));
      sum = S::fma(d, out, sum);
      if constexpr (kWeighted) of_factors = S::fma(d, S::set(factors[t]), of_factors);
    }
    store(sums, S::add(load(sums), sum));
    if constexpr (kWeighted) store(weighted, S::add(load(weighted), of_factors));
  });
}

template <class S, bool kBase, bool kWeighted>
void output_sums_of(const float* dy, const float* y, const float* base, const float* factors,
                    std::int64_t stride, std::int64_t tokens, std::int64_t columns, float* sums,
                    float* weighted) {
  std::int64_t token = 0;
  const auto next = [&]<int kTokens>() {
    const std::int64_t at = token * stride;
    add_output_sums<S, kBase, kWeighted, kTokens>(dy + at, y + at, kBase ? base + at : nullptr,
                                                  kWeighted ? factors + token : nullptr, stride,
                                                  columns, sums, weighted);
    token += kTokens;
  };
  while (token + 4 <= tokens) next.template operator()<4>();
  while (token < tokens) next.template operator()<1>();
}

template <class S>
void output_sums(const float* dy, const float* y, const float* base, const float* factors,
                 std::int64_t stride, std::int64_t tokens, std::int64_t columns, float* sums,
                 float* weighted) {
  const auto run =
      base != nullptr
          ? (factors != nullptr ? output_sums_of<S, true, true> : output_sums_of<S, true, false>)
          : (factors != nullptr ? output_sums_of<S, false, true> : output_sums_of<S, false, false>);
  run(dy, y, base, factors, stride, tokens, columns, sums, weighted);
}

// Sets scores[keys, padded) to the value that exponentiates to exactly 0.
template <class S>
void mask_tail(float* scores, std::int64_t keys, std::int64_t padded) {
  for (std::int64_t k = keys; k < padded; ++k) scores[k] = -std::numeric_limits<float>::infinity();
}

template <class S>
float scale_scores(float* scores, std::int64_t keys, std::int64_t padded, float scale) {
  mask_tail<S>(scores, keys, padded);
  auto highest = S::set(-std::numeric_limits<float>::infinity());
  const auto factor = S::set(scale);
  for (std::int64_t k = 0; k < padded; k += 16) {
    const auto v = S::mul(S::load(scores + k), factor);
    S::store(scores + k, v);
    highest = S::max(v, highest);
  }
  return S::highest(highest);
}

template <class S>
void exponentials(float* scores, std::int64_t padded, float shift, float* sums) {
  const auto minus = S::set(shift);
  auto total = S::load(sums);
  for (std::int64_t k = 0; k < padded; k += 16) {
    const auto p = exponential<S>(S::sub(S::load(scores + k), minus));
    S::store(scores + k, p);
    total = S::add(total, p);
  }
  S::store(sums, total);
}

template <class S>
void softmax_again(float* scores, std::int64_t keys, std::int64_t padded, float scale,
                   float log_sum_exp) {
  mask_tail<S>(scores, keys, padded);
  const auto factor = S::set(scale), shift = S::set(-log_sum_exp);
  for (std::int64_t k = 0; k < padded; k += 16)
    S::store(scores + k, exponential<S>(S::fma(S::load(scores + k), factor, shift)));
}

template <class S>
void softmax_backward(const float* p, std::int64_t keys, float delta, float scale, float* d_p) {
  const auto minus_delta = S::set(-delta), factor = S::set(scale);
  for_each_vector<S>(keys, [&](auto load, auto store) {
    store(d_p, S::mul(S::mul(load(p), S::add(load(d_p), minus_delta)), factor));
  });
}

template <class S>
float highest(const float* x, std::int64_t count) {
  auto lanes = S::set(-std::numeric_limits<float>::infinity());
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) lanes = S::max(S::load(x + k), lanes);
  float top = S::highest(lanes);
  for (; k < count; ++k) top = x[k] > top ? x[k] : top;
  return top;
}

template <class S>
float log_sum_exp(const float* logits, std::int64_t count) {
  const float top = highest<S>(logits, count);
  const auto shift = S::set(top);
  std::int64_t k = count / 16 * 16;
  // Four sums: 3,072 additions per lane for 49,152 logits would lose two digits in the worst case.
  typename S::F total[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
  for (std::int64_t block = 0; block < k; block += 16) {
    auto& part = total[block / 16 % 4];
    part = S::add(part, exponential<S>(S::sub(S::load(logits + block), shift)));
  }
  double sum = 0;
  for (const auto& part : total) sum += static_cast<double>(S::sum(part));
  for (; k < count; ++k) {
    float lanes[16];
    S::store(lanes, exponential<S>(S::set(logits[k] - top)));
    sum += static_cast<double>(lanes[0]);
  }
  return top + static_cast<float>(std::log(sum));
}

template <class S>
void softmax_gradient(float* logits, std::int64_t count, float lse, float weight) {
  const auto shift = S::set(-lse), factor = S::set(weight);
  for_each_vector<S>(count, [&](auto load, auto store) {
    store(logits, S::mul(exponential<S>(S::add(load(logits), shift)), factor));
  });
}

template <class S>
void scale(const float* x, std::int64_t count, float factor, float* out) {
  const auto f = S::set(factor);
  for_each_vector<S>(count, [&](auto load, auto store) { store(out, S::mul(load(x), f)); });
}

template <class S>
void scale_each(const float* factors, std::int64_t count, float* x) {
  for_each_vector<S>(count,
                     [&](auto load, auto store) { store(x, S::mul(load(factors), load(x))); });
}

template <class S>
void add(const float* x, std::int64_t count, float* out) {
  for_each_vector<S>(count, [&](auto load, auto store) { store(out, S::add(load(out), load(x))); });
}

template <class S>
float dot(const float* a, const float* b, std::int64_t count) {
  auto total = S::zero();
  for_each_vector<S>(count, [&](auto load, auto) { total = S::fma(load(a), load(b), total); });
  return S::sum(total);
}

template <class S>
void rotate_pairs(const float* cosines, const float* sines, float direction, std::int64_t count,
                  float* x) {
  const auto way = S::set(direction);
  for_each_vector<S>(count, [&](auto load, auto store) {
    const auto v = load(x);
    const auto turned = S::mul(S::swap_pairs(v), S::mul(load(sines), way));
    store(x, S::add(S::mul(v, load(cosines)), turned));
  });
}

template <class S>
void transpose(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns,
               float* to, std::int64_t to_stride) {
  for (std::int64_t row = 0; row < rows; row += 16)
    for (std::int64_t column = 0; column < columns; column += 16) {
      const auto height = static_cast<int>(rows - row < 16 ? rows - row : 16);
      const auto width = static_cast<int>(columns - column < 16 ? columns - column : 16);
      typename S::F block[16];
      for (int i = 0; i < 16; ++i)
        block[i] =
            i < height ? S::load_first(from + (row + i) * stride + column, width) : S::zero();
      S::transpose(block);
      for (int j = 0; j < width; ++j)
        S::store_first(to + (column + j) * to_stride + row, block[j], height);
    }
}

template <class S>
void widen_f16(const f16* from, std::int64_t count, float* to) {
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) S::store(to + k, S::load(from + k));
  if (k < count)
    S::store_first(to + k, S::load_first(from + k, static_cast<int>(count - k)),
                   static_cast<int>(count - k));
}

template <class S>
void narrow_f16(const float* from, std::int64_t count, f16* to) {
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) S::store(to + k, S::load(from + k));
  for (; k < count; ++k) to[k] = f32_to_f16(from[k]);
}

// narrow_int8() and widen_int8() take 16 blocks at a time: their scales are a vector.
inline constexpr std::int64_t kNumbersAtOnce = 16 * kByteBlock;

template <class S>
void narrow_int8(const float* from, std::int64_t count, std::int8_t* to, f16* scales) {
  const auto limit = S::set(127.0f), minus_limit = S::set(-127.0f);
  for (std::int64_t begin = 0; begin < count; begin += kNumbersAtOnce) {
    const std::int64_t left = count - begin < kNumbersAtOnce ? count - begin : kNumbersAtOnce;
    const std::int64_t blocks = (left + kByteBlock - 1) / kByteBlock;
    const auto load = [&](std::int64_t i) {
      const std::int64_t have = left - 16 * i;
      const float* at = from + begin + 16 * i;
      return have >= 16 ? S::load(at)
             : have > 0 ? S::load_first(at, static_cast<int>(have))
                        : S::zero();
    };
    typename S::F largest[16];
    for (std::int64_t i = 0; i < 16; ++i)
      largest[i] = i < blocks ? S::max(S::abs(load(2 * i)), S::abs(load(2 * i + 1))) : S::zero();
    f16 halves[16];
    S::store(halves, S::mul(S::highest_of_each(largest), S::set(1.0f / 127.0f)));
    alignas(64) float scale[16];
    S::store(scale, S::load(halves));
    for (std::int64_t i = 0; i < blocks; ++i, to += kByteBlock) {
      *scales++ = halves[i];
      const auto inverse = S::set(scale[i] > 0.0f ? 1.0f / scale[i] : 0.0f);
      const auto code = [&](std::int64_t half) {
        return S::max(S::min(S::mul(load(2 * i + half), inverse), limit), minus_limit);
      };
      S::store_int8(to, code(0), code(1));
    }
  }
}

template <class S>
void widen_int8(const std::int8_t* from, const f16* scales, std::int64_t count, float* to) {
  for (std::int64_t begin = 0; begin < count; begin += kNumbersAtOnce) {
    const std::int64_t end = begin + kNumbersAtOnce < count ? begin + kNumbersAtOnce : count;
    const auto blocks = static_cast<int>((end - begin + kByteBlock - 1) / kByteBlock);
    alignas(64) float scale[16];
    S::store(scale, S::load_first(scales + begin / kByteBlock, blocks));
    for (std::int64_t k = begin; k < end; k += 16) {
      const auto v = S::mul(S::load(from + k), S::set(scale[(k - begin) / kByteBlock]));
      if (k + 16 <= end)
        S::store(to + k, v);
      else
        S::store_first(to + k, v, static_cast<int>(end - k));
    }
  }
}

}  // namespace trimpot::impl
