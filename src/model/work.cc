#include "model/work.h"

namespace trimpot {
namespace {

double size_of(const Matrix& matrix) {
  return static_cast<double>(matrix.rows()) * static_cast<double>(matrix.columns());
}

// A product with `tokens` rows: codes in int8 on the default path, all else in f32.
void add_product(const Compute& compute, const Matrix& matrix, double tokens, Work& work) {
  const bool int8 = compute.precision == Precision::kDefault && matrix.quantized();
  (int8 ? work.int8_macs : work.f32_macs) += size_of(matrix) * tokens;
}

// Products of rounded numbers where there are such, else of floats.
void add_rounded(const Compute& compute, const Matrix& matrix, double tokens, Work& work) {
  (rounds_gradients(compute) ? work.rounded_macs : work.f32_macs) += size_of(matrix) * tokens;
}

// The input gradient of a layer's part.
void add_input_gradient(const Compute& compute, const Matrix& weight, const Matrix& part,
                        double tokens, Work& work) {
  if (gradients_in_bytes(compute, weight))
    work.int8_macs += size_of(part) * tokens;
  else
    add_rounded(compute, part, tokens, work);
}

// A forward product, in a step of tuning or not.
void add_output(const Compute& compute, const Matrix& matrix, double tokens, bool step,
                Work& work) {
  if (step && step_rounds_inputs(compute) && matrix.quantized())
    add_rounded(compute, matrix, tokens, work);
  else
    add_product(compute, matrix, tokens, work);
}

void add_forward(const Compute& compute, const Linear& linear, double tokens, bool step,
                 Work& work) {
  add_output(compute, linear.weight, tokens, step, work);
  const bool follows = linear.weight_columns == nullptr && linear.weak_columns == nullptr;
  const bool rounded = step && step_rounds_inputs(compute) && follows;
  (rounded ? work.rounded_macs : work.f32_macs) += size_of(linear.weak) * tokens;
  if (linear.low_rank)
    work.f32_macs += (size_of(linear.low_rank->a) + size_of(linear.low_rank->b)) * tokens;
}

void add_backward(const Compute& compute, const Linear& linear, const LinearSink& sink,
                  double tokens, Work& work) {
  add_input_gradient(compute, linear.weight, linear.weight, tokens, work);
  add_input_gradient(compute, linear.weight, linear.weak, tokens, work);
  if (sink.scales && !takes_output(compute, linear, sink))
    add_product(compute, linear.weight, tokens, work);
  if (sink.weak != nullptr) work.f32_macs += size_of(linear.weak) * tokens;
  if (sink.weight != nullptr) work.f32_macs += size_of(linear.weight) * tokens;
  if (!linear.low_rank) return;
  const Matrix &a = linear.low_rank->a, &b = linear.low_rank->b;
  add_rounded(compute, b, tokens, work);
  add_rounded(compute, a, tokens, work);
  if (sink.low_rank_a != nullptr) work.f32_macs += size_of(a) * tokens;
  if (sink.low_rank_b != nullptr) work.f32_macs += (size_of(a) + size_of(b)) * tokens;
}

// Scores and their products with the values for queries [first, first + tokens), each of which sees
// the keys up to itself.
double attention_macs(const ModelConfig& config, double first, double tokens) {
  const double keys = tokens * first + tokens * (tokens + 1) / 2;
  return 2.0 * keys * static_cast<double>(config.attention.q_width() * config.layers);
}

// Of a key or a value with its share of the scale.
double key_bytes(const Compute& compute, const AttentionShape& shape, CacheType cache) {
  if (cache == CacheType::kInt8) return 1.0 + 4.0 / static_cast<double>(shape.head_dim);
  return compute.precision == Precision::kF32 ? 4.0 : 2.0;
}

Work passes(const Compute& compute, const Model& model, double first, double tokens,
            CacheType cache = CacheType::kFloat, bool step = false) {
  Work work;
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    add_forward(compute, model.linear(index), tokens, step, work);
  (step && rounds_gradients(compute) ? work.rounded_macs : work.f32_macs) +=
      attention_macs(model.config, first, tokens);
  work.bytes = static_cast<double>(model.weight_bytes()) +
               2.0 * first * key_bytes(compute, model.config.attention, cache) *
                   static_cast<double>(model.config.attention.kv_width() * model.config.layers);
  // Of an embedding that is not the head too, a row is read.
  if (model.head.rows() > 0) work.bytes -= static_cast<double>(model.embedding.bytes());
  return work;
}

}  // namespace

Work decode_work(const Compute& compute, const Model& model, std::int64_t position,
                 std::int64_t sequences, CacheType cache) {
  const auto count = static_cast<double>(sequences);
  Work work = passes(compute, model, static_cast<double>(position), 1.0, cache);
  add_product(compute, model.head_matrix(), 1.0, work);
  const double weights = passes(compute, model, 0.0, 1.0).bytes;
  return {weights + count * (work.bytes - weights), count * work.int8_macs,
          count * work.rounded_macs, count * work.f32_macs};
}

Work prefill_work(const Compute& compute, const Model& model, std::int64_t tokens) {
  const bool bf16 = compute.bf16_prompts && step_rounds_inputs(compute);
  const auto rows = static_cast<double>(tokens);
  Work work = passes(compute, model, 0.0, rows, CacheType::kFloat, bf16);
  // Of the last layer one row is read on.
  for (const std::size_t kind : {kO, kGate, kUp, kDown})
    add_forward(compute, model.linear(model.linear_count() - kLinearKinds.size() + kind),
                1.0 - rows, bf16, work);
  (bf16 ? work.rounded_macs : work.f32_macs) -=
      attention_macs(model.config, 0.0, rows - 1) / static_cast<double>(model.config.layers);
  add_product(compute, model.head_matrix(), 1.0, work);
  return work;
}

Work tuning_work(const Compute& compute, const Model& model, std::int64_t tokens,
                 const GradientSink* sink) {
  const auto rows = static_cast<double>(tokens);
  const bool step = sink != nullptr;
  Work work = passes(compute, model, 0.0, rows, CacheType::kFloat, step);
  add_output(compute, model.head_matrix(), rows, step, work);
  if (!step) return work;
  // TrainingPass::recompute(): the last layer is not, on the f32 path the others are but for
  // down_proj; on the default path keys, values and, where it is worth its memory, queries are
  // kept.
  const std::size_t recomputed = model.linear_count() - kLinearKinds.size();
  const auto again = [&](std::size_t kind) {
    if (compute.precision == Precision::kF32) return kind != kDown;
    return kind == kO || kind == kGate || kind == kUp;
  };
  for (std::size_t index = 0; index < model.linear_count(); ++index) {
    if (index < recomputed && again(index % kLinearKinds.size()))
      add_forward(compute, model.linear(index), rows, step, work);
    add_backward(compute, model.linear(index), sink->of(index), rows, work);
  }
  add_input_gradient(compute, model.head_matrix(), model.head_matrix(), rows, work);
  // The gradients of q, k, v and of the scores, with the scores once more; forward again.
  const double attention = attention_macs(model.config, 0.0, rows);
  (rounds_gradients(compute) ? work.rounded_macs : work.f32_macs) += 5.0 / 2.0 * attention;
  if (compute.precision == Precision::kF32)
    work.f32_macs +=
        attention * static_cast<double>(recomputed) / static_cast<double>(model.linear_count());
  return work;
}

}  // namespace trimpot
