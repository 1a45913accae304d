#include "model/training_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace trimpot {
namespace {

constexpr std::int64_t kLogitBytes = 12 << 20;  // logits that are in memory at a time

// The first channel of a layer's input that its gradients read: where nothing but weak columns
// behind the others learns, theirs.
std::int64_t first_read(const Linear& linear, const LinearSink& sink) {
  const bool all = sink.scales || sink.weight != nullptr || sink.low_rank_a != nullptr ||
                   sink.low_rank_b != nullptr || linear.weak_columns != nullptr;
  return all ? 0 : linear.weight.columns();
}

// What operations have to know of a step, while it runs.
class StepState {
 public:
  StepState(Compute& compute, const Model& model, const GradientSink* sink) : compute_(compute) {
    if (sink == nullptr) return;
    compute.learning = true;
    for (std::size_t i = 0; i < model.linear_count(); ++i) {
      // Where the forward's products are not of int8, its outputs suffice for some.
      const bool of_output =
          rounds_inputs(compute) && takes_output(compute, model.linear(i), sink->of(i));
      compute.wants_int8 |= sink->of(i).scales && !of_output;
    }
    compute.dropout_stream = sink->dropout_stream;
  }
  ~StepState() {
    compute_.learning = compute_.wants_int8 = false;
    compute_.dropout_stream = 0;
  }
  StepState(const StepState&) = delete;
  StepState& operator=(const StepState&) = delete;

 private:
  Compute& compute_;
};

}  // namespace

std::int64_t count_predictions(const TrainingBatch& batch) {
  std::int64_t count = 0, first = 0;
  for (const std::int64_t length : batch.lengths) {
    for (std::int64_t i = first + 1; i < first + length; ++i) count += batch.learned[i] != 0;
    first += length;
  }
  return count;
}

void TrainingPass::prepare(const TrainingBatch& batch, const GradientSink* sink) {
  const ModelConfig& config = model_.config;
  rows_ = static_cast<std::int64_t>(batch.tokens.size());
  // The longest sequence takes the first cache, and so on: caches that belonged to places in the
  // batch would grow, each to the longest sequence that was ever there.
  const std::size_t count = batch.lengths.size();
  if (caches_.size() < count) caches_.resize(count);
  std::vector<std::size_t> by_length(count);
  std::iota(by_length.begin(), by_length.end(), std::size_t{0});
  std::stable_sort(by_length.begin(), by_length.end(), [&](std::size_t a, std::size_t b) {
    return batch.lengths[a] > batch.lengths[b];
  });
  cache_of_.resize(count);
  for (std::size_t rank = 0; rank < count; ++rank) cache_of_[by_length[rank]] = rank;
  rows_of_.tokens = batch.tokens;
  rows_of_.segments.clear();
  labelled_rows_.clear();
  std::int64_t first = 0;
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const std::int64_t length = batch.lengths[i];
    KeyValues& cache = caches_[cache_of_[i]];
    cache.allocate(compute_, config.attention, length);
    rows_of_.segments.push_back({first, length, 0, &cache});
    for (std::int64_t row = first; row + 1 < first + length; ++row)
      if (batch.learned[row + 1]) labelled_rows_.push_back(row);
    first += length;
  }
  rope_.fill(model_, rows_of_);
  activations_.allocate(config, rows_);
  const std::size_t layers = model_.layers.size();
  keeps_results_ = sink != nullptr && compute_.precision == Precision::kDefault;
  if (keeps_results_) {
    bool quantized = true, of_outputs = false;
    for (std::size_t i = 0; i < model_.linear_count(); ++i) {
      quantized &= model_.linear(i).weight.quantized();
      of_outputs |= takes_output(compute_, model_.linear(i), sink->of(i));
    }
    kept_.allocate(config, rows_, static_cast<std::int64_t>(layers) - 1,
                   Kept::choose(learned_values_, model_.weight_bytes(), quantized, of_outputs));
  }
  checkpoints_in_turns_ = sink == nullptr || (keeps_results_ && kept_.kept().inputs);
  const auto checkpoints = static_cast<std::int64_t>(
      checkpoints_in_turns_ ? std::min<std::size_t>(2, layers + 1) : layers + 1);
  checkpoints_.reserve(checkpoints * rows_ * config.hidden);
  if (sink == nullptr) return;
  dx_.reserve(rows_ * config.hidden);
}

void TrainingPass::run_teacher(const TrainingBatch& batch) {
  const Model& teacher = *teacher_.model;
  const ModelConfig& config = teacher.config;
  if (teacher_caches_.size() < batch.lengths.size()) teacher_caches_.resize(batch.lengths.size());
  Batch rows{batch.tokens, rows_of_.segments};
  for (std::size_t i = 0; i < rows.segments.size(); ++i) {
    KeyValues& cache = teacher_caches_[cache_of_[i]];
    cache.allocate(compute_, config.attention, rows.segments[i].count);
    rows.segments[i].cache = &cache;
  }
  teacher_rope_.fill(teacher, rows);
  teacher_activations_.allocate(config, rows_);
  teacher_x_.reserve(rows_ * config.hidden);
  embed(compute_, teacher, batch.tokens, teacher_x_.data());
  for (const LayerWeights& layer : teacher.layers)
    layer_forward(compute_, config, layer, rows.segments, teacher_rope_, rows_, teacher_x_.data(),
                  teacher_activations_, teacher_x_.data());
}

void TrainingPass::learn_row(TokenId label, float weight, bool gradients, float* logits,
                             float* taught, int member, double& loss, std::uint8_t& correct) {
  const Kernels& k = compute_.kernels;
  const std::int64_t vocabulary = model_.config.vocabulary;
  const float at_label = logits[label];
  const float lse = k.log_sum_exp(logits, vocabulary);
  const double from_data = static_cast<double>(lse) - static_cast<double>(at_label);
  correct = k.highest(logits, vocabulary) == at_label;
  loss = from_data;
  // p - 1 at the label is computed apart: the difference would lose digits.
  const float p_label = std::exp(at_label - lse);
  if (taught == nullptr) {
    if (!gradients) return;
    k.softmax_gradient(logits, vocabulary, lse, weight);
    logits[label] = weight * (p_label - 1.0f);
    return;
  }
  // KL = sum p_t (t - s) - lse_t + lse_s, and d = weight (p_s - share p_t - (1 - share) label).
  const auto share = static_cast<float>(teacher_.weight);
  float* scratch = compute_.scratch(member, static_cast<std::size_t>(vocabulary));
  k.scale(logits, vocabulary, -1.0f, scratch);
  k.add(taught, vocabulary, scratch);
  const float lse_taught = k.log_sum_exp(taught, vocabulary);
  k.softmax_gradient(taught, vocabulary, lse_taught, 1.0f);
  const double divergence = static_cast<double>(k.dot(taught, scratch, vocabulary)) -
                            static_cast<double>(lse_taught) + static_cast<double>(lse);
  loss = (1.0 - teacher_.weight) * from_data + teacher_.weight * divergence;
  if (!gradients) return;
  k.softmax_gradient(logits, vocabulary, lse, weight);
  k.scale(taught, vocabulary, -weight * share, scratch);
  k.add(scratch, vocabulary, logits);
  logits[label] = weight * (p_label - (1.0f - share)) + scratch[label];
}

void TrainingPass::head(const TrainingBatch& batch, float weight, bool gradients, const float* x,
                        LossSum& sum) {
  const std::int64_t hidden = model_.config.hidden, vocabulary = model_.config.vocabulary;
  const auto labelled = static_cast<std::int64_t>(labelled_rows_.size());
  const std::int64_t step =
      std::clamp<std::int64_t>(kLogitBytes / 4 / vocabulary / 12 * 12, 12, 252);
  // At once as large as backward() wants it: a second one would come beside the first.
  logits_.reserve(
      std::max(std::min(step, labelled) * vocabulary,
               gradients ? LayerGradients::size(model_.config, rows_, rows_of_.segments) : 0));
  labelled_x_.reserve(step * hidden);
  d_labelled_x_.reserve(step * hidden);
  d_normed_.reserve(step * hidden);
  if (teacher_.model != nullptr) {
    teacher_logits_.reserve(std::min(step, labelled) * vocabulary);
    teacher_rows_.reserve(step * teacher_.model->config.hidden);
  }
  row_loss_.resize(labelled);
  row_correct_.resize(labelled);
  if (gradients) clear(compute_, dx_.data(), rows_ * hidden);
  for (std::int64_t begin = 0; begin < labelled; begin += step) {
    const std::int64_t count = std::min(step, labelled - begin);
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(x + labelled_rows_[begin + i] * hidden, hidden, labelled_x_.data() + i * hidden);
    head_.forward(compute_, model_, count, labelled_x_.data(), logits_.data());
    if (teacher_.model != nullptr) {
      const std::int64_t width = teacher_.model->config.hidden;
      for (std::int64_t i = 0; i < count; ++i)
        std::copy_n(teacher_x_.data() + labelled_rows_[begin + i] * width, width,
                    teacher_rows_.data() + i * width);
      teacher_head_.forward(compute_, *teacher_.model, count, teacher_rows_.data(),
                            teacher_logits_.data());
    }
    compute_.team.for_each(count, 1, [&](std::int64_t i, std::int64_t, int member) {
      float* row = logits_.data() + i * vocabulary;
      learn_row(batch.tokens[labelled_rows_[begin + i] + 1], weight, gradients, row,
                teacher_.model != nullptr ? teacher_logits_.data() + i * vocabulary : nullptr,
                member, row_loss_[begin + i], row_correct_[begin + i]);
      if (gradients) round_head_row(compute_, model_.head_matrix(), row, member);
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

void TrainingPass::recompute(std::size_t layer, const GradientSink& sink) {
  const ModelConfig& config = model_.config;
  const LayerWeights& weights = model_.layers[layer];
  float* x = checkpoint(layer);
  if (!keeps_results_) {
    layer_forward(compute_, config, weights, rows_of_.segments, rope_, rows_, x, activations_,
                  nullptr);
    return;
  }
  const LayerView view(weights);
  LayerActivations& a = activations_;
  const Kept kept = kept_.kept();
  kept_.restore(compute_, layer, a, x);
  attention_norm(compute_, config, view, rows_, x, a);
  const LinearOutput queries = view.output(kQ, a.q.data());
  a.attention_in.prepare(compute_, rows_,
                         std::array{queries, view.output(kK, nullptr), view.output(kV, nullptr)},
                         !kept.queries);
  if (!kept.queries) {
    linear(compute_, a.attention_in, rows_, {&queries, 1});
    rope_.rotate(compute_, config, rows_, config.attention.heads, 1.0f, a.q.data());
  }
  if (!rounds_attention(compute_))  // else the backward has k and v in panels of its own
    for (const Segment& segment : rows_of_.segments)
      segment.cache->store(compute_, config.attention, segment.position, segment.count,
                           a.k.data() + segment.row * config.attention.kv_width(),
                           a.v.data() + segment.row * config.attention.kv_width());
  attention_output(compute_, config, view, rows_, x, a.middle.data(), a);
  if (kept.feed_forward) {
    a.feed_forward_in.prepare(
        compute_, rows_, std::array{view.output(kGate, nullptr), view.output(kUp, nullptr)}, false);
    const std::size_t down = layer * kLinearKinds.size() + kDown;
    swiglu(compute_, a.gate.data(), a.up.data(), rows_, config.feed_forward,
           a.feed_forward_out.values(), first_read(weights.down_proj, sink.of(down)));
  } else {
    feed_forward(compute_, config, view, rows_, a);
  }
  a.feed_forward_out.prepare(compute_, rows_, std::array{view.output(kDown, nullptr)}, false);
}

void TrainingPass::backward(const GradientSink& sink) {
  const LayerGradients gradients(model_.config, rows_, logits_.data());
  for (std::size_t layer = model_.layers.size(); layer-- > 0;) {
    const LayerWeights& weights = model_.layers[layer];
    if (layer + 1 < model_.layers.size()) recompute(layer, sink);
    layer_backward(compute_, model_.config, weights, layer, rows_of_.segments, rope_, rows_,
                   checkpoint(layer), checkpoint(layer + 1), activations_, gradients, sink,
                   dx_.data());
  }
}

Result<LossSum> TrainingPass::run(const TrainingBatch& batch, float weight,
                                  const GradientSink* sink) {
  for (const TokenId token : batch.tokens)
    if (token < 0 || token >= model_.config.vocabulary)
      return fail("token {} is not in the vocabulary of {}", token, model_.config.vocabulary);
  prepare(batch, sink);
  const StepState state(compute_, model_, sink);
  embed(compute_, model_, batch.tokens, checkpoint(0));
  const std::size_t layers = model_.layers.size();
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const float* x = checkpoint(layer);
    layer_forward(compute_, model_.config, model_.layers[layer], rows_of_.segments, rope_, rows_, x,
                  activations_, checkpoint(layer + 1));
    if (keeps_results_ && layer + 1 < layers) kept_.keep(compute_, layer, activations_, x);
  }
  if (teacher_.model != nullptr) run_teacher(batch);
  LossSum sum;
  head(batch, weight, sink != nullptr, checkpoint(layers), sum);
  if (!std::isfinite(sum.loss))
    return fail("the loss is not a finite number ({}); lower the learning rate or check the data",
                sum.loss);
  if (sink != nullptr && sum.count > 0) backward(*sink);
  return sum;
}

}  // namespace trimpot
