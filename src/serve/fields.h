// Strict reading of JSON objects: wrong types, numbers out of range and unknown fields are errors
// that name the field. A null is the same as a field that is not there.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "serve/api_error.h"

namespace trimpot::serve {

using Json = nlohmann::json;
// Keeps the order of fields in what is sent.
using OrderedJson = nlohmann::ordered_json;

// Errors: not JSON (which is UTF-8), more than 16 levels deep, not an object.
Parsed<Json> parse_object(std::string_view body);

// Compact; bytes that are not UTF-8 become U+FFFD.
std::string dump(const OrderedJson& json);

// The fields of one object. The first problem counts; getters after it give nothing.
class Fields {
 public:
  // `path`: what comes before a field's name in messages ("messages[3]."). `object` must outlive
  // this.
  explicit Fields(const Json& object, std::string path = {})
      : object_(object), path_(std::move(path)) {}

  std::optional<bool> boolean(const char* name);
  std::optional<double> number(const char* name, double least, double most);
  std::optional<std::int64_t> integer(const char* name, std::int64_t least, std::int64_t most);
  std::optional<std::string> text(const char* name);
  // One text or a list of at most `most` texts, none of them empty.
  std::optional<std::vector<std::string>> texts(const char* name, std::size_t most);
  // Token ids in [0, vocabulary).
  std::optional<std::vector<std::int32_t>> tokens(const char* name, std::int64_t vocabulary);
  // Of any type; null: not there.
  const Json* any(const char* name);
  // Fields without an effect here, whatever they hold.
  void ignore(std::initializer_list<const char*> names);
  // A field that may only say what is done anyway: one of these values, or null.
  void only(const char* name, std::initializer_list<Json> values);

  void problem(const char* name, const std::string& what);
  std::string full_name(const char* name) const { return path_ + name; }
  bool failed() const { return error_.has_value(); }
  // The first problem; then fields that nobody asked for.
  std::optional<ApiError> error() const;

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
  std::optional<ApiError> error_;
};

// Token ids of a JSON list. Errors: not a list of whole numbers in [0, vocabulary).
Parsed<std::vector<std::int32_t>> token_list(const Json& json, std::int64_t vocabulary,
                                             const std::string& name);

}  // namespace trimpot::serve
