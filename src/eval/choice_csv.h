// Comma-separated values as RFC 4180 has them: fields in quotes may hold commas, line breaks and
// doubled quotes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace trimpot {

struct CsvRow {
  std::vector<std::string> fields;
  std::size_t line = 0;  // of its begin, from 1
};

// Blank lines are skipped. Errors: a quote that is not closed, text behind a closing quote.
Result<std::vector<CsvRow>> parse_csv(const std::string& path, std::string_view text);

}  // namespace trimpot
