// Rows of a data set as JSON objects, and their fields with errors that name the line.
#pragma once

#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace trimpot {

// Keeps the order of keys: TruthfulQA's answers are the keys of an object.
struct JsonRow {
  nlohmann::ordered_json object;
  std::string place;  // "FILE:LINE", the begin of messages
  std::size_t line = 0;
};

// JSON Lines, or one array of objects. Errors: no row, broken JSON, text that is not UTF-8, a row
// that is no object; whatever `visit` returns.
Status for_each_row(const std::string& path, std::string_view text,
                    const std::function<Status(const JsonRow&)>& visit);

// Errors: the field is missing or not of that type.
Result<std::string> string_field(const nlohmann::ordered_json& object, const std::string& place,
                                 const char* name);
Result<std::vector<std::string>> strings_field(const nlohmann::ordered_json& object,
                                               const std::string& place, const char* name);
Result<nlohmann::ordered_json> object_field(const nlohmann::ordered_json& object,
                                            const std::string& place, const char* name);

}  // namespace trimpot
