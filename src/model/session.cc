#include "model/session.h"

#include <algorithm>
#include <array>

namespace trimpot {
namespace {

// Rows by overlay, `rows_of` a turn each; none if no turn has one.
template <typename RowsOf>
std::vector<OverlayRun> overlay_runs(std::span<const Turn> turns, RowsOf&& rows_of) {
  std::vector<OverlayRun> runs;
  bool any = false;
  std::int64_t row = 0;
  for (const Turn& turn : turns) {
    const std::int64_t end = row + rows_of(turn);
    if (end == row) continue;
    any = any || turn.overlay != nullptr;
    if (!runs.empty() && runs.back().overlay == turn.overlay)
      runs.back().end = end;
    else
      runs.push_back({row, end, turn.overlay});
    row = end;
  }
  if (!any) runs.clear();
  return runs;
}

std::int64_t tokens_of(const Turn& turn) { return static_cast<std::int64_t>(turn.tokens.size()); }
std::int64_t logit_rows_of(const Turn& turn) { return turn.wants_logits ? 1 : 0; }

}  // namespace

Sequence::Sequence(const Compute& compute, const Model& model, std::int64_t context,
                   CacheType cache)
    : shape_(model.config.attention), context_(context), caches_(model.layers.size()) {
  for (KeyValues& key_values : caches_)
    key_values.allocate(compute, model.config.attention, context, cache, memory_.get());
}

void Sequence::copy_prefix(const Sequence& from, std::int64_t length) {
  for (std::size_t layer = 0; layer < caches_.size(); ++layer)
    caches_[layer].copy_prefix(shape_, from.caches_[layer], length);
  length_ = length;
}

Status Decoder::check(const Sequence& sequence, std::span<const TokenId> tokens) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (sequence.length_ + count > sequence.context_)
    return fail("{} tokens do not fit in the context: {} of {} are in use (-c sets its size)",
                count, sequence.length_, sequence.context_);
  for (const TokenId token : tokens)
    if (token < 0 || token >= model_.config.vocabulary)
      return fail("token {} is not in the vocabulary of {}", token, model_.config.vocabulary);
  return {};
}

Batch Decoder::batch_of(std::span<const Turn> turns) {
  tokens_.clear();
  Batch batch;
  for (const Turn& turn : turns) {
    batch.segments.push_back({static_cast<std::int64_t>(tokens_.size()), tokens_of(turn),
                              turn.sequence->length_, nullptr});
    tokens_.insert(tokens_.end(), turn.tokens.begin(), turn.tokens.end());
  }
  batch.tokens = tokens_;
  return batch;
}

LayerView Decoder::view(std::size_t layer, std::span<const OverlayRun> runs) {
  return runs.empty() ? LayerView(model_.layers[layer]) : layer_runs_.view(model_, layer, runs);
}

void Decoder::last_layer(const LayerView& all, std::span<const OverlayRun> runs, const Batch& batch,
                         std::span<const Turn> turns) {
  const ModelConfig& config = model_.config;
  const std::int64_t width = config.attention.q_width();
  attention_inputs(compute_, config, all, batch.segments, rope_,
                   static_cast<std::int64_t>(tokens_.size()), x_.data(), activations_);
  std::vector<Segment> last;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    if (!turns[i].wants_logits) continue;
    const Segment& segment = batch.segments[i];
    const auto row = static_cast<std::int64_t>(last.size());
    float* q = activations_.q.data();
    std::copy_n(q + (segment.row + segment.count - 1) * width, width, q + row * width);
    last.push_back({row, 1, segment.position + segment.count - 1, segment.cache});
  }
  if (last.empty()) return;
  const auto rows = static_cast<std::int64_t>(last.size());
  const LayerView layer = view(model_.layers.size() - 1, runs);
  attention(compute_, config.attention, last, activations_.q.data(),
            activations_.attention_out.values(), activations_.log_sum_exp.data());
  attention_output(compute_, config, layer, rows, last_.data(), last_.data(), activations_);
  feed_forward(compute_, config, layer, rows, activations_);
  feed_forward_output(compute_, layer, rows, last_.data(), activations_, last_.data(),
                      std::array{Upcoming{&model_.head_matrix()}});
}

Status Decoder::step(std::span<const Turn> turns, float* logits) {
  for (const Turn& turn : turns) TRIMPOT_TRY_VOID(check(*turn.sequence, turn.tokens));
  const ModelConfig& config = model_.config;
  Batch batch = batch_of(turns);
  const std::vector<OverlayRun> runs = overlay_runs(turns, tokens_of);
  const auto rows = static_cast<std::int64_t>(tokens_.size());
  in_bf16_ = compute_.bf16_prompts && runs.empty();
  bool scored = false;
  for (const Turn& turn : turns) {
    in_bf16_ = in_bf16_ && turn.tokens.size() >= kPromptTokens;
    scored = scored || turn.scored;
  }
  compute_.reading_bf16 = in_bf16_;
  activations_.allocate(config, rows);
  x_.reserve(static_cast<std::size_t>(rows * config.hidden));
  last_.reserve(turns.size() * static_cast<std::size_t>(config.hidden));
  rope_.fill(model_, batch);
  embed(compute_, model_, batch.tokens, x_.data());
  const auto take_last = [&] {
    float* to = last_.data();
    for (std::size_t i = 0; i < turns.size(); ++i)
      if (turns[i].wants_logits)
        to = std::copy_n(
            x_.data() + (batch.segments[i].row + batch.segments[i].count - 1) * config.hidden,
            config.hidden, to);
  };
  std::vector<Upcoming> next;
  const std::size_t layers = model_.layers.size(), whole = scored ? layers : layers - 1;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    for (std::size_t i = 0; i < turns.size(); ++i)
      batch.segments[i].cache = &turns[i].sequence->caches_[layer];
    if (layer == whole) {
      take_last();
      last_layer(view(layer, runs), overlay_runs(turns, logit_rows_of), batch, turns);
      break;
    }
    next.clear();
    if (layer + 1 < layers)
      for (const LinearIndex kind : {kQ, kK, kV})
        next.push_back(LayerView(model_.layers[layer + 1]).upcoming(kind));
    else
      next.push_back({&model_.head_matrix()});
    layer_forward(compute_, config, view(layer, runs), batch.segments, rope_, rows, x_.data(),
                  activations_, x_.data(), next);
  }
  if (scored) take_last();
  std::int64_t wanted = 0;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    turns[i].sequence->length_ += batch.segments[i].count;
    wanted += logit_rows_of(turns[i]);
  }
  compute_.reading_bf16 = false;  // the last rows are few: their logits as when they are generated
  if (wanted > 0) head_.forward(compute_, model_, wanted, last_.data(), logits);
  return {};
}

void Decoder::logits_of(std::int64_t begin, std::int64_t count, float* logits) {
  compute_.reading_bf16 = in_bf16_;
  head_.forward(compute_, model_, count, x_.data() + begin * model_.config.hidden, logits);
  compute_.reading_bf16 = false;
}

Status Session::append(std::span<const TokenId> tokens, float* last_logits) {
  TRIMPOT_TRY_VOID(decoder_.check(sequence_, tokens));
  while (!tokens.empty()) {
    const std::size_t rows = std::min(tokens.size(), kRows);
    const Turn turn{&sequence_, tokens.first(rows),
                    rows == tokens.size() && last_logits != nullptr};
    TRIMPOT_TRY_VOID(decoder_.step({&turn, 1}, last_logits));
    tokens = tokens.subspan(rows);
  }
  return {};
}

Status Session::append_all(
    std::span<const TokenId> tokens, std::int64_t first_row,
    const std::function<void(std::int64_t row, const float* logits)>& visit) {
  TRIMPOT_TRY_VOID(decoder_.check(sequence_, tokens));
  const std::int64_t vocabulary = model_.config.vocabulary;
  constexpr std::int64_t kLogitRows = 48;  // 9 MB of logits for 49,152 tokens
  std::int64_t done = 0;
  while (!tokens.empty()) {
    const std::size_t rows = std::min(tokens.size(), kRows);
    const Turn turn{.sequence = &sequence_,
                    .tokens = tokens.first(rows),
                    .wants_logits = false,
                    .scored = true};
    TRIMPOT_TRY_VOID(decoder_.step({&turn, 1}, nullptr));
    tokens = tokens.subspan(rows);
    logits_.reserve(static_cast<std::size_t>(kLogitRows * vocabulary));
    const auto end = static_cast<std::int64_t>(rows);
    for (std::int64_t row = std::max<std::int64_t>(0, first_row - done); row < end;
         row += kLogitRows) {
      const std::int64_t count = std::min(kLogitRows, end - row);
      decoder_.logits_of(row, count, logits_.data());
      for (std::int64_t i = 0; i < count; ++i)
        visit(done + row + i, logits_.data() + i * vocabulary);
    }
    done += end;
  }
  return {};
}

}  // namespace trimpot
