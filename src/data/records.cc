#include "data/records.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "data/json_pieces.h"
#include "sys/mapped_file.h"

namespace trimpot {
namespace {

using Json = nlohmann::json;

// A record's object and the words that begin a message about it.
struct Source {
  const Json& object;
  std::string place;
};

Result<std::string> string_field(const Source& source, const Json& object, const char* name,
                                 const std::string& of) {
  const auto found = object.find(name);
  if (found == object.end())
    return fail("{}: field \"{}\"{} is missing; a string is expected", source.place, name, of);
  if (!found->is_string())
    return fail("{}: field \"{}\"{} is {}; a string is expected", source.place, name, of,
                found->type_name());
  return found->get<std::string>();
}

// "from" of ShareGPT and "role" of everybody else, or nothing for a word we do not know.
std::optional<std::string> neutral_role(const std::string& role) {
  if (role == "human" || role == "user") return "user";
  if (role == "gpt" || role == "assistant") return "assistant";
  if (role == "system") return "system";
  return std::nullopt;
}

Status append_messages(const Source& source, const char* field, bool share_gpt,
                       std::vector<Message>& messages) {
  const Json& list = source.object.at(field);
  if (!list.is_array())
    return fail("{}: field \"{}\" is {}; a list of messages is expected", source.place, field,
                list.type_name());
  if (list.empty())
    return fail("{}: field \"{}\" is an empty list; at least one message is expected", source.place,
                field);
  const char* role_name = share_gpt ? "from" : "role";
  const char* content_name = share_gpt ? "value" : "content";
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string of = fmt::format(" of {}[{}]", field, i);
    if (!list[i].is_object())
      return fail("{}: {}[{}] is {}; an object with \"{}\" and \"{}\" is expected", source.place,
                  field, i, list[i].type_name(), role_name, content_name);
    TRIMPOT_TRY(const std::string role, string_field(source, list[i], role_name, of));
    const std::optional<std::string> known = neutral_role(role);
    if (!known)
      return fail("{}: field \"{}\"{} is \"{}\"; {} is expected", source.place, role_name, of,
                  role.substr(0, 40),
                  share_gpt ? "system, human or gpt" : "system, user or assistant");
    TRIMPOT_TRY(std::string content, string_field(source, list[i], content_name, of));
    messages.push_back({*known, std::move(content)});
  }
  return {};
}

Status append_system(const Source& source, std::vector<Message>& messages) {
  if (!source.object.contains("system")) return {};
  TRIMPOT_TRY(std::string system, string_field(source, source.object, "system", ""));
  if (!system.empty()) messages.push_back({"system", std::move(system)});
  return {};
}

Status append_pair(const Source& source, const char* user_field, const char* assistant_field,
                   std::vector<Message>& messages) {
  TRIMPOT_TRY(std::string user, string_field(source, source.object, user_field, ""));
  TRIMPOT_TRY(std::string assistant, string_field(source, source.object, assistant_field, ""));
  messages.push_back({"user", std::move(user)});
  messages.push_back({"assistant", std::move(assistant)});
  return {};
}

Status append_alpaca(const Source& source, std::vector<Message>& messages) {
  TRIMPOT_TRY_VOID(append_system(source, messages));
  TRIMPOT_TRY_VOID(append_pair(source, "instruction", "output", messages));
  const auto input = source.object.find("input");
  if (input == source.object.end() || input->is_null()) return {};
  TRIMPOT_TRY(const std::string text, string_field(source, source.object, "input", ""));
  // "<noinput>" is how the first Alpaca sets and their descendants write an empty input.
  if (!text.empty() && text != "<noinput>") messages[messages.size() - 2].content += "\n\n" + text;
  return {};
}

Status append_prompt_completion(const Source& source, std::vector<Message>& messages) {
  const Json& object = source.object;
  if (object.contains("completion") && object["prompt"].is_array() &&
      object["completion"].is_array()) {
    TRIMPOT_TRY_VOID(append_messages(source, "prompt", false, messages));
    return append_messages(source, "completion", false, messages);
  }
  return append_pair(source, "prompt", "completion", messages);
}

Result<Record> make_record(const Source& source, std::size_t line) {
  Record record;
  record.line = line;
  std::vector<Message>& messages = record.messages;
  const Json& object = source.object;
  if (!object.is_object())
    return fail("{}: the record is {}; an object like {{\"messages\": [...]}} is expected",
                source.place, object.type_name());
  if (object.contains("messages")) {
    TRIMPOT_TRY_VOID(append_messages(source, "messages", false, messages));
  } else if (object.contains("conversations")) {
    TRIMPOT_TRY_VOID(append_system(source, messages));
    TRIMPOT_TRY_VOID(append_messages(source, "conversations", true, messages));
  } else if (object.contains("prompt")) {
    TRIMPOT_TRY_VOID(append_prompt_completion(source, messages));
  } else if (object.contains("instruction")) {
    TRIMPOT_TRY_VOID(append_alpaca(source, messages));
  } else if (object.contains("question")) {
    TRIMPOT_TRY_VOID(append_pair(source, "question", "answer", messages));
  } else if (object.contains("text")) {
    record.kind = Record::Kind::kText;
    TRIMPOT_TRY(record.text, string_field(source, object, "text", ""));
  } else {
    return fail(
        "{}: the record has none of the fields messages, conversations, prompt and "
        "completion, instruction and output, question and answer, text",
        source.place);
  }
  return record;
}

// What nlohmann's message "[json.exception.parse_error.101] parse error at line 1, column 9:
// REASON" says, in one line: its line counts from the piece's begin, so it would only confuse.
std::string parse_reason(const Json::exception& error) {
  std::string reason = error.what();
  if (const auto end = reason.find("] "); end != std::string::npos) reason.erase(0, end + 2);
  if (reason.starts_with("parse error at "))
    if (const auto end = reason.find(": "); end != std::string::npos) reason.erase(0, end + 2);
  for (char& c : reason)
    if (std::iscntrl(static_cast<unsigned char>(c))) c = ' ';
  // The message quotes the text read so far; a megabyte of it helps nobody.
  constexpr std::size_t kMost = 200;
  if (reason.size() > kMost) reason = reason.substr(0, kMost) + "...";
  return reason;
}

Result<Record> parse_piece(const std::string& path, const JsonPiece& piece, bool in_array) {
  std::string place = in_array
                          ? fmt::format("{}: record {} (line {})", path, piece.record, piece.line)
                          : fmt::format("{}:{}", path, piece.line);
  if (const auto bad = find_invalid_utf8(piece.text)) {
    const auto line = piece.line + std::count(piece.text.begin(), piece.text.begin() + *bad, '\n');
    return fail("{}:{}: byte 0x{:02x} is not UTF-8; save the file as UTF-8", path, line,
                static_cast<unsigned char>(piece.text[*bad]));
  }
  Json object;
  try {
    object = Json::parse(piece.text);
  } catch (const Json::parse_error& error) {
    // The byte counts from 1; an error at the end of the input lies one behind it.
    const std::size_t offset = std::min(error.byte, piece.text.size());
    const auto line =
        piece.line + std::count(piece.text.begin(), piece.text.begin() + offset, '\n');
    if (in_array) place = fmt::format("{}: record {} (line {})", path, piece.record, line);
    return fail("{}: broken JSON: {} ({})", place, parse_reason(error),
                in_array ? "records are separated by one comma"
                         : "each line is one record; plain text needs a name that ends in .txt");
  } catch (const Json::exception& error) {  // a number that no double can hold
    return fail("{}: {}", place, parse_reason(error));
  }
  return make_record({object, std::move(place)}, piece.line);
}

Result<RecordFile> plain_text_file(const std::string& path, std::string_view text) {
  if (const auto bad = find_invalid_utf8(text))
    return fail("{}:{}: byte 0x{:02x} is not UTF-8; save the file as UTF-8", path,
                1 + std::count(text.begin(), text.begin() + *bad, '\n'),
                static_cast<unsigned char>(text[*bad]));
  RecordFile file;
  file.plain_text = true;
  file.records.emplace_back();
  file.records[0].kind = Record::Kind::kText;
  file.records[0].text = text;
  file.records[0].line = 1;
  return file;
}

bool ends_with(const std::string& path, std::string_view ending) {
  if (path.size() < ending.size()) return false;
  return std::equal(
      ending.begin(), ending.end(), path.end() - std::ssize(ending),
      [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
}

// By the name where it says so: records whose first line is broken are not plain text.
bool is_plain_text(const std::string& path, char first) {
  if (ends_with(path, ".txt")) return true;
  if (ends_with(path, ".json") || ends_with(path, ".jsonl")) return false;
  return first != '{' && first != '[';
}

}  // namespace

Result<RecordFile> read_records(const std::string& path) {
  TRIMPOT_TRY(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse_records(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Result<RecordFile> parse_records(const std::string& path, std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos)
    return fail("{}: the file is empty; training records or text are expected", path);
  if (is_plain_text(path, text[first])) return plain_text_file(path, text);
  RecordFile file;
  JsonPieces pieces(path, text);
  while (true) {
    TRIMPOT_TRY(const std::optional<JsonPiece> piece, pieces.next());
    if (!piece) break;
    TRIMPOT_TRY(Record record, parse_piece(path, *piece, pieces.is_array()));
    file.records.push_back(std::move(record));
  }
  if (file.records.empty()) return fail("{}: the JSON array holds no training record", path);
  return file;
}

}  // namespace trimpot
