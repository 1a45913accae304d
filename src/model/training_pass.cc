#include "model/training_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trimpot {
namespace {

constexpr std::int64_t kLogitBytes = 12 << 20;  // logits that are in memory at a time

}  // namespace

std::int64_t count_predictions(const TrainingBatch& batch) {
  std::int64_t count = 0, first = 0;
  for (const std::int64_t length : batch.lengths) {
    for (std::int64_t i = first + 1; i < first + length; ++i) count += batch.learned[i] != 0;
    first += length;
  }
  return count;
}

void TrainingPass::prepare(const TrainingBatch& batch, bool with_gradients) {
  const ModelConfig& config = model_.config;
  rows_ = static_cast<std::int64_t>(batch.tokens.size());
  if (caches_.size() < batch.lengths.size()) caches_.resize(batch.lengths.size());
  rows_of_.tokens = batch.tokens;
  rows_of_.segments.clear();
  labelled_rows_.clear();
  std::int64_t first = 0;
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const std::int64_t length = batch.lengths[i];
    caches_[i].allocate(compute_, config.attention, length);
    rows_of_.segments.push_back({first, length, 0, &caches_[i]});
    for (std::int64_t row = first; row + 1 < first + length; ++row)
      if (batch.learned[row + 1]) labelled_rows_.push_back(row);
    first += length;
  }
  rope_.fill(model_, rows_of_);
  activations_.allocate(config, rows_);
  const auto kept = with_gradients ? static_cast<std::int64_t>(model_.layers.size()) + 1 : 1;
  checkpoints_.reserve(kept * rows_ * config.hidden);
  if (!with_gradients) return;
  gradients_.allocate(config, rows_);
  dx_.reserve(rows_ * config.hidden);
}

void TrainingPass::head(const TrainingBatch& batch, float weight, bool gradients, const float* x,
                        LossSum& sum) {
  const std::int64_t hidden = model_.config.hidden, vocabulary = model_.config.vocabulary;
  const auto labelled = static_cast<std::int64_t>(labelled_rows_.size());
  const std::int64_t step =
      std::clamp<std::int64_t>(kLogitBytes / 4 / vocabulary / 12 * 12, 12, 252);
  logits_.reserve(std::min(step, labelled) * vocabulary);
  labelled_x_.reserve(step * hidden);
  d_labelled_x_.reserve(step * hidden);
  d_normed_.reserve(step * hidden);
  row_loss_.resize(labelled);
  row_correct_.resize(labelled);
  if (gradients) std::memset(dx_.data(), 0, rows_ * hidden * sizeof(float));
  for (std::int64_t begin = 0; begin < labelled; begin += step) {
    const std::int64_t count = std::min(step, labelled - begin);
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(x + labelled_rows_[begin + i] * hidden, hidden, labelled_x_.data() + i * hidden);
    head_.forward(compute_, model_, count, labelled_x_.data(), logits_.data());
    const bool half = uses_bf16(compute_);
    compute_.team.for_each(count, 1, [&](std::int64_t i, std::int64_t, int) {
      float* logits = logits_.data() + i * vocabulary;
      const TokenId label = batch.tokens[labelled_rows_[begin + i] + 1];
      const float at_label = logits[label];
      const float lse = compute_.kernels.log_sum_exp(logits, vocabulary);
      row_loss_[begin + i] = static_cast<double>(lse) - static_cast<double>(at_label);
      row_correct_[begin + i] = *std::max_element(logits, logits + vocabulary) == at_label;
      if (!gradients) return;
      compute_.kernels.softmax_gradient(logits, vocabulary, lse, weight, half);
      // p - 1 at the label, computed apart: the difference would lose digits in bf16.
      const float d_label = weight * (std::exp(at_label - lse) - 1.0f);
      if (half) {
        auto* rounded = reinterpret_cast<bf16*>(logits);
        rounded[label] = f32_to_bf16(d_label);
        if (vocabulary % 2 != 0) rounded[vocabulary] = 0;
      } else {
        logits[label] = d_label;
      }
    });
    if (!gradients) continue;
    head_backward(compute_, model_.head_view(), logits_.data(), vocabulary, count,
                  d_normed_.data());
    std::memset(d_labelled_x_.data(), 0, count * hidden * sizeof(float));
    rms_norm_backward(compute_, d_normed_.data(), labelled_x_.data(), model_.output_norm.data(),
                      head_.rstd(), count, hidden, d_labelled_x_.data());
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(d_labelled_x_.data() + i * hidden, hidden,
                  dx_.data() + labelled_rows_[begin + i] * hidden);
  }
  for (std::int64_t i = 0; i < labelled; ++i) {
    sum.loss += row_loss_[i];
    sum.correct += row_correct_[i];
  }
  sum.count += labelled;
}

void TrainingPass::backward(const GradientSink& sink) {
  for (std::size_t layer = model_.layers.size(); layer-- > 0;) {
    const LayerWeights& weights = model_.layers[layer];
    layer_forward(compute_, model_.config, weights, rows_of_.segments, rope_, rows_,
                  checkpoint(layer), activations_, nullptr);
    layer_backward(compute_, model_.config, weights, layer, rows_of_.segments, rope_, rows_,
                   checkpoint(layer), activations_, gradients_, sink, dx_.data());
  }
}

Result<LossSum> TrainingPass::run(const TrainingBatch& batch, float weight,
                                  const GradientSink* sink) {
  for (const TokenId token : batch.tokens)
    if (token < 0 || token >= model_.config.vocabulary)
      return fail("token {} is not in the vocabulary of {}", token, model_.config.vocabulary);
  prepare(batch, sink != nullptr);
  compute_.dropout_stream = sink != nullptr ? sink->dropout_stream : 0;
  embed(compute_, model_, batch.tokens, checkpoint(0));
  std::size_t last = 0;
  for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
    const float* x = checkpoint(last);
    if (sink != nullptr) ++last;
    layer_forward(compute_, model_.config, model_.layers[layer], rows_of_.segments, rope_, rows_, x,
                  activations_, checkpoint(last));
  }
  LossSum sum;
  head(batch, weight, sink != nullptr, checkpoint(last), sum);
  if (!std::isfinite(sum.loss)) {
    compute_.dropout_stream = 0;
    return fail("the loss is not a finite number ({}); lower the learning rate or check the data",
                sum.loss);
  }
  if (sink != nullptr && sum.count > 0) backward(*sink);
  compute_.dropout_stream = 0;
  return sum;
}

}  // namespace trimpot
