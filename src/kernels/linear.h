// The contracts of a linear layer, over whole matrices and all threads:
//   linear           y  = x W^T                                   (MatMul)
//   linear_backward  dx = dy W                                    (MatMulT; no transposed copy of
//   W)
//                    d_scale, d_offset                            (GradScales, GradOffsets; no dW)
//                    dF[n, j] = sum_t dy[t, n] x[t, j]            (GradColumns, GradDense)
// with weak columns and the low-rank path included (format/linear.h). Every function splits its
// outputs over the threads and never a sum, so that results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "format/linear.h"
#include "kernels/ops.h"

namespace trimpot {

// The inputs of one linear layer in the order of its stored columns.
struct LinearInput {
  const float* values = nullptr;  // [tokens], `stride` floats apart: the columns of `weight`
  std::int64_t stride = 0;
  const float* weak = nullptr;  // the weak columns
  std::int64_t weak_stride = 0;
  Int8View int8;        // of `values`; empty where the weight is not multiplied in int8
  RoundedView rounded;  // of `values`; empty unless rounds_inputs()
};

// Rows [begin, end) of a batch that go through this view of a layer: the same codes and order of
// columns, with numbers, weak columns and a low-rank path of their own.
struct LinearRun {
  std::int64_t begin, end;
  LinearView linear;
};

// A layer, where its output goes, [tokens, rows], and what that is added to. Without runs all rows
// go through `linear`.
struct LinearOutput {
  LinearView linear;
  float* y;
  const float* base = nullptr;           // null: nothing; may be y
  std::span<const LinearRun> runs = {};  // together all rows, in order
};

// Inputs of linear layers: floats [tokens, columns], and the forms in which the layers that read
// them want them: rounded to int8, gathered into the order of their columns. Layers that agree
// share a form.
class Activations {
 public:
  // With memory of an arena that outlives this (null: none).
  void allocate(std::int64_t tokens, std::int64_t columns, Arena* arena = nullptr);
  float* values() { return values_.data(); }
  const float* values() const { return values_.data(); }
  std::int64_t columns() const { return columns_; }
  // To be called when values() are final, with all layers that will read them. `multiplied` false:
  // no forward products follow.
  void prepare(Compute& compute, std::int64_t tokens, std::span<const LinearOutput> readers,
               bool multiplied = true);
  // Of a layer that was among the readers.
  LinearInput input(const LinearView& linear) const;
  // Writes to the lines of what prepare() filled last, which must not be needed any more, if it was
  // of few tokens: the calling core owns them when prepare() writes them again. The others have
  // read them, and where cores are far from each other a store to such a line takes 60 ns.
  void own_lines() const;

 private:
  struct Form {  // the input's `count` columns `columns` (null: the first ones)
    const std::vector<std::int32_t>* columns = nullptr;
    std::int64_t count = 0;
    bool wants_int8 = false, wants_rounded = false;
    std::int64_t weak = 0;  // columns behind them that readers multiply apart
    AlignedBuffer<float> gathered;
    AlignedBuffer<Int8Block> blocks;
    AlignedBuffer<Int8Remainder> remainders;
    AlignedBuffer<std::uint8_t> tiles_or_halves;  // never both at a time
    Int8View int8;
    RoundedView rounded;  // [tokens]: the columns, then twice the weak ones, each an even count
  };
  void note(const Compute& compute, const LinearView& reader, bool multiplied);
  Form& form_of(const std::vector<std::int32_t>* columns, std::int64_t count);
  const Form* find(const std::vector<std::int32_t>* columns, std::int64_t count) const;
  void fill(Compute& compute, std::int64_t tokens, Form& form) const;

  Arena* arena_ = nullptr;
  std::int64_t columns_ = 0, tokens_ = 0;
  AlignedBuffer<float> values_;
  std::vector<Form> forms_;  // the first used_ are of the present contents; the others keep memory
  std::size_t used_ = 0;
};

// Of a layer that is multiplied soon.
struct Upcoming {
  const Matrix* weight;
  const Matrix* weak = nullptr;  // null: none
};

// y = base + the layer's output, for several layers that share their input: one join for q, k, v.
// `next`: the layers of the next call; threads that wait for it bring what they will read of them
// into their caches, if there are so few tokens that memory is what takes the time. `filled_next`:
// what is prepared next, by the calling thread (null: unknown).
void linear(Compute& compute, const Activations& x, std::int64_t tokens,
            std::span<const LinearOutput> outputs, std::span<const Upcoming> next = {},
            const Activations* filled_next = nullptr);

// Receives d_scale and d_offset of whole tiles, [tile_end - tile_begin][groups][16], possibly from
// several threads at once (never the same tile). d_offset is null for formats without zeros and
// offsets. With zeros, d_scale is that of zero 0 (Kernels::scale_gradient_int8).
using ScaleGradientSink = std::function<void(std::int64_t tile_begin, std::int64_t tile_end,
                                             const float* d_scale, const float* d_offset)>;

// Which gradients of a layer are wanted and where they go. Arrays are added to; their layout is
// that of dense matrices, [tiles][columns][16].
struct LinearSink {
  ScaleGradientSink scales;  // empty: not wanted; so are null pointers
  float* weak = nullptr;     // of `weak`
  float* weight = nullptr;   // of `weight` whatever its storage: full tuning, fake quantization
  float* low_rank_a = nullptr;
  float* low_rank_b = nullptr;
  bool wanted() const { return scales || weak || weight || low_rank_a || low_rank_b; }
};

// What the forward left of a layer's output, [tokens, rows]: values - base.
struct KnownOutput {
  const float* values = nullptr;  // null: nothing
  const float* base = nullptr;    // what the output was added to; null: nothing
};

// Whether linear_backward() takes the gradients of scales from the output, if it is given: with one
// group per row and nothing beside the codes, sum_t dy y is s d_scale + m d_offset, and no product
// is needed. The f32 path, the yardstick, forms the product all the same.
bool takes_output(const Compute& compute, const LinearView& linear, const LinearSink& sink);

// Gradients of the parts that `sink` wants, and dx [tokens, channels] (+)= the input's gradient
// (null: not wanted) from dy [tokens, rows].
void linear_backward(Compute& compute, const LinearView& linear, const Activations& x,
                     const float* dy, std::int64_t tokens, const LinearSink& sink, float* dx,
                     bool add, const KnownOutput& y = {});

// Whether products with this weight are of int8 activations, unless rounds_inputs().
bool uses_int8(const Compute& compute, const Matrix& weight);
// Whether the weak columns are the input's last ones, right behind the others.
bool weak_follows(const LinearView& linear);

// What is a product of rounded numbers (RoundedView) on this path: input gradients;
bool rounds_gradients(const Compute& compute);
// those of a layer with this weight, of bytes (RoundedBytes);
bool gradients_in_bytes(const Compute& compute, const Matrix& weight);
// forward products of quantized weights and attention's, in a step of tuning;
bool step_rounds_inputs(const Compute& compute);
// the same now, as such a step runs, or a text is read in the same way (Compute::reading_bf16);
bool rounds_inputs(const Compute& compute);
// attention's scores and sums of values, there and in any step of tuning;
bool rounds_scores(const Compute& compute);
// attention's gradients: of bf16 in such a step alone, where the forward's scores are, too; whole
// numbers of 13 bits are close enough to a forward in floats.
bool rounds_attention(const Compute& compute);

// The head's input gradient: rows of dy are `dy_stride` floats apart, each of which
// round_head_row() has put into the form that the kernels work with, in place. Bytes get dither:
// most of the probabilities in dy are small beside the largest of their 128, and rounded to the
// nearest they would be 0 and their sum lost (after 30 steps of WikiText-2 the validation loss was
// 3.491; with dither 3.444, as with 13 bits). Where it begins one of the row's numbers says, not
// the row's place: a sequence's gradients are its own.
void round_head_row(Compute& compute, const Matrix& head, float* dy, int member);
void head_backward(Compute& compute, const LinearView& head, float* dy, std::int64_t dy_stride,
                   std::int64_t tokens, float* dx);

// out[:, i] = x[:, columns[i]]; rows of `width` floats.
void gather_columns(Compute& compute, const float* x, std::int64_t width, std::int64_t tokens,
                    std::span<const std::int32_t> columns, float* out);
// out[:, columns[i]] += x[:, i]; rows of out have `width` floats. Columns may repeat.
void scatter_add_columns(Compute& compute, const float* x, std::int64_t tokens,
                         std::span<const std::int32_t> columns, float* out, std::int64_t width);

}  // namespace trimpot
