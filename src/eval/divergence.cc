#include "eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/sampler.h"

namespace trimpot {
namespace {

constexpr std::int64_t kPairedLogitRows = 32;  // of two models, 6 MB each for 49,152 tokens

// sum_i p_i (log p_i - log q_i), with p of the teacher's logits and q of the model's. Of two equal
// distributions rounding would leave a little below zero.
double kl(const float* teacher, double teacher_sum, const float* model, double model_sum,
          std::int64_t vocabulary) {
  double sum = 0;
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    const double log_p = static_cast<double>(teacher[i]) - teacher_sum;
    if (log_p < -40) continue;  // at most 4e-18 of probability
    const double log_q = static_cast<double>(model[i]) - model_sum;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum < 0 ? 0 : sum;  // NaN stays
}

// In f64: differences of two nearly equal models are near f32's rounding.
double log_sum_exp(const float* logits, std::int64_t vocabulary) {
  const double highest = *std::max_element(logits, logits + vocabulary);
  double sum = 0;
  for (std::int64_t i = 0; i < vocabulary; ++i)
    sum += std::exp(static_cast<double>(logits[i]) - highest);
  return highest + std::log(sum);
}

double percentile(const std::vector<double>& sorted, double part) {
  const double at = part * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

struct Values {
  std::vector<double> kl, same_top, loss, teacher_loss;  // one per prediction
  void resize(std::size_t count) {
    for (auto* list : {&kl, &same_top, &loss, &teacher_loss}) list->resize(count);
  }
};

class WindowPair {
 public:
  WindowPair(Compute& compute, const Model& model, const Model& teacher, std::int64_t window)
      : compute_(compute),
        vocabulary_(model.config.vocabulary),
        sequences_{Sequence(compute, model, window), Sequence(compute, teacher, window)},
        decoders_{Decoder(compute, model), Decoder(compute, teacher)} {
    for (auto& logits : logits_)
      logits.reserve(static_cast<std::size_t>(kPairedLogitRows * vocabulary_));
  }

  // Predictions of tokens [first + 1, labels.size()).
  Status read(std::span<const TokenId> tokens, std::span<const TokenId> labels, std::int64_t first,
              Values& values) {
    for (std::size_t i = 0; i < 2; ++i) {
      sequences_[i].truncate(0);
      const Turn turn{
          .sequence = &sequences_[i], .tokens = tokens, .wants_logits = false, .scored = true};
      TRIMPOT_TRY_VOID(decoders_[i].step({&turn, 1}, nullptr));
    }
    const auto rows = static_cast<std::int64_t>(tokens.size());
    for (std::int64_t row = first; row < rows; row += kPairedLogitRows) {
      const std::int64_t count = std::min(kPairedLogitRows, rows - row);
      for (std::size_t i = 0; i < 2; ++i) decoders_[i].logits_of(row, count, logits_[i].data());
      const std::size_t done = values.kl.size();
      values.resize(done + static_cast<std::size_t>(count));
      compute_.team.for_each(count, 1, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i)
          compare(i, labels[static_cast<std::size_t>(row + i) + 1],
                  done + static_cast<std::size_t>(i), values);
      });
    }
    return {};
  }

 private:
  void compare(std::int64_t row, TokenId label, std::size_t to, Values& values) const {
    const float* model = logits_[0].data() + row * vocabulary_;
    const float* teacher = logits_[1].data() + row * vocabulary_;
    const double model_sum = log_sum_exp(model, vocabulary_);
    const double teacher_sum = log_sum_exp(teacher, vocabulary_);
    const auto size = static_cast<std::size_t>(vocabulary_);
    values.kl[to] = kl(teacher, teacher_sum, model, model_sum, vocabulary_);
    values.same_top[to] = greedy({model, size}) == greedy({teacher, size});
    values.loss[to] = model_sum - static_cast<double>(model[label]);
    values.teacher_loss[to] = teacher_sum - static_cast<double>(teacher[label]);
  }

  Compute& compute_;
  std::int64_t vocabulary_;
  Sequence sequences_[2];  // of the model, of the teacher
  Decoder decoders_[2];
  AlignedBuffer<float> logits_[2];
};

}  // namespace

Result<DivergenceResult> divergence(
    Compute& compute, const Model& model, const Model& teacher, std::span<const TokenId> tokens,
    const DivergenceOptions& options,
    const std::function<void(std::int64_t done, std::int64_t total, double mean)>& progress) {
  const std::int64_t window = options.context;
  const std::int64_t most = std::min(model.config.context_length, teacher.config.context_length);
  if (model.config.vocabulary != teacher.config.vocabulary)
    return fail(
        "the model has a vocabulary of {} tokens, the teacher of {}: their predictions do "
        "not compare",
        model.config.vocabulary, teacher.config.vocabulary);
  if (window < 4) return fail("a window of {} tokens is too short; use -c 512 or so", window);
  if (window > most)
    return fail("windows of {} tokens exceed a model's context of {}; use -c {}", window, most,
                most);
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count < window)
    return fail(
        "the text has {} tokens, fewer than a window of {}; use a longer text or a smaller "
        "-c",
        count, window);
  std::int64_t total = count / window;
  if (options.chunks > 0) total = std::min(total, options.chunks);
  WindowPair pair(compute, model, teacher, window);
  Values values;
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < total; ++chunk) {
    const std::vector<TokenId> labels(tokens.begin() + chunk * window,
                                      tokens.begin() + (chunk + 1) * window);
    // The last token predicts what lies outside the window.
    std::vector<TokenId> part(labels.begin(), labels.end() - 1);
    if (options.bos >= 0) part[0] = options.bos;
    const std::size_t before = values.kl.size();
    TRIMPOT_TRY_VOID(pair.read(part, labels, window / 2, values));
    for (std::size_t i = before; i < values.kl.size(); ++i) sum += values.kl[i];
    if (!std::isfinite(sum))
      return fail("window {}: a model's predictions are not finite numbers", chunk + 1);
    if (progress) progress(chunk + 1, total, sum / static_cast<double>(values.kl.size()));
  }
  DivergenceResult result;
  result.mean = mean_metric("kl", values.kl);
  result.same_top = mean_metric("same_top", values.same_top);
  result.log_perplexity = mean_metric("log_perplexity", values.loss);
  result.teacher_log_perplexity = mean_metric("teacher_log_perplexity", values.teacher_loss);
  result.tokens = static_cast<std::int64_t>(values.kl.size());
  result.chunks = total;
  std::sort(values.kl.begin(), values.kl.end());
  result.median = percentile(values.kl, 0.5);
  result.percentile_90 = percentile(values.kl, 0.9);
  result.percentile_99 = percentile(values.kl, 0.99);
  result.largest = values.kl.back();
  return result;
}

}  // namespace trimpot
