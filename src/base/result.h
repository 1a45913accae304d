// Errors as values: the library never throws, aborts or prints. A message names the file, tensor,
// field or line and says what to do.
#pragma once

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace trimpot {

struct Error {
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return fail("{}: tensor {} is cut short", path, name);
template <typename... Args>
[[nodiscard]] tl::unexpected<Error> fail(fmt::format_string<Args...> format, Args&&... args) {
  return tl::make_unexpected(Error{fmt::format(format, std::forward<Args>(args)...)});
}

[[nodiscard]] inline tl::unexpected<Error> fail(Error error) {
  return tl::make_unexpected(std::move(error));
}

}  // namespace trimpot

// TRIMPOT_TRY(auto file, open(path));   or   TRIMPOT_TRY_VOID(file.check());
// The only macros of the project: C++20 has no operator that returns early.
#define TRIMPOT_CONCAT_INNER(a, b) a##b
#define TRIMPOT_CONCAT(a, b) TRIMPOT_CONCAT_INNER(a, b)
#define TRIMPOT_TRY_IMPL(result, target, expression)              \
  auto result = (expression);                                     \
  if (!result) return ::trimpot::fail(std::move(result.error())); \
  target = std::move(*result)
#define TRIMPOT_TRY(target, ...) \
  TRIMPOT_TRY_IMPL(TRIMPOT_CONCAT(try_result_, __LINE__), target, (__VA_ARGS__))
#define TRIMPOT_TRY_VOID(...)                                \
  do {                                                       \
    if (auto try_status = (__VA_ARGS__); !try_status)        \
      return ::trimpot::fail(std::move(try_status.error())); \
  } while (false)
