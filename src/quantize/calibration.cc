#include "quantize/calibration.h"

#include <algorithm>

namespace trimpot {
namespace {

constexpr std::int64_t kPanel = 32;    // columns of the Hessian computed at a time
constexpr std::int64_t kTokens = 128;  // rows of x that stay in the first-level cache as a panel

}  // namespace

InputStatistics::InputStatistics(std::int64_t columns, bool whole)
    : columns_(columns), squares_(static_cast<std::size_t>(columns)) {
  if (whole) hessian_.resize(static_cast<std::size_t>(columns * columns));
}

void InputStatistics::add(Compute& compute, const float* x, std::int64_t tokens) {
  tokens_ += tokens;
  if (!whole()) {
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t j = 0; j < columns_; ++j) {
        const auto value = static_cast<double>(x[t * columns_ + j]);
        squares_[static_cast<std::size_t>(j)] += value * value;
      }
    return;
  }
  // Panels of columns of x^T x, rows only down to the diagonal's block: the rest is symmetric.
  const std::int64_t panels = (columns_ + kPanel - 1) / kPanel;
  compute.team.for_each(panels, 1, [&](std::int64_t i, std::int64_t, int) {
    const std::int64_t column = (panels - 1 - i) * kPanel;  // the longest first
    const std::int64_t count = std::min(kPanel, columns_ - column);
    for (std::int64_t t = 0; t < tokens; t += kTokens)
      compute.kernels.multiply(
          {x + t * columns_, 1, columns_}, {x + t * columns_ + column, Storage::kF32, 16, columns_},
          std::min(column + kPanel, columns_), count, std::min(kTokens, tokens - t),
          hessian_.data() + column, columns_, true);
  });
}

std::vector<double> InputStatistics::diagonal() const {
  std::vector<double> diagonal = squares_;
  const double factor = 2.0 / static_cast<double>(std::max<std::int64_t>(1, tokens_));
  for (std::int64_t j = 0; j < columns_; ++j) {
    double& value = diagonal[static_cast<std::size_t>(j)];
    if (whole()) value = static_cast<double>(hessian_[j * columns_ + j]);
    value *= factor;
  }
  return diagonal;
}

std::vector<float> InputStatistics::hessian(std::span<const std::int32_t> order) const {
  const auto count = static_cast<std::int64_t>(order.size());
  const float factor = 2.0f / static_cast<float>(std::max<std::int64_t>(1, tokens_));
  std::vector<float> out(static_cast<std::size_t>(count * count));
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      const std::int64_t a = order[static_cast<std::size_t>(i)];
      const std::int64_t b = order[static_cast<std::size_t>(j)];
      out[static_cast<std::size_t>(i * count + j)] =
          hessian_[std::min(a, b) * columns_ + std::max(a, b)] * factor;
    }
  return out;
}

LayerInput input_of(std::size_t kind) {
  switch (kind) {
    case kO:
      return LayerInput::kAttentionOut;
    case kGate:
    case kUp:
      return LayerInput::kFeedForward;
    case kDown:
      return LayerInput::kFeedForwardOut;
    default:
      return LayerInput::kAttention;
  }
}

std::int64_t input_width(const ModelConfig& config, LayerInput input) {
  return input == LayerInput::kAttentionOut     ? config.attention.q_width()
         : input == LayerInput::kFeedForwardOut ? config.feed_forward
                                                : config.hidden;
}

Result<CalibrationRun> CalibrationRun::start(Compute& compute, const Model& model,
                                             std::span<const std::vector<TokenId>> windows,
                                             const std::string& folder) {
  if (windows.empty() || windows[0].empty()) return fail("there is no calibration text");
  TRIMPOT_TRY(ScratchFile file, ScratchFile::create(folder));
  CalibrationRun run(compute, model, std::move(file));
  const std::int64_t hidden = model.config.hidden;
  run.samples_ = windows.size();
  run.tokens_ = static_cast<std::int64_t>(windows[0].size());
  run.x_.reserve(run.tokens_ * hidden);
  std::vector<float> row(static_cast<std::size_t>(hidden));
  for (std::size_t sample = 0; sample < windows.size(); ++sample) {
    for (std::size_t t = 0; t < windows[sample].size(); ++t) {
      const TokenId token = windows[sample][t];
      if (token < 0 || token >= model.config.vocabulary)
        return fail("token {} is not in the vocabulary of {}", token, model.config.vocabulary);
      float* to = run.x_.data() + static_cast<std::int64_t>(t) * hidden;
      model.embedding.dequantize_row(token, to);
      if (!model.residual_order || model.embedding_order) continue;
      // A dense embedding that was reordered with the rest.
      std::copy_n(to, hidden, row.data());
      for (std::int64_t i = 0; i < hidden; ++i)
        to[(*model.residual_order)[static_cast<std::size_t>(i)]] = row[static_cast<std::size_t>(i)];
    }
    TRIMPOT_TRY_VOID(run.keep(sample, kHidden, run.x_.data()));
  }
  run.cache_.resize(1);
  run.cache_[0].allocate(compute, model.config.attention, run.tokens_);
  run.batch_.tokens = windows[0];
  run.batch_.segments = {{0, run.tokens_, 0, &run.cache_[0]}};
  run.rope_.fill(model, run.batch_);
  run.activations_.allocate(model.config, run.tokens_);
  return run;
}

std::int64_t CalibrationRun::width(Place place) const {
  return place == kHidden         ? model_.config.hidden
         : place == kAttentionOut ? model_.config.attention.q_width()
                                  : model_.config.feed_forward;
}

std::size_t CalibrationRun::offset(std::size_t sample, Place place) const {
  std::int64_t before = 0, all = 0;
  for (const Place other : {kHidden, kAttentionOut, kFeedForwardOut}) {
    if (other < place) before += width(other);
    all += width(other);
  }
  return (sample * static_cast<std::size_t>(all) + static_cast<std::size_t>(before)) *
         static_cast<std::size_t>(tokens_) * sizeof(float);
}

Status CalibrationRun::keep(std::size_t sample, Place place, const float* values) {
  const auto count = static_cast<std::size_t>(tokens_ * width(place));
  return file_.write(offset(sample, place), std::as_bytes(std::span(values, count)));
}

Status CalibrationRun::fetch(std::size_t sample, Place place, float* values) const {
  const auto count = static_cast<std::size_t>(tokens_ * width(place));
  return file_.read(offset(sample, place), std::as_writable_bytes(std::span(values, count)));
}

Status CalibrationRun::see(const LayerWeights& weights, LayerInput input, const Seen& seen) {
  const ModelConfig& config = model_.config;
  LayerActivations& a = activations_;
  batch_.segments[0].cache = &cache_[0];
  for (std::size_t sample = 0; sample < samples_; ++sample) {
    TRIMPOT_TRY_VOID(fetch(sample, kHidden, x_.data()));
    const float* values = nullptr;
    switch (input) {
      case LayerInput::kAttention:
        rms_norm(compute_, x_.data(), weights.attention_norm.data(), tokens_, config.hidden,
                 config.rms_eps, a.attention_in.values(), nullptr);
        values = a.attention_in.values();
        break;
      case LayerInput::kAttentionOut:
        attention_forward(compute_, config, weights, batch_.segments, rope_, tokens_, x_.data(), a);
        values = a.attention_out.values();
        TRIMPOT_TRY_VOID(keep(sample, kAttentionOut, values));
        break;
      case LayerInput::kFeedForward:
        TRIMPOT_TRY_VOID(fetch(sample, kAttentionOut, a.attention_out.values()));
        attention_output(compute_, config, weights, tokens_, x_.data(), a.middle.data(), a);
        values = a.feed_forward_in.values();
        TRIMPOT_TRY_VOID(keep(sample, kHidden, a.middle.data()));
        break;
      case LayerInput::kFeedForwardOut:
        rms_norm(compute_, x_.data(), weights.feed_forward_norm.data(), tokens_, config.hidden,
                 config.rms_eps, a.feed_forward_in.values(), nullptr);
        feed_forward(compute_, config, weights, tokens_, a);
        values = a.feed_forward_out.values();
        TRIMPOT_TRY_VOID(keep(sample, kFeedForwardOut, values));
        break;
    }
    if (seen) seen(values, tokens_);
  }
  return {};
}

Status CalibrationRun::advance(const LayerWeights& weights) {
  for (std::size_t sample = 0; sample < samples_; ++sample) {
    TRIMPOT_TRY_VOID(fetch(sample, kHidden, activations_.middle.data()));
    TRIMPOT_TRY_VOID(fetch(sample, kFeedForwardOut, activations_.feed_forward_out.values()));
    feed_forward_output(compute_, weights, tokens_, activations_.middle.data(), activations_,
                        x_.data());
    TRIMPOT_TRY_VOID(keep(sample, kHidden, x_.data()));
  }
  return {};
}

}  // namespace trimpot
