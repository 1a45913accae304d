#include "data/examples.h"

#include <algorithm>

namespace trimpot {
namespace {

Result<EncodedChat> encode_record(const Record& record, const ExampleEncoder& encoder,
                                  const ExampleOptions& options) {
  EncodedChat encoded;
  if (record.kind == Record::Kind::kMessages) {
    TRIMPOT_TRY(encoded, encoder.encode_chat(record.messages));
    if (encoded.learned.size() != encoded.ids.size())
      return fail("the chat template marks {} of {} tokens; this is a bug", encoded.learned.size(),
                  encoded.ids.size());
    if (options.train_on_prompt) encoded.learned.assign(encoded.ids.size(), 1);
    return encoded;
  }
  // People put "<|im_start|>user ..." into {"text"} and mean the tokens.
  encoded.ids = encoder.encode_text(record.text, true);
  std::vector<TokenId>& tokens = encoded.ids;
  if (encoder.bos && (tokens.empty() || tokens.front() != *encoder.bos))
    tokens.insert(tokens.begin(), *encoder.bos);
  if (encoder.eos && (tokens.empty() || tokens.back() != *encoder.eos))
    tokens.push_back(*encoder.eos);
  encoded.learned.assign(tokens.size(), 1);
  return encoded;
}

std::size_t count_learned(std::span<const std::uint8_t> learned) {
  if (learned.empty()) return 0;
  return static_cast<std::size_t>(
      std::count_if(learned.begin() + 1, learned.end(), [](std::uint8_t l) { return l != 0; }));
}

std::size_t trailing_unlearned(std::span<const std::uint8_t> learned) {
  const auto last = std::find_if(learned.rbegin(), learned.rend(), [](auto l) { return l != 0; });
  return static_cast<std::size_t>(last - learned.rbegin());
}

void note(std::size_t line, std::size_t& count, std::size_t& first_line) {
  if (count++ == 0) first_line = line;
}

Result<Examples> make_windows(const std::string& path, const Record& record,
                              const ExampleEncoder& encoder, const ExampleOptions& options) {
  const std::vector<TokenId> stream = encoder.encode_text(record.text, false);
  const std::size_t room = options.max_seq_length - (encoder.bos ? 1 : 0);
  Examples examples;
  examples.windows = true;
  examples.report.records = 1;
  std::vector<TokenId> window;
  std::vector<std::uint8_t> learned;
  std::size_t begin = 0;
  while (begin < stream.size()) {
    const std::size_t length = std::min(room, stream.size() - begin);
    if (length < room && begin > 0) break;
    window.clear();
    if (encoder.bos) window.push_back(*encoder.bos);
    window.insert(window.end(), stream.begin() + begin, stream.begin() + begin + length);
    begin += length;
    if (window.size() < 2) break;
    learned.assign(window.size(), 1);
    examples.set.append(window, learned);
    examples.report.tokens += window.size();
    examples.report.learned_tokens += window.size() - 1;
  }
  examples.report.examples = examples.set.size();
  examples.report.dropped_tokens = stream.size() - begin;
  if (examples.set.size() == 0)
    return fail("{}: the text has {} tokens; at least 2 are needed", path, stream.size());
  return examples;
}

}  // namespace

ExampleEncoder make_example_encoder(const Tokenizer& tokenizer,
                                    const Result<ChatTemplate>& chat_template) {
  ExampleEncoder encoder;
  encoder.encode_chat = [tokenizer, chat_template](const std::vector<Message>& messages) {
    if (!chat_template) return Result<EncodedChat>(fail(chat_template.error()));
    return chat_template->encode(tokenizer, messages, false);
  };
  encoder.encode_text = [tokenizer](std::string_view text, bool parse_special) {
    return tokenizer.encode(text, {.add_special = false, .parse_special = parse_special});
  };
  if (tokenizer.adds_bos()) encoder.bos = tokenizer.bos();
  encoder.eos = tokenizer.eos();
  return encoder;
}

std::span<const TokenId> ExampleSet::tokens(std::size_t example) const {
  return std::span(tokens_).subspan(begin(example), length(example));
}

std::span<const std::uint8_t> ExampleSet::learned(std::size_t example) const {
  return std::span(learned_).subspan(begin(example), length(example));
}

void ExampleSet::append(std::span<const TokenId> tokens, std::span<const std::uint8_t> learned) {
  const std::size_t begin = tokens_.size();
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  for (std::size_t i = 0; i < tokens.size(); ++i)
    learned_.push_back(i > 0 && i < learned.size() && learned[i] != 0 ? 1 : 0);
  if (tokens_.size() > begin) ends_.push_back(tokens_.size());
}

std::vector<std::string> ExampleReport::warnings(const ExampleOptions& options) const {
  std::vector<std::string> lines;
  if (truncated > 0)
    lines.push_back(fmt::format(
        "{} of {} records are longer than {} tokens and lose their end (first: line {}); "
        "--max-seq-length sets the limit",
        truncated, records, options.max_seq_length, first_truncated_line));
  if (skipped > 0)
    lines.push_back(
        fmt::format("{} of {} records are skipped: no answer within {} tokens (first: line {})",
                    skipped, records, options.max_seq_length, first_skipped_line));
  return lines;
}

Result<Examples> make_examples(const std::string& path, const RecordFile& file,
                               const ExampleEncoder& encoder, const ExampleOptions& options) {
  if (options.max_seq_length < 2)
    return fail("max-seq-length is {}; it must be at least 2", options.max_seq_length);
  if (file.records.empty()) return fail("{}: no training record", path);
  if (file.plain_text) return make_windows(path, file.records[0], encoder, options);

  Examples examples;
  ExampleReport& report = examples.report;
  report.records = file.records.size();
  for (const Record& record : file.records) {
    auto result = encode_record(record, encoder, options);
    if (!result) return fail("{}:{}: {}", path, record.line, result.error().message);
    std::span<const std::uint8_t> learned = result->learned;
    learned = learned.first(learned.size() - trailing_unlearned(learned));
    std::span<const TokenId> tokens = std::span(result->ids).first(learned.size());
    const bool too_long = tokens.size() > options.max_seq_length;
    if (too_long) {
      tokens = tokens.first(options.max_seq_length);
      learned = learned.first(options.max_seq_length);
    }
    const std::size_t learned_count = count_learned(learned);
    if (learned_count == 0) {
      note(record.line, report.skipped, report.first_skipped_line);
      continue;
    }
    if (too_long) note(record.line, report.truncated, report.first_truncated_line);
    examples.set.append(tokens, learned);
    report.tokens += tokens.size();
    report.learned_tokens += learned_count;
  }
  report.examples = examples.set.size();
  if (report.examples == 0)
    return fail(
        "{}: none of the {} records has an answer within {} tokens; raise max-seq-length "
        "or check that the records have assistant messages",
        path, report.records, options.max_seq_length);
  return examples;
}

}  // namespace trimpot
