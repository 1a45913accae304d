#include "eval/match.h"

#include <algorithm>

#include "model/sampler.h"

namespace trimpot {
namespace {

std::string trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(kSpace) - first + 1));
}

}  // namespace

Result<MatchResult> exact_match(Compute& compute, const Model& model, const Tokenizer& tokenizer,
                                const ChatTemplate& chat_template, const std::string& path,
                                std::span<const Record> records, const MatchOptions& options,
                                const std::function<bool(const MatchResult&)>& progress) {
  struct Prompt {
    std::vector<TokenId> ids;
    std::int64_t most;  // answer tokens
  };
  if (options.limit > 0)
    records = records.first(std::min<std::size_t>(records.size(), options.limit));
  std::vector<Prompt> prompts;
  std::int64_t context = 0;
  for (const Record& record : records) {
    if (record.kind != Record::Kind::kMessages || record.messages.size() < 2 ||
        record.messages.back().role != "assistant")
      return fail(
          "{}:{}: this record has no answer to compare with; questions with answers "
          "(messages, prompt/completion, Alpaca) are needed",
          path, record.line);
    TRIMPOT_TRY(EncodedChat chat,
                chat_template.encode(
                    tokenizer, std::span(record.messages).first(record.messages.size() - 1), true));
    const auto length = static_cast<std::int64_t>(chat.ids.size());
    if (length >= model.config.context_length)
      return fail("{}:{}: a prompt of {} tokens leaves no room in the model's context of {}", path,
                  record.line, length, model.config.context_length);
    const std::int64_t most = std::min(options.max_tokens, model.config.context_length - length);
    context = std::max(context, length + most);
    prompts.push_back({std::move(chat.ids), most});
  }
  MatchResult result;
  Session session(compute, model, std::max<std::int64_t>(context, 1));
  std::vector<TokenId> seen;
  std::vector<float> logits(static_cast<std::size_t>(model.config.vocabulary));
  for (std::size_t i = 0; i < records.size(); ++i) {
    const std::vector<TokenId>& ids = prompts[i].ids;
    std::size_t same = 0;  // prompts share their beginning (system message, header)
    while (same < seen.size() && same + 1 < ids.size() && seen[same] == ids[same]) ++same;
    session.truncate(static_cast<std::int64_t>(same));
    TRIMPOT_TRY_VOID(session.append(std::span(ids).subspan(same), logits.data()));
    seen = ids;
    std::vector<TokenId> answer;
    while (static_cast<std::int64_t>(answer.size()) < prompts[i].most) {
      const TokenId token = greedy(std::span(logits).first(tokenizer.vocabulary_size()));
      if (tokenizer.is_end_of_generation(token)) break;
      answer.push_back(token);
      if (static_cast<std::int64_t>(answer.size()) < prompts[i].most)
        TRIMPOT_TRY_VOID(session.append({&token, 1}, logits.data()));
    }
    const Record& record = records[i];
    MatchItem item;
    item.question = record.messages[record.messages.size() - 2].content;
    item.expected = trimmed(record.messages.back().content);
    item.answer = trimmed(tokenizer.decode(answer));
    item.exact = item.answer == item.expected;
    ++result.total;
    result.exact += item.exact;
    result.items.push_back(std::move(item));
    if (progress && !progress(result)) break;
  }
  return result;
}

}  // namespace trimpot
