// What went wrong with a request, as OpenAI's API tells it.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <tl/expected.hpp>

namespace trimpot::serve {

struct ApiError {
  ApiError(int status, std::string message, std::string code = {}, std::string param = {})
      : status(status),
        message(std::move(message)),
        code(std::move(code)),
        param(std::move(param)) {}
  int status;
  std::string message;
  std::string code;   // empty: none (null in JSON)
  std::string param;  // the field; empty: none
};

template <typename T>
using Parsed = tl::expected<T, ApiError>;

// {"error": {"message", "type", "param", "code"}}; the type follows from the status.
std::string error_body(const ApiError& error);

inline tl::unexpected<ApiError> bad_request(std::string message, std::string param = {},
                                            std::string code = {}) {
  return tl::make_unexpected(ApiError(400, std::move(message), std::move(code), std::move(param)));
}

}  // namespace trimpot::serve
