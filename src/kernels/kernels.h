// The kernels as a table of functions, one table per instruction set, chosen once at run time.
// Every function works on a range of its outputs and never splits a sum, so that callers may
// distribute ranges over threads in any way and get the same bits.
//
// Names of axes: tokens (rows of activations), rows and columns (of a weight matrix: outputs and
// inputs), tiles (16 rows), chunks (32 columns), groups (columns that share a scale).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "format/matrix.h"

namespace trimpot {

// 32 columns of a token's activations rounded to int8: x = scale * code, |code| <= 127. All that a
// product needs of a token lies behind one pointer: six tokens' leave general registers for the
// rest, where eighteen pointers went to the stack.
struct Int8Block {
  std::int8_t codes[32];  // zero beyond the columns
  float scale;
  std::int32_t sum;  // of the codes
  float scaled_sum;  // scale * sum, never -0
};
// The same of 16 tokens side by side, as instruction sets with products of tiles want many of them.
inline constexpr std::int64_t kTiledTokens = 16;
struct Int8Tile {
  std::int8_t codes[kTiledTokens][32];
  float scales[kTiledTokens];
  float scaled_sums[kTiledTokens];
};
// What rounding leaves of a block that stands out, rounded to int8 as well, with a scale some 250
// times smaller: one channel that is far above the others makes the steps coarse for the 31 beside
// it. 1.6 % of the default model's blocks, those that stand out, have a third of all squared
// errors.
struct Int8Remainder {
  Int8Block block;
  std::int32_t chunk;  // whose; -1: none, nor any behind it
};
// A block stands out if the square of its scale is above so many times the mean of its token's. So
// fewer than blocks / kStandsOut do.
inline constexpr int kStandsOut = 9;
constexpr std::int64_t most_remainders(std::int64_t blocks) { return (blocks - 1) / kStandsOut; }
struct Int8View {
  Int8Block* data = nullptr;            // [tokens, blocks]
  std::int64_t blocks = 0;              // per token
  Int8Tile* tiles = nullptr;            // [tokens / 16, rounded up][blocks]; null: not wanted
  Int8Remainder* remainders = nullptr;  // [tokens, most_remainders()]; null: not wanted
  Int8Block* row(std::int64_t token) const { return data + token * blocks; }
  Int8Remainder* remainders_of(std::int64_t token) const {
    return remainders + token * most_remainders(blocks);
  }
};

// Any float matrix operand: element (i, k) at data[i * row_stride + k * column_stride].
struct Operand {
  const float* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;
};

// The second operand of a product, in panels of 16 outputs:
// element (k, 16 * tile + lane) at data[tile * tile_stride + k * k_stride + lane].
struct Panels {
  const void* data = nullptr;
  Storage storage = Storage::kF32;
  std::int64_t tile_stride = 0;
  std::int64_t k_stride = 16;
};

// Weak columns that a product of codes takes along, tile by tile: dense f16 or f32.
struct WeakPart {
  MatrixView columns;           // [rows, k]
  const float* x;               // [tokens, k], counted from token 0
  std::int64_t stride;          // floats between tokens
  std::int64_t first_tile = 0;  // of `columns`
};
inline constexpr std::int64_t kMostTokensWithWeak = 4;

// Output gradients rounded to 16 bits, in the form whose products the instruction set has:
// - "int16": whole numbers of 13 bits, with a scale for each 128 of them (the largest is 4095): the
//   products of 128 pairs fit 32 bits, 128 * 4095^2 < 2^31. Their error, at most 1/8190 of the
//   largest, is below that of bf16 where the largest is below 32 times the rest;
// - "bf16": 1/256 of each at most, and no scales.
inline constexpr std::int64_t kRoundedBlock = 128;
inline constexpr float kInt16Limit = 4095.0f;
template <class Code>
struct RoundedRows {
  Code* codes = nullptr;    // [tokens, rows], rows padded with 0 to an even count
  std::int64_t stride = 0;  // between tokens
  float* scales = nullptr;  // [tokens, blocks]; of whole numbers
  std::int64_t scale_stride = 0;
  Code* row(std::int64_t token) const { return codes + token * stride; }
  float* scales_of(std::int64_t token) const { return scales + token * scale_stride; }
};
using RoundedView = RoundedRows<std::int16_t>;
// Its second operand: panels of 32 columns each, [rows / 2][32][2], `size` numbers apart, with
// `blocks` scales each, one for each 128 rows.
struct RoundedPanels {
  std::int16_t* codes = nullptr;
  std::int64_t size = 0;
  float* scales = nullptr;  // of int16
  std::int64_t blocks = 0;
  RoundedPanels panel(std::int64_t i) const {
    return {codes + i * size, size, scales + i * blocks, blocks};
  }
  // From row `first` on, an even one; of int16 a multiple of 128.
  RoundedPanels from_row(std::int64_t first) const {
    return {codes + 32 * first, size, blocks > 0 ? scales + first / kRoundedBlock : nullptr,
            blocks};
  }
};
// Output gradients of a layer with codes, rounded to 8 bits with a scale for each 128 of them where
// the instruction set has products of bytes: twice as many a second. The error of a block is at
// most 2.6 % of its norm (128^0.5 * 12^-0.5 / 127 of its largest number) and some 0.6 % where no
// number stands out. The head's are rounded with dither (round_head_row()). Rows are padded
// to whole fours.
inline constexpr float kByteLimit = 127.0f;
struct RoundedBytes : RoundedRows<std::int8_t> {
  std::int32_t* sums = nullptr;  // of a block's codes, as scales
};
// A stride for rows of `count` numbers: an odd number of cache lines, so that the rows that are
// read together neither cross lines nor share a few sets of the first-level cache (products
// with tiles, rows of 576 numbers: 1010 instead of 660 G multiply-adds/s).
constexpr std::int64_t rounded_stride(std::int64_t count) {
  constexpr std::int64_t kLine = 32;
  return ((count + kLine - 1) / kLine | 1) * kLine;
}

// A loop that does nothing but multiply and add; what it gives means nothing.
struct PeakLoop {
  float (*run)(std::int64_t rounds, float start) = nullptr;  // start is 1
  std::int64_t macs_per_round = 0;
};

// Numbers that share a scale in narrow_int8(): as many as int8 activations have, so that what a
// product saw of them is what it sees again.
inline constexpr std::int64_t kByteBlock = 32;

struct Kernels {
  const char* name;
  const char* rounded;  // the form of rounded output gradients, as above; null: they stay f32

  bool tiled;  // linear_int8() is faster with Int8Tiles

  // Rounds tokens [begin, end) of x [tokens, columns] to int8. A token with a value that is not
  // finite gets a NaN scale. Only tables with `tiled` fill out.tiles.
  void (*quantize)(const float* x, std::int64_t stride, std::int64_t columns, std::int64_t begin,
                   std::int64_t end, const Int8View& out);

  // y[t, n] (+)= sum over groups of scale * x.scale * (dot - zero * x.sum) + offset * x.scaled_sum
  // for tokens [token_begin, token_end) and tiles [tile_begin, tile_end), zero being the group's
  // own or zero_point. NF4's levels take part rounded to 8 bits (impl/codes.h). Needs codes.
  // `of_token` (null: the weight's own for all): the groups' numbers for each token, counted from
  // token 0, whole (nothing null that the weight has).
  // `weak` (null: none; for at most kMostTokensWithWeak tokens, or `weak_for_many`): added to y, to
  // the bit as multiply() would add it afterwards.
  void (*linear_int8)(const MatrixView& weight, const Int8View& x, std::int64_t token_begin,
                      std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                      const GroupArrays* of_token, const WeakPart* weak, float* y,
                      std::int64_t y_stride, bool add);
  bool weak_for_many;  // any number of tokens with `weak`
  // y += the same of x.remainders, where there are any, token by token in their order.
  void (*add_remainders)(const MatrixView& weight, const Int8View& x, std::int64_t token_begin,
                         std::int64_t token_end, std::int64_t tile_begin, std::int64_t tile_end,
                         const GroupArrays* of_token, float* y, std::int64_t y_stride);

  // C[m, n] (+)= sum_k A[m, k] B[k, n]; n in [0, columns). C has contiguous rows.
  void (*multiply)(const Operand& a, const Panels& b, std::int64_t rows, std::int64_t columns,
                   std::int64_t depth, float* c, std::int64_t c_stride, bool add);

  // One tile as floats, [columns rounded up to 32][16], for multiply(); `raw` gives
  // level(code) - zero_point: the codes themselves where there are zeros or offsets.
  void (*unpack_tile)(const MatrixView& weight, std::int64_t tile, bool raw, float* panel);
  // 32 columns of tiles [tile_begin, tile_end) with rows first, [16 * tiles][32], for dy * W.
  void (*unpack_columns)(const MatrixView& weight, std::int64_t chunk, std::int64_t tile_begin,
                         std::int64_t tile_end, bool raw, float* panel);
  // The same as pairs of rows in the rounded form, [8 * tiles][32][2], with a scale for each 8
  // tiles (int16). This and what follows up to round_row() is null without a rounded form.
  void (*unpack_columns_rounded)(const MatrixView& weight, std::int64_t chunk,
                                 std::int64_t tile_begin, std::int64_t tile_end,
                                 std::int16_t* panel, float* scales);
  // The same for RoundedBytes, null where there are none: W's codes, too, are rounded to 8 bits,
  // with 128 added, [4 * tiles][32][4]; `rows` is a multiple of 4.
  void (*unpack_columns_bytes)(const MatrixView& weight, std::int64_t chunk,
                               std::int64_t tile_begin, std::int64_t tile_end, std::uint8_t* panel,
                               float* scales);
  void (*multiply_bytes)(const RoundedBytes& dy, const std::uint8_t* panel,
                         const float* panel_scales, std::int64_t rows, std::int64_t token_begin,
                         std::int64_t token_end, float* c, std::int64_t c_stride, int columns,
                         bool add);
  // round_row() to bytes. With `dither` (0: none), which says where its numbers begin, each is
  // rounded up as often as its fraction says, instead of to the nearest.
  void (*round_row_bytes)(const float* from, std::int64_t count, std::uint32_t dither,
                          std::int8_t* to, float* scales, std::int32_t* sums);
  // unpack_columns_rounded() of y = x W^T, where a step of tuning has its forward products in that
  // form, too (bf16; else null): chunks [chunk, chunk_end) of up to two tiles, [pairs of
  // columns][32 rows][2]. What lies beyond the columns is not 0.
  void (*unpack_rows_rounded)(const MatrixView& weight, std::int64_t chunk, std::int64_t chunk_end,
                              std::int64_t tile_begin, std::int64_t tile_end, std::int16_t* panel);
  // c[t, 0..31] (+)= sum_n dy[t, n] panel[n, 0..31] over `rows` (even) rows from the beginning of a
  // block of dy on. `columns` (<= 32) are stored.
  void (*multiply_rounded)(const RoundedView& dy, const std::int16_t* panel,
                           const float* panel_scales, std::int64_t rows, std::int64_t token_begin,
                           std::int64_t token_end, float* c, std::int64_t c_stride, int columns,
                           bool add);
  // c[t, 0..columns) (+)= rows[t, 0..depth) times panels, for `count` rows; `depth` is even. As
  // calls of multiply_rounded() for each panel, but tiles take 50 ns a call to be told what they
  // hold.
  void (*multiply_panels)(const RoundedView& rows, std::int64_t count, std::int64_t depth,
                          const RoundedPanels& panels, std::int64_t columns, float* c,
                          std::int64_t c_stride, bool add);
  std::int64_t panel_rows;  // that multiply_panels() takes at once: a multiple of them is best
  // Of weak columns, and with bf16 alone: rows of two panels like that of the codes, behind each
  // other, whose sum is the number: [pairs of columns][32 rows of w][2] and the same of what
  // rounding leaves. An odd column's pair is 0.
  void (*unpack_weak_rounded)(const MatrixView& w, std::int64_t tile_begin, std::int64_t tile_end,
                              std::int16_t* panel);
  // One panel from rows of at most 32 floats. A row that is missing of a pair and columns that are
  // missing are 0.
  void (*round_pairs)(const float* rows, std::int64_t stride, std::int64_t count, int columns,
                      const RoundedPanels& panel);
  // Rows of the first operand from columns of at most 128 rows of floats, 0 up to an even count.
  void (*round_columns)(const float* rows, std::int64_t stride, std::int64_t count,
                        std::int64_t columns, const RoundedView& to);
  // Rounds a row, padded to an even count. `to` may be where `from` is. What is not finite makes
  // its block's scale NaN (int16) or stays so (bf16).
  void (*round_row)(const float* from, std::int64_t count, std::int16_t* to, float* scales);

  // For tiles [tile_begin, tile_end), the first of which is written at d_scale[0], summed over
  // `tokens` tokens in blocks of 128:
  //   d_scale [tiles][groups][16]  += sum_t dy[t, n] sum_{j in g} (level - zero_point)[n, j] x[t,
  //   j] d_offset [tiles][groups][16] += sum_t dy[t, n] sum_{j in g} x[t, j]       (null: not
  //   wanted)
  // With zeros as with offsets: level is the code, zero_point 0, and d_offset is wanted. The
  // gradients of w = s (q - z) follow as d_s = d_scale - z d_offset and d_z = -s d_offset.
  // zero_point != 0 and NF4 need a null d_offset.
  // `scratch` holds 128 * 32 floats.
  void (*scale_gradient_int8)(const MatrixView& weight, const Int8View& x, const float* dy,
                              std::int64_t dy_stride, std::int64_t tokens, std::int64_t tile_begin,
                              std::int64_t tile_end, float* d_scale, float* d_offset,
                              float* scratch);

  // What the gradients of a row's only group need of its outputs; rows are `stride` floats apart:
  //   sums[n]     += sum_t dy[t, n] (y[t, n] - base[t, n])    (base null: 0)
  //   weighted[n] += sum_t dy[t, n] factors[t]                (factors null: not wanted)
  void (*output_sums)(const float* dy, const float* y, const float* base, const float* factors,
                      std::int64_t stride, std::int64_t tokens, std::int64_t columns, float* sums,
                      float* weighted);

  // y = x * weight / sqrt(mean(x^2) + eps); stores 1 / sqrt(...) in rstd if not null. NaN where x^2
  // overflows.
  void (*rms_norm)(const float* x, const float* weight, std::int64_t columns, float eps, float* y,
                   float* rstd);
  // dx += the gradient of rms_norm's input, from dy, x, weight and the stored rstd.
  void (*rms_norm_backward)(const float* dy, const float* x, const float* weight, float rstd,
                            std::int64_t columns, float* dx);
  // out = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, std::int64_t count, float* out);
  // The gradients of gate and up; d_gate comes with out's, which it replaces.
  void (*swiglu_backward)(const float* gate, const float* up, std::int64_t count, float* d_gate,
                          float* d_up);
  // scores[0, keys) *= scale, and up to `padded`, a multiple of 16, what exponentiates to 0; gives
  // the highest.
  float (*scale_scores)(float* scores, std::int64_t keys, std::int64_t padded, float scale);
  // scores[0, padded) -> exp(score - shift); every 16th is added to one of 16 sums.
  void (*exponentials)(float* scores, std::int64_t padded, float shift, float* sums);
  // p = exp(scale * score - log_sum_exp) in place.
  void (*softmax_again)(float* scores, std::int64_t keys, std::int64_t padded, float scale,
                        float log_sum_exp);
  // d_score = p * (d_p - delta) * scale, written over d_p.
  void (*softmax_backward)(const float* p, std::int64_t keys, float delta, float scale, float* d_p);
  // The largest of x, which has none that is not a number; -infinity of nothing.
  float (*highest)(const float* x, std::int64_t count);
  // log(sum(exp(logits))).
  float (*log_sum_exp)(const float* logits, std::int64_t count);
  // logits -> weight * exp(logits - lse), in place.
  void (*softmax_gradient)(float* logits, std::int64_t count, float lse, float weight);
  // out = x * factor
  void (*scale)(const float* x, std::int64_t count, float factor, float* out);
  // x *= factors, element by element
  void (*scale_each)(const float* factors, std::int64_t count, float* x);
  // out += x
  void (*add)(const float* x, std::int64_t count, float* out);
  float (*dot)(const float* a, const float* b, std::int64_t count);
  // Pairs (x[2i], x[2i + 1]) are turned by the angles whose cosine is cosines[2i] = cosines[2i +
  // 1], whose sine is direction * sines[2i + 1] = -direction * sines[2i]; direction is 1 or -1.
  void (*rotate_pairs)(const float* cosines, const float* sines, float direction,
                       std::int64_t count, float* x);
  // to[j * to_stride + i] = from[i * stride + j]
  void (*transpose)(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                    float* to, std::int64_t to_stride);
  void (*widen_f16)(const f16* from, std::int64_t count, float* to);
  void (*narrow_f16)(const float* from, std::int64_t count, f16* to);
  // Numbers to bytes with a scale for each kByteBlock of them, whose largest is 127, and back. What
  // the last block lacks is 0.
  void (*narrow_int8)(const float* from, std::int64_t count, std::int8_t* to, f16* scales);
  void (*widen_int8)(const std::int8_t* from, const f16* scales, std::int64_t count, float* to);

  // What one core can do at most; of rounded gradients only where there are.
  PeakLoop peak_f32, peak_int8, peak_rounded;
  // Reads memory once, from one end to the other; `bytes` is a multiple of 256.
  float (*read_memory)(const std::uint8_t* data, std::int64_t bytes);
};

struct IsaInfo {
  const Kernels* kernels;  // null: not compiled in
  std::string name;
  std::string needs;  // CPU features
  bool usable;        // on this machine
};

// All instruction sets this program was compiled for, best first.
std::vector<IsaInfo> list_isas();
// The one named by the environment variable TRIMPOT_ISA, or the best usable one.
// Errors: an unknown name, or one this CPU lacks (the message lists the usable ones).
Result<const Kernels*> select_kernels();
Result<const Kernels*> kernels_by_name(std::string_view name);

}  // namespace trimpot
