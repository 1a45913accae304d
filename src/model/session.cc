#include "model/session.h"

#include <algorithm>
#include <cstring>

namespace trimpot {

Session::Session(Compute& compute, const Model& model, std::int64_t context)
    : compute_(compute), model_(model), context_(context), caches_(model.layers.size()) {
  for (KeyValues& cache : caches_) cache.allocate(compute, model.config.attention, context);
}

Status Session::check(std::span<const TokenId> tokens) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (length_ + count > context_)
    return fail("{} tokens do not fit in the context: {} of {} are in use (-c sets its size)",
                count, length_, context_);
  for (const TokenId token : tokens)
    if (token < 0 || token >= model_.config.vocabulary)
      return fail("token {} is not in the vocabulary of {}", token, model_.config.vocabulary);
  return {};
}

void Session::forward(std::span<const TokenId> tokens) {
  const auto rows = static_cast<std::int64_t>(tokens.size());
  const ModelConfig& config = model_.config;
  activations_.allocate(config, rows);
  x_.reserve(rows * config.hidden);
  Batch batch{tokens, {{0, rows, length_, nullptr}}};
  rope_.fill(model_, batch);
  embed(compute_, model_, tokens, x_.data());
  for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
    batch.segments[0].cache = &caches_[layer];
    layer_forward(compute_, config, model_.layers[layer], batch.segments, rope_, rows, x_.data(),
                  activations_, x_.data());
  }
  length_ += rows;
}

Status Session::append(std::span<const TokenId> tokens, float* last_logits) {
  TRIMPOT_TRY_VOID(check(tokens));
  while (!tokens.empty()) {
    const std::size_t rows = std::min<std::size_t>(tokens.size(), kRows);
    forward(tokens.first(rows));
    tokens = tokens.subspan(rows);
    if (tokens.empty() && last_logits != nullptr)
      head_.forward(compute_, model_, 1,
                    x_.data() + static_cast<std::int64_t>(rows - 1) * model_.config.hidden,
                    last_logits);
  }
  return {};
}

Status Session::append_all(
    std::span<const TokenId> tokens, std::int64_t first_row,
    const std::function<void(std::int64_t row, const float* logits)>& visit) {
  TRIMPOT_TRY_VOID(check(tokens));
  const std::int64_t vocabulary = model_.config.vocabulary;
  constexpr std::int64_t kLogitRows = 48;  // 9 MB of logits for 49,152 tokens
  std::int64_t done = 0;
  while (!tokens.empty()) {
    const auto rows = static_cast<std::int64_t>(std::min<std::size_t>(tokens.size(), kRows));
    forward(tokens.first(static_cast<std::size_t>(rows)));
    tokens = tokens.subspan(static_cast<std::size_t>(rows));
    logits_.reserve(kLogitRows * vocabulary);
    for (std::int64_t row = std::max<std::int64_t>(0, first_row - done); row < rows;
         row += kLogitRows) {
      const std::int64_t count = std::min(kLogitRows, rows - row);
      head_.forward(compute_, model_, count, x_.data() + row * model_.config.hidden,
                    logits_.data());
      for (std::int64_t i = 0; i < count; ++i)
        visit(done + row + i, logits_.data() + i * vocabulary);
    }
    done += rows;
  }
  return {};
}

}  // namespace trimpot
