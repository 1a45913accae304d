#include "serve/fields.h"

#include <cmath>

#include "io/printable.h"

namespace trimpot::serve {
namespace {

constexpr int kDeepest = 16;

// Counts brackets outside of strings, before anything is allocated for them.
bool too_deep(std::string_view body) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

}  // namespace

std::string error_body(const ApiError& error) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? OrderedJson() : OrderedJson(text);
  };
  OrderedJson body;
  body["error"] = {{"message", error.message},
                   {"type", error_type(error.status)},
                   {"param", or_null(error.param)},
                   {"code", or_null(error.code)}};
  return dump(body);
}

Parsed<Json> parse_object(std::string_view body) {
  if (too_deep(body))
    return bad_request(fmt::format("the body is nested more than {} levels deep", kDeepest));
  // The parser would take it for the end.
  if (body.find('\0') != std::string_view::npos) return bad_request("the body has a byte of zero");
  Json json = Json::parse(body, nullptr, false);
  if (json.is_discarded())
    return bad_request("the body is not valid JSON (in UTF-8, numbers within a double's range)");
  if (!json.is_object()) return bad_request("the body has to be a JSON object");
  return json;
}

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

const Json* Fields::any(const char* name) {
  known_.emplace(name);
  const auto found = object_.find(name);
  if (found == object_.end() || found->is_null() || failed()) return nullptr;
  return &*found;
}

void Fields::problem(const char* name, const std::string& what) {
  if (failed()) return;
  const std::string field = full_name(name);
  error_ = ApiError(400, fmt::format("{} {}", field, what), {}, field);
}

std::optional<bool> Fields::boolean(const char* name) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  if (value->is_boolean()) return value->get<bool>();
  problem(name, "has to be true or false");
  return {};
}

std::optional<double> Fields::number(const char* name, double least, double most) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (number >= least && number <= most) return number;
  problem(name, fmt::format("has to be a number from {} to {}", least, most));
  return {};
}

std::optional<std::int64_t> Fields::integer(const char* name, std::int64_t least,
                                            std::int64_t most) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  bool good = value->is_number_integer();
  if (value->is_number_unsigned())
    good = value->get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX);
  if (good) {
    const auto number = value->get<std::int64_t>();
    if (number >= least && number <= most) return number;
  }
  problem(name, fmt::format("has to be a whole number from {} to {}", least, most));
  return {};
}

std::optional<std::string> Fields::text(const char* name) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  if (value->is_string()) return value->get<std::string>();
  problem(name, "has to be a text");
  return {};
}

std::optional<std::vector<std::string>> Fields::texts(const char* name, std::size_t most) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  std::vector<std::string> texts;
  bool good = true;
  if (value->is_string()) {
    texts.push_back(value->get<std::string>());
  } else if (value->is_array() && value->size() <= most) {
    for (const Json& each : *value) {
      good = good && each.is_string();
      if (good) texts.push_back(each.get<std::string>());
    }
  } else {
    good = false;
  }
  for (const std::string& text : texts) good = good && !text.empty();
  if (good) return texts;
  problem(name, fmt::format("has to be a text or a list of at most {} texts, none empty", most));
  return {};
}

std::optional<std::vector<std::int32_t>> Fields::tokens(const char* name, std::int64_t vocabulary) {
  const Json* value = any(name);
  if (value == nullptr) return {};
  auto tokens = token_list(*value, vocabulary, full_name(name));
  if (tokens) return std::move(*tokens);
  error_ = std::move(tokens.error());
  return {};
}

void Fields::ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.emplace(name);
}

void Fields::only(const char* name, std::initializer_list<Json> values) {
  const Json* value = any(name);
  if (value == nullptr) return;
  for (const Json& allowed : values)
    if (*value == allowed) return;
  problem(name, fmt::format("is not supported; leave it out, or use {}", values.begin()->dump()));
}

std::optional<ApiError> Fields::error() const {
  if (error_) return error_;
  for (const auto& [name, value] : object_.items()) {
    if (known_.contains(name)) continue;
    const std::string field = path_ + printable(name);
    return ApiError(400, fmt::format("unknown field {}", field), "unknown_field", field);
  }
  return {};
}

Parsed<std::vector<std::int32_t>> token_list(const Json& json, std::int64_t vocabulary,
                                             const std::string& name) {
  std::vector<std::int32_t> tokens;
  bool good = json.is_array();
  if (good) tokens.reserve(json.size());
  for (std::size_t i = 0; good && i < json.size(); ++i) {
    good = json[i].is_number_unsigned() &&
           json[i].get<std::uint64_t>() < static_cast<std::uint64_t>(vocabulary);
    if (good) tokens.push_back(json[i].get<std::int32_t>());
  }
  if (good) return tokens;
  return bad_request(
      fmt::format("{} has to be a list of token ids from 0 to {}", name, vocabulary - 1), name);
}

}  // namespace trimpot::serve
