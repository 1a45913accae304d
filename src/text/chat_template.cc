#include "text/chat_template.h"

#include "io/printable.h"
#include "text/chatml_matcher.h"

namespace trimpot {
namespace {

constexpr std::string_view kKey = "tokenizer.chat_template";
constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";

void add_message(std::vector<Piece>& pieces, const Message& message) {
  const bool answer = message.role == "assistant";
  pieces.push_back({std::string(kStart), false, true});
  pieces.push_back({message.role + "\n", false, false});
  pieces.push_back({message.content, answer, false});
  pieces.push_back({std::string(kEnd), answer, true});
  pieces.push_back({"\n", false, false});
}

// Encodes neighbouring pieces of plain text as one text and marks their tokens.
void encode_run(const Tokenizer& tokenizer, std::span<const Piece> run, EncodedChat& chat) {
  std::string text;
  for (const Piece& piece : run) text += piece.text;
  const std::vector<TokenId> ids = tokenizer.encode(text);
  chat.ids.insert(chat.ids.end(), ids.begin(), ids.end());
  chat.learned.resize(chat.ids.size(), 0);
  // A token belongs to the piece in which its first byte lies. Lengths are those of the encoded
  // pieces, since NFC and bytes that the vocabulary lacks may change them; the pieces of a template
  // end in a line break, which joins nothing.
  std::size_t index = chat.ids.size() - ids.size();
  std::size_t token_begin = 0;
  std::size_t piece_end = 0;
  for (std::size_t number = 0; number < run.size(); ++number) {
    if (number + 1 == run.size())
      piece_end = std::string::npos;
    else
      for (const TokenId id : tokenizer.encode(run[number].text))
        piece_end += tokenizer.token_bytes(id).size();
    for (; index < chat.ids.size() && token_begin < piece_end; ++index) {
      chat.learned[index] = run[number].learned;
      token_begin += tokenizer.token_bytes(chat.ids[index]).size();
    }
  }
}

}  // namespace

Result<ChatTemplate> ChatTemplate::from_gguf(const gguf::File& file) {
  if (!file.find(kKey))
    return fail("{}: it has no {}; use an instruction-tuned model, or plain text without roles",
                file.path(), kKey);
  TRIMPOT_TRY(const std::string source, file.get_string(kKey));
  auto chat = text::match_chatml(source);
  if (!chat)
    return fail("{}: {} cannot be rendered ({}); only ChatML templates are supported so far",
                file.path(), kKey, chat.error().message);
  return ChatTemplate(std::move(chat->default_system));
}

std::vector<Piece> ChatTemplate::render_pieces(std::span<const Message> messages,
                                               bool add_generation_prompt) const {
  std::vector<Piece> pieces;
  pieces.reserve(5 * messages.size() + 7);
  if (default_system_ && !messages.empty() && messages[0].role != "system")
    add_message(pieces, {"system", *default_system_});
  for (const Message& message : messages) add_message(pieces, message);
  if (add_generation_prompt) {
    pieces.push_back({std::string(kStart), false, true});
    pieces.push_back({"assistant\n", false, false});
  }
  return pieces;
}

std::string ChatTemplate::render(std::span<const Message> messages,
                                 bool add_generation_prompt) const {
  std::string text;
  for (const Piece& piece : render_pieces(messages, add_generation_prompt)) text += piece.text;
  return text;
}

Result<EncodedChat> ChatTemplate::encode(const Tokenizer& tokenizer,
                                         std::span<const Message> messages,
                                         bool add_generation_prompt) const {
  return encode_pieces(tokenizer, render_pieces(messages, add_generation_prompt));
}

Result<EncodedChat> encode_pieces(const Tokenizer& tokenizer, std::span<const Piece> pieces) {
  EncodedChat chat;
  for (std::size_t begin = 0; begin < pieces.size();) {
    if (pieces[begin].special) {
      const auto id = tokenizer.find(pieces[begin].text);
      if (!id || !tokenizer.is_control(*id))
        return fail(
            "the chat template needs the control token \"{}\", which the vocabulary lacks; "
            "use the template and the vocabulary of one model",
            printable(pieces[begin].text));
      chat.ids.push_back(*id);
      chat.learned.push_back(pieces[begin].learned);
      ++begin;
      continue;
    }
    std::size_t end = begin;
    while (end < pieces.size() && !pieces[end].special) ++end;
    encode_run(tokenizer, pieces.subspan(begin, end - begin), chat);
    begin = end;
  }
  return chat;
}

}  // namespace trimpot
