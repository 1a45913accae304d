#include "eval/json_rows.h"

#include <optional>

#include "data/json_pieces.h"

namespace trimpot {

using Json = nlohmann::ordered_json;

Status for_each_row(const std::string& path, std::string_view text,
                    const std::function<Status(const JsonRow&)>& visit) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
  JsonPieces pieces(path, text);
  bool any = false;
  while (true) {
    TRIMPOT_TRY(const std::optional<JsonPiece> piece, pieces.next());
    if (!piece) break;
    JsonRow row;
    row.line = piece->line;
    row.place = fmt::format("{}:{}", path, piece->line);
    row.object = Json::parse(piece->text, nullptr, false);
    if (row.object.is_discarded())
      return fail("{}: this is no JSON in UTF-8; {} is expected", row.place,
                  pieces.is_array() ? "a list of objects" : "one object a line");
    if (!row.object.is_object())
      return fail("{}: the row is {}; an object is expected", row.place, row.object.type_name());
    TRIMPOT_TRY_VOID(visit(row));
    any = true;
  }
  if (!any) return fail("{}: there is no row in the file; JSON Lines are expected", path);
  return {};
}

namespace {

Result<const Json*> field(const Json& object, const std::string& place, const char* name,
                          Json::value_t type, const char* expected) {
  const auto found = object.find(name);
  if (found == object.end())
    return fail("{}: field \"{}\" is missing; {} is expected", place, name, expected);
  if (found->type() != type)
    return fail("{}: field \"{}\" is {}; {} is expected", place, name, found->type_name(),
                expected);
  return &*found;
}

}  // namespace

Result<std::string> string_field(const Json& object, const std::string& place, const char* name) {
  TRIMPOT_TRY(const Json* found, field(object, place, name, Json::value_t::string, "a string"));
  return found->get<std::string>();
}

Result<std::vector<std::string>> strings_field(const Json& object, const std::string& place,
                                               const char* name) {
  TRIMPOT_TRY(const Json* found,
              field(object, place, name, Json::value_t::array, "a list of strings"));
  std::vector<std::string> strings;
  for (const Json& entry : *found) {
    if (!entry.is_string())
      return fail("{}: an entry of \"{}\" is {}; a string is expected", place, name,
                  entry.type_name());
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

Result<Json> object_field(const Json& object, const std::string& place, const char* name) {
  TRIMPOT_TRY(const Json* found, field(object, place, name, Json::value_t::object, "an object"));
  return *found;
}

}  // namespace trimpot
