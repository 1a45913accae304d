#include "eval/generate.h"

#include <algorithm>
#include <memory>

#include "model/sampler.h"

namespace trimpot {
namespace {

using Prompt = std::vector<TokenId>;

// One of the sequences that are decoded together.
struct Place {
  std::unique_ptr<Sequence> sequence;
  std::size_t prompt = 0;
  std::vector<TokenId> next;  // what the next step reads; empty: the place is free
  std::int64_t tokens = 0;    // of the answer
  std::string text;
};

class Generator {
 public:
  Generator(Compute& compute, const Model& model, const Tokenizer& tokenizer,
            std::span<const Prompt> prompts, const GenerateOptions& options)
      : compute_(compute),
        model_(model),
        tokenizer_(tokenizer),
        prompts_(prompts),
        options_(options),
        decoder_(compute, model),
        texts_(prompts.size()) {
    for (const std::string& stop : options.stops)
      longest_stop_ = std::max(longest_stop_, stop.size());
  }

  Result<std::vector<std::string>> run(const std::function<void(std::int64_t done)>& progress) {
    TRIMPOT_TRY_VOID(prepare());
    std::int64_t done = 0;
    while (done < static_cast<std::int64_t>(prompts_.size())) {
      const std::int64_t before = done;
      TRIMPOT_TRY_VOID(step(done));
      if (done > before && progress) progress(done);
    }
    return std::move(texts_);
  }

 private:
  Status prepare() {
    std::int64_t longest = 0;
    root_length_ = prompts_.size() > 1 ? static_cast<std::int64_t>(prompts_[0].size()) - 1 : 0;
    for (std::size_t i = 0; i < prompts_.size(); ++i) {
      const auto size = static_cast<std::int64_t>(prompts_[i].size());
      if (size >= model_.config.context_length)
        return fail(
            "prompt {}: {} tokens leave no room for an answer in the model's context of "
            "{}; use fewer examples",
            i + 1, size, model_.config.context_length);
      longest = std::max(longest, size);
      std::int64_t same = 0;
      while (same < std::min(root_length_, size - 1) &&
             prompts_[i][static_cast<std::size_t>(same)] ==
                 prompts_[0][static_cast<std::size_t>(same)])
        ++same;
      root_length_ = same;
    }
    const std::int64_t context =
        std::min(longest + options_.max_tokens, model_.config.context_length);
    places_.resize(std::min(options_.together, prompts_.size()));
    for (Place& place : places_)
      place.sequence = std::make_unique<Sequence>(compute_, model_, context);
    logits_.reserve(places_.size() * static_cast<std::size_t>(model_.config.vocabulary));
    if (root_length_ == 0) return {};
    root_ = std::make_unique<Sequence>(compute_, model_, root_length_);
    return read(*root_, std::span(prompts_[0]).first(static_cast<std::size_t>(root_length_)));
  }

  // Long prompts go in by pieces, so that buffers stay small.
  Status read(Sequence& sequence, std::span<const TokenId> tokens) {
    while (!tokens.empty()) {
      const Turn turn{&sequence, tokens.first(std::min<std::size_t>(512, tokens.size())), false};
      TRIMPOT_TRY_VOID(decoder_.step({&turn, 1}, nullptr));
      tokens = tokens.subspan(turn.tokens.size());
    }
    return {};
  }

  Status begin(Place& place) {
    place.prompt = next_prompt_++;
    place.sequence->truncate(0);
    if (root_) place.sequence->copy_prefix(*root_, root_length_);
    const auto tokens =
        std::span(prompts_[place.prompt]).subspan(static_cast<std::size_t>(root_length_));
    TRIMPOT_TRY_VOID(read(*place.sequence, tokens.first(tokens.size() - 1)));
    place.next = {tokens.back()};
    place.tokens = 0;
    place.text.clear();
    return {};
  }

  Status step(std::int64_t& done) {
    std::vector<Turn> turns;
    std::vector<Place*> active;
    for (Place& place : places_) {
      if (place.next.empty() && next_prompt_ < prompts_.size()) TRIMPOT_TRY_VOID(begin(place));
      if (place.next.empty()) continue;
      turns.push_back({place.sequence.get(), place.next});
      active.push_back(&place);
    }
    TRIMPOT_TRY_VOID(decoder_.step(turns, logits_.data()));
    for (std::size_t i = 0; i < active.size(); ++i) {
      const auto vocabulary = static_cast<std::size_t>(model_.config.vocabulary);
      const TokenId token =
          greedy(std::span(logits_.data() + i * vocabulary, tokenizer_.vocabulary_size()));
      if (accept(*active[i], token)) continue;
      texts_[active[i]->prompt] = std::move(active[i]->text);
      active[i]->next.clear();
      ++done;
    }
    return {};
  }

  // Returns false where the text has ended.
  bool accept(Place& place, TokenId token) const {
    if (tokenizer_.is_end_of_generation(token)) return false;
    const std::size_t searched = place.text.size() - std::min(place.text.size(), longest_stop_);
    place.text += tokenizer_.token_bytes(token);
    ++place.tokens;
    std::size_t end = std::string::npos;
    for (const std::string& stop : options_.stops)
      end = std::min(end, place.text.find(stop, searched));
    if (end != std::string::npos) {
      place.text.resize(end);
      return false;
    }
    place.next = {token};
    return place.tokens < options_.max_tokens &&
           place.sequence->length() < place.sequence->context();
  }

  Compute& compute_;
  const Model& model_;
  const Tokenizer& tokenizer_;
  std::span<const Prompt> prompts_;
  const GenerateOptions& options_;
  Decoder decoder_;
  std::vector<std::string> texts_;
  std::vector<Place> places_;
  std::unique_ptr<Sequence> root_;
  std::int64_t root_length_ = 0;
  std::size_t next_prompt_ = 0;
  std::size_t longest_stop_ = 0;
  AlignedBuffer<float> logits_;
};

}  // namespace

Result<std::vector<std::string>> generate_texts(
    Compute& compute, const Model& model, const Tokenizer& tokenizer,
    std::span<const std::vector<TokenId>> prompts, const GenerateOptions& options,
    const std::function<void(std::int64_t done)>& progress) {
  return Generator(compute, model, tokenizer, prompts, options).run(progress);
}

}  // namespace trimpot
