// Tokenizer::from_gguf: reads and checks the tokenizer keys of a GGUF file.
#include <limits>

#include "io/printable.h"
#include "text/unicode.h"
#include "text/vocabulary.h"

namespace trimpot {
namespace {

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";
constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";
constexpr std::string_view kPreKey = "tokenizer.ggml.pre";

// Ends of a turn by their text, the likeliest first (llama.cpp's list).
constexpr std::string_view kTurnEnds[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    "<end_of_utterance>",
};
// Further tokens after which nothing sensible follows.
constexpr std::string_view kOtherEnds[] = {
    "<|return|>",   "<|call|>",      "<|eom_id|>", "[EOS]",      "<eos>",
    "<|fim_pad|>",  "<fim-pad>",     "<fim_pad>",  "<PAD>",      "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>", "<|file_sep|>",
};

// GPT-2's printable stand-ins for bytes: a byte that is printable in Latin-1 stands for itself, the
// others are U+0100, U+0101, ... in order.
std::array<char32_t, 256> byte_stand_ins() {
  std::array<char32_t, 256> table;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable_byte = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    table[byte] = printable_byte ? byte : next++;
  }
  return table;
}

constexpr char32_t kStandIns = 0x144;  // the highest stand-in is U+0143

// The bytes behind a token of ordinary text; nothing if it is not spelled in stand-ins.
std::optional<std::string> bytes_behind(std::string_view text,
                                        const std::array<int, kStandIns>& byte_of) {
  std::string bytes;
  for (std::size_t position = 0; position < text.size();) {
    const text::CodePoint code_point = text::decode_utf8(text, position);
    if (!code_point.valid || code_point.value >= kStandIns || byte_of[code_point.value] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of[code_point.value]));
    position += code_point.bytes;
  }
  return bytes;
}

class Loader {
 public:
  explicit Loader(const gguf::File& file) : file_(file), vocabulary_(new Tokenizer::Vocabulary) {}

  Result<std::shared_ptr<const Tokenizer::Vocabulary>> load() {
    TRIMPOT_TRY_VOID(check_model());
    TRIMPOT_TRY_VOID(read_pre_tokenizer());
    TRIMPOT_TRY_VOID(read_tokens());
    TRIMPOT_TRY_VOID(read_types());
    TRIMPOT_TRY_VOID(read_special_ids());
    guess_ends();
    collect_bytes();
    TRIMPOT_TRY_VOID(read_merges());
    collect_special();
    return std::shared_ptr<const Tokenizer::Vocabulary>(std::move(vocabulary_));
  }

 private:
  Status check_model() {
    TRIMPOT_TRY(const std::string model, file_.get_string("tokenizer.ggml.model"));
    if (model == "gpt2") return {};
    return fail(
        "{}: tokenizer.ggml.model is \"{}\", which is not supported yet; use a model with a "
        "byte-level BPE tokenizer (\"gpt2\")",
        file_.path(), printable(model));
  }

  Status read_pre_tokenizer() {
    TRIMPOT_TRY(const std::string name, file_.get_string_or(kPreKey, ""));
    const auto kind = text::find_pre_tokenizer(name);
    if (!kind)
      return fail(
          "{}: {} is \"{}\", which is not supported; use a model with one of gpt-2, smollm, "
          "starcoder, llama-bpe, qwen2, default",
          file_.path(), kPreKey, printable(name));
    vocabulary_->pre_tokenizer = *kind;
    vocabulary_->normalize = *kind == text::PreTokenizer::kQwen2;
    vocabulary_->ignore_merges = *kind == text::PreTokenizer::kLlama3;
    vocabulary_->add_bos = *kind == text::PreTokenizer::kLlama3;  // unless the file says otherwise
    return {};
  }

  Status read_tokens() {
    TRIMPOT_TRY(const auto tokens, file_.get_strings(kTokensKey));
    if (tokens.empty() || tokens.size() > std::numeric_limits<TokenId>::max())
      return fail("{}: {} has {} tokens, 1 to 2^31 - 1 are needed", file_.path(), kTokensKey,
                  tokens.size());
    vocabulary_->text_ends.reserve(tokens.size());
    for (const std::string_view token : tokens) {
      vocabulary_->texts.append(token);
      vocabulary_->text_ends.push_back(vocabulary_->texts.size());
    }
    vocabulary_->types.resize(tokens.size(), TokenType::kNormal);
    vocabulary_->ends_generation.resize(tokens.size());
    vocabulary_->ids.reserve(tokens.size());
    for (TokenId id = 0; vocabulary_->contains(id); ++id) {
      const std::string_view token = vocabulary_->text_of(id);
      if (token.empty()) continue;  // a hole in the vocabulary: decodes to nothing
      const auto [known, inserted] = vocabulary_->ids.emplace(token, id);
      if (!inserted)
        return fail("{}: {}: token {} repeats token {} (\"{}\"); convert the model again",
                    file_.path(), kTokensKey, id, known->second, printable(token));
    }
    return {};
  }

  // Without the key every token is normal, as in llama.cpp.
  Status read_types() {
    if (!file_.find(kTypesKey)) return {};
    TRIMPOT_TRY(const auto types, file_.get_ints(kTypesKey));
    if (types.size() != vocabulary_->size())
      return fail("{}: {} has {} elements for {} tokens; convert the model again", file_.path(),
                  kTypesKey, types.size(), vocabulary_->size());
    for (std::size_t id = 0; id < types.size(); ++id) {
      if (types[id] < 0 || types[id] > static_cast<std::int64_t>(TokenType::kByte))
        return fail("{}: {}: element {} is {}, 0 to 6 are known; convert the model again",
                    file_.path(), kTypesKey, id, types[id]);
      vocabulary_->types[id] = static_cast<TokenType>(types[id]);
    }
    return {};
  }

  Result<std::optional<TokenId>> read_id(std::string_view key) {
    if (!file_.find(key)) return std::nullopt;
    // Some converters write 2^32 - 1 (or -1) for "none"; llama.cpp ignores ids out of range, but
    // an id that is off by a little means that vocabulary and keys are of two models.
    const gguf::Value& value = *file_.find(key);
    if (const auto* number = std::get_if<std::int64_t>(&value.scalar); number && *number == -1)
      return std::nullopt;
    TRIMPOT_TRY(const std::uint64_t id, file_.get_uint(key));
    if (id == std::numeric_limits<std::uint32_t>::max()) return std::nullopt;
    if (id >= vocabulary_->size())
      return fail("{}: {} is {}, but there are {} tokens; convert the model again", file_.path(),
                  key, id, vocabulary_->size());
    return static_cast<TokenId>(id);
  }

  Status read_special_ids() {
    TRIMPOT_TRY(vocabulary_->bos, read_id("tokenizer.ggml.bos_token_id"));
    TRIMPOT_TRY(vocabulary_->eos, read_id("tokenizer.ggml.eos_token_id"));
    TRIMPOT_TRY(vocabulary_->eot, read_id("tokenizer.ggml.eot_token_id"));
    TRIMPOT_TRY(vocabulary_->pad, read_id("tokenizer.ggml.padding_token_id"));
    TRIMPOT_TRY(const auto eom, read_id("tokenizer.ggml.eom_token_id"));
    if (eom) vocabulary_->ends_generation[static_cast<std::size_t>(*eom)] = true;
    TRIMPOT_TRY(const bool add_bos,
                file_.get_bool_or("tokenizer.ggml.add_bos_token", vocabulary_->add_bos));
    TRIMPOT_TRY(const bool add_eos, file_.get_bool_or("tokenizer.ggml.add_eos_token", false));
    if (add_bos && !vocabulary_->bos)
      return fail(
          "{}: BOS shall be added but tokenizer.ggml.bos_token_id is missing; set it or "
          "set tokenizer.ggml.add_bos_token to false",
          file_.path());
    if (add_eos && !vocabulary_->eos)
      return fail(
          "{}: EOS shall be added but tokenizer.ggml.eos_token_id is missing; set it or "
          "set tokenizer.ggml.add_eos_token to false",
          file_.path());
    vocabulary_->add_bos = add_bos;
    vocabulary_->add_eos = add_eos;
    return {};
  }

  // Tokens that steer a conversation are control tokens whatever their type in the file says, so
  // that no message can forge them. llama.cpp does the same for the ends; <|im_start|> is ours.
  void make_control(TokenId id, bool end) {
    vocabulary_->types[static_cast<std::size_t>(id)] = TokenType::kControl;
    if (end) vocabulary_->ends_generation[static_cast<std::size_t>(id)] = true;
  }

  void guess_ends() {
    const auto find = [&](std::string_view text) -> std::optional<TokenId> {
      const auto found = vocabulary_->ids.find(text);
      return found == vocabulary_->ids.end() ? std::nullopt : std::optional(found->second);
    };
    for (const std::string_view text : kTurnEnds) {
      const auto id = find(text);
      if (!id) continue;
      make_control(*id, true);
      if (!vocabulary_->eot) vocabulary_->eot = id;
    }
    for (const std::string_view text : kOtherEnds)
      if (const auto id = find(text)) make_control(*id, true);
    // Also HTML's end of struck-through text, so only where the file calls it a control token.
    if (const auto id = find("</s>"); id && vocabulary_->type_of(*id) == TokenType::kControl)
      make_control(*id, true);
    if (const auto id = find("<|im_start|>")) make_control(*id, false);
    for (const auto& id : {vocabulary_->eos, vocabulary_->eot})
      if (id) vocabulary_->ends_generation[static_cast<std::size_t>(*id)] = true;
  }

  // Fills in what each token decodes to, and which tokens stand for single bytes.
  void collect_bytes() {
    std::array<int, kStandIns> byte_of;
    byte_of.fill(-1);
    const std::array<char32_t, 256> stand_ins = byte_stand_ins();
    for (int byte = 0; byte < 256; ++byte)
      byte_of[stand_ins[static_cast<std::size_t>(byte)]] = byte;
    byte_tokens_.fill(text::kNoToken);
    vocabulary_->byte_ends.reserve(vocabulary_->size());
    for (TokenId id = 0; vocabulary_->contains(id); ++id) {
      const std::string_view token = vocabulary_->text_of(id);
      const bool literal =
          vocabulary_->is_special(id) || vocabulary_->type_of(id) == TokenType::kUserDefined;
      const auto bytes = literal ? std::nullopt : bytes_behind(token, byte_of);
      vocabulary_->bytes.append(bytes ? std::string_view(*bytes) : token);
      vocabulary_->byte_ends.push_back(vocabulary_->bytes.size());
      if (bytes && bytes->size() == 1) byte_tokens_[static_cast<unsigned char>((*bytes)[0])] = id;
    }
    if (!vocabulary_->ignore_merges) return;
    vocabulary_->ids_of_bytes.reserve(vocabulary_->size());
    for (TokenId id = 0; vocabulary_->contains(id); ++id)
      if (vocabulary_->type_of(id) == TokenType::kNormal && !vocabulary_->bytes_of(id).empty())
        vocabulary_->ids_of_bytes.emplace(vocabulary_->bytes_of(id), id);
  }

  Status read_merges() {
    TRIMPOT_TRY(const auto merges, file_.get_strings(kMergesKey));
    if (merges.size() > std::numeric_limits<TokenId>::max())
      return fail("{}: {} has {} elements, too many", file_.path(), kMergesKey, merges.size());
    std::vector<text::Merge> rules;
    rules.reserve(merges.size());
    std::string joined;
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const std::string_view merge = merges[rank];
      const std::size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == merge.size())
        return fail(
            "{}: {}: element {} (\"{}\") is not two tokens with a space between them; "
            "convert the model again",
            file_.path(), kMergesKey, rank, printable(merge));
      const std::string_view left = merge.substr(0, space);
      const std::string_view right = merge.substr(space + 1);
      joined.assign(left).append(right);
      text::Merge rule{};
      TokenId* const ids[] = {&rule.left, &rule.right, &rule.result};
      const std::string_view texts[] = {left, right, joined};
      for (std::size_t part = 0; part < 3; ++part) {
        const auto found = vocabulary_->ids.find(texts[part]);
        // `tokenizers` refuses such a vocabulary; llama.cpp would fall back to bytes.
        if (found == vocabulary_->ids.end())
          return fail(
              "{}: {}: element {} needs the token \"{}\", which the vocabulary lacks; "
              "convert the model again",
              file_.path(), kMergesKey, rank, printable(texts[part]));
        *ids[part] = found->second;
      }
      // A control token never comes out of ordinary text.
      if (vocabulary_->is_special(rule.result)) rule.result = text::kNoToken;
      rules.push_back(rule);
    }
    vocabulary_->merger.emplace(byte_tokens_, rules);
    return {};
  }

  void collect_special() {
    for (TokenId id = 0; vocabulary_->contains(id); ++id) {
      const bool user_defined = vocabulary_->type_of(id) == TokenType::kUserDefined;
      if (user_defined) vocabulary_->user_defined.add(vocabulary_->text_of(id), id);
      if (user_defined || vocabulary_->is_special(id))
        vocabulary_->all_special.add(vocabulary_->text_of(id), id);
    }
  }

  const gguf::File& file_;
  std::shared_ptr<Tokenizer::Vocabulary> vocabulary_;
  std::array<TokenId, 256> byte_tokens_;
};

}  // namespace

Result<Tokenizer> Tokenizer::from_gguf(const gguf::File& file) {
  TRIMPOT_TRY(auto vocabulary, Loader(file).load());
  return Tokenizer(std::move(vocabulary));
}

}  // namespace trimpot
