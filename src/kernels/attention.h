// Causal grouped-query attention over keys and values kept as a cache. Prefill, decode, training
// and evaluation all use the same cache and the same function, so they give the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace trimpot {

struct AttentionShape {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t kv_width() const { return kv_heads * head_dim; }
  std::int64_t q_width() const { return heads * head_dim; }
  std::int64_t heads_per_kv() const { return heads / kv_heads; }
};

constexpr std::int64_t kKeyLanes = 16;  // keys side by side, see KeyValues
// Of a number that is not a code among others.
constexpr std::int64_t storage_bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

enum class CacheType {
  kFloat,  // f16 on the default path, f32 on the f32 path
  kInt8,   // a scale per head and position: half the memory, and whole-number products
};

// Keys and values of one layer and one sequence. Each head's lie in a row, since a single query
// waits for memory.
//   keys   [kv_heads][capacity / 16][head_dim][16]   16 keys side by side: lanes of the scores
//   values [kv_heads][capacity][head_dim]
// In int8 they are packed as weight matrices are (format/matrix.h), for the same products: a key is
// a row with its own scale, a position's value a column, whose scale the attention's weights take.
//   keys   [kv_heads][capacity / 16][chunks of head_dim][512]
//   values [kv_heads][parts][tiles of head_dim][positions of the part / 32][512]
// What a query asks of a part of the positions (attention.cc) lies in a row.
class KeyValues {
 public:
  static constexpr std::int64_t kPart = 512;  // positions, fewer in the last part
  // With an arena, which must outlive this cache, on huge pages.
  void allocate(const Compute& compute, const AttentionShape& shape, std::int64_t capacity,
                CacheType type = CacheType::kFloat, Arena* arena = nullptr);
  std::int64_t capacity() const { return capacity_; }
  CacheType type() const { return type_; }
  std::size_t bytes() const {
    return keys_.size() + values_.size() + key_scales_.size() * sizeof(f16) +
           value_scales_.size() * sizeof(float);
  }
  // Stores k, v [count, kv_width] at positions position .. position + count - 1. k and v are
  // rounded to f16 in place if that is how they are stored: what is stored is what later code sees
  // (the backward, which never works with int8).
  void store(Compute& compute, const AttentionShape& shape, std::int64_t position,
             std::int64_t count, float* k, float* v);
  // Positions 0 .. count - 1 of another cache of the same shape and precision.
  void copy_prefix(const AttentionShape& shape, const KeyValues& from, std::int64_t count);
  Panels key_panels(const AttentionShape& shape, std::int64_t kv_head) const;
  Panels value_panels(const AttentionShape& shape, std::int64_t kv_head) const;
  // `keys` keys of a head in int8 from key `first` on, all of one part and the first its own, as
  // the matrix [keys, head_dim], and their values as [head_dim, keys], each column without its
  // scale.
  MatrixView key_matrix(const AttentionShape& shape, std::int64_t kv_head, std::int64_t first,
                        std::int64_t keys) const;
  MatrixView value_matrix(const AttentionShape& shape, std::int64_t kv_head, std::int64_t first,
                          std::int64_t keys) const;
  const float* value_scales(std::int64_t kv_head) const {  // [capacity]
    return value_scales_.data() + kv_head * capacity_;
  }

 private:
  std::int64_t key_index(const AttentionShape& shape, std::int64_t position,
                         std::int64_t channel) const;
  // Of int8 values: bytes from a head's first one to the part of `position`, and between its tiles.
  std::int64_t value_part_at(const AttentionShape& shape, std::int64_t position) const;
  std::int64_t value_tile_bytes(std::int64_t position) const;
  void store_f32(const AttentionShape& shape, std::int64_t position, const float* k,
                 const float* v);
  void store_f16(const Compute& compute, const AttentionShape& shape, std::int64_t position,
                 std::int64_t count, float* k, float* v, float* scratch);
  void store_int8(const AttentionShape& shape, std::int64_t position, const float* k,
                  const float* v);

  std::int64_t capacity_ = 0;
  CacheType type_ = CacheType::kFloat;
  Storage storage_ = Storage::kF32;  // of kFloat
  AlignedBuffer<std::uint8_t> keys_, values_;
  std::vector<f16> key_scales_;      // [kv_heads][capacity]: x = scale * code
  std::vector<float> value_scales_;  // [kv_heads][capacity]
  std::vector<f16> ones_;            // the scales of the values' rows
};

// A run of consecutive tokens of one sequence inside the rows of q, k, v.
struct Segment {
  std::int64_t row = 0;        // first row
  std::int64_t count = 0;      // tokens
  std::int64_t position = 0;   // of the first token in its sequence
  KeyValues* cache = nullptr;  // holds the positions before it; its own keys are stored already
};

// out [rows, q_width] = softmax(q k^T / sqrt(head_dim)) v for every segment. log_sum_exp
// [rows, heads] is stored if not null (the backward needs it).
void attention(Compute& compute, const AttentionShape& shape, std::span<const Segment> segments,
               const float* q, float* out, float* log_sum_exp);

// Gradients of q, k, v (each written whole) for segments that start at position 0.
struct AttentionGradients {
  const float* q;            // [rows, q_width], after RoPE
  const float* k;            // [rows, kv_width], after RoPE, as stored
  const float* v;            // [rows, kv_width]
  const float* out;          // [rows, q_width]
  const float* log_sum_exp;  // [rows, heads]
  const float* d_out;        // [rows, q_width]
  float* d_q;
  float* d_k;
  float* d_v;
  float* memory;  // attention_backward_size() floats
};
std::int64_t attention_backward_size(const AttentionShape& shape,
                                     std::span<const Segment> segments);
void attention_backward(Compute& compute, const AttentionShape& shape,
                        std::span<const Segment> segments, const AttentionGradients& g);

}  // namespace trimpot
