#include "quantize/calibration.h"

#include <algorithm>

namespace trimpot {
namespace {

constexpr std::int64_t kPanel = 32;   // columns of the Hessian computed at a time
constexpr std::int64_t kTokens = 128; // rows of x that stay in the first-level cache as a panel

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
      compute.kernels.multiply({x + t * columns_, 1, columns_},
                               {x + t * columns_ + column, Storage::kF32, 16, columns_},
                               std::min(column + kPanel, columns_), count,
                               std::min(kTokens, tokens - t), hessian_.data() + column, columns_,
                               true);
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

LayerStatistics::LayerStatistics(const ModelConfig& config, bool whole)
    : attention_in(config.hidden, whole),
      attention_out(config.attention.q_width(), whole),
      feed_forward_in(config.hidden, whole),
      feed_forward_out(config.feed_forward, whole) {}

void LayerStatistics::add(Compute& compute, const LayerActivations& a, std::int64_t tokens) {
  attention_in.add(compute, a.attention_in.values(), tokens);
  attention_out.add(compute, a.attention_out.values(), tokens);
  feed_forward_in.add(compute, a.feed_forward_in.values(), tokens);
  feed_forward_out.add(compute, a.feed_forward_out.values(), tokens);
}

const InputStatistics& LayerStatistics::of(std::size_t kind) const {
  switch (kind) {
    case kO:
      return attention_out;
    case kGate:
    case kUp:
      return feed_forward_in;
    case kDown:
      return feed_forward_out;
    default:
      return attention_in;
  }
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
  const std::size_t bytes = static_cast<std::size_t>(run.tokens_ * hidden) * sizeof(float);
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
    TRIMPOT_TRY_VOID(run.file_.write(sample * bytes, std::as_bytes(std::span(run.x_.data(),
                                     static_cast<std::size_t>(run.tokens_ * hidden)))));
  }
  run.cache_.resize(1);
  run.cache_[0].allocate(compute, model.config.attention, run.tokens_);
  run.batch_.tokens = windows[0];
  run.batch_.segments = {{0, run.tokens_, 0, &run.cache_[0]}};
  run.rope_.fill(model, run.batch_);
  run.activations_.allocate(model.config, run.tokens_);
  return run;
}

Status CalibrationRun::run(
    const LayerWeights& weights, bool advance,
    const std::function<void(const LayerActivations&, std::int64_t tokens)>& seen) {
  batch_.segments[0].cache = &cache_[0];
  const auto count = static_cast<std::size_t>(tokens_ * model_.config.hidden);
  const std::span<float> x(x_.data(), count);
  for (std::size_t sample = 0; sample < samples_; ++sample) {
    TRIMPOT_TRY_VOID(file_.read(sample * count * sizeof(float), std::as_writable_bytes(x)));
    layer_forward(compute_, model_.config, weights, batch_.segments, rope_, tokens_, x_.data(),
                  activations_, advance ? x_.data() : nullptr);
    if (seen) seen(activations_, tokens_);
    if (advance)
      TRIMPOT_TRY_VOID(
          file_.write(sample * count * sizeof(float), std::as_bytes(std::span(x_.data(), count))));
  }
  return {};
}

}  // namespace trimpot
