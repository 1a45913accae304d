#include "text/tokenizer.h"

#include <deque>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "text/unicode.h"
#include "text/vocabulary.h"

namespace trimpot {
namespace {

// Ids of the words that one call has met already: they are read from its own output, so the cache
// needs no lock and no memory of its own for them.
class WordCache {
 public:
  struct Entry {
    const char* word = nullptr;
    std::uint32_t length = 0;
    std::uint32_t count = 0;
    std::size_t offset = 0;  // into the output
  };

  // The entry of `word`, or an empty one to fill in (`word == nullptr`) with remember().
  Entry* find(std::string_view word) {
    if (2 * used_ >= entries_.size()) grow();
    std::size_t slot = XXH3_64bits(word.data(), word.size()) & (entries_.size() - 1);
    for (;; slot = (slot + 1) & (entries_.size() - 1)) {
      Entry& entry = entries_[slot];
      if (!entry.word || std::string_view(entry.word, entry.length) == word) return &entry;
    }
  }

  void remember(Entry* entry, std::string_view word, std::size_t offset, std::size_t count) {
    if (used_ == kMostWords) return;
    ++used_;
    *entry = {word.data(), static_cast<std::uint32_t>(word.size()),
              static_cast<std::uint32_t>(count), offset};
  }

 private:
  static constexpr std::size_t kMostWords = 1u << 17;  // 8 MB of entries

  void grow() {
    if (used_ == kMostWords && !entries_.empty()) return;
    std::vector<Entry> old(entries_.empty() ? 256 : entries_.size() * 2);
    old.swap(entries_);
    for (const Entry& entry : old)
      if (entry.word) *find({entry.word, entry.length}) = entry;
  }

  std::vector<Entry> entries_;
  std::size_t used_ = 0;
};

// One call of encode().
class Encoder {
 public:
  Encoder(const Tokenizer::Vocabulary& vocabulary, std::vector<TokenId>& ids)
      : vocabulary_(vocabulary), ids_(ids) {}

  // `text` holds no special token and lives until the end of the call.
  void encode_plain(std::string_view text) {
    if (vocabulary_.normalize) text = text::normalize_nfc(text, composed_.emplace_back());
    words_.clear();
    text::split_words(vocabulary_.pre_tokenizer, text, words_);
    for (const std::string_view word : words_) encode_word(word);
  }

 private:
  static constexpr std::size_t kLongestCached = 64;  // bytes; longer words hardly repeat

  void encode_word(std::string_view word) {
    if (word.size() == 1 || word.size() > kLongestCached) return merge(word);
    WordCache::Entry* entry = cache_.find(word);
    if (entry->word) {
      // By index: the output may move while it grows.
      for (std::size_t index = 0; index < entry->count; ++index)
        ids_.push_back(ids_[entry->offset + index]);
      return;
    }
    const std::size_t offset = ids_.size();
    merge(word);
    cache_.remember(entry, word, offset, ids_.size() - offset);
  }

  void merge(std::string_view word) {
    if (vocabulary_.ignore_merges) {
      if (const auto known = vocabulary_.ids_of_bytes.find(word);
          known != vocabulary_.ids_of_bytes.end()) {
        ids_.push_back(known->second);
        return;
      }
    }
    vocabulary_.merger->encode(word, ids_);
  }

  const Tokenizer::Vocabulary& vocabulary_;
  std::vector<TokenId>& ids_;
  std::deque<std::string> composed_;  // what the cached words point into
  std::vector<std::string_view> words_;
  WordCache cache_;
};

}  // namespace

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<TokenId> ids;
  if (options.add_special && vocabulary_->add_bos) ids.push_back(*vocabulary_->bos);
  const text::SpecialTokens& special =
      options.parse_special ? vocabulary_->all_special : vocabulary_->user_defined;
  Encoder encoder(*vocabulary_, ids);
  for (std::size_t position = 0; position < text.size();) {
    const text::SpecialTokens::Match match = special.find(text, position);
    if (match.begin > position) encoder.encode_plain(text.substr(position, match.begin - position));
    if (match.id != text::kNoToken) ids.push_back(match.id);
    position = match.end;
  }
  if (options.add_special && vocabulary_->add_eos) ids.push_back(*vocabulary_->eos);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string out;
  for (const TokenId id : ids)
    if (vocabulary_->contains(id) && !(skip_special && vocabulary_->is_special(id)))
      out.append(vocabulary_->bytes_of(id));
  return out;
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  return vocabulary_->contains(id) ? vocabulary_->bytes_of(id) : std::string_view();
}

std::string_view Tokenizer::token_text(TokenId id) const {
  return vocabulary_->contains(id) ? vocabulary_->text_of(id) : std::string_view();
}

std::optional<TokenId> Tokenizer::find(std::string_view token_text) const {
  const auto found = vocabulary_->ids.find(token_text);
  if (found == vocabulary_->ids.end()) return std::nullopt;
  return found->second;
}

std::size_t Tokenizer::vocabulary_size() const { return vocabulary_->size(); }
std::optional<TokenId> Tokenizer::bos() const { return vocabulary_->bos; }
std::optional<TokenId> Tokenizer::eos() const { return vocabulary_->eos; }
std::optional<TokenId> Tokenizer::eot() const { return vocabulary_->eot; }
std::optional<TokenId> Tokenizer::pad() const { return vocabulary_->pad; }
bool Tokenizer::adds_bos() const { return vocabulary_->add_bos; }
bool Tokenizer::adds_eos() const { return vocabulary_->add_eos; }

bool Tokenizer::is_control(TokenId id) const {
  return vocabulary_->contains(id) && vocabulary_->type_of(id) == TokenType::kControl;
}

bool Tokenizer::is_end_of_generation(TokenId id) const {
  return vocabulary_->contains(id) && vocabulary_->ends_generation[static_cast<std::size_t>(id)];
}

}  // namespace trimpot
