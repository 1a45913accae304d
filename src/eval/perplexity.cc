#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/session.h"

namespace trimpot {
namespace {

PerplexityResult summarize(double sum, double squares, std::int64_t tokens, std::int64_t chunks) {
  PerplexityResult result;
  const auto count = static_cast<double>(tokens);
  const double mean = sum / count;
  result.perplexity = std::exp(mean);
  const double variance = squares / count - mean * mean;
  if (variance > 0 && tokens > 1)
    result.error = std::sqrt(variance / (count - 1)) * result.perplexity;
  result.tokens = tokens;
  result.chunks = chunks;
  return result;
}

}  // namespace

Result<PerplexityResult> perplexity(
    Compute& compute, const Model& model, std::span<const TokenId> tokens,
    const PerplexityOptions& options,
    const std::function<void(const PerplexityResult&, std::int64_t total_chunks)>& progress) {
  const std::int64_t window = options.context;
  if (window < 4) return fail("a window of {} tokens is too short; use -c 512 or so", window);
  if (window > model.config.context_length)
    return fail("windows of {} tokens exceed the model's context of {}; use -c {}", window,
                model.config.context_length, model.config.context_length);
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t least = options.score_all ? window : 2 * window;
  if (count < least)
    return fail(
        "the text has {} tokens, but windows of {} need at least {}; use a longer text or "
        "a smaller -c",
        count, window, least);
  std::int64_t total = count / window;
  if (options.chunks > 0) total = std::min(total, options.chunks);
  const std::int64_t first = options.score_all ? 0 : window / 2;
  double sum = 0, squares = 0;
  std::int64_t scored = 0;
  PerplexityResult result;
  Session session(compute, model, window, options.cache);
  std::vector<double> losses(static_cast<std::size_t>(window));
  for (std::int64_t chunk = 0; chunk < total; ++chunk) {
    std::vector<TokenId> part(tokens.begin() + chunk * window,
                              tokens.begin() + (chunk + 1) * window);
    const std::vector<TokenId> labels = part;
    if (options.bos >= 0) part[0] = options.bos;
    session.truncate(0);
    // The last token predicts what lies outside the window.
    part.pop_back();
    TRIMPOT_TRY_VOID(session.append_all(part, first, [&](std::int64_t row, const float* logits) {
      const auto label = static_cast<std::size_t>(labels[static_cast<std::size_t>(row) + 1]);
      const float lse = compute.kernels.log_sum_exp(logits, model.config.vocabulary);
      losses[static_cast<std::size_t>(row)] =
          static_cast<double>(lse) - static_cast<double>(logits[label]);
    }));
    for (std::int64_t row = first; row + 1 < window; ++row) {
      sum += losses[static_cast<std::size_t>(row)];
      squares += losses[static_cast<std::size_t>(row)] * losses[static_cast<std::size_t>(row)];
    }
    scored += window - 1 - first;
    if (!std::isfinite(sum))
      return fail("window {}: the model's predictions are not finite numbers", chunk + 1);
    result = summarize(sum, squares, scored, chunk + 1);
    if (progress) progress(result, total);
  }
  return result;
}

}  // namespace trimpot
